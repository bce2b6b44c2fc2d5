"""Activations with a scale per channel or per token, and grids for what layers read alone."""

from __future__ import annotations

import numpy as np
import pytest

from data_samples import refused
from graph_models import model, node
from leadline.affine import choose_grid, fake_quantize, range_of
from leadline.export import encodings, qdq
from leadline.graph import Graph
from leadline.recipe import Calibrate, CorrectBias, Fold, Override, Recipe, Round
from leadline.types import Grid, Scheme
from small_networks import SHAPE, conv_relu_conv, draw, gemm_relu_gemm, graph, outputs, quantized, residual, samples
from small_transformer import Builder, transformer

CHANNEL, TOKEN = (Scheme(granularity=kind) for kind in ("axis", "token"))
SIGNED = Scheme(6, signed=True, symmetric=True, granularity="token", narrow=True)


def run(network, activations: Scheme | None = None, observer: str = "minmax", data=None, **fields):
    steps = fields.pop("steps", (Fold(), Calibrate(observer, "minmax"), Round()))
    fields |= {"activations": activations} if activations else {}
    return quantized(network, Recipe("test", steps, **fields), data)


def activations(q) -> dict[str, Grid]:
    return {name: grid for name, grid in q.grids.items() if name in q.graph.values}


NETWORKS = {"pictures": lambda: graph(residual()), "rows": lambda: graph(gemm_relu_gemm()), "tokens": transformer}


@pytest.mark.parametrize("build", NETWORKS.values(), ids=NETWORKS)
@pytest.mark.parametrize("scheme", [Scheme(), CHANNEL, TOKEN], ids=["tensor", "axis", "token"])
def test_the_scope_layers_gives_grids_to_their_inputs_alone(build, scheme):
    q = run(build(), scheme, scope="layers")
    assert set(activations(q)) == {layer.input for layer in q.graph.layers()}
    assert all(grid.scheme.granularity == scheme.granularity for grid in activations(q).values())
    everything = run(build(), scheme)
    assert set(activations(q)) < set(activations(everything))


def test_layers_in_float_have_inputs_in_float():
    float_fc = (Override("fc", weights="float"),)
    q = run(residual(), overrides=float_fc, scope="layers")
    inputs = {layer.name: layer.input for layer in q.graph.layers()}
    assert set(activations(q)) == {inputs["stem"], inputs["branch"], inputs["head"]}


def test_the_scope_is_about_activations_only():
    both = [run(residual(), scope=scope) for scope in ("all", "layers")]
    first, second = ({k: v for k, v in q.grids.items() if k in q.graph.weights and v.scheme.bits < 32} for q in both)
    assert first == second
    with refused("must calibrate and have a layer to quantise"):
        run(residual(), scope="layers", weights=None)


def test_channels_lie_on_axis_one_of_pictures_and_last_elsewhere():
    q = run(transformer(), CHANNEL)
    axes = {name: grid.scheme.axis for name, grid in activations(q).items()}
    ranks = {name: len(q.graph.shape(name)) for name in axes}
    # Attention's tensors have four axes as well, and their channels last.
    assert {axes[name] for name in ("x", "patch", "tap", "up", "up_conv", "up_pool", "y", "tap_conv")} == {1}
    assert axes["one_av"] == axes["one_qk"] == axes["one_q_t"] == 3
    others = {name for name, rank in ranks.items() if rank != 4}
    assert {"stem", "one_n1", "one"} <= others
    assert all(axes[name] == ranks[name] - 1 for name in others)
    for name, grid in activations(q).items():
        assert grid.scale.shape == (q.graph.shape(name)[axes[name]],)


def test_what_is_computed_from_pictures_are_pictures():
    nodes = [
        node("Sigmoid", "x", "s"),
        node("Conv", "s w", "a", name="conv"),
        node("Resize", "a - scales", "r"),
        node("Relu", "r", "b"),
        node("Mul", "b r", "c"),
        node("GlobalAveragePool", "c", "g"),
        node("Mul", "c g", "d"),
        node("Concat", "d c", "e", axis=1),
        node("Conv", "e v", "y", name="last"),
    ]
    proto = model(
        nodes, SHAPE, w=draw(1, 6, 3, 1, 1), v=draw(2, 4, 12, 1, 1), scales=np.array([1, 1, 2, 2], np.float32)
    )
    q = run(proto, CHANNEL)
    for name, grid in activations(q).items():
        assert grid.scheme.axis == 1 and grid.scale.shape == (q.graph.shape(name)[1],), name


