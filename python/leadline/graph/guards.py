"""Guards against rows that are masked as a whole, whose Softmax is NaN: told from the masks themselves.

Exporters ask the scores or their Softmax (IsNaN, IsInf, Equal to -inf). On a grid nothing is infinite, so these
questions are answered from where infinities come from: constants, selections and inputs.
"""

from __future__ import annotations

from typing import Any

import numpy as np
from numpy.typing import NDArray

from leadline.graph.edit import add_constant, add_value, derived, insert, set_constant, share_constant
from leadline.graph.evaluate import run_node
from leadline.graph.ir import Graph, Node
from leadline.graph.operators import moves_data

Truth = NDArray[np.bool_]


def softmax_guards(graph: Graph) -> None:
    """Answer every question whether a tensor is -inf, or its Softmax NaN; a guard that nothing can trigger goes."""
    sources = _Sources(graph)
    answered = False
    for node in list(graph.nodes):
        start = len(sources.nodes)
        answer = _answer(sources, node)
        if answer is None:
            continue
        answered = True
        place = next(i for i, other in enumerate(graph.nodes) if other is node)
        new = sources.nodes[start:]
        if isinstance(answer, str):
            new.append(Node("Identity", [answer], list(node.outputs), node.name))
        else:
            graph.weights[node.outputs[0]] = answer
            del graph.values[node.outputs[0]]
        graph.nodes[place : place + 1] = new
    if answered:
        _fold(graph)
        graph.prune()


def _answer(sources: _Sources, node: Node) -> str | Truth | None:
    """A tensor or constant of the question's own shape, or None for a node that asks nothing of the kind."""
    graph, producer = sources.graph, sources.producers.get(node.inputs[0] if node.inputs else "")
    if any(value.name in node.outputs for value in graph.outputs):
        return None
    if node.op_type == "IsNaN" and producer is not None and producer.op_type == "Softmax":
        scores, axis = producer.inputs[0], int(producer.attrs.get("axis", -1))
        below = sources.below(scores)
        if below is None:
            return np.zeros(graph.shape(node.outputs[0]), np.bool_)
        return sources.spread(sources.whole_rows(below, scores, axis), graph.shape(node.outputs[0]))
    infinite = node.op_type == "IsInf" and node.attrs.get("detect_positive", 1) == 0
    if node.op_type == "Equal" and node.inputs[1] in graph.weights:
        infinite = bool(np.isneginf(graph.weights[node.inputs[1]]).all())
    if not infinite or node.inputs[0] in {value.name for value in graph.inputs}:
        return None
    below = sources.below(node.inputs[0])
    return None if below is None else sources.spread(below, graph.shape(node.outputs[0]))


class _Sources:
    """Where -inf comes from. Computed tensors are taken as finite."""

    def __init__(self, graph: Graph) -> None:
        self.graph, self.producers = graph, graph.producers()
        self.nodes: list[Node] = []
        self._inputs = {value.name for value in graph.inputs}

    def below(self, tensor: str, mask: bool = False) -> str | Truth | None:
        """Which elements are -inf: a tensor, a constant, or None where none can be. An input may hold -inf where it is
        a mask: added to something, or selected from."""
        graph = self.graph
        if tensor in graph.weights:
            array = graph.weights[tensor]
            infinite = np.isneginf(array) if array.dtype == np.float32 else np.zeros((), np.bool_)
            return infinite if infinite.any() else None
        if tensor in self._inputs:
            mask = mask and graph.values[tensor].dtype == np.float32
            return self._add("IsInf", [tensor], graph.shape(tensor), detect_positive=0) if mask else None
        node = self.producers[tensor]
        if moves_data(node) and node.op_type != "MaxPool":
            moved = self.below(node.inputs[0], mask)
            if moved is None:
                return None
            name = self.named(self.spread(moved, graph.shape(node.inputs[0])))
            return self._add(node.op_type, [name, *node.inputs[1:]], graph.shape(tensor), **node.attrs)
        if node.op_type == "Add":
            return self._or(*(self.below(name, True) for name in node.inputs))
        if node.op_type == "Sub":
            right = graph.weights.get(node.inputs[1])
            above = None if right is None or not np.isposinf(right).any() else np.isposinf(right)
            return self._or(self.below(node.inputs[0], True), above)
        if node.op_type in ("Mul", "Div") and node.inputs[1] in graph.weights:
            return self.below(node.inputs[0], mask) if (graph.weights[node.inputs[1]] > 0).all() else None
        return self._selected(node) if node.op_type == "Where" else None

    def _selected(self, node: Node) -> str | Truth | None:
        yes, no = (self.below(name, True) for name in node.inputs[1:])
        condition = node.inputs[0]
        picked = None if yes is None else self._and(condition, yes)
        if no is None:
            return picked
        shape = self.graph.shape(condition)
        return self._or(picked, self._and(self._add("Not", [condition], shape), no))

    def whole_rows(self, below: str | Truth, scores: str, axis: int) -> str | Truth:
        """Whether all along the axis of the scores are -inf, with that axis kept."""
        shape = self.graph.shape(scores)
        if not isinstance(below, str):
            return np.asarray(np.broadcast_to(below, shape).all(axis=axis, keepdims=True))
        below_shape = self.graph.shape(below)
        place = axis % len(shape) - len(shape) + len(below_shape)
        if place < 0 or below_shape[place] == 1:
            return below
        reduced = (*below_shape[:place], 1, *below_shape[place + 1 :])
        counted = self._add("Cast", [below], below_shape, np.int32, to=6)
        axes = add_constant(self.graph, derived(below, "axes"), np.array([place], np.int64))
        least = self._add("ReduceMin", [counted, axes], reduced, np.int32, keepdims=1)
        return self._add("Cast", [least], reduced, to=9)

    def spread(self, truth: str | Truth, shape: tuple[int, ...]) -> str | Truth:
        """Broadcast to a shape."""
        if not isinstance(truth, str):
            return np.array(np.broadcast_to(truth, shape))
        if self.graph.shape(truth) == shape:
            return truth
        name = add_constant(self.graph, derived(truth, "shape"), np.array(shape, np.int64))
        return self._add("Expand", [truth, name], shape)

    def named(self, truth: str | Truth) -> str:
        return truth if isinstance(truth, str) else add_constant(self.graph, "masked", truth)

    def _or(self, left: str | Truth | None, right: str | Truth | None) -> str | Truth | None:
        if left is None or right is None:
            return right if left is None else left
        if not isinstance(left, str) and not isinstance(right, str):
            return np.logical_or(left, right)
        return self._binary("Or", left, right)

    def _and(self, condition: str, truth: str | Truth) -> str | Truth:
        if not isinstance(truth, str) and truth.all() and truth.ndim <= len(self.graph.shape(condition)):
            return condition
        return self._binary("And", condition, truth)

    def _binary(self, op_type: str, left: str | Truth, right: str | Truth) -> str:
        names = [self.named(left), self.named(right)]
        return self._add(op_type, names, np.broadcast_shapes(*map(self.graph.shape, names)))

    def _add(
        self, op_type: str, inputs: list[str], shape: tuple[int, ...], dtype: type[np.generic] = np.bool_, **attrs: Any
    ) -> str:
        output = add_value(self.graph, derived(inputs[0], op_type), shape, np.dtype(dtype))
        self.nodes.append(Node(op_type, inputs, [output], "", dict(attrs)))
        return output


