"""The steps on small networks: what they may change, what they must not, and what their log says."""

from __future__ import annotations

from dataclasses import replace

import numpy as np
import pytest
from onnx import helper

from data_samples import refused
from graph_models import model, node, random
from leadline.affine import dequantize
from leadline.affine import quantize as to_codes
from leadline.recipe import Calibrate, CorrectBias, Equalize, Fold, Override, Recipe, Round
from leadline.types import Scheme
from small_networks import (
    RELU,
    SHAPE,
    conv_chain,
    conv_relu6_depthwise,
    conv_relu_conv,
    draw,
    factors,
    gemm_relu_gemm,
    graph,
    layers,
    outputs,
    quantized,
    residual,
    samples,
    steps,
)

PLAIN = (Fold(), Calibrate("minmax", "minmax"), Round())
EQUALISED = (Fold(), Equalize(absorb_bias=False), Calibrate("minmax", "minmax"), Round())
# Scaling two float32 weights rounds each once, 6e-8; sums over a few hundred products keep well under this.
SAME = 1e-5


def db(wanted: np.ndarray, got: np.ndarray) -> float:
    return 10 * np.log10(np.square(wanted).sum() / np.square(wanted - got).sum())


def simulated(quantised, data):
    """The artefact run as written. Fused kernels stray from it where the processor's saturate."""
    return outputs(quantised.to_qdq(), data, optimize=False)["y"]


def records(quantised, step, kept=None):
    return [r for r in quantised.log if r.step == step and kept in (None, r.kept)]


CHAINS = {
    "conv-relu-conv": conv_relu_conv,
    "conv-relu6-depthwise": conv_relu6_depthwise,
    "gemm-relu-gemm": gemm_relu_gemm,
}


@pytest.mark.parametrize("build", CHAINS.values(), ids=CHAINS)
def test_equalize_changes_the_weights_and_not_the_function(build):
    before = graph(build())
    after = quantized(before, steps(*EQUALISED))
    data = samples(4, before.inputs[0].shape, seed=7)
    wanted, got = outputs(before, data)["y"], outputs(after.graph, data)["y"]
    np.testing.assert_allclose(got, wanted, rtol=SAME, atol=SAME * np.abs(wanted).max())
    assert records(after, "equalize", kept=True)
    assert not np.allclose(after.graph.weights["w1"], before.weights["w1"], rtol=0.1)


@pytest.mark.parametrize("build", CHAINS.values(), ids=CHAINS)
def test_equalize_helps_skewed_channels(build):
    before = graph(build())
    data = samples(4, before.inputs[0].shape, seed=7)
    wanted = outputs(before, data)["y"]
    plain, equalised = (quantized(before, steps(*s)) for s in (PLAIN, EQUALISED))
    gain = db(wanted, simulated(equalised, data)) - db(wanted, simulated(plain, data))
    assert gain > 6  # a bit at least: the channels differ by ten of them


def test_what_equalize_keeps_has_lowered_the_error():
    for build in (conv_relu_conv, residual):
        for record in records(quantized(build()), "equalize", kept=True):
            assert record.before is not None and record.after < record.before


def test_equalize_leaves_the_caller_s_graph_alone():
    network = graph(conv_relu_conv())
    before = {name: weight.copy() for name, weight in network.weights.items()}
    quantized(network)
    assert network.weights.keys() == before.keys()
    assert all(np.array_equal(network.weights[name], before[name]) for name in before)
    assert [n.op_type for n in network.nodes] == ["Conv", "Relu", "Conv"]


BENT = {
    "Gelu": [node("Gelu", "a", "b")],
    "HardSwish": [node("HardSwish", "a", "b")],
    "Sigmoid": [node("Sigmoid", "a", "s"), node("Mul", "a s", "b")],
    "HardSigmoid": [node("HardSigmoid", "a", "s"), node("Mul", "a s", "b")],
    "Tanh": [node("Tanh", "a", "b")],
}


