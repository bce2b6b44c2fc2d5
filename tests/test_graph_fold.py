"""Graph.fold: exact, once, and never at the expense of another reader of a weight."""

import numpy as np
import pytest

from graph_models import load_same, model, node, ops, random
from leadline.graph import Graph, Session


def norm(channels):
    """BatchNormalization constants, with variances far from one."""
    return {
        "bn__weight": random(channels),
        "bn__bias": random(channels),
        "bn__mean": random(channels),
        "bn__var": random(channels) ** 2 + 0.1,
    }


BN = "bn.weight bn.bias bn.mean bn.var"


@pytest.mark.parametrize("bias", [False, True])
@pytest.mark.parametrize(
    ("op_type", "group"), [("Conv", 1), ("Conv", 2), ("Conv", 4), ("ConvTranspose", 1), ("ConvTranspose", 2)]
)
@pytest.mark.parametrize("opset", [9, 13, 17])
def test_batch_norm_into_convolution(op_type, group, bias, opset):
    weight = random(6, 4 // group, 3, 3) if op_type == "Conv" else random(4, 6 // group, 3, 3)
    if group == 4:
        weight = random(4, 1, 3, 3)
    channels = 4 if group == 4 else 6
    weights = {"c__weight": weight, **norm(channels), **({"c__bias": random(channels)} if bias else {})}
    nodes = [
        node(op_type, "x c.weight" + " c.bias" * bias, "c", group=group, pads=[1, 1, 1, 1]),
        node("BatchNormalization", f"c {BN}", "y", epsilon=1e-3),
    ]
    graph = load_same(model(nodes, (2, 4, 7, 5), opset=opset, **weights), fold=True)
    assert ops(graph) == [op_type]
    assert graph.nodes[0].inputs == ["x", "c.weight", "c.bias"]
    assert graph.outputs[0].name == "y"


def test_batch_norm_into_a_linear_layer():
    nodes = [node("Gemm", "x w b", "c"), node("BatchNormalization", f"c {BN}", "y")]
    assert ops(load_same(model(nodes, (7, 8), w=random(8, 6), b=random(6), **norm(6)), fold=True)) == ["Gemm"]


@pytest.mark.parametrize("op_type", ["Mul", "Add", "Sub", "Div"])
@pytest.mark.parametrize("shape", [(1, 6, 1, 1), (6, 1, 1), (1, 1, 1, 1), (), (1,)])
@pytest.mark.parametrize("first", [False, True])
def test_constant_per_channel_into_convolution(op_type, shape, first):
    nodes = [node("Conv", "x w", "c"), node(op_type, "k c" if first else "c k", "y")]
    graph = load_same(model(nodes, (2, 4, 7, 5), w=random(6, 4, 1, 1), k=random(*shape) + np.float32(3)), fold=True)
    assert ops(graph) == (["Conv", "Div"] if op_type == "Div" and first else ["Conv"])


def test_constant_along_another_axis_stays():
    nodes = [node("Conv", "x w", "c"), node("Mul", "c k", "y")]
    assert ops(load_same(model(nodes, (2, 4, 5, 6), w=random(6, 4, 1, 1), k=random(6)), fold=True)) == ["Conv", "Mul"]


def test_layer_scale_into_a_linear_layer_through_its_reshape():
    nodes = [
        node("MatMul", "x fc.weight", "m"),
        node("Add", "m fc.bias", "a"),
        node("Mul", "ls.gamma a", "s"),
        node("Add", "s x", "y"),
    ]
    graph = load_same(model(nodes, fc__weight=random(8, 8), fc__bias=random(8), ls__gamma=random(8)), fold=True)
    assert ops(graph) == ["Reshape", "Gemm", "Reshape", "Add"]


def test_attention_scale_through_heads():
    """A scalar may follow the split into heads; a vector may not."""
    split = [
        node("MatMul", "x q.weight", "m"),
        node("Reshape", "m dims", "r"),
        node("Transpose", "r", "t", perm=[0, 2, 1, 3]),
    ]
    weights = {"q__weight": random(8, 8), "dims": np.array([2, 5, 2, 4])}
    assert "Mul" not in ops(
        load_same(model([*split, node("Mul", "t k", "y")], k=np.float32(0.125), **weights), fold=True)
    )
    assert "Mul" in ops(load_same(model([*split, node("Mul", "t k", "y")], k=random(4), **weights), fold=True))


def test_several_in_a_row():
    nodes = [
        node("Conv", "x w", "c"),
        node("Mul", "c k", "m"),
        node("Add", "m b", "a"),
        node("BatchNormalization", f"a {BN}", "y"),
    ]
    proto = model(nodes, (1, 4, 5, 5), w=random(6, 4, 3, 3), k=random(6, 1, 1), b=random(6, 1, 1), **norm(6))
    assert ops(load_same(proto, fold=True)) == ["Conv"]
    graph = Graph.from_model(proto)
    assert [line.split()[:2] for line in graph.fold()] == [["c:", op] for op in ("Mul", "Add", "BatchNormalization")]
    assert graph.fold() == []


def test_a_tensor_with_two_readers_or_that_is_an_output_stays():
    nodes = [node("Conv", "x w", "c"), node("Mul", "c k", "m"), node("Add", "m c", "y")]
    weights = {"w": random(4, 4, 1, 1), "k": random(4, 1, 1)}
    assert ops(load_same(model(nodes, (1, 4, 5, 5), **weights), fold=True)) == ["Conv", "Mul", "Add"]
    graph = load_same(
        model([node("Conv", "x w", "c"), node("Mul", "c k", "y")], (1, 4, 5, 5), "c y", **weights), fold=True
    )
    assert ops(graph) == ["Conv", "Mul"]


def test_shared_weight_gets_a_copy():
    nodes = [node("Conv", "x tied.weight", "a"), node("Mul", "a k", "b"), node("Conv", "b tied.weight", "y")]
    graph = load_same(model(nodes, (1, 4, 5, 5), tied__weight=random(4, 4, 1, 1), k=random(4, 1, 1)), fold=True)
    first, second = graph.layers()
    assert first.weight != second.weight
    assert np.abs(graph.weights[first.weight] - graph.weights[second.weight]).max() > 0.01


def test_folding_a_copy_leaves_the_original():
    nodes = [node("Conv", "x w", "c"), node("Mul", "c k", "y")]
    graph = Graph.from_model(model(nodes, (1, 4, 5, 5), w=random(4, 4, 1, 1), k=random(4, 1, 1)))
    feed = {"x": random(1, 4, 5, 5)}
    before = Session(graph).run(feed)["y"]
    graph.copy().fold()
    assert ops(graph) == ["Conv", "Mul"]
    assert np.array_equal(before, Session(graph).run(feed)["y"])
