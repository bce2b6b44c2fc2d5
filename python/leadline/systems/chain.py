"""Networks of which some read what others give, quantised to TFLite together."""

from __future__ import annotations

import os
import time
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

from numpy.typing import NDArray

from leadline.cache import digest
from leadline.display import table
from leadline.files import filling
from leadline.graph import Graph, Session
from leadline.pipeline import quantize
from leadline.progress import Progress, Quiet
from leadline.systems.system import System
from leadline.targets.litert import calibrate as tflite
from leadline.targets.litert import chain as litert_chain
from leadline.targets.litert.chain import Arrays, Call, Stage, called, verify_chain
from leadline.targets.litert.convert import check_installed
from leadline.targets.litert.files import Source
from leadline.targets.litert.read import read
from leadline.types import refuse

Values = dict[str, NDArray[Any]]


@dataclass(frozen=True)
class Chain:
    """Systems in the order of execution.

    Attributes
    ----------
    stages : dict of name to System
    sources : dict of name to dict of input name to value
        Where inputs come from: "stage.output", or an input of the chain.
    calls : dict of name to Call
        How networks are called that see their inputs in pieces; see `leadline.targets.litert.chain`.
    """

    stages: Mapping[str, System]
    sources: Mapping[str, Mapping[str, str]]
    calls: Mapping[str, Call] = field(default_factory=dict)

    @property
    def notes(self) -> list[str]:
        return [note for stage in self.stages.values() for note in stage.notes]

    def to_graphs(self) -> dict[str, Graph]:
        """Each network as a Graph."""
        return {name: stage.to_graph() for name, stage in self.stages.items()}


@dataclass(frozen=True)
class Made:
    """A chain of ``.tflite`` files and what it measured.

    Attributes
    ----------
    recipe : str
    measured : litert_chain.Chain
        Tensors, bytes, differences and the error of the end score.
    notes : dict of stage name to tuple of str
        What could not be quantised as the recipe says.
    seconds : float
    """

    recipe: str
    measured: litert_chain.Chain
    notes: Mapping[str, tuple[str, ...]]
    seconds: float

    @property
    def quantized(self) -> int:
        """Quantised tensors of all networks."""
        return sum(size.quantized for size in self.measured.stages.values())

    @property
    def tensors(self) -> int:
        """Tensors of real values of all networks, quantised or not."""
        return sum(size.tensors for size in self.measured.stages.values())

    @property
    def saved(self) -> float:
        """Percent that the files together are smaller than the float ones."""
        sizes = self.measured.stages.values()
        return 100 * (1 - sum(size.bytes for size in sizes) / sum(size.bytes_float for size in sizes))

    @property
    def score_error(self) -> float:
        """Relative error of the end score."""
        return max(self.measured.score.values())

    def to_dict(self) -> dict[str, Any]:
        """Plain values, ready for JSON."""
        totals = {"quantized": self.quantized, "tensors": self.tensors, "saved": self.saved}
        record = {"recipe": self.recipe, "notes": {k: list(v) for k, v in self.notes.items()}, "seconds": self.seconds}
        return record | totals | self.measured.to_dict()

    def _repr_html_(self) -> str:
        head = ("network", "quantised", "tensors", "MB", "float MB", "saved %")
        rows: list[tuple[Any, ...]] = [
            (name, size.quantized, size.tensors, size.bytes / 1e6, size.bytes_float / 1e6, size.saved)
            for name, size in self.measured.stages.items()
        ]
        return table(head, rows, f"{self.recipe}: end score off by {self.score_error:.2%}")


