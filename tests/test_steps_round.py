"""The round step: codes chosen on the quantised path, kept where held-out error falls, for every kind of layer."""

from __future__ import annotations

from dataclasses import replace

import numpy as np
import pytest

from graph_models import model, node
from leadline.affine import fake_quantize
from leadline.affine import quantize as to_codes
from leadline.gram import Gram
from leadline.preparation import simulate
from leadline.progress import Quiet
from leadline.recipe import Calibrate, CorrectBias, Fold, Recipe, Round
from leadline.steps.gate import LUCK
from leadline.steps.path import stages
from leadline.steps.state import Setup, State
from leadline.types import Scheme
from small_networks import (
    SHAPE,
    conv_relu6_depthwise,
    conv_relu_conv,
    draw,
    gemm_relu_gemm,
    graph,
    layers,
    outputs,
    quantized,
    residual,
    samples,
)

W4 = Scheme(4, signed=True, symmetric=True, granularity="axis", narrow=True)
METHODS = ["descent", "gptq", "adaround", "best"]


def correlated(count: int, shape: tuple[int, ...], seed: int = 0) -> np.ndarray:
    """Samples as networks meet them: neighbouring values are alike, and nothing is centred. On white noise nearest
    rounding is the best there is."""
    noise = np.random.default_rng(seed).standard_normal((count * shape[0], *shape[1:]))
    for axis in range(1, noise.ndim):
        noise = 0.3 * noise + 0.7 * np.roll(noise, 1, axis) + 0.4 * np.roll(noise, 2, axis)
    return (noise + 0.7).astype(np.float32)


def recipe(method: str, weights: Scheme = W4) -> Recipe:
    return Recipe("test", (Fold(), Calibrate("minmax", "mse"), Round(method), CorrectBias()), weights=weights)


def upsampling():
    """Transposed convolutions: one that tiles its output, one whose taps overlap."""
    return model(
        [
            node("ConvTranspose", "x w1 b1", "a", name="tiles", strides=[2, 2]),
            node("Relu", "a", "b"),
            node("ConvTranspose", "b w2", "y", name="overlaps", strides=[2, 2], pads=[1, 1, 1, 1]),
        ],
        SHAPE,
        w1=draw(1, 3, 8, 2, 2), b1=draw(2, 8), w2=draw(3, 8, 4, 4, 4),
    )  # fmt: skip


NETWORKS = {
    "conv": lambda: conv_relu_conv(skew=False),
    "depthwise": conv_relu6_depthwise,
    "linear": gemm_relu_gemm,
    "residual": residual,
    "upsampling": upsampling,
}


@pytest.mark.parametrize("method", METHODS)
@pytest.mark.parametrize("build", NETWORKS.values(), ids=NETWORKS)
def test_chosen_codes_are_better_than_nearest_ones(build, method):
    shape = graph(build()).inputs[0].shape
    given = correlated(64, shape)
    near, chosen = (quantized(build(), recipe(m), given) for m in ("nearest", method))
    records = [r for r in chosen.log if r.step == "round" and r.before is not None]
    assert records and all((r.after < r.before) == r.kept for r in records)
    for record in records:
        weight = layers(chosen)[record.target].weight
        same = np.array_equal(chosen.codes[weight], to_codes(chosen.graph.weights[weight], chosen.grids[weight]))
        assert record.kept != same
    assert any(r.kept for r in records)
    if build not in (NETWORKS["conv"], NETWORKS["depthwise"]):
        return  # what a random layer behind others makes of smaller errors is luck
    data = correlated(8, shape, seed=7)
    wanted = outputs(graph(build()), data)["y"]

    def error(q):
        return np.square(wanted - outputs(q.to_qdq(), data, optimize=False)["y"]).mean()

    assert error(chosen) < 0.9 * error(near)


@pytest.mark.parametrize("method", ["descent", "adaround"])
def test_outputs_make_up_for_one_another_where_the_network_gains(method):
    data = correlated(64, graph(residual()).inputs[0].shape)
    plain = recipe(method, replace(W4, bits=3))
    steps = tuple(replace(step, kfac=True) if isinstance(step, Round) else step for step in plain.steps)
    coupled, without = quantized(residual(), replace(plain, steps=steps), data), quantized(residual(), plain, data)
    asked = {r.target: r for r in coupled.log if "K-FAC" in r.note}
    assert asked.keys() == {"stem", "branch", "fc"}
    for name, record in asked.items():
        weight = layers(coupled)[name].weight
        assert record.kept != np.array_equal(coupled.codes[weight], without.codes[weight])
        assert record.after < record.before or not record.kept
    assert not asked["branch"].kept  # where the network loses, it has not
    assert asked["fc"].kept or method == "adaround"  # which has looked at what held-out samples gain
    for record in coupled.log:
        if "K-FAC" in record.note:
            assert record.kept == (record.after < record.before / LUCK)


