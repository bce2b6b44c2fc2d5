"""Metric3D v2 by QuartDepth: LogNP polishing, grids per channel, weight compensation, AdaRound with K-FAC.

    git clone https://github.com/YvanYin/Metric3D
    pip install 'leadline[torch]' mmcv-lite mmengine timm
    python examples/metric3d.py --clone Metric3D --checkpoint metric_depth_vit_small_800k.pth \\
        --data photographs/ --out out/

The recipes quartdepth-w4a8 and quartdepth-w4a4 are simulations: no phone has logarithms and scales per channel of
activations. --recipe w8a8, w4a8 or w8a16 gives artefacts that devices run.
"""

from __future__ import annotations

import argparse
from pathlib import Path

import leadline
from leadline.inspector import inspect
from leadline.progress import Bars
from leadline.systems import metric3d
from leadline.systems.agreement import agreement


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--clone", type=Path, required=True, help="of the repository Metric3D")
    parser.add_argument("--checkpoint", type=Path, help="default: random weights")
    parser.add_argument("--encoder", default="small", help="small, large or giant")
    parser.add_argument("--data", type=Path, required=True, help="pictures, or videos")
    parser.add_argument("--out", type=Path, required=True, help="folder for the artefacts")
    parser.add_argument("--size", type=int, nargs="+", default=[616, 1064], help="height and width, multiples of 28")
    parser.add_argument("--iterations", type=int, help="of the recurrent decoder; default: the configuration's")
    parser.add_argument("--recipe", default="quartdepth-w4a8", help="a name (see `leadline recipe`) or a TOML file")
    parser.add_argument("--num-samples", type=int, default=32, help="pictures to calibrate on and to check with")
    parser.add_argument("--threads", type=int)
    options = parser.parse_args()

    size = tuple(options.size) if len(options.size) > 1 else options.size[0]
    system = metric3d.load(
        options.clone, options.checkpoint, encoder=options.encoder, size=size, iterations=options.iterations
    )
    print(*system.notes, system.rewrites, sep="\n")
    quantized = leadline.quantize(
        system.to_graph(),
        options.recipe,
        leadline.Data(options.data, preprocess=system.preprocess, num_samples=options.num_samples),
        threads=options.threads,
        progress=Bars(),
    )
    quantized.save(options.out)
    print(*quantized.limits, sep="\n")
    print(agreement(quantized, threads=options.threads))
    for label, text in inspect(options.out / "model.qdq.onnx").rows(longest=3):
        print(f"{label:20} {text}")


if __name__ == "__main__":
    main()
