"""Operators that opset 21 lacks, and loops and sequences of known length, come out as operators that quantise."""

from __future__ import annotations

import numpy as np
import onnx
import pytest
from onnx import TensorProto, helper

from graph_models import FLOAT, FLOAT_NOISE, distance, load_same, model, node, ops, random
from leadline.graph import Graph, Session
from leadline.types import InputError

TOKENS = (1, 6, 8)


def test_swish_is_what_silu_networks_have():
    """In the way of exporters that knew no Swish."""
    assert ops(load_same(model([node("Swish", "x", "y")], opset=24))) == ["Sigmoid", "Mul"]
    scaled = load_same(model([node("Swish", "x", "y", alpha=1.702)], opset=24))
    assert ops(scaled) == ["Mul", "Sigmoid", "Mul"]


def test_attention_is_two_products_and_a_softmax():
    """Its scale goes into the layers in front."""
    nodes = [
        node("MatMul", "x q", "query"), node("MatMul", "x k", "key"), node("MatMul", "x v", "value"),
        node("Attention", "query key value", "a", q_num_heads=2, kv_num_heads=2), node("MatMul", "a o", "y"),
    ]  # fmt: skip
    proto = model(nodes, TOKENS, opset=23, q=random(8, 8), k=random(8, 8), v=random(8, 8), o=random(8, 8))
    graph = load_same(proto, fold=True)
    assert set(ops(graph)) == {"Gemm", "Reshape", "Transpose", "MatMul", "Softmax"}
    assert ops(graph).count("MatMul") == 2


