"""Target LiteRT: a quantised ``.tflite`` in the real interpreter, with XNNPACK and with the reference kernels."""

from __future__ import annotations

import os
import time
from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from leadline.collapse import Comparison, reasons_of
from leadline.data import load
from leadline.display import table
from leadline.graph import Graph, Session
from leadline.sqnr import Sqnr
from leadline.targets.litert.expected import expected
from leadline.targets.litert.kernels import Plan, to_int8
from leadline.targets.litert.read import Operator, Subgraph, Tensor, Tflite, read
from leadline.targets.litert.run import Interpreter, Kernels
from leadline.targets.onnxruntime.kernels import Agreement
from leadline.types import Grid, refuse

KERNELS: tuple[Kernels, ...] = ("xnnpack", "reference")
_CONVERSIONS = ("QUANTIZE", "DEQUANTIZE")

Source = str | os.PathLike[str] | bytes
"""A ``.tflite``: its path, or its bytes."""


@dataclass(frozen=True)
class OutputScore:
    """One output over all samples.

    Attributes
    ----------
    name : str
        As the reference calls it.
    sqnr : dict of kernels to float
        dB against the float network.
    simulated : float
        dB of leadline's simulation (`leadline.targets.litert.expected`) against the float network.
    agreement : dict of kernels to Agreement
        Distance from the simulation, in steps of the output's grid (of a float output: 1/256 of its standard
        deviation).
    absolute, relative : float
        Mean absolute difference from the float network, with the first kernels; and that over the mean magnitude of
        the float output.
    """

    name: str
    sqnr: Mapping[str, float]
    simulated: float
    agreement: Mapping[str, Agreement]
    absolute: float
    relative: float


@dataclass(frozen=True)
class Size:
    """What quantisation did to the file.

    Attributes
    ----------
    tensors, quantized : int
        Tensors of real values (weights and activations), and how many are integers with a grid. Biases count.
    bytes, bytes_float : int
    saved : float
        Percent that the file is smaller than the float one.
    float_operators : dict of operator type to int
        Operators that compute in float. With integer weights they are not: "dynamic" ones quantise as they go.
    """

    tensors: int
    quantized: int
    bytes: int
    bytes_float: int
    saved: float
    float_operators: Mapping[str, int]


@dataclass(frozen=True)
class Verification:
    """What was measured on the samples.

    Attributes
    ----------
    samples : int
    outputs : list of OutputScore
    size : Size or None
        None where the float network is not a ``.tflite``.
    partitions : int
        Parts that XNNPACK has taken over: 1 is all, or all in one piece.
    milliseconds : dict of kernels to float
        Least time of a run, threads as given.
    differing : tuple of str
        Tensors whose codes or scales in the file are not the plan's. Empty without a plan.
    collapse : list of str
        Outputs that are lost, and why, with the first kernels: each judged as a whole. See `leadline.collapse`.
    """

    samples: int
    outputs: list[OutputScore]
    size: Size | None
    partitions: int
    milliseconds: Mapping[str, float]
    differing: tuple[str, ...] = ()
    collapse: list[str] = field(default_factory=list)

    def _repr_html_(self) -> str:
        names = list(self.milliseconds)
        head = ("output", *(f"{name} dB" for name in names), "simulated dB", "mean difference")
        rows = [(o.name, *(o.sqnr[name] for name in names), o.simulated, o.absolute) for o in self.outputs]
        return table(head, rows, f"{self.partitions} partitions of XNNPACK")

    def to_dict(self) -> dict[str, Any]:
        """Plain values, ready for JSON."""
        return {
            "samples": self.samples,
            "outputs": [
                vars(o) | {"agreement": {kernels: vars(found) for kernels, found in o.agreement.items()}}
                for o in self.outputs
            ],
            "collapse": self.collapse,
            "size": None if self.size is None else vars(self.size),
            "partitions": self.partitions,
            "milliseconds": dict(self.milliseconds),
            "differing": list(self.differing),
        }


