"""Heads: what meets in a detector's last Concat keeps its digits."""

from __future__ import annotations

from collections.abc import Sequence
from glob import escape

from leadline.graph import heads
from leadline.recipe import Heads, Override
from leadline.steps.observe import histograms
from leadline.steps.state import Record, State


def widen_heads(step: Heads, state: State) -> None:
    """Part what a Split takes apart again, give the parts of a head outputs of their own if that is wanted, keep the
    heads' extremes in range, and widen what boxes are decoded in. The rewrites are exact: there is nothing to gate."""
    graph, scheme = state.graph, state.recipe.activations
    state.log += [Record.of("heads", line) for line in heads.part(graph)]
    found = heads.find(graph)
    if not found:
        state.log.append(Record("heads", graph.name, "no Concat at an output joins scores with something wider"))
    peaks = dict.fromkeys(name for head in found for name in head.peaks)
    wide = dict.fromkeys(name for head in found for name in head.decoding)
    for head, outputs in heads.separate(graph) if step.separate else ():
        state.log.append(Record("heads", head.output, f"its parts are outputs of their own, {', '.join(outputs)}"))
        peaks |= dict.fromkeys(outputs)
        wide |= dict.fromkeys(new for old, new in zip(head.parts, outputs, strict=True) if old in head.others)
    joined = {head.concat for head in heads.find(graph)}
    wide |= dict.fromkeys(name for node in graph.nodes if node.name in joined for name in node.outputs)
    if scheme is None:
        return
    _keep_extremes(state, [name for name in peaks | wide if name in graph.values])
    if scheme.bits < step.bits:
        own = tuple(Override(escape(n), activations={"bits": step.bits}) for n in wide if n in graph.values)
        state.recipe = state.recipe.changed(overrides=(*state.recipe.overrides, *own))
    for head in found:
        note = f"{len(head.decoding)} tensors from {head.decoding[0]} on at {step.bits} bits, " if head.decoding else ""
        where = f"{head.output}: {', '.join(head.scores)} beside {', '.join(head.others)}"
        state.log.append(Record("heads", where, f"{note}{len(head.peaks)} keep their extremes"))


def _keep_extremes(state: State, tensors: Sequence[str]) -> None:
    """A search for ranges would clip the few high scores away: least divergence loses all detections so."""
    for name, histogram in histograms(state, dict.fromkeys(tensors), "heads").items():
        state.ranges[name] = (histogram.lo, histogram.hi)
