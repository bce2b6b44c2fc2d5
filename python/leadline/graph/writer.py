"""Writing the nodes that take the place of one."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Any

import numpy as np

from leadline.graph.ir import OPSET, Array, Node
from leadline.graph.known import Known
from leadline.graph.patterns import beside

Steps = list[tuple[Node, int]]
"""Nodes, each with the opset in which it is written."""


@dataclass
class Writer:
    """Writes the nodes that take the place of `node`. Called with an operator and its inputs, names or arrays."""

    node: Node
    known: Known
    steps: Steps = field(default_factory=list)

    def __call__(self, op_type: str, *inputs: str | Array, to: str = "", opset: int = OPSET, **attrs: Any) -> str:
        """A node, and the name of what it writes: `to`, or a new one."""
        names = [name if isinstance(name, str) else self.known.constant(name) for name in inputs]
        to = to or self.known.inner(self.node, op_type)
        self.steps.append((Node(op_type, names, [to], beside(self.node, op_type), attrs), opset))
        return to

    def input(self, place: int) -> str:
        return self.node.inputs[place] if place < len(self.node.inputs) else ""

    def attr(self, name: str, default: Any) -> Any:
        return self.node.attrs.get(name, default)

    def output(self, place: int) -> str:
        return self.node.outputs[place] if place < len(self.node.outputs) else ""

    def is_read(self, name: str) -> bool:
        return name in self.known.read

    def split(self, op_type: str, tensor: str, count: int, **attrs: Any) -> list[str]:
        """A node with several outputs, and the names of what it writes."""
        names = [self.known.inner(self.node, f"{op_type}.{index}") for index in range(count)]
        self.steps.append((Node(op_type, [tensor], names, beside(self.node, op_type), attrs), OPSET))
        return names

    def shape(self, name: str) -> tuple[int, ...]:
        return self.known.shape(name)


def ints(*values: int) -> Array:
    return np.array(values, np.int64)


def real(value: float) -> Array:
    return np.array(value, np.float32)


Rule = Callable[[Writer], None]
