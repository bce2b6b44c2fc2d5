"""Linear layers in one form: Gemm(transB=1) on a 2-D input, between Reshapes where the tensor has another rank."""

from __future__ import annotations

import math

import numpy as np

from leadline.graph.edit import add_value, derived, is_shared, share_constant
from leadline.graph.ir import Graph, Node
from leadline.graph.patterns import Wiring, fitted
from leadline.graph.simplify import reshape

Prepared = dict[tuple[str, float, bool], str]


def linears(graph: Graph) -> None:
    """Rewrite MatMul (+ Add) with a constant weight, and Gemm in any other form."""
    wiring = Wiring(graph)
    prepared: Prepared = {}
    for node in graph.nodes:
        if node.op_type == "MatMul":
            _matmul(wiring, node, prepared)
        elif node.op_type == "Gemm":
            _gemm(wiring, node, prepared)
    wiring.finish()


def _matmul(wiring: Wiring, node: Node, prepared: Prepared) -> None:
    """One constant matrix, or vector, is a Gemm; a MatMul of several, one for each entry of a batch, stays."""
    graph = wiring.graph
    x, name = node.inputs
    weight = graph.weights.get(name)
    if weight is None or x not in graph.values or weight.dtype != np.float32 or math.prod(weight.shape[:-2]) != 1:
        return
    shape, out = graph.shape(x), graph.shape(node.outputs[0])
    width = weight.shape[-1] if weight.ndim > 1 else 1
    inputs, last = [_weight(graph, name, 1.0, True, prepared)], node
    following = wiring.only_reader(node, "Add")
    if following is not None and graph.shape(following.outputs[0]) == out:
        bias = fitted(graph, wiring.operand(following, node.outputs[0]), (width,))
        if bias is not None:
            inputs.append(bias)
            last = following
    target = last.outputs[0]
    rows, dtype = math.prod(shape[:-1]), graph.values[x].dtype
    if len(shape) == 2 and out == (rows, width):
        wiring.replace(last, Node("Gemm", [x, *inputs], [target], node.name, {"transB": 1}))
        return
    flat = add_value(graph, derived(node.outputs[0], "flat"), (rows, shape[-1]), dtype)
    product = add_value(graph, derived(node.outputs[0], "product"), (rows, width), dtype)
    before, after = Node("Reshape", [x], [flat]), Node("Reshape", [product], [target])
    reshape(graph, before, (rows, shape[-1]))
    reshape(graph, after, out)
    wiring.replace(last, before, Node("Gemm", [flat, *inputs], [product], node.name, {"transB": 1}), after)


def _gemm(wiring: Wiring, node: Node, prepared: Prepared) -> None:
    """What a Gemm adds is its bias where all rows get the same; else an Add of its own, behind it."""
    graph = wiring.graph
    x, name, addend = (*node.inputs, "")[:3]
    if name not in graph.weights or x not in graph.values or graph.weights[name].dtype != np.float32:
        return
    dtype, beta, target = graph.values[x].dtype, node.attrs.get("beta", 1.0), node.outputs[0]
    nodes, behind = [], []
    if addend and beta == 0:
        addend = ""
    if addend and addend in graph.weights:
        addend = fitted(graph, addend, graph.shape(target)[-1:]) or addend
        if beta != 1:
            addend = share_constant(graph, derived(addend, f"x{beta}"), graph.weights[addend] * np.float32(beta))
    elif addend and beta != 1:
        scaled = add_value(graph, derived(addend, f"x{beta}"), graph.shape(addend), dtype)
        factor = share_constant(graph, derived("", f"beta.{beta}"), np.array(beta, np.float32))
        nodes.append(Node("Mul", [addend, factor], [scaled]))
        addend = scaled
    if addend and (addend not in graph.weights or graph.shape(addend) != graph.shape(target)[-1:]):
        product = add_value(graph, derived(target, "product"), graph.shape(target), dtype)
        behind.append(Node("Add", [product, addend], [target]))
        target, addend = product, ""
    if node.attrs.get("transA", 0):
        turned = add_value(graph, derived(target, "turned"), graph.shape(x)[::-1], dtype)
        nodes.append(Node("Transpose", [x], [turned], attrs={"perm": [1, 0]}))
        x = turned
    weight = _weight(graph, name, node.attrs.get("alpha", 1.0), not node.attrs.get("transB", 0), prepared)
    inputs = [x, weight, addend] if addend else [x, weight]
    wiring.replace(node, *nodes, Node("Gemm", inputs, [target], node.name, {"transB": 1}), *behind)


def _weight(graph: Graph, name: str, alpha: float, transpose: bool, prepared: Prepared) -> str:
    """The matrix as [out, in] times alpha; nodes that share a weight go on sharing one."""
    if alpha == 1 and not transpose:
        return name
    if (name, alpha, transpose) not in prepared:
        array = graph.weights[name]
        matrix = array.reshape(array.shape[-2:] if array.ndim > 1 else (-1, 1))
        matrix = matrix.T if transpose else matrix
        factor = np.ascontiguousarray(matrix if alpha == 1 else matrix * np.float32(alpha))
        wanted = derived(name, f"{'T' if transpose else ''}x{alpha}")
        prepared[name, alpha, transpose] = share_constant(graph, wanted, factor)
        if not is_shared(graph, name):
            del graph.weights[name]  # at once: a network's weights are held once
    return prepared[name, alpha, transpose]
