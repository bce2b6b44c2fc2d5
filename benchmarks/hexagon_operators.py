"""What Qualcomm's emulation of the HTP takes, operator by operator, and how its arithmetic strays: the measurements
behind `leadline.rules.HEXAGON`.

    python benchmarks/hexagon_operators.py          # a minute

First table: one operator between QuantizeLinear and DequantizeLinear in several widths; whether it runs on the NPU, and
how far its codes lie from those of onnxruntime without optimisation, in steps of the output's grid. Second table: the
unit that sums are cut to before they become codes, found from the bias at which the output changes. Third: the factor
that sums are multiplied by, found from the slope of the output, as 10 fractional bits of mantissa would round it.
"""

from __future__ import annotations

import sys
from typing import Any

import numpy as np
import onnx
from numpy.typing import NDArray
from onnx import helper, numpy_helper
from rich.console import Console
from rich.table import Table

from leadline.graph import Session
from leadline.rules import lost
from leadline.targets.hexagon.emulator import Emulator
from leadline.targets.hexagon.rules import HEXAGON

RNG = np.random.default_rng(0)
UNSIGNED = {8: np.uint8, 16: np.uint16}


class Model:
    """A model under construction: float inputs and one output, each behind a pair."""

    def __init__(self) -> None:
        self.nodes: list[onnx.NodeProto] = []
        self.stored: list[onnx.TensorProto] = []
        self.feed: dict[str, NDArray[np.float32]] = {}

    def constant(self, name: str, value: Any) -> str:
        self.stored.append(numpy_helper.from_array(np.ascontiguousarray(value), name))
        return name

    def pair(self, name: str, lo: float, hi: float, bits: int) -> tuple[str, float]:
        """The pair behind a tensor, asymmetric over [lo, hi]; what readers read, and the step."""
        step = np.float32((max(hi, 0) - min(lo, 0)) / (2**bits - 1))
        scale = self.constant(f"{name}.scale", step)
        zero = self.constant(f"{name}.zero", UNSIGNED[bits](round(-min(lo, 0) / step)))
        self.nodes.append(helper.make_node("QuantizeLinear", [name, scale, zero], [f"{name}.q"]))
        self.nodes.append(helper.make_node("DequantizeLinear", [f"{name}.q", scale, zero], [f"{name}.dq"]))
        return f"{name}.dq", float(step)

    def entry(self, name: str, value: NDArray[Any], bits: int) -> tuple[str, float]:
        self.feed[name] = value.astype(np.float32)
        return self.pair(name, float(value.min()), float(value.max()), bits)

    def weight(self, codes: NDArray[Any], scale: NDArray[Any], bits: int, axis: int) -> str:
        kind = {4: onnx.TensorProto.INT4, 8: onnx.TensorProto.INT8}[bits]
        self.stored.append(helper.make_tensor("w.q", kind, codes.shape, codes.ravel().tolist()))
        self.stored.append(helper.make_tensor("w.zero", kind, scale.shape, [0] * scale.size))
        inputs = ["w.q", self.constant("w.scale", scale.astype(np.float32)), "w.zero"]
        attrs = {"axis": axis} if scale.ndim else {}
        self.nodes.append(helper.make_node("DequantizeLinear", inputs, ["w"], **attrs))
        return "w"

    def bias(self, codes: NDArray[Any], scale: NDArray[Any]) -> str:
        inputs = [self.constant("b.q", codes.astype(np.int32)), self.constant("b.scale", scale.astype(np.float32)),
                  self.constant("b.zero", np.zeros(scale.shape, np.int32))]  # fmt: skip
        self.nodes.append(helper.make_node("DequantizeLinear", inputs, ["b"], **({"axis": 0} if scale.ndim else {})))
        return "b"

    def built(self, shape: tuple[int, ...]) -> onnx.ModelProto:
        kind = onnx.TensorProto.FLOAT
        entries = [helper.make_tensor_value_info(name, kind, value.shape) for name, value in self.feed.items()]
        graph = helper.make_graph(
            self.nodes, "one", entries, [helper.make_tensor_value_info("y.dq", kind, shape)], self.stored
        )
        return helper.make_model(graph, opset_imports=[helper.make_opsetid("", 21)], ir_version=10)


