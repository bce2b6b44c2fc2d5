"""Writing a quantised ``.tflite``: ai-edge-quantizer places the integers and conversions, leadline says what they are.

Operators are chosen one by one, ranges are handed over for every tensor, and what the tool computes from them is
replaced by leadline's own codes and scales in the file, bit for bit.
"""

from __future__ import annotations

import contextlib
import copy
import re
import warnings
from collections.abc import Mapping
from io import StringIO
from typing import Any, Literal

import numpy as np
from numpy.typing import NDArray

from leadline.targets.litert.kernels import Codes, Plan, block_scales, integer_operators, operation, to_int8, tool
from leadline.targets.litert.match import sites
from leadline.targets.litert.read import Operator, Subgraph, Tensor, Tflite, read
from leadline.types import Grid, refuse

Preset = Literal["cpu", "npu", "dynamic", "weight-only", "fp16"]
Io = Literal["float", "int8", "int8-float"]


GUARD = -3e38
"""No float is below it but the last few: a maximum with it changes nothing, and keeps a converter from merging."""


def prepare(content: bytes) -> bytes:
    """The same network with unique tensor names, and a float constant of its own for each operator that reads it.

    A converter stores equal constants once; two layers that share a bias could not have grids of their own then.
    Maxima with GUARD are taken out.
    """
    flatbuffers = tool("ai_edge_litert.tools.flatbuffer_utils")
    model = flatbuffers.read_model_from_bytearray(bytearray(content))
    graph = model.subgraphs[0]
    _unguard(model)
    taken: set[bytes] = set()
    for tensor in graph.tensors:
        tensor.name = _unique(tensor.name or b"tensor", taken)
    seen: set[int] = set()
    for operator in graph.operators:
        for slot, index in enumerate(operator.inputs):
            tensor = graph.tensors[index] if index >= 0 else None
            if tensor is None or tensor.type != 0 or model.buffers[tensor.buffer].data is None:
                continue
            if index in seen:
                duplicate = copy.copy(tensor)
                duplicate.name = _unique(tensor.name, taken)
                model.buffers.append(copy.copy(model.buffers[tensor.buffer]))
                duplicate.buffer = len(model.buffers) - 1
                graph.tensors.append(duplicate)
                operator.inputs[slot] = len(graph.tensors) - 1
            seen.add(index)
    return bytes(flatbuffers.convert_object_to_bytearray(model))


def _unguard(model: Any) -> None:
    graph = model.subgraphs[0]
    instead: dict[int, int] = {}
    codes = tool("ai_edge_litert.schema_py_generated").BuiltinOperator
    kept = []
    for operator in graph.operators:
        operator.inputs = [instead.get(int(index), int(index)) for index in operator.inputs]
        code = model.operatorCodes[operator.opcodeIndex]
        guards = [index for index in operator.inputs if _is_guard(model, graph.tensors[index])]
        if code.builtinCode == codes.MAXIMUM and len(guards) == 1:
            instead[operator.outputs[0]] = next(index for index in operator.inputs if index not in guards)
        else:
            kept.append(operator)
    if instead:
        graph.operators = kept
        graph.outputs = [instead.get(int(index), int(index)) for index in graph.outputs]
        for entry in (entry for signature in model.signatureDefs or () for entry in signature.outputs):
            entry.tensorIndex = instead.get(entry.tensorIndex, entry.tensorIndex)
        _drop_unused(model)


def _drop_unused(model: Any) -> None:
    """Take out the tensors that no operator touches any more: LiteRT gives them no memory, and calibrators stumble."""
    graph = model.subgraphs[0]
    touched = {int(i) for operator in graph.operators for i in (*operator.inputs, *operator.outputs)}
    used = sorted((touched | {int(i) for i in (*graph.inputs, *graph.outputs)}) - {-1})
    moved = {old: new for new, old in enumerate(used)} | {-1: -1}
    graph.tensors = [graph.tensors[index] for index in used]
    for operator in graph.operators:
        operator.inputs = [moved[int(index)] for index in operator.inputs]
        operator.outputs = [moved[int(index)] for index in operator.outputs]
    graph.inputs, graph.outputs = ([moved[int(i)] for i in part] for part in (graph.inputs, graph.outputs))
    for signature in model.signatureDefs or ():
        for entry in (*signature.inputs, *signature.outputs):
            entry.tensorIndex = moved[entry.tensorIndex]


def _is_guard(model: Any, tensor: Any) -> bool:
    data = model.buffers[tensor.buffer].data
    if tensor.type != 0 or data is None or not len(data):
        return False
    return bool((np.frombuffer(bytes(data), np.float32) == np.float32(GUARD)).all())


def _unique(name: bytes, taken: set[bytes]) -> bytes:
    number, wanted = 1, name
    while wanted in taken:
        number += 1
        wanted = name + b"#%d" % number
    taken.add(wanted)
    return wanted


