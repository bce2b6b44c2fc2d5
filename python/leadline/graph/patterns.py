"""Recognising LayerNormalization however an exporter took it apart."""

from __future__ import annotations

from collections.abc import Iterator

import numpy as np

from leadline.graph.edit import derived, share_constant
from leadline.graph.ir import Graph, Node


class Wiring:
    """Who writes and who reads each tensor while a pass looks for patterns; nodes are replaced at the end."""

    def __init__(self, graph: Graph) -> None:
        self.graph = graph
        self.writers = graph.producers()
        self.readers = graph.readers()
        self.replaced: dict[str, list[Node]] = {}

    def writer(self, tensor: str, *op_types: str) -> Node | None:
        node = self.writers.get(tensor)
        return node if node is not None and node.op_type in op_types else None

    def scalar(self, tensor: str) -> float | None:
        array = self.graph.weights.get(tensor)
        return float(array.reshape(())) if array is not None and array.size == 1 else None

    def operand(self, node: Node, tensor: str) -> str:
        """The other input of a binary node."""
        return node.inputs[1] if node.inputs[0] == tensor else node.inputs[0]

    def only_reader(self, node: Node, op_type: str) -> Node | None:
        """The one reader of a node's output, if it is of that type with a constant beside it."""
        tensor = node.outputs[0]
        readers = self.readers.get(tensor, [])
        if len(readers) != 1 or readers[0].op_type != op_type or any(v.name == tensor for v in self.graph.outputs):
            return None
        return readers[0] if self.operand(readers[0], tensor) in self.graph.weights else None

    def replace(self, last: Node, *nodes: Node) -> None:
        """Put `nodes` where `last` stands; what only `last` needed is pruned."""
        self.replaced[last.outputs[0]] = list(nodes)

    def finish(self) -> None:
        graph = self.graph
        graph.nodes = [new for node in graph.nodes for new in self.replaced.get(node.outputs[0], [node])]
        graph.prune()


def layer_norms(graph: Graph) -> None:
    """(x - mean) / sqrt(variance + eps) * gamma + beta over the last axes, in any spelling, becomes one node."""
    wiring = Wiring(graph)
    for root in graph.nodes:
        if root.op_type in ("Sqrt", "Pow"):
            _layer_norm(wiring, root)
    wiring.finish()


def _layer_norm(wiring: Wiring, root: Node) -> None:
    power = 0.5 if root.op_type == "Sqrt" else wiring.scalar(root.inputs[1])
    shifted = wiring.writer(root.inputs[0], "Add")
    if power not in (0.5, -0.5) or shifted is None:
        return
    for variance, addend in (shifted.inputs, shifted.inputs[::-1]):
        epsilon, centred = wiring.scalar(addend), _centred(wiring, variance)
        if epsilon is not None and centred is not None:
            break
    else:
        return
    x, mean, axis = centred
    for last, scale, shift in _normalised(wiring, root, power, x, mean):
        gamma, beta = _affine(wiring, scale, x, axis, 1.0), _affine(wiring, shift, x, axis, 0.0)
        if gamma is None or beta is None or wiring.graph.shape(last.outputs[0]) != wiring.graph.shape(x):
            continue
        attrs = {"axis": axis, "epsilon": float(epsilon or 0.0)}
        wiring.replace(
            last,
            Node("LayerNormalization", [x, gamma, beta], [last.outputs[0]], beside(last, "LayerNormalization"), attrs),
        )
        return


def _centred(wiring: Wiring, variance: str) -> tuple[str, str, int] | None:
    """(x, mean, first axis) where `variance` is the mean of (x - mean)^2 over the last axes, and mean that of x."""
    outer = wiring.writer(variance, "ReduceMean")
    square = wiring.writer(outer.inputs[0], "Pow", "Mul") if outer else None
    if outer is None or square is None:
        return None
    if wiring.scalar(square.inputs[1]) != 2 if square.op_type == "Pow" else square.inputs[0] != square.inputs[1]:
        return None
    difference = wiring.writer(square.inputs[0], "Sub")
    inner = wiring.writer(difference.inputs[1], "ReduceMean") if difference else None
    if difference is None or inner is None or inner.inputs[0] != difference.inputs[0]:
        return None
    x = inner.inputs[0]
    rank = len(wiring.graph.shape(x))
    axes = _axes(wiring, inner, rank)
    if axes != _axes(wiring, outer, rank) or axes != list(range(rank - len(axes), rank)) or not axes:
        return None
    return x, inner.outputs[0], axes[0] - rank