def asked(npu: Emulator, model: Model, shape: tuple[int, ...], step: float) -> list[str]:
    """Where it runs, and mean, mean absolute and largest distance in steps."""
    proto = model.built(shape)
    build = npu.build(proto)
    if not build.accepted:
        return ["refused" if not build.left else f"CPU: {', '.join(kind for _, kind in build.left)}", "", "", ""]
    with Session(proto, optimize=False) as session:
        own = session.run(model.feed)["y.dq"]
    distance = (npu.run(model.feed)["y.dq"] - own) / step
    return ["NPU", f"{distance.mean():+.2f}", f"{np.abs(distance).mean():.2f}", f"{np.abs(distance).max():.0f}"]


def plain(npu: Emulator, kind: str, shapes: list[tuple[int, ...]], bits: tuple[int, ...], **attrs: Any) -> list[str]:
    """An operator on activations: bits of each input, then of the output."""
    model = Model()
    values = [RNG.standard_normal(shape) * 2 for shape in shapes]
    read = [model.entry(f"x{i}", value, bits[i])[0] for i, value in enumerate(values)]
    if kind == "LayerNormalization":
        read += [model.constant(n, RNG.uniform(0.5, 2, shapes[0][-1]).astype(np.float32)) for n in ("gain", "offset")]
    model.nodes.append(helper.make_node(kind, read, ["y"], **attrs))
    with_output = {"Softmax": (0, 1), "Gelu": (-0.17, 8), "MatMul": (-60, 60)}.get(kind, (-10, 10))
    _, step = model.pair("y", *with_output, bits[-1])
    shape = (*shapes[0][:-1], shapes[1][-1]) if kind == "MatMul" else shapes[0]
    return asked(npu, model, shape, step)


def layer(
    npu: Emulator, kind: str, shape: tuple[int, ...], weights: int, bits: tuple[int, int], **how: Any
) -> list[str]:
    """A layer with weights: bits of its input and output."""
    axis, groups = (1 if kind == "ConvTranspose" else 0), how.pop("groups", 1)
    model, limit, features = (
        Model(),
        {4: 7, 8: 127}[weights],
        shape[0] if kind == "ConvTranspose" else shape[1] * groups,
    )
    entry = (16, features) if kind == "Gemm" else (1, features, 8, 8)
    x, step = model.entry("x", RNG.standard_normal(entry), bits[0])
    outputs = shape[axis]
    scale = np.asarray(0.01) if how.pop("per_tensor", False) else RNG.uniform(0.005, 0.01, outputs)
    w = model.weight(RNG.integers(-limit, limit + 1, shape), scale, weights, axis)
    b = model.bias(np.zeros(outputs), scale * step)
    attrs = {"Gemm": {"transB": 1}, "Conv": {"pads": [1] * 4, "group": groups}, "ConvTranspose": {"strides": [2, 2]}}
    model.nodes.append(helper.make_node(kind, [x, w, b], ["y"], **attrs[kind]))
    _, step = model.pair("y", -5, 5, bits[1])
    side = 16 if kind == "ConvTranspose" else 8
    return asked(npu, model, (16, outputs) if kind == "Gemm" else (1, outputs, side, side), step)


