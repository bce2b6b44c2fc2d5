"""Verification: the artefact against the float network on samples that calibration did not see."""

from __future__ import annotations

import os
from collections.abc import Mapping
from contextlib import ExitStack
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
from numpy.typing import NDArray

from leadline.data import Samples, load
from leadline.display import table
from leadline.export import qdq
from leadline.export.qdq_read import open_model
from leadline.export.unrounded import unrounded
from leadline.graph import Graph, Session
from leadline.graph.operators import by_channel, channel_axes, moves_data
from leadline.original import Original, OriginalSession
from leadline.profiles import HEXAGON, profile_of
from leadline.progress import Quiet
from leadline.sqnr import Sqnr
from leadline.steps import Progress
from leadline.targets import hexagon
from leadline.targets.hexagon import Build
from leadline.targets.hexagon_expected import expected
from leadline.targets.onnxruntime import Agreement, Fused, kernels_saturate
from leadline.targets.tail import FinalScore, Tailed, front
from leadline.types import Grid, InputError, refuse

if TYPE_CHECKING:
    import onnx

BROKEN = 10.0
"""dB: with a tenth of its power in error, a tensor no longer carries its signal."""

PICTURES = 4
"""Samples whose dense outputs are kept for the report."""


@dataclass(frozen=True)
class OutputScore:
    """One output over all samples. `sqnr` and `fused` in dB: the simulation, and the target (onnxruntime's fused
    kernels, or Hexagon's emulation; None where it does not take the artefact), against the float network. `worst` is
    the lowest SQNR of a single sample, `largest` the largest absolute error, `centred` the simulation's SQNR with the
    output's mean left out: far below `sqnr` where values lie close together far from zero."""

    name: str
    sqnr: float
    centred: float
    worst: float
    largest: float
    fused: float | None
    agreement: Agreement


@dataclass(frozen=True)
class TensorScore:
    """One activation: SQNR in dB over all samples. `rescaled` tells that each channel was first brought to the float
    network's scale, because folding or equalisation had moved it. `order` counts tensors as they are computed."""

    name: str
    op: str
    sqnr: float
    rescaled: bool = False
    order: int = 0


@dataclass(frozen=True)
class Dense:
    """One channel of one dense output of one sample: (height, width) float32 arrays."""

    output: str
    sample: str
    reference: NDArray[np.float32]
    artefact: NDArray[np.float32]


@dataclass(frozen=True)
class Verification:
    """What was measured. `tensors` are sorted worst first. `origin` is the first tensor, in the order of computation,
    of the broken ones (below 10 dB) that lead to a broken output; None where all outputs are whole. `moved` are
    tensors that hold something else than the float network's, as a rotation leaves them, so that nothing can be said
    of their errors. `outputs` are those of the quantised part; `final` what is computed from them in float where shapes
    depend on the data. `build` says what the target hexagon made of the artefact; None for onnxruntime. `judged_by`
    names the network, run as it came, that outputs are compared with."""

    samples: int
    outputs: list[OutputScore]
    tensors: list[TensorScore]
    saturates: bool
    origin: str | None = None
    moved: list[str] = field(default_factory=list)
    target: str = "onnxruntime"
    build: Build | None = None
    judged_by: str = ""
    pictures: list[Dense] = field(default_factory=list, repr=False)
    final: list[FinalScore] = field(default_factory=list)

    def _repr_html_(self) -> str:
        rows = [(o.name, o.sqnr, o.centred, o.worst, o.largest, o.fused) for o in self.outputs]
        outputs = table(("output", "SQNR dB", "about its mean", "worst sample", "largest error", "fused dB"), rows)
        worst = [(t.name, t.op, t.sqnr) for t in self.tensors[:10]]
        return outputs + table(("worst tensors", "operator", "SQNR dB"), worst)

    def to_dict(self) -> dict[str, Any]:
        """Everything but the pictures, ready for JSON."""
        return {
            "samples": self.samples,
            "outputs": [vars(o) | {"agreement": vars(o.agreement)} for o in self.outputs],
            "tensors": [vars(t) for t in self.tensors],
            "final": [vars(f) for f in self.final],
            "kernels_saturate": self.saturates,
            "origin": self.origin,
            "moved": self.moved,
            "target": self.target,
            "judged_by": self.judged_by,
            "build": self.build and vars(self.build) | {"accepted": self.build.accepted, "text": str(self.build)},
        }


