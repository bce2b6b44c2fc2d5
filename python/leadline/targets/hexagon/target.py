"""Hexagon: the QDQ artefact in the widths that Qualcomm's HTP takes, run by the vendor's emulation of it."""

from __future__ import annotations

from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any, ClassVar

from leadline.targets.hexagon.rules import HEXAGON
from leadline.targets.target import Device, Target, option

if TYPE_CHECKING:
    import onnx

    from leadline.audit import Audit
    from leadline.audit.network import Network
    from leadline.graph import Graph
    from leadline.original import Original
    from leadline.recipe import Recipe


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
        from leadline.targets.hexagon.emulator import check_installed

        check_installed()

    def open(
        self,
        artefact: onnx.ModelProto | Path,
        graph: Graph,
        threads: int | None = None,
        original: Original | None = None,
    ) -> Device:
        from leadline.targets.hexagon.device import Emulated

        return Emulated(artefact, graph, threads, self.soc, self.arch)

    def finish(self, artefact: Path) -> None:
        from leadline.targets.hexagon.emulator import compile_context

        if self.context is not None:
            compile_context(artefact, self.context, self.soc, self.arch)

    def audit(self, network: Network, recipe: Recipe) -> Audit:
        from leadline.targets.hexagon.audit import audit_hexagon

        return audit_hexagon(network, recipe)


TARGET = Hexagon
