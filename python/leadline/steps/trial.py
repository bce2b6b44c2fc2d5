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
"""Calibration samples that a trial observes."""

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

    That of the run's own network is kept for the next step that asks, if nothing has changed by then.
    """
    if state.tried and graph.is_same(state.tried[0][0]):
        return state.tried[0][1]
    step = plain(state.recipe)
    assert step is not None
    few = replace(state.setup, calibration=state.setup.calibration.take(SAMPLES))
    trial = state.fork(setup=few, graph=graph.copy(), grids={}, codes={}, histograms={}, tried=[])
    calibrate(step, trial)
    round_weights(None, trial)
    error = output_error(trial)
    if graph is state.graph:
        state.tried[:] = [(graph.copy(), error)]
    return error
