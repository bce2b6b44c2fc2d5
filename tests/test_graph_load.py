"""What exporters really write, and files that are refused, each with the message the user sees."""

from __future__ import annotations

import re

import numpy as np
import onnx
import pytest
from onnx import TensorProto, helper, numpy_helper

from graph_models import FLOAT, distance, load_same, model, node, ops, random
from leadline.graph import Graph, Session, inspect_inputs
from leadline.types import InputError


def refused(message, proto=None, sample=None, path=None):
    with pytest.raises(InputError) as error:
        Graph.load(path, sample) if path is not None else Graph.from_model(proto, sample)
    text = str(error.value)
    assert re.match(r"\[Graph\.(load|from_model)\] ", text)
    assert message in text, text


# ---------------------------------------------------------------- shapes and samples


def test_weights_listed_as_inputs():
    proto = model([node("Conv", "x w", "y")], (1, 3, 8, 8), opset=9, w=random(4, 3, 3, 3))
    proto.ir_version = 3
    proto.graph.input.append(helper.make_tensor_value_info("w", FLOAT, (4, 3, 3, 3)))
    graph = load_same(proto)
    assert [value.name for value in graph.inputs] == ["x"]


def test_weights_in_constant_nodes():
    constant = helper.make_node("Constant", [], ["w"], value=numpy_helper.from_array(random(4, 3, 3, 3)))
    more = [
        helper.make_node("Constant", [], ["k"], value_float=2.0),
        helper.make_node("Constant", [], ["s"], value_ints=[1, -1]),
    ]
    nodes = [constant, *more, node("Conv", "x w", "c"), node("Mul", "c k", "m"), node("Reshape", "m s", "y")]
    graph = load_same(model(nodes, (1, 3, 8, 8)))
    assert ops(graph) == ["Conv", "Mul", "Reshape"]
    assert graph.layers()[0].weight == "w"


@pytest.mark.parametrize("sizes", [np.int64(3), np.array([2, 5, 1])])
def test_sequences_of_parts_are_tensors(sizes):
    """As torch's exporter writes `chunk`: the last part is what is left."""
    split = node("SplitToSequence", "x n", "s", axis=2)
    nodes = [split, node("SequenceAt", "s i", "a"), node("SequenceAt", "s j", "b"), node("Concat", "b a", "y", axis=2)]
    graph = load_same(model(nodes, (2, 5, 8), n=sizes, i=np.int64(0), j=np.int64(-1)))
    assert ops(graph) == ["Split", "Concat"]


def test_sample_wins_over_declared_shape():
    proto = model([node("Conv", "x w", "y")], (10, 3, 32, 32), w=random(4, 3, 3, 3))
    assert Graph.from_model(proto, {"x": (1, 3, 8, 12)}).shape("y") == (1, 4, 6, 10)
    assert Graph.from_model(proto, {"x": random(2, 3, 8, 8)}).shape("y") == (2, 4, 6, 6)
    assert Graph.from_model(proto).shape("y") == (10, 4, 30, 30)


def test_free_batch_becomes_one():
    proto = model([node("Relu", "x", "y")], ("batch", 3, 8))
    assert Graph.from_model(proto).shape("y") == (1, 3, 8)


FREE = model([node("Relu", "x", "y")], ("batch", 3, "height", None))


@pytest.mark.parametrize(
    ("sample", "message"),
    [
        (None, "sample must fix the free axes of input 'x'. Received no sample for shape ?x3x?x?."),
        ({"image": (1, 3, 8, 8)}, "sample must use the input names ['x']. Received 'image'."),
        ({"x": (3, 8, 8)}, "sample 'x' must have 4 axes. Received shape (3, 8, 8)."),
        ({"x": (1, 3, 0, 8)}, "sample 'x' must not be empty. Received shape (1, 3, 0, 8)."),
        ({"x": np.zeros((1, 3, 8, 8), int)}, "sample 'x' must be float32. Received int64."),
    ],
)
def test_sample_that_does_not_fit(sample, message):
    refused(message, FREE, sample)


def test_sample_that_the_network_cannot_take():
    proto = model([node("Conv", "x w", "y")], ("n", 3, "h", "w"), w=random(4, 3, 3, 3))
    rule = "inputs of each node of 'test' must fit (is the sample's shape right?). Received Conv writing 'y', of"
    refused(rule, proto, {"x": (1, 4, 8, 8)})


