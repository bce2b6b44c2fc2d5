"""From a Quantized through torch and litert-torch to a .tflite of its integers that computes what the simulation says.

Needs an environment of its own: torch, litert-torch (see the Makefile's test-litert)."""

from __future__ import annotations

import json
import subprocess
import sys
from collections.abc import Callable
from functools import cache
from pathlib import Path
from typing import Any

import numpy as np
import pytest

import testbed
from graph_models import model, node
from head_networks import KINDS as HEADS
from head_networks import frames
from leadline import Preprocess, quantize
from leadline.data import Data, Samples, load_samples
from leadline.depth import networks, scenes
from leadline.graph import Graph, Session
from leadline.pipeline import Quantized
from leadline.recipe import Calibrate, Fold, Heads, Recipe, Round
from leadline.targets.litert import calibrate as tflite
from leadline.targets.litert.files import float_operators
from leadline.targets.litert.read import read
from leadline.targets.litert.run import Interpreter
from leadline.types import InputError
from masked_networks import attention, feeds
from small_networks import draw, samples
from small_tflite import verified
from small_transformer import transformer

pytest.importorskip("litert_torch", reason="litert-torch is not installed", exc_type=ImportError)

pytestmark = [
    pytest.mark.full,
    # torch, torchao and litert-torch warn about themselves while they load and convert
    pytest.mark.filterwarnings("ignore"),
]


def convolutional() -> Graph:
    """Conv + Relu, depthwise + clamp to 6, sum, transposed, resize, GELU between linear layers behind a LayerNorm."""
    nodes = [
        node("Conv", "x w1 b1", "c1", name="first", pads=[1, 1, 1, 1]),
        node("Relu", "c1", "r1"),
        node("Conv", "r1 w2 b2", "c2", name="depthwise", pads=[1, 1, 1, 1], group=8),
        node("Clip", "c2 lo hi", "r2"),
        node("Add", "r1 r2", "sum"),
        node("ConvTranspose", "sum w3 b3", "up", name="up", strides=[2, 2]),
        node("Resize", "up - scales", "large", mode="linear", coordinate_transformation_mode="half_pixel"),
        node("Transpose", "large", "tokens", perm=[0, 2, 3, 1]),
        node("LayerNormalization", "tokens g b", "norm"),
        node("MatMul", "norm w4", "m4", name="wide"),
        node("Add", "m4 b4", "l4"),
        node("Gelu", "l4", "active"),
        node("MatMul", "active w5", "m5", name="narrow"),
        node("Add", "m5 b5", "l5"),
        node("Softmax", "l5", "y"),
    ]  # fmt: skip
    weights: dict[str, Any] = {
        "w1": draw(1, 8, 3, 3, 3), "b1": draw(2, 8), "w2": draw(3, 8, 1, 3, 3), "b2": draw(4, 8),
        "w3": draw(5, 8, 8, 2, 2), "b3": draw(6, 8), "g": 1 + draw(7, 8), "b": draw(8, 8),
        "w4": draw(9, 8, 16), "b4": draw(10, 16), "w5": draw(11, 16, 4), "b5": draw(12, 4),
        "lo": np.float32(0), "hi": np.float32(6), "scales": np.float32([1, 1, 2, 2]),
    }  # fmt: skip
    return Graph.from_model(model(nodes, (1, 3, 12, 12), opset=20, **weights))


def float_path(graph: Graph, content: bytes, feed: dict[str, np.ndarray]) -> float:
    runner = Interpreter(content, "plain", 1)
    got = runner.run(dict(zip(runner.inputs, feed.values(), strict=True)))
    with Session(graph, optimize=False, threads=1) as session:
        wanted = session.run(feed)
    pairs = zip(wanted.values(), got.values(), strict=True)
    return max(float(np.abs(a - b).max() / a.std()) for a, b in pairs)


@pytest.fixture(scope="module")
def small() -> tuple[Quantized, tflite.Converted]:
    done = quantize(convolutional(), "w8a8", samples(16), threads=1)
    return done, tflite.plan(done, threads=1)


def test_the_float_network_is_the_graph(small: tuple[Quantized, tflite.Converted]) -> None:
    done, plan = small
    assert float_path(done.graph, plan.content, next(iter(done.held_out))) < 1e-4


