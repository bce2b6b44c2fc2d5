"""How single operators are spelled in others: arithmetic, reductions, normalisations and layers.

Moved data is in `leadline.graph.spelled_moves`.
"""

from __future__ import annotations

import math

import numpy as np

from leadline.graph.operators import logistic, softmax
from leadline.graph.spelled_moves import MOVES
from leadline.graph.spelling import Speller, Spelling

LONGEST = 2048
"""Elements along an axis that a triangular matrix may sum up."""


def chain(s: Speller) -> str | None:
    """Max, Min and Sum of many as such of two; Mean as a sum and a factor."""
    names, kind = s.node.inputs, s.node.op_type
    if len(names) == 1 or (len(names) == 2 and kind in ("Max", "Min")):
        return None
    two = "Add" if kind in ("Sum", "Mean") else kind
    result = names[0]
    for name in names[1:]:
        result = s.put(two, [result, name], np.broadcast_shapes(s.shape(result), s.shape(name)))
    return s.put("Mul", [result, s.scalar(1 / len(names))], s.shape(result)) if kind == "Mean" else result


def power(s: Speller) -> str | None:
    """x³ and x⁴ as products, 1/x and 1/√x as quotients."""
    exponent, x = s.constant(1), s.node.inputs[0]
    shape = s.shape(x)
    if exponent is None or exponent.size != 1 or x not in s.graph.values or shape != s.shape(s.node.outputs[0]):
        return None
    match exponent.item():
        case 3 | 4:
            square = s.put("Mul", [x, x], shape)
            return s.put("Mul", [square, x if exponent.item() == 3 else square], shape)
        case -0.5:
            return s.put("Div", [s.scalar(1), s.put("Sqrt", [x], shape)], shape)
        case -1:
            return s.put("Reciprocal", [x], shape)
    return None


def inverse(s: Speller) -> str:
    """1/x"""
    x = s.node.inputs[0]
    return s.put("Div", [s.scalar(1), x], s.shape(x))


def clamp(s: Speller) -> str | None:
    """A lower bound as Relu(x - bound) + bound, behind the upper one."""
    x, low, high = s.node.inputs[0], s.constant(1), s.constant(2)
    has_high = len(s.node.inputs) > 2 and s.node.inputs[2]
    if low is None or low.size != 1 or (has_high and (high is None or high.item() < low.item())):
        return None
    shape = s.shape(x)
    if high is not None and high.item() < np.finfo(np.float32).max:
        x = s.put("Clip", [x, "", s.node.inputs[2]], shape)
    above = s.put("Relu", [s.put("Add", [x, s.scalar(-low.item())], shape)], shape)
    return s.put("Add", [above, s.scalar(low.item())], shape)


def sigmoid(s: Speller) -> str | None:
    """a / (1 + Exp(z)) as a Sigmoid(-z)"""
    z = logistic(s.graph, s.node)
    shape = s.shape(s.node.outputs[0])
    if z is None or z not in s.graph.values or (s.node.op_type == "Div" and s.shape(s.node.inputs[1]) != s.shape(z)):
        return None
    writer = s.graph.producer(z)
    if writer is not None and writer.op_type == "Neg":
        x = writer.inputs[0]
    else:
        x = s.put("Mul", [z, s.scalar(-1)], s.shape(z))
    gate = s.put("Sigmoid", [x], s.shape(z))
    top = s.constant(0) if s.node.op_type == "Div" else np.ones(())
    if top is not None and top.size == 1 and top.item() == 1 and shape == s.shape(z):
        return gate
    return s.put("Mul", [s.node.inputs[0], gate], shape)


def softmax_in_pieces(s: Speller) -> str | None:
    whole = softmax(s.graph, s.node)
    if whole is None or s.shape(whole[0]) != s.shape(s.node.outputs[0]):
        return None
    x, axis = whole
    return s.put("Softmax", [x], s.shape(x), axis=axis)


def softsign(s: Speller) -> str:
    x = s.node.inputs[0]
    size = s.put("Abs", [x], s.shape(x))
    return s.put("Div", [x, s.put("Add", [size, s.scalar(1)], s.shape(x))], s.shape(x))


def selu(s: Speller) -> str:
    x, attrs = s.node.inputs[0], s.node.attrs
    curve = s.put("Elu", [x], s.shape(x), alpha=attrs.get("alpha", 1.67326319217681884765625))
    return s.put("Mul", [curve, s.scalar(attrs.get("gamma", 1.05070102214813232421875))], s.shape(x))


