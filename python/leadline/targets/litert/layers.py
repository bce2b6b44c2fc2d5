"""Layers of a ``.tflite`` as leadline's cores see them: layouts of weights and inputs, moments, first and last ones."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np
from numpy.typing import NDArray

from leadline.gram import ConvGram, Gram
from leadline.targets.litert.match import Site
from leadline.targets.litert.read import Subgraph

Codes = NDArray[Any]


def ends(site: Site, layers: Sequence[Site], graph: Subgraph) -> list[str]:
    """ "first" where no layer comes before this one, "last" where none comes behind."""
    of_layers = {id(layer.operator) for layer in layers}
    ends = []
    for end, order, reached, passes in (
        ("first", graph.operators, "inputs", "outputs"),
        ("last", graph.operators[::-1], "outputs", "inputs"),
    ):
        behind: set[int] = set()
        for operator in order:
            inner = not behind.isdisjoint(getattr(operator, reached))
            if operator is site.operator and not inner:
                ends.append(end)
            if id(operator) in of_layers or inner:
                behind.update(i for i in getattr(operator, passes) if i >= 0)
    return ends


def moments_of(site: Site, graph: Subgraph) -> Gram | ConvGram | None:
    """An empty observer of what a layer reads; None where rounding cannot be chosen from moments."""
    weight, options = graph.tensors[site.weight], site.operator.options
    if site.operator.type == "FULLY_CONNECTED":
        return Gram(weight.shape[1], weight.name)
    if site.operator.type == "TRANSPOSE_CONV" or options.get("depthMultiplier", 1) != 1:
        return None
    input_shape, output_shape = graph.tensors[site.input].shape, graph.tensors[site.output].shape
    strides = (int(options["strideH"]), int(options["strideW"]))
    dilations = (int(options["dilationHFactor"]), int(options["dilationWFactor"]))
    pads = [0, 0, 0, 0]
    if options["padding"] == 0:  # SAME: what is missing, the odd one at the end
        for axis in range(2):
            reach = (weight.shape[1 + axis] - 1) * dilations[axis] + 1
            missing = max((output_shape[1 + axis] - 1) * strides[axis] + reach - input_shape[1 + axis], 0)
            pads[axis], pads[2 + axis] = missing // 2, missing - missing // 2
    shape = to_rows(site, weight.array).shape
    return ConvGram(shape, strides, pads, dilations, input_shape[3] // shape[1], weight.name)


def input_rows(site: Site, x: NDArray[np.float32]) -> NDArray[np.float32]:
    """What the moments take in: rows of a linear layer, NCHW of a convolution."""
    if site.operator.type == "FULLY_CONNECTED":
        return x.reshape(-1, x.shape[-1])
    return np.ascontiguousarray(x.transpose(0, 3, 1, 2))


def to_rows(site: Site, weight: NDArray[Any]) -> NDArray[Any]:
    """A weight as the cores see it: (out, in), or (out, in of a group, height, width)."""
    if site.operator.type == "FULLY_CONNECTED":
        return weight
    order = (3, 0, 1, 2) if site.operator.type == "DEPTHWISE_CONV_2D" else (0, 3, 1, 2)
    return np.ascontiguousarray(weight.transpose(order))


def from_rows(site: Site, codes: Codes) -> Codes:
    if site.operator.type == "FULLY_CONNECTED":
        return codes
    order = (1, 2, 3, 0) if site.operator.type == "DEPTHWISE_CONV_2D" else (0, 2, 3, 1)
    return np.ascontiguousarray(codes.transpose(order))
