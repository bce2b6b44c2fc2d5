"""A QDQ artefact in Qualcomm's emulation of the HTP."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from contextlib import ExitStack
from pathlib import Path
from typing import TYPE_CHECKING, Any

from numpy.typing import NDArray

from leadline.graph import Graph
from leadline.graph.tail import drop
from leadline.scores import OutputScore
from leadline.targets.hexagon.emulator import Build, Emulator
from leadline.targets.hexagon.expected import expected
from leadline.targets.simulation import Simulated, whole
from leadline.targets.target import Arrays

if TYPE_CHECKING:
    import onnx


class Emulated(Simulated):
    """In the emulation. What it does not take as a whole it does not run: a device would not, either."""

    judged = "hexagon"

    def __init__(
        self, model: onnx.ModelProto | Path, graph: Graph, threads: int | None, soc: int | None, arch: int | None
    ) -> None:
        proto = whole(model)
        super().__init__(model, graph, threads, expected(proto))
        self._taken = model if graph.tail is None else drop(proto, graph)
        self._chip = soc, arch

    def _start(self, stack: ExitStack) -> None:
        self._emulator = Emulator(*self._chip)
        stack.callback(self._emulator.close)
        self.build: Build = self._emulator.build(self._taken)

    def run(self, feed: Mapping[str, NDArray[Any]]) -> Arrays:
        return self._emulator.run(feed) if self.build.accepted else {}

    def facts(self, outputs: Sequence[OutputScore]) -> Build:
        return self.build
