"""leadline.systems.yolov8: a detector from its ONNX, whose INT8 artefact finds what the float network finds."""

from __future__ import annotations

import json
import subprocess
import sys
from dataclasses import replace
from pathlib import Path

import numpy as np
import onnx
import pytest

from data_samples import refused
from graph_models import model, node, random
from leadline import Preprocess, quantize
from leadline.data import Data, Samples, load_samples
from leadline.graph import Session
from leadline.recipe import Calibrate, CorrectBias, Equalize, Heads, Recipe
from leadline.systems import yolov8
from leadline.systems.detection import Detections, agree, detect, match, overlaps
from leadline.systems.system import System
from yolov8_onnx import detector, write_coco

ROOT = Path(__file__).parents[1]


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    top = tmp_path_factory.mktemp("yolo")
    onnx.save(detector(), top / "detector.onnx")
    write_coco(top / "coco", 8)
    write_coco(top / "unseen", 8, seed=700)
    return top


@pytest.fixture(scope="module")
def system(folder: Path) -> System:
    return yolov8.load(folder / "detector.onnx")


@pytest.fixture(scope="module")
def unseen(folder: Path, system: System) -> Samples:
    return load_samples(Data(folder / "unseen", preprocess=system.preprocess), system.network.inputs)


def quick(recipe: Recipe) -> Recipe:
    return replace(recipe, steps=tuple(s for s in recipe.steps if not isinstance(s, Equalize | CorrectBias)))


def test_the_system_says_what_it_found(system: System) -> None:
    assert system.recipe == "w8a8" and system.outputs == ("output0",)
    assert system.preprocess == Preprocess(resize=(160, 160), letterbox=True)
    assert system.notes[0] == "4 classes, 525 anchors" and "'model.22.concat_5'" in system.notes[1]
    assert next(iter(system.inputs.values())).shape == (1, 3, 160, 160)


@pytest.mark.parametrize("separate", [False, True])
def test_int8_finds_what_float_finds(folder: Path, system: System, unseen: Samples, separate: bool) -> None:
    recipe = quick(yolov8.recipe("minmax", separate=separate))
    done = quantize(system.network, recipe, Data(folder / "coco", preprocess=system.preprocess), threads=1)
    found = yolov8.compare_detections(system.network, done.to_qdq(), unseen, threads=1)
    assert found.expected > 10 and found.kept > 0.9 and found.added < 0.1
    assert found.iou > 0.85 and found.score_difference < 0.1 and found.top > 0.8


def test_without_the_step_detections_are_lost(folder: Path, system: System, unseen: Samples) -> None:
    done = quantize(system.network, "minmax-w8a8", Data(folder / "coco", preprocess=system.preprocess), threads=1)
    assert yolov8.compare_detections(system.network, done.to_qdq(), unseen, threads=1).kept < 0.7


@pytest.mark.slow
def test_hexagon_takes_all_of_it_and_finds_the_same(
    folder: Path, system: System, unseen: Samples, tmp_path: Path
) -> None:
    pytest.importorskip("onnxruntime_qnn", reason="onnxruntime-qnn is not installed")
    recipe = quick(yolov8.recipe("minmax"))
    done = quantize(
        system.network, recipe, Data(folder / "coco", preprocess=system.preprocess), threads=1, target="hexagon"
    )
    done.save(tmp_path)
    found = yolov8.compare_detections(
        system.network, tmp_path / "model.qdq.onnx", unseen.take(4), target="hexagon", threads=1
    )
    assert found.pictures == 4 and found.kept > 0.85 and found.score_difference < 0.1


def test_the_recipe_varies() -> None:
    varied = yolov8.recipe("entropy", separate=True, bits=8)
    steps = {type(step): step for step in varied.steps}
    assert steps[Calibrate] == Calibrate("entropy", "mse") and steps[Heads] == Heads(True, 8)


@pytest.mark.parametrize(
    ("nodes", "shape", "message"),
    [
        (
            [node("Conv", "x w", "y")],
            (1, 3, 8, 8),
            "must have one output (1, 4 + classes, anchors) that joins boxes and scores. Received outputs (1, 8, 8, 8)",
        ),
        ([node("Relu", "x", "y")], (1, 3, 8), "must have one input (1, 3, height, width). Received x"),
    ],
)
def test_other_networks_are_refused(nodes: list, shape: tuple[int, ...], message: str, tmp_path: Path) -> None:
    weights = {"w": random(8, 3, 1, 1)} if len(shape) == 4 else {}
    onnx.save(model(nodes, shape, **weights), tmp_path / "other.onnx")
    with refused("[yolov8.load] ", message):
        yolov8.load(tmp_path / "other.onnx")


