"""CorrectBias: take the mean output error that quantising a layer causes out of its bias."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace

import numpy as np
from numpy.typing import NDArray

from leadline import decide
from leadline.data import Samples
from leadline.graph import Graph, Layer, Node
from leadline.graph.edit import add_constant, add_value, set_constant
from leadline.recipe import CorrectBias
from leadline.steps.calibrate import bias_grid
from leadline.steps.gate import output_error
from leadline.steps.state import Record, State

Moments = dict[str, tuple[NDArray[np.float64], NDArray[np.float64]]]
"""For each layer's output and channel: the mean of the error and of its square."""


def run(step: CorrectBias, state: State) -> None:
    """One pass over the samples measures, for every layer at once, the error of quantising that layer alone.

    Each layer is given the float network's own input, rounded to its grid, so corrections do not count an error twice
    and add up to first order. With d the mean error of a channel on the calibration samples and e its mean on the
    held-out ones, taking d out of the bias changes the held-out squared error by d*d - 2*d*e; a layer is corrected
    only if that falls. All corrections together are kept only if the simulated error of the network falls.
    """
    if state.placement is None:
        return
    candidates = [layer for layer, _ in state.placement.layers if layer.input in state.grids]
    layers = [layer for layer in (_with_bias(state, layer) for layer in candidates) if layer is not None]
    if not layers:
        return
    twins, twin_of = _twins(state, layers)
    calibration = _errors(twins, twin_of, layers, state.setup.calibration)
    held_out = _errors(twins, twin_of, layers, state.setup.held_out)
    with state.setup.progress("gate"):
        corrected = state.fork(codes=dict(state.codes))
        for layer in layers:
            _correct(corrected, layer, calibration[layer.output][0], *held_out[layer.output])
        before, after = output_error(state), output_error(corrected)
    kept = after < before
    state.log += corrected.log
    note = "simulated output error, all layers"
    state.log.append(Record("correct-bias", state.graph.name, note, before, after, kept))
    if kept:
        state.codes = corrected.codes


def _correct(
    state: State, layer: Layer, shift: NDArray[np.float64], mean: NDArray[np.float64], square: NDArray[np.float64]
) -> None:
    assert layer.bias is not None
    before = float(square.sum())
    after = float((square - 2 * shift * mean + shift * shift).sum())
    kept = after < before
    if kept:
        state.codes[layer.bias] = decide.shifted_bias(state.codes[layer.bias], state.grids[layer.bias], shift)
    state.log.append(Record("correct-bias", layer.name, "held-out squared error", before, after, kept))


def _with_bias(state: State, layer: Layer) -> Layer | None:
    """The layer with a bias to correct: zeros where it had none. None where the operator takes no bias."""
    if layer.bias is None:
        if layer.node.op_type == "MatMul" or len(layer.node.inputs) > 2:
            return None
        groups = layer.groups if layer.kind == "transpose" else 1
        channels = state.graph.weights[layer.weight].shape[layer.axis] * groups
        name = set_constant(state.graph, layer.node, 2, "bias", np.zeros(channels))
        layer = replace(layer, bias=name)
        bias_grid(state, layer)
        state.codes[name] = np.zeros(channels, np.int32)
    return layer if layer.bias in state.grids else None


def _twins(state: State, layers: Sequence[Layer]) -> tuple[State, dict[str, str]]:
    """The float network with a quantised twin beside each layer, reading the same float input through its grid; and
    what the twin of each layer's output is called."""
    graph = state.graph.copy()
    grids, codes = {}, {}
    rounded: dict[str, str] = {}
    twin_of: dict[str, str] = {}
    for layer in layers:
        if layer.input not in rounded:
            source = rounded[layer.input] = _like(graph, layer.input, "rounded")
            graph.nodes.append(Node("Identity", [layer.input], [source], source))
            grids[source] = state.grids[layer.input]
        parameters = [name for name in (layer.weight, layer.bias) if name is not None]
        for name in parameters:
            if name not in twin_of:
                twin = twin_of[name] = add_constant(graph, f"{name}.twin", graph.weights[name])
                grids[twin], codes[twin] = state.grids[name], state.codes[name]
        inputs = [rounded[layer.input], *(twin_of[name] for name in parameters)]
        output = twin_of[layer.output] = _like(graph, layer.output, "twin")
        graph.nodes.append(Node(layer.node.op_type, inputs, [output], output, layer.node.attrs))
    return state.fork(graph=graph, grids=grids, codes=codes), twin_of


def _like(graph: Graph, tensor: str, what: str) -> str:
    return add_value(graph, f"{tensor}.{what}", graph.shape(tensor), graph.values[tensor].dtype)


def _errors(twins: State, twin_of: dict[str, str], layers: Sequence[Layer], samples: Samples) -> Moments:
    """Per-channel moments of twin minus float at the layers' outputs."""
    names = [layer.output for layer in layers]
    sums: dict[str, list[NDArray[np.float64]]] = {}
    with twins.setup.simulate(twins, names + [twin_of[name] for name in names]) as session:
        for feed in twins.setup.progress.over(samples, "correct bias", len(samples)):
            got = session.run(feed)
            for name in names:
                error = got[twin_of[name]].astype(np.float64) - got[name]
                # NCHW of a Conv, [rows, features] of a Gemm
                axes = tuple(axis for axis in range(error.ndim) if axis != 1)
                total = sums.setdefault(name, [np.zeros(error.shape[1]), np.zeros(error.shape[1])])
                total[0] += error.mean(axis=axes)
                total[1] += np.square(error).mean(axis=axes)
    return {name: (total[0] / len(samples), total[1] / len(samples)) for name, total in sums.items()}
