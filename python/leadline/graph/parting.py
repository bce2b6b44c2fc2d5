"""What a detection head joins, taken apart: inside, where it is only joined to be split again, and at the outputs."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np

from leadline.graph.edit import add_constant, add_value, new_name, share_constant
from leadline.graph.heads import Head, find
from leadline.graph.ir import Graph, Node
from leadline.graph.operators import REARRANGES
from leadline.graph.simplify import reshape, simplify
from leadline.types import refuse

Range = tuple[int, int]


def part(graph: Graph) -> list[str]:
    """Undo each Concat that a Split, Slice or Gather takes apart again, across Reshapes, Transposes and Concats along
    other axes. Exact.

    Returns
    -------
    list of str
        One line for each: ``<node>: <what was done>``.
    """
    lines = []
    for node in list(graph.nodes):
        taken = _taken(graph, node)
        if taken is None:
            continue
        axis, ranges = taken
        pieces = _Pieces(graph)
        parts = [pieces.take(node.inputs[0], axis, span) for span in ranges]
        if pieces.undone and not pieces.torn:
            _read_instead(graph, node, parts, ranges, pieces.nodes)
            lines.append(f"{node.name}: its parts never meet, {len(pieces.undone)} Concats undone")
    graph.prune()
    return lines


def _taken(graph: Graph, node: Node) -> tuple[int, list[Range]] | None:
    """The axis along which a node takes its input apart, and from where to where each output goes."""
    if not node.inputs or node.inputs[0] not in graph.values:
        return None
    shape = graph.shape(node.inputs[0])
    constants = [graph.weights.get(name) for name in node.inputs[1:]]
    if node.op_type == "Split":
        axis = int(node.attrs.get("axis", 0)) % len(shape)
        ends = np.cumsum([graph.shape(name)[axis] for name in node.outputs]).tolist()
        return axis, list(zip([0, *ends], ends, strict=False))
    if node.op_type == "Gather" and constants[0] is not None and constants[0].size:
        axis = int(node.attrs.get("axis", 0)) % len(shape)
        places = constants[0] % shape[axis]
        return axis, [(int(places.min()), int(places.max()) + 1)]
    if node.op_type == "Slice" and len(constants) >= 3 and all(c is not None and c.size == 1 for c in constants):
        start, end, axis, *step = (int(c.item()) for c in constants if c is not None)
        span = range(shape[axis])[start:end]
        return None if step not in ([], [1]) or not span else (axis % len(shape), [(span.start, span.stop)])
    return None


def _read_instead(graph: Graph, node: Node, parts: Sequence[str], ranges: Sequence[Range], nodes: list[Node]) -> None:
    """A Split or Slice goes, its readers read the pieces; a Gather reads the piece that holds what it gathers."""
    where = next(i for i, other in enumerate(graph.nodes) if other is node)
    if node.op_type == "Gather":
        axis = int(node.attrs.get("axis", 0))
        places = graph.weights[node.inputs[1]] % graph.shape(node.inputs[0])[axis] - ranges[0][0]
        node.inputs = [parts[0], add_constant(graph, f"{node.name}.indices", places)]
        graph.nodes[where:where] = nodes
        return
    renamed = dict(zip(node.outputs, parts, strict=True))
    ends = {value.name for value in graph.outputs}
    kept = [Node("Identity", [new], [old], old) for old, new in renamed.items() if old in ends]
    graph.nodes[where : where + 1] = [*nodes, *kept]
    for other in graph.nodes:
        if all(other is not node for node in kept):
            other.inputs = [name if name in ends else renamed.get(name, name) for name in other.inputs]


class _Pieces:
    """Pieces of tensors along an axis, made of what these were joined from."""

    def __init__(self, graph: Graph) -> None:
        self.graph, self.producers = graph, graph.producers()
        self.nodes: list[Node] = []
        self.undone: dict[str, None] = {}
        self.torn = False
        """Whether a range ends within something joined and goes on in the next."""
        self.known: dict[tuple[str, int, Range], str] = {}

    def take(self, tensor: str, axis: int, span: Range) -> str:
        """The tensor that holds a range of another one."""
        if span == (0, self.graph.shape(tensor)[axis]):
            return tensor
        key = (tensor, axis, span)
        if key not in self.known:
            self.known[key] = self._make(tensor, axis, span)
        return self.known[key]

    def _make(self, tensor: str, axis: int, span: Range) -> str:
        node = self.producers.get(tensor)
        match node.op_type if node is not None else "":
            case "Concat" if node is not None:
                joined = int(node.attrs["axis"]) % len(self.graph.shape(tensor))
                return self._apart(node, axis, span) if joined == axis else self._along(node, axis, span)
            case "Transpose" if node is not None:
                source = self.take(node.inputs[0], node.attrs["perm"][axis], span)
                return self._write(Node("Transpose", [source], [], "", dict(node.attrs)), tensor, axis, span)
            case "Reshape" if node is not None:
                before = self._axis_before(node, axis)
                if before is not None:
                    moved = Node("Reshape", [self.take(node.inputs[0], before, span)], [])
                    written = self._write(moved, tensor, axis, span)
                    reshape(self.graph, moved, self.graph.shape(written))
                    return written
        return self._slice(tensor, axis, span)

    def _apart(self, node: Node, axis: int, span: Range) -> str:
        """Of what is joined along the axis itself: some of that, or a range of one."""
        within, begin = [], 0
        for name in node.inputs:
            size = self.graph.shape(name)[axis]
            low, high = max(span[0] - begin, 0), min(span[1] - begin, size)
            if low < high:
                within.append((name, (low, high), high - low == size))
            begin += size
        if len(within) > 1 and not all(whole for _, _, whole in within):
            self.torn = True
            return self._slice(node.outputs[0], axis, span)
        if len(within) < len(node.inputs):
            self.undone[node.name] = None
        pieces = [self.take(name, axis, inner) for name, inner, _ in within]
        if len(pieces) == 1:
            return pieces[0]
        return self._write(Node("Concat", pieces, [], "", dict(node.attrs)), node.outputs[0], axis, span)

    def _slice(self, tensor: str, axis: int, span: Range) -> str:
        bounds = [share_constant(self.graph, f"slice.{n}", np.array([n], np.int64)) for n in (*span, axis)]
        return self._write(Node("Slice", [tensor, *bounds], []), tensor, axis, span)

    def _along(self, node: Node, axis: int, span: Range) -> str:
        """Of what is joined along another axis."""
        pieces = [self.take(name, axis, span) for name in node.inputs]
        return self._write(Node("Concat", pieces, [], "", dict(node.attrs)), node.outputs[0], axis, span)

    def _axis_before(self, node: Node, axis: int) -> int | None:
        """The axis that a Reshape keeps in the other's place: as long, and as much before it."""
        before, after = self.graph.shape(node.inputs[0]), self.graph.shape(node.outputs[0])
        leading = int(np.prod(after[:axis]))
        fits = (i for i, size in enumerate(before) if size == after[axis] and int(np.prod(before[:i])) == leading)
        return next(fits, None)

    def _write(self, node: Node, like: str, axis: int, span: Range) -> str:
        shape = list(self.graph.shape(like))
        shape[axis] = span[1] - span[0]
        name = add_value(self.graph, f"{like}.{span[0]}", shape, self.graph.values[like].dtype)
        node.name, node.outputs = name, [name]
        self.nodes.append(node)
        return name


