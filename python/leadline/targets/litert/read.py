"""Reading ``.tflite`` files: tensors with their types, grids and stored bytes, operators, signatures.

No interpreter runs.
The layout is the flatbuffer schema of LiteRT (google-ai-edge/LiteRT, ``tflite/schema/schema.fbs``), through the classes
that ai-edge-litert generates from it.
"""

from __future__ import annotations

import math
import os
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from leadline.types import FloatArray, Grid, Scheme, refuse

IDENTIFIER = b"TFL3"
"""Bytes 4 to 8 of every .tflite file."""

_BITS = {"int4": 4, "uint4": 4, "int2": 2}
_INTEGERS = {"int2": (2, True), "int4": (4, True), "uint4": (4, False), "int8": (8, True), "uint8": (8, False)} | {
    "int16": (16, True),
    "uint16": (16, False),
    "int32": (32, True),
}
_UNSIZED = ("string", "resource", "variant")


@dataclass(frozen=True, eq=False)
class Tensor:
    """One tensor of a subgraph.

    Attributes
    ----------
    index : int
        Its place in the subgraph. Names need not be unique, indices are.
    name : str
    dtype : str
        "float32", "float16", "int8", "int4", "int32", ... as in the schema, in lower case.
    shape : tuple of int
        An axis left free counts -1.
    scale : float32 (), (channels,) or the tensor's shape with its last axis divided by `block_size`; None without grid
    zero_point : int64 of the same shape, or None
    axis : int or None
        The quantised axis of a grid with several scales; None per tensor.
    block_size : int or None
    stored : int
        Bytes of its buffer; 0 for an activation.
    """

    index: int
    name: str
    dtype: str
    shape: tuple[int, ...]
    scale: FloatArray | None
    zero_point: NDArray[np.int64] | None
    axis: int | None
    block_size: int | None
    stored: int
    _buffer: NDArray[np.uint8] = field(repr=False)

    @property
    def constant(self) -> bool:
        """Whether the file holds its values."""
        return self.stored > 0

    @property
    def size(self) -> int:
        """Number of elements; a free axis counts once."""
        return math.prod(max(n, 1) for n in self.shape)

    @property
    def array(self) -> NDArray[Any]:
        """What is stored, in the tensor's shape: codes of an integer tensor (4 bits as int8), otherwise its values.

        Raises InputError for an activation, or a type that numpy does not have.
        """
        if not self.constant:
            raise refuse("Tensor.array", f"tensor '{self.name}' must be constant", "an activation")
        if self.dtype in _BITS:
            return _unpack(self._buffer, self.size, _BITS[self.dtype], self.dtype[0] != "u").reshape(self.shape)
        import ml_dtypes

        names = {"bfloat16": ml_dtypes.bfloat16}
        try:
            kind = np.dtype(names.get(self.dtype, self.dtype))
        except TypeError:
            raise refuse("Tensor.array", f"tensor '{self.name}' must have a numpy type", self.dtype) from None
        values: NDArray[Any] = self._buffer.view(kind).reshape(self.shape)
        return values

    @property
    def grid(self) -> Grid | None:
        """Its grid; None where it has none. A constant whose zero points are 0 counts as symmetric.

        The scale's shape is a Grid's: () per tensor, (channels,) along an axis, or one scale for each block.
        """
        if self.scale is None or self.zero_point is None or self.dtype not in _INTEGERS:
            return None
        bits, signed = _INTEGERS[self.dtype]
        granularity = "block" if self.block_size else "tensor" if self.axis is None else "axis"
        symmetric = signed and not self.zero_point.any() and (self.constant or bits == 16)
        scheme = Scheme(bits if bits <= 16 else 32, signed, symmetric, granularity, self.axis, self.block_size)  # type: ignore[arg-type]
        return Grid(self.scale, self.zero_point.astype(np.int32), scheme)

    @property
    def values(self) -> FloatArray:
        """A constant as float32, dequantised where it has a grid."""
        stored = self.array.astype(np.float32)
        if self.scale is None or self.zero_point is None:
            return stored
        scale, zero_point = self.scale, self.zero_point.astype(np.float32)
        if self.block_size:
            scale, zero_point = (np.repeat(part, self.block_size, axis=-1) for part in (scale, zero_point))
        elif self.axis is not None:
            spread = [1] * len(self.shape)
            spread[self.axis] = -1
            scale, zero_point = scale.reshape(spread), zero_point.reshape(spread)
        return np.asarray((stored - zero_point) * scale, np.float32)


@dataclass(frozen=True)
class Operator:
    """One operator: its type as in the schema ("CONV_2D"; a custom one by its own name), tensor indices (-1: an input
    left out), and its options by their names in the schema ("strideH")."""

    type: str
    inputs: tuple[int, ...]
    outputs: tuple[int, ...]
    options: Mapping[str, Any]
    version: int = 1


