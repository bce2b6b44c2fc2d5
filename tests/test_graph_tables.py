"""Recurrent operators and embeddings: carried as they are, with integers for their trained constants."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

import numpy as np
import onnx
import onnxruntime as ort
import pytest
from onnx import TensorProto, helper, numpy_helper
from onnx.reference import ReferenceEvaluator

import leadline
from graph_models import node
from leadline.graph import Graph, Session
from leadline.graph.tables import tables
from leadline.recipe import Override, Recipe
from leadline.sqnr import Sqnr

GATES = {"LSTM": 4, "GRU": 3, "RNN": 1}
T, B, C, H = 6, 1, 10, 8


def random(*shape: int, seed: int = 0, scale: float = 1.0) -> np.ndarray:
    return (np.random.default_rng([seed, *shape]).standard_normal(shape) * scale).astype(np.float32)


def network(
    op_type: str,
    direction: str = "forward",
    layout: int = 0,
    read: str = "both",
    options: Sequence[str] = (),
    batch: int = B,
) -> onnx.ModelProto:
    """A linear layer, a recurrent operator, and a linear layer behind each of its outputs that is read."""
    gates, ways = GATES[op_type], 2 if direction == "bidirectional" else 1
    weights = {
        "w": random(ways, gates * H, C, scale=0.3), "r": random(ways, gates * H, H, scale=0.2),
        "in": random(C, C, scale=0.3), "out": random(H, 3, scale=0.3),
    }  # fmt: skip
    inputs = ["z", "w", "r", "", "", "", ""]
    if "bias" in options:
        inputs[3], weights["b"] = "b", random(ways, 2 * gates * H, scale=0.1)
    if "lengths" in options:
        inputs[4], weights["lengths"] = "lengths", np.full(batch, T - 1, np.int32)
    state = (batch, ways, H) if layout else (ways, batch, H)
    if "states" in options:
        inputs[5], weights["h"] = "h", random(*state)
        if op_type == "LSTM":
            inputs[6], weights["c"] = "c", random(*state)
    if op_type != "LSTM":
        inputs.pop()
    while not inputs[-1]:
        inputs.pop()
    outputs = [name if read in (name, "both") else "" for name in ("sequence", "last")]
    while not outputs[-1]:
        outputs.pop()
    attrs = {"linear_before_reset": 1} if op_type == "GRU" and "bias" in options else {}
    nodes = [
        helper.make_node("MatMul", ["x", "in"], ["z"]),
        helper.make_node(
            op_type, inputs, outputs, name="memory", hidden_size=H, direction=direction, layout=layout, **attrs
        ),
    ]
    ends = []
    for name in filter(None, outputs):
        nodes.append(helper.make_node("MatMul", [name, "out"], [f"y.{name}"]))
        shape = state if name == "last" else (batch, T, ways, H) if layout else (T, ways, batch, H)
        ends.append(helper.make_tensor_value_info(f"y.{name}", TensorProto.FLOAT, (*shape[:-1], 3)))
    x = helper.make_tensor_value_info("x", TensorProto.FLOAT, (batch, T, C) if layout else (T, batch, C))
    tensors = [numpy_helper.from_array(array, name) for name, array in weights.items()]
    graph = helper.make_graph(nodes, "net", [x], ends, tensors)
    made = helper.make_model(graph, opset_imports=[helper.make_opsetid("", 17)], ir_version=8)
    onnx.checker.check_model(made, full_check=True)
    return made


def feeds(graph: Graph, count: int = 6) -> list[dict[str, np.ndarray]]:
    return [{value.name: random(*value.shape, seed=seed) for value in graph.inputs} for seed in range(count)]


def plain(model: onnx.ModelProto) -> ort.InferenceSession:
    options = ort.SessionOptions()
    options.graph_optimization_level = ort.GraphOptimizationLevel.ORT_DISABLE_ALL
    return ort.InferenceSession(model.SerializeToString(), options)


@pytest.mark.parametrize("op_type", GATES)
@pytest.mark.parametrize("direction", ["forward", "reverse", "bidirectional"])
@pytest.mark.parametrize("read", ["sequence", "last", "both"])
@pytest.mark.parametrize("options", [(), ("bias", "states"), ("lengths",)])
def test_recurrent_operators_are_carried(op_type, direction, read, options):
    model = network(op_type, direction, read=read, options=options)
    graph = Graph.from_model(model)
    (feed,) = feeds(graph, 1)
    with Session(graph) as session:
        for want, got in zip(plain(model).run(None, feed), session.run(feed).values(), strict=True):
            np.testing.assert_allclose(got, want, atol=1e-5)
    assert {(table.name, table.kind, table.axis) for table in tables(graph)} == {("memory", "recurrent", 1)}


@pytest.mark.parametrize("op_type", GATES)
@pytest.mark.parametrize("direction", ["forward", "bidirectional"])
@pytest.mark.parametrize("options", [(), ("bias", "states")])
def test_batch_first(op_type, direction, options):
    """onnxruntime has no kernel for layout=1, so ONNX's own reference judges."""
    model = network(op_type, direction, 1, "last" if direction == "bidirectional" else "both", options, batch=2)
    if direction == "forward":  # the reference evaluator knows no other direction
        graph = Graph.from_model(model)
        (feed,) = feeds(graph, 1)
        wanted = ReferenceEvaluator(model).run(None, feed)
        with Session(graph) as session:
            for want, got in zip(wanted, session.run(feed).values(), strict=True):
                np.testing.assert_allclose(got, want, atol=1e-5)
    else:
        first, second = Graph.from_model(model), Graph.from_model(network(op_type, direction, 0, "last", options, 2))
        second.weights = {name: first.weights.get(name, array) for name, array in second.weights.items()}
        assert [n.op_type for n in first.nodes if n.op_type == op_type] == [op_type]
        assert all(n.attrs.get("layout", 0) == 0 for n in first.nodes)


