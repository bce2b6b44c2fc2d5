"""affine against its numpy specification: equal bit for bit, in every layout, at every size, with both modules."""

import hypothesis.strategies as st
import numpy as np
import pytest
from hypothesis import HealthCheck, assume, given, settings

from leadline import ConversionWarning, Grid, InputError, Scheme, affine
from natives import MODULES, ODD_SIZES, native, use
from reference import affine as spec

__all__ = ["native"]

ACTIVATION = Scheme()
SCHEMES = [
    Scheme(bits=bits, signed=signed, symmetric=symmetric, narrow=narrow, fit=fit)
    for bits in (2, 3, 4, 8, 12, 16)
    for signed in (False, True)
    for symmetric in (False, True)
    for narrow in ((False, True) if signed and symmetric else (False,))
    for fit in (("absmax", "aimet") if symmetric else ("absmax",))
]
LAYOUTS = [
    ((4, 6, 33), Scheme(granularity="axis", axis=0)),
    ((4, 6, 33), Scheme(granularity="axis", axis=1)),
    ((4, 6, 33), Scheme(granularity="axis", axis=-1)),
    ((1, 70, 1), Scheme(granularity="axis", axis=1)),
    ((3, 17, 2, 5), Scheme(granularity="axis", axis=1)),
    ((257, 3), Scheme(granularity="axis", axis=1)),
    ((2, 1500), Scheme(granularity="axis", axis=1)),
    ((4, 6, 32), Scheme(granularity="block", axis=2, block_size=8)),
    ((4, 6, 32), Scheme(granularity="block", axis=1, block_size=3)),
    ((32, 5), Scheme(granularity="block", axis=0, block_size=32)),
    ((7, 9), Scheme(granularity="block", axis=-1, block_size=1)),
]


def check(x, scheme, threads=1):
    lo, hi = affine.range_of(x, scheme, threads=threads)
    expected = spec.range_of(x, scheme)
    np.testing.assert_array_equal(lo, expected[0], strict=False)
    np.testing.assert_array_equal(hi, expected[1], strict=False)
    grid = affine.choose_grid(lo, hi, scheme)
    for index in np.ndindex(grid.scale.shape):
        assert (grid.scale[index], grid.zero_point[index]) == spec.choose_grid(lo[index], hi[index], scheme)
    codes = affine.quantize(x, grid, threads=threads)
    np.testing.assert_array_equal(codes, spec.quantize(x, grid.scale, grid.zero_point, scheme), strict=True)
    real = affine.dequantize(codes, grid, threads=threads)
    np.testing.assert_array_equal(real, spec.dequantize(codes, grid.scale, grid.zero_point, scheme), strict=True)
    fake = affine.fake_quantize(x, grid, threads=threads)
    assert fake.tobytes() == real.tobytes()
    return codes


@pytest.mark.parametrize("size", ODD_SIZES)
def test_matches_the_specification_at_odd_sizes(native, size):
    x = np.random.default_rng(size).normal(0.3, 1.0, size).astype(np.float32)
    check(x, ACTIVATION)
    check(x.reshape(1, size), Scheme(granularity="axis", axis=1, signed=True, symmetric=True))


@pytest.mark.parametrize("scheme", SCHEMES, ids=str)
def test_matches_the_specification_in_every_scheme(native, scheme):
    x = np.random.default_rng(1).normal(-0.2, 2.0, 531).astype(np.float32)
    codes = check(x, scheme)
    assert codes.dtype == scheme.dtype and codes.min() >= scheme.qmin and codes.max() <= scheme.qmax


@pytest.mark.parametrize("shape, scheme", LAYOUTS, ids=str)
@pytest.mark.parametrize("threads", [1, 2, 3])
def test_matches_the_specification_in_every_layout(native, shape, scheme, threads):
    x = np.random.default_rng(2).normal(0.1, 1.0, shape).astype(np.float32)
    check(x, scheme, threads)


@pytest.mark.parametrize("threads", [1, 2, 3])
@pytest.mark.parametrize("axis", [0, 1, 2])
def test_arrays_of_several_chunks(native, threads, axis):
    x = np.random.default_rng(3).normal(0.1, 1.0, (3, 71, 1021)).astype(np.float32)
    check(x, Scheme(granularity="axis", axis=axis), threads)
    check(x, ACTIVATION, threads)


