"""Calibrate: observe the float network on the samples, then choose the grid of every placed tensor."""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import replace
from typing import Any

import numpy as np
from numpy.typing import NDArray

from leadline.affine import accumulator_grid, choose_grid, range_of
from leadline.graph import Graph, Layer, Node
from leadline.graph.edit import own_biases, own_branches
from leadline.graph.operators import clamp_bounds
from leadline.graph.relative import keep_positive
from leadline.observers import Histogram, MovingAverage, search_range
from leadline.recipe import Calibrate, Observer
from leadline.steps.fitting import fit, output_grid, suit_multipliers
from leadline.steps.gate import LUCK, output_error
from leadline.steps.observe import histograms, level_masks, masks_of, observe
from leadline.steps.placement import Placement, place
from leadline.steps.state import Record, State
from leadline.types import Grid, Scheme

Ranges = dict[str, tuple[Any, Any]]
"""Of each activation with a grid of its own: lowest and highest value."""

INT32_LIMIT = 2.0**31 - 2**16
"""A bias code beyond this leaves no head-room for the accumulator."""


CANDIDATES: tuple[tuple[Observer, float], ...] = (("mse", 3.0), ("sqnr", 0.0), ("mse", 2.0), ("mse", 1.5))
"""What "best" tries beside the observed range, with the observer's option. Each clips more than the one before."""

NEGLIGIBLE = 0.02
"""A group of tensors that causes less than this share of the noise keeps its observed ranges."""


PREVIEW = 4
"""Held-out samples by which observers are compared with each other; the winner has to prove itself on all."""

WIDE, GLANCE = 8, 2
"""Bits of an activation that is worth more than the others, and the held-out samples that tell."""

HEADROOM = 1.5
"""How far beyond the range that was chosen a wider grid reaches, for what calibration did not see: half a bit of 16,
against the clipping that few samples leave (22 dB instead of 36 on a network fed with noise, 12 samples). Not beyond
what a clamp leaves, which the grid has to perform on Hexagon."""

HOPELESS = 1.5
"""With so many times the noise of the best range so far, one that clips still more is not worth a try."""


def calibrate(step: Calibrate, state: State) -> None:
    """Fill ``state.grids`` for activations, weights, constants and biases; one pass over the calibration samples, and
    another for moving averages."""
    own_biases(state.graph)
    own_branches(state.graph)
    if state.profile.integers_only:
        for name in keep_positive(state.graph):
            state.log.append(Record("calibrate", name, "kept above zero, which its reader cannot take"))
    for name in level_masks(state):
        note = "masks whole rows, so each row's largest value is taken away from it"
        state.log.append(Record("calibrate", name, note))
    state.placement = placement = fit(state.graph, place(state.graph, state.recipe, state.profile), state.profile)
    state.log += [Record.of("calibrate", note) for note in placement.notes]
    ranges, masks = _observe(step, state, placement)
    weights: dict[str, Grid] = {}
    for name, scheme in placement.constants.items():
        lo, hi = masks[name] if name in masks else range_of(state.graph.weights[name], scheme)
        weights[name] = choose_grid(lo, hi, scheme)
    for layer, scheme in placement.layers:
        if layer.weight not in weights:
            weights[layer.weight] = _weight_grid(step, state.graph, layer, scheme)
    if step.widen:
        _widen(step, state, placement)
    if step.activations == "best" and placement.schemes:
        ranges = _choose(state, placement, weights)
    elif step.activations != "moving-average":
        option = step.percentile if step.activations == "percentile" else step.p
        ranges = _ranges(state, placement, step.activations, option)
    _fill(state, placement, weights, ranges)
    for tensor, histogram in state.histograms.items():
        if histogram.lo.ndim == 0 and float(histogram.lo) == float(histogram.hi):
            state.log.append(Record("calibrate", tensor, f"constant {float(histogram.lo):g} on every sample"))


def _widen(step: Calibrate, state: State, placement: Placement) -> None:
    """Give 8 bits to the activations that cost most: an error of 4 bits mostly comes from a few of them."""
    schemes, ranges = placement.schemes, _ranges(state, placement, "mse", 2.0)
    shared: dict[str, list[str]] = {}
    for tensor, root in placement.root.items():
        if schemes[root].bits < WIDE and root not in state.ranges:
            shared.setdefault(root, []).append(tensor)
    noise: dict[str, float] = {}
    for root in state.progress.over(shared, "noise of each activation", len(shared)):
        grids = _grids(state, placement, shared[root], ranges)
        noise[root] = output_error(replace(state, grids=grids, codes={}), GLANCE)
    for root in sorted(noise, key=lambda root: -noise[root])[: round(step.widen * len(noise))]:
        share = noise[root] / (sum(noise.values()) or 1.0)
        note = f"{WIDE} bits, for {share:.0%} of the noise of {len(noise)} narrower ones"
        state.log.append(Record("calibrate", root, note))
        for tensor in shared[root]:
            schemes[tensor] = replace(schemes[tensor], bits=WIDE)


