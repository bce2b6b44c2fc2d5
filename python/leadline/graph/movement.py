"""Operators that only move data: which, and from where."""

from __future__ import annotations

from leadline.graph.ir import Graph

MOVES_DATA = frozenset(
    "Reshape Transpose Flatten Squeeze Unsqueeze Slice Split Gather Expand Tile Identity MaxPool DepthToSpace "
    "SpaceToDepth".split()
)
"""Operators whose outputs hold only values of their first input."""


def moved_from(graph: Graph) -> dict[str, str]:
    """What each tensor that data movement writes is made of: the tensor in front of the whole run of such operators."""
    sources: dict[str, str] = {}
    for node in graph.nodes:  # in topological order: an input's source is known before its outputs ask for it
        if node.op_type in MOVES_DATA and not node.domain and node.inputs[0] in graph.values:
            for output in filter(None, node.outputs):
                if graph.values[output].dtype == graph.values[node.inputs[0]].dtype:
                    sources[output] = sources.get(node.inputs[0], node.inputs[0])
    return sources
