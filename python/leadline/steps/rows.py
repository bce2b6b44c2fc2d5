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


def taps_apart(graph: Graph, layer: Layer) -> bool:
    """Whether each output pixel of a transposed convolution meets one of its taps, on one input pixel."""
    attrs, taps = layer.node.attrs, graph.shape(layer.weight)[2:]
    dense = set(attrs.get("dilations", ())) <= {1} and not any(attrs.get("pads", ()))
    return dense and tuple(attrs.get("strides", [1] * len(taps))) == taps


class Inputs:
    """How a layer reads its input.

    A linear layer reads rows. A convolution reads patches. A transposed convolution whose taps do not overlap reads
    pixels, group by group; any other is a convolution of its input with zeros between the pixels. A batch of matrices
    reads what belongs to each of them: that is a convolution with a group for each matrix, over a line of rows.
    """

    def __init__(self, graph: Graph, layer: Layer) -> None:
        self.layer, self._weight, self._apart = layer, graph.shape(layer.weight), taps_apart(graph, layer)
        self._batch: tuple[int, ...] = ()
        if layer.kind == "linear" and layer.groups > 1:
            self._batch = np.broadcast_shapes(graph.shape(layer.input)[:-2], self._weight[:-2])

    @property
    def key(self) -> Hashable:
        """Equal where two layers that read one tensor have the same moments."""
        kind, groups, attrs = self.layer.kind, self.layer.groups, self.layer.node.attrs
        if kind == "linear":
            return self._weight[:-2], self._batch
        if kind == "transpose" and self._apart:
            return "pixels", groups
        axes = (tuple(attrs.get(name, ())) for name in ("strides", "pads", "dilations"))
        return kind, self._weight[1:], groups, tuple(attrs.get("output_padding", ())), *axes

    def moments(self, paths: int = 1) -> Moments:
        """Empty ones; of `paths` inputs side by side."""
        layer, weight = self.layer, self._weight
        groups, attrs = layer.groups, layer.node.attrs
        if layer.kind == "linear" or (layer.kind == "transpose" and self._apart):
            features = weight[0] // groups if layer.kind == "transpose" else weight[-2 if layer.axis else -1]
            if groups == 1:
                return Gram(paths * features, layer.input)
            return ConvGram((1, paths * features, 1), groups=groups, name=layer.input)
        if layer.kind == "transpose":
            shape = (weight[1], paths * weight[0] // groups, *weight[2:])
            return ConvGram(shape, dilations=attrs.get("dilations", ()), groups=groups, name=layer.input)
        strides, pads, dilations = (attrs.get(name, ()) for name in ("strides", "pads", "dilations"))
        shape = (weight[0], paths * weight[1], *weight[2:])
        return ConvGram(shape, strides, pads, dilations, groups, layer.input)

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
        if layer.kind == "transpose" and not self._apart:
            return self._spread(x)
        if layer.kind == "transpose":
            pixels = np.moveaxis(x.reshape(*x.shape[:2], -1), 1, 0).reshape(x.shape[1], -1)
            return pixels.T if layer.groups == 1 else pixels[None]
        return x

    def _spread(self, x: Floats) -> Floats:
        """With zeros between the pixels, and around them, or cut off where the layer cuts its output off."""
        attrs, kernel = self.layer.node.attrs, self._weight[2:]
        axes = len(kernel)
        pads, more = attrs.get("pads", [0] * 2 * axes), attrs.get("output_padding", [0] * axes)
        wide: Floats = x
        for axis, k in enumerate(kernel):
            stride, reach = attrs.get("strides", [1] * axes)[axis], (k - 1) * attrs.get("dilations", [1] * axes)[axis]
            front, size = reach - pads[axis], x.shape[axis + 2]
            length = stride * (size - 1) + 1 + front + reach - pads[axis + axes] + more[axis]
            places = front + stride * np.arange(size)
            kept = (places >= 0) & (places < length)
            moved = np.moveaxis(wide, axis + 2, 0)
            line = np.zeros((length, *moved.shape[1:]), np.float32)
            line[places[kept]] = moved[kept]
            wide = np.moveaxis(line, 0, axis + 2)
        return wide

    def _for_each_matrix(self, x: Floats) -> Floats:
        """As (1, matrices x features, rows)."""
        x = np.atleast_2d(x)
        wide = np.broadcast_to(x, (*self._batch, *x.shape[-2:]))
        matrices = (*(1,) * (len(self._batch) + 2 - len(self._weight)), *self._weight[:-2])
        stacked = [axis for axis, size in enumerate(matrices) if size > 1]
        shared = [axis for axis, size in enumerate(matrices) if size == 1]
        last = len(self._batch)
        return wide.transpose(*stacked, last + 1, *shared, last).reshape(1, self.layer.groups * x.shape[-1], -1)


class Rows:
    """A layer's weight as (outputs of all groups, features of one), features as its moments count them; and back.

    Of a transposed convolution whose taps do not overlap each output has a row for each tap.
    """

    def __init__(self, graph: Graph, layer: Layer) -> None:
        shape = graph.shape(layer.weight)
        places, self._shape = np.arange(math.prod(shape)), shape
        self._order: NDArray[np.int64] | None = None
        if layer.kind == "transpose":  # [inputs of all groups, outputs of a group, taps]
            grouped = places.reshape(layer.groups, shape[0] // layer.groups, shape[1], -1)
            if taps_apart(graph, layer):
                ordered = grouped.transpose(0, 2, 3, 1).reshape(-1, grouped.shape[1])
            else:  # a convolution's kernel is the other way round
                ordered = grouped[..., ::-1].transpose(0, 2, 1, 3).reshape(layer.groups * shape[1], -1)
            self._order = np.ascontiguousarray(ordered)
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
