"""What is known of ONNX operators, in one place: which move data, clamp, keep positive factors, are bounded, and where
a tensor's channels lie. Passes, steps and exporters ask here."""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import Any

import numpy as np
from numpy.typing import NDArray

from leadline.graph.ir import DOMAIN, Graph, Layer, Node

RESHAPES = frozenset("Reshape Squeeze Unsqueeze Flatten Identity".split())
"""Give all elements of their first input in their order."""

REARRANGES = frozenset("Reshape Transpose Identity".split())
"""Of the normal form: give each element of their input once."""

PICKS = RESHAPES | frozenset("Transpose Slice Gather Split".split())
"""Give elements of their first input, each from a place that constants tell."""

MOVES_DATA = PICKS | frozenset("Expand Tile MaxPool DepthToSpace SpaceToDepth".split())
"""Outputs hold only values of the first input. (MaxPool's indices are no data.)"""

SELECTS = frozenset("GatherElements GatherND TopK ReduceMax ReduceMin".split())
"""Give elements of their first input, each from a place that data tell. (TopK's indices are no data.)"""

CLAMPS = frozenset("Relu Clip Min".split())
"""Clamps (a Clip or Min with constant bounds) that a grid's own range may perform."""

ABSORBING = frozenset("Conv ConvTranspose Gemm MatMul Add Relu".split())
"""Kernels that clamp on their way out, so that what they write before a clamp exists nowhere."""

ELEMENTWISE = frozenset("Add Sub Mul Div".split())
"""Arithmetic of two operands, broadcast."""

REDUCES = frozenset(
    "ReduceMean ReduceSum ReduceL1 ReduceL2 ReduceSumSquare ReduceMax ReduceMin GlobalAveragePool GlobalMaxPool".split()
)
"""Small where all that they read is small."""

HOMOGENEOUS = frozenset("Relu LeakyRelu PRelu Min Clip MaxPool AveragePool GlobalAveragePool Identity".split())
"""f(s x) = s f(x) for s > 0, channel by channel. A Clip or Min has its bound scaled along."""

CURVED = frozenset("Gelu HardSwish Sigmoid Tanh HardSigmoid Elu Softmax".split())
"""Common functions that are not homogeneous."""

BOUNDED = frozenset("Sigmoid HardSigmoid Softmax".split())
"""Give values from 0 to 1."""

LARGEST = frozenset("Softmax ReduceMax ReduceLogSumExp ArgMax TopK MaxPool GlobalMaxPool".split())
"""What lies far enough below the largest values of their input, or of a row of it, counts for nothing. (A TopK may ask
for the smallest.)"""

SMALLEST = frozenset("ReduceMin ArgMin".split())
"""The same of what lies above the smallest."""

SATURATES = frozenset("Sigmoid Tanh HardSigmoid".split())
"""Hardly change any more a dozen away from zero."""

PER_CHANNEL = frozenset("Resize AveragePool GlobalAveragePool".split())
"""Linear, each channel by itself and all alike, along the axes behind the channels."""

WINDOWS = frozenset("MaxPool AveragePool GlobalAveragePool Resize".split())
"""Read neighbours along the axes behind the second, which they take for the channels."""

RECURRENT = frozenset("LSTM GRU RNN".split())
"""Carry a state along a sequence: (input, matrix of the input, matrix of the state, ...)."""

SHAPE_DEPENDS_ON_DATA = frozenset("Compress NonMaxSuppression NonZero Unique".split())
"""Write as many elements as the data make them."""

_QUANTISED = frozenset("ConvInteger DequantizeLinear DynamicQuantizeLinear MatMulInteger QuantizeLinear".split())

RANDOM = frozenset("Bernoulli Multinomial RandomNormal RandomNormalLike RandomUniform RandomUniformLike".split())

COMPARES = frozenset("Greater GreaterOrEqual Less LessOrEqual Equal".split())
"""Give truth values of two operands, broadcast."""

_CHANNELS_SECOND = frozenset(
    "Conv ConvTranspose BatchNormalization InstanceNormalization GroupNormalization MaxPool AveragePool LpPool "
    "GlobalMaxPool GlobalAveragePool GlobalLpPool DepthToSpace SpaceToDepth LRN".split()
)
"""By definition: (batch, channels, ...)."""


WEIGHTED = frozenset(
    "Conv ConvTranspose Gemm MatMul BatchNormalization InstanceNormalization GroupNormalization LayerNormalization "
    "PRelu LSTM GRU RNN DeformConv".split()
)
"""Multiply by constants that training has found."""