def test_larger_than_the_caches(native):
    x = np.random.default_rng(4).standard_normal(5_000_001).astype(np.float32)
    grid = affine.choose_grid(-3, 3, ACTIVATION)
    fake = affine.fake_quantize(x, grid, threads=2)
    codes = spec.quantize(x, grid.scale, grid.zero_point, ACTIVATION)
    assert np.array_equal(fake, spec.dequantize(codes, grid.scale, grid.zero_point, ACTIVATION))
    assert np.array_equal(affine.dequantize(codes, grid, threads=2), fake)
    shifted = np.empty(x.size + 1, np.float32)[1:]  # not 16-byte aligned
    assert affine.fake_quantize(x, grid, out=shifted) is shifted and np.array_equal(shifted, fake)
    assert affine.fake_quantize(x, grid, out=x) is x and np.array_equal(x, fake)


def test_ties_go_to_even_and_the_scale_divides(native):
    grid = Grid(np.float32(2), np.int32(0), Scheme(signed=True))
    x = np.array([1, 3, 5, -1, -3, -5, 1e30, -np.inf, np.inf], np.float32)
    assert affine.quantize(x, grid).tolist() == [0, 2, 2, 0, -2, -2, 127, -128, 127]
    # 4.35 / 0.1 rounds otherwise when multiplied by the reciprocal: the division decides.
    rng = np.random.default_rng(0)
    x = ((rng.integers(-250, 250, 100_000) + 0.5) * np.float32(0.1)).astype(np.float32)
    fine = Grid(np.float32(0.1), np.int32(0), Scheme(bits=16, signed=True))
    assert np.array_equal(affine.quantize(x, fine), np.rint(x / np.float32(0.1)).astype(np.int16))


def test_biases_in_32_bits(native):
    scheme = Scheme(bits=32, signed=True, symmetric=True, granularity="axis", axis=0)
    bias = np.array([1.0, -2.5, 3e8, 1e-3], np.float32)
    grid = Grid(np.full(4, 1e-7, np.float32), np.zeros(4, np.int32), scheme)
    codes = affine.quantize(bias, grid)
    exact = np.clip(np.rint(bias.astype(np.float64) / np.float64(np.float32(1e-7))), -(2**31), 2**31 - 1)
    assert codes.dtype == np.int32 and np.array_equal(codes, exact.astype(np.int64))
    assert np.array_equal(affine.dequantize(codes, grid), codes.astype(np.float32) * grid.scale)
    assert np.array_equal(affine.fake_quantize(bias, grid), affine.dequantize(codes, grid))


floats = st.floats(-(2.0**100), 2.0**100, width=32)


