"""Values that only say "not this one": -inf, -1e9, -1e4 in front of a Softmax, or what a Max has to lose against.

Their readers see no difference between them and a bound near the other values, so no grid has to reach that far.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from typing import Any, NamedTuple

import numpy as np
from numpy.typing import NDArray

from leadline.graph.ir import Array, Graph, Node
from leadline.graph.operators import LARGEST, SATURATES, SMALLEST, moves_data

MASK = 32.0
"""A constant as far from zero as this is looked at as a mask: exporters write -100 and beyond."""

EXTREME = 1e4
"""No feature is as large: on a grid that reaches as far, nothing else is left."""

DEAD = 64.0
"""A row whose largest value lies so far below that of the other rows is masked as a whole."""

GAP = 4.0
"""What lies less than this beyond a bound stays as it is."""

_INF = math.inf


class Bounds(NamedTuple):
    """What lies below `lo` or above `hi` may as well lie there."""

    lo: float = -_INF
    hi: float = _INF


class _Marks(NamedTuple):
    """Whether a tensor may hold masks below, or above, its other values."""

    low: bool = False
    high: bool = False


class Masks:
    """The tensors of a graph that hold masks.

    Parameters
    ----------
    graph : Graph
    bits : int
        Of the activations: what a Softmax loses beyond the bounds stays below half a step of so many bits.

    Attributes
    ----------
    bounded : set of str
        Activations and constants, masked, whose readers ignore how far beyond the other values the masks lie.
    extreme : set of str
        Activations and constants with infinities or sentinels that somebody reads as they are: no grid holds them.
    needed : list of str
        Activations that `bounds` asks for.
    """

    def __init__(self, graph: Graph, bits: int = 8) -> None:
        self._graph, self._bits, self._producers = graph, bits, graph.producers()
        marks, limits = _marks(graph, MASK, inputs=True), self._limits({}, graph.nodes)
        self.bounded = {name for name, mark in marks.items() if _reached(mark, limits.get(name, Bounds()))}
        self._nodes = [node for node in graph.nodes if not self.bounded.isdisjoint(node.inputs)]
        wanted = dict.fromkeys(name for node in self._nodes for name in (*node.inputs, *node.outputs))
        self.needed = [name for name in wanted if name in graph.values and graph.values[name].dtype == np.float32]
        self.extreme = {
            name
            for name, mark in _marks(graph, EXTREME, inputs=False).items()
            if (mark.low or mark.high) and not _covered(mark, limits.get(name, Bounds()))
        }

    def bounds(self, seen: Mapping[str, Array]) -> dict[str, Bounds]:
        """Of the bounded tensors, given what the `needed` ones hold in one sample."""
        limits = self._limits(seen, self._nodes)
        return {name: limits[name] for name in self.bounded}

    def clipped(self, seen: Mapping[str, Array], names: Sequence[str]) -> dict[str, Array]:
        """What tensors hold in one sample, masks brought to their bounds; constants as they are in this sample."""
        bounds = self.bounds(seen) if not self.bounded.isdisjoint(names) else {}
        arrays = {}
        for name in names:
            values = seen[name] if name in seen else self._graph.weights[name]
            lo, hi = bounds.get(name, Bounds())
            if values.size and (values.min() < lo - GAP or values.max() > hi + GAP):
                values = np.clip(values, np.float32(lo), np.float32(hi))
            arrays[name] = values
        return arrays

    def _limits(self, seen: Mapping[str, Array], nodes: Sequence[Node]) -> dict[str, Bounds]:
        """From the readers back; without data every bound that there is is some number."""
        unlimited = {value.name for value in self._graph.outputs}
        limits: dict[str, Bounds] = {}
        for node in reversed(nodes):
            written = Bounds() if node.outputs[0] in unlimited else limits.get(node.outputs[0], Bounds())
            for position, name in enumerate(node.inputs):
                demand = self._demand(node, position, written, seen) if name and not node.domain else Bounds()
                known = limits.get(name)
                limits[name] = demand if known is None else Bounds(min(known.lo, demand.lo), max(known.hi, demand.hi))
        return limits | dict.fromkeys(unlimited, Bounds())

    def _demand(self, node: Node, position: int, written: Bounds, seen: Mapping[str, Array]) -> Bounds:
        """What a node makes no difference beyond, at one of its inputs, given that of its output."""
        kind = node.op_type
        if (kind in LARGEST or kind in SMALLEST) and position == 0:
            if kind in SMALLEST or (kind == "TopK" and not node.attrs.get("largest", 1)):
                return Bounds(written.lo, min(written.hi, -self._below_largest(node, seen, -1)))
            return Bounds(max(written.lo, self._below_largest(node, seen)), written.hi)
        if kind in ("Max", "Min", "Relu", "Clip") and node.inputs[position]:
            ends = self._ends(node.outputs[0], seen)
            low = kind != "Min" and (kind != "Clip" or node.inputs[1:2] not in ([], [""]))
            high = kind == "Min" or (kind == "Clip" and node.inputs[2:3] not in ([], [""]))
            return Bounds(
                max(written.lo, ends.lo) if low else written.lo, min(written.hi, ends.hi) if high else written.hi
            )
        if kind in SATURATES and position == 0:
            reach = (self._bits + 1) * math.log(2)
            return Bounds(-reach, reach)
        if kind == "Concat" or (moves_data(node) and position == 0) or (kind == "Pad" and position in (0, 2)):
            return written
        if kind == "Where":
            return written if position else Bounds()
        if kind == "Neg":
            return Bounds(-written.hi, -written.lo)
        return self._arithmetic(node, position, written, seen)

    def _arithmetic(self, node: Node, position: int, written: Bounds, seen: Mapping[str, Array]) -> Bounds:
        if node.op_type not in ("Add", "Sub", "Mul", "Div") or node.inputs[0] == node.inputs[1]:
            return Bounds()
        other = node.inputs[1 - position]
        if node.op_type in ("Add", "Sub"):
            if node.op_type == "Sub" and self._is_top(node):
                return Bounds(written.lo)
            ends = self._ends(other, seen)
            if node.op_type == "Add":
                return Bounds(written.lo - ends.hi, written.hi - ends.lo)
            if position == 0:
                return Bounds(written.lo + ends.lo, written.hi + ends.hi)
            return Bounds(ends.lo - written.hi, ends.hi - written.lo)
        factors = self._graph.weights.get(other)
        if factors is None or not factors.size or (node.op_type == "Div" and position == 1):
            return Bounds()
        least, most = float(factors.min()), float(factors.max())
        if least * most <= 0 or not math.isfinite(least * most):
            return Bounds()
        if node.op_type == "Mul":
            least, most = 1 / most, 1 / least
        lo, hi = (written.lo, written.hi) if most > 0 else (written.hi, written.lo)
        return Bounds(min(lo * least, lo * most), max(hi * least, hi * most))

    def _is_top(self, node: Node) -> bool:
        """Whether it takes the largest of each row away: with the row, that follows."""
        top = self._producers.get(node.inputs[1])
        while top is not None and (top.op_type == "Clip" or moves_data(top)):
            top = self._producers.get(top.inputs[0])
        return top is not None and top.op_type == "ReduceMax" and top.inputs[0] == node.inputs[0]

    def _ends(self, name: str, seen: Mapping[str, Array]) -> Bounds:
        """The lowest and highest finite value; zeros before data are seen."""
        values = self._graph.weights.get(name) if name in self._graph.weights else seen.get(name)
        if values is None:
            return Bounds(0.0, 0.0)
        finite = values[np.isfinite(values)] if not np.isfinite(values).all() else values
        return Bounds(float(finite.min()), float(finite.max())) if finite.size else Bounds(0.0, 0.0)

    def _below_largest(self, node: Node, seen: Mapping[str, Array], sign: int = 1) -> float:
        """So far below the largest value of each row, window or picture that it counts for nothing."""
        if node.inputs[0] not in seen:
            return 0.0
        largest, count = _largest(self._graph, node, seen, sign)
        finite = largest[np.isfinite(largest)]
        if not finite.size:
            return 0.0
        top = float(finite.max())
        lowest = float(finite[finite > top - DEAD].min())
        if node.op_type in ("Softmax", "ReduceLogSumExp"):
            return lowest - math.log(count) - (self._bits + 1) * math.log(2)
        return lowest - max((top - lowest) / MASK, 1e-3 * abs(lowest))


def _largest(graph: Graph, node: Node, seen: Mapping[str, Array], sign: int) -> tuple[NDArray[Any], int]:
    """Of each row that a node takes the largest values of, the one that matters least; and the length of a row."""
    if node.op_type in ("MaxPool", "GlobalMaxPool"):
        return seen[node.outputs[0]], 1
    values = seen[node.inputs[0]] * sign
    axes = tuple(range(values.ndim))
    listed = graph.weights.get(node.inputs[1]) if len(node.inputs) > 1 else None
    if node.op_type.startswith("Reduce"):
        chosen = node.attrs.get("axes") if listed is None else listed.tolist()
        axes = tuple(int(axis) for axis in chosen or axes)
    else:
        axes = (int(node.attrs.get("axis", 0 if node.op_type.startswith("Arg") else -1)),)
    count = math.prod(values.shape[axis] for axis in axes)
    if node.op_type == "TopK":
        least = count - (1 if listed is None else int(listed.item()))
        return np.partition(values, least, axis=axes[0]).take(least, axis=axes[0]), count
    return np.asarray(values.max(axis=axes)), count


def _reached(mark: _Marks, limits: Bounds) -> bool:
    """Whether a mask lies on a side that has a bound."""
    return (mark.low and math.isfinite(limits.lo)) or (mark.high and math.isfinite(limits.hi))


def _covered(mark: _Marks, limits: Bounds) -> bool:
    """Whether every side with a mask has a bound."""
    return not (mark.low and not math.isfinite(limits.lo)) and not (mark.high and not math.isfinite(limits.hi))


def _marks(graph: Graph, least: float, inputs: bool) -> dict[str, _Marks]:
    """Where constants of at least this magnitude may get to; and float inputs, if they count as possible masks."""
    marks: dict[str, _Marks] = {}
    if inputs:
        marks |= {value.name: _Marks(True, True) for value in graph.inputs if value.dtype == np.float32}
    for node in graph.nodes:
        if node.domain or not (node.op_type in _SPREADING or moves_data(node)):
            continue
        for name in node.inputs:
            array = graph.weights.get(name)
            if name not in marks and array is not None and array.dtype == np.float32 and array.size:
                marks[name] = _Marks(bool((array <= -least).any()), bool((array >= least).any()))
        mark = _spread(graph, node, [marks.get(name, _Marks()) for name in node.inputs])
        marks |= {name: mark for name in node.outputs if name and graph.values[name].dtype == np.float32}
    return {name: mark for name, mark in marks.items() if mark.low or mark.high}


_SPREADING = frozenset("Add Sub Mul Div Neg Concat Pad Where Max Min Clip Relu".split())


def _spread(graph: Graph, node: Node, sides: list[_Marks]) -> _Marks:
    """On which side a node's output holds masks, given its inputs' sides."""
    first, kind = sides[0], node.op_type
    low, high = any(side.low for side in sides), any(side.high for side in sides)
    if kind in ("Add", "Concat", "Pad"):
        return _Marks(low, high)
    if kind == "Where":
        return _Marks(sides[1].low or sides[2].low, sides[1].high or sides[2].high)
    if kind == "Sub":
        return _Marks(first.low or sides[1].high, first.high or sides[1].low)
    if kind in ("Mul", "Div"):
        return _product(graph, node, sides)
    if kind == "Neg":
        return _Marks(first.high, first.low)
    if kind == "Max":
        return _Marks(all(side.low for side in sides), high)
    if kind == "Min":
        return _Marks(low, all(side.high for side in sides))
    if kind == "Clip":
        ends = [*node.inputs[1:], "", ""][:2]
        return _Marks(first.low and not ends[0], first.high and not ends[1])
    return _Marks(first.low and kind not in ("Relu", "MaxPool"), first.high)


def _product(graph: Graph, node: Node, sides: list[_Marks]) -> _Marks:
    """A large negative factor makes a mask of ones; a positive one is likelier to be a unit."""
    constant = next((i for i, name in enumerate(node.inputs) if name in graph.weights), None)
    if constant is None:
        marked = any(side.low or side.high for side in sides)
        return _Marks(marked, marked)
    factors, other = graph.weights[node.inputs[constant]], sides[1 - constant]
    if not factors.size or (factors < 0).any() != (factors < 0).all():
        return other
    if (factors < 0).all():
        return _Marks(other.high or (node.op_type == "Mul" and sides[constant].low), other.low)
    return other
