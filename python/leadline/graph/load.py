"""From a file as exporters write it to the normal form: the order of the passes, and the checks around them."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace
from typing import Any

import numpy as np

from leadline.graph import constants, names, opset
from leadline.graph.activations import activations
from leadline.graph.batch import free_batch
from leadline.graph.contraction import contractions
from leadline.graph.cut import attach, split
from leadline.graph.edit import derived, free_name
from leadline.graph.guards import softmax_guards
from leadline.graph.ir import OPSET, Array, Graph, Sample, Value
from leadline.graph.linear import linears
from leadline.graph.operators import WEIGHTED
from leadline.graph.patterns import layer_norms
from leadline.graph.read import Dims, Source, is_float
from leadline.graph.recurrent import batch_second
from leadline.graph.simplify import simplify, whole_resizes
from leadline.graph.tail import DependsOnDataError
from leadline.types import refuse

Watch = Callable[[str, Graph], None]
"""Called behind each pass that rewrites nodes, with what it did."""


def normalise(source: Source, sample: Sample | None, watch: Watch = lambda how, graph: None) -> Graph:
    """Fix the shapes, fold constants, raise the opset, recognise patterns, name everything."""
    graph = _fixed(_turned(source), sample, watch)
    source.weights.clear()  # the Graph has them, and lets go of what it replaces
    simplify(graph)
    watch("without effect, or merged with a neighbour", graph)
    batch_second(graph)
    watch("recurrent operators with the sequence first", graph)
    contractions(graph)
    watch("sums of products in one form", graph)
    softmax_guards(graph)
    watch("guards around Softmax that nothing can trigger", graph)
    layer_norms(graph)
    watch("LayerNormalization recognised in its pieces", graph)
    activations(graph)
    watch("activation functions recognised by value", graph)
    linears(graph)
    watch("one form of linear layer", graph)
    simplify(graph)
    watch("without effect, or merged with a neighbour", graph)
    names.assign(graph)
    return graph


def verbatim(source: Source, sample: Sample | None) -> Graph:
    """Fix the shapes, fold constants, raise the opset, and nothing else: tensors are called as the file calls them."""
    graph = _fixed(source, sample, lambda how, graph: None, verbatim=True)
    names.number(graph)
    return graph


def _turned(source: Source) -> Source:
    """A weight that the file transposes is known by the weight's name, and is one however often it is transposed."""
    same: dict[str, str] = {}
    kept = []
    for node in source.nodes:
        node.inputs = [same.get(name, name) for name in node.inputs]
        if (
            node.op_type == "Transpose"
            and node.inputs
            and node.inputs[0] in source.weights
            and node.outputs[0] not in source.outputs
        ):
            turned = derived(node.inputs[0], f"T{node.attrs.get('perm', '')}")
            known = turned in same.values()
            same[node.outputs[0]] = node.outputs[0] = turned
            if known:
                continue
        kept.append(node)
    return replace(source, nodes=kept)


def _fixed(source: Source, sample: Sample | None, watch: Watch, verbatim: bool = False) -> Graph:
    opset.check(source.opset or OPSET, source.label)  # 0 where a file has no operators of ONNX's own
    opset.check_nodes(source.nodes, source.opset or OPSET, source.label)
    _name_first_outputs(source)
    roots: set[str] = set()
    while True:
        parts = split(source, roots)
        try:
            graph = _folded(parts.front, sample, watch, verbatim)
            break
        except DependsOnDataError as error:
            if error.tensor in roots or not any(error.tensor in node.outputs for node in source.nodes):
                raise
            roots.add(error.tensor)
    attach(graph, source, parts)
    graph.batch = free_batch(source, graph)
    _check_dtypes({name: array.dtype for name, array in graph.weights.items()}, source.label)
    _check_dtypes({name: value.dtype for name, value in graph.values.items()}, source.label)
    _check_finite(graph, source.label)
    return graph


def _folded(source: Source, sample: Sample | None, watch: Watch, verbatim: bool) -> Graph:
    values = dict(sample or {})
    inputs = _inputs(source, values)
    outputs = [Value(name, np.dtype(np.float32), ()) for name in source.outputs]  # real types come with the shapes
    _check_dtypes({value.name: value.dtype for value in inputs}, source.label)
    graph = Graph(source.nodes, dict(source.weights), inputs, outputs, {}, source.name, source.opset or OPSET)
    graph.notes += source.notes
    arrays = {name: np.asarray(array) for name, array in values.items() if isinstance(array, np.ndarray)}
    constants.fold(graph, source.label, arrays, verbatim)
    watch(f"constant, computed once, or written in opset {OPSET}", graph)
    whole_resizes(graph)
    watch("Resize of all axes", graph)
    return graph


