"""What is written, others take: onnx's full check, and onnxruntime with its optimisations and without."""

from __future__ import annotations

import numpy as np
import onnx
import pytest
from onnx import TensorProto, helper

from graph_models import load_same, model, node
from leadline.export import qdq
from leadline.graph import Graph, Session
from loadable import check, refusals
from small_networks import draw, quantized, samples

SIDES = (2, 3, 4, 5, 3)


def taken(proto: onnx.ModelProto, recipe: str = "minmax-w8a8", shape: tuple[int, ...] | None = None):
    """A run whose network and artefact everybody takes, and whose file says what it holds."""
    graph = Graph.from_model(proto, {"x": shape} if shape is not None else None)
    assert refusals(graph.to_model()) == []
    sides = graph.inputs[0].shape
    q = quantized(graph, recipe, [{"x": draw(seed, *sides)} for seed in range(6)])
    written = q.to_qdq()
    assert refusals(written) == []
    assert qdq.read(written).grids == q.grids
    return q, written


@pytest.mark.parametrize(
    ("rank", "constant"), [(rank, constant) for rank in range(6) for constant in range(rank + 1)], ids=str
)
def test_constants_of_every_rank_keep_it(rank, constant):
    """In sums and products with a tensor of every rank; also where they take a grid."""
    one = np.ones((1,) * constant, np.float32)
    nodes = [
        node("Mul", "x a", "m"),
        node("Sigmoid", "m", "s"),
        node("Sub", "b s", "d"),
        node("Add", "d x", "e"),
        node("Abs", "e", "f"),
        node("Div", "f c", "g"),
        node("Add", "g a", "y"),
    ]
    q, written = taken(
        model(nodes, SIDES[:rank], a=one * np.float32(0.7), b=one, c=one * np.float32(1.7)), shape=SIDES[:rank]
    )
    ranks = {tensor.name: len(tensor.dims) for tensor in written.graph.initializer}
    quantised = [name for name in q.grids if name in q.graph.weights]
    assert quantised
    for name in quantised:
        assert ranks[f"{name}.q"] == q.graph.weights[name].ndim


@pytest.mark.parametrize("rank", [1, 2, 3, 4, 5])
@pytest.mark.parametrize("recipe", ["w8a8", "weight-only-int8", "int4-block128"])
def test_layers_of_every_rank(rank, recipe):
    sides = (*SIDES[: rank - 1], 16)
    nodes = [
        node("MatMul", "x w", "a"),
        node("Add", "a b", "c"),
        node("Clip", "c lo hi", "r"),
        node("MatMul", "r v", "y"),
    ]
    numbers = {"b": np.float32(0.3), "lo": np.float32(-0.5), "hi": np.float32(0.5)}
    taken(model(nodes, sides, w=draw(1, 16, 16), v=draw(2, 16, 4), **numbers), recipe, sides)


@pytest.mark.parametrize("rank", [2, 3, 4, 5])
def test_shapes_and_paddings_of_every_rank(rank):
    sides = SIDES[:rank]
    nodes = [
        node("Slice", "x start end last", "s"),
        node("Pad", "s pads value", "p"),
        node("Unsqueeze", "p first", "u"),
        node("Squeeze", "u first", "z"),
        node("Concat", "z part", "c", axis=-1),
        node("Softmax", "c", "y", axis=-1),
    ]
    pads = np.zeros(2 * rank, np.int64)
    pads[-1] = 1
    constants = {
        "start": np.array([0]), "end": np.array([sides[-1] - 1]), "last": np.array([rank - 1]), "pads": pads,
        "value": np.float32(0.25), "first": np.array([0]), "part": draw(1, *sides),
    }  # fmt: skip
    taken(model(nodes, sides, **constants), shape=sides)


IMAGE = (1, 3, 8, 8)
CONV = node("Conv", "x w b", "c", pads=[1, 1, 1, 1])
WEIGHTS = {"w": draw(1, 4, 3, 3, 3), "b": draw(2, 4)}


