"""TFLite: a quantised network as a ``.tflite`` file for LiteRT, with leadline's own ranges and integers in it.

Two roads lead to a `Plan`, which is a float ``.tflite`` with grids and codes by tensor name, and one writer leads on:

* `plan`: from a Quantized. Its graph becomes a torch module, litert-torch converts that, and the tensors of both are
  matched by value (`leadline.targets.litert.match`). Needs the extra ``leadline[litert]``.
* `leadline.targets.litert.calibrate.quantize`: from a float ``.tflite`` alone, without torch: calibrated in LiteRT's
  interpreter. Needs the extra ``leadline[tflite]``.
"""

from __future__ import annotations

import os
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from leadline import decide
from leadline.affine import dequantize
from leadline.affine import quantize as to_codes
from leadline.data import Samples
from leadline.export.widths import without_wide
from leadline.files import replacing
from leadline.graph import Graph, Layer, Node
from leadline.graph.edit import add_constant, add_value, new_name
from leadline.graph.quantised import Judged, Quantised
from leadline.graph.tail import check_whole
from leadline.targets.litert.kernels import BLOCKS, Plan, block_scales, channel_grid, tie
from leadline.targets.litert.match import Matching, Site, match, to_tflite
from leadline.targets.litert.read import Tflite, read
from leadline.targets.litert.run import observe
from leadline.targets.litert.write import GUARD, Io, Preset, prepare, write
from leadline.types import Grid, Scheme, refuse

__all__ = ["Converted", "Io", "Plan", "Preset", "convert", "plan", "save"]

Codes = NDArray[Any]


@dataclass(frozen=True)
class _Narrow:
    graph: Graph
    grids: Mapping[str, Grid]
    codes: Mapping[str, NDArray[np.integer[Any]]]
    held_out: Samples


@dataclass(frozen=True, eq=False)
class Converted(Plan):
    """A Plan made from a Quantized; `matching` says which of the graph's tensors each one is."""

    matching: Matching = field(kw_only=True)


def check_installed() -> None:
    """InputError where litert-torch, which `convert` needs, is not installed."""
    from importlib.util import find_spec

    missing = [name for name in ("torch", "litert_torch") if find_spec(name) is None]
    if missing:
        rule = "converting a network to .tflite needs litert-torch: pip install 'leadline[litert]'"
        raise refuse("to_tflite", rule, f"no module named {missing[0]}")


def convert(graph: Graph) -> bytes:
    """A graph as a float ``.tflite``, through a torch module and litert-torch. Inputs and outputs keep their layout.

    The converter merges factors and offsets (a LayerNorm's gain) into the layers beside them, whose weights would then
    not be those that were quantised. A maximum with a number below all others stands in between while it converts.

    Raises InputError where the extra is not installed, the graph holds an operator that torch has no function for, or
    litert-torch does not convert it.
    """
    check_installed()
    import contextlib
    import io
    import tempfile
    import warnings

    import litert_torch
    import torch

    from leadline.torch.module import to_module

    example = tuple(torch.zeros(value.shape, dtype=getattr(torch, str(value.dtype))) for value in graph.inputs)
    quiet = contextlib.redirect_stdout(io.StringIO())  # it reports its progress there
    with quiet, warnings.catch_warnings(), tempfile.TemporaryDirectory(prefix="leadline-") as folder:
        warnings.simplefilter("ignore")
        file = Path(folder) / "float.tflite"
        module = to_module(_guarded(graph))
        try:
            litert_torch.convert(module, example).export(str(file))
        except Exception as error:  # torch.export and the converter raise a dozen unrelated classes
            reason = next(iter(str(error).strip().splitlines()), type(error).__name__)
            raise refuse("convert", f"'{graph.name}' must go through torch.export and litert-torch", reason) from error
        return prepare(file.read_bytes())


