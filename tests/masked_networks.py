"""Attention whose scores are masked, in the spellings of exporters."""

from __future__ import annotations

from collections.abc import Callable

import numpy as np
import onnx
from numpy.typing import NDArray
from onnx import TensorProto, helper, numpy_helper

TOKENS, WIDTH, HEADS = 12, 16, 2
Feed = dict[str, NDArray]
Make = Callable[[np.random.Generator], Feed]

CONSTANT = "add add_left sub scaled bias where where_not causal range trilu".split()
INPUT = "input bool where_input where_zero ones keys".split()


class Net:
    """Nodes as they are called; constants and outputs get names."""

    def __init__(self) -> None:
        self.random = np.random.default_rng(3)
        self.nodes, self.weights, self.inputs = [], [], []

    def constant(self, array: NDArray | float) -> str:
        name = f"c{len(self.weights)}"
        self.weights.append(numpy_helper.from_array(np.asarray(array), name))
        return name

    def weight(self, *shape: int, spread: float = 1.0) -> str:
        return self.constant((self.random.standard_normal(shape) * spread * shape[0] ** -0.5).astype(np.float32))

    def input(self, name: str, shape: list[int], kind: int = TensorProto.FLOAT) -> str:
        self.inputs.append(helper.make_tensor_value_info(name, kind, shape))
        return name

    def __call__(self, op: str, *inputs: str, out: str = "", **attrs: object) -> str:
        name = out or f"{op.lower()}{len(self.nodes)}"
        self.nodes.append(helper.make_node(op, list(inputs), [name], name=f"{op}_{len(self.nodes)}", **attrs))
        return name

    def model(self, output: str, shape: list[int], kind: int = TensorProto.FLOAT, opset: int = 17) -> onnx.ModelProto:
        self("Identity", output, out="y")
        ends = [helper.make_tensor_value_info("y", kind, shape)]
        graph = helper.make_graph(self.nodes, "masked", self.inputs, ends, self.weights)
        return helper.make_model(graph, opset_imports=[helper.make_opsetid("", opset)], ir_version=9)


def scores(net: Net, tokens: str) -> tuple[str, str]:
    """Of each head: what queries and keys give, and the values."""
    head = WIDTH // HEADS

    def split(spread: float, order: list[int]) -> str:
        wide = net.constant(np.array([1, TOKENS, HEADS, head]))
        return net(
            "Transpose",
            net("Reshape", net("MatMul", tokens, net.weight(WIDTH, WIDTH, spread=spread)), wide),
            perm=order,
        )

    query, key, value = split(1.5, [0, 2, 1, 3]), split(1.5, [0, 2, 3, 1]), split(1.0, [0, 2, 1, 3])
    return net("Mul", net("MatMul", query, key), net.constant(np.float32(head**-0.5))), value


def attention(
    kind: str = "", value: float = -np.inf, rows: bool = False, guard: bool = False
) -> tuple[onnx.ModelProto, Make]:
    """`kind`: how scores are masked, "" not at all; `value`: with what; `rows`: some rows as a whole; `guard`: zeros
    for the NaN of such rows."""
    net = Net()
    x = net.input("x", [1, TOKENS, WIDTH])
    tokens = net("Add", net("MatMul", x, net.weight(WIDTH, WIDTH)), net.weight(WIDTH, spread=0.1))
    found, values = scores(net, tokens)
    square, scalar = [1, 1, TOKENS, TOKENS], net.constant(np.float32(value))
    keep = (
        np.tril(np.ones(square, bool)) if kind in ("causal", "trilu", "range") else kept(np.random.default_rng(9), rows)
    )
    mask = np.where(keep, 0, value).astype(np.float32)
    extra: Make = lambda random: {}  # noqa: E731
    match kind:
        case "add" | "causal":
            found = net("Add", found, net.constant(mask))
        case "add_left":
            found = net("Add", net.constant(mask), found)
        case "sub":
            found = net("Sub", found, net.constant(-mask))
        case "scaled":
            wide = net("Add", net("Mul", found, net.constant(np.float32(4))), net.constant(mask))
            found = net("Mul", wide, net.constant(np.float32(0.25)))
        case "bias":
            near = net.constant(net.random.standard_normal((1, HEADS, TOKENS, TOKENS)).astype(np.float32) / 2)
            found = net("Add", net("Add", found, near), net.constant(mask))
        case "where":
            found = net("Where", net.constant(keep), found, scalar)
        case "where_not":
            found = net("Where", net.constant(~keep), scalar, found)
        case "range":
            steps = net("Range", *(net.constant(np.int64(end)) for end in (0, TOKENS, 1)))
            key, query = (net("Reshape", steps, net.constant(np.array(shape))) for shape in ([1, -1], [-1, 1]))
            found = net("Where", net("LessOrEqual", key, query), found, scalar)
        case "trilu":
            full = net.constant(np.full((TOKENS, TOKENS), value, np.float32))
            found = net("Add", found, net("Trilu", full, net.constant(np.int64(1)), upper=1))
        case "input":
            found = net("Add", found, net.input("mask", square))
            extra = lambda random: {"mask": np.where(kept(random, rows), 0, value).astype(np.float32)}  # noqa: E731
        case "bool":
            found = net("Where", net.input("mask", square, TensorProto.BOOL), found, scalar)
            extra = lambda random: {"mask": kept(random, rows)}  # noqa: E731
        case "where_input" | "where_zero":
            name = net.input("mask", square, TensorProto.BOOL)
            chosen = (
                [net.constant(np.float32(0)), scalar] if kind == "where_zero" else [scalar, net.constant(np.float32(0))]
            )
            found = net("Add", found, net("Where", name, *chosen))
            turned = kind == "where_input"
            extra = lambda random: {"mask": kept(random, rows) ^ turned}  # noqa: E731
        case "ones" | "keys":
            floats = kind == "ones"
            name = net.input("mask", [1, 1, 1, TOKENS], TensorProto.FLOAT if floats else TensorProto.INT64)
            given = name if floats else net("Cast", name, to=TensorProto.FLOAT)
            away = net("Mul", net("Sub", net.constant(np.float32(1)), given), scalar)
            found = net("Add", found, away)

            def extra(random: np.random.Generator) -> Feed:
                ones = np.ones((1, 1, 1, TOKENS), np.float32 if floats else np.int64)
                ones[..., TOKENS - random.integers(0, 5) :] = 0
                return {"mask": ones}

    weights = net("Softmax", found, axis=-1)
    if guard:
        weights = net("Where", net("IsNaN", weights), net.constant(np.float32(0)), weights)
    joined = net("Transpose", net("MatMul", weights, values), perm=[0, 2, 1, 3])
    mixed = net("MatMul", net("Reshape", joined, net.constant(np.array([1, TOKENS, WIDTH]))), net.weight(WIDTH, WIDTH))
    out = net("MatMul", net("Add", mixed, tokens), net.weight(WIDTH, WIDTH))
    shape = [1, TOKENS, WIDTH]
    return net.model(out, shape), lambda random: {"x": random.standard_normal(shape).astype(np.float32)} | extra(random)


def kept(random: np.random.Generator, rows: bool) -> NDArray[np.bool_]:
    """Pairs of tokens that see each other: each itself, but for two rows if `rows`."""
    keep = random.random((1, 1, TOKENS, TOKENS)) > 0.4
    keep[..., range(TOKENS), range(TOKENS)] = True
    if rows:
        keep[:, :, random.choice(TOKENS, 2, replace=False)] = False
    return keep


def feeds(make: Make, seed: int, count: int) -> list[Feed]:
    return [make(np.random.default_rng(seed + i)) for i in range(count)]
