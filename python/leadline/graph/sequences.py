"""Sequences of tensors whose length is known, as torch's exporter spells `chunk`, `split` and lists, written as
tensors."""

from __future__ import annotations

import numpy as np

from leadline.graph.ir import Array, Node
from leadline.graph.known import Known


class Sequences:
    """The tensors that stand for each sequence of a network, met in the order of its nodes. An optional value that is
    there is what it holds."""

    def __init__(self, known: Known) -> None:
        self._known = known
        self._parts: dict[str, list[str]] = {}
        self._optional: dict[str, str] = {}

    def __contains__(self, name: str) -> bool:
        return name in self._parts

    def unpack(self, node: Node) -> list[Node] | None:
        """What a node that makes or reads a sequence leaves to compute; None for any other node.

        Raises InputError where the length of a sequence, or a place in it, is not constant.
        """
        kind, known, parts = node.op_type, self._known, self._parts
        node.inputs = [self._optional.get(name, name) for name in node.inputs]
        source = node.inputs[0] if node.inputs else ""
        if kind in ("Optional", "OptionalGetElement") and source:
            self._optional[node.outputs[0]] = source
            if kind == "OptionalGetElement" and source not in parts:
                return [Node("Identity", [source], node.outputs, node.name)]
            return []
        if kind == "OptionalHasElement" and source:
            known.weights[node.outputs[0]] = np.array(True)
            return []
        if kind == "Identity" and source in parts:
            parts[node.outputs[0]] = parts[source]
            return []
        if kind == "SequenceEmpty" or kind == "SequenceConstruct":
            parts[node.outputs[0]] = list(node.inputs)
            return []
        if kind == "SplitToSequence":
            return self._split(node)
        if not (kind.startswith("Sequence") or kind == "ConcatFromSequence") or kind == "SequenceMap":
            return None
        if source not in parts:
            raise known.refuse("values of {label} must be tensors, or sequences of known length", node)
        held = parts[source]
        if kind == "SequenceLength":
            known.weights[node.outputs[0]] = np.array(len(held))
        elif kind == "SequenceInsert":
            place = self._place(node, 2, len(held), len(held) + 1)
            parts[node.outputs[0]] = [*held[:place], node.inputs[1], *held[place:]]
        elif kind == "SequenceErase":
            place = self._place(node, 1, len(held) - 1, len(held))
            parts[node.outputs[0]] = held[:place] + held[place + 1 :]
        elif kind == "SequenceAt":
            return [Node("Identity", [held[self._place(node, 1, 0, len(held))]], node.outputs, node.name)]
        else:
            return self._joined(node, held)
        return []

    def _place(self, node: Node, index: int, default: int, end: int) -> int:
        name = node.inputs[index] if index < len(node.inputs) else ""
        if name and name not in self._known.weights:
            raise self._known.refuse("places in sequences of {label} must be constant", node)
        place = int(self._known.weights[name].reshape(())) if name else default
        if not -end <= place < max(end, 1):
            raise self._known.refuse("places in sequences of {label} must be in them", node, f", {place} of {end}")
        return place % max(end, 1)

    def _joined(self, node: Node, held: list[str]) -> list[Node]:
        axis = int(node.attrs["axis"])
        if not node.attrs.get("new_axis", 0):
            return [Node("Concat", list(held), node.outputs, node.name, {"axis": axis})]
        over, nodes, wide = self._known.constant(np.array([axis], np.int64)), [], []
        for name in held:
            wide.append(self._known.inner(node, "part"))
            nodes.append(Node("Unsqueeze", [name, over], [wide[-1]]))
        return [*nodes, Node("Concat", wide, node.outputs, node.name, {"axis": axis})]

    def _split(self, node: Node) -> list[Node]:
        known, name = self._known, node.outputs[0]
        shape = known.shape(node.inputs[0])
        axis = int(node.attrs.get("axis", 0)) % len(shape)
        sizes: Array | None = np.array(1)
        if len(node.inputs) > 1:
            sizes = known.weights.get(node.inputs[1])
        if sizes is None:
            raise known.refuse("sizes of the parts of a sequence of {label} must be constant", node)
        if sizes.ndim == 0:
            starts = range(0, shape[axis], int(sizes))
            sizes = np.array([min(int(sizes), shape[axis] - start) for start in starts], np.int64)
        parts = [known.fresh(f"{name}.{place}") for place in range(len(sizes))]
        split = Node(
            "Split", [node.inputs[0], known.constant(sizes.astype(np.int64))], parts, node.name, {"axis": axis}
        )
        self._parts[name] = parts
        if len(node.inputs) > 1 or node.attrs.get("keepdims", 1):
            return [split]
        over = known.constant(np.array([axis], np.int64))
        self._parts[name] = [known.fresh(f"{part}.entry") for part in parts]
        narrow = zip(parts, self._parts[name], strict=True)
        return [split, *(Node("Squeeze", [part, over], [entry]) for part, entry in narrow)]
