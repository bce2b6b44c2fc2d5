"""Polish: quantise the logarithm of what layers read, between two explicit operators."""

from __future__ import annotations

from fnmatch import fnmatchcase

import numpy as np

from leadline.graph import DOMAIN, Graph, Layer, Node
from leadline.graph.edit import add_constant, add_value, insert
from leadline.polishing import Choice, choose
from leadline.recipe import Polish
from leadline.steps.observe import histograms
from leadline.steps.placement import place
from leadline.steps.state import Record, State


def run(step: Polish, state: State) -> None:
    """Put LogPolish and LogUnpolish in front of every matching layer whose input gets a grid.

    The float function stays what it was; the grid comes to lie on the tensor between the two, over the range that the
    choice of the bends assumed. Channels that are better off without pass through.
    """
    placement = place(state.graph, state.recipe, state.setup.rules)
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
            threads=state.setup.threads,
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
    shape = graph.shape(tensor)
    wide = () if axis is None else (-1, *[1] * (len(shape) - 1 - axis))
    omega = add_constant(graph, f"{tensor}.omega", choice.omega.reshape(wide))
    polished, unpolished = (add_value(graph, f"{tensor}.{part}", shape) for part in ("polished", "unpolished"))
    readers = {id(layer.node) for layer in layers}
    insert(
        graph,
        next(node for node in graph.nodes if id(node) in readers),
        Node("LogPolish", [tensor, omega], [polished], polished, {}, DOMAIN),
        Node("LogUnpolish", [polished, omega], [unpolished], unpolished, {}, DOMAIN),
    )
    for layer in layers:
        layer.node.inputs[0] = unpolished
    return polished