def verify(
    reference: Graph | Source,
    artefact: Source,
    data: Any,
    *,
    plan: Plan | None = None,
    kernels: Sequence[Kernels] = KERNELS,
    threads: int | None = None,
) -> Verification:
    """Run a quantised ``.tflite`` beside the float network, and beside leadline's simulation of it.

    The simulation is the file itself in float arithmetic: `leadline.targets.litert.expected.expected`.

    Parameters
    ----------
    reference : Graph, path or bytes
        The float network, as a graph or a ``.tflite``. Inputs and
        outputs correspond in order, the samples' too.
    artefact : path or bytes
    data : Samples or anything that ``leadline.data.load`` takes
    plan : Plan, optional
        What was to be written: integers and scales read back from the file are compared with it.
    kernels : sequence of {"xnnpack", "plain", "reference"}
        The first are those that differences are given for. Reference kernels may take a hundred times as long.
    threads : int, optional

    Raises
    ------
    InputError
        A file is no ``.tflite`` or LiteRT does not run it; inputs or outputs do not correspond; or the data do not fit.
    """
    content = content_of(artefact)
    runners = {name: Interpreter(content, name, threads) for name in kernels}
    if not runners:
        raise refuse("verify", "kernels must name at least one", "none")
    given = reference if isinstance(reference, Graph) else Interpreter(content_of(reference), "plain", threads)
    first = next(iter(runners.values()))
    inputs = given.inputs if isinstance(given, Graph) else list(given.inputs.values())
    names = [value.name for value in given.outputs] if isinstance(given, Graph) else list(given.outputs)
    _check_shapes(given, first, inputs, names)
    samples = data if hasattr(data, "labels") else load(data, inputs)
    run = _Run(names, list(runners), _steps(first, names))
    session = Session(given, optimize=False, threads=threads) if isinstance(given, Graph) else None
    simulated = Interpreter(expected(content), "plain", threads)
    for feed in samples:
        arrays = list(feed.values())  # of one network's names; inputs correspond in order
        if session is not None:
            wanted = list(session.run(dict(zip((v.name for v in inputs), arrays, strict=True))).values())
        else:
            assert isinstance(given, Interpreter)
            wanted = list(given.run(dict(zip(given.inputs, arrays, strict=True))).values())
        seen = list(simulated.run_real(dict(zip(simulated.inputs, arrays, strict=True))).values())
        for name, runner in runners.items():
            start = time.perf_counter()
            got = runner.run_real(dict(zip(runner.inputs, arrays, strict=True)))
            run.update(name, time.perf_counter() - start, wanted, list(got.values()), seen)
    if session is not None:
        session.close()
    size = None if isinstance(given, Graph) else size_of(first.model, given.model)
    xnnpack = runners.get("xnnpack") or Interpreter(content, "xnnpack", threads)
    differing = () if plan is None else compare(first.model, plan)
    return Verification(len(samples), run.scores(), size, xnnpack.partitions, run.least, differing, run.collapse())


def content_of(source: Source) -> bytes:
    if isinstance(source, bytes):
        return source
    read(source)  # says what is wrong with the file by its name
    return Path(source).read_bytes()


def _check_shapes(given: Graph | Interpreter, artefact: Interpreter, inputs: Sequence[Any], names: list[str]) -> None:
    outputs = given.outputs if isinstance(given, Graph) else list(given.outputs.values())
    for kind, ours, theirs in (("inputs", inputs, artefact.inputs), ("outputs", outputs, artefact.outputs)):
        wanted, found = [v.shape for v in ours], [v.shape for v in theirs.values()]
        if wanted != found:
            raise refuse("verify", f"the artefact must have {kind} of the shapes {wanted}", found)


def _steps(runner: Interpreter, names: Sequence[str]) -> list[float]:
    """The step of each output's grid; behind a DEQUANTIZE that of its input; 0 for a float output."""
    graph = runner.model.main
    producers, steps = graph.producers(), []
    for index in runner.output_indices:
        tensor = graph.tensors[index]
        producer = producers.get(index)
        if producer is not None and producer.type == "DEQUANTIZE":
            tensor = graph.tensors[producer.inputs[0]]
        steps.append(0.0 if tensor.scale is None else float(tensor.scale.min()))
    return steps


