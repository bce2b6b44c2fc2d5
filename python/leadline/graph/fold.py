"""Folding per-channel affine operators (BatchNormalization, LayerScale, constant Mul and Add) into layers.

Backward into the layer that writes their input, else forward into the layers that read their output.
"""

from __future__ import annotations

import math
from dataclasses import dataclass, field
from typing import Any

import numpy as np
from numpy.typing import NDArray

from leadline.graph.edit import add_constant, set_constant
from leadline.graph.ir import Graph, Node
from leadline.graph.operators import reshaped_axis
from leadline.graph.simplify import drop, simplify

Doubles = NDArray[np.float64]
_LAYERS = {"Conv", "ConvTranspose", "Gemm"}


def fold(graph: Graph) -> list[str]:
    """See `Graph.fold`."""
    lines: list[str] = []
    while True:
        folded = _backward(graph) + _forward(graph)
        simplify(graph)
        if not folded:
            return lines
        lines += folded


def _backward(graph: Graph) -> list[str]:
    """Fold into the layer before: weight * scale, bias * scale + shift."""
    lines = []
    for layer in [node for node in graph.nodes if _is_layer(graph, node)]:
        while (following := _following(graph, layer)) is not None:
            node, scale, shift = following
            _scale_outputs(graph, layer, scale, shift)
            # The affine node goes: its first input is now its output.
            if node.inputs[0] not in graph.values:
                node.inputs.reverse()
            _remove(graph, node)
            lines.append(f"{layer.name}: {node.op_type} {node.name}")
    return lines


def _forward(graph: Graph) -> list[str]:
    """Fold into the layers behind: weight * scale on the input channels, bias + weight . shift.

    A shift that meets zero padding stays, since the padding would have to be shifted too. The scale alone goes then:
    scale * x + shift = scale * (x + shift / scale). From the last node to the first, so that an Add is gone before the
    Mul in front of it is looked at.
    """
    lines = []
    for node in reversed(graph.nodes):
        affine = _affine_node(graph, node)
        if affine is None:
            continue
        tensor, axis, scale, shift = affine
        shifts, scales, what = bool(shift.any()), bool((scale != 1).any()), f"{node.op_type} {node.name}"
        if not shifts and not scales:
            continue
        if reach := _reach(graph, node.outputs[0], axis, scale, shifts):
            _scale_inputs(graph, reach, scale, shift)
            node.inputs = [tensor]
            _remove(graph, node)
        elif shifts and scales and scale.all() and (reach := _reach(graph, node.outputs[0], axis, scale, False)):
            _scale_inputs(graph, reach, scale, np.zeros_like(shift))
            name = add_constant(graph, f"{node.name}.shift", _along(axis, shift / scale).astype(np.float32))
            node.op_type, node.inputs, node.attrs = "Add", [tensor, name], {}
            what = f"scale of {what}"
        else:
            continue
        lines.append(f"{', '.join(layer.name for layer in reach.layers)}: {what}")
    return lines


def _remove(graph: Graph, node: Node) -> None:
    drop(graph, lambda other: other is node)


def _is_layer(graph: Graph, node: Node) -> bool:
    constant = [name in graph.weights for name in node.inputs[1:]]
    return node.op_type in _LAYERS and all(constant) and (node.op_type != "Gemm" or node.attrs.get("transB") == 1)


def _following(graph: Graph, layer: Node) -> tuple[Node, Doubles, Doubles] | None:
    """The affine node that alone reads the layer, behind Reshapes that keep its channel axis, and what it does."""
    tensor = layer.outputs[0]
    channels = _channels(graph, layer)
    # Counted from the end: -1 for Gemm. None where the channels are spread over several axes: scalars still fold.
    axis: int | None = 1 - len(graph.shape(tensor))
    ends = {value.name for value in graph.outputs}
    while tensor not in ends:
        readers = graph.consumers(tensor)
        if len(readers) != 1:
            return None
        node = readers[0]
        if node.op_type in ("Reshape", "Transpose"):
            tensor = node.outputs[0]
            if node.op_type == "Transpose" or axis != -1 or graph.shape(tensor)[-1:] != (channels,):
                axis = None
            continue
        if graph.shape(node.outputs[0]) != graph.shape(tensor):
            return None
        affine = _affine(graph, node, tensor, axis, channels)
        return None if affine is None else (node, *affine)
    return None


def _channels(graph: Graph, layer: Node) -> int:
    return graph.shape(layer.outputs[0])[1]


