"""Architectures as people export them: artefact against the user's own file, beside onnxruntime's quantize_static.

    .cache/torch/bin/python benchmarks/zoo.py                     # everything; resumes
    .cache/torch/bin/python benchmarks/zoo.py --only swin --exporter dynamo --recipe w8a8
    .cache/torch/bin/python benchmarks/zoo.py --hexagon           # build each W8A8 artefact for the HTP, too
    .cache/torch/bin/python benchmarks/zoo.py --table             # what was measured so far, as docs/zoo.md has it

`make test-full-torch` makes that environment. Weights are random, so dB compare tools and say nothing of accuracy.
Networks, samples and results lie in $LEADLINE_CACHE/zoo. Calibration sees 8 samples of smooth noise; 4 others judge,
run in plain onnxruntime: SQNR of all outputs about their means (the worst output counts), simulated without graph
optimisation, higher is better.
"""

from __future__ import annotations

import argparse
import contextlib
import json
import os
import subprocess
import sys
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np

from zoo_networks import EXPORTERS, NETWORKS, export

HERE = Path(os.environ.get("LEADLINE_CACHE", Path.home() / ".cache/leadline")) / "zoo"
RECIPES = ("w8a8", "w4a8")
CALIBRATION, TEST = 8, 4
PATIENCE = 1800
"""Seconds for one run of the command line."""


def smooth(shape: tuple[int, ...], generator: np.random.Generator) -> np.ndarray:
    """Noise whose neighbours are alike, as those of pictures are."""
    x = generator.standard_normal(shape)
    for axis in range(2, len(shape)):
        x = sum(np.roll(x, k, axis) for k in range(4)) / 2
    return x.astype(np.float32)


def samples(shapes: dict[str, tuple[int, ...]], count: int, seed: int) -> dict[str, np.ndarray]:
    generator = np.random.default_rng(seed)
    return {name: np.concatenate([smooth(shape, generator) for _ in range(count)]) for name, shape in shapes.items()}


def feeds(arrays: dict[str, np.ndarray], shapes: dict[str, tuple[int, ...]]) -> Iterator[dict[str, np.ndarray]]:
    for i in range(TEST):
        yield {name: arrays[name][i * shape[0] : (i + 1) * shape[0]] for name, shape in shapes.items()}


def outputs(file: Path, arrays: dict[str, np.ndarray], shapes: dict[str, tuple[int, ...]], fused: bool) -> list[dict]:
    import onnxruntime as ort

    options = ort.SessionOptions()
    options.log_severity_level = 4
    if not fused:
        options.graph_optimization_level = ort.GraphOptimizationLevel.ORT_DISABLE_ALL
    session = ort.InferenceSession(str(file), options, providers=["CPUExecutionProvider"])
    names = [value.name for value in session.get_outputs()]
    return [dict(zip(names, session.run(names, feed), strict=True)) for feed in feeds(arrays, shapes)]


def judged(wanted: list[dict[str, np.ndarray]], got: list[dict[str, np.ndarray]]) -> float:
    """SQNR about the mean in dB of the worst output; of integers, the share that is equal counts as dB."""
    worst = np.inf
    for name in wanted[0]:
        x, y = (np.stack([run[name] for run in runs]).astype(np.float64) for runs in (wanted, got))
        noise, signal = np.square(x - y).mean(), np.square(x - x.mean()).mean()
        if signal > 0 or noise > 0:
            worst = min(
                worst, 10 * np.log10(signal / noise) if signal > 0 and noise > 0 else 200 if noise == 0 else -200
            )
    return float(worst)


def command(*arguments: Any) -> tuple[float, str]:
    """Seconds and the refusal, which is empty where it went well."""
    start = time.monotonic()
    line = [sys.executable, "-m", "leadline.cli", *map(str, arguments)]
    try:
        done = subprocess.run(line, capture_output=True, text=True, timeout=PATIENCE, stdin=subprocess.DEVNULL)
    except subprocess.TimeoutExpired:
        return PATIENCE, f"no end after {PATIENCE} s"
    said = done.stderr.strip().splitlines() or ["no word"]
    trouble = next((line for line in reversed(said) if line.strip()), "") if done.returncode not in (0, 3) else ""
    if "Traceback" in done.stderr and done.returncode not in (0, 3):
        trouble = f"traceback: {trouble}"
    return time.monotonic() - start, trouble


def static(file: Path, out: Path, arrays: dict[str, np.ndarray], shapes: dict[str, tuple[int, ...]]) -> str:
    """onnxruntime's own static quantisation, prepared as its documentation says."""
    from onnxruntime.quantization import CalibrationDataReader, QuantFormat, QuantType, quantize_static, shape_inference

    class Reader(CalibrationDataReader):
        def __init__(self) -> None:
            self.left = iter(
                {name: arrays[name][i * shape[0] : (i + 1) * shape[0]] for name, shape in shapes.items()}
                for i in range(CALIBRATION)
            )

        def get_next(self) -> dict[str, np.ndarray] | None:
            return next(self.left, None)

    prepared = out.with_suffix(".prepared.onnx")
    try:
        with contextlib.redirect_stdout(sys.stderr):
            shape_inference.quant_pre_process(str(file), str(prepared), skip_symbolic_shape=True)
            quantize_static(
                str(prepared), str(out), Reader(), quant_format=QuantFormat.QDQ, per_channel=True,
                activation_type=QuantType.QUInt8, weight_type=QuantType.QInt8,
            )  # fmt: skip
    except Exception as error:  # whatever it stumbles over
        return f"{type(error).__name__}: {str(error).splitlines()[0][:100] if str(error) else ''}"
    finally:
        prepared.unlink(missing_ok=True)
    return ""


