"""What a file quantises and what it leaves in float: ONNX (QDQ or float) and AIMET ``.encodings``, looked at only."""

from __future__ import annotations

import os
from collections import Counter
from collections.abc import Mapping
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
from numpy.typing import NDArray
from rich.filesize import decimal

from leadline.types import Grid, refuse

if TYPE_CHECKING:
    import onnx

_QUANTIZE, _DEQUANTIZE = "QuantizeLinear", "DequantizeLinear"
_TOKENS = ("QuantizeTokens", "QuantizeTokensSymmetric")
"""leadline's own operators that do both, with scales found at run time."""
_ABSORBED = {"Relu", "Clip", "LeakyRelu"}  # what kernels clamp or scale on the way out
_FIRST_INPUT_ONLY = {"Resize", "Upsample", "Clip", "Pad"}  # their other float inputs are settings, not data
_DEAD_RANGE = 1e-6


@dataclass(frozen=True)
class Inspection:
    """What a file holds. Counts are None where the file does not say, as encodings of version 2.0.0 often do not.

    Attributes
    ----------
    file : str
        Name of the file.
    kind : str
        "ONNX QDQ", "ONNX", or "encodings" with the version.
    bytes : int
        Size on disk, external data included.
    tensors, quantized : int
        Float tensors of the network (for encodings: named in the file), and how many of them have a grid.
    parameters, parameters_quantized, activations, activations_quantized : int or None
        The same, apart.
    absorbed : int
        Activations that only a quantised Relu or Clip reads: kernels fuse it, they never exist. Not in `tensors`.
    grids : dict of str to int
        How many grids of each type and granularity.
    weight_bytes, weight_bytes_float : int or None
        Parameters as stored, scales and zero points included, and what they take as float32.
    saving : float or None
        Percent that `weight_bytes` is below `weight_bytes_float`.
    uncovered : tuple of str
        Float tensors without a grid.
    suspicious : dict of str to str
        Tensor name to what is wrong with its grid: dead or saturated.
    float_operators : dict of str to tuple of str
        Operator type to the names of those that compute in float: some float input or output has no grid.
    """

    file: str
    kind: str
    bytes: int
    tensors: int
    quantized: int
    parameters: int | None
    parameters_quantized: int | None
    activations: int | None
    activations_quantized: int | None
    absorbed: int
    weight_bytes: int | None
    weight_bytes_float: int | None
    saving: float | None
    grids: dict[str, int]
    uncovered: tuple[str, ...]
    suspicious: dict[str, str]
    float_operators: dict[str, tuple[str, ...]]

    def to_dict(self) -> dict[str, Any]:
        """Plain values, ready for JSON."""
        table = asdict(self)
        table["uncovered"] = list(self.uncovered)
        table["float_operators"] = {kind: list(names) for kind, names in self.float_operators.items()}
        return table

    def rows(self, longest: int = 8) -> list[tuple[str, str]]:
        """Label and text of each line of a table; lists of names are cut after `longest`."""
        rows = [
            ("file", f"{self.file}, {self.kind}, {decimal(self.bytes)}"),
            ("quantised", f"{self.quantized} of {self.tensors} tensors"),
        ]
        for label, have, of in (
            ("parameters", self.parameters_quantized, self.parameters),
            ("activations", self.activations_quantized, self.activations),
        ):
            if of is not None:
                rows.append((f"  {label}", f"{have} of {of}"))
        if self.absorbed:
            rows.append(("  absorbed", f"{self.absorbed} activations, by the Relu or Clip behind them"))
        rows += [(f"  {kind}", str(count)) for kind, count in self.grids.items()]
        if self.weight_bytes is not None and self.weight_bytes_float is not None:
            sizes = f"{decimal(self.weight_bytes)}, in float32 {decimal(self.weight_bytes_float)}"
            rows.append(("weights", f"{sizes}, {self.saving:.1f} % saved"))
        if self.uncovered:
            rows.append(("left in float", _cut(self.uncovered, longest)))
        rows += [("suspicious", f"{name}: {what}") for name, what in list(self.suspicious.items())[:longest]]
        if len(self.suspicious) > longest:
            rows.append(("suspicious", f"and {len(self.suspicious) - longest} more"))
        rows += [
            ("float operators", f"{kind} {len(names)}: {_cut(names, longest)}")
            for kind, names in self.float_operators.items()
        ]
        return rows


def inspect(path: str | os.PathLike[str]) -> Inspection:
    """Look into a QDQ or float ONNX file, or an AIMET encodings file (told apart by content, not by name).

    Raises InputError when the file is missing or neither of these, or is damaged.
    """
    file = Path(path)
    try:
        with file.open("rb") as stream:
            start = stream.read(64)
    except OSError as error:
        raise refuse("inspect", "path must be a file that can be read", f"'{file}': {error.strerror}") from error
    if start.lstrip()[:1] in (b"{", b"["):
        return _inspect_encodings(file)
    return _inspect_onnx(file)