@pytest.mark.parametrize("op", BENT)
def test_equalize_refuses_what_does_not_commute_and_says_why(op):
    proto = conv_chain(*BENT[op])
    proto.opset_import[0].version = 20
    before = graph(proto)
    after = quantized(before, steps(*EQUALISED))
    assert any(r.target == "first" and op in r.note and not r.kept for r in records(after, "equalize"))
    assert np.array_equal(after.graph.weights["w1"], before.weights["w1"])


def test_equalize_has_nothing_to_do_where_activations_stay_float():
    before = graph(conv_relu_conv())
    after = quantized(before, steps(*EQUALISED, activations=None))
    assert np.array_equal(after.graph.weights["w1"], before.weights["w1"])
    assert records(after, "equalize", kept=False)


def test_a_branch_between_two_layers_is_not_a_chain():
    proto = conv_chain(RELU)
    proto.graph.output.append(helper.make_tensor_value_info("b", 1, None))  # somebody else looks at the scaled tensor
    before = graph(proto)
    after = quantized(before, steps(*EQUALISED))
    assert np.array_equal(after.graph.weights["w1"], before.weights["w1"])


def test_absorbing_a_high_bias_changes_nothing_that_is_computed():
    proto = model(
        [node("Conv", "x w1 b1", "a", name="first"), RELU, node("Conv", "b w2 b2", "y", name="second")],
        SHAPE, w1=draw(1, 8, 3, 1, 1), b1=np.full(8, 40, np.float32), w2=draw(3, 4, 8, 1, 1), b2=draw(4, 4),
    )  # fmt: skip
    before = graph(proto)
    after = quantized(before, steps(Fold(), Equalize(), Calibrate("minmax", "minmax"), Round()))
    data = samples(4, seed=7)
    assert any("bias" in r.note for r in records(after, "equalize"))
    assert db(outputs(before, data)["y"], outputs(after.graph, data)["y"]) > 100


# -- CorrectBias ------------------------------------------------------------------------------------------------------


def single(bias: bool = True, op: str = "Conv"):
    weights = {"w": draw(1, 8, 3, 3, 3)} | ({"b": draw(2, 8)} if bias else {})
    return model([node(op, "x w b" if bias else "x w", "y", name="only", pads=[1, 1, 1, 1])], SHAPE, **weights)


COARSE = {"bits": 3}
FLOAT_OUT = Override("only", activations="float")
WHOLE = samples(16, seed=11) + 0.7  # a mean off zero, so that coarse weights shift the output


@pytest.mark.parametrize("bias", [True, False], ids=["bias", "no bias"])
def test_correct_bias_lowers_the_error_and_moves_only_biases(bias):
    base = steps(*PLAIN, overrides=(FLOAT_OUT, Override("only", weights=COARSE)))
    corrected = base.changed(steps=(*PLAIN, CorrectBias()))
    network = graph(single(bias))
    plain, better = quantized(network, base, WHOLE), quantized(network, corrected, WHOLE)
    fresh = samples(4, seed=12) + 0.7
    wanted = outputs(network, fresh)["y"]

    def error(q):
        return simulated(q, fresh) - wanted

    def shift(q):
        return np.abs(error(q).mean((0, 2, 3))).max()

    assert np.square(error(better)).sum() < np.square(error(plain)).sum()
    assert shift(better) < shift(plain) / 2
    assert np.array_equal(plain.codes["w"], better.codes["w"])
    name = layers(better)["only"].bias
    nearest = to_codes(better.graph.weights[name], better.grids[name])
    assert not np.array_equal(better.codes[name], nearest)
    if bias:
        assert np.array_equal(plain.codes["b"], to_codes(network.weights["b"], plain.grids["b"]))


def test_correct_bias_logs_what_it_measured():
    """The log's figures are those of the artefact itself, as far as one layer goes."""
    base = steps(*PLAIN, overrides=(FLOAT_OUT, Override("only", weights=COARSE)))
    plain = quantized(single(), base, WHOLE)
    corrected = quantized(single(), base.changed(steps=(*PLAIN, CorrectBias())), WHOLE)
    (record,) = [r for r in records(corrected, "correct-bias") if r.target == "only"]
    held_out = np.concatenate([feed["x"] for feed in corrected.held_out])
    wanted = outputs(corrected.graph, held_out)["y"]

    def squared(q):
        error = simulated(q, held_out).astype(np.float64) - wanted
        return np.square(error.mean((0, 2, 3))).sum()

    assert record.kept and record.before == pytest.approx(squared(plain), rel=1e-3)
    assert record.after == pytest.approx(squared(corrected), abs=1e-3 * record.before)


