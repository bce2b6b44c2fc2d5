"""Sequences of tensors, as torch's exporter spells `chunk` and `split`, written as tensors."""

from __future__ import annotations

from collections.abc import Mapping

import numpy as np

from leadline.graph.ir import Array, Node, Value


class Sequences:
    """The tensors that stand for each sequence of a network, met in the order of its nodes."""

    def __init__(self) -> None:
        self._parts: dict[str, list[str]] = {}

    def unpack(self, node: Node, values: Mapping[str, Value], weights: dict[str, Array]) -> Node:
        """SplitToSequence of constant sizes as Split, SequenceAt of a constant place as Identity, others as they are.

        Sizes that the new node reads are added to `weights`.
        """
        if node.op_type == "SplitToSequence" and len(node.inputs) > 1:
            source, sizes = node.inputs[0], weights.get(node.inputs[1])
            if source in values and sizes is not None:
                return self._split(node, values[source].shape, sizes, weights)
        if node.op_type == "SequenceAt" and node.inputs[0] in self._parts and node.inputs[1] in weights:
            parts, place = self._parts[node.inputs[0]], int(weights[node.inputs[1]])
            if -len(parts) <= place < len(parts):
                return Node("Identity", [parts[place]], node.outputs, node.name)
        return node

    def _split(self, node: Node, shape: tuple[int, ...], sizes: Array, weights: dict[str, Array]) -> Node:
        axis, name = int(node.attrs.get("axis", 0)), node.outputs[0]
        if sizes.ndim == 0:
            starts = range(0, shape[axis], int(sizes))
            sizes = np.array([min(int(sizes), shape[axis] - start) for start in starts], np.int64)
        self._parts[name] = [f"{name}.{place}" for place in range(len(sizes))]
        weights[f"{name}.sizes"] = sizes.astype(np.int64)
        return Node("Split", [node.inputs[0], f"{name}.sizes"], self._parts[name], node.name, {"axis": axis})
