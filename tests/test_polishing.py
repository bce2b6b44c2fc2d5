"""polishing: the passes equal their specification, and the choice predicts what the data then shows."""

from __future__ import annotations

import dataclasses

import hypothesis.strategies as st
import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis.extra.numpy import arrays

from leadline import InputError, Scheme, affine, polishing
from leadline.observers import Histogram, search_range
from natives import MODULES, ODD_SIZES, native, use
from reference import polishing as spec

__all__ = ["native"]

# Of the true value's own last place; among 5 * 10^7 values 1.8 (polish) and 2.1 (unpolish) were the most.
ULP = 2.2
EPS = float(np.finfo(np.float32).eps)
# A bucket's values are spread evenly around its mean. That averages out where there are many: 2 % of "sparse" are not.
ERROR_TOLERANCE, FEW_TOLERANCE = 0.03, 0.08
# Sixteen buckets to the octave, and values spread evenly inside one.
PERCENTILE_TOLERANCE = 0.01
COUNT = 60_000
FOUR, EIGHT = Scheme(4), Scheme(8)
AXIS = Scheme(4, granularity="axis", axis=1)

rng = np.random.default_rng(0)
SHAPES = (((n,), 0) for n in ODD_SIZES)
LAYOUTS = [
    ((7, 5, 3), 1),
    ((64, 33), 1),
    ((33, 64), 0),
    ((2, 3, 40), 1),
    ((3, 1, 5), 1),
    ((0, 4, 3), 1),
    ((9, 384), -1),
]
LARGE = [((70, 65, 15), 1), ((3, 2, 33_001), 1), ((9000, 3, 5), 1)]


def gelu(x: np.ndarray) -> np.ndarray:
    return x * 0.5 * (1 + np.tanh(np.sqrt(2 / np.pi) * (x + 0.044715 * x**3)))


def outliers(x: np.ndarray, r: np.random.Generator) -> np.ndarray:
    return np.where(r.random(x.shape) < 1e-3, 30 * x, x)


def distributions(count: int = COUNT, seed: int = 1) -> dict[str, np.ndarray]:
    r = np.random.default_rng(seed)
    normal = r.standard_normal(count)
    data = {
        "gaussian": normal,
        "laplace": r.laplace(size=count),
        "student": r.standard_t(3, count),
        "outliers": outliers(normal, r),
        "lognormal": np.exp(1.5 * normal),
        "gelu": gelu(2 * normal),
    }
    return {name: x.astype(np.float32) for name, x in data.items()}


DATA, MANY = distributions(), distributions(300_000, 2)
ODD = {
    "relu": np.maximum(DATA["gaussian"], 0),
    "sparse": np.where(rng.random(COUNT) < 0.98, 0, DATA["lognormal"]).astype(np.float32),
    "negative": -np.abs(DATA["student"]),
    "small": DATA["laplace"] * np.float32(1e-20),
    "constant": np.full(COUNT, 3.0, np.float32),
    "zero": np.zeros(COUNT, np.float32),
}
TOGETHER = np.stack([*DATA.values(), *ODD.values()], axis=1)


def sketch(x: np.ndarray, axis: int | None = None) -> Histogram:
    return Histogram(axis).update(x)


def wild(shape: tuple[int, ...], seed: int = 0) -> np.ndarray:
    r = np.random.default_rng(seed)
    x = (r.standard_normal(shape) * 2.0 ** r.integers(-40, 40, shape)).astype(np.float32)
    x.ravel()[::7] = 0
    return x


def some_omega(channels: int, seed: int = 0) -> np.ndarray:
    r = np.random.default_rng(seed)
    omega = np.exp2(r.uniform(-20, 20, channels)).astype(np.float32)
    omega[1::4] = np.inf
    return omega


def ulps(found: np.ndarray, wanted: np.ndarray) -> np.ndarray:
    step = np.maximum(np.spacing(np.minimum(np.abs(wanted), 2.0**127).astype(np.float32)), np.finfo(np.float32).tiny)
    return np.abs(found.astype(np.float64) - wanted) / step


def grid_of(choice: polishing.Choice, scheme: Scheme) -> affine.Grid:
    return affine.choose_grid(choice.lo, choice.hi, scheme)


