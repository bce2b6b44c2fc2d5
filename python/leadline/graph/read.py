"""Reading ONNX files: the bytes, the weights (external data included), and errors that name the culprit."""

from __future__ import annotations

import math
import os
from collections.abc import Iterable, Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
import onnx
import onnx.inliner
from google.protobuf.message import DecodeError  # type: ignore[import-untyped]
from onnx import AttributeProto, TensorProto, helper, numpy_helper

from leadline.graph.ir import Array, Node
from leadline.graph.names import scope
from leadline.graph.wire import LARGE, skeleton
from leadline.types import refuse

Dims = tuple[int | None, ...]
"""None for a free dim; 0 where the file declares an empty axis."""

_WIDER = {TensorProto.FLOAT16: "float16", TensorProto.BFLOAT16: "bfloat16", TensorProto.DOUBLE: "float64"}
"""Types whose activations a Graph holds in float32."""


_PACKED = ("int4", "uint4", "int2", "uint2")
"""Several to a byte."""


@dataclass(frozen=True)
class Source:
    """A file as read: nodes and weights apart, nothing interpreted yet."""

    label: str  # how messages call it
    nodes: list[Node]
    weights: dict[str, Array]
    inputs: list[tuple[str, np.dtype[Any], Dims | None]]  # dims None where the file does not even say how many
    outputs: list[str]
    name: str
    opset: int
    notes: list[str] = field(default_factory=list)
    types: dict[str, onnx.TypeProto] = field(default_factory=dict)  # of inputs and outputs, as declared


def is_float(dtype: np.dtype[Any]) -> bool:
    return dtype.kind == "f" or dtype.name == "bfloat16"


def parse(path: str | os.PathLike[str], function: str = "Graph.load") -> onnx.ModelProto:
    """The model of a file. External data are left where they are, and so are large weights: they count as external
    data, too, in this very file."""
    file = Path(path)
    if not file.is_file():
        raise refuse(
            function,
            "path must be an ONNX file",
            f"'{path}', which {'is a folder' if file.is_dir() else 'does not exist'}",
        )
    model = onnx.ModelProto()
    try:
        model.ParseFromString(skeleton(file.resolve()))
    except (DecodeError, ValueError, IndexError):
        raise refuse(function, "path must be a whole ONNX file", f"'{path}', which is truncated or no ONNX") from None
    if not model.graph.node or not model.opset_import:
        raise refuse(function, "path must be a whole ONNX file", f"'{path}', which holds no network")
    return model


def read(path: str | os.PathLike[str]) -> Source:
    """A file with its weights."""
    return unpack(parse(path), Path(path).resolve().parent, Path(path).name)


def external_files(path: str | os.PathLike[str]) -> list[Path]:
    """The files of weights that an ONNX file names, wherever it names them: weights, constants, bodies of operators.
    Sorted; they need not exist. None of a file that is no whole ONNX."""
    file, model = Path(path).resolve(), onnx.ModelProto()
    try:
        model.ParseFromString(skeleton(file))
    except (DecodeError, ValueError, IndexError):
        return []
    named = {
        entry.value
        for nodes, graph in ((model.graph.node, model.graph), *((function.node, None) for function in model.functions))
        for tensor in _tensors(nodes, graph)
        if tensor.data_location == TensorProto.EXTERNAL
        for entry in tensor.external_data
        if entry.key == "location"
    }
    return [file.parent / location for location in sorted(named - {file.name})]


def _tensors(nodes: Iterable[onnx.NodeProto], graph: onnx.GraphProto | None) -> Iterator[TensorProto]:
    """Of a graph or, without one, of a function's nodes."""
    if graph is not None:
        yield from graph.initializer
        for sparse in graph.sparse_initializer:
            yield from (sparse.values, sparse.indices)
    for node in nodes:
        for attribute in node.attribute:
            yield from (attribute.t, *attribute.tensors)
            for body in (attribute.g, *attribute.graphs):
                yield from _tensors(body.node, body)