@pytest.mark.parametrize("build", [conv_relu_conv, conv_relu6_depthwise, gemm_relu_gemm, residual])
def test_correct_bias_keeps_only_what_lowers_held_out_error(build):
    seen = records(quantized(build(), steps(*PLAIN, CorrectBias())), "correct-bias")
    assert seen and all(r.kept == (r.after < r.before) for r in seen)
    assert {"head", "second"} & {r.target for r in seen}


# -- Calibrate --------------------------------------------------------------------------------------------------------

OBSERVERS = ["minmax", "moving-average", "percentile", "entropy", "mse", "sqnr", "octav"]


@pytest.mark.parametrize("observer", OBSERVERS)
def test_every_observer_gives_a_working_network(observer):
    network = graph(conv_relu_conv(skew=False))
    weights = "minmax" if observer == "moving-average" else observer
    q = quantized(network, steps(Fold(), Calibrate(observer, weights), Round()))
    data = samples(4, seed=7)
    # 8 bits over a normal distribution give 35 dB; what clips (entropy most of all) gives some of it away
    assert db(outputs(network, data)["y"], simulated(q, data)) > 15


@pytest.mark.parametrize("observer", OBSERVERS)
@pytest.mark.parametrize("value", [0.0, 3.0, -2.0, 1e-30])
def test_a_constant_activation_has_a_grid(observer, value):
    zeros = {"w": np.zeros((2, 3, 1, 1), np.float32), "b": np.zeros(2, np.float32)}
    proto = model([node("Conv", "x w b", "y", name="only")], SHAPE, **zeros)
    data = np.full((4, *SHAPE[1:]), value, np.float32)
    q = quantized(proto, steps(Calibrate(observer, "minmax"), Round()), data)
    grid = q.grids["x"]
    codes = to_codes(data, grid)
    assert (dequantize(to_codes(np.zeros(1, np.float32), grid), grid) == 0).all()
    np.testing.assert_allclose(dequantize(codes, grid), data, atol=float(grid.scale) / 2)
    assert (simulated(q, data) == 0).all()


@pytest.mark.parametrize("name", sorted({*Recipe.names()} - {"quantvggt-w4a4"}))  # which leaves convolutions in float
def test_a_dead_activation_works_under_every_recipe(name):
    """A ReLU that never fires, and a layer of zeros behind it."""
    q = quantized(conv_chain(RELU, b1=np.full(8, -1e3, np.float32), w2=np.zeros((4, 8, 3, 3), np.float32)), name)
    data = samples(2)
    np.testing.assert_allclose(simulated(q, data), outputs(q.graph, data)["y"], atol=0.005)
    if name == "minmax-w8a8":
        assert any(r.target == "relu" and "constant 0" in r.note for r in records(q, "calibrate"))


def test_the_constant_part_of_a_concat_has_a_grid():
    """A class token in front of the patches: else the Concat would compute in float."""
    token = random(1, 1, *SHAPE[2:], spread=0.5)
    nodes = [node("Conv", "x w", "c"), node("Concat", "t c", "j", axis=1), node("Conv", "j v", "y")]
    q = quantized(model(nodes, SHAPE, t=token, w=random(4, SHAPE[1], 1, 1), v=random(2, 5, 1, 1)), "minmax-w8a8")
    grid = q.grids["t"]
    assert grid.scheme.bits == 8 and grid.scheme.granularity == "tensor"
    assert np.abs(dequantize(q.codes["t"], grid) - token).max() <= 0.51 * float(grid.scale)


