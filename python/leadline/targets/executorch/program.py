"""ExecuTorch: a network as a ``.pte`` program for XNNPACK, in INT8 or INT4, and the program run in its own runtime.

Tried with ExecuTorch 1.5.1, torch 2.13 and torchao 0.18, on a CPU. The routes:

============================  ==========================================================  ======================
..                            what is quantised                                           whose integers
============================  ==========================================================  ======================
`export_grids`                what a run of leadline gave a grid: static INT8, and INT4   leadline's, grids too
                              blocks in linear layers, their inputs in INT8 per token
`export` with 4 bits          the same INT4 blocks, in a torch module's linear layers     leadline's, grids too
`export` with 8 bits          static INT8, XNNPACK's own annotation and torchao's ranges  torchao's
============================  ==========================================================  ======================

What cannot carry leadline's integers: the last route, whose observers find scales of their own; and INT4 convolutions,
which XNNPACK does not have. INT4 weights of a run without blocks stay one byte each. Weights of float layers that are
not in blocks travel as the float values of their codes: XNNPACK has no weight-only kernels. It stores the scales of
blocks as bfloat16, so they are rounded to that.
"""

from __future__ import annotations

import copy
import os
from collections import Counter
from collections.abc import Iterable, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import numpy as np
from numpy.typing import NDArray

from leadline import decide
from leadline.affine import quantize
from leadline.export.widths import without_wide
from leadline.files import replacing
from leadline.graph import Graph
from leadline.types import Grid, InputError, Scheme, refuse

if TYPE_CHECKING:
    from collections.abc import Iterator

    import torch
    from torch import nn

__all__ = ["Program", "export", "export_grids", "lower_grids", "simulation"]

_INSTALL = "pip install executorch==1.5.1"
_SHRUNK = (1.0, 0.95, 0.9, 0.85, 0.8, 0.75)
"""Shares of a block's largest weight that its range may end at."""


@dataclass(frozen=True)
class Program:
    """What was written. `bytes`: the file's size. `delegates`: programs handed to XNNPACK whole. `outside`: operators
    that ExecuTorch's own kernels run instead, and how many; `layers`: how many carry leadline's integers."""

    bytes: int
    delegates: int
    outside: dict[str, int]
    layers: int


def export_grids(
    graph: Graph, grids: Mapping[str, Grid], codes: Mapping[str, NDArray[Any]], path: str | os.PathLike[str]
) -> Program:
    """Write a run of leadline (the graph, grids and codes of a Quantized) as static INT8, or INT4 in blocks.

    Activations of uint8 become int8 with a zero point 128 lower, which changes no value; biases are the values of their
    codes. XNNPACK runs what it has integer kernels for, and the rest in float between the same roundings. Its sums are
    requantised in float32, so that outputs equal leadline's simulation, but for ties.

    Parameters
    ----------
    graph, grids, codes
        Activations per tensor, weights per tensor or per channel and symmetric, all of at most 8 bits; wider
        activations among such (a detector's last layers and all behind them) stay in float. Or, where the inputs of
        linear layers have no grids, their weights in 4 bits and blocks of 32 or its multiples.
    path : path
        The ``.pte`` file.

    Raises
    ------
    InputError
        A grid that XNNPACK has no type for, an operator that `leadline.torch.to_module` does not know, or ExecuTorch is
        not installed.
    """
    return _written(path, *lower_grids(graph, grids, codes))


def lower_grids(graph: Graph, grids: Mapping[str, Grid], codes: Mapping[str, NDArray[Any]]) -> tuple[bytes, Program]:
    """The same, not written."""
    check_installed("export_grids")
    import torch

    from leadline.targets.executorch.module import blocks, integer_module

    grids, codes = _carried(graph, grids, codes)
    module = integer_module(graph, grids, codes)
    example = tuple(torch.zeros(value.shape, dtype=getattr(torch, str(value.dtype))) for value in graph.inputs)
    dynamic = blocks(graph, grids, codes)
    static = [layer for layer in graph.layers() if layer.weight in codes and layer.input in grids]
    return _lower(module, example, len(static) + len(dynamic), dynamic=bool(dynamic))


