"""onnxruntime: the artefact is ONNX with QuantizeLinear and DequantizeLinear, and its kernels fuse what they can."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, ClassVar

from leadline.rules import ONNXRUNTIME
from leadline.targets.target import Device, Target

if TYPE_CHECKING:
    import onnx

    from leadline.graph import Graph
    from leadline.original import Original


@dataclass(frozen=True)
class OnnxRuntime(Target):
    """onnxruntime on this machine's CPU."""

    name: ClassVar[str] = "onnxruntime"
    title: ClassVar[str] = "fused"
    rules = ONNXRUNTIME

    def open(
        self,
        artefact: onnx.ModelProto | Path,
        graph: Graph,
        threads: int | None = None,
        original: Original | None = None,
    ) -> Device:
        from leadline.targets.onnxruntime.device import Fused

        return Fused(artefact, graph, threads)


TARGET = OnnxRuntime
