"""What the HTP's arithmetic makes of an artefact, as an ONNX network that this machine runs."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import numpy as np
import onnx
from numpy.typing import NDArray
from onnx import helper, numpy_helper

from leadline.rules import lost
from leadline.targets.hexagon.rules import HEXAGON


def expected(model: onnx.ModelProto) -> onnx.ModelProto:
    """The artefact with what HTP arithmetic itself costs: what its emulation is expected to give, run unfused.

    Sums are cut, rounded down, together with the output's offset before they become codes (`profiles.lost`; measured on
    single operators, `benchmarks/hexagon_operators.py`). Over 16-bit inputs the codes are summed as stored, zero points
    in, and the bias and that offset are cut on their own. Resize rounds ties up, of which interpolation by two makes
    many. Nothing else is known to cost as much as a step.
    """
    changed = onnx.ModelProto()
    changed.CopyFrom(model)
    sums = _Sums(changed)
    nodes = []
    for node in changed.graph.node:
        cut, tie = sums.cut(node), sums.tie(node)
        nodes.append(node)
        name = node.output[0] if node.output else ""
        if tie is not None:
            node.output[0] = f"{name}.even"
            changed.graph.initializer.append(numpy_helper.from_array(tie, f"{name}.tie"))
            nodes.append(helper.make_node("Add", [f"{name}.even", f"{name}.tie"], [name]))
        if cut is not None:
            if cut.split:
                del node.input[2:]
            node.output[0] = f"{name}.sum"
            for what in ("unit", "before", "behind"):
                changed.graph.initializer.append(numpy_helper.from_array(getattr(cut, what), f"{name}.{what}"))
            nodes += [
                helper.make_node("Div", [f"{name}.sum", f"{name}.unit"], [f"{name}.units"]),
                helper.make_node("Add", [f"{name}.units", f"{name}.before"], [f"{name}.stored"]),
                helper.make_node("Floor", [f"{name}.stored"], [f"{name}.floor"]),
                helper.make_node("Add", [f"{name}.floor", f"{name}.behind"], [f"{name}.kept"]),
                helper.make_node("Mul", [f"{name}.kept", f"{name}.unit"], [name]),
            ]
    del changed.graph.node[:]
    changed.graph.node.extend(nodes)
    return changed


@dataclass(frozen=True)
class _Cut:
    """What becomes of sums: floor(sum / unit + before) + behind units, the unit in real values, each for every output
    channel and ready to broadcast. `split`: `behind` holds the bias."""

    unit: NDArray[np.float32]
    before: NDArray[np.float32]
    behind: NDArray[np.float32]
    split: bool


class _Sums:
    """The operators of a QDQ model that sum codes."""

    def __init__(self, model: onnx.ModelProto) -> None:
        self._stored = {tensor.name: tensor for tensor in model.graph.initializer}
        self._producers = {name: node for node in model.graph.node for name in node.output}
        self._readers: dict[str, list[onnx.NodeProto]] = {}
        for node in model.graph.node:
            for name in node.input:
                self._readers.setdefault(name, []).append(node)

    def cut(self, node: onnx.NodeProto) -> _Cut | None:
        """What becomes of a node's sums; None where nothing does."""
        if node.op_type not in ("Conv", "ConvTranspose", "Gemm", "MatMul"):
            return None
        pairs = [self._producers.get(name) for name in node.input[:2]]
        written = self._written(node.output[0])
        if written is None or any(pair is None or pair.op_type != "DequantizeLinear" for pair in pairs):
            return None
        data, weight = (pair for pair in pairs if pair is not None)
        scales = [data.input[1], weight.input[1], written.input[1]]
        if len(data.input) < 3 or not {data.input[2], *scales} <= self._stored.keys():
            return None
        bits = 8 * self._array(data.input[2]).itemsize
        per_channel = self._array(weight.input[1]).astype(np.float64)
        stored, conv = self._source(weight.input[0]), node.op_type.startswith("Conv")
        if per_channel.ndim > 1 or (conv and stored is None):
            return None
        if node.op_type == "ConvTranspose":  # each group has the same scales
            per_channel = np.tile(per_channel, next((item.i for item in node.attribute if item.name == "group"), 1))
        scale = self._array(data.input[1]).astype(np.float64) * per_channel
        unit = lost(HEXAGON, bits, scale / self._array(written.input[1]))
        if not (unit > 1).any():
            return None
        unit = np.where(unit > 1, unit, 2.0**-10)
        offset, bias = self._offset(written) / (unit * scale), self._bias(node) if bits > 8 else None
        before, behind = offset, -offset
        if bias is not None:
            before = np.mod(self._zero_sums(node, data, weight), unit) / unit
            behind = np.rint(-before) + np.floor(bias / (unit * scale) + offset) - offset
        axes = [1] * (len(stored.dims) - 2) if conv and stored is not None else []

        def shaped(factor: NDArray[np.float64]) -> NDArray[np.float32]:
            return np.asarray(factor.reshape((-1, *axes) if factor.size > 1 else ()), np.float32)

        return _Cut(shaped(unit * scale), shaped(before), shaped(behind), split=bias is not None)

    def _bias(self, node: onnx.NodeProto) -> NDArray[np.float64] | None:
        """In real values, 0 where there is none; None where it is computed, or a Gemm weighs it."""
        if any(item.name in ("alpha", "beta") and item.f != 1 for item in node.attribute):
            return None
        if len(node.input) < 3 or not node.input[2]:
            return np.zeros(1)
        pair = self._producers.get(node.input[2])
        if pair is None:
            return self._array(node.input[2]).astype(np.float64) if node.input[2] in self._stored else None
        if pair.op_type != "DequantizeLinear" or not set(pair.input) <= self._stored.keys():
            return None
        codes, scale, *zero_point = (self._array(name).astype(np.float64) for name in pair.input)
        bias: NDArray[np.float64] = (codes - (zero_point[0] if zero_point else 0)) * scale
        return bias

    def _offset(self, written: onnx.NodeProto) -> float:
        """Of the output's codes, in real values."""
        zero_point = float(self._array(written.input[2])) if len(written.input) > 2 else 0.0
        return zero_point * float(self._array(written.input[1]))

    def _zero_sums(self, node: onnx.NodeProto, data: onnx.NodeProto, weight: onnx.NodeProto) -> NDArray[np.float64]:
        """The input's zero point times the sum of each output channel's weight codes: what sums of codes as stored have
        more. 0 where weights are computed, or where other weights meet in each position (ConvTranspose)."""
        stored = self._source(weight.input[0])
        if stored is None or node.op_type == "ConvTranspose":
            return np.zeros(1)
        values, scale = self._array(stored.name).astype(np.float64), self._array(weight.input[1]).astype(np.float64)
        turned = any(item.name == "transB" and item.i for item in node.attribute)
        values = values if node.op_type == "Conv" or turned else np.moveaxis(values, -1, 0)
        sums = values.reshape(len(values), -1).sum(axis=1)
        if stored.name != weight.input[0]:  # real values
            sums = np.rint(sums / scale)
        products: NDArray[np.float64] = sums * float(self._array(data.input[2]))
        return products

    def tie(self, node: onnx.NodeProto) -> NDArray[np.float32] | None:
        """What lifts the ties of a Resize over the middle between two codes; None for other operators."""
        written = self._written(node.output[0]) if node.op_type == "Resize" else None
        return None if written is None else np.asarray(self._array(written.input[1]) / 1024, np.float32)

    def _written(self, name: str) -> onnx.NodeProto | None:
        """The QuantizeLinear behind a tensor, or behind the clamp that reads it."""
        readers = self._readers.get(name, [])
        while len(readers) == 1 and readers[0].op_type in ("Relu", "Clip", "Min"):
            readers = self._readers.get(readers[0].output[0], [])
        return next((node for node in readers if node.op_type == "QuantizeLinear"), None)

    def _source(self, name: str) -> onnx.TensorProto | None:
        """A weight, whether its codes are stored or its real values; None for what is computed."""
        before = self._producers.get(name)
        return self._stored.get(before.input[0] if before and before.op_type == "QuantizeLinear" else name)

    def _array(self, name: str) -> NDArray[Any]:
        return np.asarray(numpy_helper.to_array(self._stored[name]))
