"""observers: the histogram equals its specification exactly, and the searches find what the data itself would show."""

import pickle

import hypothesis.strategies as st
import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis.extra.numpy import arrays

from leadline import InputError, Scheme, affine, observers
from leadline.observers import Histogram, MinMax, MovingAverage, search_range
from natives import MODULES, ODD_SIZES, native, use
from reference import observers as spec

__all__ = ["native"]

SYMMETRIC = Scheme(signed=True, symmetric=True)
SCHEMES = [Scheme(), SYMMETRIC, Scheme(bits=4, signed=True, symmetric=True), Scheme(bits=4), Scheme(symmetric=True)]
# One half of a double's relative error in each of some thousand additions: sums of buckets against sums of elements.
SUM_TOLERANCE = 1e-12
# The second moment rounds m / 32 to a whole number: 2^-14 of a bucket, which is 1/16 of a value, per element.
SUM_SQ_TOLERANCE = 2.0**-17
# A search sees buckets, as uniform over an interval of the right mean and variance; measured below 0.6 %.
COST_TOLERANCE = 0.01
# The searches' own grid of candidates ends at 0.3 % of the range.
SEARCH_TOLERANCE = 0.02

rng = np.random.default_rng(0)
normal = rng.normal(0.2, 1.0, 60_000)
DATA = {
    "normal": normal,
    "relu": np.maximum(normal, 0.0),
    "heavy": rng.standard_t(2.5, 60_000),
    "outlier": np.append(normal, 55.0),
    "lognormal": np.exp(normal) - 0.2,
    "negative": -np.abs(normal),
    "uniform": rng.uniform(-1, 3, 60_000),
}
DATA = {name: x.astype(np.float32) for name, x in DATA.items()}


def state(histogram):
    return {name: values.tobytes() for name, values in histogram.to_arrays().items()}