def test_infinity_inside_the_network_names_tensor_and_sample():
    proto = conv_chain(node("Div", "a zero", "b"), zero=np.zeros((1, 8, 1, 1), np.float32))
    with refused("b", "sample"):
        quantized(proto, steps(Calibrate("minmax", "minmax"), Round()))


def test_data_movement_shares_its_input_s_grid():
    q = quantized(residual())
    chain = [q.grids[n.outputs[0]] for n in q.graph.nodes if n.op_type in ("Add", "MaxPool", "Transpose", "Reshape")]
    assert len(chain) == 4
    assert all(grid == chain[0] for grid in chain)


def test_a_relu_takes_the_place_of_the_layer_before_it():
    q = quantized(residual())
    producers = q.graph.producers()
    relus = [n for n in q.graph.nodes if n.op_type == "Relu"]
    assert relus and all(n.outputs[0] in q.grids and n.inputs[0] not in q.grids for n in relus)
    assert all(producers[n.inputs[0]].op_type in ("Conv", "Gemm") for n in relus)


def biases_fit(q):
    """Every bias grid is int32 at input scale x weight scale: what integer kernels add without rescaling."""
    seen = 0
    for layer in q.graph.layers():
        if layer.bias in q.grids:
            grid, weight = q.grids[layer.bias], q.grids[layer.weight]
            repeats = grid.scale.size // max(weight.scale.size, 1)
            wanted = np.tile(np.atleast_1d(weight.scale), repeats) * q.grids[layer.input].scale
            np.testing.assert_allclose(grid.scale, wanted, rtol=1e-6)
            assert grid.scheme.bits == 32 and not grid.zero_point.any()
            seen += 1
    return seen


def test_the_first_and_last_layers_and_kinds_have_overrides_of_their_own():
    """Of a diamond: one layer before the branches, one in each, a head behind both, and one beside it."""
    nodes = [
        node("Conv", "x w", "a", name="stem", pads=[1, 1, 1, 1]),
        node("Relu", "a", "r"),
        node("Conv", "r v", "b", name="left", pads=[1, 1, 1, 1]),
        node("Conv", "r d", "c", name="right", pads=[1, 1, 1, 1], group=3),
        node("Add", "b c", "s"),
        node("Conv", "s u", "y", name="head", pads=[1, 1, 1, 1]),
        node("Conv", "b t", "z", name="aside", pads=[1, 1, 1, 1]),
    ]
    weights = {name: draw(i, 3, 3, 3, 3) for i, name in enumerate("wvut")}
    network = graph(model(nodes, SHAPE, "y z", **weights, d=draw(9, 3, 1, 3, 3)))
    ends = Override(kinds=("first", "last"), weights={"bits": 16})
    inner = Override(kinds=("depthwise",), weights={"bits": 4}, activations={"bits": 16})
    q = quantized(network, replace(Recipe.load("minmax-w8a8"), overrides=(ends, inner)))
    bits = {name: q.grids[layer.weight].scheme.bits for name, layer in layers(q).items()}
    assert bits == {"stem": 16, "left": 8, "right": 4, "head": 16, "aside": 16}
    assert q.grids["right"].scheme.bits == 16 and q.grids["left"].scheme.bits == 8


@pytest.mark.parametrize(("bits", "room"), [(4, 1.0), (8, 1.0), (9, 1.5), (16, 1.5)])
def test_wide_grids_reach_beyond_what_calibration_saw(bits, room):
    plan = steps(*PLAIN, activations=Scheme(bits, False, False, "tensor"))
    q = quantized(residual(), plan)
    for tensor, histogram in q.histograms.items():
        hi = float(q.grids[tensor].hi)
        assert hi == pytest.approx(room * float(histogram.hi), abs=float(q.grids[tensor].scale))


@pytest.mark.parametrize("name", ["w8a8", "w8a16", "minmax-w8a8"])
def test_biases_lie_on_the_product_of_scales(name):
    assert biases_fit(quantized(residual(), name)) == 4


