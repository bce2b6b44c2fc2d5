"""What cannot take a zero, or small values that a grid has moved: judged by the original network in onnxruntime."""

from __future__ import annotations

import warnings
from collections.abc import Callable

import numpy as np
import pytest

from graph_models import model, node
from leadline.graph import Graph, Session
from leadline.graph.relative import keep_positive, relative
from leadline.pipeline import quantize
from leadline.preparation import prepare
from leadline.recipe import Recipe
from leadline.steps.fitting import respell
from leadline.targets.hexagon.rules import HEXAGON
from masked_networks import Net
from test_masks import recipe, score

SHAPE = [1, 4, 8, 8]
F = np.float32


def _floats(net: Net, *values: float) -> list[str]:
    return [net.constant(F(value)) for value in values]


def _clamped(net: Net, x: str, low: float = 1e-4) -> str:
    return net("Clip", net("Relu", x), *_floats(net, low, 1e4))


def _reduced(net: Net, op: str, x: str, *axes: int) -> str:
    return net(op, x, axes=list(axes)) if op != "ReduceSum" else net(op, x, net.constant(np.array(axes)))


def _normalised(net: Net, x: str, end: str, *axes: int) -> str:
    low, high = (1e-4, 10) if axes == (2, 3) else (1e-3, 2e-3)
    spread = net("Mul", x, net.constant(np.geomspace(low, high, SHAPE[1]).astype(F).reshape(1, -1, 1, 1)))
    away = net("Sub", spread, _reduced(net, "ReduceMean", spread, *axes))
    variance = _reduced(net, "ReduceMean", net("Mul", away, away), *axes)
    if end == "std":
        return net("Div", away, net("Add", net("Sqrt", variance), *_floats(net, 1e-6)))
    shifted = net("Add", variance, *_floats(net, 1e-10))
    if end == "pow":
        return net("Mul", away, net("Pow", shifted, *_floats(net, -0.5)))
    root = net("Sqrt", shifted)
    return net("Mul", away, net("Reciprocal", root) if end == "reciprocal" else net("Div", *_floats(net, 1), root))


def _softmax_in_pieces(net: Net, x: str) -> str:
    powers = net("Exp", net("Sub", x, _reduced(net, "ReduceMax", x, 1)))
    return net("Div", powers, _reduced(net, "ReduceSum", powers, 1))


def _weighted(net: Net, x: str) -> str:
    weights = net("Mul", net("Sigmoid", net("Mul", x, *_floats(net, 8))), *_floats(net, 0.01))
    total = net("Add", _reduced(net, "ReduceSum", weights, 1), *_floats(net, 1e-6))
    return net("Div", _reduced(net, "ReduceSum", net("Mul", weights, x), 1), total)


KINDS: dict[str, Callable[[Net, str], str]] = {
    "reciprocal": lambda net, x: net("Reciprocal", _clamped(net, x, 0.05)),
    "one over": lambda net, x: net("Div", *_floats(net, 1), _clamped(net, x, 0.05)),
    "power": lambda net, x: net("Pow", _clamped(net, x, 0.05), *_floats(net, -1)),
    "log": lambda net, x: net("Log", _clamped(net, x)),
    "log with epsilon": lambda net, x: net("Log", net("Add", net("Relu", x), *_floats(net, 1e-5))),
    "log of squares": lambda net, x: net("Log", net("Add", net("Mul", x, x), *_floats(net, 1e-4))),
    "log of sigmoid": lambda net, x: net("Log", net("Sigmoid", net("Mul", x, *_floats(net, 4)))),
    "log of softmax": lambda net, x: net("Log", net("Softmax", net("Mul", x, *_floats(net, 5)), axis=1)),
    "log of moved softmax": lambda net, x: net(
        "Log", net("Transpose", net("Softmax", net("Mul", x, *_floats(net, 5)), axis=1), perm=[0, 1, 3, 2])
    ),
    "resized": lambda net, x: net(
        "Reciprocal", _clamped(net, net("AveragePool", x, kernel_shape=[3, 3], pads=[1] * 4), 0.05)
    ),
    "std": lambda net, x: _normalised(net, x, "std", 2, 3),
    "inverse std": lambda net, x: _normalised(net, x, "reciprocal", 1),
    "std to the minus half": lambda net, x: _normalised(net, x, "pow", 1),
    "one over std": lambda net, x: _normalised(net, x, "div", 1),
    "softmax in pieces": _softmax_in_pieces,
    "weighted mean": _weighted,
    "silu in pieces": lambda net, x: net(
        "Div", x, net("Add", net("Exp", net("Neg", net("Mul", x, *_floats(net, 4)))), *_floats(net, 1))
    ),
    "sum to one": lambda net, x: net(
        "Div", net("Relu", x), net("Add", _reduced(net, "ReduceSum", net("Relu", x), 1), *_floats(net, 1e-3))
    ),
    "length one": lambda net, x: net(
        "Div", x, net("Clip", net("ReduceL2", x, axes=[1]), *_floats(net, 1e-12, np.finfo(F).max))
    ),
}


