"""Taking a file apart where shapes begin to depend on the data: a part in front, to quantise, and its tail."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass, replace

import numpy as np
import onnx
from onnx import TensorProto, numpy_helper

from leadline.graph.edit import free_name
from leadline.graph.ir import OPSET, Graph, Node
from leadline.graph.operators import RANDOM, RECURRENT, SHAPE_DEPENDS_ON_DATA, is_quantised
from leadline.graph.read import Source, to_node
from leadline.graph.tail import Tail, branches, read_by
from leadline.types import refuse

_LAYERS = RECURRENT | frozenset("Conv ConvTranspose DeformConv Einsum Gemm MatMul".split())
_LEAST_WEIGHTS = 65
"""Of a layer: a matrix of 8x8 that turns corners into boxes is none."""

_WIDER = {TensorProto.FLOAT16, TensorProto.BFLOAT16, TensorProto.DOUBLE}


@dataclass(frozen=True)
class Split:
    """A file taken apart: the part in front, as a file of its own whose outputs are those that it writes and the
    tensors at the border, and the nodes behind it."""

    front: Source
    behind: list[Node]
    causes: list[str]


def split(source: Source, roots: Iterable[str]) -> Split:
    """Take apart a file at what depends on the data, and at the nodes that write one of `roots`."""
    roots = set(roots)
    varying = {name for name, _, _ in source.inputs}
    loose: set[str] = set()
    behind: list[Node] = []
    causes: list[str] = []
    for node in source.nodes:
        reads = set(read_by([node]))
        begins = _begins(node, varying) or not roots.isdisjoint(node.outputs)
        if begins or reads & loose:
            loose.update(filter(None, node.outputs))
            behind.append(node)
            if not reads & loose:
                causes.append(f"{node.op_type} writing '{next(filter(None, node.outputs))}'")
        if node.op_type not in ("Shape", "Size", "EyeLike") and reads & varying:
            varying.update(filter(None, node.outputs))
    behind = _needed(behind, source.outputs)
    if not behind:
        return Split(_copied(source, source.nodes, source.outputs), [], [])
    behind = _with_constants(source, behind, varying)
    ahead = [node for node in source.nodes if loose.isdisjoint(node.outputs)]
    written = {name for node in ahead for name in node.outputs}
    later = {name for node in behind for name in node.outputs}
    outputs = [name for name in source.outputs if name not in loose]
    border = [name for name in read_by(behind) if name in written and name not in later and name not in outputs]
    if not outputs and not border:
        rule = f"shapes of '{source.label}' must not depend on the data"
        raise refuse("Graph.load", rule, causes[0])
    return Split(_copied(source, ahead, outputs + border), behind, causes)


def attach(graph: Graph, source: Source, cut: Split) -> None:
    """Give a graph of the part in front its tail, in opset 21."""
    if not cut.behind:
        return
    read = set(read_by(cut.behind))
    weights = {name: array for name, array in source.weights.items() if name in read}
    written = {name for node in cut.behind for name in node.outputs}
    outputs = [(name, _type(source, name) if name in written else None) for name in source.outputs]
    tail = Tail([_in_float32(node) for node in cut.behind], weights, outputs, cut.causes)
    for name, array in weights.items():
        if array.dtype.name in ("float16", "float64", "bfloat16"):
            weights[name] = array.astype(np.float32)
    _refuse_unfit(tail, source)
    tail = _raised(tail, graph, source)
    graph.tail = _without_integers_at_the_border(graph, tail)
    border = set(graph.tail.reads)
    ends = {name for name, kind in outputs if kind is None}
    inputs = {value.name for value in graph.inputs}
    graph.outputs = [value for value in graph.outputs if value.name in ends or value.name in border]
    named = {value.name for value in graph.outputs} | inputs
    graph.outputs += [graph.values[name] for name in graph.tail.reads if name not in named]
    graph.prune()


def _begins(node: Node, varying: set[str]) -> bool:
    """Whether a node's shapes depend on what varies with the data."""
    if node.op_type in SHAPE_DEPENDS_ON_DATA:
        return not varying.isdisjoint(node.inputs)
    if node.op_type == "If":
        return node.inputs[0] in varying
    if node.op_type == "Loop":
        body: onnx.GraphProto = node.attrs["body"]
        writers = {name: item for item in body.node for name in item.output}
        going = body.output[0].name
        while going in writers and writers[going].op_type == "Identity":
            going = writers[going].input[0]
        ends_itself = going in writers and writers[going].op_type != "Constant"
        return not node.inputs[0] or not varying.isdisjoint(node.inputs[:2]) or ends_itself
    return False


def _needed(nodes: list[Node], outputs: Iterable[str]) -> list[Node]:
    needed, kept = set(outputs), []
    for node in reversed(nodes):
        if needed.intersection(node.outputs):
            kept.append(node)
            needed.update(read_by([node]))
    return kept[::-1]


def _with_constants(source: Source, behind: list[Node], varying: set[str]) -> list[Node]:
    """With the nodes that make constants and shapes for them: the part in front holds those no more."""
    chosen = {id(node) for node in behind}
    writers = {name: node for node in source.nodes for name in node.outputs}
    queue = read_by(behind)
    while queue:
        name = queue.pop()
        node = writers.get(name)
        if node is not None and id(node) not in chosen and name not in varying:
            chosen.add(id(node))
            queue += read_by([node])
    return [node for node in source.nodes if id(node) in chosen]


def _copied(source: Source, nodes: Iterable[Node], outputs: Sequence[str]) -> Source:
    copies = [Node(n.op_type, list(n.inputs), list(n.outputs), n.name, dict(n.attrs), n.domain) for n in nodes]
    return replace(source, nodes=copies, outputs=list(outputs))


