"""What a run starts from: a network and samples that fit each other, a recipe that the target takes."""

from __future__ import annotations

import os
import warnings
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

from leadline.cache import Cache
from leadline.data import Preprocess, Samples, choose, load
from leadline.data.choice import check_method
from leadline.data.samples import Feed
from leadline.export import qdq
from leadline.graph import Graph, Session, inspect_inputs
from leadline.graph.features import network_features
from leadline.graph.tail import Tail
from leadline.profiles import Profile
from leadline.progress import Progress, Quiet
from leadline.recipe import Recipe
from leadline.steps import Record, Setup, State, adapt
from leadline.targets import Target, target_of
from leadline.types import refuse


def prepare(
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
) -> tuple[State, Samples]:
    """The state that `quantize` applies a recipe's steps to, and the samples chosen from `data`. See there."""
    progress = progress or Quiet()
    target, recipe = target_of(target).settle(recipe)
    if preprocess is None and recipe.data:
        preprocess = Preprocess.from_dict(recipe.data)
    check_method("quantize", choice, features)
    if choice != "random" and (not isinstance(samples, int) or samples < 1):
        raise refuse("quantize", f"choice {choice!r} needs samples, at least 1", f"samples={samples!r}")
    network, given = load_pair(graph, data, preprocess, samples if choice == "random" else None, seed, strict)
    target.check_network(network, "quantize")
    if samples is not None and samples < len(given):
        given = choose(
            given,
            samples,
            choice,
            features=network_features(network, features, threads) if isinstance(features, str) else features,
            seed=seed,
            progress=progress,
        )
    calibration, kept_out = (given, held_out) if held_out is not None else given.split()
    if held_out is None and len(given) == 1:
        warnings.warn("one sample: the artefact is checked on what it was calibrated on", stacklevel=3)
    rules, is_given = target.rules, held_out is not None
    setup = Setup(recipe, calibration, kept_out, progress, simulate, threads, rules, cache, is_given)
    state = State(setup, network.copy())
    if network.tail is not None:
        state.log.append(Record("load", ", ".join(network.tail.written), _kept_behind(network.tail, target.rules)))
    state.log += [Record.of("load", note) for note in network.notes]
    adapt(state)
    return state, given


def _kept_behind(tail: Tail, profile: Profile) -> str:
    more = f" and {len(tail.causes) - 1} more" if len(tail.causes) > 1 else ""
    what = f"{len(tail.nodes)} operators behind the quantised part stay as they are, in float"
    where = f"; {profile.name} leaves them to the CPU" if profile.integers_only else ""
    return f"{what}: shapes depend on the data from {tail.causes[0]}{more} on{where}"


def load_pair(
    graph: Graph | str | os.PathLike[str],
    data: Any,
    preprocess: Preprocess | None,
    samples: int | None,
    seed: int,
    strict: bool,
) -> tuple[Graph, Samples]:
    """A network and samples that fit each other: the samples fix the shapes that the file leaves open."""
    if isinstance(graph, Graph):
        return graph, load(data, graph.inputs, preprocess, samples, seed, strict)
    if not isinstance(graph, str | os.PathLike):
        rule = "graph must be a Graph, or the path of an ONNX file (of a PyTorch module: leadline.torch.to_graph)"
        raise refuse("quantize", rule, f"a {type(graph).__name__}")
    if Path(graph).suffix in (".pt", ".pt2", ".pth"):
        rule = "graph must be an ONNX file (of a PyTorch module: leadline.torch.to_graph, then Graph.save)"
        raise refuse("quantize", rule, f"'{graph}'")
    chosen = load(data, inspect_inputs(Path(graph)), preprocess, samples, seed, strict)
    return Graph.load(Path(graph), next(iter(chosen))), chosen


def simulate(state: State, outputs: Sequence[str]) -> Session:
    """The artefact as a state has it, unfused, returning these tensors."""
    model = qdq.to_qdq(state.graph.front(), state.grids, state.codes)
    return Session(model, outputs=outputs, optimize=False, threads=state.setup.threads)
