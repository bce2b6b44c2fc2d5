"""Reading the grids and integer codes of an ONNX QDQ model: leadline's own exactly, those of others by structure."""

from __future__ import annotations

import json
import os
from collections.abc import Iterable
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
from numpy.typing import NDArray

from leadline.types import Grid, InputError, Scheme, refuse

if TYPE_CHECKING:
    import onnx

TAG = "leadline"
_QUANTIZE, _DEQUANTIZE = "QuantizeLinear", "DequantizeLinear"
_DOMAINS = ("", "ai.onnx", "com.microsoft")
# How exporters call integer parameters and their dequantised values: onnxruntime, aimet-onnx, and common hands.
_SUFFIXES = ("_DequantizeLinear_Output", "_DequantizeLinear", "_QuantizeLinear_Output", "_quantized", "_dequantized",
             "_qdq", "_dq", "_q", ".q", ".dq")  # fmt: skip


@dataclass(frozen=True)
class Qdq:
    """What a QDQ model holds.

    Attributes
    ----------
    grids : dict of tensor name to Grid
        Activations and parameters, by their names in the float network.
    codes : dict of parameter name to integer array
        In the parameter's own orientation, in the smallest numpy type that holds them.
    dequantised : dict of tensor name to tensor name
        What holds an activation's dequantised values in the model.
    tensors : set of str
        Every tensor that a node of the model writes.
    """

    grids: dict[str, Grid] = field(default_factory=dict)
    codes: dict[str, NDArray[Any]] = field(default_factory=dict)
    dequantised: dict[str, str] = field(default_factory=dict)
    tensors: set[str] = field(default_factory=set)


def read(source: str | os.PathLike[str] | onnx.ModelProto) -> Qdq:
    """The grids and codes of a QDQ model.

    What `to_qdq` wrote comes back equal in every bit. Models of other exporters are read by structure: an activation
    is called what its QuantizeLinear reads (or the graph output that its DequantizeLinear writes), a parameter what
    remains of its initialiser's name without the usual suffixes. Pairs with computed scales or float8 are left out.

    Parameters
    ----------
    source : path or onnx.ModelProto
        A path reads external data too.

    Raises
    ------
    InputError
        The path is no ONNX file, its external data is missing, or a scale is zero or not finite.
    """
    model, folder = open_model(source, "qdq.read")
    return _Reader(model, folder).qdq


def open_model(source: str | os.PathLike[str] | onnx.ModelProto, function: str) -> tuple[onnx.ModelProto, str]:
    """A model and the folder of its external data ("" for a model in memory)."""
    from leadline.graph.read import parse

    if isinstance(source, (str, os.PathLike)):
        return parse(Path(source), function), str(Path(source).resolve().parent)
    return source, ""


