"""Decisions about one layer, beside their specification; and every entry of the registries that they choose from."""

from __future__ import annotations

import dataclasses
from types import SimpleNamespace

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from hypothesis.extra import numpy as hnp

from leadline import InputError, Scheme, decide, observers, rounding
from leadline.affine import choose_grid, dequantize, fake_quantize, quantize
from leadline.gram import Gram
from leadline.observers import OBSERVERS, Histogram, search_range
from leadline.options import STEPS, Calibrate, Round, options_of
from leadline.recipe import Recipe
from leadline.types import Grid, Option
from reference import affine as spec
from reference import rounding as rounding_spec

ROWS = Scheme(4, signed=True, symmetric=True, granularity="axis", axis=0)
WEIGHTS = hnp.arrays(
    np.float32,
    hnp.array_shapes(min_dims=2, max_dims=4, min_side=1, max_side=6),
    elements=st.floats(-8, 8, width=16),
)
REGISTRIES = [(Calibrate, "activations", OBSERVERS), (Round, "method", rounding.METHODS)]
ENTRIES = [(step, field, name, entry) for step, field, registry in REGISTRIES for name, entry in registry.items()]
ENTRY_OPTIONS = [(step, field, name, option) for step, field, name, entry in ENTRIES for option in entry.options]


# Registries


@pytest.mark.parametrize(("step", "field", "name", "entry"), ENTRIES, ids=lambda one: one if type(one) is str else "")
def test_every_entry_is_a_choice_of_its_step_and_says_what_it_is(step, field, name, entry, tmp_path):
    recipe = Recipe("mine", (Calibrate(), Round()) if step is Round else (Calibrate(),))
    chosen = step(**{field: name})
    recipe = recipe.changed(steps=(*recipe.steps[:-1], chosen))
    recipe.save(tmp_path / "mine.toml")
    assert Recipe.load(tmp_path / "mine.toml") == recipe
    assert options_of(chosen, entry) == {key: option.default for key, option in entry.options.items()}
    assert entry.about.endswith(".")


@pytest.mark.parametrize(("step", "field", "name", "option"), ENTRY_OPTIONS)
def test_every_option_of_every_entry_is_taken_in_its_bounds_alone(step, field, name, option):
    """In Python, in TOML, and by the function that the entry names."""
    entry = dict(OBSERVERS | rounding.METHODS)[name]
    default, low, high = entry.options[option]
    before = '[[steps]]\nstep = "calibrate"\n' if step is Round else ""
    text = before + f'[[steps]]\nstep = "{step.step}"\n{field} = "{name}"\n{option} = '
    for value in (low, default, high):
        value = type(default)(value)
        assert getattr(step(**{field: name, option: value}), option) == value
        assert getattr(Recipe.from_toml(text + f"{value}\n").steps[-1], option) == value
    for value in (low - 1, high + 1):
        value = type(default)(value)
        with pytest.raises(InputError, match=f"{step.step}: {option} must lie from"):
            step(**{field: name, option: value})
        with pytest.raises(InputError, match=f"{option} must lie from"):
            Recipe.from_toml(text + f"{value}\n")
        with pytest.raises(InputError, match=f"{option} must lie in"):
            by_name(name, **{option: value})


def by_name(name, **options):
    x = np.arange(-3, 9, dtype=np.float32).reshape(3, 4)
    if name not in observers.METHODS and name in OBSERVERS:
        return OBSERVERS[name].statistics(**options)
    if name in OBSERVERS:
        return search_range(Histogram().update(x), name, Scheme(), **options)
    return decide.codes_of(x, decide.weight_grid(x, ROWS), name, np.eye(4), **options)


@pytest.mark.parametrize("name", [*OBSERVERS, *rounding.METHODS])
def test_no_entry_takes_an_option_that_it_does_not_have(name):
    with (
        pytest.raises(InputError, match="Received option 'colour'")
        if name != "moving-average"
        else pytest.raises(TypeError)
    ):
        by_name(name, colour=1.0)


def test_options_of_one_name_are_one_option():
    """Steps have one field for each name: two entries may share it where they mean the same by it."""
    for _, _, registry in REGISTRIES:
        options: dict[str, Option] = {}
        for entry in registry.values():
            for name, option in entry.options.items():
                assert options.setdefault(name, option) == option
    for step, _, registry in REGISTRIES:
        declared = {field.name for field in dataclasses.fields(step) if not field.kw_only}
        assert not declared & {name for entry in registry.values() for name in entry.options}


@pytest.mark.parametrize("name", OBSERVERS)
def test_every_observer_finds_a_range_from_what_it_wants(name):
    observer = OBSERVERS[name]
    statistics = observer.statistics(name="x").update(np.linspace(-1, 3, 1000, dtype=np.float32))
    lo, hi = decide.activation_range(statistics, Scheme(), name)
    assert -1 <= lo <= 0 < hi <= 3