def test_every_layer_is_found_and_keeps_its_integers(small: tuple[Quantized, tflite.Converted]) -> None:
    done, plan = small
    assert plan.notes == () and plan.matching.missing == ()
    assert set(plan.matching.layers) == {layer.name for layer in done.graph.layers()}
    kinds = {name: site.operator.type for name, site in plan.matching.layers.items()}
    assert kinds == {
        "first": "CONV_2D", "depthwise": "DEPTHWISE_CONV_2D", "up": "TRANSPOSE_CONV", "wide": "FULLY_CONNECTED",
        "narrow": "FULLY_CONNECTED",
    }  # fmt: skip
    tensors = read(plan.content).main.tensors
    for layer in done.graph.layers():
        grid, codes = plan.parameters[tensors[plan.matching.layers[layer.name].weight].name]
        assert np.array_equal(np.sort(codes, None), np.sort(done.codes[layer.weight], None))
        assert np.array_equal(grid.scale, done.grids[layer.weight].scale)
    operators = {operator.type for operator in read(plan.content).main.operators}
    assert "GELU" in operators and "MAXIMUM" not in operators


@pytest.mark.parametrize("preset", ["cpu", "npu"])
def test_the_kernels_compute_what_the_simulation_says(
    small: tuple[Quantized, tflite.Converted], preset: Any, tmp_path: Path
) -> None:
    done, plan = small
    tflite.save(plan, tmp_path / "m.tflite", preset=preset)
    found = verified(done.graph, tmp_path / "m.tflite", done.held_out, plan=plan)
    assert found.facts.differing == ()
    (score,) = found.outputs
    assert score.sqnr > 20
    assert abs(score.device - score.sqnr) < 1.0
    assert abs(found.facts.others["reference"][score.name].sqnr - score.sqnr) < 1.0
    if preset == "npu":
        assert float_operators(read((tmp_path / "m.tflite").read_bytes()).main) == {}


@pytest.mark.parametrize("recipe", ["int4-block128", "weight-only-int8"])
def test_weights_alone(recipe: str, tmp_path: Path) -> None:
    done = quantize(transformer(width=64), recipe, samples(8, transformer(width=64).inputs[0].shape), threads=1)
    plan = tflite.plan(done, threads=1)
    assert plan.activations == {} and plan.matching.missing == ()
    name, preset, _ = tflite.named(recipe)
    tflite.save(plan, tmp_path / "m.tflite", preset=preset)
    found = verified(done.graph, tmp_path / "m.tflite", done.held_out, plan=plan)
    assert name.name == recipe and found.facts.differing == ()
    (score,) = found.outputs
    assert abs(score.device - score.sqnr) < 1.0


@pytest.mark.parametrize("kind", ["yolov5, split", "yolov8", "ssd"])
def test_heads_of_more_bits_stay_in_float(kind: str, tmp_path: Path) -> None:
    recipe = Recipe.load("minmax-w8a8")
    recipe = recipe.changed(steps=(Fold(), Heads(widen=0.0), Calibrate("minmax", "minmax"), Round("nearest")))
    done = quantize(Graph.from_model(HEADS[kind]()), recipe, np.concatenate(frames(8)), threads=1)
    wide = {name for name, grid in done.grids.items() if grid.scheme.bits == 16}
    plan = tflite.save(done, tmp_path / "m.tflite")
    assert wide and plan.activations and all(grid.scheme.bits == 8 for grid in plan.activations.values())
    assert any("stay in float: LiteRT mixes no widths" in note for note in plan.notes)
    found = verified(done.graph, tmp_path / "m.tflite", done.held_out, plan=plan, kernels=("xnnpack",))
    assert found.facts.differing == () and found.collapse == []
    for score in found.outputs:
        assert score.sqnr > 20 and abs(score.device - score.sqnr) < 1.0


