"""A quantised ``.tflite`` in the real interpreter, with XNNPACK and with the reference kernels."""

from __future__ import annotations

import os
import time
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
from numpy.typing import NDArray
from rich.filesize import decimal

from leadline.agreement import DeviceAgreement
from leadline.graph import Graph
from leadline.original import Original, Running
from leadline.sqnr import Sqnr
from leadline.targets.litert.expected import expected
from leadline.targets.litert.files import Size, compare, content_of, size_of
from leadline.targets.litert.kernels import Plan
from leadline.targets.litert.run import Interpreter, Kernels
from leadline.targets.target import Arrays, Device
from leadline.types import Grid, refuse

if TYPE_CHECKING:
    from leadline.scores import OutputScore


@dataclass(frozen=True)
class Measured:
    """What one kind of kernels gives of an output: SQNR in dB against the float network, and the distance from the
    simulation."""

    sqnr: float
    agreement: DeviceAgreement


@dataclass(frozen=True)
class InLiteRT:
    """What LiteRT says of a ``.tflite``.

    Attributes
    ----------
    partitions : int
        Parts that XNNPACK has taken over: 1 is all, or all in one piece.
    milliseconds : dict of kernels to float
        Least time of a run, threads as given.
    others : dict of kernels to dict of output name to Measured
        With kernels other than the first.
    size : Size or None
        None where the float network is not at hand as a ``.tflite``.
    differing : tuple of str
        Tensors whose codes or scales in the file are not those that were planned. Empty where nothing was.
    notes : tuple of str
        What is not as the recipe says, or was chosen.
    """

    partitions: int
    milliseconds: Mapping[str, float]
    others: Mapping[str, Mapping[str, Measured]]
    size: Size | None
    differing: tuple[str, ...]
    notes: tuple[str, ...] = ()

    def to_dict(self) -> dict[str, Any]:
        others = {
            kernels: {name: vars(score) | {"agreement": vars(score.agreement)} for name, score in measured.items()}
            for kernels, measured in self.others.items()
        }
        size = None if self.size is None else vars(self.size)
        listed = {"differing": list(self.differing), "notes": list(self.notes)}
        return vars(self) | {"milliseconds": dict(self.milliseconds), "others": others, "size": size} | listed

    def lines(self) -> list[str]:
        times = ", ".join(f"{name} {ms:.3g} ms" for name, ms in self.milliseconds.items())
        lines = [f"{times}; XNNPACK in {self.partitions} parts"]
        if self.size is not None:
            size = self.size
            shrunk = f"{decimal(size.bytes)}, float {decimal(size.bytes_float)}: {size.saved:.1f} % saved"
            lines.append(f"{size.quantized} of {size.tensors} tensors quantised; {shrunk}")
            if size.float_operators:
                kinds = ", ".join(f"{kind} {count}" for kind, count in size.float_operators.items())
                lines.append(f"in float: {kinds}")
        for kernels, measured in self.others.items():
            for name, score in measured.items():
                within = f"{score.agreement.within_one:.1%} within a step of the simulation"
                lines.append(f"{name} with {kernels} kernels: {score.sqnr:.1f} dB, {within}")
        lines += [f"note: {note}" for note in self.notes]
        return lines + ([f"not as planned: {', '.join(self.differing)}"] if self.differing else [])


