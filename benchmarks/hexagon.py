"""Artefacts on Qualcomm's emulation of the Hexagon NPU: nodes left on the CPU, and what became of the promise.

    python benchmarks/hexagon.py                                        # everything; two hours on two cores
    python benchmarks/hexagon.py --networks B D --recipes w8a16 --json out.json

Every artefact is built with the conversions of its own inputs and outputs on the NPU, too
(``offload_graph_io_quantization = 0``). Beside leadline stands onnxruntime's own configuration for Qualcomm
(``get_qnn_qdq_config``: UINT8 activations, INT8 weights per channel, min-max) with the same calibration pictures, and,
where its environment is there (--aimet; `make test-full` makes it), aimet-onnx with its defaults, as its own QDQ ONNX.

Promised is what the simulation says on the frames that the emulation then runs (`FRAMES`; it takes up to half a minute
for each), measured what the emulation gives: SQNR of the raw outputs in dB, and what the network is for (see
accuracy.py and depth_recipes.py; delta1 in metres, on rendered places that nobody saw).
"""

from __future__ import annotations

import argparse
import contextlib
import io
import json
import logging
import os
import sys
import tempfile
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import numpy as np
import onnx
import onnxruntime as ort
from onnxruntime import quantization
from onnxruntime.quantization.execution_providers.qnn import get_qnn_qdq_config, qnn_preprocess_model
from rich.console import Console
from rich.table import Table

import accuracy
import peers
import smalldepth
from leadline import pipeline
from leadline.data import Preprocess, Samples, load_samples
from leadline.depth import networks, scenes, score
from leadline.export import qdq
from leadline.files import replacing
from leadline.graph import Graph, Session, inspect_inputs
from leadline.sqnr import Sqnr
from leadline.targets.hexagon.emulator import Emulator
from leadline.targets.hexagon.expected import expected

sys.path.insert(0, str(Path(__file__).resolve().parents[1] / "tests"))
import testbed

NETWORKS = ("D", "B", "C", "tinydepth", "A", "smalldepth")
RECIPES = ("w8a8", "w8a16", "w4a8")
FRAMES = {"D": 12, "B": 4, "C": 4, "tinydepth": 8, "A": 12, "smalldepth": 12}
RIVAL = "onnxruntime for QNN"