SHAPE_INPUTS: dict[str, tuple[int, ...]] = {
    **dict.fromkeys("AffineGrid CenterCropPad Expand Reshape Split Squeeze Tile TopK Unsqueeze".split(), (1,)),
    **{f"Reduce{what}": (1,) for what in "L1 L2 LogSum LogSumExp Max Mean Min Prod Sum SumSquare".split()},
    **dict.fromkeys(("BlackmanWindow", "ConstantOfShape", "HammingWindow", "HannWindow"), (0,)),
    "Col2Im": (1, 2), "DFT": (1, 2), "MaxUnpool": (2,), "MelWeightMatrix": (0, 1, 2, 3, 4), "OneHot": (1,),
    "Pad": (1, 3), "Range": (0, 1, 2), "Resize": (1, 2, 3), "STFT": (1, 3), "Slice": (1, 2, 3, 4), "Upsample": (1,),
}  # fmt: skip
"""Inputs, by their places, whose values decide the shape of what is written."""


def is_quantised(op_type: str) -> bool:
    """Whether an operator belongs to a network that is quantised already."""
    return op_type in _QUANTISED or op_type.startswith("QLinear")


def moves_data(node: Node) -> bool:
    """Whether its outputs hold only values of its first input."""
    return node.op_type in MOVES_DATA and not node.domain


def variant(graph: Graph, node: Node) -> str:
    """Its operator type, said more closely where targets tell forms of one type apart."""
    kind, attrs, first = node.op_type, node.attrs, (node.inputs or [""])[0]
    shape = graph.shape(node.outputs[0]) if node.outputs[0] in graph.values else ()
    match kind:
        case "Cast" if first in graph.values and graph.values[first].dtype == bool and attrs.get("to") == 1:
            return "Cast of truth values"
        case "ConvTranspose" if node.inputs[1] in graph.weights and attrs.get("group", 1) > 1:
            groups, weight = attrs["group"], graph.shape(node.inputs[1])
            return kind if weight[0] == groups and weight[1] == 1 else f"{kind} in groups"
        case "Conv" | "ConvTranspose" if node.inputs[1] not in graph.weights:
            return f"{kind} of two tensors"
        case "Resize" if attrs.get("antialias"):
            return f"{kind} with antialias"
        case "Resize" if attrs.get("mode", "nearest") == "nearest":
            return f"{kind}, nearest"
        case "AveragePool" if attrs.get("ceil_mode"):
            return f"{kind} with ceil_mode"
        case "AveragePool" if attrs.get("count_include_pad") and any(attrs.get("pads", [])):
            return f"{kind} that counts its padding"
        case "MaxPool" if len(shape) > 4:
            return f"{kind} over three axes"
        case "MaxPool" if any(step != 1 for step in attrs.get("dilations", [])):
            return f"{kind} with dilations"
        case "Clip" if len(node.inputs) > 1 and _is_positive(graph, node.inputs[1]):
            writer = graph.producer(first) if first in graph.values else None
            return "Clip above zero" if writer is not None and writer.op_type in ABSORBING else kind
        case "Reciprocal" if _writes(graph, first, "Sqrt") is not None:
            return "Reciprocal of Sqrt"
        case "Div" | "Reciprocal" if logistic(graph, node) is not None:
            return "Sigmoid in pieces"
        case "Div" if softmax(graph, node) is not None:
            return "Softmax in pieces"
        case "Mul" if len(shape) == 4 and shape[2] in _TORN and _is_silu(graph, node):
            return "SiLU of 9 to 12 rows"
    return kind


_TORN = range(9, 13)


def _is_silu(graph: Graph, node: Node) -> bool:
    """x Sigmoid(x)"""
    for x, gate in (node.inputs, node.inputs[::-1]):
        writer = graph.producer(gate) if gate in graph.values else None
        if writer is not None and writer.op_type == "Sigmoid" and writer.inputs[0] == x:
            return True
    return False


def _is_positive(graph: Graph, name: str) -> bool:
    return name in graph.weights and bool((graph.weights[name] > 0).all())


def _writes(graph: Graph, tensor: str, kind: str) -> Node | None:
    """What writes a tensor, if it is of that type."""
    node = graph.producer(tensor) if tensor in graph.values else None
    return node if node is not None and node.op_type == kind and not node.domain else None


def logistic(graph: Graph, node: Node) -> str | None:
    """z, where a Div or Reciprocal divides by 1 + Exp(z)."""
    total = _writes(graph, node.inputs[-1], "Add")
    for addend, power in () if total is None else (total.inputs, total.inputs[::-1]):
        exp = _writes(graph, power, "Exp")
        constant = graph.weights.get(addend)
        if exp is not None and constant is not None and constant.size == 1 and constant.item() == 1:
            return exp.inputs[0]
    return None


