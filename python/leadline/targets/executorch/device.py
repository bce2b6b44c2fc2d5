"""A ``.pte`` program in ExecuTorch's runtime."""

from __future__ import annotations

import time
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
from numpy.typing import NDArray
from rich.filesize import decimal

from leadline.graph import Graph
from leadline.targets.executorch.program import Program
from leadline.targets.target import Arrays, Device
from leadline.types import refuse

if TYPE_CHECKING:
    from torch import nn

    from leadline.scores import OutputScore


@dataclass(frozen=True)
class Pte:
    """What is written, what is known of it, and the torch module that says what to expect of it."""

    content: bytes
    program: Program
    expected: nn.Module


@dataclass(frozen=True)
class InExecuTorch:
    """What the runtime says of a program; `milliseconds` is the least time of a run."""

    milliseconds: float
    program: Program | None

    def to_dict(self) -> dict[str, Any]:
        return {"milliseconds": self.milliseconds, "program": self.program and vars(self.program)}

    def lines(self) -> list[str]:
        if self.program is None:
            return [f"{self.milliseconds:.3g} ms"]
        size = decimal(self.program.bytes)
        lines = [f"{size}, {self.program.layers} layers in integers, {self.milliseconds:.3g} ms"]
        if self.program.outside:
            kinds = ", ".join(f"{kind} {count}" for kind, count in self.program.outside.items())
            lines.append(f"outside XNNPACK: {kinds}; XNNPACK in {self.program.delegates} parts")
        return lines


class InRuntime(Device):
    """A program in ExecuTorch's runtime. Inputs and outputs correspond to the float network's in their order.

    A program that comes from a file brings no simulation: it is its own.
    """

    judged = "ExecuTorch"

    def __init__(self, artefact: Pte | Path, graph: Graph) -> None:
        from executorch.runtime import Runtime

        self._exported = artefact if isinstance(artefact, Pte) else None
        if not isinstance(artefact, Pte) and not artefact.is_file():
            raise refuse("verify", "path must be a .pte file", f"'{artefact}', which does not exist")
        try:
            loaded = Runtime.get().load_program(artefact.content if isinstance(artefact, Pte) else artefact)
            self._method = loaded.load_method("forward")
        except Exception as error:  # the runtime raises RuntimeError, and others for a file that is no flatbuffer
            name = "what was made" if isinstance(artefact, Pte) else f"'{artefact}'"
            rule = f"{name} must be a whole ExecuTorch program"
            raise refuse("verify", rule, str(error).splitlines()[0]) from None
        self._outputs = [(value.name, value.shape) for value in graph.outputs]
        self._least = np.inf

    def __exit__(self, *_: object) -> None:
        del self._method

    def simulate(self, feed: Mapping[str, NDArray[Any]]) -> Arrays:
        if self._exported is None:
            return self.run(feed)
        from leadline.targets.executorch.module import called

        arrays = called(self._exported.expected, feed)
        return {name: array for (name, _), array in zip(self._outputs, arrays, strict=True)}

    def run(self, feed: Mapping[str, NDArray[Any]]) -> Arrays:
        import torch

        inputs = [torch.from_numpy(np.ascontiguousarray(array)) for array in feed.values()]
        start = time.perf_counter()
        outputs = self._method.execute(inputs)
        self._least = min(self._least, 1e3 * (time.perf_counter() - start))
        wanted, received = [shape for _, shape in self._outputs], [tuple(array.shape) for array in outputs]
        if received != wanted:
            raise refuse("verify", f"the program's outputs must have the shapes {wanted}", received)
        return {name: np.array(tensor.numpy()) for (name, _), tensor in zip(self._outputs, outputs, strict=True)}

    def facts(self, outputs: Sequence[OutputScore]) -> InExecuTorch:
        return InExecuTorch(self._least, None if self._exported is None else self._exported.program)
