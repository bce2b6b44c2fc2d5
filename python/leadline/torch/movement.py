"""Nodes as builders of torch functions see them, and the operators that move data.

A builder reads a node's attributes and constant settings once and returns the function of the node's tensors.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from torch.nn import functional

from leadline.graph import Graph, Node
from leadline.torch.resizing import resize
from leadline.types import InputError, refuse

Function = Callable[..., Any]
"""Of a node's tensors (None where an input is left out) to its output, or a tuple of them."""


@dataclass(frozen=True)
class Site:
    """A node and the graph around it, as a builder sees them. `settings` are inputs that the function does not take."""

    graph: Graph
    node: Node
    settings: set[str]

    def attr(self, name: str, default: Any = None) -> Any:
        return self.node.attrs.get(name, default)

    def has(self, index: int) -> bool:
        return index < len(self.node.inputs) and self.node.inputs[index] != ""

    def setting(self, index: int, default: Any = None) -> Any:
        """The value of a constant input, as an array."""
        if not self.has(index):
            return default
        name = self.node.inputs[index]
        if name not in self.graph.weights:
            raise self.refused(f"input {index} must be constant", f"the activation '{name}'")
        self.settings.add(name)
        return self.graph.weights[name]

    def integers(self, index: int, key: str) -> list[int] | None:
        """A list of integers: an input since some opset, an attribute before it."""
        values = self.setting(index) if self.has(index) else self.attr(key)
        return None if values is None else [int(value) for value in np.atleast_1d(values)]

    @property
    def rank(self) -> int:
        return len(self.graph.shape(self.node.inputs[0]))

    @property
    def shape(self) -> tuple[int, ...]:
        return self.graph.shape(self.node.inputs[0])

    def refused(self, rule: str, received: object) -> InputError:
        return refuse("to_module", f"{self.node.op_type} '{self.node.name}': {rule}", received)


Builder = Callable[[Site], Function]


def _concat(site: Site) -> Function:
    axis = int(site.attr("axis", 0))
    return lambda *parts: torch.cat(parts, axis)


def _pad(site: Site) -> Function:
    mode = site.attr("mode", "constant")
    axes = [axis % site.rank for axis in site.integers(3, "axes") or range(site.rank)]
    pads = site.integers(1, "pads") or []
    pairs = dict.fromkeys(range(site.rank), (0, 0)) | {
        axis: (pads[i], pads[i + len(axes)]) for i, axis in enumerate(axes)
    }
    last = max((axis for axis in pairs if pairs[axis] != (0, 0)), default=site.rank - 1)
    first = min((axis for axis in pairs if pairs[axis] != (0, 0)), default=last)
    kinds = {"constant": "constant", "reflect": "reflect", "edge": "replicate"}
    if mode not in kinds:
        raise site.refused(f"mode must be one of {', '.join(kinds)}", repr(mode))
    if mode != "constant" and first < site.rank - 2:
        raise site.refused(f"mode {mode} must pad the last two axes only", pads)
    start = first if mode == "constant" else site.rank - 2
    flat = [amount for axis in range(site.rank - 1, start - 1, -1) for amount in pairs[axis]]
    value = site.setting(2, site.attr("value", 0.0))
    fill = float(np.reshape(value, ())) if mode == "constant" else 0.0
    return lambda x: functional.pad(x, flat, kinds[mode], fill)


def _reshape(site: Site) -> Function:
    site.setting(1)
    shape = site.graph.shape(site.node.outputs[0])
    return lambda x: x.reshape(shape)


def _to_shape(site: Site) -> Function:
    for index in range(1, len(site.node.inputs)):
        site.setting(index)
    shape = site.graph.shape(site.node.outputs[0])
    return lambda x: x.reshape(shape)


def _expand(site: Site) -> Function:
    site.setting(1)
    shape = site.graph.shape(site.node.outputs[0])
    return lambda x: x.expand(shape)


def _tile(site: Site) -> Function:
    repeats = site.integers(1, "repeats") or []
    return lambda x: x.repeat(repeats)