@dataclass(frozen=True, eq=False)
class Subgraph:
    """Tensors by index, operators in the order of execution, and the indices of inputs and outputs."""

    name: str
    tensors: tuple[Tensor, ...]
    operators: tuple[Operator, ...]
    inputs: tuple[int, ...]
    outputs: tuple[int, ...]

    def activations(self) -> list[Tensor]:
        """The inputs and what operators write, in the order of execution."""
        written = (index for operator in self.operators for index in operator.outputs)
        return [self.tensors[index] for index in dict.fromkeys((*self.inputs, *written))]

    def producers(self) -> dict[int, Operator]:
        """The operator that writes each tensor."""
        return {index: operator for operator in self.operators for index in operator.outputs}

    def readers(self) -> dict[int, list[Operator]]:
        """The operators that read each tensor, each once."""
        table: dict[int, list[Operator]] = {}
        for operator in self.operators:
            for index in dict.fromkeys(operator.inputs):
                table.setdefault(index, []).append(operator)
        return table


@dataclass(frozen=True)
class Signature:
    """How a caller names inputs and outputs: name to tensor index in subgraph `subgraph`."""

    key: str
    subgraph: int
    inputs: Mapping[str, int]
    outputs: Mapping[str, int]


@dataclass(frozen=True, eq=False)
class Tflite:
    """A model: subgraphs (the first one is run), signatures, and its size in bytes."""

    subgraphs: tuple[Subgraph, ...]
    signatures: tuple[Signature, ...]
    bytes: int
    description: str = ""

    @property
    def main(self) -> Subgraph:
        return self.subgraphs[0]


def read(source: str | os.PathLike[str] | bytes) -> Tflite:
    """Read a ``.tflite`` file, or its bytes.

    Raises
    ------
    InputError
        The file is missing, is not a ``.tflite``, is truncated or damaged, or ai-edge-litert is not installed.
    """
    named, data = ("the bytes", source) if isinstance(source, bytes) else _load(Path(source))
    if data[4:8] != IDENTIFIER:
        received = "nothing" if not data else f"a file that begins with {bytes(data[:8])!r}"
        raise refuse("read", f"{named} must be a .tflite file ({IDENTIFIER.decode()} at byte 4)", received)
    schema = _schema()
    try:
        model = schema.ModelT.InitFromPackedBuf(bytearray(data), 0)
        return _model(model, schema, data)
    except Exception as error:  # a damaged flatbuffer raises whatever its bytes happen to mean
        text = f"{type(error).__name__}: {error}" if str(error) else type(error).__name__
        raise refuse("read", f"{named} must be a whole .tflite file", f"{len(data)} bytes, damaged ({text})") from error


def _load(path: Path) -> tuple[str, bytes]:
    try:
        return f"'{path}'", path.read_bytes()
    except OSError as error:
        raise refuse("read", f"'{path}' must be a file that can be read", error.strerror) from error


def _schema() -> Any:
    try:
        from ai_edge_litert import schema_py_generated
    except ImportError as error:
        rule = "reading .tflite needs ai-edge-litert: pip install 'leadline[tflite]'"
        raise refuse("read", rule, str(error)) from error
    return schema_py_generated


def _model(model: Any, schema: Any, data: bytes) -> Tflite:
    buffers = [_bytes(buffer, data) for buffer in model.buffers or ()]
    types = {code: name.lower() for name, code in vars(schema.TensorType).items() if isinstance(code, int)}
    kinds = {code: name for name, code in vars(schema.BuiltinOperator).items() if isinstance(code, int)}
    codes = [_kind(code, kinds) for code in model.operatorCodes or ()]
    if not model.subgraphs:
        raise ValueError("no subgraph")
    subgraphs = tuple(_subgraph(graph, buffers, types, codes) for graph in model.subgraphs)
    signatures = tuple(
        Signature(
            _text(definition.signatureKey),
            definition.subgraphIndex,
            {_text(entry.name): entry.tensorIndex for entry in definition.inputs or ()},
            {_text(entry.name): entry.tensorIndex for entry in definition.outputs or ()},
        )
        for definition in model.signatureDefs or ()
    )
    for signature in signatures:
        count = len(subgraphs[signature.subgraph].tensors)
        _check((*signature.inputs.values(), *signature.outputs.values()), count, "signature")
    return Tflite(subgraphs, signatures, len(data), _text(model.description))


def _bytes(buffer: Any, data: bytes) -> NDArray[np.uint8]:
    """Inside the flatbuffer, or behind it where `offset` says so (files above 2 GB)."""
    if buffer.offset and buffer.offset > 1:
        return np.frombuffer(data, np.uint8, buffer.size, buffer.offset)
    if buffer.data is None:
        return np.empty(0, np.uint8)
    return np.asarray(buffer.data, np.uint8)


