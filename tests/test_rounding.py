"""Rounding against a Gram matrix: the references, the laws (never worse, threads do not matter), layouts, refusals."""

from __future__ import annotations

import itertools
from dataclasses import replace

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from data_samples import Tensor, refused
from leadline import Grid, Scheme, affine
from leadline.rounding import Clipped, adaround, coupled_error, descend, gptq, k_best, layer_error, refit, round_best
from leadline.rounding.damping import DAMPINGS, PROBED, best_damping, probed_rows
from leadline.rounding.problem import Problem
from reference import rounding as spec

BITS = (2, 3, 4, 8)


def moments(rng: np.random.Generator, features: int, rank: int | None = None, spread: float = 1.0) -> np.ndarray:
    """E[x x^T] of correlated inputs whose channels differ in size by e^(+-spread)."""
    mix = rng.standard_normal((features, rank or features)) / np.sqrt(features) + 0.3
    mix *= np.exp(rng.uniform(-spread, spread, (features, 1)))
    return mix @ mix.T


def layer(seed: int, rows: int, features: int, bits: int = 4, symmetric: bool = True, spread: float = 1.0):
    rng = np.random.default_rng(seed)
    weight = (rng.standard_normal((rows, features)) * np.exp(rng.uniform(-1, 1, (rows, 1)))).astype(np.float32)
    scheme = Scheme(bits, signed=symmetric, symmetric=symmetric, granularity="axis", axis=0)
    grid = affine.choose_grid(*affine.range_of(weight, scheme), scheme)
    return weight, moments(rng, features, spread=spread), grid


layers = st.builds(
    layer,
    st.integers(0, 10**6),
    st.integers(1, 70),
    st.integers(1, 150),
    st.sampled_from(BITS),
    st.booleans(),
    st.floats(0, 2),
)


def row(problem, index):
    """One row as the specification takes it: weight, gram, scale, zero."""
    weight, gram, grid = problem
    n = weight.shape[1]
    scale, zero = np.full(n, grid.scale[index], float), np.full(n, grid.zero_point[index])
    return weight[index].astype(float), gram, scale, zero


@given(layers)
@settings(max_examples=30, deadline=None)
def test_errors_are_the_specification_s(problem):
    weight, gram, grid = problem
    codes = affine.quantize(weight, grid)
    found = layer_error(weight, gram, grid, codes)
    for i in range(len(weight)):
        assert found[i] == pytest.approx(spec.error(*row(problem, i), codes[i].astype(float)), rel=1e-9, abs=1e-12)


@pytest.mark.parametrize("bits", BITS)
@pytest.mark.parametrize(("rows", "features"), [(3, 7), (5, 64), (2, 65), (4, 130)])
def test_descent_ends_where_the_specification_does(bits, rows, features):
    """float32 products may decide a tie otherwise: what must agree is the error that is reached."""
    problem = weight, gram, grid = layer(bits * features, rows, features, bits)
    codes = descend(weight, gram, grid)
    reached = layer_error(weight, gram, grid, codes)
    for i in range(rows):
        w, g, scale, zero = row(problem, i)
        start = spec.nearest(w, scale, zero, grid.scheme.qmin, grid.scheme.qmax)
        wanted = spec.descend(w, g, scale, zero, start, grid.scheme.qmin, grid.scheme.qmax)
        assert reached[i] == pytest.approx(spec.error(w, g, scale, zero, wanted), rel=0.05)


@pytest.mark.parametrize("ordered", [True, False])
@pytest.mark.parametrize("bits", BITS)
@pytest.mark.parametrize(("rows", "features"), [(3, 7), (4, 64), (2, 129), (3, 140)])
def test_gptq_is_the_specification(ordered, bits, rows, features):
    problem = weight, gram, grid = layer(bits + features, rows, features, bits)
    codes = gptq(weight, gram, grid, ordered=ordered)
    for i in range(rows):
        wanted = spec.gptq(*row(problem, i), grid.scheme.qmin, grid.scheme.qmax, ordered=ordered)
        # A value on the edge between two codes may fall either way in float32, and those after it then differ.
        same = spec.error(*row(problem, i), wanted)
        assert np.array_equal(codes[i], wanted) or layer_error(weight, gram, grid, codes)[i] == pytest.approx(
            same, rel=0.1
        )


