"""Small networks with a detection head of each kind, as exporters write them: boxes in pixels, rare high scores."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import numpy as np
import onnx
from onnx import NodeProto, TensorProto, helper, numpy_helper

SIZE, STRIDES, CLASSES, WIDTH = 32, (4, 8), 3, 8
SIDES = tuple(SIZE // stride for stride in STRIDES)
PLACES = sum(side * side for side in SIDES)


class Builder:
    """Nodes and constants; each node's output is called after it."""

    def __init__(self) -> None:
        self.nodes: list[NodeProto] = []
        self.constants: dict[str, np.ndarray] = {}
        self.rng = np.random.default_rng(5)

    def add(self, op: str, *inputs: str | np.ndarray | float, out: int = 1, **attrs: Any) -> Any:
        name = f"{op.lower()}{len(self.nodes)}"
        outputs = [f"{name}_{i}" for i in range(out)]
        self.nodes.append(helper.make_node(op, [self.constant(i) for i in inputs], outputs, name=name, **attrs))
        return outputs[0] if out == 1 else outputs

    def constant(self, value: Any) -> str:
        if isinstance(value, str):
            return value
        array = np.asarray(value)
        name = f"c{len(self.constants)}"
        self.constants[name] = array.astype(np.float32) if array.dtype == np.float64 else array
        return name

    def conv(self, x: str, c1: int, c2: int, k: int = 1, stride: int = 1, bias: Any = 0.0, spread: float = 1.0) -> str:
        weight = self.rng.standard_normal((c2, c1, k, k)) * spread / np.sqrt(c1 * k * k)
        return self.add("Conv", x, weight, np.zeros(c2) + bias, kernel_shape=[k, k], strides=[stride] * 2,
                        pads=[k // 2] * 4)  # fmt: skip

    def levels(self) -> list[str]:
        y = self.add("Relu", self.conv("x", 3, WIDTH, 3, 2))
        y = self.add("Relu", self.conv(y, WIDTH, WIDTH, 3, 2))
        return [y, self.add("Relu", self.conv(y, WIDTH, WIDTH, 3, 2))]

    def boxes(self, x: str, numbers: int = 4) -> str:
        return self.conv(x, WIDTH, numbers, bias=1.5)

    def logits(self, x: str, classes: int = CLASSES) -> str:
        return self.conv(x, WIDTH, classes, bias=-4.0, spread=4.0)

    def reshape(self, x: str, *shape: int) -> str:
        return str(self.add("Reshape", x, np.array(shape, np.int64)))

    def split(self, x: str, axis: int, *sizes: int) -> Any:
        return self.add("Split", x, np.array(sizes, np.int64), out=len(sizes), axis=axis)

    def cut(self, x: str, axis: int, start: int, end: int) -> str:
        return str(self.add("Slice", x, *(np.array([n], np.int64) for n in (start, end, axis))))

    def model(self, *outputs: str) -> onnx.ModelProto:
        tensors = [numpy_helper.from_array(array, name) for name, array in self.constants.items()]
        values = [helper.make_tensor_value_info(name, TensorProto.FLOAT, None) for name in outputs]
        x = helper.make_tensor_value_info("x", TensorProto.FLOAT, [1, 3, SIZE, SIZE])
        graph = helper.make_graph(self.nodes, "head", [x], values, tensors)
        return helper.make_model(graph, opset_imports=[helper.make_opsetid("", 17)], ir_version=8)


def grid(side: int) -> np.ndarray:
    return np.stack(np.meshgrid(np.arange(side), np.arange(side)), -1)[None].astype(np.float32)


def flat() -> tuple[np.ndarray, np.ndarray]:
    """Cells (1, places, 2) and strides (1, places, 1)."""
    cells = np.concatenate([grid(side).reshape(1, -1, 2) for side in SIDES], 1)
    strides = np.concatenate([np.full((1, side**2, 1), stride) for side, stride in zip(SIDES, STRIDES, strict=True)], 1)
    return cells.astype(np.float32), strides.astype(np.float32)


def anchored(slices: bool = False) -> onnx.ModelProto:
    """YOLOv5, v7: one convolution and Sigmoid for all of a level, anchors; (1, places x anchors, 5 + classes)."""
    b, rows = Builder(), []
    for x, side, stride in zip(b.levels(), SIDES, STRIDES, strict=True):
        size = 5 + CLASSES
        y = b.reshape(b.conv(x, WIDTH, 2 * size, bias=-1.0, spread=3.0), 1, 2, size, side, side)
        y = b.add("Sigmoid", b.add("Transpose", y, perm=[0, 1, 3, 4, 2]))
        ends = ((0, 2), (2, 4), (4, 2**40))
        xy, wh, scores = [b.cut(y, 4, *e) for e in ends] if slices else b.split(y, 4, 2, 2, size - 4)
        xy = b.add("Mul", b.add("Add", b.add("Mul", xy, 2.0), grid(side)[:, None] - 0.5), float(stride))
        wh = b.add("Mul", b.add("Pow", b.add("Mul", wh, 2.0), 2.0), np.full((1, 2, 1, 1, 2), 3.0 * stride))
        rows.append(b.reshape(b.add("Concat", xy, wh, scores, axis=4), 1, -1, size))
    return b.model(b.add("Concat", *rows, axis=1))


def objectness(decode: bool) -> onnx.ModelProto:
    """YOLOX: boxes, objectness and classes joined in each level, and taken apart again where boxes are decoded."""
    b, rows = Builder(), []
    for x, side in zip(b.levels(), SIDES, strict=True):
        scores = [b.add("Sigmoid", b.logits(x, n)) for n in (1, CLASSES)]
        rows.append(b.reshape(b.add("Concat", b.boxes(x), *scores, axis=1), 1, 5 + CLASSES, side * side))
    y = b.add("Transpose", b.add("Concat", *rows, axis=2), perm=[0, 2, 1])
    if decode:
        cells, strides = flat()
        xy = b.add("Mul", b.add("Add", b.cut(y, 2, 0, 2), cells), strides)
        wh = b.add("Mul", b.add("Exp", b.cut(y, 2, 2, 4)), strides)
        y = b.add("Concat", xy, wh, b.cut(y, 2, 4, 2**40), axis=2)
    return b.model(y)


def _decoded(b: Builder, transpose: bool) -> tuple[str, str]:
    """Boxes (1, 4, places) in pixels and scores (1, classes, places) of all levels, or with the last axes swapped."""
    boxes, scores = [], []
    for x, side in zip(b.levels(), SIDES, strict=True):
        boxes.append(b.reshape(b.boxes(x), 1, 4, side * side))
        scores.append(b.reshape(b.logits(x), 1, CLASSES, side * side))
    cells, strides = flat()
    low, high = b.split(b.add("Concat", *boxes, axis=2), 1, 2, 2)
    low = b.add("Sub", cells.transpose(0, 2, 1), low)
    high = b.add("Add", high, cells.transpose(0, 2, 1))
    box = b.add("Mul", b.add("Concat", low, high, axis=1), strides.transpose(0, 2, 1))
    score = b.add("Sigmoid", b.add("Concat", *scores, axis=2))
    if transpose:
        return b.add("Transpose", box, perm=[0, 2, 1]), b.add("Transpose", score, perm=[0, 2, 1])
    return box, score


def joined(last: bool) -> onnx.ModelProto:
    """YOLOv6, v8, v9, v11: (1, 4 + classes, places), or (1, places, 4 + classes)."""
    b = Builder()
    return b.model(b.add("Concat", *_decoded(b, last), axis=2 if last else 1))


def best(count: int = 12) -> onnx.ModelProto:
    """YOLOv10: joined, taken apart, the best places gathered: (1, count, box + score + class)."""
    b = Builder()
    y = b.add("Transpose", b.add("Concat", *_decoded(b, False), axis=1), perm=[0, 2, 1])
    boxes, scores = b.split(y, 2, 4, CLASSES)
    highest = b.add("ReduceMax", scores, axes=[2], keepdims=0)
    top, where = b.add("TopK", highest, np.array([count], np.int64), out=2, axis=1)
    column = b.add("Unsqueeze", where, np.array([2], np.int64))
    boxes = b.add("GatherElements", boxes, b.add("Tile", column, np.array([1, 1, 4], np.int64)), axis=1)
    scores = b.add("GatherElements", scores, b.add("Tile", column, np.array([1, 1, CLASSES], np.int64)), axis=1)
    label = b.add("Cast", b.add("ArgMax", scores, axis=2, keepdims=1), to=TensorProto.FLOAT)
    return b.model(b.add("Concat", boxes, b.add("Unsqueeze", top, np.array([2], np.int64)), label, axis=2))


def apart(last: bool) -> onnx.ModelProto:
    """What non-maximum suppression takes: boxes (1, places, 4), scores (1, classes, places) or as the boxes."""
    b = Builder()
    box, score = _decoded(b, True)
    return b.model(box, score if last else b.add("Transpose", score, perm=[0, 2, 1]))


def centres() -> onnx.ModelProto:
    """CenterNet: heatmap, size and offset, each a map."""
    b = Builder()
    x = b.levels()[0]
    size = b.conv(x, WIDTH, 2, bias=10.0, spread=8.0)
    return b.model(b.add("Sigmoid", b.logits(x)), size, b.conv(x, WIDTH, 2))


def priors() -> onnx.ModelProto:
    """SSD: boxes relative to priors, and a Softmax over the classes."""
    b = Builder()
    boxes, scores = [], []
    for x, side in zip(b.levels(), SIDES, strict=True):
        for found, y, size in ((boxes, b.boxes(x), 4), (scores, b.logits(x), CLASSES)):
            found.append(b.reshape(b.add("Transpose", y, perm=[0, 2, 3, 1]), 1, side * side, size))
    return b.model(b.add("Concat", *boxes, axis=1), b.add("Softmax", b.add("Concat", *scores, axis=1), axis=2))


def queries(join: bool) -> onnx.ModelProto:
    """DETR: class logits, and boxes behind a Sigmoid; or RT-DETR's export, which joins boxes and scores."""
    b = Builder()
    x = b.levels()[1]
    tokens = b.add("Transpose", b.reshape(x, 1, WIDTH, SIDES[1] ** 2), perm=[0, 2, 1])

    def linear(y: str, c1: int, c2: int, bias: float, spread: float) -> str:
        weight = b.rng.standard_normal((c1, c2)) * spread / np.sqrt(c1)
        return str(b.add("Add", b.add("MatMul", y, weight), np.full(c2, bias)))

    logits = linear(tokens, WIDTH, CLASSES, -4.0, 4.0)
    hidden = b.add("Relu", linear(tokens, WIDTH, WIDTH, 0.0, 1.0))
    boxes = b.add("Sigmoid", linear(hidden, WIDTH, 4, 0.0, 2.0))
    if join:
        return b.model(b.add("Concat", boxes, b.add("Sigmoid", logits), axis=2))
    return b.model(logits, boxes)


JOINED: dict[str, Callable[[], onnx.ModelProto]] = {
    "yolov5, split": lambda: anchored(False),
    "yolov5, slices": lambda: anchored(True),
    "yolox": lambda: objectness(False),
    "yolox, decoded": lambda: objectness(True),
    "yolov8": lambda: joined(False),
    "yolov8, transposed": lambda: joined(True),
    "rt-detr": lambda: queries(True),
}
"""Scores and positions in one output."""

APART: dict[str, Callable[[], onnx.ModelProto]] = {
    "before suppression": lambda: apart(False),
    "before suppression, transposed": lambda: apart(True),
    "centernet": centres,
    "ssd": priors,
    "detr": lambda: queries(False),
}
"""Each in an output of its own."""

KINDS = {**JOINED, **APART, "yolov10": best}


def frames(count: int, seed: int = 0) -> list[np.ndarray]:
    rng = np.random.default_rng(seed)
    coarse = rng.random((count, 1, 3, 8, 8), np.float32).repeat(SIZE // 8, 3).repeat(SIZE // 8, 4)
    return list(coarse + rng.normal(0, 0.05, coarse.shape).astype(np.float32))