def real_error(x: np.ndarray, omega: object, grid: affine.Grid, axis: int | None = None) -> np.ndarray:
    back = polishing.fake_quantize_polished(x, grid, omega, axis).astype(np.float64)
    return np.square(back - x).mean(None if axis is None else tuple(i for i in range(x.ndim) if i != axis))


def db(x: np.ndarray, error: float) -> float:
    return float(10 * np.log10(np.square(x.astype(np.float64)).mean() / error))


@pytest.mark.usefixtures("native")
@pytest.mark.parametrize(("shape", "axis"), [*SHAPES, *LAYOUTS, *LARGE])
def test_both_passes_match_the_specification(shape, axis):
    x, omega = wild(shape), some_omega(shape[axis])
    around = spec.along(omega, shape, axis)
    y = polishing.polish(x, omega, axis)
    assert y.dtype == np.float32 and y.shape == shape
    assert ulps(y, spec.polish(x, around)).max(initial=0) <= ULP
    assert ulps(polishing.unpolish(y, omega, axis), spec.unpolish(y, around)).max(initial=0) <= ULP
    assert (y[x == 0] == 0).all()
    through = np.isinf(around)
    assert np.array_equal(y[through], x[through]) and not np.signbit(y[x == 0]).any()


@pytest.mark.usefixtures("native")
@pytest.mark.parametrize("omega", [1.0, 0.37, 3.1e-4, 812.0, 1e-20, 1e20])
def test_precision_everywhere(omega):
    """Dense where the polynomials are at their worst, and over all magnitudes."""
    w = np.float32(omega)
    dense = [np.linspace(0, 8, 400_001), np.exp2(np.linspace(-40, 40, 400_001))]
    x = np.concatenate([np.float64(w) * part for part in dense]).astype(np.float32)
    x = x[np.isfinite(x)]
    assert ulps(polishing.polish(x, w), spec.polish(x, np.float64(w))).max() <= ULP
    y = np.concatenate([np.linspace(0, 4, 400_001), np.linspace(4, 120, 400_001), np.exp2(np.linspace(-40, 2, 99_999))])
    y = y.astype(np.float32)
    wanted = spec.unpolish(y, np.float64(w))
    normal = wanted >= np.finfo(np.float32).tiny
    assert ulps(polishing.unpolish(y, w), wanted)[normal].max() <= ULP


@pytest.mark.usefixtures("native")
@pytest.mark.parametrize(("shape", "axis"), [*LAYOUTS, *LARGE, ((1000,), 0), ((1 << 23,), None)])
@pytest.mark.parametrize("bits", [4, 8])
def test_the_fused_pass_is_the_three(shape, axis, bits):
    x = np.random.default_rng(3).standard_t(3, shape).astype(np.float32)
    channels = 1 if axis is None else shape[axis]
    omega = 1.0 if axis is None else some_omega(channels) / 64
    y = polishing.polish(x, omega, axis)
    for scheme in (Scheme(bits), Scheme(bits, signed=True, symmetric=True, granularity="axis", axis=axis or 0)):
        if axis is None and scheme.granularity == "axis":
            continue
        grid = affine.choose_grid(*affine.range_of(y, scheme), scheme)
        wanted = polishing.unpolish(affine.fake_quantize(y, grid), omega, axis)
        found = polishing.fake_quantize_polished(x, grid, omega, axis)
        assert np.array_equal(found, wanted)
        place = x.copy()
        assert polishing.fake_quantize_polished(place, grid, omega, axis, out=place) is place
        assert np.array_equal(place, wanted)
        assert np.array_equal(polishing.fake_quantize_polished(x, grid, omega, axis, threads=3), wanted)


def test_the_fused_pass_is_the_specification():
    """But for what lies, within rounding, in the middle between two codes."""
    for x in DATA.values():
        choice = polishing.choose(sketch(x), FOUR, adaptive=False)
        grid = grid_of(choice, FOUR)
        args = (float(choice.omega), float(grid.scale), int(grid.zero_point), FOUR)
        found, wanted = polishing.fake_quantize_polished(x, grid, choice.omega), spec.fake_quantize(x, *args)
        assert (np.abs(found - wanted) > 1e-5 * np.abs(wanted)).mean() < 1e-4


