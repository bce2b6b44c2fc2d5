"""The real networks A-D: same outputs after loading and after folding, all recognised, names that can be read."""

from __future__ import annotations

import functools
import re
from collections import Counter

import numpy as np
import onnx
import pytest
from PIL import Image

import testbed
from graph_models import FLOAT_NOISE, distance
from leadline.graph import Graph, Session, inspect_inputs

NETWORKS = "ABCD"
SHAPES = {name: next(iter(testbed.INPUTS[name].values())) for name in NETWORKS}


@functools.cache
def path(name):
    try:
        return testbed.network(name)
    except testbed.Missing as error:
        pytest.skip(str(error))


@functools.cache
def feed(name):
    """A picture as the network wants it: text for the text detector C.

    Where there is nothing to find, C's steep last layers turn one float32 rounding of its input into 7e-4 of its
    output's spread; on text it is 5e-5, and for A, B, D on the photograph 5e-6, 5e-5, 3e-6.
    """
    shape, settings = SHAPES[name], testbed.preprocess(name)
    pictures = testbed.text_pictures if name == "C" else testbed.pictures
    image = Image.open(pictures("evaluation", wheels_only=True)[0]).convert("RGB").resize(shape[:1:-1])
    pixels = np.asarray(image, np.float32).transpose(2, 0, 1) * settings.get("scale", 1 / 255)
    mean, std = (
        np.reshape(settings.get(key, default), (-1, 1, 1)) for key, default in (("mean", [0.0]), ("std", [1.0]))
    )
    return {next(iter(testbed.INPUTS[name])): ((pixels - mean) / std).astype(np.float32)[None]}


@functools.cache
def original(name):
    """What the file itself computes, unfused. B declares a dummy shape, which onnxruntime would insist on."""
    model = onnx.load(path(name))
    weights = {tensor.name for tensor in model.graph.initializer}
    for value in model.graph.input:
        if value.name not in weights:
            value.type.tensor_type.ClearField("shape")
    for value in model.graph.output:
        value.type.tensor_type.ClearField("shape")
    return Session(model, optimize=False, threads=2).run(feed(name))


@functools.cache
def loaded(name):
    return Graph.load(path(name), {key: array.shape for key, array in feed(name).items()})


@functools.cache
def folded(name):
    graph = loaded(name).copy()
    return graph, graph.fold()


@pytest.mark.parametrize("name", NETWORKS)
def test_loading_keeps_the_output(name):
    assert distance(original(name), Session(loaded(name), optimize=False, threads=2).run(feed(name))) < FLOAT_NOISE


@pytest.mark.parametrize("name", NETWORKS)
def test_folding_keeps_the_output(name):
    graph, lines = folded(name)
    assert lines
    assert distance(original(name), Session(graph, optimize=False, threads=2).run(feed(name))) < FLOAT_NOISE
    assert graph.copy().fold() == []


# After folding: every LayerNormalization, Gelu and linear layer is one node; no shape arithmetic is left.
EXPECTED = {
    "A": {
        "LayerNormalization": 25,
        "Gelu": 12,
        "Gemm": 72,
        "MatMul": 24,
        "Softmax": 12,
        "ConvTranspose": 3,
        "Conv": 2,
        "Mul": 0,
    },
    "B": {"Conv": 60, "ConvTranspose": 3, "Relu": 42, "Add": 13, "Sigmoid": 1},
    "C": {"Conv": 62, "ConvTranspose": 2, "HardSwish": 24, "HardSigmoid": 10, "Resize": 6, "Clip": 0, "Div": 0},
    "D": {"Conv": 49, "Clip": 33, "Add": 9, "GlobalAveragePool": 1, "Gemm": 1},
}
GONE = {
    "BatchNormalization", "Cast", "Constant", "Dropout", "Erf", "Expand", "Gather", "Identity", "Pow", "ReduceMean",
    "Shape", "Squeeze", "Sqrt", "Unsqueeze", "Where",
}  # fmt: skip
NODES = {"A": 330, "B": 119, "C": 163, "D": 94}


@pytest.mark.parametrize("name", NETWORKS)
def test_normal_form(name):
    graph, _ = folded(name)
    counts = Counter(node.op_type for node in graph.nodes)
    assert {op_type: counts[op_type] for op_type in EXPECTED[name]} == EXPECTED[name]
    assert not GONE & set(counts)
    assert len(graph.nodes) == NODES[name]
    linear = [layer for layer in graph.layers() if layer.kind == "linear"]
    assert all(layer.node.op_type == "Gemm" and layer.node.attrs == {"transB": 1} for layer in linear)
    assert set(graph.activations()) == {value.name for value in graph.values.values() if value.dtype == np.float32}