RESOLVED = 2.0**14
"""Beyond it float32 has no digits left for the scores beside a mask: a row masked as a whole is even, or NaN."""


def whole_masks(graph: Graph) -> list[tuple[Node, str, int]]:
    """The sums in front of a Softmax that may mask a whole row: the Add, the mask, and the axis of its rows."""
    producers = graph.producers()
    scored = _computed(graph)
    masked = []
    for node in graph.nodes:
        added = producers.get(node.inputs[0]) if node.op_type == "Softmax" else None
        if added is None or added.op_type != "Add":
            continue
        masks = [name for name in added.inputs if name not in scored]
        shape, axis = graph.shape(added.outputs[0]), int(node.attrs.get("axis", -1))
        axis = axis - len(shape) if axis >= 0 else axis
        if len(masks) == 1 and len(graph.shape(masks[0])) >= -axis and graph.shape(masks[0])[axis] > 1:
            masked.append((added, masks[0], axis))
    return masked


def level(graph: Graph, added: Node, mask: str, axis: int) -> None:
    """Take the largest value of each row of a mask away from it, as far as float32 resolves the scores beside it: a
    Softmax does not see that, and rows that are masked as a whole keep their scores on a grid."""
    position = added.inputs.index(mask)
    if mask in graph.weights:
        array = graph.weights[mask]
        top = np.maximum(array.max(axis=axis, keepdims=True), -np.float32(RESOLVED))
        set_constant(graph, added, position, "level", array - top)
        return
    shape = list(graph.shape(mask))
    shape[axis] = 1
    axes = share_constant(graph, f"axes.{axis}", np.array([axis], np.int64))
    low = share_constant(graph, "resolved", np.array(-RESOLVED, np.float32))
    top, clipped = add_value(graph, f"{mask}.top", shape), add_value(graph, f"{mask}.offset", shape)
    levelled = added.inputs[position] = add_value(graph, f"{mask}.level", graph.shape(mask))
    insert(
        graph,
        added,
        Node("ReduceMax", [mask, axes], [top], top, {"keepdims": 1}),
        Node("Clip", [top, low], [clipped], clipped),
        Node("Sub", [mask, clipped], [levelled], levelled),
    )


def _computed(graph: Graph) -> set[str]:
    """What layers and products of activations make: no masks."""
    computed: set[str] = set()
    for node in graph.nodes:
        if node.op_type in ("Conv", "Gemm", "MatMul", "ConvTranspose") or not computed.isdisjoint(node.inputs):
            computed.update(node.outputs)
    return computed


def _fold(graph: Graph) -> None:
    """Evaluate what depends on constants alone, and drop selections whose condition is always one way."""
    kept, ends = [], {value.name for value in graph.outputs}
    for node in graph.nodes:
        constant = bool(node.inputs) and all(name in graph.weights for name in node.inputs if name)
        if constant and ends.isdisjoint(node.outputs):
            feed = {name: graph.weights[name] for name in node.inputs if name}
            graph.weights.update(run_node(node, feed, graph.opset, graph.name))
            for name in node.outputs:
                graph.values.pop(name, None)
            continue
        condition = graph.weights.get(node.inputs[0]) if node.op_type == "Where" else None
        if condition is not None and (condition.all() or not condition.any()):
            source = node.inputs[1 if condition.all() else 2]
            if source in graph.values and graph.shape(source) == graph.shape(node.outputs[0]):
                node = Node("Identity", [source], node.outputs, node.name)
        kept.append(node)
    graph.nodes = kept
