"""Peak memory of calibration against the number of samples, on testbed network A (a ViT-S).

    python benchmarks/memory.py                                  # about six minutes on two cores
    python benchmarks/memory.py --samples 8 32 --json out.json

Each figure is the peak resident set (VmHWM, Linux) of a fresh process that calibrates on so many pictures: leadline by
the fold, calibrate and round steps of its `w8a8`, onnxruntime by quantize_static with Entropy. Pictures are read
from files, one after the other, and repeat when there are fewer. onnxruntime runs up to --rival-samples only, since it
keeps every activation of every sample.
"""

from __future__ import annotations

import argparse
import json
import subprocess
import sys
import tempfile
from pathlib import Path

from rich.console import Console
from rich.table import Table

import accuracy
import peers
import testbed
from leadline import pipeline
from leadline.data import Data, Preprocess, Samples, load_samples
from leadline.export import qdq
from leadline.files import replacing
from leadline.graph import Graph, inspect_inputs
from leadline.recipe import Calibrate, Fold, Recipe, Round

NETWORK = "A"
RIVAL = "onnxruntime Entropy"


def main() -> int:
    parser = argparse.ArgumentParser(description=(__doc__ or "").split("\n")[0])
    parser.add_argument("--samples", nargs="+", type=int, default=[8, 32, 128])
    parser.add_argument("--rival-samples", type=int, default=32, help="onnxruntime runs up to so many")
    parser.add_argument("--json", type=Path, help="also write the figures here")
    parser.add_argument("--child", nargs=3, metavar=("WHO", "SAMPLES", "FOLDER"), help=argparse.SUPPRESS)
    options = parser.parse_args()
    if options.child:
        who, count, folder = options.child
        calibrate(who, int(count), Path(folder))
        print(peak_mb())
        return 0

    figures: dict[str, dict[int, float]] = {"leadline w8a8": {}, RIVAL: {}}
    with tempfile.TemporaryDirectory(prefix="leadline-memory-") as temporary:
        folder = Path(temporary)
        for who, found in figures.items():
            for count in sorted(options.samples):
                if who != RIVAL or count <= options.rival_samples:
                    found[count] = in_fresh_process(who, count, folder)
                    print(f"{who}, {count} samples: {found[count]:.0f} MB", file=sys.stderr, flush=True)
    show(figures, sorted(options.samples))
    if options.json:
        with replacing(options.json) as file:
            file.write_text(json.dumps({who: {"peak_mb": f, "mb_per_sample": slope(f)} for who, f in figures.items()}))
    return 0


def in_fresh_process(who: str, count: int, folder: Path) -> float:
    command = [sys.executable, __file__, "--child", who, str(count), str(folder)]
    done = subprocess.run(command, check=True, stdout=subprocess.PIPE, text=True)
    return float(done.stdout.splitlines()[-1])


def calibrate(who: str, count: int, folder: Path) -> None:
    """Calibrate network A on `count` pictures; the artefact goes to `folder`."""
    path = testbed.network(NETWORK)
    samples = pictures(path, count)
    if who == RIVAL:
        fixed = accuracy.fix_shapes(path, next(iter(samples)), folder / "fixed.onnx")
        peers.onnxruntime_static(fixed, folder / "prepared.onnx", folder / "rival.onnx", "Entropy", samples)
        return
    recipe = Recipe.load("w8a8")
    recipe = recipe.changed(steps=tuple(s for s in recipe.steps if isinstance(s, Fold | Calibrate | Round)))
    graph = Graph.load(path, next(iter(samples)))
    qdq.save(pipeline.quantize(graph, recipe, samples, held_out=samples.take(1)).to_qdq(), folder / "leadline.onnx")


def pictures(network: Path, count: int) -> Samples:
    paths = testbed.pictures()
    repeated = (paths * -(-count // len(paths)))[:count]
    return load_samples(
        Data(repeated, preprocess=Preprocess.from_dict(testbed.preprocess(NETWORK)), strict=True),
        inspect_inputs(network),
    )


def peak_mb() -> float:
    """Peak resident memory of this process, in MB of 10^6 bytes."""
    line = next(line for line in Path("/proc/self/status").read_text().splitlines() if line.startswith("VmHWM"))
    return int(line.split()[1]) * 1024 / 1e6


def slope(found: dict[int, float]) -> float | None:
    """MB for each further sample, from the fewest to the most samples."""
    first, last = min(found), max(found)
    return (found[last] - found[first]) / (last - first) if last > first else None


def show(figures: dict[str, dict[int, float]], counts: list[int]) -> None:
    table = Table(title="Peak memory of calibrating network A, in MB")
    for column in ("calibrated by", *(f"{count} samples" for count in counts), "per sample"):
        table.add_column(column, justify="left" if column == "calibrated by" else "right")
    for who, found in figures.items():
        cells = [f"{found[count]:.0f}" if count in found else "-" for count in counts]
        each = slope(found) if len(found) > 1 else None
        table.add_row(who, *cells, "-" if each is None else f"{each:.1f}")
    Console(width=None if sys.stdout.isatty() else 132).print(table)


if __name__ == "__main__":
    raise SystemExit(main())
