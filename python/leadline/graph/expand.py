"""Operators taken apart: into the body that ONNX itself gives them, or into what kernels of integers know better."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import numpy as np
import onnx
from onnx import AttributeProto, helper

from leadline.graph.contrib import RULES
from leadline.graph.control import renamed
from leadline.graph.ir import OPSET, Array, Node
from leadline.graph.known import Known
from leadline.graph.patterns import beside
from leadline.graph.read import to_node
from leadline.graph.write import to_node as to_proto
from leadline.graph.writer import Rule, Steps, Writer, ints, real


def standard(node: Node, opset: int, known: Known) -> None:
    """Refuse operators that neither ONNX nor leadline defines."""
    if (node.domain, node.op_type) in RULES:
        return
    if node.domain or not onnx.defs.has(node.op_type, opset):
        rule = "operators of {label} must be standard ONNX (export again without runtime-specific optimisation)"
        raise known.refuse(rule, node, f", unknown to opset {opset}")


def taken_apart(node: Node, opset: int, known: Known, verbatim: bool) -> Steps | None:
    """The nodes that leadline writes in a node's place; None where it has nothing better than ONNX."""
    standard(node, opset, known)
    unknown = node.domain or not onnx.defs.has(node.op_type, opset)
    rule = RULES.get((node.domain, node.op_type)) if unknown else None
    if rule is None and opset > OPSET:
        rule = _SINCE.get(node.op_type)
        if node.op_type == "Mod" and (node.attrs.get("fmod") or known.dtype(node.inputs[0]).kind != "f"):
            rule = None
    if rule is None and opset >= OPSET and not verbatim:
        rule = _BETTER.get(node.op_type)
    if rule is None:
        return None
    writer = Writer(node, known)
    rule(writer)
    return writer.steps


def _mish(write: Writer) -> None:
    x = write.input(0)
    write("Mul", x, write("Tanh", write("Softplus", x)), to=write.output(0))


def _group_normalization(write: Writer) -> None:
    """As InstanceNormalization of the groups: a compiler for NPUs that has it has it for any number of channels."""
    x, scale, bias = write.node.inputs
    shape, groups = write.shape(x), write.node.attrs["num_groups"]
    rows = write("Reshape", x, ints(shape[0], groups, -1))
    ones, zeros = np.ones(groups, np.float32), np.zeros(groups, np.float32)
    attrs = {"epsilon": write.node.attrs.get("epsilon", 1e-5)}
    back = write("Reshape", write("InstanceNormalization", rows, ones, zeros, **attrs), ints(*shape))
    wide = ints(1, shape[1], *[1] * (len(shape) - 2))
    scaled = write("Mul", back, write("Reshape", scale, wide))
    write("Add", scaled, write("Reshape", bias, wide), to=write.output(0))


def _mod(write: Writer) -> None:
    """Of floats, with the divisor's sign, as opset 28 has it: opset 21 knows the dividend's only."""
    x, y = write.node.inputs
    rest, zero = write("Mod", x, y, fmod=1), real(0)
    crossed = write("Xor", write("Less", rest, zero), write("Less", y, zero))
    moved = write("And", crossed, write("Not", write("Equal", rest, zero)))
    write("Where", moved, write("Add", rest, y), rest, to=write.output(0))


def _cum_prod(write: Writer) -> None:
    """Entry by entry along the axis."""
    x, node, known = write.input(0), write.node, write.known
    axis, shape = write.known.weights.get(node.inputs[1]), write.shape(x)
    if axis is None:
        raise known.refuse("the axis of a CumProd of {label} must be constant", node)
    place = int(axis.reshape(())) % len(shape)
    order = list(range(shape[place]))[:: -1 if node.attrs.get("reverse") else 1]
    ones = np.ones([*shape[:place], 1, *shape[place + 1 :]], known.dtype(x))
    product, results = known.constant(ones), {}
    for index in order:
        following = write("Mul", product, write("Gather", x, ints(index), axis=place))
        results[index] = product if node.attrs.get("exclusive") else following
        product = following
    write("Concat", *(results[index] for index in sorted(results)), to=write.output(0), axis=place)


def _tensor_scatter(write: Writer) -> None:
    """Into a cache along an axis, from a place of each batch entry on."""
    cache, update, node = write.input(0), write.input(1), write.node
    shape = write.shape(update)
    axis = node.attrs.get("axis", -2) % len(shape)
    steps = np.arange(shape[axis]).reshape([-1 if index == axis else 1 for index in range(len(shape))])
    places: str | Array = steps
    if write.input(2):
        starts = write("Reshape", write.input(2), ints(-1, *[1] * (len(shape) - 1)))
        places = write("Add", starts, steps)
        if node.attrs.get("mode", "linear") == "circular":
            places = write("Mod", places, np.array(write.shape(cache)[axis]))
    every = write("Expand", places, ints(*shape))
    write("ScatterElements", cache, every, update, to=write.output(0), axis=axis)


_BETTER: dict[str, Rule] = {"GroupNormalization": _group_normalization, "Mish": _mish}
_SINCE: dict[str, Rule] = {"CumProd": _cum_prod, "Mod": _mod, "TensorScatter": _tensor_scatter}


def body(node: Node, opset: int, known: Known) -> Steps | None:
    """The nodes of the function that ONNX defines an operator by; None for one that it does not define so."""
    schema: Any = onnx.defs.get_schema(node.op_type, opset)
    proto, raw = to_proto(node), b""
    if schema.has_function:
        versions = [version for version in schema.function_opset_versions if version <= opset]
        raw = schema.get_function_with_opset_version(max(versions)) if versions else b""
    elif schema.has_context_dependent_function:
        versions = [version for version in schema.context_dependent_function_opset_versions if version <= opset]
        build = schema.get_context_dependent_function_with_opset_version
        types = [_type(name, known) for name in node.inputs]
        raw = build(max(versions), proto.SerializeToString(), types) if versions else b""
    if not raw:
        return None
    function = onnx.FunctionProto()
    function.ParseFromString(raw)
    defaults = {name: item.default_value for name, item in schema.attributes.items() if item.default_value.name}
    return list(_inlined(node, function, defaults | {item.name: item for item in proto.attribute}, known))


def _type(name: str, known: Known) -> bytes:
    if not name:
        return bytes(onnx.TypeProto().SerializeToString())
    dtype = helper.np_dtype_to_tensor_dtype(known.dtype(name))
    return bytes(helper.make_tensor_type_proto(dtype, known.shape(name)).SerializeToString())


def _inlined(
    node: Node, function: onnx.FunctionProto, attrs: dict[str, AttributeProto], known: Known
) -> Iterator[tuple[Node, int]]:
    opset = next((entry.version for entry in function.opset_import if entry.domain in ("", "ai.onnx")), OPSET)
    names = {"": ""} | dict(zip(function.input, [*node.inputs, *[""] * len(function.input)], strict=False))
    results = dict(zip(function.output, node.outputs, strict=False))
    for item in function.node:
        inner = onnx.NodeProto()
        inner.CopyFrom(item)
        del inner.attribute[:]
        for attribute in item.attribute:
            if not attribute.ref_attr_name:
                inner.attribute.append(attribute)
            elif attribute.ref_attr_name in attrs:
                inner.attribute.add().CopyFrom(attrs[attribute.ref_attr_name])
                inner.attribute[-1].name = attribute.name
        for name in item.output:
            names[name] = (results.get(name) or known.inner(node, name)) if name else ""
        copy = to_node(renamed(inner, names))
        copy.outputs = [names[name] for name in item.output]
        copy.name = beside(node, copy.op_type)
        yield copy, opset
