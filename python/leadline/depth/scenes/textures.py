"""Procedural surfaces: a pattern of two colours in metres on the surface, over a tileable table of noise."""

from __future__ import annotations

from functools import cache
from typing import Any, TypeAlias

import numpy as np
from numpy.typing import NDArray

Values: TypeAlias = NDArray[Any]
"""Of float32."""

PLAIN, TILES, STRIPES, BRICKS, BLOTCHES, WINDOWS, DOTS, GRAIN = range(8)
KINDS = 8

_SIDE = 256


@cache
def _noise() -> Values:
    """(256, 256), tileable, mean 0.5: six octaves of smoothed random lattices."""
    rng = np.random.default_rng(20240)
    total = np.zeros((_SIDE, _SIDE), np.float32)
    for octave in range(1, 8):
        side = 1 << octave
        lattice = rng.random((side, side), np.float32)
        total += np.float32(0.62**octave) * _stretched(lattice, _SIDE // side)
    total -= total.min()
    total /= total.max()
    return total


def _stretched(lattice: Values, factor: int) -> Values:
    """Periodic smooth interpolation to `factor` times the size along both axes."""
    for axis in (0, 1):
        t = np.arange(factor, dtype=np.float32) / factor
        t = t * t * (3 - 2 * t)
        shape = [1, 1, 1]
        shape[axis + 1] = factor
        t = t.reshape(shape)
        near, far = np.expand_dims(lattice, axis + 1), np.expand_dims(np.roll(lattice, -1, axis), axis + 1)
        lattice = (near * (1 - t) + far * t).reshape(
            [s * (factor if a == axis else 1) for a, s in enumerate(lattice.shape)]
        )
    return lattice


def noise(u: Values, v: Values, period: float) -> Values:
    """Noise in 0..1 that repeats after `period` metres."""
    scale = np.float32(_SIDE / period)
    column = np.floor(u * scale).astype(np.int32) & (_SIDE - 1)
    row = np.floor(v * scale).astype(np.int32) & (_SIDE - 1)
    return _noise().ravel()[row * _SIDE + column]


def pattern(kind: NDArray[np.int8], u: Values, v: Values, size: Values, footprint: Values) -> Values:
    """How much of the second colour, 0..1, at (u, v) in metres.

    `size` is the pattern's period in metres. `footprint` is what a pixel covers, in metres: a pattern finer than that
    fades to its mean, since it would only alias.
    """
    a, b = u / size, v / size
    out = np.empty_like(a)
    for index in np.unique(kind):
        here = kind == index
        out[here] = _PATTERNS[index](a[here], b[here])
    sharp = np.clip(2 - _DETAIL[kind] * footprint / size, 0, 1)
    faded: Values = np.float32(0.35) + (out - np.float32(0.35)) * sharp
    return faded


def _plain(a: Values, b: Values) -> Values:
    return noise(a, b, 7.0)


def _tiles(a: Values, b: Values) -> Values:
    return np.asarray((np.floor(a) + np.floor(b)) % 2, np.float32)


def _stripes(a: Values, b: Values) -> Values:
    return (a % 1 < 0.4).astype(np.float32)


def _bricks(a: Values, b: Values) -> Values:
    row = np.floor(3 * b)
    return np.asarray((3 * b % 1 < 0.16) | ((a + row / 2) % 1 < 0.06), np.float32)


def _blotches(a: Values, b: Values) -> Values:
    return np.clip(4 * noise(a, b, 4.0) - 1.5, 0, 1)


def _windows(a: Values, b: Values) -> Values:
    return (np.abs(a % 1 - 0.5) < 0.28) & (np.abs(b % 1 - 0.5) < 0.33)


def _dots(a: Values, b: Values) -> Values:
    return (np.hypot(a % 1 - 0.5, b % 1 - 0.5) < 0.3).astype(np.float32)


def _grain(a: Values, b: Values) -> Values:
    return noise(a * 6, b * 0.5, 4.0) * 0.6 + (a % 1 < 0.05) * np.float32(0.4)


_DETAIL = np.array([4, 4, 5, 14, 4, 5, 5, 8], np.float32)
"""How fine each pattern is, in lines for each period."""

_PATTERNS = (_plain, _tiles, _stripes, _bricks, _blotches, _windows, _dots, _grain)