def _choose(state: State, placement: Placement, weights: dict[str, Grid]) -> Ranges:
    """For the tensors of each operator type the observer that disturbs the network's outputs least.

    Which one is measured with these tensors alone quantised: in a whole deep network the gain drowns in the luck of a
    few samples. Errors of several types do not always add up, though, so no choice may raise the whole error by more
    than such luck does, and all of them together must lower it.
    """
    chosen = plain = _ranges(state, placement, "minmax")
    candidates = {tried: _ranges(state, placement, *tried) for tried in CANDIDATES}
    producers = state.graph.producers()
    groups: dict[str, list[str]] = {}
    for tensor, root in placement.root.items():
        groups.setdefault(producers[root].op_type if root in producers else "input", []).append(tensor)

    def alone(tensors: list[str], ranges: Ranges) -> float:
        grids = _grids(state, placement, tensors, ranges)
        return output_error(replace(state, grids=grids, codes={}), PREVIEW)

    def whole(ranges: Ranges) -> float:
        trial = replace(state, log=[])
        _fill(trial, placement, weights, ranges)
        return output_error(trial)

    errors = {op: alone(groups[op], chosen) for op in state.progress.over(groups, "noise of each type", len(groups))}
    matter = sorted((op for op in groups if errors[op] > NEGLIGIBLE * sum(errors.values())), key=lambda op: -errors[op])
    first = before = lowest = whole(plain)
    for op in state.progress.over(matter, "choose ranges", len(matter)):
        trials: dict[tuple[Observer, float], float] = {}
        for tried, ranges in candidates.items():
            trials[tried] = alone(groups[op], ranges)
            if trials[tried] > HOPELESS * min(errors[op], *trials.values()):
                break
        best = min(trials, key=lambda tried: trials[tried])
        if trials[best] < errors[op]:
            roots = {placement.root[tensor] for tensor in groups[op]} & chosen.keys()  # tokens have no ranges
            changed = chosen | {root: candidates[best][root] for root in roots}
            after = whole(changed)
            note = f"ranges by {best[0]}{f' {best[1]:g}' if best[1] else ''}, simulated output error"
            kept = after < LUCK * lowest
            state.log.append(Record("calibrate", f"every {op}", note, before, after, kept))
            if kept:
                chosen, before, lowest = changed, after, min(lowest, after)
    state.log.append(Record("calibrate", state.graph.name, "all chosen ranges", first, before, before <= first))
    return chosen if before <= first else plain


def _fill(state: State, placement: Placement, weights: dict[str, Grid], ranges: Ranges) -> None:
    """All grids, given the ranges of the activations."""
    state.grids = weights | _grids(state, placement, placement.schemes, ranges)
    state.codes = {}
    for layer, _ in placement.layers:
        _suit_accumulator(state, layer)
    suit_multipliers(state)
    for layer, _ in placement.layers:  # only now: layers may share a weight
        bias_grid(state, layer)


def _grids(state: State, placement: Placement, tensors: Iterable[str], ranges: Ranges) -> dict[str, Grid]:
    producers = state.graph.producers()
    return {tensor: _grid(state.graph, producers, placement, tensor, ranges) for tensor in tensors}


def _grid(graph: Graph, producers: dict[str, Node], placement: Placement, tensor: str, ranges: Ranges) -> Grid:
    scheme = placement.schemes[tensor]
    if scheme.granularity == "token":
        return Grid(np.ones((), np.float32), np.zeros((), np.int32), scheme)
    lo, hi = ranges[placement.root[tensor]]
    if scheme.bits > WIDE:
        writer = producers.get(placement.root[tensor])
        kept = clamp_bounds(graph, writer, placement.root[tensor]) if writer is not None else None
        lowest, highest = kept or (-np.inf, np.inf)  # beyond which no value lies
        lo = np.minimum(lo, np.maximum(np.multiply(lo, HEADROOM), lowest))
        hi = np.maximum(hi, np.minimum(np.multiply(hi, HEADROOM), highest))
    return choose_grid(lo, hi, scheme)


def _ranges(state: State, placement: Placement, observer: Observer, option: float = 0.0) -> Ranges:
    schemes = placement.schemes
    found = {name: _search(seen, schemes[name], observer, option) for name, seen in state.histograms.items()}
    return found | _decided(state, found)


def _decided(state: State, found: Ranges) -> Ranges:
    """What a step has decided before calibration goes before what calibration finds."""
    return {name: decided for name, decided in state.ranges.items() if name in found}