def to_tflite(
    graphs: Mapping[str, Graph],
    sources: Mapping[str, Mapping[str, str]],
    data: Sequence[Mapping[str, NDArray[Any]]],
    recipes: Sequence[str],
    folder: str | os.PathLike[str],
    *,
    calls: Mapping[str, Call] | None = None,
    threads: int | None = None,
    progress: Progress | None = None,
) -> list[Made]:
    """Write each network of a chain as float and as quantised ``.tflite``, and compare the two chains in LiteRT.

    Parameters
    ----------
    graphs : dict of name to Graph
        In the order of execution; see `Chain.to_graphs`.
    sources, calls : dict
        See `Chain`.
    data : sequence of dict of input name to array
        What the chain reads: calibrates each network with what reaches it in float, and is what the chains are compared
        on.
    recipes : sequence of str
        As `targets.litert.calibrate.named` takes them: "dynamic-int8", "weight-only-int8", "fp16", "w8a8", ...
    folder : path
        Gets ``<recipe>/<network>.tflite`` and ``float/<network>.tflite``.
    threads : int, optional
    progress : Progress, optional

    Returns
    -------
    list of Made
        One for each recipe, in order.

    Raises
    ------
    InputError
        No data; an input that nothing gives a value to; a recipe that LiteRT has no kernels for; or litert-torch, the
        extra "litert", is not installed.
    """
    progress = progress or Quiet()
    if not data:
        raise refuse("to_tflite", "data must hold at least one sample", "none")
    chosen = [tflite.named(recipe) for recipe in recipes]
    check_installed()
    calls = calls or {}
    feeds = _feeds(graphs, sources, calls, data, threads)
    floats: dict[str, bytes] = {}
    results = []
    with filling(folder) as out:
        (out / "float").mkdir()
        for recipe, (litert_recipe, preset, io) in zip(recipes, chosen, strict=True):
            begun, stages, notes = time.monotonic(), dict[str, Stage](), dict[str, tuple[str, ...]]()
            (out / recipe).mkdir()
            for name in progress.over(list(graphs), recipe, len(graphs)):
                quantized = quantize(graphs[name], litert_recipe, feeds[name], threads=threads)
                key = f"{name} {digest(quantized.graph)}"
                if key not in floats:  # recipes that change nothing in the graph share its conversion
                    floats[key] = tflite.convert(quantized.graph)
                plan = tflite.plan(quantized, content=floats[key], threads=threads)
                artefact = out / recipe / f"{name}.tflite"
                tflite.save(plan, artefact, preset=preset, io=io)
                (out / "float" / artefact.name).write_bytes(plan.content)
                notes[name] = plan.notes
                wires = _wires(name, sources[name], graphs, stages, plan.content)
                stages[name] = Stage(name, plan.content, artefact.read_bytes(), wires, calls.get(name))
            with progress(f"compare {recipe}"):
                measured = verify_chain(list(stages.values()), map(dict, data), threads=threads)
            results.append(Made(recipe, measured, notes, time.monotonic() - begun))
    return results


def _feeds(
    graphs: Mapping[str, Graph],
    sources: Mapping[str, Mapping[str, str]],
    calls: Mapping[str, Call],
    data: Sequence[Mapping[str, NDArray[Any]]],
    threads: int | None,
) -> dict[str, list[Values]]:
    """What reaches each network in float, of each sample, once for each time that it is called."""
    seen = [dict(sample) for sample in data]
    feeds: dict[str, list[Values]] = {}
    for name, graph in graphs.items():
        network_feeds = feeds[name] = []
        names = [value.name for value in graph.inputs]
        with Session(graph, threads=threads) as session:

            def run(
                inputs: Arrays,
                session: Session = session,
                names: list[str] = names,
                network_feeds: list[Values] = network_feeds,
            ) -> Arrays:
                network_feeds.append(dict(zip(names, inputs, strict=True)))
                return list(session.run(network_feeds[-1]).values())

            for values in seen:
                inputs = []
                for value in graph.inputs:
                    source = sources.get(name, {}).get(value.name, value.name)
                    if source not in values:
                        rule = f"input '{value.name}' of '{name}' must come from one of {sorted(values)}"
                        raise refuse("to_tflite", rule, repr(source))
                    inputs.append(values[source])
                outputs = called(calls.get(name), run, inputs)
                values.update({f"{name}.{v.name}": array for v, array in zip(graph.outputs, outputs, strict=True)})
    return feeds


def _wires(
    name: str,
    sources: Mapping[str, str],
    graphs: Mapping[str, Graph],
    stages: Mapping[str, Stage],
    content: bytes,
) -> dict[str, str]:
    """The sources of a network by the names that its ``.tflite`` has; inputs and outputs correspond in order."""
    known = {
        f"{other}.{value.name}": f"{other}.{theirs}"
        for other, stage in stages.items()
        for value, theirs in zip(graphs[other].outputs, _names(stage.reference)[1], strict=True)
    }
    inputs = [value.name for value in graphs[name].inputs]
    wanted = [sources.get(input_name, input_name) for input_name in inputs]
    return {theirs: known.get(source, source) for theirs, source in zip(_names(content)[0], wanted, strict=True)}


def _names(content: Source) -> tuple[list[str], list[str]]:
    """Of inputs and outputs, as the first signature has them, or else the tensors."""
    model = read(content)
    signature = next((s for s in model.signatures if s.subgraph == 0), None)
    if signature is not None:
        return list(dict(signature.inputs)), list(dict(signature.outputs))
    names = [tensor.name for tensor in model.main.tensors]
    return [names[i] for i in model.main.inputs], [names[i] for i in model.main.outputs]