def celu(s: Speller) -> str:
    """alpha Elu(x / alpha), with an alpha of 1 inside."""
    x, alpha = s.node.inputs[0], float(s.node.attrs.get("alpha", 1.0))
    if alpha == 1:
        return s.put("Elu", [x], s.shape(x), alpha=1.0)
    curve = s.put("Elu", [s.put("Mul", [x, s.scalar(1 / alpha)], s.shape(x))], s.shape(x), alpha=1.0)
    return s.put("Mul", [curve, s.scalar(alpha)], s.shape(x))


def thresholded(s: Speller) -> str:
    x = s.node.inputs[0]
    above = s.put("Greater", [x, s.scalar(s.node.attrs.get("alpha", 1.0))], s.shape(x))
    return s.put("Where", [above, x, s.scalar(0)], s.shape(x))


def truth(s: Speller) -> str:
    """A Cast of truth values to float chooses between 1 and 0."""
    return s.put("Where", [s.node.inputs[0], s.scalar(1), s.scalar(0)], s.shape(s.node.outputs[0]))


def negation(s: Speller) -> str:
    """A product, which has a grid."""
    x = s.node.inputs[0]
    return s.put("Mul", [x, s.scalar(-1)], s.shape(x))


def aside(s: Speller) -> str:
    """Negated twice behind, which nothing quantises: the function's own result stays in float."""
    x = s.node.inputs[0]
    result = s.put(s.node.op_type, [x], s.shape(x))
    return s.put("Neg", [s.put("Neg", [result], s.shape(x))], s.shape(x))


def flat_silu(s: Speller) -> str:
    """x Sigmoid(x) on one row."""
    x = next(name for name in s.node.inputs if f"{name}" in s.graph.values and not _is_gate(s, name))
    flat = s.reshape(x, _flat(s.shape(x)))
    gate = s.put("Sigmoid", [flat], s.shape(flat))
    return s.reshape(s.put("Mul", [flat, gate], s.shape(flat)), s.shape(x))


def _is_gate(s: Speller, name: str) -> bool:
    writer = s.graph.producer(name)
    return writer is not None and writer.op_type == "Sigmoid"


def _flat(shape: tuple[int, ...]) -> tuple[int, ...]:
    return (*shape[:2], 1, math.prod(shape[2:]))


def _axes(s: Speller) -> list[int] | None:
    """Of a reduction; None where it does nothing."""
    rank, axes = len(s.shape(s.node.inputs[0])), s.constant(1)
    if axes is None or not axes.size:
        return None if s.node.attrs.get("noop_with_empty_axes") else list(range(rank))
    return sorted(int(axis) % rank for axis in axes.ravel())


def _reduced(s: Speller, kind: str, x: str, axes: list[int], keepdims: int) -> str:
    shape = [1 if axis in axes else size for axis, size in enumerate(s.shape(x))]
    if not keepdims:
        shape = [size for axis, size in enumerate(s.shape(x)) if axis not in axes]
    return s.put(kind, [x, s.ints("axes", axes)], shape, keepdims=keepdims)


def reduction(s: Speller) -> str | None:
    """Sums of absolute values, of squares, and logarithms of sums."""
    axes, keep, kind, x = _axes(s), int(s.node.attrs.get("keepdims", 1)), s.node.op_type, s.node.inputs[0]
    if axes is None or x not in s.graph.values:
        return None
    if kind == "ReduceL1":
        return _reduced(s, "ReduceSum", s.put("Abs", [x], s.shape(x)), axes, keep)
    if kind in ("ReduceSumSquare", "ReduceL2"):
        total = _reduced(s, "ReduceSum", s.put("Mul", [x, x], s.shape(x)), axes, keep)
        return s.put("Sqrt", [total], s.shape(total)) if kind == "ReduceL2" else total
    if kind == "ReduceLogSum":
        total = _reduced(s, "ReduceSum", x, axes, keep)
        return s.put("Log", [total], s.shape(total))
    largest = _reduced(s, "ReduceMax", x, axes, 1)  # ReduceLogSumExp, which must not overflow
    away = s.put("Exp", [s.put("Sub", [x, largest], s.shape(x))], s.shape(x))
    total = _reduced(s, "ReduceSum", away, axes, 1)
    logarithm = s.put("Add", [s.put("Log", [total], s.shape(total)), largest], s.shape(total))
    return s.reshape(logarithm, s.shape(s.node.outputs[0]))


