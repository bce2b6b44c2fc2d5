"""What is known of a file's tensors while its nodes are walked in order."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Any

import numpy as np

from leadline.graph.edit import derived, free_name
from leadline.graph.ir import Array, Node, Value
from leadline.graph.tail import DependsOnDataError
from leadline.types import InputError, refuse


@dataclass
class Known:
    """Activations by their fixed shapes, constants by their values, and the names taken. Rewrites ask and add here.

    Constants keep the file's types as long as they are computed with; activations of any float type are float32.
    """

    label: str
    """What messages call the file."""
    values: dict[str, Value]
    weights: dict[str, Array]
    taken: set[str]
    read: frozenset[str] = frozenset()
    """What nodes of the file read, and its outputs."""
    notes: list[str] = field(default_factory=list)

    def shape(self, tensor: str) -> tuple[int, ...]:
        return self.values[tensor].shape if tensor in self.values else tuple(self.weights[tensor].shape)

    def dtype(self, tensor: str) -> np.dtype[Any]:
        return self.values[tensor].dtype if tensor in self.values else self.weights[tensor].dtype

    def constant(self, value: Any) -> str:
        """The name of a new constant, one that says nothing: `names` calls it by its role."""
        name = self.fresh(f"const.{len(self.taken)}")
        self.weights[name] = np.asarray(value)
        return name

    def inner(self, node: Node, what: str) -> str:
        """A name for a tensor between the nodes that take the place of `node`."""
        return self.fresh(derived(first_output(node), what))

    def fresh(self, wanted: str) -> str:
        name = free_name(wanted, self.taken)
        self.taken.add(name)
        return name

    def refuse(self, rule: str, node: Node, more: str = "") -> InputError:
        """The error that a node breaks a rule; "{label}" in the rule is the file."""
        return refuse("Graph.load", rule.replace("{label}", f"'{self.label}'"), title(node) + more)

    def depends(self, rule: str, node: Node) -> DependsOnDataError:
        """The same of a node that leaves no fixed shape to what follows."""
        return DependsOnDataError(self.refuse(rule, node), first_output(node))


def first_output(node: Node) -> str:
    return next(filter(None, node.outputs), node.name)


def title(node: Node) -> str:
    """A node as messages call it."""
    kind = f"{node.domain}.{node.op_type}" if node.domain else node.op_type
    return f"{kind} writing '{first_output(node)}'"