def separate(graph: Graph, names: Sequence[str] = ()) -> list[tuple[Head, tuple[str, ...]]]:
    """Give each part of a head an output of its own, in place of the common one. Exact.

    What rearranges the Concat's output (a Transpose) rearranges each part instead; behind a Reshape, or several
    Concats, the head stays whole.

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
    separated = []
    for head in find(graph):
        node = next((node for node in graph.nodes if [node.name] == list(head.concats)), None)
        chain = None if node is None else _chain(graph, node, head.outputs[0])
        if node is None or chain is None:
            continue
        outputs = list(names) or [new_name(graph, f"{head.outputs[0]}.{i}") for i in range(len(node.inputs))]
        taken = [name for name in outputs if name in graph.weights or name in graph.values]
        if len(outputs) != len(node.inputs) or taken or len(set(outputs)) != len(outputs):
            rule = f"names must be {len(node.inputs)} new ones, for the parts of '{head.outputs[0]}'"
            raise refuse("separate", rule, ", ".join(outputs))
        _replace(graph, node, chain, head.outputs[0], outputs)
        separated.append((head, tuple(outputs)))
    return separated


def _chain(graph: Graph, node: Node, output: str) -> list[Node] | None:
    """What rearranges a Concat's output, for the network's output alone; None where it does anything else, or gives
    other axes."""
    chain, tensor = list[Node](), node.outputs[0]
    while tensor != output:
        readers = graph.consumers(tensor)
        if len(readers) != 1 or readers[0].op_type not in REARRANGES - {"Reshape"}:
            return None
        chain.append(readers[0])
        tensor = readers[0].outputs[0]
    return None if graph.consumers(output) else chain


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
