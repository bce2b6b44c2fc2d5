"""The only place that makes names and adds constants, tensors and nodes to a Graph: nothing taken is overwritten."""

from __future__ import annotations

from collections.abc import Container, Sequence
from typing import Any

import numpy as np
from numpy.typing import NDArray

from leadline.graph.ir import Array, Graph, Node, Value

FLOAT = np.dtype(np.float32)


def new_name(graph: Graph, wanted: str) -> str:
    """`wanted`, or with a number behind it what no tensor and no node of the graph is called."""
    return free_name(wanted, _Names(graph))


class _Names:
    """Of all tensors and nodes of a graph and its tail: asked, not collected, since each new name asks."""

    def __init__(self, graph: Graph) -> None:
        self._graph = graph

    def __contains__(self, name: object) -> bool:
        graph = self._graph
        if name in graph.weights or name in graph.values or any(node.name == name for node in graph.nodes):
            return True
        return graph.tail is not None and name in graph.tail.names


def free_name(wanted: str, taken: Container[str]) -> str:
    """`wanted`, or with a number behind it what is not among the names taken."""
    name, number = wanted, 1
    while name in taken:
        name, number = f"{wanted}_{number}", number + 1
    return name


def derived(name: str, what: str) -> str:
    """Name of a tensor that a loading pass makes out of `name`; `names` finds the file's own name before the bar."""
    return f"{name}|{what}"


def add_constant(graph: Graph, wanted: str, array: Array) -> str:
    """A constant of the graph under a new name, which is returned."""
    name = new_name(graph, wanted)
    graph.weights[name] = array
    return name


def share_constant(graph: Graph, wanted: str, array: Array) -> str:
    """The same, unless a constant of that name has these very values: then that one serves."""
    name = free_name(wanted, _OtherNames(graph, array))
    graph.weights.setdefault(name, array)
    return name


class _OtherNames(_Names):
    """But for those of constants that have these very values."""

    def __init__(self, graph: Graph, array: Array) -> None:
        super().__init__(graph)
        self._array = array

    def __contains__(self, name: object) -> bool:
        constant = self._graph.weights.get(str(name))
        return super().__contains__(name) if constant is None else not _same(constant, self._array)


def _same(array: Array, other: Array) -> bool:
    return array is other or (array.dtype == other.dtype and np.array_equal(array, other))


def add_value(graph: Graph, wanted: str, shape: Sequence[int], dtype: np.dtype[Any] = FLOAT) -> str:
    """Room for what a new node writes, under a new name, which is returned."""
    name = new_name(graph, wanted)
    graph.values[name] = Value(name, np.dtype(dtype), tuple(shape))
    return name


def insert(graph: Graph, place: Node, *nodes: Node, behind: bool = False) -> None:
    """Put nodes before a node of the graph, or behind it."""
    index = next(i for i, node in enumerate(graph.nodes) if node is place) + behind
    graph.nodes[index:index] = nodes


def set_constant(graph: Graph, node: Node, index: int, role: str, value: NDArray[Any]) -> str:
    """Give a node another constant input, rounded to float32, in a tensor that only this node reads; its name. Without
    that input so far, it is appended, called after the node and the role."""
    name = own_constant(graph, node, index, role)
    graph.weights[name] = np.asarray(value, np.float32, order="C")
    return name


def own_constant(graph: Graph, node: Node, index: int, role: str) -> str:
    """The name of a node's constant input, made one that nothing else reads: a copy where others do. Where there is no
    such input yet, it is appended, without a value."""
    current = node.inputs[index] if index < len(node.inputs) else ""
    if current and not is_shared(graph, current):
        return current
    name = new_name(graph, f"{node.name}.{role}")
    node.inputs[index:] = [name, *node.inputs[index + 1 :]]
    if current:
        graph.weights[name] = graph.weights[current]
    return name


def own_biases(graph: Graph) -> None:
    """A bias that several nodes read gets a copy for each layer, so that each can be changed, and has a grid, alone."""
    readers = graph.readers()
    for layer in graph.layers():
        if layer.bias is not None and len(readers[layer.bias]) > 1:
            own_constant(graph, layer.node, 2, "bias")


def own_branches(graph: Graph) -> None:
    """A constant that several Where select from gets a copy for each, so that it can have the grid of its output."""
    for node in graph.nodes:
        for index, name in enumerate(node.inputs[1:] if node.op_type == "Where" else (), start=1):
            if name in graph.weights:
                own_constant(graph, node, index, "branch")


def is_shared(graph: Graph, constant: str) -> bool:
    """Whether a constant is read more than once, or is an output of the network itself."""
    reads = sum(node.inputs.count(constant) for node in graph.nodes)
    return reads > 1 or any(value.name == constant for value in graph.outputs)
