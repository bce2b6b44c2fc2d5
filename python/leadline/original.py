"""The network as the user brought it, run as it came: the judge of everything that is made of it.

No pass of leadline has touched it, so what a pass gets wrong shows. `Original` runs it, `Proof` holds a Graph to it.
"""

from __future__ import annotations

import os
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from leadline.data import Samples
from leadline.graph import Graph, Session
from leadline.graph.operators import by_channel, channel_axes
from leadline.graph.read import parse
from leadline.sqnr import LIMIT_DB, Sqnr
from leadline.types import refuse

Feed = Mapping[str, NDArray[Any]]
Arrays = dict[str, NDArray[Any]]

SAMPLES = 8
"""Held-out samples that the last look runs, at most. The look behind each step takes one."""

LEFT = 70.0
"""dB: below it an output is no longer the original's but for float noise. Folding and rotating leave 100 and more."""

MARGIN = 20.0
"""dB below what rounding the inputs does to an output: a network that amplifies noise is allowed as much."""

PART_LEFT = 20.0
"""dB, of one index along an axis of an output: its own noise may come from far larger values, so it is allowed more."""

NOISE = 1e-10
"""An index with less than this share of an output's power is noise itself."""

TIES = 0.02
"""Share of an output of integers (classes, places) that may differ: ties fall either way."""


class Original:
    """A float network in plain onnxruntime.

    Parameters
    ----------
    source : path or Graph
        The user's file; or the Graph that was given in its place, as it was then.
    """

    def __init__(self, source: Graph | str | os.PathLike[str]) -> None:
        self.source = source.copy() if isinstance(source, Graph) else Path(source)

    def __str__(self) -> str:
        return f"'{self.source.name}'"

    def session(self, outputs: Sequence[str], threads: int | None = None) -> OriginalSession:
        """Load it, to give those of these tensors that it has. Raises InputError where onnxruntime does not run it."""
        if isinstance(self.source, Graph):
            known = {*self.source.values, *(value.name for value in self.source.outputs)}
        else:
            network = parse(self.source, "Original").graph
            known = {name for node in network.node for name in node.output} | {value.name for value in network.output}
        return OriginalSession(self.source, [name for name in outputs if name in known], threads=threads)


class OriginalSession(Session):
    """Takes feeds, and gives outputs, of the Graph's types: float32 where the file has other floats."""

    def run(self, feed: Feed) -> Arrays:
        typed = {name: feed[name].astype(dtype, copy=False) for name, dtype, _ in self.inputs if name in feed}
        return {name: _single(array) for name, array in super().run(typed).items()}

    @property
    def epsilon(self) -> float:
        """Relative rounding of its coarsest float input; 0 where none is float."""
        floats = [dtype for _, dtype, _ in self.inputs if dtype.kind == "f"]
        return max((float(np.finfo(dtype).eps) for dtype in floats), default=0.0)


def _single(array: NDArray[Any]) -> NDArray[Any]:
    return array.astype(np.float32, copy=False) if array.dtype.kind in "fV" else array


