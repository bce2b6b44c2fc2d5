"""Tensors whose relative error counts: what is divided by, and what a logarithm or a negative power reads.

On a grid with steps of one size small values become 0, and the result infinite or another order of magnitude.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator
from itertools import pairwise

import numpy as np

from leadline.graph.edit import add_constant, add_value, insert
from leadline.graph.ir import Graph, Node
from leadline.graph.operators import CLAMPS, ELEMENTWISE, REDUCES, moves_data

_KEEPS = CLAMPS | REDUCES | frozenset("Abs Neg LeakyRelu Max Sqrt Pow Concat Where Resize AveragePool".split())
"""Small values of the output come from small ones of the input, the clamps among them aside."""

_SMALL = 1e-2
"""What is shifted by more than this is small for other reasons than a small operand, unless that is an exponential,
whose values lie decades apart: steps of one size would be larger than the shift."""


def relative(graph: Graph) -> set[str]:
    """The activations between what makes small values and what cannot take their error, both ends included.

    Upstream from a divisor, or from what a logarithm reads, through clamps, constants, means and the like, to what a
    layer or another function gives; and downstream from a reciprocal to what it is multiplied with. Tensors that
    layers read are not among them, nor is what is normalised, if it is an input or a sum of two branches.
    """
    producers, readers = graph.producers(), graph.readers()
    layers = {layer.input for layer in graph.layers()}
    tensors: set[str] = set()
    for node in graph.nodes:
        divisor = _sensitive(graph, node)
        if divisor is None:
            continue
        tensors.update(_upstream(graph, producers, divisor))
        if node.op_type != "Log" and (node.op_type != "Div" or node.inputs[0] in graph.weights):
            tensors.update(_downstream(graph, readers, node.outputs[0]))
    return tensors - layers


def _sensitive(graph: Graph, node: Node) -> str | None:
    """The input of a node whose small values decide about its output; None where there is none."""
    if node.domain:
        return None
    position = {"Reciprocal": 0, "Log": 0, "Div": 1}.get(node.op_type)
    if node.op_type == "Pow" and node.inputs[1] in graph.weights and (graph.weights[node.inputs[1]] < 0).any():
        position = 0
    name = "" if position is None else node.inputs[position]
    return name if name in graph.values and graph.values[name].dtype == np.float32 else None


def _upstream(graph: Graph, producers: dict[str, Node], tensor: str) -> Iterator[str]:
    pending, seen = [(tensor, False)], set()
    while pending:
        name, reduced = pending.pop()
        if name in seen or name not in graph.values or graph.values[name].dtype != np.float32:
            continue
        seen.add(name)
        node = producers.get(name)
        operands = [] if node is None else [other for other in dict.fromkeys(node.inputs) if other in graph.values]
        if node is not None and _keeps(graph, producers, node, operands):
            pending += [(other, reduced or node.op_type in REDUCES) for other in operands]
        elif reduced and (node is None or (node.op_type in ELEMENTWISE and len(operands) > 1)):
            continue  # an input, or a residual stream, that is normalised
        yield name


def _keeps(graph: Graph, producers: dict[str, Node], node: Node, operands: list[str]) -> bool:
    """Whether small values of its output come from small ones of these operands."""
    if node.op_type not in ELEMENTWISE:
        return not node.domain and (moves_data(node) or node.op_type in _KEEPS)
    if len(operands) < 2:
        shifts = [
            graph.weights[name] for name in node.inputs if name in graph.weights and node.op_type in ("Add", "Sub")
        ]
        spread = any(other in producers and producers[other].op_type == "Exp" for other in operands)
        return spread or not any((np.abs(shift) > _SMALL).any() for shift in shifts)
    return node.op_type == "Sub" and (_is_mean(producers, *operands) or _is_mean(producers, *operands[::-1]))


def _is_mean(producers: dict[str, Node], tensor: str, mean: str) -> bool:
    """Whether one tensor is only reduced from the other, as the mean that is taken away from it."""
    while mean in producers and mean != tensor:
        node = producers[mean]
        if not (moves_data(node) or node.op_type in REDUCES):
            return False
        mean = node.inputs[0]
    return mean == tensor


def _downstream(graph: Graph, readers: dict[str, list[Node]], tensor: str) -> Iterator[str]:
    """What is only scaled, shifted or moved of a reciprocal."""
    pending = [tensor]
    while pending:
        name = pending.pop()
        yield name
        for node in readers.get(name, []):
            alone = node.op_type in ELEMENTWISE and sum(other in graph.values for other in node.inputs) == 1
            if not node.domain and (alone or moves_data(node) or node.op_type in CLAMPS):
                pending += [output for output in node.outputs if output]


def sensitive(graph: Graph) -> dict[str, list[str]]:
    """Of each node to whose result the small values of an input matter, by its name: that input, and what it alone is
    made of, up to a reduction."""
    producers, inputs = graph.producers(), dict[str, list[str]]()
    for node in graph.nodes:
        tensor = _sensitive(graph, node)
        while tensor is not None:
            inputs.setdefault(node.name, []).append(tensor)
            writer = producers.get(tensor)
            operands = [] if writer is None else [name for name in dict.fromkeys(writer.inputs) if name in graph.values]
            alone = writer is not None and len(operands) == 1 and writer.op_type not in REDUCES
            keeps = alone and writer is not None and _keeps(graph, producers, writer, operands)
            tensor = operands[0] if keeps else None
    return inputs


def keep_positive(graph: Graph) -> list[str]:
    """Put a Clip behind what is divided by, or read by a logarithm, and provably has a positive lower bound. In float
    that changes nothing; on a grid the exporter raises the bound to the lowest positive value. Returns their names.

    The Clip is of a flattened tensor, since kernels that clamp on their way out forget a lower bound above zero."""
    guarded, producers, bounds = [], graph.producers(), _lowest(graph)
    for node in list(graph.nodes):
        tensor = _sensitive(graph, node)
        if tensor is None or tensor not in producers or _is_clipped(producers, tensor):
            continue
        lowest = bounds.get(tensor, -np.inf)
        if lowest > 0:
            shape = graph.shape(tensor)
            flat = [math.prod(shape)]
            names = [add_value(graph, f"{tensor}.{what}", flat) for what in ("flat", "above")]
            clipped = add_value(graph, f"{tensor}.positive", shape)
            bound = add_constant(graph, f"{tensor}.lowest", np.array(lowest, np.float32))
            node.inputs = [clipped if name == tensor else name for name in node.inputs]
            chain = [tensor, *names, clipped]
            for kind, (read, written), more in zip(
                ("Reshape", "Clip", "Reshape"), pairwise(chain), (flat, None, shape), strict=True
            ):
                other = bound if more is None else add_constant(graph, f"{written}.shape", np.array(more, np.int64))
                insert(graph, node, Node(kind, [read, other], [written], written))
            guarded.append(tensor)
    return guarded


def _is_clipped(producers: dict[str, Node], tensor: str) -> bool:
    while tensor in producers and moves_data(producers[tensor]):
        tensor = producers[tensor].inputs[0]
    return tensor in producers and producers[tensor].op_type == "Clip"


_TINY = float(np.finfo(np.float32).tiny)
_POSITIVE = {"Exp", "Sigmoid", "Softmax", "Softplus"}
_NOT_NEGATIVE = {"Abs", "Relu", "ReduceL1", "ReduceL2", "ReduceSumSquare"}
_NO_LOWER = {"ReduceMean", "ReduceSum", "ReduceMax", "ReduceMin", "GlobalAveragePool", "GlobalMaxPool"}


def _lowest(graph: Graph) -> dict[str, float]:
    """Of each activation a bound that no value lies below, as far as operators tell; -inf where they do not."""
    known: dict[str, float] = {}

    def bound(name: str) -> float:
        return float(graph.weights[name].min(initial=np.inf)) if name in graph.weights else known.get(name, -np.inf)

    for node in graph.nodes:
        if not node.domain:
            known[node.outputs[0]] = _lowest_written(node, bound)
    return known


def _lowest_written(node: Node, bound: Callable[[str], float]) -> float:
    """Of a node's output, given those of its inputs."""
    inputs = [name for name in node.inputs if name]
    match node.op_type:
        case kind if kind in _POSITIVE:
            return _TINY
        case "Mul" if inputs[0] == inputs[1]:
            return 0.0
        case "Add":
            return bound(inputs[0]) + bound(inputs[1])
        case "Mul":
            least = [bound(name) for name in inputs]
            return least[0] * least[1] if min(least) >= 0 else -np.inf
        case "Sqrt":
            return float(np.sqrt(max(bound(inputs[0]), 0.0)))
        case "Clip" if len(node.inputs) > 1 and node.inputs[1]:
            return max(bound(inputs[0]), bound(node.inputs[1]))
        case kind if kind in _NO_LOWER or moves_data(node):
            return bound(inputs[0])
        case kind if kind in _NOT_NEGATIVE:
            return max(bound(inputs[0]), 0.0)
    return -np.inf