@pytest.mark.parametrize("paths", [1, 3, 8])
@pytest.mark.parametrize("bits", BITS)
@pytest.mark.parametrize(("rows", "features"), [(3, 7), (2, 33), (3, 70)])
def test_k_best_is_the_specification_unless_gptq_is_better(paths, bits, rows, features):
    problem = weight, gram, grid = layer(bits + features, rows, features, bits)
    reached, greedy = (layer_error(weight, gram, grid, c) for c in (k_best(*problem, paths=paths), gptq(*problem)))
    for i in range(rows):
        wanted = spec.k_best(*row(problem, i), grid.scheme.qmin, grid.scheme.qmax, paths)
        best = min(spec.error(*row(problem, i), wanted), greedy[i])
        assert reached[i] == pytest.approx(best, rel=0.01) and reached[i] <= greedy[i]


def test_enough_paths_find_the_best_rounding_there_is():
    """Known answer: of all 2^6 roundings to a neighbour of each weight; damping aside, none is better."""
    weight, gram, grid = layer(1, 4, 6, 4, spread=0.5)
    low = np.floor(weight / grid.scale[:, None]).astype(int)
    every = low[:, None] + np.array(list(itertools.product((0, 1), repeat=6)))
    every = np.clip(every, grid.scheme.qmin, grid.scheme.qmax).astype(grid.scheme.dtype)
    lowest = np.min([layer_error(weight, gram, grid, every[:, i]) for i in range(64)], 0)
    codes = k_best(weight, gram, grid, paths=64, damping=0.0)
    assert (layer_error(weight, gram, grid, codes) <= lowest * (1 + 1e-6)).all()


@given(layers, st.integers(1, 6))
@settings(max_examples=20, deadline=None)
def test_paths_never_lose_to_gptq(problem, paths):
    assert (layer_error(*problem, k_best(*problem, paths=paths)) <= layer_error(*problem, gptq(*problem))).all()


@pytest.mark.parametrize("paths", [0, -1, 1.5, True])
def test_paths_are_a_whole_number(paths):
    with refused("[k_best] paths must be an integer of at least 1"):
        k_best(*layer(0, 2, 8), paths=paths)


@pytest.mark.parametrize(("rows", "features", "bits"), [(3, 8, 4), (2, 40, 3), (2, 24, 8)])
def test_adaround_is_the_specification(rows, features, bits):
    problem = weight, gram, grid = layer(features, rows, features, bits)
    options = {"iterations": 300, "rate": 2e-2, "regularisation": 10.0, "warm_start": 0.2}
    soft = Problem(weight, gram, grid, False, "test")
    codes = soft.start(None, 1)
    soft.native.adaround(codes, *options.values(), 20.0, 2.0, 0.0, 1)
    both = adaround(weight, gram, grid, **options)
    reached, lower = layer_error(weight, gram, grid, codes), layer_error(weight, gram, grid, both)
    for i in range(rows):
        wanted = spec.adaround(*row(problem, i), grid.scheme.qmin, grid.scheme.qmax, *options.values())
        assert reached[i] == pytest.approx(spec.error(*row(problem, i), wanted), rel=0.1)
        assert lower[i] <= reached[i]


@given(layers, st.integers(0, 10**6), st.booleans())
@settings(max_examples=30, deadline=None)
def test_descent_with_a_fisher_factor_ends_where_no_single_code_gains(problem, seed, neighbours):
    weight, gram, grid = problem
    factor = moments(np.random.default_rng(seed), len(weight))
    start = affine.quantize(weight, grid)
    codes = descend(weight, gram, grid, fisher=factor, neighbours=neighbours, sweeps=2000)
    found, before = (coupled_error(weight, gram, grid, c, factor) for c in (codes, start))
    delta = (codes.astype(float) - grid.zero_point[:, None]) * grid.scale[:, None].astype(float) - weight
    assert found == pytest.approx(np.trace(factor @ delta @ gram @ delta.T), rel=1e-6) and found <= before
    rng = np.random.default_rng(seed)
    for _ in range(10):
        i, j, step = rng.integers(len(weight)), rng.integers(weight.shape[1]), rng.choice([-1, 1])
        other = codes.astype(int)
        other[i, j] = np.clip(other[i, j] + step, grid.scheme.qmin, grid.scheme.qmax)
        beside = np.abs(other[i, j] - start[i, j]) <= 1
        if not neighbours or (beside and np.sign(step) == np.sign(delta[i, j]) * -1):
            moved = coupled_error(weight, gram, grid, other.astype(codes.dtype), factor)
            assert moved > found * (1 - 1e-3) - 1e-9