@pytest.mark.parametrize("build", NETWORKS.values(), ids=NETWORKS)
def test_ranges_of_channels_are_those_of_each_channel(build):
    before = build()
    data = samples(12, before.inputs[0].shape)
    q = run(before, CHANNEL, data=data)
    held = {next(iter(feed.values())).tobytes() for feed in q.held_out}
    batch = before.inputs[0].shape[0]
    seen = np.concatenate([x for i in range(0, len(data), batch) if (x := data[i : i + batch]).tobytes() not in held])
    names = [name for name in activations(q) if name != "x"]
    found = outputs(q.graph, seen, outputs=names) | {"x": seen}
    for name, grid in activations(q).items():
        lo, hi = range_of(np.ascontiguousarray(found[name], np.float32), grid.scheme)
        assert grid == choose_grid(lo, hi, grid.scheme), name


@pytest.mark.parametrize("observer", ["mse", "best", "moving-average", "percentile", "entropy", "sqnr", "octav"])
@pytest.mark.parametrize("scheme", [CHANNEL, TOKEN], ids=["axis", "token"])
def test_every_observer_works_with_many_scales(scheme, observer):
    q = run(conv_relu_conv(skew=False), scheme, observer)
    shapes = {(3,), (8,), (4,)} if scheme is CHANNEL else {()}
    assert {grid.scale.shape for grid in activations(q).values()} == shapes
    assert q.verify().outputs[0].sqnr > (3 if observer == "entropy" and scheme is CHANNEL else 20)


def test_moved_data_has_a_grid_of_its_own_where_scales_are_many():
    """Behind a Transpose the channels may lie elsewhere; a grid for the whole tensor is still shared."""
    one, many = (run(residual(), scheme) for scheme in (Scheme(), CHANNEL))
    pooled, flat = (next(n for n in one.graph.nodes if n.op_type == op) for op in ("MaxPool", "Transpose"))
    assert one.grids[pooled.outputs[0]] == one.grids[flat.outputs[0]]
    assert many.grids[pooled.outputs[0]].scheme.axis == 1 and many.grids[flat.outputs[0]].scheme.axis == 3
    assert many.grids[pooled.outputs[0]].scale.size == many.grids[flat.outputs[0]].scale.size == 8


@pytest.mark.parametrize(
    ("shape", "axis"),
    [((), None), ((1,), None), ((12,), None), ((3, 1, 1), 0), ((1, 3, 1, 1), 1), ((1, 1, 12, 12), None)],
)
@pytest.mark.parametrize("scheme", [Scheme(), CHANNEL, TOKEN], ids=["tensor", "axis", "token"])
def test_constants_of_elementwise_operators_have_channels_or_one_scale(scheme, shape, axis):
    """Whatever their rank: a constant has no tokens, and channels only where it spreads over them."""
    nodes = [node("Sigmoid", "x", "s"), node("Mul", "c s", "m"), node("Tanh", "m", "t"), node("Conv", "t w", "y")]
    q = run(model(nodes, SHAPE, c=draw(1, *shape, spread=1.0) + np.float32(2), w=draw(2, 4, 3, 1, 1)), scheme)
    name = next(name for n in q.graph.nodes if n.op_type == "Mul" for name in n.inputs if name in q.graph.weights)
    grid = q.grids[name]
    wanted = ("axis", axis) if scheme is CHANNEL and axis is not None else ("tensor", None)
    assert (grid.scheme.granularity, grid.scheme.axis) == wanted
    assert grid.scheme.bits == 8 and not grid.scheme.signed
    assert q.verify().outputs[0].sqnr > 20  # although onnxruntime's kernels refuse a scale for each channel


def tensors(q, names: list[str]) -> dict[str, np.ndarray]:
    """What the artefact holds, run as written."""
    x = samples(2, q.graph.inputs[0].shape, seed=7)
    batch = q.graph.inputs[0].shape[0]
    return outputs(q.to_qdq(), x[:batch], outputs=names, optimize=False) | {"x": x[:batch]}


