"""LSTM, GRU and RNN with the sequence on the first axis, the only layout that runtimes have kernels for, and without
initial states of zeros, which are the default and hold a batch size."""

from __future__ import annotations

import numpy as np

from leadline.graph.edit import add_value, derived, share_constant
from leadline.graph.ir import Graph, Node
from leadline.graph.operators import RECURRENT

_STATES = (5, 6)
"""Inputs that hold initial states."""


def batch_second(graph: Graph) -> None:
    """Rewrite layout=1, (batch, sequence, features), as layout 0 between Transposes."""
    nodes: list[Node] = []
    for node in graph.nodes:
        if node.op_type in RECURRENT:
            _drop_zeros(graph, node)
        if node.op_type not in RECURRENT or node.attrs.pop("layout", 0) == 0:
            nodes.append(node)
            continue
        for index in (0, *_STATES):
            if index < len(node.inputs) and node.inputs[index]:
                node.inputs[index] = _turned(graph, nodes, node.inputs[index])
        nodes.append(node)
        for index, name in enumerate(node.outputs):
            if name:
                shape = graph.shape(name)
                # (batch, sequence, directions, features), and (batch, directions, features)
                inner, perm = ([1, 2, 0, 3], [2, 0, 1, 3]) if index == 0 else ([1, 0, 2], [1, 0, 2])
                dtype = graph.values[name].dtype
                node.outputs[index] = add_value(graph, derived(name, "turned"), [shape[i] for i in inner], dtype)
                nodes.append(Node("Transpose", [node.outputs[index]], [name], attrs={"perm": perm}))
    graph.nodes = nodes


def _drop_zeros(graph: Graph, node: Node) -> None:
    for index in _STATES:
        name = node.inputs[index] if index < len(node.inputs) else ""
        if name in graph.weights and not graph.weights[name].any():
            node.inputs[index] = ""
    while not node.inputs[-1]:
        node.inputs.pop()


def _turned(graph: Graph, nodes: list[Node], tensor: str) -> str:
    first, second, *rest = graph.shape(tensor)
    if tensor in graph.weights:
        return share_constant(
            graph, derived(tensor, "turned"), np.ascontiguousarray(graph.weights[tensor].swapaxes(0, 1))
        )
    dtype = graph.values[tensor].dtype
    output = add_value(graph, derived(tensor, "turned"), [second, first, *rest], dtype)
    nodes.append(Node("Transpose", [tensor], [output], attrs={"perm": [1, 0, 2]}))
    return output
