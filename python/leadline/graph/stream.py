"""Residual streams: the tensors of a transformer that share one space of features, and the layers at its borders.

Whatever is linear in the features and keeps their mean and length (LayerNorm without its gain, sums, moved data) stays
inside, constants rotated along; layers write into the stream and read from it. So one orthogonal matrix that fixes the
mean can be folded into those layers, and nothing else in the network notices.
"""

from __future__ import annotations

from dataclasses import dataclass, field

import numpy as np

from leadline.graph.edit import add_constant, add_value, insert
from leadline.graph.fold import fold, runs_backwards
from leadline.graph.ir import Array, Graph, Layer, Node
from leadline.graph.operators import PER_CHANNEL, PICKS, layer_axis, reshaped_axis


@dataclass
class Stream:
    """One space of features.

    Attributes
    ----------
    size : int
        Features.
    tensors : dict of name to int
        Its tensors, with the axis of the features, counted from the end (negative).
    writers, readers : list of Layer
        The layers whose outputs, or whose inputs, belong to it.
    constants : list of (Node, int, int)
        Constant operands in it: node, which input, and the axis of the features.
    """

    size: int
    tensors: dict[str, int] = field(default_factory=dict)
    writers: list[Layer] = field(default_factory=list)
    readers: list[Layer] = field(default_factory=list)
    constants: list[tuple[Node, int, int]] = field(default_factory=list)


class _Closed(Exception):
    """Something that is not linear in the features meets the stream."""


def strip_norms(graph: Graph) -> list[str]:
    """Move gain and offset of every LayerNormalization into the layers that read it, as far as that is exact.

    Returns the names of those that have no gain any more.
    """
    moved: list[tuple[Node, list[str], Array]] = []
    for node in [node for node in graph.nodes if node.op_type == "LayerNormalization"]:
        constants = [graph.weights.get(name) for name in node.inputs[1:] if name]
        ends = {value.name for value in graph.outputs}
        if any(array is None for array in constants) or any(node.outputs[1:]) or node.outputs[0] in ends:
            continue
        gain = graph.weights[node.inputs[1]]
        moved.append((node, _take_out(graph, node), gain))
    fold(graph)
    stripped = []
    for node, names, gain in moved:
        _put_back(graph, node, names, gain)
        if (graph.weights[node.inputs[1]] == 1).all():
            stripped.append(node.name)
    graph.prune()
    return stripped


def _take_out(graph: Graph, node: Node) -> list[str]:
    """Gain and offset as nodes of their own; what these write."""
    tensor, constants = node.outputs[0], [name for name in node.inputs[1:] if name]
    shape = graph.shape(tensor)
    names = [add_value(graph, f"{tensor}.{role}", shape) for role in ("gain", "offset")[: len(constants)]]
    for reader in graph.consumers(tensor):
        reader.inputs = [names[-1] if name == tensor else name for name in reader.inputs]
    parts = zip(("Mul", "Add"), (tensor, names[0]), constants, names, strict=False)
    insert(graph, node, *(Node(kind, [x, constant], [y], y) for kind, x, constant, y in parts), behind=True)
    parameters = graph.weights[constants[0]].shape
    node.inputs[1:] = [
        add_constant(graph, f"{tensor}.{role}", np.full(parameters, value, np.float32))
        for role, value in (("ones", 1), ("zeros", 0))
    ]
    return names


def _put_back(graph: Graph, node: Node, names: list[str], gain: Array) -> None:
    """Give the LayerNormalization back what could not be folded: both, or an offset to which the gain was fitted."""
    tensor = node.outputs[0]
    left = {n.outputs[0]: n for n in graph.nodes if n.outputs[0] in names}
    if names[0] in left:
        node.inputs[1] = add_constant(graph, f"{tensor}.scale", gain)
    if names[-1] in left and len(names) == 2:
        offset = graph.weights[left[names[-1]].inputs[1]]
        node.inputs[2] = add_constant(graph, f"{tensor}.shift", np.resize(offset, gain.shape))
    graph.nodes = [n for n in graph.nodes if n.outputs[0] not in left]
    for reader in graph.nodes:
        reader.inputs = [tensor if name in left else name for name in reader.inputs]


def find_streams(graph: Graph) -> tuple[list[Stream], list[tuple[str, str]]]:
    """The streams that reach at least one LayerNormalization, and those that have no clean border, with the reason."""
    walker = _Walker(graph)
    streams, refused = [], []
    seen: set[str] = set()
    for node in graph.nodes:
        if node.op_type != "LayerNormalization" or node.inputs[0] in seen:
            continue
        stream = Stream(graph.shape(node.inputs[0])[-1])
        try:
            walker.close(stream, node.inputs[0])
            streams.append(stream)
        except _Closed as reason:
            refused.append((node.name, str(reason)))
        seen.update(stream.tensors)
    return streams, refused


