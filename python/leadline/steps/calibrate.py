"""Calibrate: observe the float network on the samples, then choose the grid of every placed tensor."""

from __future__ import annotations

from collections.abc import Container, Iterable, Mapping
from dataclasses import replace
from typing import Any

import numpy as np

from leadline import decide
from leadline.affine import choose_grid, range_of
from leadline.graph import Graph, Layer, Node
from leadline.graph.edit import own_biases, own_branches
from leadline.graph.operators import clamp_bounds
from leadline.graph.relative import keep_positive
from leadline.observers import OBSERVERS, Histogram
from leadline.options import options_of
from leadline.recipe import Calibrate
from leadline.steps.fitting import fit, output_grid, suit_multipliers
from leadline.steps.gate import LUCK, SAMPLES, output_error
from leadline.steps.observe import histograms, level_masks, masks_of, observe
from leadline.steps.placement import Placement, place
from leadline.steps.state import Record, Setup, State
from leadline.types import Grid, Scheme

Ranges = dict[str, tuple[Any, Any]]
"""Of each activation with a grid of its own: lowest and highest value."""

Trial = tuple[str, Mapping[str, float]]
"""An observer and its options."""

CLIPPED: Trial = ("mse", {"p": 2.0})
"""What "best" weighs against the observed ranges."""

PLAIN: Trial = ("minmax", {})

NEGLIGIBLE = 0.02
"""A group of tensors that causes less than this share of the noise keeps its observed ranges."""


PREVIEW = 4
"""Held-out samples by which observers are compared with each other; the winner has to prove itself on all. Where there
are fewer, samples are few: those that calibration has seen judge, too, and in the end all of them set ranges."""

WORTHY_BITS, GLANCE = 8, 2
"""Bits of an activation that is worth more than the others, and the held-out samples that tell."""


def run(step: Calibrate, state: State) -> None:
    """Fill ``state.grids`` for activations, weights, constants and biases; one pass over the calibration samples, and
    another for moving averages."""
    state.tried.clear()
    own_biases(state.graph)
    own_branches(state.graph)
    rules = state.setup.rules
    if rules.integers_only:
        for name in keep_positive(state.graph):
            state.log.append(Record("calibrate", name, "kept above zero, which its reader cannot take"))
    for name in level_masks(state):
        note = "masks whole rows, so each row's largest value is taken away from it"
        state.log.append(Record("calibrate", name, note))
    state.placement = placement = fit(state.graph, place(state.graph, state.recipe, rules), rules)
    state.log += [Record.of("calibrate", note) for note in placement.notes]
    ranges, masks = _observe(step, state, placement)
    weights: dict[str, Grid] = {}
    for name, scheme in placement.constants.items():
        lo, hi = masks[name] if name in masks else range_of(state.graph.weights[name], scheme)
        weights[name] = choose_grid(lo, hi, scheme)
    for layer, scheme in placement.layers:
        if layer.weight not in weights:
            weights[layer.weight] = _weight_grid(step, state, layer.weight, scheme)
    if step.widen:
        _widen(step, state, placement)
    if step.activations == "best" and placement.schemes:
        ranges = _choose(state, placement, weights)
    elif placement.schemes and not ranges:
        ranges = _ranges(state, placement, step.activations, options_of(step, OBSERVERS[step.activations]))
    _fill(state, placement, weights, ranges)
    for tensor, histogram in state.histograms.items():
        if histogram.lo.ndim == 0 and float(histogram.lo) == float(histogram.hi):
            state.log.append(Record("calibrate", tensor, f"constant {float(histogram.lo):g} on every sample"))


def _weight_grid(step: Calibrate, state: State, name: str, scheme: Scheme) -> Grid:
    """Found once for an array that trials share."""
    weight, options = state.graph.weights[name], options_of(step, OBSERVERS[step.weights])
    asked = (scheme, step.weights, options)
    known = state.weight_grids.get(name)
    if known is None or known[0] is not weight or known[1] != asked:
        grid = decide.weight_grid(weight, scheme, step.weights, name=name, threads=state.setup.threads, **options)
        known = state.weight_grids[name] = weight, asked, grid
    return known[2]


