"""Smooth: move the spread of channels from activations into weights, kept only where simulation gains."""

from __future__ import annotations

from dataclasses import dataclass, field, replace

import numpy as np
from numpy.typing import NDArray

from leadline.graph import Graph, Node, Session
from leadline.graph.edit import set_constant
from leadline.graph.operators import layer_axis
from leadline.recipe import CorrectBias, Smooth
from leadline.smoothing import ALPHAS, Reader, Smoothing, reparameterize, search, search_product
from leadline.steps.placement import Placement, place
from leadline.steps.places import Place, Product, find_attention, find_norms
from leadline.steps.rows import Inputs, Moments
from leadline.steps.state import Record, State
from leadline.steps.trial import FLOAT, can_try, trial_error

Doubles = NDArray[np.float64]


@dataclass
class _Seen:
    """Over all samples, per channel: extremes, and the sum of each sample's mean square."""

    lo: Doubles
    hi: Doubles
    square: Doubles


@dataclass
class _Statistics:
    """Of each tensor that is read, by its name; and moments of what each layer reads, by the layer's name."""

    channels: dict[str, _Seen] = field(default_factory=dict)
    moments: dict[str, Moments] = field(default_factory=dict)
    samples: int = 0


@dataclass(frozen=True)
class _Part:
    """What is kept or dropped together."""

    what: str
    places: list[Place]
    products: list[Product]


def run(step: Smooth, state: State) -> None:
    """First what LayerNormalization and Rotate write, then values, queries and keys; each of the two is kept only if
    the simulated held-out error falls."""
    parts, refused = _parts(step, state.graph)
    state.log += [Record("smooth", name, note, kept=False) for name, note in refused]
    if not parts or not can_try(state):
        reason = FLOAT if parts else "no activation whose channels can be scaled"
        state.log.append(Record("smooth", state.graph.name, reason, kept=False))
        return
    seen, placement = _observe(state, parts), place(state.graph, state.recipe, state.setup.rules)
    best_error = trial_error(state, state.graph)
    for part in parts:
        with state.setup.progress(f"smooth {part.what}"):
            smoothed = state.graph.copy()
            records = _fold_part(step, state, smoothed, placement, part, seen)
            error = trial_error(state, smoothed)
        kept = error < best_error
        note = f"{part.what}: {len(records)} places, simulated output error"
        state.log += [replace(record, kept=record.kept and kept) for record in records]
        state.log.append(Record("smooth", state.graph.name, note, best_error, error, kept))
        if kept:
            state.graph, best_error = smoothed, error


def fold_scales(step: Smooth, state: State) -> list[Record]:
    """Smooth every place of the state's graph, in place and whatever simulation says."""
    parts, _ = _parts(step, state.graph)
    seen, placement = _observe(state, parts), place(state.graph, state.recipe, state.setup.rules)
    return [record for part in parts for record in _fold_part(step, state, state.graph, placement, part, seen)]


def _parts(step: Smooth, graph: Graph) -> tuple[list[_Part], list[tuple[str, str]]]:
    places, refused = find_norms(graph)
    values, products, more = find_attention(graph) if step.attention else ([], [], [])
    parts = [_Part("LayerNormalization", places, []), _Part("attention", values, products)]
    return [part for part in parts if part.places or part.products], refused + more


def _fold_part(
    step: Smooth, state: State, graph: Graph, placement: Placement, part: _Part, seen: _Statistics
) -> list[Record]:
    records = [_smooth_place(step, state, graph, placement, one, seen) for one in part.places]
    return records + [_smooth_product(step, graph, placement, pair, seen) for pair in part.products]


def _observe(state: State, parts: list[_Part]) -> _Statistics:
    """One pass: extremes and moments of what the layers read, and of queries and keys."""
    layers = {layer.name: layer for part in parts for one in part.places for layer, _ in one.readers}
    uses = {use.tensor: use for part in parts for product in part.products for use in product.uses}
    statistics = _Statistics(samples=len(state.setup.calibration))
    by_tensor: dict[str, list[tuple[Moments, Inputs]]] = {}
    shared: dict[str, Moments] = {}
    for layer in layers.values():
        key = layer.input if layer.kind == "linear" else layer.name
        if key not in shared:
            inputs = Inputs(state.graph, layer)
            shared[key] = inputs.moments()
            by_tensor.setdefault(layer.input, []).append((shared[key], inputs))
        statistics.moments[layer.name] = shared[key]
    names = sorted(by_tensor.keys() | uses.keys())
    axes = {layer.input: layer_axis(layer) for layer in layers.values()}
    orders = {tensor: np.argsort(use.ids, axis=None, kind="stable") for tensor, use in uses.items()}
    with Session(state.graph, outputs=names, threads=state.setup.threads) as session:
        for feed in state.setup.progress.over(state.setup.calibration, "channel moments", statistics.samples):
            for name, array in session.run(feed).items():
                if name in orders:
                    count = len(np.unique(uses[name].ids))
                    _add(statistics, name, array.ravel()[orders[name]].reshape(count, -1))
                else:
                    _add(statistics, name, np.moveaxis(array, axes[name], 0).reshape(array.shape[axes[name]], -1))
                    for moments, inputs in by_tensor[name]:
                        inputs.update(moments, [array], state.setup.threads)
    return statistics


def _add(statistics: _Statistics, name: str, rows: NDArray[np.float32]) -> None:
    """`rows`: channels by values."""
    lo, hi = rows.min(1).astype(np.float64), rows.max(1).astype(np.float64)
    square: Doubles = np.square(rows, dtype=np.float64).mean(1)
    if name in statistics.channels:
        old = statistics.channels[name]
        lo, hi, square = np.minimum(lo, old.lo), np.maximum(hi, old.hi), square + old.square
    statistics.channels[name] = _Seen(lo, hi, square)


