"""Passes of the float network over the calibration samples."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from typing import Any, TypeVar

from numpy.typing import NDArray

from leadline.cache import digest
from leadline.graph import Session
from leadline.graph.masks import Masks
from leadline.observers import Histogram
from leadline.steps.state import State

T = TypeVar("T")


def observe(state: State, tensors: Sequence[str], what: str) -> Iterator[tuple[str, dict[str, NDArray[Any]]]]:
    """Of each sample: its label, and what the tensors hold, the network's inputs among them. Masks lie at the bounds
    beyond which their readers see no difference; of constants, as far as this sample needs them (`graph.masks`)."""
    inputs = {value.name for value in state.graph.inputs}
    masks = masks_of(state)
    needed = [] if masks.bounded.isdisjoint(tensors) else masks.needed
    watched = [name for name in dict.fromkeys((*tensors, *needed)) if name in state.graph.values.keys() - inputs]
    with Session(state.graph, outputs=watched or None, threads=state.threads) as session:
        samples = zip(state.calibration.labels, state.calibration, strict=True)
        for label, feed in state.progress.over(samples, what, len(state.calibration)):
            yield label, masks.clipped(session.run(feed) | feed, tensors)


def masks_of(state: State) -> Masks:
    """What of the network's tensors are masks, and how far down its activations tell values apart."""
    activations = state.recipe.activations
    return Masks(state.graph, 8 if activations is None else activations.bits)


def observed(state: State, what: str, asked: object, compute: Callable[[], T]) -> T:
    """What `compute` gives, which only depends on the float network, the calibration samples and what is `asked`."""
    if state.cache is None:
        return compute()
    return state.cache.recall(digest(what, state.graph, state.calibration, asked), compute)


def histograms(state: State, axes: Mapping[str, int | None], what: str) -> dict[str, Histogram]:
    """Of what each tensor holds, along its axis or as a whole."""

    def compute() -> dict[str, Histogram]:
        found = {name: Histogram(axis=axis, name=name) for name, axis in axes.items()}
        for label, seen in observe(state, list(axes), what) if axes else ():
            for name, histogram in found.items():
                histogram.update(seen[name], sample=label, threads=state.threads)
        return found

    bits = None if state.recipe.activations is None else state.recipe.activations.bits
    return observed(state, "histograms", (axes, bits), compute)
