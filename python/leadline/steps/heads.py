"""Heads: what a detector's last layers say keeps its digits."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from glob import escape

import numpy as np

from leadline.affine import choose_grid
from leadline.graph import parting
from leadline.graph.heads import Head, find
from leadline.recipe import Heads, Override
from leadline.steps.gate import output_error
from leadline.steps.observe import histograms
from leadline.steps.placement import Placement, place
from leadline.steps.state import Record, State

WEIGHT_BITS = 8
"""Of the last layers, at least."""

FEATURE_BITS = 8
"""Of features that may become wide; narrower ones are another step's to choose."""

GLANCE = 2
"""Held-out samples that tell features apart."""


def run(step: Heads, state: State) -> None:
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
    state.judged, state.reference = _judged(state, heads), []
    for head in heads:
        wide = [name for name in head.wide if graph.values[name].dtype == np.float32]
        whole = set[str]() if not head.labels else {*head.labels, *head.joined}
        note = f"{len(wide)} tensors from {wide[0]} on keep their extremes"
        if state.recipe.activations is not None:
            _keep_extremes(state, wide)
            overrides = [Override(escape(name), activations="float") for name in wide if name in whole]
            if state.recipe.activations.bits < step.bits:
                bits = {"bits": step.bits}
                overrides += [Override(escape(name), activations=bits) for name in wide if name not in whole]
                note += f", at {step.bits} bits"
            state.overrides += tuple(overrides)
        if state.recipe.weights is not None and state.recipe.weights.bits < WEIGHT_BITS:
            state.overrides += tuple(Override(escape(name), weights={"bits": WEIGHT_BITS}) for name in head.layers)
            note += f", {len(head.layers)} last layers with weights of {WEIGHT_BITS}"
        state.log.append(Record.of("heads", f"{head}: {note}"))
    if step.widen and state.recipe.activations is not None and not state.setup.rules.one_type:
        _widen_features(step, state)


def _judged(state: State, heads: Sequence[Head]) -> dict[str, tuple[tuple[str, int, int], ...]]:
    """The parts in place of the outputs that hold them."""
    judged: dict[str, tuple[tuple[str, int, int], ...]] = {}
    for value in state.graph.outputs:
        joined = [head for head in heads if value.name in head.outputs]
        for head in joined:
            judged |= dict.fromkeys(head.scores, ())
            judged |= {name: tuple((w.scores, w.axis, w.onto) for w in head.weights[name]) for name in head.others}
        if not joined:
            judged[value.name] = ()
    return judged


def _keep_extremes(state: State, tensors: Sequence[str]) -> None:
    """A search for ranges would clip the few high scores away: least divergence loses all detections so."""
    for name, histogram in histograms(state, dict.fromkeys(tensors), "heads").items():
        state.ranges[name] = (histogram.lo, histogram.hi)


def _widen_features(step: Heads, state: State) -> None:
    """The features at full size carry every detection: of a YOLOv8 one in twenty causes half of the noise in scores."""
    placement = place(state.graph, state.recipe)
    known = {name: placement.schemes[name] for name in dict.fromkeys(placement.root.values())}
    narrow = {
        name: scheme
        for name, scheme in known.items()
        if scheme.granularity == "tensor" and FEATURE_BITS <= scheme.bits < step.bits and name not in state.ranges
    }
    seen = histograms(state, dict.fromkeys(narrow), "features")
    grids = {name: choose_grid(seen[name].lo, seen[name].hi, scheme) for name, scheme in narrow.items()}
    groups = _gates(state, placement, narrow)
    noise: dict[str, float] = {}
    for first in state.setup.progress.over(groups, "noise of each feature", len(groups)):
        alone = {tensor: grids[root] for tensor, root in placement.root.items() if root in groups[first]}
        noise[first] = output_error(state.fork(grids=alone, codes={}), GLANCE)
    chosen = sorted(groups, key=lambda first: -noise[first])[: round(step.widen * len(groups))]
    if not chosen:
        return
    names = [name for first in chosen for name in groups[first]]
    state.overrides += tuple(Override(escape(name), activations={"bits": step.bits}) for name in names)
    share = sum(noise[first] for first in chosen) / (sum(noise.values()) or 1.0)
    note = (
        f"{len(chosen)} of {len(groups)} features at {step.bits} bits, for {share:.0%} of the noise in scores and boxes"
    )
    state.log.append(Record("heads", state.graph.name, note))


def _gates(state: State, placement: Placement, names: Iterable[str]) -> dict[str, list[str]]:
    """Tensors, by the first of each group: what a layer writes, and what a gate (SiLU) makes of it, are worth one
    width, since targets want products and factors alike."""
    first = {name: name for name in names}
    for node in state.graph.nodes:
        factors = [placement.root.get(name, "") for name in node.inputs]
        if node.op_type == "Mul" and len(factors) == 2 and placement.root.get(node.outputs[0]) == node.outputs[0]:
            for gate, other in (factors, factors[::-1]):
                writer = state.graph.producer(gate)
                if (
                    writer is not None
                    and placement.root.get(writer.inputs[0]) == other
                    and {gate, other} <= first.keys()
                ):
                    first[gate] = first[node.outputs[0]] = first[other]
    groups: dict[str, list[str]] = {}
    for name, leader in first.items():
        groups.setdefault(leader, []).append(name)
    return groups
