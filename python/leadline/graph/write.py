"""Graph to ModelProto and to files."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import numpy as np
import onnx
from onnx import TensorProto, helper, numpy_helper

from leadline.files import replacing
from leadline.graph import wire
from leadline.graph.batch import free
from leadline.graph.functions import definitions
from leadline.graph.ir import DOMAIN, Array, Graph, Node, Value
from leadline.graph.spool import rest
from leadline.graph.wire import place

IR_VERSION = 10
INLINE_BYTES = 1024  # smaller tensors stay in the model: shape inference needs the values of shapes, axes and scales
LIMIT = 2_000_000_000  # bytes of weights from which they go to a file of their own: one ONNX file holds 2 GiB
_ALIGN = 4096  # page size: lets a runtime map external data


def attribute(node: Node, name: str, value: Any) -> onnx.AttributeProto:
    """One attribute; an empty list takes its type from the operator's schema."""
    if isinstance(value, np.ndarray):
        return helper.make_attribute(name, numpy_helper.from_array(value))
    if isinstance(value, list) and not value:
        kind = onnx.defs.get_schema(node.op_type, domain=node.domain).attributes[name].type
        return helper.make_attribute(name, value, attr_type=kind.value)  # type: ignore[attr-defined]
    return helper.make_attribute(name, value)


def to_node(node: Node) -> onnx.NodeProto:
    proto = helper.make_node(node.op_type, node.inputs, node.outputs, name=node.name, domain=node.domain)
    proto.attribute.extend(attribute(node, name, value) for name, value in node.attrs.items())
    return proto


def value_info(value: Value) -> onnx.ValueInfoProto:
    return helper.make_tensor_value_info(value.name, helper.np_dtype_to_tensor_dtype(value.dtype), value.shape)


def placeholder(name: str, array: Array, location: str, offset: int = 0) -> TensorProto:
    """A tensor whose bytes are elsewhere: in the file `location`, or handed to the runtime under its name."""
    dtype = helper.np_dtype_to_tensor_dtype(array.dtype)
    tensor = TensorProto(name=name, dims=array.shape, data_type=dtype)
    place(tensor, location, offset, array.nbytes)
    return tensor


Change = Callable[[str, Array], Array]
"""Of a weight as a Graph has it: what is written in its place, of the same type and shape."""


def to_model(
    graph: Graph, inline: int | None = None, location: str = "weights", change: Change = lambda name, array: array
) -> onnx.ModelProto:
    """The graph as a model. Weights above `inline` bytes (None: no bound) are laid out in the file `location`."""
    ends = {value.name for value in (*graph.inputs, *graph.outputs)}
    body = helper.make_graph(
        [to_node(node) for node in graph.nodes],
        graph.name,
        [value_info(value) for value in graph.inputs],
        [value_info(value) for value in graph.outputs],
        value_info=[value_info(value) for name, value in graph.values.items() if name not in ends],
    )
    domains = sorted({node.domain for node in graph.nodes} - {""})
    opsets = [helper.make_opsetid("", graph.opset), *(helper.make_opsetid(domain, 1) for domain in domains)]
    functions = definitions((node.op_type for node in graph.nodes if node.domain == DOMAIN), graph.opset)
    model = helper.make_model(
        body, opset_imports=opsets, ir_version=IR_VERSION, producer_name="leadline", functions=functions
    )
    helper.set_model_props(model, graph.metadata)
    for name, array, offset in layout(graph, inline):  # one by one, and last, since each of the above is copied
        if offset is None:
            tensor = numpy_helper.from_array(change(name, array), name)
        else:
            tensor = placeholder(name, array, location, offset)
        model.graph.initializer.append(tensor)
    if graph.batch is not None and graph.batch.proven:
        free(model, graph.batch)
    if graph.tail is not None:
        graph.tail.append(model)
    return model


def layout(graph: Graph, inline: int | None) -> Iterator[tuple[str, Array, int | None]]:
    """(name, array, offset in the external file); offset None for a tensor kept in the model."""
    end = 0
    for name, array in graph.weights.items():
        if inline is None or array.nbytes <= inline or array.dtype.kind == "V":  # what numpy does not have stays
            yield name, array, None
        else:
            start = -(-end // _ALIGN) * _ALIGN
            end = start + array.nbytes
            yield name, array, start


def save(graph: Graph, path: Path, limit: int = LIMIT, change: Change = lambda name, array: array) -> None:
    """One weight after the other. The data go in place first, so that a model never points at missing data."""
    large = sum(array.nbytes for array in graph.weights.values()) >= limit
    data = path.with_name(path.name + ".data")
    with replacing(path) as file, file.open("wb") as model:
        bound = INLINE_BYTES if large else wire.LARGE
        proto = to_model(graph, bound, data.name, change)
        apart = {name: (array, offset) for name, array, offset in layout(graph, bound) if offset is not None}
        if large:
            model.write(proto.SerializeToString())
            with replacing(data) as values, values.open("wb") as stream:
                for name, (array, offset) in apart.items():
                    stream.seek(offset)
                    np.ascontiguousarray(change(name, array)).tofile(stream)
                    rest(array)
        else:
            wire.write(proto, model, {name: array for name, (array, _) in apart.items()}, change)
