"""Affine grids: choose, quantise, dequantise, fake-quantise. Rounding is half to even after a division by the scale,
as ONNX QuantizeLinear defines it, and real zero is always exactly on the grid.
"""

from __future__ import annotations

import math
from dataclasses import replace
from typing import Any

import numpy as np
from numpy.typing import ArrayLike, NDArray

from leadline._native import core, thread_count
from leadline.arrays import Layout, as_codes, as_float32, axis_layout, axis_of, check_out, native_scheme, not_finite
from leadline.types import FloatArray, Grid, Scheme, refuse

__all__ = ["accumulator_grid", "choose_grid", "dequantize", "fake_quantize", "quantize", "range_of"]


def _grid_shape(shape: tuple[int, ...], scheme: Scheme, function: str) -> tuple[int, ...]:
    """The shape of scale and zero_point for an array of `shape`."""
    if scheme.granularity == "tensor":
        return ()
    if scheme.granularity == "token":
        raise refuse(function, "a grid per token has no scales of its own; use fake_quantize", "granularity 'token'")
    axis = axis_of(shape, scheme.axis, function)
    if scheme.granularity == "axis":
        return (shape[axis],)
    block = scheme.block_size
    assert block is not None
    if shape[axis] % block:
        rule = f"block_size must divide the length of axis {axis} in an array of shape {shape}"
        raise refuse(function, rule, f"block_size={block}")
    return (*shape[:axis], shape[axis] // block, *shape[axis + 1 :])


class _View:
    """How the core sees an array of `shape` under `scheme`. Blocks are cut along the last axis: for another axis,
    arrays go in with that axis moved to the end (one copy) and come back in place.
    """

    def __init__(self, shape: tuple[int, ...], scheme: Scheme, function: str) -> None:
        self.grid_shape = _grid_shape(shape, scheme, function)
        self.moved: int | None = None
        size = math.prod(shape)
        if scheme.granularity == "tensor":
            self.layout: Layout = (1, 1, size)
        elif scheme.granularity == "axis":
            self.layout = axis_layout(shape, axis_of(shape, scheme.axis, function))
        else:
            axis = axis_of(shape, scheme.axis, function)
            self.moved = axis if axis != len(shape) - 1 else None
            self.layout = (1, math.prod(self.grid_shape), scheme.block_size or 1)

    def enter(self, array: NDArray[Any]) -> NDArray[Any]:
        return array if self.moved is None else np.ascontiguousarray(np.moveaxis(array, self.moved, -1))

    def parameters(self, grid: Grid, function: str) -> tuple[FloatArray, NDArray[np.int32]]:
        if grid.scale.shape != self.grid_shape:
            raise refuse(function, f"the grid's scale must have shape {self.grid_shape}", grid.scale.shape)
        scale, zero_point = self.enter(grid.scale), self.enter(grid.zero_point)
        return np.ascontiguousarray(scale).reshape(-1), np.ascontiguousarray(zero_point).reshape(-1)

    def empty(self, like: NDArray[Any], dtype: np.dtype[Any]) -> NDArray[Any]:
        """An output in the core's order, for an input that has entered."""
        return np.empty(like.shape, dtype)

    def leave(self, array: NDArray[Any]) -> NDArray[Any]:
        return array if self.moved is None else np.ascontiguousarray(np.moveaxis(array, -1, self.moved))

    def leave_grid(self, values: FloatArray) -> FloatArray:
        if self.moved is None:
            return values.reshape(self.grid_shape)
        axis = self.moved
        moved = (*self.grid_shape[:axis], *self.grid_shape[axis + 1 :], self.grid_shape[axis])
        return np.ascontiguousarray(np.moveaxis(values.reshape(moved), -1, axis))


def choose_grid(lo: ArrayLike, hi: ArrayLike, scheme: Scheme) -> Grid:
    """The grid that covers [min(lo, 0), max(hi, 0)] for each pair.

    Asymmetric: scale = (hi - lo) / (qmax - qmin), zero_point = round(qmin - lo / scale), so that real zero has a code.
    Symmetric: the zero point is fixed and the scale follows `scheme.fit`. An all-zero range gets scale 1 (zero point 0,
    or the middle of a symmetric unsigned grid); no scale is below the smallest normal float32.

    Parameters
    ----------
    lo, hi : float or array
        Finite, lo <= hi, of one shape: the shape of the grid's scale.
    scheme : Scheme

    Raises
    ------
    InputError : shapes differ, a bound is not finite, or lo > hi.
    """
    native = native_scheme(scheme, "choose_grid")
    low, high = np.asarray(lo, np.float64), np.asarray(hi, np.float64)
    if low.shape != high.shape:
        raise refuse("choose_grid", "lo and hi must have one shape", f"{low.shape} and {high.shape}")
    if not (np.isfinite(low).all() and np.isfinite(high).all()):
        raise refuse("choose_grid", "lo and hi must be finite", f"lo={lo!r}, hi={hi!r}")
    limit = float(np.finfo(np.float32).max)
    if max(np.abs(low).max(initial=0.0), np.abs(high).max(initial=0.0)) > limit:
        raise refuse("choose_grid", "lo and hi must be float32 values", f"lo={lo!r}, hi={hi!r}")
    if (low > high).any():
        raise refuse("choose_grid", "lo must not exceed hi", f"lo={lo!r}, hi={hi!r}")
    scale, zero_point = np.empty(low.size, np.float32), np.empty(low.size, np.int32)
    core.choose_grid(np.ravel(low), np.ravel(high), native, scale, zero_point)
    return Grid(scale.reshape(low.shape), zero_point.reshape(low.shape), scheme)


def accumulator_grid(weight: Grid, activation: Grid, channels: int, single: bool = False) -> Grid:
    """The grid of a layer's int32 sums, which integer kernels want its bias on: input scale x weight scale.

    Parameters
    ----------
    weight : Grid
        Per tensor or per output channel; a grouped ConvTranspose has one scale for several channels.
    given : Grid
        Of the layer's input, per tensor.
    channels : int
        Of the output.
    single : bool
        Give a weight that has one scale one scale for all channels. Default: one for each channel all the same.

    Returns
    -------
    Grid
        32 bits, signed, symmetric.
    """
    tiny = np.finfo(np.float32).tiny  # no scale is below the smallest normal float32
    if single and weight.scale.size == 1:
        scale = np.asarray(np.maximum(weight.scale.reshape(()) * activation.scale, tiny), np.float32)
        return Grid(scale, np.zeros((), np.int32), Scheme(bits=32, signed=True, symmetric=True))
    scale = np.maximum(np.tile(weight.scale, channels // weight.scale.size) * activation.scale, tiny)
    scheme = Scheme(bits=32, signed=True, symmetric=True, granularity="axis", axis=0)
    return Grid(scale, np.zeros(channels, np.int32), scheme)


def range_of(x: Any, scheme: Scheme, threads: int | None = None) -> tuple[FloatArray, FloatArray]:
    """Minimum and maximum of `x` in the scheme's granularity; 0 and 0 where there is no element.

    Parameters
    ----------
    x : float32 array of any shape (numpy or DLPack)
    scheme : Scheme
        Only granularity, axis and block_size matter.
    threads : int or None
        None is the OpenMP default.

    Returns
    -------
    lo, hi : float32 arrays of the shape that the grid's scale will have
        () per tensor, (channels,) per axis, x's shape with the axis divided by block_size for blocks.

    Raises
    ------
    InputError : NaN or infinity in x, an axis outside x, a block_size that does not divide it.
    """
    native_scheme(scheme, "range_of")
    array = as_float32(x, "x", "range_of")
    view = _View(array.shape, scheme, "range_of")
    inside = view.enter(array)
    lo, hi = np.empty(view.layout[1], np.float32), np.empty(view.layout[1], np.float32)
    if not core.range(inside, view.layout, lo, hi, thread_count(threads, "range_of")):
        raise not_finite(array, "x", "range_of")
    return view.leave_grid(lo), view.leave_grid(hi)


def quantize(x: Any, grid: Grid, threads: int | None = None) -> NDArray[Any]:
    """Integer codes: clamp(round(x / scale) + zero_point, qmin, qmax), half to even. ONNX QuantizeLinear.

    Parameters
    ----------
    x : float32 array of any shape (numpy or DLPack); infinities saturate
    grid : Grid
        Its scale has shape () per tensor, (channels,) per axis, or x's shape with the axis divided by block_size.
    threads : int or None

    Returns
    -------
    codes : array of x's shape and of dtype `grid.scheme.dtype`

    Raises
    ------
    InputError : NaN in x, or a grid that does not fit x.
    """
    native = native_scheme(grid.scheme, "quantize")
    array = as_float32(x, "x", "quantize")
    view = _View(array.shape, grid.scheme, "quantize")
    scale, zero_point = view.parameters(grid, "quantize")
    inside = view.enter(array)
    codes = view.empty(inside, grid.scheme.dtype)
    if not core.quantize(inside, view.layout, scale, zero_point, native, codes, thread_count(threads, "quantize")):
        raise not_finite(np.where(np.isnan(array), array, 0), "x", "quantize")
    return view.leave(codes)


def dequantize(codes: Any, grid: Grid, threads: int | None = None) -> FloatArray:
    """Real values: scale * (code - zero_point), float32. ONNX DequantizeLinear.

    `codes` has dtype `grid.scheme.dtype` and any shape that fits the grid. Raises InputError where either does not.
    """
    native_scheme(grid.scheme, "dequantize")
    array = as_codes(codes, grid.scheme.dtype, "codes", "dequantize")
    view = _View(array.shape, grid.scheme, "dequantize")
    scale, zero_point = view.parameters(grid, "dequantize")
    inside = view.enter(array)
    x = view.empty(inside, np.dtype(np.float32))
    core.dequantize(inside, view.layout, scale, zero_point, x, thread_count(threads, "dequantize"))
    return view.leave(x)


def fake_quantize(x: Any, grid: Grid, threads: int | None = None, out: FloatArray | None = None) -> FloatArray:
    """dequantize(quantize(x)), bit for bit, in one pass.

    `out`, if given, is a writable C-contiguous float32 array of x's shape, possibly x itself; it is returned. Per token
    each vector along the scheme's axis gets the grid of its own minimum and maximum, as `choose_grid` makes it.
    Raises InputError for NaN in x (per token infinity as well), a grid that does not fit x, or an `out` that does not.
    """
    native = native_scheme(grid.scheme, "fake_quantize")
    array = as_float32(x, "x", "fake_quantize")
    if grid.scheme.granularity == "token":
        return _per_token(array, grid.scheme, threads, out)
    view = _View(array.shape, grid.scheme, "fake_quantize")
    scale, zero_point = view.parameters(grid, "fake_quantize")
    count = thread_count(threads, "fake_quantize")
    result: FloatArray = np.empty(array.shape, np.float32) if out is None else check_out(out, array, "fake_quantize")
    inside = view.enter(array)
    into = result if view.moved is None else np.empty_like(inside)
    if not core.fake_quantize(inside, view.layout, scale, zero_point, native, into, count):
        raise refuse("fake_quantize", "x must not contain NaN", f"{int(np.isnan(array).sum()) or 'some'}")
    if view.moved is not None:
        result[...] = view.leave(into)
    return result


def _per_token(x: FloatArray, scheme: Scheme, threads: int | None, out: FloatArray | None) -> FloatArray:
    result: FloatArray = np.empty(x.shape, np.float32) if out is None else check_out(out, x, "fake_quantize")
    axis = axis_of(x.shape, scheme.axis, "fake_quantize")
    rows = np.ascontiguousarray(np.moveaxis(x, axis, -1)).reshape(-1, x.shape[axis])
    each = replace(scheme, granularity="axis", axis=0)
    rounded = fake_quantize(rows, choose_grid(*range_of(rows, each, threads), each), threads)
    moved = np.moveaxis(x, axis, -1).shape
    result[...] = np.moveaxis(rounded.reshape(moved), -1, axis)
    return result