@pytest.mark.parametrize(("shape", "axis"), [((70, 65, 15), 1), ((9000, 3), 1), ((300_001,), None)])
def test_threads_modules_and_places_change_nothing(shape, axis, monkeypatch):
    x = wild(shape)
    omega = 0.5 if axis is None else some_omega(shape[axis])
    seen = set()
    for module in MODULES:
        use(monkeypatch, module)
        for threads in (1, 2, 3):
            y = polishing.polish(x, omega, axis, threads=threads)
            place = x.copy()
            assert polishing.polish(place, omega, axis, out=place, threads=threads) is place
            back = polishing.unpolish(y, omega, axis, threads=threads)
            assert polishing.unpolish(place, omega, axis, out=place) is place
            assert np.array_equal(place, back)
            seen.add((y.tobytes(), back.tobytes()))
    assert len(seen) == 1


# Zero, or large enough for x / omega to be a normal float.
FLOATS = st.floats(-(2.0**60), 2.0**60, width=32).map(lambda v: v if abs(v) > 2.0**-80 else 0.0)
OMEGAS = st.floats(2.0**-40, 2.0**40, width=32)


@given(arrays(np.float32, st.integers(1, 40), elements=FLOATS), OMEGAS)
@settings(deadline=None)
def test_the_inverse_returns(x, omega):
    back = polishing.unpolish(polishing.polish(x, omega), omega)
    # A relative error of y is |y| times larger in 2^y.
    size = np.abs(x.astype(np.float64))
    assert (np.abs(back - x.astype(np.float64)) <= 2 * EPS * size * (2 + np.log2(1 + size / omega)) + 1e-37).all()


@given(arrays(np.float32, st.integers(2, 40), elements=FLOATS), OMEGAS)
@settings(deadline=None)
def test_polishing_is_odd_and_monotone_and_keeps_zero(x, omega):
    for function in (polishing.polish, polishing.unpolish):
        y = function(np.sort(x), omega)
        slack = 3 * EPS * np.abs(y[1:].astype(np.float64))  # of two results that were rounded apart
        assert (np.diff(y.astype(np.float64)) >= -slack).all()
        assert np.array_equal(function(-x, omega), -function(x, omega))
        assert (function(np.zeros(3, np.float32), omega) == 0).all()
    assert (np.sign(polishing.polish(x, omega)) == np.sign(x)).all()


def test_extremes_stay_finite():
    limits = np.finfo(np.float32)
    x = np.array([limits.max, -limits.max, limits.tiny, limits.smallest_subnormal, 0], np.float32)
    for omega in (limits.tiny, 1.0, limits.max):
        y = polishing.polish(x, omega)
        assert np.isfinite(y).all() and np.abs(y).max() <= 126
        for far in (y, np.array([200, -200, limits.max], np.float32)):
            assert np.isfinite(polishing.unpolish(far, omega)).all()
    top = polishing.unpolish(np.array([126, -126, 500], np.float32), 4096.0)
    assert np.array_equal(top, [limits.max, -limits.max, limits.max])


@pytest.mark.usefixtures("native")
@pytest.mark.parametrize("p", [50.0, 90.0, 95.0, 99.0, 100.0])
@pytest.mark.parametrize("name", [*DATA, *ODD])
def test_percentiles_are_the_datas(name, p):
    x = (DATA | ODD)[name]
    choice = polishing.choose(sketch(x), FOUR, percentile=p, adaptive=False)
    if name == "zero":
        assert (choice.kind, choice.omega, choice.lo, choice.hi, choice.error) == ("none", np.inf, 0, 0, 0)
        return
    assert choice.kind == "polish"
    np.testing.assert_allclose(choice.omega, spec.percentile(x, p), rtol=PERCENTILE_TOLERANCE)
    np.testing.assert_allclose(choice.lo, polishing.polish(np.minimum(x.min(), 0), choice.omega))
    np.testing.assert_allclose(choice.hi, polishing.polish(np.maximum(x.max(), 0), choice.omega))


