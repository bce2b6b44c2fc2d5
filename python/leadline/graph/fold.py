"""Folding per-channel affine operators (BatchNormalization, LayerScale) into the layer before them."""

from __future__ import annotations

from typing import Any

import numpy as np
from numpy.typing import NDArray

from leadline.graph.ir import Graph, Node
from leadline.graph.simplify import drop, simplify

Doubles = NDArray[np.float64]
_LAYERS = {"Conv", "ConvTranspose", "Gemm"}


def fold(graph: Graph) -> list[str]:
    """See `Graph.fold`."""
    lines = []
    for layer in [node for node in graph.nodes if _is_layer(graph, node)]:
        while (found := _following(graph, layer)) is not None:
            node, scale, shift = found
            _apply(graph, layer, scale, shift)
            # The affine node goes: its first input is now its output.
            if node.inputs[0] not in graph.values:
                node.inputs.reverse()
            _remove(graph, node)
            lines.append(f"{node.op_type} {node.name} into {layer.name}")
    simplify(graph)
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
            if node.op_type == "Transpose" or axis != -1 or graph.shape(tensor)[-1] != channels:
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
    one, zero = np.ones(channels), np.zeros(channels)
    match node.op_type, first:
        case "Add", _:
            return one, values
        case "Sub", True:
            return one, -values
        case "Sub", False:
            return -one, values
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


def _apply(graph: Graph, layer: Node, scale: Doubles, shift: Doubles) -> None:
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
    own = [_own(graph, layer, index, role) for index, role in ((1, "weight"), (2, "bias"))]
    layer.inputs[1:] = own
    graph.weights[own[0]] = weight.astype(np.float32)
    graph.weights[own[1]] = (bias * scale + shift).astype(np.float32)


def _own(graph: Graph, layer: Node, index: int, role: str) -> str:
    """The input's name if nobody else reads it, else a new name."""
    if index < len(layer.inputs) and sum(node.inputs.count(layer.inputs[index]) for node in graph.nodes) == 1:
        return layer.inputs[index]
    name, number = f"{layer.name}.{role}", 1
    while name in graph.weights or name in graph.values:
        name, number = f"{layer.name}.{role}_{number}", number + 1
    return name
