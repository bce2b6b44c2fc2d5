"""Operators that a target lacks, or gets wrong, in the words of those it has: the same function in float."""

from __future__ import annotations

from collections.abc import Callable, Collection, Sequence
from typing import Any

import numpy as np

from leadline.graph.edit import FLOAT, add_constant, add_value, share_constant
from leadline.graph.ir import Array, Graph, Node
from leadline.graph.operators import COMPARES, variant


class Speller:
    """Writes the nodes that take one node's place, each called after what it writes."""

    def __init__(self, graph: Graph, node: Node) -> None:
        self.graph, self.node, self.nodes = graph, node, list[Node]()

    def shape(self, tensor: str) -> tuple[int, ...]:
        return self.graph.shape(tensor)

    def constant(self, position: int) -> Array | None:
        """The value of one of the node's inputs; None where it is computed or left out."""
        name = self.node.inputs[position] if position < len(self.node.inputs) else ""
        return self.graph.weights.get(name)

    def put(self, kind: str, inputs: Sequence[str], shape: Sequence[int], **attrs: Any) -> str:
        """One more node, which writes float32 (a comparison: truth values); the name of what it writes."""
        dtype = np.dtype(bool) if kind in COMPARES else FLOAT
        written = add_value(self.graph, f"{self.node.outputs[0]}.{kind.lower()}", shape, dtype)
        self.nodes.append(Node(kind, list(inputs), [written], written, attrs))
        return written

    def store(self, what: str, array: Array) -> str:
        """A constant that only the new nodes read."""
        return add_constant(self.graph, f"{self.node.outputs[0]}.{what}", array)

    def scalar(self, value: float) -> str:
        """A float32 factor, addend or bound."""
        return share_constant(self.graph, f"scalar.{value:g}", np.asarray(value, np.float32))

    def ints(self, what: str, values: Sequence[int]) -> str:
        """A shape or a list of axes."""
        return share_constant(self.graph, f"{what}.{'x'.join(map(str, values))}", np.array(values, np.int64))

    def reshape(self, tensor: str, shape: Sequence[int]) -> str:
        """The tensor itself where it has that shape already."""
        if self.shape(tensor) == tuple(shape):
            return tensor
        return self.put("Reshape", [tensor, self.ints("shape", shape)], shape)

    def transpose(self, tensor: str, perm: Sequence[int]) -> str:
        if list(perm) == sorted(perm):
            return tensor
        return self.put("Transpose", [tensor], [self.shape(tensor)[axis] for axis in perm], perm=list(perm))


Spelling = Callable[[Speller], str | None]
"""What gives the tensor that takes the place of the node's first output; None leaves the node as it is."""


def spell(graph: Graph, kinds: Collection[str], spellings: dict[str, Spelling]) -> list[str]:
    """Spell every node of these kinds (`operators.variant`) in other operators, in place.

    Returns
    -------
    list of str
        One line for each node that was: ``<node>: <kind> as <operators>``.
    """
    lines: list[str] = []
    nodes: list[Node] = []
    for node in graph.nodes:
        kind = variant(graph, node)
        speller = Speller(graph, node)
        result = spellings[kind](speller) if kind in kinds and kind in spellings else None
        if result is None or any(node.outputs[1:]):
            nodes.append(node)
            continue
        _hand_over(graph, speller, result)
        nodes += speller.nodes
        words = ", ".join(dict.fromkeys(spelled.op_type for spelled in speller.nodes))
        lines.append(f"{node.name}: {kind} as {words}")
    graph.nodes = nodes
    graph.prune()
    return lines


def _hand_over(graph: Graph, speller: Speller, result: str) -> None:
    """The last node writes what the node that goes has written, and takes its name."""
    output, name = speller.node.outputs[0], speller.node.name
    last = next((spelled for spelled in speller.nodes if result in spelled.outputs), None)
    if last is None:
        last = Node("Identity", [result], [output], name)
        speller.nodes.append(last)
        return
    for spelled in speller.nodes:
        spelled.inputs = [output if tensor == result else tensor for tensor in spelled.inputs]
    last.outputs, last.name = [output], name
    del graph.values[result]