@pytest.mark.parametrize("size", ODD_SIZES)
def test_buckets_match_the_specification(native, size):
    r = np.random.default_rng(size)
    x = (r.normal(0, 1, size) * 10.0 ** r.integers(-12, 12, size)).astype(np.float32)
    x[:: max(1, size // 3)] = 0.0
    h = Histogram().update(x)
    found = {(int(s), int(k)): (int(n), int(a), int(b)) for _, s, k, n, a, b in h.to_arrays()["buckets"]}
    assert found == spec.buckets(x)
    assert (h.lo, h.hi, h.count, h.zeros) == (x.min(), x.max(), size, np.sum(x == 0))
    wide = x.astype(np.float64)
    assert abs(h.sum - wide.sum()) <= SUM_TOLERANCE * np.abs(wide).sum()
    assert abs(h.sum_sq - (wide**2).sum()) <= SUM_SQ_TOLERANCE * (wide**2).sum()


def test_edges_of_the_floats(native):
    x = np.array([0.0, -0.0, 1e-45, -1e-40, 2.0**-130, -(2.0**-126), 3.4e38, -3.4e38, 1.0, 1.0], np.float32)
    h = Histogram().update(x)
    found = {(int(s), int(k)): (int(n), int(a), int(b)) for _, s, k, n, a, b in h.to_arrays()["buckets"]}
    assert found == spec.buckets(x) and h.zeros == 4 and h.count == 10
    assert search_range(h, "mse", Scheme())[1] > 0


@pytest.mark.parametrize("threads", [1, 2, 3])
@pytest.mark.parametrize("shape", [(2, 3, 700), (40, 33, 9), (3, 17, 29, 31), (5000, 3), (1, 40, 1), (300_001, 1)])
def test_channels_layouts_and_threads_change_nothing(native, shape, threads):
    x = np.random.default_rng(7).normal(0, 2, shape).astype(np.float32)
    whole = state(Histogram().update(x, threads=1))
    assert state(Histogram().update(x, threads=threads)) == whole
    channels = Histogram(axis=1).update(x, threads=threads)
    for c in range(0, shape[1], 7):
        alone = Histogram().update(np.ascontiguousarray(x[:, c]))
        rows = channels.to_arrays()["buckets"]
        assert np.array_equal(rows[rows[:, 0] == c][:, 1:], alone.to_arrays()["buckets"][:, 1:])
        assert (channels.lo[c], channels.hi[c], channels.count[c]) == (alone.lo, alone.hi, alone.count)
    last = Histogram(axis=-1).update(np.ascontiguousarray(np.moveaxis(x, 1, -1)), threads=threads)
    assert state(last) == state(channels)


@pytest.mark.parametrize("channels", [2, 7, 8, 9, 15, 16, 33, 63, 64, 65, 71, 72, 130])
@pytest.mark.parametrize("rows", [1, 5, 127, 128, 300])
def test_trailing_channels_are_counted_each_alone(native, rows, channels):
    rng = np.random.default_rng(channels)
    x = (rng.normal(0, 1, (rows, channels)) * 10.0 ** rng.integers(-6, 6, channels)).astype(np.float32)
    x[:, ::3] = np.maximum(x[:, ::3], 0)
    bad = x.copy()
    bad[-1, -1] = np.nan
    with pytest.raises(InputError, match="x must be finite"):  # what it leaves behind is not counted again
        Histogram(axis=-1).update(bad, threads=1)
    trailing, leading = Histogram(axis=-1).update(x, threads=1), Histogram(axis=0).update(x.T.copy(), threads=1)
    arrays_of = [{k: v for k, v in h.to_arrays().items() if k != "axis"} for h in (trailing, leading)]
    assert all(np.array_equal(arrays_of[0][k], arrays_of[1][k]) for k in arrays_of[1])


@settings(deadline=None, max_examples=60)
@given(
    st.lists(arrays(np.float32, st.integers(0, 50), elements=st.floats(-(2.0**120), 2.0**120, width=32)), max_size=6),
    st.randoms(),
)
def test_neither_order_nor_merging_matters(batches, random):
    together = Histogram()
    for batch in batches:
        together.update(batch)
    shuffled = batches.copy()
    random.shuffle(shuffled)
    parts = [Histogram().update(batch) for batch in shuffled]
    merged = Histogram()
    for part in parts:
        merged.merge(part)
    assert state(merged) == state(together)
    assert state(Histogram.from_arrays(merged.to_arrays())) == state(together)
    assert state(pickle.loads(pickle.dumps(merged))) == state(together)


def test_both_modules_agree_bit_for_bit(monkeypatch):
    results = set()
    for module in MODULES:
        use(monkeypatch, module)
        h = Histogram().update(DATA["heavy"])
        results.add((*state(h).values(), *(float(v) for v in search_range(h, "mse", Scheme()))))
    assert len(results) == 1


@pytest.mark.parametrize("method", observers.METHODS)
@pytest.mark.parametrize("scheme", SCHEMES, ids=str)
@pytest.mark.parametrize("name", DATA)
def test_ranges_lie_inside_the_observed_one_and_contain_zero(native, name, scheme, method):
    x = DATA[name]
    lo, hi = search_range(Histogram().update(x), method, scheme)
    assert lo.dtype == hi.dtype == np.float32 and lo.shape == hi.shape == ()
    assert min(x.min(), 0) <= lo <= 0 <= hi <= max(x.max(), 0) and lo < hi


@pytest.mark.parametrize("scheme", SCHEMES, ids=str)
@pytest.mark.parametrize("name", DATA)
@pytest.mark.parametrize("p, gamma", [(2.0, 1.0), (2.4, 1.0), (2.0, 3.0), (1.0, 1.0)])
def test_lp_searches_find_the_best_range_of_the_data(name, scheme, p, gamma):
    x, h = DATA[name], Histogram().update(DATA[name])
    found = search_range(h, "sqnr", scheme, gamma=gamma) if gamma != 1 else search_range(h, "mse", scheme, p=p)
    grid = affine.choose_grid(*found, scheme)
    exact = spec.lp_cost(x, grid, p, gamma)
    assert observers.cost(h, "mse", grid, p, gamma) == pytest.approx(exact, rel=COST_TOLERANCE)
    assert exact <= spec.best_range(x, scheme, lambda g: spec.lp_cost(x, g, p, gamma)) * (1 + SEARCH_TOLERANCE)


@pytest.mark.parametrize("scheme", SCHEMES, ids=str)
def test_entropy_matches_its_specification(native, scheme):
    for x in DATA.values():
        h = Histogram().update(x)
        rows = h.to_arrays()["buckets"].astype(np.int64)
        amax = float(max(-h.lo, h.hi))
        edges, count = spec.uniform(*segments(rows), amax)
        for share in (1.0, 0.7, 0.31, 0.05):
            lo, hi = max(float(h.lo) * share, -amax * share), min(float(h.hi) * share, amax * share)
            grid = affine.choose_grid(min(lo, 0), max(hi, 0), scheme)
            assert observers.cost(h, "entropy", grid) == pytest.approx(
                spec.entropy_cost(edges, count, grid), rel=1e-6, abs=1e-9
            )


def segments(rows):
    """The intervals that a search sees, from the buckets' moments: mean +- sqrt(3 variance), inside the bucket."""
    sign, key, n, first, second = rows[:, 1], rows[:, 2], *(rows[:, i].astype(np.float64) for i in (3, 4, 5))
    edge = (key.astype(np.uint32) << spec.LOW_BITS).view(np.float32).astype(np.float64)
    unit = np.ldexp(1.0, np.maximum(key >> 4, 1) - 150)
    m, width = first / n, 2.0**spec.LOW_BITS
    half = np.sqrt(3 * np.maximum(0, 1024 * second / n - m * m))
    half = np.maximum(np.minimum(half, np.minimum(m, width - m)), 1e-6 * width)
    edges = np.stack([edge + unit * (m - half), edge + unit * (m + half)], 1)
    edges = np.where((sign == 1)[:, None], -edges[:, ::-1], edges)
    order = np.argsort(edges[:, 0])
    return edges[order], n[order]


def test_entropy_resists_outliers_and_ignores_exact_zeros():
    normal, outlier, scheme = DATA["normal"], DATA["outlier"], SYMMETRIC
    _, hi = search_range(Histogram().update(outlier), "entropy", scheme)
    assert hi < 8 < np.abs(outlier).max()
    positive = normal[normal > 0]
    with_zeros = np.append(positive, np.zeros(10 * positive.size, np.float32))
    assert search_range(Histogram().update(with_zeros), "entropy", Scheme()) == search_range(
        Histogram().update(positive), "entropy", Scheme()
    )


def test_entropy_takes_no_level_of_a_picture_and_no_softmax_for_outliers():
    """Levels are points of infinite density: it must not pay to clip most of them away for one between two codes."""
    rng = np.random.default_rng(4)
    levels = (rng.integers(0, 256, 200_000).astype(np.float32) / 255 - 0.45) / 0.225
    lo, hi = search_range(Histogram().update(levels), "entropy", Scheme())
    assert (lo, hi) == pytest.approx((levels.min(), levels.max()), rel=0.01)
    scores = rng.standard_normal((2000, 80)).astype(np.float32) * 4
    attention = np.exp(scores) / np.exp(scores).sum(1, keepdims=True)
    _, hi = search_range(Histogram().update(attention), "entropy", Scheme())
    assert hi > 1 / 16


@pytest.mark.parametrize("p", [50.0, 90.0, 99.0, 99.9, 100.0])
@pytest.mark.parametrize("name", DATA)
def test_percentile_within_a_bucket_of_the_exact_one(name, p):
    x = DATA[name].astype(np.float64)
    h = Histogram().update(DATA[name])
    bucket = 1 / 16
    _, hi = search_range(h, "percentile", SYMMETRIC, percentile=p)
    lo2, hi2 = search_range(h, "percentile", Scheme(), percentile=p)
    exact = min(np.percentile(np.abs(x), p), max(x.max(), 0))
    assert max(hi, -search_range(h, "percentile", SYMMETRIC, percentile=p)[0]) == pytest.approx(
        np.percentile(np.abs(x), p), rel=bucket
    ) or hi == pytest.approx(exact, rel=bucket)
    tail = (100 - p) / 2
    assert hi2 == pytest.approx(max(np.percentile(x, 100 - tail), 0), rel=bucket, abs=1e-3)
    assert lo2 == pytest.approx(min(np.percentile(x, tail), 0), rel=bucket, abs=1e-3)


@pytest.mark.parametrize("bits", [2, 4, 8])
@pytest.mark.parametrize("name", ["normal", "heavy", "uniform", "relu"])
def test_octav_is_its_fixed_point(name, bits):
    x = DATA[name]
    lo, hi = search_range(Histogram().update(x), "octav", Scheme(bits=bits, signed=True, symmetric=True))
    assert max(hi, -lo) == pytest.approx(min(spec.octav(x, bits), np.abs(x).max()), rel=0.01)


def test_entropy_beyond_ten_bits_is_the_observed_range():
    h = Histogram().update(DATA["heavy"])
    assert search_range(h, "entropy", Scheme(bits=12)) == (h.lo, h.hi)


def test_searches_per_channel_equal_searches_of_each():
    x = np.stack([DATA[n][:5000] for n in ("normal", "relu", "heavy")])
    scheme = Scheme(granularity="axis", axis=0)
    for threads in (1, 2, 3):
        lo, hi = search_range(Histogram(axis=0).update(x), "mse", scheme, threads=threads)
        for c, row in enumerate(x):
            assert (lo[c], hi[c]) == search_range(Histogram().update(row), "mse", Scheme())


@pytest.mark.parametrize("method", observers.METHODS)
def test_degenerate_data(native, method):
    for x, expected in (([], (0, 0)), ([0.0, -0.0], (0, 0)), ([2.5] * 9, (0, 2.5)), ([-3.0], (-3, 0))):
        lo, hi = search_range(Histogram().update(np.array(x, np.float32)), method, Scheme())
        assert (lo, hi) == pytest.approx(expected, rel=0.01)
        assert affine.choose_grid(lo, hi, Scheme()).scale > 0
    assert search_range(Histogram().update(np.array([1e-45], np.float32)), method, Scheme())[1] >= 0


def test_memory_does_not_grow_with_samples():
    h = Histogram()
    sizes = []
    for i in range(6):
        h.update(np.random.default_rng(i).standard_normal(100_000).astype(np.float32))
        sizes.append(h.to_arrays()["buckets"].nbytes)
    assert sizes[-1] < 1.3 * sizes[0] < 60_000


def test_min_max(native):
    x = np.random.default_rng(3).normal(0, 1, (4, 5, 7)).astype(np.float32)
    parts = [MinMax(axis=1).update(x[i : i + 1]) for i in (2, 0, 3, 1)]
    for part in parts[1:]:
        parts[0].merge(part)
    assert np.array_equal(parts[0].lo, x.min((0, 2))) and np.array_equal(parts[0].hi, x.max((0, 2)))
    whole = MinMax().update(x).update(np.empty(0, np.float32))
    assert whole.lo == x.min() and whole.lo.shape == () and MinMax().merge(whole).hi == x.max()


def test_moving_average_and_its_merge_as_continuation():
    batches = [np.array([a, b], np.float32) for a, b in ((-1, 1), (-3, 2), (0, 9), (-2, 2), (1, 4))]
    mean = np.array([-1.0, 1.0])
    for b in batches[1:]:
        mean += 0.25 * (np.array([b.min(), b.max()]) - mean)
    one = MovingAverage(0.25)
    for b in batches:
        one.update(b)
    assert (one.lo, one.hi) == pytest.approx(tuple(mean), rel=1e-6)
    for cut in range(6):
        first, second = MovingAverage(0.25), MovingAverage(0.25)
        for i, b in enumerate(batches):
            (first if i < cut else second).update(b)
        first.merge(second)
        assert (first.lo, first.hi) == pytest.approx(tuple(mean), rel=1e-6)


def test_a_refused_batch_changes_nothing(native):
    h = Histogram(axis=0, name="blocks.3.fc1").update(np.ones((3, 40), np.float32))
    before = state(h)
    bad = np.ones((3, 40), np.float32)
    bad[1, 7] = np.nan
    for _ in range(2):
        message = (
            r"\[Histogram.update\] x must be finite in tensor 'blocks.3.fc1', sample 12. Received nan at index \(1, 7\)"
        )
        with pytest.raises(InputError, match=message):
            h.update(bad, sample=12)
    assert state(h) == before
    assert state(h.update(np.ones((3, 40), np.float32))) != before
    big = np.zeros(300_000, np.float32)
    big[250_000] = -np.inf
    with pytest.raises(InputError, match=r"Received -inf at index \(250000,\)"):
        Histogram().update(big, threads=2)
    with pytest.raises(
        InputError, match=r"\[MinMax.update\] x must be finite in tensor 't', sample a.jpg. Received inf"
    ):
        MinMax(name="t").update(np.array([np.inf], np.float32), sample="a.jpg")


H = Histogram().update(np.ones(3, np.float32))
REFUSALS = [
    (
        lambda: search_range(H, "tf_enhanced", Scheme()),
        "method must be one of minmax, percentile, .* Received 'tf_enhanced'",
    ),
    (lambda: search_range(H, "mse", Scheme(), q=2), "method 'mse' takes p. Received option 'q'"),
    (lambda: search_range(H, "entropy", Scheme(), p=2), "method 'entropy' takes no option. Received option 'p'"),
    (
        lambda: search_range(H, "percentile", Scheme(), percentile=101),
        r"percentile must lie in \[50, 100\]. Received 101",
    ),
    (lambda: search_range(H, "mse", Scheme(), p=float("nan")), "p must lie in"),
    (
        lambda: search_range(H, "mse", Scheme(granularity="axis", axis=0)),
        "must be the histogram's, 'tensor'. Received 'axis'",
    ),
    (lambda: search_range(1, "mse", Scheme()), "histogram must be a Histogram. Received a int"),
    (
        lambda: search_range(Histogram(axis=0, name="t"), "mse", Scheme(granularity="axis", axis=0)),
        "data first in tensor 't'",
    ),
    (lambda: MinMax(name="t").lo, "there must be data first in tensor 't'"),
    (lambda: H.merge(MinMax()), "other must be a Histogram. Received a MinMax"),
    (lambda: H.merge(Histogram(axis=1)), "both must observe the same axis. Received None and 1"),
    (
        lambda: Histogram(axis=1).update(np.ones((2, 3), "f4")).update(np.ones((2, 4), "f4")),
        "x must have 3 channels on axis 1",
    ),
    (lambda: MovingAverage(0.0), r"momentum must lie in \(0, 1\]"),
    (lambda: MovingAverage(0.1).merge(MovingAverage(0.2)), "both must have one momentum"),
    (lambda: Histogram.from_arrays({"lo": np.zeros(1)}), r"arrays must hold \['buckets', 'count', 'hi', 'zeros'\]"),
    (lambda: observers.cost(H, "kl", affine.choose_grid(0, 1, Scheme())), "method must be 'mse' or 'entropy'"),
]


@pytest.mark.parametrize("call, message", REFUSALS, ids=range(len(REFUSALS)))
def test_refusals(call, message):
    with pytest.raises(InputError, match=message):
        call()


def test_arrays_that_are_no_histogram_are_refused():
    good = H.to_arrays()
    for column, value in ((0, 5), (1, 2), (2, 5000), (2, 0)):
        bad = {**good, "buckets": good["buckets"].copy()}
        bad["buckets"][0, column] = value
        with pytest.raises(ValueError, match="a bucket must name a channel"):
            Histogram.from_arrays(bad)
