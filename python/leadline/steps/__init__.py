"""What each Step of a recipe does: its function maps the run's State forward and writes the log."""

from __future__ import annotations

from collections.abc import Callable
from importlib import import_module
from typing import Any

from leadline.graph.spool import spool
from leadline.recipe import Step
from leadline.steps.fitting import adapt, recentre
from leadline.steps.shared import stepped
from leadline.steps.state import Record, Setup, State

__all__ = ["Record", "Setup", "State", "adapt", "apply", "handler", "recentre"]


def handler(step: type[Step]) -> Callable[[Any, State], None]:
    """The function `run` of the module that is called as the step is."""
    run: Callable[[Any, State], None] = import_module(f"leadline.steps.{step.step.replace('-', '_')}").run
    return run


def apply(step: Step, state: State) -> None:
    """Run one step of a recipe. What it made of a large network's weights goes to disk."""
    stepped(step, state, lambda: handler(type(step))(step, state))
    moved = spool(state.graph, *(tried for tried, _ in state.tried))
    for name, (weight, asked, grid) in list(state.weight_grids.items()):
        if moved(weight) is state.graph.weights.get(name):
            state.weight_grids[name] = moved(weight), asked, grid
        else:
            del state.weight_grids[name]
