"""How moved and resized data is spelled in the simplest of moves."""

from __future__ import annotations

import math

import numpy as np
from numpy.typing import NDArray

from leadline.graph.evaluate import run_node
from leadline.graph.ir import Node
from leadline.graph.spelling import Speller, Spelling


def by_position(s: Speller) -> str | None:
    """A move whose every source is known beforehand as one Gather from all elements.

    The node itself, run on positions instead of values, tells where each element comes from.
    """
    data, rest = s.node.inputs[0], s.node.inputs[1:]
    sources = [data, rest[1]] if s.node.op_type.startswith("Scatter") else [data]
    settings = {name: s.graph.weights[name] for name in rest if name in s.graph.weights}
    if s.node.attrs.get("reduction", "none") != "none" or {*filter(None, rest)} - settings.keys() - {*sources}:
        return None
    positions, start = dict[str, NDArray[np.int64]](), 0
    names = [f"{number}" for number in range(len(s.node.inputs))]
    for name in sources:
        size = math.prod(s.shape(name))
        positions[names[s.node.inputs.index(name)]] = np.arange(start, start + size).reshape(s.shape(name))
        start += size
    fixed = {alias: settings[name] for alias, name in zip(names, s.node.inputs, strict=True) if name in settings}
    inputs = [alias if name else "" for alias, name in zip(names, s.node.inputs, strict=True)]
    node = Node(s.node.op_type, inputs, ["picked"], s.node.name, s.node.attrs)
    picked = run_node(node, positions | fixed, s.graph.opset, s.node.name)["picked"]
    flat = [s.reshape(name, (math.prod(s.shape(name)),)) for name in sources]
    line = flat[0] if len(flat) == 1 else s.put("Concat", flat, (start,), axis=0)
    gathered = s.put("Gather", [line, s.store("positions", picked.ravel())], (picked.size,), axis=0)
    return s.reshape(gathered, picked.shape)


def triangle(s: Speller) -> str | None:
    """Trilu as a product with ones and zeros."""
    x, diagonal = s.node.inputs[0], s.constant(1)
    if len(s.node.inputs) > 1 and s.node.inputs[1] and diagonal is None:
        return None
    ones, offset = np.ones(s.shape(x)[-2:], np.float32), 0 if diagonal is None else int(diagonal.item())
    mask = np.triu(ones, offset) if s.node.attrs.get("upper", 1) else np.tril(ones, offset)
    return s.put("Mul", [x, s.store("mask", mask)], s.shape(x))


def pad(s: Speller) -> str | None:
    """What is not padded with zeros: from positions, or with constants joined on."""
    mode, pads = s.node.attrs.get("mode", "constant"), s.constant(1)
    if pads is None:
        return None
    if mode == "wrap":
        return by_position(s)
    value, axes = s.constant(2), s.constant(3)
    if mode != "constant" or value is None or not value.item() or not np.isfinite(value.item()) or (pads < 0).any():
        return None
    shape, result = list(s.shape(s.node.inputs[0])), s.node.inputs[0]
    which = range(len(shape)) if axes is None else [int(axis) % len(shape) for axis in axes]
    for axis, before, behind in zip(which, pads[: len(which)], pads[len(which) :], strict=True):
        parts = [result]
        for size, at in ((int(before), 0), (int(behind), 2)):
            if size:
                border = [*shape[:axis], size, *shape[axis + 1 :]]
                parts.insert(at, s.store("border", np.full(border, value.item(), np.float32)))
        if len(parts) > 1:
            shape[axis] += int(before) + int(behind)
            result = s.put("Concat", parts, shape, axis=axis)
    return result


def nearest(s: Speller) -> str | None:
    """A Resize that picks neighbours, in one of the two ways that targets agree on, or as a Gather of each axis."""
    shape, out, attrs = s.shape(s.node.inputs[0]), s.shape(s.node.outputs[0]), s.node.attrs
    if attrs.get("coordinate_transformation_mode") == "tf_crop_and_resize":
        return None
    picked = [_picked(s, axis) for axis in range(len(shape))]
    for mode, rounding, shift, up in (("asymmetric", "floor", 0.0, 0.0), ("half_pixel", "round_prefer_ceil", 0.5, 0.5)):
        usual = [np.floor((np.arange(n) + shift) * (size / n) - shift + up) for size, n in zip(shape, out, strict=True)]
        clipped = [np.clip(positions, 0, size - 1) for positions, size in zip(usual, shape, strict=True)]
        if all(np.array_equal(positions, other) for positions, other in zip(picked, clipped, strict=True)):
            how = {"mode": "nearest", "coordinate_transformation_mode": mode, "nearest_mode": rounding}
            if how.items() <= attrs.items() and len(s.node.inputs) > 3 and "axes" not in attrs:
                return None
            return s.put("Resize", [s.node.inputs[0], "", "", s.ints("shape", out)], out, **how)
    result = s.node.inputs[0]
    for axis, positions in enumerate(picked):
        if not np.array_equal(positions, np.arange(shape[axis])):
            partly = [*s.shape(result)[:axis], len(positions), *s.shape(result)[axis + 1 :]]
            result = s.put("Gather", [result, s.store("positions", positions)], partly, axis=axis)
    return result