def test_a_weight_shared_by_two_layers_has_one_grid_and_a_bias_each():
    nodes = [
        node("Conv", "x w bias", "a", name="first", pads=[1, 1, 1, 1]),
        RELU,
        node("Conv", "b w bias", "y", name="second", pads=[1, 1, 1, 1]),
    ]
    network = graph(model(nodes, SHAPE, w=draw(1, 3, 3, 3, 3), bias=draw(2, 3)))
    q = quantized(network)
    first, second = layers(q)["first"], layers(q)["second"]
    assert first.weight == second.weight and first.bias != second.bias
    assert biases_fit(q) == 2
    data = samples(4, seed=7)
    assert db(outputs(network, data)["y"], simulated(q, data)) > 20
    np.testing.assert_allclose(outputs(q.graph, data)["y"], outputs(network, data)["y"], atol=SAME * 10)


def grouped(op: str, group: int, bias: bool):
    shape = (6, 2 if op == "Conv" else 4, 3, 3) if group == 3 else (6, 6 if op == "Conv" else 4, 3, 3)
    channels = shape[0] if op == "Conv" else shape[1] * group
    inputs = "a w b" if bias else "a w"
    return model(
        [node("Conv", "x w0 b0", "a", name="stem"), node(op, inputs, "y", name="it", group=group)],
        SHAPE, w0=draw(1, 6, 3, 1, 1), b0=draw(2, 6), w=draw(3, *shape), **({"b": draw(4, channels)} if bias else {}),
    )  # fmt: skip


@pytest.mark.parametrize("bias", [True, False], ids=["bias", "no bias"])
@pytest.mark.parametrize("group", [1, 3])
@pytest.mark.parametrize("op", ["Conv", "ConvTranspose"])
@pytest.mark.parametrize("name", ["w8a8", "weight-only-int8", "int4-block128"])
def test_groups_and_transposed_convolutions(op, group, bias, name):
    network = graph(grouped(op, group, bias))
    q = quantized(network, name)
    grid = q.grids["w"]
    assert grid.scheme.granularity == "axis" and grid.scale.size == network.weights["w"].shape[grid.scheme.axis]
    biases_fit(q)
    data = samples(4, seed=7)
    assert db(outputs(network, data)["y"], simulated(q, data)) > 20
    outputs(q.to_qdq(), data)  # and onnxruntime's own fusions take it


def test_a_large_bias_enlarges_the_weight_s_scale_instead_of_overflowing():
    w1 = draw(1, 8, 3, 3, 3)
    w1[2] *= 1e-9
    network = graph(conv_chain(RELU, skew=False, w1=w1, b1=np.full(8, 5, np.float32)))
    q = quantized(network, "minmax-w8a8")
    assert any("enlarged" in r.note for r in records(q, "calibrate"))
    data = samples(4, seed=7)
    assert db(outputs(network, data)["y"], simulated(q, data)) > 20


def test_a_shared_weight_enlarged_for_one_bias_keeps_the_other_s_grid():
    w = draw(1, 3, 3, 3, 3)
    w[1] *= 1e-9
    nodes = [
        node("Conv", "x w b1", "a", name="first", pads=[1, 1, 1, 1]),
        RELU,
        node("Conv", "b w b2", "y", name="second", pads=[1, 1, 1, 1]),
    ]
    network = graph(model(nodes, SHAPE, w=w, b1=draw(2, 3), b2=draw(3, 3) + 500))
    q = quantized(network, "minmax-w8a8")
    assert any("enlarged" in r.note for r in records(q, "calibrate"))
    assert biases_fit(q) == 2


def test_a_pruned_channel_keeps_its_bias():
    """All its weights are zero, so any scale will do for them, but not for the bias."""
    w1 = draw(1, 8, 3, 3, 3)
    w1[3:6] = 0
    network = graph(conv_chain(RELU, skew=False, w1=w1, b1=np.full(8, 0.01, np.float32)))
    q = quantized(network, "minmax-w8a8")
    bias = layers(q)["first"].bias
    np.testing.assert_allclose(dequantize(q.codes[bias], q.grids[bias])[3:6], 0.01, rtol=1e-5)
    assert biases_fit(q) == 2


# -- Overrides --------------------------------------------------------------------------------------------------------


