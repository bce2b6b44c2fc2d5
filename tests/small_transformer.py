"""A small pre-norm transformer as exporters write it, for the tests of rotation: taps, class token, LayerScale."""

from __future__ import annotations

from typing import Any

import numpy as np
import onnx

from graph_models import model, node
from leadline.graph import Graph
from small_networks import draw

TOKENS = 17
"""Sixteen patches and the class token."""


class Builder:
    """Nodes and weights, one layer after another. Every method returns the tensor that it writes."""

    def __init__(self, width: int = 16, heads: int = 2, batch: int = 1) -> None:
        self.width, self.heads, self.batch = width, heads, batch
        self.nodes: list[onnx.NodeProto] = []
        self.weights: dict[str, Any] = {}

    def add(self, op_type: str, inputs: str, output: str, **attrs: Any) -> str:
        self.nodes.append(node(op_type, inputs, output, name=output.split()[0], **attrs))
        return output

    def weight(self, name: str, *shape: int, spread: float = 0.3, centre: float = 0.0) -> str:
        self.weights[name] = draw(len(self.weights) + 1, *shape, spread=spread) + np.float32(centre)
        return name

    def constant(self, name: str, values: Any) -> str:
        self.weights[name] = np.asarray(values)
        return name

    def norm(self, x: str, name: str) -> str:
        gain, offset = self.weight(f"{name}_g", self.width, centre=1), self.weight(f"{name}_b", self.width)
        return self.add("LayerNormalization", f"{x} {gain} {offset}", name)

    def linear(self, x: str, name: str, into: int, out: int) -> str:
        product = self.add("MatMul", f"{x} {self.weight(f'{name}_w', into, out)}", f"{name}_m")
        return self.add("Add", f"{product} {self.weight(f'{name}_b', out)}", name)

    def stem(self) -> str:
        """Patches by a convolution, the class token by Concat, the position by Add."""
        w = self.width
        self.add("Conv", f"x {self.weight('patch_w', w, 3, 4, 4)} {self.weight('patch_b', w)}", "patch", strides=[4, 4])
        self.add("Reshape", f"patch {self.constant('rows', [self.batch, w, 16])}", "patch_r")
        self.add("Transpose", "patch_r", "patch_t", perm=[0, 2, 1])
        self.add("Concat", f"{self.weight('cls', self.batch, 1, w)} patch_t", "joined", axis=1)
        return self.add("Add", f"joined {self.weight('position', 1, TOKENS, w)}", "stem")

    def heads_of(self, x: str, out: str, perm: list[int]) -> str:
        shape = self.constant("split", [self.batch, TOKENS, self.heads, self.width // self.heads])
        return self.add("Transpose", self.add("Reshape", f"{x} {shape}", f"{x}_h"), out, perm=perm)

    def separate(self, x: str, name: str) -> tuple[str, str, str]:
        q, k, v = (self.linear(x, f"{name}_{part}", self.width, self.width) for part in "qkv")
        even, turned = [0, 2, 1, 3], [0, 2, 3, 1]
        return self.heads_of(q, f"{q}_t", even), self.heads_of(k, f"{k}_t", turned), self.heads_of(v, f"{v}_t", even)

    def fused(self, x: str, name: str) -> tuple[str, str, str]:
        all_three = self.linear(x, f"{name}_qkv", self.width, 3 * self.width)
        shape = self.constant("parts", [self.batch, TOKENS, 3, self.heads, self.width // self.heads])
        split = self.add("Reshape", f"{all_three} {shape}", f"{name}_r")
        turned = self.add("Transpose", split, f"{name}_t", perm=[2, 0, 3, 1, 4])
        q, k, v = (self.add("Gather", f"{turned} {self.constant(f'n{i}', i)}", f"{name}_{i}") for i in range(3))
        return q, self.add("Transpose", k, f"{name}_kt", perm=[0, 1, 3, 2]), v

    def block(self, x: str, name: str, fused: bool) -> str:
        q, k, v = (self.fused if fused else self.separate)(self.norm(x, f"{name}_n1"), name)
        scores = self.add("Mul", f"{q} {self.constant('root', np.float32(0.4))}", f"{name}_s")
        product = self.add("MatMul", f"{scores} {k}", f"{name}_qk")
        mixed = self.add("MatMul", f"{self.add('Softmax', product, f'{name}_p', axis=-1)} {v}", f"{name}_av")
        back = self.add("Transpose", mixed, f"{name}_back", perm=[0, 2, 1, 3])
        joined = self.add("Reshape", f"{back} {self.constant('flat', [self.batch, TOKENS, self.width])}", f"{name}_j")
        x = self.residual(x, self.linear(joined, f"{name}_proj", self.width, self.width), f"{name}_a")
        inner = self.linear(self.norm(x, f"{name}_n2"), f"{name}_fc1", self.width, 2 * self.width)
        bent = self.add("Gelu", inner, f"{name}_gelu")
        return self.residual(x, self.linear(bent, f"{name}_fc2", 2 * self.width, self.width), name)

    def residual(self, x: str, branch: str, name: str) -> str:
        """With a LayerScale, for `Graph.fold`."""
        scaled = self.add("Mul", f"{branch} {self.weight(f'{name}_ls', self.width, centre=1)}", f"{name}_m")
        return self.add("Add", f"{x} {scaled}", name)

    def picture(self, x: str, name: str) -> str:
        """The patches as a picture again: no class token, channels first."""
        bounds = " ".join(self.constant(f"slice_{k}", [v]) for k, v in (("a", 1), ("b", TOKENS), ("c", 1)))
        self.add("Slice", f"{x} {bounds}", f"{name}_s")
        self.add("Transpose", f"{name}_s", f"{name}_t", perm=[0, 2, 1])
        return self.add("Reshape", f"{name}_t {self.constant('image', [self.batch, self.width, 4, 4])}", name)

    def conv(self, x: str, name: str, kind: str = "Conv", out: int = 4, **attrs: Any) -> str:
        shape = (out, self.width, 1, 1) if kind == "Conv" else (self.width, out, 2, 2)
        bias = self.weight(f"{name}_b", out)
        return self.add(kind, f"{x} {self.weight(f'{name}_w', *shape)} {bias}", name, **attrs)

    def graph(self, outputs: str = "y", fold: bool = True) -> Graph:
        proto = model(self.nodes, (self.batch, 3, 16, 16), outputs, opset=20, **self.weights)
        graph = Graph.from_model(proto)
        if fold:
            graph.fold()
        return graph


def body(builder: Builder, fused: bool = False) -> str:
    """Stem and two blocks; returns the residual stream."""
    return builder.block(builder.block(builder.stem(), "one", fused), "two", fused)


def transformer(width: int = 16, heads: int = 2, fused: bool = False, batch: int = 1, fold: bool = True) -> Graph:
    """Two taps: the stream behind the first block, read by a convolution, and the last LayerNorm, with its gain, read
    by a transposed convolution; their sum is y."""
    b = Builder(width, heads, batch)
    first = b.block(b.stem(), "one", fused)
    tap = b.conv(b.picture(first, "tap"), "tap_conv")
    last = b.norm(b.block(first, "two", fused), "last")
    up = b.conv(b.picture(last, "up"), "up_conv", "ConvTranspose", strides=[2, 2])
    pooled = b.add("AveragePool", up, "up_pool", kernel_shape=[2, 2], strides=[2, 2])
    b.add("Add", f"{tap} {pooled}", "y")
    return b.graph(fold=fold)
