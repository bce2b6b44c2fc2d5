"""One pass of the float network over the calibration samples."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from typing import Any

from numpy.typing import NDArray

from leadline.graph import Session
from leadline.steps.state import State


def observe(state: State, tensors: Sequence[str], what: str) -> Iterator[tuple[str, dict[str, NDArray[Any]]]]:
    """Of each sample: its label, and what the tensors hold, the network's inputs among them."""
    inputs = {value.name for value in state.graph.inputs}
    watched = [name for name in tensors if name not in inputs]
    with Session(state.graph, outputs=watched or None, threads=state.threads) as session:
        samples = zip(state.calibration.labels, state.calibration, strict=True)
        for label, feed in state.progress.over(samples, what, len(state.calibration)):
            yield label, session.run(feed) | feed
