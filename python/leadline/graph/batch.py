"""A free batch axis in what is written: a network is quantised at one batch size, and its files take any.

Every tensor's shape is followed from the inputs on at two batch sizes. Where a constant holds the batch (the shape of a
Reshape, of an Expand, the sizes of a Resize, a constant that a Concat joins), it is replaced by one that does not.
"""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import numpy as np
import onnx
from onnx import TypeProto, helper, numpy_helper

from leadline.graph.edit import free_name
from leadline.graph.ir import Array, Graph
from leadline.graph.operators import RESHAPES
from leadline.graph.read import Source
from leadline.types import InputError, refuse

_MOST_TRIES = 256
_VALUES_FOR_INFERENCE = 1024  # elements: shapes, axes, pads and scales are short


@dataclass(frozen=True)
class Batch:
    """The axis that the file leaves free.

    Attributes
    ----------
    symbol : str
        As the file calls it.
    size : int
        In the Graph.
    inputs : tuple of str
        Those whose first axis it is.
    proven : bool
        Whether what is written has been run at another size; else it is written for `size`.
    """

    symbol: str
    size: int
    inputs: tuple[str, ...]
    proven: bool = False


@dataclass(frozen=True)
class _Spread:
    """Where a tensor holds the batch: `dims` at twice the size, and on `axis`, `outer` x batch x what lies within."""

    dims: tuple[int, ...]
    axis: int
    outer: int


def free_batch(source: Source, graph: Graph) -> Batch | None:
    """The first axis of the inputs, where the file leaves it free, and all of them have it in common."""
    symbols: dict[str, str] = {}
    for value in graph.inputs:
        dims = source.types[value.name].tensor_type.shape.dim
        if dims and (not dims[0].HasField("dim_value") or dims[0].dim_value < 0):
            symbols[value.name] = dims[0].dim_param
    sizes = {graph.shape(name)[0] for name in symbols}
    if len(sizes) != 1 or len(set(symbols.values())) != 1:
        return None
    return Batch(next(iter(symbols.values())) or "batch", sizes.pop(), tuple(symbols))


def free(model: onnx.ModelProto, batch: Batch) -> None:
    """Make a written model take any batch size, in place.

    Raises InputError, naming the node, where the batch cannot be followed or a constant depends on it.
    """
    choices: dict[str, int] = {}
    known: Known = {}
    light = _without_weights(model)
    for _ in range(_MOST_TRIES):
        trial = onnx.ModelProto()
        trial.CopyFrom(light)
        attempt = _Freeing(trial, batch, choices, known)
        try:
            attempt.run()
            break
        except InputError:
            choices = _next_choices(attempt)
            if not choices:
                raise
    _Freeing(model, batch, choices, known).run()


def _without_weights(model: onnx.ModelProto) -> onnx.ModelProto:
    """Only the types and shapes of large constants: what is tried is copied."""
    light = onnx.ModelProto(opset_import=model.opset_import)
    graph = light.graph
    for name in ("node", "input", "output", "value_info"):
        getattr(graph, name).extend(getattr(model.graph, name))
    graph.name = model.graph.name
    for tensor in model.graph.initializer:
        if math.prod(tensor.dims) <= _VALUES_FOR_INFERENCE:
            graph.initializer.append(tensor)
        else:
            graph.initializer.add(name=tensor.name, dims=tensor.dims, data_type=tensor.data_type)
    return light


def _next_choices(attempt: _Freeing) -> dict[str, int]:
    """What to try next: of the Reshapes met so far, the last that can hold the batch in another place does."""
    met = list(attempt.met.items())
    while met:
        name, (chosen, count) = met.pop()
        if chosen + 1 < count:
            return {other: place for other, (place, _) in met} | {name: chosen + 1}
    return {}


Known = dict[tuple[Any, ...], "dict[str, tuple[int, ...]] | str"]
"""Of a node with inputs of some shapes: the shapes of its outputs, or why there are none."""


