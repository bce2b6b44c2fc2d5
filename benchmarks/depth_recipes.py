"""What recipes do to depth, in numbers: the shipped networks and SmallDepth, on rendered scenes and on a real picture.

    python benchmarks/depth_recipes.py                                   # everything; a quarter of an hour on two cores
    python benchmarks/depth_recipes.py --networks tinydepth --json out.json

Beside leadline's recipes stands onnxruntime's own static quantisation (MinMax, Percentile), with the same calibration
pictures, INT8 weights per channel and UINT8 activations per tensor. Judged are 32 pictures and a video of 24 frames of
rendered places that neither training nor calibration saw, as the networks give them, in metres; and the motorcycle of
the Middlebury stereo pair (tests/testbed.py) after scale-shift alignment: a real photograph, far from what these
networks were trained on, so that only the distance to the float network says something about quantisation.
SmallDepth is our own head on DINOv2 features (smalldepth.py), not Depth Anything.
"""

from __future__ import annotations

import argparse
import json
import logging
import sys
import tempfile
from pathlib import Path
from typing import Any

import onnx
import onnxruntime as ort
from rich.console import Console
from rich.table import Table

import accuracy
import peers
import smalldepth
from leadline.comparison import compare_recipes
from leadline.data import Preprocess, load_samples
from leadline.depth import networks, scenes
from leadline.evaluation import Footage, Judgement, feeds, judge, predict
from leadline.files import replacing
from leadline.graph import inspect_inputs
from leadline.progress import Bars

sys.path.insert(0, str(Path(__file__).resolve().parents[1] / "tests"))
import testbed

NETWORKS = (*networks.NAMES, "smalldepth")
RIVALS = ("MinMax", "Percentile")
RECIPES = ("minmax-w8a8", "w8a8", "w8a16", "w4a8")
CALIBRATION, STILLS, VIDEO = range(200_000, 200_024), range(310_000, 310_032), 310_041
KINDS = ("pictures", "video", "motorcycle")


def main() -> None:
    parser = argparse.ArgumentParser(description=(__doc__ or "").split("\n")[0])
    parser.add_argument("--networks", nargs="*", default=NETWORKS, choices=NETWORKS)
    parser.add_argument("--recipes", nargs="*", default=RECIPES)
    parser.add_argument("--json", type=Path, help="also write the figures here")
    options = parser.parse_args()
    ort.set_default_logger_severity(3)
    logging.getLogger().setLevel(logging.ERROR)
    found = {}
    for name in options.networks:
        with tempfile.TemporaryDirectory(prefix="leadline-depth-") as folder:
            found[name] = contest(name, options.recipes, Path(folder))
        show(name, found[name])
        if options.json:
            with replacing(options.json) as temporary:
                temporary.write_text(json.dumps(found, indent=1))


def contest(name: str, recipes: list[str], folder: Path) -> dict[str, list[dict[str, Any]]]:
    """Figures of everybody on each footage, the float network first."""
    if name == "smalldepth":
        file, size = folder / "smalldepth.onnx", (224, 224)
        onnx.save(smalldepth.assemble(), str(file))
    else:
        file, size = networks.path(name), scenes.SIZE
    preprocess = Preprocess(**networks.PREPROCESS)
    calibration = [scenes.views(seed, size=size)[0] for seed in CALIBRATION]
    stills = [scenes.views(seed, size=size)[0] for seed in STILLS]
    footage = [
        Footage(stills),
        Footage(scenes.clip(VIDEO, 24, size), video=True),
        Footage([testbed.stereo_frame(size)], alignment="scale-shift"),
    ]
    done = compare_recipes(file, recipes, calibration, footage, folder, preprocess=preprocess, progress=Bars())
    found = {"float": done.floats}
    samples = load_samples(feeds(calibration, preprocess), inspect_inputs(file))
    fixed = accuracy.fix_shapes(file, next(iter(samples)), folder / "fixed.onnx")
    for method in RIVALS:
        artefact = folder / f"{method}.onnx"
        peers.onnxruntime_static(fixed, folder / "prepared.onnx", artefact, method, samples)
        found[f"onnxruntime {method}"] = [
            judge(predict(onnx.load(artefact), f.frames, preprocess), f, own)
            for f, own in zip(footage, done.floats, strict=True)
        ]
    found |= {f"leadline {run.name}": run.judgements for run in done.runs}
    return {contestant: [figures(one) for one in judged] for contestant, judged in found.items()}


def figures(judged: Judgement) -> dict[str, Any]:
    plain = judged.to_dict()
    return plain | {"temporal": {key: sum(v) / len(v) for key, v in plain["temporal"].items()}}


def show(name: str, found: dict[str, list[dict[str, Any]]]) -> None:
    for i, kind in enumerate(KINDS):
        temporal = ("TAE %", "flicker %") if kind == "video" else ()
        table = Table(f"{name}, {kind}", "AbsRel", "delta1", "boundary F1", "correlation", "SSIM", *temporal)
        for contestant, judged in found.items():
            one = judged[i]
            agreement = one["agreement"] or {}
            cells = [f"{one['scores']['abs_rel']:.4f}", f"{one['scores']['delta1']:.4f}", f"{one['sharpness']:.3f}"]
            cells += [f"{agreement[key]:.5f}" if agreement else "" for key in ("pearson", "ssim")]
            cells += [f"{one['temporal'].get(key, 0):.3f}" for key in ("alignment_error", "flicker") if temporal]
            table.add_row(contestant + (" collapsed" if one["collapse"] else ""), *cells)
        Console(width=None if sys.stdout.isatty() else 120).print(table)


if __name__ == "__main__":
    main()
