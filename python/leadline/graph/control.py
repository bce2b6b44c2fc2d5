"""Control flow that constants decide, written out: the branch that an If takes, and the turns of a Loop or a Scan."""

from __future__ import annotations

from collections.abc import Mapping

import numpy as np
import onnx

from leadline.graph.ir import Node
from leadline.graph.known import Known
from leadline.graph.read import array, to_node

_MOST_TURNS = 1000


def has_branches(node: Node) -> bool:
    return any(isinstance(value, onnx.GraphProto) for value in node.attrs.values())


def written_out(node: Node, known: Known) -> list[Node]:
    """The nodes that take the place of an If, Loop or Scan. A Loop is one turn and the rest of the Loop.

    Raises InputError where it depends on the data.
    """
    if node.op_type == "If" and node.inputs[0] in known.weights:
        branch = node.attrs["then_branch" if known.weights[node.inputs[0]].all() else "else_branch"]
        nodes, results = _instance(node, branch, {}, known)
        return nodes + _identities(results, node.outputs)
    if node.op_type == "Loop":
        return _loop(node, known)
    if node.op_type == "Scan" and len(node.inputs) == len(node.attrs["body"].input):  # opset 8 had one more
        return _scan(node, known)
    raise known.depends("control flow of {label} must depend on constants only", node)


def _identities(inner: list[str], outer: list[str]) -> list[Node]:
    return [Node("Identity", [name], [target]) for name, target in zip(inner, outer, strict=False) if target]


def _instance(
    node: Node, branch: onnx.GraphProto, formal: Mapping[str, str], known: Known
) -> tuple[list[Node], list[str]]:
    """The nodes of a branch under names of their own, and the names of its results. `formal`: what its inputs are."""
    names = dict(formal)
    for tensor in branch.initializer:
        names[tensor.name] = known.inner(node, tensor.name)
        known.weights[names[tensor.name]] = array(tensor, None, known.label)
    for item in branch.node:
        names.update((name, known.inner(node, name)) for name in item.output if name)
    nodes = []
    for item in branch.node:
        copy = to_node(renamed(item, names))
        copy.outputs = [names.get(name, name) for name in copy.outputs]
        nodes.append(copy)
    return nodes, [names.get(value.name, value.name) for value in branch.output]


def renamed(item: onnx.NodeProto, names: Mapping[str, str]) -> onnx.NodeProto:
    """A node that reads the new names, in its branches as well."""
    copy = onnx.NodeProto()
    copy.CopyFrom(item)
    copy.input[:] = [names.get(name, name) for name in item.input]
    for attribute in copy.attribute:
        if attribute.type == onnx.AttributeProto.GRAPH:
            inner = attribute.g
            local = {value.name for value in inner.input} | {tensor.name for tensor in inner.initializer}
            local.update(name for node in inner.node for name in node.output)
            outer = {name: new for name, new in names.items() if name not in local}
            nodes = [renamed(node, outer) for node in inner.node]
            del inner.node[:]
            inner.node.extend(nodes)
            for value in inner.output:
                value.name = outer.get(value.name, value.name)
    return copy


def _loop(node: Node, known: Known) -> list[Node]:
    """Inputs: how often, whether at all, and the state; the body's: the turn, whether, and the state."""
    trips, going, *state = (*node.inputs, "", "")[: max(len(node.inputs), 2)]
    if any(name and name not in known.weights for name in (trips, going)):
        raise known.depends("control flow of {label} must depend on constants only", node)
    turn = node.attrs.get("turn", 0)
    scanned: list[list[str]] = node.attrs.get("scanned", [[] for _ in node.outputs[len(state) :]])
    ended = trips and turn >= int(known.weights[trips].reshape(()))
    if ended or (going and not known.weights[going].all()):
        if any(not parts for parts in scanned):
            raise known.refuse("loops of {label} must run once at least", node)
        joined = [
            join
            for parts, target in zip(scanned, node.outputs[len(state) :], strict=True)
            if target
            for join in _joined(node, parts, 0, target, known)
        ]
        return _identities(state, node.outputs[: len(state)]) + joined
    if turn >= _MOST_TURNS:
        raise known.refuse(f"loops of {{label}} must end within {_MOST_TURNS} turns", node)
    body = node.attrs["body"]
    held = [known.constant(np.array(turn, np.int64)), going or known.constant(np.array(True)), *state]
    nodes, results = _instance(node, body, dict(zip((v.name for v in body.input), held, strict=False)), known)
    going, state, outs = results[0], results[1 : len(state) + 1], results[len(state) + 1 :]
    scanned = [[*parts, name] for parts, name in zip(scanned, outs, strict=False)]
    attrs = {"body": body, "turn": turn + 1, "scanned": scanned}
    return [*nodes, Node("Loop", [trips, going, *state], node.outputs, node.name, attrs)]


def _scan(node: Node, known: Known) -> list[Node]:
    """Inputs: the state, then tensors of which the body sees one slice a turn."""
    attrs, body = node.attrs, node.attrs["body"]
    count = len(node.inputs) - attrs["num_scan_inputs"]
    state, sources = node.inputs[:count], node.inputs[count:]
    axes = attrs.get("scan_input_axes", [0] * len(sources))
    back = attrs.get("scan_input_directions", [0] * len(sources))
    if len(body.output) < len(node.outputs):  # the last ones may be left out
        raise known.refuse("a Scan of {label} must have the outputs of its body", node)
    turns = known.shape(sources[0])[axes[0]]
    if turns > _MOST_TURNS:
        raise known.refuse(f"loops of {{label}} must end within {_MOST_TURNS} turns", node)
    nodes: list[Node] = []
    scanned: list[list[str]] = [[] for _ in node.outputs[count:]]
    for turn in range(turns):
        slices = []
        for source, axis, reverse in zip(sources, axes, back, strict=True):
            place = known.constant(np.array(turns - 1 - turn if reverse else turn, np.int64))
            slices.append(known.inner(node, "slice"))
            nodes.append(Node("Gather", [source, place], [slices[-1]], attrs={"axis": axis}))
        formal = dict(zip((value.name for value in body.input), [*state, *slices], strict=True))
        more, results = _instance(node, body, formal, known)
        nodes += more
        state = results[:count]
        for parts, name in zip(scanned, results[count:], strict=False):
            parts.append(name)
    nodes += _identities(state, node.outputs[:count])
    out_axes = attrs.get("scan_output_axes", [0] * len(scanned))
    out_back = attrs.get("scan_output_directions", [0] * len(scanned))
    for parts, axis, reverse, target in zip(scanned, out_axes, out_back, node.outputs[count:], strict=True):
        if target:
            nodes += _joined(node, parts[::-1] if reverse else parts, axis, target, known)
    return nodes


def _joined(node: Node, parts: list[str], axis: int, target: str, known: Known) -> list[Node]:
    over, nodes, wide = known.constant(np.array([axis], np.int64)), [], []
    for part in parts:
        wide.append(known.inner(node, "entry"))
        nodes.append(Node("Unsqueeze", [part, over], [wide[-1]]))
    return [*nodes, Node("Concat", wide, [target], node.name, {"axis": axis})]