def test_inspect_inputs_reads_what_is_declared(tmp_path):
    onnx.save(FREE, tmp_path / "free.onnx")
    assert inspect_inputs(tmp_path / "free.onnx") == [("x", np.dtype("float32"), (None, 3, None, None))]


# ---------------------------------------------------------------- constants and control flow


def test_shape_arithmetic_folds_away():
    nodes = [
        node("Shape", "x", "s"), node("Gather", "s zero", "n"), node("Unsqueeze", "n first", "u"),
        node("Concat", "u rest", "t", axis=0), node("Reshape", "x t", "r"), node("Size", "r", "size"),
        node("Cast", "size", "f", to=1), node("Div", "r f", "d"),
        node("Shape", "r", "v"), node("ConstantOfShape", "v", "z"), node("Add", "d z", "y"),
    ]  # fmt: skip
    graph = load_same(model(nodes, ("n", 4, 6), zero=np.int64(0), first=np.array([0]), rest=np.array([-1])), (3, 4, 6))
    assert ops(graph) == ["Reshape", "Div"]
    assert graph.shape("y") == (3, 24)


def test_slices_of_a_shape():
    nodes = [
        node("Shape", "x", "s", start=1, end=-1),
        node("Concat", "s one", "t", axis=0),
        node("Reshape", "x t", "y"),
    ]
    assert load_same(model(nodes, (1, 4, 6), one=np.array([6]))).shape("y") == (4, 6)


def test_noops_go():
    nodes = [
        node("Identity", "x", "a"), node("Dropout", "a", "b"), node("Cast", "b", "c", to=1),
        node("Transpose", "c", "d", perm=[0, 2, 1]),
        node("Transpose", "d", "e", perm=[0, 2, 1]), node("Squeeze", "e first", "f"), node("Unsqueeze", "f first", "g"),
        node("Mul", "g one", "h"), node("Relu", "h", "i"), node("Identity", "i", "y"),
    ]  # fmt: skip
    graph = load_same(model(nodes, (1, 4, 6), first=np.array([0]), one=np.ones(1, np.float32)))
    assert ops(graph) == ["Relu"]
    assert (graph.nodes[0].inputs, graph.nodes[0].outputs) == (["x"], ["y"])


def test_output_that_is_an_input_or_named_twice_keeps_its_names():
    nodes = [node("Identity", "x", "y"), node("Relu", "x", "r"), node("Identity", "r", "z"), node("Identity", "r", "w")]
    graph = load_same(model(nodes, (4, 8), "y z w"))
    assert [value.name for value in graph.outputs] == ["y", "z", "w"]


def test_outputs_that_are_constant_an_input_or_a_weight():
    nodes = [node("Relu", "x", "y"), node("Sin", "w", "s")]
    proto = model(nodes, (4, 8), "s x y w", w=random(3, 2))
    graph = Graph.from_model(proto)
    graph.fold()
    feed = {"x": random(4, 8)}
    got = Session(graph).run(feed)
    weight = numpy_helper.to_array(proto.graph.initializer[0])
    assert list(got) == ["s", "x", "y", "w"]
    for name, values in {"s": np.sin(weight), "w": weight, "x": feed["x"], "y": np.maximum(feed["x"], 0)}.items():
        np.testing.assert_allclose(got[name], values, rtol=1e-6)


def test_inputs_that_nobody_reads_stay():
    proto = model([node("Relu", "x", "y")])
    proto.graph.input.append(helper.make_tensor_value_info("mask", TensorProto.INT64, (3,)))
    graph = Graph.from_model(proto)
    assert [value.name for value in graph.inputs] == ["x", "mask"]
    Session(graph).run({"x": random(2, 5, 8), "mask": np.zeros(3, np.int64)})


def test_twins_merge():
    nodes = [node("Relu", "x", "a"), node("Relu", "x", "b"), node("Add", "a b", "y")]
    assert ops(load_same(model(nodes))) == ["Relu", "Add"]


def conditional(condition):
    branches = {
        f"{name}_branch": helper.make_graph(
            [node(op_type, "x", "o")], name, [], [helper.make_tensor_value_info("o", FLOAT, None)]
        )
        for name, op_type in (("then", "Relu"), ("else", "Neg"))
    }
    return [
        node("ReduceSum", "x", "total", keepdims=0),
        node("Greater", f"{condition} zero", "flag"),
        node("If", "flag", "y", **branches),
    ]


