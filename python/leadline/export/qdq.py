"""ONNX QDQ: a graph, its grids and its integer codes as one ONNX model that runtimes fuse to integer kernels.

What is written
---------------
Every tensor keeps the name it has in the FP32 graph; what quantisation adds is named after it.

* Activation ``t``: its producer still writes ``t``; behind it stand ``t.quantize`` and ``t.dequantize``, and *every*
  reader reads ``t.dq`` (runtimes fuse only when no reader sees the float tensor). A graph output keeps its name on the
  DequantizeLinear, and its producer writes ``t.float`` instead.
* Parameter ``w``: integer initialiser ``w.q`` and a DequantizeLinear that writes ``w``; readers do not change.
  A second layer that reads ``w`` has its own copy, ``w.again``.
* Scales and zero points are ``t.scale`` and ``t.zero_point``. A name that is taken gets a number behind it.

A Relu, Clip or Min whose only effect is the saturation of the QuantizeLinear behind it is not written: the node before
it writes ``t`` then, and the two fuse (`clamps`).

A grid per token has no scales to store: one operator ``t.quantize`` of the domain "leadline" computes and applies them;
the model carries its definition.

Codes of 4, 8, 16 and 32 bits have ONNX types of their own. Others travel in the next larger one: parameters as they
are, activations behind a Clip to the grid's range (``t.clip``), since QuantizeLinear saturates at the type's range. So
do 4-bit activations with one scale, since runtimes have few kernels for them.
``doc_string`` of each DequantizeLinear, and of each such operator, holds the tensor's name and its Scheme as JSON:
`read` trusts it before names.

A linear layer whose input stays float is written as Gemm(transB=0) with the weight as [in, out] (``w.transposed``):
onnxruntime fuses this form, and not transB=1, to MatMulNBits (with the bias; not where a Relu or Clip follows the
Gemm directly). `read` turns weight and grid back.
"""

from __future__ import annotations

import json
import os
from collections.abc import Iterator, Mapping
from dataclasses import asdict, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
from numpy.typing import NDArray

from leadline.export.clamps import drop_clamps, lift_clamps
from leadline.export.qdq_read import TAG, Qdq, read
from leadline.files import replacing
from leadline.graph import DOMAIN, Graph, Node, Value
from leadline.graph.edit import free_name
from leadline.graph.write import LIMIT
from leadline.types import Grid, Scheme, refuse

if TYPE_CHECKING:
    import onnx

__all__ = ["Qdq", "read", "save", "to_qdq"]

Codes = NDArray[Any]

_FUSED = ("Conv", "Gemm", "MatMul")
"""Layers that onnxruntime fuses with what stands around them."""


def to_qdq(graph: Graph, grids: Mapping[str, Grid], codes: Mapping[str, Codes] | None = None) -> onnx.ModelProto:
    """Write the grids into the graph as QuantizeLinear/DequantizeLinear pairs.

    Parameters
    ----------
    graph : Graph
        The FP32 network; it is not changed.
    grids : dict of tensor name to Grid
        Activations, weights and int32 biases, all by their names in the graph. Placed as given, nothing is added.
    codes : dict of weight name to integer array, optional
        Codes in the weight's shape and on its grid's range. A weight without codes is rounded to nearest.

    Returns
    -------
    onnx.ModelProto
        Opset 21, IR version 10. The same arguments give the same bytes.

    Raises
    ------
    InputError
        A grid or codes for a tensor that the graph does not have, that is not float32, or whose shape does not fit.
    """
    writer = _written(graph, grids, codes or {})
    model = writer.graph.to_model()
    for node in model.graph.node:
        if node.name in writer.notes:
            node.doc_string = writer.notes[node.name]
    return model


def placed(graph: Graph, grids: Mapping[str, Grid], codes: Mapping[str, Codes] | None = None) -> Graph:
    """The same as a Graph, for onnxruntime: weights are shared, no bytes are copied."""
    return _written(graph, grids, codes or {}).graph


def _written(graph: Graph, grids: Mapping[str, Grid], codes: Mapping[str, Codes]) -> _Writer:
    for name, grid in grids.items():
        _check_grid(graph, name, grid)
    for name, array in codes.items():
        _check_codes(graph, name, grids.get(name), array)
    return _Writer(graph, grids, codes)


