"""One node at a time from older opsets, and from newer ones, to opset 21."""

from __future__ import annotations

import math
from collections.abc import Iterable
from typing import Any

import numpy as np
import onnx
from onnx import helper

from leadline.graph.ir import OPSET, Node
from leadline.graph.known import Known, title
from leadline.types import refuse

OLDEST, NEWEST = 7, onnx.defs.onnx_opset_version()

# Attributes that have become inputs, each with its place.
_NOW_INPUTS: dict[str, dict[str, int]] = {
    "Clip": {"min": 1, "max": 2},
    "DFT": {"axis": 2},
    "Pad": {"pads": 1, "value": 2},
    "Slice": {"starts": 1, "ends": 2, "axes": 3},
    "Split": {"split": 1},
    "Squeeze": {"axes": 1},
    "TopK": {"k": 1},
    "Unsqueeze": {"axes": 1},
    "Upsample": {"scales": 1},
} | {
    f"Reduce{what}": {"axes": 1}
    for what in ("L1", "L2", "LogSum", "LogSumExp", "Max", "Mean", "Min", "Prod", "Sum", "SumSquare")
}
_RENAMED = {"Scatter": "ScatterElements", "Upsample": "Resize"}
_GRID_SAMPLE = {"bilinear": "linear", "bicubic": "cubic"}  # modes before opset 20


def check(opset: int, label: str) -> None:
    if not OLDEST <= opset <= NEWEST:
        rule = f"'{label}' must use ONNX opset {OLDEST} to {NEWEST}; export it with opset_version={OPSET}"
        raise refuse("Graph.load", rule, f"opset {opset}")


def check_nodes(nodes: Iterable[Node], opset: int, label: str) -> None:
    """Refuse a node that lacks what its operator needs; of operators that ONNX does not have, nothing is known here."""
    for node in nodes:
        if node.domain or not onnx.defs.has(node.op_type, opset):
            continue
        schema = onnx.defs.get_schema(node.op_type, opset)
        inputs = [*node.inputs, *[""] * schema.min_input]
        needs = [
            item.name
            for item, name in zip(schema.inputs, inputs, strict=False)
            if not name and item.option == onnx.defs.OpSchema.FormalParameterOption.Single
        ]
        needs += [name for name, item in schema.attributes.items() if item.required and name not in node.attrs]
        if not any(node.outputs):
            needs.append("an output")
        if needs:
            rule = f"nodes of '{label}' must have what their operators need"
            raise refuse("Graph.load", rule, f"{title(node)} without {needs[0]}")
        if len(node.inputs) > schema.max_input:
            rule = f"nodes of '{label}' must have at most the inputs that their operators take"
            raise refuse("Graph.load", rule, f"{title(node)} with {len(node.inputs)}")


def restated(node: Node, opset: int, known: Known) -> list[Node] | None:
    """The nodes of opset 21 that compute what a node of ONNX's own domain does at `opset`; None where 21 cannot."""
    if not onnx.defs.has(node.op_type, OPSET):
        return None
    old, new = onnx.defs.get_schema(node.op_type, opset), onnx.defs.get_schema(node.op_type, OPSET)
    if old.since_version == new.since_version:
        return [node]
    return _newer(node, old, new, known) if opset < OPSET else _older(node, old, new)


