"""The network as the user brought it, run as it came: the judge of everything that is made of it.

No pass of leadline has touched it, so what a pass gets wrong shows. `Original` runs it, `Proof` holds a Graph to it.
"""

from __future__ import annotations

import os
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import numpy as np
import onnx
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

ROUNDING = 2.0**-21
"""Of the inputs, relative, at least: some units in the last place of a float32."""

PASSES_LEAVE = 2.0**-17
"""Relative, where a network neither damps nor amplifies: 100 dB."""

TRIES = 8
"""Roundings of the inputs that may show that an output falls either way."""

LUCK = 6.0
"""dB, that such roundings may stay nearer, since some fall farther than others."""

MARGIN = 20.0
"""dB below what rounding the inputs does to an output: a network that amplifies noise is allowed as much."""

PART_LEFT = 20.0
"""dB, of one index along an axis of an output: its own noise may come from far larger values, so it is allowed more."""

NOISE = 1e-10
"""An index with less than this share of an output's power is noise itself."""

FEW = 3
"""Values of a channel: fewer fit any factor."""

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
        self.source: Any = source.copy() if isinstance(source, Graph) else Path(source)

    def __str__(self) -> str:
        return f"'{self.source.name}'"

    def run(self, graph: Graph, feed: Feed, threads: int | None = None) -> Arrays:
        """Those outputs of a Graph made of it that it has, too, for inputs of any shape that the file takes; none where
        a Graph was given in its place.

        Raises InputError where onnxruntime does not run it so.
        """
        if isinstance(self.source, Graph):
            return {}
        known = {name for node in parse(self.source, "Original").graph.node for name in node.output}
        names = [value.name for value in graph.outputs if value.name in known]
        with OriginalSession(self.source, names, threads=threads) as session:
            return session.run(feed)

    def session(self, graph: Graph, threads: int | None = None, inner: bool = False) -> OriginalSession:
        """Load it, to give those outputs of a Graph made of it that it has, too, on inputs of that Graph's shapes; or,
        `inner`, all that its own nodes write.

        Raises InputError where onnxruntime does not run it.
        """
        names = [value.name for value in graph.outputs]
        if isinstance(self.source, Graph):
            known = [name for node in self.source.nodes for name in node.outputs if name]
            wanted = known if inner else [name for name in names if name in self.source.values]
            return OriginalSession(self.source, wanted, threads=threads)
        model = parse(self.source, "Original")
        known = [name for node in model.graph.node for name in node.output if name]
        ends = [value.name for value in model.graph.output]
        wanted = known if inner else [name for name in names if name in {*ends, *known}]
        if _frees(model, graph):
            return OriginalSession(model, wanted, threads=threads, folder=self.source.resolve().parent)
        return OriginalSession(self.source, None if wanted == ends else wanted, threads=threads)


def _frees(model: onnx.ModelProto, graph: Graph) -> bool:
    """Whether shapes that the file declares had to be taken out, since they are not those that it is used with: some
    exporters declare a dummy's."""
    shapes = {value.name: value.shape for value in graph.inputs}
    for value in model.graph.input:
        dims = value.type.tensor_type.shape.dim
        used = shapes.get(value.name, ())
        if len(dims) == len(used) and any(d.dim_value not in (0, size) for d, size in zip(dims, used, strict=True)):
            break
    else:
        return False
    for value in (*model.graph.input, *model.graph.output):
        if value.name in shapes or value in model.graph.output:
            for dim in value.type.tensor_type.shape.dim:
                dim.Clear()
    del model.graph.value_info[:]
    return True


class OriginalSession(Session):
    """Takes feeds, and gives outputs, of the Graph's types: float32 where the file has other floats."""

    def run(self, feed: Feed) -> Arrays:
        if not self.outputs:  # the Graph made of it gives others
            return {}
        typed = {name: feed[name].astype(dtype, copy=False) for name, dtype, _ in self.inputs if name in feed}
        return {name: _single(array) for name, array in super().run(typed).items()}

    @property
    def epsilon(self) -> float:
        """Relative rounding of its coarsest float input; 0 where none is float."""
        floats = [dtype for _, dtype, _ in self.inputs if dtype.kind == "f"]
        return max((float(np.finfo(dtype).eps) for dtype in floats), default=0.0)


def _single(array: NDArray[Any]) -> NDArray[Any]:
    return array.astype(np.float32, copy=False) if array.dtype.kind in "fV" else array


