"""Features traced through data movement: numpy does the same to the indices as onnxruntime does to values."""

from __future__ import annotations

import numpy as np
import pytest

from graph_models import model, node
from leadline.graph import Graph, Session
from leadline.graph.trace import features, moves, origin, trace

SHAPE = (2, 6, 12)
ENDS = np.iinfo(np.int64).max
PATHS = {
    "reshape": ([node("Reshape", "x s", "m")], {"s": np.array([2, 6, 3, 4])}),
    "transpose": ([node("Transpose", "x", "m", perm=[2, 0, 1])], {}),
    "turned": ([node("Transpose", "x", "m")], {}),
    "gather": ([node("Gather", "x i", "m", axis=2)], {"i": np.array([3, 0, 11, 3])}),
    "picked": ([node("Gather", "x i", "m", axis=1)], {"i": np.array(4)}),
    "negative": ([node("Gather", "x i", "m", axis=-1)], {"i": np.array([-1, -12])}),
    "slice": (
        [node("Slice", "x a b c d", "m")],
        {"a": np.array([1, -2]), "b": np.array([ENDS, -9]), "c": np.array([2, -2]), "d": np.array([3, -1])},
    ),
    "plain slice": ([node("Slice", "x a b", "m")], {"a": np.array([0, 2]), "b": np.array([1, 5])}),
    "squeezed": (
        [node("Slice", "x a b", "t"), node("Squeeze", "t c", "m")],
        {"a": np.array([1]), "b": np.array([2]), "c": np.array([0])},
    ),
    "unsqueezed": ([node("Unsqueeze", "x c", "m")], {"c": np.array([1])}),
    "flattened": ([node("Flatten", "x", "m", axis=2)], {}),
    "attention": (
        [
            node("Reshape", "x s", "a"),
            node("Transpose", "a", "b", perm=[2, 0, 3, 1, 4]),
            node("Gather", "b i", "m", axis=0),
        ],
        {"s": np.array([2, 6, 3, 2, 2]), "i": np.array(1)},
    ),
}


def graph_of(nodes, weights, outputs="y"):
    return Graph.from_model(model(nodes, SHAPE, outputs, **weights))


@pytest.mark.parametrize("path", PATHS)
def test_ids_move_as_values_do(path):
    nodes, weights = PATHS[path]
    graph = graph_of([node("Abs", "x", "start"), *renamed(nodes, "x", "start"), node("Relu", "m", "y")], weights)
    ids = np.arange(int(np.prod(SHAPE))).reshape(SHAPE)
    (use,) = trace(graph, "start", ids)
    assert use.node.op_type == "Relu" and use.index == 0
    with Session(graph, threads=1) as session:
        got = session.run({"x": ids.astype(np.float32)})["y"]
    np.testing.assert_array_equal(use.ids, got)
    tensor, writer = origin(graph, graph.producers(), use.tensor)
    assert tensor == "start" and writer.op_type == "Abs"


def renamed(nodes, old, new):
    for one in nodes:
        for i, name in enumerate(one.input):
            if name == old:
                one.input[i] = new
    return nodes


def test_split_parts_know_their_features():
    nodes = [
        node("Abs", "x", "start"),
        node("Split", "start s", "a b c", axis=2),
        node("Relu", "a", "y"),
        node("Relu", "b", "z"),
        node("Relu", "c", "w"),
    ]
    graph = graph_of(nodes, {"s": np.array([3, 4, 5])}, "y z w")
    ids = np.broadcast_to(np.arange(12), SHAPE)
    found = {use.node.outputs[0]: features(use.ids, 2).tolist() for use in trace(graph, "start", ids)}
    assert found == {"y": [0, 1, 2], "z": [3, 4, 5, 6], "w": [7, 8, 9, 10, 11]}


def test_factors_are_passed_where_asked_for():
    nodes = [
        node("Abs", "x", "start"),
        node("Mul", "start half", "a"),
        node("Div", "a half", "b"),
        node("Div", "half b", "y"),
        node("Mul", "b each", "z"),
    ]
    graph = graph_of(nodes, {"half": np.float32(0.5), "each": np.arange(12, dtype=np.float32)}, "y z")
    ids = np.broadcast_to(np.arange(12), SHAPE)
    assert [use.node.outputs[0] for use in trace(graph, "start", ids)] == ["a"]
    found = {use.node.outputs[0]: use for use in trace(graph, "start", ids, factors=True)}
    assert found.keys() == {"y", "z"}  # a quotient the other way round, and a factor for each channel
    assert found["y"].index == 1 and np.array_equal(found["y"].ids, ids)
    assert origin(graph, graph.producers(), "b", factors=True)[0] == "start"


def test_every_way_out_is_a_use():
    nodes = [node("Abs", "x", "start"), node("Transpose", "start", "y"), node("Add", "start start", "z")]
    graph = graph_of(nodes, {}, "y z")
    uses = trace(graph, "start", np.broadcast_to(np.arange(12), SHAPE))
    assert sorted((use.node.op_type if use.node else "out", use.index) for use in uses) == [
        ("Add", 0),
        ("Add", 1),
        ("out", 0),
    ]


def test_what_computes_does_not_move():
    graph = graph_of([node("Abs", "x", "a"), node("MatMul", "a w", "y")], {"w": np.eye(12, dtype=np.float32)})
    assert not any(moves(graph, one, factors=True) for one in graph.nodes if one.op_type != "Reshape")


def test_features_are_those_of_one_axis():
    ids = np.broadcast_to(np.array([4, 2, 9]), (5, 3))
    assert features(ids, 1).tolist() == [4, 2, 9] and features(ids, -1).tolist() == [4, 2, 9]
    assert features(ids, 0) is None
