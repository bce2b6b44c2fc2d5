"""Sums of products in one form: Einsum, and MatMul and Gemm whose constant stands on the left, as the operators that
quantise: MatMul with a constant on the right, a convolution of 1x1, or MatMul of two activations."""

from __future__ import annotations

import math
from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass, field

import numpy as np

from leadline.graph.edit import add_value, derived, share_constant
from leadline.graph.ir import Array, Graph, Node
from leadline.graph.patterns import Wiring, fitted

_ELLIPSIS = "0123456789"
"""Labels of the axes that an ellipsis stands for, counted from the last one."""


def contractions(graph: Graph) -> None:
    """Rewrite every Einsum, MatMul and Gemm of float32 tensors of which that can be said. What stays as it is: an
    Einsum that takes a diagonal or stretches an axis of length 1."""
    wiring = Wiring(graph)
    for node in graph.nodes:
        if any(name and _dtype(graph, name) != np.float32 for name in node.inputs):
            continue
        constant_left = len(node.inputs) > 1 and node.inputs[0] in graph.weights and node.inputs[1] in graph.values
        if node.op_type == "Einsum":
            _einsum(wiring, node)
        elif node.op_type == "MatMul" and constant_left:
            _matmul(wiring, node)
        elif node.op_type == "Gemm" and constant_left:
            _gemm(wiring, node)
    wiring.finish()


def _dtype(graph: Graph, name: str) -> np.dtype[np.generic]:
    return graph.values[name].dtype if name in graph.values else graph.weights[name].dtype


@dataclass
class _Chain:
    """Nodes that come one after the other in the place of one node; what is constant is computed at once."""

    graph: Graph
    stem: str
    nodes: list[Node] = field(default_factory=list)

    def emit(self, op_type: str, inputs: list[str], shape: Sequence[int], name: str = "", **attrs: object) -> str:
        output = add_value(self.graph, derived(self.stem, op_type.lower()), shape)
        self.nodes.append(Node(op_type, inputs, [output], name, dict(attrs)))
        return output

    def transpose(self, tensor: str, perm: Sequence[int]) -> str:
        perm, shape = list(perm), self.graph.shape(tensor)
        if perm == sorted(perm):
            return tensor
        if tensor in self.graph.weights:
            turned = np.ascontiguousarray(self.graph.weights[tensor].transpose(perm))
            return share_constant(self.graph, derived(tensor, f"T{perm}"), turned)
        return self.emit("Transpose", [tensor], [shape[axis] for axis in perm], perm=perm)

    def reshape(self, tensor: str, shape: Sequence[int]) -> str:
        shape = tuple(shape)
        if self.graph.shape(tensor) == shape:
            return tensor
        text = "x".join(map(str, shape))
        if tensor in self.graph.weights:
            return share_constant(self.graph, derived(tensor, text), self.graph.weights[tensor].reshape(shape))
        target = share_constant(self.graph, f"shape.{text}", np.array(shape, np.int64))
        return self.emit("Reshape", [tensor, target], shape)

    def sum(self, tensor: str, axes: list[int]) -> str:
        if not axes:
            return tensor
        if tensor in self.graph.weights:
            summed = self.graph.weights[tensor].sum(tuple(axes), dtype=np.float64).astype(np.float32)
            return share_constant(self.graph, derived(tensor, f"sum{axes}"), summed)
        shape = [dim for axis, dim in enumerate(self.graph.shape(tensor)) if axis not in axes]
        which = share_constant(self.graph, f"axes.{'x'.join(map(str, axes))}", np.array(axes, np.int64))
        return self.emit("ReduceSum", [tensor, which], shape, keepdims=0)

    def close(self, wiring: Wiring, last: Node, tensor: str) -> None:
        """Have the chain's result under the name that `last` wrote."""
        if not self.nodes or self.nodes[-1].outputs[0] != tensor:
            self.nodes.append(Node("Identity", [tensor], [""]))
        else:
            del self.graph.values[tensor]
        self.nodes[-1].outputs = [last.outputs[0]]
        wiring.replace(last, *self.nodes)


@dataclass
class _Term:
    """An operand and the label of each of its axes."""

    tensor: str
    labels: str


