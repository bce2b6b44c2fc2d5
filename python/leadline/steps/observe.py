"""Passes of the float network over the calibration samples."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import nullcontext
from typing import Any, TypeVar

from numpy.typing import NDArray

from leadline.cache import digest
from leadline.graph import Session
from leadline.graph.guards import RESOLVED, level, whole_masks
from leadline.graph.masks import MASK, Masks
from leadline.observers import Histogram
from leadline.steps.state import State

T = TypeVar("T")

LOOKED_AT = 16
"""Calibration samples that tell whether a mask covers whole rows."""


def observe(state: State, tensors: Sequence[str], what: str) -> Iterator[tuple[str, dict[str, NDArray[Any]]]]:
    """Of each sample: its label, and what the tensors hold, the network's inputs among them, in one or several parts.
    Masks lie at the bounds beyond which their readers see no difference; of constants, as far as this sample needs them
    (`graph.masks`)."""
    inputs = {value.name for value in state.graph.inputs}
    masks = masks_of(state)
    masked = not masks.bounded.isdisjoint(tensors)
    needed = masks.needed if masked else []
    watched = [name for name in dict.fromkeys((*tensors, *needed)) if name in state.graph.values.keys() - inputs]
    with Session(state.graph, outputs=watched or None, threads=state.setup.threads) as session:
        samples = zip(state.setup.calibration.labels, state.setup.calibration, strict=True)
        for label, feed in state.setup.progress.over(samples, what, len(state.setup.calibration)):
            if masked:  # how far each mask reaches depends on what others hold
                yield label, masks.clipped(session.run(feed) | feed, tensors)
                continue
            yield label, {name: feed[name] for name in tensors if name in feed}
            for seen in session.pieces(feed):
                yield label, seen
                seen.clear()  # the next is computed without it


def masks_of(state: State) -> Masks:
    """What of the network's tensors are masks, and how far down its activations tell values apart."""
    activations = state.recipe.activations
    return Masks(state.graph, 8 if activations is None else activations.bits)


def observed(state: State, what: str, asked: object, compute: Callable[[], T]) -> T:
    """What `compute` gives, which only depends on the float network, the calibration samples and what is `asked`."""
    if state.setup.cache is None:
        return compute()
    return state.setup.cache.recall(digest(what, state.graph, state.setup.calibration, asked), compute)


def histograms(state: State, axes: Mapping[str, int | None], what: str) -> dict[str, Histogram]:
    """Of what each tensor holds, along its axis or as a whole."""

    def compute() -> dict[str, Histogram]:
        made = {name: Histogram(axis=axis, name=name) for name, axis in axes.items()}
        for label, seen in observe(state, list(axes), what) if axes else ():
            for name in filter(made.__contains__, seen):
                made[name].update(seen[name], sample=label, threads=state.setup.threads)
        return made

    bits = None if state.recipe.activations is None else state.recipe.activations.bits
    return observed(state, "histograms", (axes, bits), compute)


def level_masks(state: State) -> list[str]:
    """Level the masks that mask whole rows of the calibration samples at a finite distance (`graph.guards.level`); what
    they are called. A grid ends at masks, and such rows would come out even."""
    masked = [one for one in whole_masks(state.graph) if one[1] not in {value.name for value in state.graph.outputs}]
    needed: set[int] = set()
    names = sorted({mask for _, mask, _ in masked if mask in state.graph.values})
    inputs = {value.name for value in state.graph.inputs}
    feeds = list(state.setup.calibration.take(LOOKED_AT)) if names else [{}]
    watched = [name for name in names if name not in inputs]
    threads = state.setup.threads
    with Session(state.graph, outputs=watched or None, threads=threads) if names else nullcontext() as session:
        for feed in feeds:
            seen = {} if session is None else session.run(feed) | feed
            for place, (_, mask, axis) in enumerate(masked):
                top = (seen[mask] if mask in seen else state.graph.weights[mask]).max(axis=axis)
                if ((top <= -MASK) & (top >= -RESOLVED)).any():
                    needed.add(place)
    for place in sorted(needed):
        level(state.graph, *masked[place])
    return sorted({masked[place][1] for place in needed})
