"""W8A8 accuracy on the testbed's four networks: leadline's recipes beside onnxruntime's own static quantisation.

    python benchmarks/accuracy.py                                    # everything; about twelve minutes on two cores
    python benchmarks/accuracy.py --networks BD --recipes w8a8 --json out.json

Every contestant gets the same 24 calibration pictures, INT8 weights per channel and UINT8 activations per tensor, and
is scored on pictures that none of them saw (12; for C 7 with words in them; for D, whose answer is one class, 120 views
of the 12). leadline holds a quarter of the 24 out for its gates. Scores: SQNR of each raw output in dB over all scored
pictures, three times:

- as written: the artefact run with every graph optimisation off. This is the artefact itself;
- fused: what onnxruntime makes of it on this machine;
- exact: fused, with session.x64quantprecision=1, which keeps x86 kernels from saturating;

and what the network is for (from the artefact as written): A and C intersection over union with the float map, B faces
found of those that the float network finds, D pictures whose first class stays.
"""

from __future__ import annotations

import argparse
import json
import logging
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import numpy as np
import onnx
import onnxruntime as ort
from numpy.typing import NDArray
from PIL import Image, ImageOps
from rich.console import Console
from rich.table import Table

import peers
import tasks
from leadline import pipeline
from leadline.data import Data, Preprocess, Samples, load_samples
from leadline.export import qdq
from leadline.files import replacing
from leadline.graph import Graph, inspect_inputs
from leadline.recipe import Recipe
from leadline.sqnr import Sqnr
from leadline.targets.processor import kernels_saturate

sys.path.insert(0, str(Path(__file__).resolve().parents[1] / "tests"))
import testbed

AIMET = Path(__file__).resolve().parents[1] / ".cache" / "aimet" / "bin" / "python"
"""Made by `make test-full`."""
CALIBRATION, SCORED = 24, 12
MODES = {"written": False, "fused": True, "exact": True}

Outputs = dict[str, Any]


@dataclass(frozen=True)
class Score:
    """One artefact on one network. SQNR in dB for each output; `seconds` from float file to artefact."""

    network: str
    contestant: str
    seconds: float
    outputs: list[str]
    written: list[float]
    fused: list[float]
    exact: list[float]
    task: str
    task_value: float


def main() -> int:
    parser = argparse.ArgumentParser(description=(__doc__ or "").split("\n")[0])
    parser.add_argument("--networks", default="ABCD", help="some of ABCD")
    parser.add_argument(
        "--recipes", nargs="*", default=["minmax-w8a8", "w8a8"], help="leadline recipes: names or files"
    )
    parser.add_argument(
        "--rivals", nargs="*", default=peers.METHODS, choices=peers.METHODS, help="onnxruntime calibration methods"
    )
    parser.add_argument("--json", type=Path, help="also write the scores here, after each of them")
    options = parser.parse_args()
    ort.set_default_logger_severity(3)
    logging.getLogger().setLevel(logging.ERROR)

    scores: list[Score] = []
    interrupted = False
    try:
        for name in options.networks:
            for score in contest(name, options.rivals, options.recipes):
                scores.append(score)
                print(f"{name} {score.contestant}: {text(score.written)} dB, {score.task}", file=sys.stderr, flush=True)
                if options.json:
                    save(scores, options.json)
    except KeyboardInterrupt:
        interrupted = True
    show(scores)
    return 130 if interrupted else 0


def contest(name: str, rivals: Sequence[str], recipes: Sequence[str]) -> Iterator[Score]:
    """Quantise one network by everybody and score each result."""
    path = testbed.network(name)
    calibration, scored = pictures(name)
    with tempfile.TemporaryDirectory(prefix="leadline-accuracy-") as temporary:
        folder = Path(temporary)
        fixed = fix_shapes(path, next(iter(calibration)), folder / "fixed.onnx")
        reference = list(results(fixed, scored, "written"))
        prepared = folder / "prepared.onnx"
        for method in rivals:
            start = time.monotonic()
            artefact = folder / f"{method}.onnx"
            peers.onnxruntime_static(fixed, prepared, artefact, method, calibration)
            yield score(name, f"onnxruntime {method}", start, artefact, reference, scored)
        for recipe in recipes:
            start = time.monotonic()
            artefact = folder / "leadline.onnx"
            graph = Graph.load(path, next(iter(calibration)))
            qdq.save(pipeline.quantize(graph, recipe, calibration).to_qdq(), artefact)
            yield score(name, f"leadline {Recipe.load(recipe).name}", start, artefact, reference, scored)


