"""Heads: what a detector's last layers say keeps its digits."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from glob import escape

import numpy as np

from leadline.graph import parting
from leadline.graph.heads import Head, find
from leadline.recipe import Heads, Override
from leadline.steps.observe import histograms
from leadline.steps.state import Record, State

WEIGHT_BITS = 8
"""Of the last layers, at least."""


def widen_heads(step: Heads, state: State) -> None:
    """Where the network has detection heads: part what a Split takes apart again, give the parts of a head outputs of
    their own if that is wanted, widen the last layers and all behind them and keep its extremes in range, and have
    gates judge scores and positions by themselves. The rewrites are exact: there is nothing to gate. Nothing happens
    in other networks."""
    parted = state.graph.copy()
    lines = parting.part(parted)
    if not find(parted):
        return
    state.graph = graph = parted
    before = {value.name: value.shape for value in graph.outputs}
    state.log += [Record.of("heads", line) for line in lines]
    for head, outputs in parting.separate(graph) if step.separate else ():
        (old,), new = head.outputs, graph.shape(outputs[0])
        axis = next(i for i, size in enumerate(new) if size != before[old][i])
        state.apart = state.apart | {old: (axis, outputs)}
        state.log.append(Record("heads", head.outputs[0], f"its parts are outputs of their own, {', '.join(outputs)}"))
    heads = find(graph)
    state.judged = _judged(state, heads)
    for head in heads:
        wide = [name for name in head.wide if graph.values[name].dtype == np.float32]
        whole = set[str]() if not head.labels else {*head.labels, *head.joined}
        note = f"{len(wide)} tensors from {wide[0]} on keep their extremes"
        if state.recipe.activations is not None:
            _keep_extremes(state, wide)
            own = [Override(escape(name), activations="float") for name in wide if name in whole]
            if state.recipe.activations.bits < step.bits:
                bits = {"bits": step.bits}
                own += [Override(escape(name), activations=bits) for name in wide if name not in whole]
                note += f", at {step.bits} bits"
            _state_first(state, own)
        if state.recipe.weights is not None and state.recipe.weights.bits < WEIGHT_BITS:
            _state_first(state, [Override(escape(name), weights={"bits": WEIGHT_BITS}) for name in head.layers])
            note += f", {len(head.layers)} last layers with weights of {WEIGHT_BITS}"
        state.log.append(Record.of("heads", f"{head}: {note}"))


def _judged(state: State, heads: Sequence[Head]) -> dict[str, tuple[tuple[str, int, int], ...]]:
    """The parts in place of the outputs that hold them."""
    judged: dict[str, tuple[tuple[str, int, int], ...]] = {}
    for value in state.graph.outputs:
        own = [head for head in heads if value.name in head.outputs]
        for head in own:
            judged |= dict.fromkeys(head.scores, ())
            judged |= {name: tuple((w.scores, w.axis, w.onto) for w in head.weights[name]) for name in head.others}
        if not own:
            judged[value.name] = ()
    return judged


def _state_first(state: State, overrides: Iterable[Override]) -> None:
    """Behind what the recipe says of names, before what it says of kinds."""
    stated = state.recipe.overrides
    place = next((i for i, override in enumerate(stated) if override.pattern == "*"), len(stated))
    state.recipe = state.recipe.changed(overrides=(*stated[:place], *overrides, *stated[place:]))


def _keep_extremes(state: State, tensors: Sequence[str]) -> None:
    """A search for ranges would clip the few high scores away: least divergence loses all detections so."""
    for name, histogram in histograms(state, dict.fromkeys(tensors), "heads").items():
        state.ranges[name] = (histogram.lo, histogram.hi)
