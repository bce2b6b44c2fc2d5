"""A network cut behind each level of its layers, so that what lies in front of a layer is computed once and kept."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

from leadline.graph.ir import Graph, Layer, Node


@dataclass(frozen=True)
class Segment:
    """Some nodes of a network as a network of their own.

    Attributes
    ----------
    layers : list of Layer
        The chosen layers in it. None reads another one's output, even through other nodes: all their inputs are made
        by earlier segments.
    graph : Graph
        Its inputs are the network's, or outputs of earlier segments; its outputs are what later segments read, and
        those of the network's outputs that it makes.
    """

    layers: list[Layer]
    graph: Graph


def segments(graph: Graph, layers: Sequence[Layer]) -> list[Segment]:
    """Cut a network at chosen layers. The first segment holds what comes before all of them, the i-th the layers that
    lie behind i - 1 others, and the nodes that follow up to the next ones. Weights are shared, not copied."""
    chosen = {layer.node.name: layer for layer in layers}
    level = {value.name: 0 for value in graph.inputs}
    parts: list[list[int]] = []
    for index, node in enumerate(graph.nodes):
        place = max((level.get(name, 0) for name in node.inputs), default=0) + (node.name in chosen)
        for name in node.outputs:
            level[name] = place
        while len(parts) <= place:
            parts.append([])
        parts[place].append(index)
    wanted = {value.name for value in graph.outputs}
    last = dict(level)
    for place, indices in enumerate(parts):
        for index in indices:
            for name in graph.nodes[index].inputs:
                if name in last:
                    last[name] = max(last[name], place)
    pieces = []
    for place, indices in enumerate(parts):
        nodes = [graph.nodes[index] for index in indices]
        later = {name for name, reader in last.items() if reader > place}
        part = _part(graph, nodes, wanted | later, f"{graph.name}.{place}")
        pieces.append(Segment([chosen[node.name] for node in nodes if node.name in chosen], part))
    return pieces


def behind(graph: Graph, tensor: str) -> Graph:
    """All that depends on a tensor, as a network of its own: that tensor is its first input; the others are what else
    it reads, and its outputs are those of the network that depend on the tensor. Weights are shared, not copied."""
    moved = {tensor}
    nodes = []
    for node in graph.nodes:
        if moved.intersection(node.inputs):
            nodes.append(node)
            moved.update(node.outputs)
    part = _part(graph, nodes, {value.name for value in graph.outputs}, f"{graph.name}.behind")
    part.inputs.sort(key=lambda value: value.name != tensor)
    return part


def _part(graph: Graph, nodes: list[Node], wanted: set[str], name: str) -> Graph:
    """Nodes of a network as one of their own, with those of their outputs that are wanted."""
    written = dict.fromkeys(name for node in nodes for name in node.outputs if name)
    read = dict.fromkeys(name for node in nodes for name in node.inputs if name)
    inputs = [graph.values[name] for name in read if name in graph.values and name not in written]
    return Graph(
        [*nodes],
        {name: graph.weights[name] for name in read if name in graph.weights},
        inputs,
        [graph.values[name] for name in written if name in wanted],
        {name: graph.values[name] for name in [*(value.name for value in inputs), *written]},
        name,
        graph.opset,
    )
