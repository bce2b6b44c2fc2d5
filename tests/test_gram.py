"""gram against its numpy specification: linear and convolutional, merged, over threads and modules."""

import numpy as np
import pytest

from leadline import ConversionWarning, InputError
from leadline.gram import ConvGram, Gram
from natives import native
from reference import gram as spec

__all__ = ["native"]

# Products are summed in float32 over at most 1024 rows: sqrt(1024) roundings of 2^-24 of the diagonal's scale, with
# room for an unlucky draw.
TOLERANCE = 2.0**-24 * 32 * 4


def close(ours, expected, pixels=0.0):
    """`pixels`: their mean square, which is more than that of patches where most is padding."""
    scale = np.maximum(np.einsum("...ii->...i", expected).max(-1), pixels)[..., None, None]
    assert ours.dtype == np.float64 and ours.shape == expected.shape
    assert (np.abs(ours - expected) <= TOLERANCE * scale).all()
    assert np.array_equal(ours, np.swapaxes(ours, -1, -2))


@pytest.mark.parametrize(
    "rows, features", [(1, 1), (2, 3), (7, 5), (33, 17), (1023, 8), (1025, 31), (3000, 16), (50, 193), (1500, 401)]
)
@pytest.mark.parametrize("threads", [1, 2, 3])
def test_linear(native, rows, features, threads):
    x = np.random.default_rng(rows).normal(0.5, 1.0, (rows, features)).astype(np.float32)
    g = Gram(features).update(x, threads=threads)
    assert g.count == rows
    np.testing.assert_allclose(g.mean, x.astype(np.float64).mean(0), rtol=1e-12)
    close(g.matrix(), spec.gram(x))
    if rows > 1:
        assert np.abs(g.matrix(centred=True) - spec.gram(x, centred=True)).max() <= 2 * TOLERANCE * spec.gram(x).max()


CONVOLUTIONS = [
    # weight shape, strides, pads, dilations, groups, input shape
    ((8, 3, 3, 3), (1, 1), (1, 1, 1, 1), (1, 1), 1, (2, 3, 9, 11)),
    ((4, 5, 1, 1), (1, 1), (0, 0, 0, 0), (1, 1), 1, (3, 5, 7, 5)),
    ((4, 2, 3, 5), (2, 3), (0, 2, 1, 1), (1, 1), 1, (1, 2, 10, 13)),
    ((6, 2, 3, 3), (1, 2), (2, 2, 2, 2), (2, 1), 3, (2, 6, 12, 9)),
    ((7, 1, 3, 3), (1, 1), (1, 1, 1, 1), (1, 1), 7, (2, 7, 8, 8)),
    ((7, 1, 5, 5), (2, 2), (2, 2, 2, 2), (1, 1), 7, (1, 7, 15, 17)),
    ((3, 4, 14, 14), (14, 14), (0, 0, 0, 0), (1, 1), 1, (1, 4, 42, 56)),
    ((2, 24, 3, 3), (1, 1), (1, 1, 1, 1), (1, 1), 1, (1, 24, 40, 40)),
    ((1, 1, 2, 2), (1, 1), (1, 0, 0, 1), (3, 3), 1, (1, 1, 4, 4)),
    ((1, 1, 1, 1), (5, 5), (3, 3, 3, 3), (1, 1), 1, (1, 1, 1, 1)),
    ((8, 3, 5), (1,), (2, 2), (1,), 1, (2, 3, 17)),
    ((6, 2, 3), (2,), (0, 3), (2,), 3, (3, 6, 11)),
    ((7, 1, 3), (1,), (1, 1), (1,), 7, (2, 7, 8)),
    ((8, 3, 3, 3, 3), (1, 1, 1), (1, 1, 1, 1, 1, 1), (1, 1, 1), 1, (2, 3, 5, 6, 7)),
    ((6, 2, 2, 1, 3), (2, 1, 3), (1, 0, 2, 0, 1, 1), (2, 1, 1), 3, (2, 6, 7, 4, 9)),
    ((7, 1, 3, 3, 3), (1, 2, 1), (2, 1, 1, 1, 1, 1), (1, 1, 2), 7, (1, 7, 4, 6, 5)),
]


@pytest.mark.parametrize("weight, strides, pads, dilations, groups, shape", CONVOLUTIONS)
@pytest.mark.parametrize("threads", [1, 2, 3])
def test_convolution_is_exactly_the_gram_of_im2col(native, weight, strides, pads, dilations, groups, shape, threads):
    x = np.random.default_rng(0).normal(0.3, 1.0, shape).astype(np.float32)
    patches = spec.im2col(x, weight[2:], strides, pads, dilations, groups)
    g = ConvGram(weight, strides, pads, dilations, groups).update(x, threads=threads)
    assert g.count == patches.shape[1]
    np.testing.assert_allclose(g.mean, patches.astype(np.float64).mean(1), rtol=1e-11, atol=1e-13)
    close(g.matrix(), np.stack([spec.gram(p) for p in patches]), np.square(x).mean((0, *range(2, x.ndim))).max())
    centred = np.stack([spec.gram(p, centred=True) for p in patches])
    assert np.abs(g.matrix(centred=True) - centred).max() <= 2 * TOLERANCE * max(1.0, np.abs(g.matrix()).max())