def save(model: onnx.ModelProto, path: str | os.PathLike[str], limit: int = LIMIT) -> None:
    """Write a model; nothing half-written is left at `path` if it fails.

    Parameters
    ----------
    model : onnx.ModelProto
    path : path
    limit : int
        Bytes of weights from which they go to a file of their own, ``<path>.data``. One ONNX file holds 2 GiB.

    Raises
    ------
    InputError
        The folder cannot be written.
    """
    from leadline.graph.wire import write

    target = Path(path)
    if sum(len(tensor.raw_data) for tensor in model.graph.initializer) < limit:
        with replacing(target) as temporary, temporary.open("wb") as stream:
            write(model, stream)
        return
    data = target.with_name(target.name + ".data")
    with replacing(target) as temporary, replacing(data) as temporary_data:
        light = _with_external_data(model, temporary_data, data.name)
        temporary.write_bytes(light.SerializeToString())


def _with_external_data(model: onnx.ModelProto, file: Path, location: str) -> onnx.ModelProto:
    """A copy without large weights; their bytes go to `file`."""
    import onnx

    from leadline.graph.wire import place

    light = onnx.ModelProto()
    for field, value in model.ListFields():
        if field.name != "graph":
            light.MergeFrom(onnx.ModelProto(**{field.name: value}))
    for field, value in model.graph.ListFields():
        if field.name != "initializer":
            light.graph.MergeFrom(onnx.GraphProto(**{field.name: value}))
    with file.open("wb") as stream:
        for tensor in model.graph.initializer:
            if len(tensor.raw_data) <= 1024:  # shapes and scales stay where shape inference sees them
                light.graph.initializer.append(tensor)
                continue
            stream.seek(-(-stream.tell() // 4096) * 4096)  # whole pages can be mapped into memory
            moved = light.graph.initializer.add(name=tensor.name, dims=tensor.dims, data_type=tensor.data_type)
            place(moved, location, stream.tell(), len(tensor.raw_data))
            stream.write(tensor.raw_data)
    return light


def container(scheme: Scheme) -> np.dtype[Any]:
    """The smallest type of ONNX opset 21 that holds a scheme's codes."""
    import ml_dtypes

    narrow: np.dtype[Any] = np.dtype(ml_dtypes.int4 if scheme.signed else ml_dtypes.uint4)
    return narrow if scheme.bits <= 4 else scheme.dtype


def _activation_container(scheme: Scheme) -> np.dtype[Any]:
    """Of an activation: onnxruntime has next to no kernels for 4-bit activations, so that with one scale they travel
    as 8 bits. With a scale per channel no Clip could bound them."""
    return scheme.dtype if scheme.granularity == "tensor" else container(scheme)


def _fills_container(scheme: Scheme) -> bool:
    """Whether an activation's codes are all that its container holds."""
    return scheme.bits in ((8, 16) if scheme.granularity == "tensor" else (4, 8, 16)) and not scheme.narrow


def _check_grid(graph: Graph, name: str, grid: Grid) -> None:
    constant = name in graph.weights
    if not constant and name not in graph.values:
        raise refuse("to_qdq", "grids must name tensors of the graph", repr(name))
    dtype = graph.weights[name].dtype if constant else graph.values[name].dtype
    if dtype != np.float32:
        raise refuse("to_qdq", f"a tensor with a grid must be float32: '{name}'", dtype)
    expected = scale_shape(name, graph.shape(name), grid.scheme)
    if grid.scale.shape != expected:
        raise refuse("to_qdq", f"the grid of '{name}' must have scales of shape {expected}", grid.scale.shape)
    if constant:
        return
    if grid.scheme.bits > 16:
        raise refuse("to_qdq", f"the grid of activation '{name}' must have at most 16 bits", grid.scheme.bits)
    if not _fills_container(grid.scheme) and grid.scheme.granularity not in ("tensor", "token"):
        rule = f"the grid of activation '{name}' must be per tensor unless it fills 4, 8 or 16 bits"
        raise refuse("to_qdq", rule, f"{grid.scheme.bits} bits per {grid.scheme.granularity}")


def scale_shape(name: str, shape: tuple[int, ...], scheme: Scheme) -> tuple[int, ...]:
    """The shape of the scales of a tensor under a scheme, as ONNX lays them out.

    Raises InputError naming the tensor when the scheme's axis is not one of its axes.
    """
    if scheme.granularity == "tensor":
        return ()
    if scheme.granularity == "token" and scheme.axis is not None and scheme.axis < len(shape):
        return ()
    if scheme.axis is None or not 0 <= scheme.axis < len(shape):
        raise refuse("export", f"the axis of the grid of '{name}' must be 0 to {len(shape) - 1}", scheme.axis)
    if scheme.granularity == "axis":
        return (shape[scheme.axis],)
    blocks = -(-shape[scheme.axis] // (scheme.block_size or 1))
    return (*shape[: scheme.axis], blocks, *shape[scheme.axis + 1 :])


def _check_codes(graph: Graph, name: str, grid: Grid | None, array: Codes) -> None:
    if name not in graph.weights or grid is None:
        raise refuse("to_qdq", "codes must belong to weights of the graph that have a grid", repr(name))
    if array.dtype.kind not in "iu" or array.shape != graph.weights[name].shape:
        rule = f"codes of '{name}' must be integers of shape {graph.weights[name].shape}"
        raise refuse("to_qdq", rule, f"{array.dtype} of shape {array.shape}")
    lo, hi = grid.scheme.qmin, grid.scheme.qmax
    if array.size and (array.min() < lo or array.max() > hi):
        raise refuse("to_qdq", f"codes of '{name}' must lie in {lo}..{hi}", f"{array.min()} to {array.max()}")


class _Writer:
    """One pass over the nodes that rewires a copy of the graph."""

    def __init__(self, graph: Graph, grids: Mapping[str, Grid], codes: Mapping[str, Codes]) -> None:
        self.graph = graph.copy()
        lift_clamps(self.graph, grids)
        drop_clamps(self.graph, grids)
        self.notes: dict[str, str] = {}  # node name -> doc_string
        self._grids, self._codes = grids, codes
        # An output that is an input stays what it is.
        self._outputs = {value.name for value in graph.outputs} - {value.name for value in graph.inputs}
        behind = graph.tail.names if graph.tail is not None else set()
        self._tensors = {*graph.weights, *graph.values, *behind}
        self._names = {*(node.name for node in graph.nodes), *behind}
        self._renamed: dict[str, str] = {}  # tensor -> what its readers read instead
        self._transposed = {name for name in grids if name in graph.weights and self._is_weight_only(graph, name)}
        self._fused: set[str] = set()  # weights that a layer reads already
        self._pending = {name for name in grids if name in graph.weights}
        nodes: list[Node] = []
        for value in graph.inputs:
            nodes += self._behind(value.name)
        for node in self.graph.nodes:
            for name in dict.fromkeys(node.inputs):
                nodes += self._parameter(name)
            if any(name in self._transposed for name in node.inputs):
                node.attrs["transB"] = 0
            nodes += self._own_weight(graph, node)
            requantises = node.op_type == "Identity" and {*node.inputs, *node.outputs} <= grids.keys()
            node.inputs = [self._renamed.get(name, name) for name in node.inputs]
            if requantises:  # the pair behind it is all that it takes
                nodes += self._behind(node.outputs[0], node.inputs[0])
                continue
            nodes.append(node)
            written = list(node.outputs)
            for i, name in enumerate(written):
                if name in self._outputs and name in grids:
                    node.outputs[i] = self._tensor(f"{name}.float", graph.values[name].dtype, graph.shape(name))
                nodes += self._behind(name, node.outputs[i])
        if self._pending:
            raise refuse("to_qdq", "a weight with a grid must be read by a node", repr(min(self._pending)))
        self.graph.nodes = nodes

    def _is_weight_only(self, graph: Graph, name: str) -> bool:
        """Only linear layers with a float input read it, and the codes are of a width that MatMulNBits knows."""
        scheme, readers = self._grids[name].scheme, graph.consumers(name)
        return (
            container(scheme).itemsize == 1
            and (scheme.granularity, scheme.axis) in (("axis", 0), ("block", 1))
            and bool(readers)
            and all(
                node.op_type == "Gemm"
                and node.attrs.get("transB", 0) == 1
                and node.inputs.count(name) == 1
                and node.inputs[1] == name
                and node.inputs[0] not in self._grids
                for node in readers
            )
        )

    @staticmethod
    def _free(wanted: str, taken: set[str]) -> str:
        """The names of the float graph are taken too, where this pass no longer has such a tensor."""
        name = free_name(wanted, taken)
        taken.add(name)
        return name

    def _tensor(self, wanted: str, dtype: Any, shape: tuple[int, ...]) -> str:
        name = self._free(wanted, self._tensors)
        self.graph.values[name] = Value(name, np.dtype(dtype), tuple(shape))
        return name

    def _constant(self, wanted: str, array: NDArray[Any]) -> str:
        name = self._free(wanted, self._tensors)
        self.graph.weights[name] = array
        return name

    def _node(self, kind: str, inputs: list[str], output: str, name: str, attrs: dict[str, Any]) -> Node:
        return Node(kind, inputs, [output], self._free(name, self._names), attrs)

    def _grid_inputs(self, name: str, grid: Grid, dtype: np.dtype[Any]) -> tuple[list[str], dict[str, Any]]:
        scheme = grid.scheme
        attrs: dict[str, Any] = {} if scheme.granularity == "tensor" else {"axis": scheme.axis}
        if scheme.granularity == "block":
            attrs["block_size"] = scheme.block_size
        scale = self._constant(f"{name}.scale", grid.scale)
        zero_point = self._constant(f"{name}.zero_point", grid.zero_point.astype(dtype))
        return [scale, zero_point], attrs

    def _note(self, node: Node, tensor: str, scheme: Scheme, transposed: bool = False) -> None:
        self.notes[node.name] = json.dumps({TAG: {"tensor": tensor, "transposed": transposed} | asdict(scheme)})

    def _behind(self, name: str, written: str | None = None) -> Iterator[Node]:
        """The pair behind a graph input or a node's output, if it has a grid. `written`: what its producer writes."""
        grid = self._grids.get(name)
        if grid is None:
            return
        shape, source = self.graph.shape(name), written or name
        if grid.scheme.granularity == "token":
            output = name if name in self._outputs else self._tensor(f"{name}.dq", np.float32, shape)
            self._renamed[name] = output
            node = self._at_run_time(source, output, name, grid.scheme)
            self._note(node, name, grid.scheme)
            yield node
            return
        if not _fills_container(grid.scheme):
            bounds = [self._constant(f"{name}.lo", grid.lo), self._constant(f"{name}.hi", grid.hi)]
            clipped = self._tensor(f"{name}.clipped", np.float32, shape)
            yield self._node("Clip", [source, *bounds], clipped, f"{name}.clip", {})
            source = clipped
        dtype = _activation_container(grid.scheme)
        inputs, attrs = self._grid_inputs(name, grid, dtype)
        quantised = self._tensor(f"{name}.q", dtype, shape)
        output = name if name in self._outputs else self._tensor(f"{name}.dq", np.float32, shape)
        self._renamed[name] = output
        yield self._node("QuantizeLinear", [source, *inputs], quantised, f"{name}.quantize", attrs)
        last = self._node("DequantizeLinear", [quantised, *inputs], output, f"{name}.dequantize", attrs)
        self._note(last, name, grid.scheme)
        yield last

    def _at_run_time(self, source: str, output: str, name: str, scheme: Scheme) -> Node:
        """Scales of tokens are computed, by an operator whose definition the model carries."""
        attrs = {"axes": [scheme.axis], "low": float(scheme.qmin), "high": float(scheme.qmax)}
        kind = "QuantizeTokensSymmetric" if scheme.symmetric else "QuantizeTokens"
        node = self._node(kind, [source], output, f"{name}.quantize", attrs)
        node.domain = DOMAIN
        return node

    def _parameter(self, name: str) -> Iterator[Node]:
        if name not in self._pending:
            return
        self._pending.remove(name)
        output = name
        if name in self._transposed:
            output = self._renamed[name] = self._free(f"{name}.transposed", self._tensors)
        yield self._dequantised(name, self.graph.weights.pop(name), output)

    def _own_weight(self, graph: Graph, node: Node) -> Iterator[Node]:
        """A weight that several layers read has codes of its own for each: with ``session.x64quantprecision=1``
        onnxruntime makes the codes of each fused layer unsigned, and fails where it has done so already."""
        name = node.inputs[1] if len(node.inputs) > 1 and node.op_type in _FUSED else ""
        if name not in graph.weights or name not in self._grids or container(self._grids[name].scheme) != np.int8:
            return
        if name not in self._fused:
            self._fused.add(name)
        elif node.inputs.count(name) == 1:
            node.inputs[1] = self._free(f"{name}.again", self._tensors)
            yield self._dequantised(name, graph.weights[name], node.inputs[1])

    def _dequantised(self, name: str, weight: NDArray[Any], output: str) -> Node:
        grid, transposed = self._grids[name], name in self._transposed
        codes = self._codes[name] if name in self._codes else _nearest(weight, grid)
        stored = grid
        if transposed:
            codes, stored = codes.T, transpose(grid)
        self.graph.values[output] = Value(output, np.dtype(np.float32), codes.shape)
        quantised = self._constant(f"{name}.q", codes.astype(container(grid.scheme), "C", copy=False))
        inputs, attrs = self._grid_inputs(name, stored, container(grid.scheme))
        node = self._node("DequantizeLinear", [quantised, *inputs], output, f"{name}.dequantize", attrs)
        self._note(node, name, grid.scheme, transposed)
        return node


def transpose(grid: Grid) -> Grid:
    """The grid of a matrix, for the transposed matrix."""
    axis = None if grid.scheme.axis is None else 1 - grid.scheme.axis
    return Grid(np.ascontiguousarray(grid.scale.T), grid.zero_point.T, replace(grid.scheme, axis=axis))


def _nearest(weight: NDArray[np.float32], grid: Grid) -> Codes:
    from leadline.affine import quantize

    return quantize(weight, grid)
