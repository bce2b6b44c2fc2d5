"""Cameras that stand and move in places, and what follows from two of them: flow and pairs."""

from __future__ import annotations

from functools import lru_cache

import numpy as np
from numpy.typing import NDArray

from leadline.depth.scenes import places
from leadline.depth.scenes.camera import Camera
from leadline.depth.scenes.render import Frame, World
from leadline.types import FloatArray, refuse

SIZE = (128, 160)
"""Height and width of a picture in pixels unless stated: what TinyDepth takes."""

FIELD_OF_VIEW = 65.0
"""Horizontal, degrees."""

_TRIES = 200
_NEAREST = 0.3


@lru_cache(maxsize=8)
def world(seed: int) -> tuple[World, places.Box]:
    """The place of a seed: even seeds are rooms, odd ones streets. With it the floor that a camera may stand on.

    Raises InputError for a seed that is not a whole number of at least 0.
    """
    _check_seed(seed)
    build = places.street if seed % 2 else places.room
    return build(np.random.default_rng([11, seed]))


def views(seed: int, count: int = 1, size: tuple[int, int] = SIZE, antialias: int = 1) -> list[Frame]:
    """`count` pictures of the place of `seed` from different places in it.

    Parameters
    ----------
    seed : int
    count : int
    size : (height, width) in pixels
    antialias : int
        Odd number of rays a side for each pixel's colour; 3 costs 9 times as much.
    """
    _check(seed, count, size, antialias)
    return [world(seed)[0].render(camera, antialias) for camera in _cameras(seed, count, size)]


def clip(
    seed: int, frames: int = 16, size: tuple[int, int] = SIZE, antialias: int = 1, speed: float | None = None
) -> list[Frame]:
    """A video clip: the camera glides and turns through the place of `seed`.

    `speed` in metres for each frame; default 0.03 in rooms and 0.12 in streets.
    """
    _check(seed, frames, size, antialias)
    place, _ = world(seed)
    step = speed if speed is not None else (0.12 if seed % 2 else 0.03)
    return [place.render(camera, antialias) for camera in _path(seed, frames, size, step)]


def pair(seed: int, size: tuple[int, int] = SIZE, antialias: int = 1) -> FloatArray:
    """Two neighbouring views as multi-view networks take them: (1, 2, 3, height, width) float32 in 0..1."""
    frames = clip(seed, 2, size, antialias, speed=0.6 if seed % 2 else 0.15)
    pixels: FloatArray = np.stack([frame.rgb.transpose(2, 0, 1) for frame in frames])[None].astype(np.float32)
    return pixels / np.float32(255)


def flow(first: Frame, second: Frame) -> tuple[FloatArray, NDArray[np.bool_]]:
    """Exact optical flow between two frames of one static scene.

    Returns
    -------
    (height, width, 2) float32
        Where each pixel of `first` has gone in `second`, in pixels: columns, then rows.
    (height, width) bool
        Whether `second` sees that point: inside the picture and not behind something else.
    """
    height, width = first.depth.shape
    there = second.camera.project(first.camera.unproject(first.depth))
    v, u = np.mgrid[:height, :width]
    moved = np.stack([there[..., 0] - u, there[..., 1] - v], -1).astype(np.float32)
    column, row = np.rint(there[..., 0]), np.rint(there[..., 1])
    rows, columns = second.depth.shape
    visible = (there[..., 2] > 0) & (column >= 0) & (column < columns) & (row >= 0) & (row < rows)
    at = (np.where(visible, row, 0).astype(int), np.where(visible, column, 0).astype(int))
    seen = second.depth[at]
    expected = np.where(np.isfinite(first.depth), there[..., 2], np.inf)
    with np.errstate(invalid="ignore"):
        same = np.isclose(seen, expected, rtol=0.03)
    return moved, visible & same


def _check_seed(seed: int) -> None:
    if not isinstance(seed, int | np.integer) or seed < 0:
        raise refuse("scenes", "seed must be a whole number of at least 0", repr(seed))


