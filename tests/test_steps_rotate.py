"""Rotations on small transformers: the function stays, outliers spread, refusals say why, and simulation decides."""

from __future__ import annotations

import re
from functools import cache
from importlib import import_module

import numpy as np
import pytest

import testbed
from graph_models import model, node
from leadline.data import load_samples
from leadline.depth import networks
from leadline.graph import Graph
from leadline.graph.stream import find_streams, strip_norms
from leadline.hadamard import layernorm_rotation, random_rotation
from leadline.recipe import Calibrate, CorrectBias, Fold, Polish, Rotate, Round
from leadline.types import Scheme
from small_networks import conv_relu_conv, draw, graph, outputs, quantized, samples, steps
from small_transformer import TOKENS, Builder, transformer

step = import_module("leadline.steps.rotate")
# Folding rounds each weight once more, 6e-8; sums over a few dozen products keep well under this.
SAME = 1e-5


def data(network: Graph, count: int = 2, seed: int = 7) -> np.ndarray:
    return samples(count, network.inputs[0].shape, seed)


def error(before: Graph, after: Graph) -> float:
    """The largest difference of any output, relative to its largest value."""
    x, name = data(before), before.inputs[0].name
    wanted, got = outputs(before, x, name), outputs(after, x, name)
    assert list(wanted) == list(got)
    return max(float(np.abs(got[key] - wanted[key]).max() / np.abs(wanted[key]).max()) for key in wanted)


def residual(network: Graph, seeds: int = 1):
    return step.rotate_residual(network, load_samples(data(network), network.inputs), seeds, 1)


WAYS = {"residual": residual, "heads": step.rotate_heads, "online": step.rotate_inputs}


def rotated(network: Graph, *ways: str):
    after = network.copy()
    return after, [record for way in ways for record in WAYS[way](after)]


@pytest.mark.parametrize("ways", [("residual",), ("heads",), ("online",), ("residual", "heads"), tuple(WAYS)])
@pytest.mark.parametrize("fused", [False, True])
def test_the_function_is_unchanged_and_the_weights_are_not(fused, ways):
    before = transformer(fused=fused)
    after, records = rotated(before, *ways)
    assert records and all(record.kept for record in records)
    assert error(before, after) < SAME
    old, new = ({layer.name: g.weights[layer.weight] for layer in g.layers()} for g in (before, after))
    changed = {name for name in old if not np.allclose(old[name], new[name], atol=1e-3)}
    attention = {"qkv"} if fused else {"q", "k", "v"}
    inside = {f"{block}_{name}" for block in ("one", "two") for name in (*attention, "proj", "fc1", "fc2")}
    value = {"qkv", "proj"} if fused else {"v", "proj"}
    expected = set()
    if "residual" in ways:
        expected |= inside | {"patch", "tap_conv", "up_conv"}
    if "heads" in ways:
        expected |= {f"{block}_{name}" for block in ("one", "two") for name in value}
    if "online" in ways:
        expected |= inside
    assert changed == expected


@pytest.mark.parametrize("way", WAYS)
@pytest.mark.parametrize(("width", "heads"), [(12, 3), (24, 2), (28, 4), (36, 3)])
def test_widths_that_are_no_powers_of_two(way, width, heads):
    before = transformer(width, heads)
    after, records = rotated(before, way)
    assert records and error(before, after) < SAME


@pytest.mark.parametrize("way", WAYS)
@pytest.mark.parametrize("fused", [False, True])
def test_several_pictures_at_once(way, fused):
    before = transformer(fused=fused, batch=2)
    after, records = rotated(before, way)
    assert error(before, after) < SAME
    if way == "heads":
        assert [record.note for record in records] == ["2 heads of 8"] * 2


@pytest.mark.parametrize("way", WAYS)
def test_the_original_graph_is_not_written_into(way):
    before = transformer()
    kept = {name: array.copy() for name, array in before.weights.items()}
    rotated(before, way)
    assert all(np.array_equal(kept[name], before.weights[name]) for name in kept)


@pytest.mark.parametrize("way", WAYS)
def test_a_second_rotation_is_one_more(way):
    before = transformer()
    after, _ = rotated(before, way, way)
    assert error(before, after) < SAME


