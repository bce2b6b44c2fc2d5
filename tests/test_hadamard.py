"""Hadamard rotations: the matrices, the fast product against the dense one, and what rotations must keep."""

from __future__ import annotations

import warnings

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from leadline import hadamard
from leadline.arrays import ConversionWarning
from leadline.types import InputError
from natives import native  # noqa: F401
from reference import hadamard as spec

RANDOM = np.random.default_rng(0)
SIZES = (1, 2, 4, 8, 12, 16, 20, 24, 28, 36, 52, 64, 100, 128, 144, 192, 384, 400, 720, 768, 1024, 1536)
EIGHT = hadamard.random_rotation(8)
BLOCKED = (3, 6, 7, 92, 116, 184, 387)


def kinds(size: int):
    return (hadamard.random_rotation(size, 1), hadamard.layernorm_rotation(size, 2))


@pytest.mark.parametrize("doublings", range(8))
def test_powers_of_two_are_sylvesters(doublings):
    np.testing.assert_array_equal(hadamard.matrix(2**doublings), spec.sylvester(doublings))


@pytest.mark.parametrize("size", SIZES)
def test_matrices_are_hadamard(size):
    h = hadamard.matrix(size).astype(int)
    assert set(np.unique(h)) <= {-1, 1} and (h[:, 0] == 1).all()
    np.testing.assert_array_equal(h @ h.T, size * np.eye(size, dtype=int))


def test_most_multiples_of_four_have_one():
    sizes = [n for n in range(4, 513, 4) if hadamard.block_size(n) == n]
    assert len(sizes) >= 102
    for n in sizes:
        h = hadamard.matrix(n).astype(int)
        assert (h @ h.T == n * np.eye(n, dtype=int)).all()


@pytest.mark.usefixtures("native")
@pytest.mark.parametrize("dtype", [np.float32, np.float64])
@pytest.mark.parametrize("size", SIZES + BLOCKED)
def test_the_fast_product_is_the_dense_one(size, dtype):
    for rotation in kinds(size):
        dense = rotation.matrix()
        np.testing.assert_allclose(dense @ dense.T, np.eye(size), atol=1e-12)
        for shape, axis in (((11, size), 1), ((size, 13), 0), ((3, size, 8), 1), ((2, size, 3), -2)):
            x = RANDOM.standard_normal(shape).astype(dtype)
            wanted = spec.rotated(x, dense, axis)
            found = rotation(x, axis)
            assert found.dtype == dtype and found.shape == x.shape
            bound = (
                (np.log2(size) + 4) * np.finfo(dtype).eps * np.linalg.norm(x.astype(float), axis=axis, keepdims=True)
            )
            assert (np.abs(found - wanted) <= bound).all()
            back = rotation(found, axis, inverse=True)
            assert (np.abs(back - x) <= 2 * bound).all()


@pytest.mark.usefixtures("native")
@given(st.sampled_from(SIZES[1:]), st.integers(1, 40), st.integers(0, 99))
@settings(deadline=None, max_examples=40)
def test_norms_stay(size, rows, seed):
    x = np.random.default_rng(seed).standard_normal((rows, size)).astype(np.float32)
    for rotation in kinds(size):
        np.testing.assert_allclose(np.linalg.norm(rotation(x), axis=1), np.linalg.norm(x, axis=1), rtol=1e-5)


@pytest.mark.parametrize("size", [4, 16, 64, 256, 1024, 12, 192, 384, 768, 92])
def test_layernorm_does_not_see_its_rotation(size):
    rotation = hadamard.layernorm_rotation(size, 3)
    assert rotation.keeps_mean
    np.testing.assert_allclose(rotation(np.ones(size)), 1.0, rtol=0, atol=1e-12)
    x = RANDOM.standard_normal((9, size)) * np.r_[60.0, np.ones(size - 1)] + 1
    np.testing.assert_allclose(spec.layer_norm(rotation(x)), rotation(spec.layer_norm(x)), atol=1e-11)
    other = hadamard.random_rotation(size, 3)
    assert np.abs(spec.layer_norm(other(x)) - other(spec.layer_norm(x))).max() > 1e-3 and not other.keeps_mean


@pytest.mark.parametrize(("size", "below"), [(1024, 0.2), (384, 0.5), (768, 0.5)])
def test_outliers_are_spread(size, below):
    x = RANDOM.standard_normal((512, size)).astype(np.float32)
    x[:, 5] *= 60
    for rotation in kinds(size):
        before, after = (np.abs(v).max() / np.sqrt((v**2).mean()) for v in (x, rotation(x)))
        assert after < below * before


def test_seeds_decide():
    for make in (hadamard.random_rotation, hadamard.layernorm_rotation):
        a, b, c = make(64, 1).matrix(), make(64, 1).matrix(), make(64, 2).matrix()
        assert np.array_equal(a, b) and not np.array_equal(a, c)


@pytest.mark.usefixtures("native")
@pytest.mark.parametrize("size", [8, 20, 384, 1024])
def test_in_place_and_threads_change_nothing(size):
    for rotation in kinds(size):
        for shape, axis in (((300, size), 1), ((size, 37), 0)):
            x = RANDOM.standard_normal(shape).astype(np.float32)
            wanted = rotation(x, axis, threads=1)
            assert np.array_equal(rotation(x, axis, threads=3), wanted)
            same = x.copy()
            assert rotation(same, axis, out=same) is same and np.array_equal(same, wanted)


def test_what_is_cut_into_blocks_is_said():
    assert hadamard.random_rotation(384).blocks == 1 and hadamard.random_rotation(387).blocks == 387
    rotation = hadamard.layernorm_rotation(184)
    assert rotation.blocks == 23 and "blocks=23" in repr(rotation)
    apart = rotation.matrix() * (1 - np.kron(np.eye(23), np.ones((8, 8))))
    assert not apart.any()


def test_rotate_is_the_matrix():
    x = RANDOM.standard_normal((5, 24)).astype(np.float32)
    np.testing.assert_allclose(hadamard.rotate(x), x @ hadamard.matrix(24) / np.sqrt(24), rtol=1e-4, atol=1e-5)
    np.testing.assert_allclose(hadamard.rotate(hadamard.rotate(x), inverse=True), x, rtol=1e-4, atol=1e-5)


def test_conversions_are_said():
    rotation = hadamard.random_rotation(8)
    with pytest.warns(ConversionWarning, match="float16"):
        rotation(np.ones((2, 8), np.float16))
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        assert rotation(np.ones((2, 8))[::-1]).dtype == np.float64


@pytest.mark.parametrize(
    ("call", "message"),
    [
        (lambda: hadamard.random_rotation(0), "size must be an integer from 1 to 65536. Received 0"),
        (lambda: hadamard.layernorm_rotation(2.0), "size must be an integer"),
        (lambda: hadamard.matrix(92), "must be constructible. Received 92"),
        (lambda: hadamard.random_rotation(8)(np.ones((2, 7), np.float32)), "x must have 8 elements along axis -1"),
        (lambda: hadamard.random_rotation(8)(np.ones((2, 8), int)), "x must be float32"),
        (
            lambda: hadamard.random_rotation(8)(np.ones((2, 8)), out=np.ones((2, 8), np.float32)),
            "float64 array of shape",
        ),
        (lambda: hadamard.rotate([1.0, 2.0]), "x must be a numpy array"),
        (lambda: hadamard.rotate(np.float32(1)), "axis must lie in"),
    ],
)
def test_bad_arguments_are_named(call, message):
    with pytest.raises(InputError, match=message):
        call()