class _Run:
    """Sums over samples."""

    def __init__(self, names: list[str], kernels: list[str], steps: list[float]) -> None:
        self._names, self._kernels, self._steps = names, kernels, steps
        self._scores = {name: {kind: Sqnr() for kind in kernels} for name in names}
        self._simulated = {name: Sqnr() for name in names}
        self._agreement = {name: {kind: Agreement() for kind in kernels} for name in names}
        self._whole = {name: Comparison(0, whole=True) for name in names}
        self._sums = {name: np.zeros(3) for name in names}  # difference, magnitude, elements
        self.least: dict[str, float] = {}

    def update(
        self,
        kernels: str,
        seconds: float,
        wanted: Sequence[NDArray[Any]],
        got: Sequence[NDArray[Any]],
        simulated: Sequence[NDArray[Any]],
    ) -> None:
        self.least[kernels] = min(self.least.get(kernels, np.inf), 1e3 * seconds)
        for i, (name, exact, array) in enumerate(zip(self._names, wanted, got, strict=True)):
            self._scores[name][kernels].update(exact, array)
            if kernels == self._kernels[0]:
                difference = np.abs(np.asarray(array, np.float64) - exact)
                self._sums[name] += difference.sum(), np.abs(exact, dtype=np.float64).sum(), array.size
                self._simulated[name].update(exact, simulated[i])
                self._whole[name].update(exact, array)
            unit = self._steps[i] or float(np.std(exact)) / 256
            old = self._agreement[name][kernels]
            self._agreement[name][kernels] = old.updated(simulated[i], array, unit)

    def collapse(self) -> list[str]:
        return [line for name, comparison in self._whole.items() for line in reasons_of(name, comparison)]

    def scores(self) -> list[OutputScore]:
        scores = []
        for name in self._names:
            difference, magnitude, count = (float(part) for part in self._sums[name])
            scores.append(
                OutputScore(
                    name,
                    {kind: score.db for kind, score in self._scores[name].items()},
                    self._simulated[name].db,
                    self._agreement[name],
                    difference / max(count, 1.0),
                    difference / (magnitude or 1.0),
                )
            )
        return scores


def compare(model: Tflite, plan: Plan) -> tuple[str, ...]:
    """Names of the tensors whose codes, scales or zero points in the file differ from the plan's."""
    differing = []
    for tensor in model.main.tensors:
        grid = tensor.grid
        if grid is None:
            continue
        if tensor.constant and tensor.name in plan.parameters:
            own, codes = plan.parameters[tensor.name]
            if not (np.array_equal(tensor.array, codes) and np.array_equal(grid.scale.ravel(), own.scale.ravel())):
                differing.append(tensor.name)
        elif not tensor.constant:
            known = plan.activations.get(tensor.name, plan.activations.get(tensor.name.removesuffix("_quantized")))
            if known is not None and not _same(grid, to_int8(tensor.name, known)):
                differing.append(tensor.name)
    return tuple(differing)


def _same(grid: Grid, other: Grid) -> bool:
    return np.array_equal(grid.scale, other.scale) and np.array_equal(grid.zero_point, other.zero_point)


def size_of(model: Tflite, reference: Tflite) -> Size:
    """Counts and bytes of a quantised file beside those of the float one."""
    tensors = [tensor for tensor in model.main.tensors if tensor.scale is not None or _is_real(tensor)]
    used = {index for operator in model.main.operators for index in (*operator.inputs, *operator.outputs)}
    tensors = [tensor for tensor in tensors if tensor.index in used]
    saved = 100 * (1 - model.bytes / reference.bytes)
    return Size(
        len(tensors),
        sum(tensor.scale is not None for tensor in tensors),
        model.bytes,
        reference.bytes,
        saved,
        float_operators(model.main),
    )


def float_operators(graph: Subgraph) -> dict[str, int]:
    """How many operators of each type compute in float, conversions left out; most first."""
    found = Counter(
        operator.type
        for operator in graph.operators
        if operator.type not in _CONVERSIONS and _computes_in_float(operator, graph)
    )
    return dict(found.most_common())


def _computes_in_float(operator: Operator, graph: Subgraph) -> bool:
    tensors = [graph.tensors[index] for index in (*operator.inputs, *operator.outputs) if index >= 0]
    return any(map(_is_real, tensors)) and not any(tensor.constant and tensor.scale is not None for tensor in tensors)


def _is_real(tensor: Tensor) -> bool:
    return tensor.dtype in ("float32", "float16", "bfloat16")
