"""Verification: the artefact against the float network on samples that calibration did not see."""

from __future__ import annotations

import os
import tempfile
from collections.abc import Iterator, Mapping
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass, field
from itertools import zip_longest
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
from numpy.typing import NDArray

from leadline.data import Data, Samples
from leadline.display import table
from leadline.graph import Graph, Session
from leadline.original import Original
from leadline.preparation import load_pair
from leadline.progress import Progress, Quiet
from leadline.scores import Dense, OutputScore, Run, TensorScore, origin
from leadline.tail_scores import FinalScore, Tailed
from leadline.targets import Target, target_for, target_of
from leadline.targets.target import Arrays, Device, Facts
from leadline.types import InputError

if TYPE_CHECKING:
    import onnx


@dataclass(frozen=True)
class Verification:
    """What was measured, whatever the target.

    Attributes
    ----------
    samples : int
    outputs : list of OutputScore
        Of the quantised part.
    tensors : list of TensorScore
        Worst first; empty where the target's format does not show them.
    origin : str or None
        The first tensor, in the order of computation, of the broken ones (below 10 dB) that lead to an output that is
        broken or lost; None where all outputs are whole.
    moved : list of str
        Tensors that hold something else than the float network's, as rotated and scaled weights leave them, so that
        nothing can be said of their errors.
    target : str
    facts : Facts or None
        What the target says of the artefact beyond its outputs: whether it takes all of it, sizes, times.
    judged_by : str
        The network, run as it came, that outputs are compared with.
    final : list of FinalScore
        What is computed from the outputs in float where shapes depend on the data.
    """

    samples: int
    outputs: list[OutputScore]
    tensors: list[TensorScore]
    origin: str | None = None
    moved: list[str] = field(default_factory=list)
    target: str = "onnxruntime"
    facts: Facts | None = None
    judged_by: str = ""
    pictures: list[Dense] = field(default_factory=list, repr=False)
    final: list[FinalScore] = field(default_factory=list)

    def _repr_html_(self) -> str:
        rows: list[tuple[object, ...]] = []
        for o in self.outputs:
            rows.append((o.name, o.sqnr, o.centred, o.worst, o.largest, o.device))
            rows += [(part.name, part.sqnr, part.centred, "", "", "") for part in o.parts]
        heads = ("output", "SQNR dB", "about its mean", "worst sample", "largest error", f"{self.target} dB")
        outputs = table(heads, rows)
        if self.collapse:
            outputs += table(("collapsed",), [(line,) for line in self.collapse])
        if self.facts is not None and self.facts.lines():
            outputs += table((self.target,), [(line,) for line in self.facts.lines()])
        worst = [(t.name, t.op, t.sqnr) for t in self.tensors[:10]]
        return outputs + (table(("worst tensors", "operator", "SQNR dB"), worst) if worst else "")

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
            "origin": self.origin,
            "moved": self.moved,
            "target": self.target,
            "title": target_of(self.target).title,
            "judged_by": self.judged_by,
            "facts": self.facts and self.facts.to_dict() | {"lines": self.facts.lines()},
        }


