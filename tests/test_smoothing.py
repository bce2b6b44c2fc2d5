"""Smoothing: the reference at odd sizes, the laws (the product stays, never worse than nothing), refusals."""

from __future__ import annotations

from dataclasses import replace

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from hypothesis.extra.numpy import arrays

from data_samples import refused
from leadline import Scheme
from leadline.smoothing import ALPHAS, Reader, migration_scales, reparameterize, search, search_product
from natives import native  # noqa: F401
from reference import smoothing as spec

W8, W4 = (Scheme(bits, signed=True, symmetric=True, granularity="axis", axis=0, narrow=True) for bits in (8, 4))
A8, A4 = Scheme(8), Scheme(4)
RANGE = st.one_of(st.just(0.0), st.floats(1e-6, 1e6))
RANGES = st.integers(1, 20).flatmap(lambda n: st.tuples(*[arrays(np.float64, n, elements=RANGE)] * 2))
ALPHA, LIMIT = st.floats(0, 1), st.floats(1, 100)
# pow, log and exp of arguments up to 1e6 cost a few dozen ulps of double.
TIGHT = 1e-12
# Products of a few hundred float32 terms, squared errors summed in double.
FLOAT = 2e-5


def inputs(seed: int, channels: int, rows: int = 200) -> np.ndarray:
    """Correlated, off centre, with some channels much wider than others."""
    rng = np.random.default_rng(seed)
    mix = rng.standard_normal((channels, channels)) / np.sqrt(channels) + np.eye(channels)
    return (rng.standard_normal((rows, channels)) @ mix + rng.standard_normal(channels)) * spread(seed, channels)


def spread(seed: int, channels: int) -> np.ndarray:
    return np.exp(np.random.default_rng(seed + 1).normal(0, 1, channels))


def problem(seed: int, out: int, channels: int, taps: int = 1):
    """Weight (out, channels, taps), Gram of (channels, taps), lo, hi of the channels."""
    x = inputs(seed, channels * taps)
    weight = np.random.default_rng(seed + 2).standard_normal((out, channels, taps)).astype(np.float32)
    per_channel = x.reshape(len(x), channels, taps)
    return weight, x.T @ x / len(x), per_channel.min((0, 2)), per_channel.max((0, 2))


@given(RANGES, ALPHA, LIMIT)
def test_migration_scales_are_the_specification(ranges, alpha, limit):
    found = migration_scales(*ranges, alpha, limit)
    np.testing.assert_allclose(found, spec.migration_scales(*ranges, alpha, limit), rtol=TIGHT)
    assert found.dtype == np.float64 and np.isfinite(found).all()


@given(RANGES, ALPHA, LIMIT)
def test_scales_are_bounded_whatever_is_dead(ranges, alpha, limit):
    s = migration_scales(*ranges, alpha, limit)
    assert (s >= 1 / limit * (1 - TIGHT)).all() and (s <= limit * (1 + TIGHT)).all()
    assert (s[ranges[0] == 0] == 1).all()


def test_a_channel_that_nobody_reads_is_not_the_widest():
    s = migration_scales([1.0, 2.0, 50.0, 0.1], [1.0, 1.0, 0.0, 0.0], 0.5)
    narrowed = np.array([1.0, 2.0, 50.0, 0.1]) / s
    assert narrowed[2] == pytest.approx(narrowed[:2].max()) and s[3] == 1


def test_smoothquant_equation_4_by_hand():
    s = migration_scales([4.0, 1.0], [1.0, 4.0], 0.5)
    np.testing.assert_allclose(s, np.array([2.0, 0.5]) / 1.0)


@given(st.integers(0, 10**6), st.integers(1, 30), ALPHA)
@settings(max_examples=30, deadline=None)
def test_the_product_is_unchanged(seed, channels, alpha):
    weight, _, lo, hi = problem(seed, 5, channels)
    x = inputs(seed, channels)
    s = migration_scales(np.maximum(np.abs(lo), np.abs(hi)), np.abs(weight).max((0, 2)), alpha)
    wanted = x @ weight[:, :, 0].T.astype(float)
    np.testing.assert_allclose((x / s) @ (weight[:, :, 0] * s).T, wanted, atol=1e-12 * np.abs(wanted).max())