@pytest.mark.parametrize("name", rounding.METHODS)
def test_every_method_gives_codes_on_the_grid_no_worse_than_the_nearest(name):
    rng = np.random.default_rng(0)
    weight = rng.normal(size=(6, 12)).astype(np.float32)
    x = (rng.normal(size=(200, 12)) @ rng.normal(size=(12, 12))).astype(np.float32)
    gram, grid = Gram(12).update(x).matrix(), decide.weight_grid(weight, ROWS)
    codes, how = decide.codes_of(weight, grid, name, gram, held_out=gram)
    nearest = quantize(weight, grid)
    assert how and codes.dtype == nearest.dtype and codes.shape == weight.shape
    assert abs(codes.astype(int)).max() <= 8
    before, after = (rounding.layer_error(weight, gram, grid, c).sum() for c in (nearest, codes))
    assert after <= before * (1 + 1e-6)
    assert (after < before) == rounding.METHODS[name].uses_moments


def test_a_new_entry_brings_its_options_along():
    entry = SimpleNamespace(options={"temperature": Option(2, 1, 5)})

    from leadline.options import Step, takes

    known = dict(STEPS)
    try:

        @dataclasses.dataclass(frozen=True)
        @takes([entry])
        class Anneal(Step):
            step = "anneal"

        assert options_of(Anneal(temperature=3), entry) == {"temperature": 3}
        with pytest.raises(InputError, match="anneal: temperature must lie from 1 to 5"):
            Anneal(temperature=6)
        with pytest.raises(InputError, match="anneal: temperature must be of type int"):
            Anneal(temperature=1.5)
        with pytest.raises(TypeError):
            Anneal(3)
    finally:
        STEPS.clear()
        STEPS.update(known)


# Weights


@given(WEIGHTS, st.integers(2, 8), st.sampled_from(["tensor", "axis", "block"]), st.booleans())
def test_extremes_are_the_grid_by_default(weight, bits, granularity, symmetric):
    scheme = Scheme(bits, symmetric, symmetric, granularity, axis=0, block_size=1 if granularity == "block" else None)
    grid = decide.weight_grid(weight, scheme)
    lo, hi = spec.range_of(weight, scheme)
    pairs = zip(np.ravel(lo), np.ravel(hi), np.ravel(grid.scale), np.ravel(grid.zero_point), strict=True)
    assert all(spec.choose_grid(low, high, scheme) == (scale, zero) for low, high, scale, zero in pairs)


@given(WEIGHTS, st.sampled_from(observers.METHODS), st.sampled_from(["tensor", "axis"]))
def test_an_observer_sees_the_weight_as_a_histogram(weight, observer, granularity):
    scheme = Scheme(8, True, True, granularity, axis=0)
    histogram = Histogram(0 if granularity == "axis" else None).update(weight)
    wanted = choose_grid(*search_range(histogram, observer, scheme), scheme)
    assert decide.weight_grid(weight, scheme, observer) == wanted


def test_blocks_reach_to_their_extremes_whatever_the_observer():
    weight = np.random.default_rng(1).normal(size=(4, 8)).astype(np.float32)
    scheme = Scheme(4, True, True, "block", axis=1, block_size=4)
    assert decide.weight_grid(weight, scheme, "mse") == decide.weight_grid(weight, scheme)


@given(WEIGHTS.filter(lambda w: w.ndim == 2), st.booleans())
def test_of_several_grids_each_row_takes_the_least_error(weight, weighted):
    power = np.arange(1, weight.shape[1] + 1, dtype=np.float32) if weighted else None
    lo, hi = spec.range_of(weight, ROWS)
    grids = [choose_grid(share * lo, share * hi, ROWS) for share in (1.0, 0.8, 0.6)]
    best = decide.least_squares_grid(weight, grids, power)
    errors = [
        np.square(weight.astype(np.float64) - fake_quantize(weight, grid)) @ (1 if power is None else power)
        if power is not None
        else np.square(weight.astype(np.float64) - fake_quantize(weight, grid)).sum(1)
        for grid in (*grids, best)
    ]
    assert (errors[-1] <= np.min(errors[:-1], 0) * (1 + 1e-5) + 1e-12).all()
    assert all(scale in [grid.scale[row] for grid in grids] for row, scale in enumerate(best.scale))


@given(WEIGHTS.filter(lambda w: w.ndim == 2))
def test_without_moments_codes_are_the_nearest_ones(weight):
    grid = decide.weight_grid(weight, ROWS)
    zero, qmin, qmax = np.zeros(weight.shape[1]), ROWS.qmin, ROWS.qmax
    for method in rounding.METHODS:
        codes, how = decide.codes_of(weight, grid, method)
        assert how == "nearest"
        for row, scale, got in zip(weight, grid.scale, codes, strict=True):
            np.testing.assert_array_equal(got, rounding_spec.nearest(row, scale, zero, qmin, qmax))


def test_an_unknown_method_is_refused():
    weight = np.ones((2, 2), np.float32)
    with pytest.raises(InputError, match=r"method must be one of nearest, .*, best"):
        decide.codes_of(weight, decide.weight_grid(weight, ROWS), "up")


# Activations


RANGES = st.tuples(st.floats(-100, 0, width=32), st.floats(0, 100, width=32)).filter(lambda ends: ends[0] < ends[1])


