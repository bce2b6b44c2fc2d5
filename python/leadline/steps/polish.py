"""Polish: quantise the logarithm of what layers read, between two explicit operators."""

from __future__ import annotations

from fnmatch import fnmatchcase

import numpy as np

from leadline.graph import DOMAIN, Graph, Layer, Node, Value
from leadline.graph.fold import new_name
from leadline.polishing import Choice, choose
from leadline.recipe import Polish
from leadline.steps.observe import histograms
from leadline.steps.placement import place
from leadline.steps.state import Record, State


def polish(step: Polish, state: State) -> None:
    """Put LogPolish and LogUnpolish in front of every matching layer whose input gets a grid.

    The float function stays what it was; the grid comes to lie on the tensor between the two, over the range that the
    choice of the bends assumed. Channels that are better off without pass through.
    """
    placement = place(state.graph, state.recipe)
    readers: dict[str, list[Layer]] = {}
    for layer, _ in placement.layers:
        scheme = placement.schemes.get(layer.input)
        if scheme is not None and scheme.granularity in ("tensor", "axis") and fnmatchcase(layer.name, step.pattern):
            readers.setdefault(layer.input, []).append(layer)
    if not readers:
        note = f"no layer named {step.pattern} reads a grid that can be polished"
        state.log.append(Record("polish", state.graph.name, note, kept=False))
        return
    schemes = {name: placement.schemes[name] for name in readers}
    axes = {name: scheme.axis if scheme.granularity == "axis" else None for name, scheme in schemes.items()}
    seen = histograms(state, axes, "polish")
    for tensor, layers in readers.items():
        choice = choose(
            seen[tensor],
            schemes[tensor],
            percentile=step.percentile,
            adaptive=step.adaptive,
            threads=state.threads,
        )
        bent = np.isfinite(choice.omega)
        names = ", ".join(layer.name for layer in layers)
        if not bent.any():
            state.log.append(Record("polish", names, "no channel gains", kept=False))
            continue
        between = _insert(state.graph, tensor, layers, choice, axes[tensor])
        state.ranges[between] = (choice.lo, choice.hi)
        note = f"{int(bent.sum())} of {bent.size} channels"
        state.log.append(Record("polish", names, note))


def _insert(graph: Graph, tensor: str, layers: list[Layer], choice: Choice, axis: int | None) -> str:
    """The pair in front of these layers; returns the tensor between."""
    polished, omega, unpolished = (new_name(graph, f"{tensor}.{part}") for part in ("polished", "omega", "unpolished"))
    shape = graph.shape(tensor)
    wide = () if axis is None else (-1, *[1] * (len(shape) - 1 - axis))
    graph.weights[omega] = choice.omega.reshape(wide)
    for name in (polished, unpolished):
        graph.values[name] = Value(name, np.dtype(np.float32), shape)
    places = [graph.nodes.index(layer.node) for layer in layers]
    graph.nodes[min(places) : min(places)] = [
        Node("LogPolish", [tensor, omega], [polished], polished, {}, DOMAIN),
        Node("LogUnpolish", [polished, omega], [unpolished], unpolished, {}, DOMAIN),
    ]
    for layer in layers:
        layer.node.inputs[0] = unpolished
    return polished