class Running:
    """A network that is no ONNX, on feeds of the Graph that stands for its ends."""

    def __init__(self, run: Callable[[Feed], Arrays]) -> None:
        self.run = run

    def __enter__(self) -> Running:
        return self

    def __exit__(self, *_: object) -> None: ...


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
        self._last: Graph | None = None
        self._shifted: dict[str, NDArray[Any]] = {}
        self._samples = samples.take(SAMPLES)
        try:
            session = original.session(loaded, threads)
        except ValueError as error:
            self.note = (
                f"{original} does not run in onnxruntime as it is, so the Graph made of it is the judge: {error}"
            )
            self.original = Original(loaded)
            session = self.original.session(loaded, threads)
        with session:
            self._wanted = [session.run(feed) for feed in self._samples]
            self._power = {
                name: float(np.mean([_power(wanted[name]) for wanted in self._wanted])) for name in session.outputs
            }
            rounded = _rounded(next(iter(self._samples)), max(session.epsilon, ROUNDING))
            self._response = {
                name: _noise(self._wanted[0][name], array) for name, array in session.run(rounded).items()
            }

    def hold(
        self,
        graph: Graph,
        after: str,
        count: int = 1,
        apart: Mapping[str, tuple[int, tuple[str, ...]]] | None = None,
        shifted: Mapping[str, NDArray[Any]] | None = None,
    ) -> None:
        """Raises InputError, naming the output, the first tensor that left, and what was done before, where a Graph
        does not compute the original on the first `count` samples. `apart`: outputs that the Graph gives in parts, the
        axis and their names. `shifted`: what steps have taken away from each channel of a tensor."""
        shifted = shifted or {}
        if count == 1 and self._last is not None and graph.is_same(self._last):
            return
        with Session(graph, threads=self._threads) as session:
            samples = self._samples.take(count)
            for label, feed, wanted in zip(samples.labels, samples, self._wanted, strict=False):
                got = session.run(feed)
                for name, (axis, parts) in (apart or {}).items():
                    got[name] = np.concatenate([got[part] for part in parts], axis)
                for name in [name for name in got if name in wanted]:
                    reason = self._departure(name, wanted[name], got[name])
                    if reason and not self._is_chance(graph, feed, name, wanted[name], got[name]):
                        end = name if apart is None or name not in apart else apart[name][1][0]
                        tensor = self._first(graph, end, shifted)
                        rule = (
                            f"after {after} the network must still compute {self.original}, but its output '{name}' "
                            f"{reason} on {label}, from tensor '{tensor}' on; this is a fault of leadline, not of the "
                            "network: leave that step out, and please report it"
                        )
                        raise refuse("quantize", rule, f"a Graph of {len(graph.nodes)} nodes")
        self._last, self._shifted = graph.copy(), dict(shifted)

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
        error = float(np.square(x.astype(np.float64) - y).sum())
        db = Sqnr(max(_power(wanted), self._power[name]), error).db
        if db < min(LEFT, self._response[name] - MARGIN):
            return f"is {db:.1f} dB from it"
        if self._response[name] > LEFT:
            for axis in range(x.ndim):
                power, lacking = (np.square(by_channel(v, axis), dtype=np.float64).sum(1) for v in (x, x - y))
                lost = (power > NOISE * power.sum()) & (lacking > 10 ** (-PART_LEFT / 10) * power)
                if lost.any():
                    return f"has lost index {int(np.argmax(lost))} of axis {axis}"
        return ""

    def _is_chance(self, graph: Graph, feed: Feed, name: str, wanted: NDArray[Any], got: NDArray[Any]) -> bool:
        """Whether the original itself, its inputs rounded by as much as folding and rotating leave, comes as far from
        what it gives: where a network picks among nearly equal scores, what follows falls either way."""
        if wanted.shape != got.shape or not np.isfinite(got[np.isfinite(wanted)]).all():
            return False
        far = _noise(wanted, got)
        if wanted.dtype.kind == "f" and far > LEFT:  # one index alone is lost
            return False
        with self.original.session(graph, self._threads) as session:
            for seed in range(TRIES):
                noise = _noise(wanted, session.run(_rounded(feed, max(session.epsilon, PASSES_LEAVE), seed))[name])
                if noise <= far + LUCK if wanted.dtype.kind == "f" else 2 * noise >= far:
                    return True
        return False

    def _first(self, graph: Graph, output: str, shifted: Mapping[str, NDArray[Any]]) -> str:
        """Upstream from an output that left, through what differs from the network before: what is computed first."""
        inputs = {value.name for value in graph.inputs}
        floats = [name for name in graph.activations() if name not in inputs]
        with Session(graph, outputs=floats, threads=self._threads) as session:
            got = self._stacked(session)
        same = inputs | (self._kept(graph, got, shifted) if self._last is not None else self._met(graph, got))
        sources = {name: node.inputs for node in graph.nodes for name in node.outputs}
        left, pending = {output}, [output]
        while pending:
            for name in sources.get(pending.pop(), ()):
                if name in graph.values and name not in same and name not in left:
                    left.add(name)
                    pending.append(name)
        return next(name for node in graph.nodes for name in node.outputs if name in left)

    def _stacked(self, session: Session) -> Arrays:
        """What all the samples make of each tensor, sample by sample along a new first axis."""
        runs = [session.run(feed) for feed in self._samples]
        return {name: np.stack([run[name] for run in runs]) for name in runs[0]}

    def _kept(self, graph: Graph, got: Arrays, shifted: Mapping[str, NDArray[Any]]) -> set[str]:
        """What holds the same as in the Graph before, under its name, what is `shifted` shifted back."""
        assert self._last is not None
        written = self._last.producers()
        shared = [name for name in got if name in written and self._last.shape(name) == graph.shape(name)]
        if not shared:
            return set()
        axes = channel_axes(graph)
        with Session(self._last, outputs=shared, threads=self._threads) as session:
            before = self._stacked(session)
        kept = set()
        for name, array in before.items():
            axis, here = axes[name] + 1, got[name]
            if name in shifted:
                shift = np.asarray(shifted[name] - self._shifted.get(name, 0), np.float32)
                here = here + shift.reshape(-1, *[1] * (here.ndim - 1 - axis))
            if _alike(array, here, axis):
                kept.add(name)
        return kept

    def _met(self, graph: Graph, got: Arrays) -> set[str]:
        """What holds the same as some tensor of the original; loading gives them other names."""
        with self.original.session(graph, self._threads, inner=True) as session:
            values = [array.ravel() for array in self._stacked(session).values() if array.dtype.kind == "f"]
        norms = np.array([_norm(each) for each in values])

        def is_known(array: NDArray[Any]) -> bool:
            # Of equal tensors the norms are equal, too, and sooner compared.
            near = np.flatnonzero(np.abs(norms - _norm(array)) <= 10 ** (-LEFT / 20) * norms)
            return any(values[i].size == array.size and _equal(values[i], array.ravel()) for i in near)

        return {name for name, array in got.items() if is_known(array)}


