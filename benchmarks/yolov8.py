"""A detector of YOLOv8's structure in INT8: what is left of its detections, in simulation and on Hexagon's emulation.

    python benchmarks/yolov8.py                                      # the tests' own small detector, 160x160
    python benchmarks/yolov8.py --size 640 --target onnxruntime      # the same at the size of real exports
    python benchmarks/yolov8.py --model yolov8n.onnx --data coco128/ # yours

Agreement is with the float network, on pictures that calibration did not see: IoU of 0.5 and one class make a match.
"""

from __future__ import annotations

import argparse
import json
import sys
import tempfile
import time
from pathlib import Path
from typing import Any

import numpy as np
import onnx

sys.path.insert(0, str(Path(__file__).parents[1] / "tests"))

import leadline
from leadline.data import Data, Samples, load_samples
from leadline.recipe import Recipe
from leadline.systems import yolov8
from leadline.systems.system import System
from yolov8_onnx import detector, picture

TILE = 160
RECIPES: dict[str, Recipe] = {
    "minmax-w8a8": Recipe.load("minmax-w8a8"),
    "w8a8, minmax": yolov8.recipe("minmax"),
    "w8a8, entropy": yolov8.recipe("entropy"),
    "w8a8": yolov8.recipe(),
    "w8a8, separate": yolov8.recipe(separate=True),
    "w4a8": Recipe.load("w4a8"),
    "w8a16": Recipe.load("w8a16"),
}


def drawn(seed: int, size: int) -> np.ndarray:
    """A mosaic of small pictures, (1, 3, size, size)."""
    side = size // TILE
    tiles = [[picture(seed * 100 + i * side + j, TILE, TILE)[0] for j in range(side)] for i in range(side)]
    rows = np.concatenate([np.concatenate(row, 1) for row in tiles])
    return rows.transpose(2, 0, 1)[None].astype(np.float32) / 255


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--model", type=Path, help="a detector's ONNX (default: the tests' own)")
    parser.add_argument("--data", type=Path, help="its pictures")
    parser.add_argument("--size", type=int, default=TILE, help="a multiple of 160")
    parser.add_argument("--calibration", type=int, default=24)
    parser.add_argument("--unseen", type=int, default=24)
    parser.add_argument("--emulated", type=int, default=6, help="unseen pictures on Hexagon's emulation")
    parser.add_argument("--target", choices=("onnxruntime", "hexagon"), default="hexagon")
    parser.add_argument("--recipes", nargs="+", default=list(RECIPES), choices=RECIPES)
    parser.add_argument("--threads", type=int, default=1)
    parser.add_argument("--json", type=Path)
    given = parser.parse_args()
    with tempfile.TemporaryDirectory() as folder:
        path = given.model or Path(folder) / "detector.onnx"
        if given.model is None:
            onnx.save(detector(given.size), path)
        system = yolov8.load(path)
        calibration, unseen = _data(given, system)
        rows = []
        print("| recipe | runs on | kept | added | IoU | box, px | score | highest | seconds |")
        print("|---|---|---|---|---|---|---|---|---|")
        for name in given.recipes:
            start = time.monotonic()
            done = leadline.quantize(
                system.network, RECIPES[name], calibration, threads=given.threads, target=given.target
            )
            took = time.monotonic() - start
            done.save(Path(folder) / "out")
            runs = [("simulation", unseen)]
            if given.target == "hexagon":
                runs.append(("hexagon", unseen.take(given.emulated)))
            for where, samples in runs:
                target = "hexagon" if where == "hexagon" else "onnxruntime"
                artefact = Path(folder) / "out" / "model.qdq.onnx"
                found = yolov8.compare_detections(
                    system.network, artefact, samples, target=target, threads=given.threads
                )
                rows.append({"recipe": name, "on": where, "seconds": took, **found.to_dict()})
                print(
                    f"| {name} | {where} | {found.kept:.1%} of {found.expected} | {found.added:.1%} | "
                    f"{found.iou:.3f} | {found.box_difference:.2f} | {found.score_difference:.3f} | "
                    f"{found.top:.2f} | {took:.0f} |",
                    flush=True,
                )
        if given.json:
            given.json.write_text(json.dumps(rows, indent=1), "utf-8")


def _data(given: Any, system: System) -> tuple[Samples, Samples]:
    inputs, size = system.network.inputs, system.network.inputs[0].shape[2]
    if given.data is not None:
        samples = load_samples(
            Data(given.data, preprocess=system.preprocess, num_samples=given.calibration + given.unseen), inputs
        )
        return samples.take(given.calibration), samples.part(
            range(min(given.calibration, len(samples) - 1), len(samples))
        )
    first = [drawn(i, size) for i in range(given.calibration)]
    return load_samples(first, inputs), load_samples([drawn(1000 + i, size) for i in range(given.unseen)], inputs)


if __name__ == "__main__":
    main()