@settings(deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(lo=floats, hi=floats, scheme=st.sampled_from(SCHEMES))
def test_zero_is_always_on_the_grid(lo, hi, scheme):
    assume(lo <= hi)
    grid = affine.choose_grid(lo, hi, scheme)
    assert scheme.qmin <= grid.zero_point <= scheme.qmax
    assert affine.fake_quantize(np.zeros(3, np.float32), grid).tobytes() == bytes(12)


@settings(deadline=None)
@given(lo=floats, hi=floats, scheme=st.sampled_from([s for s in SCHEMES if not s.narrow]))
def test_the_range_is_covered_within_half_a_step(lo, hi, scheme):
    assume(lo <= hi and hi - lo > 1e-30)
    grid = affine.choose_grid(lo, hi, scheme)
    ends = np.array([min(lo, 0.0), max(hi, 0.0)], np.float32)
    error = np.abs(affine.fake_quantize(ends, grid) - ends)
    # "aimet" gives the lowest code its share; an absmax grid of 2 bits has a step of its whole half range. The zero
    # point's rounding costs at most half a step, and the value's rounding another half.
    assert (error <= grid.scale * 1.0001).all()


@settings(deadline=None)
@given(st.lists(st.floats(-100, 100, width=32), min_size=1, max_size=40), st.sampled_from(SCHEMES))
def test_quantising_twice_changes_nothing(values, scheme):
    x = np.array(values, np.float32)
    grid = affine.choose_grid(x.min(), x.max(), scheme)
    once = affine.fake_quantize(x, grid)
    assert np.array_equal(affine.fake_quantize(once, grid), once)


@pytest.mark.parametrize("x", [[], [0.0, 0.0], [-0.0, 0.0]])
def test_degenerate_ranges_have_a_grid(native, x):
    x = np.array(x, np.float32)
    for scheme, zero in ((ACTIVATION, 0), (Scheme(symmetric=True), 128), (Scheme(signed=True), 0)):
        lo, hi = affine.range_of(x, scheme)
        assert (lo, hi) == (0, 0) and not np.signbit(lo)
        grid = affine.choose_grid(lo, hi, scheme)
        assert (grid.scale, grid.zero_point) == (1, zero)
        assert affine.fake_quantize(x, grid).tolist() == [0.0] * x.size


def test_a_constant_is_exact(native):
    for value in (3.7, -1e-20, 2e30, 1e-45):
        x = np.full(5, value, np.float32)
        grid = affine.choose_grid(*affine.range_of(x, ACTIVATION), ACTIVATION)
        assert grid.scale >= np.finfo(np.float32).tiny
        error = np.abs(affine.fake_quantize(x, grid) - x).max()
        assert error <= max(abs(np.float32(value)) * 1e-6, np.finfo(np.float32).tiny)


def test_empty_channels(native):
    for shape, axis, channels in (((0, 4), 1, 4), ((4, 0), 1, 0), ((0,), 0, 0), ((3, 0, 2), 0, 3)):
        scheme = Scheme(granularity="axis", axis=axis)
        lo, hi = affine.range_of(np.empty(shape, np.float32), scheme)
        assert lo.tolist() == hi.tolist() == [0.0] * channels
        grid = affine.choose_grid(lo, hi, scheme)
        assert affine.quantize(np.empty(shape, np.float32), grid).shape == shape
        assert affine.fake_quantize(np.empty(shape, np.float32), grid).shape == shape
        assert affine.dequantize(np.empty(shape, np.uint8), grid).shape == shape


def test_scalars_and_scalar_arrays(native):
    grid = affine.choose_grid(-1, 1, ACTIVATION)
    assert affine.quantize(np.float32(1), grid).shape == ()
    assert affine.fake_quantize(np.array(0.5, np.float32), grid).shape == ()


def test_both_modules_agree_bit_for_bit(monkeypatch):
    x = np.random.default_rng(5).normal(0, 3, (5, 37, 29)).astype(np.float32)
    results = []
    for module in MODULES:
        use(monkeypatch, module)
        grid = affine.choose_grid(*affine.range_of(x, ACTIVATION), ACTIVATION)
        results.append(affine.quantize(x, grid).tobytes() + affine.fake_quantize(x, grid).tobytes())
    assert len(set(results)) == 1


AXIS1 = Scheme(granularity="axis", axis=1)
TOKENS = [((7, 33), 1), ((7, 33), -1), ((2, 5, 16), 2), ((2, 16, 3, 5), 1), ((33, 7), 0), ((1, 70), 1), ((4, 1), 1)]
PER_TOKEN = [
    Scheme(bits, signed, symmetric, "token", narrow=narrow)
    for bits in (2, 4, 8, 16)
    for signed, symmetric, narrow in (
        (False, False, False),
        (True, False, False),
        (True, True, False),
        (True, True, True),
    )
]


@pytest.mark.parametrize("scheme", PER_TOKEN, ids=str)
@pytest.mark.parametrize("shape, axis", TOKENS, ids=str)
def test_each_token_gets_the_grid_of_its_own_extremes(native, shape, axis, scheme):
    """Vector by vector, by the specification of a grid per tensor."""
    x = np.random.default_rng(5).normal(0.2, 1.0, shape).astype(np.float32)
    np.moveaxis(x, axis, -1)[0, ...] *= 0  # real zero stays zero
    plain = Scheme(scheme.bits, scheme.signed, scheme.symmetric, narrow=scheme.narrow)
    wanted = np.empty_like(x)
    into, given = np.moveaxis(wanted, axis, -1), np.moveaxis(x, axis, -1)
    for place in np.ndindex(given.shape[:-1]):
        scale, zero_point = spec.choose_grid(given[place].min(), given[place].max(), plain)
        scale, zero_point = np.float32(scale), np.int32(zero_point)
        codes = spec.quantize(given[place], scale, zero_point, plain)
        into[place] = spec.dequantize(codes, scale, zero_point, plain)
    grid = Grid(np.ones(()), np.zeros((), int), scheme.at(axis))
    assert affine.fake_quantize(x, grid, threads=2).tobytes() == wanted.tobytes()
    out = np.empty_like(x)
    assert affine.fake_quantize(x, grid, out=out) is out and out.tobytes() == wanted.tobytes()
    copy = x.copy()
    assert affine.fake_quantize(copy, grid, out=copy) is copy and copy.tobytes() == wanted.tobytes()


def token(axis):
    return Grid(np.ones(()), np.zeros((), int), Scheme(granularity="token", axis=axis))


X = np.ones((4, 6), np.float32)
G = affine.choose_grid(0, 1, ACTIVATION)
REFUSALS = [
    (
        lambda: affine.range_of(X, Scheme(granularity="axis", axis=2)),
        r"\[range_of\] axis must lie in an array of shape",
    ),
    (lambda: affine.range_of(X, Scheme(granularity="axis")), r"axis must be an integer. Received None"),
    (
        lambda: affine.range_of(X, Scheme(granularity="block", axis=1, block_size=4)),
        r"block_size must divide the length of axis 1 in an array of shape \(4, 6\). Received block_size=4",
    ),
    (
        lambda: affine.range_of(np.array([1, np.nan], np.float32), ACTIVATION),
        r"x must be finite. Received nan at index \(1,\)",
    ),
    (lambda: affine.range_of(np.array([[1, -np.inf]], np.float32), ACTIVATION), r"Received -inf at index \(0, 1\)"),
    (
        lambda: affine.quantize(np.array([np.inf, np.nan], np.float32), G),
        r"\[quantize\] x must be finite. Received nan at index \(1,\)",
    ),
    (lambda: affine.fake_quantize(np.array([np.nan], np.float32), G), r"\[fake_quantize\] x must not contain NaN"),
    (
        lambda: affine.quantize(X, affine.choose_grid([0] * 4, [1] * 4, AXIS1)),
        r"scale must have shape \(6,\). Received \(4,\)",
    ),
    (lambda: affine.quantize(X, Grid(np.ones(1), np.zeros(1, int), ACTIVATION)), r"scale must have shape \(\)"),
    (lambda: affine.dequantize(X, G), r"\[dequantize\] codes must be uint8 as its scheme says. Received float32"),
    (lambda: affine.choose_grid(1, 0, ACTIVATION), r"\[choose_grid\] lo must not exceed hi"),
    (lambda: affine.choose_grid([0], [1, 2], ACTIVATION), r"lo and hi must have one shape. Received \(1,\) and \(2,\)"),
    (lambda: affine.choose_grid(0, np.inf, ACTIVATION), r"lo and hi must be finite"),
    (lambda: affine.choose_grid(0, 1e39, ACTIVATION), r"must be float32 values"),
    (lambda: affine.choose_grid(0, 1, 8), r"scheme must be a leadline.Scheme. Received a int"),
    (lambda: affine.choose_grid(0, 1, Scheme(bits=32)), r"a 32-bit scheme must be signed"),
    (
        lambda: affine.range_of(X, ACTIVATION, threads=0),
        r"threads must be None or an integer from 1 to 256. Received 0",
    ),
    (lambda: affine.range_of(X, ACTIVATION, threads=True), r"threads must be None"),
    (lambda: affine.fake_quantize(X, G, out=np.empty((6, 4), np.float32)), r"out must be a writable .* shape \(4, 6\)"),
    (lambda: affine.fake_quantize(X, G, out=np.empty((4, 6))), r"Received float64"),
    (lambda: affine.fake_quantize(X, G, out=[0]), r"Received a list"),
    (lambda: affine.fake_quantize(X, token(2)), r"\[fake_quantize\] axis must lie in an array of shape \(4, 6\)"),
    (lambda: affine.fake_quantize(X, token(None)), r"axis must be an integer. Received None"),
    (lambda: affine.fake_quantize(np.array([[1, np.nan]], np.float32), token(1)), r"must be finite. Received nan"),
    (lambda: affine.fake_quantize(np.array([[1, np.inf]], np.float32), token(1)), r"must be finite. Received inf"),
    (lambda: affine.fake_quantize(X, token(1), out=np.empty((6, 4), np.float32)), r"out must be .* shape \(4, 6\)"),
    (lambda: affine.quantize(X, token(1)), r"\[quantize\] a grid per token has no scales of its own"),
    (lambda: affine.dequantize(X.astype(np.uint8), token(1)), r"\[dequantize\] a grid per token has no scales"),
    (lambda: affine.range_of(X, token(1).scheme), r"\[range_of\] a grid per token has no scales"),
    (
        lambda: Scheme(symmetric=True, granularity="token"),
        r"\[Scheme\] a symmetric grid per token must be signed, with fit 'absmax'. Received signed=False",
    ),
    (
        lambda: Scheme(signed=True, symmetric=True, granularity="token", fit="aimet"),
        r"per token must be signed, with fit 'absmax'. Received signed=True, fit='aimet'",
    ),
    (lambda: Scheme(granularity="row"), r"granularity must be 'tensor', 'axis', 'block' or 'token'. Received 'row'"),
    (lambda: affine.fake_quantize(X, G, out=np.broadcast_to(X, X.shape)), r"read-only"),
]


@pytest.mark.parametrize("call, message", REFUSALS, ids=range(len(REFUSALS)))
def test_refusals(call, message):
    with pytest.raises(InputError, match=message):
        call()


def test_out_may_not_overlap():
    buffer = np.zeros(9, np.float32)
    with pytest.raises(InputError, match="x itself or apart from it"):
        affine.fake_quantize(buffer[:8], G, out=buffer[1:])


def test_a_strided_array_is_copied_loudly():
    with pytest.warns(ConversionWarning, match="x was copied because it is strided"):
        affine.range_of(X.T, ACTIVATION)
    codes = np.zeros((4, 6), np.uint8)
    with pytest.warns(ConversionWarning, match="codes was copied"):
        affine.dequantize(codes.T, G)