@given(st.integers(0, 10**6), st.integers(1, 30))
@settings(max_examples=50, deadline=None)
def test_reparameterised_channels_have_one_range_about_zero(seed, channels):
    x = inputs(seed, channels)
    x[:, np.random.default_rng(seed).random(channels) < 0.2] = 3.5
    lo, hi = x.min(0), x.max(0)
    scale, shift = reparameterize(lo, hi)
    y = (x - shift) / scale
    constant = lo == hi
    assert (scale[constant] == 1).all() and (y[:, constant] == 0).all()
    if not constant.all():
        np.testing.assert_allclose(y[:, ~constant].max(0), y.max(), rtol=1e-9)
        np.testing.assert_allclose(y[:, ~constant].min(0), -y.max(), rtol=1e-9)
        assert np.log(scale[~constant]).mean() == pytest.approx(0, abs=1e-9)


def test_reparameterised_one_grid_errs_like_a_grid_for_each_channel():
    """Sampled: rounding (x - shift) / scale on one grid and undoing it, beside a grid for each channel."""
    rng = np.random.default_rng(3)
    x = rng.uniform(-1, 1, (4000, 24)) * spread(3, 24) + rng.standard_normal(24) * spread(3, 24)
    lo, hi = x.min(0), x.max(0)
    scale, shift = reparameterize(lo, hi)
    y = (x - shift) / scale
    step = (y.max() - y.min()) / 255
    one = (np.rint(y / step) * step) * scale + shift - x
    own = (hi - lo) / 255
    many = np.rint((x - lo) / own) * own + lo - x
    np.testing.assert_allclose(np.square(one).mean(0), np.square(many).mean(0), rtol=0.15)


SIZES = [(1, 1), (3, 2), (5, 7), (16, 17), (33, 31), (65, 127), (64, 128), (63, 129), (130, 257)]
SCHEMES = {
    "w8": W8,
    "w4": W4,
    "tensor": Scheme(8, signed=True, symmetric=True),
    "asymmetric": Scheme(4, granularity="axis", axis=0),
    "blocks": Scheme(4, signed=True, symmetric=True, granularity="block", axis=1, block_size=2),
}


@pytest.mark.parametrize("scheme", SCHEMES.values(), ids=SCHEMES)
@pytest.mark.parametrize(("out", "channels"), SIZES)
@pytest.mark.usefixtures("native")
def test_search_is_the_specification(out, channels, scheme):
    if scheme.block_size:
        scheme = replace(scheme, block_size=next(n for n in range(min(2, channels), 1000) if channels % n == 0))
    weight, gram, lo, hi = problem(out, out, channels)
    found = search([Reader(weight, gram, scheme)], lo, hi, activation=A8)
    largest, columns = np.maximum(np.abs(lo), np.abs(hi)), np.abs(weight).max((0, 2)).astype(float)
    tried = {a: spec.migration_scales(largest, columns, a) if a else np.ones(channels) for a in ALPHAS}
    errors = {a: spec.error([(weight, gram, scheme)], lo, hi, s, A8) for a, s in tried.items()}
    assert found.before == pytest.approx(errors[0.0], rel=FLOAT)
    assert found.after == pytest.approx(min(errors.values()), rel=FLOAT)
    assert found.after == pytest.approx(errors[found.alpha], rel=FLOAT)
    np.testing.assert_allclose(found.scales, tried[found.alpha], rtol=TIGHT)


@pytest.mark.parametrize(("out", "channels", "taps"), [(3, 5, 9), (17, 16, 4), (70, 15, 9)])
@pytest.mark.parametrize("activation", [A8, A4, Scheme(8, signed=True, symmetric=True), None], ids=str)
@pytest.mark.usefixtures("native")
def test_convolutions_several_readers_and_schemes(out, channels, taps, activation):
    conv = problem(1, out, channels, taps)
    wide = problem(2, 2 * out, channels)
    lo, hi = np.minimum(conv[2], wide[2]), np.maximum(conv[3], wide[3])
    readers = [(conv[0], conv[1], W8), (wide[0], wide[1], W4), (wide[0], wide[1], None)]
    found = search([Reader(*r) for r in readers], lo, hi, activation=activation)
    assert found.before == pytest.approx(spec.error(readers, lo, hi, np.ones(channels), activation), rel=FLOAT)
    assert found.after == pytest.approx(spec.error(readers, lo, hi, found.scales, activation), rel=FLOAT)


