"""Einsum, and constants on the left of MatMul and Gemm: the same function, in operators that quantise."""

from __future__ import annotations

import numpy as np
import onnx
import onnxruntime as ort
import pytest
from onnx import helper, numpy_helper

from leadline.graph import Graph, Session

LENGTHS = {"b": 2, "h": 3, "t": 4, "s": 5, "c": 6, "d": 7, "e": 3, "n": 2}
CONSTANT_RIGHT = ["btc,cd->btd", "btc,chd->bthd", "bthd,hdc->btc", "bct,cd->bdt", "tc,dc->td", "c,cd->d",
                  "bhtd,hde->bhte",
                  "btc,c->bt",
                  "b t c, d c -> b d t", "...c,cd->...d", "btc,cd", "btc,->btc", "btcd,de->bte"]  # fmt: skip
CONSTANT_LEFT = ["hdc,bthd->btc", "cd,bct->bdt", "dc,bct->bdt", "st,btc->bsc"]
ACTIVATIONS = ["bhtd,bhsd->bhts", "bhts,bhsd->bhtd", "bthd,bshd->bhts", "bhts,bshd->bthd", "tc,sc->ts", "btc,btc->bt",
               "btc,btc->btc", "t,s->ts", "btc,bsc->b", "btc,bc->btc", "btc,btd->cd",
               "...tc,...sc->...ts", "btc,dsc->bdts"]  # fmt: skip
ONE = ["btc->bct", "btc->bt", "btc->", "b...->...b"]
THREE = ["btc,cd,de->bte", "bt,bc,bd->btcd", "btc,ct,cd->bd"]


def runs_alike(model: onnx.ModelProto) -> Graph:
    onnx.checker.check_model(model, full_check=True)
    graph = Graph.from_model(model)
    r = np.random.default_rng(3)
    feed = {v.name: r.standard_normal(v.shape).astype(np.float32) for v in graph.inputs}
    options = ort.SessionOptions()
    options.graph_optimization_level = ort.GraphOptimizationLevel.ORT_DISABLE_ALL
    wanted = ort.InferenceSession(model.SerializeToString(), options).run(None, feed)
    with Session(graph) as session:
        for want, got in zip(wanted, session.run(feed).values(), strict=True):
            np.testing.assert_allclose(got, want, rtol=1e-4, atol=1e-5)
    written = graph.to_model()
    onnx.checker.check_model(written, full_check=True)
    return graph


def network(op_type, inputs, constants=(), tail=(), **attrs):
    """One node over inputs of these shapes, with these shapes as constants, and nodes behind it."""
    r = np.random.default_rng(5)
    weights = [numpy_helper.from_array(r.standard_normal(shape).astype(np.float32), name) for name, shape in constants]
    shapes = dict(inputs)
    constant = {name for name, _ in constants}
    order = attrs.pop("order", [*shapes, *constant])
    nodes = [helper.make_node(op_type, order, ["p"], name="product", **attrs), *tail]
    nodes.append(helper.make_node("Identity", [nodes[-1].output[0]], ["y"]))
    ends = [helper.make_tensor_value_info(name, 1, shape) for name, shape in inputs]
    graph = helper.make_graph(nodes, "net", ends, [onnx.ValueInfoProto(name="y")], weights)
    model = helper.make_model(graph, opset_imports=[helper.make_opsetid("", 17)], ir_version=8)
    del graph.output[:]
    found = onnx.shape_inference.infer_shapes(model).graph.output[0]
    graph.output.append(found)
    return helper.make_model(graph, opset_imports=[helper.make_opsetid("", 17)], ir_version=8)


def einsum(equation: str, constant: int | None) -> onnx.ModelProto:
    left, _, _ = equation.replace(" ", "").partition("->")
    shapes = [tuple(LENGTHS[c] for c in term.replace("...", "bh" if "..." in term else "")) for term in left.split(",")]
    named = [(f"x{i}", shape) for i, shape in enumerate(shapes)]
    constants = [] if constant is None else [named[constant]]
    inputs = [one for i, one in enumerate(named) if i != constant]
    return network("Einsum", inputs, constants, order=[name for name, _ in named], equation=equation)