def network(kind: str, layer_behind: bool = False):
    net = Net()
    x = net.input("x", SHAPE)
    first = net.constant((net.random.standard_normal((4, 4, 3, 3)) / 6).astype(F))
    out = KINDS[kind](net, net("Conv", x, first, pads=[1] * 4))
    if layer_behind:
        channels = 1 if kind == "weighted mean" else 4
        second = net.constant((net.random.standard_normal((3, channels, 1, 1)) / 2).astype(F))
        out = net("Conv", net("Tanh", net("Mul", out, *_floats(net, 0.2))), second)
    shape = [1, 3 if layer_behind else 1 if kind == "weighted mean" else 4, 8, 8]
    return net.model(out, shape, opset=13), lambda random: {"x": random.standard_normal(SHAPE).astype(F)}


@pytest.mark.parametrize("behind", [False, True], ids=["at the end", "in front of a layer"])
@pytest.mark.parametrize("kind", KINDS)
def test_no_zero_reaches_what_cannot_take_it(kind: str, behind: bool) -> None:
    decibels, _ = score(network(kind, behind), recipe())
    assert decibels > 20


@pytest.mark.parametrize("kind", KINDS)
def test_nothing_changes_without_a_sensitive_reader(kind: str) -> None:
    """What does not lead there keeps its grid: the picture, and what layers read."""
    model, _ = network(kind, True)
    graph = Graph.from_model(model)
    fragile = relative(graph)
    layers = {layer.input for layer in graph.layers()}
    assert fragile.isdisjoint(layers) and "x" not in fragile


def test_residual_streams_that_are_normalised_keep_their_grids() -> None:
    net = Net()
    x = net.input("x", [1, 6, 8])
    branch = net("MatMul", x, net.weight(8, 8))
    stream = net("Add", branch, x, out="stream")
    square = net("ReduceMean", net("Mul", stream, stream), axes=[2])
    norm = net("Mul", stream, net("Reciprocal", net("Sqrt", net("Add", square, *_floats(net, 1e-6)))))
    graph = Graph.from_model(net.model(net("MatMul", norm, net.weight(8, 8)), [1, 6, 8], opset=13))
    assert "stream" not in relative(graph) and len(relative(graph)) >= 4


def test_recipes_say_what_stays_float() -> None:
    _, q = score(network("reciprocal"), Recipe.load("minmax-w8a8"))
    assert any("relative error" in record.note for record in q.log)


@pytest.mark.filterwarnings("ignore:hexagon gives something else")
@pytest.mark.parametrize("kind", KINDS)
def test_where_nothing_is_float_nothing_is_infinite(kind: str) -> None:
    """Hexagon: 16 bits, but where arithmetic of 8 bits reads them, and a clamp in place."""
    network_, make = network(kind, True)
    _, q = score((network_, make), recipe(), "hexagon")
    requantised = {name for node in q.graph.nodes if node.op_type == "Identity" for name in node.outputs}
    for name in relative(q.graph) - requantised:
        assert name not in q.grids or q.grids[name].scheme.bits == 16
    assert (
        any("16 bits" in record.note for record in q.log) or kind.startswith("log of softmax") or not relative(q.graph)
    )


def test_clips_are_put_where_a_bound_is_proved() -> None:
    net = Net()
    x = net.input("x", [1, 4])
    squares = net("ReduceMean", net("Mul", x, x), axes=[1])
    root = net("Sqrt", net("Add", squares, *_floats(net, 1e-6)))
    out = net("Add", net("Div", x, root), net("Div", x, net("Sub", root, *_floats(net, 0.5))))
    graph = Graph.from_model(net.model(out, [1, 4], opset=13))
    before = Session(graph).run({"x": np.full((1, 4), 1e-5, F)})["y"]
    names = keep_positive(graph)
    assert len(names) == 1 and graph.producers()[names[0]].op_type == "Sqrt"
    clip = next(node for node in graph.nodes if node.op_type == "Clip")
    assert float(graph.weights[clip.inputs[1]]) == pytest.approx(1e-3)
    np.testing.assert_array_equal(Session(graph).run({"x": np.full((1, 4), 1e-5, F)})["y"], before)
    assert keep_positive(graph) == []


def test_bounds_take_one_walk_however_often_branches_meet() -> None:
    nodes = []
    for i in range(60):  # x Sigmoid(x), as often: both factors lead back to all before them
        x = f"m{i - 1}" if i else "x"
        nodes += [node("Sigmoid", x, f"s{i}"), node("Mul", f"{x} s{i}", f"m{i}")]
    nodes += [node("Exp", "m59", "e"), node("Div", "one e", "y")]
    graph = Graph.from_model(model(nodes, (1, 4), one=np.ones((1, 4), np.float32)))
    assert len(keep_positive(graph)) == 1


