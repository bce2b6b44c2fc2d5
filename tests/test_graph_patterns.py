"""LayerNormalization, activations and linear layers are recognised in every spelling, and stay what they compute."""

import itertools
import math

import numpy as np
import pytest

from graph_models import load_same, model, node, ops, random
from leadline.graph import Graph
from leadline.graph.relative import relative

WIDTH = 8


def layer_norm_nodes(opset, square, divide, affine):
    """One spelling of LayerNormalization over the last axis, and its constants."""
    weights = {"eps": np.float32(1e-5), "n__weight": random(WIDTH), "n__bias": random(WIDTH), "two": np.float32(2)}

    def mean(source, target):
        if opset < 18:
            return node("ReduceMean", source, target, axes=[-1])
        weights["axes"] = np.array([2], np.int64)
        return node("ReduceMean", f"{source} axes", target)

    nodes = [mean("x", "m"), node("Sub", "x m", "d")]
    difference = "d"
    if square == "twice":  # torch's legacy exporter subtracts once for the variance and once for the result
        nodes += [node("Sub", "x m", "d2"), node("Pow", "d2 two", "s")]
    else:
        nodes.append(node("Pow", "d two", "s") if square == "pow" else node("Mul", "d d", "s"))
    nodes += [mean("s", "v"), node("Add", "v eps" if divide != "rsqrt" else "eps v", "e")]
    scale, shift = affine
    if divide == "tensorflow":
        nodes += [
            node("Sqrt", "e", "r"),
            node("Reciprocal", "r", "i"),
            node("Mul", "i n.weight", "k"),
            node("Mul", "x k", "p"),
        ]
        return [*nodes, node("Mul", "m k", "q"), node("Sub", "n.bias q", "t"), node("Add", "p t", "y")], weights
    if divide == "div":
        nodes += [node("Sqrt", "e", "r"), node("Div", f"{difference} r", "h")]
    elif divide == "reciprocal":
        nodes += [node("Sqrt", "e", "r"), node("Reciprocal", "r", "i"), node("Mul", f"i {difference}", "h")]
    elif divide == "one over":
        weights["one"] = np.float32(1)
        nodes += [node("Sqrt", "e", "r"), node("Div", "one r", "i"), node("Mul", f"{difference} i", "h")]
    else:
        weights["minus"] = np.float32(-0.5)
        nodes += [node("Pow", "e minus", "i"), node("Mul", f"{difference} i", "h")]
    if scale:
        nodes.append(node("Mul", "h n.weight", "g"))
    if shift:
        nodes.append(node("Add", f"n.bias {'g' if scale else 'h'}", "o"))
    last = "o" if shift else "g" if scale else "h"
    return [*nodes, node("Identity", last, "y")], weights


DIVIDE = ("div", "reciprocal", "one over", "rsqrt", "tensorflow")


@pytest.mark.parametrize("opset", [11, 17, 18])
@pytest.mark.parametrize("square", ["pow", "mul", "twice"])
@pytest.mark.parametrize("divide", DIVIDE)
def test_layer_norm_in_every_spelling(opset, square, divide):
    nodes, weights = layer_norm_nodes(opset, square, divide, (True, True))
    graph = load_same(model(nodes, (2, 5, WIDTH), opset=opset, **weights))
    assert ops(graph) == ["LayerNormalization"]
    (norm,) = graph.nodes
    assert norm.name == "n"
    assert norm.inputs == ["x", "n.weight", "n.bias"]
    assert norm.attrs["axis"] == -1
    assert norm.attrs["epsilon"] == pytest.approx(1e-5)


@pytest.mark.parametrize("affine", list(itertools.product([False, True], repeat=2)))
def test_layer_norm_without_scale_or_shift(affine):
    nodes, weights = layer_norm_nodes(17, "pow", "div", affine)
    graph = load_same(model(nodes, (2, 5, WIDTH), **weights))
    assert ops(graph) == ["LayerNormalization"]
    gamma, beta = (graph.weights[name] for name in graph.nodes[0].inputs[1:])
    assert affine[0] or (gamma == 1).all()
    assert affine[1] or (beta == 0).all()


