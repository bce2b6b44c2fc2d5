"""What runs have in common, found in a cache: what a step made of a state."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

from leadline.cache import digest
from leadline.recipe import CorrectBias, Step
from leadline.steps.state import State
from leadline.steps.trial import plain

CHANGED = ("graph", "placement", "grids", "codes", "histograms", "ranges", "judged", "apart")
"""Of a State: what steps change, beside the log that they add to."""


def stepped(step: Step, state: State, run: Callable[[], None]) -> None:
    """Change the state as `run` does: by running it, or as it did when the same step met the same state.

    A step sees the state, the recipe's schemes, the target's profile, and, of the steps behind it, how trials calibrate
    and whether biases will be corrected.
    """
    if state.cache is None:
        run()
        return
    recipe, begun = state.recipe, len(state.log)
    schemes = (recipe.weights, recipe.activations, recipe.scope, recipe.overrides)
    ahead = (plain(recipe), any(isinstance(other, CorrectBias) for other in recipe.steps))
    placed = state.placement and state.placement.schemes
    so_far = (
        state.profile,
        state.graph,
        placed,
        state.grids,
        state.codes,
        state.ranges,
        state.judged,
        state.calibration,
        state.held_out,
    )

    def changes() -> dict[str, Any]:
        run()
        own = {"overrides": state.recipe.overrides, "log": state.log[begun:]}
        return {key: getattr(state, key) for key in CHANGED} | own

    found = state.cache.recall(digest("step", "with overrides", step, schemes, ahead, so_far), changes)
    for key in CHANGED:
        setattr(state, key, found[key])
    state.recipe = recipe.changed(overrides=found["overrides"])
    state.log[begun:] = found["log"]
