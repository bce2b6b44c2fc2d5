"""Video-Depth-Anything to INT8 for phones: the user's clone and checkpoint to ONNX, ONNX QDQ and AIMET encodings.

    git clone https://github.com/DepthAnything/Video-Depth-Anything
    pip install 'leadline[torch,video]' opencv-python einops easydict tqdm torchvision
    python examples/video_depth_anything.py --clone Video-Depth-Anything --checkpoint video_depth_anything_vits.pth \\
        --data videos/ --out out/

Cross-layer equalisation, then AdaRound, then encodings: the recipe adaround-w8a8. --data is videos, or folders of
pictures that follow each other. Without --checkpoint the weights are random: the whole way runs, the figures mean
little.
"""

from __future__ import annotations

import argparse
from pathlib import Path

import leadline
from leadline.inspector import inspect
from leadline.progress import Bars
from leadline.systems import video_depth_anything
from leadline.systems.agreement import agreement


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--clone", type=Path, required=True, help="of the repository Video-Depth-Anything")
    parser.add_argument("--checkpoint", type=Path, help="default: random weights")
    parser.add_argument("--data", type=Path, required=True, help="videos, or folders of consecutive pictures")
    parser.add_argument("--out", type=Path, required=True, help="folder for the artefacts")
    parser.add_argument("--frames", type=int, default=4, help="frames of a clip, 1 to 32")
    parser.add_argument("--size", type=int, default=266, help="pixels a side, a multiple of 14")
    parser.add_argument("--recipe", default="adaround-w8a8", help="a name (see `leadline recipe`) or a TOML file")
    parser.add_argument("--target", default="onnxruntime", help="onnxruntime or hexagon")
    parser.add_argument("--num-samples", type=int, default=24, help="clips to calibrate on and to check with")
    parser.add_argument("--threads", type=int)
    options = parser.parse_args()

    system = video_depth_anything.load(options.clone, options.checkpoint, frames=options.frames, size=options.size)
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