def pictures(name: str) -> tuple[Samples, Samples]:
    """Calibration and evaluation inputs of a network, in a fixed order; no picture is in both."""
    calibration, scored = testbed.pictures("calibration"), testbed.pictures("evaluation")
    if name == "C":
        words = testbed.text_pictures("calibration")
        calibration = words + [path for path in calibration if path.name not in {word.name for word in words}]
        scored = testbed.text_pictures("evaluation")
    scored = scored[:SCORED]
    if len(calibration) < CALIBRATION:
        print("note: without Debian's opencv-doc there are fewer pictures; figures differ", file=sys.stderr)
    preprocess = Preprocess.from_dict(testbed.preprocess(name))
    inputs = inspect_inputs(testbed.network(name))
    first = load_samples(Data(calibration[:CALIBRATION], preprocess=preprocess, strict=True), inputs)
    if name == "D":
        return first, load_samples(views(scored, preprocess), inputs)
    return first, load_samples(Data(scored, preprocess=preprocess, strict=True), inputs)


def views(paths: Sequence[Path], preprocess: Preprocess) -> list[NDArray[np.float32]]:
    """Ten views of each picture: the whole and its four corners (70 % of each side), and their mirror images."""
    found = []
    for path in paths:
        with Image.open(path) as file:
            picture = file.convert("RGB")
        width, height = (round(0.7 * side) for side in picture.size)
        right, bottom = picture.width - width, picture.height - height
        corners = [(x, y, x + width, y + height) for x in (0, right) for y in (0, bottom)]
        for view in (picture, *(picture.crop(corner) for corner in corners)):
            found += [preprocess(v) for v in (view, ImageOps.mirror(view))]
    return found


def fix_shapes(path: Path, feed: Outputs, target: Path) -> Path:
    """The network as onnxruntime's tools want it: static shapes, opset 13 or newer, weights out of the inputs."""
    model = onnx.load(path)
    weights = {weight.name for weight in model.graph.initializer}
    inputs = [value for value in model.graph.input if value.name not in weights]
    for value in inputs:
        for dim, size in zip(value.type.tensor_type.shape.dim, feed[value.name].shape, strict=True):
            dim.dim_value = size
    del model.graph.input[:], model.graph.value_info[:]
    model.graph.input.extend(inputs)
    for value in model.graph.output:
        for i, dim in enumerate(value.type.tensor_type.shape.dim):
            dim.dim_param = f"{value.name}_{i}"
    if model.opset_import[0].version < 13:
        model = onnx.version_converter.convert_version(model, 13)
    onnx.save(model, target)
    return target


def aimet(
    python: Path, fixed: Path, folder: Path, samples: Samples, *, bits: int, threads: int, iterations: int | None
) -> dict[str, float]:
    """accuracy_aimet.py in its own environment: writes artefact.onnx into `folder`, gives the seconds it took.

    `iterations` of AdaRound: 0 rounds to nearest, None is aimet-onnx's default. Raises CalledProcessError.
    """
    peers.prepare(fixed, folder / "prepared.onnx")
    feeds = list(samples)
    np.savez(folder / "calibration.npz", **{key: np.stack([feed[key] for feed in feeds]) for key in feeds[0]})
    command = [str(python), str(Path(__file__).with_name("accuracy_aimet.py")), str(folder), "--bits", str(bits)]
    command += ["--threads", str(threads)]
    subprocess.run(command if iterations is None else [*command, "--iterations", str(iterations)], check=True)
    return dict(json.loads((folder / "seconds.json").read_text()))