def write(plan: Plan, preset: Preset, io: Io = "float") -> bytes:
    """The quantised network as a ``.tflite`` file.

    Parameters
    ----------
    plan : Plan
    preset : {"cpu", "npu", "dynamic", "weight-only", "fp16"}
        "cpu": linear layers, convolutions, GELU and ADD compute in integers, with the moves of data between them, and
        the rest in float: what is fastest on XNNPACK. "npu": every operator that has integer kernels and whose tensors
        have ranges. "dynamic": integer weights, activations quantised as they come. "weight-only": integer weights,
        float arithmetic. "fp16": weights as float16, nothing else from the plan.
    io : {"float", "int8", "int8-float"}
        Type of the network's inputs and outputs: both float, both int8, or int8 in and float out. All but "float" need
        a static preset.

    Raises
    ------
    InputError
        A grid that LiteRT has no kernels for, by name; or ai-edge-quantizer is not installed.
    """
    check_io(preset, io)
    manager = tool("ai_edge_quantizer.recipe_manager").RecipeManager()
    model = read(plan.content)
    weights = {name: entry for name, entry in plan.parameters.items() if entry[0].scheme.bits <= 8}
    for name, (grid, codes) in weights.items():
        _check_weight(name, grid, codes)
    if preset == "fp16":
        ranges: dict[str, Any] = {}
        _add_float16(manager, model)
    elif preset in ("cpu", "npu"):
        chosen = integer_operators(plan, model, preset)
        ranges = _add_static(manager, model, plan, weights, chosen, io)
    else:
        ranges = _add_weights(manager, model, weights, preset)
    if not manager.get_quantization_recipe():
        raise refuse("to_tflite", f"preset {preset} must find something to quantise", "a network without such layers")
    with warnings.catch_warnings(), contextlib.redirect_stderr(StringIO()):
        warnings.simplefilter("ignore")  # LiteRT's own remarks on its debugging options, and a progress bar
        quantizer = tool("ai_edge_quantizer.quantizer").Quantizer(
            bytearray(plan.content), manager.get_quantization_recipe()
        )
        quantised = quantizer.quantize(ranges, enable_progress_report=False, enable_progress_bar=False).quantized_model
    return bytes(quantised) if preset == "fp16" else _exact(bytes(quantised), plan, preset)


def check_io(preset: str, io: str) -> None:
    """InputError where int8 inputs and outputs are asked of a preset that has no int8 activations."""
    if io != "float" and preset not in ("cpu", "npu"):
        raise refuse("to_tflite", f"io {io} needs the preset cpu or npu", repr(preset))


def _check_weight(name: str, grid: Grid, codes: Codes) -> None:
    scheme = grid.scheme
    if not scheme.signed or grid.zero_point.any():
        raise refuse("to_tflite", f"the grid of weight '{name}' must be signed and symmetric", "a zero point")
    if scheme.bits == 8 and codes.size and codes.min() < -127:
        raise refuse("to_tflite", f"8-bit codes of weight '{name}' must lie in -127..127 (narrow)", codes.min())


def _scope(operator: Operator, graph: Subgraph) -> str:
    """The tool's name for one operator: its outputs' names."""
    return "^" + re.escape(";".join(graph.tensors[i].name for i in operator.outputs) + ";") + "$"


def _add_static(
    manager: Any,
    model: Tflite,
    plan: Plan,
    weights: Mapping[str, tuple[Grid, Codes]],
    chosen: list[Operator],
    io: Io,
) -> dict[str, Any]:
    graph = model.main
    layers = {id(site.operator): site for site in sites(model)}
    ranges: dict[str, Any] = {}
    for operator in chosen:
        site = layers.get(id(operator))
        bits, per = 8, "CHANNELWISE"
        if site is not None:
            name = graph.tensors[site.weight].name
            grid = weights[name][0]
            bits, per = _bits(operator, grid), _granularity(grid)
            ranges[name] = _weight_range(grid, graph.tensors[site.weight], site.axis, bits)
        granularity = getattr(tool("ai_edge_quantizer.qtyping").QuantGranularity, per)
        manager.add_static_config(_scope(operator, graph), operation(operator.type), 8, bits, granularity)
        for index in (*operator.inputs, *operator.outputs):
            tensor = graph.tensors[index] if index >= 0 else None
            if tensor is not None and tensor.name in plan.activations:
                ranges[tensor.name] = _range(to_int8(tensor.name, plan.activations[tensor.name]))
    if io != "float":
        names = tool("ai_edge_quantizer.qtyping").TFLOperationName
        ends = {names.INPUT: graph.inputs} | ({names.OUTPUT: graph.outputs} if io == "int8" else {})
        for index in (index for indices in ends.values() for index in indices):
            tensor = graph.tensors[index]
            if tensor.name not in plan.activations:
                raise refuse("to_tflite", "int8 inputs and outputs must have grids", repr(tensor.name))
            ranges[tensor.name] = _range(to_int8(tensor.name, plan.activations[tensor.name]))
        for name in ends:
            manager.add_static_config(".*", name, 8, 8)
    return ranges


