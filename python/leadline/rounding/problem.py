"""A weight as rows against the Gram of its inputs, and samples of a layer that a clip follows."""

from __future__ import annotations

import copy
import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

from leadline._native import core
from leadline.affine import quantize
from leadline.arrays import as_array, as_float32, as_moments, as_weight, axis_of
from leadline.types import FloatArray, Grid, refuse

Codes = NDArray[Any]
Doubles = NDArray[np.float64]

SWEEPS = 50
"""More than coordinate descent needs: a handful is usual."""

GPTQ_DAMPING = 0.01
"""The paper's."""


def lowest(candidates: Sequence[NDArray[np.int32]], errors: Sequence[Doubles]) -> NDArray[np.int32]:
    """The rows of least error; the first of equals."""
    best = np.argmin(errors, 0)
    rows: NDArray[np.int32] = np.stack(candidates)[best, np.arange(len(best))]
    return rows


@dataclass(frozen=True)
class Clipped:
    """Samples of a layer that a ReLU or Clip follows: errors that the activation cuts off then do not count.

    Attributes
    ----------
    inputs : float32 (samples, features), or (groups, samples, features)
        What the layer reads; features run as in a row of the weight. A thousand samples are plenty.
    outputs : float32 (samples, rows)
        What the float layer makes of them, bias included, before the activation.
    low, high : float
        The activation's ends. Default: ReLU's.
    """

    inputs: Any
    outputs: Any
    low: float = 0.0
    high: float = math.inf

    def check(self, rows: int, features: int, groups: int) -> tuple[FloatArray, FloatArray]:
        """The inputs as (groups, samples, features), and the outputs by rows."""
        inputs, outputs = (
            as_float32(v, f"clipped.{n}", "adaround") for n, v in (("inputs", self.inputs), ("outputs", self.outputs))
        )
        inputs = inputs if inputs.ndim == 3 else inputs[None]
        count = inputs.shape[1] if inputs.ndim == 3 else 0
        if inputs.shape != (groups, count, features) or not count:
            rule = f"clipped.inputs must be samples of {features} features for {groups} groups"
            raise refuse("adaround", rule, np.shape(self.inputs))
        if outputs.shape != (count, rows):
            raise refuse("adaround", f"clipped.outputs must be ({count}, {rows})", outputs.shape)
        if not (np.isfinite(inputs).all() and np.isfinite(outputs).all()):
            raise refuse("adaround", "clipped must be finite", "NaN or infinite values")
        if not self.low < self.high:
            raise refuse("adaround", "clipped.low must be below clipped.high", (self.low, self.high))
        return inputs, np.ascontiguousarray(outputs.T)