def _einsum(wiring: Wiring, node: Node) -> None:
    graph = wiring.graph
    parsed = _parse(node.attrs["equation"], [graph.shape(name) for name in node.inputs])
    if parsed is None:
        return
    (*labels, wanted), chain = parsed, _Chain(graph, node.outputs[0])
    terms = [_Term(name, subscripts) for name, subscripts in zip(node.inputs, labels, strict=True)]
    lengths: dict[str, int] = {}
    for term in terms:
        for label, length in zip(term.labels, graph.shape(term.tensor), strict=True):
            if lengths.setdefault(label, length) != length:
                return
    current = terms[0]
    for place, following in enumerate(terms[1:], 2):
        kept = set(wanted).union(*(term.labels for term in terms[place:]))
        current = _product(chain, node.name, current, following, kept, lengths)
    current = _summed(chain, current, set(wanted))
    result = chain.transpose(current.tensor, [current.labels.index(label) for label in wanted])
    if result not in graph.weights:
        chain.close(wiring, node, result)


def _parse(equation: str, shapes: list[tuple[int, ...]]) -> list[str] | None:
    """The labels of every operand and of the result; None where an operand names a label twice."""
    left, arrow, right = equation.replace(" ", "").partition("->")
    operands = []
    for text, shape in zip(left.split(","), shapes, strict=True):
        missing = len(shape) - len(text.replace("...", ""))
        operands.append(text.replace("...", _ELLIPSIS[:missing][::-1]))
    longest = max((sum(label in _ELLIPSIS for label in term) for term in operands), default=0)
    if not arrow:
        counts = Counter("".join(operands))
        once = sorted(label for label, count in counts.items() if count == 1 and label not in _ELLIPSIS)
        right = ("..." if longest else "") + "".join(once)
    result = right.replace("...", _ELLIPSIS[:longest][::-1])
    if any(len(set(term)) < len(term) for term in (*operands, result)) or not set(result) <= set("".join(operands)):
        return None
    return [*operands, result]


def _summed(chain: _Chain, term: _Term, kept: set[str]) -> _Term:
    axes = [axis for axis, label in enumerate(term.labels) if label not in kept]
    return _Term(chain.sum(term.tensor, axes), "".join(label for label in term.labels if label in kept))


def _product(chain: _Chain, name: str, first: _Term, second: _Term, kept: set[str], lengths: dict[str, int]) -> _Term:
    """The product of two operands, summed over what they share and nothing after them reads."""
    graph = chain.graph
    first, second = _summed(chain, first, kept | set(second.labels)), _summed(chain, second, kept | set(first.labels))
    if first.tensor in graph.weights and second.tensor not in graph.weights:
        first, second = second, first
    shared = [label for label in first.labels if label in second.labels]
    batch = [label for label in shared if label in kept]
    contracted = [label for label in shared if label not in kept]
    rows = [label for label in first.labels if label not in second.labels]
    columns = [label for label in second.labels if label not in first.labels]
    labels = "".join((*batch, *rows, *columns))

    def size(some: Sequence[str]) -> int:
        return math.prod(lengths[label] for label in some)

    def arranged(term: _Term, order: Sequence[str], *shape: int) -> str:
        turned = chain.transpose(term.tensor, [term.labels.index(label) for label in order])
        return chain.reshape(turned, shape)

    outer = [lengths[label] for label in batch]
    result = [lengths[label] for label in labels]
    if {first.tensor, second.tensor} <= graph.weights.keys():
        equation = f"{first.labels},{second.labels}->{labels}"
        array = _numpy_einsum(equation, graph.weights[first.tensor], graph.weights[second.tensor])
        return _Term(share_constant(graph, derived(first.tensor, f"x{second.tensor}"), array), labels)
    if not contracted:
        left = arranged(first, [*batch, *rows], *outer, *(lengths[label] for label in rows), *([1] * len(columns)))
        free = [lengths[label] for label in columns]
        right = arranged(second, [*batch, *columns], *outer, *([1] * len(rows)), *free)
        return _Term(chain.emit("Mul", [left, right], result, name), labels)
    inner = size(contracted)
    lines = [lengths[label] for label in rows] if not batch and rows else [size(rows)]
    if second.tensor not in graph.weights:
        lines = [size(rows)]
    left = arranged(first, [*batch, *rows, *contracted], *outer, *lines, inner)
    right = arranged(second, [*batch, *contracted, *columns], *outer, inner, size(columns))
    product = chain.emit("MatMul", [left, right], [*outer, *lines, size(columns)], name)
    return _Term(chain.reshape(product, result), labels)


def _numpy_einsum(equation: str, *arrays: Array) -> Array:
    letters = dict(zip(dict.fromkeys(c for c in equation if c not in ",->"), _LETTERS, strict=False))
    return np.asarray(np.einsum("".join(letters.get(c, c) for c in equation), *arrays), np.float32)


_LETTERS = "abcdefghijklmnopqrstuvwxyzABCDEFGHIJKLMNOPQRSTUVWXYZ"


