"""Small rewrites that leave less to look at: no-ops go, shape changes become Reshape and merge, twins become one."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import numpy as np

from leadline.graph.edit import derived, share_constant
from leadline.graph.ir import Array, Graph, Node, Value

_UNARY = {
    "Abs", "Ceil", "Celu", "Clip", "Elu", "Erf", "Exp", "Floor", "Gelu", "HardSigmoid", "HardSwish", "LeakyRelu",
    "Mish", "Neg", "Relu", "Selu", "Sigmoid", "Softplus", "Softsign", "Sqrt", "Tanh",
}  # fmt: skip
_LAST_AXIS = {"LayerNormalization", "LogSoftmax", "Softmax"}
_SHORT = 16  # elements: constants up to here are compared by value, larger ones are weights and compared by name
_RESHAPING = {"Flatten", "Reshape", "Squeeze", "Unsqueeze"}


def simplify(graph: Graph) -> None:
    """Bring shape changes to one form, then remove no-ops, merge neighbours and twins until nothing changes."""
    for node in graph.nodes:
        if node.op_type in _RESHAPING:
            reshape(graph, node, graph.shape(node.outputs[0]))
        elif node.op_type in ("Conv", "ConvTranspose"):
            _spell_out(graph, node)
        elif node.op_type in ("Add", "Mul", "Max") and len(node.inputs) == 2 and node.inputs[0] in graph.weights:
            node.inputs.reverse()
        elif node.op_type == "Where" and (condition := graph.weights.get(node.inputs[0])) is not None:
            _choose(graph, node, condition)
        if node.op_type == "Max" and len(node.inputs) == 2 and _is_scalar(graph, node):
            _clamp_from_below(graph, node)
    size = -1
    while size != len(graph.nodes):
        size = len(graph.nodes)
        drop(graph, lambda node: _is_noop(graph, node))
        _merge_neighbours(graph)
        _merge_twins(graph)
        graph.prune()


def whole_resizes(graph: Graph) -> None:
    """Resize of some axes becomes one that names all: onnxruntime moves Transposes across it and loses the axes."""
    for node in graph.nodes:
        if node.op_type == "Resize" and "axes" in node.attrs and (wanted := _of_all_axes(graph, node)):
            node.inputs = [node.inputs[0], "", "", ""][: 2 + max(map(_RESIZED.index, wanted))]
            for what, array in wanted.items():
                name = share_constant(graph, derived(node.outputs[0], what), array)
                node.inputs[1 + _RESIZED.index(what)] = name
            for key in ("axes", "keep_aspect_ratio_policy"):
                node.attrs.pop(key, None)


_RESIZED = ("roi", "scales", "sizes")
"""The inputs of Resize behind the first."""


def _of_all_axes(graph: Graph, node: Node) -> dict[str, Array]:
    """The constants of a Resize for all axes; none where they are computed at run time, or rounded in their own way."""
    before, after = graph.shape(node.inputs[0]), graph.shape(node.outputs[0])
    axes = [axis % len(before) for axis in node.attrs["axes"]]
    named = zip(_RESIZED, node.inputs[1:], strict=False)
    constants = {what: graph.weights[name] for what, name in named if name in graph.weights}
    policy, full = node.attrs.get("keep_aspect_ratio_policy", "stretch"), dict[str, Array]()
    if constants.keys() & {"sizes", "scales"}:
        scales = np.ones(len(before), np.float32)
        if "sizes" in constants:
            ratios = constants["sizes"] / [before[axis] for axis in axes]
            common = {"not_larger": ratios.min(), "not_smaller": ratios.max()}
            scales[axes] = common.get(policy, ratios)
        else:
            scales[axes] = constants["scales"]
        if (np.floor(scales * np.array(before, np.float32)) == after).all():
            full["scales"] = scales  # rather than sizes, which would fix the batch
        elif policy == "stretch":
            full["sizes"] = np.array(after, np.int64)
    if full and node.attrs.get("coordinate_transformation_mode") == "tf_crop_and_resize":
        if "roi" not in constants:
            return {}
        full["roi"] = np.repeat(np.array([0, 1], np.float32), len(before))
        full["roi"][[*axes, *(axis + len(before) for axis in axes)]] = constants["roi"]
    return full


def reshape(graph: Graph, node: Node, shape: tuple[int, ...]) -> None:
    """Turn `node` into a Reshape to `shape`; equal shapes share one constant."""
    name = share_constant(graph, f"shape.{'x'.join(map(str, shape))}", np.array(shape, np.int64))
    node.op_type, node.inputs, node.attrs = "Reshape", [node.inputs[0], name], {"allowzero": 1} if 0 in shape else {}


def _choose(graph: Graph, node: Node, condition: Array) -> None:
    """A condition that always says the same leaves nothing to choose."""
    if condition.size and condition.all() == condition.any():
        chosen = node.inputs[1 if condition.all() else 2]
        if graph.shape(chosen) == graph.shape(node.outputs[0]):
            node.op_type, node.inputs, node.attrs = "Identity", [chosen], {}


def drop(graph: Graph, redundant: Callable[[Node], bool]) -> None:
    """Remove the nodes whose first output is their first input. Names of the graph's outputs survive."""
    ends = {value.name for value in graph.outputs}
    fixed = ends.union(value.name for value in graph.inputs)
    alias: dict[str, str] = {}
    renamed: dict[str, str] = {}
    kept = []
    for node in graph.nodes:
        node.inputs = [alias.get(name, name) for name in node.inputs]
        source, target = (node.inputs or [""])[0], node.outputs[0]
        if not redundant(node):
            kept.append(node)
        elif target not in ends:
            alias[target] = source
        elif source not in fixed and source not in renamed:
            renamed[source] = target
        elif source in renamed or source in fixed:
            kept.append(Node("Identity", [source], [target], node.name))
    for node in kept:
        node.inputs = [renamed.get(name, name) for name in node.inputs]
        node.outputs = [renamed.get(name, name) for name in node.outputs]
    graph.nodes = kept


