"""LiteRT: a ``.tflite`` through litert-torch and ai-edge-quantizer, run in the real interpreter."""

from __future__ import annotations

import os
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any, ClassVar, Self

from leadline.recipe import Recipe
from leadline.targets.litert.rules import LITERT
from leadline.targets.target import Device, Target, option

if TYPE_CHECKING:
    from leadline.audit import Audit
    from leadline.audit.network import Network
    from leadline.data import Data
    from leadline.graph import Graph
    from leadline.graph.quantised import Judged
    from leadline.original import Original
    from leadline.progress import Progress
    from leadline.steps import Record
    from leadline.targets.litert.kernels import Plan
    from leadline.targets.litert.run import Kernels


@dataclass(frozen=True)
class Tflite:
    """What is written, and the plan it was written by."""

    content: bytes
    plan: Plan


@dataclass(frozen=True)
class LiteRT(Target):
    """LiteRT on a CPU. Needs the extra ``leadline[tflite]``, and for a network that is no ``.tflite``, ``[litert]``.

    Parameters
    ----------
    preset : {"cpu", "npu", "dynamic", "weight-only", "fp16"}, optional
        See `targets.litert.write.write`. Default: what is usual for the recipe.
    io : {"float", "int8", "int8-float"}
        Type of inputs and outputs.
    kernels : tuple of {"xnnpack", "plain", "reference"}
        What verification runs. The first are those that outputs are judged by; reference kernels may take a hundred
        times as long.
    """

    name: ClassVar[str] = "litert"
    title: ClassVar[str] = "LiteRT"
    file: ClassVar[str] = "model.tflite"
    rules = LITERT

    preset: Any = field(
        default=None, metadata=option("cpu, npu, dynamic, weight-only or fp16. Default: the recipe's usual one.")
    )
    io: Any = field(
        default="float", metadata=option("Type of inputs and outputs: float, int8, or int8-float: int8 in, float out.")
    )
    kernels: tuple[Kernels, ...] = ("xnnpack", "reference")

    def check_installed(self, function: str, network: Any = None) -> None:
        from leadline.targets.litert.convert import check_installed
        from leadline.targets.litert.kernels import tool

        if network is not None and not (isinstance(network, (str, os.PathLike)) and self.opens(Path(network))):
            check_installed()
        tool("ai_edge_litert.interpreter" if network is None else "ai_edge_quantizer.recipe")

    def settle(self, recipe: Recipe | str | os.PathLike[str]) -> tuple[Self, Recipe]:
        """Takes LiteRT's own names of recipes, too; see `targets.litert.calibrate`."""
        from leadline.targets.litert.calibrate import named

        settled, preset, io = named(recipe, self.preset, self.io)
        self.rules.check(settled)
        return replace(self, preset=preset, io=io), settled

    def check_network(self, graph: Graph, function: str) -> None:
        from leadline.graph.tail import check_whole

        check_whole(graph, "LiteRT", function)
        from leadline.torch import to_module

        to_module(graph)  # refuses here what torch has no function for

    def opens(self, path: Path) -> bool:
        return path.suffix == ".tflite"

    def quantize(
        self, path: Path, recipe: Recipe, data: Data, *, threads: int | None = None, progress: Progress | None = None
    ) -> dict[str, Any]:
        from leadline.targets.litert.calibrate import quantize
        from leadline.targets.litert.device import FloatTflite
        from leadline.targets.litert.read import read

        plan = quantize(path, recipe, data, threads=threads, progress=progress)
        original = FloatTflite(path, threads)
        known = {name: grid for name, (grid, _) in plan.parameters.items()}
        constants = [tensor for tensor in read(plan.content).main.tensors if tensor.constant]
        weights = {tensor.name: tensor.array for tensor in constants if tensor.dtype == "float32"}
        return {
            "graph": replace(original.graph, weights=weights),
            "grids": dict(plan.activations) | known,
            "codes": {name: codes for name, (_, codes) in plan.parameters.items()},
            "log": [_record(note, path.name) for note in plan.notes],
            "calibrated": plan.calibrated,
            "held_out": plan.held_out,
            "original": original,
            "made": plan,
        }

    def reference(self, network: Any, data: Data) -> tuple[Graph, Any, Any] | None:
        from leadline.data import load_samples
        from leadline.targets.litert.device import FloatTflite

        if not (isinstance(network, bytes) or (isinstance(network, (str, os.PathLike)) and self.opens(Path(network)))):
            return None
        original = FloatTflite(network)
        return original.graph, original, load_samples(data, original.graph)

    def make(self, run: Judged) -> Tflite:
        from leadline.targets.litert.convert import plan
        from leadline.targets.litert.write import write

        planned = getattr(run, "made", None) or plan(run)
        preset: Any = self.preset or ("cpu" if planned.activations else "dynamic")
        return Tflite(write(planned, preset, self.io), planned)

    def write(self, artefact: Tflite, path: Path) -> None:
        path.write_bytes(artefact.content)

    def open(
        self,
        artefact: Tflite | Path | bytes,
        graph: Graph,
        threads: int | None = None,
        original: Original | None = None,
    ) -> Device:
        from leadline.targets.litert.device import FloatTflite, InInterpreter
        from leadline.targets.litert.files import content_of

        content, plan = (artefact.content, artefact.plan) if isinstance(artefact, Tflite) else (artefact, None)
        known = original.content if isinstance(original, FloatTflite) else None
        reference = plan.content if plan is not None else known
        return InInterpreter(content_of(content), graph, self.kernels, plan, reference, threads)

    def audit(self, network: Network, recipe: Recipe) -> Audit:
        from leadline.targets.litert.audit import audit_onnx

        return audit_onnx(network)

    def audit_file(self, path: Path) -> Audit | None:
        from leadline.targets.litert.audit import audit_tflite

        return audit_tflite(path) if self.opens(path) else None


def _record(note: str, file: str) -> Record:
    """A note of the plan in a run's log: of a step that was not done, or of what calibration chose."""
    from leadline.recipe import STEPS
    from leadline.steps import Record

    step, _, rest = note.partition(": ")
    return Record(step, file, rest, kept=False) if step in STEPS else Record.of("calibrate", note)


TARGET = LiteRT
