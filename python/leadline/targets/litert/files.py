"""A quantised ``.tflite`` beside the float one, and beside what was planned: sizes, operators in float, integers."""

from __future__ import annotations

import os
from collections import Counter
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path

import numpy as np

from leadline.targets.litert.kernels import Plan, to_int8
from leadline.targets.litert.read import Operator, Subgraph, Tensor, Tflite, read
from leadline.types import Grid

_CONVERSIONS = ("QUANTIZE", "DEQUANTIZE")

Source = str | os.PathLike[str] | bytes
"""A ``.tflite``: its path, or its bytes."""


@dataclass(frozen=True)
class Size:
    """What quantisation did to the file.

    Attributes
    ----------
    tensors, quantized : int
        Tensors of real values (weights and activations), and how many are integers with a grid. Biases count.
    bytes, bytes_float : int
    saved : float
        Percent that the file is smaller than the float one.
    float_operators : dict of operator type to int
        Operators that compute in float. With integer weights they are not: "dynamic" ones quantise as they go.
    """

    tensors: int
    quantized: int
    bytes: int
    bytes_float: int
    saved: float
    float_operators: Mapping[str, int]


def content_of(source: Source) -> bytes:
    if isinstance(source, bytes):
        return source
    read(source)  # says what is wrong with the file by its name
    return Path(source).read_bytes()


def compare(model: Tflite, plan: Plan) -> tuple[str, ...]:
    """Names of the tensors whose codes, scales or zero points in the file differ from the plan's."""
    differing = []
    for tensor in model.main.tensors:
        grid = tensor.grid
        if grid is None:
            continue
        if tensor.constant and tensor.name in plan.parameters:
            planned, codes = plan.parameters[tensor.name]
            if not (np.array_equal(tensor.array, codes) and np.array_equal(grid.scale.ravel(), planned.scale.ravel())):
                differing.append(tensor.name)
        elif not tensor.constant:
            known = plan.activations.get(tensor.name, plan.activations.get(tensor.name.removesuffix("_quantized")))
            if known is not None and not _same(grid, to_int8(tensor.name, known)):
                differing.append(tensor.name)
    return tuple(differing)


def _same(grid: Grid, other: Grid) -> bool:
    return np.array_equal(grid.scale, other.scale) and np.array_equal(grid.zero_point, other.zero_point)


def size_of(model: Tflite, reference: Tflite) -> Size:
    """Counts and bytes of a quantised file beside those of the float one."""
    tensors = [tensor for tensor in model.main.tensors if tensor.scale is not None or _is_real(tensor)]
    used = {index for operator in model.main.operators for index in (*operator.inputs, *operator.outputs)}
    tensors = [tensor for tensor in tensors if tensor.index in used]
    saved = 100 * (1 - model.bytes / reference.bytes)
    return Size(
        len(tensors),
        sum(tensor.scale is not None for tensor in tensors),
        model.bytes,
        reference.bytes,
        saved,
        float_operators(model.main),
    )


def float_operators(graph: Subgraph) -> dict[str, int]:
    """How many operators of each type compute in float, conversions left out; most first."""
    counts = Counter(
        operator.type
        for operator in graph.operators
        if operator.type not in _CONVERSIONS and _computes_in_float(operator, graph)
    )
    return dict(counts.most_common())


def _computes_in_float(operator: Operator, graph: Subgraph) -> bool:
    tensors = [graph.tensors[index] for index in (*operator.inputs, *operator.outputs) if index >= 0]
    return any(map(_is_real, tensors)) and not any(tensor.constant and tensor.scale is not None for tensor in tensors)


def _is_real(tensor: Tensor) -> bool:
    return tensor.dtype in ("float32", "float16", "bfloat16")