def test_outputs_that_matter_alike_make_up_for_one_another():
    """A loss that sees only the sum of all outputs."""
    weight, gram, grid = layer(3, 12, 40, 3)
    factor = np.ones((12, 12)) + 1e-3 * np.eye(12)
    alone, together = descend(weight, gram, grid), descend(weight, gram, grid, fisher=factor)
    assert coupled_error(weight, gram, grid, together, factor) < 0.2 * coupled_error(weight, gram, grid, alone, factor)
    assert np.array_equal(descend(weight, gram, grid, fisher=np.diag(np.arange(1.0, 13))), alone)


def clipped_layer(groups: int = 1):
    """Correlated inputs, and outputs of which a clip to 0..3 lets a third through."""
    rng = np.random.default_rng(5)
    x = rng.standard_normal((groups, 900, 24)).astype(np.float32) @ (rng.standard_normal((24, 24)) / 3 + 0.3)
    weight = rng.standard_normal((16, 24)).astype(np.float32)
    z = np.concatenate([x[g] @ w.T for g, w in enumerate(weight.reshape(groups, -1, 24))], 1) - 2
    scheme = Scheme(3, signed=True, symmetric=True, granularity="axis", axis=0)
    grid = affine.choose_grid(*affine.range_of(weight, scheme), scheme)
    seen = slice(0, 600)
    gram = np.einsum("gsi,gsj->gij", x[:, seen], x[:, seen]) / 600
    samples = Clipped(x[:, seen].astype(np.float32), z[seen].astype(np.float32), 0.0, 3.0)

    def error(codes, which):
        q = affine.dequantize(codes, grid).reshape(groups, -1, 24)
        y = np.concatenate([x[g, which] @ w.T for g, w in enumerate(q)], 1) - 2
        return np.mean(np.square(np.clip(y, 0, 3) - np.clip(z[which], 0, 3)), 0)

    return weight, gram, grid, samples, error


@pytest.mark.parametrize("groups", [1, 4])
def test_errors_behind_an_activation_count_when_samples_tell_of_it(groups):
    weight, gram, grid, samples, error = clipped_layer(groups)
    plain = adaround(weight, gram, grid)
    behind = adaround(weight, gram, grid, clipped=samples)
    seen = slice(0, 600)
    assert (error(behind, seen) <= error(plain, seen) * (1 + 1e-5)).all()
    assert error(behind, seen).sum() < 0.99 * error(plain, seen).sum()
    for threads in (1, 3):
        assert np.array_equal(behind, adaround(weight, gram, grid, clipped=samples, threads=threads))


@given(layers, st.sampled_from(["descend", "adaround", "best"]))
@settings(max_examples=40, deadline=None)
def test_no_row_gets_worse_than_nearest(problem, method):
    weight, gram, grid = problem
    near = layer_error(weight, gram, grid, affine.quantize(weight, grid))
    if method == "descend":
        codes = descend(weight, gram, grid)
    elif method == "adaround":
        codes = adaround(weight, gram, grid, iterations=60)
    else:
        codes, _ = round_best(weight, gram, grid)
        assert layer_error(weight, gram, grid, codes).sum() <= near.sum()
        return
    assert codes.dtype == grid.scheme.dtype and codes.shape == weight.shape
    assert grid.scheme.qmin <= codes.min() and codes.max() <= grid.scheme.qmax
    assert (layer_error(weight, gram, grid, codes) <= near).all()


@given(layers)
@settings(max_examples=20, deadline=None)
def test_each_sweep_lowers_the_error(problem):
    weight, gram, grid = problem
    codes, last = affine.quantize(weight, grid), np.inf
    for _ in range(4):
        codes = descend(weight, gram, grid, codes, sweeps=1)
        error = layer_error(weight, gram, grid, codes).sum()
        assert error <= last
        last = error


@given(layers)
@settings(max_examples=20, deadline=None)
def test_neighbours_stay_neighbours(problem):
    weight, gram, grid = problem
    scale, zero = grid.scale[:, None], grid.zero_point[:, None]
    below = np.clip(np.floor(weight.astype(float) / scale) + zero, grid.scheme.qmin, grid.scheme.qmax)
    above = np.clip(np.floor(weight.astype(float) / scale) + zero + 1, grid.scheme.qmin, grid.scheme.qmax)
    for codes in (descend(weight, gram, grid, neighbours=True), adaround(weight, gram, grid, iterations=40)):
        assert ((codes == below) | (codes == above)).all()


