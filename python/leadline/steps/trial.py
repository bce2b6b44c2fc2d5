"""The gate of steps that rewrite the float network: a plain quantisation of what they made of it."""

from __future__ import annotations

from dataclasses import replace

from leadline.graph import Graph
from leadline.recipe import Calibrate, Recipe
from leadline.steps.calibrate import run as calibrate
from leadline.steps.gate import output_error
from leadline.steps.round import run as round_weights
from leadline.steps.state import State

SAMPLES = 8
"""Calibration samples that a trial observes. As many held-out ones judge it: four kept out an equalisation that was
worth 5 dB of a face detector's heatmap."""

FLOAT = "activations stay float, so ranges cost nothing"
"""Why there is nothing to try."""


def plain(recipe: Recipe) -> Calibrate | None:
    """The recipe's calibration as a trial does it; None where there is none."""
    step = next((step for step in recipe.steps if isinstance(step, Calibrate)), None)
    return None if step is None else replace(step, activations="minmax", widen=0.0)


def can_try(state: State) -> bool:
    """Whether the recipe quantises activations at all."""
    return state.recipe.activations is not None and plain(state.recipe) is not None


def trial_error(state: State, graph: Graph) -> float:
    """The output error on held-out samples of a plain quantisation of `graph`: observed ranges, nearest rounding.

    Those of the last two networks are kept: the next step asks again for the one that went on.
    """
    known = next((entry for entry in state.tried if graph.is_same(entry[0])), None)
    if known is None:
        known = graph.copy(), _tried(state, graph)
    # The one asked for again stays: others are tried against it one after the other.
    state.tried[:] = [*[entry for entry in state.tried if entry is not known][-1:], known]
    return known[1]


def _tried(state: State, graph: Graph) -> float:
    step = plain(state.recipe)
    assert step is not None
    few = replace(state.setup, calibration=state.setup.calibration.take(SAMPLES))
    trial = state.fork(setup=few, graph=graph.copy(), grids={}, codes={}, histograms={}, tried=[])
    calibrate(step, trial)
    round_weights(None, trial)
    return output_error(trial)
