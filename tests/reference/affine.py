"""The specification of affine grids, in numpy: slow, obvious, one formula a line.

real = scale * (code - zero_point);  code = clamp(round(real / scale) + zero_point, qmin, qmax);  round: half to even.
"""

from __future__ import annotations

import numpy as np

from leadline import Scheme

SMALLEST_SCALE = float(np.finfo(np.float32).tiny)  # the smallest normal float32


def choose_grid(lo: float, hi: float, scheme: Scheme) -> tuple[np.float32, int]:
    """(scale, zero_point) for one range, real zero always inside and on the grid."""
    lo, hi = min(float(lo), 0.0), max(float(hi), 0.0)
    middle = 0 if scheme.signed else 2 ** (scheme.bits - 1)
    if lo == hi:
        return np.float32(1), middle if scheme.symmetric else 0
    if scheme.symmetric and scheme.fit == "aimet":
        scale = max(-lo / (middle - scheme.qmin), hi / (scheme.qmax - middle))
    elif scheme.symmetric:
        scale = max(-lo, hi) / (scheme.qmax - middle)
    else:
        scale = (hi - lo) / (scheme.qmax - scheme.qmin)
    rounded = np.float32(max(scale, SMALLEST_SCALE))
    if scheme.symmetric:
        return rounded, middle
    zero_point = int(np.rint(scheme.qmin - lo / float(rounded)))
    return rounded, min(max(zero_point, scheme.qmin), scheme.qmax)


def spread(values: np.ndarray, shape: tuple[int, ...], scheme: Scheme) -> np.ndarray:
    """One value per scale, repeated so that there is one per element."""
    if scheme.granularity == "tensor":
        return np.broadcast_to(values, shape)
    if scheme.granularity == "block":
        return np.repeat(values, scheme.block_size, axis=scheme.axis)
    around = [1] * len(shape)
    around[scheme.axis] = -1
    return np.broadcast_to(values.reshape(around), shape)


def range_of(x: np.ndarray, scheme: Scheme) -> tuple[np.ndarray, np.ndarray]:
    if scheme.granularity == "tensor":
        return (x.min(), x.max()) if x.size else (np.float32(0), np.float32(0))
    axis = scheme.axis % x.ndim
    if scheme.granularity == "axis":
        rows = np.moveaxis(x, axis, 0).reshape(x.shape[axis], -1)
        return (rows.min(1), rows.max(1)) if rows.shape[1] else (np.zeros(len(rows)), np.zeros(len(rows)))
    blocks = x.reshape(*x.shape[:axis], -1, scheme.block_size, *x.shape[axis + 1 :])
    return blocks.min(axis + 1), blocks.max(axis + 1)


def quantize(x: np.ndarray, scale: np.ndarray, zero_point: np.ndarray, scheme: Scheme) -> np.ndarray:
    wide = np.float64 if scheme.bits > 16 else np.float32
    s, z = spread(scale, x.shape, scheme).astype(wide), spread(zero_point, x.shape, scheme).astype(np.float64)
    with np.errstate(over="ignore"):
        steps = np.rint(x.astype(wide) / s).astype(np.float64)
    return np.clip(steps + z, scheme.qmin, scheme.qmax).astype(scheme.dtype)


def dequantize(codes: np.ndarray, scale: np.ndarray, zero_point: np.ndarray, scheme: Scheme) -> np.ndarray:
    s, z = spread(scale, codes.shape, scheme), spread(zero_point, codes.shape, scheme).astype(np.int64)
    return (codes.astype(np.int64) - z).astype(np.float32) * s
