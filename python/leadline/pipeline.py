"""The one verb: quantize(network, recipe, data) -> Quantized."""

from __future__ import annotations

import os
from collections.abc import Mapping, Sequence
from difflib import get_close_matches
from pathlib import Path
from typing import TYPE_CHECKING, Any

from leadline.cache import Cache
from leadline.data import Data, Samples
from leadline.export.simulated import simulated
from leadline.graph import Graph
from leadline.original import SAMPLES, Original, Proof
from leadline.preparation import captured, prepare
from leadline.progress import Progress
from leadline.quantized import Quantized
from leadline.recipe import Override, Recipe
from leadline.steps import Record, apply, recentre
from leadline.steps.batch import prove_batch
from leadline.targets import Target, target_of
from leadline.types import refuse

if TYPE_CHECKING:
    from torch import nn

__all__ = ["Quantized", "quantize"]


def quantize(
    network: Graph | str | os.PathLike[str] | nn.Module,
    recipe: Recipe | str | os.PathLike[str],
    data: Any,
    *,
    target: str | Target = "onnxruntime",
    overrides: Sequence[Override | Mapping[str, Any]] = (),
    exclude: str | Sequence[str] = (),
    held_out: Samples | None = None,
    original: Original | None = None,
    threads: int | None = None,
    progress: Progress | None = None,
    cache: Cache | None = None,
    engine: str = "local",
) -> Quantized:
    """Quantise a network by a recipe.

    Parameters
    ----------
    network : Graph, path, or torch module
        A float network. It is not changed. A module becomes a Graph by the first sample, as `leadline.torch.to_graph`
        makes it; of pictures the preprocessing states the size.
    recipe : Recipe, name or path
        See ``Recipe.names()``, or a TOML file.
    data : Data, or the source of one
        Pictures, videos, arrays, or any iterable of arrays or torch tensors; with options as
        ``leadline.Data("pictures/", num_samples=100)``.
    target : name or Target
        What the artefact is for: one of `leadline.targets.TARGETS`; with options as
        ``leadline.targets.litert.target.LiteRT(preset="npu")``. For "litert" `network` may be a float ``.tflite``.
    overrides : sequence of Override, or of tables as a recipe's [[overrides]]
        For this call; they go before the recipe's own.
    exclude : str or sequence of str
        Layers and tensors that stay float, by names or patterns (``*``, ``?``, ``[]``) of layers, of what they write
        or of any activation. Goes before all overrides. A layer that is excluded has its weight and its output in
        float.
    held_out : Samples, optional
        What decides every gate. Default: a quarter of `data`, which calibration then does not see; of less than
        fourteen samples, its ranges come from these, too, once all is decided, and the log says so.
    original : Original, optional
        What every step, and the artefact, is judged by. Default: `network`. For a Graph that came from a file: that
        file.
    threads : int, optional
        For the cores and onnxruntime. Default: all.
    progress : Progress, optional
        ``leadline.progress.Bars()`` shows bars with time left. Default: silent.
    cache : Cache, optional
        ``leadline.cache.Cache(folder)``: what runs have in common (the same steps on the same network and samples, what
        tensors held) is computed once. The result is the same.
    engine : {"local", "ray"}
        Who chooses the codes of layers that do not wait for each other: this process, or a Ray cluster's machines
        (`pip install 'leadline[ray]'`; the one that RAY_ADDRESS names, or that runs here). The result is the same.

    Raises
    ------
    InputError
        Whatever is wrong with the network, the recipe or the data, named; and what is excluded and not there.
    """
    chosen, settled = target_of(target).settle(recipe)
    exclude = (exclude,) if isinstance(exclude, str) else tuple(exclude)
    if overrides or exclude:
        chosen, settled = chosen.settle(settled.overridden(overrides, exclude))
    data = Data.of(data)
    chosen.check_installed("quantize", network)
    if isinstance(network, (str, os.PathLike)) and chosen.opens(Path(network)):
        only = {"held_out": held_out, "cache": cache, "exclude": exclude or None}
        refused = [name for name, value in only.items() if value is not None]
        refused += ["engine"] if engine != "local" else []
        if refused:
            raise refuse("quantize", f"{refused[0]} needs the network as ONNX", f"'{network}'")
        made = chosen.quantize(Path(network), settled, data, threads=threads, progress=progress)
        return Quantized(recipe=settled, target=chosen, **made)
    network, data = captured(network, data.defaulting(settled.data))
    state, samples = prepare(
        network,
        settled,
        data,
        held_out=held_out,
        threads=threads,
        progress=progress,
        cache=cache,
        target=chosen,
        engine=engine,
    )
    _check_excluded(exclude, state.graph)
    original = original or Original(network)
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
        lambda free: simulated(free, state.grids, state.codes).to_model(),
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
        skipped=samples.skipped,
        original=original,
    )


def _check_excluded(exclude: Sequence[str], graph: Graph) -> None:
    """Refuses a pattern that nothing bears."""
    names = {node.name for node in graph.nodes} | set(graph.values)
    for pattern in exclude:
        if not any(Override(pattern).matches(name) for name in names):
            close = get_close_matches(pattern, names, 3)
            rule = f"exclude must name a layer or an activation of {graph.name}"
            raise refuse("quantize", rule + (f", such as {', '.join(close)}" if close else ""), repr(pattern))