@pytest.mark.parametrize(
    ("nodes", "outputs"),
    [
        ([CONV, node("Relu", "c", "y")], "y x"),
        ([CONV, node("Relu", "c", "y"), node("Identity", "x", "z")], "y z"),
        ([CONV, node("Relu", "c", "y"), node("Conv", "y v", "z")], "y z"),
        ([CONV, node("Relu", "c", "y"), node("Conv", "c v", "z")], "c y z"),
        ([CONV, node("Relu", "c", "r"), node("Identity", "r", "y"), node("Identity", "r", "z")], "y z"),
        ([CONV, node("Relu", "c", "r"), node("Reshape", "r flat", "y")], "y r"),
        ([CONV, node("ArgMax", "c", "y", axis=1), node("ReduceMean", "c sides", "m", keepdims=0)], "m"),
        ([CONV, node("Cast", "c", "i", to=TensorProto.INT64), node("Add", "i one", "j"),
          node("Cast", "j", "k", to=TensorProto.FLOAT), node("Mul", "k c", "y")], "y"),
        ([CONV, node("Greater", "c zero", "g"), node("Where", "g c zero", "y")], "y"),
    ],
    ids=["input", "its copy", "read inside", "before a clamp", "twice", "reshaped", "numbers", "integers", "chosen"],
)  # fmt: skip
@pytest.mark.parametrize("recipe", ["w8a8", "weight-only-int8"])
def test_outputs_wherever_they_are(nodes, outputs, recipe):
    more = {
        "v": draw(3, 2, 4, 1, 1), "flat": np.array([1, -1]), "sides": np.array([2, 3]), "one": np.int64(1),
        "zero": np.float32(0),
    }  # fmt: skip
    q, written = taken(model(nodes, IMAGE, outputs, opset=18, **WEIGHTS, **more), recipe)
    assert [value.name for value in written.graph.output] == outputs.split()
    feed = {"x": draw(0, *IMAGE)}  # among what was calibrated on: nothing is clipped
    with Session(q.graph) as exact, Session(written, optimize=False) as artefact:
        wanted, got = exact.run(feed), artefact.run(feed)
    for name in outputs.split():
        assert np.square(got[name] - wanted[name], dtype=np.float64).sum() < 0.05 * np.square(wanted[name]).sum()
    if "x" in outputs.split():
        np.testing.assert_array_equal(got["x"], feed["x"])


def sharing(kind: str) -> tuple[onnx.ModelProto, tuple[int, ...]]:
    """Three layers with one weight, of which two also have one bias."""
    if kind == "Conv":
        ends = (("x w b", "c"), ("c w b", "d"), ("r w", "y"))
        nodes = [node("Conv", *end, pads=[1] * 4) for end in ends]
        nodes.insert(2, node("Relu", "d", "r"))
        return model(nodes, (1, 4, 8, 8), w=draw(1, 4, 4, 3, 3), b=draw(2, 4)), (1, 4, 8, 8)
    if kind == "Gemm":
        nodes = [node("Gemm", "x w b", "c", transB=1), node("Gemm", "c w b", "d", transB=1), node("Relu", "d", "r"),
                 node("Gemm", "r w", "y", transB=1)]  # fmt: skip
        return model(nodes, (4, 32), w=draw(1, 32, 32), b=draw(2, 32)), (4, 32)
    nodes = [node("MatMul", "x w", "c"), node("MatMul", "c w", "d"), node("MatMul", "d w", "y")]
    return model(nodes, (1, 4, 32), w=draw(1, 32, 32)), (1, 4, 32)


@pytest.mark.parametrize("recipe", ["minmax-w8a8", "w8a8", "w4a8", "w8a16", "weight-only-int8", "int4-block128"])
@pytest.mark.parametrize("kind", ["Conv", "Gemm", "MatMul"])
def test_a_weight_that_layers_share_has_codes_for_each(kind, recipe):
    """What onnxruntime has turned for one layer, it cannot turn for another."""
    proto, shape = sharing(kind)
    q, written = taken(proto, recipe, shape)
    stored = {tensor.name: tensor for tensor in written.graph.initializer}
    for layer in q.graph.layers():
        if q.grids[layer.weight].scheme.bits != 8:
            continue
        (node,) = [one for one in written.graph.node if one.name == layer.name]
        (source,) = [one for one in written.graph.node if node.input[1] in one.output]
        assert [list(one.input).count(name) for name in source.input[::2] for one in written.graph.node].count(1) == 2
        codes = onnx.numpy_helper.to_array(stored[source.input[0]])
        wanted = q.codes[layer.weight]
        turned = codes.T if node.op_type == "Gemm" and not node.attribute[0].i else codes
        np.testing.assert_array_equal(turned, wanted)


