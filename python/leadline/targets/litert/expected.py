"""What to expect of integer kernels: the artefact in float arithmetic, between the very roundings that it holds."""

from __future__ import annotations

import copy
from collections.abc import Sequence
from typing import Any

import numpy as np
from numpy.typing import NDArray

from leadline.targets.litert.kernels import tool
from leadline.targets.litert.match import WEIGHT_AXES
from leadline.targets.litert.read import Operator, Subgraph, Tensor, read

_CONVERSIONS = ("QUANTIZE", "DEQUANTIZE")
_STEPS = np.float32(255)


def expected(content: bytes) -> bytes:
    """leadline's simulation of a quantised ``.tflite``.

    Every integer operator computes in float: constants are the values of their codes, activations pass through a
    QUANTIZE and a DEQUANTIZE on the grid that the file gives them. Layers with integer weights and float inputs
    ("dynamic") read an input rounded to 8 bits between its own extremes, a linear layer's each row by itself, a
    convolution's each sample, as XNNPACK does. Operators that are in float stay as they are.

    Parameters
    ----------
    content : bytes
        Of a ``.tflite`` file; that of others will do, too.

    Returns
    -------
    bytes
        A ``.tflite`` of the same inputs and outputs, for kernels of any kind but XNNPACK's.
    """
    return _Writer(content).content()