def _affine(graph: Graph, node: Node, tensor: str, axis: int | None, channels: int) -> tuple[Doubles, Doubles] | None:
    """(scale, shift) per channel such that the node is scale * x + shift."""
    rank = len(graph.shape(tensor))
    if node.op_type == "BatchNormalization":
        constants = [graph.weights.get(name) for name in node.inputs[1:]]
        if (
            axis != 1 - rank
            or node.inputs[0] != tensor
            or any(array is None for array in constants)
            or len(node.outputs) > 1
        ):
            return None
        gamma, beta, mean, variance = (np.asarray(array, np.float64) for array in constants)
        scale = gamma / np.sqrt(variance + node.attrs.get("epsilon", 1e-5))
        return scale, beta - mean * scale
    if node.op_type not in ("Add", "Sub", "Mul", "Div"):
        return None
    first = node.inputs[0] == tensor
    constant = graph.weights.get(node.inputs[1 if first else 0])
    if constant is None or (values := _per_channel(constant, rank, axis, channels)) is None:
        return None
    ones, zero = np.ones(channels), np.zeros(channels)
    match node.op_type, first:
        case "Add", _:
            return ones, values
        case "Sub", True:
            return ones, -values
        case "Sub", False:
            return -ones, values
        case "Mul", _:
            return values, zero
        case "Div", True if values.all():
            return 1 / values, zero
    return None


def _per_channel(constant: NDArray[Any], rank: int, axis: int | None, channels: int) -> Doubles | None:
    """The constant as (channels,) where it varies along the channel axis only."""
    shape = [1] * (rank - constant.ndim) + list(constant.shape)
    size = 1 if axis is None else shape[axis]
    if constant.size != size or size not in (1, channels):
        return None
    return np.broadcast_to(np.asarray(constant, np.float64).reshape(-1), (channels,))


