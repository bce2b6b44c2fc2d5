"""The demo: a depth network that comes with leadline, on rendered places that it never saw. Nothing is downloaded."""

from __future__ import annotations

import os
from collections.abc import Sequence
from pathlib import Path

from leadline.comparison import Comparison, compare_recipes, load_recipes
from leadline.data import Preprocess
from leadline.depth import networks, scenes
from leadline.evaluation import Footage
from leadline.progress import Progress, Quiet

RECIPES = ("minmax-w8a8", "w8a8", "w8a16", "w4a8")

# Training used the places 0 to 1199, its evaluation 100000 to 100059.
CALIBRATION = range(200_000, 200_024)
STILLS = range(300_000, 300_016)
VIDEO = 300_021
FRAMES = 24


def demo(
    out: str | os.PathLike[str],
    network: str = "tinydepth",
    recipes: Sequence[str] = RECIPES,
    *,
    threads: int | None = None,
    progress: Progress | None = None,
) -> Comparison:
    """Quantise `network` (one of ``depth.networks.NAMES``) by `recipes`, and judge them on 16 pictures and a video.

    Calibration sees one view each of 24 places; their depth is not used. Artefacts go to a folder for each recipe.
    """
    progress = progress or Quiet()
    file, loaded = networks.path(network), load_recipes(recipes)
    calibration = [scenes.views(seed)[0] for seed in progress.over(CALIBRATION, "render", len(CALIBRATION))]
    stills = [scenes.views(seed)[0] for seed in progress.over(STILLS, "render", len(STILLS))]
    with progress("render video"):
        video = scenes.clip(VIDEO, FRAMES)
    footage = [Footage(stills), Footage(video, video=True)]
    preprocess = Preprocess(**networks.PREPROCESS)
    return compare_recipes(
        file, loaded, calibration, footage, Path(out), preprocess=preprocess, threads=threads, progress=progress
    )
