"""What an artefact computes, for onnxruntime: parameters are the values of their codes."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from numpy.typing import NDArray

from leadline.affine import dequantize, fake_quantize
from leadline.export import qdq
from leadline.graph import Graph
from leadline.types import Grid


def simulated(graph: Graph, grids: Mapping[str, Grid], codes: Mapping[str, NDArray[Any]]) -> Graph:
    """What `qdq.to_qdq` writes of the same, computing the same; no session has to dequantise a weight in each run."""
    quantised = graph.copy()
    for name in grids.keys() & graph.weights.keys():
        quantised.weights[name] = (
            dequantize(codes[name], grids[name]) if name in codes else fake_quantize(graph.weights[name], grids[name])
        )
    return qdq.placed(quantised, {name: grid for name, grid in grids.items() if name not in graph.weights})