def _scale_outputs(graph: Graph, layer: Node, scale: Doubles, shift: Doubles) -> None:
    """weight * scale and bias * scale + shift, in double, in tensors that only this layer reads."""
    weight = graph.weights[layer.inputs[1]].astype(np.float64)
    if layer.op_type == "ConvTranspose":
        # [in, out / groups, ...]: the inputs of one group come one after another
        groups = int(layer.attrs.get("group", 1))
        grouped = weight.reshape(groups, weight.shape[0] // groups, *weight.shape[1:])
        factors = scale.reshape(groups, 1, -1, *[1] * (weight.ndim - 2))
        weight = (grouped * factors).reshape(weight.shape)
    else:
        weight *= scale.reshape(-1, *[1] * (weight.ndim - 1))
    bias = graph.weights[layer.inputs[2]].astype(np.float64) if len(layer.inputs) > 2 else 0.0
    set_constant(graph, layer, 1, "weight", weight)
    set_constant(graph, layer, 2, "bias", bias * scale + shift)


def _affine_node(graph: Graph, node: Node) -> tuple[str, int, Doubles, Doubles] | None:
    """(x, axis, scale, shift) such that the node is scale * x + shift along the axis.

    The axis counts from the end; 0 stands for every axis, that is, for one scale and one shift.
    """
    activations = [name for name in node.inputs if name in graph.values]
    if len(activations) != 1 or graph.shape(activations[0]) != graph.shape(node.outputs[0]):
        return None
    shape = graph.shape(activations[0])
    for axis in range(0, -len(shape) - 1, -1):
        affine = _affine(graph, node, activations[0], axis or None, shape[axis] if axis else 1)
        if affine is not None:
            return activations[0], axis, *affine
    return None


@dataclass
class _Reach:
    """The layers that take a scale on their input channels, and what it divides on the way to them."""

    layers: list[Node] = field(default_factory=list)
    constants: list[tuple[Node, int, Doubles]] = field(default_factory=list)


def _reach(graph: Graph, start: str, axis: int, scale: Doubles, shifts: bool) -> _Reach | None:
    """Where scale * x + shift at tensor `start` can be moved to; None if anything but a layer needs it as it is."""
    reach, axes, queue = _Reach(), {start: axis}, [start]
    ends = {value.name for value in graph.outputs}
    for tensor in queue:
        if tensor in ends:
            return None
        for node in graph.consumers(tensor):
            if node.inputs.count(tensor) != 1:
                return None
            if _is_layer(graph, node):
                if axes[tensor] not in (0, 1 - len(graph.shape(tensor))) or (shifts and not _takes_shift(node)):
                    return None
                reach.layers.append(node)
                continue
            if node.op_type in ("Add", "Sub"):
                index = 1 - node.inputs.index(tensor)
                constant = graph.weights.get(node.inputs[index])
                if constant is None or shifts or not scale.all():
                    return None
                quotient = constant / _along(axes[tensor], scale)
                if np.abs(quotient).max(initial=0) > np.finfo(np.float32).max:
                    return None
                reach.constants.append((node, index, quotient))
            following, onward = node.outputs[0], _onward(graph, node, tensor, axes[tensor], scale, shifts)
            # A tensor met twice is the product of two scaled tensors.
            if onward is None or following in axes:
                return None
            axes[following] = onward
            queue.append(following)
    return reach if reach.layers else None


def _takes_shift(layer: Node) -> bool:
    """Every output sums over all taps: true without padding, and never at the border of a ConvTranspose."""
    return layer.op_type != "ConvTranspose" and not _is_padded(layer)


def _is_padded(node: Node) -> bool:
    return any(node.attrs.get("pads", ())) or node.attrs.get("auto_pad", "NOTSET").startswith("SAME")


def _onward(graph: Graph, node: Node, tensor: str, axis: int, scale: Doubles, shifts: bool) -> int | None:
    """The channel axis behind a node that leaves scale (and shift) as they are; None for any other node."""
    before, after = graph.shape(tensor), graph.shape(node.outputs[0])
    at = len(before) + axis
    match node.op_type:
        case _ if any(node.outputs[1:]):
            return None
        case "Reshape" if axis:
            place = reshaped_axis(before, after, at)
            return None if place is None else place - len(after)
        case "Transpose" if axis:
            perm: list[int] = node.attrs.get("perm", list(range(len(before)))[::-1])
            return perm.index(at) - len(after)
        case "Reshape" | "Transpose" | "GlobalAveragePool":
            return axis
        case "Slice" if not axis or (before[at] == after[axis] and not runs_backwards(graph, node, axis)):
            return axis
        case "MaxPool" | "GlobalMaxPool" if (scale > 0).all():
            return axis
        case "AveragePool" if not shifts or not (_is_padded(node) or node.attrs.get("ceil_mode", 0)):
            return axis
        case "Add" | "Sub" if before == after:
            return axis
        case "Mul" | "Div" if not shifts and (node.op_type == "Mul" or node.inputs[0] == tensor):
            return axis if not axis or after[axis] == before[axis] else None
    return None


def runs_backwards(graph: Graph, node: Node, axis: int) -> bool:
    """Whether a Slice turns an axis (counted from the end) around, which leaves its length what it is."""
    _, axes, steps = (graph.weights.get(name) for name in (*node.inputs[2:], "", "", "")[:3])
    if steps is None:
        return any(node.inputs[4:5])
    rank = len(graph.shape(node.inputs[0]))
    turned = (np.arange(steps.size) if axes is None else axes)[steps < 0]
    return bool((turned % rank == axis % rank).any())


def _along(axis: int, values: Doubles) -> Doubles:
    """Values along an axis counted from the end, ready to broadcast; a single value for axis 0."""
    return values.reshape(-1, *[1] * (-axis - 1)) if axis else values.reshape(())


def _scale_inputs(graph: Graph, reach: _Reach, scale: Doubles, shift: Doubles) -> None:
    """weight * scale and bias + weight . shift, in double, in tensors that only these nodes read."""
    for node, index, constant in reach.constants:
        set_constant(graph, node, index, "constant", constant)
    for layer in reach.layers:
        weight = graph.weights[layer.inputs[1]].astype(np.float64)
        groups, channels = int(layer.attrs.get("group", 1)), graph.shape(layer.inputs[0])[1]
        if shift.any():
            bias = graph.weights[layer.inputs[2]].astype(np.float64) if len(layer.inputs) > 2 else 0.0
            taps = weight.reshape(groups, -1, channels // groups, math.prod(weight.shape[2:])).sum(3)
            added = np.einsum("goi,gi->go", taps, np.broadcast_to(shift, channels).reshape(groups, -1))
            set_constant(graph, layer, 2, "bias", bias + added.reshape(-1))
        if (scale != 1).any():
            factors = np.broadcast_to(scale, channels)
            if layer.op_type == "ConvTranspose":
                weight *= factors.reshape(-1, *[1] * (weight.ndim - 1))
            else:
                grouped = weight.reshape(groups, -1, *weight.shape[1:])
                weight = (grouped * factors.reshape(groups, 1, -1, *[1] * (weight.ndim - 2))).reshape(weight.shape)
            set_constant(graph, layer, 1, "weight", weight)
