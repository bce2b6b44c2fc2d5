"""Cross-layer scales: the reference, the law (the product stays), the bounds."""

from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from hypothesis.extra.numpy import arrays

from data_samples import refused
from leadline.equalization import balance, predicted_noise
from reference import equalization as spec

# Ranges of float32 weights: zero, or within twelve decades.
RANGE = st.one_of(st.just(0.0), st.floats(1e-6, 1e6))
RANGES = st.integers(1, 20).flatmap(lambda n: st.tuples(*[arrays(np.float64, n, elements=RANGE)] * 2))
ALPHA, LIMIT = st.floats(0, 1), st.floats(1, 100)
# One ulp of double is 2.2e-16; pow, log and exp of arguments up to 1e6 cost a few dozen of them.
TIGHT = 1e-12


@given(RANGES, ALPHA, LIMIT)
def test_balance_matches_the_reference(ranges, alpha, limit):
    np.testing.assert_allclose(balance(*ranges, alpha, limit), spec.balance(*ranges, alpha, limit), rtol=TIGHT)


@given(RANGES, ALPHA, LIMIT)
def test_scales_are_bounded_and_dead_channels_stay(ranges, alpha, limit):
    first, second = ranges
    s = balance(first, second, alpha, limit)
    assert s.dtype == np.float64 and s.shape == first.shape
    assert (s >= 1 / limit * (1 - TIGHT)).all() and (s <= limit * (1 + TIGHT)).all()
    assert (s[(first == 0) | (second == 0)] == 1).all()


@given(RANGES)
def test_half_balance_makes_the_ranges_equal(ranges):
    first, second = ranges
    s = balance(first, second, 0.5, 1e30)
    ratio = (first / s)[s != 1] / (second * s)[s != 1]
    if ratio.size:
        np.testing.assert_allclose(ratio, ratio[0], rtol=1e-9)


@given(RANGES)
def test_full_balance_makes_the_activation_flat(ranges):
    first, second = ranges
    alive = (first > 0) & (second > 0)
    flat = (first / balance(first, second, 1.0, 1e30))[alive]
    if flat.size:
        np.testing.assert_allclose(flat, flat[0], rtol=1e-9)


@given(RANGES, st.floats(1e-3, 1e3), ALPHA)
def test_a_common_factor_changes_nothing(ranges, factor, alpha):
    first, second = ranges
    np.testing.assert_allclose(balance(first * factor, second, alpha), balance(first, second, alpha), rtol=1e-9)


@given(st.integers(0, 2**32 - 1), st.integers(1, 12), st.sampled_from([1.0, 8.0, 32.0]))
def test_two_layers_with_a_relu_between_keep_their_product(seed, channels, limit):
    rng = np.random.default_rng(seed)
    first = rng.standard_normal((channels, 5)) * np.exp(rng.normal(0, 2, (channels, 1)))
    bias, second = rng.standard_normal(channels), rng.standard_normal((3, channels))
    first[rng.random(channels) < 0.2] = 0
    s = balance(np.abs(first).max(1), np.abs(second).max(0), 0.5, limit)
    x = rng.standard_normal((5, 7))

    def run(w1, b1, w2):
        return w2 @ np.maximum(w1 @ x + b1[:, None], 0)

    plain = run(first, bias, second)
    np.testing.assert_allclose(run(first / s[:, None], bias / s, second * s), plain, atol=1e-12 * np.abs(plain).max())


@pytest.mark.parametrize("bits", [(8, 8), (4, 8), (8, 16)])
@pytest.mark.parametrize("shape", [(3, 5, 1), (1, 1, 1), (4, 2, 9), (6, 1, 9), (2, 1, 4)])
def test_predicted_noise_matches_the_reference(shape, bits):
    rng = np.random.default_rng(sum(shape))
    weight = rng.standard_normal(shape)
    channels = shape[0] if shape[1] == 1 else shape[1]
    s, width, square = np.exp(rng.normal(0, 1, (3, channels)))
    wanted = spec.predicted_noise(s, width, square, weight, bits)
    assert predicted_noise(s, width, square, weight, bits) == pytest.approx(wanted, rel=TIGHT)


@pytest.mark.parametrize("depthwise", [False, True])
def test_predicted_noise_is_what_rounding_does(depthwise):
    """Sampled: uniform x, both sides rounded, the mean squared error within 10 % of the prediction."""
    rng = np.random.default_rng(5)
    channels, outputs, count = 64, 64, 4000
    width = np.exp(rng.normal(0, 0.5, channels))
    x = rng.random((count, channels)) * width
    w = rng.uniform(-1, 1, (channels, 1) if depthwise else (outputs, channels))
    s = balance(width, np.abs(w).max(1) if depthwise else np.abs(w).max(0), 0.5)
    scaled_x, scaled_w = x / s, w * (s[:, None] if depthwise else s)
    step_x = (width / s).max() / 255
    step_w = np.abs(scaled_w).max(1, keepdims=True) / 127
    rounded_x, rounded_w = np.rint(scaled_x / step_x) * step_x, np.rint(scaled_w / step_w) * step_w
    if depthwise:
        # The largest weight of a row lies on its grid: with one tap a row has no weight error at all, so the
        # weight's share of the prediction (an upper bound there) is left out by giving it 16 bits.
        error, bits = (rounded_x - scaled_x) * scaled_w[:, 0], (16, 8)
    else:
        error, bits = rounded_x @ rounded_w.T - x @ w.T, (8, 8)
    sampled = np.square(error).mean(0).sum()
    predicted = predicted_noise(s, width, np.square(x).mean(0), w[:, :, None], bits)
    assert predicted == pytest.approx(sampled, rel=0.1)


@pytest.mark.parametrize(
    "arguments, words",
    [
        (([1.0, 2.0], [1.0]), ["vectors of one length", "(2,)", "(1,)"]),
        (([[1.0]], [[1.0]]), ["vectors of one length", "(1, 1)"]),
        (([1.0, -1.0], [1.0, 1.0]), ["finite and not negative", "-1.0 in first[1]"]),
        (([1.0, 1.0], [1.0, np.nan]), ["finite and not negative", "nan in second[1]"]),
        (([np.inf], [1.0]), ["finite and not negative", "inf"]),
        (([1.0], [1.0], 1.5), ["alpha must lie in [0, 1]", "1.5"]),
        (([1.0], [1.0], float("nan")), ["alpha must lie in [0, 1]", "nan"]),
        (([1.0], [1.0], 0.5, 0.5), ["max_scale must be at least 1", "0.5"]),
    ],
)
def test_refusals(arguments, words):
    with refused("[balance]", *words):
        balance(*arguments)
