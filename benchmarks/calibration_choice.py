"""Does it matter which pictures calibrate? TinyDepth, 8 and 32 of 200, chosen in each way of leadline.data.choose.

    python benchmarks/calibration_choice.py                                       # half an hour on one core
    python benchmarks/calibration_choice.py --recipes minmax-w8a8 --junk 20       # three minutes

The candidates lie as recordings do: 12 pictures each of 10 places, 2 each of 40 others; a folder for each place.
--junk replaces as many of them, at random, by pictures that a camera takes by mistake: a covered lens, bare light,
static. Judged are 24 pictures of other places: the SQNR of the logarithm of the output beside the float network's, and
delta1 and AbsRel beside the true depth, as mean over the seeds, with the lowest and highest SQNR.
"""

from __future__ import annotations

import argparse
import json
import sys
import tempfile
from pathlib import Path
from typing import Any

import numpy as np
from PIL import Image
from rich.console import Console
from rich.table import Table

from leadline import pipeline
from leadline.data import Data, Preprocess, choose, load_samples
from leadline.data.choice import BY_FEATURES, METHODS
from leadline.depth import networks, scenes
from leadline.evaluation import Footage, judge, predict
from leadline.files import replacing
from leadline.graph import Graph, inspect_inputs
from leadline.graph.features import network_features
from leadline.progress import Bars
from leadline.recipe import Recipe
from leadline.sqnr import Sqnr

PLACES = [(200_000 + i, 12 if i < 10 else 2) for i in range(50)]
JUDGED = range(310_000, 310_024)
INSIDE = "tap_norms.3"
"""The last LayerNorm of TinyDepth's encoder."""

CONTESTANTS = [(method, "") for method in METHODS] + [(method, INSIDE) for method in BY_FEATURES]


def main() -> None:
    parser = argparse.ArgumentParser(description=(__doc__ or "").split("\n")[0])
    parser.add_argument("--recipes", nargs="*", default=["minmax-w8a8", "w4a8"])
    parser.add_argument("--counts", nargs="*", type=int, default=[8, 32])
    parser.add_argument("--methods", nargs="*", default=METHODS, choices=METHODS)
    parser.add_argument("--seeds", type=int, default=3)
    parser.add_argument("--junk", type=int, default=0, help="so many of the candidates are no pictures of anything")
    parser.add_argument("--json", type=Path, help="also write the figures here")
    options = parser.parse_args()
    plans = [Recipe.load(name) for name in options.recipes]
    preprocess, bars = Preprocess(**networks.PREPROCESS), Bars()
    graph = Graph.load(networks.path())
    footage = Footage([scenes.views(seed)[0] for seed in bars.over(JUDGED, "render", len(JUDGED))])
    floats = predict(graph, footage.frames, preprocess, threads=1)
    found: list[dict[str, Any]] = []
    with tempfile.TemporaryDirectory(prefix="leadline-choice-") as folder:
        render(Path(folder), options.junk)
        candidates = load_samples(Data(folder, preprocess=preprocess), inspect_inputs(networks.path()))
        inside = network_features(graph, INSIDE, threads=1)
        for plan in plans:
            for count in options.counts:
                for seed in range(options.seeds):
                    for method, tensor in CONTESTANTS:
                        if method not in options.methods:
                            continue
                        chosen = choose(candidates, count, method, features=inside if tensor else None, seed=seed)
                        quantized = pipeline.quantize(graph, plan, chosen, threads=1)
                        output = predict(quantized.to_qdq(), footage.frames, preprocess, threads=1)
                        judged = judge(output, footage)
                        row = {"recipe": plan.name, "count": count, "method": method, "features": tensor, "seed": seed}
                        row["junk"] = sum("junk" in Path(label).name for label in chosen.labels)
                        row["places"] = len({Path(label).parent for label in chosen.labels})
                        row["sqnr"] = Sqnr().update(np.log(floats), np.log(output)).db
                        row |= {key: judged.scores.to_dict()[key] for key in ("delta1", "abs_rel")}
                        found.append(row)
                        print(row, file=sys.stderr, flush=True)
                        if options.json:
                            with replacing(options.json) as temporary:
                                temporary.write_text(json.dumps(found, indent=1))
                show(found, plan.name, count)
    scores = judge(floats, footage).scores.to_dict()
    print(f"float: delta1 {scores['delta1']:.4f}, AbsRel {scores['abs_rel']:.4f}")


def render(folder: Path, junk: int) -> None:
    """The candidates as files."""
    rng = np.random.default_rng(0)
    spoilt = set(rng.permutation(sum(count for _, count in PLACES))[:junk].tolist())
    index = 0
    for place, count in Bars().over(PLACES, "render", len(PLACES)):
        (folder / str(place)).mkdir()
        for frame in scenes.views(place, count):
            pixels, name = frame.rgb, f"{index}.png"
            if index in spoilt:
                level, spread = [(4, 3), (252, 3), (128, 60)][index % 3]
                pixels = rng.normal(level, spread, pixels.shape).clip(0, 255).astype(np.uint8)
                name = f"{index}-junk.png"
            Image.fromarray(pixels).save(folder / str(place) / name)
            index += 1


def show(found: list[dict[str, Any]], recipe: str, count: int) -> None:
    columns = ("SQNR dB", "lowest", "highest", "delta1", "AbsRel", "places", "junk")
    table = Table(f"{recipe}, {count} pictures", *columns)
    for method, tensor in CONTESTANTS:
        wanted = {"recipe": recipe, "count": count, "method": method, "features": tensor}
        rows = [row for row in found if wanted.items() <= row.items()]
        if rows:
            mean = {key: float(np.mean([row[key] for row in rows])) for key in ("delta1", "abs_rel", "places", "junk")}
            sqnr = [row["sqnr"] for row in rows]
            cells = [f"{value:.2f}" for value in (np.mean(sqnr), min(sqnr), max(sqnr))]
            cells += [f"{mean['delta1']:.4f}", f"{mean['abs_rel']:.4f}", f"{mean['places']:.1f}", f"{mean['junk']:.1f}"]
            table.add_row(method + (f" by {tensor}" if tensor else ""), *cells)
    Console(width=None if sys.stdout.isatty() else 120).print(table)


if __name__ == "__main__":
    main()
