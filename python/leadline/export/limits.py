"""What no target carries, however the artefact is spelled."""

from __future__ import annotations

import math
from collections.abc import Mapping

from leadline.graph import DOMAIN, Graph
from leadline.rules import ONNXRUNTIME, Rules
from leadline.types import Grid

_OPERATORS = {
    "Rotate": "rotations at run time, {flops:.3g} million multiplications",
    "LogPolish": "tensors whose logarithm is quantised: look-up tables, or float operators, at run time",
}


def limits(graph: Graph, grids: Mapping[str, Grid], rules: Rules = ONNXRUNTIME) -> list[str]:
    """One line for each thing that makes an artefact a simulation: activations with a scale per channel or per token,
    which no integer kernel sums over, operators of leadline's own, and what the rules' target refuses. Empty:
    deployable."""
    lines = []
    activations = {name: grid.scheme.granularity for name, grid in grids.items() if name in graph.values}
    for granularity, what in (("axis", "channel"), ("token", "token")):
        names = [name for name, actual in activations.items() if actual == granularity]
        if names:
            lines.append(f"{len(names)} activations with a scale per {what}, such as {names[0]}")
    for op_type, text in _OPERATORS.items():
        nodes = [node for node in graph.nodes if node.op_type == op_type and node.domain == DOMAIN]
        if nodes:
            rows = (graph.shape(node.outputs[0]) + graph.shape(node.inputs[1])[-1:] for node in nodes)
            flops = sum(math.prod(shape) for shape in rows) / 1e6
            lines.append(f"{len(nodes)} {text.format(flops=flops)}")
    return lines + (_not_integers(graph, grids, rules) if rules.integers_only else [])


def _not_integers(graph: Graph, grids: Mapping[str, Grid], rules: Rules) -> list[str]:
    layers = {layer.weight: layer for layer in graph.layers()}
    refused = {
        "weights in blocks": [name for name in layers if name in grids and grids[name].scheme.granularity == "block"],
        "weights with zero points": [name for name in layers if name in grids and grids[name].zero_point.any()],
        "layers with float weights": [layer.name for name, layer in layers.items() if name not in grids],
        "layers with float inputs": [layer.name for layer in layers.values() if layer.input not in grids],
    }
    return [
        f"{len(names)} {what}, which {rules.name} does not take, such as {names[0]}"
        for what, names in refused.items()
        if names
    ]
