"""A network cut into pieces, so that of many tensors asked for, only a few are in memory at a time."""

from __future__ import annotations

import math
from collections.abc import Sequence
from itertools import pairwise

import numpy as np
import onnx
from onnx import helper

from leadline.graph.operators import MOVES_DATA

LIMIT = 32_000_000
"""Bytes of what is asked for, from which a piece ends at the next place where it can."""

_SEEN_THROUGH = MOVES_DATA | {"Cast", "Div", "Mul"}
"""What onnxruntime joins with readers of their outputs even where these are asked for."""

_TOKENS = 3
"""Axes, at most, of what it does not lay out in blocks of channels for its convolutions."""


def pieces(model: onnx.ModelProto, outputs: Sequence[str], anywhere: bool) -> list[onnx.ModelProto]:
    """Models that one after the other compute `outputs`, each from the network's inputs and what those before it give.

    The first takes all of the network's inputs. A cut goes through tensors that are asked for, so that onnxruntime
    does in the pieces what it does in the whole; with `anywhere`, where it fuses nothing, through any tensors.
    """
    graph = model.graph
    known = {value.name: value for value in (*graph.output, *graph.value_info, *graph.input)}
    places = _cuts(graph, known, outputs, anywhere)
    if not places:
        return [model]
    return [_piece(model, known, begin, end, outputs) for begin, end in pairwise([0, *places, len(graph.node)])]


def _cuts(
    graph: onnx.GraphProto, known: dict[str, onnx.ValueInfoProto], outputs: Sequence[str], anywhere: bool
) -> list[int]:
    if any(attribute.HasField("g") or attribute.graphs for node in graph.node for attribute in node.attribute):
        return []  # bodies read what is outside of them
    if not {name for node in graph.node for name in node.output}.issuperset(outputs):
        return []
    last = {name: place for place, node in enumerate(graph.node) for name in node.input}
    asked = set(outputs)
    crossing: set[str] = set()  # what is written so far and read later, but for what a cut may go through
    places, held = [], 0
    for place, node in enumerate(graph.node):
        crossing.difference_update(name for name in node.input if last[name] == place)
        for name in node.output:
            held += _bytes(known[name]) if name in asked and name in known else 0
            typed = known.get(name, onnx.ValueInfoProto()).type.tensor_type
            fused = name not in asked or node.op_type in _SEEN_THROUGH or len(typed.shape.dim) > _TOKENS
            if name and last.get(name, 0) > place and not (typed.elem_type and (anywhere or not fused)):
                crossing.add(name)
        if held > LIMIT and not crossing and place + 1 < len(graph.node):
            places.append(place + 1)
            held = 0
    return places


def _bytes(value: onnx.ValueInfoProto) -> int:
    tensor = value.type.tensor_type
    size = np.dtype(helper.tensor_dtype_to_np_dtype(tensor.elem_type)).itemsize if tensor.elem_type else 0
    return int(math.prod(max(dim.dim_value, 1) for dim in tensor.shape.dim) * size)


def _piece(
    model: onnx.ModelProto, known: dict[str, onnx.ValueInfoProto], begin: int, end: int, outputs: Sequence[str]
) -> onnx.ModelProto:
    graph = model.graph
    nodes = graph.node[begin:end]
    stored = {tensor.name for tensor in graph.initializer}
    stored |= {tensor.values.name for tensor in graph.sparse_initializer}
    written = {name for node in nodes for name in node.output}
    read = dict.fromkeys(name for node in nodes for name in node.input if name)
    later = {name for node in graph.node[end:] for name in node.input}
    wanted = {*outputs, *later}
    first = [value.name for value in graph.input if value.name not in stored] if begin == 0 else []
    piece = onnx.ModelProto(ir_version=model.ir_version, opset_import=model.opset_import, functions=model.functions)
    piece.graph.name = f"{graph.name or 'network'}.{begin}"
    piece.graph.node.extend(nodes)
    made = [name for name in read if name not in written and name not in stored]
    piece.graph.input.extend(known[name] for name in dict.fromkeys([*first, *made]))
    piece.graph.output.extend(
        known.get(name, onnx.ValueInfoProto(name=name)) for node in nodes for name in node.output if name in wanted
    )
    piece.graph.value_info.extend(known[name] for name in written if name in known and name not in wanted)
    piece.graph.initializer.extend(tensor for tensor in graph.initializer if tensor.name in read)
    piece.graph.sparse_initializer.extend(t for t in graph.sparse_initializer if t.values.name in read)
    return piece