def _inspect_encodings(file: Path) -> Inspection:
    from leadline.export import encodings

    found, version = encodings.read_with_version(file)
    params = found.params
    names = [*found.grids, *found.floats]
    kinds = {name: "tensor" if params is None else "parameter" if name in params else "activation" for name in names}
    quantised = Counter(kinds[name] for name in found.grids)
    every = Counter(kinds.values())
    known = params is not None
    return Inspection(
        file=file.name,
        kind=f"encodings {version}",
        bytes=file.stat().st_size,
        tensors=len(names),
        quantized=len(found.grids),
        parameters=every["parameter"] if known else None,
        parameters_quantized=quantised["parameter"] if known else None,
        activations=every["activation"] if known else None,
        activations_quantized=quantised["activation"] if known else None,
        absorbed=0,
        weight_bytes=None,
        weight_bytes_float=None,
        saving=None,
        grids=_count(found.grids, kinds),
        uncovered=tuple(sorted(found.floats)),
        suspicious=_suspicious(found.grids, {}),
        float_operators={},
    )


def _inspect_onnx(file: Path) -> Inspection:
    from leadline.export import qdq
    from leadline.export.qdq_read import open_model

    model, _ = open_model(file, "inspect")
    found = qdq.read(file)
    network = _Network(model)
    parameters, activations = network.parameters, network.activations
    kinds = {name: "parameter" if name in found.codes else "activation" for name in found.grids}
    covered = sum(map(len, (parameters.quantised, activations.quantised)))
    uncovered = (*parameters.left, *activations.left)
    now, float32 = network.weight_bytes
    return Inspection(
        file=file.name,
        kind="ONNX QDQ" if found.grids else "ONNX",
        bytes=file.stat().st_size + _external_bytes(model, file.parent),
        tensors=covered + len(uncovered),
        quantized=covered,
        parameters=len(parameters.quantised) + len(parameters.left),
        parameters_quantized=len(parameters.quantised),
        activations=len(activations.quantised) + len(activations.left),
        activations_quantized=len(activations.quantised),
        absorbed=len(network.absorbed),
        weight_bytes=now,
        weight_bytes_float=float32,
        saving=round(100 * (1 - now / float32), 2) if float32 else 0.0,
        grids=_count(found.grids, kinds),
        uncovered=uncovered,
        suspicious=_suspicious(found.grids, found.codes),
        float_operators=network.float_operators(),
    )


@dataclass(frozen=True)
class _Split:
    quantised: list[str]
    left: list[str]


class _Network:
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

    def float_operators(self) -> dict[str, tuple[str, ...]]:
        table: dict[str, list[str]] = {}
        for node in self._real:
            outputs = [name for name in node.output if self._types.get(name) == 1]
            if outputs and not (all(map(self._is_settled, outputs)) and all(map(self._is_integer, self._data(node)))):
                table.setdefault(node.op_type, []).append(node.name or outputs[0])
        return {kind: tuple(names) for kind, names in sorted(table.items(), key=lambda item: (-len(item[1]), item[0]))}

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
    graph = onnx.shape_inference.infer_shapes(light).graph
    return {v.name: v.type.tensor_type.elem_type for v in (*graph.input, *graph.value_info, *graph.output)}


def _bytes(tensor: onnx.TensorProto) -> int:
    """Stored size; four-bit codes are packed two to a byte."""
    import onnx

    count = int(np.prod(tensor.dims, dtype=np.int64))
    if tensor.data_type in (onnx.TensorProto.INT4, onnx.TensorProto.UINT4):
        return -(-count // 2)
    return count * int(onnx.helper.tensor_dtype_to_np_dtype(tensor.data_type).itemsize)


def _external_bytes(model: onnx.ModelProto, folder: Path) -> int:
    files = {
        item.value for tensor in model.graph.initializer for item in tensor.external_data if item.key == "location"
    }
    return sum((folder / name).stat().st_size for name in files)


def _count(grids: Mapping[str, Grid], kinds: Mapping[str, str]) -> dict[str, int]:
    def text(name: str) -> str:
        scheme = grids[name].scheme
        size = {"tensor": "per tensor", "axis": "per channel", "block": f"in blocks of {scheme.block_size}"}
        size["token"] = "per token"
        return f"{kinds[name]} {'' if scheme.signed else 'u'}int{scheme.bits} {size[scheme.granularity]}"

    return dict(sorted(Counter(map(text, grids)).items()))


def _suspicious(grids: Mapping[str, Grid], codes: Mapping[str, NDArray[Any]]) -> dict[str, str]:
    """Dead: a range below 1e-6, or one code everywhere. Saturated: beside the one element that sets each scale, more
    than four times as many codes on the rails as an even spread would put there. Biases are neither.
    """
    table = {}
    for name, grid in grids.items():
        scheme = grid.scheme
        if scheme.bits == 32:
            continue
        dead = int(((grid.hi - grid.lo) < _DEAD_RANGE).sum())
        if dead:
            table[name] = f"dead: {dead} of {grid.scale.size} scales cover a range below {_DEAD_RANGE:g}"
            continue
        array = codes.get(name)
        if array is None or array.size < 2:
            continue
        if array.min() == array.max():
            table[name] = f"dead: every code is {array.flat[0]}"
            continue
        rails = int((array == scheme.qmin).sum() + (array == scheme.qmax).sum())
        if (rails - grid.scale.size) / array.size > min(0.5, 8 / 2**scheme.bits):
            table[name] = f"saturated: {rails / array.size:.1%} of the codes are the lowest or the highest"
    return table


def _cut(names: tuple[str, ...], longest: int) -> str:
    rest = len(names) - longest
    return ", ".join(names[:longest]) + (f" and {rest} more" if rest > 0 else "")
