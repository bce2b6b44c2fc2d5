"""The gate of whole-network decisions: what simulation says about the outputs on held-out samples."""

from __future__ import annotations

import numpy as np

from leadline.graph import Session
from leadline.sqnr import Sqnr
from leadline.steps.state import State

SAMPLES = 8
"""Held-out samples that a gate looks at, at most: it is asked several times in a run."""


def output_error(state: State) -> float:
    """Noise over signal at the outputs, averaged over the outputs, of the artefact as `state` has it."""
    held_out = state.held_out.take(SAMPLES)
    names = [value.name for value in state.graph.outputs]
    if not state.reference:  # the float function never changes, so its outputs are computed once in a run
        with Session(state.graph, threads=state.threads) as session:
            state.reference.extend(session.run(feed) for feed in held_out)
    scores = {name: Sqnr() for name in names}
    with state.simulate(state, names) as session:
        for feed, wanted in zip(held_out, state.reference, strict=True):
            got = session.run(feed)
            for name in names:
                scores[name].update(wanted[name], got[name])
    return float(np.mean([10 ** (-score.db / 10) for score in scores.values()]))