class _Writer:
    def __init__(self, content: bytes) -> None:
        self._tools = tool("ai_edge_litert.tools.flatbuffer_utils")
        self._schema = tool("ai_edge_litert.schema_py_generated")
        self._model = self._tools.read_model_from_bytearray(bytearray(content))
        self._graph = self._model.subgraphs[0]
        self._read: dict[int, int] = {}  # tensor -> the float one that is read instead of it
        self._rounded: dict[tuple[int, tuple[int, ...]], int] = {}
        self._operators: list[Any] = []
        parsed = read(content).main
        for written, operator in zip(list(self._graph.operators), parsed.operators, strict=True):
            if operator.type in _CONVERSIONS:
                self._operators.append(written)
            else:
                self._in_float(written, operator, parsed)
        self._graph.operators = self._operators

    def content(self) -> bytes:
        return bytes(self._tools.convert_object_to_bytearray(self._model))

    def _in_float(self, written: Any, operator: Operator, parsed: Subgraph) -> None:
        tensors = parsed.tensors
        axes = _run_time_axes(operator, parsed)
        inputs = [self._real(tensors[i]) if i >= 0 and tensors[i].grid is not None else i for i in operator.inputs]
        if axes is not None:
            at = 2 if operator.type == "TRANSPOSE_CONV" else 0
            inputs[at] = self._dynamic(inputs[at], axes, tensors[operator.inputs[at]].shape)
        behind = [(self._like(i, b".float"), i) for i in operator.outputs if tensors[i].grid is not None]
        instead = {index: real for real, index in behind}
        written.inputs, written.outputs = inputs, [instead.get(i, i) for i in operator.outputs]
        self._operators.append(written)
        for real, index in behind:
            self._add("QUANTIZE", "Quantize", [real], index)

    def _real(self, tensor: Tensor) -> int:
        """The values of a tensor's codes."""
        if tensor.index not in self._read:
            real = self._like(tensor.index, b".real")
            self._read[tensor.index] = real
            if tensor.constant:
                self._graph.tensors[real].buffer = self._buffer(tensor.values)
            else:
                self._add("DEQUANTIZE", "Dequantize", [tensor.index], real)
        return self._read[tensor.index]

    def _dynamic(self, x: int, axes: tuple[int, ...], shape: tuple[int, ...]) -> int:
        """x rounded to 8 bits between its extremes along the axes, zero among them."""
        if (x, axes) not in self._rounded:
            narrow = tuple(1 if axis in axes else n for axis, n in enumerate(shape))
            over, zero = self._constant(np.array(axes, np.int32)), self._constant(np.float32(0))
            lo = self._new("MINIMUM", "MaximumMinimum", [self._extreme("REDUCE_MIN", x, over, narrow), zero], narrow)
            hi = self._new("MAXIMUM", "MaximumMinimum", [self._extreme("REDUCE_MAX", x, over, narrow), zero], narrow)
            share, least = self._constant(1 / _STEPS), self._constant(np.finfo(np.float32).tiny)
            step = self._new("MUL", "Mul", [self._new("SUB", "Sub", [hi, lo], narrow), share], narrow)
            step = self._new("MAXIMUM", "MaximumMinimum", [step, least], narrow)
            bottom = self._new("ROUND", None, [self._new("DIV", "Div", [lo, step], narrow)], narrow)
            top = self._new("ADD", "Add", [bottom, self._constant(_STEPS)], narrow)
            codes = self._new("ROUND", None, [self._new("DIV", "Div", [x, step], shape)], shape)
            codes = self._new("MAXIMUM", "MaximumMinimum", [codes, bottom], shape)
            codes = self._new("MINIMUM", "MaximumMinimum", [codes, top], shape)
            self._rounded[x, axes] = self._new("MUL", "Mul", [codes, step], shape)
        return self._rounded[x, axes]

    def _extreme(self, kind: str, x: int, over: int, shape: tuple[int, ...]) -> int:
        return self._new(kind, "Reducer", [x, over], shape, keepDims=True)

    def _new(
        self, kind: str, options: str | None, inputs: Sequence[int], shape: tuple[int, ...], **settings: Any
    ) -> int:
        output = self._tensor(f"expected.{len(self._graph.tensors)}", shape, np.float32)
        self._add(kind, options, inputs, output, **settings)
        return output

    def _add(self, kind: str, options: str | None, inputs: Sequence[int], output: int, **settings: Any) -> None:
        operator = self._schema.OperatorT()
        operator.opcodeIndex = self._code(getattr(self._schema.BuiltinOperator, kind))
        operator.inputs, operator.outputs = list(inputs), [output]
        if options is not None:
            operator.builtinOptionsType = getattr(self._schema.BuiltinOptions, f"{options}Options")
            operator.builtinOptions = getattr(self._schema, f"{options}OptionsT")()
            for name, value in settings.items():
                setattr(operator.builtinOptions, name, value)
        self._operators.append(operator)

    def _code(self, builtin: int) -> int:
        codes = self._model.operatorCodes
        for index, code in enumerate(codes):
            if code.builtinCode == builtin:
                return index
        code = self._schema.OperatorCodeT()
        code.builtinCode, code.deprecatedBuiltinCode, code.version = builtin, min(builtin, 127), 1
        codes.append(code)
        return len(codes) - 1

    def _like(self, index: int, suffix: bytes) -> int:
        """A float tensor of the same shape."""
        tensor = copy.copy(self._graph.tensors[index])
        tensor.name += suffix
        tensor.type, tensor.quantization, tensor.buffer = self._schema.TensorType.FLOAT32, None, 0
        self._graph.tensors.append(tensor)
        return len(self._graph.tensors) - 1

    def _tensor(self, name: str, shape: tuple[int, ...], dtype: type[np.generic], buffer: int = 0) -> int:
        tensor = self._schema.TensorT()
        types = self._schema.TensorType
        tensor.name, tensor.shape, tensor.buffer = name.encode(), list(shape), buffer
        tensor.type = types.INT32 if dtype is np.int32 else types.FLOAT32
        self._graph.tensors.append(tensor)
        return len(self._graph.tensors) - 1

    def _constant(self, array: NDArray[Any] | np.generic) -> int:
        values = np.asarray(array)
        name = f"expected.{len(self._graph.tensors)}"
        return self._tensor(name, values.shape, values.dtype.type, self._buffer(values))

    def _buffer(self, array: NDArray[Any]) -> int:
        buffer = self._schema.BufferT()
        buffer.data = np.frombuffer(np.ascontiguousarray(array).tobytes(), np.uint8)
        self._model.buffers.append(buffer)
        return len(self._model.buffers) - 1


def _run_time_axes(operator: Operator, graph: Subgraph) -> tuple[int, ...] | None:
    """The axes over which a layer of integer weights takes the extremes of its float input; None where none does."""
    if operator.type not in WEIGHT_AXES:
        return None
    weight = graph.tensors[operator.inputs[WEIGHT_AXES[operator.type][0]]]
    data = graph.tensors[operator.inputs[2 if operator.type == "TRANSPOSE_CONV" else 0]]
    if weight.grid is None or not weight.constant or data.dtype != "float32":
        return None
    rank = len(data.shape)
    return (rank - 1,) if operator.type == "FULLY_CONNECTED" else tuple(range(1, rank))
