"""Depth Anything, first or second version, from transformers to ONNX QDQ and AIMET encodings.

    pip install 'leadline[torch]' transformers
    python examples/depth_anything.py --model folder_with_config_and_weights --data photographs/ --out out/
    python examples/depth_anything.py --encoder small --size 252 --data photographs/ --out out/    # random weights

--target hexagon sizes the artefact for Qualcomm's HTP, and `leadline verify --target hexagon` then asks its emulation;
QuartDepth's four stages are --recipe quartdepth-w4a8, in simulation.
"""

from __future__ import annotations

import argparse
from pathlib import Path

import leadline
from leadline.inspector import inspect
from leadline.progress import Bars
from leadline.systems import depth_anything
from leadline.systems.agreement import agreement


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--model", help="folder, or a name that transformers knows; default: random weights")
    parser.add_argument("--encoder", default="small", help="small, base or large, for random weights")
    parser.add_argument("--data", type=Path, required=True, help="pictures, or videos")
    parser.add_argument("--out", type=Path, required=True, help="folder for the artefacts")
    parser.add_argument("--size", type=int, default=518, help="pixels a side, a multiple of 14")
    parser.add_argument("--recipe", default="w8a8", help="a name (see `leadline recipe`) or a TOML file")
    parser.add_argument("--target", default="onnxruntime", help="onnxruntime or hexagon")
    parser.add_argument("--num-samples", type=int, default=32, help="pictures to calibrate on and to check with")
    parser.add_argument("--threads", type=int)
    options = parser.parse_args()

    system = depth_anything.load(options.model, encoder=options.encoder, size=options.size)
    print(*system.notes, system.rewrites, sep="\n")
    quantized = leadline.quantize(
        system.to_graph(),
        options.recipe,
        leadline.Data(options.data, preprocess=system.preprocess, num_samples=options.num_samples),
        target=options.target,
        threads=options.threads,
        progress=Bars(),
    )
    quantized.save(options.out)
    print(agreement(quantized, threads=options.threads))
    for file in ("model.fp32.onnx", "model.qdq.onnx", "model.encodings"):
        if (options.out / file).exists():
            for label, text in inspect(options.out / file).rows(longest=3):
                print(f"{label:20} {text}")


if __name__ == "__main__":
    main()