def verify(
    reference: Graph | str | os.PathLike[str] | Any,
    artefact: onnx.ModelProto | str | os.PathLike[str] | Any,
    data: Any,
    *,
    original: Original | None = None,
    target: str | Target | None = None,
    threads: int | None = None,
    progress: Progress | None = None,
) -> Verification:
    """Run the float network and the artefact side by side.

    Beside what is expected of a target (of ONNX artefacts: the file itself, run without graph optimisation, with the
    HTP's arithmetic for hexagon; of a ``.tflite`` the file in float arithmetic) runs what the target makes of it:
    onnxruntime with all its fusions, Qualcomm's emulation, LiteRT's interpreter, ExecuTorch's runtime. The distance of
    the two is given in steps of the output's grid.

    Parameters
    ----------
    reference : Graph, path, or what the target reads
        The float network: the original, or the ``model.fp32.onnx`` beside the artefact. For litert also a float
        ``.tflite``, for executorch a torch module.
    artefact : path, onnx.ModelProto, or what `Quantized.artefact` is
        Its inputs and outputs are the reference's, by name in ONNX, by order elsewhere.
    data : Data, or the source of one
        Of a torch module: an iterable of what it is called with. Hexagon's emulation takes seconds a sample, for a
        ViT-S half a minute: a few will do.
    original : Original, optional
        What outputs are judged by, run as it came. Default: `reference`, so that a path is judged by the file itself.
    target : name or Target, optional
        Default: the one whose files end as `artefact` does; of ``.onnx`` onnxruntime.
    threads : int, optional
    progress : Progress, optional

    Raises
    ------
    InputError
        The two networks differ in inputs or outputs, a file or the data cannot be used, or the target's extra is not
        installed.
    """
    progress, chosen = progress or Quiet(), target_for(artefact, target)
    chosen.check_installed("verify")
    if isinstance(reference, Graph):
        graph, samples = load_pair(reference, data, threads, progress)
    else:
        graph, ends, samples = load_reference(chosen, reference, data, threads, progress)
        original = original or ends
    held = Path(artefact) if isinstance(artefact, (str, os.PathLike)) else artefact
    outputs = [value.name for value in graph.outputs]
    with ExitStack() as stack:
        judge, judged_by = stack.enter_context(_judge(original, graph, samples, threads))
        device = stack.enter_context(chosen.open(held, graph, threads, original))
        run = Run(graph, outputs, list(device.inner), device.judged)
        final = stack.enter_context(Tailed(graph, threads))
        exact = stack.enter_context(Session(graph, [*outputs, *device.inner], threads=threads)) if graph.nodes else None
        together = {*outputs, *final.reads, *(pick.places for pick in run.places.values())}
        if type(device).compare is not Device.compare:
            together.update(device.inner)
        over = zip(samples.labels, progress.over(samples, "verify", len(samples)), judge, strict=True)
        for label, feed, judged in over:
            exactly, simulated = _side_by_side(
                run, exact.pieces(feed) if exact is not None else iter(()), device, feed, together
            )
            exactly |= judged
            run.update(label, exactly, simulated, device.run(feed), device.grids)
            device.compare(exactly, simulated)
            final.update(feed | exactly, feed | simulated)
        scores, output_scores = run.tensor_scores(), run.scores()
        suspects = [score.name for score in scores if score.broken and score.name not in outputs]
        moved = device.moved(graph, next(iter(samples)), suspects) if suspects else []
        facts = device.facts(output_scores)
    scores = [score for score in scores if score.name not in moved]
    first = origin(graph, {score.name: score for score in scores}, output_scores)
    shown = scores if device.inner else []
    return Verification(
        len(samples), output_scores, shown, first, moved, chosen.name, facts, judged_by, run.pictures, final.scores()
    )


def _side_by_side(
    run: Run, exact: Iterator[Arrays], device: Device, feed: Mapping[str, NDArray[Any]], together: set[str]
) -> tuple[Arrays, Arrays]:
    """What the float network and the simulation give of one sample. Inner tensors are compared as soon as both have
    them, and let go of, but for those that are looked at `together` with others."""
    ours: Arrays = {}
    theirs: Arrays = {}
    for pair in zip_longest(exact, device.pieces(feed)):
        for side, piece in zip((ours, theirs), pair, strict=True):
            if piece is not None:
                side.update(piece)
                piece.clear()
        for name in (ours.keys() & theirs.keys()) - together:
            run.inner(name, ours.pop(name), theirs.pop(name), device.grids.get(name))
    return ours, theirs


@contextmanager
def _judge(
    original: Original | None, graph: Graph, samples: Samples, threads: int | None
) -> Iterator[tuple[Iterator[Arrays], str]]:
    """What the network as it came gives of each sample, and how reports call it: nothing, where there is none, or where
    onnxruntime does not run it, so that the Graph alone is the judge.

    It has gone when the others come: outputs lie on disk meanwhile.
    """
    with tempfile.TemporaryDirectory(prefix="leadline-verify-") as folder:
        names: list[str] = []
        label = str(original) if original is not None else "the Graph given"
        session = None
        try:
            session = original.session(graph, threads) if original is not None else None
        except InputError as error:
            label = f"the Graph made of {original}, which onnxruntime does not run: {error}"
        if session is not None:
            with session:
                for i, feed in enumerate(samples):
                    arrays = session.run(feed)
                    names = list(arrays)
                    for k, array in enumerate(arrays.values()):
                        np.save(Path(folder, f"{i}-{k}.npy"), array)
        numbered = range(len(samples))
        yield ({name: np.load(Path(folder, f"{i}-{k}.npy")) for k, name in enumerate(names)} for i in numbered), label


def load_reference(
    target: Target, network: Any, data: Any, threads: int | None = None, progress: Progress | None = None
) -> tuple[Graph, Original, Samples]:
    """A float network, what runs it as it came, and the samples that fit it; see `verify`."""
    data = Data.of(data)
    known = target.reference(network, data)
    if known is not None:
        return known
    graph, samples = load_pair(network, data, threads, progress)
    return graph, Original(network), samples
