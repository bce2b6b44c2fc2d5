"""Polishing in a network: the float function stays, the grid moves between two operators, heavy tails gain."""

from __future__ import annotations

from dataclasses import replace

import numpy as np
import pytest

from graph_models import model, node
from leadline.affine import choose_grid
from leadline.graph import Graph
from leadline.observers import Histogram
from leadline.polishing import choose, fake_quantize_polished
from leadline.recipe import Calibrate, CorrectBias, Fold, Override, Polish, Recipe, Round
from leadline.types import Scheme
from small_networks import SHAPE, conv_relu_conv, draw, graph, layers, outputs, quantized, residual, samples

# Polishing and back in float32, in onnxruntime: a few units in the last place of |y| times what is bent.
SAME = 1e-5
W4 = Scheme(4, signed=True, symmetric=True, granularity="axis", narrow=True)
A4 = Scheme(4)
CHANNEL = Scheme(4, granularity="axis")


def recipe(*polish: Polish, activations: Scheme = A4, weights: Scheme = W4, **fields) -> Recipe:
    after = (Calibrate("minmax", "mse"), Round())
    return Recipe("test", (Fold(), *polish, *after), activations=activations, weights=weights, **fields)


def heavy(count: int, shape: tuple[int, ...] = SHAPE, seed: int = 0) -> np.ndarray:
    """Values over four decades: most are near zero, and a few are a thousand times as large."""
    rng = np.random.default_rng(seed)
    spread = np.exp(rng.normal(0, 2.0, (count * shape[0], *shape[1:])))
    return (spread * rng.choice([-1, 1], spread.shape)).astype(np.float32)


def shared() -> Graph:
    """Two layers that read one tensor, which a third operator reads as well; then rows."""
    nodes = [
        node("Conv", "x w0", "a", name="stem", pads=[1, 1, 1, 1]),
        node("Conv", "a w1 b1", "p", name="left", pads=[1, 1, 1, 1]),
        node("Conv", "a w2", "q", name="right", pads=[1, 1, 1, 1]),
        node("Add", "p q", "s", name="sum"),
        node("Add", "s a", "t", name="skip"),
        node("Reshape", "t rows", "r"),
        node("Gemm", "r w3 b3", "y", name="fc", transB=1),
    ]
    shapes = {"w0": (6, 3, 3, 3), "w1": (6, 6, 3, 3), "b1": (6,), "w2": (6, 6, 3, 3), "w3": (5, 864), "b3": (5,)}
    weights = {name: draw(i, *shape) for i, (name, shape) in enumerate(shapes.items())}
    return graph(model(nodes, SHAPE, rows=np.array([1, 864]), **weights))


NETWORKS = {"conv": lambda: graph(conv_relu_conv()), "residual": lambda: graph(residual()), "shared": shared}
SCHEMES = {"tensor": A4, "channel": CHANNEL}


def pairs(quantised) -> dict[str, tuple]:
    """By the tensor that is polished: the two operators."""
    found = {}
    for bend in quantised.graph.nodes:
        if bend.op_type == "LogPolish":
            (back,) = quantised.graph.consumers(bend.outputs[0])
            assert back.op_type == "LogUnpolish" and back.inputs[1] == bend.inputs[1]
            assert bend.domain == back.domain == "leadline"
            found[bend.inputs[0]] = (bend, back)
    return found


def records(quantised, kept=None):
    return [r for r in quantised.log if r.step == "polish" and kept in (None, r.kept)]


def distance(before: Graph, after: Graph, data: np.ndarray) -> float:
    wanted, got = outputs(before, data)["y"], outputs(after, data)["y"]
    return float(np.abs(wanted - got).max() / np.abs(wanted).max())


@pytest.mark.parametrize("adaptive", [True, False])
@pytest.mark.parametrize("scheme", SCHEMES)
@pytest.mark.parametrize("name", NETWORKS)
def test_the_float_function_is_unchanged_and_the_grid_lies_between_the_pair(name, scheme, adaptive):
    before = NETWORKS[name]()
    q = quantized(before, recipe(Polish(adaptive=adaptive), activations=SCHEMES[scheme]), heavy(12))
    assert distance(before, q.graph, heavy(2, seed=5)) < SAME
    found = pairs(q)
    assert found
    for tensor, (bend, back) in found.items():
        between, after = bend.outputs[0], back.outputs[0]
        assert between in q.grids and after not in q.grids
        assert q.grids[between].scheme.granularity == SCHEMES[scheme].granularity
        readers = q.graph.consumers(tensor)
        # It keeps a grid of its own only where somebody else needs it.
        assert (tensor in q.grids) == (len(readers) > 1)
        for reader in q.graph.consumers(after):
            assert reader.inputs[0] == after and reader.name in layers(q)
        omega = q.graph.weights[bend.inputs[1]]
        channels = q.graph.shape(tensor)[1 if len(q.graph.shape(tensor)) == 4 else -1]
        assert omega.size == (channels if scheme == "channel" else 1) and np.isfinite(omega).any()
    assert [record.step for record in records(q, kept=True)] == ["polish"] * len(found)


