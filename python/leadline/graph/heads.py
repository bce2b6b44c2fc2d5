"""Detection heads: branches of different ranges that meet in one Concat, where one grid would have to hold them all.

YOLO-like exports write boxes (0 to some hundred pixels) above class scores (0 to 1) in one output. On one 8-bit grid
its step is over two pixels, and every score becomes 0. Some also lead the logits of both through a Concat that a Split
takes apart again. Found by what the operators say about their ranges, not by names.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

from leadline.graph.edit import add_value, new_name
from leadline.graph.ir import Graph, Node
from leadline.graph.operators import BOUNDED, REARRANGES, moves_data
from leadline.graph.simplify import reshape, simplify
from leadline.types import refuse


@dataclass(frozen=True)
class Head:
    """A Concat that writes an output of the network, of parts with different ranges.

    Attributes
    ----------
    concat : str
        The node's name.
    output : str
        The network's output that holds the parts.
    parts : tuple of str
        The Concat's inputs.
    scores, others : tuple of str
        Those that a Sigmoid or Softmax bounds by 0 and 1, and those that nothing bounds.
    decoding : tuple of str
        Tensors that the others are computed in from logits, in the order of the nodes: what a Softmax gives (of which a
        layer may take the expectation), and all behind it up to the Concat, or, without one, all behind the last
        layers. They carry positions, which need more digits than features do.
    peaks : tuple of str
        What the last layers write and all behind it up to the Concat, likewise. The few values that say "here" are far
        from all others: they are the signal, not outliers.
    """

    concat: str
    output: str
    parts: tuple[str, ...]
    scores: tuple[str, ...]
    others: tuple[str, ...]
    decoding: tuple[str, ...]
    peaks: tuple[str, ...]


def find(graph: Graph) -> list[Head]:
    """Every such Concat."""
    outputs = {value.name for value in graph.outputs}
    producers = graph.producers()
    heads = []
    for node in graph.nodes:
        if node.op_type != "Concat" or len(node.inputs) < 2 or any(name in graph.weights for name in node.inputs):
            continue
        output = _leads_to(graph, node, outputs)
        if output is None:
            continue
        bounded = [name for name in node.inputs if _is_bounded(producers, name)]
        others = [name for name in node.inputs if name not in bounded]
        if bounded and others:
            reached = _upstream(graph, node.inputs, through_bounded=True)
            written = {layer.output for layer in graph.layers()}
            sources = {name for writer in graph.nodes if reached.intersection(writer.outputs) for name in writer.inputs}
            peaks = _in_order(graph, reached | (sources & written))
            own = (tuple(node.inputs), tuple(bounded), tuple(others), _decoding(graph, others), peaks)
            heads.append(Head(node.name, output, *own))
    return heads


def _leads_to(graph: Graph, node: Node, outputs: set[str]) -> str | None:
    """The output that holds what a node writes, merely rearranged; None where anything else reads it, too."""
    tensor = node.outputs[0]
    for _ in range(len(graph.nodes)):
        readers = graph.consumers(tensor)
        if tensor in outputs:
            return None if readers else tensor
        if len(readers) != 1 or readers[0].op_type not in REARRANGES:
            return None
        tensor = readers[0].outputs[0]
    return None


def _is_bounded(producers: dict[str, Node], tensor: str) -> bool:
    writer = producers.get(tensor)
    while writer is not None and moves_data(writer):
        writer = producers.get(writer.inputs[0])
    return writer is not None and writer.op_type in BOUNDED


def _decoding(graph: Graph, ends: Sequence[str]) -> tuple[str, ...]:
    reached = _upstream(graph, ends, through_bounded=False)
    # What moves a layer's own output has that layer's grid.
    for node in graph.nodes:
        moved = moves_data(node) or node.op_type == "Concat"
        if moved and not reached.intersection(node.inputs):
            reached.difference_update(node.outputs)
    return _in_order(graph, reached)


def _upstream(graph: Graph, ends: Sequence[str], through_bounded: bool) -> set[str]:
    """Up to the last layers, without what they write; past those that take the expectation of a Softmax; and past
    a Sigmoid or Softmax itself, or up to it."""
    producers, layers = graph.producers(), {id(layer.node) for layer in graph.layers()}
    reached, open_ = set[str](), [name for name in ends if name in producers]
    while open_:
        tensor = open_.pop()
        node = producers[tensor]
        if tensor in reached or (id(node) in layers and not _is_bounded(producers, node.inputs[0])):
            continue
        reached.add(tensor)
        if through_bounded or node.op_type not in BOUNDED:
            open_ += [name for name in node.inputs if name in producers]
    return reached


def _in_order(graph: Graph, names: set[str]) -> tuple[str, ...]:
    return tuple(name for node in graph.nodes for name in node.outputs if name in names)


def separate(graph: Graph, names: Sequence[str] = ()) -> list[tuple[Head, tuple[str, ...]]]:
    """Give each part of a head an output of its own, in place of the common one. Exact.

    What rearranges the Concat's output (a Transpose) rearranges each part instead; with a Reshape there
    the head stays whole.

    Parameters
    ----------
    graph : Graph
        Changed in place.
    names : sequence of str
        Of the new outputs, one for each input of the Concat, where the network has one head. Default: the old output's
        name with ``.0``, ``.1`` behind it.

    Returns
    -------
    list of (Head, its new outputs)
        As the head was, and in the order of its Concat's inputs.

    Raises
    ------
    InputError
        As many names as the head has parts are needed, and none may be taken.
    """
    done = []
    for head in find(graph):
        node = next(node for node in graph.nodes if node.name == head.concat)
        chain = _chain(graph, node, head.output)
        if any(step.op_type == "Reshape" for step in chain):
            continue
        given = list(names) or [new_name(graph, f"{head.output}.{i}") for i in range(len(node.inputs))]
        taken = [name for name in given if name in graph.weights or name in graph.values]
        if len(given) != len(node.inputs) or taken or len(set(given)) != len(given):
            rule = f"names must be {len(node.inputs)} new ones, for the parts of '{head.output}'"
            raise refuse("separate", rule, ", ".join(given))
        _replace(graph, node, chain, head.output, given)
        done.append((head, tuple(given)))
    return done


def _chain(graph: Graph, node: Node, output: str) -> list[Node]:
    chain = []
    tensor = node.outputs[0]
    while tensor != output:
        (reader,) = graph.consumers(tensor)
        chain.append(reader)
        tensor = reader.outputs[0]
    return chain


def _replace(graph: Graph, concat: Node, chain: list[Node], output: str, names: Sequence[str]) -> None:
    gone = {id(concat), *map(id, chain)}
    nodes = [node for node in graph.nodes if id(node) not in gone]
    values = []
    for part, name in zip(concat.inputs, names, strict=True):
        steps = chain or [Node("Identity", [], [])]
        tensor, shape = part, graph.shape(part)
        for i, step in enumerate(steps):
            if step.op_type == "Transpose":
                shape = tuple(shape[axis] for axis in step.attrs.get("perm", range(len(shape))[::-1]))
            wanted = name if i == len(steps) - 1 else f"{name}.{i}"
            written = add_value(graph, wanted, shape, graph.values[part].dtype)
            nodes.append(Node(step.op_type, [tensor], [written], written, dict(step.attrs)))
            tensor = written
        values.append(graph.values[name])
    graph.nodes = nodes
    graph.outputs = [new for old in graph.outputs for new in (values if old.name == output else [old])]
    simplify(graph)  # an output takes the place of a tensor that only it reads


def part(graph: Graph) -> list[str]:
    """Undo a Concat that a Split takes apart again, across Reshapes and Concats along other axes. Exact.

    Returns
    -------
    list of str
        One line for each: ``<node>: <what was done>``.
    """
    lines = []
    for node in list(graph.nodes):
        if node.op_type != "Split" or node.inputs[0] in graph.weights:
            continue
        axis = int(node.attrs.get("axis", 0)) % len(graph.shape(node.inputs[0]))
        sizes = [graph.shape(name)[axis] for name in node.outputs]
        parts = _Parts(graph)
        found = parts.of(node.inputs[0], axis, sizes)
        if found is None or not parts.undone:
            continue
        renamed = dict(zip(node.outputs, found, strict=True))
        ends = {value.name for value in graph.outputs}
        made = [Node("Identity", [new], [old], old) for old, new in renamed.items() if old in ends]
        where = graph.nodes.index(node)
        graph.nodes[where : where + 1] = [*parts.nodes, *made]
        for other in graph.nodes:
            if other not in made:
                other.inputs = [name if name in ends else renamed.get(name, name) for name in other.inputs]
        lines.append(f"{node.name}: its parts never meet, {len(parts.undone)} Concats undone")
    graph.prune()
    return lines


class _Parts:
    """The parts of a tensor along an axis, made of what it was joined from."""

    def __init__(self, graph: Graph) -> None:
        self.graph, self.producers = graph, graph.producers()
        self.nodes: list[Node] = []
        self.undone: list[str] = []

    def of(self, tensor: str, axis: int, sizes: Sequence[int]) -> list[str] | None:
        """None where they were not joined in these sizes."""
        node = self.producers.get(tensor)
        if node is None or any(value.name == tensor for value in self.graph.outputs):
            return None
        if node.op_type == "Concat":
            joined = int(node.attrs["axis"]) % len(self.graph.shape(tensor))
            return self._taken_apart(node, joined, sizes) if joined == axis else self._along(node, axis, sizes)
        if node.op_type == "Reshape":
            return self._reshaped(node, axis, sizes)
        return None

    def _taken_apart(self, node: Node, axis: int, sizes: Sequence[int]) -> list[str] | None:
        own = [self.graph.shape(name)[axis] for name in node.inputs]
        if own != list(sizes):
            return None
        self.undone.append(node.name)
        return list(node.inputs)

    def _along(self, node: Node, axis: int, sizes: Sequence[int]) -> list[str] | None:
        """Parts of what is joined along another axis, joined for each part."""
        rows = [self.of(name, axis, sizes) for name in node.inputs]
        if any(row is None for row in rows):
            return None
        made = []
        for i, size in enumerate(sizes):
            shape = tuple(size if k == axis else dim for k, dim in enumerate(self.graph.shape(node.outputs[0])))
            inputs = [row[i] for row in rows if row is not None]
            made.append(self._write(Node("Concat", inputs, [], "", dict(node.attrs)), node, i, shape))
        return made

    def _reshaped(self, node: Node, axis: int, sizes: Sequence[int]) -> list[str] | None:
        """A Reshape that keeps the axis, and what lies before it, reshapes each part alike."""
        before, after = self.graph.shape(node.inputs[0]), self.graph.shape(node.outputs[0])
        if len(before) <= axis or before[: axis + 1] != after[: axis + 1]:
            return None
        parts = self.of(node.inputs[0], axis, sizes)
        if parts is None:
            return None
        made = []
        for i, (name, size) in enumerate(zip(parts, sizes, strict=True)):
            own = Node("Reshape", [name], [], "")
            shape = tuple(size if k == axis else dim for k, dim in enumerate(after))
            written = self._write(own, node, i, shape)
            reshape(self.graph, own, shape)
            made.append(written)
        return made

    def _write(self, node: Node, like: Node, index: int, shape: tuple[int, ...]) -> str:
        name = add_value(self.graph, f"{like.outputs[0]}.{index}", shape, self.graph.values[like.outputs[0]].dtype)
        node.name, node.outputs = name, [name]
        self.nodes.append(node)
        return name
