"""Small networks and samples for the tests of the steps, the pipeline and the command line."""

from __future__ import annotations

from typing import Any

import numpy as np
import onnx

from graph_models import model, node
from leadline import pipeline
from leadline.graph import Graph, Session
from leadline.pipeline import Quantized
from leadline.recipe import Recipe

SHAPE = (1, 3, 12, 12)


def draw(seed: int, *shape: int, spread: float = 0.3) -> np.ndarray:
    return (np.random.default_rng(seed).standard_normal(shape) * spread).astype(np.float32)


def samples(count: int = 12, shape: tuple[int, ...] = SHAPE, seed: int = 0) -> np.ndarray:
    """`count` samples of an input of this shape, batch axis included, one behind another."""
    return draw(seed, count * shape[0], *shape[1:], spread=1.0)


def factors(channels: int, seed: int = 9) -> np.ndarray:
    """Channel factors over three decades, their extremes always present."""
    ladder = np.logspace(-1.5, 1.5, channels).astype(np.float32)
    return np.random.default_rng(seed).permutation(ladder)


def conv_chain(*between: onnx.NodeProto, depthwise: bool = False, skew: bool = True, **weights: Any) -> onnx.ModelProto:
    """Conv 3 -> 8, the nodes `between` (a -> b), Conv 8 -> 4 (or depthwise 8) to y. Skewed channels want equalising."""
    s = factors(8) if skew else np.ones(8, np.float32)
    w2 = draw(3, 8, 1, 3, 3) * s[:, None, None, None] if depthwise else draw(3, 4, 8, 3, 3)
    tensors = {
        "w1": draw(1, 8, 3, 3, 3) / s[:, None, None, None],
        "b1": draw(2, 8) / s,
        "w2": w2 if depthwise else w2 * s[None, :, None, None],
        "b2": draw(4, w2.shape[0]),
    }
    nodes = [
        node("Conv", "x w1 b1", "a", name="first", pads=[1, 1, 1, 1]),
        *between,
        node("Conv", "b w2 b2", "y", name="second", pads=[1, 1, 1, 1], group=8 if depthwise else 1),
    ]
    return model(nodes, SHAPE, **tensors | weights)


RELU = node("Relu", "a", "b", name="relu")


def conv_relu_conv(skew: bool = True) -> onnx.ModelProto:
    return conv_chain(RELU, skew=skew)


def conv_relu6_depthwise() -> onnx.ModelProto:
    return conv_chain(node("Clip", "a lo hi", "b"), depthwise=True, lo=np.float32(0), hi=np.float32(6))


def gemm_relu_gemm() -> onnx.ModelProto:
    s = factors(10)
    return model(
        [
            node("Gemm", "x w1 b1", "a", name="first", transB=1),
            RELU,
            node("Gemm", "b w2 b2", "y", name="second", transB=1),
        ],
        (32, 16),
        w1=draw(1, 10, 16) / s[:, None],
        b1=draw(2, 10) / s,
        w2=draw(3, 5, 10) * s,
        b2=draw(4, 5),
    )


def residual() -> onnx.ModelProto:
    """A bit of everything that steps meet: residual Add, pooling, data movement, a wide linear layer."""
    nodes = [
        node("Conv", "x w1 b1", "a", name="stem", pads=[1, 1, 1, 1]),
        node("Relu", "a", "b", name="stem_relu"),
        node("Conv", "b w2 b2", "c", name="branch", pads=[1, 1, 1, 1]),
        node("Add", "b c", "d", name="sum"),
        node("MaxPool", "d", "e", name="pool", kernel_shape=[2, 2], strides=[2, 2]),
        node("Transpose", "e", "f", name="last", perm=[0, 2, 3, 1]),
        node("Reshape", "f rows", "g", name="rows_of_it"),
        node("Gemm", "g w3 b3", "h", name="fc", transB=1),
        node("Relu", "h", "i", name="fc_relu"),
        node("Gemm", "i w4 b4", "y", name="head", transB=1),
    ]
    return model(
        nodes, SHAPE, w1=draw(1, 8, 3, 3, 3), b1=draw(2, 8), w2=draw(3, 8, 8, 3, 3), b2=draw(4, 8),
        rows=np.array([1, 288]), w3=draw(5, 128, 288, spread=0.1), b3=draw(6, 128), w4=draw(7, 6, 128), b4=draw(8, 6),
    )  # fmt: skip


def graph(proto: onnx.ModelProto) -> Graph:
    return Graph.from_model(proto)


def quantized(proto: onnx.ModelProto | Graph, recipe: Any = "w8a8", data: Any = None, **options: Any) -> Quantized:
    network = proto if isinstance(proto, Graph) else graph(proto)
    given = samples(shape=network.inputs[0].shape) if data is None else data
    return pipeline.quantize(network, recipe, given, threads=1, **options)


def steps(*given: Any, **fields: Any) -> Recipe:
    return Recipe("test", given, **fields)


def outputs(network: Any, data: np.ndarray, name: str = "x", **options: Any) -> dict[str, np.ndarray]:
    """Every output over all samples, run one batch at a time."""
    with Session(network, threads=1, **options) as session:
        batch = session.inputs[0][2][0]
        runs = [session.run({name: data[i : i + batch]}) for i in range(0, len(data), batch)]
    return {key: np.concatenate([run[key] for run in runs]) for key in runs[0]}


def layers(quantised: Quantized) -> dict[str, Any]:
    return {layer.name: layer for layer in quantised.graph.layers()}