@pytest.mark.parametrize("op_type", GATES)
@pytest.mark.parametrize("recipe", ["w8a8", "w4a8", "w8a16", "weight-only-int8", "minmax-w8a8"])
@pytest.mark.parametrize("read", ["both", "last"])
def test_recurrent_networks_quantise(op_type, recipe, read, tmp_path: Path):
    model = network(op_type, "bidirectional", read=read, options=("bias",))
    data = feeds(Graph.from_model(model), 18)
    made = leadline.quantize(Graph.from_model(model), recipe, data[:14])
    kept = {table.weight for table in tables(made.graph)}
    assert len(kept) == 2
    assert {made.grids[name].scheme.bits for name in kept} == {8}
    assert {made.grids[name].scale.size for name in kept} == {GATES[op_type] * H}
    made.save(tmp_path)
    score = {False: Sqnr(), True: Sqnr()}
    for optimize, total in score.items():
        with Session(tmp_path / "model.qdq.onnx", optimize=optimize) as session:
            for feed in data[14:]:
                for want, got in zip(plain(model).run(None, feed), session.run(feed).values(), strict=True):
                    total.update(want, got)
    assert all(total.db > (15 if recipe == "w4a8" else 25) for total in score.values())


def test_an_override_takes_the_recurrent_matrices_by_kind():
    graph = Graph.from_model(network("GRU"))
    recipe = Recipe.load("w4a8").changed(overrides=(Override(kinds=("recurrent",), weights={"bits": 4}),))
    made = leadline.quantize(graph, recipe, feeds(graph))
    assert {made.grids[table.weight].scheme.bits for table in tables(made.graph)} == {4}
    recipe = Recipe.load("w8a8").changed(overrides=(Override("memory", weights="float"),))
    made = leadline.quantize(graph, recipe, feeds(graph))
    assert not {table.weight for table in tables(made.graph)} & made.grids.keys()


def embedding(axis: int, dtype: int, features: int = 16, entries: int = 40) -> onnx.ModelProto:
    """Token numbers, an embedding, and a linear layer."""
    table = random(entries, features) * np.linspace(0.1, 4, entries, dtype=np.float32)[:, None]
    nodes = [node("Gather", "table ids", "e", axis=axis, name="embed"), node("MatMul", "e w", "y", name="layer")]
    if axis:
        table, nodes = table.T, [nodes[0], node("Transpose", "e", "et", perm=[1, 2, 0]), node("MatMul", "et w", "y")]
    tensors = [numpy_helper.from_array(np.ascontiguousarray(table), "table"),
               numpy_helper.from_array(random(features, 5), "w")]  # fmt: skip
    ids = helper.make_tensor_value_info("ids", dtype, (1, 7))
    y = helper.make_tensor_value_info("y", TensorProto.FLOAT, (1, 7, 5))
    graph = helper.make_graph(nodes, "net", [ids], [y], tensors)
    made = helper.make_model(graph, opset_imports=[helper.make_opsetid("", 17)], ir_version=8)
    onnx.checker.check_model(made, full_check=True)
    return made


@pytest.mark.parametrize("recipe", ["w8a8", "w4a8", "w8a16", "weight-only-int8"])
@pytest.mark.parametrize("dtype", [TensorProto.INT64, TensorProto.INT32])
@pytest.mark.parametrize("axis", [0, 1])
def test_embeddings(recipe, dtype, axis, tmp_path: Path):
    model, r = embedding(axis, dtype), np.random.default_rng(2)
    kind = helper.tensor_dtype_to_np_dtype(dtype)
    data = [{"ids": r.integers(0, 40, (1, 7)).astype(kind)} for _ in range(10)]
    made = leadline.quantize(Graph.from_model(model), recipe, data[:8])
    (table,) = tables(made.graph)
    assert made.grids[table.weight].scheme.bits == 8
    assert made.grids[table.weight].scale.size == 40
    made.save(tmp_path)
    score = Sqnr()
    with Session(tmp_path / "model.qdq.onnx") as session:
        for feed in data[8:]:
            score.update(plain(model).run(None, feed)[0], session.run(feed)["y"])
    assert score.db > (15 if recipe == "w4a8" else 28)


def test_short_entries_are_no_embedding():
    assert tables(Graph.from_model(embedding(0, TensorProto.INT64, features=4))) == []


def test_hexagon_keeps_them_in_float_and_says_so():
    graph = Graph.from_model(network("LSTM"))
    with pytest.warns(UserWarning, match="hexagon does not take LSTM"):
        made = leadline.quantize(graph, "w8a8", feeds(graph), target="hexagon")
    assert not {table.weight for table in tables(made.graph)} & made.grids.keys()
    assert any("LSTM memory" in record.note and "hexagon" in record.note for record in made.log)