@pytest.mark.usefixtures("native")
@pytest.mark.parametrize("scheme", [FOUR, EIGHT, Scheme(4, signed=True, symmetric=True), Scheme(6, symmetric=True)])
@pytest.mark.parametrize("name", [*DATA, *ODD])
def test_the_predicted_error_is_the_real_one(name, scheme):
    x = (DATA | ODD)[name]
    histogram = sketch(x)
    for percentile, adaptive in ((95.0, True), (90.0, False), (99.0, False)):
        choice = polishing.choose(histogram, scheme, percentile=percentile, adaptive=adaptive)
        grid = grid_of(choice, scheme)
        tiny = 1e-13 * float(np.square(x.astype(np.float64)).mean())  # what float32 itself rounds
        real = float(real_error(x, choice.omega, grid))
        assert abs(choice.error - real) <= (FEW_TOLERANCE if name == "sparse" else ERROR_TOLERANCE) * real + tiny
        found = polishing.predicted_error(histogram, grid, choice.omega)
        np.testing.assert_allclose(found, choice.error, rtol=1e-12)


@pytest.mark.usefixtures("native")
def test_channels_are_chosen_one_by_one():
    per_channel = polishing.choose(sketch(TOGETHER, 1), AXIS, threads=2)
    assert per_channel.omega.shape == (TOGETHER.shape[1],) and per_channel.error.dtype == np.float64
    for c, x in enumerate(TOGETHER.T):
        alone = polishing.choose(sketch(np.ascontiguousarray(x)), FOUR)
        for part in dataclasses.fields(alone):
            assert getattr(alone, part.name) == getattr(per_channel, part.name)[c]
    grid = grid_of(per_channel, AXIS)
    real = real_error(TOGETHER, per_channel.omega, grid, 1)
    np.testing.assert_allclose(real, per_channel.error, rtol=FEW_TOLERANCE, atol=1e-12)
    assert {"clip", "polish"} <= set(per_channel.kind)


@given(st.integers(0, 10_000), st.sampled_from([2, 4, 8]), st.booleans(), st.floats(1, 100))
@settings(deadline=None, max_examples=40)
def test_an_adaptive_choice_never_predicts_worse(seed, bits, symmetric, percentile):
    r = np.random.default_rng(seed)
    x = (r.standard_normal((400, 6)) * np.exp(r.uniform(0, 3, 6) * r.standard_normal((400, 6)))).astype(np.float32)
    x[:, 0], x[:, 1], x[:, 2] = 0, np.maximum(x[:, 1], 0), np.where(r.random(400) < 0.97, 0, x[:, 2])
    scheme = Scheme(bits, symmetric=symmetric, signed=symmetric, granularity="axis", axis=1)
    histogram = sketch(x, 1)
    best = polishing.choose(histogram, scheme, percentile=percentile)
    none = np.full(6, np.inf)
    for p in (*polishing.PERCENTILES, percentile):
        assert (best.error <= polishing.choose(histogram, scheme, percentile=p, adaptive=False).error).all()
    for method in ("minmax", "mse"):
        grid = affine.choose_grid(*search_range(histogram, method, scheme), scheme)
        assert (best.error <= polishing.predicted_error(histogram, grid, none)).all()
    assert np.array_equal(np.isinf(best.omega), best.kind != "polish")


def test_what_is_merged_is_chosen_alike():
    halves = [Histogram(1).update(np.ascontiguousarray(part)) for part in np.array_split(TOGETHER, 2)]
    once, merged = (polishing.choose(h, AXIS) for h in (sketch(TOGETHER, 1), halves[0].merge(halves[1])))
    assert np.array_equal(once.omega, merged.omega) and np.array_equal(once.error, merged.error)


