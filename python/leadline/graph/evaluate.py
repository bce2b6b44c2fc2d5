"""One node by itself: run in onnxruntime, or asked for the types of what it writes."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import numpy as np
import onnx
from onnx import helper, numpy_helper

from leadline.graph.ir import Array, Node, Value
from leadline.graph.known import Known, title
from leadline.graph.write import IR_VERSION
from leadline.graph.write import to_node as to_proto
from leadline.types import InputError, refuse

_VALUES_FOR_INFERENCE = 1024  # elements: shapes, axes, pads and scales are short


def constants(node: Node, opset: int, known: Known) -> dict[str, Array]:
    """What a node computes from constants alone, in the file's own types."""
    feed = {name: known.weights[name] for name in node.inputs if name}
    if node.op_type == "Constant" and isinstance(node.attrs.get("value"), np.ndarray):
        return {node.outputs[0]: node.attrs["value"]}
    if node.op_type == "Identity":
        return {node.outputs[0]: feed[node.inputs[0]]}
    return run_node(node, feed, opset, known.label)


def run_node(node: Node, feed: Mapping[str, Array], opset: int, label: str) -> dict[str, Array]:
    """One node in onnxruntime: the arithmetic that the network itself will meet."""
    import onnxruntime as ort

    options = ort.SessionOptions()
    options.log_severity_level = 4
    options.intra_op_num_threads = 1
    options.graph_optimization_level = ort.GraphOptimizationLevel.ORT_DISABLE_ALL
    names = [name for name in node.outputs if name]
    try:
        inputs = [
            helper.make_tensor_value_info(name, helper.np_dtype_to_tensor_dtype(array.dtype), array.shape)
            for name, array in feed.items()
        ]
        body = helper.make_graph([to_proto(node)], "node", inputs, [onnx.ValueInfoProto(name=name) for name in names])
        opsets = [helper.make_opsetid("", opset), *([helper.make_opsetid(node.domain, 1)] if node.domain else [])]
        model = helper.make_model(body, opset_imports=opsets, ir_version=IR_VERSION)
        session = ort.InferenceSession(model.SerializeToString(), options, providers=["CPUExecutionProvider"])
        return dict(zip(names, map(np.asarray, session.run(names, dict(feed))), strict=True))
    except Exception as error:  # onnxruntime raises a dozen unrelated classes
        rule = f"operators of '{label}' must run in onnxruntime"
        raise refuse("Graph.load", rule, f"{title(node)}: {' '.join(str(error).split())[:300]}") from None


def outputs(node: Node, opset: int, known: Known, data: Mapping[str, Array]) -> list[Value] | str:
    """The outputs' types from the operator's own inference; what it says against the inputs, which may be nothing,
    where there is none. `data`: activations whose values decide a shape."""
    types, small = {}, {}
    for name in filter(None, node.inputs):
        types[name] = helper.make_tensor_type_proto(
            helper.np_dtype_to_tensor_dtype(known.dtype(name)), known.shape(name)
        )
        array = data.get(name, known.weights.get(name))
        if array is not None and array.size <= _VALUES_FOR_INFERENCE:
            small[name] = numpy_helper.from_array(array, name)
    try:
        inferred = onnx.shape_inference.infer_node_outputs(
            onnx.defs.get_schema(node.op_type, opset), to_proto(node), types, small,
            opset_imports=[helper.make_opsetid("", opset)], ir_version=IR_VERSION,
        )  # fmt: skip
    except (onnx.shape_inference.InferenceError, onnx.checker.ValidationError, RuntimeError, ValueError) as error:
        if "unsupported type" in str(error):
            dtypes = ", ".join(str(known.dtype(name)) for name in types)
            raise known.refuse(
                f"operators of {{label}} must take their types in opset {opset}", node, f" of {dtypes}"
            ) from None
        return str(error)
    names = [name for name in node.outputs if name]
    if all(name in inferred and None not in dims(inferred[name]) for name in names):
        return [_value(name, inferred[name]) for name in names]
    return ""


def misfit(node: Node, known: Known, why: str) -> InputError:
    shapes = ", ".join(f"{name} {list(known.shape(name))}" for name in node.inputs if name)
    return known.refuse(
        "inputs of each node of {label} must fit (is the sample's shape right?)", node, f", of {shapes}: {why}"
    )


def check_channels(node: Node, known: Known) -> None:
    """What ONNX's own inference does not look at."""
    if node.op_type not in ("Conv", "ConvTranspose"):
        return
    x, weight = (known.shape(name) for name in node.inputs[:2])
    if min(len(x), len(weight)) < 2:
        raise misfit(node, known, "no channels")
    channels = weight[0] if node.op_type == "ConvTranspose" else weight[1] * node.attrs.get("group", 1)
    if x[1] != channels:
        raise misfit(node, known, f"{x[1]} channels for {channels}")


def dims(item: onnx.TypeProto) -> tuple[int | None, ...]:
    if not item.tensor_type.HasField("shape"):
        return (None,)
    return tuple(dim.dim_value if dim.HasField("dim_value") else None for dim in item.tensor_type.shape.dim)


def _value(name: str, item: onnx.TypeProto) -> Value:
    dtype: np.dtype[Any] = np.dtype(helper.tensor_dtype_to_np_dtype(item.tensor_type.elem_type))
    return Value(name, dtype, tuple(dim.dim_value for dim in item.tensor_type.shape.dim))
