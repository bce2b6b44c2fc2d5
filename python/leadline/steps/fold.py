"""Fold: constant factors go into their layers."""

from __future__ import annotations

from leadline.recipe import Fold
from leadline.steps.state import Record, State


def run(step: Fold, state: State) -> None:
    """Fold BatchNorm, LayerScale and constant factors; exact, so there is nothing to gate."""
    state.log += [Record.of("fold", line) for line in state.graph.fold()]
