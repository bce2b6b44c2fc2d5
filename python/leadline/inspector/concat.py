"""Concats that put narrow and wide tensors on one grid, as detectors do with boxes and scores."""

from __future__ import annotations

import math
from collections.abc import Iterator, Mapping
from dataclasses import dataclass

from leadline.graph.operators import BOUNDED, MOVES_DATA
from leadline.types import Grid

CONCATS = frozenset({"Concat", "CONCATENATION", "PACK"})
_FEW = 16
"""Codes: below four bits a tensor hardly says more than which half of its range it is in."""
_BOUNDS = {
    **dict.fromkeys((*BOUNDED, "LOGISTIC", "SOFTMAX"), (0.0, 1.0)),
    **dict.fromkeys(("Tanh", "Sin", "Cos", "TANH", "SIN", "COS"), (-1.0, 1.0)),
    **dict.fromkeys(("Relu6", "RELU6"), (0.0, 6.0)),
}
_KEEPS_VALUES = MOVES_DATA | frozenset(
    "QuantizeLinear DequantizeLinear QUANTIZE DEQUANTIZE RESHAPE TRANSPOSE SQUEEZE EXPAND_DIMS SLICE "
    "STRIDED_SLICE SPLIT SPLIT_V GATHER TILE BROADCAST_TO MAX_POOL_2D DEPTH_TO_SPACE SPACE_TO_DEPTH".split()
)


@dataclass(frozen=True)
class Operator:
    """One operator of a network, with tensors by name: what the search for shared grids needs of it."""

    type: str
    name: str
    inputs: tuple[str, ...]
    outputs: tuple[str, ...]


def starved(operators: list[Operator], grids: Mapping[str, Grid]) -> Iterator[tuple[str, str]]:
    """(Concat, finding) for each whose output's grid leaves its narrowest input fewer than 16 codes.

    How far an input reaches is the narrowest of what is known about its values: the grids that they pass on their way
    through operators that move or requantise them, and the range of a Sigmoid, Softmax or Tanh that they come from.
    `grids` are by the names of `operators`: in a QDQ model the dequantised tensors'.
    """
    writers = {name: operator for operator in operators for name in operator.outputs}
    readers = {name: operator for operator in operators for name in operator.inputs}
    for concat in operators:
        if concat.type not in CONCATS or len(concat.inputs) < 2:
            continue
        grid = _behind(concat.outputs[0], readers, grids)
        if grid is None or grid.scheme.granularity != "tensor":
            continue
        step, codes = float(grid.scale), grid.scheme.qmax - grid.scheme.qmin + 1
        spans = {name: _span(name, writers, grids) for name in dict.fromkeys(concat.inputs)}
        name, (low, high) = min(spans.items(), key=lambda item: item[1][1] - item[1][0])
        if math.isinf(high - low):
            continue
        left = max(1, round((high - low) / step) + 1)
        if left < _FEW and left <= codes / 4:
            yield (
                concat.name,
                f"one grid for inputs of different ranges: '{name}' ({low:.4g} to {high:.4g}) keeps {left} of {codes} "
                f"codes, since the step is {step:.4g}",
            )


def _behind(tensor: str, readers: Mapping[str, Operator], grids: Mapping[str, Grid]) -> Grid | None:
    """The grid that a tensor has, or gets from the pair behind it."""
    for _ in range(3):
        if tensor in grids:
            return grids[tensor]
        reader = readers.get(tensor)
        if reader is None or reader.type not in ("QuantizeLinear", "DequantizeLinear", "QUANTIZE"):
            return None
        tensor = reader.outputs[0]
    return grids.get(tensor)


def _span(tensor: str, writers: Mapping[str, Operator], grids: Mapping[str, Grid]) -> tuple[float, float]:
    low, high = -math.inf, math.inf
    for _ in range(len(writers) + 1):
        grid = grids.get(tensor)
        if grid is not None and grid.scheme.granularity == "tensor":
            low, high = max(low, float(grid.lo)), min(high, float(grid.hi))
        writer = writers.get(tensor)
        if writer is None:
            break
        if writer.type in _BOUNDS:
            bounds = _BOUNDS[writer.type]
            return max(low, bounds[0]), min(high, bounds[1])
        if writer.type not in _KEEPS_VALUES:
            break
        tensor = writer.inputs[0]
    return low, high