def load_weights(model: onnx.ModelProto, folder: str | os.PathLike[str]) -> None:
    """Bring external data into the model. Raises InputError where a file is missing or too short."""
    for tensor in _tensors(model.graph.node, model.graph):
        if tensor.data_location == TensorProto.EXTERNAL:
            tensor.CopyFrom(numpy_helper.from_array(array(tensor, folder, "the model", widen=False), tensor.name))


def inspect_inputs(path: str | os.PathLike[str]) -> list[tuple[str, np.dtype[Any], Dims]]:
    """The inputs a file declares: (name, dtype, dims), None for a free dim. Quantised files too.

    Where the file says float16, bfloat16 or float64, `Graph.load` makes it float32, and so it is here.
    """
    model = parse(path, "inspect_inputs")
    stored = {tensor.name for tensor in model.graph.initializer}
    declared = [_input(value, Path(path).name) for value in model.graph.input if value.name not in stored]
    return [(name, dtype, tuple(dim or None for dim in dims or ())) for name, dtype, dims in declared]


def unpack(model: onnx.ModelProto, base_dir: str | os.PathLike[str] | None, label: str) -> Source:
    """Take a model apart. The arrays of a large model are its memory: no proto is copied."""
    if model.functions:
        model = onnx.inliner.inline_local_functions(model)
    graph = model.graph
    opset = next((entry.version for entry in model.opset_import if entry.domain in ("", "ai.onnx")), 0)
    weights = {tensor.name: array(tensor, base_dir, label) for tensor in graph.initializer}
    weights |= {tensor.values.name: _dense(tensor, base_dir, label) for tensor in graph.sparse_initializer}
    return Source(
        label,
        list(map(to_node, graph.node)),
        weights,
        [_input(value, label) for value in graph.input if value.name not in weights],
        [value.name for value in graph.output],
        graph.name,
        opset,
        list(_notes(model.graph, weights)),
        {value.name: value.type for value in (*graph.input, *graph.output)},
    )


def _notes(graph: onnx.GraphProto, weights: dict[str, Array]) -> Iterator[str]:
    """What is held in float32 although the file has another type."""
    for kind, values in (("input", graph.input), ("output", graph.output)):
        for value in values:
            dtype = _WIDER.get(value.type.tensor_type.elem_type)
            if dtype and value.name not in weights:
                yield f"{value.name}: {kind} of {dtype} in the file, of float32 here and in all that is written"
    for code, dtype in _WIDER.items():
        names = [tensor.name for tensor in graph.initializer if tensor.data_type == code]
        if names:
            yield f"{names[0]}: {dtype} in the file, computed with in float32; so are {len(names)} weights in all"


def _input(value: onnx.ValueInfoProto, label: str) -> tuple[str, np.dtype[Any], Dims | None]:
    if value.type.WhichOneof("value") != "tensor_type":
        kind = (value.type.WhichOneof("value") or "untyped").removesuffix("_type")
        raise refuse(
            "Graph.load",
            f"input '{value.name}' of '{label}' must be a tensor",
            "an optional" if kind == "optional" else f"a {kind}",
        )
    tensor = value.type.tensor_type
    dims = tuple(
        dim.dim_value if dim.dim_value > 0 or (dim.HasField("dim_value") and dim.dim_value == 0) else None
        for dim in tensor.shape.dim
    )
    code = TensorProto.FLOAT if tensor.elem_type in _WIDER else tensor.elem_type
    try:
        dtype = np.dtype(helper.tensor_dtype_to_np_dtype(code))
    except (KeyError, ValueError, TypeError):
        raise refuse("Graph.load", f"input '{value.name}' of '{label}' must have a type", f"type {code}") from None
    return value.name, dtype, dims if tensor.HasField("shape") else None


def _dense(sparse: onnx.SparseTensorProto, base_dir: str | os.PathLike[str] | None, label: str) -> Array:
    """A sparse weight as any other."""
    values, places = array(sparse.values, base_dir, label), array(sparse.indices, base_dir, label)
    whole = np.zeros(tuple(sparse.dims), values.dtype)
    try:
        if places.ndim == 1:
            whole.reshape(-1)[places] = values
        else:
            whole[tuple(places.T)] = values
    except (IndexError, ValueError):
        raise refuse(
            "Graph.load", f"weight '{sparse.values.name}' of '{label}' must match its shape", list(sparse.dims)
        ) from None
    return whole