def results(model: Path, samples: Samples, mode: str) -> Iterator[Outputs]:
    """Outputs of a model for each sample, in one of the MODES."""
    options = ort.SessionOptions()
    options.log_severity_level = 3
    if not MODES[mode]:
        options.graph_optimization_level = ort.GraphOptimizationLevel.ORT_DISABLE_ALL
    if mode == "exact":
        options.add_session_config_entry("session.x64quantprecision", "1")
    session = ort.InferenceSession(str(model), options, providers=["CPUExecutionProvider"])
    names = [output.name for output in session.get_outputs()]
    for feed in samples:
        yield dict(zip(names, session.run(names, feed), strict=True))


def sqnr(
    artefact: Path, reference: list[Outputs], samples: Samples, mode: str, task: Task | None = None
) -> list[float]:
    """Of each output over all samples, in dB; `task` is told of them, too."""
    totals = [Sqnr() for _ in reference[0]]
    for wanted, got in zip(reference, results(artefact, samples, mode), strict=True):
        for total, a, b in zip(totals, wanted.values(), got.values(), strict=True):
            total.update(a, b)
        if task is not None:
            task.update(wanted, got)
    return [total.db for total in totals]


def score(
    name: str, contestant: str, start: float, artefact: Path, reference: list[Outputs], samples: Samples
) -> Score:
    seconds = time.monotonic() - start
    decibels: dict[str, list[float]] = {}
    task = Task(name)
    for mode in MODES:
        decibels[mode] = sqnr(artefact, reference, samples, mode, task if mode == "written" else None)
    return Score(name, contestant, seconds, list(reference[0]), **decibels, task=task.text, task_value=task.value)


class Task:
    """What a network is for, gathered over samples."""

    def __init__(self, name: str) -> None:
        self._name, self._of, self._kept = name, 0, 0.0

    def update(self, wanted: Outputs, got: Outputs) -> None:
        a, b = next(iter(wanted.values())), next(iter(got.values()))
        if self._name == "B":
            faces = tasks.faces(wanted)
            self._of, self._kept = self._of + len(faces), self._kept + tasks.matched_faces(faces, tasks.faces(got))
        elif self._name == "D":
            self._of, self._kept = self._of + 1, self._kept + (int(np.argmax(a)) == int(np.argmax(b)))
        else:
            self._of, self._kept = self._of + 1, self._kept + tasks.iou(a, b, tasks.MAP_THRESHOLDS[self._name])

    @property
    def value(self) -> float:
        return self._kept / self._of if self._of else 1.0

    @property
    def text(self) -> str:
        what = {"A": "IoU", "B": "faces", "C": "IoU", "D": "top-1"}[self._name]
        return f"{what} {self.value:.3f}" if what == "IoU" else f"{what} {self._kept:.0f}/{self._of}"


def text(decibels: list[float]) -> str:
    return " / ".join(f"{value:.1f}" for value in decibels)


def show(scores: Sequence[Score]) -> None:
    saturate = "saturate (no VNNI): the fused column is lower than on a phone" if kernels_saturate() else "are exact"
    table = Table(title="W8A8, SQNR of the raw outputs in dB", caption=f"This processor's fused kernels {saturate}.")
    for column in ("network", "quantised by", "as written", "fused", "fused, exact", "task", "seconds"):
        table.add_column(column, justify="left" if column in ("network", "quantised by") else "right", no_wrap=True)
    for i, row in enumerate(scores):
        cells = (text(row.written), text(row.fused), text(row.exact), row.task, f"{row.seconds:.0f}")
        last = i + 1 == len(scores) or scores[i + 1].network != row.network
        table.add_row(row.network, row.contestant, *cells, end_section=last)
    Console(width=None if sys.stdout.isatty() else 132).print(table)


def save(scores: Sequence[Score], path: Path) -> None:
    document = {"kernels_saturate": kernels_saturate(), "scores": [asdict(row) for row in scores]}
    with replacing(path) as temporary:
        temporary.write_text(json.dumps(document, indent=2))


if __name__ == "__main__":
    raise SystemExit(main())
