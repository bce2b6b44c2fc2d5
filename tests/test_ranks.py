"""Every operator at every rank through every step, recipe and artefact: the same function throughout, no traceback."""

from __future__ import annotations

import itertools
from importlib import import_module

import numpy as np
import onnx
import pytest

from graph_models import FLOAT_NOISE, model, node
from leadline.data import load_samples
from leadline.graph import Graph
from leadline.pipeline import quantize
from leadline.preparation import prepare
from leadline.recipe import Calibrate, Equalize, Fold, Heads, Recipe, Rotate, Round, Smooth
from leadline.steps import apply
from leadline.targets.litert.match import to_tflite
from leadline.types import Scheme
from rank_runs import OWN, feeds, furthest, run_through
from ranks import NETWORKS

NAMES = list(NETWORKS)
RECIPES = {name: Recipe.load(name) for name in Recipe.names()} | OWN


@pytest.mark.parametrize("name", NAMES)
def test_reading_and_folding_keep_the_function(name):
    proto = NETWORKS[name]()
    graph = Graph.from_model(proto)
    assert furthest(proto, graph, feeds(proto, 2)) < FLOAT_NOISE
    graph.fold()
    assert furthest(proto, graph, feeds(proto, 2)) < FLOAT_NOISE


REWRITING = {
    "folded": (Fold(), Heads(), Equalize(absorb_bias=False), Rotate(), Smooth(shift=True)),
    "online": (Fold(), Rotate(online=True), Smooth(alpha=0.5)),
}


@pytest.fixture
def every_trial_wins(monkeypatch):
    """What steps would keep only where simulation gains, they keep."""
    for step in ("equalize", "rotate", "smooth"):
        errors = itertools.count()
        module = import_module(f"leadline.steps.{step}")
        monkeypatch.setattr(module, "trial_error", lambda *_, errors=errors: 0.5 ** next(errors))


@pytest.mark.parametrize("steps", REWRITING.values(), ids=REWRITING)
@pytest.mark.parametrize("name", NAMES)
def test_steps_that_rewrite_keep_the_function(name, steps, every_trial_wins):
    proto = NETWORKS[name]()
    recipe = Recipe("rewriting", (*steps, Calibrate(activations="minmax")))
    state, _ = prepare(Graph.from_model(proto), recipe, feeds(proto, 4), threads=1)
    for step in steps:
        apply(step, state)
    assert furthest(proto, state.graph, feeds(proto, 4)) < FLOAT_NOISE


@pytest.mark.slow
@pytest.mark.parametrize("name", NAMES[::3])
def test_recipes_run_through(name, tmp_path):
    """One recipe for each network, in turn; `rank_runs.py` runs all of them."""
    recipe = list(RECIPES.values())[NAMES.index(name) // 3 % len(RECIPES)]
    if recipe.name == "quantvggt-w4a4":  # leaves convolutions in float
        recipe = OWN["best-compensated"]
    result = run_through(NETWORKS[name](), recipe, tmp_path)
    assert {layer.weight for layer in result.graph.layers()} & result.codes.keys()
    assert (tmp_path / "model.qdq.onnx").exists()


@pytest.mark.slow
@pytest.mark.parametrize("name", NAMES[2::3])
def test_every_tensor_has_a_fitting_grid(name):
    """Judged on the very samples that ranges are from, with activations of 16 bits: what is left is the rounding of
    8-bit weights, some 40 dB below their largest."""
    proto = NETWORKS[name]()
    graph = Graph.from_model(proto)
    samples = load_samples(feeds(proto, 4), graph.inputs)
    recipe = Recipe("w8a16", (Fold(), Calibrate("minmax"), Round()), activations=Scheme(16, False, False))
    result = quantize(graph, recipe, samples, held_out=samples, threads=1)
    assert all(layer.weight in result.grids for layer in result.graph.layers())
    (score,) = result.verify(samples, threads=1).outputs
    assert score.sqnr > 30 and score.device > 30


@pytest.mark.filterwarnings("ignore:hexagon does not take")  # LSTM and GRU, named before the work
@pytest.mark.parametrize("name", NAMES[1::9])
def test_hexagon_fits_every_rank(name, tmp_path):
    result = run_through(NETWORKS[name](), RECIPES["w8a8"], tmp_path, target="hexagon")
    assert (tmp_path / "model.qdq.onnx").exists() and result.target.name == "hexagon"


@pytest.mark.parametrize("recipe", ["w8a8", "quartdepth-w4a4", "best-compensated", "activations-by-channel"])
@pytest.mark.parametrize("rank", range(6))
def test_further_inputs_of_every_rank(rank, recipe, tmp_path):
    """A factor inside and a summand behind the last layer, which probes of what follows a layer have to find."""
    rng, full = np.random.default_rng(0), (1, 2, 2, 3, 6)
    nodes = [
        node("MatMul", "x w1", "a", name="first"),
        node("Mul", "a factor", "b"),
        node("Relu", "b", "c"),
        node("MatMul", "c w2", "d", name="last"),
        node("Add", "d summand", "y"),
    ]
    weights = {name: rng.standard_normal((6, 6)).astype(np.float32) for name in ("w1", "w2")}
    proto = model(nodes, full, **weights)
    for name in ("factor", "summand"):
        proto.graph.input.append(onnx.helper.make_tensor_value_info(name, 1, full[5 - rank :]))
    samples = [
        {
            value.name: np.asarray(rng.random(full[5 - i :]), np.float32)
            for value, i in zip(proto.graph.input, (5, rank, rank), strict=True)
        }
        for _ in range(4)
    ]
    result = quantize(Graph.from_model(proto), RECIPES[recipe], samples, threads=1)
    assert result.verify(samples, threads=1).outputs[0].sqnr > 10
    result.save(tmp_path)


@pytest.mark.parametrize("kind", ["Conv{}d-plain", "Conv{}d-depthwise", "ConvTranspose{}d-grouped"])
@pytest.mark.parametrize("axes", [1, 2, 3])
def test_weights_take_the_layout_of_tflite(axes, kind):
    """(out, kernel, in), of depthwise ones (1, kernel, channels); transposed ones as the convolutions they undo."""
    graph = Graph.from_model(NETWORKS[kind.format(axes)]())
    layer = next(layer for layer in graph.layers() if layer.name == "middle")
    weight = graph.weights[layer.weight]
    moved = to_tflite(layer, weight)
    outputs, inputs = weight.shape[:2] if layer.kind != "transpose" else weight.shape[1::-1]
    wanted = (1, *[3] * axes, outputs) if layer.kind == "depthwise" else (outputs, *[3] * axes, inputs)
    assert moved.shape == wanted
    tap = (2, 1, 0)[:axes]
    for first, second in [(0, 0), (3, 0), (weight.shape[0] - 1, weight.shape[1] - 1)]:
        ends = (first, second) if layer.kind == "conv" else (second, first)
        assert moved[ends[0], *tap, ends[1]] == weight[first, second, *tap]
