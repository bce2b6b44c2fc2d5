"""What onnxruntime's optimiser and exporters that follow it leave in files, outside ONNX or before ONNX had it, written
in ONNX. `RULES` says how: by domain and operator."""

from __future__ import annotations

from itertools import pairwise
from typing import Any

import numpy as np

from leadline.graph.writer import Rule, Writer, ints, real

_MICROSOFT = "com.microsoft"


def swish(write: Writer) -> None:
    """x sigmoid(alpha x)."""
    x, alpha = write.input(0), write.attr("alpha", 1.702)
    write("Mul", x, write("Sigmoid", x if alpha == 1 else write("Mul", x, real(alpha))), to=write.output(0))


def _gelu(approximate: str) -> Rule:
    def rule(write: Writer) -> None:
        x, bias = write.input(0), write.input(1)
        write("Gelu", write("Add", x, bias) if bias else x, to=write.output(0), approximate=approximate)

    return rule


def _matmul(write: Writer) -> None:
    """alpha A B, either matrix transposed, or its batch axes moved behind the rows."""
    sides = []
    for place, side in enumerate("AB"):
        name = write.input(place)
        axes = list(range(len(write.shape(name))))
        if write.attr(f"transBatch{side}", 0) and len(axes) > 2:
            axes = [*axes[1:-1], axes[0], axes[-1]]
        if write.attr(f"trans{side}", 0) and len(axes) > 1:
            axes[-2:] = axes[:-3:-1]
        sides.append(name if axes == sorted(axes) else write("Transpose", name, perm=axes))
    alpha = write.attr("alpha", 1.0)
    product = write("MatMul", *sides, to="" if alpha != 1 else write.output(0))
    if alpha != 1:
        write("Mul", product, real(alpha), to=write.output(0))


def _activated(write: Writer, tensor: str, kind: str, parameters: list[float]) -> None:
    """An activation function that a layer was fused with."""
    names = {"LeakyRelu": ["alpha"], "Elu": ["alpha"], "HardSigmoid": ["alpha", "beta"]}
    if kind in ("", "Clip"):
        bounds = [real(value) for value in parameters] if kind else []
        write("Clip" if kind else "Identity", tensor, *bounds, to=write.output(0))
    elif kind in names or kind in ("Relu", "Sigmoid", "Tanh"):
        attrs: dict[str, Any] = dict(zip(names.get(kind, []), parameters, strict=False))
        write(kind, tensor, to=write.output(0), **attrs)
    else:
        raise write.known.refuse("a layer of {label} must be fused with a known activation function", write.node)


def _conv(write: Writer) -> None:
    """act(conv(x) + z)."""
    attrs = dict(write.node.attrs)
    kind, parameters = attrs.pop("activation", ""), attrs.pop("activation_params", [])
    y = write("Conv", *write.node.inputs[:3], **attrs)
    _activated(write, write("Add", y, write.input(3)) if write.input(3) else y, kind, parameters)


def _gemm(write: Writer) -> None:
    attrs = {name: value for name, value in write.node.attrs.items() if not name.startswith("activation")}
    parameters = [write.attr(f"activation_{name}", None) for name in ("alpha", "beta")]
    y = write("Gemm", *write.node.inputs, **attrs)
    _activated(write, y, write.attr("activation", ""), [value for value in parameters if value is not None])


def _norm(write: Writer, x: str, scale: str, bias: str, epsilon: float, axis: int = -1) -> None:
    """Its first output; the others are of training."""
    for place, what in ((1, "mean"), (2, "deviation")):
        if place < len(write.node.outputs) and write.is_read(write.output(place)):
            raise write.known.refuse(f"only the normalised tensor of {{label}} may be read, not the {what}", write.node)
    inputs = [x, scale, bias] if bias else [x, scale]
    write("LayerNormalization", *inputs, to=write.output(0), axis=axis, epsilon=epsilon)


def _layer_norm(write: Writer) -> None:
    x, scale, bias = (write.input(place) for place in range(3))
    _norm(write, x, scale, bias, write.attr("epsilon", 1e-5), write.attr("axis", -1))


def _rms_norm(write: Writer) -> None:
    attrs = {"axis": write.attr("axis", -1), "epsilon": write.attr("epsilon", 1e-5)}
    write("RMSNormalization", write.input(0), write.input(1), to=write.output(0), opset=23, **attrs)