def test_layer_norm_over_two_axes():
    weights = {"eps": np.float32(1e-6), "two": np.float32(2), "g": random(5, 8), "b": random(5, 8)}
    nodes = [
        node("ReduceMean", "x", "m", axes=[1, 2]), node("Sub", "x m", "d"), node("Pow", "d two", "s"),
        node("ReduceMean", "s", "v", axes=[-2, -1]), node("Add", "v eps", "e"), node("Sqrt", "e", "r"),
        node("Div", "d r", "h"), node("Mul", "h g", "o"), node("Add", "o b", "y"),
    ]  # fmt: skip
    graph = load_same(model(nodes, (2, 5, 8), **weights))
    assert ops(graph) == ["LayerNormalization"]
    assert graph.nodes[0].attrs["axis"] == -2


def test_normalisation_over_channels_is_not_layer_norm():
    nodes, weights = layer_norm_nodes(17, "pow", "div", (False, False))
    for item in nodes:
        if item.op_type == "ReduceMean":
            item.attribute[0].ints[:] = [1]
    graph = load_same(model(nodes, (2, 5, WIDTH), **weights))
    assert "LayerNormalization" not in ops(graph)


def test_inner_tensors_that_are_read_elsewhere_survive():
    nodes, weights = layer_norm_nodes(17, "pow", "div", (True, True))
    graph = load_same(model([*nodes, node("Relu", "d", "z")], (2, 5, WIDTH), "y z", **weights))
    assert "LayerNormalization" in ops(graph)
    assert "Sub" in ops(graph)


def gelu_nodes(kind):
    """One spelling of an activation from x to y, its constants and what it must become."""
    root = {
        "r2": np.float32(math.sqrt(2)),
        "i2": np.float32(1 / math.sqrt(2)),
        "half": np.float32(0.5),
        "one": np.float32(1),
        "two": np.float32(2),
    }
    erf = [node("Div", "x r2", "u"), node("Erf", "u", "e"), node("Add", "e one", "p")]
    tanh = {**root, "c": np.float32(math.sqrt(2 / math.pi)), "k": np.float32(0.044715), "three": np.float32(3)}
    tail = [node("Tanh", "w", "e"), node("Add", "one e", "p"), node("Mul", "x half", "h"), node("Mul", "h p", "y")]
    swish = {"three": np.float32(3), "zero": np.float32(0), "six": np.float32(6), "sixth": np.float32(1 / 6)}
    clip = [node("Add", "x three", "a"), node("Clip", "a zero six", "c")]
    spellings = {
        "x*p*half": ([*erf, node("Mul", "x p", "q"), node("Mul", "q half", "y")], root),
        "half*x*p": ([*erf, node("Mul", "half x", "q"), node("Mul", "q p", "y")], root),
        "x*(half*p)": ([*erf, node("Mul", "half p", "q"), node("Mul", "x q", "y")], root),
        "x*p/2": ([*erf, node("Mul", "x p", "q"), node("Div", "q two", "y")], root),
        "mul by 1/sqrt2": (
            [node("Mul", "x i2", "u"), *erf[1:], node("Mul", "x p", "q"), node("Mul", "q half", "y")], root),
        "half erf plus half": (
            [*erf[:2], node("Mul", "e half", "g"), node("Add", "g half", "p"), node("Mul", "x p", "y")], root),
        "tanh pow": (
            [node("Pow", "x three", "x3"), node("Mul", "x3 k", "i"), node("Add", "x i", "j"),
             node("Mul", "j c", "w"), *tail], tanh),
        "tanh products": (
            [node("Mul", "x x", "x2"), node("Mul", "x2 x", "x3"), node("Mul", "k x3", "i"), node("Add", "i x", "j"),
             node("Mul", "c j", "w"), *tail], tanh),
        "tanh factored": (
            [node("Mul", "x x", "x2"), node("Mul", "x2 k", "i"), node("Add", "i one", "j"), node("Mul", "x c", "l"),
             node("Mul", "l j", "w"), *tail], tanh),
        "hard mul div": ([*clip, node("Mul", "x c", "q"), node("Div", "q six", "y")], swish),
        "hard div mul": ([*clip, node("Div", "c six", "q"), node("Mul", "q x", "y")], swish),
        "hard by sixth": ([*clip, node("Mul", "c sixth", "q"), node("Mul", "q x", "y")], swish),
        "hard sigmoid": ([node("HardSigmoid", "x", "q", alpha=1 / 6, beta=0.5), node("Mul", "x q", "y")], {}),
    }  # fmt: skip
    nodes, weights = spellings[kind]
    want = {"h": ("HardSwish", {}), "t": ("Gelu", {"approximate": "tanh"})}.get(
        kind[0], ("Gelu", {"approximate": "none"})
    )
    return nodes, weights, (("Gelu", {"approximate": "none"}) if kind.startswith("half") else want)


