"""Verification: the artefact against the float network on samples that calibration did not see."""

from __future__ import annotations

import os
from collections.abc import Mapping
from contextlib import ExitStack
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any

from numpy.typing import NDArray

from leadline.affine import dequantize
from leadline.data import Samples, load
from leadline.display import table
from leadline.export import qdq
from leadline.export.qdq_read import open_model
from leadline.export.unrounded import unrounded
from leadline.graph import Graph, Session
from leadline.graph.operators import moves_data
from leadline.original import Original, OriginalSession
from leadline.profiles import HEXAGON, profile_of
from leadline.progress import Quiet
from leadline.scores import BROKEN, Dense, OutputScore, Run, TensorScore, channel_sums, origin, tensor_score
from leadline.sqnr import Sqnr
from leadline.steps import Progress
from leadline.targets.hexagon import emulator as hexagon
from leadline.targets.hexagon.emulator import Build
from leadline.targets.hexagon.expected import expected
from leadline.targets.onnxruntime.kernels import Fused, kernels_saturate
from leadline.targets.tail import FinalScore, Tailed, front
from leadline.types import InputError, refuse

if TYPE_CHECKING:
    import onnx

REWRITTEN = 3.0
"""dB: a weight whose error is half its power is none that was rounded, to two bits and more."""


@dataclass(frozen=True)
class Verification:
    """What was measured. `tensors` are sorted worst first. `origin` is the first tensor, in the order of computation,
    of the broken ones (below 10 dB) that lead to an output that is broken or lost; None where all outputs are whole.
    `moved` are tensors that hold something else than the float network's, as rotated and scaled weights leave them, so
    that nothing can be said of their errors. `outputs` are those of the quantised part; `final` what is computed from
    them in float where shapes depend on the data. `build` says what the target hexagon made of the artefact; None for
    onnxruntime. `judged_by` names the network, run as it came, that outputs are compared with."""

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
        rows: list[tuple[object, ...]] = []
        for o in self.outputs:
            rows.append((o.name, o.sqnr, o.centred, o.worst, o.largest, o.fused))
            rows += [(part.name, part.sqnr, part.centred, "", "", "") for part in o.parts]
        outputs = table(("output", "SQNR dB", "about its mean", "worst sample", "largest error", "fused dB"), rows)
        if self.collapse:
            outputs += table(("collapsed",), [(line,) for line in self.collapse])
        worst = [(t.name, t.op, t.sqnr) for t in self.tensors[:10]]
        return outputs + table(("worst tensors", "operator", "SQNR dB"), worst)

    @property
    def collapse(self) -> list[str]:
        """What of the outputs is lost, and why; empty where nothing is. See `leadline.collapse`."""
        lines = [line for output in self.outputs for line in output.collapsed]
        return lines + [f"{final.name}: {'; '.join(final.collapse)}" for final in self.final if final.collapse]

    def to_dict(self) -> dict[str, Any]:
        """Everything but the pictures, ready for JSON."""
        return {
            "samples": self.samples,
            "outputs": [output.to_dict() for output in self.outputs],
            "collapse": self.collapse,
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
    run = Run(graph, wanted, inner, target if profile is HEXAGON else "")
    inner = inner + sorted({pick.places for pick in run.places.values()} & written.tensors - {*wanted, *inner})
    theirs = wanted + [tensors.get(name, name) for name in inner]
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
        scores, outputs = run.tensor_scores(), run.scores()
        suspects = {s.name: tensors[s.name] for s in scores if s.broken and s.name not in wanted}
        moved = []
        if suspects and _is_rewritten(graph, written):
            moved = _moved(exact, model, next(iter(samples)), suspects, wanted, run.axes)
    scores = [score for score in scores if score.name not in moved]
    first = origin(graph, {score.name: score for score in scores}, outputs)
    saturates = kernels_saturate() and build is None
    return Verification(
        len(samples),
        outputs,
        scores,
        saturates,
        first,
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


def _is_rewritten(graph: Graph, written: qdq.Qdq) -> bool:
    """Whether weights are no roundings of the float network's: rotated or scaled, so that tensors may be, too.

    Both change the layers on either side of a tensor; a single one may have been compensated."""
    known = [name for name in {layer.weight for layer in graph.layers()} if name in written.codes]
    strangers = 0
    for name in known:
        weight, codes = graph.weights[name], written.codes[name]
        if codes.shape == weight.shape:
            strangers += Sqnr().update(weight, dequantize(codes, written.grids[name])).db < REWRITTEN
    return strangers >= max(2, len(known) / 10)


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
    wanted = exact.run(feed)
    with Session(unrounded(_whole(model)), outputs=[*outputs, *suspects.values()], optimize=False) as session:
        got = dict(zip([*outputs, *suspects], session.run(feed).values(), strict=True))
    if any(Sqnr().update(wanted[name], got[name]).db < BROKEN for name in outputs):
        return []
    sums = {name: channel_sums(wanted[name], got[name], axes[name]) for name in suspects}
    return [name for name in suspects if tensor_score(name, "", sums[name]).broken]


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
