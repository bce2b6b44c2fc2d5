"""Trained constants that belong to no layer: the matrices of recurrent operators, and tables that Gather looks entries
up in. They take integers as weights; what is computed from them does not change its form."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal

import numpy as np

from leadline.graph.ir import Graph, Node
from leadline.graph.operators import RECURRENT

LEAST_FEATURES = 8
"""Of an entry that is an embedding: shorter ones are coordinates and classes."""


@dataclass(frozen=True)
class Table:
    """A constant of that kind.

    Attributes
    ----------
    weight : str
        Name in ``Graph.weights``.
    name, op_type : str
        Of the first node that reads it.
    axis : int
        Along which each index deserves a scale of its own: the gates' rows of a recurrent matrix, the entries of an
        embedding.
    kind : {"recurrent", "embedding"}
    """

    weight: str
    name: str
    op_type: str
    axis: int
    kind: Literal["recurrent", "embedding"]


def tables(graph: Graph) -> list[Table]:
    """All of them, each once, in the order of the nodes. One that other operators read too is none."""
    by_weight: dict[str, Table] = {}
    readers = graph.readers()
    for node in graph.nodes:
        if node.op_type in RECURRENT:
            for weight in node.inputs[1:3]:
                if _is_only_read_by(graph, readers[weight], weight, node.op_type):
                    by_weight.setdefault(weight, Table(weight, node.name, node.op_type, 1, "recurrent"))
        elif node.op_type == "Gather" and node.inputs[1] in graph.values:
            weight = node.inputs[0]
            if _is_only_read_by(graph, readers[weight], weight, "Gather"):
                shape = graph.shape(weight)
                axis = int(node.attrs.get("axis", 0)) % len(shape)
                if len(shape) > 1 and np.prod(shape) // shape[axis] >= LEAST_FEATURES:
                    by_weight.setdefault(weight, Table(weight, node.name, node.op_type, axis, "embedding"))
    return list(by_weight.values())


def _is_only_read_by(graph: Graph, readers: list[Node], weight: str, op_type: str) -> bool:
    array = graph.weights.get(weight)
    if array is None or array.dtype != np.float32:
        return False
    return all(node.op_type == op_type for node in readers)
