"""YOLOv8 from its ONNX export, for Qualcomm's NPU: INT8, with scores that survive.

The export joins boxes (pixels) and class scores (0 to 1) in one output; see `leadline.graph.heads`, and the step
"heads" of the recipes. Needs no torch, and no code or weights of the detector's makers: the user brings the file.
"""

from __future__ import annotations

import os
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from leadline.data import Preprocess, Samples
from leadline.graph import Graph, Session, heads, inspect_inputs
from leadline.progress import Progress, Quiet
from leadline.recipe import Calibrate, Heads, Observer, Recipe
from leadline.systems.detection import DetectionAgreement, agree, detect
from leadline.systems.system import System
from leadline.targets import target_of
from leadline.targets.hexagon.emulator import Emulator
from leadline.types import refuse

if TYPE_CHECKING:
    import onnx

RECIPE = "w8a8"
SIZE = 640


def load(path: str | os.PathLike[str], size: int | tuple[int, int] | None = None) -> System:
    """A detector of YOLOv8's kind.

    Parameters
    ----------
    path : path
        ONNX as Ultralytics' export writes it, without non-maximum suppression: one picture (1, 3, height, width) in,
        (1, 4 + classes, anchors) out.
    size : int or (height, width), optional
        Where the file leaves it open. Default: the file's own, or 640.

    Returns
    -------
    System
        Its network is a Graph, its recipe "w8a8", its pictures are letterboxed. `recipe` varies the recipe.

    Raises
    ------
    InputError
        The file is no network that leadline reads, has other inputs or outputs, or no Concat joins boxes and scores.
    """
    function = "yolov8.load"
    declared = inspect_inputs(Path(path))
    if len(declared) != 1 or len(declared[0][2]) != 4:
        received = ", ".join(f"{name} {dims}" for name, _, dims in declared)
        raise refuse(function, f"'{path}' must have one input (1, 3, height, width)", received)
    ((name, _, dims),) = declared
    stated = (size, size) if isinstance(size, int) else size
    picture_size = stated or (dims[2] or SIZE, dims[3] or SIZE)
    graph = Graph.load(path, {name: (1, 3, *picture_size)})
    candidates = heads.find(graph)
    shapes = [value.shape for value in graph.outputs]
    if len(shapes) != 1 or len(shapes[0]) != 3 or shapes[0][1] < 5 or len(candidates) != 1:
        rule = f"'{path}' must have one output (1, 4 + classes, anchors) that joins boxes and scores"
        raise refuse(function, rule, f"outputs {', '.join(map(str, shapes))}, {len(candidates)} such Concats")
    (head,) = candidates
    classes, anchors = shapes[0][1] - 4, shapes[0][2]
    notes = (
        f"{classes} classes, {anchors} anchors",
        f"'{head.concats[-1]}' joins boxes and scores, {len(head.wide)} tensors behind the last features",
    )
    example = np.zeros((1, 3, *picture_size), np.float32)
    preprocess = Preprocess(resize=picture_size, letterbox=True)
    return System(Path(path).stem, graph, {name: example}, (graph.outputs[0].name,), preprocess, RECIPE, notes)


def recipe(observer: Observer = "best", *, separate: bool = False, bits: int = 16) -> Recipe:
    """The recipe "w8a8" with another observer of activations ("minmax", "entropy", ...), with outputs of their
    own for boxes and scores, or with other bits for what the last layers write and all behind them."""
    base = Recipe.load(RECIPE)
    changes: dict[type[Any], dict[str, Any]] = {
        Calibrate: {"activations": observer},
        Heads: {"separate": separate, "bits": bits},
    }
    return base.changed(steps=tuple(replace(step, **changes.get(type(step), {})) for step in base.steps))


def compare_detections(
    reference: Graph | str | os.PathLike[str],
    artefact: onnx.ModelProto | str | os.PathLike[str],
    samples: Samples,
    *,
    target: str = "onnxruntime",
    score: float = 0.25,
    overlap: float = 0.7,
    least: float = 0.5,
    threads: int | None = None,
    progress: Progress | None = None,
) -> DetectionAgreement:
    """Detections of the float network and of its artefact on the same pictures.

    Parameters
    ----------
    reference : Graph or path
    artefact : onnx.ModelProto or path
        Its output may be parted (boxes, scores) where the reference's is not.
    samples : Samples
        Of `leadline.data.load`. Hexagon's emulation takes seconds for each.
    target : {"onnxruntime", "hexagon"}
        "onnxruntime" runs the artefact as written, "hexagon" the emulation.
    score, overlap : float
        See `detection.detect`.
    least : float
        Overlap that makes a match.

    Raises
    ------
    InputError
        Outputs are not a detector's; or the target does not take the artefact, or is not installed.
    """
    progress = progress or Quiet()
    graph = reference if isinstance(reference, Graph) else Graph.load(reference, next(iter(samples)))
    emulated = target_of(target, "yolov8.compare_detections").name == "hexagon"
    with Session(graph, threads=threads) as exact, _runner(artefact, emulated, threads) as rough:
        pairs = []
        for feed in progress.over(samples, "detect", len(samples)):
            pairs.append((detect(exact.run(feed), score, overlap), detect(rough.run(feed), score, overlap)))
    return agree(pairs, least)


def _runner(artefact: onnx.ModelProto | str | os.PathLike[str], emulated: bool, threads: int | None) -> Any:
    model = Path(artefact) if isinstance(artefact, str | os.PathLike) else artefact
    if not emulated:
        return Session(model, optimize=False, threads=threads)
    emulator = Emulator()
    try:
        build = emulator.build(model)
        if not build.accepted:
            raise refuse("yolov8.compare_detections", "the target must take the whole artefact", str(build))
    except BaseException:
        emulator.close()
        raise
    return emulator
