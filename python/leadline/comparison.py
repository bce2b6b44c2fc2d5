"""Recipes side by side on one depth network: each one quantised, written, verified and judged on the same footage."""

from __future__ import annotations

import os
import time
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

from leadline import pipeline
from leadline.data import Preprocess
from leadline.depth import Frame
from leadline.display import table
from leadline.evaluation import Footage, Judgement, feeds, judge, predict
from leadline.files import REPORT, discard
from leadline.graph import Graph
from leadline.pipeline import Quantized
from leadline.preparation import load_pair
from leadline.progress import Progress, Quiet
from leadline.recipe import Recipe
from leadline.types import refuse
from leadline.verification import Verification


@dataclass(frozen=True)
class Run:
    """One recipe: what it made, in which folder, and what that is worth on each footage."""

    quantized: Quantized
    verification: Verification
    folder: Path
    seconds: float
    judgements: list[Judgement]

    @property
    def name(self) -> str:
        return self.quantized.recipe.name

    @property
    def collapse(self) -> list[str]:
        """Why the artefact has collapsed, and the first layer that is broken; empty where it has not."""
        reasons = [reason for judgement in self.judgements for reason in judgement.collapse]
        reasons += self.verification.collapse
        if reasons and self.verification.origin:
            reasons.append(f"the first broken tensor is {self.verification.origin}")
        return list(dict.fromkeys(reasons))


@dataclass(frozen=True)
class Comparison:
    """`floats` are the float network's judgements; they and each run's belong to `footage`, in its order."""

    file: Path
    graph: Graph
    footage: list[Footage]
    floats: list[Judgement]
    runs: list[Run]
    calibration: int

    def _repr_html_(self) -> str:
        columns = ("network", "AbsRel", "delta1", "RMSE m", "boundary F1", "correlation", "collapsed")
        tables = []
        for i, footage in enumerate(self.footage):
            judged = [(run.name, run.judgements[i], "; ".join(run.collapse)) for run in self.runs]
            judged.insert(0, ("float", self.floats[i], ""))
            rows = [
                (
                    *(name, j.scores.abs_rel, j.scores.delta1, j.scores.rmse, j.sharpness),
                    *(j.agreement.pearson if j.agreement else "", collapse),
                )
                for name, j, collapse in judged
            ]
            kind = "frames of video" if footage.video else "pictures"
            tables.append(table(columns, rows, f"{self.file.name}, {len(footage.frames)} {kind}"))
        return "".join(tables)


def load_recipes(recipes: Sequence[str | Recipe]) -> list[Recipe]:
    """Recipes by name or path. Raises InputError for none of them, two of one name, or a name that is no folder's."""
    loaded = [Recipe.load(recipe) for recipe in recipes]
    names = [recipe.name for recipe in loaded]
    for name in names:
        if Path(name).name != name or name in (".", ".."):
            raise refuse("compare_recipes", "a recipe's name must be fit for a folder", repr(name))
    if len(set(names)) < len(names) or not names:
        raise refuse("compare_recipes", "recipes must be at least one, of different names", ", ".join(names) or "none")
    return loaded


def compare_recipes(
    network: str | os.PathLike[str],
    recipes: Sequence[str | Recipe],
    calibration: Sequence[Frame],
    footage: Sequence[Footage],
    out: str | os.PathLike[str],
    *,
    preprocess: Preprocess,
    threads: int | None = None,
    progress: Progress | None = None,
) -> Comparison:
    """Quantise a depth network by each recipe and judge the artefacts against the truth and the float network.

    Parameters
    ----------
    network : path
        A float ONNX network with one picture as input and one plane as output.
    recipes : sequence of Recipe, name or path
        With different names: each one's artefacts go to the folder of its name in `out`.
    calibration : sequence of Frame
        Their depth is not looked at. A quarter of them decides the gates.
    footage : sequence of Footage
        What is judged; calibration must not have seen it.
    preprocess : Preprocess
    threads, progress
        As in ``leadline.quantize``.

    Raises
    ------
    InputError
        Two recipes have one name, or whatever is wrong with the network, a recipe or the frames.
    """
    progress = progress or Quiet()
    loaded, footage = load_recipes(recipes), list(footage)
    graph, samples = load_pair(network, feeds(calibration, preprocess))
    floats = [judge(predict(graph, f.frames, preprocess, threads=threads), f) for f in footage]
    runs = []
    for recipe in loaded:
        start = time.monotonic()
        quantized = pipeline.quantize(graph, recipe, samples, threads=threads, progress=progress)
        folder = Path(out) / recipe.name
        discard(out, REPORT)  # of artefacts that are no more
        quantized.save(folder)
        seconds = time.monotonic() - start
        verification = quantized.verify(threads=threads, progress=progress)
        artefact = quantized.to_qdq()
        judgements = [
            judge(predict(artefact, f.frames, preprocess, threads=threads, progress=progress), f, reference)
            for f, reference in zip(footage, floats, strict=True)
        ]
        runs.append(Run(quantized, verification, folder, seconds, judgements))
    return Comparison(Path(network), graph, footage, floats, runs, len(samples))
