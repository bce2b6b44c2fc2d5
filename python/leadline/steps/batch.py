"""Whether what is written may take any batch size: run at another one before it is said."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import replace
from typing import Any

import numpy as np
from numpy.typing import NDArray

from leadline.graph import Graph, Session
from leadline.sqnr import Sqnr
from leadline.steps.state import Record, State
from leadline.types import InputError, refuse

Feed = Mapping[str, NDArray[Any]]
Arrays = dict[str, NDArray[Any]]

SAME = 40.0
"""dB: two samples in one batch give what each gives alone, but for roundings that fall the other way."""


Judge = Callable[[Feed], Arrays]


def prove_batch(state: State, written: Callable[[Graph], Any], judge: Judge | None = None) -> None:
    """Keep the batch axis that the file leaves free if the artefact, `written` with it, gives for two different samples
    in one batch what it gives for each alone, in the shapes that the file itself gives (`judge` runs it);
    else write fixed shapes. The log says which, and why."""
    batch = state.graph.batch
    if batch is None:
        return
    name = ", ".join(batch.inputs)
    if state.setup.rules.integers_only:
        note = f"batch {batch.size}, as quantised: {state.setup.rules.name} takes fixed shapes"
        state.log.append(Record("batch", name, note, kept=False))
        return
    feeds = _pair([*state.setup.held_out.take(2), *state.setup.calibration.take(2)], batch.inputs)
    free = replace(state.graph, tail=None, batch=replace(batch, proven=True))
    try:
        both = feeds[0] | {name: np.concatenate([feed[name] for feed in feeds]) for name in batch.inputs}
        wanted = judge(both) if judge is not None else {}
        _check(written(free), feeds, both, {name: array.shape for name, array in wanted.items()})
    except InputError as error:
        reason = str(error).partition("] ")[2].replace("\n", " ")
        note = f"batch {batch.size}, as quantised: {reason}"
        state.log.append(Record("batch", name, note, kept=False))
        return
    state.graph.batch = free.batch
    state.log.append(
        Record("batch", name, f"any batch, called {batch.symbol}: two samples in one give what each gives")
    )


def _pair(feeds: list[Arrays], inputs: tuple[str, ...]) -> list[Arrays]:
    """Two samples that differ, on the same other inputs."""
    first = feeds[0]
    other = next((f for f in feeds[1:] if any(not np.array_equal(f[n], first[n]) for n in inputs)), None)
    if other is None:  # a single sample: turned round, it is another one
        other = {name: np.ascontiguousarray(first[name][..., ::-1]) for name in inputs}
    return [first, first | {name: other[name] for name in inputs}]


def _check(model: Any, feeds: list[Arrays], both: Feed, shapes: Mapping[str, tuple[int, ...]]) -> None:
    """Raises InputError where a batch of both is not as each alone, or not of the file's shapes."""
    with Session(model, integers=False) as session:
        alone = [session.run(feed) for feed in feeds]
        together = session.run(both)
    for name, array in together.items():
        if shapes.get(name, array.shape) != array.shape:
            rule = f"output '{name}' must have the shape {array.shape} for two samples in one batch"
            raise refuse("batch", rule, f"{shapes[name]} from the file")
        singles = [one[name] for one in alone]
        axes = [axis for axis in range(array.ndim) if array.shape[axis] != singles[0].shape[axis]]
        if len(axes) > 1 or any(array.shape[axis] != 2 * singles[0].shape[axis] for axis in axes):
            raise refuse(
                "batch", f"output '{name}' must grow with the batch", f"{singles[0].shape}, then {array.shape}"
            )
        wanted = np.concatenate(singles, axes[0]) if axes else singles[0]
        if not axes and not np.array_equal(singles[0], singles[1]):
            raise refuse("batch", f"output '{name}' must have a place for each sample", f"shape {array.shape} for two")
        score = Sqnr().update(_finite(wanted), _finite(array)).db
        if score < SAME:
            rule = f"output '{name}' must hold for two samples in one batch what it holds for each alone"
            raise refuse("batch", rule, f"{score:.1f} dB")


def _finite(array: NDArray[Any]) -> NDArray[np.float64]:
    return np.nan_to_num(array.astype(np.float64))
