"""Calibrate: observe the float network on the samples, then choose the grid of every placed tensor."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

import numpy as np
from numpy.typing import NDArray

from leadline.affine import choose_grid, range_of
from leadline.graph import Graph, Layer, Session
from leadline.observers import Histogram, MovingAverage, search_range
from leadline.recipe import Calibrate, Observer
from leadline.steps.gate import output_error
from leadline.steps.placement import Placement, place
from leadline.steps.state import Record, State
from leadline.types import Grid, Scheme

INT32_LIMIT = 2.0**31 - 2**16
"""A bias code beyond this leaves no head-room for the accumulator."""


CANDIDATES: tuple[Observer, ...] = ("minmax", "percentile", "sqnr", "mse")
"""What "best" chooses from. Entropy is left out: it is made for one tensor's density, not for depth or boxes."""


def calibrate(step: Calibrate, state: State) -> None:
    """Fill ``state.grids`` for activations, weights, constants and biases; one pass over the calibration samples."""
    _own_biases(state.graph)
    state.placement = placement = place(state.graph, state.recipe)
    state.log += [Record.of("calibrate", note) for note in placement.notes]
    averages = _observe(step, state, placement)
    weights: dict[str, Grid] = {}
    for name, scheme in placement.constants.items():
        weights[name] = choose_grid(*range_of(state.graph.weights[name], scheme), scheme)
    for layer, scheme in placement.layers:
        if layer.weight not in weights:
            weights[layer.weight] = _weight_grid(step, state.graph, layer, scheme)
    if step.activations == "best" and placement.schemes:
        _choose(step, state, placement, weights)
    else:
        _fill(step, state, placement, weights, step.activations, averages)
    for tensor, histogram in state.histograms.items():
        if float(histogram.lo) == float(histogram.hi):
            state.log.append(Record("calibrate", tensor, f"constant {float(histogram.lo):g} on every sample"))


def _choose(step: Calibrate, state: State, placement: Placement, weights: dict[str, Grid]) -> None:
    """The observer whose grids give the least simulated output error on held-out samples."""
    errors: dict[Observer, float] = {}
    best = None
    with state.progress("choose ranges"):
        for observer in CANDIDATES:
            trial = replace(state, grids={}, codes={}, log=[])
            _fill(step, trial, placement, weights, observer, {})
            errors[observer] = output_error(trial)
            if errors[observer] == min(errors.values()):
                best = trial
    assert best is not None
    state.grids = best.grids
    state.log += best.log
    chosen, graph = min(errors, key=lambda observer: errors[observer]), state.graph.name
    state.log += [
        Record("calibrate", graph, f"{observer} ranges, simulated output error", after=error, kept=observer == chosen)
        for observer, error in errors.items()
    ]


def _fill(
    step: Calibrate,
    state: State,
    placement: Placement,
    weights: dict[str, Grid],
    observer: Observer,
    averages: dict[str, MovingAverage],
) -> None:
    """All grids, with the activations' ranges by one observer."""
    ranges = {
        name: (averages[name].lo, averages[name].hi)
        if averages
        else _search(step, histogram, placement.schemes[name], observer)
        for name, histogram in state.histograms.items()
    }
    state.grids = dict(weights)
    state.codes = {}
    for tensor, scheme in placement.schemes.items():
        lo, hi = ranges[placement.root[tensor]]
        state.grids[tensor] = choose_grid(lo, hi, scheme)
    for layer, _ in placement.layers:
        _suit_bias(state, layer)
    for layer, _ in placement.layers:  # only now: layers may share a weight
        bias_grid(state, layer)


def _observe(step: Calibrate, state: State, placement: Placement) -> dict[str, MovingAverage]:
    """Fill ``state.histograms``; with "moving-average" the averages come back beside them."""
    roots = sorted(set(placement.root.values()))
    state.histograms = {name: Histogram(name=name) for name in roots}
    averages = {name: MovingAverage(step.momentum) for name in roots} if step.activations == "moving-average" else {}
    if not roots:
        return averages
    inputs = {value.name for value in state.graph.inputs}
    watched = [name for name in roots if name not in inputs]
    with Session(state.graph, outputs=watched or None, threads=state.threads) as session:
        samples = zip(state.calibration.labels, state.calibration, strict=True)
        for label, feed in state.progress.over(samples, "calibrate", len(state.calibration)):
            seen = session.run(feed) | feed
            for name in roots:
                state.histograms[name].update(seen[name], sample=label, threads=state.threads)
                if averages:
                    averages[name].update(seen[name], sample=label)
    return averages


