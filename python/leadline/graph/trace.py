"""Where features of a tensor end up: indices carried through the nodes that only move data."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

from leadline.graph.evaluate import run_node
from leadline.graph.ir import Graph, Node
from leadline.graph.operators import BOUNDED, PICKS, moves_data

Ids = NDArray[np.int64]


@dataclass(frozen=True)
class Use:
    """What reads traced features.

    Attributes
    ----------
    node : Node or None
        The first node that does more than move them; None where they leave the network.
    index : int
        Which of its inputs they are.
    tensor : str
        The tensor that it reads.
    ids : int64 array of that tensor's shape
        Of each element: which feature it holds.
    """

    node: Node | None
    index: int
    tensor: str
    ids: Ids


def trace(graph: Graph, tensor: str, ids: Ids, factors: bool = False) -> list[Use]:
    """Every use of the features of `tensor`, `ids` of whose shape say which element belongs to which.

    With `factors` constant factors, one for the whole tensor, are passed through as well.
    """
    readers, ends = graph.readers(), {value.name for value in graph.outputs}
    uses: list[Use] = []
    queue = [(tensor, ids)]
    for name, held in queue:
        if name in ends:
            uses.append(Use(None, 0, name, held))
        for node in readers.get(name, ()):
            if moves(graph, node, factors) and node.inputs.count(name) == 1:
                queue += _moved(graph, node, held)
            else:
                uses += [Use(node, index, name, held) for index, read in enumerate(node.inputs) if read == name]
    return uses


def origin(graph: Graph, producers: dict[str, Node], tensor: str, factors: bool = False) -> tuple[str, Node | None]:
    """The tensor that `tensor` is made of by moving data alone, and the node that writes it."""
    while (node := producers.get(tensor)) is not None and moves(graph, node, factors):
        tensor = next(name for name in node.inputs if name in graph.values)
    return tensor, node


def moves(graph: Graph, node: Node, factors: bool = False) -> bool:
    """Whether the outputs hold nothing but elements of the one activation read (times a factor, if `factors`)."""
    activations = [i for i, name in enumerate(node.inputs) if name in graph.values]
    if node.op_type in ("Mul", "Div"):
        constants = [graph.weights[name] for name in node.inputs if name in graph.weights]
        whole = len(activations) == 1 and constants[0].size == 1
        return factors and whole and (node.op_type == "Mul" or activations == [0])
    return node.op_type in PICKS and activations == [0] and not node.domain


def features(ids: Ids, axis: int) -> Ids | None:
    """The feature at each index of `axis`; None where it is not the same at all other places."""
    rows = np.moveaxis(ids, axis, 0).reshape(ids.shape[axis], -1)
    return rows[:, 0].copy() if (rows == rows[:, :1]).all() else None


def _moved(graph: Graph, node: Node, ids: Ids) -> list[tuple[str, Ids]]:
    constants: list[NDArray[Any]] = [graph.weights[name] for name in node.inputs[1:] if name in graph.weights]
    axis, outputs = int(node.attrs.get("axis", 0)), node.outputs
    match node.op_type:
        case "Transpose":
            return [(outputs[0], ids.transpose(node.attrs.get("perm")))]
        case "Gather":
            return [(outputs[0], ids.take(constants[0], axis))]
        case "Slice":
            return [(outputs[0], ids[_slices(graph, node, ids.ndim)])]
        case "Split":
            ends = np.cumsum([graph.shape(name)[axis] for name in outputs])
            return list(zip(outputs, np.split(ids, ends[:-1], axis), strict=True))
        case "Mul" | "Div":
            return [(outputs[0], np.broadcast_to(ids, graph.shape(outputs[0])))]
    return [(outputs[0], ids.reshape(graph.shape(outputs[0])))]


def _slices(graph: Graph, node: Node, rank: int) -> tuple[slice, ...]:
    names = (*node.inputs[1:], "", "")[:4]
    starts, ends, axes, steps = ([int(v) for v in graph.weights[name]] if name else [] for name in names)
    slices = [slice(None)] * rank
    for i, axis in enumerate(axes or range(len(starts))):
        slices[axis] = slice(starts[i], ends[i], steps[i] if steps else 1)
    return tuple(slices)


def bounded(graph: Graph, tensor: str, axis: int) -> NDArray[np.bool_]:
    """Of each index of an axis: whether a bounded operator (a Sigmoid, a Softmax) gave all that it holds."""
    producers = {name: node for node in graph.nodes for name in node.outputs}
    known: dict[str, NDArray[Any]] = {}

    def held(name: str) -> NDArray[Any]:
        """Of each element, 1 or 0: the nodes that move data are run on it."""
        if name not in known:
            node = producers.get(name)
            if node is not None and (moves_data(node) or node.op_type == "Concat"):
                data = node.inputs if node.op_type == "Concat" else node.inputs[:1]
                feed = {read: held(read) if read in data else graph.weights[read] for read in node.inputs if read}
                known.update(run_node(node, feed, graph.opset, graph.name))
            else:
                known[name] = np.full(graph.shape(name), node is not None and node.op_type in BOUNDED, np.float32)
        return known[name]

    rows = np.moveaxis(held(tensor), axis, 0).reshape(graph.shape(tensor)[axis], -1)
    return np.asarray(rows.all(1))
