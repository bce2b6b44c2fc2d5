"""Runs of the networks of every rank. `OWN` holds recipes that ask every step for all that it does, beside those that
come with leadline.

    python tests/rank_runs.py [part of a name ...]      # every network by every recipe: what fails, grouped
"""

from __future__ import annotations

import itertools
import sys
import tempfile
import traceback
from collections.abc import Sequence
from typing import Any

import numpy as np
import onnx

from graph_models import FLOAT_NOISE, distance
from leadline.graph import Graph, Session
from leadline.pipeline import Quantized, quantize
from leadline.recipe import (
    WEIGHTS,
    Calibrate,
    CorrectBias,
    Equalize,
    Fold,
    Heads,
    Polish,
    Recipe,
    Rotate,
    Round,
    Rounding,
    Smooth,
)
from leadline.types import Scheme
from ranks import NETWORKS


def everything(method: Rounding, compensate: bool, kfac: bool, **schemes: Any) -> Recipe:
    steps = (
        Fold(),
        Heads(),
        Equalize(absorb_bias=False),
        Rotate(),
        Smooth(shift=True),
        Calibrate(activations="minmax"),
        Round(method=method, compensate=compensate, kfac=kfac, iterations=10),
        CorrectBias(),
    )
    return Recipe("everything", steps, **schemes)


TOKENS = Scheme(bits=8, granularity="token")
OWN = {
    "best-compensated": everything("best", True, True),
    "descent": everything("descent", False, True),
    "gptq-compensated": everything("gptq", True, False),
    "adaround": everything("adaround", False, False),
    "activations-by-channel": everything("best", True, False, activations=Scheme(8, False, granularity="axis")),
    "activations-by-token": everything("descent", True, False, activations=TOKENS),
    "weights-whole": everything("best", True, False, weights=Scheme(8, True, True)),
    "weights-in-blocks": everything("gptq", True, True, weights=Scheme(4, True, True, "block", block_size=16)),
    "polished": Recipe(
        "polished",
        (
            Fold(),
            Rotate(online=True),
            Smooth(),
            Polish(),
            Calibrate(activations="moving-average", weights="octav"),
            Round("best", True),
            CorrectBias(),
        ),
        weights=WEIGHTS,
    ),
}


def feeds(proto: onnx.ModelProto, count: int) -> list[dict[str, np.ndarray]]:
    (x,) = proto.graph.input
    shape = [dim.dim_value for dim in x.type.tensor_type.shape.dim]
    return [{"x": np.random.default_rng(i).standard_normal(shape).astype(np.float32)} for i in range(count)]


def furthest(proto: onnx.ModelProto, graph: Graph, samples: Sequence[dict[str, np.ndarray]]) -> float:
    """How far a graph is from the file as it came, relative to the spread of the outputs."""
    with Session(proto, optimize=False) as before, Session(graph, optimize=False) as after:
        return max(distance(before.run(feed), after.run(feed)) for feed in samples)


def run_through(proto: onnx.ModelProto, recipe: Recipe, folder: str, target: str = "onnxruntime") -> Quantized:
    """Quantise, verify and save."""
    samples = feeds(proto, 4)
    result = quantize(Graph.from_model(proto), recipe, samples, threads=1, target=target)
    if target == "onnxruntime":  # an emulation takes seconds
        result.verify(threads=1)
    result.save(folder)
    return result


def main(parts: list[str]) -> None:
    recipes = {name: Recipe.load(name) for name in Recipe.names()} | OWN
    failures: dict[str, list[str]] = {}
    for (name, make), recipe in itertools.product(NETWORKS.items(), recipes):
        if parts and not any(part in name for part in parts):
            continue
        proto = make()
        try:
            with tempfile.TemporaryDirectory() as folder:
                result = run_through(proto, recipes[recipe], folder)
            # the absorption of high biases holds on the samples that it saw
            absorbs = any(isinstance(step, Equalize) and step.absorb_bias for step in result.recipe.steps)
            if not absorbs and not (far := furthest(proto, result.graph, feeds(proto, 4))) < 10 * FLOAT_NOISE:
                failures.setdefault("another function", []).append(f"{name} by {recipe}: {far:.2g}")
        except Exception as error:
            at = traceback.extract_tb(error.__traceback__)[-1]
            where = f"{type(error).__name__}, {at.filename.rpartition('/')[2]}:{at.lineno}"
            failures.setdefault(where, []).append(f"{name} by {recipe}: {str(error)[:150]}")
    for where, lines in sorted(failures.items(), key=lambda item: -len(item[1])):
        print(f"{len(lines)} of {where}", *lines[:5], sep="\n    ")


if __name__ == "__main__":
    main(sys.argv[1:])