def _axes(wiring: Wiring, node: Node, rank: int) -> list[int]:
    """Axes of a ReduceMean that keeps its dims, sorted; all of them where none are given."""
    if node.attrs.get("keepdims", 1) != 1 or (len(node.inputs) > 1 and node.inputs[1] not in wiring.graph.weights):
        return []
    axes = (
        wiring.graph.weights[node.inputs[1]].tolist() if len(node.inputs) > 1 else node.attrs.get("axes", range(rank))
    )
    return sorted(int(axis) % rank for axis in axes)


def _normalised(
    wiring: Wiring, root: Node, power: float, x: str, mean: str
) -> Iterator[tuple[Node, str | None, str | None]]:
    """(last node, gamma, beta) for each way the standard deviation is used, the longest match first."""
    inverses = [root.outputs[0]] if power < 0 else []
    for node in wiring.readers.get(root.outputs[0], []):
        if power > 0 and node.op_type == "Div" and node.inputs[1] == root.outputs[0]:
            if _is_difference(wiring, node.inputs[0], x, mean):
                yield from _with_affine(wiring, node, None)
            elif wiring.scalar(node.inputs[0]) == 1:
                inverses.append(node.outputs[0])
        elif power > 0 and node.op_type == "Reciprocal":
            inverses.append(node.outputs[0])
    for inverse in inverses:
        for node in wiring.readers.get(inverse, []):
            if node.op_type != "Mul":
                continue
            other = wiring.operand(node, inverse)
            if _is_difference(wiring, other, x, mean):
                yield from _with_affine(wiring, node, None)
            elif other in wiring.graph.weights:
                yield from _scaled_first(wiring, node, other, x, mean)


def _scaled_first(
    wiring: Wiring, scaled: Node, gamma: str, x: str, mean: str
) -> Iterator[tuple[Node, str | None, str | None]]:
    """k = gamma / std: (x - mean) * k + beta, or TensorFlow's x * k + (beta - mean * k)."""
    k = scaled.outputs[0]
    products = {wiring.operand(node, k): node for node in wiring.readers.get(k, []) if node.op_type == "Mul"}
    for other, node in products.items():
        if _is_difference(wiring, other, x, mean):
            yield from _with_affine(wiring, node, gamma)
    if x in products and mean in products:
        shifts = wiring.readers.get(products[mean].outputs[0], [])
        for shift in shifts:
            if shift.op_type == "Sub" and shift.inputs[1] == products[mean].outputs[0]:
                for last in wiring.readers.get(shift.outputs[0], []):
                    if last.op_type == "Add" and wiring.operand(last, shift.outputs[0]) == products[x].outputs[0]:
                        yield last, gamma, shift.inputs[0]


def _with_affine(wiring: Wiring, node: Node, gamma: str | None) -> Iterator[tuple[Node, str | None, str | None]]:
    """`node` writes the normalised tensor (times gamma, if given); follow a constant Mul and Add behind it."""
    scaled, beta = node, None
    if gamma is None and (following := wiring.only_reader(node, "Mul")) is not None:
        gamma, scaled = wiring.operand(following, node.outputs[0]), following
    if (last := wiring.only_reader(scaled, "Add")) is not None:
        beta = wiring.operand(last, scaled.outputs[0])
        yield last, gamma, beta
    yield scaled, gamma, None
    if scaled is not node:
        yield node, None, None


def _is_difference(wiring: Wiring, tensor: str, x: str, mean: str) -> bool:
    node = wiring.writer(tensor, "Sub")
    return node is not None and node.inputs == [x, mean]


def _affine(wiring: Wiring, name: str | None, x: str, axis: int, default: float) -> str | None:
    """Name of a constant of the normalised shape: the file's own, broadcast, or made of `default`."""
    graph = wiring.graph
    shape = graph.shape(x)[axis:]
    if name is None:
        wanted = derived("", f"{'ones' if default else 'zeros'}.{'x'.join(map(str, shape))}")
        return share_constant(graph, wanted, np.full(shape, default, np.float32))
    if name not in graph.weights:
        return None
    return fitted(graph, name, shape)


def fitted(graph: Graph, name: str, shape: tuple[int, ...]) -> str | None:
    """The constant `name` broadcast to exactly `shape`, a new constant if need be; None if it does not fit."""
    array = graph.weights[name]
    if array.shape == shape:
        return name
    while array.ndim > len(shape) and array.shape[0] == 1:
        array = array[0]
    try:
        array = np.broadcast_to(array, shape).copy()
    except ValueError:
        return None
    return share_constant(graph, derived(name, "x".join(map(str, shape))), array)


def beside(node: Node, op_type: str) -> str:
    """The name of a node of another type in the module of `node`."""
    path, bar, _ = node.name.rpartition("/")
    return f"{path}{bar}{op_type}" if path else ""