@pytest.mark.parametrize("scheme", SCHEMES)
@pytest.mark.parametrize("polish", [Polish(), Polish(adaptive=False), Polish(percentile=80.0)], ids=str)
def test_bends_and_ranges_are_the_choice_s(polish, scheme):
    data, before = heavy(12), graph(conv_relu_conv())
    given = SCHEMES[scheme].at(1)
    plan = recipe(polish, activations=SCHEMES[scheme])
    q = quantized(before, plan, data)
    histogram = Histogram(axis=1 if scheme == "channel" else None)
    held = {feed["x"].tobytes() for feed in q.held_out}
    for x in data:
        if x[None].tobytes() not in held:
            histogram.update(x[None])
    choice = choose(histogram, given, percentile=polish.percentile, adaptive=polish.adaptive)
    bend, _ = pairs(q)["x"]
    assert np.array_equal(q.graph.weights[bend.inputs[1]].reshape(choice.omega.shape), choice.omega)
    assert q.grids[bend.outputs[0]] == choose_grid(choice.lo, choice.hi, given)
    (record,) = (r for r in records(q) if r.target == "first")
    assert record.note == f"{np.isfinite(choice.omega).sum()} of {choice.omega.size} channels"


@pytest.mark.parametrize("observer", ["best", "mse", "moving-average", "entropy"])
def test_no_observer_replaces_the_range_of_the_choice(observer):
    plain = quantized(conv_relu_conv(), recipe(Polish()), heavy(12))
    steps = (Fold(), Polish(), Calibrate(observer, "mse"), Round())
    other = quantized(conv_relu_conv(), recipe(Polish()).changed(steps=steps), heavy(12))
    between = pairs(plain)["x"][0].outputs[0]
    assert plain.grids[between] == other.grids[between]


def test_the_artefact_computes_what_the_core_computes():
    data = heavy(12)
    q = quantized(conv_relu_conv(), recipe(Polish(), activations=CHANNEL), data)
    bend, back = pairs(q)["x"]
    x = data[:1]
    got = outputs(q.to_qdq(), x, outputs=[back.outputs[0]], optimize=False)[back.outputs[0]]
    omega = q.graph.weights[bend.inputs[1]].reshape(-1)
    wanted = fake_quantize_polished(x, q.grids[bend.outputs[0]], omega, 1)
    far = np.abs(got - wanted) > 1e-4 * np.abs(wanted) + 1e-6
    assert far.mean() < 0.01  # the middle between two codes may fall to either
    assert not np.allclose(got, x, rtol=0.05)


def test_adaptive_leaves_alone_what_has_no_tail():
    uniform = np.random.default_rng(0).uniform(-1, 1, (12, *SHAPE[1:])).astype(np.float32)
    eight = Scheme(8)
    adaptive, fixed = (
        quantized(shared(), recipe(Polish("stem", adaptive=flag), activations=eight), uniform) for flag in (True, False)
    )
    (record,) = records(adaptive)
    assert (record.target, record.note, record.kept) == ("stem", "no channel gains", False)
    assert not pairs(adaptive) and "x" in adaptive.grids
    assert list(pairs(fixed)) == ["x"] and records(fixed)[0].kept


def test_channels_that_gain_nothing_pass_through():
    data = heavy(12)
    data[:, 1] = np.random.default_rng(1).uniform(-1, 1, data[:, 1].shape)
    data[:, 2] = 0
    q = quantized(conv_relu_conv(), recipe(Polish("first"), activations=Scheme(8, granularity="axis")), data)
    bend, back = pairs(q)["x"]
    omega = q.graph.weights[bend.inputs[1]].reshape(-1)
    assert np.isfinite(omega).tolist() == [True, False, False]
    assert records(q)[0].note == "1 of 3 channels"
    seen = outputs(q.graph, data[:2], outputs=[bend.outputs[0], back.outputs[0]])
    for name in seen:
        assert np.array_equal(seen[name][:, 1:], data[:2, 1:])


def test_without_adaption_every_channel_bends():
    uniform = np.random.default_rng(0).uniform(-1, 1, (12, *SHAPE[1:])).astype(np.float32)
    q = quantized(conv_relu_conv(), recipe(Polish(adaptive=False), activations=CHANNEL), uniform)
    for bend, _ in pairs(q).values():
        assert np.isfinite(q.graph.weights[bend.inputs[1]]).all()
    assert [r.note for r in records(q)] == ["3 of 3 channels", "8 of 8 channels"]


