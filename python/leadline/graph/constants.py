"""Evaluating what does not depend on the inputs, and fixing the shape of what does: one walk in topological order."""

from __future__ import annotations

from collections import deque
from typing import Any

import numpy as np
import onnx
from onnx import helper, numpy_helper

from leadline.graph.ir import Array, Graph, Node, Value
from leadline.graph.operators import RANDOM, SHAPE_DEPENDS_ON_DATA, SHAPE_INPUTS
from leadline.graph.read import to_node
from leadline.graph.sequences import Sequences
from leadline.graph.tail import DependsOnDataError
from leadline.graph.write import IR_VERSION
from leadline.graph.write import to_node as to_proto
from leadline.types import InputError, refuse

_QUANTISED = {
    "ConvInteger", "DequantizeLinear", "DynamicQuantizeLinear", "MatMulInteger", "QuantizeLinear",
}  # fmt: skip
_VALUES_FOR_INFERENCE = 1024  # elements: shapes, axes, pads and scales are short
_MISFIT = "inputs of {node.op_type} writing '{node.outputs[0]}' of '{label}' must fit (is the sample's shape right?)"


def fold(graph: Graph, label: str) -> None:
    """Evaluate constant subgraphs in onnxruntime, inline If on a constant, and fill ``graph.values`` for the rest.

    `label` is what messages call the file.
    """
    values = {value.name: value for value in graph.inputs}
    weights = graph.weights
    kept = []
    queue = deque(graph.nodes)
    sequences = Sequences()
    while queue:
        node = sequences.unpack(queue.popleft(), values, weights)
        _check(node, graph.opset, label)
        if node.op_type == "CastLike" and node.inputs[1] in values:
            dtype = helper.np_dtype_to_tensor_dtype(values[node.inputs[1]].dtype)
            node = Node("Cast", node.inputs[:1], node.outputs, node.name, {"to": dtype})
        missing = [name for name in node.inputs if name and name not in weights and name not in values]
        if missing:
            raise refuse("Graph.load", f"every tensor of '{label}' must be written before it is read", repr(missing[0]))
        if any(isinstance(value, onnx.GraphProto) for value in node.attrs.values()):
            queue.extendleft(reversed(_inline(node, weights, label)))
        elif node.op_type in ("Shape", "Size") and node.inputs[0] in values:
            weights[node.outputs[0]] = _shape(node, values[node.inputs[0]].shape)
        elif all(name in weights for name in node.inputs if name):
            weights.update(_evaluate(node, {name: weights[name] for name in node.inputs if name}, graph.opset, label))
        else:
            values.update((value.name, value) for value in _infer(node, values, weights, graph.opset, label))
            kept.append(node)
    for output in graph.outputs:
        if output.name in weights:
            raise refuse(
                "Graph.load", f"outputs of '{label}' must depend on its inputs", f"the constant '{output.name}'"
            )
        if output.name not in values:
            raise refuse("Graph.load", f"outputs of '{label}' must be written by a node", repr(output.name))
    graph.nodes = kept
    graph.values = values
    graph.outputs = [values[output.name] for output in graph.outputs]
    graph.prune()


def _check(node: Node, opset: int, label: str) -> None:
    """Refuse what the normal form cannot hold."""
    if node.op_type in _QUANTISED or node.op_type.startswith("QLinear"):
        rule = f"'{label}' must be a float network; this one is already quantised"
        raise refuse("Graph.load", rule, f"{node.op_type} writing '{node.outputs[0]}'")
    if node.domain or not onnx.defs.has(node.op_type, opset):
        name = f"{node.domain}.{node.op_type}" if node.domain else node.op_type
        rule = f"operators of '{label}' must be standard ONNX (export again without runtime-specific optimisation)"
        raise refuse("Graph.load", rule, f"{name} writing '{node.outputs[0]}', unknown to opset {opset}")
    if node.op_type in RANDOM:
        raise refuse(
            "Graph.load", f"'{label}' must give the same output twice", f"{node.op_type} writing '{node.outputs[0]}'"
        )
    if node.op_type.startswith(("Sequence", "Optional", "SplitToSequence", "ConcatFromSequence")):
        raise refuse(
            "Graph.load", f"values of '{label}' must be tensors", f"{node.op_type} writing '{node.outputs[0]}'"
        )


def obstacle(node: Node, opset: int) -> str | None:
    """Why a network with this node may be refused whatever else it holds; None for a node that can be read."""
    try:
        _check(node, opset, "the network")
    except InputError as error:
        return str(error).split("] ", 1)[1].split(". Received", 1)[0]
    if any(isinstance(value, onnx.GraphProto) for value in node.attrs.values()):
        return "control flow must depend on constants only"
    return "its output's shape depends on the data" if node.op_type in SHAPE_DEPENDS_ON_DATA else None


def _inline(node: Node, weights: dict[str, Array], label: str) -> list[Node]:
    """The branch that an If with a constant condition takes, its names made unique by the If's output."""
    if node.op_type != "If" or node.inputs[0] not in weights:
        rule = f"control flow of '{label}' must depend on constants only"
        received = f"{node.op_type} writing '{node.outputs[0]}'"
        raise DependsOnDataError(refuse("Graph.load", rule, received), node.outputs[0])
    branch = node.attrs["then_branch" if weights[node.inputs[0]].all() else "else_branch"]
    inner = {tensor.name for tensor in branch.initializer} | {
        name for item in branch.node for name in item.output if name
    }
    renamed = {name: f"{node.outputs[0]}.{name}" for name in inner}
    nodes = []
    for tensor in branch.initializer:
        weights[renamed[tensor.name]] = numpy_helper.to_array(tensor)
    for item in map(to_node, branch.node):
        if any(isinstance(value, onnx.GraphProto) for value in item.attrs.values()):
            raise refuse(
                "Graph.load", f"control flow of '{label}' must not be nested", f"{item.op_type} in '{node.outputs[0]}'"
            )
        item.inputs = [renamed.get(name, name) for name in item.inputs]
        item.outputs = [renamed.get(name, name) for name in item.outputs]
        nodes.append(item)
    results = [renamed.get(value.name, value.name) for value in branch.output]
    return nodes + [Node("Identity", [inner], [outer]) for inner, outer in zip(results, node.outputs, strict=True)]