def operators(npu: Emulator) -> Table:
    table = Table("operator", "weights", "inputs", "output", "runs on", "mean", "mean distance", "largest")
    token = (1, 16, 64)
    for kind, shapes in (("Add", [token] * 2), ("Mul", [token] * 2), ("Gelu", [token]), ("Softmax", [token]),
                         ("LayerNormalization", [token]), ("MatMul", [(1, 4, 16, 32), (1, 4, 32, 24)])):  # fmt: skip
        widths = [(8,) * len(shapes) + (8,), (16,) * len(shapes) + (16,)]
        widths += [(16, 8, 16), (16, 8, 8), (8, 16, 16)] if len(shapes) == 2 else [(16, 8), (8, 16)]
        for bits in widths:
            row = plain(npu, kind, shapes, bits, **({"axis": -1} if kind in ("Softmax", "LayerNormalization") else {}))
            table.add_row(kind, "", " x ".join(map(str, bits[:-1])), str(bits[-1]), *row)
    for weights in (8, 4):
        for bits in ((8, 8), (16, 16), (16, 8), (8, 16)):
            table.add_row(
                "Gemm", str(weights), str(bits[0]), str(bits[1]), *layer(npu, "Gemm", (32, 64), weights, bits)
            )
        for name, kind, shape, how in (
            ("Conv", "Conv", (8, 16, 3, 3), {}),
            ("Conv, one output channel", "Conv", (1, 16, 3, 3), {}),
            ("Conv, depthwise", "Conv", (16, 1, 3, 3), {"groups": 16}),
            ("ConvTranspose", "ConvTranspose", (16, 8, 2, 2), {}),
            ("ConvTranspose, one scale", "ConvTranspose", (16, 8, 2, 2), {"per_tensor": True}),
        ):
            for width in (8, 16):
                row = layer(npu, kind, shape, weights, (width, width), **how)
                table.add_row(name, str(weights), str(width), str(width), *row)
    return table


def cut(npu: Emulator) -> Table:
    """Bias codes from none to some steps of the output, 8-bit input all zero: where the output goes from k to k + 1."""
    table = Table("factor", "unit, from thresholds", "unit, as modelled")
    for factor in (2.0**-10, 1.25 * 2.0**-10, 1.5 * 2.0**-10, 1.75 * 2.0**-10, 2.0**-13 * 1.5):
        codes = np.arange(int(0.4 / factor), int(0.4 / factor) + 128)
        changes = [np.nan]
        for first in range(codes[0], int(0.7 / factor), 128):
            model = Model()
            x, _ = model.entry("x", np.array([[0.0, 255.0]]), 8)
            w = model.weight(np.zeros((128, 2), int), np.full(128, factor), 8, 0)
            b = model.bias(np.arange(first, first + 128), np.full(128, factor))
            model.nodes.append(helper.make_node("Gemm", [x, w, b], ["y"], transB=1))
            model.pair("y", 0, 255, 8)
            npu.build(model.built((1, 128)))
            found = npu.run(model.feed)["y.dq"][0]
            if found[-1] > 0:
                changes = [float(first + np.argmax(found > 0))]
                break
        unit = float(lost(HEXAGON, 8, np.asarray(factor)))
        wanted = unit * np.ceil(0.5 / factor / unit)
        table.add_row(f"{factor:.3g}", f"output changes at {changes[0]:.0f}", f"{unit:.0f}: changes at {wanted:.0f}")
    return table


def slopes(npu: Emulator) -> Table:
    """A 16-bit input times one weight: how the output grows with it."""
    table = Table("factor", "of the NPU", "rounded to 10 bits")
    for factor in (0.4, 0.45, 0.55, 0.65, 0.77, 0.9):
        model = Model()
        x, _ = model.entry("x", np.linspace(0, 65535, 256)[:, None], 16)
        w = model.weight(np.full((2, 1), 127), np.full(2, factor / 127), 8, 0)
        b = model.bias(np.zeros(2), np.full(2, factor / 127))
        model.nodes.append(helper.make_node("Gemm", [x, w, b], ["y"], transB=1))
        model.pair("y", 0, 65535, 16)
        npu.build(model.built((256, 2)))
        found = npu.run(model.feed)["y.dq"][:, 0]
        slope = np.polyfit(model.feed["x"][:, 0], found, 1)[0]
        mantissa, exponent = np.frexp(factor / 127)
        table.add_row(f"{factor:g}", f"{slope:.5f}", f"{127 * np.ldexp(np.rint(mantissa * 2048) / 2048, exponent):.5f}")
    return table


def main() -> None:
    console = Console(width=None if sys.stdout.isatty() else 120)
    with Emulator() as npu:
        for table in (operators(npu), cut(npu), slopes(npu)):
            console.print(table)


if __name__ == "__main__":
    main()