KINDS = (
    "x*p*half", "half*x*p", "x*(half*p)", "x*p/2", "mul by 1/sqrt2", "half erf plus half", "tanh pow", "tanh products",
    "tanh factored", "hard mul div", "hard div mul", "hard by sixth", "hard sigmoid",
)  # fmt: skip


@pytest.mark.parametrize("opset", [13, 17, 20])
@pytest.mark.parametrize("kind", KINDS)
def test_activation_in_every_spelling(kind, opset):
    nodes, weights, (op_type, attrs) = gelu_nodes(kind)
    used = {name for item in nodes for name in item.input}
    graph = load_same(model(nodes, opset=opset, **{k: v for k, v in weights.items() if k in used}))
    assert ops(graph) == [op_type]
    assert graph.nodes[0].attrs == attrs
    assert graph.nodes[0].inputs == ["x"]


@pytest.mark.parametrize("divide", DIVIDE)
@pytest.mark.parametrize("kind", ["x*p*half", "tanh products"])
def test_layer_norm_then_gelu(divide, kind):
    nodes, weights = layer_norm_nodes(17, "mul", divide, (True, True))
    later, constants, _ = gelu_nodes(kind)
    for item in nodes:
        item.output[:] = [f"n.{name}" for name in item.output]
        item.input[:] = [
            name if name in weights or name.replace(".", "__") in weights or name == "x" else f"n.{name}"
            for name in item.input
        ]
    for item in later:
        item.input[:] = ["n.y" if name == "x" else name for name in item.input]
    graph = load_same(model([*nodes, *later], (2, 5, WIDTH), **{**weights, **constants}))
    assert ops(graph) == ["LayerNormalization", "Gelu"]


def test_almost_gelu_stays():
    nodes, weights, _ = gelu_nodes("x*p*half")
    weights["half"] = np.float32(0.4999)
    assert "Gelu" not in ops(load_same(model(nodes, **weights)))


def test_scaled_argument_keeps_its_scale():
    """gelu(3x) is a Gelu of 3x, not of x."""
    nodes, weights, _ = gelu_nodes("x*p*half")
    for item in nodes:
        item.input[:] = ["z" if name == "x" else name for name in item.input]
    weights["three"] = np.float32(3)
    graph = load_same(model([node("Mul", "x three", "z"), *nodes], **weights))
    assert ops(graph) == ["Mul", "Gelu"]


def test_softmax_guard_goes():
    nodes = [node("Softmax", "x", "s", axis=-1), node("IsNaN", "s", "n"), node("Where", "n zero s", "y")]
    assert ops(load_same(model(nodes, zero=np.float32(0)))) == ["Softmax"]


def test_softmax_guard_stays_behind_an_infinite_mask():
    mask = np.zeros((1, 5, 8), np.float32)
    mask[0, 2] = -np.inf
    nodes = [
        node("Add", "x mask", "a"),
        node("Softmax", "a", "s", axis=-1),
        node("IsNaN", "s", "n"),
        node("Where", "n zero s", "y"),
    ]
    assert "Where" in ops(load_same(model(nodes, zero=np.float32(0), mask=mask)))


# ---------------------------------------------------------------- linear layers


@pytest.mark.parametrize("bias", [None, "right", "left", "1x1x6", "scalar"])
@pytest.mark.parametrize("shape", [(7, 8), (2, 5, 8), (2, 3, 5, 8)])
def test_matmul_and_add_become_gemm(shape, bias):
    weights = {"fc__weight": random(8, 6)}
    nodes = [node("MatMul", "x fc.weight", "m" if bias else "y")]
    if bias:
        nodes.append(node("Add", "fc.bias m" if bias == "left" else "m fc.bias", "y"))
        weights["fc__bias"] = (
            random(1, 1, 6) if bias == "1x1x6" and len(shape) > 2 else random(6) if bias != "scalar" else random()
        )
    graph = load_same(model(nodes, shape, **weights))
    gemm = ["Gemm"] if len(shape) == 2 else ["Reshape", "Gemm", "Reshape"]
    assert ops(graph) == gemm
    (layer,) = graph.layers()
    assert (layer.name, layer.kind, layer.axis, layer.weight) == ("fc", "linear", 0, "fc.weight")
    assert graph.weights[layer.weight].shape == (6, 8)
    assert layer.bias is None if not bias else graph.weights[layer.bias].shape == (6,)
    assert layer.node.attrs == {"transB": 1}