def _name_first_outputs(source: Source) -> None:
    """A node is known by its first output, which therefore has a name even where nobody reads it (a GRU's)."""
    taken = {name for node in source.nodes for name in (*node.inputs, *node.outputs)}
    for node in source.nodes:
        if node.outputs and not node.outputs[0]:
            node.outputs[0] = free_name(f"{next(filter(None, node.outputs), node.op_type)}.unread", taken)
            taken.add(node.outputs[0])


def _inputs(source: Source, sample: dict[str, Any]) -> list[Value]:
    """The inputs with the sample's shapes; declared dims serve where there is no sample."""
    declared = {name for name, _, _ in source.inputs}
    for name in sample:
        if name not in declared:
            raise refuse("Graph.load", f"sample must use the input names {sorted(declared)}", repr(name))
    return [_fix(name, dtype, dims, sample.get(name)) for name, dtype, dims in source.inputs]


def _fix(name: str, dtype: np.dtype[Any], dims: Dims | None, sample: Any) -> Value:
    if sample is None and dims is None:
        rule = f"sample must fix the shape of input '{name}'"
        raise refuse("Graph.load", rule, "no sample, and no shape in the file")
    if sample is None:
        dims = dims or ()
        free = [axis for axis, dim in enumerate(dims) if not dim and axis > 0]
        if free:
            text = "x".join(str(dim or "?") for dim in dims)
            raise refuse(
                "Graph.load", f"sample must fix the free axes of input '{name}'", f"no sample for shape {text}"
            )
        return Value(name, dtype, tuple(dim or 1 for dim in dims))
    try:
        shape = tuple(sample.shape) if isinstance(sample, np.ndarray) else tuple(int(dim) for dim in sample)
    except (TypeError, ValueError):
        raise refuse("Graph.load", f"sample '{name}' must be an array or a shape", type(sample).__name__) from None
    if isinstance(sample, np.ndarray) and sample.dtype != dtype and not (is_float(sample.dtype) and is_float(dtype)):
        raise refuse("Graph.load", f"sample '{name}' must be {dtype}", sample.dtype)
    if dims is None:
        dims = (None,) * len(shape)
    if len(shape) != len(dims):
        raise refuse("Graph.load", f"sample '{name}' must have {len(dims)} axes", f"shape {shape}")
    if any(dim < 1 and declared != 0 for dim, declared in zip(shape, dims, strict=True)):
        raise refuse("Graph.load", f"sample '{name}' must not be empty", f"shape {shape}")
    return Value(name, dtype, shape)


_DTYPES = {
    np.dtype(kind)
    for kind in ("float32", "int64", "int32", "int16", "int8", "uint8", "uint16", "uint32", "uint64", "bool")
}


def _check_dtypes(dtypes: dict[str, np.dtype[Any]], label: str) -> None:
    for name, dtype in dtypes.items():
        if dtype not in _DTYPES:
            kind = "strings" if dtype.kind in "OSUT" else str(dtype)
            rule = f"tensors of '{label}' must be floats of 16 bits or more, integers of 8 or more, or bools"
            raise refuse("Graph.load", rule, f"{kind} in '{name}'")


def _check_finite(graph: Graph, label: str) -> None:
    """Infinity is a legitimate constant where it masks or bounds, but never a weight; NaN never is."""
    weighted = {
        name for node in graph.nodes if node.op_type in WEIGHTED for name in node.inputs if name in graph.weights
    }
    for name, array in graph.weights.items():
        if not np.issubdtype(array.dtype, np.floating) or _finite(array):
            continue
        if np.isnan(array).any():
            raise refuse("Graph.load", f"weights of '{label}' must be finite", f"NaN in '{name}'")
        if name in weighted:
            raise refuse("Graph.load", f"weights of '{label}' must be finite", f"infinity in '{name}'")


def _finite(array: Array) -> bool:
    """No temporary of the array's size: a sum of finite float32 in double is finite."""
    return bool(np.isfinite(np.sum(array, dtype=np.float64)))
