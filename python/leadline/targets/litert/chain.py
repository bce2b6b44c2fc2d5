"""Several networks of which some read what others give, in float and quantised, and the score at their end."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from functools import partial
from typing import Any

import numpy as np
from numpy.typing import NDArray

from leadline.data.samples import Feed
from leadline.targets.litert.files import Size, Source, content_of, size_of
from leadline.targets.litert.run import Interpreter, Kernels
from leadline.types import refuse

Arrays = list[NDArray[Any]]
Call = Callable[[Callable[[Arrays], Arrays], Arrays], Arrays]
"""How a network is called, where it sees its input in pieces: given a function from its inputs to its outputs, both in
order, and what the chain gives it; gives its outputs, in order."""


@dataclass(frozen=True)
class Stage:
    """One network of a chain: its name, the float and the quantised ``.tflite``, and where its inputs come from.

    `sources` maps an input's name to a value's: "stage.output" of an earlier stage, or an input of the chain. An input
    that is not named takes the value of its own name. `call` says how it is called, if not once with all it is given.
    """

    name: str
    reference: Source
    artefact: Source
    sources: Mapping[str, str] = field(default_factory=dict)
    call: Call | None = None


@dataclass(frozen=True)
class Chain:
    """What a chain of networks measured.

    Attributes
    ----------
    samples : int
    stages : dict of stage name to Size
    differences : dict of "stage.output" to (mean absolute, mean relative difference)
        With everything before quantised as well. Relative: over the mean magnitude of the float output.
    score : dict of output name to float
        Of the last stage: mean of |score - float score| / |float score| over the samples, each score the mean of its
        output.
    """

    samples: int
    stages: Mapping[str, Size]
    differences: Mapping[str, tuple[float, float]]
    score: Mapping[str, float]

    def to_dict(self) -> dict[str, Any]:
        """Plain values, ready for JSON."""
        return {
            "samples": self.samples,
            "stages": {name: vars(size) for name, size in self.stages.items()},
            "differences": {name: list(pair) for name, pair in self.differences.items()},
            "score": dict(self.score),
        }


def verify_chain(
    stages: Sequence[Stage], data: Iterable[Feed], *, kernels: Kernels = "xnnpack", threads: int | None = None
) -> Chain:
    """Run a chain of networks twice, all in float and all quantised, and compare what comes out at its end.

    Parameters
    ----------
    stages : sequence of Stage
        In the order of execution. Values may be read by several stages, as where one network aggregates others.
    data : iterable of dict of input name to array
        What the chain reads.
    kernels : {"xnnpack", "plain", "reference"}
    threads : int, optional

    Raises
    ------
    InputError
        An input that nothing gives a value to, or one whose shape does not fit; or a file that LiteRT does not run.
    """
    if not stages:
        raise refuse("verify_chain", "stages must hold at least one network", "none")
    runners = [
        (
            stage,
            Interpreter(content_of(stage.reference), kernels, threads),
            Interpreter(content_of(stage.artefact), kernels, threads),
        )
        for stage in stages
    ]
    sums: dict[str, NDArray[np.float64]] = {}
    scores: dict[str, list[float]] = {name: [] for name in runners[-1][1].outputs}
    count = 0
    for feed in data:
        exact, rough = dict(feed), dict(feed)
        for stage, reference, artefact in runners:
            for runner, values in ((reference, exact), (artefact, rough)):
                taken = [_value(stage, name, values) for name in runner.inputs]
                outputs = called(stage.call, partial(_run, runner), taken)
                names = (f"{stage.name}.{name}" for name in reference.outputs)
                values |= dict(zip(names, outputs, strict=True))
            for name in (f"{stage.name}.{output}" for output in reference.outputs):
                difference = np.abs(rough[name].astype(np.float64) - exact[name])
                terms = difference.sum(), np.abs(exact[name], dtype=np.float64).sum(), difference.size
                sums[name] = sums.get(name, np.zeros(3)) + terms
        for name, distances in scores.items():
            key = f"{stages[-1].name}.{name}"
            wanted = float(np.mean(exact[key], dtype=np.float64))
            distances.append(abs(float(np.mean(rough[key], dtype=np.float64)) - wanted) / (abs(wanted) or 1.0))
        count += 1
    return Chain(
        count,
        {stage.name: size_of(artefact.model, reference.model) for stage, reference, artefact in runners},
        {name: (float(d / max(n, 1.0)), float(d / (m or 1.0))) for name, (d, m, n) in sums.items()},
        {name: float(np.mean(distances)) for name, distances in scores.items()},
    )


def called(call: Call | None, run: Callable[[Arrays], Arrays], inputs: Arrays) -> Arrays:
    """The outputs of a network that is called so."""
    return run(inputs) if call is None else call(run, inputs)


def _run(runner: Interpreter, inputs: Arrays) -> Arrays:
    return list(runner.run_real(dict(zip(runner.inputs, inputs, strict=True))).values())


def _value(stage: Stage, name: str, values: Mapping[str, NDArray[Any]]) -> NDArray[Any]:
    source = stage.sources.get(name, name)
    if source not in values:
        rule = f"input '{name}' of '{stage.name}' must come from one of {sorted(values)}"
        raise refuse("verify_chain", rule, repr(source))
    return values[source]
