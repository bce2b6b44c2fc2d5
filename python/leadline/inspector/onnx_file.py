"""ONNX: the float network inside a QDQ model, what of it has a grid and what has none."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np

from leadline.inspector.concat import Operator, starved
from leadline.inspector.inspection import Artefact, Inspection, count, grouped, suspicious, typed

if TYPE_CHECKING:
    import onnx

_QUANTIZE, _DEQUANTIZE = "QuantizeLinear", "DequantizeLinear"
_TOKENS = ("QuantizeTokens", "QuantizeTokensSymmetric")
"""leadline's own operators that do both, with scales found at run time."""
_ABSORBED = {"Relu", "Clip", "LeakyRelu"}  # what kernels clamp or scale on the way out
_FIRST_INPUT_ONLY = {"Resize", "Upsample", "Clip", "Pad"}  # their other float inputs are settings, not data


def read_onnx(file: Path) -> Artefact:
    """A QDQ model, a float network, or one that holds a context binary."""
    from leadline.export import qdq
    from leadline.export.qdq_read import open_model
    from leadline.graph import external_files
    from leadline.inspector.context_file import NODE, read_context

    model, _ = open_model(file, "inspect")
    network = Network(model)
    size = file.stat().st_size + sum(beside.stat().st_size for beside in external_files(file))
    if any(node.op_type == NODE for node in model.graph.node):
        return read_context(file, model, network.inputs, network.outputs, size)
    written = qdq.read(file)
    parameters, activations = network.parameters, network.activations
    kinds = {name: "parameter" if name in written.codes else "activation" for name in written.grids}
    covered = sum(map(len, (parameters.quantised, activations.quantised)))
    uncovered = (*parameters.left, *activations.left)
    now, float32 = network.weight_bytes
    by_tensor = written.grids | {written.dequantised[name]: written.grids[name] for name in written.dequantised}
    inspection = Inspection(
        file=file.name,
        kind="ONNX QDQ" if written.grids else "ONNX",
        bytes=size,
        tensors=covered + len(uncovered),
        quantized=covered,
        parameters=len(parameters.quantised) + len(parameters.left),
        parameters_quantized=len(parameters.quantised),
        activations=len(activations.quantised) + len(activations.left),
        activations_quantized=len(activations.quantised),
        absorbed=len(network.absorbed),
        weight_bytes=now,
        weight_bytes_float=float32,
        grids=count(written.grids, kinds),
        uncovered=uncovered,
        suspicious=suspicious(written.grids, written.codes) | dict(starved(network.operators(), by_tensor)),
        float_operators=network.float_operators(),
        inputs=network.inputs,
        outputs=network.outputs,
    )
    return Artefact(inspection, written.grids, written.codes)


@dataclass(frozen=True)
class _Split:
    quantised: list[str]
    left: list[str]


