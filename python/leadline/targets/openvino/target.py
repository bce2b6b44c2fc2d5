"""OpenVINO: the QDQ artefact, compiled for this machine's CPU."""

from __future__ import annotations

from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any, ClassVar

from leadline.targets.openvino.rules import OPENVINO
from leadline.targets.target import Device, Target, option
from leadline.types import refuse

if TYPE_CHECKING:
    import onnx

    from leadline.audit import Audit
    from leadline.audit.network import Network
    from leadline.graph import Graph
    from leadline.graph.quantised import Judged
    from leadline.original import Original
    from leadline.recipe import Recipe


@dataclass(frozen=True)
class OpenVINO(Target):
    """OpenVINO's CPU plug-in. Needs the extra ``leadline[openvino]``.

    Parameters
    ----------
    execution : {"performance", "accuracy"}
        OpenVINO's hint for what stays in float. "performance", its default: bfloat16 where the processor has it, and
        float inputs of 8-bit weights are rounded to 8 bits on the way, in groups. "accuracy": float32.
    """

    name: ClassVar[str] = "openvino"
    title: ClassVar[str] = "OpenVINO"
    rules = OPENVINO

    execution: str = field(
        default="performance",
        metadata=option("What stays in float: performance (OpenVINO's default) or accuracy (float32).", runs=True),
    )

    def __post_init__(self) -> None:
        if self.execution not in ("performance", "accuracy"):
            raise refuse("target", "execution must be performance or accuracy", repr(self.execution))

    def check_installed(self, function: str, network: Any = None) -> None:
        from leadline.targets.openvino.runtime import check_installed

        check_installed(function)

    def make(self, run: Judged) -> onnx.ModelProto:
        """Activations of more than 8 bits (a detector's last layers, and all behind them) stay in float."""
        from leadline.export import qdq
        from leadline.export.widths import without_wide

        grids, codes, _ = without_wide(run.graph, run.grids, run.codes)
        return qdq.to_qdq(run.graph, grids, codes)

    def open(
        self,
        artefact: onnx.ModelProto | Path,
        graph: Graph,
        threads: int | None = None,
        original: Original | None = None,
    ) -> Device:
        from leadline.targets.openvino.device import OnCpu

        return OnCpu(artefact, graph, threads, self.execution)

    def audit(self, network: Network, recipe: Recipe) -> Audit:
        from leadline.targets.openvino.audit import audit_openvino

        return audit_openvino(network, recipe)


TARGET = OpenVINO
