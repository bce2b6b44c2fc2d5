"""Outputs whose rows a TopK has picked: two of them that nearly tie may change places, and nothing is lost by it."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

from leadline.graph.ir import Graph, Node

Array = NDArray[Any]


@dataclass(frozen=True)
class Pick:
    """The tensor that says which rows were picked, the last axis that of the picks; and the axis of the output along
    which they lie."""

    places: str
    axis: int

    def kept(self, wanted: Array, got: Array) -> tuple[Array, Array, float]:
        """Where the rows that both have picked lie, in one order, and their share of all.

        Parameters
        ----------
        wanted, got : integer arrays of one shape, (..., picks)
            The places, of the float network and of the artefact.

        Returns
        -------
        (wanted, got, share)
            Two arrays of indices into the rows of all batches, flattened.
        """
        reference, actual = (places.reshape(-1, places.shape[-1]) for places in (wanted, got))
        rows = []
        for batch, pair in enumerate(zip(reference, actual, strict=True)):
            _, mine, theirs = np.intersect1d(*pair, return_indices=True)
            rows.append(np.stack([mine, theirs]) + batch * reference.shape[1])
        joint = np.concatenate(rows, 1) if rows else np.zeros((2, 0), np.int64)
        return joint[0], joint[1], joint.shape[1] / max(reference.size, 1)

    def rows(self, output: Array, places: Array) -> Array | None:
        """(all batches, row, ...), as `kept` counts them; None where the output has them otherwise."""
        batches = int(np.prod(places.shape[:-1]))
        if int(np.prod(output.shape[: self.axis])) == batches:
            return output.reshape(batches * places.shape[-1], -1)
        if batches == 1:
            return np.moveaxis(output, self.axis, 0).reshape(places.shape[-1], -1)
        return None


def picks(graph: Graph) -> dict[str, Pick]:
    """Of each output that hangs on what a single TopK along the last axis has picked, and has that many rows along one
    axis alone: where the picks are told. What a TopK itself gives is in order of size whatever was picked."""
    producers, by_output = graph.producers(), {}
    for value in graph.outputs:
        above = _above(producers, value.name)
        picking = [node for node in above if node.op_type == "TopK" and node.outputs[1:] and node.outputs[1]]
        if len(picking) != 1 or value.name in picking[0].outputs:
            continue
        shape = graph.shape(picking[0].outputs[1]) or (1,)
        axes = [axis for axis, size in enumerate(value.shape) if size == shape[-1]]
        if len(axes) == 1 and int(picking[0].attrs.get("axis", -1)) % len(shape) == len(shape) - 1 and shape[-1] > 1:
            by_output[value.name] = Pick(picking[0].outputs[1], axes[0])
    return by_output


def _above(producers: dict[str, Node], tensor: str) -> list[Node]:
    """All nodes that a tensor hangs on."""
    reached: dict[int, Node] = {}
    pending = [tensor]
    while pending:
        node = producers.get(pending.pop())
        if node is not None and id(node) not in reached:
            reached[id(node)] = node
            pending += node.inputs
    return list(reached.values())