class Contest:
    """One network: the file, calibration samples, and the frames that are judged."""

    def __init__(self, name: str, folder: Path, frames: int) -> None:
        self.name, self._truth = name, list[np.ndarray]()
        if name in ("tinydepth", "smalldepth"):
            size = scenes.SIZE if name == "tinydepth" else (224, 224)
            self.file = networks.path(name) if name == "tinydepth" else folder / "smalldepth.onnx"
            if name == "smalldepth":
                onnx.save(smalldepth.assemble(), str(self.file))
            stills = [scenes.views(seed, size=size)[0] for seed in range(310_000, 310_000 + frames)]
            self._truth = [still.depth for still in stills]
            self.calibration = self._samples([scenes.views(s, size=size)[0] for s in range(200_000, 200_024)])
            self.judged = self._samples(stills)
        else:
            self.file = testbed.network(name)
            self.calibration, judged = accuracy.pictures(name)
            self.judged = judged.part(range(0, len(judged), max(1, len(judged) // frames))).take(frames)
        self.graph = Graph.load(self.file, next(iter(self.calibration)))
        with Session(self.graph) as session:
            self.reference = [session.run(feed) for feed in self.judged]

    def _samples(self, frames: list[Any]) -> Samples:
        from leadline.evaluation import feeds

        return load_samples(feeds(frames, Preprocess(**networks.PREPROCESS)), inspect_inputs(self.file))

    def judge(self, outputs: list[accuracy.Outputs]) -> tuple[list[float], str, float]:
        """SQNR of each output, and the task in words and as a number."""
        totals = [Sqnr() for _ in self.reference[0]]
        task = None if self._truth else accuracy.Task(self.name)
        for wanted, got in zip(self.reference, outputs, strict=True):
            for total, name in zip(totals, wanted, strict=True):
                total.update(wanted[name], got[name])
            if task is not None:
                task.update(wanted, {name: got[name] for name in wanted})
        decibels = [total.db for total in totals]
        if task is not None:
            return decibels, task.text, task.value
        maps = [next(iter(one.values())).reshape(truth.shape) for one, truth in zip(outputs, self._truth, strict=True)]
        value = float(np.mean([score(m, t, inverse=True).delta1 for m, t in zip(maps, self._truth, strict=True)]))
        return decibels, f"delta1 {value:.3f}", value


def main() -> None:
    parser = argparse.ArgumentParser(description=(__doc__ or "").split("\n")[0])
    parser.add_argument("--networks", nargs="*", default=NETWORKS, choices=NETWORKS)
    parser.add_argument("--recipes", nargs="*", default=RECIPES)
    parser.add_argument("--frames", type=int, help="frames that the emulation runs; default: by network")
    parser.add_argument("--threads", type=int)
    parser.add_argument("--aimet", type=Path, default=accuracy.AIMET, help="interpreter that has aimet-onnx")
    parser.add_argument("--json", type=Path, help="also write the figures here, after each of them")
    options = parser.parse_args()
    ort.set_default_logger_severity(3)
    logging.getLogger().setLevel(logging.ERROR)
    rows: list[dict[str, Any]] = []
    for name in options.networks:
        with tempfile.TemporaryDirectory(prefix="leadline-hexagon-") as folder:
            contest = Contest(name, Path(folder), options.frames or FRAMES[name])
            for row in contestants(contest, options.recipes, Path(folder), options.threads, options.aimet):
                rows.append({"network": name} | row)
                print(rows[-1], file=sys.stderr, flush=True)
                if options.json:
                    with replacing(options.json) as temporary:
                        temporary.write_text(json.dumps(rows, indent=1))
    show(rows)


def contestants(
    contest: Contest, recipes: list[str], folder: Path, threads: int | None, aimet: Path
) -> Iterator[dict[str, Any]]:
    artefact = folder / "artefact.onnx"
    fixed = accuracy.fix_shapes(contest.file, next(iter(contest.calibration)), folder / "fixed.onnx")
    rivals: dict[str, Callable[[], object]] = {RIVAL: lambda: onnxruntime_qnn(contest, fixed, artefact)}
    if aimet.exists():
        rivals["aimet-onnx"] = lambda: accuracy.aimet(
            aimet, fixed, folder, contest.calibration, bits=8, threads=threads or os.cpu_count() or 1, iterations=0
        )
    for name, make in rivals.items():
        try:
            with contextlib.redirect_stdout(io.StringIO()):
                make()
        except Exception as error:  # whatever it is, it goes into the table
            yield {"by": name, "build": f"fails: {type(error).__name__}: {str(error).splitlines()[0]}"}
            continue
        yield {"by": name} | measured(contest, artefact, expected(onnx.load(artefact)))
    for recipe in recipes:
        made = pipeline.quantize(contest.graph, recipe, contest.calibration, target="hexagon", threads=threads)
        qdq.save(made.to_qdq(), artefact)
        yield {"by": f"leadline {recipe}"} | measured(contest, artefact, expected(made.to_qdq()))


def onnxruntime_qnn(contest: Contest, fixed: Path, artefact: Path) -> None:
    """onnxruntime's documented route for Qualcomm."""
    shaped, changed = fixed.with_name("prepared.onnx"), fixed.with_name("qnn.onnx")
    peers.prepare(fixed, shaped)
    model = onnx.load(shaped)
    del model.metadata_props[:]  # qnn_preprocess_model fails on them
    onnx.save(model, shaped)
    source = str(changed if qnn_preprocess_model(str(shaped), str(changed)) else shaped)
    config = get_qnn_qdq_config(
        source,
        peers.reader(contest.calibration),
        activation_type=quantization.QuantType.QUInt8,
        weight_type=quantization.QuantType.QInt8,
        per_channel=True,
    )
    quantization.quantize(source, str(artefact), config)


def measured(contest: Contest, artefact: Path, simulation: onnx.ModelProto) -> dict[str, Any]:
    with Session(simulation, optimize=False) as session:
        promised = contest.judge([session.run(feed) for feed in contest.judged])
    row = {"promised": promised[0], "promised_task": promised[1:]}
    with Emulator() as npu:
        build = npu.build(artefact)
        row |= {"taken": build.taken, "left": build.left, "build": str(build)}
        if build.taken:
            outputs = [npu.run(feed) for feed in contest.judged]
            found = contest.judge(outputs)
            row |= {"measured": found[0], "measured_task": found[1:]}
    return row


def show(rows: list[dict[str, Any]]) -> None:
    table = Table("network", "quantised by", "nodes on the CPU", "promised", "measured", "task, promised", "measured")
    for row in rows:
        left = sorted({kind for _, kind in row.get("left", ())})
        nodes = f"{len(row['left'])}: {', '.join(left)}" if left else "0" if row.get("taken") else row["build"]
        cells = [accuracy.text(row[key]) if key in row else "" for key in ("promised", "measured")]
        tasks = [row[key][0] if key in row else "" for key in ("promised_task", "measured_task")]
        table.add_row(row["network"], row["by"], nodes, *cells, *tasks)
    Console(width=None if sys.stdout.isatty() else 150).print(table)


if __name__ == "__main__":
    main()