def _newer(node: Node, old: onnx.defs.OpSchema, new: onnx.defs.OpSchema, known: Known) -> list[Node]:
    attrs, inputs = dict(node.attrs), list(node.inputs)
    for name in old.attributes:  # a default that is another one today is written out
        if name not in attrs and _default(old, name) is not None and _default(old, name) != _default(new, name):
            attrs[name] = _default(old, name)
    for name, place in _NOW_INPUTS.get(node.op_type, {}).items():
        if name not in old.attributes or name not in attrs:
            continue
        value = np.asarray(attrs.pop(name))
        if node.op_type == "Clip" and abs(value) >= np.finfo(np.float32).max:
            continue  # no bound at all
        inputs += [""] * (place + 1 - len(inputs))
        value = value.astype(np.float32 if value.dtype.kind == "f" else np.int64)
        inputs[place] = known.constant(value[None] if node.op_type == "TopK" else value)
    op_type = _RENAMED.get(node.op_type, node.op_type)
    again = Node(op_type, inputs, list(node.outputs), node.name, attrs)
    if node.op_type in ("Resize", "Upsample") and old.since_version < 11:
        again.inputs.insert(1, "")  # regions; and before opset 11 there was only this meaning
        attrs |= {"coordinate_transformation_mode": "asymmetric", "nearest_mode": "floor"}
    elif node.op_type in ("Softmax", "LogSoftmax", "Hardmax"):
        return _flattened(again, known) if old.since_version < 13 else [again]
    elif node.op_type == "BatchNormalization":
        if not attrs.pop("spatial", 1):
            raise known.refuse("BatchNormalization of {label} must be over channels (spatial=1)", node)
        if old.since_version < 14:
            del again.outputs[1:]  # of training
    elif node.op_type == "Dropout":
        attrs.pop("ratio", None)
    elif node.op_type == "Split" and len(inputs) < 2:
        attrs["num_outputs"] = len(node.outputs)
    elif node.op_type == "GridSample":
        attrs["mode"] = _GRID_SAMPLE.get(attrs["mode"], attrs["mode"])
    elif node.op_type == "RoiAlign" and old.since_version < 16:
        attrs["coordinate_transformation_mode"] = "output_half_pixel"
    elif node.op_type == "GroupNormalization":
        return _group_normalization(again, known)
    return [again]


def _default(schema: onnx.defs.OpSchema, name: str) -> Any:
    item = schema.attributes[name].default_value if name in schema.attributes else None
    if item is None or not item.name:
        return None
    value = helper.get_attribute_value(item)
    return value.decode() if isinstance(value, bytes) else value


def _flattened(node: Node, known: Known) -> list[Node]:
    """Before opset 13, over all axes from one on at once."""
    shape = known.shape(node.inputs[0])
    axis = node.attrs.get("axis", 1) % max(len(shape), 1)
    if axis >= len(shape) - 1:
        node.attrs["axis"] = -1
        return [node]
    flat, result = known.inner(node, "flat"), known.inner(node, "rows")
    rows = (math.prod(shape[:axis]), math.prod(shape[axis:]))
    return [
        Node("Reshape", [node.inputs[0], known.constant(np.array(rows, np.int64))], [flat]),
        Node(node.op_type, [flat], [result], node.name, {"axis": -1}),
        Node("Reshape", [result, known.constant(np.array(shape, np.int64))], node.outputs),
    ]


def _group_normalization(node: Node, known: Known) -> list[Node]:
    """Before opset 21, scale and bias are of groups, not of channels."""
    groups, channels = node.attrs["num_groups"], known.shape(node.inputs[0])[1]
    nodes = []
    for place in (1, 2):
        tensor, shapes = node.inputs[place], [(groups, 1), (groups, channels // groups), (channels,)]
        for op_type, shape in zip(("Reshape", "Expand", "Reshape"), shapes, strict=True):
            following = known.inner(node, op_type)
            nodes.append(Node(op_type, [tensor, known.constant(np.array(shape, np.int64))], [following]))
            tensor = following
        node.inputs[place] = tensor
    return [*nodes, node]


def _older(node: Node, new: onnx.defs.OpSchema, old: onnx.defs.OpSchema) -> list[Node] | None:
    """Opsets from 22 on add types, operators and attributes; what 21 has too means the same there."""
    attrs = {}
    for name, value in node.attrs.items():
        if name in old.attributes:
            attrs[name] = value
        elif _default(new, name) != value:
            return None
    if len(node.inputs) > old.max_input:
        return None
    return [Node(node.op_type, list(node.inputs), list(node.outputs), node.name, attrs)]
