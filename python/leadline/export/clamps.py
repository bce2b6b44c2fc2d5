"""Clamps beside grids: those that a QuantizeLinear behind them performs anyway, and those that keep zeros away."""

from __future__ import annotations

from collections.abc import Mapping

import numpy as np

from leadline.graph import Graph, Node
from leadline.graph.edit import set_constant
from leadline.graph.operators import clamp_bounds
from leadline.graph.relative import relative
from leadline.types import Grid


def lift_clamps(graph: Graph, grids: Mapping[str, Grid]) -> None:
    """Where something cannot take zero, raise the lower bound of a Clip to positive values to the lowest positive value
    of the grid on its output, if that grid would round the bound to zero; in place."""
    clips = [
        node
        for node in graph.nodes
        if node.op_type == "Clip"
        and node.outputs[0] in grids
        and (clamp_bounds(graph, node, node.outputs[0]) or (0,))[0] > 0
    ]
    sensitive = relative(graph) if clips else set()
    for node in clips:
        grid = grids[node.outputs[0]]
        if node.outputs[0] in sensitive and grid.scheme.granularity == "tensor":
            lowest, _ = clamp_bounds(graph, node, node.outputs[0]) or (grid.scale, grid.scale)
            if np.rint(lowest / grid.scale) < 1:
                set_constant(graph, node, 1, "lowest", grid.scale)


def drop_clamps(graph: Graph, grids: Mapping[str, Grid]) -> None:
    """Remove each Relu, Clip and Min that changes no code of the grid on its output, in place.

    That is a clamp whose bounds get the grid's lowest and highest code: whatever lies outside saturates there too.
    Its input must have no grid and no other reader and be no output of the graph. The node before it then writes the
    clamp's output, which is how a run of clamps goes one after the other.
    """
    producers, readers = graph.producers(), graph.readers()
    kept = {*grids, *(value.name for value in graph.outputs)}
    dropped: list[Node] = []
    for name, grid in grids.items():
        node = producers.get(name)
        while node is not None and _is_performed(graph, node, name, grid):
            source = next(tensor for tensor in node.inputs if tensor in graph.values)
            before = producers.get(source)
            if before is None or kept.intersection(node.inputs) or len(readers[source]) > 1:
                break
            before.outputs[before.outputs.index(source)] = name
            del graph.values[source]
            dropped.append(node)
            node = before
    graph.nodes = [node for node in graph.nodes if not any(node is other for other in dropped)]
    read = {tensor for node in graph.nodes for tensor in node.inputs}
    for tensor in {tensor for node in dropped for tensor in node.inputs} - read:
        graph.weights.pop(tensor, None)


def _is_performed(graph: Graph, node: Node, output: str, grid: Grid) -> bool:
    """Whether the node only clamps, and to bounds at or beyond the ends of the grid's codes."""
    kept = clamp_bounds(graph, node, output)
    if kept is None or grid.scheme.granularity == "token":  # whose ends are those of the data, clamped or not
        return False
    with np.errstate(over="ignore"):  # exporters write "no bound" as the largest float32
        lowest, highest = (np.rint(bound / grid.scale) + grid.zero_point for bound in kept)
    return bool((lowest <= grid.scheme.qmin).all() and (highest >= grid.scheme.qmax).all())