def test_constant_condition_takes_its_branch():
    nodes = [node("Shape", "x", "s"), node("Gather", "s zero", "n"), *conditional("n")]
    assert ops(load_same(model(nodes, (2, 4), zero=np.int64(0)))) == ["Relu"]


@pytest.mark.parametrize(
    ("nodes", "weights", "message"),
    [
        (
            [node("NonZero", "x", "n"), node("Cast", "n", "y", to=1)],
            {},
            "shapes of 'test' must not depend on the data. Received NonZero",
        ),
        ([node("RandomNormalLike", "x", "y")], {}, "'test' must give the same output twice. Received RandomNormalLike"),
        (
            [node("SequenceConstruct", "x", "s"), node("ArgMax", "x", "i", axis=0), node("SequenceAt", "s i", "y")],
            {},
            "places in sequences of 'test' must be constant. Received SequenceAt writing 'y'",
        ),
        ([node("SequenceConstruct", "x x", "y")], {}, "outputs of 'test' must be tensors. Received the sequence 'y'"),
        (
            [node("Magic", "x", "y", domain="com.microsoft")],
            {},
            "must be standard ONNX (export again without runtime-specific "
            "optimisation). Received com.microsoft.Magic writing 'y', unknown to opset 17",
        ),
        ([node("Gelu", "x", "y")], {}, "Received Gelu writing 'y', unknown to opset 17"),
        ([node("Relu", "z", "y")], {}, "every tensor of 'test' must be written before it is read. Received 'z'"),
        ([node("Relu", "x", "z")], {}, "outputs of 'test' must be written by a node. Received 'y'"),
        (
            [node("QuantizeLinear", "x s z", "q"), node("DequantizeLinear", "q s z", "y")],
            {"s": np.float32(1), "z": np.uint8(0)},
            "'test' must be a float network; this one is already quantised. Received QuantizeLinear writing 'q'.",
        ),
    ],
)
def test_graph_that_is_refused(nodes, weights, message):
    refused(message, model(nodes, (2, 4), **weights))


# ---------------------------------------------------------------- opsets


@pytest.mark.parametrize("opset", [7, 8, 9, 10, 11, 12, 13, 15, 18, 20, 21, 22, 23, 24, 25, 28])
def test_every_opset_is_brought_to_21(opset):
    w, bn = random(4, 3, 3, 3), {"g": random(4), "b": random(4), "m": random(4), "v": random(4) ** 2 + 1}
    nodes = [node("Conv", "x w", "c", pads=[1, 1, 1, 1]), node("BatchNormalization", "c g b m v", "n")]
    weights = {"w": w, **bn}
    if opset < 11:
        nodes.append(node("Clip", "n", "k", min=0.0, max=6.0))
    else:
        nodes.append(node("Clip", "n lo hi", "k"))
        weights |= {"lo": np.float32(0), "hi": np.float32(6)}
    if opset < 10:
        nodes.append(node("Slice", "k", "l", starts=[1], ends=[3], axes=[1]))
    else:
        nodes.append(node("Slice", "k starts ends axes", "l"))
        weights |= {"starts": np.array([1]), "ends": np.array([3]), "axes": np.array([1])}
    if opset < 11:
        nodes.append(node("Pad", "l", "p", pads=[0, 0, 1, 1, 0, 0, 1, 1]))
    else:
        nodes.append(node("Pad", "l pads", "p"))
        weights |= {"pads": np.array([0, 0, 1, 1, 0, 0, 1, 1])}
    if opset < 13:
        nodes.append(node("Squeeze", "p", "q", axes=[0]))
    else:
        nodes.append(node("Squeeze", "p none", "q"))
        weights |= {"none": np.array([0])}
    if opset < 18:
        nodes.append(node("ReduceMean", "q", "y", axes=[1], keepdims=0))
    else:
        nodes.append(node("ReduceMean", "q over", "y", keepdims=0))
        weights |= {"over": np.array([1])}
    graph = load_same(model(nodes, (1, 3, 9, 7), opset=opset, **weights), fold=True)
    assert graph.opset == 21
    assert ops(graph) == ["Conv", "Clip", "Slice", "Pad", "Reshape", "ReduceMean"]


