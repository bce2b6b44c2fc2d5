"""What a run starts from: a network and samples that fit each other, a recipe that the target takes."""

from __future__ import annotations

import itertools
import os
import sys
import warnings
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import replace
from inspect import signature
from pathlib import Path
from typing import Any

import numpy as np

from leadline.cache import Cache
from leadline.data import Data, Samples, load_samples
from leadline.data.tensors import as_array
from leadline.export import qdq
from leadline.export.simulated import simulated
from leadline.graph import Graph, Session, inspect_inputs
from leadline.graph.features import network_features
from leadline.graph.spool import LARGE, size, spool
from leadline.graph.tail import Tail
from leadline.progress import Progress, Quiet
from leadline.recipe import Recipe
from leadline.rules import Rules
from leadline.steps import Record, Setup, State, adapt
from leadline.targets import Target, target_of
from leadline.types import refuse
from leadline.workers import workers_of


def prepare(
    network: Graph | str | os.PathLike[str],
    recipe: Recipe | str | os.PathLike[str],
    data: Any,
    *,
    held_out: Samples | None = None,
    threads: int | None = None,
    progress: Progress | None = None,
    cache: Cache | None = None,
    target: str | Target = "onnxruntime",
    engine: str = "local",
) -> tuple[State, Samples]:
    """The state that `quantize` applies a recipe's steps to, and the samples chosen from `data`. See there."""
    progress = progress or Quiet()
    target, recipe = target_of(target).settle(recipe)
    data = Data.of(data).defaulting(recipe.data)
    graph, pool = _opened(network, data)
    target.check_network(graph, "quantize")
    samples = _chosen(graph, pool, data, threads, progress)
    samples = samples.kept()
    calibration, kept_out = (samples, held_out.kept()) if held_out is not None else samples.split()
    if held_out is None and len(samples) == 1:
        warnings.warn("one sample: the artefact is checked on what it was calibrated on", stacklevel=3)
    rules, is_given = target.rules, held_out is not None
    workers = workers_of(engine, threads)
    setup = Setup(recipe, calibration, kept_out, progress, simulate, threads, rules, cache, workers, is_given)
    state = State(setup, graph.copy())
    spool(state.graph)
    if graph.tail is not None:
        state.log.append(Record("load", ", ".join(graph.tail.written), _kept_behind(graph.tail, target.rules)))
    state.log += [Record.of("load", note) for note in graph.notes]
    adapt(state)
    return state, samples


def _kept_behind(tail: Tail, rules: Rules) -> str:
    more = f" and {len(tail.causes) - 1} more" if len(tail.causes) > 1 else ""
    what = f"{len(tail.nodes)} operators behind the quantised part stay as they are, in float"
    where = f"; {rules.name} leaves them to the CPU" if rules.integers_only else ""
    return f"{what}: shapes depend on the data from {tail.causes[0]}{more} on{where}"


def load_pair(
    network: Graph | str | os.PathLike[str], data: Any, threads: int | None = None, progress: Progress | None = None
) -> tuple[Graph, Samples]:
    """A network and samples that fit each other: the samples fix the shapes that the file leaves open."""
    data = Data.of(data)
    graph, pool = _opened(network, data)
    return graph, _chosen(graph, pool, data, threads, progress)


def _opened(network: Graph | str | os.PathLike[str], data: Data) -> tuple[Graph, Samples]:
    """The network, and the samples to choose from."""
    if isinstance(network, Graph):
        return network, load_samples(data.pool, network)
    rule = "network must be a Graph, the path of an ONNX file, or a PyTorch module"
    if not isinstance(network, str | os.PathLike):
        raise refuse("quantize", rule, f"a {type(network).__name__}")
    if Path(network).suffix in (".pt", ".pt2", ".pth"):
        raise refuse("quantize", f"{rule}: load the file in PyTorch first", f"'{network}'")
    pool = load_samples(data.pool, inspect_inputs(Path(network)))
    return Graph.load(Path(network), next(iter(pool))), pool


def _chosen(graph: Graph, pool: Samples, data: Data, threads: int | None, progress: Progress | None) -> Samples:
    if isinstance(data.features, str):
        data = replace(data, features=network_features(graph, data.features, threads))
    return data.chosen(pool, progress)


def captured(network: Any, data: Any) -> tuple[Any, Any]:
    """A torch module as the Graph that its first sample captures, and the data; anything else as it is."""
    torch = sys.modules.get("torch")  # who has a module has imported torch
    if torch is None or not isinstance(network, torch.nn.Module):
        return network, data
    from leadline.torch import to_graph

    first, data = _first_call(network, Data.of(data))
    tensors = {name: torch.from_numpy(np.ascontiguousarray(array)) for name, array in first.items()}
    return to_graph(network, tensors), data


def _first_call(module: Any, data: Data) -> tuple[dict[str, Any], Data]:
    """What a module is called with for one sample, by parameter; and the data, none of it lost."""
    source, parameter = data.source, next(iter(signature(module.forward).parameters), "input")
    paths = source if isinstance(source, list | tuple) else [source]
    if paths and all(isinstance(path, str | os.PathLike) for path in paths):
        source = load_samples(data.pool, [(parameter, np.float32, (1, None, None, None))])
    if isinstance(source, Samples):
        return dict(next(iter(source))), data
    if isinstance(source, Iterator):
        entry = next(source, None)
        data = replace(data, source=itertools.chain([entry], source))
    elif isinstance(source, Mapping) or hasattr(source, "__array__") or hasattr(source, "__dlpack__"):
        entry = source
    else:
        entry = next(iter(source), None)
    if entry is None:
        raise refuse("quantize", "data must hold at least one sample", f"an empty {type(source).__name__}")
    arrays = entry if isinstance(entry, Mapping) else {parameter: entry}
    call = {name: as_array(value, f"the data, {name}")[:1] for name, value in arrays.items()}
    return {name: array.astype(np.float32) if array.dtype.kind == "f" else array for name, array in call.items()}, data


def simulate(state: State, outputs: Sequence[str]) -> Session:
    """The artefact as a state has it, unfused, returning these tensors."""
    graph = state.graph.front()
    if size(graph) > LARGE:  # codes: values would be one float file more
        network = qdq.placed(graph, state.grids, state.codes)
        return Session(network, outputs=outputs, optimize=False, threads=state.setup.threads)
    network = simulated(graph, state.grids, state.codes)
    return Session(network, outputs=outputs, integers=False, threads=state.setup.threads)
