"""What runs have in common, found in a cache: what a step made of a state."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import fields
from typing import Any

from leadline.cache import digest
from leadline.recipe import CorrectBias, Step
from leadline.steps.state import State
from leadline.steps.trial import plain

KEPT = ("reference", "tried", "weight_grids")
FOUND = tuple(field.name for field in fields(State) if field.name not in ("setup", *KEPT, "log"))
"""Of a State: what steps change, beside the log that they add to."""


def stepped(step: Step, state: State, run: Callable[[], None]) -> None:
    """Change the state as `run` does: by running it, or as it did when the same step met the same state.

    A step sees the state, the recipe's schemes, the target's rules, and, of the steps behind it, how trials calibrate
    and whether biases will be corrected.
    """
    setup, begun = state.setup, len(state.log)
    if setup.cache is None:
        run()
        return
    recipe = state.recipe
    schemes = (recipe.weights, recipe.activations, recipe.scope, recipe.overrides)
    ahead = (plain(recipe), any(isinstance(other, CorrectBias) for other in recipe.steps))
    # What calibration saw follows from the rest.
    so_far = {name: getattr(state, name) for name in FOUND if name not in ("placement", "histograms")}
    placed = state.placement and state.placement.schemes
    met = (setup.rules, setup.calibration, setup.held_out, setup.held_out_given, placed, so_far)

    def changes() -> dict[str, Any]:
        run()
        return {name: getattr(state, name) for name in FOUND} | {"log": state.log[begun:]}

    after = setup.cache.recall(digest("step", step, schemes, ahead, met), changes)
    for name in FOUND:
        setattr(state, name, after[name])
    state.log[begun:] = after["log"]