@pytest.mark.parametrize("opset", [7, 8, 9, 10, 11])
@pytest.mark.parametrize("mode", ["nearest", "linear"])
def test_old_upsampling(opset, mode):
    scales = np.array([1, 1, 2.5, 3], np.float32)
    if opset < 9:
        proto = model([node("Upsample", "x", "y", mode=mode, scales=scales.tolist())], (1, 3, 4, 6), opset=opset)
    elif opset < 11:
        proto = model(
            [node("Upsample" if opset == 9 else "Resize", "x s", "y", mode=mode)], (1, 3, 4, 6), opset=opset, s=scales
        )
    else:
        proto = model([node("Resize", "x roi s", "y", mode=mode)], (1, 3, 4, 6), opset=opset, s=scales, roi=scales[:0])
    assert ops(load_same(proto)) == ["Resize"]


@pytest.mark.parametrize("axis", [1, 2, 3, -1])
def test_old_softmax_flattens(axis):
    graph = load_same(model([node("Softmax", "x", "y", axis=axis)], (2, 3, 4, 5), opset=11))
    assert ops(graph) == (["Reshape", "Softmax", "Reshape"] if axis in (1, 2) else ["Softmax"])


@pytest.mark.parametrize("opset", [6, onnx.defs.onnx_opset_version() + 1])
def test_opset_out_of_reach(opset):
    rule = f"'test' must use ONNX opset 7 to {onnx.defs.onnx_opset_version()}; export it with opset_version=21."
    refused(f"{rule} Received opset {opset}.", model([node("Relu", "x", "y")], opset=opset))


def test_operator_that_opset_21_lacks():
    proto = model([node("BitCast", "x", "b", to=TensorProto.INT32), node("Cast", "b", "y", to=1)], opset=26)
    refused("operators of 'test' must be in opset 21, or made of such. Received BitCast writing 'b', opset 26.", proto)


def test_local_functions_are_inlined():
    inner = helper.make_function(
        "mine", "Twice", ["a"], ["b"], [node("Add", "a a", "b")], [helper.make_opsetid("", 17)]
    )
    proto = model([node("Twice", "x", "y", domain="mine")])
    proto.functions.append(inner)
    proto.opset_import.append(helper.make_opsetid("mine", 1))
    assert ops(load_same(proto)) == ["Add"]


# ---------------------------------------------------------------- metadata and names


def test_nothing_of_the_exporters_machine_is_left():
    proto = model([node("Conv", "x w", "y", name="/net/conv/Conv")], (1, 3, 8, 8), w=random(4, 3, 3, 3))
    proto.doc_string = proto.graph.doc_string = proto.graph.node[0].doc_string = "/home/somebody/train.py"
    proto.metadata_props.add(key="source", value="/home/somebody")
    proto.graph.node[0].metadata_props.add(key="pkg.torch.onnx.stack_trace", value="File /home/somebody/net.py")
    assert b"somebody" not in Graph.from_model(proto).to_model().SerializeToString()


@pytest.mark.parametrize(
    ("weight", "name", "want"),
    [
        ("blocks.0.fc1.weight", "/blocks.0/fc1/MatMul", "blocks.0.fc1"),
        ("onnx::MatMul_17", "/blocks.0/fc1/MatMul", "blocks.0.fc1"),
        ("onnx::MatMul_17", "", "gemm_0"),
        ("net/dense/kernel:0", "net/dense/MatMul", "net.dense"),
        ("fc w0", "MatMul_3", "matmul_3"),
    ],
)
def test_layers_are_called_after_their_modules(weight, name, want):
    proto = model([helper.make_node("MatMul", ["x", weight], ["y"], name=name)], (7, 8))
    proto.graph.initializer.append(numpy_helper.from_array(random(8, 6), weight))
    (layer,) = Graph.from_model(proto).layers()
    assert layer.name == want
    assert layer.weight in (f"{want}.weight", f"{want}.kernel", "fc_w0")


def test_torch_scopes_name_the_nodes():
    proto = model([node("Softmax", "x", "y", name="node_softmax_3", axis=-1)])
    proto.graph.node[0].metadata_props.add(
        key="pkg.torch.onnx.name_scopes", value="['', 'blocks.0', 'blocks.0.attn', 'softmax']"
    )
    assert Graph.from_model(proto).nodes[0].name == "blocks.0.attn.softmax"


# ---------------------------------------------------------------- files and weights


def saved(tmp_path, limit=2_000_000_000):
    graph = Graph.from_model(model([node("MatMul", "x fc.weight", "y")], fc__weight=random(8, 64)))
    graph.save(tmp_path / "net.onnx", limit)
    return tmp_path / "net.onnx"


