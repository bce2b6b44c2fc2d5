"""Hexagon: the QDQ artefact in the widths that Qualcomm's HTP takes, run by the vendor's emulation of it."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from contextlib import ExitStack
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any, ClassVar

from numpy.typing import NDArray

from leadline.graph import Graph
from leadline.graph.tail import drop
from leadline.recipe import Recipe
from leadline.scores import OutputScore
from leadline.targets.hexagon.emulator import Build, Emulator, check_installed, compile_context
from leadline.targets.hexagon.expected import expected
from leadline.targets.hexagon.rules import HEXAGON
from leadline.targets.simulation import Simulated, whole
from leadline.targets.target import Arrays, Device, Target, option

if TYPE_CHECKING:
    import onnx

    from leadline.audit import Audit
    from leadline.audit.network import Network
    from leadline.original import Original


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


@dataclass(frozen=True)
class Hexagon(Target):
    """Qualcomm's HTP, emulated on x86-64. Needs the extra ``leadline[hexagon]``.

    Parameters
    ----------
    soc, arch : int, optional
        See `targets.hexagon.emulator.Emulator`.
    context : path, optional
        Where the command line writes the compiled context ONNX.
    """

    name: ClassVar[str] = "hexagon"
    title: ClassVar[str] = "hexagon"
    frames: ClassVar[int | None] = 4
    rules = HEXAGON

    soc: int | None = field(default=None, metadata=option("Qualcomm's number of the chip.", int, runs=True))
    arch: int | None = field(
        default=None, metadata=option("Version of the chip's HTP, such as 73, 75 or 79.", int, runs=True)
    )
    context: Path | None = field(
        default=None, metadata=option("Also write the compiled context ONNX to this file.", Path, runs=True)
    )

    def check_installed(self, function: str, network: Any = None) -> None:
        check_installed()

    def open(
        self,
        artefact: onnx.ModelProto | Path,
        graph: Graph,
        threads: int | None = None,
        original: Original | None = None,
    ) -> Device:
        return Emulated(artefact, graph, threads, self.soc, self.arch)

    def finish(self, artefact: Path) -> None:
        if self.context is not None:
            compile_context(artefact, self.context, self.soc, self.arch)

    def audit(self, network: Network, recipe: Recipe) -> Audit:
        from leadline.targets.hexagon.audit import audit_hexagon

        return audit_hexagon(network, recipe)


TARGET = Hexagon
