"""What makes an artefact a simulation: said, and no encodings are written that would leave it out."""

from __future__ import annotations

import pytest

from leadline.export.limits import limits
from leadline.graph import Graph
from leadline.recipe import Calibrate, Fold, Override, Polish, Recipe, Round
from leadline.steps.rotate import rotate_inputs
from leadline.types import Scheme
from small_networks import conv_relu_conv, gemm_relu_gemm, quantized, residual

ALL = ["model.encodings", "model.encodings.onnx", "model.fp32.onnx", "model.qdq.onnx", "run.json"]


def run(proto, *before, activations=None, weights=None, **fields):
    steps = (Fold(), *before, Calibrate("minmax", "minmax"), Round())
    given = {"weights": weights} if weights else {}
    return quantized(proto, Recipe("test", steps, activations=activations or Scheme(), **given, **fields))


def written(q, folder) -> list[str]:
    q.save(folder)
    return sorted(file.name for file in folder.iterdir())


@pytest.mark.parametrize(
    "fields",
    [
        {},
        {"scope": "layers"},
        {"weights": Scheme(4, signed=True, symmetric=True, granularity="axis")},
        {"weights": Scheme(4, signed=True, symmetric=True, granularity="block", block_size=16)},
        {"activations": Scheme(16)},
        {"overrides": (Override("*c*", activations="float"),)},
    ],
    ids=str,
)
def test_what_a_device_runs_has_no_limits(fields, tmp_path):
    q = run(residual(), **fields)
    assert q.limits == []
    assert written(q, tmp_path) == ALL


@pytest.mark.parametrize(("granularity", "what"), [("axis", "channel"), ("token", "token")])
def test_activations_with_many_scales_are_a_limit(granularity, what, tmp_path):
    q = run(gemm_relu_gemm(), activations=Scheme(granularity=granularity), scope="layers")
    assert q.limits == [f"2 activations with a scale per {what}, such as {q.graph.layers()[0].input}"]
    assert written(q, tmp_path) == ALL[2:]


def test_weights_with_many_scales_are_none():
    q = run(conv_relu_conv())
    kinds = {name: grid.scheme.granularity for name, grid in q.grids.items()}
    assert {kinds[layer.weight] for layer in q.graph.layers()} == {"axis"}
    assert q.limits == []


def test_rotations_at_run_time_are_a_limit_and_counted():
    graph = Graph.from_model(gemm_relu_gemm())
    rotate_inputs(graph)
    millions = 32 * (16**2 + 10**2) / 1e6
    assert limits(graph, {}) == [f"2 rotations at run time, {millions:.3g} million multiplications"]
    q = run(graph)
    assert q.limits == limits(graph, {})


def test_every_limit_has_its_line(tmp_path):
    channel, token = (
        Override(name, activations={"granularity": kind}) for name, kind in (("second", "axis"), ("relu", "token"))
    )
    q = run(conv_relu_conv(), Polish(adaptive=False), overrides=(channel, token))
    assert q.limits == [
        "1 activations with a scale per channel, such as y",
        "1 activations with a scale per token, such as relu",
        "1 tensors whose logarithm is quantised: look-up tables, or float operators, at run time",
    ]
    assert written(q, tmp_path) == ALL[2:]


def test_a_later_run_leaves_no_encodings_of_an_earlier_one(tmp_path):
    deployable, simulated = run(conv_relu_conv()), run(conv_relu_conv(), activations=Scheme(granularity="token"))
    assert written(deployable, tmp_path) == ALL
    assert written(simulated, tmp_path) == ALL[2:]
    assert written(deployable, tmp_path) == ALL
