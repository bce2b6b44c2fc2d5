"""Smoothing on small transformers: the function stays, the spread moves, and what cannot be smoothed says why."""

from __future__ import annotations

from dataclasses import replace
from functools import cache
from importlib import import_module

import numpy as np
import pytest

import testbed
from graph_models import model, node
from leadline import pipeline
from leadline.depth import networks
from leadline.graph import Graph
from leadline.recipe import Calibrate, CorrectBias, Fold, Recipe, Round, Smooth
from leadline.steps.places import find_attention, find_norms
from small_networks import draw, factors, outputs, quantized, samples, steps

step = import_module("leadline.steps.smooth")
TOKENS, WIDTH, HEADS = 10, 16, 2
SHAPE = (1, TOKENS, WIDTH)
# Folding rounds each weight once more, 6e-8; sums over a few dozen products keep well under this.
SAME = 1e-5


def weights(*, spread: bool = True, **more):
    """A LayerNorm whose gain is spread over three decades, and an attention with spread values, queries and keys."""
    gain = factors(WIDTH) if spread else np.ones(WIDTH, np.float32)
    inner = factors(WIDTH, 4) ** 0.5
    w = {name: draw(i, WIDTH, WIDTH) / gain for i, name in enumerate(("wq", "wk", "wv"))}
    w["wq"], w["wk"] = w["wq"] * inner[:, None], w["wk"] / inner[:, None]
    w["wv"], w["wp"] = w["wv"] * inner[:, None], draw(5, WIDTH, WIDTH) / inner
    return {
        "gain": gain, "offset": draw(6, WIDTH) * gain, **{name: a.T.copy() for name, a in w.items()},
        "bq": draw(7, WIDTH), "bk": draw(8, WIDTH), "bv": draw(9, WIDTH) * inner, "bp": draw(10, WIDTH),
        "heads": np.array([1, TOKENS, HEADS, WIDTH // HEADS]), "flat": np.array(SHAPE), "root": np.float32(0.4),
    } | more  # fmt: skip


def linear(x: str, letter: str, out: str):
    return [
        node("MatMul", f"{x} w{letter}", f"{out}_", name=f"linear_{letter}"),
        node("Add", f"{out}_ b{letter}", out),
    ]


def heads(x: str, out: str, perm: list[int]):
    return [node("Reshape", f"{x} heads", f"{x}h"), node("Transpose", f"{x}h", out, perm=perm)]


MIXING = [
    node("MatMul", "qs kt", "scores", name="product"),
    node("Softmax", "scores", "weights", axis=-1),
    node("MatMul", "weights vt", "mixed", name="mixing"),
    node("Transpose", "mixed", "back", perm=[0, 2, 1, 3]),
    node("Reshape", "back flat", "joined"),
    *linear("joined", "p", "p"),
    node("Add", "x p", "y"),
]


def attention(*between, spread: bool = True, **more):
    """LayerNorm, three Gemms, attention, projection, residual. `between`: nodes from qt to qs."""
    nodes = [
        node("LayerNormalization", "x gain offset", "n", name="norm"),
        *linear("n", "q", "q"),
        *linear("n", "k", "k"),
        *linear("n", "v", "v"),
        *heads("q", "qt", [0, 2, 1, 3]),
        *heads("k", "kt", [0, 2, 3, 1]),
        *heads("v", "vt", [0, 2, 1, 3]),
        *(between or [node("Mul", "qt root", "qs")]),
        *MIXING,
    ]
    return model(nodes, SHAPE, **weights(spread=spread, **more))


def fused():
    """The same with one Gemm for query, key and value, and Gather behind one Transpose."""
    w = weights()
    joint = np.concatenate([w["wq"], w["wk"], w["wv"]], 1)
    bias = np.concatenate([w["bq"], w["bk"], w["bv"]])
    nodes = [
        node("LayerNormalization", "x gain offset", "n", name="norm"),
        *linear("n", "a", "a"),
        node("Reshape", "a parts", "ah"),
        node("Transpose", "ah", "at", perm=[2, 0, 3, 1, 4]),
        node("Gather", "at zero", "qt", axis=0),
        node("Gather", "at one", "k_", axis=0),
        node("Gather", "at two", "vt", axis=0),
        node("Mul", "qt root", "qs"),
        node("Transpose", "k_", "kt", perm=[0, 1, 3, 2]),
        *MIXING,
    ]
    parts = np.array([1, TOKENS, 3, HEADS, WIDTH // HEADS])
    more = {"wa": joint, "ba": bias, "parts": parts, "zero": np.array(0), "one": np.array(1), "two": np.array(2)}
    return model(nodes, SHAPE, **w | more)


def split():
    """The same with Split of the fused Gemm's features."""
    proto = fused()
    w = weights()
    joint = np.concatenate([w["wq"], w["wk"], w["wv"]], 1)
    bias = np.concatenate([w["bq"], w["bk"], w["bv"]])
    nodes = [
        node("LayerNormalization", "x gain offset", "n", name="norm"),
        *linear("n", "a", "a"),
        node("Split", "a thirds", "q k v", axis=-1),
        *heads("q", "qt", [0, 2, 1, 3]),
        *heads("k", "kt", [0, 2, 3, 1]),
        *heads("v", "vt", [0, 2, 1, 3]),
        node("Mul", "qt root", "qs"),
        *[n for n in proto.graph.node if n.name in {m.name for m in MIXING if m.name} or n in MIXING],
    ]
    return model(nodes, SHAPE, **w, wa=joint, ba=bias, thirds=np.full(3, WIDTH))


NETWORKS = {"separate": attention, "fused": fused, "split": split}


def smoothed(proto, shift: bool = False, keep: bool = True, **fields):
    """Quantised with Smooth; `keep` leaves the gate aside, so that there is something to look at."""
    before = proto if isinstance(proto, Graph) else Graph.from_model(proto)
    recipe = steps(Fold(), Smooth(shift=shift, **fields), Calibrate("minmax", "minmax"), Round())
    with pytest.MonkeyPatch.context() as patch:
        if keep:
            errors = iter([1.0, 0.9, 0.8])
            patch.setattr(step, "trial_error", lambda *_: next(errors))
        return before, quantized(before, recipe, samples(8, before.inputs[0].shape))


def records(quantised, kept=None):
    return [r for r in quantised.log if r.step == "smooth" and kept in (None, r.kept)]


def same(before, after, shape=SHAPE, tolerance=SAME):
    data = samples(4, shape, seed=7)
    wanted, got = outputs(before, data)["y"], outputs(after, data)["y"]
    np.testing.assert_allclose(got, wanted, rtol=0, atol=tolerance * np.abs(wanted).max())


@pytest.mark.parametrize("shift", [False, True])
@pytest.mark.parametrize("build", NETWORKS.values(), ids=NETWORKS)
def test_the_function_is_unchanged_and_the_spread_moves(build, shift):
    before, after = smoothed(build(), shift)
    same(before, after.graph)
    kept = records(after, kept=True)
    assert len(kept) == 3 + 2  # norm, value, query and key; two trials
    assert all(r.after < r.before for r in kept)
    gain = after.graph.weights["gain"]
    assert gain.max() / gain.min() < 0.1 * (before.weights["gain"].max() / before.weights["gain"].min())


@pytest.mark.parametrize("build", NETWORKS.values(), ids=NETWORKS)
def test_channels_of_queries_keys_and_values_are_traced_to_their_rows(build):
    graph = Graph.from_model(build())
    (norm,), refused = find_norms(graph)
    (value,), (product,), more = find_attention(graph)
    assert not refused and not more
    assert norm.rows.tolist() == list(range(WIDTH)) and norm.shifts
    first = 0 if build is attention else 2 * WIDTH
    assert value.rows.tolist() == list(range(first, first + WIDTH)) and not value.shifts
    assert value.readers[0][1].tolist() == list(range(WIDTH))
    offset = 0 if build is attention else WIDTH
    np.testing.assert_array_equal(product.rows[1], product.rows[0] + offset)


def test_simulation_decides():
    before, helped = smoothed(attention(), keep=False)
    trials = [r for r in records(helped) if "simulated" in r.note]
    assert trials[0].kept and trials[0].after < 0.5 * trials[0].before
    assert all(r.kept == (r.after < r.before) for r in trials)
    with pytest.MonkeyPatch.context() as patch:
        errors = iter([1.0, 1.1, 1.2])
        patch.setattr(step, "trial_error", lambda *_: next(errors))
        refused = smoothed(attention(), keep=False)[1]
    assert not records(refused, kept=True)
    assert np.array_equal(refused.graph.weights["gain"], before.weights["gain"])


def test_without_attention_and_with_a_given_alpha():
    before, after = smoothed(attention(), attention=False, alpha=0.5)
    place, trial = records(after, kept=True)
    assert "alpha 0.5" in place.note and trial.target == after.graph.name
    same(before, after.graph)


def test_a_shift_centres_what_the_layers_read():
    """Offsets as large as the gain: the range of the normalised tensor is halved, its reader's bias takes it up."""
    _, scaled = smoothed(attention(offset=4 * weights()["gain"]))
    before, shifted = smoothed(attention(offset=4 * weights()["gain"]), shift=True)
    same(before, shifted.graph)
    assert any("shifted" in r.note for r in records(shifted))
    names = [next(n.outputs[0] for n in q.graph.nodes if n.name == "norm") for q in (scaled, shifted)]
    widths = [q.grids[name].hi - q.grids[name].lo for q, name in zip((scaled, shifted), names, strict=True)]
    assert widths[1] < 0.8 * widths[0]


def test_bias_correction_makes_moments_centred():
    before = Graph.from_model(attention())
    recipe = steps(Fold(), Smooth(), Calibrate("minmax", "minmax"), Round(), CorrectBias())
    after = quantized(before, recipe, samples(8, SHAPE))
    same(before, after.graph)


def chain(*middle, opset: int = 17, **more):
    """LayerNorm from x to n, `middle` from n to y."""
    nodes = [node("LayerNormalization", "x gain offset", "n", name="norm"), *middle]
    given = {"gain": factors(WIDTH), "offset": draw(1, WIDTH)}
    return model(nodes, SHAPE, opset=opset, **given | more)


def test_convolutions_read_what_a_norm_writes():
    """Padding takes a scale, and no shift."""
    image = [node("Transpose", "n", "t", perm=[0, 2, 1]), node("Reshape", "t image", "i")]
    conv = {"image": np.array([1, WIDTH, 5, 2]), "w": draw(2, 6, WIDTH, 3, 3) / factors(WIDTH)[:, None, None]}
    for pads, shifts in ([1, 1, 1, 1], False), ([1, 0, 1, 0], False):
        if pads[1] == 0:
            conv["w"] = conv["w"][..., :1].copy()
        proto = chain(*image, node("Conv", "i w", "y", name="conv", pads=pads), **conv)
        before, after = smoothed(proto, shift=True)
        (place,), _ = find_norms(before)
        assert place.shifts == shifts
        same(before, after.graph)
        assert records(after, kept=True)
    point = conv | {"w": draw(3, 6, WIDTH, 1, 1) / factors(WIDTH)[:, None, None], "offset": 50 * factors(WIDTH)}
    before, after = smoothed(chain(*image, node("Conv", "i w", "y", name="conv"), **point), shift=True)
    assert any("shifted" in r.note for r in records(after))
    same(before, after.graph)


def test_a_norm_without_offset_and_a_layer_without_bias_get_them():
    nodes = [node("LayerNormalization", "x gain", "n", name="norm"), node("MatMul", "n w", "y", name="fc")]
    weight = draw(2, WIDTH, 6) / factors(WIDTH)[:, None]
    gain = factors(WIDTH)
    before = Graph.from_model(model(nodes, SHAPE, gain=gain, w=weight))
    data = samples(8, SHAPE) + draw(3, WIDTH, spread=3)  # off centre, each channel differently
    with pytest.MonkeyPatch.context() as patch:
        errors = iter([1.0, 0.9])
        patch.setattr(step, "trial_error", lambda *_: next(errors))
        recipe = steps(Fold(), Smooth(shift=True), Calibrate("minmax", "minmax"), Round())
        after = quantized(before, recipe, data)
    assert any("shifted" in r.note for r in records(after))
    same(before, after.graph)


def test_rotations_absorb_scales_in_their_columns():
    """A hand-made Rotate between a LayerNorm and a linear layer. Two of them may share a matrix; each gets its own."""
    w = {key: a for key, a in weights().items() if key in ("wq", "bq")}
    graph = Graph.from_model(chain(*linear("n", "q", "y"), **w))
    rng = np.random.default_rng(0)
    graph.weights["matrix"] = np.linalg.qr(rng.standard_normal((WIDTH, WIDTH)))[0].astype(np.float32)
    first = next(n for n in graph.nodes if n.op_type == "Gemm")
    at = graph.nodes.index(first)
    x = first.inputs[0]
    graph.values["turned"] = replace(graph.values[x], name="turned")
    first.inputs[0] = "turned"
    graph.nodes.insert(at, type(first)("Rotate", [x, "matrix"], ["turned"], "rotate", domain="leadline"))
    places, refused = find_norms(graph)
    assert [p.name for p in places] == [f"rotate > {first.name}"] and not places[0].shifts
    assert ("norm", "Rotate rotate reads it") in refused
    scales = np.exp(rng.normal(0, 1, WIDTH))
    after = graph.copy()
    step._fold(after, places[0], scales, np.zeros(WIDTH))
    for g in (graph, after):
        for one in g.nodes:
            if one.op_type == "Rotate":
                one.op_type, one.domain = "MatMul", ""
    np.testing.assert_allclose(after.weights["matrix"], graph.weights["matrix"] / scales, rtol=1e-6)
    same(graph, after)
    shared = graph.copy()
    shared.nodes.append(type(first)("Rotate", ["turned", "matrix"], ["again"], "second", domain="leadline"))
    step._fold(shared, places[0], scales, np.zeros(WIDTH))
    assert np.array_equal(shared.weights["matrix"], graph.weights["matrix"])


REFUSALS = {
    "the network's output reads it": (chain(node("Identity", "n", "y")), "norm"),
    "Sigmoid s reads it": (chain(node("Sigmoid", "n", "y", name="s")), "norm"),
}


@pytest.mark.parametrize("reason", REFUSALS)
def test_refused_norms_say_why(reason):
    proto, name = REFUSALS[reason]
    before, after = smoothed(proto)
    assert any(r.target == name and reason in r.note and not r.kept for r in records(after))
    assert np.array_equal(after.graph.weights["gain"], before.weights["gain"])


def test_shared_weights_are_refused():
    shared = [node("MatMul", "n w", "a", name="one"), node("MatMul", "a w", "y", name="two")]
    before, after = smoothed(chain(*shared, w=draw(2, WIDTH, WIDTH)))
    assert any("one shares its weight" in r.note for r in records(after))
    assert np.array_equal(after.graph.weights["gain"], before.weights["gain"])


def test_grouped_convolutions_are_refused():
    nodes = [
        node("Transpose", "n", "t", perm=[0, 2, 1]),
        node("Reshape", "t image", "i"),
        node("Conv", "i w", "y", name="conv", group=2),
    ]
    _, after = smoothed(chain(*nodes, image=np.array([1, WIDTH, 5, 2]), w=draw(2, 4, WIDTH // 2, 1, 1)))
    assert any("conv is no linear layer or plain convolution" in r.note for r in records(after))


def test_channels_that_nobody_reads_are_refused():
    bounds = {"from": np.array([0]), "to": np.array([WIDTH // 2]), "at": np.array([2])}
    half = [node("Slice", "n from to at", "s"), node("MatMul", "s w", "y", name="fc")]
    before, after = smoothed(chain(*half, w=draw(2, WIDTH // 2, 3), **bounds))
    assert any(r.target == "norm" and "nothing reads some of its channels" in r.note for r in records(after))
    same(before, after.graph)


def test_vectors_are_no_attention():
    nodes = [
        node("MatMul", "n v", "a", name="one"), node("Reshape", "a vector", "av"),
        node("MatMul", "n u", "b", name="two"), node("Reshape", "b vector", "bv"),
        node("MatMul", "av bv", "dot", name="dot"), node("Add", "n dot", "y"),
    ]  # fmt: skip
    proto = chain(*nodes, v=draw(2, WIDTH, 1), u=draw(3, WIDTH, 1), vector=np.array([TOKENS]))
    assert find_attention(Graph.from_model(proto)) == ([], [], [])


def test_tokens_mixed_into_features_are_refused():
    nodes = [node("Reshape", "n row", "r"), node("MatMul", "r w", "y", name="fc")]
    row = {"row": np.array([1, TOKENS * WIDTH]), "w": draw(2, TOKENS * WIDTH, 3)}
    _, after = smoothed(chain(*nodes, **row))
    assert any("fc reads its channels in another arrangement" in r.note for r in records(after))


@pytest.mark.parametrize("op", ["Gelu", "Tanh", "SiLU"])
def test_layers_behind_bent_functions_say_why(op):
    bend = [node("Sigmoid", "q", "s"), node("Mul", "q s", "b")] if op == "SiLU" else [node(op, "q", "b")]
    w = {key: a for key, a in weights().items() if key in ("wq", "bq", "wk", "bk")}
    _, after = smoothed(chain(*linear("n", "q", "q"), *bend, *linear("b", "k", "y"), opset=20, **w))
    assert any(f"{op} in front of it does not commute" in r.note and not r.kept for r in records(after))
    assert any("norm" in r.target and r.kept for r in records(after))


ROTARY = [
    node("Mul", "qt cos", "c"),
    node("Mul", "qt sin", "s"),
    node("Add", "c s", "qs"),
]


def test_rotary_positions_are_refused():
    angle = np.linspace(0, 3, WIDTH // HEADS, dtype=np.float32)
    proto = attention(*ROTARY, cos=np.cos(angle), sin=np.sin(angle))
    before, after = smoothed(proto)
    assert any(
        r.target == "product" and "Add" in r.note and "where a linear layer should" in r.note for r in records(after)
    )
    assert len(records(after, kept=True)) == 4  # norm and value, each with its trial
    same(before, after.graph)


def test_a_key_that_somebody_else_reads_is_refused():
    proto = attention(node("Mul", "qt root", "qs"), node("Relu", "qt", "other"), node("ReduceSum", "other", "z"))
    proto.graph.output.append(type(proto.graph.output[0])(name="z"))
    proto.graph.output[-1].type.tensor_type.elem_type = 1
    _, _, refused = find_attention(Graph.from_model(proto))
    assert [name for name, reason in refused if "reads the same channels" in reason] == ["product"]


def test_one_key_head_for_two_query_heads_is_refused():
    w = weights(
        wk=draw(1, WIDTH, WIDTH // HEADS), bk=draw(2, WIDTH // HEADS), keys=np.array([1, 1, TOKENS, WIDTH // HEADS])
    )
    nodes = [
        node("LayerNormalization", "x gain offset", "n", name="norm"),
        *linear("n", "q", "q"), *linear("n", "k", "k"), *linear("n", "v", "v"),
        *heads("q", "qt", [0, 2, 1, 3]), *heads("v", "vt", [0, 2, 1, 3]),
        node("Reshape", "k keys", "kh"), node("Transpose", "kh", "kt", perm=[0, 1, 3, 2]),
        node("Mul", "qt root", "qs"), *MIXING,
    ]  # fmt: skip
    before, after = smoothed(model(nodes, SHAPE, **w))
    assert any("one channel meets several others" in r.note for r in records(after))
    same(before, after.graph)


def test_nothing_to_do_is_said():
    plain = model([node("Relu", "x", "y")], SHAPE)
    _, after = smoothed(plain)
    assert [r.note for r in records(after)] == ["no activation whose channels can be scaled"]
    before = Graph.from_model(attention())
    floats = Recipe("test", (Fold(), Smooth(), Calibrate(), Round()), activations=None)
    after = pipeline.quantize(before, floats, samples(8, SHAPE), threads=1)
    assert any("activations stay float" in r.note for r in records(after))
    assert np.array_equal(after.graph.weights["gain"], before.weights["gain"])


@cache
def loaded(name: str) -> Graph:
    graph = Graph.load(networks.path() if name == "tinydepth" else testbed.need("A"))
    graph.fold()
    return graph


@pytest.mark.parametrize("name", ["tinydepth", pytest.param("A", marks=pytest.mark.slow)])
def test_real_networks_stay_the_same(name):
    """Every place of a network scaled at random, within a factor of four, by the folds that the step uses."""
    graph = loaded(name)
    after, rng = graph.copy(), np.random.default_rng(0)
    places, _ = find_norms(graph)
    values, products, refused = find_attention(graph)
    assert (len(places), len(values), len(products)) == {"tinydepth": (12, 4, 4), "A": (24, 12, 12)}[name]
    assert not refused
    for one in places + values:
        scales = np.exp2(rng.uniform(-2, 2, one.rows.size))
        shift = rng.normal(0, 0.5, one.rows.size) if one.shifts else np.zeros(one.rows.size)
        step._fold(after, one, scales, shift)
    for pair in products:
        scales = np.exp2(rng.uniform(-2, 2, pair.rows[0].size))
        step._scale_rows(after, after_node(after, pair.query.name), pair.rows[0], 1 / scales)
        step._scale_rows(after, after_node(after, pair.key.name), pair.rows[1], scales)
    value = graph.inputs[0]
    data = samples(2, value.shape, seed=7)
    wanted, got = (outputs(g, data, value.name) for g in (graph, after))
    for key in wanted:
        # Scales up to 16 apart and shifts cost a few more roundings than the step's own do.
        np.testing.assert_allclose(got[key], wanted[key], rtol=0, atol=1e-4 * np.abs(wanted[key]).max())


def after_node(graph: Graph, name: str):
    return next(n for n in graph.nodes if n.name == name)
