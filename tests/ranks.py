"""Small networks over every rank: each kind of layer, and each operator between two layers, on tensors of 0 to 5 axes,
and nodes of several outputs of which the first is not read.

`NETWORKS` holds a maker for each name; every network has one float input x and computes in a millisecond.
"""

from __future__ import annotations

import itertools
from collections.abc import Callable, Sequence
from typing import Any

import numpy as np
import onnx
from onnx import NodeProto

from graph_models import model, node
from rank_operators import CHANNELS, MIDDLES, Middle, Weights

SPACE = {1: (9,), 2: (6, 5), 3: (4, 5, 4)}
"""Sizes of the spatial axes of pictures of so many of them."""

Build = Callable[[], onnx.ModelProto]
NETWORKS: dict[str, Build] = {}

Parts = tuple[list[NodeProto], tuple[int, ...]]
"""Nodes, and the shape of x."""


def network(name: str, build: Callable[[Weights], Parts]) -> None:
    def make() -> onnx.ModelProto:
        weights = Weights(name)
        nodes, shape = build(weights)
        return model(nodes, shape, opset=17, **weights.arrays)

    assert name not in NETWORKS
    NETWORKS[name] = make


# Each layer, between two others.


def convolution(axes: int, op_type: str, **attrs: Any) -> Callable[[Weights], Parts]:
    """Conv, Relu, the convolution in question, Relu, Conv, each over so many spatial axes."""

    def build(w: Weights) -> Parts:
        groups, kernel = attrs.get("group", 1), (3,) * axes
        w("w1", 6, 3, *kernel), w("b1", 6, fan=9)
        width = 6 if op_type == "Conv" else 6 // groups
        w("w2", 6, 6 // groups if op_type == "Conv" else width, *kernel, fan=6 * 3**axes), w("b2", 6, fan=9)
        w("w3", 4, 6, *[1] * axes), w("b3", 4, fan=9)
        nodes = [
            node("Conv", "x w1 b1", "a", name="first", pads=[1] * 2 * axes),
            node("Relu", "a", "b"),
            node(op_type, "b w2 b2", "c", name="middle", **attrs),
            node("Relu", "c", "d"),
            node("Conv", "d w3 b3", "y", name="last"),
        ]
        return nodes, (1, 3, *SPACE[axes])

    return build


for axes, op_type in itertools.product(SPACE, ("Conv", "ConvTranspose")):
    uneven = [*range(axes), *[1] * axes]  # in front of and behind each axis
    for kind, attrs in {
        "plain": {},
        "grouped": {"group": 2},
        "depthwise": {"group": 6, "pads": [1] * 2 * axes},
        "strided": {"strides": [2, 1, 2][:axes], "pads": uneven},
        "dilated": {"dilations": [1, 2, 1][-axes:], "pads": [1] * 2 * axes},
        "same": {"auto_pad": "SAME_UPPER", "strides": [2] * axes},
    }.items():
        network(f"{op_type}{axes}d-{kind}", convolution(axes, op_type, **attrs))
    if op_type == "ConvTranspose":
        kind = f"{op_type}{axes}d-padded-output"
        network(kind, convolution(axes, op_type, strides=[2] * axes, output_padding=[1] * axes))


def side_by_side(axes: int) -> Callable[[Weights], Parts]:
    """A transposed convolution whose taps do not meet: its rounding works from moments."""

    def build(w: Weights) -> Parts:
        nodes, shape = convolution(axes, "ConvTranspose", strides=[2] * axes)(w)
        w("w2", 6, 6, *[2] * axes, fan=6)
        return nodes, shape

    return build


for axes in SPACE:
    network(f"ConvTranspose{axes}d-apart", side_by_side(axes))


def product(
    shape: Sequence[int], *weights: Sequence[int], bias: Sequence[int] | None = None
) -> Callable[[Weights], Parts]:
    """x times each of the weights, with a Relu behind each but the last, and an Add behind the first."""

    def build(w: Weights) -> Parts:
        nodes, tensor = [], "x"
        for i, weight in enumerate(weights):
            w(f"w{i}", *weight, fan=weight[0] if len(weight) == 1 else weight[-2])
            last = i + 1 == len(weights)
            nodes.append(node("MatMul", f"{tensor} w{i}", "y" if last else f"h{i}", name=f"product{i}"))
            tensor = f"h{i}"
            if i == 0 and bias is not None:
                w("bias", *bias, fan=9)
                nodes.append(node("Add", f"{tensor} bias", "sum"))
                tensor = "sum"
            if not last:
                nodes.append(node("Relu", tensor, f"r{i}"))
                tensor = f"r{i}"
        return nodes, tuple(shape)

    return build


for shape in ((8,), (3, 8), (2, 3, 8), (1, 2, 3, 8), (1, 2, 2, 3, 8)):
    rank = len(shape)
    network(f"MatMul-of-rank-{rank}", product(shape, (8, 6), (6, 6), (6, 4), bias=(6,)))
    network(f"MatMul-with-a-vector-rank-{rank}", product(shape, (8, 6), (6,)))
for name, shape, weights, bias in (
    ("each", (2, 3, 8), ((2, 8, 6), (2, 6, 6), (2, 6, 4)), (6,)),
    ("heads", (1, 2, 3, 8), ((2, 8, 6), (2, 6, 6), (2, 6, 4)), (2, 1, 6)),
    ("whole", (1, 2, 3, 8), ((1, 1, 8, 6), (1, 2, 6, 4), (4, 5)), (6,)),
    ("spread", (3, 8), ((2, 8, 6), (6, 4)), (6,)),
    ("one-of-several", (1, 3, 8), ((2, 8, 6), (6, 4)), (2, 3, 6)),
    ("twice", (2, 1, 3, 8), ((3, 8, 6), (2, 3, 6, 4), (4, 5)), (2, 3, 1, 6)),
    ("vector", (8,), ((2, 8, 6), (6, 4)), (6,)),
    ("ones", (3, 8), ((1, 8, 6), (6, 4)), (1, 3, 6)),
    ("single", (3, 1), ((2, 1, 6), (6, 1), (1, 4)), (6,)),
    ("rank5", (1, 2, 2, 3, 8), ((2, 2, 8, 6), (1, 2, 2, 6, 4)), (1, 2, 1, 1, 6)),
):
    network(f"MatMul-batched-{name}", product(shape, *weights, bias=bias))


def gemm(
    c: Sequence[int] | None, alpha: float, beta: float, turned_a: int, turned_b: int
) -> Callable[[Weights], Parts]:
    """A Gemm in the form in question, between two plain ones."""

    def build(w: Weights) -> Parts:
        w("w1", 7, 8), w("w2", *((5, 7) if turned_b else (7, 5)), fan=7), w("w3", 4, 5), w("b3", 4, fan=9)
        added = "" if c is None else w("c", *c, fan=2)
        attrs = {"alpha": alpha, "beta": beta, "transA": turned_a, "transB": turned_b}
        nodes = [
            node("Gemm", "x w1", "a", name="first", transB=1),
            node("Relu", "a", "b"),
            node("Transpose", "b", "t", perm=[1, 0]),
            node("Gemm", f"{'t' if turned_a else 'b'} w2 {added}", "d", name="middle", **attrs),
            node("Relu", "d", "e"),
            node("Gemm", "e w3 b3", "y", name="last", transB=1),
        ]
        return nodes, (6, 8)

    return build


for c in (None, (), (1,), (5,), (1, 5), (6, 1), (1, 1), (6, 5)):
    for alpha, beta, a, b in (
        (1.0, 1.0, 0, 1),
        (0.5, 2.0, 1, 0),
        (1.0, 0.0, 0, 0),
        (2.0, 1.0, 1, 1),
        (1.0, -1.0, 0, 1),
    ):
        size = "none" if c is None else "x".join(map(str, c)) or "scalar"
        network(f"Gemm-c-{size}-{alpha:g}-{beta:g}-{a}{b}", gemm(c, alpha, beta, a, b))


def computed_addend(w: Weights) -> Parts:
    """A Gemm whose C the network computes."""
    w("w1", 5, 8), w("w2", 5, 8), w("w3", 4, 5)
    nodes = [
        node("Gemm", "x w1", "a", name="side", transB=1),
        node("Gemm", "x w2 a", "b", name="middle", transB=1, beta=0.5),
        node("Relu", "b", "c"),
        node("Gemm", "c w3", "y", name="last", transB=1),
    ]
    return nodes, (6, 8)


network("Gemm-c-computed", computed_addend)


# Each operator between two layers: `a` to `b`, both of the same channels.

SHAPES = {1: (6,), 2: (3, 6), 3: (1, 6, 8), 4: (1, 6, 6, 5), 5: (1, 6, 4, 5, 4)}


def between(rank: int, first: bool, nodes: Middle) -> Callable[[Weights], Parts]:
    """The nodes between convolutions (channels first) or linear layers (channels last); b may have another shape, but
    keeps its channels."""

    def build(w: Weights) -> Parts:
        spatial = rank - 2
        shape = SHAPES[rank] if first or rank < 3 else (*SHAPES[rank][:1], *SHAPES[rank][2:], CHANNELS)
        inner = nodes(w, shape, 1 if first else rank - 1)
        if first:
            w("w1", CHANNELS, CHANNELS, *[3] * spatial), w("b1", CHANNELS, fan=9), w("w2", 4, CHANNELS, *[1] * spatial)
            ends = (
                node("Conv", "x w1 b1", "a", name="first", pads=[1] * 2 * spatial),
                node("Conv", "b w2", "y", name="last"),
            )
        else:
            w("w1", CHANNELS, CHANNELS), w("w2", CHANNELS, 4, fan=CHANNELS)
            ends = (node("MatMul", "x w1", "a", name="first"), node("MatMul", "b w2", "y", name="last"))
        return [ends[0], *inner, ends[1]], shape

    return build


for name, (where, nodes) in MIDDLES.items():
    for rank in SHAPES:
        if "c" in where and rank > 2 and not (name == "LRN" and rank != 4):  # onnxruntime has no other
            network(f"{name}-between-convolutions-rank-{rank}", between(rank, True, nodes))
        if "l" in where and not (
            rank == 1 and name in ("joined", "gathered", "TopK", "extremes", "LayerNormalization-wide")
        ):
            network(f"{name}-between-linears-rank-{rank}", between(rank, False, nodes))


def square(w: Weights) -> Parts:
    """As many pixels as channels: a linear layer behind a convolution reads the pixels."""
    w("w1", 6, 3, 3), w("b1", 6, fan=9), w("w2", 6, 5, fan=6), w("b2", 5, fan=9)
    nodes = [
        node("Conv", "x w1 b1", "a", name="first"),
        node("Relu", "a", "b"),
        node("MatMul", "b w2", "c", name="last"),
        node("Add", "c b2", "y"),
    ]
    return nodes, (1, 3, 8)


def pooled_rows(op_type: str) -> Callable[[Weights], Parts]:
    """A pool along the features of a linear layer, as many of them before and behind."""

    def build(w: Weights) -> Parts:
        w("w1", 8, 6), w("w2", 6, 5)
        pool = {"kernel_shape": [3], "pads": [1, 1]} if op_type != "Resize" else {"mode": "linear"}
        if op_type == "Resize":
            w.arrays["scales"] = np.array([1, 1, 2], np.float32)
        nodes = [
            node("MatMul", "x w1", "a", name="first"),
            node("Relu", "a", "b"),
            node(op_type, "b - scales" if op_type == "Resize" else "b", "c", **pool),
            node("Slice", f"c {w.integers('from', 0)} {w.integers('to', 6)} {w.integers('last', 2)}", "d"),
            node("MatMul", "d w2", "y", name="last"),
        ]
        return nodes, (1, 4, 8)

    return build


network("pixels-as-features", square)
for op_type in ("MaxPool", "AveragePool", "Resize"):
    network(f"{op_type}-along-features", pooled_rows(op_type))


def flattened(axes: int) -> Callable[[Weights], Parts]:
    """Convolutions, a pool and a classifier; for one axis, the tokens of a sequence."""

    def build(w: Weights) -> Parts:
        w("w1", 6, 3, *[3] * axes), w("b1", 6, fan=9)
        size = int(np.prod([n - 2 for n in SPACE[axes]])) * 6
        w("w2", 5, size), w("b2", 5, fan=9)
        nodes = [
            node("Conv", "x w1 b1", "a", name="first"),
            node("Relu", "a", "b"),
            node("Flatten", "b", "c"),
            node("Gemm", "c w2 b2", "y", name="last", transB=1),
        ]
        return nodes, (1, 3, *SPACE[axes])

    return build


def tokens(axes: int) -> Callable[[Weights], Parts]:
    """A patch embedding, tokens, LayerNormalization, two linear layers with a residual sum."""

    def build(w: Weights) -> Parts:
        w("w1", 6, 3, *[2] * axes), w("b1", 6, fan=9)
        (
            w("gain", 6, fan=9, around=1),
            w("offset", 6, fan=9),
            w("w2", 6, 12, fan=6),
            w("w3", 12, 6, fan=12),
            w("w4", 6, 4, fan=6),
        )
        nodes = [
            node("Conv", "x w1 b1", "a", name="patches", strides=[2] * axes),
            node("Reshape", f"a {w.integers('rows', 1, 6, -1)}", "r"),
            node("Transpose", "r", "t", perm=[0, 2, 1]),
            node("LayerNormalization", "t gain offset", "n", axis=-1),
            node("MatMul", "n w2", "h", name="up"),
            node("Relu", "h", "g"),
            node("MatMul", "g w3", "d", name="down"),
            node("Add", "t d", "s"),
            node("LayerNormalization", "s gain offset", "m", axis=-1),
            node("MatMul", "m w4", "y", name="head"),
        ]
        return nodes, (1, 3, *SPACE[axes])

    return build


for axes in SPACE:
    network(f"flattened-{axes}d", flattened(axes))
    network(f"tokens-{axes}d", tokens(axes))


# Nodes whose first output nobody reads.


def recurrent(op_type: str, gates: int, outputs: str, directions: int = 1) -> Callable[[Weights], Parts]:
    def build(w: Weights) -> Parts:
        hidden, sides = 4, directions
        w("in", 5, 6), w("w", sides, gates * hidden, 6, fan=6), w("r", sides, gates * hidden, hidden, fan=4)
        w("b", sides, 2 * gates * hidden, fan=9), w("out", sides * hidden, 3, fan=hidden)
        direction = "bidirectional" if sides == 2 else "forward"
        kept = [name for name in outputs.split() if name != "-"][-1]
        made = node("MatMul", "x in", "i", name="first"), onnx.helper.make_node(
            op_type, ["i", "w", "r", "b"], [n.replace("-", "") for n in outputs.split()],
            name="recurrent", hidden_size=hidden, direction=direction,
        )  # fmt: skip
        turn = [0, 2, 1, 3] if kept == "seq" else [1, 0, 2]
        shape = (4, 1, sides * hidden) if kept == "seq" else (1, sides * hidden)
        nodes = [
            *made,
            node("Transpose", kept, "t", perm=turn),
            node("Reshape", f"t {w.integers('flat', *shape)}", "f"),
            node("MatMul", "f out", "y", name="last"),
        ]
        return nodes, (4, 1, 5)

    return build


for op_type, gates in (("LSTM", 4), ("GRU", 3), ("RNN", 1)):
    for kind, outputs in {"sequence": "seq", "last": "- last", "unread-sequence": "unread last"}.items():
        for sides in (1, 2):
            network(f"{op_type}-{kind}-{sides}", recurrent(op_type, gates, outputs, sides))
network("LSTM-cell", recurrent("LSTM", 4, "- - cell"))


def left_out(w: Weights) -> Parts:
    """A Split and a TopK with outputs that are left out or unread, the first among them."""
    w("w1", 5, 8), w("w2", 4, 3, fan=4)
    nodes = [
        node("MatMul", "x w1", "a", name="first"),
        node("Split", f"a {w.integers('parts', 4, 4)}", "left right", axis=-1),
        node("TopK", f"right {w.integers('k', 2)}", "values places", axis=0),
        node("GatherElements", "right places", "b", axis=0),
        node("MatMul", "b w2", "y", name="last"),
    ]
    return nodes, (3, 5)


network("Split-then-TopK", left_out)


def normed_rows(w: Weights) -> Parts:
    """BatchNormalization of a matrix, in front of layers and behind them, with a chain to fold into."""
    for name in ("1", "2"):
        w(f"gain{name}", 6, fan=9, around=1.0), w(f"offset{name}", 6, fan=9), w(f"mean{name}", 6, fan=9)
        w(f"variance{name}", 6, fan=100, around=1.0)
    w("w1", 6, 6), w("w2", 6, 4)
    nodes = [
        node("BatchNormalization", "x gain1 offset1 mean1 variance1", "n"),
        node("MatMul", "n w1", "a", name="first"),
        node("BatchNormalization", "a gain2 offset2 mean2 variance2", "m"),
        node("Relu", "m", "b"),
        node("MatMul", "b w2", "y", name="last"),
    ]
    return nodes, (3, 6)


def computed_kernel(axes: int) -> Callable[[Weights], Parts]:
    """A convolution whose kernel the network computes, and its bias."""

    def build(w: Weights) -> Parts:
        w("w1", 4, 3, *[3] * axes), w("w2", 4 * 4 * 3**axes, 4, fan=4), w("w3", 3, 4, *[1] * axes)
        nodes = [
            node("Conv", "x w1", "a", name="first"),
            node("GlobalAveragePool", "a", "p"),
            node("Reshape", f"p {w.integers('line', 4)}", "v"),
            node("MatMul", "w2 v", "k"),
            node("Reshape", f"k {w.integers('kernel', 4, 4, *[3] * axes)}", "kernel_"),
            node("Conv", "a kernel_ v", "b", name="computed", pads=[1] * 2 * axes),
            node("Relu", "b", "c"),
            node("Conv", "c w3", "y", name="last"),
        ]
        return nodes, (1, 3, *SPACE[axes])

    return build


network("BatchNormalization-of-rows", normed_rows)
for axes in SPACE:
    network(f"Conv{axes}d-of-a-computed-kernel", computed_kernel(axes))


def shared_weights(shape: tuple[int, ...]) -> Callable[[Weights], Parts]:
    """Two products with one constant."""

    def build(w: Weights) -> Parts:
        w("w", *shape)
        nodes = [
            node("MatMul", "x w", "a", name="first"),
            node("Relu", "a", "b"),
            node("MatMul", "b w", "y", name="last"),
        ]
        return nodes, (2, 3, 6)

    return build


network("shared-matrix", shared_weights((6, 6)))
network("shared-batch", shared_weights((2, 6, 6)))


# Ends of networks.


def ended(rank: int, op_type: str, **attrs: Any) -> Callable[[Weights], Parts]:
    """Two layers, and what ends the network, with or without axes."""

    def build(w: Weights) -> Parts:
        shape = SHAPES[rank] if rank < 3 else (*SHAPES[rank][:1], *SHAPES[rank][2:], CHANNELS)
        w("w1", CHANNELS, CHANNELS), w("b1", CHANNELS, fan=9), w("w2", CHANNELS, 5)
        nodes = [
            node("MatMul", "x w1", "a", name="first"),
            node("Add", "a b1", "b"),
            node("MatMul", "b w2", "c", name="last"),
            node(op_type, "c", "y", **attrs),
        ]
        return nodes, shape

    return build


for rank in SHAPES:
    network(f"mean-of-rank-{rank}", ended(rank, "ReduceMean", keepdims=0))
    network(f"Softmax-of-rank-{rank}", ended(rank, "Softmax", axis=-1))