def _picked(s: Speller, axis: int) -> NDArray[np.int64]:
    """Where each element along an axis comes from: the node itself on a ramp, exact in float32."""
    shape = s.shape(s.node.inputs[0])
    ramp = np.broadcast_to(np.arange(shape[axis], dtype=np.float32).reshape(-1, *[1] * (len(shape) - axis - 1)), shape)
    settings = {name: s.graph.weights[name] for name in s.node.inputs[1:] if name}
    node = Node("Resize", ["ramp", *s.node.inputs[1:]], ["picked"], s.node.name, s.node.attrs)
    sources = run_node(node, {"ramp": np.ascontiguousarray(ramp)} | settings, s.graph.opset, s.node.name)["picked"]
    first = tuple(slice(None) if other == axis else 0 for other in range(len(shape)))
    return sources[first].astype(np.int64)


def resized(s: Speller) -> str | None:
    """A Resize with a filter as a layer along each axis, whose weight is what the node makes of single ones."""
    shape, out = s.shape(s.node.inputs[0]), s.shape(s.node.outputs[0])
    scales = s.constant(2)
    if s.node.attrs.get("coordinate_transformation_mode") == "tf_crop_and_resize" or len(shape) != 4:
        return None
    if shape[:2] != out[:2]:
        return None
    result = s.node.inputs[0]
    for axis in (2, 3):
        if shape[axis] == out[axis]:
            continue
        ratio = out[axis] / shape[axis] if scales is None else float(scales[axis - (4 - scales.size)])
        weight = _filter(s, shape[axis], out[axis], ratio)
        order = [0, 1, 3, 2] if axis == 2 else [0, 1, 2, 3]
        turned = s.transpose(result, order)
        now = s.shape(turned)
        rows = s.reshape(turned, (math.prod(now[:3]), now[3]))
        summed = s.put("Gemm", [rows, s.store("filter", weight)], (math.prod(now[:3]), out[axis]), transB=1)
        result = s.transpose(s.reshape(summed, (*now[:3], out[axis])), order)
    return result


def _filter(s: Speller, size: int, out: int, ratio: float) -> NDArray[np.float32]:
    """[out, size]: how a Resize along one axis weighs."""
    attrs = {key: value for key, value in s.node.attrs.items() if key != "axes"}
    node = Node("Resize", ["ones", "", "scales"], ["weights"], s.node.name, attrs)
    ones = np.ascontiguousarray(np.eye(size, dtype=np.float32).reshape(size, 1, size, 1))
    feed = {"ones": ones, "scales": np.array([1, 1, ratio, 1], np.float32)}
    weights = run_node(node, feed, s.graph.opset, s.node.name)["weights"]
    return np.ascontiguousarray(weights.reshape(size, out).T)


def ceiled_pool(s: Speller) -> str | None:
    """AveragePool with a last window beyond the border: padded by zeros that count, then put right by constants."""
    x, attrs = s.node.inputs[0], dict(s.node.attrs)
    shape, out = s.shape(x), s.shape(s.node.outputs[0])
    kernel, rank = attrs["kernel_shape"], len(attrs["kernel_shape"])
    strides, dilations = attrs.get("strides", [1] * rank), attrs.get("dilations", [1] * rank)
    pads = attrs.get("pads", [0] * 2 * rank)
    if attrs.get("auto_pad", "NOTSET") not in ("NOTSET", "VALID"):
        return None
    span = [(k - 1) * d + 1 for k, d in zip(kernel, dilations, strict=True)]
    needed = [
        max((o - 1) * stride + reach - size - before, 0)
        for o, stride, reach, size, before in zip(out[2:], strides, span, shape[2:], pads[:rank], strict=True)
    ]
    plain = {"kernel_shape": kernel, "strides": strides, "count_include_pad": 1}
    if any(step != 1 for step in dilations):  # onnxruntime's fused pools know no such attribute
        plain["dilations"] = dilations
    whole = np.ones((1, 1, *shape[2:]), np.float32)
    wide = np.pad(whole, [(0, 0), (0, 0), *zip(pads[:rank], needed, strict=True)])
    wanted, counted = (
        run_node(Node("AveragePool", ["x"], ["y"], s.node.name, how), {"x": ones}, s.graph.opset, s.node.name)["y"]
        for how, ones in ((attrs, whole), (plain, wide))
    )
    if wanted.shape[2:] != out[2:] or counted.shape != wanted.shape:
        return None  # runtimes do not agree on the last window
    ends = [0, 0, *pads[:rank], 0, 0, *needed]
    padded = x
    if any(ends):
        sizes = [*shape[:2], *wide.shape[2:]]
        padded = s.put("Pad", [x, s.ints("pads", ends)], sizes, mode="constant")
    pooled = s.put("AveragePool", [padded], out, **plain)
    return s.put("Mul", [pooled, s.store("counted", wanted / counted)], out)


MOVES: dict[str, Spelling] = {
    "GatherElements": by_position, "GatherND": by_position, "ScatterND": by_position, "ScatterElements": by_position,
    "ReverseSequence": by_position, "Trilu": triangle, "Pad": pad, "Resize, nearest": nearest,
    "Resize with antialias": resized, "AveragePool with ceil_mode": ceiled_pool,
}  # fmt: skip
"""By `operators.variant`."""
