"""``.tflite``: the tensors and operators that an interpreter lists, told apart into a network and its quantisation."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterator
from pathlib import Path

from leadline.inspector.concat import Operator, starved
from leadline.inspector.inspection import Artefact, Inspection, count, grouped, suspicious, typed
from leadline.targets.litert import read as tflite_read
from leadline.targets.litert.read import Subgraph, Tensor, Tflite
from leadline.types import Grid

_FLOATS = frozenset({"float32", "float16", "bfloat16", "float64"})
_CARRIERS = frozenset({"QUANTIZE", "DEQUANTIZE"})


def read_tflite(file: Path) -> Artefact:
    """All subgraphs of a file; inputs and outputs are the first one's."""
    model = tflite_read.read(file)
    network = _Network(model)
    grids, codes = network.grids, network.codes
    kinds = {name: "parameter" if name in network.parameters else "activation" for name in grids}
    halves = Counter(
        f"parameter {tensor.dtype}"
        for name, tensor in network.parameters.items()
        if name not in grids and tensor.dtype in ("float16", "bfloat16")
    )
    every = network.parameters | network.activations
    floats, dynamic = network.operators_in_float()
    inspection = Inspection(
        file=file.name,
        kind="TFLite",
        bytes=model.bytes,
        tensors=len(every),
        quantized=len(grids),
        parameters=len(network.parameters),
        parameters_quantized=sum(name in grids for name in network.parameters),
        activations=len(network.activations),
        activations_quantized=sum(name in grids for name in network.activations),
        listed=sum(len(graph.tensors) for graph in model.subgraphs),
        weight_bytes=sum(map(_bytes, network.parameters.values())),
        weight_bytes_float=sum(4 * tensor.size for tensor in network.parameters.values()),
        grids=dict(sorted((count(grids, kinds) | halves).items())),
        uncovered=tuple(name for name in every if name not in grids),
        suspicious=suspicious(grids, codes) | dict(starved(network.operators, grids)),
        float_operators=floats,
        dynamic_operators=dynamic,
        inputs=_ports(model, model.main.inputs),
        outputs=_ports(model, model.main.outputs),
        facts={"description": model.description} if model.description else {},
    )
    return Artefact(inspection, grids, codes)


class _Network:
    """Tensors by name: those that only carry quantisation (a float twin of an integer tensor) are left out."""

    def __init__(self, model: Tflite) -> None:
        self.parameters: dict[str, Tensor] = {}
        self.activations: dict[str, Tensor] = {}
        self.grids: dict[str, Grid] = {}
        self.operators: list[Operator] = []
        self._tensors: dict[str, Tensor] = {}
        self._constants: set[str] = set()
        taken: Counter[str] = Counter()
        for graph in model.subgraphs:
            self._add(graph, taken)
        self.codes = {name: tensor.array for name, tensor in self.parameters.items() if name in self.grids}

    def _add(self, graph: Subgraph, taken: Counter[str]) -> None:
        names = [_unique(tensor.name or f"tensor_{tensor.index}", taken) for tensor in graph.tensors]
        twins = {index for operator in graph.operators for index in _float_twins(graph, operator)}
        used = {index for operator in graph.operators for index in (*operator.inputs, *operator.outputs)}
        used.update(graph.inputs, graph.outputs)
        # Scales of blocks are tensors of their own that no operator reads.
        for tensor, name in zip(graph.tensors, names, strict=True):
            self._tensors[name] = tensor
            if tensor.index not in used or tensor.index in twins:
                continue
            grid = tensor.grid
            if grid is None and tensor.dtype not in _FLOATS:
                continue
            (self.parameters if tensor.constant else self.activations)[name] = tensor
            if grid is not None:
                self.grids[name] = grid
        for operator in graph.operators:
            inputs = tuple(names[index] for index in operator.inputs if index != -1)
            outputs = tuple(names[index] for index in operator.outputs)
            self.operators.append(Operator(operator.type, outputs[0] if outputs else "", inputs, outputs))

    def operators_in_float(self) -> tuple[dict[str, tuple[str, ...]], dict[str, tuple[str, ...]]]:
        """(float operators, those of them that quantise their activations as they come)"""
        floats: list[tuple[str, str]] = []
        dynamic: list[tuple[str, str]] = []
        for operator in self.operators:
            if operator.type in _CARRIERS:
                continue
            tensors = {name: self._tensors[name] for name in (*operator.inputs, *operator.outputs)}
            if not any(tensor.dtype in _FLOATS for tensor in tensors.values()):
                continue
            hybrid = any(name in self.parameters and name in self.grids for name in operator.inputs)
            (dynamic if hybrid else floats).append((operator.type, operator.name))
        return grouped(floats), grouped(dynamic)


def _float_twins(graph: Subgraph, operator: tflite_read.Operator) -> Iterator[int]:
    """The float side of a QUANTIZE or DEQUANTIZE."""
    if operator.type in _CARRIERS:
        for index in (*operator.inputs, *operator.outputs):
            tensor = graph.tensors[index]
            if tensor.dtype in _FLOATS and not tensor.constant:
                yield index


def _unique(name: str, taken: Counter[str]) -> str:
    """Names need not be unique in a .tflite."""
    taken[name] += 1
    return name if taken[name] == 1 else f"{name}#{taken[name]}"


def _bytes(tensor: Tensor) -> int:
    """As stored, with scales (float32, or float16 for blocks) and zero points (int64, none for blocks)."""
    if tensor.scale is None:
        return tensor.stored
    return tensor.stored + tensor.scale.size * (2 if tensor.block_size else 12)


def _ports(model: Tflite, indices: tuple[int, ...]) -> dict[str, str]:
    tensors = [model.main.tensors[index] for index in indices]
    return {tensor.name: typed(tensor.dtype, tensor.shape) for tensor in tensors}
