"""Weight compensation: the reference, the law (the objective never rises), signs, ranks, groups, refusals."""

from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from data_samples import refused
from leadline.compensation import compensate
from reference import compensation as spec

DAMPINGS = (0.0, 1e-3, 1e-2, 0.1)


def inputs(seed: int, rows: int, features: int, noise: float = 0.2) -> tuple[np.ndarray, np.ndarray]:
    """Correlated x, and y with errors that depend on x, as quantisation's do."""
    rng = np.random.default_rng(seed)
    mix = rng.standard_normal((features, features)) / np.sqrt(features)
    x = rng.standard_normal((rows, features)) @ mix + 0.5
    step = noise * np.abs(x).max()
    return x, np.round(x / step) * step + 0.3 * noise * x


def moments(x, y):
    return x.T @ y / len(x), y.T @ y / len(x)


cases = st.tuples(st.integers(0, 10**6), st.integers(1, 60), st.integers(1, 40), st.sampled_from(DAMPINGS[1:]))


@given(cases)
@settings(max_examples=30, deadline=None)
def test_it_is_the_specification(case):
    seed, out, features, damping = case
    x, y = inputs(seed, 200, features)
    weight = np.random.default_rng(seed).standard_normal((out, features)).astype(np.float32)
    cross, gram = moments(x, y)
    found = compensate(weight, cross, gram, damping=damping)
    np.testing.assert_allclose(found.weight, spec.compensate(weight, cross, gram, damping), rtol=2e-5, atol=2e-5)
    assert found.damping == damping and found.bias is None


@given(cases)
@settings(max_examples=30, deadline=None)
def test_the_objective_never_rises_and_is_least(case):
    seed, out, features, damping = case
    x, y = inputs(seed, 150, features)
    rng = np.random.default_rng(seed)
    weight = rng.standard_normal((out, features)).astype(np.float32)
    v = compensate(weight, *moments(x, y), damping=damping).weight.astype(float)
    least = spec.objective(weight, v, x, y, damping)
    assert least <= spec.objective(weight, weight.astype(float), x, y, damping) * (1 + 1e-6)
    for _ in range(3):
        nearby = v + 1e-2 * rng.standard_normal(v.shape)
        assert least <= spec.objective(weight, nearby, x, y, damping) * (1 + 1e-6)


def test_the_sign_lowers_the_error_and_its_opposite_raises_it():
    x, y = inputs(1, 2000, 24)
    weight = np.random.default_rng(1).standard_normal((16, 24)).astype(np.float32)
    v = compensate(weight, *moments(x, y)).weight
    wrong = 2 * weight - v
    errors = [np.mean((x @ weight.T - y @ w.T) ** 2) for w in (v, weight, wrong)]
    assert errors[0] < errors[1] < errors[2]


def test_without_errors_nothing_changes():
    x, _ = inputs(2, 300, 12)
    weight = np.random.default_rng(2).standard_normal((5, 12)).astype(np.float32)
    gram = x.T @ x / len(x)
    np.testing.assert_allclose(compensate(weight, gram, gram, damping=0.0).weight, weight, rtol=1e-5, atol=1e-6)


@pytest.mark.parametrize("damping", DAMPINGS)
def test_rank_deficient_grams_are_survived(damping):
    rng = np.random.default_rng(3)
    y = rng.standard_normal((500, 4)) @ rng.standard_normal((4, 20))
    y[:, 7] = 0
    x = y + 0.05 * rng.standard_normal(y.shape)
    weight = rng.standard_normal((6, 20)).astype(np.float32)
    found = compensate(weight, *moments(x, y), damping=damping)
    assert np.isfinite(found.weight).all()
    assert found.damping >= damping and (damping > 0 or found.damping > 0)
    before, after = (np.mean((x @ weight.T - y @ w.T) ** 2) for w in (weight, found.weight))
    assert after <= before * 1.0001


def test_all_zero_inputs_leave_the_weight():
    weight = np.ones((2, 3), np.float32)
    found = compensate(weight, np.zeros((3, 3)), np.zeros((3, 3)))
    np.testing.assert_allclose(found.weight, weight)
    assert found.damping > 0


def test_the_bias_takes_up_the_means():
    x, y = inputs(4, 3000, 10)
    y = y + 0.4
    rng = np.random.default_rng(4)
    weight, bias = rng.standard_normal((6, 10)).astype(np.float32), rng.standard_normal(6).astype(np.float32)
    mx, my = x.mean(0), y.mean(0)
    cross, gram = moments(x - mx, y - my)
    found = compensate(weight, cross, gram, bias=bias, mean=mx, quantised_mean=my)
    error = x @ weight.T + bias - (y @ found.weight.T + found.bias)
    np.testing.assert_allclose(error.mean(0), 0, atol=1e-5)
    plain = compensate(weight, *moments(x, y))
    assert np.mean(error**2) <= np.mean((x @ weight.T - y @ plain.weight.T) ** 2)


def test_groups_are_problems_of_their_own():
    rng = np.random.default_rng(5)
    weight = rng.standard_normal((6, 2, 3, 3)).astype(np.float32)
    both = [moments(*inputs(seed, 100, 18)) for seed in (1, 2, 3)]
    cross, gram = (np.stack([pair[i] for pair in both]) for i in (0, 1))
    found = compensate(weight, cross, gram)
    assert found.weight.shape == weight.shape
    for g in range(3):
        part = slice(2 * g, 2 * g + 2)
        np.testing.assert_array_equal(found.weight[part], compensate(weight[part], cross[g], gram[g]).weight)


def test_threads_do_not_change_the_result():
    x, y = inputs(6, 300, 50)
    weight = np.random.default_rng(6).standard_normal((100, 50)).astype(np.float32)
    first = compensate(weight, *moments(x, y), threads=1).weight
    for threads in (2, 3):
        assert np.array_equal(compensate(weight, *moments(x, y), threads=threads).weight, first)


WEIGHT, SQUARE = np.ones((4, 3), np.float32), np.eye(3)


@pytest.mark.parametrize(
    ("call", "message"),
    [
        (lambda: compensate(WEIGHT[0], SQUARE, SQUARE), "weight must have at least two axes"),
        (lambda: compensate(WEIGHT * np.nan, SQUARE, SQUARE), "weight must be finite"),
        (lambda: compensate(WEIGHT, SQUARE[:2], SQUARE), "cross must be (3, 3), or one such for each group of the 4"),
        (lambda: compensate(WEIGHT, SQUARE, np.full((3, 3), np.inf)), "gram must be finite"),
        (lambda: compensate(WEIGHT, np.stack([SQUARE] * 2), SQUARE), "must have the same groups. Received 2 and 1."),
        (lambda: compensate(WEIGHT, SQUARE, SQUARE, damping=-1), "damping must be a finite number of at least 0"),
        (lambda: compensate(WEIGHT, SQUARE, SQUARE, bias=np.ones(3, np.float32)), "bias must have shape (4,)"),
        (lambda: compensate(WEIGHT, SQUARE, SQUARE, bias=np.ones(4, np.float32)), "a bias needs mean, of 3 values"),
    ],
)
def test_mistakes_are_named(call, message):
    with refused("[compensate]", message):
        call()