def verify(
    reference: Graph | str | os.PathLike[str],
    artefact: onnx.ModelProto | str | os.PathLike[str],
    data: Any,
    *,
    original: Original | None = None,
    target: str = "onnxruntime",
    soc: int | None = None,
    arch: int | None = None,
    threads: int | None = None,
    progress: Progress | None = None,
) -> Verification:
    """Run the float network and the artefact side by side.

    The simulation is the artefact itself, run without graph optimisation. Beside it runs what the target makes of it:
    onnxruntime with all its fusions, or Qualcomm's emulation of the HTP; the distance of the two is given in steps of
    the output's grid. Where onnxruntime has no kernels (activations of at most four bits, or with a scale per channel)
    it runs unfused as well. For hexagon the simulation takes account of its arithmetic (`targets.hexagon_expected`).

    Parameters
    ----------
    reference : Graph or path
        The float network: the original, or the ``model.fp32.onnx`` beside the artefact.
    artefact : onnx.ModelProto or path
        A QDQ model with the same input and output names.
    data : Samples or anything that ``leadline.data.load`` takes
        The emulation takes seconds a sample, for a ViT-S half a minute: a few will do.
    original : Original, optional
        What outputs are judged by, run as it came. Default: `reference`, so that a path is judged by the file itself.
    target : {"onnxruntime", "hexagon"}
    soc, arch : int, optional
        For hexagon: the chip; see `targets.hexagon.Emulator`.
    threads : int, optional
    progress : Progress, optional

    Raises
    ------
    InputError
        The two networks differ in inputs or outputs, a file or the data cannot be used, or the target's extra is not
        installed.
    """
    progress, profile = progress or Quiet(), profile_of(target, "verify")
    graph = reference if isinstance(reference, Graph) else _reference(reference, data)
    if original is None and not isinstance(reference, Graph):
        original = Original(reference)
    samples = data if isinstance(data, Samples) else load(data, graph.inputs)
    written = qdq.read(artefact if not isinstance(artefact, os.PathLike) else Path(artefact))
    model = artefact if not isinstance(artefact, os.PathLike) else Path(artefact)
    tensors = {name: written.dequantised.get(name, name) for name in _compared(graph, written)}
    wanted = [value.name for value in graph.outputs]
    inner = [name for name in tensors if name not in wanted]
    run = _Run(graph, wanted, inner)
    theirs = wanted + [tensors[name] for name in inner]
    with ExitStack() as stack:
        device: Fused | _Npu
        _check_ends(graph, model)
        if profile is HEXAGON:
            device = _Npu(model if graph.tail is None else front(_whole(model), graph), soc, arch)
        else:
            device = Fused(model, wanted, _fits_onnxruntime(written), threads)
        stack.enter_context(device)
        final = stack.enter_context(Tailed(graph, threads))
        exact = stack.enter_context(Session(graph, outputs=wanted + inner, threads=threads))
        judge, judged_by = _judge(original, graph, threads)
        if judge is not None:
            stack.enter_context(judge)
        simulated = stack.enter_context(Session(device.simulation, outputs=theirs, optimize=False, threads=threads))
        for label, feed in zip(samples.labels, progress.over(samples, "verify", len(samples)), strict=True):
            got = dict(zip(wanted + inner, simulated.run(feed).values(), strict=True))
            exactly = exact.run(feed) | (judge.run(feed) if judge is not None else {})
            run.update(label, exactly, got, device.run(feed), written.grids)
            final.update(feed | exactly, feed | got)
        build = device.build
        scores = run.tensor_scores()
        suspects = {s.name: tensors[s.name] for s in scores if s.sqnr < BROKEN and s.name not in wanted}
        moved = _moved(exact, model, next(iter(samples)), suspects, wanted, run.axes)
    scores = [score for score in scores if score.name not in moved]
    origin = _origin(graph, {score.name: score.sqnr for score in scores})
    saturates = kernels_saturate() and build is None
    return Verification(
        len(samples),
        run.scores(),
        scores,
        saturates,
        origin,
        moved,
        target,
        build,
        judged_by,
        run.pictures,
        final.scores(),
    )


def _judge(original: Original | None, graph: Graph, threads: int | None) -> tuple[OriginalSession | None, str]:
    """What runs the network as it came, and how reports call it; the Graph alone where there is nothing else, or where
    onnxruntime does not run it."""
    if original is None:
        return None, "the Graph given"
    try:
        return original.session(graph, threads), str(original)
    except InputError as error:
        return None, f"the Graph made of {original}, which onnxruntime does not run: {error}"


