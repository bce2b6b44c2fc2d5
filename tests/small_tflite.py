"""Small float .tflite networks with random weights, written with the schema classes of ai-edge-litert."""

from __future__ import annotations

from typing import Any

import flatbuffers
import numpy as np
from ai_edge_litert import schema_py_generated as schema
from numpy.typing import NDArray

Array = NDArray[Any]
_TYPES = {np.dtype(np.float32): "FLOAT32", np.dtype(np.int32): "INT32", np.dtype(np.int8): "INT8"}
SAME, VALID = schema.Padding.SAME, schema.Padding.VALID
RELU = schema.ActivationFunctionType.RELU


class Builder:
    """Tensors are known by their names; every operator takes names and gives the name of what it writes."""

    def __init__(self, seed: int = 0) -> None:
        self.random = np.random.default_rng(seed)
        self.model = schema.ModelT()
        self.model.version, self.model.description = 3, "small network"
        self.graph = schema.SubGraphT()
        self.graph.name, self.graph.tensors, self.graph.operators = "main", [], []
        empty = schema.BufferT()
        self.model.subgraphs, self.model.buffers, self.model.operatorCodes = [self.graph], [empty], []
        self.index: dict[str, int] = {}

    def tensor(self, name: str, shape: tuple[int, ...], data: Array | None = None) -> str:
        tensor = schema.TensorT()
        dtype = np.dtype(np.float32) if data is None else data.dtype
        tensor.name, tensor.shape, tensor.hasRank = name, list(shape), True
        tensor.type = getattr(schema.TensorType, _TYPES[dtype])
        tensor.buffer = 0
        if data is not None:
            buffer = schema.BufferT()
            buffer.data = np.frombuffer(np.ascontiguousarray(data).tobytes(), np.uint8)
            self.model.buffers.append(buffer)
            tensor.buffer = len(self.model.buffers) - 1
        self.graph.tensors.append(tensor)
        self.index[name] = len(self.graph.tensors) - 1
        return name

    def weight(self, name: str, *shape: int, scale: float | None = None) -> str:
        fan = int(np.prod(shape[1:])) if len(shape) > 1 else 100
        values = self.random.standard_normal(shape) * (scale or fan**-0.5)
        return self.tensor(name, shape, values.astype(np.float32))

    def op(
        self, kind: str, inputs: list[str], output: str, shape: tuple[int, ...], version: int = 1, **options: Any
    ) -> str:
        code = schema.OperatorCodeT()
        code.builtinCode = getattr(schema.BuiltinOperator, kind)
        code.deprecatedBuiltinCode, code.version = min(code.builtinCode, 127), version
        self.model.operatorCodes.append(code)
        operator = schema.OperatorT()
        operator.opcodeIndex = len(self.model.operatorCodes) - 1
        operator.inputs = [self.index[name] if name else -1 for name in inputs]
        operator.outputs = [self.index[self.tensor(output, shape)]]
        family = options.pop("family", None)
        if family:
            operator.builtinOptionsType = getattr(schema.BuiltinOptions, f"{family}Options")
            operator.builtinOptions = getattr(schema, f"{family}OptionsT")()
            for key, value in options.items():
                assert hasattr(operator.builtinOptions, key), key
                setattr(operator.builtinOptions, key, value)
        self.graph.operators.append(operator)
        return output

    def finish(self, inputs: list[str], outputs: list[str]) -> bytes:
        self.graph.inputs = [self.index[name] for name in inputs]
        self.graph.outputs = [self.index[name] for name in outputs]
        signature = schema.SignatureDefT()
        signature.signatureKey, signature.subgraphIndex = "serving_default", 0
        signature.inputs, signature.outputs = [], []
        for names, entries in ((inputs, signature.inputs), (outputs, signature.outputs)):
            for name in names:
                entry = schema.TensorMapT()
                entry.name, entry.tensorIndex = name, self.index[name]
                entries.append(entry)
        self.model.signatureDefs = [signature]
        builder = flatbuffers.Builder(1024)
        builder.Finish(self.model.Pack(builder), file_identifier=b"TFL3")
        return bytes(builder.Output())

    # operators of the networks below

    def conv(
        self, x: str, out: str, shape: tuple[int, ...], kernel: int, channels: int, stride: int = 1, **more: Any
    ) -> str:
        weight = self.weight(f"{out}/weight", shape[3], kernel, kernel, channels)
        bias = self.weight(f"{out}/bias", shape[3], scale=0.3)
        return self.op("CONV_2D", [x, weight, bias], out, shape, family="Conv2D", padding=SAME, strideH=stride,
                       strideW=stride, dilationHFactor=1, dilationWFactor=1, **more)  # fmt: skip

    def linear(self, x: str, out: str, shape: tuple[int, ...], features: int, bias: bool = True) -> str:
        weight = self.weight(f"{out}/weight", shape[-1], features)
        names = [x, weight, self.weight(f"{out}/bias", shape[-1], scale=0.2) if bias else ""]
        return self.op("FULLY_CONNECTED", names, out, shape, family="FullyConnected", keepNumDims=len(shape) > 2)