@pytest.mark.parametrize("build", NETWORKS.values(), ids=NETWORKS)
@pytest.mark.parametrize("scheme", [CHANNEL, TOKEN, SIGNED], ids=["axis", "token", "signed token"])
def test_the_artefact_computes_what_the_core_simulates(build, scheme):
    q = run(build(), scheme)
    inner = [name for name in activations(q) if name not in {"x", "y"}]
    clamped = {name for name in inner if q.graph.producer(name).op_type == "Relu"}
    seen = tensors(q, [*inner, *(f"{name}.dq" for name in inner), "x.dq", "y", "y.float"])
    for name in ["x", "y", *inner]:
        before = seen["y.float"] if name == "y" else seen[name]
        after = seen["y"] if name == "y" else seen[f"{name}.dq"]
        wanted = fake_quantize(np.ascontiguousarray(before), q.grids[name])
        off = np.abs(after - wanted)
        # A scale may differ in its last place; then a value between two codes may go the other way.
        assert (off > 1e-5 * np.abs(wanted) + 1e-6).mean() < 0.02, name
        assert off.max() <= 2.1 * np.ptp(before) / (scheme.qmax - scheme.qmin), name
    assert not clamped or scheme is not CHANNEL or "relu" not in {n.op_type for n in q.graph.nodes}


def test_a_clamp_in_front_of_tokens_is_kept():
    """The ends of a token's grid are those of its data, so that no grid performs the clamp."""
    per_tensor, per_token = (
        [n.op_type for n in run(conv_relu_conv(), scheme).to_qdq().graph.node] for scheme in (Scheme(), TOKEN)
    )
    assert "Relu" not in per_tensor and per_token.count("Relu") == 1


def test_grids_per_token_write_no_scales_and_the_definition():
    q = run(conv_relu_conv(), TOKEN)
    artefact = q.to_qdq()
    names = {tensor.name for tensor in artefact.graph.initializer}
    for name, grid in activations(q).items():
        assert grid.scheme == TOKEN.at(1) and grid.scale.shape == grid.zero_point.shape == ()
        assert not {f"{name}.scale", f"{name}.zero_point"} & names
    own = [n for n in artefact.graph.node if n.domain == "leadline"]
    assert len(own) == len(activations(q)) and {n.op_type for n in own} == {"QuantizeTokens"}
    assert [function.name for function in artefact.functions] == ["QuantizeTokens"]
    assert "QuantizeLinear" not in {n.op_type for n in artefact.graph.node}
    assert {value.name for value in artefact.graph.output} == {"y"}
    signed = run(conv_relu_conv(), SIGNED).to_qdq()
    assert [function.name for function in signed.functions] == ["QuantizeTokensSymmetric"]


@pytest.mark.parametrize(
    ("grid", "words"),
    [
        (Grid(np.ones(3), np.zeros(3, int), TOKEN.at(1)), ["'x'", "scales of shape ()", "(3,)"]),
        (Grid(np.ones(()), np.zeros((), int), TOKEN.at(4)), ["axis", "'x'", "0 to 3", "4"]),
        (Grid(np.ones(()), np.zeros((), int), TOKEN), ["axis", "'x'", "None"]),
        (Grid(np.ones(2), np.zeros(2, int), CHANNEL.at(1)), ["'x'", "scales of shape (3,)", "(2,)"]),
        (Grid(np.ones(3), np.zeros(3, int), Scheme(6, granularity="axis", axis=1)), ["'x'", "it fills", "6 bits"]),
        (Grid(np.ones(()), np.zeros((), int), Scheme(32, True, True, "token", 1)), ["'x'", "at most 16 bits", "32"]),
    ],
)  # fmt: skip
def test_grids_that_do_not_fit_are_refused(grid, words):
    with refused(*words):
        qdq.to_qdq(graph(conv_relu_conv()), {"x": grid})


def test_tokens_have_no_encodings():
    q = run(conv_relu_conv(), TOKEN)
    with refused("Encodings.from_grids", "tensor '", "computed at run time", "'token'"):
        encodings.Encodings.from_grids(q.graph, q.grids)


@pytest.mark.parametrize("scheme", [TOKEN, SIGNED], ids=["asymmetric", "symmetric"])
def test_an_artefact_with_tokens_is_read_back(scheme, tmp_path):
    q = run(residual(), scheme)
    q.save(tmp_path)
    back = qdq.read(tmp_path / "model.qdq.onnx")
    assert back.grids == q.grids
    assert all(np.array_equal(back.codes[name], q.codes[name]) for name in q.codes)
    assert {t.name for t in q.verify().tensors} >= {"stem_relu", "branch", "sum", "fc_relu"}