@given(RANGES, st.integers(2, 16))
def test_a_wide_grid_has_head_room_and_a_narrow_one_none(ends, bits):
    scheme = Scheme(bits)
    grid, factor = decide.activation_grid(*ends, scheme), decide.HEADROOM if bits > 8 else 1.0
    assert (grid.scale, grid.zero_point) == spec.choose_grid(ends[0] * factor, ends[1] * factor, scheme)


@given(RANGES, st.floats(0, 200, width=32))
def test_head_room_ends_where_a_clamp_does(ends, highest):
    scheme = Scheme(16)
    grid = decide.activation_grid(*ends, scheme, (0.0, highest))
    wanted = spec.choose_grid(ends[0], max(ends[1], min(1.5 * ends[1], highest)), scheme)
    assert (grid.scale, grid.zero_point) == wanted


def test_a_grid_per_token_has_no_scale_of_its_own():
    grid = decide.activation_grid(-1.0, 1.0, Scheme(8, True, True, "token", axis=1))
    assert grid.scale.shape == () and grid.scheme.granularity == "token"


# Biases


def grid_of(scale, granularity="tensor", bits=8, **rest):
    scale = np.asarray(scale, np.float32)
    return Grid(scale, np.zeros(scale.shape, np.int32), Scheme(bits, True, True, granularity, **rest))


SCALES = hnp.arrays(np.float32, st.integers(1, 5), elements=st.floats(2**-20, 4, width=32))


@given(SCALES, st.floats(2**-20, 4, width=32), st.integers(1, 3))
def test_a_bias_is_on_the_grid_of_its_sums(scales, step, groups):
    grid = decide.bias_grid(grid_of(scales, "axis", axis=0), grid_of(step), groups * scales.size)
    np.testing.assert_array_equal(grid.scale, np.tile(scales * np.float32(step), groups))
    assert (grid.scheme.bits, grid.scheme.signed, grid.zero_point.any()) == (32, True, False)


@pytest.mark.parametrize("channels", [1, 3])
@pytest.mark.parametrize("single", [False, True])
def test_a_bias_has_one_scale_where_that_is_asked_for(channels, single):
    grid = decide.bias_grid(grid_of(0.5), grid_of(0.25), channels, single)
    assert grid.scale.shape == (() if single and channels > 1 else (channels,))
    assert (grid.scale == 0.125).all()


def test_there_is_no_such_grid_without_an_integer_kernel():
    whole, rows = grid_of(1.0), grid_of([1.0, 2.0], "axis", axis=1)
    blocks = grid_of([[1.0], [2.0]], "block", axis=1, block_size=2)
    for weight, read in [(None, whole), (whole, None), (blocks, whole), (whole, rows)]:
        assert decide.bias_grid(weight, read, 2) is None


@given(hnp.arrays(np.float32, 4, elements=st.floats(-1e4, 1e4, width=32)))
def test_a_bias_without_an_integer_kernel_is_as_fine_as_it_needs(bias):
    grid = decide.fine_bias_grid(bias)
    assert np.abs(dequantize(quantize(bias, grid), grid) - bias).max() <= max(np.abs(bias).max(), 1e-3) * 2**-20


@given(hnp.arrays(np.int32, 4, elements=st.integers(-(2**31), 2**31 - 1)), st.floats(-1e9, 1e9))
def test_a_shift_leaves_a_bias_on_its_grid(codes, shift):
    grid = grid_of(np.full(4, 0.25), "axis", 32, axis=0)
    moved = decide.shifted_bias(codes, grid, shift)
    exact = np.clip([int(code) - int(np.rint(shift / 0.25)) for code in codes], -(2**31), 2**31 - 1)
    assert moved.dtype == np.int32 and (moved == exact).all()


@given(SCALES, st.floats(2**-40, 1, width=32), st.floats(0, 1e4, width=32), st.booleans())
def test_sums_have_room_for_the_bias_and_the_output(scales, step, largest, has_bias):
    weight = np.ones((scales.size, 3), np.float32)
    bias = np.full(scales.size, largest, np.float32) if has_bias else None
    grid, read = grid_of(scales, "axis", axis=0), grid_of(step)
    roomy, factor = decide.roomy_weight_grid(weight, grid, read, bias, largest / 2)
    unit = roomy.scale.astype(np.float64) * float(read.scale)
    assert (largest <= unit * 2.0**31).all() and (roomy.scale >= grid.scale).all()
    assert factor >= 1 and (factor == 1) == bool((roomy.scale == grid.scale).all())


def test_a_dead_channel_takes_a_scale_that_its_bias_can_be_told_by():
    weight = np.array([[0, 0], [1, -1]], np.float32)
    grid, bias = decide.weight_grid(weight, ROWS), np.array([1e-3, 1e-3], np.float32)
    roomy, factor = decide.roomy_weight_grid(weight, grid, grid_of(1.0), bias, 0.0)
    assert factor == 1 and roomy.scale[1] == grid.scale[1] and roomy.scale[0] == np.float32(1e-3 / 2**24)
