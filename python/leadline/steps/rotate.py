"""Rotate: Hadamard rotations folded into a transformer, kept only where simulation gains."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace

import numpy as np
from numpy.typing import NDArray

from leadline.data import Samples
from leadline.graph import DOMAIN, Graph, Layer, Node, Session
from leadline.graph.edit import add_constant, add_value, insert, set_constant
from leadline.graph.spool import spool
from leadline.graph.stream import Stream, find_streams, strip_norms
from leadline.hadamard import Rotation, layernorm_rotation, random_rotation
from leadline.recipe import Rotate
from leadline.steps.places import find_attention
from leadline.steps.state import Record, State
from leadline.steps.trial import FLOAT, can_try, trial_error

_ROLES = ("input", "weight", "bias")

WATCHED = 4
"""Calibration samples on which rotations are compared."""


def run(step: Rotate, state: State) -> None:
    """Rotate a copy of the network; it takes the network's place if the simulated held-out error falls."""
    if not can_try(state):
        state.log.append(Record("rotate", state.graph.name, FLOAT, kept=False))
        return
    rotated = state.graph.copy()
    records = []
    with state.setup.progress("rotate"):
        if step.online:
            records += rotate_inputs(rotated)
        else:
            if step.residual:
                few = state.setup.calibration.take(WATCHED)
                records += rotate_residual(rotated, few, step.seeds, state.setup.threads)
            if step.heads:
                records += rotate_heads(rotated)
        if any(record.kept for record in records):
            spool(rotated)  # every weight is new
            before, after = trial_error(state, state.graph), trial_error(state, rotated)
            kept = after < before
            records = [replace(record, kept=record.kept and kept) for record in records]
            records.append(Record("rotate", state.graph.name, "simulated output error", before, after, kept))
            if kept:
                state.graph = rotated
    state.log += records or [Record("rotate", state.graph.name, "nothing to rotate", kept=False)]


def rotate_residual(graph: Graph, samples: Samples, seeds: int, threads: int | None = None) -> list[Record]:
    """Rotate every residual stream that has clean borders, in place: x becomes x R, and the weights around it absorb R.

    R is, of `seeds` rotations that LayerNorm does not see, the one under which the tensors of the stream have the
    smallest peaks (geometric mean, on the samples). Weights are multiplied in double and rounded to float32 once.
    """
    strip_norms(graph)
    streams, refused = find_streams(graph)
    records = [Record("rotate", name, f"its stream stays: {reason}", kept=False) for name, reason in refused]
    for stream in streams:
        rotation, before, after = _flattest(graph, stream, samples, seeds, threads)
        _fold(graph, stream, rotation)
        mixed = "" if rotation.blocks == 1 else f" in {rotation.blocks} blocks"
        note = (
            f"stream of {stream.size} features{mixed}, {len(stream.writers)} writers, {len(stream.readers)} readers: "
        )
        note += f"peak to rms {before:.3g} to {after:.3g}"
        records.append(Record("rotate", next(iter(stream.tensors)), note))
    return records


def rotate_heads(graph: Graph) -> list[Record]:
    """Rotate each head of every attention between its values and the layer that reads what it mixes, in place."""
    places, _, refused = find_attention(graph)
    records = [Record("rotate", name, f"its heads stay: {reason}", kept=False) for name, reason in refused]
    layers = {id(layer.node): layer for layer in graph.layers()}
    for place in places:
        value, heads = layers[id(place.source)], place.heads
        if heads is None or not np.array_equal(place.rows, np.unique(heads)):
            continue  # some of the channels are not read
        if any(layer.kind != "linear" for layer, _ in place.readers):
            continue
        rotation = random_rotation(heads.shape[1])
        _turn_some(graph, value, 1, rotation, value.axis, heads)
        if value.bias is not None:
            _turn_some(graph, value, 2, rotation, 0, heads)
        for layer, order in place.readers:
            columns = np.argsort(order)[np.searchsorted(place.rows, heads)]
            _turn_some(graph, layer, 1, rotation, 1 - layer.axis, columns)
        records.append(Record("rotate", place.name, f"{len(heads)} heads of {heads.shape[1]}"))
    return records


