"""Activations of 16 bits among such of 8, for targets whose kernels mix no widths: they stay in float."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from numpy.typing import NDArray

from leadline.graph import Graph
from leadline.types import Grid

WIDEST = 8


def without_wide(
    graph: Graph, grids: Mapping[str, Grid], codes: Mapping[str, NDArray[Any]]
) -> tuple[dict[str, Grid], dict[str, NDArray[Any]], list[str]]:
    """Grids and codes without activations of more than 8 bits, and without the weights of the layers that read them;
    and those activations' names. All is left as it is where no activation has 8 bits: nothing would be in integers."""
    bits = {name: grids[name].scheme.bits for name in graph.values if name in grids}
    wide = {name for name, width in bits.items() if width > WIDEST}
    if len(wide) == len(bits):
        return dict(grids), dict(codes), []
    left = set(wide)
    for node in graph.nodes:  # constants that only meet wide activations, and parameters of layers over them
        if wide.intersection([*node.inputs, *node.outputs]):
            left.update(name for name in node.inputs if name in graph.weights and _is_left(graph, node.inputs, wide))
    kept = {name: grid for name, grid in grids.items() if name not in left}
    return kept, {name: array for name, array in codes.items() if name not in left}, sorted(wide)


def _is_left(graph: Graph, inputs: list[str], wide: set[str]) -> bool:
    return all(name in wide for name in inputs if name in graph.values)
