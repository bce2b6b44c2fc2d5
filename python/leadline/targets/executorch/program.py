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
import time
from collections import Counter
from collections.abc import Iterable, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
from numpy.typing import NDArray

from leadline import decide
from leadline.affine import quantize
from leadline.collapse import Comparison, reasons_of
from leadline.export.widths import without_wide
from leadline.files import replacing
from leadline.graph import Graph
from leadline.sqnr import Sqnr
from leadline.types import Grid, InputError, Scheme, refuse

if TYPE_CHECKING:
    from collections.abc import Iterator

    import torch
    from torch import nn

__all__ = ["Program", "Verified", "export", "export_grids", "simulation", "verify"]

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


@dataclass(frozen=True)
class Verified:
    """A program beside the float module. `sqnr` in dB for each output, over all samples; `simulated`: the same of the
    simulation, where one was given; `milliseconds`: the fastest of all runs, one thread or what the runtime takes;
    `collapse`: outputs that are lost, called as they were named or by number, and why (`leadline.collapse`)."""

    sqnr: list[float]
    milliseconds: float
    simulated: list[float]
    collapse: list[str] = field(default_factory=list)


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
    check_installed("export_grids")
    import torch

    from leadline.targets.executorch.module import blocks, integer_module

    grids, codes = _carried(graph, grids, codes)
    module = integer_module(graph, grids, codes)
    example = tuple(torch.zeros(value.shape, dtype=getattr(torch, str(value.dtype))) for value in graph.inputs)
    dynamic = blocks(graph, grids, codes)
    static = [layer for layer in graph.layers() if layer.weight in codes and layer.input in grids]
    return _lower(module, example, Path(path), len(static) + len(dynamic), dynamic=bool(dynamic))


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
        return _lower(_calibrated(module, batches), batches[0], Path(path), 0)
    layers = _int4(module, batches, block_size)
    if not layers:
        rule = f"the module must have a linear layer whose inputs are a multiple of {block_size}"
        raise refuse("export", rule, f"{type(module).__name__} without")
    return _lower(module, batches[0], Path(path), layers, dynamic=True)


def verify(
    path: str | os.PathLike[str],
    module: nn.Module,
    samples: Iterable[Any],
    *,
    simulation: nn.Module | None = None,
    names: Sequence[str] = (),
) -> Verified:
    """Run a program in ExecuTorch's runtime beside the float module.

    Parameters
    ----------
    path : path
        A ``.pte`` file.
    module : nn.Module
        The float reference; ``leadline.torch.to_module(graph)`` for a Graph.
    samples : iterable
        As for `export`.
    simulation : nn.Module, optional
        From `simulation`: scored beside the program.
    names : sequence of str, optional
        What outputs are called where one is lost. Default: "output 0" and so on.

    Raises
    ------
    InputError
        The file is missing or no program, its outputs do not fit the module's, or ExecuTorch is not installed.
    """
    check_installed("verify")
    import torch
    from executorch.runtime import Runtime

    file = Path(path)
    if not file.is_file():
        raise refuse("verify", "path must be a .pte file", f"'{path}', which does not exist")
    try:
        method = Runtime.get().load_program(file).load_method("forward")
    except Exception as error:  # the runtime raises RuntimeError, and others for a file that is no flatbuffer
        raise refuse("verify", f"'{path}' must be a whole ExecuTorch program", str(error).splitlines()[0]) from None
    scores: list[Sqnr] = []
    said: list[Sqnr] = []
    whole: list[Comparison] = []
    fastest = np.inf
    for batch in samples:
        inputs = batch if isinstance(batch, tuple) else (batch,)
        with torch.no_grad():
            wanted = _several(module(*inputs))
            seen = () if simulation is None else _several(simulation(*inputs))
        start = time.perf_counter()
        got = method.execute(list(inputs))
        fastest = min(fastest, time.perf_counter() - start)
        if [tuple(array.shape) for array in got] != [tuple(array.shape) for array in wanted]:
            rule = f"the program's outputs must have the shapes {[tuple(array.shape) for array in wanted]}"
            raise refuse("verify", rule, [tuple(array.shape) for array in got])
        scores = scores or [Sqnr() for _ in wanted]
        for score, reference, array in zip(scores, wanted, got, strict=True):
            score.update(reference.numpy(), array.numpy())
        whole = whole or [Comparison(0, whole=True) for _ in wanted]
        for comparison, reference, array in zip(whole, wanted, got, strict=True):
            comparison.update(reference.numpy(), array.numpy())
        said = said or [Sqnr() for _ in seen]
        for score, reference, array in zip(said, wanted[: len(seen)], seen, strict=True):
            score.update(reference.numpy(), array.numpy())
    if not scores:
        raise refuse("verify", "samples must hold at least one", "none")
    called = names or [f"output {number}" for number in range(len(scores))]
    lost = [line for pair in zip(called, whole, strict=True) for line in reasons_of(*pair)]
    return Verified([score.db for score in scores], fastest * 1e3, [score.db for score in said], lost)


def _several(outputs: Any) -> tuple[torch.Tensor, ...]:
    return tuple(outputs) if isinstance(outputs, (tuple, list)) else (outputs,)


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


def _lower(
    module: nn.Module, example: Sequence[torch.Tensor], path: Path, layers: int, dynamic: bool = False
) -> Program:
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
    with replacing(path) as temporary:
        temporary.write_bytes(written.buffer)
    calls = Counter(
        str(node.target).removesuffix(".default")
        for node in edge.exported_program().graph.nodes
        if node.op == "call_function" and not any(word in str(node.target) for word in ("getitem", "alloc"))
    )
    delegates = calls.pop("executorch_call_delegate", 0)
    return Program(path.stat().st_size, delegates, dict(calls), layers)


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
