"""An artefact without the rounding of its activations: what the network computes that was quantised."""

from __future__ import annotations

import numpy as np
import onnx
from numpy.typing import NDArray
from onnx import helper, numpy_helper

from leadline.export.qdq_read import bits_of
from leadline.types import Scheme


def unrounded(model: onnx.ModelProto) -> onnx.ModelProto:
    """Each pair of QuantizeLinear and DequantizeLinear with one scale becomes a Clip to its range, which keeps the
    clamps that only quantisation performs. Weights keep the values of their codes. `model` holds all its data.
    """
    changed = onnx.ModelProto()
    changed.CopyFrom(model)
    graph = changed.graph
    stored = {tensor.name: tensor for tensor in graph.initializer}
    quantised = {node.output[0]: node for node in graph.node if node.op_type == "QuantizeLinear"}
    nodes = []
    for node in graph.node:
        before = quantised.get(node.input[0]) if node.op_type == "DequantizeLinear" else None
        bounds = None if before is None or before.input[0] in stored else _bounds(node, stored)
        if before is None or bounds is None:
            nodes.append(node)
            continue
        ends = [f"{node.output[0]}.{end}" for end in ("lowest", "highest")]
        graph.initializer.extend(numpy_helper.from_array(bound, end) for bound, end in zip(bounds, ends, strict=True))
        nodes.append(helper.make_node("Clip", [before.input[0], *ends], [node.output[0]]))
    del graph.node[:]
    graph.node.extend(nodes)
    return changed


def _bounds(node: onnx.NodeProto, stored: dict[str, onnx.TensorProto]) -> list[NDArray[np.float32]] | None:
    """The least and the greatest value of a grid with one scale; None for others, and where they are computed."""
    if len(node.input) < 3 or not {node.input[1], node.input[2]} <= stored.keys():
        return None
    scale, zero_point = (numpy_helper.to_array(stored[name]) for name in node.input[1:3])
    if scale.size != 1:
        return None
    bits = bits_of(zero_point.dtype)
    if bits is None:
        return None
    scheme = Scheme(bits, signed=not zero_point.dtype.name.startswith("u"))
    codes = np.array([scheme.qmin, scheme.qmax]) - int(zero_point.reshape(()))
    return [np.float32(code) * scale.reshape(()).astype(np.float32) for code in codes]