def _transpose(site: Site) -> Function:
    order = [int(axis) for axis in site.attr("perm", range(site.rank)[::-1])]
    return lambda x: x.permute(order)


def _slice(site: Site) -> Function:
    starts, ends = site.integers(1, "starts") or [], site.integers(2, "ends") or []
    axes = site.integers(3, "axes") or list(range(len(starts)))
    steps = site.integers(4, "steps") or [1] * len(starts)
    if min(steps, default=1) < 1:
        raise site.refused("steps must be positive", steps)
    index = [slice(None)] * site.rank
    for start, end, axis, step in zip(starts, ends, axes, steps, strict=True):
        index[axis] = slice(*slice(start, end, step).indices(site.shape[axis]))
    cut = tuple(index)
    return lambda x: x[cut]


def _split(site: Site) -> Function:
    axis = int(site.attr("axis", 0))
    site.setting(1)
    sizes = [site.graph.shape(name)[axis] for name in site.node.outputs]
    return lambda x: torch.split(x, sizes, axis)


def _gather(site: Site) -> Function:
    axis = int(site.attr("axis", 0)) % site.rank
    if site.node.inputs[1] not in site.graph.weights:
        if len(site.graph.shape(site.node.inputs[1])) != 1:
            raise site.refused("indices that are computed must have one axis", site.graph.shape(site.node.inputs[1]))
        return lambda x, indices: x.index_select(axis, indices)
    positions = np.asarray(site.setting(1), np.int64) % site.shape[axis]
    if positions.ndim == 0:
        position = int(positions)
        return lambda x: x.select(axis, position)
    indices, shape = torch.from_numpy(positions.reshape(-1)), site.graph.shape(site.node.outputs[0])
    if np.array_equal(np.diff(positions.reshape(-1)), np.ones(positions.size - 1)):
        start, count = int(positions.reshape(-1)[0]), positions.size
        return lambda x: x.narrow(axis, start, count).reshape(shape)
    return lambda x: x.index_select(axis, indices).reshape(shape)


def _depth_to_space(site: Site) -> Function:
    block, mode = int(site.attr("blocksize")), site.attr("mode", "DCR")
    n, c, h, w = site.shape
    if mode == "CRD":
        return lambda x: functional.pixel_shuffle(x, block)
    inner, outer = (n, block, block, c // block**2, h, w), (n, c // block**2, h * block, w * block)
    return lambda x: x.reshape(inner).permute(0, 3, 4, 1, 5, 2).reshape(outer)


def _space_to_depth(site: Site) -> Function:
    block = int(site.attr("blocksize"))
    n, c, h, w = site.shape
    inner, outer = (n, c, h // block, block, w // block, block), (n, c * block**2, h // block, w // block)
    return lambda x: x.reshape(inner).permute(0, 3, 5, 1, 2, 4).reshape(outer)


def _cast(site: Site) -> Function:
    dtype = getattr(torch, str(site.graph.values[site.node.outputs[0]].dtype))
    return lambda x: x.to(dtype)


def _resize(site: Site) -> Function:
    for index in (1, 2, 3):
        site.setting(index)
    try:
        return resize(site.node.attrs, site.shape, site.graph.shape(site.node.outputs[0]), _scales(site))
    except ValueError as error:
        raise site.refused("torch must have this interpolation", error) from error


def _scales(site: Site) -> Sequence[float] | None:
    scales = site.setting(2)
    return None if scales is None or scales.size == 0 else [float(scale) for scale in scales]


MOVES: dict[str, Builder] = {
    "Concat": _concat, "Pad": _pad, "Reshape": _reshape, "Flatten": _to_shape, "Squeeze": _to_shape,
    "Unsqueeze": _to_shape, "Expand": _expand, "Tile": _tile, "Transpose": _transpose, "Slice": _slice,
    "Split": _split, "Gather": _gather, "DepthToSpace": _depth_to_space, "SpaceToDepth": _space_to_depth,
    "Cast": _cast, "Resize": _resize,
}  # fmt: skip
"""Operators that move data, or copy and interpolate it."""
