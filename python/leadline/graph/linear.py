"""Linear layers in one form: Gemm(transB=1) on a 2-D input, between Reshapes where the tensor has more axes."""

from __future__ import annotations

import math

import numpy as np

from leadline.graph.edit import add_value, derived, share_constant
from leadline.graph.ir import Graph, Node
from leadline.graph.patterns import Wiring, fitted
from leadline.graph.simplify import reshape

Done = dict[tuple[str, float, bool], str]


def linears(graph: Graph) -> None:
    """Rewrite MatMul (+ Add) with a constant weight, and Gemm in any other form."""
    wiring = Wiring(graph)
    done: Done = {}
    for node in graph.nodes:
        if node.op_type == "MatMul":
            _matmul(wiring, node, done)
        elif node.op_type == "Gemm":
            _gemm(wiring, node, done)
    wiring.finish()


def _matmul(wiring: Wiring, node: Node, done: Done) -> None:
    graph = wiring.graph
    x, name = node.inputs
    weight = graph.weights.get(name)
    if weight is None or x not in graph.values or weight.ndim < 2 or weight.dtype != np.float32:
        return
    shape, out = graph.shape(x), graph.shape(node.outputs[0])
    if len(shape) < weight.ndim or math.prod(weight.shape[:-2]) != 1:
        return
    inputs, last = [_weight(graph, name, 1.0, True, done)], node
    following = wiring.only_reader(node, "Add")
    if following is not None and graph.shape(following.outputs[0]) == out:
        bias = fitted(graph, wiring.operand(following, node.outputs[0]), out[-1:])
        if bias is not None:
            inputs.append(bias)
            last = following
    target = last.outputs[0]
    if len(shape) == 2:
        wiring.replace(last, Node("Gemm", [x, *inputs], [target], node.name, {"transB": 1}))
        return
    rows, dtype = math.prod(shape[:-1]), graph.values[x].dtype
    flat = add_value(graph, derived(node.outputs[0], "flat"), (rows, shape[-1]), dtype)
    product = add_value(graph, derived(node.outputs[0], "product"), (rows, out[-1]), dtype)
    before, after = Node("Reshape", [x], [flat]), Node("Reshape", [product], [target])
    reshape(graph, before, (rows, shape[-1]))
    reshape(graph, after, out)
    wiring.replace(last, before, Node("Gemm", [flat, *inputs], [product], node.name, {"transB": 1}), after)


def _gemm(wiring: Wiring, node: Node, done: Done) -> None:
    graph = wiring.graph
    x, name, addend = (*node.inputs, "")[:3]
    if name not in graph.weights or x not in graph.values:
        return
    bias = None
    if addend:
        bias = fitted(graph, addend, graph.shape(node.outputs[0])[-1:]) if addend in graph.weights else None
        if bias is None:
            return  # the sum with an activation or a whole matrix: onnxruntime runs it as it is
        beta = node.attrs.get("beta", 1.0)
        if beta != 1:
            bias = share_constant(graph, derived(bias, f"x{beta}"), graph.weights[bias] * np.float32(beta))
    nodes = []
    if node.attrs.get("transA", 0):
        turned = add_value(graph, derived(node.outputs[0], "turned"), graph.shape(x)[::-1], graph.values[x].dtype)
        nodes.append(Node("Transpose", [x], [turned], attrs={"perm": [1, 0]}))
        x = turned
    weight = _weight(graph, name, node.attrs.get("alpha", 1.0), not node.attrs.get("transB", 0), done)
    inputs = [x, weight] if bias is None else [x, weight, bias]
    wiring.replace(node, *nodes, Node("Gemm", inputs, node.outputs, node.name, {"transB": 1}))


def _weight(graph: Graph, name: str, alpha: float, transpose: bool, done: Done) -> str:
    """The matrix as [out, in] times alpha; nodes that share a weight go on sharing one."""
    if alpha == 1 and not transpose:
        return name
    if (name, alpha, transpose) not in done:
        array = graph.weights[name]
        matrix = array.reshape(array.shape[-2:])
        matrix = matrix.T if transpose else matrix
        factor = np.ascontiguousarray(matrix if alpha == 1 else matrix * np.float32(alpha))
        wanted = derived(name, f"{'T' if transpose else ''}x{alpha}")
        done[name, alpha, transpose] = share_constant(graph, wanted, factor)
    return done[name, alpha, transpose]