@pytest.mark.parametrize("method", [descend, gptq, adaround, lambda *a, **k: round_best(*a, **k)[0]])
def test_threads_do_not_change_the_result(method):
    weight, gram, grid = layer(1, 100, 90)
    first = method(weight, gram, grid, threads=1)
    for threads in (2, 3):
        assert np.array_equal(method(weight, gram, grid, threads=threads), first)


@pytest.mark.parametrize("method", [descend, gptq, adaround])
def test_groups_are_problems_of_their_own(method):
    rng = np.random.default_rng(2)
    weight = rng.standard_normal((12, 2, 3, 3)).astype(np.float32)
    grams = np.stack([moments(rng, 18) for _ in range(3)])
    scheme = Scheme(4, signed=True, symmetric=True, granularity="axis", axis=0)
    grid = affine.choose_grid(*affine.range_of(weight, scheme), scheme)
    codes = method(weight, grams, grid)
    for g in range(3):
        part = slice(4 * g, 4 * g + 4)
        own = Grid(grid.scale[part], grid.zero_point[part], scheme)
        assert np.array_equal(codes[part], method(weight[part], grams[g], own))


def test_transposed_convolutions_round_each_tap():
    """Stride equal to the kernel: every tap of an output channel is a row over the input channels."""
    rng = np.random.default_rng(3)
    weight = rng.standard_normal((20, 5, 2, 2)).astype(np.float32)
    gram = moments(rng, 20)
    scheme = Scheme(4, signed=True, symmetric=True, granularity="axis", axis=1)
    grid = affine.choose_grid(*affine.range_of(weight, scheme), scheme)
    codes = descend(weight, gram, grid, transposed=True)
    assert codes.shape == weight.shape
    rows = np.ascontiguousarray(np.moveaxis(weight, 0, -1)).reshape(20, 20)
    flat = Grid(np.repeat(grid.scale, 4), np.repeat(grid.zero_point, 4), scheme.at(0))
    assert np.array_equal(np.moveaxis(codes, 0, -1).reshape(20, 20), descend(rows, gram, flat))


def test_blocks_have_their_own_scales():
    rng = np.random.default_rng(4)
    weight = (rng.standard_normal((6, 96)) * np.exp(rng.uniform(-2, 2, 96))).astype(np.float32)
    scheme = Scheme(4, signed=True, symmetric=True, granularity="block", axis=1, block_size=32)
    grid = affine.choose_grid(*affine.range_of(weight, scheme), scheme)
    gram = moments(rng, 96)
    near = affine.quantize(weight, grid)
    difference = affine.dequantize(near, grid).astype(float) - weight
    np.testing.assert_allclose(
        layer_error(weight, gram, grid, near), np.einsum("ri,ij,rj->r", difference, gram, difference), rtol=1e-5
    )
    for method in (descend, gptq, adaround):
        assert (
            layer_error(weight, gram, grid, method(weight, gram, grid)).sum()
            < layer_error(weight, gram, grid, near).sum()
        )


@pytest.mark.parametrize("dead", [slice(0, 5), slice(None)])
def test_dead_inputs_and_rank_deficiency_are_survived(dead):
    rng = np.random.default_rng(5)
    weight, _, grid = layer(5, 9, 30)
    gram = moments(rng, 30, rank=4)
    gram[dead], gram[:, dead] = 0, 0
    near = affine.quantize(weight, grid)
    for codes in (
        descend(weight, gram, grid),
        gptq(weight, gram, grid, damping=0),
        adaround(weight, gram, grid, iterations=50),
    ):
        assert np.isfinite(layer_error(weight, gram, grid, codes)).all()
        if dead == slice(None):
            assert np.abs(codes.astype(int) - near).max() <= 1


def test_a_lone_input_is_rounded_to_nearest():
    weight = np.array([[0.34], [-0.7]], np.float32)
    grid = Grid(np.full(2, 0.1, np.float32), np.zeros(2, np.int32), Scheme(8, True, True, "axis", 0))
    for method in (descend, gptq, adaround):
        assert method(weight, np.array([[2.0]]), grid).ravel().tolist() == [3, -7]


def test_refitted_scales_lower_the_error():
    weight, gram, grid = layer(6, 20, 50, bits=3)
    codes = descend(weight, gram, grid)
    better = refit(weight, gram, grid, codes)
    before, after = layer_error(weight, gram, grid, codes), layer_error(weight, gram, better, codes)
    assert (after <= before).all() and after.sum() < 0.999 * before.sum()
    step = np.float32(1.003)
    for factor in (step, 1 / step):
        moved = Grid(better.scale * np.float32(factor), better.zero_point, better.scheme)
        assert layer_error(weight, gram, moved, codes).sum() >= after.sum()