EMULATED = (
    "reciprocal", "inverse std", "silu in pieces", "softmax in pieces", "sum to one", "log", "log with epsilon",
    "log of squares", "log of sigmoid",
)  # fmt: skip


@pytest.mark.filterwarnings("ignore:hexagon gives something else")
@pytest.mark.parametrize("kind", EMULATED)
def test_hexagon_keeps_what_is_promised_of_quotients(kind: str) -> None:
    pytest.importorskip("onnxruntime_qnn", reason="the extra 'hexagon' is not installed")
    network_, make = network(kind)
    feeds = [make(np.random.default_rng(seed)) for seed in range(19)]
    made = quantize(Graph.from_model(network_), "w8a8", feeds[:7], target="hexagon")
    found = made.verify(feeds[7:])
    assert found.facts.accepted, str(found.facts)
    (output,) = found.outputs
    assert abs(output.device - output.sqnr) < 2.5 and output.sqnr > 15


@pytest.mark.parametrize("form", ["over", "times"])
def test_sigmoids_in_pieces_are_one_operator_for_hexagon(form: str) -> None:
    net = Net()
    x = net.input("x", SHAPE)
    total = net("Add", *_floats(net, 1), net("Exp", net("Neg", x)))
    out = net("Div", x, total) if form == "over" else net("Mul", x, net("Reciprocal", total))
    graph = Graph.from_model(net.model(out, SHAPE, opset=13))
    feed = {"x": np.linspace(-9, 9, int(np.prod(SHAPE)), dtype=F).reshape(SHAPE)}
    before = Session(graph).run(feed)["y"]
    assert any("Sigmoid" in line for line in respell(graph, Recipe.load("w8a8"), HEXAGON))
    assert not {"Exp", "Div", "Reciprocal"} & {node.op_type for node in graph.nodes}
    np.testing.assert_allclose(Session(graph).run(feed)["y"], before, rtol=1e-5, atol=1e-6)


def test_head_room_ends_where_a_clamp_does() -> None:
    net = Net()
    x = net.input("x", SHAPE)
    weight = net.constant((net.random.standard_normal((4, 4, 1, 1))).astype(F))
    out = net("Clip", net("Conv", x, weight), *_floats(net, -0.5, 0.25))
    feeds = [{"x": np.random.default_rng(seed).standard_normal(SHAPE).astype(F)} for seed in range(6)]
    made = quantize(Graph.from_model(net.model(out, SHAPE, opset=13)), "w8a16", feeds, target="hexagon")
    grid = made.grids["y"]
    assert float(grid.lo) >= -0.501 and float(grid.hi) <= 0.251
    assert "Clip" not in {node.op_type for node in made.to_qdq().graph.node}


@pytest.mark.parametrize(
    ("kind", "said"),
    [
        ("std", "reducemean"),
        ("log with epsilon", "add"),
        ("log of moved softmax", "transpose"),
        ("log of squares", ""),
        ("softmax in pieces", ""),
        ("log", ""),
        ("reciprocal", ""),
        ("sum to one", ""),
    ],
)
@pytest.mark.parametrize("target", ["hexagon", "onnxruntime"])
def test_what_lies_too_far_apart_for_integers_is_named_before_the_work(kind: str, said: str, target: str) -> None:
    network_, make = network(kind)
    feeds = [make(np.random.default_rng(seed)) for seed in range(2)]
    with warnings.catch_warnings(record=True) as warned:
        warnings.simplefilter("always")
        prepare(Graph.from_model(network_), "w8a8", feeds, target=target)
    lines = [str(one.message) for one in warned if "cannot take zero" in str(one.message)]
    assert bool(lines) == bool(said and target == "hexagon")
    assert all(f"of what '{said}" in line for line in lines)


@pytest.mark.parametrize("epsilon", [1e-2, 1e-3, 1e-5, 1e-7])
def test_how_small_an_epsilon_may_be_beside_the_largest(epsilon: float) -> None:
    """One step of 65535; zeros in front of it are on every grid."""
    net = Net()
    out = net("Log", net("Add", net("Relu", net.input("x", [1, 64])), *_floats(net, epsilon)))
    proto = net.model(out, [1, 64], opset=13)
    feeds = [{"x": np.linspace(-1, 1, 64, dtype=F)[None]}] * 2
    with warnings.catch_warnings(record=True) as warned:
        warnings.simplefilter("always")
        prepare(Graph.from_model(proto), "w8a16", feeds, target="hexagon")
    assert any("cannot take zero" in str(one.message) for one in warned) == (epsilon < 1 / 65535)
