"""A Graph as a torch module that holds integers on leadline's grids, in the operators that XNNPACK recognises."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from functools import partial
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor, nn

from leadline.data import Samples
from leadline.data.samples import Item
from leadline.graph import Graph, Node, Value
from leadline.graph.tail import check_whole
from leadline.original import Original, Running
from leadline.torch.module import GraphModule
from leadline.types import Grid, refuse


def integer_module(graph: Graph, grids: Mapping[str, Grid], codes: Mapping[str, NDArray[Any]]) -> nn.Module:
    """The module that `export_grids` lowers. Raises InputError for a grid that XNNPACK has no type for, and for shapes
    that depend on the data."""
    check_whole(graph, "ExecuTorch", "export_grids")
    for name, grid in grids.items():
        scheme = grid.scheme
        if scheme.bits == 32:
            continue
        if scheme.bits > 8:
            raise refuse("export_grids", f"the grid of '{name}' must have at most 8 bits", scheme.bits)
        fits = scheme.granularity == "tensor" or (scheme.granularity in ("axis", "block") and name in graph.weights)
        if not fits:
            rule = f"the grid of '{name}' must be per tensor, or per channel or block of a weight"
            raise refuse("export_grids", rule, f"one per {scheme.granularity}")
        if scheme.granularity == "axis" and grid.zero_point.any():
            raise refuse("export_grids", f"scales per channel of '{name}' must have zero points of 0", "others")
    with torch.no_grad():
        module = _Integers(graph, grids, codes)
    return module.eval().requires_grad_(False)


def blocks(graph: Graph, grids: Mapping[str, Grid], codes: Mapping[str, NDArray[Any]]) -> list[str]:
    """The weights that travel as INT4 in blocks: of linear layers whose inputs stay float, in whole blocks of 32 and
    its multiples."""
    return [
        layer.weight
        for layer in graph.layers()
        if layer.weight in codes
        and grids[layer.weight].scheme.granularity == "block"
        and grids[layer.weight].scheme.bits <= 4
        and (grids[layer.weight].scheme.block_size or 1) % 32 == 0
        and layer.kind == "linear"
        and layer.axis == 0
        and layer.input not in grids
        and graph.weights[layer.weight].shape[1] % (grids[layer.weight].scheme.block_size or 1) == 0
    ]


def int4_weight(codes: NDArray[Any], scale: NDArray[np.float32], block_size: int) -> Tensor:
    """A linear layer's weight in INT4 blocks whose inputs are rounded to INT8 per token at run time. Its scales must be
    bfloat16 values, as XNNPACK stores them."""
    from torchao.quantization import IntxUnpackedToInt8Tensor

    carried: Tensor = IntxUnpackedToInt8Tensor(
        torch.from_numpy(np.array(codes, np.int8)),
        torch.from_numpy(np.array(scale)),
        torch.zeros(scale.shape, dtype=torch.int8),
        torch.int4,
        (1, block_size),
        torch.float32,
        "int8_asym_per_token",
    )
    return carried


def to_bfloat16(scale: NDArray[np.float32]) -> NDArray[np.float32]:
    """The nearest bfloat16 values."""
    import ml_dtypes

    return np.asarray(scale.astype(ml_dtypes.bfloat16).astype(np.float32))


class _Integers(GraphModule):
    """Quantised once behind its producer, dequantised anew for each reader: XNNPACK takes no pair that two share."""

    def _hold(self, name: str, array: NDArray[Any], codes: Mapping[str, NDArray[Any]]) -> None:
        super()._hold(name, array, codes)
        grid = self._grids.get(name)
        if grid is None or grid.scheme.bits == 32 or name not in codes:
            return
        if grid.scheme.granularity != "block" and name in _in_float(self._graph, self._grids):
            return
        attribute = self.names[name]
        if grid.scheme.granularity == "block":
            if name in blocks(self._graph, self._grids, codes):
                carried = int4_weight(codes[name], to_bfloat16(grid.scale), grid.scheme.block_size or 1)
                self.register_parameter(attribute, nn.Parameter(carried, requires_grad=False))
            return
        del self._parameters[attribute]
        shifted = np.asarray(codes[name].astype(np.int16) - _shift(grid)).astype(np.int8)
        self.register_buffer(attribute, torch.from_numpy(np.array(shifted)))
        if grid.scheme.granularity == "axis":
            self.register_buffer(f"{attribute}_scale", torch.from_numpy(grid.scale.copy()))
            self.register_buffer(f"{attribute}_zero_point", torch.zeros(grid.scale.size, dtype=torch.int64))

    def forward(self, *inputs: Tensor) -> Tensor | tuple[Tensor, ...]:
        values: dict[str, Tensor] = dict(self._fixed)
        for name, attribute in self.names.items():
            values[name] = getattr(self, attribute)
        for value, x in zip(self._graph.inputs, inputs, strict=True):
            values[value.name] = self._write(value.name, x)
        for node, call in zip(self._graph.nodes, self._calls, strict=True):
            read = [None if name is None else self._read(name, values[name]) for name in call.inputs]
            result = call.function(*(self._joined(node, read) if node.op_type == "Concat" else read))
            written = result if isinstance(result, (tuple, list)) else (result,)
            for name, tensor in zip(call.outputs, written, strict=True):
                values[name] = self._write(name, tensor)
        outputs = tuple(self._read(value.name, values[value.name]) for value in self._graph.outputs)
        return outputs if len(outputs) > 1 else outputs[0]

    def _joined(self, node: Node, read: list[Tensor | None]) -> list[Tensor | None]:
        """What Concat reads, on its output's grid: XNNPACK joins no other (a class token has its own)."""
        grid, operators = self._grids.get(node.outputs[0]), torch.ops.quantized_decomposed
        if grid is None:
            return read
        wanted = _arguments(grid)
        same = [name in self._grids and _arguments(self._grids[name]) == wanted for name in node.inputs]
        return [
            x
            if x is None or alike
            else operators.dequantize_per_tensor(operators.quantize_per_tensor(x, *wanted), *wanted)
            for x, alike in zip(read, same, strict=True)
        ]

    def _write(self, name: str, x: Tensor) -> Tensor:
        grid = self._grids.get(name)
        if grid is None:
            return x
        codes: Tensor = torch.ops.quantized_decomposed.quantize_per_tensor(x, *_arguments(grid))
        return codes

    def _read(self, name: str, x: Tensor) -> Tensor:
        if x.dtype != torch.int8:
            return x
        grid, operators = self._grids[name], torch.ops.quantized_decomposed
        if grid.scheme.granularity == "tensor":
            tensor: Tensor = operators.dequantize_per_tensor(x, *_arguments(grid))
            return tensor
        attribute = self.names[name]
        scale, zero_point = getattr(self, f"{attribute}_scale"), getattr(self, f"{attribute}_zero_point")
        channels: Tensor = operators.dequantize_per_channel(
            x, scale, zero_point, grid.scheme.axis, -127 if grid.scheme.narrow else -128, 127, torch.int8
        )
        return channels


