"""ONNX Resize in torch: by interpolate wherever that means the same, otherwise by the nearest source's index."""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping, Sequence
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor
from torch.nn import functional

_LINEAR = {1: "linear", 2: "bilinear", 3: "trilinear"}


def resize(
    attrs: Mapping[str, Any], shape: tuple[int, ...], wanted: tuple[int, ...], scales: Sequence[float] | None
) -> Callable[[Tensor], Tensor]:
    """The function of one tensor of `shape` to one of `wanted`; ValueError where torch has no such interpolation."""
    mode, placed = attrs.get("mode", "nearest"), attrs.get("coordinate_transformation_mode", "half_pixel")
    if mode == "nearest":
        return _nearest(attrs.get("nearest_mode", "round_prefer_floor"), placed, shape, wanted, scales)
    spatial = len(shape) - 2
    if shape[:2] != wanted[:2] or spatial not in _LINEAR or (mode == "cubic" and spatial != 2):
        raise ValueError(f"mode {mode} from {shape} to {wanted}")
    if attrs.get("exclude_outside") or attrs.get("cubic_coeff_a", -0.75) != -0.75:
        raise ValueError("exclude_outside, or a cubic_coeff_a other than -0.75")
    whole = scales is None or all(math.isclose(n * s, m) for n, s, m in zip(shape, scales, wanted, strict=True))
    same = placed == "half_pixel" or (placed == "pytorch_half_pixel" and min(wanted[2:]) > 1)
    if not (placed == "align_corners" or (same and whole)):
        raise ValueError(f"coordinate_transformation_mode {placed} from {shape} to {wanted}")
    name, size = _LINEAR[spatial] if mode == "linear" else "bicubic", wanted[2:]
    corners, smooth = placed == "align_corners", bool(attrs.get("antialias", 0))
    return lambda x: functional.interpolate(x, size, mode=name, align_corners=corners, antialias=smooth)


def _nearest(
    rounding: str, placed: str, shape: tuple[int, ...], wanted: tuple[int, ...], scales: Sequence[float] | None
) -> Callable[[Tensor], Tensor]:
    factors = scales if scales is not None else [m / n for n, m in zip(shape, wanted, strict=True)]
    indices = [_sources(rounding, placed, *axis) for axis in zip(shape, wanted, factors, strict=True)]
    plain = [np.arange(m) * n // m for n, m in zip(shape, wanted, strict=True)]
    if shape[:2] == wanted[:2] and all(np.array_equal(*pair) for pair in zip(indices, plain, strict=True)):
        return lambda x: functional.interpolate(x, wanted[2:], mode="nearest")
    moved = [
        (axis, torch.from_numpy(index)) for axis, index in enumerate(indices) if not np.array_equal(index, plain[axis])
        or shape[axis] != wanted[axis]
    ]  # fmt: skip

    def function(x: Tensor) -> Tensor:
        for axis, index in moved:
            x = x.index_select(axis, index)
        return x

    return function


def _sources(rounding: str, placed: str, length: int, wanted: int, scale: float) -> NDArray[np.int64]:
    """Of each output position along an axis, the input position that it copies (ONNX Resize)."""
    x = np.arange(wanted, dtype=np.float64)
    if placed in ("half_pixel", "pytorch_half_pixel"):
        at = (x + 0.5) / scale - 0.5 if placed == "half_pixel" or wanted > 1 else np.zeros(1)
    elif placed == "asymmetric":
        at = x / scale
    elif placed == "align_corners":
        at = x * (length - 1) / max(wanted - 1, 1)
    else:
        raise ValueError(f"coordinate_transformation_mode {placed}")
    at = np.round(at, 9)  # positions that are whole but for the last bit
    rounded = {
        "floor": np.floor(at),
        "ceil": np.ceil(at),
        "round_prefer_floor": np.ceil(at - 0.5),
        "round_prefer_ceil": np.floor(at + 0.5),
    }[rounding]
    return np.clip(rounded, 0, length - 1).astype(np.int64)
