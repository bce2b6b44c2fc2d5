"""Data and weights at the ends of float32: grids stay defined, sentinels set no range."""

from __future__ import annotations

import numpy as np
import onnx
import pytest

from leadline.graph import Graph
from leadline.pipeline import quantize
from masked_networks import Net

SHAPE = [1, 4, 8, 8]
F = np.float32


def network(spread: float = 1.0, sentinel: str = "") -> onnx.ModelProto:
    net = Net()
    kernel = net.constant((net.random.standard_normal((4, 4, 3, 3)) * spread / 6).astype(F))
    bias = net.constant((net.random.standard_normal(4) * spread).astype(F))
    hidden = net("Relu", net("Conv", net.input("x", SHAPE), kernel, bias, pads=[1] * 4))
    match sentinel:
        case "min":
            hidden = net("Min", hidden, net.constant(np.full((1, 4, 1, 1), 1e30, F)))
        case "max":
            hidden = net("Max", net("Neg", hidden), net.constant(np.full((1, 4, 1, 1), -1e30, F)))
        case "where":
            large = net("Greater", hidden, net.constant(F(1e6)))
            hidden = net("Where", large, net.constant(F(1e30)), hidden)
        case "lowest":
            small = net("Less", hidden, net.constant(F(-1)))
            hidden = net("Where", small, net.constant(np.finfo(F).min), hidden)
    second = net.constant((net.random.standard_normal((3, 4, 1, 1)) * spread / 2).astype(F))
    return net.model(net("Conv", hidden, second), [1, 3, 8, 8])


def data(factor: float, constant: bool = False) -> list[dict[str, np.ndarray]]:
    random = np.random.default_rng(0)
    return [
        {"x": (np.ones(SHAPE) if constant else random.standard_normal(SHAPE)).astype(F) * F(factor)} for _ in range(8)
    ]


@pytest.mark.parametrize("recipe", ["w8a8", "w4a8", "w8a16"])
@pytest.mark.parametrize("spread", [1.0, 0.0, 1e-30])
@pytest.mark.parametrize(
    ("factor", "constant"), [(0.0, True), (0.7, True), (1e-40, False), (1e-30, False), (1e15, False)]
)
def test_grids_are_defined(recipe: str, spread: float, factor: float, constant: bool) -> None:
    q = quantize(Graph.from_model(network(spread)), recipe, data(factor, constant))
    for grid in q.grids.values():
        assert np.isfinite(grid.scale).all() and (grid.scale >= np.finfo(F).tiny).all()
    output = q.verify().outputs[0]
    assert output.sqnr > 25 or output.largest < np.finfo(F).tiny


@pytest.mark.parametrize("sentinel", ["min", "max", "where", "lowest"])
@pytest.mark.parametrize("recipe", ["minmax-w8a8", "w8a8"])
def test_sentinels_set_no_range(recipe: str, sentinel: str) -> None:
    plain, kept = (
        quantize(Graph.from_model(network(sentinel=kind)), recipe, data(1.0)).verify().outputs[0].sqnr
        for kind in ("", sentinel)
    )
    assert kept > plain - 1