@pytest.mark.parametrize("name", NETWORKS)
def test_folding_leaves_only_additions_that_padding_holds(name):
    """No factor is left, no addition of nothing, and each constant term stands before a zero-padded convolution."""
    graph, lines = folded(name)
    layers = {layer.name for layer in graph.layers()}
    assert all(set(line.split(": ", 1)[0].split(", ")) <= layers for line in lines)
    for node in graph.nodes:
        if node.op_type in ("Add", "Sub", "Mul", "Div") and graph.weights.keys() & set(node.inputs):
            (constant,) = (graph.weights[tensor] for tensor in node.inputs if tensor in graph.weights)
            readers = graph.consumers(node.outputs[0])
            assert node.op_type == "Add" and constant.any()
            assert name == "A" or any(any(r.attrs.get("pads", ())) or r.op_type == "Mul" for r in readers)


@pytest.mark.parametrize("name", NETWORKS)
def test_names_can_be_read_and_repeat(name):
    graph, _ = folded(name)
    again = Graph.load(path(name), {key: array.shape for key, array in feed(name).items()})
    again.fold()
    assert [node.name for node in again.nodes] == [node.name for node in graph.nodes]
    assert list(again.weights) == list(graph.weights)
    ends = {value.name for value in (*graph.inputs, *graph.outputs)}
    names = [node.name for node in graph.nodes] + [name for name in (*graph.values, *graph.weights) if name not in ends]
    assert all(re.fullmatch(r"[A-Za-z_][\w.-]*", text) for text in names)
    assert len({node.name for node in graph.nodes}) == len(graph.nodes)
    declared = onnx.load(path(name), load_external_data=False).graph
    assert [value.name for value in graph.inputs] == [name for name, _, _ in inspect_inputs(path(name))]
    assert [value.name for value in graph.outputs] == [value.name for value in declared.output]


def test_module_names_of_a_transformer():
    graph, lines = folded("A")
    names = [layer.name for layer in graph.layers()]
    block = "backbone.encoder.layer.0"
    assert names[1:7] == [
        f"{block}.attention.attention.key", f"{block}.attention.attention.value", f"{block}.attention.attention.query",
        f"{block}.attention.output.dense", f"{block}.mlp.fc1", f"{block}.mlp.fc2",
    ]  # fmt: skip
    assert f"{block}.mlp.fc1.weight" in graph.weights
    assert any(line.startswith(f"{block}.mlp.fc2: ") and "layer_scale2" in line for line in lines)


@pytest.mark.parametrize("name", NETWORKS)
@pytest.mark.parametrize("limit", [2_000_000_000, 1000])
def test_saved_network_is_the_same(name, limit, tmp_path):
    graph, _ = folded(name)
    file = tmp_path / "model.onnx"
    graph.save(file, limit)
    assert sorted(item.name for item in tmp_path.iterdir()) == ["model.onnx"] + ["model.onnx.data"] * (limit == 1000)
    onnx.checker.check_model(str(file), full_check=True)
    model = onnx.load(file, load_external_data=False)
    assert (model.ir_version, model.opset_import[0].version, model.producer_name) == (10, 21, "leadline")
    assert not model.metadata_props
    assert not any(node.doc_string or node.metadata_props for node in model.graph.node)
    ours = Session(graph, threads=1).run(feed(name))
    saved = Session(file, threads=1).run(feed(name))
    assert all(np.array_equal(ours[key], saved[key]) for key in ours)
    again = Graph.load(file)
    assert [(node.op_type, node.name, node.inputs, node.outputs) for node in again.nodes] == [
        (node.op_type, node.name, node.inputs, node.outputs) for node in graph.nodes
    ]
    assert all(np.array_equal(again.weights[key], array) for key, array in graph.weights.items())


def test_several_images_at_once():
    """The sample's batch wins over the file's, whatever the file declares."""
    for name in "AB":
        ((key, image),) = feed(name).items()
        both = {key: np.concatenate([image, image[..., ::-1]])}
        graph = Graph.load(path(name), both)
        outputs = Session(graph, threads=2).run(both)
        single = Session(loaded(name), threads=2).run({key: image})
        assert distance(single, {key: array[:1] for key, array in outputs.items()}) < FLOAT_NOISE
