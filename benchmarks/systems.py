"""The users' real networks, from a torch module to artefacts: encodings, sizes, time and memory of each stage.

    python benchmarks/systems.py video-depth-anything --clone CLONE --json out.json
    python benchmarks/systems.py depth-anything --out artefacts
    python benchmarks/systems.py metric3d --clone CLONE --size 224

Weights are random unless a --checkpoint is given, so agreement says how the arithmetic behaves, not how good depth is.
The pictures and videos are the tests' (tests/testbed.py); memory is the process's peak so far (VmHWM).
"""

from __future__ import annotations

import argparse
import json
import resource
import sys
import tempfile
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

from leadline import pipeline
from leadline.data import Data, Samples, load_samples
from leadline.files import replacing
from leadline.graph import Graph
from leadline.inspector import inspect
from leadline.progress import Bars
from leadline.systems import System, depth_anything, metric3d, video_depth_anything
from leadline.systems.agreement import agreement

sys.path.insert(0, str(Path(__file__).resolve().parents[1] / "tests"))
import testbed
from torch_stand_ins import define_torchvision

REFERENCE = {"parameters": 170, "activations": 219}
"""Encodings of the reference run of Video-Depth-Anything ViT-S at 266x266."""

SYSTEMS: dict[str, Callable[[argparse.Namespace], System]] = {
    "video-depth-anything": lambda o: video_depth_anything.load(
        o.clone, o.checkpoint, frames=o.frames, size=o.size or 266
    ),
    "depth-anything": lambda o: depth_anything.load(o.checkpoint, size=o.size or 518),
    "metric3d": lambda o: metric3d.load(o.clone, o.checkpoint, size=o.size or (616, 1064)),
}


def main() -> None:
    parser = argparse.ArgumentParser(description=(__doc__ or "").split("\n")[0])
    parser.add_argument("system", choices=SYSTEMS)
    parser.add_argument("--clone", type=Path, help="of the system's repository")
    parser.add_argument("--checkpoint", type=Path, help="default: random weights")
    parser.add_argument("--frames", type=int, default=4)
    parser.add_argument("--size", type=int, help="pixels a side; default: the system's own")
    parser.add_argument("--recipe", help="default: the system's own")
    parser.add_argument("--target", default="onnxruntime")
    parser.add_argument("--samples", type=int, default=12, help="to calibrate on; a quarter is held out")
    parser.add_argument("--threads", type=int)
    parser.add_argument("--out", type=Path, help="keep the artefacts here")
    parser.add_argument("--json", type=Path, help="also write the figures here")
    options = parser.parse_args()
    define_torchvision()
    with tempfile.TemporaryDirectory(prefix="leadline-systems-") as temporary:
        figures = measure(options, options.out or Path(temporary))
    for label, text in figures.items():
        print(f"{label:24} {text}")
    if options.json:
        with replacing(options.json) as file:
            file.write_text(json.dumps(figures, indent=1))


def measure(options: argparse.Namespace, out: Path) -> dict[str, Any]:
    figures: dict[str, Any] = {"system": options.system}

    def staged(stage: str, work: Callable[[], Any]) -> Any:
        start = time.perf_counter()
        result = work()
        peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1024
        figures[stage] = f"{time.perf_counter() - start:.1f} s, peak {peak:.0f} MB"
        print(f"{stage}: {figures[stage]}", file=sys.stderr, flush=True)
        return result

    system: System = staged("load and rewrite", lambda: SYSTEMS[options.system](options))
    figures["rewrites"] = len(system.rewrites.done) if system.rewrites else 0
    graph: Graph = staged("export and read", system.to_graph)
    recipe = options.recipe or system.recipe
    samples = footage(system, graph, options.samples)
    quantized = staged(
        f"quantize, {recipe}",
        lambda: pipeline.quantize(
            graph, recipe, samples, target=options.target, threads=options.threads, progress=Bars()
        ),
    )
    staged("write", lambda: quantized.save(out))
    figures["agreement"] = str(staged("agreement", lambda: agreement(quantized, threads=options.threads)))
    for name in ("model.fp32.onnx", "model.qdq.onnx", "model.encodings"):
        if (out / name).exists():
            found = inspect(out / name)
            figures[name] = f"{found.bytes / 1e6:.1f} MB"
            if found.quantized:
                kinds = (f"{found.parameters_quantized} parameters", f"{found.activations_quantized} activations")
                figures[name] += f", {', '.join(kinds)}"
                figures[f"{name}, in float"] = len(found.uncovered)
    if options.system == "video-depth-anything":
        figures["reference encodings"] = ", ".join(f"{count} {kind}" for kind, count in REFERENCE.items())
    return figures


def footage(system: System, graph: Graph, count: int) -> Samples:
    files = testbed.videos() if len(graph.inputs[0].shape) == 5 else testbed.pictures("calibration")
    return load_samples(Data(files, preprocess=system.preprocess, num_samples=count), graph.inputs)


if __name__ == "__main__":
    main()
