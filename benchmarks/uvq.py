"""UVQ 1.5 as a chain of three TFLite networks, by each of LiteRT's recipes, at full size.

    python benchmarks/uvq.py --clone ~/src/uvq --frames 2 --json uvq.json

Needs torch, torchvision and litert-torch (`pip install 'leadline[litert]' torchvision`), and 4 GB of memory. Networks
whose checkpoints are not in the clone have random weights: sizes and counts are theirs, errors are not.
"""

from __future__ import annotations

import argparse
import json
import resource
import sys
import tempfile
import time
from pathlib import Path

sys.path.insert(0, str(Path(__file__).parents[1] / "tests"))

from leadline.progress import Bars
from leadline.systems import uvq
from leadline.systems.chain import to_tflite

RECIPES = ("dynamic-int8", "weight-only-int8", "fp16", "int4-block128")
REFERENCE = "reference: 81 of 499 tensors, 70.6 % saved, end score off by 1.91 %"


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--clone", type=Path, required=True, help="of https://github.com/google/uvq")
    parser.add_argument("--checkpoints", type=Path, help="folder of the three .pth files (default: the clone's)")
    parser.add_argument("--frames", type=int, default=2, help="1080x1920, rendered; of these every patch")
    parser.add_argument("--recipes", nargs="+", default=RECIPES)
    parser.add_argument("--threads", type=int, default=1)
    parser.add_argument("--json", type=Path)
    given = parser.parse_args()

    from torch_stand_ins import define_torchvision

    define_torchvision()
    start = time.monotonic()
    chain = uvq.load(given.clone, given.checkpoints)
    graphs = chain.to_graphs()
    exported = time.monotonic() - start
    frames = [{"frame": frame[None]} for frame in uvq.pictures(4 + given.frames, (1080, 1920))[4:]]
    with tempfile.TemporaryDirectory() as folder:
        made = to_tflite(
            graphs, chain.sources, frames, given.recipes, Path(folder) / "out", calls=chain.calls,
            threads=given.threads, progress=Bars(),
        )  # fmt: skip
    print(*chain.notes, sep="\n")
    print("| recipe | quantised tensors | MB (float) | saved | mean difference: content, distortion | end score |")
    print("|---|---|---|---|---|---|")
    for one in made:
        sizes = one.measured.stages.values()
        counts = ", ".join(f"{size.quantized} of {size.tensors}" for size in sizes)
        megabytes = f"{sum(s.bytes for s in sizes) / 1e6:.2f} ({sum(s.bytes_float for s in sizes) / 1e6:.2f})"
        own = [pair for name, pair in one.measured.differences.items() if not name.startswith("aggregation")]
        differences = ", ".join(f"{absolute:.3g} ({relative:.1%})" for absolute, relative in own)
        print(f"| {one.recipe} | {counts} | {megabytes} | {one.saved:.1f} % | {differences} | {one.score_error:.2%} |")
    peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1e6
    seconds = ", ".join(f"{one.recipe} {one.seconds:.0f} s" for one in made)
    print(f"{REFERENCE}\nload and export {exported:.0f} s, {seconds}; peak {peak:.1f} GB, {given.threads} thread(s)")
    if given.json:
        given.json.write_text(json.dumps([one.to_dict() for one in made], indent=1), "utf-8")


if __name__ == "__main__":
    main()
