"""A layer as rows against features: its input as the core that sums moments takes it, its weight as those that round
take it."""

from __future__ import annotations

import math
from collections.abc import Hashable
from dataclasses import replace
from typing import Any

import numpy as np
from numpy.typing import NDArray

from leadline.gram import ConvGram, Gram
from leadline.graph import Graph, Layer
from leadline.types import Grid

Floats = NDArray[np.float32]
Moments = Gram | ConvGram


class Inputs:
    """How a layer reads its input.

    A linear layer reads rows. A convolution reads patches. A transposed convolution whose taps do not overlap reads
    pixels, group by group. A batch of matrices reads what belongs to each of them: that is a convolution with a group
    for each matrix, over a line of rows.
    """

    def __init__(self, graph: Graph, layer: Layer) -> None:
        self.layer, self._weight = layer, graph.shape(layer.weight)
        self._batch: tuple[int, ...] = ()
        if layer.kind == "linear" and layer.groups > 1:
            self._batch = np.broadcast_shapes(graph.shape(layer.input)[:-2], self._weight[:-2])

    @property
    def key(self) -> Hashable:
        """Equal where two layers that read one tensor have the same moments."""
        kind, groups, attrs = self.layer.kind, self.layer.groups, self.layer.node.attrs
        if kind == "linear":
            return self._weight[:-2], self._batch
        if kind == "transpose":
            return "pixels", groups
        axes = (tuple(attrs.get(name, ())) for name in ("strides", "pads", "dilations"))
        return self._weight[1:], groups, *axes

    def moments(self, paths: int = 1) -> Moments:
        """Empty ones; of `paths` inputs side by side."""
        layer, weight = self.layer, self._weight
        if layer.kind in ("linear", "transpose") and layer.groups == 1:
            features = weight[0] if layer.kind == "transpose" else weight[1 - layer.axis]
            return Gram(paths * features, layer.input)
        if layer.kind == "linear":
            return ConvGram((1, paths * weight[-2], 1), groups=layer.groups, name=layer.input)
        if layer.kind == "transpose":
            return ConvGram((1, paths * (weight[0] // layer.groups), 1), groups=layer.groups, name=layer.input)
        attrs = layer.node.attrs
        strides, pads, dilations = (attrs.get(name, ()) for name in ("strides", "pads", "dilations"))
        shape = (weight[0], paths * weight[1], *weight[2:])
        return ConvGram(shape, strides, pads, dilations, layer.groups, layer.input)

    def update(self, moments: Moments, paths: list[Floats], threads: int | None) -> None:
        """Add what the layer reads, of each path."""
        read = [self._read(x) for x in paths]
        if isinstance(moments, Gram):
            joined = read[0] if len(read) == 1 else np.concatenate(read, -1)
        else:  # side by side within each group
            parts = [x.reshape(x.shape[0], moments.groups, -1, *x.shape[2:]) for x in read]
            joined = np.concatenate(parts, 2).reshape(read[0].shape[0], -1, *read[0].shape[2:])
        moments.update(np.ascontiguousarray(joined, np.float32), threads=threads)

    def _read(self, x: Floats) -> Floats:
        layer = self.layer
        if layer.kind == "linear" and layer.groups == 1:
            return x.reshape(-1, x.shape[-1])
        if layer.kind == "linear":
            return self._for_each_matrix(x)
        if layer.kind == "transpose":
            pixels = np.moveaxis(x.reshape(*x.shape[:2], -1), 1, 0).reshape(x.shape[1], -1)
            return pixels.T if layer.groups == 1 else pixels[None]
        return x

    def _for_each_matrix(self, x: Floats) -> Floats:
        """As (1, matrices x features, rows)."""
        x = np.atleast_2d(x)
        wide = np.broadcast_to(x, (*self._batch, *x.shape[-2:]))
        matrices = (*(1,) * (len(self._batch) + 2 - len(self._weight)), *self._weight[:-2])
        own = [axis for axis, size in enumerate(matrices) if size > 1]
        shared = [axis for axis, size in enumerate(matrices) if size == 1]
        last = len(self._batch)
        return wide.transpose(*own, last + 1, *shared, last).reshape(1, self.layer.groups * x.shape[-1], -1)


class Rows:
    """A layer's weight as (outputs of all groups, features of one), features as its moments count them; and back.

    Of a transposed convolution each output has a row for each tap.
    """

    def __init__(self, graph: Graph, layer: Layer) -> None:
        shape = graph.shape(layer.weight)
        places, self._shape = np.arange(math.prod(shape)), shape
        self._order: NDArray[np.int64] | None = None
        if layer.kind == "transpose":  # [inputs of all groups, outputs of a group, taps]
            grouped = places.reshape(layer.groups, shape[0] // layer.groups, shape[1], -1).transpose(0, 2, 3, 1)
            self._order = np.ascontiguousarray(grouped.reshape(-1, grouped.shape[-1]))
        elif layer.axis > 0:  # [matrices, inputs, outputs]
            turned = places.reshape(-1, *shape[-2:]).swapaxes(1, 2)
            self._order = np.ascontiguousarray(turned.reshape(-1, shape[-2]))

    def __call__(self, values: NDArray[Any]) -> NDArray[Any]:
        return values.reshape(len(values), -1) if self._order is None else values.reshape(-1)[self._order]

    def back(self, rows: NDArray[Any]) -> NDArray[Any]:
        if self._order is None:
            return rows.reshape(self._shape)
        values = np.empty(self._order.size, rows.dtype)
        values[self._order] = rows
        return values.reshape(self._shape)

    def grid(self, grid: Grid) -> Grid:
        """The weight's grid, as that of its rows."""
        scheme = grid.scheme
        if scheme.granularity == "tensor" or self._order is None:
            return grid
        size, axis = (scheme.block_size or 1), scheme.axis or 0
        scale, zero_point = (self._spread(values, axis, size)[:, ::size] for values in (grid.scale, grid.zero_point))
        if scheme.granularity == "block":
            return Grid(scale, zero_point, replace(scheme, axis=1))
        return Grid(scale[:, 0].copy(), zero_point[:, 0].copy(), replace(scheme, axis=0))

    def _spread(self, values: NDArray[Any], axis: int, block: int) -> NDArray[Any]:
        """Scales (or zero points), one for each element of the weight, as rows."""
        if values.ndim == 1:
            values = values.reshape([-1 if i == axis else 1 for i in range(len(self._shape))])
        else:
            values = values.repeat(block, axis)
        return self(np.broadcast_to(values, self._shape))