def _check(seed: int, count: int, size: tuple[int, int], antialias: int) -> None:
    _check_seed(seed)
    if count < 1:
        raise refuse("scenes", "the number of pictures must be at least 1", count)
    if len(size) != 2 or min(size) < 8:
        raise refuse("scenes", "size must be (height, width) of at least 8 pixels", size)
    if antialias < 1 or antialias % 2 == 0:
        raise refuse("scenes", "antialias must be an odd number", antialias)


def _cameras(seed: int, count: int, size: tuple[int, int]) -> list[Camera]:
    rng = np.random.default_rng([12, seed])
    return [_stand(rng, seed, size, np.zeros((1, 3)))[0] for _ in range(count)]


def _path(seed: int, frames: int, size: tuple[int, int], step: float) -> list[Camera]:
    rng = np.random.default_rng([13, seed])
    ahead = np.linspace(0, 1, frames)[:, None] * step * (frames - 1)
    sway = 0.15 * step * np.sin(np.linspace(0, rng.uniform(2, 6), frames))[:, None]
    return _stand(rng, seed, size, np.concatenate([ahead, sway, 0.5 * sway], 1))


def _stand(rng: np.random.Generator, seed: int, size: tuple[int, int], moves: NDArray[np.float64]) -> list[Camera]:
    """Cameras along `moves` (n, 3: ahead, aside, up; metres) from a place where nothing is in the way.

    A wide place may leave no room for a long path: it is shortened until it fits.
    """
    place, (left, near, right, far) = world(seed)
    outdoors = seed % 2 == 1
    for attempt in range(_TRIES):
        eye = np.array([rng.uniform(left, right), rng.uniform(near, far), rng.uniform(1.0, 1.9)])
        middle = np.array([(left + right) / 2, (near + far) / 2])
        if outdoors:
            heading = rng.normal(0, 0.35)
            pitch = rng.normal(-0.02, 0.08)
        else:
            towards = middle + rng.uniform(-0.6, 0.6, 2) * (right - left, far - near) / 2 - eye[:2]
            heading = np.arctan2(towards[1], towards[0])
            pitch = rng.normal(-0.15, 0.15)
        shrink = 0.97 ** max(0, attempt - _TRIES // 4)
        turn = rng.uniform(-0.25, 0.25) * np.linspace(0, 1, len(moves)) * shrink * (len(moves) > 1)
        course = heading + rng.choice([0.0, np.pi / 2, -np.pi / 2]) * rng.uniform(0, 1)
        along = np.stack([np.cos(course), np.sin(course), 0.0])
        across = np.stack([-np.sin(course), np.cos(course), 0.0])
        eyes = eye + shrink * (moves[:, :1] * along + moves[:, 1:2] * across + moves[:, 2:] * (0, 0, 1.0))
        inside = (eyes[:, :2] > (left, near)).all() and (eyes[:, :2] < (right, far)).all()
        if not inside or place.near(eyes, _NEAREST).any():
            continue
        angles, roll = heading + turn, rng.normal(0, 1.5)
        looks = np.stack([np.cos(angles), np.sin(angles), np.full(len(angles), np.tan(pitch))], 1)
        cameras = [Camera.looking(e, e + v, size, FIELD_OF_VIEW, roll) for e, v in zip(eyes, looks, strict=True)]
        if attempt > _TRIES - 20 or _sees(place, cameras[0]):
            return cameras
    raise refuse("scenes", f"scene {seed} has room for a camera", "none found")


def _sees(place: World, camera: Camera) -> bool:
    """Whether there is something to see: not a wall in front of the lens."""
    small = Camera.looking(camera.pose[:3, 3], camera.pose[:3, 3] + camera.pose[:3, 2], (18, 24), FIELD_OF_VIEW)
    depth = place.depth(small)
    return bool(np.median(depth) > 1.0 and (depth < 0.5).mean() < 0.1)
