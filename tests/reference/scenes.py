"""The renderer's specification: one ray at a time, in float64, by the textbook quadratics, over all solids."""

from __future__ import annotations

import numpy as np


def entrance(kind: int, origin: np.ndarray, direction: np.ndarray) -> float:
    """t of the entrance into the unit box (0), ball (1) or cylinder (2); inf if missed or if the ray starts inside."""
    spans = []
    if kind == 0:
        spans = [slab(origin[i], direction[i]) for i in range(3)]
    elif kind == 1:
        spans = [ball(origin, direction)]
    else:
        spans = [ball(origin[:2], direction[:2]), slab(origin[2], direction[2])]
    first, last = max(s[0] for s in spans), min(s[1] for s in spans)
    return first if first <= last and first >= 0 else np.inf


def slab(o: float, d: float) -> tuple[float, float]:
    if d == 0:
        return (-np.inf, np.inf) if abs(o) <= 1 else (np.inf, -np.inf)
    return tuple(sorted(((-1 - o) / d, (1 - o) / d)))


def ball(o: np.ndarray, d: np.ndarray) -> tuple[float, float]:
    a, b, c = d @ d, o @ d, o @ o - 1
    if a == 0:
        return (-np.inf, np.inf) if c <= 0 else (np.inf, -np.inf)
    disc = b * b - a * c
    if disc < 0:
        return np.inf, -np.inf
    return (-b - np.sqrt(disc)) / a, (-b + np.sqrt(disc)) / a


def depth(solids, camera, row: int, column: int) -> float:
    """Depth along the optical axis of the nearest solid at a pixel."""
    direction = camera.pose[:3, :3] @ np.linalg.inv(camera.intrinsics) @ [column, row, 1.0]
    eye = camera.pose[:3, 3]
    nearest = np.inf
    for kind, to_world in zip(solids.kinds, solids.maps, strict=True):
        inverse = np.linalg.inv(to_world[:, :3])
        nearest = min(nearest, entrance(kind, inverse @ (eye - to_world[:, 3]), inverse @ direction))
    return nearest