def test_the_portfolio_judges_by_what_it_did_not_see():
    weight, gram, grid = layer(7, 20, 60, bits=3)
    codes, method = round_best(weight, gram, grid, held_out=np.eye(60))
    assert method == "nearest" and np.array_equal(codes, affine.quantize(weight, grid))
    assert round_best(weight, gram, grid)[1] != "nearest"


@pytest.mark.parametrize("seed", range(4))
def test_the_portfolio_asks_some_rows_and_takes_the_damping_that_suits_all(seed):
    """Few samples, many rows: beside every damping on all rows, what a few of them chose costs next to nothing."""
    weight, grid, seen, unseen = few_samples(seed, 300, 48)
    codes, _ = round_best(weight, seen, grid, held_out=unseen)
    errors = []
    for damping in DAMPINGS:
        damped = seen + damping * np.trace(seen) / len(seen) * np.eye(len(seen))
        tried = descend(weight, damped, grid, gptq(weight, damped, grid, damping=0))
        errors.append(layer_error(weight, unseen, grid, tried).sum())
    assert layer_error(weight, unseen, grid, codes).sum() < min(1.02 * min(errors), 0.95 * max(errors))


def few_samples(seed: int, rows: int, features: int):
    """A layer, and moments of as many samples as features and of many others."""
    rng = np.random.default_rng(seed)
    weight = rng.standard_normal((rows, features)).astype(np.float32)
    scheme = Scheme(4, signed=True, symmetric=True, granularity="axis", axis=0)
    grid = affine.choose_grid(*affine.range_of(weight, scheme), scheme)
    mix = rng.standard_normal((features, features)) / np.sqrt(features) + 0.2
    seen, unseen = (rng.standard_normal((count, features)) @ mix for count in (features, 50 * features))
    return weight, grid, seen.T @ seen / len(seen), unseen.T @ unseen / len(unseen)


@pytest.mark.parametrize("bits", [4, 8])
def test_adaround_heeds_what_it_did_not_see(bits):
    weight, grid, seen, unseen = few_samples(5, 200, 40)
    scheme = replace(grid.scheme, bits=bits)
    grid = affine.choose_grid(*affine.range_of(weight, scheme), scheme)
    alone, judged = adaround(weight, seen, grid), adaround(weight, seen, grid, held_out=unseen)
    errors = [layer_error(weight, unseen, grid, codes).sum() for codes in (judged, alone)]
    assert errors[0] < 0.95 * errors[1]
    near = layer_error(weight, seen, grid, affine.quantize(weight, grid))
    assert (layer_error(weight, seen, grid, judged) <= near).all()


SOLVERS = {
    "descend": descend,
    "gptq": gptq,
    "k_best": k_best,
    "adaround": adaround,
    "best": lambda weight, gram, grid: round_best(weight, gram, grid, held_out=gram)[0],
}


@pytest.mark.parametrize("solve", SOLVERS.values(), ids=SOLVERS)
@pytest.mark.parametrize("factor", [2.0**-60, 2.0**-20, 2.0**20, 2.0**60])
def test_codes_do_not_depend_on_the_units_of_inputs(solve, factor):
    weight, gram, grid = layer(11, 40, 50)
    assert np.array_equal(solve(weight, factor * gram, grid), solve(weight, gram, grid))


@pytest.mark.parametrize("solve", SOLVERS.values(), ids=SOLVERS)
@pytest.mark.parametrize("factor", [2.0**-30, 2.0**-10, 2.0**10, 2.0**30])
def test_codes_do_not_depend_on_the_units_of_weights(solve, factor):
    weight, gram, grid = layer(12, 40, 50)
    scaled = replace(grid, scale=np.float32(factor) * grid.scale)
    assert np.array_equal(solve(np.float32(factor) * weight, gram, scaled), solve(weight, gram, grid))


@given(st.lists(st.floats(0.01, 1), min_size=len(DAMPINGS), max_size=len(DAMPINGS)), st.integers(0, len(DAMPINGS) - 1))
def test_the_damping_of_a_valley_is_its_bottom(slopes, bottom):
    valley = {d: sum(slopes[min(i, bottom) : max(i, bottom)]) for i, d in enumerate(DAMPINGS)}
    asked = []

    def error(damping):
        asked.append(damping)
        return valley[damping]

    assert best_damping(error) == (DAMPINGS[bottom], 0)
    assert len(asked) == len(set(asked)) < len(DAMPINGS)


