"""ExecuTorch: a ``.pte`` program for XNNPACK, run in its own runtime."""

from __future__ import annotations

import os
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any, ClassVar

from leadline.targets.executorch.rules import EXECUTORCH
from leadline.targets.target import Device, Target
from leadline.types import refuse

if TYPE_CHECKING:
    from leadline.data import Data
    from leadline.graph import Graph
    from leadline.graph.quantised import Judged
    from leadline.original import Original
    from leadline.targets.executorch.device import Pte


SLIDING = 4
"""Axes of a convolution's weight, at most: with five ExecuTorch 1.5 writes a program that its own runtime refuses."""


@dataclass(frozen=True)
class ExecuTorch(Target):
    """XNNPACK in ExecuTorch's runtime. Needs ExecuTorch, in an environment of its own."""

    name: ClassVar[str] = "executorch"
    title: ClassVar[str] = "ExecuTorch"
    file: ClassVar[str] = "model.pte"
    rules = EXECUTORCH

    def check_installed(self, function: str, network: Any = None) -> None:
        from leadline.targets.executorch.program import check_installed

        check_installed(function)

    def check_network(self, graph: Graph, function: str) -> None:
        from leadline.graph.tail import check_whole

        check_whole(graph, "ExecuTorch", function)
        for layer in graph.layers():
            if layer.kind != "linear" and graph.weights[layer.weight].ndim > SLIDING:
                rule = f"XNNPACK has no convolution over three axes: '{layer.name}' must go, or be written over two"
                raise refuse(function, rule, f"a {layer.node.op_type} with a weight of {graph.shape(layer.weight)}")
        from leadline.torch import to_module

        to_module(graph)  # refuses here what torch has no function for

    def reference(self, network: Any, data: Data) -> tuple[Graph, Any, Any] | None:
        from leadline.graph import Graph

        if isinstance(network, (Graph, str, os.PathLike)):
            return None
        from leadline.targets.executorch.module import FloatModule

        original = FloatModule(network, data.source)
        return original.graph, original, original.samples

    def make(self, run: Judged) -> Pte:
        from leadline.targets.executorch.device import Pte
        from leadline.targets.executorch.program import lower_grids, simulation

        content, program = lower_grids(run.graph, run.grids, run.codes)
        return Pte(content, program, simulation(run.graph, run.grids, run.codes))

    def write(self, artefact: Pte, path: Path) -> None:
        path.write_bytes(artefact.content)

    def open(
        self, artefact: Pte | Path, graph: Graph, threads: int | None = None, original: Original | None = None
    ) -> Device:
        from leadline.targets.executorch.device import InRuntime

        return InRuntime(artefact, graph)


TARGET = ExecuTorch