@pytest.mark.parametrize("equation", CONSTANT_RIGHT)
def test_einsum_with_a_constant(equation: str) -> None:
    graph = runs_alike(einsum(equation, 1))
    assert "Einsum" not in {node.op_type for node in graph.nodes}
    assert graph.layers() or equation == "btc,->btc"


@pytest.mark.parametrize("equation", CONSTANT_LEFT)
def test_einsum_with_a_constant_on_the_left(equation: str) -> None:
    graph = runs_alike(einsum(equation, 0))
    assert len(graph.layers()) == 1


@pytest.mark.parametrize("equation", ACTIVATIONS + ONE + THREE)
def test_einsum_of_activations(equation: str) -> None:
    graph = runs_alike(einsum(equation, None))
    kinds = {node.op_type for node in graph.nodes}
    assert "Einsum" not in kinds
    assert kinds & {"MatMul", "Gemm", "Mul", "Transpose", "ReduceSum"}


@pytest.mark.parametrize("equation", THREE)
@pytest.mark.parametrize("constant", [0, 1, 2])
def test_einsum_of_three(equation: str, constant: int) -> None:
    assert "Einsum" not in {node.op_type for node in runs_alike(einsum(equation, constant)).nodes}


@pytest.mark.parametrize("equation", ["bb->b", "btt,t->b"])
def test_a_diagonal_stays(equation: str) -> None:
    graph = runs_alike(einsum(equation, None))
    assert "Einsum" in {node.op_type for node in graph.nodes}


@pytest.mark.parametrize(
    ("weight", "x"),
    [((5, 4), (4,)), ((5, 4), (4, 3)), ((5, 4), (2, 4, 3)), ((5, 4), (2, 3, 4, 6)), ((1, 5, 4), (2, 4, 3)),
     ((4,), (4, 3)), ((4,), (2, 4, 3)), ((2, 5, 4), (2, 4, 3)), ((2, 5, 4), (4, 3)), ((3, 5, 4), (2, 3, 4, 6)),
     ((5, 4), (2, 4, 1)), ((1, 5, 4), (4, 3))],
)  # fmt: skip
def test_matmul_with_the_constant_left(weight, x) -> None:
    graph = runs_alike(network("MatMul", [("x", x)], [("w", weight)], order=["w", "x"]))
    (layer,) = graph.layers()
    if len(weight) < 3 or weight[0] == 1:
        assert graph.shape(layer.weight)[layer.axis] == (weight[-2] if len(weight) > 1 else 1)


@pytest.mark.parametrize("bias", [(), (5, 1), (1, 5, 1), (1,), (3,), (5, 3)])
def test_bias_behind_the_constant_left(bias) -> None:
    add = helper.make_node("Add", ["p", "b"], ["sum"])
    graph = runs_alike(network("MatMul", [("x", (2, 4, 3))], [("w", (5, 4)), ("b", bias)], [add], order=["w", "x"]))
    (layer,) = graph.layers()
    assert (layer.bias is not None) == (bias in ((), (5, 1), (1, 5, 1), (1,)))


@pytest.mark.parametrize("turned", [(0, 0), (0, 1), (1, 0), (1, 1)])
@pytest.mark.parametrize("addend", [None, (3,), (5, 3), (5, 1), ()])
def test_gemm_with_the_constant_left(turned, addend) -> None:
    shapes = [("w", (4, 5) if turned[0] else (5, 4))] + ([] if addend is None else [("c", addend)])
    x = ("x", (3, 4) if turned[1] else (4, 3))
    order = ["w", "x", *(["c"] if addend is not None else [])]
    attrs = {"transA": turned[0], "transB": turned[1], "alpha": 0.5, "beta": 2.0}
    graph = runs_alike(network("Gemm", [x], shapes, order=order, **attrs))
    assert len(graph.layers()) == 1


def test_gemm_adds_an_activation() -> None:
    inputs = [("x", (4, 3)), ("c", (5, 3))]
    graph = runs_alike(network("Gemm", inputs, [("w", (5, 4))], order=["w", "x", "c"], beta=2.0))
    assert len(graph.layers()) == 1