def _type(source: Source, name: str) -> onnx.TypeProto:
    """As the file declares an output, in float32 for other floats."""
    kind = onnx.TypeProto()
    kind.CopyFrom(source.types[name])
    if kind.tensor_type.elem_type in _WIDER:
        kind.tensor_type.elem_type = TensorProto.FLOAT
    return kind


def _named(nodes: list[Node]) -> list[Node]:
    """No two of one name: exporters repeat that of a module."""
    taken: set[str] = set()
    for node in nodes:
        if node.name:
            node.name = free_name(node.name, taken)
            taken.add(node.name)
    return nodes


def _in_float32(node: Node) -> Node:
    attrs = dict(node.attrs)
    if node.op_type == "Cast" and attrs["to"] in _WIDER:
        attrs["to"] = TensorProto.FLOAT
    value = attrs.get("value")
    if isinstance(value, np.ndarray) and value.dtype.name in ("float16", "float64", "bfloat16"):
        attrs["value"] = value.astype(np.float32)
    return Node(node.op_type, list(node.inputs), list(node.outputs), node.name, attrs, node.domain)


def _refuse_unfit(tail: Tail, source: Source) -> None:
    """Layers, and what no part of a network may hold."""
    label = source.label
    constants = {name: array.size for name, array in tail.weights.items()}
    for node in tail.nodes:
        if node.domain or not onnx.defs.has(node.op_type, source.opset):
            rule = f"operators of '{label}' must be standard ONNX (export again without runtime-specific optimisation)"
            raise refuse("Graph.load", rule, f"{node.domain}.{node.op_type} writing '{node.outputs[0]}'".lstrip("."))
        if node.op_type == "Constant" and isinstance(node.attrs.get("value"), np.ndarray):
            constants[node.outputs[0]] = node.attrs["value"].size
    for op_type, inputs, output in _operators(tail.nodes, constants):
        received = f"{op_type} writing '{output}'"
        if op_type in RANDOM:
            raise refuse("Graph.load", f"'{label}' must give the same output twice", received)
        if is_quantised(op_type):
            raise refuse("Graph.load", f"'{label}' must be a float network; this one is already quantised", received)
        size = max((constants.get(name, 0) for name in inputs), default=0)
        if op_type in _LAYERS and size >= _LEAST_WEIGHTS:
            rule = (
                f"layers of '{label}' must come before what depends on the data, which begins at {tail.causes[0]} "
                "(export the layers behind it as a network of their own)"
            )
            raise refuse("Graph.load", rule, received)


def _operators(nodes: Iterable[Node], constants: dict[str, int]) -> Iterator[tuple[str, list[str], str]]:
    """Each operator, those in branches included; the sizes of branches' constants are added to `constants`."""

    def inside(graph: onnx.GraphProto) -> Iterator[tuple[str, list[str], str]]:
        constants.update((tensor.name, int(np.prod(tensor.dims))) for tensor in graph.initializer)
        for item in graph.node:
            if item.op_type == "Constant" and item.attribute[0].HasField("t"):
                constants[item.output[0]] = int(np.prod(item.attribute[0].t.dims))
            yield item.op_type, list(item.input), next(iter(item.output), "")
            for attribute in item.attribute:
                if attribute.type == onnx.AttributeProto.GRAPH:
                    yield from inside(attribute.g)

    for node in nodes:
        yield node.op_type, node.inputs, next(iter(node.outputs), "")
        for branch in branches(node):
            yield from inside(branch)


def _raised(tail: Tail, graph: Graph, source: Source) -> Tail:
    """In the opset of the part in front."""
    if source.opset == OPSET:
        return tail
    rule = f"what depends on the data in '{source.label}' must convert from opset {source.opset} to {OPSET}"
    if source.opset > OPSET:
        for node in tail.nodes:
            old = onnx.defs.get_schema(node.op_type, OPSET) if onnx.defs.has(node.op_type, OPSET) else None
            if old is None or not node.attrs.keys() <= old.attributes.keys():
                raise refuse("Graph.load", rule, f"{node.op_type} writing '{node.outputs[0]}'")
        return tail
    model = tail.model(graph.values, source.opset)
    try:
        model = onnx.version_converter.convert_version(model, OPSET)
    except RuntimeError as error:
        raise refuse("Graph.load", rule, str(error).splitlines()[0]) from None
    weights = {tensor.name: numpy_helper.to_array(tensor) for tensor in model.graph.initializer}
    return replace(tail, nodes=list(map(to_node, model.graph.node)), weights=weights)


def _without_integers_at_the_border(graph: Graph, tail: Tail) -> Tail:
    """What compares, counts and sorts floats for the tail alone belongs to it: its float inputs are the border."""
    ends = {name for name, kind in tail.outputs if kind is None}
    nodes, weights = list(tail.nodes), dict(tail.weights)
    read = set(tail.reads)
    for node in reversed(list(graph.nodes)):
        written = [name for name in node.outputs if name]
        if read.isdisjoint(written) or not ends.isdisjoint(written):
            continue
        elsewhere = {name for other in graph.nodes for name in other.inputs}
        if all(graph.values[name].dtype == np.float32 for name in written) or not elsewhere.isdisjoint(written):
            continue
        graph.nodes.remove(node)
        nodes.insert(0, node)
        read.update(filter(None, node.inputs))
    weights |= {name: graph.weights[name] for name in read if name in graph.weights}
    return replace(tail, nodes=_named(nodes), weights=weights)