def test_no_such_file(tmp_path):
    refused(
        f"path must be an ONNX file. Received '{tmp_path / 'no.onnx'}', which does not exist.",
        path=tmp_path / "no.onnx",
    )
    refused(f"path must be an ONNX file. Received '{tmp_path}', which is a folder.", path=tmp_path)


@pytest.mark.parametrize("content", [b"", b"not a network at all", b"\x89PNG\r\n\x1a\n" + bytes(64), b"{}"])
def test_not_an_onnx_file(tmp_path, content):
    file = tmp_path / "net.onnx"
    file.write_bytes(content)
    refused("path must be a whole ONNX file. Received", path=file)
    with pytest.raises(InputError, match="path must be a whole ONNX file"):
        inspect_inputs(file)


def test_truncated_file(tmp_path):
    file = saved(tmp_path)
    whole = file.read_bytes()
    for part in (0.3, 0.9, 0.999):
        file.write_bytes(whole[: int(len(whole) * part)])
        refused(f"path must be a whole ONNX file. Received '{file}', which is truncated or no ONNX.", path=file)


def test_external_data_missing_or_short(tmp_path):
    file = saved(tmp_path, limit=100)
    data = tmp_path / "net.onnx.data"
    data.write_bytes(data.read_bytes()[:-1])
    rule = "external data of weight 'fc.weight' of 'net.onnx' must be beside the file. Received 'net.onnx.data', which"
    refused(f"{rule} is too short.", path=file)
    data.unlink()
    refused(f"{rule} cannot be read.", path=file)


def test_external_data_elsewhere_is_not_followed(tmp_path):
    file = saved(tmp_path, limit=100)
    proto = onnx.load(file, load_external_data=False)
    for location in ("/etc/passwd", "../net.onnx.data"):
        proto.graph.initializer[0].external_data[0].value = location
        file.write_bytes(proto.SerializeToString())
        refused(f"must be beside the file. Received '{location}'.", path=file)


def test_external_data_needs_its_folder(tmp_path):
    proto = onnx.load(saved(tmp_path, limit=100), load_external_data=False)
    rule = "weight 'fc.weight' of 'test' must be in the model, or be found with Graph.load(path)"
    refused(f"{rule}. Received a weight in another file, 'net.onnx.data'.", proto)
    assert Graph.from_model(proto, base_dir=tmp_path).weights["fc.weight"].shape == (64, 8)


@pytest.mark.parametrize("bad", [np.nan, np.inf, -np.inf])
def test_weight_that_is_not_finite(bad):
    weight = random(8, 6)
    weight[3, 2] = bad
    kind = "NaN" if np.isnan(bad) else "infinity"
    refused(
        f"weights of 'test' must be finite. Received {kind} in 'fc.weight'.",
        model([node("MatMul", "x fc.weight", "y")], fc__weight=weight),
    )


def test_infinite_mask_is_no_weight():
    mask = np.triu(np.full((5, 8), -np.inf, np.float32), 4)
    load_same(model([node("Add", "x mask", "a"), node("Softmax", "a", "y", axis=-1)], mask=mask))


@pytest.mark.parametrize("kind", [TensorProto.FLOAT16, TensorProto.BFLOAT16, TensorProto.DOUBLE])
def test_other_float_types_are_held_in_float32(kind):
    """Inputs, outputs, weights, and islands inside."""
    name = onnx.TensorProto.DataType.Name(kind).lower()
    weight = numpy_helper.from_array(random(8, 8).astype(helper.tensor_dtype_to_np_dtype(kind)), "w")
    body = helper.make_graph(
        [node("MatMul", "x w", "m"), node("Cast", "m", "f", to=1), node("Relu", "f", "r"),
         node("Cast", "r", "y", to=kind), node("CastLike", "r w", "z")],
        "test", [helper.make_tensor_value_info("x", kind, (2, 8))],
        [helper.make_tensor_value_info("y", kind, None), helper.make_tensor_value_info("z", kind, None)], [weight],
    )  # fmt: skip
    graph = Graph.from_model(helper.make_model(body, opset_imports=[helper.make_opsetid("", 19)], ir_version=9))
    assert {value.dtype for value in (*graph.inputs, *graph.outputs)} == {np.dtype("float32")}
    assert ops(graph)[:2] == ["Gemm", "Relu"]
    said = {"float": "float32", "double": "float64"}.get(name, name)
    assert graph.notes[0] == f"x: input of {said} in the file, of float32 here and in all that is written"
    assert graph.notes[-1] == f"w: {said} in the file, computed with in float32; so are 1 weights in all"
    x = random(2, 8)
    want = np.maximum(x @ numpy_helper.to_array(weight).astype(np.float32), 0)
    for got in Session(graph).run({"x": x}).values():
        np.testing.assert_allclose(got, want, rtol=1e-5, atol=1e-5)