def test_a_token_sees_only_itself():
    """Quantised with the others or alone, a token comes out the same; one with an outlier does not disturb its
    neighbours."""
    b = Builder()
    b.add("Relu", b.linear(b.stem(), "fc", 16, 8), "y")
    q = run(b.graph(), TOKEN, scope="layers")
    x = samples(1, (1, 3, 16, 16), seed=3)
    loud = x.copy()
    loud[..., :4, :4] *= 100  # the first patch, which is the second token
    alone = q.graph.copy()
    grids = {name: grid for name, grid in q.grids.items() if name != "x"}
    quiet, disturbed = (
        outputs(qdq.to_qdq(alone, grids, {k: v for k, v in q.codes.items() if k in grids}), data, optimize=False)["y"]
        for data in (x, loud)
    )
    changed = (quiet != disturbed).any(-1)[0]
    assert changed.tolist() == [False, True] + [False] * 15


def test_many_scales_are_better_where_channels_or_tokens_differ():
    data = samples(12) * np.array([0.01, 1, 100], np.float32)[:, None, None]
    fine = Scheme(16, signed=True, symmetric=True, granularity="axis")
    nodes = [node("Conv", "x w", "y", name="conv")]
    weights = draw(1, 4, 3, 1, 1) / np.array([0.01, 1, 100], np.float32)[:, None, None]
    proto = model(nodes, SHAPE, w=weights)
    wanted = outputs(graph(proto), data)["y"]
    errors = [
        np.square(
            outputs(run(proto, scheme, data=data, scope="layers", weights=fine).to_qdq(), data, optimize=False)["y"]
            - wanted
        )
        for scheme in (Scheme(), CHANNEL)
    ]
    assert errors[1].mean() < 0.01 * errors[0].mean()
    tokens = samples(12, (8, 16)) * np.logspace(-2, 2, 8, dtype=np.float32).repeat(12).reshape(12, 8).T.reshape(-1, 1)
    linear = model([node("MatMul", "x w", "y", name="fc")], (8, 16), w=draw(2, 16, 4))
    wanted = outputs(graph(linear), tokens)["y"]
    relative = [
        np.square((outputs(run(linear, scheme, data=tokens, scope="layers").to_qdq(), tokens)["y"] - wanted) / wanted)
        for scheme in (Scheme(), TOKEN)
    ]
    assert np.median(relative[1]) < 0.01 * np.median(relative[0])


@pytest.mark.parametrize("scheme", [CHANNEL, TOKEN], ids=["axis", "token"])
def test_biases_get_grids_finer_than_they_need(scheme):
    q = run(conv_relu_conv(), scheme)
    for layer in q.graph.layers():
        bias, grid = q.graph.weights[layer.bias], q.grids[layer.bias]
        assert grid.scheme.bits == 32 and np.ptp(grid.scale) == 0
        assert np.abs(q.codes[layer.bias] * grid.scale.astype(np.float64) - bias).max() <= np.abs(bias).max() * 2.0**-20


@pytest.mark.parametrize("scheme", [CHANNEL, TOKEN], ids=["axis", "token"])
@pytest.mark.parametrize("build", [NETWORKS["pictures"], NETWORKS["rows"]], ids=["pictures", "rows"])
def test_the_quantised_path_works_with_many_scales(build, scheme):
    before = build()
    shape = before.inputs[0].shape
    rng = np.random.default_rng(0)
    data = rng.standard_normal((24 * shape[0], *shape[1:])).astype(np.float32)
    data = 0.4 * data + 0.6 * np.roll(data, 1, -1) + np.float32(0.5)
    weights = Scheme(4, signed=True, symmetric=True, granularity="axis", narrow=True)
    steps = (Fold(), Calibrate("minmax", "mse"), Round("best", compensate=True), CorrectBias())
    q = run(before, Scheme(4, granularity=scheme.granularity), data=data, steps=steps, weights=weights)
    kept = [r for r in q.log if r.step == "round" and r.kept and r.before is not None]
    assert kept and all(r.after < r.before for r in kept)
    assert np.isfinite(q.verify().outputs[0].sqnr)


@pytest.mark.parametrize("weights", ["minmax", "mse"])
def test_weights_have_no_tokens(weights):
    with refused("granularity"):
        run(conv_relu_conv(), weights=TOKEN, steps=(Calibrate("minmax", weights), Round()))


def test_the_folded_float_network_stays_what_it_is():
    before = graph(residual())
    for scheme in (CHANNEL, TOKEN):
        q = run(before, scheme)
        x = samples(2, seed=7)
        np.testing.assert_allclose(outputs(q.graph, x)["y"], outputs(before, x)["y"], rtol=1e-5, atol=1e-5)
        assert isinstance(q.graph, Graph)