def array(tensor: TensorProto, base_dir: str | os.PathLike[str] | None, label: str, widen: bool = True) -> Array:
    """The values of a tensor, from the model or from its external file; bfloat16 as float32, if `widen`."""
    if tensor.data_location != TensorProto.EXTERNAL:
        try:
            values = np.asarray(numpy_helper.to_array(tensor))
            return values.astype(np.float32) if widen and values.dtype.name == "bfloat16" else values
        except (ValueError, TypeError, KeyError, IndexError):
            raise refuse(
                "Graph.load", f"weight '{tensor.name}' of '{label}' must match its shape", list(tensor.dims)
            ) from None
    entry = {item.key: item.value for item in tensor.external_data}
    location, dtype = entry.get("location", ""), helper.tensor_dtype_to_np_dtype(tensor.data_type)
    rule = f"external data of weight '{tensor.name}' of '{label}' must be beside the file"
    if base_dir is None:
        rule = f"weight '{tensor.name}' of '{label}' must be in the model, or be found with Graph.load(path)"
        raise refuse("Graph.from_model", rule, f"a weight in another file, '{location}'")
    if os.path.isabs(location) or ".." in Path(location).parts:
        raise refuse("Graph.load", rule, f"'{location}'")
    file, offset, shape = Path(base_dir) / location, int(entry.get("offset", 0)), tuple(tensor.dims)
    try:
        if dtype.name in _PACKED:
            size = -(-math.prod(shape) * int(dtype.name[-1]) // 8)
            packed = _stored(file, offset, np.dtype(np.uint8), (size,))
            whole = TensorProto(dims=tensor.dims, data_type=tensor.data_type, raw_data=packed.tobytes())
            return np.asarray(numpy_helper.to_array(whole))
        values = _stored(file, offset, dtype, shape)
    except OSError:
        raise refuse("Graph.load", rule, f"'{location}', which cannot be read") from None
    except ValueError:
        raise refuse("Graph.load", rule, f"'{location}', which is too short") from None
    return values.astype(np.float32) if widen and values.dtype.name == "bfloat16" else values


def _stored(file: Path, offset: int, dtype: np.dtype[Any], shape: tuple[int, ...]) -> Array:
    """What a file holds at a place: mapped into memory where that is large and aligned, else read. Raises ValueError
    where the file ends before."""
    count = math.prod(shape)
    if count * dtype.itemsize > LARGE and offset % dtype.itemsize == 0:
        return np.asarray(np.memmap(file, dtype, "r", offset, shape))
    values = np.fromfile(file, dtype, count, offset=offset)
    if values.size != count:
        raise ValueError("a file that ends before")
    return values.reshape(shape)


def to_node(proto: onnx.NodeProto) -> Node:
    """A node with plain attributes. Subgraphs stay GraphProto, for `constants` to inline or refuse."""
    domain = "" if proto.domain == "ai.onnx" else proto.domain
    attrs = dict(_attributes(proto))
    return Node(proto.op_type, list(proto.input), list(proto.output), scope(proto), attrs, domain)


_TYPES = {"to", "dtype", "output_datatype"}  # attributes that name a tensor's type


def _attributes(proto: onnx.NodeProto) -> Iterator[tuple[str, Any]]:
    for item in proto.attribute:
        value = helper.get_attribute_value(item)
        if item.type == AttributeProto.STRING:
            yield item.name, value.decode(errors="replace")
        elif item.type == AttributeProto.TENSOR:
            yield item.name, array(value, None, proto.name or proto.op_type)
        elif item.type == AttributeProto.STRINGS:
            yield item.name, [text.decode(errors="replace") for text in value]
        elif item.type in (AttributeProto.INTS, AttributeProto.FLOATS):
            yield item.name, list(value)
        elif item.name in _TYPES and value == TensorProto.BFLOAT16:
            yield item.name, int(TensorProto.FLOAT)
        else:
            yield item.name, value
