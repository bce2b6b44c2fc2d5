"""Recognising activation functions by their values, however an exporter took them apart."""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator

import numpy as np
from numpy.typing import NDArray

from leadline.graph.ir import Graph, Node
from leadline.graph.patterns import Wiring, beside

Curve = NDArray[np.float64]


def _erf(x: Curve) -> Curve:
    return np.array([math.erf(value) for value in x])


_FUNCTIONS: dict[str, Callable[..., Curve]] = {
    "Add": np.add, "Sub": np.subtract, "Mul": np.multiply, "Div": np.divide, "Pow": np.power,
    "Max": lambda *x: np.maximum.reduce(x), "Min": lambda *x: np.minimum.reduce(x),
    "Erf": _erf, "Tanh": np.tanh, "Neg": np.negative, "Exp": np.exp, "Log": np.log,
    "Reciprocal": np.reciprocal, "Sqrt": np.sqrt,
    "Sigmoid": lambda x: 1 / (1 + np.exp(-x)), "Relu": lambda x: np.maximum(x, 0),
}  # fmt: skip

# Anchor -> (operator, attributes, function). Exact and tanh Gelu differ by 5e-4: a tolerance of 1e-5 tells them apart.
_GRID = np.linspace(-8.0, 8.0, 161)
_ACTIVATIONS: dict[str, tuple[str, dict[str, str], Callable[[Curve], Curve]]] = {
    "Erf": ("Gelu", {"approximate": "none"}, lambda x: x * (1 + _erf(x / math.sqrt(2))) / 2),
    "Tanh": (
        "Gelu",
        {"approximate": "tanh"},
        lambda x: x * (1 + np.tanh(math.sqrt(2 / math.pi) * (x + 0.044715 * x**3))) / 2,
    ),
    "Log": ("Softplus", {}, lambda x: np.log1p(np.exp(x))),
    "Clip": ("HardSwish", {}, lambda x: x * np.clip(x + 3, 0, 6) / 6),
    "HardSigmoid": ("HardSwish", {}, lambda x: x * np.clip(x + 3, 0, 6) / 6),
}
_TOLERANCE = 1e-5
_DEPTH = 8  # longest decomposition known: tanh Gelu with x^3 by two products, 7 operators before the Tanh


def activations(graph: Graph) -> None:
    """Any scalar expression that equals Gelu, HardSwish or Softplus on a grid of arguments becomes that operator."""
    wiring = Wiring(graph)
    for anchor in graph.nodes:
        if anchor.op_type in _ACTIVATIONS:
            _activation(wiring, anchor)
    wiring.finish()


def _activation(wiring: Wiring, anchor: Node) -> None:
    op_type, attrs, function = _ACTIVATIONS[anchor.op_type]
    expected = function(_GRID)
    for source in _upstream(wiring, anchor):
        for last in _downstream(wiring, anchor):
            if wiring.graph.shape(source) != wiring.graph.shape(last.outputs[0]):
                continue
            curve = _curve(wiring, last.outputs[0], {source: _GRID}, 2 * _DEPTH)
            if curve is not None and np.abs(curve - expected).max() < _TOLERANCE:
                wiring.replace(last, Node(op_type, [source], [last.outputs[0]], beside(last, op_type), dict(attrs)))
                return


def _upstream(wiring: Wiring, anchor: Node) -> Iterator[str]:
    """Activations from which scalar arithmetic leads to `anchor`, the nearest first."""
    level = [anchor.inputs[0]]
    for _ in range(_DEPTH):
        yield from level
        nodes = [wiring.writers[name] for name in level if name in wiring.writers]
        inputs = [name for node in nodes if _is_scalar_function(node) for name in node.inputs]
        level = [name for name in dict.fromkeys(inputs) if name in wiring.graph.values]


def _downstream(wiring: Wiring, anchor: Node) -> Iterator[Node]:
    """The anchor, and what scalar arithmetic makes of it."""
    level = [anchor]
    yield anchor
    for _ in range(_DEPTH):
        readers = [node for item in level for node in wiring.readers.get(item.outputs[0], [])]
        level = [node for node in readers if _is_scalar_function(node)]
        yield from level


def _is_scalar_function(node: Node) -> bool:
    return node.op_type in _FUNCTIONS or node.op_type in ("Clip", "HardSigmoid")


def _curve(wiring: Wiring, tensor: str, known: dict[str, Curve], depth: int) -> Curve | None:
    """`tensor` as a function of the known one; None if anything but scalar arithmetic leads there."""
    if tensor in known:
        return known[tensor]
    if tensor in wiring.graph.weights:
        value = wiring.scalar(tensor)
        return None if value is None else np.full(_GRID.shape, value)
    node = wiring.writers.get(tensor)
    if node is None or depth == 0 or not _is_scalar_function(node):
        return None
    inputs = []
    for name in filter(None, node.inputs):
        if (curve := _curve(wiring, name, known, depth - 1)) is None:
            return None
        inputs.append(curve)
    with np.errstate(all="ignore"):
        if node.op_type == "Clip":
            low, high = [wiring.scalar(name) for name in (*node.inputs[1:], "", "")][:2]
            curve = np.clip(inputs[0], -np.inf if low is None else low, np.inf if high is None else high)
        elif node.op_type == "HardSigmoid":
            curve = np.clip(node.attrs.get("alpha", 0.2) * inputs[0] + node.attrs.get("beta", 0.5), 0, 1)
        else:
            curve = _FUNCTIONS[node.op_type](*inputs)
    known[tensor] = curve
    return curve
