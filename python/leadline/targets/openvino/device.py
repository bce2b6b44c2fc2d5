"""An artefact in OpenVINO's CPU plug-in, beside the artefact as written."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from contextlib import ExitStack
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from numpy.typing import NDArray

from leadline.graph import Graph
from leadline.graph.tail import drop
from leadline.scores import OutputScore
from leadline.targets.openvino.runtime import Runtime, in_integers
from leadline.targets.processor import strays
from leadline.targets.simulation import Simulated, whole
from leadline.targets.target import Arrays
from leadline.types import few

if TYPE_CHECKING:
    import onnx


@dataclass(frozen=True)
class Compiled:
    """What OpenVINO made of an artefact.

    Attributes
    ----------
    reason : str
        Why it does not take it; empty where it does.
    integers : tuple of str
        Layers, and products of two activations, that run in integers.
    floats : dict of str to str
        Those that do not, and their kernels.
    execution : str
    milliseconds : float
        The least time of a run.
    strays : bool
        An output is more than a decibel below the artefact as written, on a processor whose kernels saturate.
    """

    reason: str
    integers: tuple[str, ...]
    floats: Mapping[str, str]
    execution: str
    milliseconds: float
    strays: bool

    def to_dict(self) -> dict[str, Any]:
        return vars(self)

    def lines(self) -> list[str]:
        if self.reason:
            return [f"OpenVINO does not take it: {self.reason}"]
        layers = len(self.integers) + len(self.floats)
        lines = [f"{len(self.integers)} of {layers} layers and products in integers, {self.milliseconds:.3g} ms"]
        kinds: dict[str, list[str]] = {}
        for name, kernel in self.floats.items():
            kinds.setdefault(kernel, []).append(name)
        lines += [f"in float: {few(names)} ({kernel})" for kernel, names in kinds.items()]
        if any(kernel.endswith("bf16") for kernel in kinds):
            lines.append("float is bfloat16 on this processor; --execution accuracy keeps float32")
        if self.strays:
            lines.append("This processor's u8 x s8 kernels saturate (no VNNI): weights of 7 bits avoid it")
        return lines


class OnCpu(Simulated):
    """In OpenVINO's CPU plug-in. What it does not take is an answer, not an error."""

    judged = "OpenVINO"

    def __init__(self, model: onnx.ModelProto | Path, graph: Graph, threads: int | None, execution: str) -> None:
        super().__init__(model, graph, threads)
        self._taken = model if graph.tail is None else drop(whole(model), graph)
        self._execution = execution

    def _start(self, stack: ExitStack) -> None:
        self._runtime = Runtime(self._taken, self._execution, self.threads)

    def run(self, feed: Mapping[str, NDArray[Any]]) -> Arrays:
        if self._runtime.reason:
            return {}
        return dict(zip(self.outputs, self._runtime.run(feed), strict=True))

    def facts(self, outputs: Sequence[OutputScore]) -> Compiled:
        kernels = dict(self._runtime.products(_operators(self.graph)))
        return Compiled(
            self._runtime.reason,
            tuple(name for name, kernel in kernels.items() if in_integers(kernel)),
            {name: kernel for name, kernel in kernels.items() if not in_integers(kernel)},
            self._execution,
            self._runtime.milliseconds,
            strays(outputs),
        )


def _operators(graph: Graph) -> dict[str, str]:
    """The layers and products by their own names and by those of the roundings behind them, or behind the clamp or sum
    that follows: which of these OpenVINO keeps of what it fuses differs from run to run."""
    readers, layers = graph.readers(), {layer.node.name for layer in graph.layers()}
    known: dict[str, str] = {}
    for node in graph.nodes:
        if node.name in layers or node.op_type == "MatMul":
            behind = [reader.outputs[0] for reader in readers.get(node.outputs[0], [])]
            known[node.name] = node.name
            for tensor in (node.outputs[0], *behind):
                known.setdefault(f"{tensor}.quantize", node.name)
    return known
