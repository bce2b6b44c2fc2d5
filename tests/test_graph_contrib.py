"""What onnxruntime's optimiser leaves in files comes out as ONNX, and computes the same in onnxruntime."""

from __future__ import annotations

import numpy as np
import pytest
from onnx import helper

from graph_models import FLOAT_NOISE, distance, model, node, ops, random
from leadline.graph import Graph, Session
from leadline.types import InputError

MS = {"domain": "com.microsoft"}
VECTOR, MATRIX = random(8), random(8, 8)
PICTURE = {"shape": (1, 3, 6, 6), "w": random(4, 3, 3, 3), "b": random(4)}


def fused(op_type, inputs, outputs="y", **attrs):
    return node(op_type, inputs, outputs, **MS, **attrs)


SUMMED = helper.make_node(
    "SkipLayerNormalization", list("xrgbc"), ["n", "", "", "s"], domain="com.microsoft", epsilon=1e-5
)

CASES = {
    "gelu": ([fused("Gelu", "x")], {}, ["Gelu"]),
    "bias-gelu": ([fused("BiasGelu", "x b")], {"b": VECTOR}, ["Add", "Gelu"]),
    "fast-gelu": ([fused("FastGelu", "x")], {}, ["Gelu"]),
    "fast-gelu-bias": ([fused("FastGelu", "x b")], {"b": VECTOR}, ["Add", "Gelu"]),
    "quick-gelu": ([fused("QuickGelu", "x", alpha=1.702)], {}, ["Mul", "Sigmoid", "Mul"]),
    "silu": ([fused("QuickGelu", "x", alpha=1.0)], {}, ["Sigmoid", "Mul"]),
    "matmul": ([fused("FusedMatMul", "x w", alpha=0.5, transB=1)], {"w": random(6, 8)}, None),
    "matmul-left": ([fused("FusedMatMul", "x x", transA=1)], {}, ["Transpose", "MatMul"]),
    "matmul-batch": ([fused("FusedMatMul", "x x", transBatchA=1, transBatchB=1, transB=1)], {}, None),
    "skip-layer-norm": (
        [SUMMED, node("Add", "n s", "y")],
        {"r": random(2, 5, 8), "g": VECTOR, "b": random(8), "c": random(8)},
        ["Add", "Add", "LayerNormalization", "Add"],
    ),
    "skip-rms-norm": (
        [fused("SkipSimplifiedLayerNormalization", "x r g", epsilon=1e-5)],
        {"r": random(2, 5, 8), "g": VECTOR},
        None,
    ),
    "rms-norm": ([node("SimplifiedLayerNormalization", "x g", "y", axis=-1, epsilon=1e-5)], {"g": VECTOR}, None),
    "early-layer-norm": (
        [node("LayerNormalization", "x g b", "y", axis=-1)],
        {"g": VECTOR, "b": random(8), "opset": 13},
        ["LayerNormalization"],
    ),
    **{
        f"conv-{kind}": (
            [fused("FusedConv", "x w b", pads=[1] * 4, activation=kind, **parameters)],
            PICTURE,
            ["Conv", kind],
        )
        for kind, parameters in {
            "Relu": {},
            "Clip": {"activation_params": [0.0, 6.0]},
            "LeakyRelu": {"activation_params": [0.1]},
            "HardSigmoid": {"activation_params": [0.2, 0.5]},
        }.items()
    },
    "conv-sum": (
        [node("Conv", "x v", "z"), fused("FusedConv", "x w b z", pads=[1] * 4, activation="Relu")],
        {**PICTURE, "v": random(4, 3, 1, 1)},
        ["Conv", "Conv", "Add", "Relu"],
    ),
    "gemm": (
        [fused("FusedGemm", "x w b", activation="LeakyRelu", activation_alpha=0.1, transB=1)],
        {"shape": (3, 8), "w": random(6, 8), "b": random(6)},
        ["Gemm", "LeakyRelu"],
    ),
    "attention": (
        [fused("Attention", "x w b", num_heads=2)],
        {"w": random(8, 24), "b": random(24)},
        None,
    ),
    "attention-causal": (
        [fused("Attention", "x w b", num_heads=2, unidirectional=1)],
        {"w": random(8, 24), "b": random(24)},
        None,
    ),
    "multi-head-attention": (
        [
            node("MatMul", "x q", "query"), node("MatMul", "x k", "key"), node("MatMul", "x v", "value"),
            fused("MultiHeadAttention", "query key value b", num_heads=2, scale=0.3),
        ],
        {"q": MATRIX, "k": random(8, 8), "v": random(8, 8), "b": random(24)},
        None,
    ),
}  # fmt: skip


def built(nodes, weights):
    weights = dict(weights)
    proto = model(nodes, weights.pop("shape", (2, 5, 8)), opset=weights.pop("opset", 17), **weights)
    proto.opset_import.append(helper.make_opsetid("com.microsoft", 1))
    return proto


@pytest.mark.parametrize("name", CASES)
def test_fused_operators_are_written_in_onnx(name):
    nodes, weights, want = CASES[name]
    proto = built(nodes, weights)
    graph = Graph.from_model(proto)
    feed = {"x": random(*graph.inputs[0].shape)}
    assert distance(Session(proto, optimize=False).run(feed), Session(graph, optimize=False).run(feed)) < FLOAT_NOISE
    assert not any(item.domain for item in graph.nodes)
    if want is not None:
        assert [op for op in ops(graph) if op != "Reshape"] == want


def test_what_a_fused_operator_says_of_training_must_not_be_read():
    proto = built([fused("SkipLayerNormalization", "x r g b", "n m"), node("Add", "n m", "y")],
                  {"r": random(2, 5, 8), "g": VECTOR, "b": random(8)})  # fmt: skip
    with pytest.raises(InputError, match="only the normalised tensor of 'test' may be read, not the mean"):
        Graph.from_model(proto)


def test_fusions_that_are_refused_say_so():
    proto = built([fused("Attention", "x w b m", num_heads=2)],
                  {"w": random(8, 24), "b": random(24), "m": np.full(2, 5, np.int32)})  # fmt: skip
    with pytest.raises(InputError, match="must have no mask, past or rotation"):
        Graph.from_model(proto)