def _guarded(graph: Graph) -> Graph:
    """With a guard behind every normalisation and every operation with a constant, and behind a layer before them."""
    guarded = graph.copy()
    layers = {layer.output for layer in graph.layers()}
    wanted: dict[str, None] = {}
    for node in graph.nodes:
        constant = node.op_type in _FACTORS and any(name in graph.weights for name in node.inputs)
        if constant or node.op_type.endswith("Normalization") or node.op_type == "HardSigmoid":
            wanted |= dict.fromkeys(name for name in node.inputs if name in layers)
            wanted |= dict.fromkeys(node.outputs[:1] if node.op_type != "HardSigmoid" else ())
    guard = add_constant(guarded, "guard", np.array(GUARD, np.float32))
    behind = {name: add_value(guarded, f"{name}.guarded", graph.shape(name)) for name in wanted}
    nodes = []
    for node in guarded.nodes:
        node.inputs = [behind.get(name, name) for name in node.inputs]
        nodes.append(node)
        for name in node.outputs:
            if name in behind:
                nodes.append(Node("Max", [name, guard], [behind[name]], new_name(guarded, f"{name}.guard")))
    guarded.nodes = nodes
    return guarded


_FACTORS = ("Add", "Sub", "Mul", "Div")


def plan(
    quantized: Judged, data: Samples | None = None, *, content: bytes | None = None, threads: int | None = None
) -> Converted:
    """What a Quantized becomes in a ``.tflite``.

    Parameters
    ----------
    quantized : Quantized
        With activations of 8 bits and one scale, or with float activations. Among those of 8 bits, wider ones (a
        detector's last layers and all behind them) stay in float.
    data : Samples, optional
        For the ranges of tensors that only the ``.tflite`` has, such as the pieces of a LayerNorm, and for matching.
        Default: the held-out samples.
    content : bytes, optional
        The float ``.tflite``, if it has been made already by `convert` from ``quantized.graph``.
    threads : int, optional

    Raises
    ------
    InputError
        A grid that LiteRT has no kernels for, shapes that depend on the data; or an extra is not installed.
    """
    graph, samples = quantized.graph, data if data is not None else quantized.held_out
    check_whole(graph, "LiteRT", "plan")
    grids, codes, wide = without_wide(graph, quantized.grids, quantized.codes)
    quantized = _Narrow(graph, grids, codes, quantized.held_out)
    content = convert(graph) if content is None else content
    matching = match(graph, content, next(iter(samples)), threads)
    model = read(content)
    notes = [f"{name}: the converter rewrote this layer, it stays in float" for name in matching.missing]
    activations = _activations(graph, quantized.grids, matching, model)
    floating = _behind(model, {index for index, names in matching.activations.items() if set(names).issubset(wide)})
    if wide:
        notes.append(f"{wide[0]}: and {len(floating)} tensors from there on stay in float: LiteRT mixes no widths")
    if activations:
        written = [tensor for tensor in model.main.activations() if tensor.dtype == "float32"]
        missing = [tensor.name for tensor in written if tensor.name not in activations and tensor.index not in floating]
        feeds = (list(feed.values()) for feed in samples)
        activations |= observe(content, missing, feeds, threads)
    tied = tie(model, activations)
    parameters: dict[str, tuple[Grid, Codes]] = {}
    for layer in graph.layers():
        if layer.name in matching.layers and layer.weight in quantized.grids:
            site = matching.layers[layer.name]
            (grid, stored), note = _weight(layer, graph, quantized, site)
            tensor = model.main.tensors[site.weight]
            parameters[tensor.name] = grid, stored.reshape(tensor.shape)
            notes += note
            parameters |= _bias(layer, graph, quantized, site, model, tied, grid)
    return Converted(content, tied, parameters, tuple(notes), quantized.held_out, matching=matching)


def _behind(model: Tflite, indices: set[int]) -> set[int]:
    """Tensors, and all that is computed from them."""
    reached = set(indices)
    for operator in model.main.operators:
        if reached.intersection(operator.inputs):
            reached.update(operator.outputs)
    return reached


def _activations(graph: Graph, grids: Mapping[str, Grid], matching: Matching, model: Tflite) -> dict[str, Grid]:
    activations: dict[str, Grid] = {}
    for index, names in matching.activations.items():
        candidates = [grids[name] for name in names if name in grids]
        if candidates:
            activations[model.main.tensors[index].name] = candidates[0]
    constants = {
        _values(array): grids[name]
        for name, array in graph.weights.items()
        if name in grids and grids[name].scheme.granularity == "tensor" and not grids[name].scheme.symmetric
    }
    for tensor in model.main.tensors:
        if tensor.constant and tensor.dtype == "float32" and _values(tensor.array) in constants:
            activations[tensor.name] = constants[_values(tensor.array)]
    return activations