class _Npu:
    """The target hexagon. What it does not take as a whole it does not run: a device would not, either."""

    def __init__(self, model: onnx.ModelProto | str | Path, soc: int | None, arch: int | None) -> None:
        proto = _whole(model)
        self.simulation, self._model, self._chip = expected(proto), model, (soc, arch)
        self.build = Build(0)

    def __enter__(self) -> _Npu:
        self._emulator = hexagon.Emulator(*self._chip)
        with ExitStack() as undo:
            undo.callback(self._emulator.close)
            self.build = self._emulator.build(self._model)
            undo.pop_all()
        return self

    def __exit__(self, *_: object) -> None:
        self._emulator.close()

    def run(self, feed: Mapping[str, NDArray[Any]]) -> dict[str, NDArray[Any]]:
        return self._emulator.run(feed) if self.build.accepted else {}


def _whole(model: onnx.ModelProto | str | Path) -> onnx.ModelProto:
    """With its external data."""
    proto, folder = open_model(model, "verify")
    if folder:
        from onnx.external_data_helper import load_external_data_for_model

        load_external_data_for_model(proto, folder)
    return proto


def _fits_onnxruntime(written: qdq.Qdq) -> bool:
    """onnxruntime fuses activations of four bits, or with a scale per channel, to kernels that then refuse them."""
    schemes = [grid.scheme for name, grid in written.grids.items() if name not in written.codes]
    return not any(scheme.bits <= 4 or scheme.granularity == "axis" for scheme in schemes)


def _check_ends(graph: Graph, model: onnx.ModelProto | str | Path) -> None:
    proto = open_model(model, "verify")[0]
    stored = {tensor.name for tensor in proto.graph.initializer}  # old files list weights among the inputs
    inputs = {value.name for value in proto.graph.input} - stored
    outputs = {value.name for value in graph.outputs}
    if graph.tail is not None:
        outputs = {name for name, _ in graph.tail.outputs}
    pairs = ((inputs, {value.name for value in graph.inputs}), ({v.name for v in proto.graph.output}, outputs))
    for kind, (has, names) in zip(("inputs", "outputs"), pairs, strict=True):
        if has != names:
            raise refuse("verify", f"the artefact must have the {kind} {sorted(names)}", str(sorted(has)))


def _moved(
    exact: Session,
    model: onnx.ModelProto | str | Path,
    feed: Mapping[str, NDArray[Any]],
    suspects: Mapping[str, str],
    outputs: list[str],
    axes: Mapping[str, int],
) -> list[str]:
    """Of the broken tensors, with what holds them in the artefact: those that are strangers to the float network even
    where no activation is rounded, while its outputs are whole."""
    if not suspects:
        return []
    wanted = exact.run(feed)
    with Session(unrounded(_whole(model)), outputs=[*outputs, *suspects.values()], optimize=False) as session:
        got = dict(zip([*outputs, *suspects], session.run(feed).values(), strict=True))
    if any(Sqnr().update(wanted[name], got[name]).db < BROKEN for name in outputs):
        return []
    sums = {name: _channel_sums(wanted[name], got[name], axes[name]) for name in suspects}
    return [name for name in suspects if _tensor_score(name, "", sums[name]).sqnr < BROKEN]


def _origin(graph: Graph, sqnr: dict[str, float]) -> str | None:
    """Upstream from the broken outputs, as long as tensors are broken: the one that is computed first."""
    sources = {name: node.inputs for node in graph.nodes for name in node.outputs}
    open_ = [value.name for value in graph.outputs if sqnr.get(value.name, np.inf) < BROKEN]
    seen, broken = set(open_), set(open_)
    while open_:
        for name in sources.get(open_.pop(), ()):
            # Tensors that were not compared (a reshape's) pass the search on.
            if name not in seen and sqnr.get(name, -np.inf) < BROKEN:
                open_.append(name)
                broken |= {name} & set(sqnr)
            seen.add(name)
    return next((name for node in graph.nodes for name in node.outputs if name in broken), None)


def _reference(path: str | os.PathLike[str], data: Any) -> Graph:
    sample = next(iter(data), None) if isinstance(data, Samples) else None
    return Graph.load(Path(path), sample)


def _compared(graph: Graph, written: qdq.Qdq) -> list[str]:
    """Layer outputs and quantised tensors: what the worst-first table ranks. Moved data counts once, at its source.

    A layer output that only a clamp reads is not in the artefact: quantisation clamps there.
    """
    layers = {layer.output for layer in graph.layers()}
    return [
        name
        for node in graph.nodes
        for name in node.outputs
        if not moves_data(node) and ((name in layers and name in written.tensors) or name in written.grids)
    ]