@pytest.mark.usefixtures("native")
def test_weights_of_any_rank_are_read():
    weight, gram, lo, hi = problem(4, 6, 5, 4)
    flat = search([Reader(weight, gram, W8)], lo, hi, activation=A8)
    square = search([Reader(weight.reshape(6, 5, 2, 2), gram, W8)], lo, hi, activation=A8)
    assert flat.after == square.after


@given(st.integers(0, 10**6), st.integers(1, 20), st.integers(1, 40), st.sampled_from([W8, W4, None]))
@settings(max_examples=40, deadline=None)
def test_it_never_predicts_worse_than_nothing(seed, out, channels, scheme):
    weight, gram, lo, hi = problem(seed, out, channels)
    found = search([Reader(weight, gram, scheme)], lo, hi, activation=A8)
    assert found.after <= found.before
    assert (found.alpha == 0) == (found.scales == 1).all() or channels == 1


def test_without_weight_grids_the_activation_becomes_flat():
    weight, gram, lo, hi = problem(5, 9, 12)
    found = search([Reader(weight, gram)], lo, hi, activation=Scheme(8, signed=True, symmetric=True), max_scale=1e9)
    assert found.alpha == 1
    flat = np.maximum(np.abs(lo), np.abs(hi)) / found.scales
    np.testing.assert_allclose(flat, flat[0])


def test_a_grid_for_each_channel_gains_nothing_from_scaling():
    weight, gram, lo, hi = problem(6, 9, 12)
    found = search([Reader(weight, gram)], lo, hi, activation=Scheme(8, granularity="axis", axis=1))
    assert found.after == pytest.approx(found.before, rel=1e-6)


def test_a_grid_for_each_token_gains_as_one_grid_does():
    weight, gram, lo, hi = problem(6, 9, 12)
    schemes = [Scheme(8, granularity=kind) for kind in ("tensor", "token")]
    one, token = (search([Reader(weight, gram)], lo, hi, activation=scheme) for scheme in schemes)
    assert token.alpha == one.alpha > 0 and token.after == one.after
    assert np.array_equal(token.scales, one.scales)


def test_the_prediction_is_what_rounding_does():
    """Sampled: both sides rounded, mean squared error within 10 %, and the chosen scales better than none."""
    rng = np.random.default_rng(7)
    x = (rng.standard_normal((8000, 64)) * spread(7, 64)).astype(np.float32)
    weight = rng.standard_normal((48, 64)).astype(np.float32)
    lo, hi = x.min(0), x.max(0)
    found = search([Reader(weight, x.T.astype(float) @ x / len(x), W8)], lo, hi, activation=A8)
    sampled = []
    for s in (np.ones(64), found.scales):
        grid = spec.choose_grid((lo / s).min(), (hi / s).max(), A8)
        step = np.abs(weight * s).max(1, keepdims=True) / 127
        y = spec.rounded(x / s, grid) @ (np.rint(weight * s / step) * step).T
        sampled.append(np.square(y - x @ weight.T.astype(float)).mean(0).sum())
    assert [found.before, found.after] == pytest.approx(sampled, rel=0.1)
    assert sampled[1] < sampled[0] / 2


@pytest.mark.usefixtures("native")
def test_threads_do_not_change_the_result():
    weight, gram, lo, hi = problem(8, 300, 150)
    first, *others = (search([Reader(weight, gram, W4)], lo, hi, activation=A8, threads=n) for n in (1, 2, 3))
    for other in others:
        assert (other.before, other.after, other.alpha) == (first.before, first.after, first.alpha)


def test_search_product_balances_query_and_key():
    """q / s against k * s: the noise that either grid makes of the other side's power; in both directions alike."""
    lo, hi, power = -spread(1, 16), spread(1, 16), spread(1, 16) ** 2 / 4
    flat = (-np.ones(16), np.ones(16), np.ones(16))
    found = search_product((lo, hi, power), flat, query_scheme=A8, key_scheme=A8)
    turned = search_product(flat, (lo, hi, power), query_scheme=A8, key_scheme=A8)
    assert found.after < found.before and found.after == pytest.approx(turned.after)
    np.testing.assert_allclose(found.scales * turned.scales, 1)
    wanted = spec.activation_noise(found.scales, lo, hi, flat[2] * found.scales**2, A8)
    wanted += spec.activation_noise(1 / found.scales, *flat[:2], power / found.scales**2, A8)
    assert found.after == pytest.approx(wanted, rel=1e-6)
    assert search_product((lo, hi, power), flat).alpha == 0


