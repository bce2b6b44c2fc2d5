"""Small networks of many kinds, with weights that were drawn once, and what they are fed."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import numpy as np
import onnx
from onnx import TensorProto, helper, numpy_helper

KINDS: dict[str, Callable[[Net], None]] = {}


class Net:
    """A network under construction. Each call of an operator returns the tensor that it writes."""

    def __init__(self, name: str, opset: int = 18) -> None:
        self.random = np.random.default_rng(sum(map(ord, name)))
        self.name, self.opset = name, opset
        self.nodes: list[onnx.NodeProto] = []
        self.tensors: dict[str, np.ndarray] = {}
        self.inputs: dict[str, tuple[tuple[int, ...], int]] = {}
        self.outputs: list[str] = []

    def input(self, *shape: int, name: str = "x", below: int = 0) -> str:
        """Floats, smooth along the last axis; or integers below a number."""
        self.inputs[name] = (shape, below)
        return name

    def constant(self, value: Any) -> str:
        name = f"k{len(self.tensors)}"
        self.tensors[name] = np.asarray(value)
        return name

    def weight(self, *shape: int, gain: float = 1.4) -> str:
        """Of a layer with so many outputs first: the variance goes through."""
        fan = int(np.prod(shape[1:])) or 1
        spread = gain / np.sqrt(fan) * self.random.uniform(0.5, 1.5, (shape[0], *[1] * (len(shape) - 1)))
        return self.constant((self.random.standard_normal(shape) * spread).astype(np.float32))

    def vector(self, size: int, low: float = -0.2, high: float = 0.2) -> str:
        return self.constant(self.random.uniform(low, high, size).astype(np.float32))

    def __call__(self, op: str, *inputs: str, count: int = 1, **attrs: Any) -> Any:
        outputs = [f"{op.lower()}{len(self.nodes)}" + (f"_{i}" if i else "") for i in range(count)]
        self.nodes.append(helper.make_node(op, inputs, outputs, name=outputs[0], **attrs))
        return outputs[0] if count == 1 else outputs

    def conv(self, x: str, given: int, made: int, side: int = 3, axes: int = 2, groups: int = 1, **attrs: Any) -> str:
        attrs.setdefault("pads", [side // 2] * 2 * axes)
        weight = self.weight(made, given // groups, *[side] * axes)
        return self("Conv", x, weight, self.vector(made), group=groups, **attrs)

    def norm(self, x: str, size: int, op: str = "BatchNormalization", **attrs: Any) -> str:
        more = (self.vector(size), self.vector(size, 0.5, 2.0)) if op == "BatchNormalization" else ()
        return self(op, x, self.vector(size, 0.5, 1.5), self.vector(size), *more, **attrs)

    def linear(self, x: str, given: int, made: int, bias: bool = True) -> str:
        weight = self.constant(self.tensors.pop(self.weight(made, given)).T.copy())
        product = self("MatMul", x, weight)
        return self("Add", product, self.vector(made)) if bias else product

    def attention(self, x: str, rows: int, width: int, heads: int, mask: str = "") -> str:
        parts = []
        for _ in range(3):
            split = self("Reshape", self.linear(x, width, width), self.constant([1, rows, heads, width // heads]))
            parts.append(self("Transpose", split, perm=[0, 2, 1, 3]))
        scores = self("MatMul", parts[0], self("Transpose", parts[1], perm=[0, 1, 3, 2]))
        scores = self("Mul", scores, self.constant(np.float32((width // heads) ** -0.5)))
        scores = self("Add", scores, mask) if mask else scores
        mixed = self("Transpose", self("MatMul", self("Softmax", scores, axis=-1), parts[2]), perm=[0, 2, 1, 3])
        return self.linear(self("Reshape", mixed, self.constant([1, rows, width])), width, width)

    def output(self, *tensors: str) -> None:
        for i, tensor in enumerate(tensors):
            self.nodes.append(helper.make_node("Identity", [tensor], [name := "y" if i == 0 else f"y{i}"]))
            self.outputs.append(name)

    def model(self) -> onnx.ModelProto:
        types = {True: TensorProto.INT64, False: TensorProto.FLOAT}
        graph = helper.make_graph(
            self.nodes,
            self.name,
            [helper.make_tensor_value_info(n, types[below > 0], shape) for n, (shape, below) in self.inputs.items()],
            [helper.make_tensor_value_info(n, TensorProto.FLOAT, None) for n in self.outputs],
            [numpy_helper.from_array(array, name) for name, array in self.tensors.items()],
        )
        return helper.make_model(graph, opset_imports=[helper.make_opsetid("", self.opset)], ir_version=8)

    def feed(self, seed: int) -> dict[str, np.ndarray]:
        random = np.random.default_rng(seed)
        return {name: _drawn(random, shape, below) for name, (shape, below) in self.inputs.items()}


def _drawn(random: np.random.Generator, shape: tuple[int, ...], below: int) -> np.ndarray:
    if below:
        return random.integers(0, below, shape)
    values = random.standard_normal(shape)
    if shape and shape[-1] > 2:
        values = (values + np.roll(values, 1, -1)) / np.sqrt(2)
    return values.astype(np.float32)


def kind(build: Callable[[Net], None]) -> Callable[[Net], None]:
    KINDS[build.__name__] = build
    return build


def network(name: str) -> Net:
    net = Net(name)
    KINDS[name](net)
    return net


@kind
def classifier(net: Net) -> None:
    x = net.input(1, 3, 16, 16)
    for given, made in ((3, 8), (8, 12), (12, 16)):
        x = net("MaxPool", net("Relu", net.norm(net.conv(x, given, made), made)), kernel_shape=[2, 2], strides=[2, 2])
    x = net("Flatten", net("GlobalAveragePool", x))
    net.output(net("Gemm", x, net.weight(10, 16), net.vector(10), transB=1))


@kind
def residual_with_excitation(net: Net) -> None:
    """Inverted bottlenecks, depthwise, with a gate over channels."""
    x = net("HardSwish", net.conv(net.input(1, 3, 16, 16), 3, 8))
    wide = net("Clip", net.conv(x, 8, 24, 1), net.constant(np.float32(0)), net.constant(np.float32(6)))
    wide = net("HardSwish", net.norm(net.conv(wide, 24, 24, groups=24), 24))
    gate = net("Relu", net.conv(net("GlobalAveragePool", wide), 24, 6, 1))
    gate = net("HardSigmoid", net.conv(gate, 6, 24, 1), alpha=1 / 6)
    x = net("Add", x, net.norm(net.conv(net("Mul", wide, gate), 24, 8, 1), 8))
    net.output(net("ReduceMean", x, net.constant([2, 3]), keepdims=0))


@kind
def hourglass(net: Net) -> None:
    """Down and up again, with skips: strides, transposed convolutions, Resize of two axes."""
    x = net("LeakyRelu", net.conv(net.input(1, 3, 16, 16), 3, 8), alpha=0.1)
    low = net("Relu", net.conv(x, 8, 12, strides=[2, 2]))
    deep = net("Relu", net.conv(low, 12, 16, strides=[2, 2]))
    up = net("ConvTranspose", deep, net.weight(16, 12, 2, 2), net.vector(12), strides=[2, 2])
    joined = net("Relu", net.conv(net("Concat", up, low, axis=1), 24, 8))
    wide = net("Resize", joined, "", "", net.constant([16, 16]), mode="linear", axes=[2, 3])
    net.output(net.conv(net("Concat", wide, x, axis=1), 16, 1), net("Sigmoid", net.conv(deep, 16, 2, 1)))


@kind
def super_resolution(net: Net) -> None:
    x = net.input(1, 3, 10, 10)
    first = net("PRelu", net.conv(x, 3, 12), net.constant(np.full((12, 1, 1), 0.25, np.float32)))
    deep = net("Add", first, net.conv(net("Elu", net.conv(first, 12, 12)), 12, 12))
    wide = net("DepthToSpace", net.conv(deep, 12, 12), blocksize=2, mode="CRD")
    skip = net("Resize", x, "", net.constant(np.array([1, 1, 2, 2], np.float32)), mode="cubic")
    net.output(net("Add", wide, skip))


@kind
def style(net: Net) -> None:
    """Normalised over each picture, reflected borders, Tanh."""
    x = net.input(1, 3, 12, 12)
    for given, made in ((3, 8), (8, 8)):
        x = net("Pad", x, net.constant([0, 0, 1, 1, 0, 0, 1, 1]), mode="reflect")
        x = net("Relu", net.norm(net.conv(x, given, made, pads=[0] * 4), made, "InstanceNormalization"))
    net.output(net("Tanh", net.conv(x, 8, 3)))


@kind
def vision_transformer(net: Net) -> None:
    x = net.conv(net.input(1, 3, 16, 16), 3, 32, 4, pads=[0] * 4, strides=[4, 4])
    x = net("Transpose", net("Reshape", x, net.constant([1, 32, 16])), perm=[0, 2, 1])
    x = net("Concat", net.constant(net.random.standard_normal((1, 1, 32)).astype(np.float32)), x, axis=1)
    x = net("Add", x, net.constant((net.random.standard_normal((1, 17, 32)) * 0.3).astype(np.float32)))
    x = net("Add", x, net.attention(net.norm(x, 32, "LayerNormalization"), 17, 32, 4))
    hidden = net.linear(net.norm(x, 32, "LayerNormalization"), 32, 64)
    spread = net("Erf", net("Div", hidden, net.constant(np.float32(2**0.5))))
    gelu = net("Mul", hidden, net("Add", spread, net.constant(np.float32(1))))
    x = net("Add", x, net.linear(net("Mul", gelu, net.constant(np.float32(0.5))), 64, 32))
    token = net("Gather", net.norm(x, 32, "LayerNormalization"), net.constant(0), axis=1)
    net.output(net.linear(token, 32, 10), x)


@kind
def text_decoder(net: Net) -> None:
    """Embeddings of integers, a causal mask, rotations of queries left out."""
    tokens = net.input(1, 12, name="tokens", below=20)
    x = net("Gather", net.weight(20, 24, gain=4), tokens)
    mask = np.where(np.tri(12, dtype=bool), 0, -1e4).astype(np.float32)[None, None]
    x = net("Add", x, net.attention(net.norm(x, 24, "LayerNormalization"), 12, 24, 2, net.constant(mask)))
    x = net("Add", x, net.linear(net("Relu", net.linear(x, 24, 48)), 48, 24))
    net.output(net.linear(x, 24, 20, bias=False))


@kind
def mixer(net: Net) -> None:
    """Layers along either axis."""
    x = net.input(1, 9, 16)
    turned = net("Transpose", net.norm(x, 16, "LayerNormalization"), perm=[0, 2, 1])
    mixed = net.linear(net("Relu", net.linear(turned, 9, 18)), 18, 9)
    x = net("Add", x, net("Transpose", mixed, perm=[0, 2, 1]))
    x = net("Add", x, net.linear(net("Tanh", net.linear(x, 16, 24)), 24, 16))
    net.output(x)


@kind
def convnext(net: Net) -> None:
    """Depthwise 7x7, LayerNorm over channels last, and a scale for each channel at the end."""
    x = net.conv(net.input(1, 3, 16, 16), 3, 16, 2, pads=[0] * 4, strides=[2, 2])
    last = net("Transpose", net.conv(x, 16, 16, 7, groups=16), perm=[0, 2, 3, 1])
    hidden = net.linear(net.norm(last, 16, "LayerNormalization"), 16, 48)
    hidden = net("Mul", hidden, net("Sigmoid", net("Mul", hidden, net.constant(np.float32(1.702)))))
    scaled = net("Mul", net.linear(hidden, 48, 16), net.vector(16, 0.2, 0.8))
    x = net("Add", x, net("Transpose", scaled, perm=[0, 3, 1, 2]))
    net.output(x)


@kind
def shared_head(net: Net) -> None:
    """One head over two levels, with the same weights; scores and boxes joined."""
    fine = net("Relu", net.conv(net.input(1, 3, 16, 16), 3, 8))
    coarse = net("Relu", net.conv(fine, 8, 8, strides=[2, 2]))
    first, second = net.weight(8, 8, 3, 3), net.weight(6, 8, 1, 1)
    offsets = net.vector(8), net.vector(6)
    rows = []
    for level in (fine, coarse):
        hidden = net("Relu", net("Conv", level, first, offsets[0], pads=[1] * 4))
        rows.append(net("Reshape", net("Conv", hidden, second, offsets[1]), net.constant([1, 6, -1])))
    boxes, scores = net("Split", net("Concat", *rows, axis=2), net.constant([4, 2]), axis=1, count=2)
    net.output(net("Mul", boxes, net.constant(np.float32(8))), net("Sigmoid", scores))


@kind
def signals(net: Net) -> None:
    """One axis: dilated convolutions with gates."""
    x = net.conv(net.input(1, 4, 32), 4, 12, axes=1)
    for step in (1, 2, 4):
        both = net.conv(x, 12, 24, axes=1, dilations=[step], pads=[step, step])
        left, right = net("Split", both, net.constant([12, 12]), axis=1, count=2)
        x = net("Add", x, net("Mul", net("Tanh", left), net("Sigmoid", right)))
    net.output(net.conv(x, 12, 3, 1, axes=1))


@kind
def volumes(net: Net) -> None:
    x = net("Relu", net.conv(net.input(1, 2, 6, 8, 8), 2, 6, axes=3))
    x = net("Relu", net.conv(net("AveragePool", x, kernel_shape=[1, 2, 2], strides=[1, 2, 2]), 6, 8, axes=3))
    net.output(net("Gemm", net("Flatten", net("GlobalAveragePool", x)), net.weight(5, 8), net.vector(5), transB=1))


@kind
def recurrent(net: Net) -> None:
    x = net.input(10, 1, 8)
    weights = net.weight(1, 36, 8, gain=4), net.weight(1, 36, 12, gain=4), net.vector(72)
    net.tensors[weights[2]] = net.tensors[weights[2]].reshape(1, 72)
    states, _ = net("GRU", x, *weights, hidden_size=12, count=2)
    net.output(net.linear(net("Squeeze", states, net.constant([1])), 12, 6))


@kind
def twins(net: Net) -> None:
    """Two inputs through the same layers, compared."""
    ends, first, second = [], net.weight(8, 3, 3, 3), net.weight(8, 8, 3, 3)
    for name in ("left", "right"):
        x = net("Relu", net("Conv", net.input(1, 3, 12, 12, name=name), first, pads=[1] * 4))
        ends.append(net("Conv", x, second, pads=[1] * 4))
    apart = net("Abs", net("Sub", *ends))
    net.output(net.conv(net("Sqrt", net("Add", apart, net.constant(np.float32(1e-3)))), 8, 2))


@kind
def products(net: Net) -> None:
    """Sums of products as Einsum has them, and a layer with its weight on the left."""
    x = net.input(1, 6, 10)
    queries = net("Einsum", x, net.weight(10, 8), equation="bnd,de->bne")
    keys = net("Einsum", x, net.weight(10, 8), equation="bnd,de->bne")
    mixed = net(
        "Einsum", net("Softmax", net("Einsum", queries, keys, equation="bne,bme->bnm")), x, equation="bnm,bmd->bnd"
    )
    net.output(net("MatMul", net.weight(4, 6), mixed))


@kind
def table(net: Net) -> None:
    """Rows of numbers, normalised; branches that are chosen by value."""
    x = net.norm(net.input(8, 12), 12)
    hidden = net("Gemm", x, net.weight(24, 12), net.vector(24), transB=1)
    chosen = net(
        "Where",
        net("Greater", hidden, net.constant(np.float32(0))),
        hidden,
        net("Mul", hidden, net.constant(np.float32(0.2))),
    )
    net.output(net("Gemm", chosen, net.weight(3, 24), net.vector(3), transB=1, alpha=0.5, beta=2.0))


@kind
def pooled_sequence(net: Net) -> None:
    """Grouped convolutions shuffled, extremes over an axis, the logarithm of a sum."""
    x = net("Relu", net.conv(net.input(1, 4, 12, 12), 4, 8, groups=2))
    x = net("Reshape", x, net.constant([1, 2, 4, 12, 12]))
    x = net("Reshape", net("Transpose", x, perm=[0, 2, 1, 3, 4]), net.constant([1, 8, 12, 12]))
    x = net.conv(x, 8, 8, groups=4)
    most = net("ReduceMax", x, net.constant([2]), keepdims=0)
    net.output(net.linear(net("Transpose", most, perm=[0, 2, 1]), 8, 4), net("Softmax", most, axis=1))