def _smooth_place(
    step: Smooth, state: State, graph: Graph, placement: Placement, one: Place, seen: _Statistics
) -> Record:
    """Choose scales (and shifts) for one place, and fold them."""
    lo, hi = np.full(one.rows.size, np.inf), np.full(one.rows.size, -np.inf)
    for layer, order in one.readers:
        lo[order] = np.minimum(lo[order], seen.channels[layer.input].lo)
        hi[order] = np.maximum(hi[order], seen.channels[layer.input].hi)
    schemes = {layer.weight: scheme for layer, scheme in placement.layers}
    activation = placement.schemes.get(one.readers[0][0].input)
    corrects = any(isinstance(other, CorrectBias) for other in state.recipe.steps)

    def scaling(shift: Doubles) -> Smoothing:
        readers = []
        for layer, order in one.readers:
            inverse = np.argsort(order)
            weight = np.ascontiguousarray(graph.weights[layer.weight][:, inverse])
            taps = weight[0, 0].size
            gram = _gram(seen.moments[layer.name], shift[order].repeat(taps), corrects and layer.bias is not None)
            features = (inverse[:, None] * taps + np.arange(taps)).ravel()
            readers.append(Reader(weight, gram[np.ix_(features, features)], schemes.get(layer.weight)))
        alphas = (step.alpha,) if step.alpha else ALPHAS
        threads = state.setup.threads
        return search(readers, lo - shift, hi - shift, activation=activation, alphas=alphas, threads=threads)

    shift = np.zeros(one.rows.size)
    best = scaling(shift)
    before, note = best.before, ""
    if step.shift and one.shifts:
        middle = reparameterize(lo, hi)[1]
        shifted = scaling(middle)
        if shifted.after < best.after:
            best, shift, note = shifted, middle, ", shifted"
    _fold(graph, one, best.scales, shift)
    changed = bool(best.alpha or shift.any())
    return Record("smooth", one.name, f"alpha {best.alpha:g}{note}, predicted error", before, best.after, changed)


def _gram(moments: Moments, shift: Doubles, centred: bool) -> Doubles:
    """Second moments of x - shift, or of x - E x."""
    matrix = moments.matrix(centred).reshape(shift.size, shift.size)
    if centred or not shift.any():
        return matrix
    mean = moments.mean.ravel()
    return matrix - np.outer(shift, mean) - np.outer(mean, shift) + np.outer(shift, shift)


def _fold(graph: Graph, one: Place, scales: Doubles, shift: Doubles) -> None:
    """(x - shift) / scales where it is written; scales, and the shift in the bias, where it is read."""
    nodes = {node.name: node for node in graph.nodes}
    source = nodes[one.source.name]
    match source.op_type:
        case "LayerNormalization":
            _store(graph, source, 1, _array(graph, source, 1) / scales)
            if len(source.inputs) > 2 or shift.any():
                _store(graph, source, 2, (_array(graph, source, 2) - shift) / scales)
        case "Rotate":
            _store(graph, source, 1, _array(graph, source, 1) / scales)
        case _:
            _scale_rows(graph, source, one.rows, 1 / scales)
    for layer, order in one.readers:
        node, weight = nodes[layer.name], _array(graph, nodes[layer.name], 1)
        if shift.any():
            moved = np.moveaxis(weight, 1, -1).reshape(len(weight), -1, order.size).sum(1) @ shift[order]
            _store(graph, node, 2, _array(graph, node, 2) + moved)
        _store(graph, node, 1, weight * scales[order].reshape(-1, *[1] * (weight.ndim - 2)))


def _array(graph: Graph, node: Node, index: int) -> Doubles:
    """A constant input in double; zero where it is left out."""
    return graph.weights[node.inputs[index]].astype(np.float64) if index < len(node.inputs) else np.zeros(())


def _store(graph: Graph, node: Node, index: int, value: Doubles) -> None:
    set_constant(graph, node, index, ("", "weight", "bias")[index], value)


def _scale_rows(graph: Graph, node: Node, rows: NDArray[np.int64], factors: Doubles) -> None:
    for index in range(1, len(node.inputs)):
        array = _array(graph, node, index)
        array[rows] *= factors.reshape(-1, *[1] * (array.ndim - 1))
        _store(graph, node, index, array)


def _smooth_product(step: Smooth, graph: Graph, placement: Placement, pair: Product, seen: _Statistics) -> Record:
    """Choose scales for the channels in which queries and keys meet; q is divided, k multiplied."""
    sides = []
    for use, rows in zip(pair.uses, pair.rows, strict=True):
        order, channels = np.searchsorted(np.unique(use.ids), rows), seen.channels[use.tensor]
        sides.append((channels.lo[order], channels.hi[order], channels.square[order] / seen.samples))
    schemes = [placement.schemes.get(use.tensor) for use in pair.uses]
    alphas = (step.alpha,) if step.alpha else ALPHAS
    best = search_product(*sides, query_scheme=schemes[0], key_scheme=schemes[1], alphas=alphas)
    nodes = {node.name: node for node in graph.nodes}
    _scale_rows(graph, nodes[pair.query.name], pair.rows[0], 1 / best.scales)
    _scale_rows(graph, nodes[pair.key.name], pair.rows[1], best.scales)
    note = f"alpha {best.alpha:g}, predicted error"
    return Record("smooth", pair.name, note, best.before, best.after, bool(best.alpha))