@pytest.mark.parametrize("width", [16, 24])
def test_every_tensor_of_the_stream_is_rotated_by_one_matrix_that_fixes_the_mean(width):
    before = transformer(width)
    strip_norms(before)
    ((stream,), _) = find_streams(before)
    after, _ = rotated(before, "residual")
    matrix = layernorm_rotation(width, 0).matrix()  # of one seed there is nothing to choose
    np.testing.assert_allclose(matrix @ np.ones(width), 1, atol=1e-12)
    names = sorted(set(stream.tensors))
    x = data(before, 1)
    old, new = (outputs(g, x, outputs=names) for g in (before, after))
    for name, axis in stream.tensors.items():
        was, now = (np.moveaxis(found[name], axis, -1) for found in (old, new))
        np.testing.assert_allclose(now, was @ matrix, atol=SAME * np.abs(was).max())
        np.testing.assert_allclose(now.mean(-1), was.mean(-1), atol=SAME * np.abs(was).max())
        assert np.abs(now - was).max() > 0.1


def test_a_rotation_that_moves_the_mean_would_change_the_function():
    """What the law is for: LayerNorm sees a plain Hadamard rotation."""
    before = transformer()
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(step, "layernorm_rotation", random_rotation)
        after, _ = rotated(before, "residual")
    assert error(before, after) > 0.01


def test_heads_are_rotated_one_by_one():
    before = transformer(fused=True)
    after, _ = rotated(before, "heads")
    matrix = random_rotation(8).matrix()
    old, new = (outputs(g, data(before, 1), outputs=["one_2", "one_0", "one_p"]) for g in (before, after))
    np.testing.assert_allclose(new["one_2"], old["one_2"] @ matrix, atol=SAME * np.abs(old["one_2"]).max())
    assert all(np.array_equal(old[name], new[name]) for name in ("one_0", "one_p"))  # queries, and what they weigh
    kept = before.weights[layers_of(before)["one_qkv"].weight][:32]
    assert np.array_equal(after.weights[layers_of(after)["one_qkv"].weight][:32], kept)


def layers_of(network: Graph):
    return {layer.name: layer for layer in network.layers()}


def outlier(position: float = 40.0) -> Graph:
    """One feature of the residual stream is far from the others, as in trained transformers."""
    b = Builder(64, 4)
    stem = b.stem()
    b.weights["position"][..., 5] += position
    first = b.block(stem, "one", fused=False)
    b.conv(b.picture(b.block(first, "two", fused=False), "tap"), "y")
    return b.graph()


def test_the_flattest_of_the_seeds_is_taken_and_the_peak_falls():
    notes = []
    for seeds in (1, 2, 8):
        after = outlier()
        (record,) = residual(after, seeds)
        assert error(outlier(), after) < SAME
        notes.append([float(v) for v in re.search(r"rms (\S+) to (\S+)$", record.note).groups()])
    before, peaks = {note[0] for note in notes}, [note[1] for note in notes]
    assert len(before) == 1 and peaks[0] < 0.7 * before.pop()
    assert peaks == sorted(peaks, reverse=True) and peaks[-1] < peaks[0]


@pytest.mark.parametrize("width", [64, 24, 20])
def test_the_log_says_what_was_rotated(width):
    (record,) = residual(transformer(width, 4))
    assert record.note.startswith(f"stream of {width} features") and "5 writers, 10 readers" in record.note
    blocks = layernorm_rotation(width).blocks
    assert (f" in {blocks} blocks" in record.note) == (blocks > 1)


def test_weights_that_layers_share_get_copies():
    """One matrix behind the norm, and once more where nothing is rotated; and one bias for two layers."""
    b = Builder()
    n = b.norm(b.stem(), "n")
    b.weights |= {"n_g": np.ones(16, np.float32), "n_b": np.zeros(16, np.float32)}  # folding them would copy already
    b.linear(n, "fc", 16, 16)
    b.add("Relu", "fc", "bent")
    b.add("MatMul", "bent fc_w", "again_m")
    b.add("Add", "again_m fc_b", "again")
    b.add("Add", "stem again", "sum")
    b.conv(b.picture("sum", "p"), "y")
    before = b.graph()
    assert sorted(len(readers) for name, readers in before.readers().items() if "fc_" in name)[-2:] == [2, 2]
    after, (record,) = rotated(before, "residual")
    assert record.kept and error(before, after) < SAME
    names = {layer.weight for layer in after.layers()} | {layer.bias for layer in after.layers()}
    assert len(names) == 2 * len(after.layers())
    online, _ = rotated(before, "online")
    assert error(before, online) < SAME


def test_constants_that_others_read_get_copies():
    b = Builder()
    h = b.add("Add", f"{b.stem()} {b.linear(b.norm('stem', 'n'), 'fc', 16, 16)}", "sum")
    b.add("Add", f"{b.linear(h, 'out', 16, 16)} position", "y")
    before = b.graph()
    after, (record,) = rotated(before, "residual")
    assert record.kept and error(before, after) < SAME
    assert np.array_equal(after.weights["position"], before.weights["position"])