class _Walker:
    """Spreads over everything that has to be rotated together."""

    def __init__(self, graph: Graph) -> None:
        self._graph = graph
        self._producers, self._readers = graph.producers(), graph.readers()
        self._layers = {id(layer.node): layer for layer in graph.layers()}
        self._ends = {value.name for value in graph.outputs}

    def close(self, stream: Stream, start: str) -> None:
        queue = [(start, -1)]
        while queue:
            tensor, axis = queue.pop()
            if tensor in stream.tensors:
                if stream.tensors[tensor] != axis:
                    raise _Closed(f"two axes of {tensor} would have to be rotated")
                continue
            if self._graph.shape(tensor)[axis] != stream.size:
                raise _Closed(f"{tensor} does not hold {stream.size} features on one axis")
            stream.tensors[tensor] = axis
            if tensor in self._ends:
                raise _Closed(f"it reaches the network's output {tensor}")
            rank, producer = len(self._graph.shape(tensor)), self._producers.get(tensor)
            if producer is None:
                raise _Closed(f"it reaches the network's input {tensor}")
            layer = self._layers.get(id(producer))
            if layer is None:
                queue += self._through(stream, producer, tensor, axis)
            elif axis % rank != layer_axis(layer) % rank or not _is_plain(layer):
                raise _Closed(f"{layer.name} does not write it as its channels")
            else:
                stream.writers.append(layer)
            for node in self._readers.get(tensor, []):
                layer = self._layers.get(id(node))
                if layer is None:
                    queue += self._through(stream, node, tensor, axis)
                elif axis % rank != layer_axis(layer) % rank or not _is_plain(layer):
                    raise _Closed(f"{layer.name} does not read it as its channels")
                elif layer not in stream.readers:
                    stream.readers.append(layer)

    def _through(self, stream: Stream, node: Node, tensor: str, axis: int) -> list[tuple[str, int]]:
        """All activations that a node inside the stream joins to one of its own, with their axes of features."""
        graph, refusal = self._graph, _Closed(f"{node.op_type} {node.name} is not linear in its features")
        rank = len(graph.shape(tensor))
        match node.op_type:
            case "LayerNormalization":
                last = node.attrs.get("axis", -1) in (-1, rank - 1)
                if tensor in node.inputs[1:] or axis != -1 or not last or any(node.outputs[1:]):
                    raise refusal
                if not np.all(graph.weights.get(node.inputs[1], 0) == 1):
                    raise _Closed(f"the gain of {node.name} does not fold into the layers that read it")
                if len(node.inputs) > 2:
                    self._constant(stream, node, 2, -1)
                return [(node.inputs[0], -1), (node.outputs[0], -1)]
            case "Add" | "Sub" | "Concat":
                at = node.attrs.get("axis", 0)
                if node.op_type == "Concat" and (at - rank if at >= 0 else at) == axis:
                    raise _Closed(f"{node.name} joins it with other features")
                return self._operands(stream, node, axis)
            case "Mul" | "Div":
                constants = [name for name in node.inputs if name in graph.weights and graph.weights[name].size == 1]
                if not constants or (node.op_type == "Div" and node.inputs[1] != constants[0]):
                    raise refusal
                return [(name, axis) for name in (*node.inputs, *node.outputs) if name not in constants]
            case _ if (node.op_type in PICKS or node.op_type == "Expand") and tensor in (node.inputs[0], *node.outputs):
                return self._moved(node, tensor, axis)
            case _ if node.op_type in PER_CHANNEL and axis == 1 - rank and rank > 2:
                return [(node.inputs[0], axis), (node.outputs[0], axis)]
        raise refusal

    def _constant(self, stream: Stream, node: Node, index: int, axis: int) -> None:
        if node.inputs[index] not in self._graph.weights:
            raise _Closed(f"{node.inputs[index]} is no constant")
        if not any(entry[0] is node and entry[1] == index for entry in stream.constants):
            stream.constants.append((node, index, axis))

    def _operands(self, stream: Stream, node: Node, axis: int) -> list[tuple[str, int]]:
        """Operands broadcast along the features are multiples of the vector of ones, which stays what it is."""
        graph, joined = self._graph, [(node.outputs[0], axis)]
        for index, name in enumerate(node.inputs):
            shape = graph.shape(name)
            wide = len(shape) >= -axis and shape[axis] == stream.size
            if name in graph.weights:
                if wide:
                    self._constant(stream, node, index, axis)
            elif wide:
                joined.append((name, axis))
            elif len(shape) >= -axis and shape[axis] != 1:
                raise _Closed(f"{node.name} adds something of another shape")
        return joined

    def _moved(self, node: Node, tensor: str, axis: int) -> list[tuple[str, int]]:
        """The other end of moved data, and the axis that holds the features there."""
        forward = tensor == node.inputs[0]
        joined = []
        for other in node.outputs if forward else node.inputs[:1]:
            before, after = self._graph.shape(tensor), self._graph.shape(other)
            place = self._place(node, before, after, len(before) + axis, forward)
            if place is None or not 0 <= place < len(after) or after[place] != before[axis]:
                raise _Closed(f"{node.op_type} {node.name} moves its features")
            joined.append((other, place - len(after)))
        return joined

    def _place(self, node: Node, before: tuple[int, ...], after: tuple[int, ...], at: int, forward: bool) -> int | None:
        """Where axis `at` of one end lies at the other end of moved data, counted from the front."""
        match node.op_type:
            case "Slice" if runs_backwards(self._graph, node, at - len(before)):
                return None
            case "Transpose":
                order: list[int] = node.attrs.get("perm", list(range(len(before)))[::-1])
                return order.index(at) if forward else order[at]
            case "Reshape":
                return reshaped_axis(before, after, at)
            case "Gather":
                rank = len(self._graph.shape(node.inputs[1]))
                gathered = node.attrs.get("axis", 0) % len(before if forward else after)
                if at < gathered:
                    return at
                width = 1 if forward else rank
                return None if at < gathered + width else at + (rank - 1 if forward else 1 - rank)
        return at + len(after) - len(before)


def _is_plain(layer: Layer) -> bool:
    """Neither groups, nor an activation as its bias, nor an input with its channels first."""
    node = layer.node
    dynamic = layer.bias is None and any(node.inputs[2:])
    return not (node.op_type == "MatMul" or dynamic or layer.groups > 1 or node.attrs.get("transA", 0))