def _add_weights(
    manager: Any, model: Tflite, weights: Mapping[str, tuple[Grid, Codes]], preset: Preset
) -> dict[str, Any]:
    graph, ranges = model.main, {}
    types = tool("ai_edge_quantizer.qtyping").QuantGranularity
    add = manager.add_dynamic_config if preset == "dynamic" else manager.add_weight_only_config
    for site in sites(model):
        name = graph.tensors[site.weight].name
        if name not in weights:
            continue
        grid = weights[name][0]
        if grid.scheme.granularity == "block":
            if preset != "dynamic":
                rule = "weights in blocks need the preset dynamic: LiteRT has no float kernels for them"
                raise refuse("to_tflite", rule, repr(preset))
            per = f"BLOCKWISE_{grid.scheme.block_size}"
            add(_scope(site.operator, graph), operation(site.operator.type), 4, getattr(types, per))
            continue
        bits = _bits(site.operator, grid)
        ranges[name] = _weight_range(grid, graph.tensors[site.weight], site.axis, bits)
        add(_scope(site.operator, graph), operation(site.operator.type), bits, getattr(types, _granularity(grid)))
    return ranges


def _add_float16(manager: Any, model: Tflite) -> None:
    casting = tool("ai_edge_quantizer.algorithm_manager").AlgorithmName.FLOAT_CASTING
    for kind in {site.operator.type for site in sites(model)}:
        manager.add_weight_only_config(".*", operation(kind), 16, algorithm_key=casting)


def _bits(operator: Operator, grid: Grid) -> int:
    """4-bit codes have kernels of their own in linear layers and convolutions; elsewhere they travel in 8 bits."""
    return 4 if grid.scheme.bits <= 4 and operator.type in ("FULLY_CONNECTED", "CONV_2D") else 8


def _granularity(grid: Grid) -> str:
    return "TENSORWISE" if grid.scheme.granularity == "tensor" else "CHANNELWISE"


def _range(grid: Grid) -> dict[str, NDArray[np.float64]]:
    scale = grid.scale.astype(np.float64)
    lo, hi = scale * (grid.scheme.qmin - grid.zero_point), scale * (grid.scheme.qmax - grid.zero_point)
    return {"min": np.asarray(lo), "max": np.asarray(hi)}


def _weight_range(grid: Grid, tensor: Tensor, axis: int, bits: int) -> dict[str, NDArray[np.float32]]:
    shape = [1] * len(tensor.shape)
    if grid.scheme.granularity == "axis":
        shape[axis] = -1
    top = (grid.scale * np.float32(2 ** (bits - 1) - 1)).reshape(shape)
    return {"min": -top, "max": top}


def _exact(content: bytes, plan: Plan, preset: Preset) -> bytes:
    """leadline's codes and scales in place of those that the tool computed from ranges (equal but for last bits)."""
    flatbuffers = tool("ai_edge_litert.tools.flatbuffer_utils")
    model = flatbuffers.read_model_from_bytearray(bytearray(content))
    types = tool("ai_edge_litert.schema_py_generated").TensorType
    graph = model.subgraphs[0]
    for tensor in graph.tensors:
        name = tensor.name.decode("utf-8", "replace")
        if name in plan.parameters and tensor.type in (types.INT4, types.INT8, types.INT32):
            grid, codes = plan.parameters[name]
            if grid.scheme.granularity == "block":
                held = graph.tensors[tensor.quantization.details.scales]
                model.buffers[held.buffer].data = _bytes(block_scales(grid).astype(np.float16))
            else:
                tensor.quantization.scale = np.atleast_1d(grid.scale).astype(np.float32)
            packed = _pack(codes) if tensor.type == types.INT4 else codes.astype(_STORED[tensor.type == types.INT32])
            model.buffers[tensor.buffer].data = _bytes(packed)
        elif tensor.type == types.INT8 and preset in ("cpu", "npu"):
            known = plan.activations.get(name, plan.activations.get(name.removesuffix("_quantized")))
            if known is not None and tensor.quantization is not None:
                _settle(tensor.quantization, to_int8(name, known))
    return bytes(flatbuffers.convert_object_to_bytearray(model))


_STORED = (np.int8, np.int32)


def _settle(quantization: Any, grid: Grid) -> None:
    """The last bit of the scale. Where a kernel's rule gave the tensor another grid, it keeps that."""
    near = np.isclose(quantization.scale[0], grid.scale, rtol=1e-5, atol=0)
    if len(quantization.scale) == 1 and near and int(quantization.zeroPoint[0]) == int(grid.zero_point):
        quantization.scale = np.atleast_1d(grid.scale).astype(np.float32)


def _pack(codes: Codes) -> NDArray[np.uint8]:
    """Two codes a byte, the first in the low bits."""
    flat = codes.reshape(-1).astype(np.int8).view(np.uint8) & 15
    flat = np.append(flat, np.zeros(flat.size % 2, np.uint8))
    return np.asarray(flat[0::2] | flat[1::2] << 4, np.uint8)


def _bytes(array: NDArray[Any]) -> NDArray[np.uint8]:
    return np.frombuffer(np.ascontiguousarray(array).tobytes(), np.uint8)