def test_layers_that_read_one_tensor_share_the_pair():
    before = shared()
    q = quantized(before, recipe(Polish()), heavy(12))
    found = pairs(q)
    reads = {name: sorted(r.name for r in q.graph.consumers(back.outputs[0])) for name, (_, back) in found.items()}
    assert reads == {"x": ["stem"], "stem": ["left", "right"], "fc.flatten": ["fc"]}
    assert "left, right" in {record.target for record in records(q)}
    skip = next(n for n in q.graph.nodes if n.name == "skip")
    assert "stem" in skip.inputs and "stem" in q.grids  # the Add reads the tensor itself, on a plain grid


def test_a_pattern_chooses_layers():
    q = quantized(shared(), recipe(Polish("le*")), heavy(12))
    ((tensor, (_, back)),) = pairs(q).items()
    assert tensor == "stem" and [n.name for n in q.graph.consumers(back.outputs[0])] == ["left"]
    assert layers(q)["right"].input == "stem" and "stem" in q.grids
    assert [r.target for r in records(q)] == ["left"]
    assert distance(shared(), q.graph, heavy(2, seed=5)) < SAME


def test_two_steps_polish_different_layers():
    q = quantized(shared(), recipe(Polish("stem"), Polish("fc", adaptive=False)), heavy(12))
    assert set(pairs(q)) == {"x", "fc.flatten"} and len(records(q, kept=True)) == 2
    assert distance(shared(), q.graph, heavy(2, seed=5)) < SAME


def test_two_steps_may_polish_one_tensor_for_different_layers():
    q = quantized(shared(), recipe(Polish("left"), Polish("right", adaptive=False)), heavy(12))
    bends = [n for n in q.graph.nodes if n.op_type == "LogPolish"]
    assert [n.inputs[0] for n in bends] == ["stem", "stem"] and len({n.outputs[0] for n in bends}) == 2
    assert distance(shared(), q.graph, heavy(2, seed=5)) < SAME


@pytest.mark.parametrize(
    "change", [{"bits": 8}, {"granularity": "axis"}, {"signed": True, "symmetric": True}], ids=lambda c: next(iter(c))
)
@pytest.mark.parametrize("named", [Override("stem"), Override(kinds=("first",))], ids=["name", "kind"])
def test_overrides_reach_the_grid_between_the_pair(change, named):
    override = replace(named, activations=change)
    q = quantized(shared(), recipe(Polish("left", adaptive=False), overrides=(override,)), heavy(12))
    scheme = q.grids["stem.polished"].scheme
    assert all(getattr(scheme, key) == value for key, value in change.items())


def test_what_is_polished_is_not_polished_again():
    once, twice = (quantized(shared(), recipe(*[Polish()] * count), heavy(12)) for count in (1, 2))
    assert once.grids == twice.grids and set(pairs(once)) == set(pairs(twice))
    assert [r.kept for r in records(twice)] == [True, True, True, False]


@pytest.mark.parametrize(
    "plan", [recipe(Polish("nothing*")), recipe(Polish(), activations=Scheme(4, granularity="token"))]
)
def test_nothing_to_polish_leaves_the_network_alone(plan):
    before = shared()
    q = quantized(before, plan, heavy(12))
    without = quantized(
        before, plan.changed(steps=tuple(s for s in plan.steps if not isinstance(s, Polish))), heavy(12)
    )
    (record,) = records(q)
    assert not pairs(q) and not record.kept and record.target == before.name
    assert record.note == f"no layer named {plan.steps[1].pattern} reads a grid that can be polished"
    assert q.grids == without.grids
    assert q.to_qdq().SerializeToString() == without.to_qdq().SerializeToString()


def test_inputs_in_float_are_not_polished():
    overrides = (Override("stem", activations="float"),)
    q = quantized(shared(), recipe(Polish(), overrides=overrides), heavy(12))
    assert set(pairs(q)) == {"x", "fc.flatten"}  # what the stem writes has no grid
    weights_only = quantized(shared(), recipe(Polish(), overrides=(Override("left", weights="float"),)), heavy(12))
    (left,) = (n for n in weights_only.graph.nodes if n.name == "left")
    assert left.inputs[0] == "stem"


def error(q, before: Graph, data: np.ndarray) -> float:
    wanted = outputs(before, data)["y"]
    return float(np.square(wanted - outputs(q.to_qdq(), data, optimize=False)["y"]).mean() / np.square(wanted).mean())


