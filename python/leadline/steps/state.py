"""What a run is given, what its steps find, and the log they keep."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass, field, replace
from typing import Any

import numpy as np
from numpy.typing import NDArray

from leadline.cache import Cache
from leadline.data import Samples
from leadline.graph import Graph, Session
from leadline.observers import Histogram
from leadline.progress import Progress
from leadline.recipe import Override, Recipe
from leadline.rules import ONNXRUNTIME, Rules
from leadline.steps.placement import Placement
from leadline.types import Grid
from leadline.workers import Here, Workers


@dataclass(frozen=True)
class Record:
    """What a step did to one layer or tensor. `before` and `after` are held-out errors where the step was gated."""

    step: str
    target: str
    note: str = ""
    before: float | None = None
    after: float | None = None
    kept: bool = True

    @classmethod
    def of(cls, step: str, line: str) -> Record:
        """From one line, "target: note"."""
        target, _, note = line.partition(": ")
        return cls(step, target, note)

    def to_dict(self) -> dict[str, Any]:
        return {key: value for key, value in vars(self).items() if value is not None and value != ""}


@dataclass(frozen=True)
class Setup:
    """What a run is given. Trials share it."""

    recipe: Recipe
    calibration: Samples
    held_out: Samples
    progress: Progress
    simulate: Callable[[State, Sequence[str]], Session]
    """The artefact as it stands, unfused, returning these tensors: given by the caller, who knows the exporter."""
    threads: int | None = None
    rules: Rules = ONNXRUNTIME
    cache: Cache | None = None
    """Where runs that have something in common find it; see `leadline.steps.shared`."""
    workers: Workers = field(default_factory=Here)
    """Who does what can be done apart: the layers of a level."""
    held_out_given: bool = False
    """Whether the user has named the held-out samples: then no range ever comes from them."""


@dataclass
class State:
    """What a run has found so far.

    `graph` computes the original function in float at all times; what quantisation changes lies beside it: `grids` by
    tensor name, and `codes`, the integers of weights and biases (a corrected bias lives in its codes).
    """

    setup: Setup
    graph: Graph
    overrides: tuple[Override, ...] = ()
    """What steps have decided of single layers and tensors; see `recipe`."""
    placement: Placement | None = None
    grids: dict[str, Grid] = field(default_factory=dict)
    codes: dict[str, NDArray[np.integer[Any]]] = field(default_factory=dict)
    histograms: dict[str, Histogram] = field(default_factory=dict)
    ranges: dict[str, tuple[Any, Any]] = field(default_factory=dict)
    """Of activations whose range a step has decided before calibration."""
    judged: dict[str, tuple[tuple[str, int, int], ...]] = field(default_factory=dict)
    """What gates look at in place of the outputs, where a step says so: a tensor, and the scores that say how much its
    places count: their highest along an axis, and where that axis goes. See `leadline.steps.heads`."""
    apart: dict[str, tuple[int, tuple[str, ...]]] = field(default_factory=dict)
    """Outputs that a step has taken apart: along which axis, and what the parts are called."""
    shifted: dict[str, NDArray[Any]] = field(default_factory=dict)
    """What a step has taken away from each channel of a tensor, and its readers give back."""
    reference: list[dict[str, NDArray[Any]]] = field(default_factory=list)
    """What the float network gives on the held-out samples that gates look at; see `leadline.steps.gate`."""
    tried: list[tuple[Graph, float]] = field(default_factory=list)
    """The last networks that plain trials quantised, and their errors; see `leadline.steps.trial`."""
    weight_grids: dict[str, tuple[NDArray[Any], Any, Grid]] = field(default_factory=dict)
    """By weight: the array, what was asked of it, and its grid; see `leadline.steps.calibrate`."""
    log: list[Record] = field(default_factory=list)

    @property
    def recipe(self) -> Recipe:
        """The run's, with `overrides` behind what it says of names, and before what it says of kinds."""
        recipe = self.setup.recipe
        if not self.overrides:
            return recipe
        stated = recipe.overrides
        place = next((i for i, override in enumerate(stated) if override.pattern == "*"), len(stated))
        return recipe.changed(overrides=(*stated[:place], *self.overrides, *stated[place:]))

    def fork(self, **changes: Any) -> State:
        """A trial: as it stands but for the changes, with a log of its own."""
        return replace(self, **({"log": []} | changes))
