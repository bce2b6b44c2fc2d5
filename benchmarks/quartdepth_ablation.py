"""QuartDepth's stages, each alone and in sequence, and what its choices are worth, on TinyDepth.

    python benchmarks/quartdepth_ablation.py                              # half an hour on two cores, mostly K-FAC's
    python benchmarks/quartdepth_ablation.py --recipe quartdepth-w4a8 --json out.json

The stages are those of the recipe: LogNP polishing of what layers read, grids per channel (always on), weight
compensation, AdaRound, K-FAC. Calibrated on 24 pictures (a quarter of them held out), judged on 32 others of rendered
places that nobody saw, against true depth and against the float network.
"""

from __future__ import annotations

import argparse
import json
import sys
import time
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any

import onnx
from rich.console import Console
from rich.table import Table

from leadline import pipeline, rounding
from leadline.data import Preprocess, load
from leadline.depth import networks, scenes
from leadline.evaluation import Footage, Judgement, feeds, judge, predict
from leadline.files import replacing
from leadline.graph import inspect_inputs
from leadline.recipe import Polish, Recipe, Round, Step

CALIBRATION, SCORED = range(200_000, 200_032), range(310_000, 310_032)
SAMPLES = 24
DAMPINGS = (1e-3, 1e-2, 1e-1, 1.0)


def changed(recipe: Recipe, name: str, polish: dict[str, Any] | None, round_: dict[str, Any]) -> Recipe:
    """The recipe with other options of two of its steps; without polishing for None."""

    def step(given: Step) -> Step:
        if isinstance(given, Polish):
            return replace(given, **(polish or {}))
        return replace(given, **round_) if isinstance(given, Round) else given

    steps = (step(given) for given in recipe.steps if polish is not None or not isinstance(given, Polish))
    return replace(recipe, name=name, steps=tuple(steps))


def variants(recipe: Recipe) -> Iterator[tuple[str, Recipe, int, tuple[float, ...]]]:
    """What is shown, the recipe, the number of samples, and the dampings that compensation tries."""
    nearest = {"method": "nearest", "compensate": False, "kfac": False}
    ada = {"method": "adaround", "compensate": False, "kfac": False}
    both = ada | {"compensate": True}
    usual = rounding.DAMPINGS
    yield "none: grids per channel, nearest", changed(recipe, "none", None, nearest), SAMPLES, usual
    yield "polish", changed(recipe, "polish", {}, nearest), SAMPLES, usual
    yield "AdaRound", changed(recipe, "adaround", None, ada), SAMPLES, usual
    yield "compensate, AdaRound", changed(recipe, "compensate", None, both), SAMPLES, usual
    yield "polish, AdaRound", changed(recipe, "polish-adaround", {}, ada), SAMPLES, usual
    yield "polish, compensate, AdaRound", changed(recipe, "no-kfac", {}, both), SAMPLES, usual
    for percentile in (90.0, 99.0):
        given = changed(recipe, f"p{percentile:g}", {"percentile": percentile}, both)
        yield f"all but K-FAC, percentile {percentile:g}", given, SAMPLES, usual
    adaptive = changed(recipe, "adaptive", {"adaptive": True}, both)
    yield "all but K-FAC, adaptive bends", adaptive, SAMPLES, usual
    for damping in DAMPINGS:
        yield (
            f"adaptive, damping {damping:g}",
            changed(recipe, f"d{damping:g}", {"adaptive": True}, both),
            SAMPLES,
            (damping,),
        )
    for samples in (8, 16, 32):
        yield f"adaptive, {samples} samples", adaptive, samples, usual
    best = changed(recipe, "best", {"adaptive": True}, both | {"method": "best"})
    yield "adaptive, the portfolio in AdaRound's place", best, SAMPLES, usual
    yield "all four, with K-FAC", recipe, SAMPLES, usual


def main() -> None:
    parser = argparse.ArgumentParser(description=(__doc__ or "").split("\n")[0])
    parser.add_argument("--recipe", default="quartdepth-w4a4")
    parser.add_argument("--threads", type=int)
    parser.add_argument("--json", type=Path, help="also write the figures here")
    options = parser.parse_args()
    file, preprocess = networks.path("tinydepth"), Preprocess(**networks.PREPROCESS)
    frames = [scenes.views(seed)[0] for seed in CALIBRATION]
    footage = Footage([scenes.views(seed)[0] for seed in SCORED])
    floats = judge(predict(onnx.load(str(file)), footage.frames, preprocess), footage)
    found: list[dict[str, Any]] = [figures("float", floats, 0.0)]
    usual = rounding.DAMPINGS
    for name, recipe, samples, dampings in variants(Recipe.load(options.recipe)):
        given = load(feeds(frames[:samples], preprocess), inspect_inputs(file))
        rounding.DAMPINGS = dampings
        start = time.monotonic()
        quantized = pipeline.quantize(file, recipe, given, threads=options.threads)
        seconds = time.monotonic() - start
        rounding.DAMPINGS = usual
        judged = judge(predict(quantized.to_qdq(), footage.frames, preprocess), footage, floats)
        found.append(figures(name, judged, seconds))
        print(found[-1], file=sys.stderr, flush=True)
        if options.json:
            with replacing(options.json) as temporary:
                temporary.write_text(json.dumps(found, indent=1))
    show(options.recipe, found)


def figures(name: str, judged: Judgement, seconds: float) -> dict[str, Any]:
    row = {"name": name, "abs_rel": judged.scores.abs_rel, "delta1": judged.scores.delta1, "seconds": seconds}
    return row | ({"pearson": judged.agreement.pearson} if judged.agreement else {})


def show(recipe: str, found: list[dict[str, Any]]) -> None:
    table = Table("stages", "AbsRel", "delta1", "correlation", "seconds", title=f"{recipe} on TinyDepth")
    for row in found:
        correlation = f"{row['pearson']:.4f}" if "pearson" in row else ""
        table.add_row(
            row["name"], f"{row['abs_rel']:.4f}", f"{row['delta1']:.4f}", correlation, f"{row['seconds']:.0f}"
        )
    Console(width=None if sys.stdout.isatty() else 120).print(table)


if __name__ == "__main__":
    main()
