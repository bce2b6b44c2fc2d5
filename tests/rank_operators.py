"""Operators between two layers, for `ranks`: each makes `b` of `a`, given where the channels lie. `b` may have another
shape, but keeps its channels."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import numpy as np
from onnx import NodeProto

from graph_models import node

CHANNELS = 6


class Weights:
    """Random constants by name, the same on every call."""

    def __init__(self, name: str) -> None:
        self._rng = np.random.default_rng(sum(map(ord, name)))
        self.arrays: dict[str, np.ndarray] = {}

    def __call__(self, name: str, *shape: int, fan: int = 0, around: float = 0.0) -> str:
        spread = (fan or int(np.prod(shape[1:])) or 1) ** -0.5
        self.arrays[name] = (around + self._rng.standard_normal(shape) * spread).astype(np.float32)
        return name

    def integers(self, name: str, *values: int) -> str:
        self.arrays[name] = np.array(values, np.int64)
        return name

    def scalar(self, name: str, value: float) -> str:
        self.arrays[name] = np.float32(value)
        return name


Middle = Callable[[Weights, tuple[int, ...], int], list[NodeProto]]
"""Given the weights to add to, the shape of `a`, and the axis of its channels."""


def another(shape: tuple[int, ...], axis: int) -> int:
    """An axis that does not hold the channels, the longest of them."""
    return max((i for i in range(len(shape)) if i != axis), key=lambda i: shape[i])


def per_channel(w: Weights, name: str, shape: tuple[int, ...], axis: int, around: float = 0.0) -> str:
    return w(name, CHANNELS, *[1] * (len(shape) - axis - 1), fan=9, around=around)


def whole_gate(w: Weights, shape: tuple[int, ...], axis: int) -> list[NodeProto]:
    """A tensor of no axes, and what it multiplies."""
    return [node("ReduceMean", "a", "mean", keepdims=0), node("Sigmoid", "mean", "gate"), node("Mul", "a gate", "b")]


def channel_gate(w: Weights, shape: tuple[int, ...], axis: int) -> list[NodeProto]:
    others = [i for i in range(len(shape)) if i != axis]
    nodes = [node("ReduceMean", "a", "mean", axes=others, keepdims=1)] if others else [node("Identity", "a", "mean")]
    return [*nodes, node("HardSigmoid", "mean", "gate"), node("Mul", "a gate", "b")]


def two_scalars(w: Weights, shape: tuple[int, ...], axis: int) -> list[NodeProto]:
    """Tensors of no axes on both sides of operators."""
    return [
        node("ReduceMax", "a", "most", keepdims=0),
        node("ReduceMin", "a", "least", keepdims=0),
        node("Sub", "most least", "width"),
        node("Add", f"width {w.scalar('one', 1.0)}", "more"),
        node("Div", "a more", "b"),
    ]


def inner_split(w: Weights, shape: tuple[int, ...], axis: int) -> list[NodeProto]:
    """Split, whose first part is not read."""
    return [
        node("Concat", "a a", "both", axis=axis),
        node("Split", f"both {w.integers('parts', CHANNELS, CHANNELS)}", "unread b", axis=axis),
    ]


def chosen(w: Weights, shape: tuple[int, ...], axis: int) -> list[NodeProto]:
    """TopK, whose values are not read, and what its indices choose."""
    at = another(shape, axis)
    return [
        node("TopK", f"a {w.integers('k', max(1, shape[at] - 1))}", "most places", axis=at),
        node("GatherElements", "a places", "b", axis=at),
    ]


def turned(w: Weights, shape: tuple[int, ...], axis: int) -> list[NodeProto]:
    perm = list(range(len(shape)))[::-1]
    return [
        node("Transpose", "a", "t", perm=perm),
        node("LeakyRelu", "t", "u"),
        node("Transpose", "u", "b", perm=perm),
    ]


def flat(w: Weights, shape: tuple[int, ...], axis: int) -> list[NodeProto]:
    return [
        node("Reshape", f"a {w.integers('flat', -1)}", "f"),
        node("Tanh", "f", "g"),
        node("Reshape", f"g {w.integers('back', *shape)}", "b"),
    ]


def gathered(w: Weights, shape: tuple[int, ...], axis: int) -> list[NodeProto]:
    """One entry taken out, and its axis put back."""
    at = another(shape, axis)
    return [
        node("Gather", f"a {w.integers('order', *range(shape[axis])[::-1])}", "g", axis=axis),
        node("Gather", f"g {w.integers('one', 1 % shape[at])}", "b", axis=at),
    ]


def resized(w: Weights, shape: tuple[int, ...], axis: int) -> list[NodeProto]:
    w.arrays["scales"] = np.array([1.0 if i == axis or i == 0 else 2.0 for i in range(len(shape))], np.float32)
    return [node("Resize", "a - scales", "b", mode="nearest")]


def padded(w: Weights, shape: tuple[int, ...], axis: int) -> list[NodeProto]:
    pads = [0 if i == axis or i == 0 else 1 for i in range(len(shape))]
    return [node("Pad", f"a {w.integers('pads', *pads, *pads)}", "b")]


def normed(op_type: str) -> Middle:
    def nodes(w: Weights, shape: tuple[int, ...], axis: int) -> list[NodeProto]:
        w("gain", CHANNELS, fan=9, around=1.0), w("offset", CHANNELS, fan=9)
        if op_type == "BatchNormalization":
            w("mean", CHANNELS, fan=9), w("variance", CHANNELS, fan=100, around=1.0)
            return [node(op_type, "a gain offset mean variance", "n"), node("Relu", "n", "b")]
        return [node(op_type, "a gain offset", "n"), node("Relu", "n", "b")]

    return nodes


def last_normed(w: Weights, shape: tuple[int, ...], axis: int) -> list[NodeProto]:
    w("gain", shape[-1], fan=9, around=1.0), w("offset", shape[-1], fan=9)
    return [node("LayerNormalization", "a gain offset", "b", axis=-1)]


def wide_normed(w: Weights, shape: tuple[int, ...], axis: int) -> list[NodeProto]:
    """LayerNormalization over all axes but the first."""
    w("gain", *shape[1:], fan=9, around=1.0), w("offset", *shape[1:], fan=9)
    return [node("LayerNormalization", "a gain offset", "b", axis=1)]


def statistics(w: Weights, shape: tuple[int, ...], axis: int) -> list[NodeProto]:
    """LayerNormalization, whose mean and deviation are read, not what it normalises."""
    w("gain", shape[-1], fan=9, around=1.0)
    return [
        node("LayerNormalization", "a gain", "unread mean inverse", axis=-1),
        node("Sub", "a mean", "centred"),
        node("Mul", "centred inverse", "b"),
    ]


def shuffled(w: Weights, shape: tuple[int, ...], axis: int) -> list[NodeProto]:
    """Channels in groups, which change places: one axis more, up to six."""
    grouped = (*shape[:axis], 2, CHANNELS // 2, *shape[axis + 1 :])
    perm = list(range(len(grouped)))
    perm[axis], perm[axis + 1] = axis + 1, axis
    return [
        node("Reshape", f"a {w.integers('grouped', *grouped)}", "g"),
        node("Transpose", "g", "t", perm=perm),
        node("Sigmoid", "t", "s"),
        node("Reshape", f"s {w.integers('back', *shape)}", "b"),
    ]


def extremes(w: Weights, shape: tuple[int, ...], axis: int) -> list[NodeProto]:
    """Integers in between, of another rank, and a choice by them."""
    at = another(shape, axis)
    return [
        node("ArgMax", "a", "place", axis=at, keepdims=1),
        node("GatherElements", "a place", "most", axis=at),
        node("Sub", "a most", "b"),
    ]


def plain(*steps: tuple[str, dict[str, Any]]) -> Middle:
    def nodes(w: Weights, shape: tuple[int, ...], axis: int) -> list[NodeProto]:
        names = ["a", *(f"s{i}" for i in range(len(steps) - 1)), "b"]
        return [node(op, names[i], names[i + 1], **attrs) for i, (op, attrs) in enumerate(steps)]

    return nodes


def clipped(w: Weights, shape: tuple[int, ...], axis: int) -> list[NodeProto]:
    return [node("Clip", f"a {w.scalar('low', 0.0)} {w.scalar('high', 1.0)}", "b")]


def bounded(w: Weights, shape: tuple[int, ...], axis: int) -> list[NodeProto]:
    return [node("Relu", "a", "r"), node("Min", f"r {w.scalar('high', 1.0)}", "b")]


def sloped(w: Weights, shape: tuple[int, ...], axis: int) -> list[NodeProto]:
    return [node("PRelu", f"a {per_channel(w, 'slope', shape, axis, 0.2)}", "b")]


def affine(w: Weights, shape: tuple[int, ...], axis: int) -> list[NodeProto]:
    factor, shift = per_channel(w, "factor", shape, axis, 1.5), per_channel(w, "shift", shape, axis)
    return [node("Mul", f"a {factor}", "m"), node("Add", f"m {shift}", "s"), node("Relu", "s", "b")]


def late_affine(w: Weights, shape: tuple[int, ...], axis: int) -> list[NodeProto]:
    factor, shift = per_channel(w, "factor", shape, axis, 1.5), per_channel(w, "shift", shape, axis)
    return [node("Relu", "a", "r"), node("Mul", f"r {factor}", "m"), node("Add", f"m {shift}", "b")]


def residual(w: Weights, shape: tuple[int, ...], axis: int) -> list[NodeProto]:
    return [node("Sigmoid", "a", "s"), node("Mul", "a s", "m"), node("Add", "m a", "b")]


def table(w: Weights, shape: tuple[int, ...], axis: int) -> list[NodeProto]:
    """A constant of the whole shape, as positions are."""
    return [node("Add", f"a {w('table', *shape, fan=4)}", "s"), node("Softmax", "s", "b", axis=axis)]


def joined(w: Weights, shape: tuple[int, ...], axis: int) -> list[NodeProto]:
    """A constant put in front along another axis, where there is one."""
    at = another(shape, axis)
    token = [1 if i == at else size for i, size in enumerate(shape)]
    return [node("Concat", f"{w('token', *token, fan=4)} a", "b", axis=at)]


def tiled(w: Weights, shape: tuple[int, ...], axis: int) -> list[NodeProto]:
    return [
        node("Unsqueeze", f"a {w.integers('front', 0)}", "u"),
        node("Tile", f"u {w.integers('times', 2, *[1] * len(shape))}", "t"),
        node("ReduceMean", "t", "b", axes=[0], keepdims=0),
    ]


def masked(w: Weights, shape: tuple[int, ...], axis: int) -> list[NodeProto]:
    return [node("Greater", f"a {w.scalar('zero', 0.0)}", "which"), node("Where", "which a zero", "b")]


def dropped(w: Weights, shape: tuple[int, ...], axis: int) -> list[NodeProto]:
    return [node("Dropout", "a", "kept mask"), node("Where", f"mask kept {w.scalar('zero', 0.0)}", "b")]


def mask_alone(w: Weights, shape: tuple[int, ...], axis: int) -> list[NodeProto]:
    """Dropout, whose mask alone is read."""
    return [node("Dropout", "a", "unread mask"), node("Where", f"mask a {w.scalar('zero', 0.0)}", "b")]


def pooled(op_type: str, **attrs: Any) -> Middle:
    def nodes(w: Weights, shape: tuple[int, ...], axis: int) -> list[NodeProto]:
        spatial = len(shape) - 2
        given = {"kernel_shape": [2] * spatial, "strides": [2] * spatial} if not op_type.startswith("Global") else {}
        return [node("Relu", "a", "r"), node(op_type, "r", "b", **given | attrs)]

    return nodes


def pool_places(w: Weights, shape: tuple[int, ...], axis: int) -> list[NodeProto]:
    """MaxPool, whose indices alone are read."""
    spatial = len(shape) - 2
    w.scalar("unit", 0.1)
    return [
        node("MaxPool", "a", "unread places", kernel_shape=[2] * spatial, strides=[2] * spatial),
        node("Cast", "places", "real", to=1),
        node("Mul", "real unit", "b"),
    ]


MIDDLES: dict[str, tuple[str, Middle]] = {
    # where: "c" between convolutions, "l" between linear layers
    "Relu": ("cl", plain(("Relu", {}))),
    "Clip": ("cl", clipped),
    "Min": ("cl", bounded),
    "PRelu": ("cl", sloped),
    "curves": ("cl", plain(("Tanh", {}), ("Elu", {}), ("HardSwish", {}), ("Softplus", {}))),
    "affine": ("cl", affine),
    "late-affine": ("cl", late_affine),
    "residual": ("cl", residual),
    "whole-gate": ("cl", whole_gate),
    "channel-gate": ("cl", channel_gate),
    "scalars": ("cl", two_scalars),
    "split": ("cl", inner_split),
    "TopK": ("cl", chosen),
    "turned": ("cl", turned),
    "flat": ("cl", flat),
    "gathered": ("cl", gathered),
    "table": ("cl", table),
    "joined": ("cl", joined),
    "tiled": ("cl", tiled),
    "masked": ("cl", masked),
    "Dropout": ("cl", dropped),
    "Dropout-mask": ("cl", mask_alone),
    "LayerNormalization": ("cl", last_normed),
    "LayerNormalization-wide": ("cl", wide_normed),
    "LayerNormalization-statistics": ("cl", statistics),
    "shuffled": ("cl", shuffled),
    "extremes": ("cl", extremes),
    "LRN": ("c", plain(("LRN", {"size": 3}), ("Relu", {}))),
    "LpPool": ("c", pooled("LpPool")),
    "BatchNormalization": ("c", normed("BatchNormalization")),
    "InstanceNormalization": ("c", normed("InstanceNormalization")),
    "MaxPool": ("c", pooled("MaxPool")),
    "MaxPool-places": ("c", pool_places),
    "AveragePool": ("c", pooled("AveragePool", count_include_pad=1)),
    "GlobalAveragePool": ("c", pooled("GlobalAveragePool")),
    "Resize": ("c", resized),
    "Pad": ("c", padded),
}
