"""The one verb: quantize(graph, recipe, data) -> Quantized."""

from __future__ import annotations

import os
from collections.abc import Callable
from pathlib import Path
from typing import Any

from leadline.cache import Cache
from leadline.data import Preprocess, Samples
from leadline.data.samples import Feed
from leadline.export import qdq
from leadline.graph import Graph
from leadline.original import SAMPLES, Original, Proof
from leadline.preparation import prepare
from leadline.progress import Progress
from leadline.quantized import Quantized
from leadline.recipe import Recipe
from leadline.steps import Record, apply, recentre
from leadline.steps.batch import prove_batch
from leadline.targets import Target, target_of
from leadline.types import refuse

__all__ = ["Quantized", "quantize"]


def quantize(
    graph: Graph | str | os.PathLike[str],
    recipe: Recipe | str | os.PathLike[str],
    data: Any,
    *,
    held_out: Samples | None = None,
    preprocess: Preprocess | None = None,
    samples: int | None = None,
    choice: str = "random",
    features: str | Callable[[Feed], Any] | None = None,
    seed: int = 0,
    strict: bool = False,
    threads: int | None = None,
    progress: Progress | None = None,
    cache: Cache | None = None,
    target: str | Target = "onnxruntime",
    original: Original | None = None,
) -> Quantized:
    """Quantise a network by a recipe.

    Parameters
    ----------
    graph : Graph or path
        A float network. It is not changed.
    recipe : Recipe, name or path
        See ``Recipe.names()``, or a TOML file.
    data : Samples or anything that ``leadline.data.load`` takes
        Pictures, videos, arrays, or any iterable of arrays or torch tensors.
    held_out : Samples, optional
        What decides every gate. Default: a quarter of `data`, which calibration then does not see; of less than
        fourteen samples, its ranges come from these, too, once all is decided, and the log says so.
    preprocess : Preprocess, optional
        For pictures. Default: the recipe's [data] table.
    samples : int, optional
        Use at most this many of `data`, chosen by `choice` and `seed`.
    choice : str
        How: "random", "folder", "brightness", "farthest" or "diverse"; see ``leadline.data.choose``. All but the first
        look at the whole of `data` (of a video: 32 frames, evenly spread; an iterator is run to its end).
    features : str or callable, optional
        What "farthest" and "diverse" compare: a tensor of the network by name (`graph.features`), or any
        function from a feed to a vector. Default: the pictures themselves.
    seed : int
        For the choice of samples and the split.
    strict : bool
        Refuse unreadable pictures instead of skipping them.
    threads : int, optional
        For the cores and onnxruntime. Default: all.
    progress : Progress, optional
        ``leadline.progress.Bars()`` shows bars with time left. Default: silent.
    cache : Cache, optional
        ``leadline.cache.Cache(folder)``: what runs have in common (the same steps on the same network and samples, what
        tensors held) is computed once. The result is the same.
    target : name or Target
        What the artefact is for: "onnxruntime", "hexagon", "litert" or "executorch"; with options as
        ``leadline.targets.litert.target.LiteRT(preset="npu")``. For "litert" `graph` may be a float ``.tflite``.
    original : Original, optional
        What every step, and the artefact, is judged by. Default: `graph`. For a Graph that came from a file: that file.

    Raises
    ------
    InputError
        Whatever is wrong with the network, the recipe or the data, named.
    """
    chosen, settled = target_of(target).settle(recipe)
    chosen.check_installed("quantize", graph)
    if isinstance(graph, (str, os.PathLike)) and chosen.opens(Path(graph)):
        only = {"features": features, "held_out": held_out, "cache": cache}
        refused = [name for name, value in only.items() if value is not None] + ["choice"] * (choice != "random")
        if refused:
            raise refuse("quantize", f"{refused[0]} needs the network as ONNX", f"'{graph}'")
        options = {"preprocess": preprocess, "samples": samples, "seed": seed, "strict": strict, "threads": threads}
        found = chosen.quantize(Path(graph), settled, data, progress=progress, **options)
        return Quantized(recipe=settled, target=chosen, **found)
    state, given = prepare(
        graph,
        settled,
        data,
        held_out=held_out,
        preprocess=preprocess,
        samples=samples,
        choice=choice,
        features=features,
        seed=seed,
        strict=strict,
        threads=threads,
        progress=progress,
        cache=cache,
        target=chosen,
    )
    original = original or Original(graph)
    proof = Proof(original, state.graph, state.setup.held_out, threads)
    proof.hold(state.graph, "loading")
    if proof.note:
        state.log.append(Record("load", state.graph.name, proof.note, kept=False))
    for step in state.recipe.steps:
        apply(step, state)
        proof.hold(state.graph, f"step {step.step}", 1, state.apart, state.shifted)
    recentre(state)
    proof.hold(state.graph, "all steps", SAMPLES, state.apart, state.shifted)
    if not state.grids:
        received = f"recipe {state.recipe.name}, no grids"
        raise refuse("quantize", "a recipe must calibrate and have a layer to quantise", received)
    prove_batch(
        state,
        lambda free: (free.to_model(), qdq.to_qdq(free, state.grids, state.codes)),
        lambda feed: original.run(state.graph, feed, threads),
    )
    return Quantized(
        state.graph,
        state.grids,
        state.codes,
        state.recipe,
        state.log,
        held_out=state.setup.held_out,
        histograms=state.histograms,
        calibrated=len(state.setup.calibration),
        target=chosen,
        skipped=given.skipped,
        original=original,
    )