@pytest.mark.parametrize("value", [np.float16(-65504), np.finfo(np.float64).min, np.float64(-np.inf)])
def test_ends_of_a_float_type_stay_what_they_are(value):
    code = helper.np_dtype_to_tensor_dtype(np.dtype(value.dtype))
    nodes = [node("Cast", "x", "d", to=code), node("Add", "d m", "a"), node("Softmax", "a", "y", axis=-1)]
    (held,) = Graph.from_model(model(nodes, m=np.full(8, value))).weights.values()
    assert held.dtype == np.float32
    assert (held == max(value, np.finfo(np.float32).min) if np.isfinite(value) else np.isinf(held)).all()


def test_double_constants_that_fold_away_do_not_matter():
    nodes = [node("Cast", "d", "f", to=1), node("Mul", "x f", "y")]
    assert ops(load_same(model(nodes, d=np.float64(1.5)))) == ["Mul"]


def test_strings_and_other_values():
    proto = model([node("Relu", "x", "y")])
    proto.graph.input[0].type.tensor_type.elem_type = TensorProto.STRING
    refused("floats of 16 bits or more, integers of 8 or more, or bools. Received strings", proto)
    proto = model([node("Relu", "x", "y")])
    proto.graph.input[0].type.CopyFrom(helper.make_sequence_type_proto(helper.make_tensor_type_proto(FLOAT, None)))
    refused("input 'x' of 'test' must be a tensor. Received a sequence.", proto)


def test_saving_where_nothing_can_be_written(tmp_path):
    (tmp_path / "file").write_text("")
    with pytest.raises(InputError, match="writable"):
        Graph.from_model(model([node("Relu", "x", "y")])).save(tmp_path / "file" / "net.onnx")


def test_failed_save_leaves_the_old_file(tmp_path, monkeypatch):
    file = saved(tmp_path, limit=100)
    before = {item.name: item.read_bytes() for item in tmp_path.iterdir()}
    graph = Graph.load(file)
    monkeypatch.setattr(onnx.ModelProto, "SerializeToString", lambda self: 1 / 0, raising=False)
    with pytest.raises((ZeroDivisionError, AttributeError, TypeError)):
        graph.weights["fc.weight"] = np.zeros((64, 8), object)
        graph.save(file, limit=100)
    assert {item.name: item.read_bytes() for item in tmp_path.iterdir()} == before


def test_graph_queries():
    graph = Graph.from_model(
        model([node("MatMul", "x fc.weight", "a"), node("Relu", "a", "y")], (7, 8), fc__weight=random(8, 6))
    )
    gemm, relu = graph.nodes
    assert graph.producer(relu.inputs[0]) is gemm
    assert graph.producer("x") is None
    assert graph.consumers("fc") == [relu]
    assert graph.shape("fc.weight") == (6, 8)
    assert graph.activations() == ["x", "fc", "y"]
    with pytest.raises(InputError, match=r"tensor must be an activation or a weight of the graph\. Received 'q'"):
        graph.shape("q")


def test_same_output_twice():
    proto = model([node("MatMul", "x fc.weight", "y")], fc__weight=random(8, 6))
    graph, feed = Graph.from_model(proto), {"x": random(2, 5, 8)}
    assert distance(Session(graph).run(feed), Session(Graph.from_model(graph.to_model())).run(feed)) == 0


@pytest.mark.parametrize(
    ("broken", "message"),
    [
        (node("Conv", "x", "y"), "must have what their operators need. Received Conv writing 'y' without W."),
        (node("Cast", "x", "y"), "must have what their operators need. Received Cast writing 'y' without to."),
        (node("Relu", "-", "y"), "must have what their operators need. Received Relu writing 'y' without X."),
        (node("Relu", "x x", "y"), "must have at most the inputs that their operators take. Received Relu writing 'y'"),
    ],
)
def test_nodes_that_are_not_whole(broken, message):
    refused(f"nodes of 'test' {message}", model([broken]))
