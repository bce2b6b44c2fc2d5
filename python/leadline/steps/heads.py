"""Heads: what meets in a detector's last Concat keeps its digits."""

from __future__ import annotations

from glob import escape

from leadline.graph import heads
from leadline.recipe import Heads, Override
from leadline.steps.state import Record, State


def widen_heads(step: Heads, state: State) -> None:
    """Part what a Split takes apart again, give the parts of a head outputs of their own if that is wanted, and widen
    what boxes are decoded in. The rewrites are exact, so there is nothing to gate."""
    graph, scheme = state.graph, state.recipe.activations
    found = heads.find(graph)
    if not found:
        state.log.append(Record("heads", graph.name, "no Concat at an output joins scores with something wider"))
    lines = heads.part(graph)
    if step.separate:
        lines += heads.separate(graph)
    state.log += [Record.of("heads", line) for line in lines]
    if scheme is None or scheme.bits >= step.bits:
        return
    joined = {head.concat for head in heads.find(graph)}
    wide = dict.fromkeys(name for head in found for name in head.decoding if name in graph.values)
    wide |= dict.fromkeys(name for node in graph.nodes if node.name in joined for name in node.outputs)
    own = tuple(Override(escape(name), activations={"bits": step.bits}) for name in wide)
    state.recipe = state.recipe.changed(overrides=(*state.recipe.overrides, *own))
    for head in found:
        note = f"{len(head.decoding)} tensors from {head.decoding[0]} on at {step.bits} bits" if head.decoding else ""
        where = f"{head.output}: {', '.join(head.scores)} beside {', '.join(head.others)}"
        state.log.append(Record("heads", where, note))
