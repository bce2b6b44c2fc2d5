"""The gate of whole-network decisions: what simulation says about the outputs on held-out samples."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from typing import Any

import numpy as np
from numpy.typing import NDArray

from leadline.graph import Session
from leadline.sqnr import Sqnr
from leadline.steps.state import State

SAMPLES = 8
"""Held-out samples that a gate looks at, at most: it is asked several times in a run."""

LUCK = 1.1
"""The simulated error of a whole deep network varies by about this factor with nothing but the luck of rounding."""


def output_error(state: State, count: int = SAMPLES) -> float:
    """Noise over signal at the outputs of the artefact as `state` has it, averaged over the outputs, of `count`
    held-out samples (SAMPLES at most).

    Over the samples it is the geometric mean, each sample weighing as much as its signal. In a deep network most noise
    lies in the one or two samples where a decision tips over, and a plain sum would let these few decide; without the
    weights the samples in which a detector finds nothing would. A detector's scores and positions are judged each by
    itself, and positions where the float network sees something: most of them are of the ground, and mean nothing.
    """
    held_out = state.setup.held_out.take(SAMPLES)
    judged = state.judged or {value.name: () for value in state.graph.outputs}
    names = list(judged)
    if state.judged:  # as outputs they are what their grids leave of them
        graph = state.graph.copy()
        graph.outputs = [graph.values[name] for name in names]
        state = state.fork(graph=graph)
    if not state.reference:  # the float function never changes, so its outputs are computed once in a run
        with Session(state.graph, threads=state.setup.threads) as session:
            state.reference.extend(session.run(feed) for feed in held_out)
    scores: dict[str, list[Sqnr]] = {name: [] for name in names}
    with state.setup.simulate(state, names) as session:
        for feed, wanted in zip(held_out.take(count), state.reference, strict=False):
            got = session.run(feed)
            for name in names:
                exact, rough = wanted[name], got[name]
                if judged[name]:
                    weight = _weight(wanted, judged[name])
                    exact, rough = exact * weight, rough * weight
                scores[name].append(Sqnr().update(exact, rough))
    return float(np.mean([10 ** (-_typical(samples) / 10) for samples in scores.values()]))


def _weight(seen: Mapping[str, NDArray[Any]], scores: Iterable[tuple[str, int, int]]) -> Any:
    """The product of the scores' highest values at each place."""
    weight: Any = np.float32(1)
    for name, axis, onto in scores:
        weight = weight * np.expand_dims(seen[name].max(axis), onto)
    return weight


def _typical(samples: list[Sqnr]) -> float:
    """Mean SQNR in dB, each sample weighing as much as its signal."""
    signals = [sample.signal for sample in samples]
    return float(np.average([sample.db for sample in samples], weights=signals if any(signals) else None))
