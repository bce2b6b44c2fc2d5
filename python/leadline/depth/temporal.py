"""Whether depth stays put while a video plays. Each function gives one figure for every pair of neighbouring frames;
their mean is the metric, and together they are the profile that a report draws."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
from numpy.typing import ArrayLike, NDArray

from leadline.types import refuse

Array = NDArray[np.float64]


def alignment_error(depth: ArrayLike, intrinsics: ArrayLike, poses: ArrayLike) -> Array:
    """Temporal alignment error (TAE) in percent, as Video-Depth-Anything's benchmark measures it (eval_tae.py).

    Every frame's depth is carried into the next one by the cameras' motion and compared with the depth there, and
    back: the mean of both AbsRel, times 100.

    Parameters
    ----------
    depth : (frames, height, width)
        Metres, aligned to the poses' scale; pixels that are not positive and finite are left out.
    intrinsics : (3, 3) or (frames, 3, 3)
        In pixels.
    poses : (frames, 4, 4)
        Camera to world.

    Returns
    -------
    (frames - 1,) float64

    Source: Chen et al., "Video Depth Anything", 2025. Where several pixels land on one, the last in row order counts,
    as in their code.
    """
    frames, matrices = _video(depth), np.asarray(poses, np.float64)
    if matrices.shape != (len(frames), 4, 4):
        raise refuse("depth.temporal", f"poses must be ({len(frames)}, 4, 4)", matrices.shape)
    k = np.asarray(intrinsics, np.float64)
    if k.shape not in ((3, 3), (len(frames), 3, 3)):
        raise refuse("depth.temporal", f"intrinsics must be (3, 3) or ({len(frames)}, 3, 3)", k.shape)
    k = np.broadcast_to(k, (len(frames), 3, 3))
    errors = []
    for i in range(len(frames) - 1):
        ahead = np.linalg.inv(matrices[i + 1]) @ matrices[i]
        there = _carried_error(frames[i], frames[i + 1], k[i], k[i + 1], ahead)
        back = _carried_error(frames[i + 1], frames[i], k[i + 1], k[i], np.linalg.inv(ahead))
        errors.append(100 * (there + back) / 2)
    return np.array(errors)


def _carried_error(source: Array, target: Array, k_from: Array, k_to: Array, motion: Array) -> float:
    height, width = source.shape
    v, u = np.mgrid[:height, :width]
    known = (source > 0) & np.isfinite(source)
    z = np.where(known, source, 0.0)
    points = np.stack([(u - k_from[0, 2]) * z / k_from[0, 0], (v - k_from[1, 2]) * z / k_from[1, 1], z], -1)
    moved = points @ motion[:3, :3].T + motion[:3, 3]
    ahead = known & (moved[..., 2] > 0)
    seen = moved[ahead]
    column = np.rint(seen[:, 0] * k_to[0, 0] / seen[:, 2] + k_to[0, 2])
    row = np.rint(seen[:, 1] * k_to[1, 1] / seen[:, 2] + k_to[1, 2])
    inside = (column >= 0) & (column < width) & (row >= 0) & (row < height)
    carried = np.zeros_like(target)
    carried[row[inside].astype(int), column[inside].astype(int)] = seen[inside, 2]
    both = (carried > 0) & (target > 0) & np.isfinite(target)
    if not both.any():
        return 0.0
    return float(np.mean(np.abs(target[both] - carried[both]) / target[both]))


def warped_change(depth: ArrayLike, flows: Sequence[ArrayLike], visible: Sequence[ArrayLike]) -> Array:
    """Change of depth along the flow in percent: mean |d[t+1](x + flow) - d[t](x)| / d[t](x) over visible pixels.

    The optical-flow-based warping error of video depth (Wang et al., NVDS, 2023), relative. A camera that moves changes
    depth too: compare it with the truth's or the float network's.

    Parameters
    ----------
    depth : (frames, height, width)
        Positive; pixels that are not finite are left out.
    flows : frames - 1 arrays (height, width, 2)
        Columns and rows in pixels, from each frame to the next.
    visible : frames - 1 bool arrays (height, width)

    Returns
    -------
    (frames - 1,) float64
    """
    frames = _video(depth)
    if not len(flows) == len(visible) == len(frames) - 1:
        raise refuse("depth.temporal", f"{len(frames)} frames need {len(frames) - 1} flows", (len(flows), len(visible)))
    height, width = frames.shape[1:]
    v, u = np.mgrid[:height, :width]
    changes = []
    for now, later, flow, seen in zip(frames, frames[1:], flows, visible, strict=False):
        move = np.asarray(flow, np.float64)
        if move.shape != (height, width, 2):
            raise refuse("depth.temporal", f"flows must be ({height}, {width}, 2)", move.shape)
        there = _bilinear(later, u + move[..., 0], v + move[..., 1])
        usable = np.asarray(seen, bool) & (now > 0) & np.isfinite(now) & np.isfinite(there)
        changes.append(100 * float(np.mean(np.abs(there - now)[usable] / now[usable])) if usable.any() else 0.0)
    return np.array(changes)


def _bilinear(image: Array, u: Array, v: Array) -> Array:
    height, width = image.shape
    u, v = np.clip(u, 0, width - 1), np.clip(v, 0, height - 1)
    left, top = np.minimum(u.astype(int), width - 2), np.minimum(v.astype(int), height - 2)
    a, b = u - left, v - top
    with np.errstate(invalid="ignore"):
        upper = image[top, left] * (1 - a) + image[top, left + 1] * a
        lower = image[top + 1, left] * (1 - a) + image[top + 1, left + 1] * a
        blend: Array = upper * (1 - b) + lower * b
    return blend


def flicker(output: ArrayLike, reference: ArrayLike) -> Array:
    """Unrest that quantisation adds, in percent: how much the difference to the float network changes between frames.

    mean |e[t+1] - e[t]| / mean |reference|, with e = output - reference. An error that stays the same does not flicker.

    Parameters
    ----------
    output, reference : (frames, height, width)
        The quantised and the float network's outputs.

    Returns
    -------
    (frames - 1,) float64
    """
    y, r = _video(output), _video(reference)
    if y.shape != r.shape:
        raise refuse("depth.temporal", f"output must have the reference's shape {r.shape}", y.shape)
    change: Array = np.abs(np.diff(y - r, axis=0)).mean((1, 2))
    return 100 * change / max(float(np.abs(r).mean()), 1e-12)


def _video(frames: ArrayLike) -> Array:
    values = np.asarray(frames, np.float64)
    if values.ndim != 3 or len(values) < 2 or min(values.shape[1:]) < 2:
        raise refuse("depth.temporal", "a video must be (at least 2 frames, height, width)", values.shape)
    return values