class InInterpreter(Device):
    """A ``.tflite`` in LiteRT. Inputs and outputs correspond to the float network's in their order.

    The simulation is the file itself in float arithmetic: `leadline.targets.litert.expected.expected`.

    Parameters
    ----------
    content : bytes
    graph : Graph
        Of the float network: its ends.
    kernels : sequence of {"xnnpack", "plain", "reference"}
    plan : Plan, optional
        What was to be written: integers and scales in the file are compared with it.
    reference : bytes, optional
        The float ``.tflite``.
    threads : int, optional
    """

    judged = "LiteRT"

    def __init__(
        self,
        content: bytes,
        graph: Graph,
        kernels: Sequence[Kernels],
        plan: Plan | None = None,
        reference: bytes | None = None,
        threads: int | None = None,
    ) -> None:
        if not kernels:
            raise refuse("verify", "kernels must name at least one", "none")
        self._content, self._plan, self._reference, self._threads = content, plan, reference, threads
        self._runners = {name: Interpreter(content, name, threads) for name in kernels}
        self._first = next(iter(self._runners.values()))
        self._names = [value.name for value in graph.outputs]
        _check_shapes("inputs", graph.inputs, self._first.inputs)
        _check_shapes("outputs", graph.outputs, self._first.outputs)
        self._simulated = Interpreter(expected(content), "plain", threads)
        self.grids = _grids(self._first, self._names)
        self._least: dict[str, float] = {kind: np.inf for kind in kernels}
        self._sqnr = {str(kind): {name: Sqnr() for name in self._names} for kind in kernels[1:]}
        self._agreement = {str(kind): dict.fromkeys(self._names, DeviceAgreement()) for kind in kernels[1:]}
        self._seen: dict[str, Arrays] = {}

    def __exit__(self, *_: object) -> None:
        self._runners.clear()

    def simulate(self, feed: Mapping[str, NDArray[Any]]) -> Arrays:
        return self._named(self._simulated, feed)

    def run(self, feed: Mapping[str, NDArray[Any]]) -> Arrays:
        outputs: dict[str, Arrays] = {}
        for kind, runner in self._runners.items():
            start = time.perf_counter()
            outputs[kind] = self._named(runner, feed)
            self._least[kind] = min(self._least[kind], 1e3 * (time.perf_counter() - start))
        first, *others = outputs
        self._seen = {kind: outputs[kind] for kind in others}
        return outputs[first]

    def compare(self, exact: Mapping[str, NDArray[Any]], simulated: Mapping[str, NDArray[Any]]) -> None:
        for kind, arrays in self._seen.items():
            for name, array in arrays.items():
                grid = self.grids.get(name)
                step = float(grid.scale.min()) if grid is not None else float(np.std(exact[name])) / 256
                self._sqnr[kind][name].update(exact[name], array)
                self._agreement[kind][name] = self._agreement[kind][name].updated(simulated[name], array, step)

    def facts(self, outputs: Sequence[OutputScore]) -> InLiteRT:
        xnnpack = self._runners.get("xnnpack") or Interpreter(self._content, "xnnpack", self._threads)
        size = None if self._reference is None else size_of(self._first.model, Interpreter(self._reference).model)
        differing = () if self._plan is None else compare(self._first.model, self._plan)
        others = {
            kind: {name: Measured(sqnr.db, self._agreement[kind][name]) for name, sqnr in scores.items()}
            for kind, scores in self._sqnr.items()
        }
        notes = () if self._plan is None else self._plan.notes
        return InLiteRT(xnnpack.partitions, dict(self._least), others, size, differing, notes)

    def _named(self, runner: Interpreter, feed: Mapping[str, NDArray[Any]]) -> Arrays:
        outputs = runner.run_real(dict(zip(runner.inputs, feed.values(), strict=True)))
        return dict(zip(self._names, outputs.values(), strict=True))


def _check_shapes(kind: str, ours: Sequence[Any], theirs: Mapping[str, Any]) -> None:
    wanted, received = [value.shape for value in ours], [value.shape for value in theirs.values()]
    if wanted != received:
        raise refuse("verify", f"the artefact must have {kind} of the shapes {wanted}", received)


def _grids(runner: Interpreter, names: Sequence[str]) -> dict[str, Grid]:
    """Of the outputs that have one; behind a DEQUANTIZE that of its input."""
    graph = runner.model.main
    producers, grids = graph.producers(), {}
    for name, index in zip(names, runner.output_indices, strict=True):
        tensor, producer = graph.tensors[index], producers.get(index)
        if producer is not None and producer.type == "DEQUANTIZE":
            tensor = graph.tensors[producer.inputs[0]]
        if tensor.grid is not None:
            grids[name] = tensor.grid
    return grids


class FloatTflite(Original):
    """A float ``.tflite`` as it came, which verification judges by."""

    def __init__(self, source: str | os.PathLike[str] | bytes, threads: int | None = None) -> None:
        self.source = source if isinstance(source, bytes) else Path(source)
        self.content = content_of(source)
        self.name = "the float .tflite" if isinstance(source, bytes) else f"'{Path(source).name}'"
        self._runner = Interpreter(self.content, "plain", threads)
        inputs, outputs = (list(part.values()) for part in (self._runner.inputs, self._runner.outputs))
        known = {value.name: value for value in (*inputs, *outputs)}
        self.graph = Graph([], {}, inputs, outputs, known, self.name)

    def __str__(self) -> str:
        return self.name

    def session(self, graph: Graph, threads: int | None = None, inner: bool = False) -> Any:
        return Running(self._runner.run)