def simulation(graph: Graph, grids: Mapping[str, Grid], codes: Mapping[str, NDArray[Any]]) -> nn.Module:
    """What a program of `export_grids` should compute, as a torch module: roundings included, those at run time too.

    Raises InputError as `export_grids` does.
    """
    check_installed("simulation")
    from leadline.targets.executorch.module import integer_module

    return integer_module(graph, *_carried(graph, grids, codes))


def _carried(
    graph: Graph, grids: Mapping[str, Grid], codes: Mapping[str, NDArray[Any]]
) -> tuple[dict[str, Grid], dict[str, NDArray[Any]]]:
    """Without what is wider than the kernels; a constant whose codes nobody chose takes the nearest ones."""
    kept, chosen, _ = without_wide(graph, grids, codes)
    nearest = {name: quantize(graph.weights[name], grid) for name, grid in kept.items() if name in graph.weights}
    return kept, nearest | chosen


def export(
    module: nn.Module,
    samples: Iterable[Any],
    path: str | os.PathLike[str],
    *,
    weight_bits: int = 8,
    block_size: int = 32,
) -> Program:
    """Write a torch module as INT8 or INT4.

    Parameters
    ----------
    module : nn.Module
        Float32, on the CPU. It is not changed.
    samples : iterable
        What the module is called with: a tensor, or a tuple of arguments. All of one shape; the first fixes it.
    path : path
        The ``.pte`` file.
    weight_bits : int
        4: linear layers get INT4 weights in blocks, each block's range and the rounding (on the moments of what the
        layer sees) chosen by leadline, and their inputs INT8 per token at run time; all else stays float.
        8: XNNPACK's static quantisation per channel, calibrated by torchao: its ranges, and nearest rounding.
    block_size : int
        Inputs that share a scale at 4 bits: a multiple of 32. Layers whose inputs it does not divide stay float.

    Raises
    ------
    InputError
        An argument does not fit, there is no sample or no layer to quantise, the module cannot be exported, or
        ExecuTorch is not installed.
    """
    if weight_bits not in (4, 8):
        raise refuse("export", "weight_bits must be 4 or 8", repr(weight_bits))
    if not isinstance(block_size, int) or block_size < 32 or block_size % 32:
        raise refuse("export", "block_size must be a multiple of 32", repr(block_size))
    check_installed("export")
    batches = [batch if isinstance(batch, tuple) else (batch,) for batch in samples]
    if not batches:
        raise refuse("export", "samples must hold at least one", "none")
    module = copy.deepcopy(module).eval().requires_grad_(False)
    if weight_bits == 8:
        return _written(path, *_lower(_calibrated(module, batches), batches[0], 0))
    layers = _int4(module, batches, block_size)
    if not layers:
        rule = f"the module must have a linear layer whose inputs are a multiple of {block_size}"
        raise refuse("export", rule, f"{type(module).__name__} without")
    return _written(path, *_lower(module, batches[0], layers, dynamic=True))


def check_installed(function: str) -> None:
    """InputError in the name of `function` where ExecuTorch is not installed."""
    try:
        from leadline.torch.export import quiet

        with quiet():
            import executorch.exir
            import executorch.kernels.quantized  # noqa: F401  registers what stays outside XNNPACK
    except ImportError as error:
        rule = f"this needs ExecuTorch, in an environment of its own: {_INSTALL}"
        raise refuse(function, rule, f"no module {error.name}") from None


def _written(path: str | os.PathLike[str], buffer: bytes, program: Program) -> Program:
    with replacing(path) as temporary:
        temporary.write_bytes(buffer)
    return program