class Network:
    """The float network inside a model: its tensors without those that only carry quantisation."""

    def __init__(self, model: onnx.ModelProto) -> None:
        self._nodes = list(model.graph.node)
        self._stored = {tensor.name: tensor for tensor in model.graph.initializer}
        for node in self._nodes:
            if node.op_type == "Constant" and node.attribute and node.attribute[0].name == "value":
                self._stored[node.output[0]] = node.attribute[0].t
        self._readers: dict[str, list[onnx.NodeProto]] = {}
        for node in self._nodes:
            for name in dict.fromkeys(node.input):
                self._readers.setdefault(name, []).append(node)
        self._producers = {name: node for node in self._nodes for name in node.output}
        self._types = _types(model)
        self.inputs = {v.name: _port(v) for v in model.graph.input if v.name not in self._stored}
        self.outputs = {v.name: _port(v) for v in model.graph.output}
        # A Clip for codes narrower than their container belongs to the pair behind it.
        self._clips = {
            n.output[0] for n in self._nodes if n.op_type == "Clip" and n.name.endswith(".clip") and self._feeds_pair(n)
        }
        carriers = (_QUANTIZE, _DEQUANTIZE, *_TOKENS, "Constant")
        self._real = [node for node in self._nodes if node.op_type not in carriers]
        self._real = [node for node in self._real if not self._clips.intersection(node.output)]
        inputs = [value.name for value in model.graph.input if value.name not in self._stored]
        names = [*inputs, *(name for node in self._real for name in node.output if name)]
        floats = [name for name in names if self._types.get(name) == 1]
        quantised = [name for name in floats if self._is_quantised(name)]
        self._quantised = set(quantised)
        self.absorbed = {name for name in floats if name not in self._quantised and self._is_absorbed(name)}
        left = [name for name in floats if name not in self._quantised and name not in self.absorbed]
        self.activations = _Split(quantised, left)
        self.parameters = self._parameters()

    def _feeds_pair(self, clip: onnx.NodeProto) -> bool:
        readers = self._readers.get(clip.output[0], [])
        return bool(readers) and all(reader.op_type == _QUANTIZE for reader in readers)

    def _is_quantised(self, name: str) -> bool:
        readers = self._readers.get(name, [])
        return any(n.op_type in (_QUANTIZE, *_TOKENS) or self._clips.intersection(n.output) for n in readers)

    def _is_absorbed(self, name: str) -> bool:
        readers = self._readers.get(name, [])
        return len(readers) == 1 and readers[0].op_type in _ABSORBED and readers[0].output[0] in self._quantised

    def _parameters(self) -> _Split:
        """Integer tensors that are dequantised, or quantised in place; float ones that an operator computes with."""
        self._dequantised: dict[str, onnx.NodeProto] = {}
        for node in self._nodes:
            if node.op_type == _DEQUANTIZE:
                before = self._producers.get(node.input[0])
                source = before.input[0] if before is not None and before.op_type == _QUANTIZE else node.input[0]
                if source in self._stored:
                    self._dequantised[source] = node
        used = dict.fromkeys(name for node in self._real for name in self._data(node))
        left = [name for name in used if name in self._stored and self._stored[name].data_type == 1]
        return _Split(list(self._dequantised), [name for name in left if name not in self._dequantised])

    @property
    def weight_bytes(self) -> tuple[int, int]:
        """(as stored, in float32)"""
        now = plain = 0
        for name in self.parameters.left:
            now += _bytes(self._stored[name])
            plain += _bytes(self._stored[name])
        for name, node in self._dequantised.items():
            stored = self._stored[name]
            extra = [self._stored[item] for item in node.input[1:] if item in self._stored]
            now += _bytes(stored) + sum(map(_bytes, extra))
            plain += 4 * int(np.prod(stored.dims, dtype=np.int64))
        return now, plain

    def operators(self) -> list[Operator]:
        """Every node, quantisation included."""
        return [Operator(n.op_type, n.name or n.output[0], tuple(n.input), tuple(n.output)) for n in self._nodes]

    def float_operators(self) -> dict[str, tuple[str, ...]]:
        operators = []
        for node in self._real:
            outputs = [name for name in node.output if self._types.get(name) == 1]
            if outputs and not (all(map(self._is_settled, outputs)) and all(map(self._is_integer, self._data(node)))):
                operators.append((node.op_type, node.name or outputs[0]))
        return grouped(operators)

    def _is_settled(self, name: str) -> bool:
        return name in self._quantised or name in self.absorbed

    def _is_integer(self, name: str) -> bool:
        """Read from integers, or not float at all, or never in memory."""
        producer = self._producers.get(name)
        if producer is not None and producer.op_type in (_DEQUANTIZE, *_TOKENS):
            return True
        is_float = self._stored[name].data_type == 1 if name in self._stored else self._types.get(name) == 1
        return not is_float or name in self.absorbed

    def _data(self, node: onnx.NodeProto) -> list[str]:
        inputs = node.input[:1] if node.op_type in _FIRST_INPUT_ONLY else node.input
        return [name for name in inputs if name]


def _types(model: onnx.ModelProto) -> dict[str, int]:
    """ONNX element type of each activation, inferred where the file does not say. Weights' data play no part."""
    import onnx

    light = onnx.ModelProto(ir_version=model.ir_version, opset_import=model.opset_import, functions=model.functions)
    for field in ("node", "input", "output", "value_info"):
        getattr(light.graph, field).extend(getattr(model.graph, field))
    light.graph.name = "types"
    declared = {value.name for value in model.graph.input}  # old files list weights among the inputs
    for tensor in model.graph.initializer:
        if tensor.data_location != onnx.TensorProto.EXTERNAL and tensor.ByteSize() < 1024:
            light.graph.initializer.append(tensor)
        elif tensor.name not in declared:
            light.graph.input.append(onnx.helper.make_tensor_value_info(tensor.name, tensor.data_type, tensor.dims))
    try:
        graph = onnx.shape_inference.infer_shapes(light).graph
    except onnx.shape_inference.InferenceError:
        graph = light.graph  # a domain that is not imported, say: what the file declares remains
    return {v.name: v.type.tensor_type.elem_type for v in (*graph.input, *graph.value_info, *graph.output)}


def _bytes(tensor: onnx.TensorProto) -> int:
    """Stored size; four-bit codes are packed two to a byte."""
    import onnx

    count = int(np.prod(tensor.dims, dtype=np.int64))
    if tensor.data_type in (onnx.TensorProto.INT4, onnx.TensorProto.UINT4):
        return -(-count // 2)
    return count * int(onnx.helper.tensor_dtype_to_np_dtype(tensor.data_type).itemsize)


def _port(value: onnx.ValueInfoProto) -> str:
    from onnx import TensorProto

    kind = value.type.tensor_type
    dims = [dim.dim_value if dim.HasField("dim_value") else None for dim in kind.shape.dim]
    names = {"FLOAT": "float32", "DOUBLE": "float64"}
    name = TensorProto.DataType.Name(kind.elem_type) if value.type.HasField("tensor_type") else "no tensor"
    return typed(names.get(name, name.lower()), dims)