def _clamp_from_below(graph: Graph, node: Node) -> None:
    bound = graph.weights[node.inputs[1]].reshape(())
    if bound == 0:
        node.op_type, node.inputs = "Relu", node.inputs[:1]
    else:
        node.op_type, node.inputs = "Clip", [node.inputs[0], share_constant(graph, node.inputs[1], bound)]


def _is_scalar(graph: Graph, node: Node) -> bool:
    """Whether its second operand is one float32, and the first one has the shape of the output."""
    bound = graph.weights.get(node.inputs[1])
    scalar = bound is not None and bound.size == 1 and bound.dtype == np.float32
    return scalar and graph.shape(node.inputs[0]) == graph.shape(node.outputs[0])


def _is_noop(graph: Graph, node: Node) -> bool:
    source = (node.inputs or [""])[0]
    if source not in graph.values or len([name for name in node.outputs if name]) > 1:
        return False
    before, after = graph.values[source], graph.values[node.outputs[0]]
    if before.shape != after.shape or before.dtype != after.dtype:
        return False
    constants = [graph.weights.get(name) for name in node.inputs[1:]]
    match node.op_type:
        case "Identity" | "Dropout" | "Cast" | "Reshape" | "Expand":
            return True
        case "Transpose":
            perm: list[int] = node.attrs.get("perm", list(range(len(before.shape)))[::-1])
            return perm == sorted(perm)
        case "Concat" | "Sum" | "Max" | "Min" | "Mean":
            return len(node.inputs) == 1
        case "Slice":
            return len(constants) < 4 or (constants[3] is not None and bool((constants[3] > 0).all()))
        case "Pad" | "Add" | "Sub":
            return constants[0] is not None and not bool(constants[0].any())
        case "Mul" | "Div":
            return constants[0] is not None and bool((constants[0] == 1).all())
    return False