@pytest.mark.parametrize("opset", [18, 20, 21, 23])
@pytest.mark.parametrize("shape", [(2, 8, 5), (2, 8, 4, 3), (1, 8, 2, 3, 2)])
def test_group_normalisation_of_any_rank(opset, shape):
    """Before opset 21, scale and bias are of groups; from then on of channels."""
    count = 8 if opset >= 21 else 4
    nodes = [node("GroupNormalization", "x s b", "y", num_groups=4, epsilon=1e-3)]
    proto = model(nodes, shape, opset=opset, s=random(count), b=random(count))
    graph = Graph.from_model(proto)
    assert ops(graph) == ["Reshape", "InstanceNormalization", "Reshape", "Mul", "Add"]
    x, tensors = random(*shape), {t.name: onnx.numpy_helper.to_array(t) for t in proto.graph.initializer}
    groups = x.reshape(shape[0], 4, -1).astype(np.float64)
    normal = (groups - groups.mean(2, keepdims=True)) / np.sqrt(groups.var(2, keepdims=True) + 1e-3)
    scale, bias = (np.repeat(tensors[name], 8 // count).reshape(-1, *[1] * (len(shape) - 2)) for name in "sb")
    np.testing.assert_allclose(Session(graph).run({"x": x})["y"], normal.reshape(shape) * scale + bias, atol=1e-4)


def test_verbatim_leaves_what_opset_21_has():
    proto = model([node("Mish", "x", "m"), node("Swish", "m", "y")], opset=24)
    assert ops(Graph.from_model(proto)) == ["Softplus", "Tanh", "Mul", "Sigmoid", "Mul"]
    from leadline.graph.load import verbatim
    from leadline.graph.read import unpack

    assert "Mish" in ops(verbatim(unpack(proto, None, "test"), None))


@pytest.mark.parametrize("exclusive", [0, 1])
@pytest.mark.parametrize("reverse", [0, 1])
@pytest.mark.parametrize("axis", [0, 1, -1])
def test_products_along_an_axis(axis, reverse, exclusive):
    nodes = [node("CumProd", "x axis", "y", exclusive=exclusive, reverse=reverse)]
    load_same(model(nodes, (3, 4, 5), opset=26, axis=np.int64(axis)))


def test_loops_of_known_length_are_written_out():
    body = helper.make_graph(
        [node("Mul", "state half", "next"), node("Identity", "going", "goes"), node("Identity", "next", "kept")],
        "body",
        [helper.make_tensor_value_info("turn", TensorProto.INT64, ()),
         helper.make_tensor_value_info("going", TensorProto.BOOL, ()),
         helper.make_tensor_value_info("state", FLOAT, None)],
        [helper.make_tensor_value_info("goes", TensorProto.BOOL, ()),
         helper.make_tensor_value_info("next", FLOAT, None), helper.make_tensor_value_info("kept", FLOAT, None)],
    )  # fmt: skip
    nodes = [node("Loop", "three yes x", "last all", body=body), node("Add", "last all", "y")]
    proto = model(nodes, (2, 4), three=np.int64(3), yes=np.array(True), half=np.float32(0.5))
    graph = load_same(proto)
    assert ops(graph).count("Mul") == 3
    assert graph.shape("y") == (3, 2, 4)


def test_scans_run_along_any_axis_and_back():
    body = helper.make_graph(
        [node("Add", "sum part", "total"), node("Identity", "total", "seen")],
        "body",
        [helper.make_tensor_value_info(name, FLOAT, None) for name in ("sum", "part")],
        [helper.make_tensor_value_info(name, FLOAT, None) for name in ("total", "seen")],
    )
    nodes = [
        node("Scan", "start x", "end seen", body=body, num_scan_inputs=1, scan_input_axes=[1],
             scan_input_directions=[1], scan_output_axes=[1]),
        node("Unsqueeze", "end one", "wide"), node("Add", "seen wide", "y"),
    ]  # fmt: skip
    load_same(model(nodes, (2, 4, 3), start=np.zeros((2, 3), np.float32), one=np.array([1])))


def test_loop_that_does_not_end_is_refused():
    body = helper.make_graph(
        [node("Identity", "going", "goes"), node("Relu", "state", "next")],
        "body",
        [helper.make_tensor_value_info("turn", TensorProto.INT64, ()),
         helper.make_tensor_value_info("going", TensorProto.BOOL, ()),
         helper.make_tensor_value_info("state", FLOAT, None)],
        [helper.make_tensor_value_info("goes", TensorProto.BOOL, ()),
         helper.make_tensor_value_info("next", FLOAT, None)],
    )  # fmt: skip
    nodes = [node("Loop", "many yes x", "y", body=body)]
    with pytest.raises(InputError, match=r"loops of 'test' must end within 1000 turns\. Received Loop writing 'y'"):
        Graph.from_model(model(nodes, (2, 4), many=np.int64(10**9), yes=np.array(True)))


def test_lists_of_tensors():
    nodes = [
        node("SequenceConstruct", "x x", "two"), node("Relu", "x", "r"), node("SequenceInsert", "two r at", "three"),
        node("SequenceErase", "three last", "kept"), node("SequenceLength", "kept", "n"),
        node("Cast", "n", "count", to=1), node("ConcatFromSequence", "kept", "joined", axis=1, new_axis=1),
        node("Mul", "joined count", "y"),
    ]  # fmt: skip
    graph = load_same(model(nodes, (2, 3), at=np.int64(0), last=np.int64(-1)))
    assert graph.shape("y") == (2, 2, 3)


def test_shapes_that_an_input_says_are_the_samples():
    proto = model([node("Resize", "x - - size", "y", mode="linear")], (1, 2, 4, 6), opset=18)
    proto.graph.input.append(helper.make_tensor_value_info("size", TensorProto.INT64, (4,)))
    graph = Graph.from_model(proto, {"x": (1, 2, 4, 6), "size": np.array([1, 2, 8, 9])})
    assert graph.shape("y") == (1, 2, 8, 9)
    assert graph.notes == ["y: its shape depends on size, and is the sample's"]
    feed = {"x": random(1, 2, 4, 6), "size": np.array([1, 2, 8, 9])}
    assert distance(Session(proto).run(feed), Session(graph).run(feed)) < FLOAT_NOISE


HOSTILE = ["a|b", "ü/ö:0", "x y\n", "{{ 7 }}", "<b>", "|", "const.0", "|float32", "a" * 300]


@pytest.mark.parametrize("name", HOSTILE)
def test_hostile_names(name):
    """Of tensors, nodes and weights, with and without nodes' names."""
    nodes = [
        helper.make_node("GroupNormalization", ["x", f"s{name}", f"{name}b"], [name], num_groups=2, name=name),
        helper.make_node("Split", [name], ["", f"{name}.1"], axis=1, num_outputs=2, name=name),
        helper.make_node("Swish", [f"{name}.1"], ["y"]),
    ]
    proto = model(nodes, (1, 4, 3, 3), opset=24)
    for tensor in (f"s{name}", f"{name}b"):
        proto.graph.initializer.append(onnx.numpy_helper.from_array(random(4), tensor))
    graph = Graph.from_model(proto)
    names = [item.name for item in graph.nodes]
    assert len(set(names)) == len(names)
    onnx.checker.check_model(graph.to_model(), full_check=True)
    Session(graph).run({"x": random(1, 4, 3, 3)})