def _observe(step: Calibrate, state: State, placement: Placement) -> tuple[Ranges, Ranges]:
    """Fill ``state.histograms``; what comes back are moving averages, if they are asked for, and of constant masks how
    far they have to reach."""
    schemes, bounded = placement.schemes | placement.constants, masks_of(state).bounded
    own = {name for name in placement.root.values() if schemes[name].granularity != "token"}
    roots = [name for name in state.graph.activations() if name in own]  # in the order of computation, for messages
    constants = [name for name in placement.constants if name in bounded]
    axes = {name: schemes[name].axis if schemes[name].granularity == "axis" else None for name in (*roots, *constants)}
    seen = histograms(state, axes, "calibrate")
    masks: Ranges = {name: (seen[name].lo, seen[name].hi) for name in constants}
    state.histograms = {name: seen[name] for name in roots}
    if step.activations != "moving-average" or not roots:
        return {}, masks
    averages = {name: MovingAverage(step.momentum, axes[name]) for name in roots}
    for label, values in observe(state, roots, "moving averages"):
        for name in roots:
            averages[name].update(values[name], sample=label)
    found: Ranges = {name: (average.lo, average.hi) for name, average in averages.items()}
    return found | _decided(state, found), masks


def _search(histogram: Histogram, scheme: Scheme, observer: str, option: float) -> tuple[Any, Any]:
    if observer in ("percentile", "mse"):
        return search_range(histogram, observer, scheme, p=option)
    return search_range(histogram, observer, scheme)


def _weight_grid(step: Calibrate, graph: Graph, layer: Layer, scheme: Scheme) -> Grid:
    weight = graph.weights[layer.weight]
    if scheme.granularity == "block" or step.weights == "minmax":
        return choose_grid(*range_of(weight, scheme), scheme)
    histogram = Histogram(axis=scheme.axis if scheme.granularity == "axis" else None, name=layer.weight)
    histogram.update(weight)
    option = step.percentile if step.weights == "percentile" else step.p
    return choose_grid(*_search(histogram, scheme, step.weights, option), scheme)


def bias_grid(state: State, layer: Layer) -> None:
    """Give the layer's bias its grid: int32 at scale = input scale x weight scale, as integer kernels want it.

    Nothing happens where the layer has no bias, its input stays float, or its weight's scales belong to blocks. Where
    the input has no one scale, there is no integer kernel to suit, and the bias gets a grid as fine as it needs.
    """
    if layer.bias is None or layer.weight not in state.grids:
        return
    bias, weight = state.graph.weights[layer.bias], state.grids[layer.weight]
    if _adds_integers(state, layer):
        single = state.profile.single_bias_scale and bias.size > 1
        state.grids[layer.bias] = accumulator_grid(weight, state.grids[layer.input], bias.size, single)
    elif _reads_many_scales(state, layer):
        scale = np.full(bias.shape, max(float(np.abs(bias).max(initial=0)), 1e-3) * 2.0**-20, np.float32)
        scheme = Scheme(bits=32, signed=True, symmetric=True, granularity="axis", axis=0)
        state.grids[layer.bias] = Grid(scale, np.zeros(bias.shape, np.int32), scheme)


def _adds_integers(state: State, layer: Layer) -> bool:
    given = state.grids.get(layer.input)
    whole = given is not None and given.scheme.granularity == "tensor"
    return whole and state.grids[layer.weight].scheme.granularity != "block"


def _reads_many_scales(state: State, layer: Layer) -> bool:
    """Per channel or per token, or behind a polished tensor."""
    if layer.input in state.grids:
        return state.grids[layer.input].scheme.granularity != "tensor"
    producer = state.graph.producer(layer.input)
    return producer is not None and producer.op_type == "LogUnpolish"


def _repeats(bias: NDArray[np.float32], weight: Grid) -> int:
    """How many channels of the bias each scale of the weight serves: a grouped ConvTranspose shares them."""
    return bias.size // weight.scale.size


def _suit_accumulator(state: State, layer: Layer) -> None:
    """Enlarge weight scales whose int32 accumulator could not hold the layer's bias (as aimet-onnx does) or the range
    of its output, whose offset kernels add to the bias: Hexagon's give the lowest code then, for a channel that is
    almost dead.

    A channel of zeros has the codes zero at any scale, so it takes one that is fine enough for its bias.
    """
    if not _adds_integers(state, layer):
        return
    weight, step = state.grids[layer.weight], float(state.grids[layer.input].scale)
    largest = np.zeros(weight.scale.shape)
    if layer.bias is not None:
        bias = state.graph.weights[layer.bias]
        largest = np.abs(bias).reshape(_repeats(bias, weight), -1).max(axis=0).reshape(weight.scale.shape)
    lo, hi = range_of(state.graph.weights[layer.weight], weight.scheme)
    dead = (lo == 0) & (hi == 0) & (largest > 0)
    unit = weight.scale.astype(np.float64) * step
    unit = np.where(dead, np.minimum(unit, largest / 2.0**24), unit)
    written = output_grid(state, layer.output)
    reach = 0.0 if written is None else float(max(-written.lo, written.hi))
    factor = np.maximum(1.0, np.maximum(largest, 2 * reach) / (unit * INT32_LIMIT))
    if dead.any() or (factor > 1).any():
        state.grids[layer.weight] = replace(weight, scale=(unit * factor / step).astype(np.float32))
    if (factor > 1).any():
        note = f"weight scale enlarged {factor.max():.3g}x for its accumulator"
        state.log.append(Record("calibrate", layer.name, note))
