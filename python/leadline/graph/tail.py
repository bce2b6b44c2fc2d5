"""The part of a network whose shapes depend on the data, kept as it came, in float, behind the part of fixed shapes.

A NonMaxSuppression or NonZero, and control flow on data, leave no fixed shape to what follows. Where no layer follows,
a Graph holds the part in front, its outputs the tensors at the border, and the rest as its `Tail`. Whatever is written
has both, and so the network's own outputs.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass

import onnx
from onnx import helper, numpy_helper

from leadline.graph.ir import OPSET, Array, Graph, Node, Value
from leadline.types import InputError, refuse

_IR_VERSION = 10


class DependsOnDataError(InputError):
    """A shape that depends on the data. `tensor`: what the node writes that this is about."""

    def __init__(self, error: InputError, tensor: str) -> None:
        super().__init__(*error.args)
        self.tensor = tensor


@dataclass(frozen=True)
class Tail:
    """Nodes behind the part of fixed shapes.

    Attributes
    ----------
    nodes : list of Node
        In order. They read tensors of the Graph by name, and weights.
    weights : dict of name to array
        Constants of theirs alone.
    outputs : list of (name, type)
        All of the network's outputs, in the file's order; type None for one that the Graph writes itself.
    causes : list of str
        What its beginnings are: "NonMaxSuppression writing 'selected'".
    """

    nodes: list[Node]
    weights: dict[str, Array]
    outputs: list[tuple[str, onnx.TypeProto | None]]
    causes: list[str]

    @property
    def written(self) -> list[str]:
        """The network's outputs that these nodes write."""
        return [name for name, kind in self.outputs if kind is not None]

    @property
    def reads(self) -> list[str]:
        """The tensors of the Graph that they read."""
        written = {name for node in self.nodes for name in node.outputs}
        return [name for name in read_by(self.nodes) if name not in written and name not in self.weights]

    @property
    def names(self) -> set[str]:
        """Of all its tensors and nodes, those of branches included: nothing else may be called so."""
        taken = {*self.weights, *(node.name for node in self.nodes)}
        for node in self.nodes:
            taken.update(node.outputs)
            for branch in branches(node):
                taken |= _names_in(branch)
        return taken - {""}

    def append(self, model: onnx.ModelProto) -> None:
        """Put the tail behind a model that writes the tensors at the border."""
        from leadline.graph.write import to_node

        graph = model.graph
        static = {value.name: value for value in graph.output}
        asked = {name for name, _ in self.outputs}
        graph.node.extend(map(to_node, self.nodes))
        graph.initializer.extend(numpy_helper.from_array(array, name) for name, array in self.weights.items())
        graph.value_info.extend(value for name, value in static.items() if name not in asked)
        ends = [
            static[name] if kind is None else onnx.ValueInfoProto(name=name, type=kind) for name, kind in self.outputs
        ]
        del graph.output[:]
        graph.output.extend(ends)

    def model(self, values: Mapping[str, Value], opset: int = OPSET) -> onnx.ModelProto:
        """The tail alone: from the tensors at the border to the outputs that it writes."""
        from leadline.graph.write import to_node, value_info

        ends = [onnx.ValueInfoProto(name=name, type=kind) for name, kind in self.outputs if kind is not None]
        body = helper.make_graph(
            list(map(to_node, self.nodes)),
            "tail",
            [value_info(values[name]) for name in self.reads],
            ends,
            [numpy_helper.from_array(array, name) for name, array in self.weights.items()],
        )
        return helper.make_model(body, opset_imports=[helper.make_opsetid("", opset)], ir_version=_IR_VERSION)


def check_whole(graph: Graph, taker: str, function: str) -> None:
    """Raises InputError, naming where it begins, for a graph with a tail, which has no place in what `taker` takes."""
    if graph.tail is not None:
        rule = f"{taker} takes fixed shapes alone: '{graph.name}' must end before {graph.tail.causes[0]}"
        hint = "as Graph.load(...).front() does"
        raise refuse(function, f"{rule}, {hint}", "a network whose shapes depend on the data from there on")


def drop(model: onnx.ModelProto, graph: Graph) -> onnx.ModelProto:
    """A written model without its tail: its outputs are the graph's, at the border. `model` holds its weights."""
    if graph.tail is None:
        return model
    from leadline.graph.write import value_info

    cut = onnx.ModelProto()
    cut.CopyFrom(model)
    del cut.graph.output[:]
    cut.graph.output.extend(map(value_info, graph.outputs))
    keep_needed(cut.graph)
    return cut


def keep_needed(graph: onnx.GraphProto) -> None:
    """Remove the nodes that no output needs, and what only they read."""
    needed = {value.name for value in graph.output}
    kept = []
    for node in reversed(graph.node):
        if needed.intersection(node.output):
            kept.append(node)
            needed.update(node.input)
            for item in node.attribute:
                if item.type == onnx.AttributeProto.GRAPH:
                    needed.update(captured(item.g))
    if len(kept) == len(graph.node):
        return
    tensors = [tensor for tensor in graph.initializer if tensor.name in needed]
    del graph.node[:]
    del graph.initializer[:]
    graph.node.extend(reversed(kept))
    graph.initializer.extend(tensors)


def branches(node: Node) -> Iterator[onnx.GraphProto]:
    return (value for value in node.attrs.values() if isinstance(value, onnx.GraphProto))


def captured(graph: onnx.GraphProto) -> set[str]:
    """What a branch reads of the network around it."""
    local = {value.name for value in graph.input} | {tensor.name for tensor in graph.initializer}
    read = {value.name for value in graph.output}
    for node in graph.node:
        local.update(node.output)
        read.update(node.input)
        for item in node.attribute:
            if item.type == onnx.AttributeProto.GRAPH:
                read |= captured(item.g)
    return read - local - {""}


def _names_in(graph: onnx.GraphProto) -> set[str]:
    names = {value.name for value in (*graph.input, *graph.output)} | {tensor.name for tensor in graph.initializer}
    for node in graph.node:
        names.update((node.name, *node.output))
        for item in node.attribute:
            if item.type == onnx.AttributeProto.GRAPH:
                names |= _names_in(item.g)
    return names


def read_by(nodes: Sequence[Node]) -> list[str]:
    """Every tensor that nodes read, those that their branches capture included, each once."""
    read: dict[str, None] = {}
    for node in nodes:
        read.update(dict.fromkeys(node.inputs))
        for branch in branches(node):
            read.update(dict.fromkeys(sorted(captured(branch))))
    read.pop("", None)
    return list(read)