def _in_float(graph: Graph, grids: Mapping[str, Grid]) -> set[str]:
    """Weights of layers whose output is not rounded at once, or behind a Relu. XNNPACK leaves those layers out, and the
    kernel that then dequantises per channel gave wrong values (ExecuTorch 1.5.1): float32 values of the codes instead.
    """
    readers = graph.readers()
    weights = set()
    for layer in graph.layers():
        behind = readers.get(layer.output, [])
        relu = len(behind) == 1 and behind[0].op_type == "Relu" and behind[0].outputs[0] in grids
        if layer.output not in grids and not relu:
            weights.add(layer.weight)
    return weights


def _shift(grid: Grid) -> int:
    """From unsigned codes to int8."""
    return 0 if grid.scheme.signed else 128


def _arguments(grid: Grid) -> tuple[float, int, int, int, torch.dtype]:
    low, high = grid.scheme.qmin - _shift(grid), grid.scheme.qmax - _shift(grid)
    return float(grid.scale), int(grid.zero_point) - _shift(grid), low, high, torch.int8


def called(module: nn.Module, feed: Mapping[str, NDArray[Any]]) -> list[NDArray[Any]]:
    """A module's outputs, in order."""
    with torch.no_grad():
        result = module(*map(torch.from_numpy, feed.values()))
    return [tensor.numpy() for tensor in (result if isinstance(result, (tuple, list)) else (result,))]


class FloatModule(Original):
    """A float torch module on what it is called with, which verification judges by.

    Raises InputError where there is no sample.
    """

    def __init__(self, module: nn.Module, samples: Iterable[Any]) -> None:
        calls = [sample if isinstance(sample, (tuple, list)) else (sample,) for sample in samples]
        if not calls:
            raise refuse("verify", "samples must hold at least one", "none")
        feeds = [{f"input {i}": tensor.numpy() for i, tensor in enumerate(call)} for call in calls]
        self._module = self.source = module
        self.name = type(module).__name__
        inputs = [Value(name, array.dtype, array.shape) for name, array in feeds[0].items()]
        outputs = [Value(name, array.dtype, array.shape) for name, array in self.run_once(feeds[0]).items()]
        self.graph = Graph([], {}, inputs, outputs, {value.name: value for value in (*inputs, *outputs)}, self.name)
        self.samples = Samples([Item(f"sample {i}", partial(dict, feed)) for i, feed in enumerate(feeds)])

    def __str__(self) -> str:
        return self.name

    def run_once(self, feed: Mapping[str, NDArray[Any]]) -> dict[str, NDArray[Any]]:
        """The outputs, by number."""
        return {f"output {i}": array for i, array in enumerate(called(self._module, feed))}

    def session(self, graph: Graph, threads: int | None = None, inner: bool = False) -> Any:
        return Running(self.run_once)