FAR = [0.0, -3.0, 30.0, 1e3, -1e5]
"""Means of features whose deviation is 1."""


def covariance_close(gram, rows):
    """Of rows whose deviation is 1: as close as if their means were zero, but for float32's steps at the means."""
    expected = spec.gram(rows, centred=True)
    steps = np.abs(rows).max(0) * 2.0**-24
    tolerance = 2 * TOLERANCE * expected.diagonal().max() + steps[:, None] + steps
    assert (np.abs(gram.matrix(centred=True) - expected) <= tolerance).all()
    second = spec.gram(rows)
    assert (np.abs(gram.matrix() - second) <= TOLERANCE * np.sqrt(np.outer(second.diagonal(), second.diagonal()))).all()
    np.testing.assert_allclose(gram.mean, rows.mean(0, np.float64), rtol=1e-7, atol=1e-7)


@pytest.mark.parametrize("rows_at_once", [1, 7, 500, 2000])
def test_what_varies_about_a_far_mean_is_kept(native, rows_at_once):
    rng = np.random.default_rng(5)
    means = np.resize(FAR, 61)
    x = (means + rng.normal(0, 1, (2000, 61))).astype(np.float32)
    gram, parts = Gram(61), [Gram(61), Gram(61), Gram(61)]
    for first in range(0, 2000, rows_at_once):
        gram.update(x[first : first + rows_at_once])
        parts[first // rows_at_once % 3].update(x[first : first + rows_at_once])
    covariance_close(gram, x)
    assert np.linalg.eigvalsh(gram.matrix(centred=True)).min() > 0.5
    merged = Gram(61).merge(parts[2]).merge(parts[0]).merge(Gram(61)).merge(parts[1])
    covariance_close(merged, x)


@pytest.mark.parametrize("groups", [1, 5])
@pytest.mark.parametrize("kernel, pads", [((3, 3), (0, 0, 0, 0)), ((1, 1), (0, 0, 0, 0)), ((2, 1, 2), (0,) * 6)])
def test_patches_about_a_far_mean(native, groups, kernel, pads):
    rng = np.random.default_rng(6)
    shape = (3, 5, *(9, 12, 11)[-len(kernel) :])
    x = rng.normal(0, 1, shape) + np.array(FAR).reshape(5, *[1] * len(kernel))
    x = x.astype(np.float32)
    whole = ConvGram((5, 5 // groups, *kernel), pads=pads, groups=groups)
    parts = [ConvGram((5, 5 // groups, *kernel), pads=pads, groups=groups).update(x[i : i + 1]) for i in range(3)]
    merged = parts[2].merge(parts[0]).merge(parts[1])
    patches = spec.im2col(x, kernel, (1,) * len(kernel), pads, (1,) * len(kernel), groups)
    for gram in (whole.update(x), merged):
        for g, rows in enumerate(patches):
            expected, steps = spec.gram(rows, centred=True), np.abs(rows).max(0) * 2.0**-24
            tolerance = 2 * TOLERANCE * expected.diagonal().max() + steps[:, None] + steps
            assert (np.abs(gram.matrix(centred=True)[g] - expected) <= tolerance).all()


def test_a_constant_feature_has_no_variance(native):
    x = np.random.default_rng(7).normal(0, 1, (1500, 3)).astype(np.float32)
    x[:, 1] = 1234.5678
    gram = Gram(3).update(x[:700]).update(x[700:])
    assert np.abs(gram.matrix(centred=True)[1]).max() < 1e-9
    np.testing.assert_allclose(gram.matrix(), spec.gram(x), rtol=1e-6, atol=1e-6)


def test_the_gram_gives_the_output_error():
    """What it is for: the mean squared output change of W to V is tr((W - V) G (W - V)^T)."""
    rng = np.random.default_rng(1)
    x, w = rng.normal(0, 1, (500, 40)).astype(np.float32), rng.normal(0, 1, (6, 40))
    change = np.round(w, 1) - w
    direct = np.mean(np.sum((x.astype(np.float64) @ change.T) ** 2, 1))
    assert np.trace(change @ Gram(40).update(x).matrix() @ change.T) == pytest.approx(direct, rel=1e-6)


@pytest.mark.parametrize(
    "make", [lambda: Gram(300), lambda: ConvGram((4, 30, 3, 3), pads=(1, 1, 1, 1))], ids=["linear", "conv"]
)
def test_same_bits_for_any_thread_count(native, make):
    rng = np.random.default_rng(2)
    x = rng.normal(0, 1, (2, 30, 24, 24) if isinstance(make(), ConvGram) else (2500, 300)).astype(np.float32)
    results = {make().update(x, threads=t).matrix().tobytes() for t in (1, 2, 3)}
    assert len(results) == 1


@pytest.mark.parametrize("order", [(0, 1, 2), (2, 0, 1)])
def test_merging_is_adding(order):
    x = np.random.default_rng(3).normal(0, 1, (90, 20)).astype(np.float32)
    parts = [Gram(20).update(x[30 * i : 30 * i + 30]) for i in order]
    for part in parts[1:]:
        parts[0].merge(part)
    assert parts[0].count == 90
    close(parts[0].matrix(), spec.gram(x))
    np.testing.assert_allclose(parts[0].mean, x.astype(np.float64).mean(0), rtol=1e-12)
    image = np.random.default_rng(4).normal(0, 1, (3, 2, 6, 6)).astype(np.float32)
    whole = ConvGram((1, 2, 3, 3)).update(image)
    merged = ConvGram((1, 2, 3, 3))
    for i in order:
        merged.merge(ConvGram((1, 2, 3, 3)).update(image[i : i + 1]))
    np.testing.assert_allclose(merged.matrix(), whole.matrix(), rtol=1e-12, atol=1e-14)


def test_a_refused_batch_changes_nothing(native):
    for gram, good in (
        (Gram(3, "fc1"), np.ones((4, 3), "f4")),
        (ConvGram((1, 1, 2, 2), name="fc1"), np.ones((1, 1, 3, 3), "f4")),
        (ConvGram((1, 1, 2, 2, 2), name="fc1"), np.ones((1, 1, 3, 3, 3), "f4")),
    ):
        gram.update(good)
        before = gram.matrix().tobytes()
        for value in (np.nan, np.inf):
            bad = good.copy()
            bad[(0,) * bad.ndim] = value
            with pytest.raises(InputError, match=rf"x must be finite in tensor 'fc1', sample 3. Received {value}"):
                gram.update(bad, sample=3)
        assert gram.matrix().tobytes() == before


def test_empty_batches_and_loud_conversion():
    g = Gram(3).update(np.empty((0, 3), np.float32))
    assert g.count == 0
    with pytest.raises(InputError, match=r"\[Gram\] there must be data first"):
        g.matrix()
    with pytest.warns(ConversionWarning, match="from float64"):
        g.update(np.ones((2, 3)))
    assert ConvGram((1, 1, 2, 2)).update(np.empty((0, 1, 3, 3), np.float32)).count == 0


def test_overflowing_squares_are_refused():
    with pytest.raises(InputError, match="magnitudes must stay below 1e18"):
        Gram(1).update(np.array([[1e25], [-1e25]], "f4")).matrix()


CONV = ConvGram((4, 2, 3, 3))
REFUSALS = [
    (lambda: Gram(0), r"\[Gram\] features must be a positive integer. Received 0"),
    (
        lambda: Gram(3).update(np.ones((2, 4), "f4")),
        r"\[Gram.update\] x must have shape \(rows, 3\). Received \(2, 4\)",
    ),
    (lambda: Gram(3).update(np.ones(3, "f4")), r"Received \(3,\)"),
    (lambda: Gram(3).merge(Gram(4)), "other must be a Gram of 3 features. Received a Gram of 4 features"),
    (lambda: Gram(3).merge(CONV), "Received a ConvGram"),
    (lambda: ConvGram((4, 2)), r"\[ConvGram\] weight_shape must hold 3 to 5 integers. Received \(4, 2\)"),
    (lambda: ConvGram((4, 0, 3)), r"\[ConvGram\] weight_shape must be 3 integers of at least 1. Received \(4, 0, 3\)"),
    (lambda: ConvGram((4, 2, 3), pads=(0, 0, 0, 0)), "pads must be 2 integers"),
    (lambda: ConvGram((4, 2, 3)).update(np.ones((1, 2, 5, 5), "f4")), r"x must have shape \(N, 2, W\)"),
    (lambda: ConvGram((4, 2, 1, 3, 3)).update(np.ones((1, 2, 5, 5), "f4")), r"x must have shape \(N, 2, D, H, W\)"),
    (lambda: ConvGram((4, 2, 3, 3), strides=(0, 1)), "strides must be 2 integers of at least 1"),
    (lambda: ConvGram((4, 2, 3, 3), pads=(-1, 0, 0, 0)), "pads must be 4 integers of at least 0"),
    (lambda: ConvGram((4, 2, 3, 3), dilations=(1, 1.5)), "dilations must be 2 integers"),
    (lambda: ConvGram((4, 2, 3, 3), groups=0), "groups must be 1 integers of at least 1"),
    (lambda: CONV.update(np.ones((1, 3, 5, 5), "f4")), r"x must have shape \(N, 2, H, W\). Received \(1, 3, 5, 5\)"),
    (lambda: CONV.update(np.ones((1, 2, 2, 5), "f4")), r"x must hold a patch of 3x3. Received \(2, 5\) with padding"),
    (lambda: CONV.merge(ConvGram((4, 2, 3, 3), strides=(2, 2))), "other must be a ConvGram of the same convolution"),
]


@pytest.mark.parametrize("call, message", REFUSALS, ids=range(len(REFUSALS)))
def test_refusals(call, message):
    with pytest.raises(InputError, match=message):
        call()