def _widen(step: Calibrate, state: State, placement: Placement) -> None:
    """Give 8 bits to the activations that cost most: an error of 4 bits mostly comes from a few of them."""
    schemes, ranges = placement.schemes, _ranges(state, placement, *CLIPPED)
    shared: dict[str, list[str]] = {}
    for tensor, root in placement.root.items():
        if schemes[root].bits < WORTHY_BITS and root not in state.ranges:
            shared.setdefault(root, []).append(tensor)
    noise: dict[str, float] = {}
    for root in state.setup.progress.over(shared, "noise of each activation", len(shared)):
        grids = _grids(state, placement, shared[root], ranges)
        noise[root] = output_error(state.fork(grids=grids, codes={}), GLANCE)
    for root in sorted(noise, key=lambda root: -noise[root])[: round(step.widen * len(noise))]:
        share = noise[root] / (sum(noise.values()) or 1.0)
        note = f"{WORTHY_BITS} bits, for {share:.0%} of the noise of {len(noise)} narrower ones"
        state.log.append(Record("calibrate", root, note))
        for tensor in shared[root]:
            schemes[tensor] = replace(schemes[tensor], bits=WORTHY_BITS)


def _choose(state: State, placement: Placement, weights: dict[str, Grid]) -> Ranges:
    """Ranges of least squared error for all tensors, unless the whole network loses by them on held-out samples: then
    only for the operator types that gain by them alone.

    What clipping does to a network's outputs goes as squared errors do, but where peaks are the signal, as a face
    detector's are, and there it costs so much that it shows. Finer choices, of an observer for each operator type by
    what these tensors alone cost, were luck: on other pictures five networks of six came out 0.2 to 3 dB worse by them.
    Where samples are few, what clips must gain more than luck: what it costs is on samples that nobody has seen.
    """
    few = _is_few(state.setup)
    judge = _judged_by_all(state) if few else state
    plain, clipped = (_ranges(state, placement, *trial) for trial in (PLAIN, CLIPPED))

    def whole(ranges: Ranges) -> float:
        trial = judge.fork()
        _fill(trial, placement, weights, ranges)
        return output_error(trial)

    def record(note: str, before: float, after: float, kept: bool) -> None:
        state.log.append(Record("calibrate", state.graph.name, note, before, after, kept))

    with state.setup.progress("choose ranges"):
        before, after = whole(plain), whole(clipped)
    kept = after * LUCK < before if few else after < before * LUCK
    record("ranges by least squared error, simulated output error", before, after, kept)
    roots = set(plain) if kept else set()
    if not kept and not few:
        some = _gaining(judge, placement, plain, clipped)
        if some:
            after = whole(plain | {root: clipped[root] for root in some})
            kept = after < before / LUCK
            record(f"the same for {len(some)} of {len(plain)} tensors", before, after, kept)
            roots = some if kept else roots
    before = after if kept else before
    chosen = plain | {root: clipped[root] for root in roots}
    if few and not state.setup.held_out_given:
        wider = _of_all(state, placement, chosen, roots)
        after = whole(wider)
        kept = after < LUCK * before
        record("few samples, so ranges come from the held-out ones as well", before, after, kept)
        chosen = wider if kept else chosen
    return chosen


def _gaining(state: State, placement: Placement, plain: Ranges, clipped: Ranges) -> set[str]:
    """The tensors of those operator types that alone cost less with clipped ranges."""
    producers = state.graph.producers()
    groups: dict[str, list[str]] = {}
    for tensor, root in placement.root.items():
        groups.setdefault(producers[root].op_type if root in producers else "input", []).append(tensor)

    def alone(op: str, ranges: Ranges) -> float:
        grids = _grids(state, placement, groups[op], ranges)
        return output_error(state.fork(grids=grids, codes={}), PREVIEW)

    over = state.setup.progress.over
    errors = {op: alone(op, plain) for op in over(groups, "noise of each type", len(groups))}
    matter = [op for op in groups if errors[op] > NEGLIGIBLE * sum(errors.values())]
    gain = [op for op in over(matter, "choose ranges", len(matter)) if alone(op, clipped) < errors[op]]
    return {placement.root[tensor] for op in gain for tensor in groups[op]} & plain.keys()  # tokens have no ranges


def _is_few(setup: Setup) -> bool:
    return len(setup.held_out) < PREVIEW and setup.held_out is not setup.calibration


def _judged_by_all(state: State) -> State:
    """The run with as many samples to judge it as gates look at, some of which calibration has seen. A range is chosen
    from all values of all samples, so it hardly fits one of them; two samples alone tell less."""
    setup = state.setup
    more = setup.held_out.joined(setup.calibration.take(SAMPLES - len(setup.held_out)))
    return state.fork(setup=replace(setup, held_out=more), reference=[])