def test_detections_are_the_best_of_each_class() -> None:
    output = np.zeros((1, 6, 5), np.float32)
    output[0, :4] = np.array([[10, 10, 8, 8], [11, 10, 8, 8], [11, 10, 8, 8], [50, 50, 4, 2], [0, 0, 1, 1]]).T
    output[0, 4] = [0.9, 0.8, 0.1, 0.0, 0.1]
    output[0, 5] = [0.0, 0.0, 0.7, 0.6, 0.2]
    found = detect(output)
    assert found.scores.tolist() == pytest.approx([0.9, 0.7, 0.6]) and found.classes.tolist() == [0, 1, 1]
    assert found.boxes[0].tolist() == [6, 6, 14, 14] and found.boxes[2].tolist() == [48, 49, 52, 51]
    parted = detect({"boxes": output[:, :4], "scores": output[:, 4:]})
    assert np.array_equal(parted.boxes, found.boxes) and len(detect(output, limit=1)) == 1
    with refused("[detect] outputs must be (1, 4 + classes, anchors), or", "Received (1, 6, 5), (1, 2, 4)."):
        detect({"boxes": output, "scores": output[:, 4:, :4]})


def test_overlaps_and_matches() -> None:
    boxes = np.array([[0, 0, 2, 2], [1, 0, 3, 2], [5, 5, 5, 5]], np.float64)
    assert overlaps(boxes, boxes) == pytest.approx(np.array([[1, 1 / 3, 0], [1 / 3, 1, 0], [0, 0, 0]]))
    first = Detections(boxes[:2], np.array([0.9, 0.8]), np.array([0, 1]))
    second = Detections(boxes[:1] + 0.1, np.array([0.7]), np.array([0]))
    assert [pair[:2] for pair in match(first, second)] == [(0, 0)]
    found = agree([(first, second), (second, first)])
    assert (found.pictures, found.expected, found.kept) == (2, 3, 2 / 3) and found.added == pytest.approx(1 / 3)
    assert found.score_difference == pytest.approx(0.2) and found.score_bias == pytest.approx(0)
    nothing = agree([(first, Detections(boxes[:0], np.zeros(0), np.zeros(0, int)))])
    assert nothing.kept == 0 and nothing.to_dict()["iou"] is None and nothing.top == 0


def test_the_example_runs(folder: Path, tmp_path: Path) -> None:
    line = [
        sys.executable, str(ROOT / "examples" / "yolov8.py"), str(folder / "detector.onnx"), str(folder / "coco"),
        "--out", str(tmp_path / "out"), "--observer", "minmax", "--threads", "1",
    ]  # fmt: skip
    done = subprocess.run(line, capture_output=True, text=True, timeout=300)
    assert done.returncode == 0, done.stderr
    report = json.loads((tmp_path / "out" / "detections.json").read_text("utf-8"))
    assert report["kept"] > 0.8
    with Session(tmp_path / "out" / "model.qdq.onnx", threads=1) as session:
        assert session.outputs == ["output0"]


def test_the_command_line_takes_a_laid_out_folder(folder: Path, tmp_path: Path) -> None:
    """Labels lie beside the pictures; the artefact keeps the scores."""
    recipe = quick(yolov8.recipe("minmax"))
    recipe.save(tmp_path / "quick.toml")
    line = [
        sys.executable, "-m", "leadline.cli", "quantize", str(folder / "detector.onnx"), "--data", str(folder / "coco"),
        "--letterbox", "--recipe", str(tmp_path / "quick.toml"), "--out", str(tmp_path / "out"), "--threads", "1",
        "--json",
    ]  # fmt: skip
    done = subprocess.run(line, capture_output=True, text=True, timeout=300)
    assert done.returncode == 0, done.stderr
    steps = [record for record in json.loads(done.stdout)["steps"] if record["step"] == "heads"]
    assert any("keep their extremes" in record["note"] for record in steps)