class _Freeing:
    def __init__(self, model: onnx.ModelProto, batch: Batch, choices: Mapping[str, int], known: Known) -> None:
        self._graph, self._batch, self._choices, self._known = model.graph, batch, choices, known
        self.met: dict[str, tuple[int, int]] = {}  # of Reshapes that may hold it in several places: which, of how many
        self._opset = next(entry.version for entry in model.opset_import if entry.domain in ("", "ai.onnx"))
        self._values = {v.name: v for v in (*self._graph.value_info, *self._graph.input, *self._graph.output)}
        self._stored = {tensor.name: tensor for tensor in self._graph.initializer}
        self._spread: dict[str, _Spread] = {}
        self._names = {*self._values, *self._stored, *(name for node in self._graph.node for name in node.output)}
        self._nodes: list[onnx.NodeProto] = []
        self._size = ""

    def run(self) -> None:
        for name in self._batch.inputs:
            first, *rest = self._dims(name)
            self._spread[name] = _Spread((2 * first, *rest), 0, 1)
        for node in self._graph.node:
            if any(name in self._spread for name in node.input):
                self._follow(node)
            self._nodes.append(node)
        del self._graph.node[:]
        self._graph.node.extend(self._nodes)
        for name, spread in self._spread.items():
            if name in self._values:
                dim = self._values[name].type.tensor_type.shape.dim[spread.axis]
                many = dim.dim_value // self._batch.size
                dim.dim_param = self._batch.symbol if many == 1 else f"{many}*{self._batch.symbol}"

    def _dims(self, name: str) -> tuple[int, ...]:
        """At the size of the Graph; of a tensor of free shape, which a tail writes, 0 for what is not known."""
        if name in self._stored:
            return tuple(self._stored[name].dims)
        return tuple(dim.dim_value for dim in self._values[name].type.tensor_type.shape.dim)

    def _fail(self, node: onnx.NodeProto, reason: str) -> Exception:
        rule = f"the batch of '{self._graph.name}' must not be part of what it computes"
        return refuse("batch", rule, f"{node.op_type} writing '{node.output[0]}', {reason}")

    def _follow(self, node: onnx.NodeProto) -> None:
        if any(name and name not in self._values for name in node.output):
            return  # of a tail, which is as the file has it
        if any(0 in self._dims(name) for name in node.output if name):
            return
        if node.op_type in RESHAPES and node.op_type != "Identity":
            self._reshape(node)
            return
        if node.op_type == "Concat":
            self._expand_constants(node)
        elif node.op_type == "Expand":
            self._expand(node)
        elif node.op_type == "Resize":
            self._resize(node)
        for name, dims in self._doubled(node).items():
            before = self._dims(name)
            changed = [i for i, pair in enumerate(zip(before, dims, strict=True)) if pair[0] != pair[1]]
            if not changed:
                continue
            if len(changed) > 1 or dims[changed[0]] != 2 * before[changed[0]]:
                raise self._fail(node, f"whose shape {before} becomes {dims}")
            self._spread[name] = _Spread(dims, changed[0], self._outer(node, before[changed[0]]))
        if not any(name in self._spread for name in node.output):
            raise self._fail(node, "which makes one of all samples")

    def _outer(self, node: onnx.NodeProto, length: int) -> int:
        """What lies around the batch on an axis of some length: as in the input that has it from there."""
        if length == self._batch.size:
            return 1
        for name in node.input:
            spread = self._spread.get(name)
            if spread is not None and self._dims(name)[spread.axis] == length:
                return spread.outer
        raise self._fail(node, "which joins samples with something else on one axis")

    def _reshape(self, node: onnx.NodeProto) -> None:
        """The new axis that holds the batch has as many elements before it as the old one. Where several have, one of
        its own is the likeliest; then, in a matrix, one that joins it with what lies around it (rows of a linear
        layer), and elsewhere with what lies within (heads)."""
        source, target, size = self._spread[node.input[0]], self._dims(node.output[0]), self._batch.size
        before = math.prod(source.dims[: source.axis]) * source.outer
        candidates = []
        for axis, length in enumerate(target):
            around = before // math.prod(target[:axis])
            if before % math.prod(target[:axis]) == 0 and length % (around * size) == 0:
                joined = length != around * size if len(target) == 2 else around != 1
                candidates.append((length != size, joined, around, axis))
        if not candidates:
            raise self._fail(node, f"of shape {target}, which mixes it with other axes")
        candidates.sort()
        chosen = self._choices.get(node.output[0], 0)
        if len(candidates) > 1:
            self.met[node.output[0]] = (chosen, len(candidates))
        *_, outer, axis = candidates[chosen]
        dims = (*target[:axis], 2 * target[axis], *target[axis + 1 :])
        shape = np.array([-1 if i == axis else dim for i, dim in enumerate(target)], np.int64)
        node.input[1] = self._constant(f"shape.{'x'.join(map(str, shape))}", shape)
        self._spread[node.output[0]] = _Spread(dims, axis, outer)

    def _expand(self, node: onnx.NodeProto) -> None:
        """A 1 leaves the batch as it is."""
        source, shape = self._spread.get(node.input[0]), self._array(node.input[1])
        if source is None or shape is None:
            return
        place = source.axis + len(shape) - len(source.dims)
        shape = shape.copy()
        shape[place] = 1
        node.input[1] = self._constant(f"shape.{'x'.join(map(str, shape))}", shape)

    def _resize(self, node: onnx.NodeProto) -> None:
        """Scales in the place of sizes; where float32 holds none that gives these, sizes computed when it runs."""
        sizes = self._array(node.input[3]) if len(node.input) > 3 and node.input[3] else None
        dims, spread = self._dims(node.input[0]), self._spread.get(node.input[0])
        if sizes is None or spread is None or len(sizes) != len(dims) or sizes[spread.axis] != dims[spread.axis]:
            return
        scales = np.array(sizes, np.float32) / np.array(dims, np.float32)
        short = np.floor(np.array(dims) * scales.astype(np.float64)) < sizes
        scales = np.where(short, np.nextafter(scales, np.float32(np.inf)), scales)
        if np.array_equal(np.floor(np.array(dims, np.float32) * scales), sizes):
            node.input[2] = self._constant(f"{node.input[3]}.scales", scales)
            del node.input[3:]
            return
        parts = [sizes[: spread.axis], None, sizes[spread.axis + 1 :]]
        node.input[3] = self._vector(f"{node.input[3]}.free", parts)

    def _vector(self, wanted: str, parts: list[Array | None]) -> str:
        """Numbers, with the batch size as it is when the model runs in the place of None."""
        constants = [
            self._number() if part is None else self._constant(f"{wanted}.{place}", np.asarray(part, np.int64))
            for place, part in enumerate(parts)
            if part is None or part.size
        ]
        return constants[0] if len(constants) == 1 else self._emit("Concat", constants, wanted, axis=0)

    def _expand_constants(self, node: onnx.NodeProto) -> None:
        """A class token that is joined with every sample has to become as many."""
        places = {self._spread[name].axis for name in node.input if name in self._spread}
        along = next(item.i for item in node.attribute if item.name == "axis")
        (axis, *others), rank = places, len(self._dims(node.input[0]))
        if others or along % rank == axis:
            return
        for index, name in enumerate(node.input):
            if name in self._spread:
                continue
            dims = self._dims(name)
            if dims[axis] != 1 or self._batch.size != 1:
                raise self._fail(node, f"which joins samples with '{name}'")
            shape = self._vector(f"{name}.shape", [np.array(dims[:axis]), None, np.array(dims[axis + 1 :])])
            node.input[index] = self._emit("Expand", [name, shape], f"{name}.batch")
            self._spread[node.input[index]] = _Spread((*dims[:axis], 2, *dims[axis + 1 :]), axis, 1)
            self._values[node.input[index]] = helper.make_tensor_value_info(node.input[index], self._type(name), dims)

    def _number(self) -> str:
        """The batch size as it is when the model runs, as a vector."""
        if not self._size:
            self._size = self._emit("Shape", [self._batch.inputs[0]], "batch.size", start=0, end=1)
        return self._size

    def _emit(self, kind: str, inputs: list[str], wanted: str, **attrs: int) -> str:
        output = self._fresh(wanted)
        self._nodes.append(helper.make_node(kind, inputs, [output], name=output, **attrs))  # type: ignore[arg-type]
        return output

    def _fresh(self, wanted: str) -> str:
        name = free_name(wanted, self._names)
        self._names.add(name)
        return name

    def _constant(self, wanted: str, array: Array) -> str:
        known = self._array(wanted)
        if known is not None and np.array_equal(known, array):
            return wanted
        name = self._fresh(wanted)
        self._graph.initializer.append(numpy_helper.from_array(array, name))
        self._stored[name] = self._graph.initializer[-1]
        return name

    def _array(self, name: str) -> Array | None:
        tensor = self._stored.get(name)
        if tensor is None or math.prod(tensor.dims) > _VALUES_FOR_INFERENCE:
            return None
        return numpy_helper.to_array(tensor)

    def _type(self, name: str) -> int:
        if name in self._stored:
            return int(self._stored[name].data_type)
        return int(self._values[name].type.tensor_type.elem_type)

    def _doubled(self, node: onnx.NodeProto) -> dict[str, tuple[int, ...]]:
        """The shapes of what a node writes at twice the batch."""
        dims = [self._spread[name].dims if name in self._spread else self._dims(name) for name in node.input if name]
        key = (node.output[0], tuple(node.input), tuple(dims))
        if key not in self._known:
            try:
                self._known[key] = self._inferred(node)
            except InputError as error:
                self._known[key] = str(error).partition(f"writing '{node.output[0]}', ")[2].rstrip(".")
        shapes = self._known[key]
        if isinstance(shapes, str):
            raise self._fail(node, shapes)
        return shapes

    def _inferred(self, node: onnx.NodeProto) -> dict[str, tuple[int, ...]]:
        if node.domain not in ("", "ai.onnx"):  # leadline's own keep shapes
            source = self._spread.get(node.input[0])
            if source is None or self._dims(node.output[0])[source.axis] != self._dims(node.input[0])[source.axis]:
                raise self._fail(node, "an operator of another domain")
            written = self._dims(node.output[0])
            return {node.output[0]: (*written[: source.axis], source.dims[source.axis], *written[source.axis + 1 :])}
        types: dict[str, TypeProto] = {}
        data = {}
        for name in filter(None, node.input):
            dims = self._spread[name].dims if name in self._spread else self._dims(name)
            types[name] = helper.make_tensor_type_proto(self._type(name), dims)
            if (array := self._array(name)) is not None:
                data[name] = numpy_helper.from_array(array, name)
        schema = onnx.defs.get_schema(node.op_type, self._opset)
        try:
            inferred = onnx.shape_inference.infer_node_outputs(
                schema, node, types, data, opset_imports=[helper.make_opsetid("", self._opset)], ir_version=10
            )
        except (onnx.shape_inference.InferenceError, onnx.checker.ValidationError) as error:
            raise self._fail(node, f"which takes no other batch: {str(error).strip().splitlines()[-1]}") from None
        shapes = {}
        for name in filter(None, node.output):
            kind = inferred[name].tensor_type if name in inferred else TypeProto.Tensor()
            dims = tuple(dim.dim_value for dim in kind.shape.dim)
            if len(dims) != len(self._dims(name)) or any(not dim.HasField("dim_value") for dim in kind.shape.dim):
                raise self._fail(node, "whose shape cannot be told")
            shapes[name] = dims
        return shapes
