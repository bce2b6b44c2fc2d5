"""A detector of YOLOv8's structure as ONNX, and small pictures with boxes.

Structure alone, from its public description: a stem and four stages of C2f blocks with SPPF at the end, a pyramid up
and down, and for each of three strides a branch of box logits (16 for each side) and one of class logits; a softmax and
an expectation make distances of the box logits (DFL), which become (x, y, width, height) in pixels and stand above the
sigmoids of the classes in one output, (1, 4 + classes, anchors). BatchNorm is in the convolutions, as exporters leave
it. No weights and no code are anybody else's.
"""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import onnx
from onnx import helper, numpy_helper

BINS = 16
STRIDES = (8, 16, 32)
COLOURS = ((230, 40, 40), (40, 210, 60), (50, 70, 235), (235, 220, 50))
NAMES = ("red", "green", "blue", "yellow")


class _Builder:
    def __init__(self, seed: int) -> None:
        self.nodes: list[onnx.NodeProto] = []
        self.weights: dict[str, np.ndarray] = {}
        self.rng = np.random.default_rng(seed)

    def add(self, op: str, inputs: list[str], name: str, outputs: int = 1, **attrs: Any) -> Any:
        outs = [f"{name}_output_{i}" for i in range(outputs)]
        self.nodes.append(helper.make_node(op, inputs, outs, name=name, **attrs))
        return outs[0] if outputs == 1 else outs

    def constant(self, name: str, value: Any, dtype: Any = np.float32) -> str:
        self.weights[name] = np.asarray(value, dtype)
        return name

    def plain(self, x: str, c1: int, c2: int, k: int, s: int, name: str) -> str:
        spread = (c1 * k * k * 0.36) ** -0.5  # SiLU of unit Gaussians has a mean square of 0.36
        gains = self.rng.lognormal(0, 0.3, (c2, 1, 1, 1))
        weight = self.rng.standard_normal((c2, c1, k, k)) * spread * gains
        wires = [x, self.constant(f"{name}.weight", weight), self.constant(f"{name}.bias", self.rng.normal(0, 0.2, c2))]
        return self.add("Conv", wires, f"/{name}/Conv", kernel_shape=[k, k], strides=[s, s], pads=[k // 2] * 4)

    def conv(self, x: str, c1: int, c2: int, k: int, s: int, name: str) -> str:
        y = self.plain(x, c1, c2, k, s, f"{name}.conv")
        return self.add("Mul", [y, self.add("Sigmoid", [y], f"/{name}/Sigmoid")], f"/{name}/Mul")

    def c2f(self, x: str, c1: int, c2: int, n: int, shortcut: bool, name: str) -> str:
        half = c2 // 2
        y = self.conv(x, c1, c2, 1, 1, f"{name}.cv1")
        parts = self.add(
            "Split", [y, self.constant(f"{name}.split", [half] * 2, np.int64)], f"/{name}/Split", 2, axis=1
        )
        for i in range(n):
            inner = self.conv(parts[-1], half, half, 3, 1, f"{name}.m.{i}.cv1")
            inner = self.conv(inner, half, half, 3, 1, f"{name}.m.{i}.cv2")
            parts.append(self.add("Add", [parts[-1], inner], f"/{name}/m.{i}/Add") if shortcut else inner)
        return self.conv(self.add("Concat", parts, f"/{name}/Concat", axis=1), half * (2 + n), c2, 1, 1, f"{name}.cv2")

    def sppf(self, x: str, c: int, name: str) -> str:
        y = [self.conv(x, c, c // 2, 1, 1, f"{name}.cv1")]
        for i in range(3):
            y.append(self.add("MaxPool", y[-1:], f"/{name}/m_{i}", kernel_shape=[5, 5], pads=[2] * 4, strides=[1, 1]))
        return self.conv(self.add("Concat", y, f"/{name}/Concat", axis=1), c * 2, c, 1, 1, f"{name}.cv2")

    def up(self, x: str, name: str) -> str:
        scales = self.constant(f"{name}.scales", [1, 1, 2, 2])
        return self.add(
            "Resize", [x, "", scales], f"/{name}/Resize", mode="nearest", nearest_mode="floor",
            coordinate_transformation_mode="asymmetric",
        )  # fmt: skip


def yolov8(size: int = 160, base: int = 8, classes: int = 4, shared: bool = True, seed: int = 0) -> onnx.ModelProto:
    """The network. `base` 16 with 80 classes has the 3.15 million parameters of YOLOv8n.

    `shared`: box and class logits also pass one Concat and Split before they are decoded, as older exports have it.
    """
    b = _Builder(seed)
    w = [base * 2**i for i in range(5)]
    y = b.conv("images", 3, w[0], 3, 2, "model.0")
    y = b.conv(y, w[0], w[1], 3, 2, "model.1")
    y = b.c2f(y, w[1], w[1], 1, True, "model.2")
    y = b.conv(y, w[1], w[2], 3, 2, "model.3")
    p3 = b.c2f(y, w[2], w[2], 2, True, "model.4")
    y = b.conv(p3, w[2], w[3], 3, 2, "model.5")
    p4 = b.c2f(y, w[3], w[3], 2, True, "model.6")
    y = b.conv(p4, w[3], w[4], 3, 2, "model.7")
    y = b.c2f(y, w[4], w[4], 1, True, "model.8")
    p5 = b.sppf(y, w[4], "model.9")
    y = b.add("Concat", [b.up(p5, "model.10"), p4], "/model.11/Concat", axis=1)
    n4 = b.c2f(y, w[4] + w[3], w[3], 1, False, "model.12")
    y = b.add("Concat", [b.up(n4, "model.13"), p3], "/model.14/Concat", axis=1)
    n3 = b.c2f(y, w[3] + w[2], w[2], 1, False, "model.15")
    y = b.add("Concat", [b.conv(n3, w[2], w[2], 3, 2, "model.16"), n4], "/model.17/Concat", axis=1)
    n4 = b.c2f(y, w[2] + w[3], w[3], 1, False, "model.18")
    y = b.add("Concat", [b.conv(n4, w[3], w[3], 3, 2, "model.19"), p5], "/model.20/Concat", axis=1)
    n5 = b.c2f(y, w[3] + w[4], w[4], 1, False, "model.21")
    output = _detect(b, [n3, n4, n5], w[2:], size, classes, shared)
    b.nodes[-1].output[0] = output = "output0"
    graph = helper.make_graph(
        b.nodes, "detector",
        [helper.make_tensor_value_info("images", onnx.TensorProto.FLOAT, [1, 3, size, size])],
        [helper.make_tensor_value_info(output, onnx.TensorProto.FLOAT, [1, 4 + classes, anchors(size)[0].shape[1]])],
        [numpy_helper.from_array(array, name) for name, array in b.weights.items()],
    )  # fmt: skip
    return helper.make_model(graph, opset_imports=[helper.make_opsetid("", 17)], ir_version=8)


def anchors(size: int) -> tuple[np.ndarray, np.ndarray]:
    """Centres of the cells, (2, anchors) in cells, and the stride of each, (anchors,)."""
    points, strides = [], []
    for stride in STRIDES:
        side = size // stride
        v, u = np.mgrid[:side, :side] + 0.5
        points.append(np.stack([u.ravel(), v.ravel()]))
        strides.append(np.full(side * side, stride))
    return np.concatenate(points, 1).astype(np.float32), np.concatenate(strides).astype(np.float32)


def _detect(b: _Builder, levels: list[str], widths: list[int], size: int, classes: int, shared: bool) -> str:
    box_width, class_width = max(16, widths[0] // 4, BINS * 4), max(widths[0], min(classes, 100))
    boxes, scores, both = [], [], []
    for i, (level, width) in enumerate(zip(levels, widths, strict=True)):
        heads = []
        for branch, inner, out in (("cv2", box_width, 4 * BINS), ("cv3", class_width, classes)):
            name = f"model.22.{branch}.{i}"
            y = b.conv(level, width, inner, 3, 1, f"{name}.0")
            y = b.conv(y, inner, inner, 3, 1, f"{name}.1")
            heads.append(b.plain(y, inner, out, 1, 1, f"{name}.2"))
        if shared:
            joined = b.add("Concat", heads, f"/model.22/Concat_{i}", axis=1)
            rows = b.constant(f"rows{i}", [1, 4 * BINS + classes, -1], np.int64)
            both.append(b.add("Reshape", [joined, rows], f"/model.22/Reshape_{i}"))
        else:
            for part, own, rows in ((boxes, heads[0], 4 * BINS), (scores, heads[1], classes)):
                shape = b.constant(f"rows{rows}", [1, rows, -1], np.int64)
                part.append(b.add("Reshape", [own, shape], f"/model.22/Reshape_{i}_{rows}"))
    if shared:
        joined = b.add("Concat", both, "/model.22/Concat_3", axis=2)
        sizes = b.constant("parts", [4 * BINS, classes], np.int64)
        box, logits = b.add("Split", [joined, sizes], "/model.22/Split", 2, axis=1)
    else:
        box = b.add("Concat", boxes, "/model.22/Concat_box", axis=2)
        logits = b.add("Concat", scores, "/model.22/Concat_cls", axis=2)
    points, strides = anchors(size)
    y = b.add("Reshape", [box, b.constant("bins", [1, 4, BINS, points.shape[1]], np.int64)], "/model.22/dfl/Reshape")
    y = b.add("Transpose", [y], "/model.22/dfl/Transpose", perm=[0, 2, 1, 3])
    y = b.add("Softmax", [y], "/model.22/dfl/Softmax", axis=1)
    numbers = b.constant("model.22.dfl.conv.weight", np.arange(BINS).reshape(1, BINS, 1, 1))
    y = b.add("Conv", [y, numbers], "/model.22/dfl/conv/Conv", kernel_shape=[1, 1])
    y = b.add("Reshape", [y, b.constant("sides", [1, 4, points.shape[1]], np.int64)], "/model.22/dfl/Reshape_1")
    first, last = b.add("Split", [y, b.constant("twos", [2, 2], np.int64)], "/model.22/Split_1", 2, axis=1)
    centres = b.constant("anchors", points[None])
    low = b.add("Sub", [centres, first], "/model.22/Sub")
    high = b.add("Add", [centres, last], "/model.22/Add")
    middle = b.add("Div", [b.add("Add", [low, high], "/model.22/Add_1"), b.constant("two", 2.0)], "/model.22/Div")
    extent = b.add("Sub", [high, low], "/model.22/Sub_1")
    y = b.add("Concat", [middle, extent], "/model.22/Concat_4", axis=1)
    pixels = b.add("Mul", [y, b.constant("strides", strides[None, None])], "/model.22/Mul")
    sigmoid = b.add("Sigmoid", [logits], "/model.22/Sigmoid")
    return str(b.add("Concat", [pixels, sigmoid], "/model.22/Concat_5", axis=1))


def picture(seed: int, height: int = 160, width: int = 160) -> tuple[np.ndarray, np.ndarray]:
    """A picture (height, width, 3) uint8 with coloured blocks on a noisy ground, and their boxes.

    Boxes are (objects, 5): class, then centre, width and height as shares of the picture's sides.
    """
    rng = np.random.default_rng(seed)
    ground = rng.uniform(60, 170, 3) + rng.normal(0, 12, (height, width, 1)) + rng.normal(0, 6, (height, width, 3))
    taken = np.zeros((height, width), bool)
    boxes = []
    for _ in range(12):
        kind = int(rng.integers(len(COLOURS)))
        h, w = (int(rng.uniform(0.12, 0.5) * side) for side in (height, width))
        top, left = int(rng.integers(0, height - h)), int(rng.integers(0, width - w))
        if taken[top : top + h, left : left + w].any() or len(boxes) == 4:
            continue
        taken[max(top - 6, 0) : top + h + 6, max(left - 6, 0) : left + w + 6] = True
        shade = rng.uniform(0.75, 1.0)
        ground[top : top + h, left : left + w] = np.array(COLOURS[kind]) * shade + rng.normal(0, 8, (h, w, 3))
        boxes.append([kind, (left + w / 2) / width, (top + h / 2) / height, w / width, h / height])
    return ground.clip(0, 255).astype(np.uint8), np.array(boxes).reshape(-1, 5)


def write_coco(folder: Path, count: int = 12, size: tuple[int, int] = (120, 160), seed: int = 0) -> Path:
    """A folder as COCO128 is laid out: images/train2017/*.jpg and labels/train2017/*.txt."""
    from PIL import Image

    for kind in ("images", "labels"):
        (folder / kind / "train2017").mkdir(parents=True, exist_ok=True)
    for i in range(count):
        rgb, boxes = picture(seed + i, *size)
        Image.fromarray(rgb).save(folder / "images" / "train2017" / f"{i:012d}.jpg", quality=95)
        lines = [f"{int(row[0])} " + " ".join(f"{value:.6f}" for value in row[1:]) for row in boxes]
        (folder / "labels" / "train2017" / f"{i:012d}.txt").write_text("\n".join(lines) + "\n", "utf-8")
    return folder


def detector(size: int = 160, shared: bool = True) -> onnx.ModelProto:
    """The network with weights that find the coloured blocks of `picture`: base 6, 0.59 million parameters.

    ``benchmarks/train_detector.py`` made them, in 2500 steps on pictures that nobody else draws.
    """
    proto = yolov8(size, 6, len(COLOURS), shared)
    with np.load(Path(__file__).with_name("yolov8_weights.npz")) as trained:
        for tensor in proto.graph.initializer:
            if tensor.name in trained.files:
                tensor.CopyFrom(numpy_helper.from_array(trained[tensor.name].astype(np.float32), tensor.name))
    return proto