def rotate_inputs(graph: Graph) -> list[Record]:
    """Put a random rotation in front of every linear layer, in place, as an operator that runs on the device."""
    turned: dict[str, tuple[str, Rotation]] = {}
    products = 0
    for layer in graph.layers():
        if layer.kind != "linear" or layer.axis != 0 or layer.node.attrs.get("transA", 0):
            continue
        tensor = layer.input
        if tensor not in turned:
            rows, size = graph.shape(tensor)
            rotation = random_rotation(size, seed=len(turned))
            matrix = add_constant(graph, f"{tensor}.rotation", rotation.matrix().astype(np.float32))
            output = add_value(graph, f"{tensor}.rotated", (rows, size))
            insert(graph, layer.node, Node("Rotate", [tensor, matrix], [output], output, {}, DOMAIN))
            turned[tensor] = output, rotation
            products += rows * size * size
        output, rotation = turned[tensor]
        layer.node.inputs[0] = output
        _turn(graph, layer, 1, rotation, 1)
    if not turned:
        return []
    note = (
        f"{len(turned)} inputs of linear layers, by operators: {products / 1e6:.3g} million multiplications a picture"
    )
    return [Record("rotate", graph.name, note)]


def _flattest(
    graph: Graph, stream: Stream, samples: Samples, seeds: int, threads: int | None
) -> tuple[Rotation, float, float]:
    """The best rotation, with the mean peak-to-rms ratio before and after it."""
    watched = _made(graph, stream)
    rotations = [layernorm_rotation(stream.size, seed) for seed in range(max(seeds, 1))]
    plain, peaks, count = 0.0, np.zeros(len(rotations)), 0
    with Session(graph, outputs=watched, threads=threads) as session:
        for feed in samples:
            for name, array in session.run(feed).items():
                rows = np.ascontiguousarray(np.moveaxis(array, stream.tensors[name], -1)).reshape(-1, stream.size)
                rms = float(np.sqrt(np.mean(np.square(rows, dtype=np.float64)))) or 1.0
                plain += _log_peak(rows, rms)
                peaks += [_log_peak(rotation(rows, threads=threads), rms) for rotation in rotations]
                count += 1
    best = int(np.argmin(peaks))
    return rotations[best], float(np.exp(plain / count)), float(np.exp(peaks[best] / count))


def _made(graph: Graph, stream: Stream) -> Sequence[str]:
    """Its tensors, but for those that only move the data of others."""
    makers = {"Add", "Sub", "LayerNormalization", "Gemm", "Conv"}
    names = [name for node in graph.nodes if node.op_type in makers for name in node.outputs]
    return [name for name in names if name in stream.tensors]


def _log_peak(rows: NDArray[np.float32], rms: float) -> float:
    return float(np.log(max(float(np.abs(rows).max()), 1e-30) / rms))


def _fold(graph: Graph, stream: Stream, rotation: Rotation) -> None:
    for layer in stream.writers:
        _turn(graph, layer, 1, rotation, layer.axis)
        if layer.bias is not None:
            _turn(graph, layer, 2, rotation, 0)
    for layer in stream.readers:
        _turn(graph, layer, 1, rotation, 0 if layer.kind == "transpose" else 1 - layer.axis)
    for node, index, axis in stream.constants:
        set_constant(graph, node, index, "rotated", _rotated(graph, node, index, rotation, axis))


def _turn(graph: Graph, layer: Layer, index: int, rotation: Rotation, axis: int) -> None:
    set_constant(graph, layer.node, index, _ROLES[index], _rotated(graph, layer.node, index, rotation, axis))


def _turn_some(
    graph: Graph, layer: Layer, index: int, rotation: Rotation, axis: int, groups: NDArray[np.int64]
) -> None:
    """Each of the groups (count, size of the rotation) of channels along an axis."""
    array = np.moveaxis(graph.weights[layer.node.inputs[index]], axis, 0).astype(np.float64)
    array[groups] = rotation(array[groups], 1)
    set_constant(graph, layer.node, index, _ROLES[index], np.moveaxis(array, 0, axis))


def _rotated(graph: Graph, node: Node, index: int, rotation: Rotation, axis: int) -> NDArray[np.float64]:
    return rotation(graph.weights[node.inputs[index]].astype(np.float64), axis)