@pytest.mark.parametrize(
    "attrs",
    [{}, {"transB": 1}, {"alpha": 0.5, "beta": 2.0}, {"transA": 1}, {"transB": 1, "alpha": 3.0}, {"beta": 0.25}],
)
def test_every_gemm_takes_one_form(attrs):
    weight = random(6, 8) if attrs.get("transB") else random(8, 6)
    shape = (8, 7) if attrs.get("transA") else (7, 8)
    graph = load_same(model([node("Gemm", "x w b", "y", **attrs)], shape, w=weight, b=random(6)))
    (layer,) = graph.layers()
    assert layer.node.attrs == {"transB": 1}
    assert graph.weights[layer.weight].shape == (6, 8)


@pytest.mark.parametrize(
    "attrs", [{}, {"alpha": 2.0, "beta": 0.5}, {"transA": 1, "beta": -1.0}, {"beta": 0.0}], ids=str
)
@pytest.mark.parametrize("shape", [(), (1,), (6,), (1, 6), (7, 1), (1, 1), (7, 6)], ids=str)
def test_what_a_gemm_adds_is_a_vector_or_an_add(shape, attrs):
    x = (8, 7) if attrs.get("transA") else (7, 8)
    graph = load_same(model([node("Gemm", "x w c", "y", **attrs)], x, w=random(8, 6), c=random(*shape)))
    (layer,) = graph.layers()
    added = ops(graph).count("Add")
    assert len(layer.node.inputs) == 2 + (attrs.get("beta") != 0 and not added)
    assert added == (attrs.get("beta") != 0 and shape in [(7, 1), (7, 6)])
    if layer.bias is not None:
        assert graph.weights[layer.bias].shape == (6,)


@pytest.mark.parametrize("shape", [(6,), (7, 1), (7, 6)], ids=str)
def test_what_a_gemm_adds_may_be_computed(shape):
    nodes = [
        node("ReduceMean", "x", "mean", keepdims=0),
        node("Mul", "mean c", "d"),
        node("Gemm", "x w d", "y", beta=3.0),
    ]
    graph = load_same(model(nodes, (7, 8), w=random(8, 6), c=random(*shape)))
    (layer,) = graph.layers()
    assert len(layer.node.inputs) == 2 and ops(graph)[-2:] == ["Gemm", "Add"]


@pytest.mark.parametrize("addend", [None, (), (1,), (5,)], ids=str)
@pytest.mark.parametrize("rank", range(1, 6))
def test_a_product_with_a_vector_is_a_gemm(rank, addend):
    shape = (2, 1, 2, 5, 8)[5 - rank :]
    weights = {"w": random(8)} | ({} if addend is None else {"c": random(*addend)})
    nodes = [node("MatMul", "x w", "y" if addend is None else "m")] + [node("Add", "m c", "y")] * (addend is not None)
    graph = load_same(model(nodes, shape, **weights))
    (layer,) = graph.layers()
    assert graph.weights[layer.weight].shape == (1, 8)
    assert ("Add" in ops(graph)) == (addend == (5,) or (rank == 1 and addend == (1,)))


@pytest.mark.parametrize("ones", range(3))
@pytest.mark.parametrize("rank", range(1, 6))
def test_axes_of_one_in_front_of_a_matrix_do_not_matter(rank, ones):
    graph = load_same(model([node("MatMul", "x w", "y")], (2, 1, 2, 5, 8)[5 - rank :], w=random(*[1] * ones, 8, 6)))
    (layer,) = graph.layers()
    assert layer.groups == 1 and graph.weights[layer.weight].shape == (6, 8)


@pytest.mark.parametrize("weight", [(3, 8, 6), (1, 3, 8, 6), (2, 1, 8, 6), (2, 3, 8, 6)], ids=str)
@pytest.mark.parametrize("shape", [(8,), (5, 8), (3, 5, 8), (1, 1, 5, 8), (2, 3, 5, 8)], ids=str)
def test_a_batch_of_matrices_is_a_layer_of_groups(shape, weight):
    graph = load_same(model([node("MatMul", "x w", "y")], shape, w=random(*weight)))
    (layer,) = graph.layers()
    assert (layer.kind, layer.axis, layer.groups) == ("linear", len(weight) - 1, int(np.prod(weight[:-2])))


def test_layers_that_read_one_tensor_share_its_reshape():
    nodes = [node("MatMul", "x q.weight", "q"), node("MatMul", "x k.weight", "k"), node("Add", "q k", "y")]
    graph = load_same(model(nodes, q__weight=random(8, 8), k__weight=random(8, 8)))
    assert ops(graph).count("Reshape") == 3  # one before, two behind


