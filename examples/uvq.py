"""UVQ 1.5 for phones: three TFLite networks, and what quantising them does to the score at their end.

    python examples/uvq.py ~/src/uvq video.mp4 --recipes dynamic-int8 fp16 --out out

Needs the clone of https://github.com/google/uvq, and: pip install 'leadline[litert,video]' torchvision
"""

from __future__ import annotations

import argparse
import json
import sys
from pathlib import Path

from leadline.data import Data, load_samples
from leadline.progress import Bars
from leadline.systems import uvq
from leadline.systems.chain import to_tflite
from leadline.types import InputError


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("clone", type=Path, help="folder of the repository")
    parser.add_argument("frames", type=Path, nargs="?", help="a video or pictures (default: two rendered frames)")
    parser.add_argument(
        "--checkpoints", type=Path, help="folder of content_net.pth, distortion_net.pth, aggregation_net.pth"
    )
    parser.add_argument("--recipes", nargs="+", default=["dynamic-int8"],
                        help="dynamic-int8, weight-only-int8, fp16, int4-block128, w8a8")  # fmt: skip
    parser.add_argument("--num-samples", type=int, default=4, help="frames to calibrate and compare on")
    parser.add_argument("--out", type=Path, default=Path("out"), help="folder for the artefacts")
    parser.add_argument("--threads", type=int)
    given = parser.parse_args()

    chain = uvq.load(given.clone, given.checkpoints)
    print(*chain.notes, sep="\n")
    content = chain.stages["content"]
    if given.frames is None:
        frames = [{"frame": frame[None]} for frame in uvq.pictures(2, content.inputs["frame"].shape[2:])]
    else:
        shape = content.inputs["frame"].shape
        frames = list(
            load_samples(
                Data(given.frames, preprocess=content.preprocess, num_samples=given.num_samples),
                [("frame", "float32", shape)],
            )
        )
    made = to_tflite(
        chain.to_graphs(), chain.sources, frames, given.recipes, given.out,
        calls=chain.calls, threads=given.threads, progress=Bars(),
    )  # fmt: skip
    for one in made:
        print(f"{one.recipe}: {one.quantized} of {one.tensors} tensors quantised, {one.saved:.1f} % saved, "
              f"end score off by {one.score_error:.2%}")  # fmt: skip
        for name, (absolute, relative) in one.measured.differences.items():
            print(f"  {name}: mean difference {absolute:.3g}, {relative:.2%}")
        report = given.out / one.recipe / "report.json"
        report.write_text(json.dumps(one.to_dict(), indent=2), "utf-8")
    print(f"wrote {given.out}")


if __name__ == "__main__":
    try:
        main()
    except InputError as error:
        sys.exit(f"error: {error}")