@pytest.mark.parametrize(("kind", "value"), [("add", -np.inf), ("where", -np.inf), ("bool", -1e9)])
def test_masks_set_no_range(kind: str, value: float, tmp_path: Path) -> None:
    proto, make = attention(kind, value)
    data = feeds(make, 100, 8)
    done = quantize(Graph.from_model(proto, data[0]), "minmax-w8a8", data, threads=1)
    plan = tflite.save(done, tmp_path / "m.tflite")
    found = verified(done.graph, tmp_path / "m.tflite", done.held_out, plan=plan, kernels=("xnnpack",))
    (score,) = found.outputs
    assert found.facts.differing == () and score.sqnr > 20 and abs(score.device - score.sqnr) < 1.0


def test_what_the_converter_does_not_take_is_refused_in_one_sentence() -> None:
    """A power of two tensors over five axes."""
    nodes = [node("Sigmoid", "x", "a"), node("Reshape", "a five", "b"), node("Pow", "b exponents", "y")]
    shapes = {"five": np.array([1, 3, 4, 2, 2]), "exponents": np.float32([1.5, 2.5])}
    with pytest.raises(InputError, match=r"^\[convert\] '.*' must go through torch\.export and litert-torch\. [^\n]*$"):
        tflite.convert(Graph.from_model(model(nodes, (1, 3, 4, 4), **shapes)))


def test_refusals_before_torch_is_asked() -> None:
    done = quantize(convolutional(), "w8a16", samples(8), threads=1)
    with pytest.raises(InputError, match=r"the grid of activation '.*' must have 8 bits and one scale\. Received 16"):
        tflite.plan(done, threads=1)


@pytest.mark.slow
@pytest.mark.parametrize("preset", ["cpu", "npu"])
@pytest.mark.parametrize("name", ["D", "tinydepth"])
def test_real_networks_within_a_decibel_of_the_simulation(
    real: Callable[[str], tuple[Quantized, tflite.Converted, Samples]], name: str, preset: Any, tmp_path: Path
) -> None:
    done, plan, held = real(name)
    assert plan.matching.missing == ()
    tflite.save(plan, tmp_path / "m.tflite", preset=preset)
    found = verified(done.graph, tmp_path / "m.tflite", held, plan=plan, kernels=("xnnpack",))
    assert found.facts.differing == ()
    for score in found.outputs:
        assert score.sqnr > 18 and abs(score.device - score.sqnr) < 1.0


@pytest.fixture(scope="module")
def real(tmp_path_factory: pytest.TempPathFactory) -> Callable[[str], tuple[Quantized, tflite.Converted, Samples]]:
    @cache
    def quantized(name: str) -> tuple[Quantized, tflite.Converted, Samples]:
        if name == "D":
            path, given, held = testbed.need("D"), testbed.pictures("calibration"), testbed.pictures("evaluation")
            preprocess = Preprocess.from_dict(testbed.preprocess("D"))
        else:
            folder, path, preprocess = tmp_path_factory.mktemp(name), networks.path(), Preprocess(**networks.PREPROCESS)
            given, held = (_written(folder / part, seeds) for part, seeds in (("a", range(12)), ("b", range(30, 38))))
        done = quantize(path, "w8a8", Data(given, preprocess=preprocess), threads=1)
        return done, tflite.plan(done, threads=1), load_samples(Data(held, preprocess=preprocess), done.graph.inputs)

    return quantized


@pytest.mark.slow
def test_the_command_takes_an_onnx_network(tmp_path: Path) -> None:
    pictures, out = _written(tmp_path / "pictures", range(4)), tmp_path / "out"
    means = [f"--{name}={','.join(map(str, networks.PREPROCESS[name]))}" for name in ("mean", "std")]
    command = [sys.executable, "-m", "leadline.cli", "quantize", "--target=litert", str(networks.path())]
    more = [f"--data={pictures}", f"--out={out}", "--recipe=minmax-w8a8", "--preset=npu", "--threads=1", "--json"]
    done = subprocess.run([*command, *more, *means], check=False, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    report = json.loads((out / "report.json").read_text("utf-8"))
    (score,) = report["verification"]["outputs"]
    assert report["target"]["options"]["preset"] == "npu" and abs(score["device"] - score["sqnr"]) < 1.5
    assert read((out / "model.tflite").read_bytes()).main.tensors


def _written(folder: Path, seeds: range) -> Path:
    from PIL import Image

    folder.mkdir()
    for seed in seeds:
        Image.fromarray(scenes.views(seed)[0].rgb).save(folder / f"{seed}.png")
    return folder
