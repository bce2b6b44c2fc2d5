"""CorrectBias: take the mean output error that quantising a layer causes out of its bias."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace
from typing import Any

import numpy as np
from numpy.typing import NDArray

from leadline import decide
from leadline.affine import fake_quantize
from leadline.data import Samples
from leadline.graph import Graph, Layer, Node
from leadline.graph.edit import add_constant, add_value, set_constant
from leadline.recipe import CorrectBias
from leadline.steps.calibrate import bias_grid
from leadline.steps.gate import SAMPLES, output_error
from leadline.steps.observe import observe
from leadline.steps.state import Record, State

Doubles = NDArray[np.float64]

SEEN = 16
"""Calibration samples that shifts are taken from, at most: a mean over places, too, needs no more."""


def run(step: CorrectBias, state: State) -> None:
    """One float pass over the samples measures, for every layer at once, the error of quantising that layer alone.

    Each layer is given the float network's own input, rounded to its grid, so corrections do not count an error twice
    and add up to first order. With d the mean error of a channel on the calibration samples and e its mean on the
    held-out ones, taking d out of the bias leaves e - d of the held-out mean; a layer is corrected only if the sum of
    squares falls. All corrections together are kept only if the simulated error of the network falls.
    """
    if state.placement is None:
        return
    candidates = [layer for layer, _ in state.placement.layers if layer.input in state.grids]
    layers = [layer for layer in (_with_bias(state, layer) for layer in candidates) if layer is not None]
    if not layers:
        return
    shifts = _Shifts(state, layers)
    seen, held_out = shifts.over(state.setup.calibration.take(SEEN)), shifts.over(state.setup.held_out.take(SAMPLES))
    with state.setup.progress("gate"):
        corrected = state.fork(codes=dict(state.codes))
        for layer in layers:
            _correct(corrected, layer, seen[layer.output], held_out[layer.output])
        before, after = output_error(state), output_error(corrected)
    kept = after < before
    state.log += corrected.log
    note = "simulated output error, all layers"
    state.log.append(Record("correct-bias", state.graph.name, note, before, after, kept))
    if kept:
        state.codes = corrected.codes


def _correct(state: State, layer: Layer, shift: Doubles, held_out: Doubles) -> None:
    assert layer.bias is not None
    before, after = float(np.square(held_out).sum()), float(np.square(held_out - shift).sum())
    kept = after < before
    if kept:
        state.codes[layer.bias] = decide.shifted_bias(state.codes[layer.bias], state.grids[layer.bias], shift)
    state.log.append(Record("correct-bias", layer.name, "held-out squared mean error", before, after, kept))


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


class _Shifts:
    """The mean error of each channel of each layer, quantised alone.

    Layers are linear, so the mean of what they give is what they give for the mean of what they read: samples only run
    through the float network, and the layers, beside their quantised twins, once on the means.
    """

    def __init__(self, state: State, layers: Sequence[Layer]) -> None:
        self._state, self._layers = state, layers
        # the rows of a matrix go the way of the samples
        self._rows = {layer.input for layer in layers if layer.node.op_type == "Gemm"} - {
            layer.input for layer in layers if layer.node.op_type != "Gemm" or layer.node.attrs.get("transA", 0)
        }
        # by tensor that layers read, and by what they write: its names beside the layers, in float and quantised
        self._read: dict[str, tuple[str, str]] = {}
        self._written: dict[str, tuple[str, str]] = {}
        self._twins = self._beside()

    def over(self, samples: Samples) -> dict[str, Doubles]:
        """By layer output: (channels,)."""
        names = [name for pair in self._written.values() for name in pair]
        with self._state.setup.simulate(self._twins, names) as session:
            got = session.run(self._means(samples))
        shifts = {}
        for output, (plain, twin) in self._written.items():
            error = got[twin].astype(np.float64) - got[plain]
            # NCHW of a Conv, [rows, features] of a Gemm
            shifts[output] = error.mean(axis=tuple(axis for axis in range(error.ndim) if axis != 1))
        return shifts

    def _means(self, samples: Samples) -> dict[str, NDArray[np.float32]]:
        """Of each tensor that layers read, and of what its grid makes of it; of matrices, over the rows, too."""
        state, sums = self._state, dict[str, Any]()
        over = state.fork(setup=replace(state.setup, calibration=samples))
        for _, values in observe(over, list(self._read), "correct bias"):
            for name in self._read.keys() & values.keys():
                plain, twin = self._read[name]
                array = np.ascontiguousarray(values[name], np.float32)
                rounded = fake_quantize(array, state.grids[name], threads=state.setup.threads)
                for end, each in ((plain, array), (twin, rounded)):
                    mean = np.full((1, len(each)), 1 / len(each), np.float32) @ each if name in self._rows else each
                    sums[end] = mean.astype(np.float64) / len(samples) + sums.get(end, 0.0)
        return {name: np.asarray(total, np.float32) for name, total in sums.items()}

    def _beside(self) -> State:
        """The layers alone, in float and quantised, each on inputs of its own."""
        network = self._state.graph
        graph = Graph.of(replace(network.copy(), nodes=[], inputs=[], outputs=[], values={}, tail=None, batch=None))
        grids, codes = {}, {}

        def room(tensor: str, first: bool) -> tuple[str, str]:
            shape = (1, *network.shape(tensor)[1:]) if first else network.shape(tensor)
            return add_value(graph, tensor, shape), add_value(graph, f"{tensor}.twin", shape)

        for layer in self._layers:
            one_row = layer.input in self._rows
            if layer.input not in self._read:
                self._read[layer.input] = room(layer.input, one_row)
                graph.inputs += [graph.values[name] for name in self._read[layer.input]]
            self._written[layer.output] = room(layer.output, one_row)
            twin_of = {}
            for name in filter(None, (layer.weight, layer.bias)):
                twin = twin_of[name] = add_constant(graph, f"{name}.twin", network.weights[name])
                grids[twin], codes[twin] = self._state.grids[name], self._state.codes[name]
            for side, renamed in enumerate(({}, twin_of)):
                renamed = renamed | {layer.input: self._read[layer.input][side]}
                output = self._written[layer.output][side]
                inputs = [renamed.get(name, name) for name in layer.node.inputs]
                graph.nodes.append(Node(layer.node.op_type, inputs, [output], output, layer.node.attrs))
        read = {name for node in graph.nodes for name in node.inputs}
        graph.weights = {name: array for name, array in graph.weights.items() if name in read}
        return self._state.fork(graph=graph, grids=grids, codes=codes)