def tails(count: int, seed: int = 0) -> np.ndarray:
    """Log-normal sizes, a factor of e wide: enough for a tail that costs a plain grid its codes."""
    rng = np.random.default_rng(seed)
    spread = np.exp(rng.normal(0, 1.0, (count, *SHAPE[1:])))
    return (spread * rng.choice([-1, 1], spread.shape)).astype(np.float32)


@pytest.mark.parametrize("adaptive", [True, False])
@pytest.mark.parametrize("scheme", SCHEMES)
def test_heavy_tails_gain_at_four_bits(scheme, adaptive):
    before, given, data = graph(conv_relu_conv(skew=False)), tails(24), tails(8, seed=5)
    plain, polished = (
        quantized(before, recipe(*step, activations=SCHEMES[scheme], scope="layers"), given)
        for step in ((), (Polish(adaptive=adaptive),))
    )
    assert error(polished, before, data) < 0.7 * error(plain, before, data)


def test_the_quantised_path_works_behind_it():
    """Moments of what layers read come through the pair; codes are chosen for it, and weights make up for it."""
    before = graph(conv_relu_conv(skew=False))
    noise = [np.abs(tails(count, seed)) for count, seed in ((48, 0), (8, 5))]
    given, data = (0.3 * x + 0.7 * np.roll(x, 1, -1) + 0.5 * np.roll(x, 1, -2) for x in noise)  # neighbours are alike
    errors = {}
    for method, compensate in (("nearest", False), ("best", False), ("best", True)):
        steps = (Fold(), Polish(), Calibrate("minmax", "mse"), Round(method, compensate), CorrectBias())
        q = quantized(before, recipe(scope="layers").changed(steps=steps), given)
        assert set(pairs(q)) == {layer.input.removesuffix(".unpolished") for layer in q.graph.layers()}
        assert distance(before, q.graph, data) < SAME
        errors[method, compensate] = error(q, before, data)
        kept = [r for r in q.log if r.step == "round" and r.kept and r.before is not None]
        assert all(r.after < r.before for r in kept) and bool(kept) == (method == "best")
        assert any("compensated" in r.note for r in kept) == compensate
    assert errors["best", True] < errors["best", False] < errors["nearest", False]


@pytest.mark.parametrize("scheme", SCHEMES)
def test_biases_stay_as_exact_as_they_need_be(scheme):
    """No integer kernel adds codes of logarithms: the bias has a grid of its own, finer than any output's."""
    q = quantized(conv_relu_conv(), recipe(Polish(adaptive=False), activations=SCHEMES[scheme]), heavy(12))
    for layer in q.graph.layers():
        bias, grid = q.graph.weights[layer.bias], q.grids[layer.bias]
        codes = q.codes[layer.bias].astype(np.float64)
        assert np.abs(codes * grid.scale - bias).max() <= np.abs(bias).max() * 2.0**-20
        assert np.abs(codes).max() < 2**31 - 1


def test_runs_are_saved_and_loaded_and_say_what_they_are(tmp_path):
    before = shared()
    q = quantized(before, recipe(Polish()), heavy(12))
    (line,) = q.limits
    assert line.startswith(f"{len(pairs(q))} tensors whose logarithm is quantised")
    q.save(tmp_path)
    assert sorted(file.name for file in tmp_path.iterdir()) == ["model.fp32.onnx", "model.qdq.onnx", "run.json"]
    data = heavy(2, seed=5)
    assert np.array_equal(outputs(tmp_path / "model.qdq.onnx", data)["y"], outputs(q.to_qdq(), data)["y"])
    again = Graph.load(tmp_path / "model.fp32.onnx")
    assert distance(before, again, data) < SAME and not any(n.domain for n in again.nodes)


def test_the_caller_s_graph_and_threads_do_not_matter():
    before = shared()
    kept = [(n.op_type, list(n.inputs)) for n in before.nodes]
    runs = [quantized(before, recipe(Polish(), activations=CHANNEL), heavy(12)) for _ in range(2)]
    assert runs[0].grids == runs[1].grids
    assert runs[0].to_qdq().SerializeToString() == runs[1].to_qdq().SerializeToString()
    assert [(n.op_type, list(n.inputs)) for n in before.nodes] == kept


def test_constant_and_zero_inputs_pass():
    data = np.zeros((12, *SHAPE[1:]), np.float32)
    q = quantized(conv_relu_conv(), recipe(Polish(adaptive=False)), data)
    assert "x" not in pairs(q)
    assert any(r.target == "first" and r.note == "no channel gains" for r in records(q))
    assert np.isfinite(outputs(q.to_qdq(), samples(2))["y"]).all()