# dB: min-max, clipped for least squared error, bent at the 95th percentile, the best of its multiples. They come from
# other samples, and min-max differs by what their largest values do: by some dB where tails are heavy.
MEASURED = {
    ("gaussian", 4): (14.6, 19.3, 17.4, 17.8),
    ("laplace", 4): (10.1, 15.9, 14.9, 16.1),
    ("student", 4): (1.3, 7.8, 9.1, 12.1),
    ("outliers", 4): (3.1, 4.2, 9.8, 11.9),
    ("lognormal", 4): (5.1, 7.8, 16.6, 17.9),
    ("gelu", 4): (19.4, 21.8, 21.4, 22.8),
    ("gaussian", 8): (39.2, 40.2, 42.0, 42.4),
    ("student", 8): (16.8, 18.2, 33.9, 36.8),
}
AFFINE_TOLERANCE = {"student": 3.0, "lognormal": 1.2}
BENT_TOLERANCE = 0.6


@pytest.mark.parametrize(("name", "bits"), MEASURED)
def test_signal_to_noise_is_as_measured_elsewhere(name, bits):
    scheme, x = Scheme(bits), MANY[name]
    histogram = sketch(x)
    found = []
    for method in ("minmax", "mse"):
        found.append(db(x, real_error(x, np.inf, affine.choose_grid(*search_range(histogram, method, scheme), scheme))))
    fixed = polishing.choose(histogram, scheme, adaptive=False)
    found.append(db(x, real_error(x, fixed.omega, grid_of(fixed, scheme))))
    bends = [fixed.omega * ratio for ratio in polishing.RATIOS]
    ranges = [[polishing.polish(end, w) for end in (np.minimum(x.min(), 0), x.max())] for w in bends]
    tried = [real_error(x, w, affine.choose_grid(*r, scheme)) for w, r in zip(bends, ranges, strict=True)]
    found.append(db(x, min(tried)))
    gap = np.abs(np.subtract(found, MEASURED[name, bits]))
    assert gap[:2].max() <= AFFINE_TOLERANCE.get(name, 0.6) and gap[2:].max() <= BENT_TOLERANCE
    adaptive = polishing.choose(histogram, scheme)
    assert db(x, real_error(x, adaptive.omega, grid_of(adaptive, scheme))) >= max(found) - 0.1


@pytest.mark.usefixtures("native")
@pytest.mark.parametrize("signed", [False, True])
def test_the_table_holds_every_code(signed):
    scheme = dataclasses.replace(AXIS, signed=signed)
    choice = polishing.choose(sketch(TOGETHER, 1), scheme)
    grid = grid_of(choice, scheme)
    values = polishing.table(grid, choice.omega)
    assert values.shape == (TOGETHER.shape[1], 16) and values.dtype == np.float32
    codes = affine.quantize(polishing.polish(TOGETHER, choice.omega, 1), grid).astype(int) - scheme.qmin
    found = np.take_along_axis(values, codes.T, 1).T
    assert np.array_equal(found, polishing.fake_quantize_polished(TOGETHER, grid, choice.omega))
    assert (np.diff(values, axis=1) > 0).all()
    at_zero = np.take_along_axis(values, (grid.zero_point - scheme.qmin)[:, None].astype(int), 1)
    assert (at_zero == 0).all()
    assert polishing.table(affine.choose_grid(-1.0, 1.0, EIGHT), 0.5).shape == (256,)
    narrow = Scheme(4, signed=True, symmetric=True, narrow=True)
    assert polishing.table(affine.choose_grid(-1.0, 1.0, narrow), [0.5, np.inf]).shape == (2, 15)


@pytest.mark.usefixtures("native")
def test_baking_says_what_is_lost():
    histogram = sketch(TOGETHER, 1)
    choice = polishing.choose(histogram, AXIS)
    grid = grid_of(choice, AXIS)
    baked = polishing.bake(histogram, grid, choice.omega)
    assert (baked.loss_db >= 0).all() and (baked.loss_db[choice.kind != "polish"] == 0).all()
    assert (baked.loss_db[choice.kind == "polish"] > 0).all()
    real = real_error(TOGETHER, np.inf, affine.choose_grid(baked.lo, baked.hi, AXIS), 1)
    np.testing.assert_allclose(real, baked.error, rtol=FEW_TOLERANCE, atol=1e-12)
    lognormal = list(DATA).index("lognormal")
    assert baked.loss_db[lognormal] > 8
    fixed = polishing.choose(histogram, AXIS, adaptive=False)
    assert polishing.bake(histogram, grid_of(fixed, AXIS), fixed.omega).loss_db[0] < 0  # Gaussian: polishing was a loss