def test_a_layer_that_both_reads_and_writes_the_stream_is_turned_on_both_sides():
    b = Builder()
    h = b.linear(b.stem(), "square", 16, 16)
    b.conv(b.picture(b.norm(b.add("Add", f"stem {h}", "sum"), "n"), "p"), "y")
    before = b.graph()
    after, _ = rotated(before, "residual")
    assert error(before, after) < SAME
    matrix = layernorm_rotation(16, 0).matrix()
    old, new = (g.weights[layers_of(g)["square"].weight] for g in (before, after))
    np.testing.assert_allclose(new, matrix.T @ old @ matrix, atol=1e-6)


def refused_stream() -> Graph:
    """The sum of the stream and the network's output are one."""
    b = Builder()
    b.block(b.stem(), "one", fused=False)
    b.add("Identity", "one", "y")
    return b.graph()


def test_what_is_refused_is_said_and_nothing_is_left_half_changed():
    before = refused_stream()
    after, (record,) = rotated(before, "residual")
    assert record.note == "its stream stays: it reaches the network's output y" and not record.kept
    assert error(before, after) < SAME
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(step, "trial_error", lambda *_: pytest.fail("there is nothing to try"))
        q = quantized(before, recipe(Rotate(heads=False, seeds=1)), data(before, 8))
    (logged,) = (r for r in q.log if r.step == "rotate")
    assert (logged.target, logged.note, logged.kept) == ("one_n1", record.note, False)
    assert [(n.op_type, n.inputs) for n in q.graph.nodes] == [(n.op_type, n.inputs) for n in before.nodes]
    assert all(np.array_equal(q.graph.weights[name], before.weights[name]) for name in before.weights)


def test_a_refused_stream_does_not_hold_back_the_heads():
    before = refused_stream()
    after, records = rotated(before, "residual", "heads")
    assert [record.kept for record in records] == [False, True]
    assert error(before, after) < SAME


def test_heads_that_cannot_be_rotated_say_why():
    b = Builder()
    block = b.block(b.stem(), "one", fused=False)
    b.conv(b.picture(b.add("Add", f"{block} one_v", "both"), "p"), "y")
    before = b.graph()
    after, (record,) = rotated(before, "heads")
    assert record.target == "one_av" and record.note.startswith("its heads stay: ") and not record.kept
    assert "reads the same channels" in record.note
    assert all(np.array_equal(after.weights[name], array) for name, array in before.weights.items())


def test_values_whose_weight_others_share_stay():
    b = Builder()
    block = b.block(b.stem(), "one", fused=False)
    b.add("MatMul", f"{block} one_v_w", "more")
    b.conv(b.picture("more", "p"), "y")
    before = b.graph()
    after, (record,) = rotated(before, "heads")
    assert "one_v shares its weight" in record.note and not record.kept
    assert all(np.array_equal(after.weights[name], array) for name, array in before.weights.items())


def test_one_layer_may_write_the_values_of_two_attentions():
    b = Builder()
    h, shape, order = b.norm(b.stem(), "n"), b.constant("four", [1, TOKENS, 4, 8]), [0, 2, 1, 3]
    both = b.linear(h, "values", 16, 32)
    turned = b.add("Transpose", b.add("Reshape", f"{both} {shape}", "both_r"), "both_t", perm=order)
    b.add("Split", f"{turned} {b.constant('halves', [2, 2])}", "first second", axis=1)
    found = []
    for name, half in (("p", "first"), ("q", "second")):
        rows = b.add("Reshape", f"{b.linear(h, f'{name}_s', 16, TOKENS)} {b.constant('one', [1, 1, TOKENS, -1])}", name)
        mixed = b.add("MatMul", f"{b.add('Softmax', rows, f'{name}_soft', axis=-1)} {half}", f"{name}_av")
        back = b.add("Transpose", mixed, f"{name}_back", perm=order)
        joined = b.add("Reshape", f"{back} {b.constant('flat', [1, TOKENS, 16])}", f"{name}_j")
        found.append(b.linear(joined, f"{name}_proj", 16, 16))
    b.add("Add", " ".join(found), "y")
    before = b.graph()
    after, records = rotated(before, "heads")
    assert [r.target for r in records] == ["values > p_proj", "values > q_proj"] and error(before, after) < SAME
    old, new = ({x.name: g.weights[x.weight] for x in g.layers()}["values"] for g in (before, after))
    assert not np.isclose(old, new, atol=1e-3).all(1).any()  # every row is turned