def decoder(seed: int = 0, channels: int = 3, size: int = 16) -> bytes:
    """ "picture" (1, 16, 16, 3) to "depth" (1, 16, 16, 1): convolutions of all kinds, a residual sum, a resize."""
    b = Builder(seed)
    half = size // 2
    x = b.tensor("picture", (1, size, size, channels))
    stem = b.conv(x, "stem", (1, half, half, 8), 3, channels, 2, fusedActivationFunction=RELU)
    weight, bias = b.weight("deep/weight", 1, 3, 3, 8, scale=0.4), b.weight("deep/bias", 8, scale=0.1)
    deep = b.op("DEPTHWISE_CONV_2D", [stem, weight, bias], "deep", (1, half, half, 8), family="DepthwiseConv2D",
                padding=SAME, strideH=1, strideW=1, dilationHFactor=1, dilationWFactor=1,
                depthMultiplier=1)  # fmt: skip
    point = b.conv(deep, "point", (1, half, half, 8), 1, 8)
    total = b.op("ADD", [stem, point], "sum", (1, half, half, 8), family="Add", fusedActivationFunction=0)
    goal = b.tensor("goal", (2,), np.array([half, half], np.int32))
    pooled = b.op("MAX_POOL_2D", [total], "pooled", (1, half // 2, half // 2, 8), family="Pool2D", padding=VALID,
                  strideH=2, strideW=2, filterHeight=2, filterWidth=2)  # fmt: skip
    larger = b.op("RESIZE_BILINEAR", [pooled, goal], "larger", (1, half, half, 8), family="ResizeBilinear",
                  alignCorners=False, halfPixelCenters=True)  # fmt: skip
    shape = b.tensor("up/shape", (4,), np.array([1, size, size, 4], np.int32))
    up_weight, up_bias = b.weight("up/weight", 4, 2, 2, 8), b.weight("up/bias", 4, scale=0.1)
    up = b.op("TRANSPOSE_CONV", [shape, up_weight, larger, up_bias], "up", (1, size, size, 4), 3,
              family="TransposeConv", padding=VALID, strideH=2, strideW=2)  # fmt: skip
    return b.finish([x], [b.conv(up, "depth", (1, size, size, 1), 3, 4)])


def transformer(seed: int = 0, features: int = 128, tokens: int = 8) -> bytes:
    """ "tokens" (1, 8, 128) to "features" (1, 8, 128): LayerNorm in pieces, attention, GELU."""
    b = Builder(seed)
    shape, square = (1, tokens, features), (1, tokens, tokens)
    x = b.tensor("tokens", shape)
    axes = b.tensor("axes", (1,), np.array([2], np.int32))
    mean = b.op("MEAN", [x, axes], "norm/mean", (1, tokens, 1), family="Reducer", keepDims=True)
    distance = b.op("SQUARED_DIFFERENCE", [x, mean], "norm/distance", shape, family="SquaredDifference")
    variance = b.op("MEAN", [distance, axes], "norm/variance", (1, tokens, 1), family="Reducer", keepDims=True)
    inverse = b.op("RSQRT", [variance], "norm/rsqrt", (1, tokens, 1))
    centred = b.op("SUB", [x, mean], "norm/centred", shape, family="Sub")
    norm = b.op("MUL", [centred, inverse], "norm", shape, family="Mul")
    q, k, v = (b.linear(norm, name, shape, features) for name in ("query", "key", "value"))
    scores = b.op("BATCH_MATMUL", [q, k], "scores", square, family="BatchMatMul", adjY=True)
    factor = b.tensor("factor", (), np.array(features**-0.5, np.float32))
    scaled = b.op("MUL", [scores, factor], "scaled", square, family="Mul")
    attention = b.op("SOFTMAX", [scaled], "attention", square, family="Softmax", beta=1.0)
    mixed = b.op("BATCH_MATMUL", [attention, v], "mixed", shape, family="BatchMatMul")
    total = b.op("ADD", [x, b.linear(mixed, "projected", shape, features)], "total", shape, family="Add")
    wide = b.linear(total, "wide", (1, tokens, 2 * features), features)
    active = b.op("GELU", [wide], "active", (1, tokens, 2 * features), family="Gelu", approximate=False)
    narrow = b.linear(active, "narrow", shape, 2 * features)
    return b.finish([x], [b.op("ADD", [total, narrow], "features", shape, family="Add")])


def classifier(seed: int = 0, size: int = 16, channels: int = 1, classes: int = 5) -> bytes:
    """ "picture" (1, 16, 16, 1) to "scores" (1, 5): a convolution, the mean over pixels, a linear layer, Softmax."""
    b = Builder(seed)
    x = b.tensor("picture", (1, size, size, channels))
    seen = b.conv(x, "seen", (1, size // 2, size // 2, 16), 3, channels, 2, fusedActivationFunction=RELU)
    axes = b.tensor("axes", (2,), np.array([1, 2], np.int32))
    pooled = b.op("MEAN", [seen, axes], "pooled", (1, 16), family="Reducer", keepDims=False)
    logits = b.linear(pooled, "logits", (1, classes), 16)
    return b.finish([x], [b.op("SOFTMAX", [logits], "scores", (1, classes), family="Softmax", beta=1.0)])


def verified(
    reference: Any, artefact: Any, data: Any, plan: Any = None, kernels: Any = ("xnnpack", "reference")
) -> Any:
    """leadline.verify in LiteRT, with a plan to compare the file with."""
    from leadline import verify
    from leadline.targets.litert.files import content_of
    from leadline.targets.litert.target import LiteRT, Tflite

    held = content_of(artefact) if plan is None else Tflite(content_of(artefact), plan)
    return verify(reference, held, data, target=LiteRT(kernels=kernels), threads=1)