@pytest.mark.usefixtures("native")
def test_dead_channels_and_zero_weights_are_survived():
    weight, gram, lo, hi = problem(9, 6, 8)
    weight[:, 2] = 0
    lo[5] = hi[5] = 0
    gram[5] = gram[:, 5] = 0
    found = search([Reader(weight, gram, W4)], lo, hi, activation=A8)
    assert np.isfinite(found.scales).all() and found.scales[5] == 1 and found.after <= found.before
    nothing = search([Reader(weight * 0, gram, W4)], lo, hi, activation=A8)
    assert nothing.alpha == 0 and nothing.before == 0


WEIGHT, GRAM, LO, HI = np.ones((4, 3), np.float32), np.eye(3), -np.ones(3), np.ones(3)
BLOCKS = Scheme(4, signed=True, symmetric=True, granularity="block", axis=1, block_size=2)


@pytest.mark.parametrize(
    ("call", "words"),
    [
        (lambda: migration_scales([1.0], [1.0, 2.0], 0.5), ["[balance]", "vectors of one length"]),
        (lambda: migration_scales([1.0], [-1.0], 0.5), ["[balance]", "finite and not negative", "-1.0 in second[0]"]),
        (lambda: migration_scales([1.0], [1.0], 2), ["[balance]", "alpha must lie in [0, 1]", "2"]),
        (lambda: reparameterize([1.0], [0.0]), ["[reparameterize]", "lo at most hi", "1.0 and 0.0 in channel 0"]),
        (lambda: reparameterize([[1.0]], [[2.0]]), ["[reparameterize]", "vectors of one length", "(1, 1)"]),
        (lambda: reparameterize([], []), ["[reparameterize]", "vectors of one length", "(0,)"]),
        (lambda: search([], LO, HI), ["[search]", "at least one layer", "none"]),
        (lambda: search([Reader(WEIGHT, GRAM)], LO, HI * np.nan), ["[search]", "must be finite", "nan in channel 0"]),
        (lambda: search([Reader(WEIGHT, GRAM)], LO[:2], HI[:2]), ["[search]", "2 input channels", "(4, 3)"]),
        (lambda: search([Reader(WEIGHT[0], GRAM)], LO, HI), ["[search]", "at least two axes"]),
        (lambda: search([Reader(WEIGHT * np.nan, GRAM)], LO, HI), ["[search]", "weight must be finite"]),
        (lambda: search([Reader(WEIGHT, GRAM[:2])], LO, HI), ["[search]", "gram must be (3, 3)"]),
        (lambda: search([Reader(WEIGHT, np.stack([GRAM] * 2))], LO, HI), ["[search]", "gram must be one matrix"]),
        (lambda: search([Reader(WEIGHT, GRAM, BLOCKS)], LO, HI), ["[search]", "blocks must divide", "blocks of 2"]),
        (lambda: search([Reader(WEIGHT, GRAM, W8.at(1))], LO, HI), ["[search]", "one grid for each row", "axis 1"]),
        (
            lambda: search([Reader(WEIGHT, GRAM, Scheme(32, signed=True, symmetric=True))], LO, HI),
            ["[search]", "at most 16 bits", "32"],
        ),
        (lambda: search([Reader(WEIGHT, GRAM)], LO, HI, activation=BLOCKS), ["[search]", "one for each channel"]),
        (lambda: search([Reader(WEIGHT, GRAM, W8)], LO, HI, alphas=[1.5]), ["alpha must lie in [0, 1]", "1.5"]),
        (lambda: search([Reader(WEIGHT, GRAM, W8)], LO, HI, max_scale=0.5), ["max_scale must be at least 1"]),
        (lambda: search([Reader(WEIGHT, GRAM, W8)], LO, HI, threads=0), ["[search]", "threads must be None or"]),
        (lambda: search_product((LO, HI, HI), (LO[:2], HI[:2], HI[:2])), ["[search_product]", "same", "3 and 2"]),
        (lambda: search_product((LO, HI, LO), (LO, HI, HI)), ["[search_product]", "powers must be finite"]),
    ],
)  # fmt: skip
def test_mistakes_are_named(call, words):
    with refused(*words):
        call()
