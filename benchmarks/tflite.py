"""TFLite in all recipes: size, SQNR, task and time with XNNPACK, beside ai-edge-quantizer's own calibration.

    python benchmarks/tflite.py                               # D and TinyDepth; ten minutes on two cores
    python benchmarks/tflite.py --networks A B --json out.json

Needs torch and litert-torch (leadline[litert]). Everybody gets the same calibration samples. ai-edge-quantizer
starts from the float .tflite that litert-torch makes of the folded network; "leadline, .tflite" from the same file;
"leadline, ONNX" from the ONNX file, with all its steps. SQNR is of XNNPACK's raw outputs against the float network on
pictures that calibration did not see, of several outputs each; "simulated" is what leadline says of the file
(`leadline.targets.litert.expected`). Tasks: D top-1 kept, TinyDepth delta1, A intersection over union of the map, B
faces found. Times are the least of several runs of one thread, the contestants taking turns.
"""

from __future__ import annotations

import argparse
import json
import logging
import sys
import warnings
from collections.abc import Iterator, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray
from rich.console import Console
from rich.table import Table

import accuracy
import harness
import tasks
from leadline import pipeline
from leadline.data import Preprocess, Samples, load_samples
from leadline.depth import networks, scenes
from leadline.evaluation import Footage, feeds, judge
from leadline.files import replacing
from leadline.graph import Graph, Session
from leadline.targets.litert import calibrate as tflite
from leadline.targets.litert.expected import expected
from leadline.targets.litert.read import read
from leadline.targets.litert.run import Interpreter, Kernels
from leadline.targets.litert.write import write

sys.path.insert(0, str(Path(__file__).resolve().parents[1] / "tests"))
import testbed

NETWORKS = ("A", "B", "D", "tinydepth")
CALIBRATION, STILLS = range(200_000, 200_016), range(310_000, 310_024)
SAMPLES = 24
"""Evaluation samples of D: of its 120 views every fifth."""

Arrays = list[NDArray[Any]]
"""Of one sample, in the order of the outputs."""


@dataclass(frozen=True)
class Row:
    who: str
    recipe: str
    megabytes: float
    sqnr: list[float]
    simulated: list[float]
    task: float
    milliseconds: float = 0.0


