"""Detection heads: scores beside boxes or other positions, in one output of the network or in several.

YOLO-like exports join boxes (0 to some hundred pixels) and class scores (0 to 1) in one output. On one 8-bit grid its
step is over two pixels, and every score becomes 0. CenterNet, SSD and DETR give them an output each. Found by what
operators and shapes say, not by names.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass

import numpy as np

from leadline.graph.ir import Graph, Node
from leadline.graph.operators import BOUNDED, SELECTS, moves_data

_KEEP_BOUNDS = frozenset("Mul Sqrt".split())
"""Of what lies between 0 and 1, give the same."""

BOX = 4
"""Numbers that say where a box is."""


@dataclass(frozen=True)
class Weight:
    """Scores that tell how much positions count: their highest along an axis, which lies where `onto` is in those."""

    scores: str
    axis: int
    onto: int


@dataclass(frozen=True)
class Head:
    """Scores and the positions that they belong to.

    Attributes
    ----------
    outputs : tuple of str
        The network's outputs that hold them.
    concats : tuple of str
        Names of the Concats that join them in one output, in the order of the nodes; empty where each has its own.
    parts : tuple of str
        What is joined, or the outputs themselves.
    scores, others : tuple of str
        Of the parts: classes and the like, and positions.
    labels : tuple of str
        Of the parts: integers (the best class).
    joined : tuple of str
        Tensors that hold several parts, in order.
    wide : tuple of str
        What the last layers write and all behind it, in order. The few values that say "here" are far from all others:
        they are the signal, not outliers; and positions need more digits than features do. A layer that takes the
        expectation of a Softmax is not the last one.
    layers : tuple of str
        Names of those last layers, and of such as take an expectation.
    weights : dict of position to tuple of Weight
        The scores of each position, where shapes tell.
    """

    outputs: tuple[str, ...]
    concats: tuple[str, ...]
    parts: tuple[str, ...]
    scores: tuple[str, ...]
    others: tuple[str, ...]
    labels: tuple[str, ...]
    joined: tuple[str, ...]
    wide: tuple[str, ...]
    layers: tuple[str, ...]
    weights: dict[str, tuple[Weight, ...]]

    def __str__(self) -> str:
        """For a log: which outputs, and what lies beside what."""
        return f"{', '.join(self.outputs)}: {', '.join(self.scores)} beside {', '.join(self.others)}"


def find(graph: Graph) -> list[Head]:
    """Every head: first those in one output each, then what the other outputs form together."""
    view = _View(graph)
    heads, apart = [], []
    for value in graph.outputs:
        tree = _Tree(view, value.name)
        head = tree.head() if value.dtype == np.float32 else None
        if head is not None:
            heads.append(head)
        elif value.dtype == np.float32:
            apart.append(value.name)
    beside = _apart(view, apart)
    return heads if beside is None else [*heads, beside]


class _View:
    """What is asked of a graph again and again."""

    def __init__(self, graph: Graph) -> None:
        self.graph, self.producers = graph, graph.producers()
        self.layers = {id(layer.node): layer for layer in graph.layers()}

    def source(self, tensor: str) -> Node | None:
        """The node that made the values, before they were moved and selected."""
        node = self.producers.get(tensor)
        while node is not None and (moves_data(node) or node.op_type in SELECTS):
            node = self.producers.get(node.inputs[0])
        return node

    def is_bounded(self, tensor: str) -> bool:
        """Whether its values lie between 0 and 1."""
        node = self.source(tensor)
        if node is None or node.op_type in BOUNDED:
            return node is not None
        return node.op_type in _KEEP_BOUNDS and all(self.is_bounded(name) for name in node.inputs)

    def is_integer(self, tensor: str) -> bool:
        """Whether it holds integers, in float."""
        node = self.source(tensor)
        before = None if node is None or node.op_type != "Cast" else self.graph.values.get(node.inputs[0])
        return before is not None and before.dtype.kind in "iu"

    def behind(self, ends: Iterable[str], known: Iterable[str] = ()) -> tuple[set[str], tuple[str, ...]]:
        """What the last layers write and all from there to the ends; and the names of the layers."""
        reached, layers = set(known), set[str]()
        waiting = [name for name in ends if name in self.producers]
        while waiting:
            tensor = waiting.pop()
            node = self.producers[tensor]
            reached.add(tensor)
            if id(node) in self.layers:
                layers.add(node.name)
                if not self.is_bounded(node.inputs[0]):
                    continue
            waiting += [name for name in node.inputs if name in self.producers and name not in reached]
        return reached, tuple(node.name for node in self.graph.nodes if node.name in layers)

    def in_order(self, names: set[str]) -> tuple[str, ...]:
        return tuple(name for node in self.graph.nodes for name in node.outputs if name in names)

    def head(
        self,
        outputs: Sequence[str],
        concats: Sequence[str],
        parts: dict[str, str],
        joined: set[str],
    ) -> Head:
        """Of what each part is: "score", "other" or "label"."""
        kinds = {kind: tuple(name for name in parts if parts[name] == kind) for kind in ("score", "other", "label")}
        wide, layers = self.behind(parts, joined)
        weights = {name: tuple(self.weights(name, kinds["score"])) for name in kinds["other"]}
        return Head(
            tuple(outputs), tuple(concats), tuple(parts), kinds["score"], kinds["other"], kinds["label"],
            self.in_order(joined), self.in_order(wide), layers, weights,
        )  # fmt: skip

    def weights(self, other: str, scores: Sequence[str]) -> Iterator[Weight]:
        for score in scores:
            axes = aligned(self.graph.shape(other), self.graph.shape(score))
            if axes is not None and self.is_bounded(score):
                yield Weight(score, axes[1], axes[0])


def aligned(other: Sequence[int], score: Sequence[int]) -> tuple[int, int] | None:
    """The axes along which two tensors hold their features, of the same positions: without them shapes are equal.

    Preferred is one axis in both, then the fewest features; the first axis is the batch. None where there is none, or
    only one position.
    """
    if len(other) != len(score):
        return None
    candidates = [
        (i != k, other[i], i, k)
        for i in range(1, len(other))
        for k in range(1, len(score))
        if [*other[:i], *other[i + 1 :]] == [*score[:k], *score[k + 1 :]]
        and any(size > 1 for size in (*other[:i], *other[i + 1 :]))
    ]
    return min(candidates)[2:] if candidates else None


class _Tree:
    """What an output is joined from, by Concats alone, moved at most: the parts, and the tensors between."""

    def __init__(self, view: _View, output: str) -> None:
        self.view, self.output = view, output
        self.concats: list[Node] = []
        self.parts: dict[str, tuple[Node, int]] = {}
        """Each with the Concat that reads it, and its size there."""
        self.joined: set[str] = set()
        self._walk(output)

    def _walk(self, tensor: str, reader: Node | None = None) -> None:
        path, name = [tensor], tensor
        while (node := self.view.producers.get(name)) is not None and (
            moves_data(node) or node.op_type in SELECTS or node.op_type == "Concat"
        ):
            if node.op_type == "Concat":
                self.joined.update(path)
                if all(node is not other for other in self.concats):
                    self.concats.append(node)
                    for part in node.inputs:
                        self._walk(part, node)
                return
            name = node.inputs[0]
            path.append(name)
        if reader is not None and tensor in self.view.graph.values:
            shape = self.view.graph.shape(tensor)
            self.parts[tensor] = reader, shape[int(reader.attrs["axis"]) % len(shape)]

    def head(self) -> Head | None:
        kinds = {part: self._kind(part) for part in self.parts}
        if "other" not in kinds.values():  # boxes, too, may lie between 0 and 1
            kinds |= dict.fromkeys((part for part in kinds if kinds[part] == "score" and self._is_box(part)), "other")
        if not {"score", "other"} <= set(kinds.values()):
            return None
        order = {id(node): i for i, node in enumerate(self.view.graph.nodes)}
        concats = sorted(self.concats, key=lambda node: order[id(node)])
        return self.view.head([self.output], [node.name for node in concats], kinds, self.joined)

    def _kind(self, part: str) -> str:
        if self.view.is_integer(part):
            return "label"
        return "score" if self.view.is_bounded(part) else "other"

    def _is_box(self, part: str) -> bool:
        reader, size = self.parts[part]
        return size == BOX and any(extent != BOX for other, extent in self.parts.values() if other is reader)


def _apart(view: _View, outputs: Sequence[str]) -> Head | None:
    """Outputs of scores and of positions: over the same places, numbers in pairs that nothing bounds beside what is
    bounded; or in lists of four, whatever bounds them."""
    kinds: dict[str, str] = {}
    for other in outputs:
        for score in outputs:
            axes = aligned(view.graph.shape(other), view.graph.shape(score)) if other != score else None
            if axes is not None and kinds.get(other) != "score" and _are_positions(view, other, score, axes):
                kinds |= {other: "other", score: "score"}
    ordered = {name: kinds[name] for name in outputs if name in kinds}
    return view.head(list(ordered), [], ordered, set()) if ordered else None


def _are_positions(view: _View, other: str, score: str, axes: tuple[int, int]) -> bool:
    shape, features = view.graph.shape(other), view.graph.shape(other)[axes[0]]
    if view.is_bounded(score) and not view.is_bounded(other):
        return features % 2 == 0
    is_list = len(shape) == 3 and axes[0] == 2
    return is_list and features == BOX != view.graph.shape(score)[axes[1]]