def _matmul(wiring: Wiring, node: Node) -> None:
    """weight @ x is a convolution of 1x1 over the columns of x, or x @ weight.T where x is a vector."""
    graph, (name, x) = wiring.graph, node.inputs
    weight, shape, out = graph.weights[name], graph.shape(node.inputs[1]), graph.shape(node.outputs[0])
    chain = _Chain(graph, node.outputs[0])
    if weight.ndim < 2:
        name = chain.reshape(name, (1, *weight.shape))
    elif math.prod(weight.shape[:-2]) == 1 and weight.ndim <= max(len(shape), 2):
        name = chain.reshape(name, weight.shape[-2:])
    rows, inner = graph.shape(name)[-2:]
    if len(graph.shape(name)) > 2:  # a matrix for each entry of a batch
        if len(shape) < 2:
            return
        last = list(range(len(shape)))
        turned = chain.transpose(x, [*last[:-2], last[-1], last[-2]])
        axes = list(range(weight.ndim))
        matrix = chain.transpose(name, [*axes[:-2], axes[-1], axes[-2]])
        product = chain.emit("MatMul", [turned, matrix], (*out[:-2], out[-1], out[-2]), node.name)
        axes = list(range(len(out)))
        chain.close(wiring, node, chain.transpose(product, [*axes[:-2], axes[-1], axes[-2]]))
        return
    if len(shape) == 1:
        product = chain.emit(
            "MatMul", [chain.reshape(x, (1, inner)), chain.transpose(name, (1, 0))], (1, rows), node.name
        )
        chain.close(wiring, node, chain.reshape(product, out))
        return
    bias, last_node = _bias(wiring, node, rows) if weight.ndim > 1 else ("", node)
    batch, columns = math.prod(shape[:-2]), shape[-1]
    picture = chain.reshape(x, (batch, inner, 1, columns))
    kernel = chain.reshape(name, (rows, inner, 1, 1))
    inputs = [picture, kernel, *filter(None, [bias])]
    product = chain.emit("Conv", inputs, (batch, rows, 1, columns), node.name, **_POINTWISE)
    chain.close(wiring, last_node, chain.reshape(product, out))


_POINTWISE = {"kernel_shape": [1, 1], "strides": [1, 1], "pads": [0] * 4, "dilations": [1, 1], "group": 1}


def _bias(wiring: Wiring, node: Node, rows: int) -> tuple[str, Node]:
    """The constant that an Add behind a product adds to each of its rows, as a vector, and that Add; else none."""
    graph, out = wiring.graph, _written(wiring, node)
    following = wiring.only_reader(node, "Add")
    if following is None or _written(wiring, following) != out:
        return "", node
    name = wiring.operand(following, node.outputs[0])
    array = graph.weights[name]
    if array.ndim > 0 and array.shape[-1] != 1:
        return "", node
    column = fitted(graph, name, (rows, 1))
    if column is None:
        return "", node
    return share_constant(graph, derived(name, "flat"), graph.weights[column].reshape(rows)), following


def _written(wiring: Wiring, node: Node) -> tuple[int, ...]:
    return wiring.graph.shape(node.outputs[0])


def _gemm(wiring: Wiring, node: Node) -> None:
    """As the MatMul and Add that it stands for, its constant on the right: y.T = x.T @ weight.T."""
    graph, chain = wiring.graph, _Chain(wiring.graph, node.outputs[0])
    name, x, *addends = node.inputs
    out = graph.shape(node.outputs[0])
    if not node.attrs.get("transA", 0):
        name = chain.transpose(name, (1, 0))
    alpha, beta = node.attrs.get("alpha", 1.0), node.attrs.get("beta", 1.0)
    if alpha != 1:
        name = share_constant(graph, derived(name, f"x{alpha}"), graph.weights[name] * np.float32(alpha))
    turned = x if node.attrs.get("transB", 0) else chain.transpose(x, (1, 0))
    product = chain.emit("MatMul", [turned, name], out[::-1], node.name)
    result = chain.transpose(product, (1, 0))
    if addend := next(filter(None, addends), ""):
        if beta != 1 and addend in graph.weights:
            addend = share_constant(graph, derived(addend, f"x{beta}"), graph.weights[addend] * np.float32(beta))
        elif beta != 1:
            factor = share_constant(graph, f"factor.{beta}", np.array(beta, np.float32))
            addend = chain.emit("Mul", [addend, factor], graph.shape(addend))
        result = chain.emit("Add", [result, addend], out)
    chain.close(wiring, node, result)