class Task:
    """A network, what it is calibrated and judged on, and what its outputs are worth."""

    def __init__(self, name: str) -> None:
        self.name = name
        if name == "tinydepth":
            self.path = networks.path(name)
            preprocess = Preprocess(**networks.PREPROCESS)
            first, second = ([scenes.views(seed)[0] for seed in seeds] for seeds in (CALIBRATION, STILLS))
            inputs = Graph.load(self.path).inputs
            self.calibration, self.held = (
                load_samples(feeds(frames, preprocess), inputs) for frames in (first, second)
            )
            self.footage = Footage(second)
        else:
            self.path = testbed.network(name)
            self.calibration, scored = accuracy.pictures(name)
            self.held = scored.part(range(0, len(scored), max(1, len(scored) // SAMPLES)))
        self.label = {"A": "IoU", "B": "faces found", "D": "top-1 kept"}.get(name, "delta1")
        self.graph = Graph.load(self.path, next(iter(self.calibration)))
        with Session(self.graph, threads=1) as session:
            self.exact = [list(session.run(feed).values()) for feed in self.held]

    def worth(self, outputs: list[Arrays]) -> float:
        if self.name == "tinydepth":
            return judge(np.stack([np.squeeze(arrays[0]) for arrays in outputs]), self.footage).scores.delta1
        pairs = list(zip(self.exact, outputs, strict=True))
        if self.name == "B":
            faces = [[tasks.faces(dict(zip("abcd", arrays, strict=True))) for arrays in pair] for pair in pairs]
            return sum(tasks.matched_faces(a, b) for a, b in faces) / max(1, sum(len(a) for a, _ in faces))
        if self.name == "A":
            return float(np.mean([tasks.iou(a[0], b[0], tasks.MAP_THRESHOLDS["A"]) for a, b in pairs]))
        return float(np.mean([np.argmax(a[0]) == np.argmax(b[0]) for a, b in pairs]))

    def sqnr(self, outputs: list[Arrays]) -> list[float]:
        heads = zip(zip(*self.exact, strict=True), zip(*outputs, strict=True), strict=True)
        return [tasks.sqnr(np.stack(exact), np.stack(got)) for exact, got in heads]


def main() -> None:
    parser = argparse.ArgumentParser(description=(__doc__ or "").split("\n")[0])
    parser.add_argument("--networks", nargs="*", default=NETWORKS[2:], choices=NETWORKS)
    parser.add_argument("--json", type=Path, help="also write the figures here")
    options = parser.parse_args()
    logging.getLogger().setLevel(logging.ERROR)
    found = {}
    for name in options.networks:
        task = Task(name)
        rows = contest(task)
        show(task, rows)
        found[name] = [asdict(row) for row in rows]
    if options.json:
        with replacing(options.json) as temporary:
            temporary.write_text(json.dumps(found, indent=2), "utf-8")


def contest(task: Task) -> list[Row]:
    folded = task.graph.copy()
    folded.fold()
    content = tflite.convert(folded)
    rows, files = [], []
    for who, recipe, artefact in (
        ("float", "", content),
        *rivals(content, task.calibration),
        *from_tflite(content, task.calibration),
        *from_onnx(task),
    ):
        outputs = results(artefact, task.held)
        said = task.sqnr(results(expected(artefact), task.held, "plain"))
        rows.append(Row(who, recipe, len(artefact) / 1e6, task.sqnr(outputs), said, task.worth(outputs)))
        files.append(artefact)
        print(f"{task.name}: {who} {recipe} {decibels(rows[-1].sqnr)} dB", file=sys.stderr)
    return timed(rows, files, next(iter(task.held)))


def timed(rows: Sequence[Row], files: Sequence[bytes], feed: dict[str, NDArray[Any]]) -> list[Row]:
    runners = [Interpreter(file, "xnnpack", 1) for file in files]
    given = [dict(zip(runner.inputs, feed.values(), strict=True)) for runner in runners]
    contestants = {
        str(i): (lambda runner=runner, own=own: runner.run_real(own))
        for i, (runner, own) in enumerate(zip(runners, given, strict=True))
    }
    times = harness.interleave(contestants, seconds=20)
    return [Row(**asdict(row) | {"milliseconds": 1e3 * times[str(i)].best}) for i, row in enumerate(rows)]


def results(artefact: bytes, samples: Samples, kernels: Kernels = "xnnpack") -> list[Arrays]:
    runner = Interpreter(artefact, kernels, 1)
    return [list(runner.run_real(dict(zip(runner.inputs, feed.values(), strict=True))).values()) for feed in samples]


Contestant = tuple[str, str, bytes]


def rivals(content: bytes, samples: Samples) -> Iterator[Contestant]:
    """ai-edge-quantizer by itself: its recipes, its calibration."""
    from ai_edge_quantizer import qtyping, quantizer, recipe, recipe_manager

    names, blocks = qtyping.TFLOperationName, qtyping.QuantGranularity.BLOCKWISE_128
    manager = recipe_manager.RecipeManager()
    manager.add_dynamic_config(".*", names.ALL_SUPPORTED, 8)
    int4 = manager.get_quantization_recipe()
    model = read(content).main
    layers = [op for op in model.operators if op.type == "FULLY_CONNECTED"]
    if all(model.tensors[op.inputs[1]].shape[1] % 128 == 0 for op in layers):
        manager.add_dynamic_config(".*", names.FULLY_CONNECTED, 4, blocks)
        int4 = manager.get_quantization_recipe()
    static = recipe_manager.RecipeManager()
    for name in ("FULLY_CONNECTED", "CONV_2D", "DEPTHWISE_CONV_2D", "CONV_2D_TRANSPOSE", "GELU", "ADD"):
        static.add_static_config(".*", names[name], 8, 8)
    key, name = read(content).signatures[0].key, next(iter(read(content).signatures[0].inputs))
    given = {key: [{name: next(iter(feed.values()))} for feed in samples]}
    for label, chosen in (
        ("dynamic INT8", recipe.dynamic_wi8_afp32()),
        ("weight-only INT8", recipe.weight_only_wi8_afp32()),
        ("INT4 block 128", int4),
        ("static INT8, cpu", static.get_quantization_recipe()),
        ("static INT8, npu", recipe.static_wi8_ai8()),
    ):
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            tool = quantizer.Quantizer(bytearray(content), chosen)
            seen = tool.calibrate(given, num_threads=1) if tool.need_calibration else None
            done = tool.quantize(seen, enable_progress_report=False).quantized_model
        yield "ai-edge-quantizer", label, bytes(done)


def from_tflite(content: bytes, samples: Samples) -> Iterator[Contestant]:
    name = next(iter(read(content).signatures[0].inputs))
    arrays = {name: np.concatenate([next(iter(feed.values())) for feed in samples])}
    for label, recipe, presets in RECIPES:
        plan = tflite.quantize(content, recipe, arrays, threads=1)
        for preset in presets:
            yield "leadline, .tflite", f"{label}{', ' + preset if len(presets) > 1 else ''}", write(plan, preset)


RECIPES: tuple[tuple[str, str, tuple[Any, ...]], ...] = (
    ("dynamic INT8", "weight-only-int8", ("dynamic",)),
    ("weight-only INT8", "weight-only-int8", ("weight-only",)),
    ("FP16", "weight-only-int8", ("fp16",)),
    ("INT4 block 128", "int4-block128", ("dynamic",)),
    ("static INT8", "w8a8", ("cpu", "npu")),
)


def from_onnx(task: Task) -> Iterator[Contestant]:
    plans: dict[str, tflite.Converted] = {}
    for label, recipe, presets in RECIPES:
        if "fp16" in presets:
            continue
        if recipe not in plans:
            done = pipeline.quantize(task.graph, recipe, task.calibration, threads=1)
            plans[recipe] = tflite.plan(done, threads=1)
            for note in plans[recipe].notes:
                print(f"note: {note}", file=sys.stderr)
        for preset in presets:
            suffix = ", " + preset if len(presets) > 1 else ""
            yield "leadline, ONNX", label + suffix, write(plans[recipe], preset)


def decibels(found: Sequence[float]) -> str:
    return " ".join(f"{value:.1f}" for value in found)


def show(task: Task, rows: Sequence[Row]) -> None:
    title = f"{task.name}, {len(task.held)} samples, LiteRT's XNNPACK, one thread"
    table = Table("quantised by", "recipe", "MB", "SQNR dB", "simulated dB", task.label, "ms", title=title)
    for row in rows:
        shown = ("", "") if row.who == "float" else (decibels(row.sqnr), decibels(row.simulated))
        cells = f"{row.megabytes:.2f}", *shown, f"{row.task:.3f}", f"{row.milliseconds:.1f}"
        table.add_row(row.who, row.recipe, *cells)
    Console(width=120).print(table)


if __name__ == "__main__":
    main()