@given(st.integers(1, 5), st.integers(1, 400))
def test_the_rows_that_are_asked_are_spread_over_each_group(groups, each):
    rows = probed_rows(groups * each, groups).reshape(groups, -1)
    assert len(rows[0]) == min(each, PROBED)
    for group, asked in enumerate(rows):
        assert asked[0] == group * each and asked[-1] < (group + 1) * each
        steps = np.diff(asked)
        assert steps.size == 0 or (steps.min() >= 1 and steps.max() - steps.min() <= 1)


def test_torch_like_tensors_enter():
    weight, gram, grid = layer(8, 5, 20)
    assert np.array_equal(descend(Tensor(weight), Tensor(gram), grid), descend(weight, gram, grid))


WEIGHT, GRAM, GRID = layer(9, 4, 6)
TWO = np.stack([GRAM] * 2)
TENSOR = Grid(np.float32(1), np.int32(0), Scheme(4, True, True))


def behind(inputs, outputs, low=0.0, high=np.inf):
    return adaround(WEIGHT, GRAM, GRID, clipped=Clipped(np.float32(inputs), np.float32(outputs), low, high))


@pytest.mark.parametrize(
    ("call", "message"),
    [
        (lambda: descend(WEIGHT[0], GRAM, GRID), "weight must have at least two axes and one element."),
        (lambda: gptq(WEIGHT * np.nan, GRAM, GRID), "[gptq] weight must be finite. Received 24"),
        (lambda: adaround(WEIGHT, GRAM[:5, :5], GRID), "[adaround] gram must be (6, 6), or one such"),
        (lambda: descend(WEIGHT, np.stack([GRAM] * 3), GRID), "for each group of the 4 rows"),
        (lambda: descend(WEIGHT, GRAM * np.inf, GRID), "gram must be finite"),
        (lambda: descend(WEIGHT, GRAM, "grid"), "grid must be a leadline.Grid. Received a str."),
        (lambda: descend(WEIGHT, GRAM, GRID, np.zeros((4, 6))), "codes must be integers of shape (4, 6)"),
        (lambda: descend(WEIGHT, GRAM, GRID, np.full((4, 6), 99)), "codes must lie in -8..7. Received 99..99."),
        (lambda: gptq(WEIGHT, GRAM, GRID, damping=-1), "damping must be a finite number of at least 0"),
        (lambda: adaround(WEIGHT, GRAM, GRID, iterations=0), "iterations must be a finite number of at least 1"),
        (lambda: adaround(WEIGHT, GRAM, GRID, warm_start=2), "warm_start must lie in [0, 1]. Received 2."),
        (lambda: descend(WEIGHT, GRAM, GRID, fisher=np.eye(3)), "fisher must be (4, 4), for each pair of outputs"),
        (lambda: descend(WEIGHT, GRAM, GRID, fisher=np.triu(np.ones((4, 4)))), "fisher must be finite and symmetric"),
        (lambda: descend(WEIGHT, GRAM, GRID, fisher=np.full((4, 4), np.nan)), "fisher must be finite and symmetric"),
        (lambda: descend(WEIGHT, TWO, GRID, fisher=np.eye(4)), "factor needs a layer of one group. Received 2"),
        (lambda: coupled_error(WEIGHT, TWO, GRID, None, np.eye(4)), "needs a layer of one group. Received 2"),
        (lambda: behind(np.ones((5, 7)), np.ones((5, 4))), "clipped.inputs must be samples of 6 features for 1 groups"),
        (lambda: behind(np.ones(6), np.ones((5, 4))), "clipped.inputs must be samples of 6 features"),
        (lambda: behind(np.ones((0, 6)), np.ones((0, 4))), "clipped.inputs must be samples of 6 features"),
        (lambda: behind(np.ones((5, 6)), np.ones((4, 5))), "clipped.outputs must be (5, 4). Received (4, 5)."),
        (lambda: behind(np.full((5, 6), np.nan), np.ones((5, 4))), "clipped must be finite"),
        (lambda: behind(np.ones((5, 6)), np.ones((5, 4)), 2, 1), "clipped.low must be below clipped.high"),
        (lambda: refit(WEIGHT, GRAM, TENSOR, WEIGHT), "the grid must be per output channel"),
        (lambda: descend(WEIGHT, GRAM, GRID, threads=-1), "threads"),
    ],
)  # fmt: skip
def test_mistakes_are_named(call, message):
    with refused(message):
        call()