def test_layers_that_read_one_tensor_share_its_rotation():
    before = transformer()
    after, (record,) = rotated(before, "online")
    turned = [n for n in after.nodes if n.op_type == "Rotate"]
    assert len(turned) == 8 and all(n.domain == "leadline" for n in turned)  # not 12: q, k and v share theirs
    readers = [sorted(r.name for r in after.consumers(n.outputs[0])) for n in turned]
    assert ["one_k", "one_q", "one_v"] in readers
    millions = TOKENS * (6 * 16**2 + 2 * 32**2) / 1e6
    assert record.note == f"8 inputs of linear layers, by operators: {millions:.3g} million multiplications a picture"
    for n in turned:
        matrix = after.weights[n.inputs[1]].astype(np.float64)
        np.testing.assert_allclose(matrix @ matrix.T, np.eye(len(matrix)), atol=1e-6)
    matrices = [after.weights[n.inputs[1]] for n in turned if after.weights[n.inputs[1]].shape == (16, 16)]
    assert all(not np.array_equal(matrices[0], other) for other in matrices[1:])


def recipe(rotate: Rotate, *more, weights: Scheme | None = None, **fields):
    given = {"weights": weights} if weights else {}
    return steps(Fold(), rotate, Calibrate("minmax", "minmax"), Round(), *more, **given, **fields)


def db(wanted: np.ndarray, got: np.ndarray) -> float:
    return 10 * np.log10(np.square(wanted).sum() / np.square(wanted - got).sum())


def gain(before: Graph, rotate: Rotate, **fields) -> float:
    """dB of the simulated output on samples never seen, with the step against without it."""
    given, x = data(before, 12, 1), data(before, 8)
    wanted = outputs(before, x)["y"]
    scores = []
    for plan in (recipe(rotate, **fields), recipe(Rotate(residual=False, heads=False), **fields)):
        scores.append(db(wanted, outputs(quantized(before, plan, given).to_qdq(), x, optimize=False)["y"]))
    return scores[0] - scores[1]


@pytest.mark.parametrize(
    ("rotate", "scope"), [(Rotate(seeds=2), "all"), (Rotate(online=True), "layers")], ids=["folded", "online"]
)
def test_an_outlier_feature_makes_eight_bits_gain(rotate, scope):
    before = outlier()
    q = quantized(before, recipe(rotate, scope=scope), data(before, 12, 1))
    last = [r for r in q.log if r.step == "rotate"][-1]
    assert last.note == "simulated output error" and last.kept and last.after < last.before
    assert error(before, q.graph) < SAME


def test_a_folded_rotation_gains_decibels_where_an_outlier_is():
    assert gain(outlier(), Rotate(seeds=2)) > 1.5


def grid_weights() -> Graph:
    """Weights of -1, 0 and 1 times a scale for each channel lie on any grid, until they are rotated."""
    b = Builder()
    h = b.stem()
    for name in ("one", "two"):
        h = b.add("Add", f"{h} {b.linear(b.norm(h, f'{name}_n'), name, 16, 16)}", f"{name}_sum")
    b.conv(b.picture(h, "p"), "y")
    for name, array in b.weights.items():
        if name.endswith("_w"):
            b.weights[name] = np.sign(array) * np.float32(0.25)
        if name.endswith("_g"):
            b.weights[name] = np.ones_like(array)
    return b.graph()


def test_simulation_drops_a_rotation_that_loses():
    before = grid_weights()
    few = Scheme(3, signed=True, symmetric=True, granularity="axis", narrow=True)
    plan = recipe(Rotate(seeds=1), weights=few, activations=Scheme(16))
    q = quantized(before, plan, data(before, 12, 1))
    last = [r for r in q.log if r.step == "rotate"][-1]
    assert last.note == "simulated output error" and not last.kept and last.after > 2 * last.before
    assert all(np.array_equal(q.graph.weights[name], array) for name, array in before.weights.items())


def decided(before: Graph, plan, errors=(1.0, 0.5)):
    """A run whose simulation finds these errors without and with the rotation."""
    with pytest.MonkeyPatch.context() as patch:
        given = iter(errors)
        patch.setattr(step, "trial_error", lambda *_: next(given))
        return quantized(before, plan, data(before, 12, 1))


@pytest.mark.parametrize("errors", [(1.0, 0.9), (1.0, 1.0), (1.0, 1.1)])
def test_the_gate_keeps_what_is_lower_and_nothing_else(errors):
    before = transformer()
    q = decided(before, recipe(Rotate(seeds=1)), errors)
    last = [r for r in q.log if r.step == "rotate"][-1]
    assert (last.before, last.after, last.kept) == (*errors, errors[1] < errors[0])
    changed = not np.array_equal(q.graph.weights["patch_w"], before.weights["patch_w"])
    assert changed == last.kept
    assert {r.kept for r in q.log if r.step == "rotate"} == {last.kept}