def _search(step: Calibrate, histogram: Histogram, scheme: Scheme, observer: Observer) -> tuple[Any, Any]:
    if observer == "percentile":
        return search_range(histogram, observer, scheme, p=step.percentile)
    if observer == "mse":
        return search_range(histogram, observer, scheme, p=step.p)
    return search_range(histogram, observer, scheme)


def _weight_grid(step: Calibrate, graph: Graph, layer: Layer, scheme: Scheme) -> Grid:
    weight = graph.weights[layer.weight]
    if scheme.granularity == "block" or step.weights == "minmax":
        return choose_grid(*range_of(weight, scheme), scheme)
    histogram = Histogram(axis=scheme.axis if scheme.granularity == "axis" else None, name=layer.weight)
    histogram.update(weight)
    return choose_grid(*_search(step, histogram, scheme, step.weights), scheme)


def bias_grid(state: State, layer: Layer) -> None:
    """Give the layer's bias its grid: int32 at scale = input scale x weight scale, as integer kernels want it.

    Nothing happens where the layer has no bias, its input stays float, or its weight's scales belong to blocks.
    """
    if layer.bias is not None and _adds_integers(state, layer):
        bias, weight = state.graph.weights[layer.bias], state.grids[layer.weight]
        scheme = Scheme(bits=32, signed=True, symmetric=True, granularity="axis", axis=0)
        scale = np.tile(weight.scale, _repeats(bias, weight)) * state.grids[layer.input].scale
        state.grids[layer.bias] = Grid(scale, np.zeros(bias.shape, np.int32), scheme)


def _adds_integers(state: State, layer: Layer) -> bool:
    return layer.input in state.grids and state.grids[layer.weight].scheme.granularity != "block"


def _repeats(bias: NDArray[np.float32], weight: Grid) -> int:
    """How many channels of the bias each scale of the weight serves: a grouped ConvTranspose shares them."""
    return bias.size // weight.scale.size


def _suit_bias(state: State, layer: Layer) -> None:
    """Change weight scales that its bias cannot live with: enlarge one that would overflow it, as aimet-onnx does.

    A channel of zeros has the codes zero at any scale, so it takes one that is fine enough for its bias.
    """
    if layer.bias is None or not _adds_integers(state, layer):
        return
    bias, weight = state.graph.weights[layer.bias], state.grids[layer.weight]
    step = float(state.grids[layer.input].scale)
    largest = np.abs(bias).reshape(_repeats(bias, weight), -1).max(axis=0).reshape(weight.scale.shape)
    lo, hi = range_of(state.graph.weights[layer.weight], weight.scheme)
    dead = (lo == 0) & (hi == 0) & (largest > 0)
    unit = weight.scale.astype(np.float64) * step
    unit = np.where(dead, np.minimum(unit, largest / 2.0**24), unit)
    factor = np.maximum(1.0, largest / (unit * INT32_LIMIT))
    if dead.any() or (factor > 1).any():
        state.grids[layer.weight] = replace(weight, scale=(unit * factor / step).astype(np.float32))
    if (factor > 1).any():
        state.log.append(Record("calibrate", layer.name, f"weight scale enlarged {factor.max():.3g}x for its bias"))


def _own_biases(graph: Graph) -> None:
    """A bias that several nodes read gets a copy for each layer, since each layer has its own bias grid."""
    readers = graph.readers()
    for layer in graph.layers():
        if layer.bias is not None and len(readers[layer.bias]) > 1:
            name = f"{layer.name}.{layer.bias}"
            graph.weights[name] = graph.weights[layer.bias]
            layer.node.inputs[2] = name