class Proof:
    """That a Graph computes what the original does, but for float noise, on held-out samples.

    Float noise is what the network itself makes of a rounding of its inputs, and at least what no quantisation comes
    near (70 dB). Where onnxruntime does not run the original, the Graph as it was loaded is the judge, and `note` says
    so.

    Parameters
    ----------
    original : Original
    loaded : Graph
        What was made of it, before any step.
    samples : Samples
    threads : int, optional
    """

    def __init__(self, original: Original, loaded: Graph, samples: Samples, threads: int | None = None) -> None:
        self.original, self.note, self._threads = original, "", threads
        self._last = loaded.copy()
        self._feeds = list(samples.take(SAMPLES))
        self._labels = samples.take(SAMPLES).labels
        outputs = [value.name for value in loaded.outputs]
        try:
            session = original.session(outputs, threads)
        except ValueError as error:
            self.note = (
                f"{original} does not run in onnxruntime as it is, so the Graph made of it is the judge: {error}"
            )
            session = Original(loaded).session(outputs, threads)
        with session:
            self._wanted = [session.run(feed) for feed in self._feeds]
            rounded = _rounded(self._feeds[0], max(session.epsilon, 2.0**-21))
            self._response = {
                name: _noise(self._wanted[0][name], array) for name, array in session.run(rounded).items()
            }

    def hold(self, graph: Graph, after: str, count: int = 1) -> None:
        """Raises InputError, naming the output, the first tensor that left, and what was done before, where a Graph
        does not compute the original on the first `count` samples."""
        names = [value.name for value in graph.outputs if value.name in self._wanted[0]]
        with Session(graph, outputs=names, threads=self._threads) as session:
            for label, feed, wanted in list(zip(self._labels, self._feeds, self._wanted, strict=True))[:count]:
                got = session.run(feed)
                for name in names:
                    if reason := self._departure(name, wanted[name], got[name]):
                        tensor = self._first(graph, feed, name)
                        rule = (
                            f"after {after} the network must still compute {self.original}, but its output '{name}' "
                            f"{reason} on {label}, from tensor '{tensor}' on; this is a fault of leadline, not of the "
                            "network: leave that step out, and please report it"
                        )
                        raise refuse("quantize", rule, f"a Graph of {len(graph.nodes)} nodes")
        self._last = graph.copy()

    def _departure(self, name: str, wanted: NDArray[Any], got: NDArray[Any]) -> str:
        """How an output is no longer the original's; empty where it is."""
        if wanted.shape != got.shape:
            return f"has the shape {got.shape} instead of {wanted.shape}"
        if wanted.dtype.kind != "f":
            mixed = float(np.mean(wanted != got)) if wanted.size else 0.0
            return f"differs in {mixed:.0%} of its elements" if mixed > TIES + 3 * self._response[name] else ""
        known = np.isfinite(wanted)
        if not np.isfinite(got[known]).all():
            return "holds infinities or NaN"
        x, y = np.where(known, wanted, 0), np.where(known, got, 0)
        db = Sqnr().update(x, y).db
        if db < min(LEFT, self._response[name] - MARGIN):
            return f"is {db:.1f} dB from it"
        if self._response[name] > LEFT:
            for axis in range(x.ndim):
                power, error = (np.square(by_channel(v, axis), dtype=np.float64).sum(1) for v in (x, x - y))
                lost = (power > NOISE * power.sum()) & (error > 10 ** (-PART_LEFT / 10) * power)
                if lost.any():
                    return f"has lost index {int(np.argmax(lost))} of axis {axis}"
        return ""

    def _first(self, graph: Graph, feed: Feed, output: str) -> str:
        """Upstream from an output that left, through what differs from the network before: what is computed first."""
        shared = [
            name
            for name, value in graph.values.items()
            if name in self._last.values and self._last.shape(name) == value.shape and value.dtype.kind == "f"
        ]
        inputs = {value.name for value in graph.inputs}
        watched = [name for name in shared if name not in inputs]
        if not watched:
            return output
        axes = channel_axes(graph)
        with (
            Session(self._last, outputs=watched, threads=self._threads) as before,
            Session(graph, outputs=watched, threads=self._threads) as now,
        ):
            wanted, got = before.run(feed), now.run(feed)
        same = {name for name in watched if _alike(wanted[name], got[name], axes[name])} | inputs
        sources = {name: node.inputs for node in graph.nodes for name in node.outputs}
        left, pending = {output}, [output]
        while pending:
            for name in sources.get(pending.pop(), ()):
                if name in graph.values and name not in same and name not in left:
                    left.add(name)
                    pending.append(name)
        return next(name for node in graph.nodes for name in node.outputs if name in left)


def _rounded(feed: Feed, epsilon: float) -> Arrays:
    """The inputs as another rounding could have left them."""
    generator = np.random.default_rng(0)
    return {
        name: (array * (1 + epsilon * generator.uniform(-1, 1, array.shape))).astype(array.dtype)
        if array.dtype.kind == "f"
        else array
        for name, array in feed.items()
    }


def _noise(wanted: NDArray[Any], got: NDArray[Any]) -> float:
    """SQNR in dB of floats, share of the elements that differ of anything else."""
    if wanted.shape != got.shape:
        return -LIMIT_DB if wanted.dtype.kind == "f" else 1.0
    if wanted.dtype.kind != "f":
        return float(np.mean(wanted != got)) if wanted.size else 0.0
    known = np.isfinite(wanted) & np.isfinite(got)
    return Sqnr().update(np.where(known, wanted, 0), np.where(known, got, 0)).db


def _alike(x: NDArray[Any], y: NDArray[Any], axis: int) -> bool:
    """Equal but for float noise and a factor for each channel, which folding and equalising may leave."""
    a, b = (by_channel(np.nan_to_num(v), axis).astype(np.float64) for v in (x, y))
    products, squares = (a * b).sum(1), (b * b).sum(1)
    factors = np.divide(products, squares, out=np.ones_like(products), where=squares > 0)
    return bool(np.square(a - factors[:, None] * b).sum() <= 10 ** (-LEFT / 10) * np.square(a).sum())