HISTOGRAM = Histogram(1).update(np.ones((4, 3), np.float32))
GRID = affine.choose_grid(-1.0, 1.0, FOUR)
GRIDS = affine.choose_grid(np.full(3, -1.0), np.ones(3), AXIS)
X = np.ones((4, 3), np.float32)


@pytest.mark.parametrize(
    ("call", "message"),
    [
        (
            lambda: polishing.polish(np.array([1, np.nan], np.float32), 1.0),
            r"\[polish\] x must be finite. Received nan",
        ),
        (lambda: polishing.unpolish(np.array([np.inf], np.float32), 1.0), r"\[unpolish\] y must be finite"),
        (lambda: polishing.polish(X * np.float32(np.nan), np.inf), "x must be finite"),
        (lambda: polishing.polish(X, [1.0, 2.0], 1), r"one for each of 3 channels. Received \(2,\)"),
        (lambda: polishing.polish(X, [1.0, 2.0, 3.0]), "one for each of 1 channels"),
        (lambda: polishing.polish(X, [1.0, 0.0, 2.0], 1), "omega must be positive normal float32 values.*Received 0.0"),
        (lambda: polishing.polish(X, np.nan), "omega must be positive normal"),
        (lambda: polishing.polish(X, -np.inf), "omega must be positive normal"),
        (lambda: polishing.polish(X, 1e-39), "omega must be positive normal"),
        (lambda: polishing.polish(X, 1.0, 2), r"axis must lie in an array of shape \(4, 3\)"),
        (lambda: polishing.polish([1.0], 1.0), "x must be a numpy array"),
        (lambda: polishing.polish(X, 1.0, out=np.ones(3, np.float32)), "out must be a writable"),
        (lambda: polishing.polish(X, 1.0, threads=0), "threads must be None"),
        (lambda: polishing.fake_quantize_polished(X, FOUR, 1.0), "grid must be a leadline.Grid. Received a Scheme"),
        (lambda: polishing.fake_quantize_polished(X, GRIDS, 1.0, 0), "axis must be the grid's, 1. Received 0"),
        (
            lambda: polishing.fake_quantize_polished(X.T.copy(), GRIDS, 1.0),
            "scale must have one entry, or one",
        ),
        (lambda: polishing.fake_quantize_polished(X / np.float32(0) * 0, GRIDS, 1.0), "x must be finite"),
        (lambda: polishing.choose(X, FOUR), "histogram must be a Histogram. Received a ndarray"),
        (lambda: polishing.choose(Histogram(1), AXIS), "there must be data first"),
        (lambda: polishing.choose(HISTOGRAM, FOUR), "granularity must be the histogram's, 'axis'. Received 'tensor'"),
        (lambda: polishing.choose(HISTOGRAM, AXIS, percentile=0.0), r"percentile must lie in \(0, 100\]. Received 0.0"),
        (lambda: polishing.choose(HISTOGRAM, AXIS, percentile=np.nan), "percentile must lie"),
        (lambda: polishing.choose(HISTOGRAM, Scheme(32, signed=True)), "at most 16 bits"),
        (lambda: polishing.predicted_error(HISTOGRAM, GRID, [1.0, 2.0]), "one for each of 3 channels"),
        (
            lambda: polishing.bake(HISTOGRAM, affine.choose_grid([0, 0], [1, 1], AXIS), 1.0),
            "the grid's scale must have",
        ),
        (lambda: polishing.table(GRIDS, [1.0, 2.0]), "one for each of 3 channels"),
    ],
)
@pytest.mark.filterwarnings("ignore:divide:RuntimeWarning", "ignore:invalid:RuntimeWarning")
def test_bad_arguments_are_named(call, message):
    with pytest.raises(InputError, match=message):
        call()


def test_in_place_refusals_do_not_name_what_is_gone():
    x = np.array([1, np.inf, 2], np.float32)
    with pytest.raises(InputError, match=r"x must be finite. Received NaN or infinity"):
        polishing.polish(x, 1.0, out=x)