class _Run:
    """Sums over samples; memory does not grow with their number."""

    def __init__(self, graph: Graph, outputs: list[str], inner: list[str]) -> None:
        self._ops = {name: node.op_type for node in graph.nodes for name in node.outputs}
        self._order = {name: position for position, name in enumerate(self._ops)}
        self._sums: dict[str, NDArray[np.float64]] = {}
        self._inner, self.axes = inner, channel_axes(graph)
        self._simulated = {name: Sqnr() for name in outputs}
        self._fused = {name: Sqnr() for name in outputs}
        self._worst = dict.fromkeys(outputs, np.inf)
        self._agreement = {name: Agreement() for name in outputs}
        self.pictures: list[Dense] = []
        self._seen = 0

    def update(
        self,
        label: str,
        wanted: dict[str, NDArray[Any]],
        got: dict[str, NDArray[Any]],
        fused: dict[str, NDArray[Any]],
        grids: dict[str, Grid],
    ) -> None:
        for name, total in self._simulated.items():
            if got[name].shape != wanted[name].shape:
                rule = f"the artefact's output {name!r} must have the shape {wanted[name].shape}"
                raise refuse("verify", rule, got[name].shape)
            one = Sqnr()
            for score in (total, one):
                score.update(wanted[name], got[name])
            self._worst[name] = min(self._worst[name], one.db)
            known = name in grids and grids[name].scheme.granularity != "token"
            step = float(grids[name].scale.min()) if known else float(np.std(wanted[name])) / 256
            if name in fused:
                self._fused[name].update(wanted[name], fused[name])
                self._agreement[name] = self._agreement[name].updated(got[name], fused[name], step)
            if self._seen < PICTURES and (planes := _planes(wanted[name], got[name])):
                self.pictures.append(Dense(name, label, *planes))
        for name in self._inner:
            if name in wanted:
                sums = _channel_sums(wanted[name], got[name], self.axes[name])
                self._sums[name] = self._sums.get(name, 0) + sums
        self._seen += 1

    def scores(self) -> list[OutputScore]:
        return [
            OutputScore(
                name,
                s.db,
                s.centred_db,
                float(self._worst[name]),
                s.largest,
                self._fused[name].db if self._agreement[name].count else None,
                self._agreement[name],
            )
            for name, s in self._simulated.items()
        ]

    def tensor_scores(self) -> list[TensorScore]:
        scores = [_tensor_score(name, self._ops[name], sums) for name, sums in self._sums.items()]
        scores += [TensorScore(name, self._ops.get(name, ""), s.db) for name, s in self._simulated.items()]
        in_order = sorted(scores, key=lambda score: self._order.get(score.name, -1))
        numbered = [replace(score, order=position) for position, score in enumerate(in_order)]
        return sorted(numbered, key=lambda score: (score.sqnr, score.name))


def _channel_sums(x: NDArray[Any], y: NDArray[Any], axis: int) -> NDArray[np.float64]:
    """Rows: sum of x*x, of x*y, of y*y and of (x-y)^2; columns: channels, which lie along the axis."""
    a, b = (by_channel(v, axis).astype(np.float64) for v in (x, y))
    return np.stack([(a * a).sum(1), (a * b).sum(1), (b * b).sum(1), np.square(a - b).sum(1)])


def _tensor_score(name: str, op: str, sums: NDArray[np.float64]) -> TensorScore:
    """Plain SQNR, unless a factor for each channel explains the difference: then with that factor removed.

    Folding and equalisation leave such factors beside the original network; a folded LayerScale may be negative.
    """
    xx, xy, yy, error = sums
    plain = Sqnr(float(xx.sum()), float(error.sum())).db
    alive = yy > 0
    # With y brought to x's scale by f = xy / yy, the remaining error is xx - xy^2 / yy.
    rest = np.where(alive, xx - np.divide(xy**2, yy, out=np.zeros_like(yy), where=alive), xx)
    scaled = Sqnr(float(xx.sum()), float(np.maximum(rest, 0).sum())).db
    moved = scaled > plain + 6 and plain < 15
    return TensorScore(name, op, scaled if moved else plain, moved)


def _planes(x: NDArray[Any], y: NDArray[Any]) -> tuple[NDArray[np.float32], NDArray[np.float32]] | None:
    """The first channel of a dense output; None where the output is no picture."""
    if x.ndim < 3 or min(x.shape[-2:]) < 8:
        return None
    first = (0,) * (x.ndim - 2)
    return x[first].astype(np.float32), y[first].astype(np.float32)
