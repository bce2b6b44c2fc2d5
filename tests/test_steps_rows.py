"""Rows and moments of every kind of layer: the error that they predict is the error of the layer's output."""

from __future__ import annotations

from dataclasses import replace

import numpy as np
import pytest

from leadline.affine import choose_grid, dequantize, quantize, range_of
from leadline.gram import Gram
from leadline.graph import Graph, Layer, Session
from leadline.steps.rows import Inputs, Rows
from leadline.types import Scheme
from ranks import NETWORKS

LAYERS = [name for name in NETWORKS if name.startswith(("Conv", "MatMul", "Gemm-c-none"))]


def alone(graph: Graph, layer: Layer, weight: np.ndarray) -> Graph:
    """The layer as a network, with another weight and without its bias."""
    node = replace(layer.node, inputs=[layer.input, layer.weight])
    ends = [graph.values[name] for name in (layer.input, layer.output)]
    values = {value.name: value for value in ends}
    return Graph([node], {layer.weight: weight}, ends[:1], ends[1:], values)


def layers(name):
    graph = Graph.from_model(NETWORKS[name]())
    rng = np.random.default_rng(0)
    for layer in graph.layers():
        x = (rng.standard_normal(graph.shape(layer.input)) + 0.5).astype(np.float32)
        weight = graph.weights[layer.weight]
        yield graph, layer, x, weight, (weight + 0.1 * rng.standard_normal(weight.shape)).astype(np.float32)


@pytest.mark.parametrize("paths", [1, 2])
@pytest.mark.parametrize("name", LAYERS)
def test_the_error_from_moments_is_that_of_the_output(name, paths):
    for graph, layer, x, weight, other in layers(name):
        y = x + 0.1 * np.random.default_rng(1).standard_normal(x.shape).astype(np.float32) if paths == 2 else x
        outputs = []
        for values, read in ((weight, x), (other, y)):
            with Session(alone(graph, layer, values), optimize=False) as session:
                outputs.append(session.run({layer.input: read})[layer.output].astype(np.float64))
        inputs, rows = Inputs(graph, layer), Rows(graph, layer)
        moments = inputs.moments(paths)
        inputs.update(moments, [x, y][-paths:], 1)
        matrix = np.atleast_3d(moments.matrix()[None]) if isinstance(moments, Gram) else moments.matrix()
        before, after = (rows(v).reshape(len(matrix), -1, rows(v).shape[1]).astype(np.float64) for v in (weight, other))
        difference = np.concatenate([before, -after], 2) if paths == 2 else before - after
        predicted = moments.count * np.sum((difference @ matrix) * difference)
        assert predicted == pytest.approx(np.sum((outputs[0] - outputs[1]) ** 2), rel=1e-4)


@pytest.mark.parametrize("granularity", ["tensor", "axis", "block"])
@pytest.mark.parametrize("name", LAYERS)
def test_rounding_rows_is_rounding_the_weight(name, granularity):
    for graph, layer, _, weight, _ in layers(name):
        scheme = Scheme(6, True, True, granularity, block_size=2 if granularity == "block" else None)
        if granularity == "axis":
            scheme = scheme.at(layer.axis)
        if granularity == "block":
            features = layer.axis - 1 if layer.node.op_type == "MatMul" else 1
            if layer.kind != "linear" or weight.shape[features] % 2:
                continue
            scheme = scheme.at(features)
        grid, rows = choose_grid(*range_of(weight, scheme), scheme), Rows(graph, layer)
        codes = quantize(weight, grid)
        assert np.array_equal(rows.back(quantize(np.ascontiguousarray(rows(weight)), rows.grid(grid))), codes)
        assert np.array_equal(rows.back(rows(codes)), codes)
        assert np.array_equal(rows(dequantize(codes, grid)), dequantize(rows(codes), rows.grid(grid)))
