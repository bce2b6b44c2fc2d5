"""What each Step of a recipe does: its handler maps the run's State forward and writes the log."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

from leadline.recipe import Calibrate, CorrectBias, Equalize, Fold, Heads, Polish, Rotate, Round, Smooth, Step
from leadline.steps.calibrate import calibrate
from leadline.steps.correct_bias import correct_bias
from leadline.steps.equalize import equalize
from leadline.steps.fitting import adapt, recentre
from leadline.steps.heads import widen_heads
from leadline.steps.polish import polish
from leadline.steps.rotate import rotate
from leadline.steps.round import round_weights
from leadline.steps.shared import stepped
from leadline.steps.smooth import smooth
from leadline.steps.state import Progress, Record, Setup, State

__all__ = ["Progress", "Record", "Setup", "State", "adapt", "apply", "recentre"]


def fold(step: Fold, state: State) -> None:
    """Fold constant factors into their layers; exact, so there is nothing to gate."""
    for line in state.graph.fold():
        state.log.append(Record.of("fold", line))


HANDLERS: dict[type[Any], Callable[[Any, State], None]] = {
    Fold: fold,
    Heads: widen_heads,
    Equalize: equalize,
    Rotate: rotate,
    Smooth: smooth,
    Polish: polish,
    Calibrate: calibrate,
    Round: round_weights,
    CorrectBias: correct_bias,
}


def apply(step: Step, state: State) -> None:
    """Run one step of a recipe."""
    stepped(step, state, lambda: HANDLERS[type(step)](step, state))