def test_shared_weight_stays_shared():
    nodes = [node("MatMul", "x tied.weight", "a"), node("Relu", "a", "b"), node("MatMul", "b tied.weight", "y")]
    graph = load_same(model(nodes, tied__weight=random(8, 8)))
    first, second = graph.layers()
    assert first.weight == second.weight
    assert first.name != second.name


def test_reshapes_between_linear_layers_cancel():
    """Only the outermost pair of a two-layer perceptron is left: everything between is 2-D."""
    nodes = [node("MatMul", "x a.weight", "a"), node("Relu", "a", "b"), node("MatMul", "b c.weight", "y")]
    graph = load_same(model(nodes, (2, 3, 5, 8), a__weight=random(8, 6), c__weight=random(6, 4)))
    assert ops(graph) == ["Reshape", "Gemm", "Relu", "Gemm", "Reshape"]


def test_matmul_of_a_stack_stays():
    stack = load_same(model([node("MatMul", "x w", "y")], w=random(2, 8, 6)))
    (layer,) = stack.layers()
    assert (layer.axis, layer.kind) == (2, "linear")


def test_layer_kinds():
    nodes = [
        node("Conv", "x c.weight", "c", pads=[1, 1, 1, 1]), node("Conv", "c d.weight d.bias", "d", group=6),
        node("ConvTranspose", "d t.weight", "y", strides=[2, 2], group=2),
    ]  # fmt: skip
    weights = {
        "c__weight": random(6, 3, 3, 3),
        "d__weight": random(6, 1, 1, 1),
        "d__bias": random(6),
        "t__weight": random(6, 2, 2, 2),
    }
    graph = load_same(model(nodes, (1, 3, 9, 9), **weights))
    found = [(layer.name, layer.kind, layer.axis, layer.groups, layer.bias) for layer in graph.layers()]
    assert found == [("c", "conv", 0, 1, None), ("d", "depthwise", 0, 6, "d.bias"), ("t", "transpose", 1, 2, None)]
    assert graph.nodes[1].attrs["pads"] == [0, 0, 0, 0]


@pytest.mark.parametrize("op_type", ["Conv", "ConvTranspose"])
@pytest.mark.parametrize("auto_pad", ["SAME_UPPER", "SAME_LOWER", "VALID"])
@pytest.mark.parametrize("stride", [1, 2, 3])
def test_automatic_padding_is_written_out(op_type, auto_pad, stride):
    nodes = [node(op_type, "x w", "y", auto_pad=auto_pad, strides=[stride, stride])]
    graph = load_same(model(nodes, (1, 2, 10, 7), w=random(2, 2, 4, 3)))
    assert "auto_pad" not in graph.nodes[0].attrs
    assert len(graph.nodes[0].attrs["pads"]) == 4


def test_wanted_output_shape_is_written_out_as_padding():
    nodes = [node("ConvTranspose", "x w", "y", strides=[2, 2], output_shape=[19, 12])]
    graph = load_same(model(nodes, (1, 2, 10, 7), w=random(2, 2, 4, 3)))
    assert graph.shape("y") == (1, 2, 19, 12)
    assert "output_shape" not in graph.nodes[0].attrs


@pytest.mark.parametrize("swapped", [False, True])
def test_softplus_in_pieces_is_one_operator(swapped: bool) -> None:
    nodes = [
        node("Conv", "x w", "a"),
        node("Exp", "a", "e"),
        node("Add", "one e" if swapped else "e one", "s"),
        node("Log", "s", "y"),
    ]
    graph = load_same(model(nodes, (1, 3, 6, 6), one=np.float32(1), w=random(4, 3, 1, 1)))
    assert ops(graph) == ["Conv", "Softplus"]


@pytest.mark.parametrize("last", ["Log", "Reciprocal"])
def test_an_exponential_with_a_shift_keeps_its_relative_error(last: str) -> None:
    nodes = [
        node("Conv", "x w", "a"),
        node("Exp", "a", "e"),
        node("Add", "e shift", "s"),
        node(last, "s", "r"),
        node("Conv", "r v", "y"),
    ]
    weights = {"shift": np.float32(2), "w": 3 * random(4, 3, 1, 1), "v": random(2, 4, 1, 1)}
    graph = Graph.from_model(model(nodes, (1, 3, 6, 6), **weights))
    exponential = next(n.outputs[0] for n in graph.nodes if n.op_type == "Exp")
    assert exponential in relative(graph)
