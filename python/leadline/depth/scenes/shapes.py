"""Unit shapes and where rays enter them. Every solid of a scene is one of these under an affine map."""

from __future__ import annotations

from typing import TypeAlias

import numpy as np
from numpy.typing import NDArray

from leadline.types import FloatArray

BOX, ELLIPSOID, CYLINDER = range(3)
"""[-1, 1]^3; the unit ball; x^2 + y^2 <= 1 with |z| <= 1."""

KINDS = 3

Rays: TypeAlias = tuple[FloatArray, FloatArray, FloatArray]
"""x, y and z of origins or directions, arrays or scalars that broadcast."""

_TINY = np.float32(1e-12)


def enter(kind: int, origin: Rays, direction: Rays) -> FloatArray:
    """The ray parameter t >= 0 at which origin + t * direction enters the unit shape; infinity where it misses.

    All three are convex, so that a ray is inside for one interval of t, and a cylinder's interval is the intersection
    of a disc's and a slab's. A ray that starts inside has passed the entrance and misses.
    """
    if kind == BOX:
        spans = [_slab(origin[axis], direction[axis]) for axis in range(3)]
    elif kind == ELLIPSOID:
        spans = [_ball(origin, direction)]
    else:
        spans = [_ball(origin[:2], direction[:2]), _slab(origin[2], direction[2])]
    first, last = spans[0]
    for near, far in spans[1:]:
        first, last = np.maximum(first, near), np.minimum(last, far)
    entrance: FloatArray = np.where((first <= last) & (first >= 0), first, np.float32(np.inf))
    return entrance


def _slab(origin: FloatArray, direction: FloatArray) -> tuple[FloatArray, FloatArray]:
    inverse: FloatArray = np.reciprocal(np.where(np.abs(direction) < _TINY, _TINY, direction))
    middle, half = -origin * inverse, np.abs(inverse)
    return middle - half, middle + half


def _ball(origin: tuple[FloatArray, ...], direction: tuple[FloatArray, ...]) -> tuple[FloatArray, FloatArray]:
    """Of the unit ball, or the unit disc with two coordinates.

    The discriminant |d|^2 - |o x d|^2 keeps its digits in float32 where (o.d)^2 - |d|^2 (|o|^2 - 1) loses them: for
    thin shapes that are far away.
    """
    squared = sum((d * d for d in direction), np.float32(0)) + _TINY
    along = sum((o * d for o, d in zip(origin, direction, strict=True)), np.float32(0))
    count = len(direction)
    pairs = [(i, j) for i in range(count) for j in range(i)]
    across = sum((np.square(origin[i] * direction[j] - origin[j] * direction[i]) for i, j in pairs), np.float32(0))
    root = np.sqrt(np.maximum(squared - across, 0))
    root = np.where(squared >= across, root, np.float32(np.nan))
    return (-along - root) / squared, (-along + root) / squared


def normal(kind: NDArray[np.int8], point: FloatArray) -> FloatArray:
    """Outward normals, of any length, at `point` (n, 3) on the surfaces of unit shapes `kind` (n,)."""
    out = point.copy()
    tube = np.flatnonzero(kind == CYLINDER)
    cap = np.hypot(point[tube, 0], point[tube, 1]) < np.abs(point[tube, 2])
    out[tube[~cap], 2] = 0
    out[tube[cap], :2] = 0
    box = np.flatnonzero(kind == BOX)
    axis = np.abs(point[box]).argmax(1)
    out[box] = 0
    out[box, axis] = point[box, axis]
    return out