def test_float_activations_have_nothing_to_gain():
    before = transformer()
    q = quantized(before, recipe(Rotate(), activations=None), data(before, 8))
    (record,) = (r for r in q.log if r.step == "rotate")
    assert record.note == "activations stay float, so ranges cost nothing" and not record.kept
    assert np.array_equal(q.graph.weights["patch_w"], before.weights["patch_w"])


@pytest.mark.parametrize("rotate", [Rotate(), Rotate(online=True), Rotate(residual=False, heads=False)])
def test_a_network_without_anything_to_rotate_says_so(rotate):
    before = graph(conv_relu_conv())
    q = quantized(before, recipe(rotate))
    (record,) = (r for r in q.log if r.step == "rotate")
    assert (record.note, record.kept) == ("nothing to rotate", False)


@pytest.mark.parametrize(("fields", "heads", "stream"), [({"heads": False}, 0, 1), ({"residual": False}, 2, 0)])
def test_each_can_be_switched_off(fields, heads, stream):
    before = transformer()
    q = quantized(before, recipe(Rotate(seeds=1, **fields)), data(before, 8))
    notes = [r.note for r in q.log if r.step == "rotate"][:-1]
    assert sum(note.startswith("stream of") for note in notes) == stream
    assert sum("heads of" in note for note in notes) == heads


def test_runs_with_own_operators_are_simulated_saved_and_loaded(tmp_path):
    """Rotations on the device, then everything that follows, on the quantised path."""
    before = outlier()
    plan = steps(
        Fold(), Rotate(online=True), Calibrate("minmax", "mse"), Round("best", compensate=True), CorrectBias(),
        weights=Scheme(4, signed=True, symmetric=True, granularity="axis", narrow=True), activations=Scheme(4),
    )  # fmt: skip
    q = decided(before, plan)
    assert any(n.op_type == "Rotate" for n in q.graph.nodes)
    assert error(before, q.graph) < SAME
    assert any(r.step == "round" and r.kept for r in q.log)
    (line,) = q.limits
    assert line.startswith("8 rotations at run time, ") and line.endswith("million multiplications")
    q.save(tmp_path)
    x = data(before)
    assert np.array_equal(outputs(tmp_path / "model.qdq.onnx", x)["y"], outputs(q.to_qdq(), x)["y"])
    again = Graph.load(tmp_path / "model.fp32.onnx")
    assert error(before, again) < SAME and not any(n.domain for n in again.nodes)
    # The rotation itself is what gets no grid before it: its result is what the layer reads.
    for n in q.graph.nodes:
        if n.op_type == "Rotate":
            assert n.outputs[0] in q.grids and n.inputs[1] not in q.grids


def test_polishing_and_rotations_go_together():
    before = transformer()
    q = decided(before, steps(Fold(), Rotate(online=True), Polish(adaptive=False), Calibrate("minmax"), Round()))
    assert error(before, q.graph) < SAME
    assert {"Rotate", "LogPolish", "LogUnpolish"} <= {n.op_type for n in q.graph.nodes}


def test_a_linear_network_alone_can_be_rotated_online():
    nodes = [node("Gemm", "x w b", "a", name="one", transB=1), node("Relu", "a", "r"), node("MatMul", "r v", "y")]
    before = graph(model(nodes, (32, 16), w=draw(1, 10, 16), b=draw(2, 10), v=draw(3, 10, 5)))
    after, (record,) = rotated(before, "online")
    assert record.kept and error(before, after) < SAME


@cache
def real(name: str) -> Graph:
    network = Graph.load(networks.path() if name == "tinydepth" else testbed.need("A"))
    network.fold()
    return network


EXPECTED = {"tinydepth": (128, 4, 4 * 4), "A": (384, 12, 12 * 4)}
REAL = ["tinydepth", pytest.param("A", marks=pytest.mark.slow)]


@pytest.mark.parametrize("way", WAYS)
@pytest.mark.parametrize("name", REAL)
def test_real_transformers_compute_the_same(name, way):
    before = real(name)
    after = before.copy()
    if way == "residual":
        one = load_samples(data(before, 1), before.inputs)
        records = step.rotate_residual(after, one, 1, 1)
        assert len(records) == 1 and records[0].note.startswith(f"stream of {EXPECTED[name][0]} features")
    else:
        records = WAYS[way](after)
        assert len(records) == (EXPECTED[name][1] if way == "heads" else 1)
    assert all(record.kept for record in records)
    assert error(before, after) < SAME