@pytest.mark.parametrize("mode", ["nearest", "linear", "cubic"])
@pytest.mark.parametrize("how", ["sizes", "scales", "not_larger", "not_smaller", "crop"])
@pytest.mark.parametrize("axes", [[2, 3], [3, 2], [-1, -2], [3]], ids=str)
def test_a_resize_of_some_axes_names_all(mode, how, axes):
    """onnxruntime moves Transposes across a Resize, and then looks for the axes that it had."""
    if how.startswith("not") and min(axes) < 0:
        pytest.skip("onnxruntime itself leaves axes that are counted from behind as they are")
    count, attrs = len(axes), {}
    values = {"scales": np.array([2.0, 1.5][:count], np.float32)}.get(how, np.array([16, 12][:count]))
    inputs = {"scales": ["c", "", "given"], "crop": ["c", "roi", "", "given"]}.get(how, ["c", "", "", "given"])
    if how.startswith("not"):
        attrs["keep_aspect_ratio_policy"] = how
    if how == "crop":
        attrs["coordinate_transformation_mode"] = "tf_crop_and_resize"
    nodes = [
        CONV,
        helper.make_node("Resize", inputs, ["r"], mode=mode, axes=axes, **attrs),
        node("Transpose", "r", "t", perm=[0, 2, 3, 1]),
        node("Mul", "t k", "y"),
    ]
    roi = np.array([*[0.1, 0.2][:count], *[0.9, 0.8][:count]], np.float32)
    proto = model(nodes, IMAGE, opset=18, given=values, roi=roi, k=draw(3, 4), **WEIGHTS)
    graph = load_same(proto)
    (resize,) = [one for one in graph.nodes if one.op_type == "Resize"]
    assert "axes" not in resize.attrs and "keep_aspect_ratio_policy" not in resize.attrs
    taken(proto)


def test_a_resize_whose_sizes_are_rounded_stays_as_it_is():
    """The scale that all axes share is no quotient of sizes there."""
    attrs = {"axes": [2, 3], "keep_aspect_ratio_policy": "not_larger"}
    nodes = [CONV, helper.make_node("Resize", ["c", "", "", "given"], ["y"], mode="linear", **attrs)]
    graph = load_same(model(nodes, (1, 3, 8, 9), opset=18, given=np.array([13, 20]), **WEIGHTS))
    (resize,) = [one for one in graph.nodes if one.op_type == "Resize"]
    assert resize.attrs["axes"] == [2, 3]


def test_what_tests_write_is_checked(tmp_path):
    """The check that conftest.py installs finds what others would refuse, in files and in models."""
    q = quantized(model([CONV, node("Relu", "c", "y")], IMAGE, **WEIGHTS), "minmax-w8a8", samples(4, IMAGE))
    written = q.to_qdq()
    written.graph.node[0].input[1] = "nowhere"
    assert any("onnx.checker" in line for line in refusals(written))
    with pytest.raises(AssertionError, match="onnx"):
        qdq.save(written, tmp_path / "broken.onnx")
    q.graph.nodes[0].inputs[0] = "nowhere"
    with pytest.raises(AssertionError, match="onnx"):
        q.graph.save(tmp_path / "broken.onnx")
    with pytest.raises(AssertionError, match="onnx"):
        check(tmp_path / "broken.onnx")


def test_large_files_beside_the_model_are_loaded_too(tmp_path):
    q = quantized(sharing("Conv")[0], "minmax-w8a8", samples(4, (1, 4, 8, 8)))
    q.graph.save(tmp_path / "float.onnx", limit=0)
    qdq.save(q.to_qdq(), tmp_path / "qdq.onnx", limit=0)
    assert refusals(tmp_path / "float.onnx") == refusals(tmp_path / "qdq.onnx") == []