def _skipped(write: Writer, bias: str) -> str:
    """input + skip + bias, which is the fourth output as well."""
    total = write("Add", write.input(0), write.input(1))
    total = write("Add", total, bias) if bias else total
    if write.output(3):
        write("Identity", total, to=write.output(3))
    return total


def _skip_layer_norm(write: Writer) -> None:
    total = _skipped(write, write.input(4))
    _norm(write, total, write.input(2), write.input(3), write.attr("epsilon", 1e-12))


def _skip_rms_norm(write: Writer) -> None:
    total, epsilon = _skipped(write, write.input(3)), write.attr("epsilon", 1e-12)
    write("RMSNormalization", total, write.input(2), to=write.output(0), opset=23, axis=-1, epsilon=epsilon)


def _expand_dims(write: Writer) -> None:
    axis = write.input(1)
    write("Unsqueeze", write.input(0), write("Reshape", axis, ints(1)), to=write.output(0))


def _packed_attention(write: Writer) -> None:
    """Queries, keys and values from one product; (batch, tokens, features)."""
    plain = not any(write.input(place) for place in range(3, 10))
    if not plain or write.attr("do_rotary", 0) or write.attr("qkv_hidden_sizes", None):
        rule = "an Attention of {label} must have no mask, past or rotation (export again without that fusion)"
        raise write.known.refuse(rule, write.node)
    x, weight, bias = (write.input(place) for place in range(3))
    product = write("MatMul", x, weight)
    product = write("Add", product, bias) if bias else product
    _attend(write, write.split("Split", product, 3, axis=-1, num_outputs=3))


def _multi_head_attention(write: Writer) -> None:
    if write.input(4) or any(write.input(place) for place in range(6, 10)) or len(write.shape(write.input(0))) != 3:
        rule = "a MultiHeadAttention of {label} must have plain queries, keys and values, without padding mask or past"
        raise write.known.refuse(rule + " (export again without that fusion)", write.node)
    parts = [write.input(place) for place in range(3)]
    if not all(parts) or any(len(write.shape(part)) != 3 for part in parts):
        raise write.known.refuse("a MultiHeadAttention of {label} must have three tensors of tokens", write.node)
    if write.input(3):
        widths = [write.shape(part)[-1] for part in parts]
        ends = np.cumsum([0, *widths])
        pieces = [write("Slice", write.input(3), ints(a), ints(b)) for a, b in pairwise(ends)]
        parts = [write("Add", part, piece) for part, piece in zip(parts, pieces, strict=True)]
    _attend(write, parts, write.input(5))


def _attend(write: Writer, parts: list[str], mask: str = "") -> None:
    heads, causal = write.attr("num_heads", 1), int(bool(write.attr("unidirectional", 0)))
    attrs = {"q_num_heads": heads, "kv_num_heads": heads, "is_causal": causal}
    if write.attr("scale", 0.0):
        attrs["scale"] = write.attr("scale", 0.0)
    write("Attention", *parts, mask, to=write.output(0), opset=23, **attrs)


def _renamed(op_type: str) -> Rule:
    def rule(write: Writer) -> None:
        write(op_type, *write.node.inputs, to=write.output(0), **write.node.attrs)

    return rule


RULES: dict[tuple[str, str], Rule] = {
    ("", "LayerNormalization"): _layer_norm,
    ("", "SimplifiedLayerNormalization"): _rms_norm,
    (_MICROSOFT, "Attention"): _packed_attention,
    (_MICROSOFT, "BiasGelu"): _gelu("none"),
    (_MICROSOFT, "ExpandDims"): _expand_dims,
    (_MICROSOFT, "FastGelu"): _gelu("tanh"),
    (_MICROSOFT, "FusedConv"): _conv,
    (_MICROSOFT, "FusedGemm"): _gemm,
    (_MICROSOFT, "FusedMatMul"): _matmul,
    (_MICROSOFT, "Gelu"): _gelu("none"),
    (_MICROSOFT, "MultiHeadAttention"): _multi_head_attention,
    (_MICROSOFT, "QuickGelu"): swish,
    (_MICROSOFT, "SimplifiedLayerNormalization"): _rms_norm,
    (_MICROSOFT, "SkipLayerNormalization"): _skip_layer_norm,
    (_MICROSOFT, "SkipSimplifiedLayerNormalization"): _skip_rms_norm,
    (_MICROSOFT, "TransposeMatMul"): _matmul,
    (_MICROSOFT, "Trilu"): _renamed("Trilu"),
}
