"""One small network for each kind of operator: a layer, the operator, a layer."""

from __future__ import annotations

from typing import Any

import numpy as np
import onnx

from graph_models import model, node
from small_networks import draw

F = np.float32

PICTURE, TOKENS, LINE, SPACE = (1, 3, 12, 12), (1, 16, 12), (1, 3, 32), (1, 3, 6, 8, 8)


def network(kind: str) -> tuple[onnx.ModelProto, tuple[int, ...]]:
    """The network of a kind, and the shape of its input x; its output is y."""
    shape, nodes, constants, channels, opset = KINDS[kind]
    rank = len(shape) - 2
    if shape == TOKENS:
        first, last = node("MatMul", "x w1", "a", name="first"), node("MatMul", "b w2", "y", name="last")
        constants = constants | {"w1": draw(1, shape[-1], 16), "w2": draw(2, channels, 8)}
    else:
        pads = [1] * 2 * rank
        first = node("Conv", "x w1 b1", "a", name="first", pads=pads)
        last = node("Conv", "b w2 b2", "y", name="last", pads=pads)
        constants = constants | {"w1": draw(1, 8, shape[1], *[3] * rank), "b1": draw(2, 8, spread=0.1),
                      "w2": draw(3, 4, channels, *[3] * rank), "b2": draw(4, 4, spread=0.1)}  # fmt: skip
    return model([first, *nodes, last], shape, opset=opset, **constants), shape


def ints(values: Any) -> np.ndarray:
    return np.array(values, np.int64)


Kind = tuple[tuple[int, ...], list[onnx.NodeProto], dict[str, Any], int, int]
"""Shape of x, nodes from a to b, their constants, channels of b, opset."""

KINDS: dict[str, Kind] = {}


def kind(
    name: str,
    nodes: list[onnx.NodeProto],
    shape: tuple[int, ...] = PICTURE,
    opset: int = 18,
    channels: int | None = None,
    **constants: Any,
) -> None:
    KINDS[name] = (shape, nodes, constants, channels or (16 if shape == TOKENS else 8), opset)


SIG, HALF = node("Sigmoid", "a", "s"), F(0.5)
POSITIVE = [SIG, node("Add", "s half", "p")]
"""p from 0.5 to 1.5"""


def one(op: str, **attrs: Any) -> list[onnx.NodeProto]:
    return [node(op, "a", "b", **attrs)]