def local_response(s: Speller) -> str | None:
    """LRN: squares summed over neighbouring channels by a 1x1 convolution, and a power."""
    x, attrs = s.node.inputs[0], s.node.attrs
    shape, size = s.shape(x), int(attrs["size"])
    channels = np.arange(shape[1])
    distance = channels[None, :] - channels[:, None]  # input minus output channel
    near = (distance >= -((size - 1) // 2)) & (distance <= size // 2)
    weight = (near * (attrs.get("alpha", 1e-4) / size)).astype(np.float32)
    bias = np.full(shape[1], attrs.get("bias", 1.0), np.float32)
    ones = [1] * (len(shape) - 2)
    square = s.put("Mul", [x, x], shape)
    inputs = [square, s.store("weight", weight.reshape(*weight.shape, *ones)), s.store("bias", bias)]
    attributes = {"kernel_shape": ones, "strides": ones, "dilations": ones, "pads": [0] * 2 * len(ones), "group": 1}
    total = s.put("Conv", inputs, shape, **attributes)
    factor = s.put("Pow", [total, s.scalar(-float(attrs.get("beta", 0.75)))], shape)
    return s.put("Mul", [x, factor], shape)


def layer_norm(s: Speller) -> str | None:
    """Over several axes: over one that they are laid out along."""
    x, shape = s.node.inputs[0], s.shape(s.node.inputs[0])
    axis = int(s.node.attrs.get("axis", -1)) % len(shape)
    if axis == len(shape) - 1:
        return None
    size = math.prod(shape[axis:])
    affine = []
    for position, what in ((1, "gain"), (2, "offset")):
        array = s.constant(position)
        if array is None and position < len(s.node.inputs) and s.node.inputs[position]:
            return None
        if array is not None:
            affine.append(s.store(what, np.broadcast_to(array, shape[axis:]).reshape(size)))
    flat = s.reshape(x, (*shape[:axis], size))
    attrs = {key: value for key, value in s.node.attrs.items() if key != "axis"}
    return s.reshape(s.put("LayerNormalization", [flat, *affine], s.shape(flat), axis=-1, **attrs), shape)


def running_sum(s: Speller) -> str | None:
    """CumSum as a layer whose weight is a triangle of ones."""
    x, along = s.node.inputs[0], s.constant(1)
    shape = s.shape(x)
    if along is None or s.graph.values[x].dtype != np.float32:
        return None
    axis = int(along.item()) % len(shape)
    if shape[axis] > LONGEST:
        return None
    order = [other for other in range(len(shape)) if other != axis] + [axis]
    later = np.arange(shape[axis])[:, None] - np.arange(shape[axis])[None, :]  # output minus input position
    later = -later if s.node.attrs.get("reverse") else later
    weight = (later > 0 if s.node.attrs.get("exclusive") else later >= 0).astype(np.float32)
    turned = s.transpose(x, order)
    rows = s.reshape(turned, (math.prod(shape) // shape[axis], shape[axis]))
    summed = s.put("Gemm", [rows, s.store("triangle", weight)], s.shape(rows), transB=1)
    return s.transpose(s.reshape(summed, s.shape(turned)), np.argsort(order).tolist())


def grouped_transpose(s: Speller) -> str | None:
    """ConvTranspose in groups as one whose weights between groups are zero."""
    weight, groups = s.constant(1), int(s.node.attrs.get("group", 1))
    if weight is None:
        return None
    inputs, outputs = weight.shape[0] // groups, weight.shape[1]
    whole = np.zeros((weight.shape[0], outputs * groups, *weight.shape[2:]), np.float32)
    for group in range(groups):
        rows = slice(group * inputs, (group + 1) * inputs)
        whole[rows, group * outputs : (group + 1) * outputs] = weight[rows]
    attrs = s.node.attrs | {"group": 1}
    names = [s.node.inputs[0], s.store("weight", whole), *s.node.inputs[2:]]
    return s.put("ConvTranspose", names, s.shape(s.node.outputs[0]), **attrs)


SPELLINGS: dict[str, Spelling] = {
    "Max": chain, "Min": chain, "Sum": chain, "Mean": chain, "Pow": power, "Softsign": softsign, "Selu": selu,
    "Celu": celu, "ThresholdedRelu": thresholded, "Cast of truth values": truth, "Log": aside,
    "Softplus": aside, "Clip above zero": clamp, "Reciprocal of Sqrt": inverse, "Sigmoid in pieces": sigmoid,
    "Softmax in pieces": softmax_in_pieces, "Neg": negation, "SiLU of 9 to 12 rows": flat_silu,
    "ReduceL1": reduction, "ReduceL2": reduction, "ReduceSumSquare": reduction, "ReduceLogSum": reduction,
    "ReduceLogSumExp": reduction, "LRN": local_response, "LayerNormalization": layer_norm, "CumSum": running_sum,
    "ConvTranspose in groups": grouped_transpose,
} | MOVES  # fmt: skip
"""By `operators.variant`. All compute the same function in float, but for the order of sums."""