def _power(array: NDArray[Any]) -> float:
    return float(np.square(np.where(np.isfinite(array), array, 0), dtype=np.float64).sum())


def _rounded(feed: Feed, epsilon: float, seed: int = 0) -> Arrays:
    """The inputs as another rounding could have left them."""
    generator = np.random.default_rng(seed)
    with np.errstate(over="ignore"):  # of masks as low as the type goes
        return {
            name: np.asarray(array * (1 + epsilon * generator.uniform(-1, 1, array.shape)), array.dtype)
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


def _equal(x: NDArray[Any], y: NDArray[Any]) -> bool:
    """But for float noise."""
    a, b = (np.nan_to_num(v).astype(np.float64) for v in (x, y))
    return bool(np.square(a - b).sum() <= 10 ** (-LEFT / 10) * np.square(a).sum())


def _norm(array: NDArray[Any]) -> float:
    return float(np.linalg.norm(np.nan_to_num(array).astype(np.float64)))


def _alike(x: NDArray[Any], y: NDArray[Any], axis: int) -> bool:
    """Equal, but perhaps for a factor for each channel that folding or equalising left; too few values cannot tell."""
    a, b = (by_channel(np.nan_to_num(v), axis).astype(np.float64) for v in (x, y))
    if _equal(a, b) or a.shape[1] < FEW:
        return _equal(a, b)
    products, squares = (a * b).sum(1), (b * b).sum(1)
    factors = np.divide(products, squares, out=np.ones_like(products), where=squares > 0)
    return _equal(a, factors[:, None] * b)