def test_one_layer_stays_float():
    q = quantized(residual(), Recipe.load("w8a8").changed(overrides=(Override("fc", weights="float"),)))
    assert "w3" not in q.grids and {"w1", "w2", "w4"} <= set(q.grids)
    outputs(q.to_qdq(), samples(1))


def test_one_layer_has_sixteen_bits():
    recipe = Recipe.load("minmax-w8a8").changed(
        overrides=(Override("fc_relu", activations={"bits": 16}), Override("fc", weights={"bits": 16}))
    )
    q = quantized(residual(), recipe)
    assert {name: q.grids[name].scheme.bits for name in ("w2", "w3", "w4")} == {"w2": 8, "w3": 16, "w4": 8}
    tensors = {n.name: n.outputs[0] for n in q.graph.nodes}
    assert q.grids[tensors["fc_relu"]].scheme.bits == 16 and q.grids[tensors["sum"]].scheme.bits == 8
    outputs(q.to_qdq(), samples(1), optimize=False)


def test_kinds_reach_their_layers():
    recipe = Recipe.load("minmax-w8a8").changed(overrides=(Override(kinds=("linear",), weights={"bits": 4}),))
    q = quantized(residual(), recipe)
    assert [q.grids[name].scheme.bits for name in ("w1", "w2", "w3", "w4")] == [8, 8, 4, 4]


@pytest.mark.parametrize("kind", ["token", "axis"])
def test_ranges_are_chosen_beside_grids_that_have_none_or_many(kind):
    overrides = (Override("second", activations={"granularity": kind, "bits": 8}),)
    plan = Recipe("test", (Fold(), Calibrate("best", "minmax"), Round()), activations=Scheme(4), overrides=overrides)
    q = quantized(conv_chain(node("Sigmoid", "a", "b")), plan, samples(16) ** 5)
    assert any("ranges by" in r.note for r in q.log)
    found = {grid.scheme.granularity for name, grid in q.grids.items() if name in q.graph.values}
    assert found == {"tensor", kind}


def test_a_single_number_has_no_channels():
    nodes = [
        node("Conv", "x w", "c", name="conv"),
        node("GlobalAveragePool", "c", "p"),
        node("Reshape", "p one", "m"),
        node("Add", "c m", "y"),
    ]
    network = model(nodes, SHAPE, w=draw(1, 1, 3, 3, 3), one=np.zeros(0, np.int64))
    plan = Recipe("test", (Calibrate("minmax", "minmax"), Round()), activations=Scheme(granularity="axis"))
    q = quantized(network, plan)
    assert q.graph.shape("m") == () and q.grids["m"].scheme.granularity == "tensor"


@pytest.mark.parametrize(
    "override",
    [
        Override("haed", weights="float"),
        Override("w3", weights={"bits": 4}),
        Override("blocks.*", activations="float"),
        Override("stem*", kinds=("linear",), weights="float"),
    ],
)
def test_a_pattern_that_matches_nothing_is_refused(override):
    with refused("pattern", "layers such as", "stem", repr(override.pattern)):
        quantized(residual(), Recipe.load("minmax-w8a8").changed(overrides=(override,)))


@pytest.mark.parametrize("given", [(), (Fold(),), (Fold(), Round()), (Fold(), Equalize()), (Round(), CorrectBias())])
def test_a_recipe_that_never_calibrates_is_refused(given):
    with refused("recipe test: ", "calibrate"):
        quantized(conv_relu_conv(), steps(*given))


def test_a_recipe_that_never_rounds_is_still_an_artefact():
    q = quantized(conv_relu_conv(skew=False), steps(Fold(), Calibrate("minmax", "minmax")))
    outputs(q.to_qdq(), samples(1))


def test_a_network_without_layers_is_refused_or_quantised():
    proto = model([node("Relu", "x", "y")], SHAPE)
    q = quantized(proto, "minmax-w8a8")
    assert q.grids
    with refused("layer to quantise"):
        quantized(proto, "weight-only-int8")


def test_factors_span_what_the_tests_say():
    assert factors(8).max() / factors(8).min() > 2**9