class Problem:
    """A weight as rows against its Gram, and codes on their way in and out.

    The rows are the output channels (axis 0), or, for a transposed convolution whose weight is (inputs, outputs,
    height, width), each output channel's taps.
    """

    def __init__(self, weight: Any, gram: Any, grid: Grid, transposed: bool, function: str) -> None:
        if not isinstance(grid, Grid):
            raise refuse(function, "grid must be a leadline.Grid", f"a {type(grid).__name__}")
        if grid.scheme.bits > 16:
            raise refuse(function, "the grid must have at most 16 bits", grid.scheme.bits)
        self.function, self.grid, self.transposed = function, grid, transposed
        array = as_weight(weight, function)
        self.shape = array.shape
        self.weight = self.rows(array)
        rows, features = self.weight.shape
        self.gram = as_moments(gram, rows, features, "gram", function)
        self.groups = len(self.gram)
        self.scale, self.zero_point = self._cells(grid.scale), self._cells(grid.zero_point)
        self.native = self._native()

    def _native(self) -> Any:
        scheme = self.grid.scheme
        return core.RoundingProblem(
            self.weight, self.gram, self.scale, self.zero_point,
            *self.weight.shape, self.groups, self.scale.shape[1], scheme.qmin, scheme.qmax,
        )  # fmt: skip

    def part(self, rows: NDArray[np.int64]) -> Problem:
        """Some of the rows, as many of each group."""
        part = copy.copy(self)
        part.weight, part.scale, part.zero_point = self.weight[rows], self.scale[rows], self.zero_point[rows]
        part.native = part._native()
        return part

    def rows(self, array: NDArray[Any]) -> NDArray[Any]:
        if self.transposed:
            return np.ascontiguousarray(np.moveaxis(array, 0, -1)).reshape(-1, array.shape[0])
        return np.ascontiguousarray(array).reshape(array.shape[0], -1)

    def back(self, rows: NDArray[Any]) -> NDArray[Any]:
        if self.transposed:
            moved = rows.reshape(*self.shape[1:], self.shape[0])
            return np.ascontiguousarray(np.moveaxis(moved, -1, 0))
        return rows.reshape(self.shape)

    def _cells(self, values: NDArray[Any]) -> NDArray[Any]:
        """A grid's scale or zero point as (rows, blocks)."""
        rows, features = self.weight.shape
        scheme = self.grid.scheme
        if scheme.granularity == "tensor":
            return np.full((rows, 1), values, values.dtype)
        axis = axis_of(self.shape, scheme.axis, self.function)
        channels = 1 if self.transposed else 0
        if scheme.granularity == "axis":
            if axis != channels:
                raise refuse(
                    self.function, f"a grid per axis must run along axis {channels}, the output channels", axis
                )
            return np.repeat(values, rows // self.shape[channels])[:, None].copy()
        if self.transposed or math.prod(self.shape[2:]) != 1 or axis != 1:
            raise refuse(self.function, "a grid in blocks must run along axis 1 of a linear weight", f"axis {axis}")
        blocks = np.ascontiguousarray(values).reshape(rows, -1)
        if blocks.shape[1] * (scheme.block_size or 1) != features:
            raise refuse(self.function, "the grid must fit the weight", f"{values.shape} for {self.shape}")
        return blocks

    def start(self, codes: Any, threads: int | None) -> NDArray[np.int32]:
        """Codes as int32 rows; the nearest ones where there are none."""
        if codes is None:
            whole = quantize(self.back(self.weight), self.grid, threads=threads)
        else:
            whole = np.asarray(codes)
            if whole.shape != self.shape or whole.dtype.kind not in "iu":
                raise refuse(
                    self.function, f"codes must be integers of shape {self.shape}", f"{whole.dtype} {whole.shape}"
                )
            scheme = self.grid.scheme
            if whole.min() < scheme.qmin or whole.max() > scheme.qmax:
                raise refuse(
                    self.function, f"codes must lie in {scheme.qmin}..{scheme.qmax}", f"{whole.min()}..{whole.max()}"
                )
        return np.ascontiguousarray(self.rows(whole), np.int32)

    def gptq(self, threads: int, damping: float = GPTQ_DAMPING, ordered: bool = True) -> NDArray[np.int32]:
        codes: NDArray[np.int32] = np.empty(self.weight.shape, np.int32)
        self.native.gptq(codes, damping, ordered, threads)
        return codes

    def descend(
        self,
        codes: NDArray[np.int32],
        threads: int,
        sweeps: int = SWEEPS,
        neighbours: bool = False,
        damping: float = 0.0,
    ) -> None:
        """In place."""
        self.native.descend(codes, sweeps, neighbours, damping, threads)

    def error(self, codes: NDArray[np.int32], threads: int) -> Doubles:
        out = np.empty(len(self.weight))
        self.native.error(codes, out, threads)
        return out

    def clipped_error(
        self, codes: NDArray[np.int32], inputs: FloatArray, outputs: FloatArray, clipped: Clipped
    ) -> Doubles:
        """The error of each row behind the activation, over samples as `Clipped.check` gives them."""
        grouped = self.difference(codes).reshape(self.groups, -1, self.weight.shape[1]).astype(np.float32)
        moved = (grouped @ inputs.transpose(0, 2, 1)).reshape(outputs.shape)
        error = np.clip(outputs + moved, clipped.low, clipped.high) - np.clip(outputs, clipped.low, clipped.high)
        return np.square(error, dtype=np.float64).mean(1)  # type: ignore[no-any-return]

    def spread(self) -> tuple[Doubles, Doubles]:
        """Scale and zero point of each weight."""
        width = self.weight.shape[1] // self.scale.shape[1]
        scale, zero_point = (np.repeat(v.astype(np.float64), width, 1) for v in (self.scale, self.zero_point))
        return scale, zero_point

    def difference(self, codes: NDArray[np.int32]) -> Doubles:
        """Dequantised weights less the wanted ones."""
        scale, zero_point = self.spread()
        return (codes - zero_point) * scale - self.weight  # type: ignore[no-any-return]

    def factor(self, fisher: Any) -> Doubles:
        """A Fisher factor as float64 (rows, rows)."""
        if self.groups > 1:
            raise refuse(self.function, "a Fisher factor needs a layer of one group", f"{self.groups} groups")
        array = np.ascontiguousarray(as_array(fisher, "fisher", self.function), np.float64)
        rows = len(self.weight)
        if array.shape != (rows, rows):
            raise refuse(self.function, f"fisher must be ({rows}, {rows}), for each pair of outputs", array.shape)
        if not (np.isfinite(array).all() and np.allclose(array, array.T, rtol=1e-5, atol=1e-6 * np.abs(array).max())):
            raise refuse(self.function, "fisher must be finite and symmetric", "other values")
        return array

    def coupled_error(self, codes: NDArray[np.int32], fisher: Doubles) -> float:
        """tr(F D G D^T), of a layer of one group."""
        difference = self.difference(codes)
        return float(np.sum((fisher @ (difference @ self.gram[0])) * difference))

    def best_rows(self, candidates: Sequence[NDArray[np.int32]], threads: int) -> NDArray[np.int32]:
        """Of several codes, row by row those of least error; the first of equals."""
        return lowest(candidates, [self.error(codes, threads) for codes in candidates])

    def beside(self, codes: NDArray[np.int32]) -> NDArray[np.int32]:
        """The nearer of the two codes beside each weight."""
        scheme, (scale, zero_point) = self.grid.scheme, self.spread()
        below = np.floor(self.weight / scale + zero_point)
        ends = (np.clip(end, scheme.qmin, scheme.qmax) for end in (below, below + 1))
        return np.clip(codes, *ends).astype(np.int32)

    def finish(self, codes: NDArray[np.int32]) -> Codes:
        return self.back(codes).astype(self.grid.scheme.dtype)