def _lower(
    module: nn.Module, example: Sequence[torch.Tensor], layers: int, dynamic: bool = False
) -> tuple[bytes, Program]:
    import torch
    from executorch.backends.xnnpack.partition.xnnpack_partitioner import XnnpackPartitioner
    from executorch.exir import to_edge_transform_and_lower

    from leadline.torch.export import quiet

    try:
        with quiet():
            exported = torch.export.export(module, tuple(example))
            edge = to_edge_transform_and_lower(exported, partitioner=_partitioners(XnnpackPartitioner, dynamic))
            written = edge.to_executorch()
    except InputError:
        raise
    except Exception as error:  # torch.export and the partitioner raise a dozen unrelated classes
        reason = next(iter(str(error).strip().splitlines()), type(error).__name__)
        raise refuse("export", "the network must go through torch.export and XNNPACK", reason) from error
    calls = Counter(
        str(node.target).removesuffix(".default")
        for node in edge.exported_program().graph.nodes
        if node.op == "call_function" and not any(word in str(node.target) for word in ("getitem", "alloc"))
    )
    delegates = calls.pop("executorch_call_delegate", 0)
    return bytes(written.buffer), Program(len(written.buffer), delegates, dict(calls), layers)


def _partitioners(kind: Any, dynamic: bool) -> list[Any]:
    """Layers with inputs quantised at run time are taken first: as float ones they would be taken apart."""
    from executorch.backends.xnnpack.partition.config.xnnpack_config import ConfigPrecisionType

    if not dynamic:
        return [kind()]
    return [kind(config_precisions=ConfigPrecisionType.DYNAMIC_QUANT, per_op_mode=True), kind()]


def _calibrated(module: nn.Module, batches: Sequence[tuple[torch.Tensor, ...]]) -> nn.Module:
    import torch
    from executorch.backends.xnnpack.quantizer.xnnpack_quantizer import (
        XNNPACKQuantizer,
        get_symmetric_quantization_config,
    )
    from torchao.quantization.pt2e.quantize_pt2e import convert_pt2e, prepare_pt2e

    quantizer = XNNPACKQuantizer().set_global(get_symmetric_quantization_config(is_per_channel=True))
    observed = prepare_pt2e(torch.export.export(module, batches[0]).module(), quantizer)
    for batch in batches:
        observed(*batch)
    converted: nn.Module = convert_pt2e(observed)
    return converted


def _int4(module: nn.Module, batches: Sequence[tuple[torch.Tensor, ...]], block_size: int) -> int:
    """Every linear layer that the blocks divide, in place; how many."""
    import torch
    from torch import nn

    from leadline.targets.executorch.module import int4_weight

    layers = {
        name: layer
        for name, layer in module.named_modules()
        if isinstance(layer, nn.Linear) and layer.in_features % block_size == 0
    }
    with _moments(layers) as grams, torch.no_grad():
        for batch in batches:
            module(*batch)
    for name, layer in layers.items():
        weight = layer.weight.detach().numpy()
        grid = _blocks(weight, block_size)
        codes = decide.codes_of(weight, grid, "best", grams[name].matrix())[0]
        carried = int4_weight(codes, grid.scale, block_size)
        layer.weight = nn.Parameter(carried, requires_grad=False)
    return len(layers)


@contextmanager
def _moments(layers: Mapping[str, nn.Linear]) -> Iterator[dict[str, Any]]:
    """The Gram matrix of what each layer reads while this is open."""
    from leadline.gram import Gram

    grams = {name: Gram(layer.in_features, name) for name, layer in layers.items()}

    def watch(name: str) -> Any:
        return lambda layer, inputs: (
            grams[name].update(inputs[0].detach().reshape(-1, layer.in_features).contiguous().numpy()) and None
        )

    hooks = [layer.register_forward_pre_hook(watch(name)) for name, layer in layers.items()]
    try:
        yield grams
    finally:
        for hook in hooks:
            hook.remove()


def _blocks(weight: NDArray[np.float32], block_size: int) -> Grid:
    """Symmetric INT4 blocks whose ranges leave the least squared error; scales are bfloat16 values."""
    from leadline.targets.executorch.module import to_bfloat16

    scheme = Scheme(4, True, True, "block", axis=1, block_size=block_size)
    rows = weight.reshape(len(weight), -1, block_size)
    largest = np.maximum(np.abs(rows).max(2), 1e-6) / scheme.qmax
    scales = (to_bfloat16(largest * np.float32(share)) for share in _SHRUNK)
    return decide.least_squares_grid(weight, (Grid(s, np.zeros(s.shape, np.int32), scheme) for s in scales))