def _values(array: NDArray[Any]) -> bytes:
    """Alike where values are; a converter writes infinities as the largest floats."""
    limits = np.finfo(np.float32)
    return np.sort(np.clip(array, limits.min, limits.max), axis=None).tobytes()


def _weight(layer: Layer, graph: Graph, quantized: Quantised, site: Site) -> tuple[tuple[Grid, Codes], list[str]]:
    grid, weight = quantized.grids[layer.weight], graph.weights[layer.weight]
    codes = quantized.codes.get(layer.weight)
    if grid.scheme.granularity != "block":
        codes = to_codes(weight, grid) if codes is None else codes
        return (channel_grid(grid, site.axis), to_tflite(layer, codes)), []
    if grid.scheme.block_size in BLOCKS and layer.axis == 0 and site.operator.type == "FULLY_CONNECTED":
        held = Grid(block_scales(grid), grid.zero_point, grid.scheme)
        return (held, to_codes(weight, grid) if codes is None else codes), []
    scheme = Scheme(8, True, True, "axis", layer.axis, narrow=True)
    whole = decide.weight_grid(weight, scheme)
    note = f"{layer.name}: blocks of {grid.scheme.block_size} have no kernel, one scale per channel and 8 bits instead"
    return (channel_grid(whole, site.axis), to_tflite(layer, to_codes(weight, whole))), [note]


def _bias(
    layer: Layer,
    graph: Graph,
    quantized: Quantised,
    site: Site,
    model: Tflite,
    activations: Mapping[str, Grid],
    weight: Grid,
) -> dict[str, tuple[Grid, Codes]]:
    """The bias at input scale x weight scale, of which a kernel's rule may have changed the first."""
    if site.bias is None or layer.bias is None:
        return {}
    chosen, real = quantized.grids.get(layer.bias), graph.weights[layer.bias]
    grid = decide.bias_grid(weight, activations.get(model.main.tensors[site.input].name), real.size)
    if grid is None:
        return {}
    if chosen is not None and layer.bias in quantized.codes:
        if np.array_equal(chosen.scale, grid.scale):
            return {model.main.tensors[site.bias].name: (grid, quantized.codes[layer.bias])}
        real = dequantize(quantized.codes[layer.bias], chosen)
    return {model.main.tensors[site.bias].name: (grid, to_codes(real, grid))}


def save(
    source: Plan | Judged | str | os.PathLike[str],
    path: str | os.PathLike[str],
    *,
    preset: Preset | None = None,
    io: Io = "float",
) -> Plan:
    """Write a quantised ``.tflite``; nothing is left at `path` if it fails.

    Parameters
    ----------
    source : Plan, Quantized, or path of a float ``.tflite`` (for the preset "fp16", which needs no plan)
    path : path
    preset : {"cpu", "npu", "dynamic", "weight-only", "fp16"}, optional
        See `leadline.targets.litert.write.write`. Default: "cpu" where activations have grids, otherwise "dynamic".
    io : {"float", "int8", "int8-float"}
        Type of inputs and outputs.

    Returns
    -------
    Plan
        What was written, for `leadline.targets.litert.verify`.
    """
    if isinstance(source, Plan):
        planned: Plan = source
    elif isinstance(source, (str, os.PathLike)):
        if preset != "fp16":
            raise refuse("save", "a float .tflite must be quantised first, or saved with the preset fp16", repr(preset))
        planned = Plan(prepare(_content(Path(source))), {}, {})
    else:
        planned = plan(source)
    chosen: Preset = preset or ("cpu" if planned.activations else "dynamic")
    content = write(planned, chosen, io)
    with replacing(path) as temporary:
        temporary.write_bytes(content)
    return planned


def _content(path: Path) -> bytes:
    read(path)  # refuses what is not a .tflite
    return path.read_bytes()