def test_nearest_is_nearest():
    q = quantized(residual(), Recipe("test", (Fold(), Calibrate("minmax", "mse"), Round()), weights=W4))
    for name, codes in q.codes.items():
        assert np.array_equal(codes, to_codes(q.graph.weights[name], q.grids[name]))


def test_what_cannot_be_chosen_is_said():
    q = quantized(conv_relu_conv(), recipe("gptq"), 1e19 * correlated(8, SHAPE))
    (note,) = (r for r in q.log if r.target == "first" and r.step == "round")
    assert note.note == "nearest: its input x reaches 1e+18, whose square is beyond float32" and not note.kept
    twice = model(
        [
            node("Conv", "x w", "a", name="one", pads=[1, 1, 1, 1]),
            node("Relu", "a", "b"),
            node("Conv", "b w", "y", name="two", pads=[1, 1, 1, 1]),
        ],
        SHAPE,
        w=draw(1, 3, 3, 3, 3),
    )
    q = quantized(twice, recipe("gptq"))
    assert [r.note for r in q.log if r.step == "round"] == ["nearest: 2 layers share its weight"] * 2


def test_moments_are_those_of_the_quantised_path():
    """Against the whole network run with everything upstream quantised, for the last layer."""
    network = graph(residual())
    plan = recipe("gptq")
    q = quantized(residual(), plan)
    given = q.held_out
    state = State(Setup(plan, given, given, Quiet(), simulate, 1), q.graph)
    state.grids, state.codes = dict(q.grids), dict(q.codes)
    last = layers(q)["head"]
    found = {}
    for stage in stages(state, q.graph.layers()):
        found |= stage.seen
    gram = Gram(128)
    with simulate(state, [last.input]) as session:
        for feed in given:
            gram.update(fake_quantize(session.run(feed)[last.input], q.grids[last.input]))
    np.testing.assert_allclose(found["head"].matrix(), gram.matrix(), rtol=1e-6, atol=1e-9)
    assert len(network.layers()) == len(found)


def test_later_layers_see_earlier_choices():
    """Sequential: what the second layer's moments come through has the first one's chosen codes."""
    given = correlated(16, SHAPE)
    chosen = quantized(conv_relu_conv(skew=False), recipe("gptq"), given)
    near = quantized(conv_relu_conv(skew=False), recipe("nearest"), given)
    assert not np.array_equal(chosen.codes["w1"], near.codes["w1"])
    data = samples(4, seed=8)
    first = [outputs(q.to_qdq(), data, optimize=False, outputs=["y"])["y"] for q in (chosen, near)]
    assert not np.array_equal(*first)


@pytest.mark.parametrize("build", [NETWORKS["conv"], NETWORKS["depthwise"], upsampling])
def test_mean_errors_go_into_the_bias(build):
    """Rounded against centred moments, a layer may be off by a constant: its bias takes that out at once."""
    shape = graph(build()).inputs[0].shape
    plan = Recipe("test", (Fold(), Calibrate("minmax", "mse"), Round("gptq")), weights=W4)
    q = quantized(build(), plan, correlated(32, shape))
    first = next(layer for layer in q.graph.layers() if layer.bias is not None)
    data = correlated(16, shape, seed=5)
    wanted, got = (
        outputs(network, data, optimize=False, outputs=[first.output])[first.output]
        for network in (q.graph, alone(q, first).to_qdq())
    )
    error = (got - wanted).mean((0, 2, 3))
    spread = (got - wanted).std((0, 2, 3))
    assert (np.abs(error) < 0.5 * spread + 1e-3).all()


def alone(q, layer):
    """Only one layer is quantised, and its input, so that its own output can be seen."""
    names = (layer.input, layer.weight, layer.bias)
    codes = {name: q.codes[name] for name in names if name in q.codes}
    return replace(q, grids={name: q.grids[name] for name in names}, codes=codes)


@pytest.mark.parametrize("method", ["nearest", "best"])
@pytest.mark.parametrize("build", [NETWORKS["conv"], NETWORKS["depthwise"]])
def test_compensation_lowers_the_error_further(build, method):
    """Activations of 4 bits: their errors are what weights can make up for."""
    shape = graph(build()).inputs[0].shape
    given, data = correlated(64, shape), correlated(16, shape, seed=7)
    wanted = outputs(graph(build()), data)["y"]
    errors = []
    for compensate in (False, True):
        plan = Recipe(
            "test",
            (Fold(), Calibrate("minmax", "mse"), Round(method, compensate), CorrectBias()),
            weights=W4,
            activations=Scheme(4),
        )
        q = quantized(build(), plan, given)
        errors.append(np.square(wanted - outputs(q.to_qdq(), data, optimize=False)["y"]).mean())
        notes = [r.note for r in q.log if r.step == "round"]
        assert any("compensated" in note for note in notes) == compensate
    assert errors[1] < errors[0]


@pytest.mark.parametrize("method", ["gptq", "best"])
def test_threads_and_repetition_do_not_matter(method):
    runs = [quantized(residual(), recipe(method)).codes for _ in range(2)]
    for name in runs[0]:
        assert np.array_equal(runs[0][name], runs[1][name])