def _kind(code: Any, kinds: Mapping[int, str]) -> tuple[str, int]:
    builtin = max(code.builtinCode, code.deprecatedBuiltinCode)  # the old field holds one byte
    name = kinds.get(builtin, f"operator {builtin}")
    return (_text(code.customCode) if name == "CUSTOM" else name), code.version


def _subgraph(
    graph: Any, buffers: Sequence[NDArray[np.uint8]], types: Mapping[int, str], codes: Sequence[tuple[str, int]]
) -> Subgraph:
    raw = list(graph.tensors or ())
    tensors = tuple(_tensor(index, tensor, raw, buffers, types) for index, tensor in enumerate(raw))
    operators = []
    for operator in graph.operators or ():
        kind, version = codes[operator.opcodeIndex]
        options = operator.builtinOptions or operator.builtinOptions2
        inputs, outputs = _indices(operator.inputs), _indices(operator.outputs)
        _check([index for index in inputs if index != -1], len(raw), kind)
        _check(outputs, len(raw), kind)
        operators.append(Operator(kind, inputs, outputs, dict(vars(options)) if options else {}, version))
    inputs, outputs = _indices(graph.inputs), _indices(graph.outputs)
    _check((*inputs, *outputs), len(raw), "subgraph")
    return Subgraph(_text(graph.name), tensors, tuple(operators), inputs, outputs)


def _tensor(
    index: int, tensor: Any, raw: Sequence[Any], buffers: Sequence[NDArray[np.uint8]], types: Mapping[int, str]
) -> Tensor:
    name, dtype = _text(tensor.name), types[tensor.type]
    shape = _indices(tensor.shapeSignature if tensor.shapeSignature is not None else tensor.shape)
    buffer = buffers[tensor.buffer]
    bits = _BITS.get(dtype)
    if buffer.size and dtype not in _UNSIZED:
        size = math.prod(shape)
        wanted = -(-size * bits // 8) if bits else size * _itemsize(dtype)
        if buffer.size != wanted:
            raise ValueError(f"tensor '{name}' of {dtype} and shape {shape} has {buffer.size} bytes")
    grid = _quantization(tensor.quantization, shape, raw, buffers)
    return Tensor(index, name, dtype, shape, *grid, buffer.size, buffer)


def _itemsize(dtype: str) -> int:
    if dtype == "bfloat16":
        return 2
    return 1 if dtype.startswith("float8") else np.dtype(dtype).itemsize


def _quantization(
    parameters: Any, shape: tuple[int, ...], raw: Sequence[Any], buffers: Sequence[NDArray[np.uint8]]
) -> tuple[FloatArray | None, NDArray[np.int64] | None, int | None, int | None]:
    """Scale, zero point, axis and block size."""
    if parameters is None:
        return None, None, None, None
    block = getattr(parameters.details, "blockSize", None)
    if block:
        # Scales of blocks are a float16 tensor of their own, its last axis the blocks of a row.
        held = raw[parameters.details.scales]
        scale = buffers[held.buffer].view(np.float16).astype(np.float32).reshape(*shape[:-1], shape[-1] // block)
        return scale, np.zeros(scale.shape, np.int64), len(shape) - 1, block
    if parameters.scale is None or len(parameters.scale) == 0:
        return None, None, None, None
    scale = np.asarray(parameters.scale, np.float32)
    stored = np.zeros(1, np.int64) if parameters.zeroPoint is None else np.asarray(parameters.zeroPoint, np.int64)
    zero_point = np.broadcast_to(stored if stored.size else np.zeros(1, np.int64), scale.shape)
    if scale.size == 1:
        return scale.reshape(()), zero_point.reshape(()), None, None
    axis = int(parameters.quantizedDimension)
    if scale.size != shape[axis]:
        raise ValueError(f"{scale.size} scales along axis {axis} of shape {shape}")
    return scale, zero_point, axis, None


def _unpack(packed: NDArray[np.uint8], count: int, bits: int, signed: bool) -> NDArray[Any]:
    """The low bits of a byte come first."""
    shifts = np.arange(0, 8, bits, dtype=np.uint8)
    codes: NDArray[Any] = ((packed[:, None] >> shifts) & (2**bits - 1)).reshape(-1)[:count]
    if not signed:
        return codes
    wide = codes.astype(np.int8)
    wide[wide >= 2 ** (bits - 1)] -= 2**bits
    return wide


def _check(indices: Sequence[int], count: int, what: str) -> None:
    wrong = [index for index in indices if not 0 <= index < count]
    if wrong:
        raise ValueError(f"{what} names tensor {wrong[0]} of {count}")


def _indices(values: Any) -> tuple[int, ...]:
    return () if values is None else tuple(int(value) for value in values)


def _text(value: Any) -> str:
    return value.decode("utf-8", "replace") if isinstance(value, bytes) else str(value or "")
