"""Bringing a folded graph to opset 21, from older and from newer ones."""

from __future__ import annotations

import onnx
from onnx import helper, numpy_helper

from leadline.graph.ir import OPSET, Graph, Node, Value
from leadline.graph.read import to_node
from leadline.graph.write import INLINE_BYTES, to_model, value_info
from leadline.types import refuse

OLDEST, NEWEST = 7, 24


def check(opset: int, label: str) -> None:
    if not OLDEST <= opset <= NEWEST:
        raise refuse("Graph.load", f"'{label}' must use ONNX opset {OLDEST} to {NEWEST}", f"opset {opset}")


def convert(graph: Graph, label: str) -> None:
    """Rewrite the nodes for opset 21. Large weights stay out of the converter: it only sees their types."""
    if graph.opset < OPSET:
        _upgrade(graph, label)
    elif graph.opset > OPSET:
        _downgrade(graph, label)
    graph.opset = OPSET


def _upgrade(graph: Graph, label: str) -> None:
    model = to_model(graph, INLINE_BYTES)
    del model.graph.value_info[:]
    small = [tensor for tensor in model.graph.initializer if not tensor.external_data]
    large = [
        Value(tensor.name, graph.weights[tensor.name].dtype, tuple(tensor.dims))
        for tensor in model.graph.initializer
        if tensor.external_data
    ]
    del model.graph.initializer[:]
    model.graph.initializer.extend(small)
    model.graph.input.extend(map(value_info, large))
    try:
        model = onnx.version_converter.convert_version(model, OPSET)
    except RuntimeError as error:
        reason = str(error).splitlines()[0]
        raise refuse("Graph.load", f"'{label}' must convert from opset {graph.opset} to {OPSET}", reason) from None
    graph.nodes = list(map(to_node, model.graph.node))
    for node in graph.nodes:
        if node.op_type == "Resize" and graph.opset < 11:
            # The converter leaves the new defaults; before opset 11 there was only this meaning.
            node.attrs |= {"coordinate_transformation_mode": "asymmetric", "nearest_mode": "floor"}
    graph.weights.update((tensor.name, numpy_helper.to_array(tensor)) for tensor in model.graph.initializer)


def _downgrade(graph: Graph, label: str) -> None:
    """Opsets 22 to 24 add types, operators and attributes; what 21 has too means the same there."""
    for node in graph.nodes:
        new = onnx.defs.get_schema(node.op_type, graph.opset)
        if not onnx.defs.has(node.op_type, OPSET):
            raise _unknown(node, graph.opset, label, node.op_type)
        old = onnx.defs.get_schema(node.op_type, OPSET)
        for name in list(node.attrs):
            if name in old.attributes:
                continue
            default = new.attributes[name].default_value
            if not default.name or helper.get_attribute_value(default) != node.attrs[name]:
                raise _unknown(node, graph.opset, label, f"attribute {name} of {node.op_type}")
            del node.attrs[name]


def _unknown(node: Node, opset: int, label: str, what: str) -> Exception:
    rule = f"'{label}' (opset {opset}) must use only what opset {OPSET} has; export with opset_version={OPSET}"
    return refuse("Graph.load", rule, f"{what}, writing '{node.outputs[0]}'")
