"""Calibrate: observe the float network on the samples, then choose the grid of every placed tensor."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

import numpy as np

from leadline.affine import choose_grid, range_of
from leadline.graph import Graph, Layer, Session
from leadline.observers import Histogram, MovingAverage, search_range
from leadline.recipe import Calibrate
from leadline.steps.placement import Placement, place
from leadline.steps.state import Record, State
from leadline.types import Grid, Scheme

INT32_LIMIT = 2.0**31 - 2**16
"""A bias code beyond this leaves no head-room for the accumulator."""


def calibrate(step: Calibrate, state: State) -> None:
    """Fill ``state.grids`` for activations, weights, constants and biases; one pass over the calibration samples."""
    _own_biases(state.graph)
    state.placement = placement = place(state.graph, state.recipe)
    state.grids.clear()
    state.codes.clear()
    state.log += [Record("calibrate", note.split(":")[0], note.split(": ", 1)[1]) for note in placement.notes]
    ranges = _observe(step, state, placement)
    for tensor, scheme in placement.schemes.items():
        lo, hi = ranges[placement.root[tensor]]
        state.grids[tensor] = choose_grid(lo, hi, scheme)
        if lo == hi:
            state.log.append(Record("calibrate", tensor, f"constant {float(lo):g} on every sample"))
    for name, scheme in placement.constants.items():
        lo, hi = range_of(state.graph.weights[name], scheme)
        state.grids[name] = choose_grid(lo, hi, scheme)
    for layer, scheme in placement.layers:
        if layer.weight not in state.grids:
            state.grids[layer.weight] = _weight_grid(step, state.graph, layer, scheme)
        bias_grid(state, layer)


def _observe(step: Calibrate, state: State, placement: Placement) -> dict[str, tuple[float, float]]:
    roots = sorted(set(placement.root.values()))
    state.histograms = {name: Histogram(name=name) for name in roots}
    averages = {name: MovingAverage(step.momentum) for name in roots} if step.activations == "moving-average" else {}
    inputs = {value.name for value in state.graph.inputs}
    if roots:
        watched = [name for name in roots if name not in inputs]
        with Session(state.graph, outputs=watched, threads=state.threads) as session:
            for index, feed in enumerate(state.progress.over(state.calibration, "calibrate", len(state.calibration))):
                seen = session.run(feed)
                for name in roots:
                    array = feed[name] if name in inputs else seen[name]
                    state.histograms[name].update(array, sample=index)
                    if averages:
                        averages[name].update(array)
    found = {}
    for name, histogram in state.histograms.items():
        if averages:
            found[name] = (averages[name].lo, averages[name].hi)
        else:
            found[name] = _search(step, histogram, placement.schemes[name], step.activations)
    return {name: (float(lo), float(hi)) for name, (lo, hi) in found.items()}


def _search(step: Calibrate, histogram: Histogram, scheme: Scheme, observer: str) -> tuple[Any, Any]:
    options = {"percentile": {"p": step.percentile}, "mse": {"p": step.p}}.get(observer, {})
    return search_range(histogram, observer, scheme, **options)


def _weight_grid(step: Calibrate, graph: Graph, layer: Layer, scheme: Scheme) -> Grid:
    weight = graph.weights[layer.weight]
    if scheme.granularity == "block" or step.weights in ("minmax", "moving-average"):
        return choose_grid(*range_of(weight, scheme), scheme)
    histogram = Histogram(axis=scheme.axis if scheme.granularity == "axis" else None, name=layer.weight)
    histogram.update(weight)
    return choose_grid(*_search(step, histogram, scheme, step.weights), scheme)


def bias_grid(state: State, layer: Layer) -> None:
    """Give the layer's bias its grid: int32 at scale = input scale x weight scale, as integer kernels want it.

    A weight scale that would overflow the bias is enlarged, as aimet-onnx does. Nothing happens where the layer has
    no bias or its input stays float.
    """
    weight, source = state.grids[layer.weight], state.grids.get(layer.input)
    if layer.bias is None or source is None or weight.scheme.granularity == "block":
        return
    bias = state.graph.weights[layer.bias]
    repeats = bias.size // weight.scale.size if weight.scale.ndim else bias.size  # a grouped ConvTranspose shares scales
    scale = np.tile(weight.scale.astype(np.float64), repeats) * float(source.scale)
    factor = np.maximum(1.0, np.abs(bias) / (scale * INT32_LIMIT)).reshape(repeats, -1).max(axis=0)
    if (factor > 1).any():
        weight = replace(weight, scale=(weight.scale * factor.reshape(weight.scale.shape)).astype(np.float32))
        state.grids[layer.weight] = weight
        state.log.append(Record("calibrate", layer.name, f"weight scale enlarged {factor.max():.3g}x for its bias"))
    scheme = Scheme(bits=32, signed=True, symmetric=True, granularity="axis", axis=0)
    scale32 = np.tile(weight.scale, repeats) * np.float32(source.scale)
    state.grids[layer.bias] = Grid(scale32, np.zeros(bias.shape, np.int32), scheme)


def _own_biases(graph: Graph) -> None:
    """A bias that several nodes read gets a copy for each layer, since each layer has its own bias grid."""
    readers = graph.readers()
    for layer in graph.layers():
        if layer.bias is not None and len(readers[layer.bias]) > 1:
            name = f"{layer.name}.{layer.bias}"
            graph.weights[name] = graph.weights[layer.bias]
            layer.node.inputs[2] = name