def softmax(graph: Graph, node: Node) -> tuple[str, int] | None:
    """z and the axis, where a Div divides Exp(z), or Exp(z - ReduceMax(z)), by its own sum along one axis."""
    exp, total = _writes(graph, node.inputs[0], "Exp"), _writes(graph, node.inputs[1], "ReduceSum")
    if exp is None or total is None or total.inputs[0] != node.inputs[0] or not total.attrs.get("keepdims", 1):
        return None
    axis = _single_axis(graph, total)
    if axis is None:
        return None
    away = _writes(graph, exp.inputs[0], "Sub")
    largest = None if away is None else _writes(graph, away.inputs[1], "ReduceMax")
    if away is None or largest is None or largest.inputs[0] != away.inputs[0]:
        return exp.inputs[0], axis
    same = largest.attrs.get("keepdims", 1) and _single_axis(graph, largest) == axis
    return (away if same else exp).inputs[0], axis


def _single_axis(graph: Graph, reduction: Node) -> int | None:
    """The only axis that is reduced, from the front."""
    axes = graph.weights.get(reduction.inputs[1]) if len(reduction.inputs) > 1 else None
    rank = len(graph.shape(reduction.inputs[0]))
    return int(axes.item()) % rank if axes is not None and axes.size == 1 else None


def moved_from(graph: Graph) -> dict[str, str]:
    """What each tensor that data movement writes is made of: the tensor in front of the whole run of such operators."""
    sources: dict[str, str] = {}
    for node in graph.nodes:  # in topological order: an input's source is known before its outputs ask for it
        if moves_data(node) and node.inputs[0] in graph.values:
            for output in filter(None, node.outputs):
                if graph.values[output].dtype == graph.values[node.inputs[0]].dtype:
                    sources[output] = sources.get(node.inputs[0], node.inputs[0])
    return sources


def layer_axis(layer: Layer) -> int:
    """Where the channels lie of what a layer reads and writes: a linear layer's last, those of all others second."""
    return -1 if layer.kind == "linear" else 1


def reshaped_axis(before: Sequence[int], after: Sequence[int], axis: int) -> int | None:
    """Where a Reshape puts an axis of the tensor, both from the front; None where it is no axis of its own there."""
    rows = math.prod(before[:axis])
    fits = (at for at, size in enumerate(after) if size == before[axis] and math.prod(after[:at]) == rows)
    return next(fits, None)


def channel_axes(graph: Graph) -> dict[str, int]:
    """The axis of each activation's channels, counted from the front; 0 for a scalar.

    It is 1 for what convolutions, pools and their like read and write, and what is computed from that in shape; else
    the last one, as linear layers have it.
    """
    second: set[str] = set()
    for nodes in (graph.nodes, graph.nodes[::-1]):  # once each way: from what they write, and from what they read
        for node in nodes:
            tensors = [name for name in (*node.inputs, *node.outputs) if name in graph.values]
            shapes = [graph.shape(name) for name in tensors]
            if node.op_type in _CHANNELS_SECOND or node.op_type == "Resize":
                least = 4 if node.op_type == "Resize" else 3
                second.update(name for name, shape in zip(tensors, shapes, strict=True) if len(shape) >= least)
            elif node.op_type not in ("Transpose", "MatMul", "Gemm") and node.domain in ("", DOMAIN):
                alike = len({len(shape) for shape in shapes}) == 1
                alike &= node.op_type == "Concat" or len({shape[1:2] for shape in shapes}) == 1
                if alike and len(shapes[0]) >= 3 and not second.isdisjoint(tensors):
                    second.update(tensors)
    return {name: 1 if name in second else max(len(value.shape) - 1, 0) for name, value in graph.values.items()}


def by_channel(array: NDArray[Any], axis: int) -> NDArray[Any]:
    """A tensor as (channels, everything else), given the axis of its channels; of any rank, a scalar as (1, 1)."""
    whole = np.atleast_1d(array)
    return np.moveaxis(whole, axis, 0).reshape(whole.shape[axis], -1)


def clamp_bounds(graph: Graph, node: Node, output: str) -> tuple[np.float32, np.float32] | None:
    """The narrowest interval that a clamp, which writes `output`, leaves alone; None for any other node."""
    low, high = np.float32(-np.inf), np.float32(np.inf)
    if node.op_type == "Relu":
        return np.float32(0), high
    if node.op_type not in ("Clip", "Min"):
        return None
    inputs = [tensor for tensor in node.inputs if tensor]
    activations = [tensor for tensor in inputs if tensor in graph.values]
    if len(activations) != 1 or len(inputs) == 1 or graph.shape(activations[0]) != graph.shape(output):
        return None
    if node.op_type == "Min":
        return low, np.float32(min(graph.weights[tensor].min() for tensor in inputs if tensor in graph.weights))
    lower, upper = (graph.weights.get(tensor) for tensor in (*node.inputs[1:], "", "")[:2])
    return low if lower is None else np.float32(lower.item()), high if upper is None else np.float32(upper.item())