class _Reader:
    def __init__(self, model: onnx.ModelProto, folder: str) -> None:
        self.qdq = Qdq()
        self._folder = folder
        graph = model.graph
        self._tensors = {tensor.name: tensor for tensor in graph.initializer}
        for node in graph.node:
            if node.op_type == "Constant" and node.attribute and node.attribute[0].name == "value":
                self._tensors[node.output[0]] = node.attribute[0].t
        self._producers = {name: node for node in graph.node for name in node.output}
        self.qdq.tensors.update(self._producers)
        self._outputs = {value.name for value in graph.output}
        for node in graph.node:
            if node.op_type == _DEQUANTIZE and node.domain in _DOMAINS:
                self._pair(node)
            elif node.domain == TAG and (record := _record(node.doc_string)):  # scales are computed: a grid per token
                name, scale = record["tensor"], np.ones((), np.float32)
                self.qdq.grids[name] = Grid(scale, np.zeros((), np.int32), record["scheme"])
                self.qdq.dequantised[name] = node.output[0]

    def _pair(self, node: onnx.NodeProto) -> None:
        record = _record(node.doc_string)
        quantised = node.input[0]
        before = self._producers.get(quantised)
        source = before.input[0] if before is not None and before.op_type == _QUANTIZE else ""
        constant = quantised in self._tensors or source in self._tensors
        name = record["tensor"] if record else self._name(node.output[0], quantised, source)
        scale = self._array(node.input[1])
        zero_point = self._array(node.input[2]) if len(node.input) > 2 and node.input[2] else None
        kind = self._array(quantised) if quantised in self._tensors else zero_point
        stored = np.dtype(np.uint8) if kind is None else kind.dtype
        if scale is None or (bits := bits_of(stored)) is None:
            return
        attrs = {item.name: item.i for item in node.attribute}
        grid = _grid(name, scale, zero_point, record, attrs, bits, not stored.name.startswith("u"))
        codes = None
        if quantised in self._tensors and kind is not None:
            codes = kind.astype(grid.scheme.dtype, copy=False)
        elif constant:
            codes = _round(self._array(source), grid)
        if record and record["transposed"] and codes is not None:
            codes = np.ascontiguousarray(codes.T)
        if name in self.qdq.grids and self.qdq.grids[name] != grid:
            name = node.output[0]  # one tensor on two grids: the second is known by what it writes
        self.qdq.grids[name] = grid
        if codes is not None:
            self.qdq.codes[name] = codes
        else:
            self.qdq.dequantised.setdefault(name, node.output[0])

    def _name(self, output: str, quantised: str, source: str) -> str:
        if source in self._tensors:
            return source
        if output in self._outputs:
            return output
        if source:
            return source
        stem = _stem(quantised)
        return stem if stem != quantised else _stem(output)

    def _array(self, name: str) -> NDArray[Any] | None:
        from leadline.graph.read import array

        tensor = self._tensors.get(name)
        if tensor is None:
            return None
        try:
            return array(tensor, self._folder or None, "the model")
        except InputError as error:
            rule = f"tensor '{name}' must be complete, its external data beside the file"
            raise refuse("qdq.read", rule, str(error)) from error


def _record(text: str) -> dict[str, Any] | None:
    """What leadline noted on a DequantizeLinear or its own operator: the tensor's name, and its Scheme as "scheme"."""
    if not text.startswith(f'{{"{TAG}"'):
        return None
    try:
        note = json.loads(text)[TAG]
        return {"tensor": str(note.pop("tensor")), "transposed": bool(note.pop("transposed")), "scheme": Scheme(**note)}
    except (ValueError, TypeError, KeyError, AttributeError):
        return None  # edited by hand: read like anybody's model


def _grid(
    name: str,
    scale: NDArray[Any],
    zero_point: NDArray[Any] | None,
    record: dict[str, Any] | None,
    attrs: dict[str, int],
    bits: int,
    signed: bool,
) -> Grid:
    zeros = np.zeros(scale.shape, np.int32) if zero_point is None else zero_point.astype(np.int32).reshape(scale.shape)
    block = attrs.get("block_size", 0)
    if record:
        scheme: Scheme = record["scheme"]
        if record["transposed"] and block:
            scale, zeros = np.ascontiguousarray(scale.T), np.ascontiguousarray(zeros.T)
    else:
        symmetric = signed and not zeros.any()
        if scale.size == 1 and not block:
            scale, zeros = scale.reshape(()), zeros.reshape(())
            scheme = Scheme(bits, signed, symmetric)
        else:
            granularity = ("block", block) if block else ("axis", None)
            scheme = Scheme(bits, signed, symmetric, granularity[0], attrs.get("axis", 1), granularity[1])  # type: ignore[arg-type]
    try:
        return Grid(scale.astype(np.float32), zeros, scheme)
    except InputError as error:
        raise refuse("qdq.read", f"the grid of tensor '{name}' must be valid", str(error)) from error


def bits_of(dtype: np.dtype[Any]) -> int | None:
    """Width of an integer type that a Scheme knows; None for any other (float8)."""
    known: Iterable[int] = (2, 4, 8, 16, 32)
    return next((bits for bits in known if dtype.name in (f"int{bits}", f"uint{bits}")), None)


def _stem(name: str) -> str:
    return next((name.removesuffix(suffix) for suffix in _SUFFIXES if name.endswith(suffix)), name)


def _round(values: NDArray[Any] | None, grid: Grid) -> NDArray[Any] | None:
    from leadline.affine import quantize

    return None if values is None else quantize(np.asarray(values, np.float32, order="C"), grid)