def _of_all(state: State, placement: Placement, chosen: Ranges, clipped: Container[str]) -> Ranges:
    """The chosen ranges, found once more on all samples. Where few are seen, each new one reaches beyond them: wider
    ranges cost digits, and save what clipping costs on samples that nobody has seen."""
    axes = {name: seen.axis for name, seen in state.histograms.items()}
    held_out = state.fork(setup=replace(state.setup, calibration=state.setup.held_out))
    more = histograms(held_out, axes, "held-out ranges")
    merged = state.fork(histograms={name: seen.copy().merge(more[name]) for name, seen in state.histograms.items()})
    plain, least = (_ranges(merged, placement, *trial) for trial in (PLAIN, CLIPPED))
    return {root: (least if root in clipped else plain)[root] for root in chosen}


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
    scheme, root = placement.schemes[tensor], placement.root[tensor]
    lo, hi = (0.0, 0.0) if scheme.granularity == "token" else ranges[root]
    writer = producers.get(root)
    lowest, highest = (writer is not None and clamp_bounds(graph, writer, root)) or (-np.inf, np.inf)
    return decide.activation_grid(lo, hi, scheme, (float(lowest), float(highest)))


def _ranges(state: State, placement: Placement, observer: str, options: Mapping[str, float] | None = None) -> Ranges:
    threads, options = state.setup.threads, options or {}
    observed = {
        name: decide.activation_range(histogram, placement.schemes[name], observer, threads, **options)
        for name, histogram in state.histograms.items()
    }
    return observed | _decided(state, observed)


def _decided(state: State, observed: Ranges) -> Ranges:
    """What a step has decided before calibration goes before what calibration finds."""
    return {name: decided for name, decided in state.ranges.items() if name in observed}


def _observe(step: Calibrate, state: State, placement: Placement) -> tuple[Ranges, Ranges]:
    """Fill ``state.histograms``; what comes back are ranges, where the observer needs other statistics, and of constant
    masks how far they have to reach."""
    schemes, bounded = placement.schemes | placement.constants, masks_of(state).bounded
    ranged = {name for name in placement.root.values() if schemes[name].granularity != "token"}
    roots = [name for name in state.graph.activations() if name in ranged]  # in the order of computation, for messages
    constants = [name for name in placement.constants if name in bounded]
    axes = {name: schemes[name].axis if schemes[name].granularity == "axis" else None for name in (*roots, *constants)}
    seen = histograms(state, axes, "calibrate")
    masks: Ranges = {name: (seen[name].lo, seen[name].hi) for name in constants}
    state.histograms = {name: seen[name] for name in roots}
    observer = OBSERVERS.get(step.activations)
    if observer is None or observer.statistics is Histogram or not roots:
        return {}, masks
    options = options_of(step, observer)
    statistics = {name: observer.statistics(axis=axes[name], name=name, **options) for name in roots}
    for label, values in observe(state, roots, step.activations):
        for name in filter(statistics.__contains__, values):
            statistics[name].update(values[name], sample=label)
    ranges: Ranges = {
        name: decide.activation_range(statistics[name], schemes[name], step.activations, state.setup.threads, **options)
        for name in roots
    }
    return ranges | _decided(state, ranges), masks


def bias_grid(state: State, layer: Layer) -> None:
    """Give the layer's bias its grid: int32 at scale = input scale x weight scale, as integer kernels want it.

    Nothing happens where the layer has no bias, its input stays float, or its weight's scales belong to blocks. Where
    the input has no one scale, there is no integer kernel to suit, and the bias gets a grid as fine as it needs.
    """
    if layer.bias is None or layer.weight not in state.grids:
        return
    bias, weight, read = state.graph.weights[layer.bias], state.grids[layer.weight], state.grids.get(layer.input)
    grid = decide.bias_grid(weight, read, bias.size, state.setup.rules.single_bias_scale)
    if grid is None and _reads_many_scales(state, layer):
        grid = decide.fine_bias_grid(bias)
    if grid is not None:
        state.grids[layer.bias] = grid


def _reads_many_scales(state: State, layer: Layer) -> bool:
    """Per channel or per token, or behind a polished tensor."""
    if layer.input in state.grids:
        return state.grids[layer.input].scheme.granularity != "tensor"
    producer = state.graph.producer(layer.input)
    return producer is not None and producer.op_type == "LogUnpolish"


def _suit_accumulator(state: State, layer: Layer) -> None:
    weight, read = state.grids[layer.weight], state.grids.get(layer.input)
    if read is None or not decide.adds_integers(weight, read):
        return
    bias = None if layer.bias is None else state.graph.weights[layer.bias]
    written = output_grid(state, layer.output)
    reach = 0.0 if written is None else float(max(-written.lo, written.hi))
    grid, factor = decide.roomy_weight_grid(state.graph.weights[layer.weight], weight, read, bias, reach)
    state.grids[layer.weight] = grid
    if factor > 1:
        note = f"weight scale enlarged {factor:.3g}x for its accumulator"
        state.log.append(Record("calibrate", layer.name, note))