def _shape(node: Node, shape: tuple[int, ...]) -> Array:
    if node.op_type == "Size":
        return np.array(np.prod(shape, dtype=np.int64))
    return np.array(shape[node.attrs.get("start", 0) : node.attrs.get("end")], np.int64)


def _evaluate(node: Node, feed: dict[str, Array], opset: int, label: str) -> dict[str, Array]:
    if node.op_type == "Constant" and isinstance(node.attrs.get("value"), np.ndarray):
        return {node.outputs[0]: node.attrs["value"]}
    if node.op_type == "Identity":
        return {node.outputs[0]: feed[node.inputs[0]]}
    return run_node(node, feed, opset, label)


def run_node(node: Node, feed: dict[str, Array], opset: int, label: str) -> dict[str, Array]:
    """One node in onnxruntime: the arithmetic that the network itself will meet."""
    import onnxruntime as ort

    options = ort.SessionOptions()
    options.log_severity_level = 4
    options.intra_op_num_threads = 1
    options.graph_optimization_level = ort.GraphOptimizationLevel.ORT_DISABLE_ALL
    names = [name for name in node.outputs if name]
    inputs = [
        helper.make_tensor_value_info(name, helper.np_dtype_to_tensor_dtype(array.dtype), array.shape)
        for name, array in feed.items()
    ]
    body = helper.make_graph([to_proto(node)], "node", inputs, [onnx.ValueInfoProto(name=name) for name in names])
    model = helper.make_model(body, opset_imports=[helper.make_opsetid("", opset)], ir_version=IR_VERSION)
    try:
        session = ort.InferenceSession(model.SerializeToString(), options, providers=["CPUExecutionProvider"])
        return dict(zip(names, session.run(names, feed), strict=True))
    except Exception as error:  # onnxruntime raises a dozen unrelated classes
        rule = f"operators of '{label}' must run in onnxruntime"
        raise refuse("Graph.load", rule, f"{node.op_type} writing '{names[0]}': {error}") from None


def _infer(node: Node, values: dict[str, Value], weights: dict[str, Array], opset: int, label: str) -> list[Value]:
    """The outputs' types: from the operator's own inference, or by running it on zeros where that leaves a gap."""
    places = SHAPE_INPUTS.get(node.op_type, ())
    if node.op_type in SHAPE_DEPENDS_ON_DATA or any(
        name in values for i, name in enumerate(node.inputs) if i in places
    ):
        rule, received = (
            f"shapes of '{label}' must not depend on the data",
            f"{node.op_type} writing '{node.outputs[0]}'",
        )
        raise DependsOnDataError(refuse("Graph.load", rule, received), node.outputs[0])
    types, data = {}, {}
    for name in filter(None, node.inputs):
        dtype, shape = (
            (values[name].dtype, values[name].shape) if name in values else (weights[name].dtype, weights[name].shape)
        )
        types[name] = helper.make_tensor_type_proto(helper.np_dtype_to_tensor_dtype(dtype), shape)
        if name in weights and weights[name].size <= _VALUES_FOR_INFERENCE:
            data[name] = numpy_helper.from_array(weights[name], name)
    _check_channels(node, types, label)
    try:
        found = onnx.shape_inference.infer_node_outputs(
            onnx.defs.get_schema(node.op_type, opset), to_proto(node), types, data,
            opset_imports=[helper.make_opsetid("", opset)], ir_version=IR_VERSION,
        )  # fmt: skip
    except (onnx.shape_inference.InferenceError, onnx.checker.ValidationError) as error:
        shapes = {name: _dims(item) for name, item in types.items()}
        rule = _MISFIT.format(node=node, label=label)
        raise refuse("Graph.load", rule, f"shapes {shapes}: {error}") from None
    names = [name for name in node.outputs if name]
    if all(name in found and None not in _dims(found[name]) for name in names):
        return [_value(name, found[name]) for name in names]
    feed = {
        name: weights[name] if name in weights else np.zeros(values[name].shape, values[name].dtype) for name in types
    }
    return [Value(name, array.dtype, array.shape) for name, array in run_node(node, feed, opset, label).items()]


def _check_channels(node: Node, types: dict[str, onnx.TypeProto], label: str) -> None:
    """What ONNX's own inference does not look at."""
    if node.op_type not in ("Conv", "ConvTranspose"):
        return
    x, weight = (_dims(types[name]) for name in node.inputs[:2])
    channels = weight[0] if node.op_type == "ConvTranspose" else (weight[1] or 0) * node.attrs.get("group", 1)
    if x[1] != channels:
        raise refuse("Graph.load", _MISFIT.format(node=node, label=label), f"{x[1]} channels for {channels}")


def _dims(item: onnx.TypeProto) -> tuple[int | None, ...]:
    if not item.tensor_type.HasField("shape"):
        return (None,)
    return tuple(dim.dim_value if dim.HasField("dim_value") else None for dim in item.tensor_type.shape.dim)


def _value(name: str, item: onnx.TypeProto) -> Value:
    dtype: np.dtype[Any] = np.dtype(helper.tensor_dtype_to_np_dtype(item.tensor_type.elem_type))
    return Value(name, dtype, tuple(dim.dim_value for dim in item.tensor_type.shape.dim))