def measure(name: str, exporter: str, recipe: str, hexagon: bool) -> dict[str, Any]:
    file = HERE / "networks" / f"{name}.{exporter}.onnx"
    row: dict[str, Any] = {"network": name, "exporter": exporter, "recipe": recipe}
    if not file.is_file() and (trouble := export(name, exporter, file)):
        return row | {"export": trouble}
    shapes = {key: tuple(shape) for key, shape in json.loads(file.with_suffix(".json").read_text()).items()}
    calibration, test = samples(shapes, CALIBRATION, 1), samples(shapes, TEST, 2)
    data = HERE / "networks" / f"{name}.npz"
    np.savez(data, **calibration)
    out = HERE / "out" / f"{name}.{exporter}.{recipe}"
    out.mkdir(parents=True, exist_ok=True)
    wanted = outputs(file, test, shapes, True)
    row["seconds"], row["refused"] = command("quantize", file, "--recipe", recipe, "--data", data, "--out", out)
    if not row["refused"]:
        try:
            row["leadline"] = judged(wanted, outputs(out / "model.qdq.onnx", test, shapes, False))
        except Exception as error:
            row["refused"] = f"the artefact does not run: {str(error)[:200]}"
    if recipe == "w8a8":
        rival = out / "ort.onnx"
        row["ort_refused"] = static(file, rival, calibration, shapes)
        if not row["ort_refused"]:
            try:
                row["ort"] = judged(wanted, outputs(rival, test, shapes, False))
            except Exception as error:
                row["ort_refused"] = f"does not run: {str(error)[:100]}"
        rival.unlink(missing_ok=True)
    if hexagon and recipe == "w8a8" and not row["refused"]:
        row["hexagon"] = built(file, data, out)
    return row


def built(file: Path, data: Path, out: Path) -> str:
    """What the HTP's emulation says to the artefact that is made for it."""
    folder = out / "hexagon"
    _, trouble = command("quantize", file, "--recipe", "w8a8", "--target", "hexagon", "--data", data, "--out", folder)
    if trouble:
        return trouble
    verification = json.loads((folder / "report.json").read_text())["verification"]
    build = verification["facts"]
    promised = min(row["centred"] for row in verification["outputs"])
    if not build["accepted"]:
        return build["text"].splitlines()[0][:200]
    given = min(row["device"] for row in verification["outputs"])
    return f"built; promised {promised:.1f}, gave {given:.1f} dB"


def table(rows: list[dict[str, Any]]) -> str:
    lines = [
        "| network | exporter | onnxruntime W8A8 | leadline W8A8 | W4A8 | Hexagon | s |",
        "|---|---|---|---|---|---|---|",
    ]
    keyed = {(r["network"], r["exporter"], r["recipe"]): r for r in rows}

    def cell(row: dict[str, Any] | None, key: str, refusal: str) -> str:
        if row is None:
            return ""
        return f"{row[key]:.1f}" if key in row else row.get(refusal) or row.get("export", "")

    for name in NETWORKS:
        for exporter in EXPORTERS:
            eight, four = (keyed.get((name, exporter, recipe)) for recipe in RECIPES)
            if eight or four:
                seconds = f"{eight['seconds']:.0f}" if eight and "seconds" in eight else ""
                cells = (cell(eight, "ort", "ort_refused"), cell(eight, "leadline", "refused"))
                more = (cell(four, "leadline", "refused"), (eight or {}).get("hexagon", ""), seconds)
                lines.append(" | ".join(("| " + name, exporter, *cells, *more)).replace("\n", " ") + " |")
    return "\n".join(lines)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--only", default="", help="networks whose names hold one of these words, with commas")
    parser.add_argument("--exporter", choices=EXPORTERS, action="append")
    parser.add_argument("--recipe", choices=RECIPES, action="append")
    parser.add_argument("--hexagon", action="store_true")
    parser.add_argument("--again", action="store_true", help="measure anew")
    parser.add_argument("--table", action="store_true")
    given = parser.parse_args()
    (HERE / "networks").mkdir(parents=True, exist_ok=True)
    results = HERE / "results.jsonl"
    rows = [json.loads(line) for line in results.read_text().splitlines()] if results.is_file() else []
    rows = list({(r["network"], r["exporter"], r["recipe"]): r for r in rows}.values())
    if given.table:
        print(table(rows))
        return
    done = set() if given.again else {(r["network"], r["exporter"], r["recipe"]) for r in rows}
    words = given.only.split(",")
    for exporter in given.exporter or EXPORTERS:
        for name in NETWORKS:
            for recipe in given.recipe or RECIPES:
                if (name, exporter, recipe) in done or not any(word in name for word in words):
                    continue
                row = measure(name, exporter, recipe, given.hexagon)
                with results.open("a") as file:
                    file.write(json.dumps(row) + "\n")
                print(json.dumps(row), flush=True)


if __name__ == "__main__":
    main()