def _merge_neighbours(graph: Graph) -> None:
    """Reshape after Reshape, Transpose after Transpose, Reshape - elementwise - Reshape, and Log after Softmax."""
    writers, readers = graph.producers(), graph.readers()
    ends = {value.name for value in graph.outputs}
    alone = {name for name, nodes in readers.items() if len(nodes) == 1} - ends
    for node in graph.nodes:
        before = writers.get((node.inputs or [""])[0])
        if before is None:
            continue
        if node.op_type == "Log" and before.op_type == "Softmax":
            node.op_type, node.inputs, node.attrs = "LogSoftmax", list(before.inputs), dict(before.attrs)
        elif node.op_type == before.op_type == "Reshape":
            node.inputs[0] = before.inputs[0]
        elif node.op_type == before.op_type == "Transpose" and "perm" in node.attrs and "perm" in before.attrs:
            node.attrs["perm"] = [before.attrs["perm"][axis] for axis in node.attrs["perm"]]
            node.inputs[0] = before.inputs[0]
        elif node.op_type == "Reshape" and before.outputs[0] in alone:
            first = writers.get((before.inputs or [""])[0])
            if first is not None and first.op_type == "Reshape" and _ignores_shape(graph, before, first):
                before.inputs[0] = first.inputs[0]
                value = graph.values[before.outputs[0]]
                graph.values[value.name] = Value(value.name, value.dtype, graph.shape(first.inputs[0]))


def _ignores_shape(graph: Graph, node: Node, reshaped: Node) -> bool:
    """`node` may as well run on the tensor before `reshaped`."""
    if node.op_type in _UNARY:
        return True
    inner, outer = graph.shape(reshaped.outputs[0]), graph.shape(reshaped.inputs[0])
    axis = node.attrs.get("axis", -1)
    if node.op_type not in _LAST_AXIS or axis not in (-1, len(inner) - 1) or inner[-1] != outer[-1]:
        return False
    node.attrs["axis"] = -1
    return True


def _merge_twins(graph: Graph) -> None:
    """Nodes that compute the same thing from the same tensors become one."""
    ends, weights = {value.name for value in graph.outputs}, graph.weights
    first: dict[tuple[Any, ...], Node] = {}
    alias: dict[str, str] = {}
    for node in graph.nodes:
        node.inputs = [alias.get(name, name) for name in node.inputs]
        inputs = tuple(
            _key(weights[name]) if name in weights and weights[name].size <= _SHORT else name for name in node.inputs
        )
        key = (node.op_type, inputs, len(node.outputs), tuple(sorted((k, _key(v)) for k, v in node.attrs.items())))
        twin = first.setdefault(key, node)
        if twin is not node and not ends.intersection(node.outputs):
            alias.update(zip(node.outputs, twin.outputs, strict=True))


def _key(value: Any) -> str:
    return f"{value.dtype}{value.shape}{value.tobytes().hex()}" if isinstance(value, np.ndarray) else repr(value)


def _spell_out(graph: Graph, node: Node) -> None:
    """Write every attribute of a convolution, so that nobody has to know the defaults."""
    if node.inputs[1] not in graph.weights:
        return
    kernel = list(graph.shape(node.inputs[1])[2:])
    ones = [1] * len(kernel)
    strides, dilations = node.attrs.get("strides", ones), node.attrs.get("dilations", ones)
    auto = node.attrs.pop("auto_pad", "NOTSET")
    if auto.startswith("SAME") or node.attrs.pop("output_shape", None):
        span = [(k - 1) * d + 1 for k, d in zip(kernel, dilations, strict=True)]
        sizes = zip(graph.shape(node.inputs[0])[2:], graph.shape(node.outputs[0])[2:], strict=True)
        if node.op_type == "Conv":
            total = [max((o - 1) * s + k - i, 0) for (i, o), s, k in zip(sizes, strides, span, strict=True)]
        else:
            extra = node.attrs.get("output_padding", [0] * len(kernel))
            total = [
                max(s * (i - 1) + e + k - o, 0) for (i, o), s, k, e in zip(sizes, strides, span, extra, strict=True)
            ]
        less, more = [t // 2 for t in total], [t - t // 2 for t in total]
        # The odd pixel goes to the end under SAME_UPPER; ConvTranspose crops where Conv pads.
        node.attrs["pads"] = less + more if auto == "SAME_UPPER" else more + less
    pads = node.attrs.get("pads", [0] * 2 * len(kernel))
    group = node.attrs.get("group", 1)
    node.attrs |= {"kernel_shape": kernel, "strides": strides, "pads": pads, "dilations": dilations, "group": group}
