"""Clamps that quantisation performs anyway: not written, no bit changed, and onnxruntime fuses across them."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import onnx
import pytest

from leadline.export import qdq
from leadline.graph import Graph, Node
from leadline.types import Grid, Scheme
from test_qdq import BIAS, PER_CHANNEL, S8, activation, codes_of, fused, network, unfused, weight_grid

RNG = np.random.default_rng(11)
SHAPE = (1, 8, 6, 6)
SIX = np.float32(6)


def clamped(*clamps: Node, ends: tuple[str, ...] = (), **weights: np.ndarray) -> Graph:
    """x -> Conv -> c -> the clamps -> t -> Conv -> y"""
    weights |= {
        "w": RNG.standard_normal((8, 4, 3, 3), np.float32),
        "b": RNG.standard_normal(8, np.float32),
        "v": RNG.standard_normal((4, 8, 1, 1), np.float32),
    }
    first = Node("Conv", ["x", "w", "b"], ["c"], "first", {"pads": [1, 1, 1, 1]})
    second = Node("Conv", ["t", "v"], ["y"], "second", {"pads": [0, 0, 0, 0]})
    shapes = {name: SHAPE for node in (first, *clamps) for name in node.outputs}
    graph = network([first, *clamps, second], weights, {"x": (1, 4, 6, 6), **shapes, "y": (1, 4, 6, 6)})
    graph.outputs += [graph.values[name] for name in ends]
    return graph


def relu(source: str = "c", target: str = "t") -> Node:
    return Node("Relu", [source], [target], f"relu.{target}")


def grids_of(graph: Graph, t: Grid) -> dict[str, Grid]:
    grids = {"x": activation(-4, 4), "t": t, "y": activation(-30, 30)}
    for layer in graph.layers():
        grids[layer.weight] = weight_grid(graph.weights[layer.weight], PER_CHANNEL)
        if layer.bias:
            scale = grids[layer.input].scale * grids[layer.weight].scale
            grids[layer.bias] = Grid(scale, np.zeros(scale.shape), BIAS)
    return grids


def kinds(model: onnx.ModelProto) -> list[str]:
    return [node.op_type for node in model.graph.node if "Linear" not in node.op_type]


def written(graph: Graph, t: Grid, monkeypatch: pytest.MonkeyPatch) -> onnx.ModelProto:
    """The model, after checking that it simulates bit for bit as with every clamp in place."""
    grids = grids_of(graph, t)
    model = qdq.to_qdq(graph, grids, codes_of(graph, grids))
    onnx.checker.check_model(model, full_check=True)
    with monkeypatch.context() as patch:
        patch.setattr(qdq, "drop_clamps", lambda graph, grids: None)
        full = qdq.to_qdq(graph, grids, codes_of(graph, grids))
    assert {node.name for node in graph.nodes} <= {node.name for node in full.graph.node}
    for spread in (1, 5):
        x = RNG.standard_normal((1, 4, 6, 6), np.float32) * np.float32(spread)
        np.testing.assert_array_equal(unfused(model, x), unfused(full, x))
    read = qdq.read(model)
    assert read.grids == grids
    used = {name for node in model.graph.node for name in node.input}
    assert {tensor.name for tensor in model.graph.initializer} <= used
    return model


BOUND = RNG.uniform(6, 9, (1, 8, 1, 1)).astype(np.float32)
RELU6 = [relu(target="r"), Node("Min", ["r", "bound"], ["t"], "min")]
CASES = {
    "relu": ([relu()], {}, activation(0, 6)),
    "relu, 4 bits": ([relu()], {}, activation(0, 6, Scheme(4))),
    "relu, 6 bits": ([relu()], {}, activation(0, 6, Scheme(6))),
    "relu, signed asymmetric": ([relu()], {}, activation(0, 6, Scheme(8, signed=True))),
    "clip": ([Node("Clip", ["c", "zero", "six"], ["t"], "clip")], {"zero": 0 * SIX, "six": SIX}, activation(0, 5.5)),
    # 255 * float32(6 / 255) is above 6 for some widths of a grid: what counts is the code of the bound
    "clip to the grid's end": (
        [Node("Clip", ["c", "zero", "six"], ["t"], "clip")],
        {"zero": 0 * SIX, "six": np.float32(0.7)},
        activation(0, 0.7),
    ),
    "clip without upper bound": ([Node("Clip", ["c", "zero"], ["t"], "clip")], {"zero": 0 * SIX}, activation(0, 9)),
    "clip without lower bound": ([Node("Clip", ["c", "", "six"], ["t"], "clip")], {"six": SIX}, activation(-2, 5)),
    "clip, symmetric": (
        [Node("Clip", ["c", "low", "six"], ["t"], "clip")],
        {"low": -SIX, "six": SIX},
        Grid(np.float32(0.04), np.int32(0), S8),
    ),
    "clip, no bound in float32": (
        [Node("Clip", ["c", "zero", "most"], ["t"], "clip")],
        {"zero": 0 * SIX, "most": np.finfo(np.float32).max},
        activation(0, 0.1),
    ),
    "min": ([Node("Min", ["c", "bound"], ["t"], "min")], {"bound": BOUND}, activation(-3, 6)),
    "min, constant first": ([Node("Min", ["bound", "c"], ["t"], "min")], {"bound": BOUND}, activation(-3, 6)),
    "relu and min": (RELU6, {"bound": BOUND}, activation(0, 5.9)),
}


@pytest.mark.parametrize("case", CASES)
def test_a_clamp_that_saturation_performs_is_not_written(
    case: str, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    nodes, weights, grid = CASES[case]
    graph = clamped(*nodes, **{name: np.asarray(array, np.float32) for name, array in weights.items()})
    model = written(graph, grid, monkeypatch)
    expected = ["Conv", *["Clip"] * (grid.scheme.bits in (4, 6)), "Conv"]
    assert kinds(model) == expected
    quantize = next(node for node in model.graph.node if node.name == "t.quantize")
    assert quantize.input[0] == ("t.clipped" if grid.scheme.bits in (4, 6) else "t")
    assert [node.op_type for node in graph.nodes] == ["Conv", *(node.op_type for node in nodes), "Conv"]
    if grid.scheme.bits == 8:
        _, fused_kinds = fused(model, RNG.standard_normal((1, 4, 6, 6), np.float32), tmp_path)
        del fused_kinds["Transpose"]  # to channels last and back
        assert fused_kinds == {"QuantizeLinear": 1, "QLinearConv": 2, "DequantizeLinear": 1}


KEPT = {
    "relu over a grid with negative values": ([relu()], {}, activation(-1, 6)),
    "relu, symmetric": ([relu()], {}, Grid(np.float32(0.04), np.int32(0), S8)),
    "clip below the grid's end": (
        [Node("Clip", ["c", "zero", "six"], ["t"], "clip")], {"zero": 0 * SIX, "six": SIX}, activation(0, 6.1),
    ),
    "clip above the grid's start": (
        [Node("Clip", ["c", "one", "six"], ["t"], "clip")], {"one": SIX / 6, "six": SIX}, activation(0, 5),
    ),
    "min below the grid's end in one channel": (
        [Node("Min", ["c", "bound"], ["t"], "min")], {"bound": BOUND}, activation(-3, float(BOUND.max())),
    ),
    "another operator": ([Node("HardSwish", ["c"], ["t"], "swish")], {}, activation(0, 5)),
    "min of two activations": (
        [relu(target="r"), Node("Neg", ["r"], ["n"], "neg"), Node("Min", ["r", "n"], ["t"], "min")],
        {}, activation(0, 5),
    ),
}  # fmt: skip


@pytest.mark.parametrize("case", KEPT)
def test_a_clamp_that_does_more_stays(case: str, monkeypatch: pytest.MonkeyPatch) -> None:
    nodes, weights, grid = KEPT[case]
    graph = clamped(*nodes, **{name: np.asarray(array, np.float32) for name, array in weights.items()})
    assert kinds(written(graph, grid, monkeypatch)) == ["Conv", *(node.op_type for node in nodes), "Conv"]


def test_the_inner_clamp_stays_where_only_the_outer_is_performed(monkeypatch: pytest.MonkeyPatch) -> None:
    model = written(clamped(*RELU6, bound=BOUND), activation(-1, 5), monkeypatch)
    assert kinds(model) == ["Conv", "Relu", "Conv"]


def test_an_input_that_is_seen_elsewhere_keeps_its_clamp(monkeypatch: pytest.MonkeyPatch) -> None:
    """A second reader, a graph output, a grid of its own, a graph input."""
    grid = activation(0, 6)
    assert kinds(written(clamped(relu(), ends=("c",)), grid, monkeypatch)) == ["Conv", "Relu", "Conv"]
    graph = clamped(relu(), Node("Neg", ["c"], ["n"], "neg"), ends=("n",))
    assert kinds(written(graph, grid, monkeypatch)) == ["Conv", "Relu", "Neg", "Conv"]
    graph = clamped(relu())
    grids = grids_of(graph, grid) | {"c": activation(-5, 5)}
    assert kinds(qdq.to_qdq(graph, grids, codes_of(graph, grids))) == ["Conv", "Relu", "Conv"]
    lone = network([relu("x")], {}, {"x": SHAPE, "t": SHAPE})
    assert kinds(qdq.to_qdq(lone, {"t": grid})) == ["Relu"]


def test_an_output_keeps_its_name_and_a_shared_bound_stays(monkeypatch: pytest.MonkeyPatch) -> None:
    minimum, other = Node("Min", ["c", "bound"], ["t"], "min"), Node("Min", ["t", "bound"], ["z"], "other")
    model = written(clamped(minimum, other, ends=("t", "z"), bound=BOUND), activation(-3, 6), monkeypatch)
    assert kinds(model) == ["Conv", "Min", "Conv"]
    assert [value.name for value in model.graph.output] == ["y", "t", "z"]


@pytest.mark.parametrize("reader", ["Reciprocal", "Log", "Div", "moved"])
def test_a_clamp_to_positive_values_gives_no_zero(reader: str) -> None:
    """1e-4 is no code of a grid to 6, and 1 / 0 no depth."""
    clip = Node("Clip", ["c", "low", ""], ["t"], "clip")
    graph = clamped(clip, low=np.float32(1e-4))
    del graph.nodes[-1]
    ends = {"Div": ["u", "t"], "moved": ["t"]}.get(reader, ["t"])
    graph.nodes.append(Node("Transpose" if reader == "moved" else reader, ends, ["y"], "last"))
    if reader == "moved":
        graph.nodes[-1].outputs, graph.nodes[-1].attrs = ["m"], {"perm": [0, 1, 3, 2]}
        graph.values["m"] = graph.values["t"].__class__("m", np.dtype(np.float32), SHAPE)
        graph.nodes.append(Node("Reciprocal", ["m"], ["y"], "last of all"))
    graph.weights["u"] = np.ones((), np.float32)
    graph.values["y"] = graph.values["t"].__class__("y", np.dtype(np.float32), SHAPE)
    graph.outputs = [graph.values["y"]]
    graph.prune()
    grids = {"x": activation(-4, 4), "t": activation(0, 6)}
    model = qdq.to_qdq(graph, grids)
    got = unfused(model, RNG.standard_normal((1, 4, 6, 6), np.float32))
    assert np.isfinite(got).all() and np.abs(got).max() <= 6.1 / float(grids["t"].scale)


def test_other_clamps_keep_their_bound() -> None:
    graph = clamped(Node("Clip", ["c", "low", ""], ["t"], "clip"), low=np.float32(1e-4))
    model = qdq.to_qdq(graph, {"x": activation(-4, 4), "t": activation(0, 6)})
    assert "Clip" not in kinds(model)
