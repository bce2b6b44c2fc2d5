"""Round: every weight that has a grid becomes integers."""

from __future__ import annotations

from dataclasses import dataclass
from functools import partial
from typing import Any

import numpy as np
from numpy.typing import NDArray

from leadline import decide
from leadline.affine import dequantize, quantize
from leadline.compensation import Compensated, compensate
from leadline.fisher import output_factor
from leadline.graph import Layer
from leadline.options import options_of
from leadline.recipe import Round
from leadline.rounding import METHODS, descend
from leadline.rounding.damping import best_damping, probed_rows
from leadline.steps.gate import LUCK, output_error
from leadline.steps.path import Stage, stages
from leadline.steps.rows import Moments, Rows
from leadline.steps.state import Record, State

Doubles = NDArray[np.float64]

LARGEST = 1e18
"""Magnitude of inputs from which moments overflow."""

_NOTHING = 1e-40
"""Moments below it are of values whose squares float32 does not hold."""

ASKED = 64
"""Rows of each group that choose a damping for compensation, at most."""

PROBED = 4
"""Calibration samples whose outputs say how a layer's outputs count."""


def run(step: Round | None, state: State) -> None:
    """Nearest rounding first: half to even after dividing by the scale, as ONNX QuantizeLinear does.

    Then, unless that is all that is asked for, level by level, each layer's codes are chosen against the moments of
    the inputs that it reads once everything upstream is quantised. A layer keeps them where its error on held-out
    samples falls below that of its own weight's nearest ones.
    """
    for name, grid in state.grids.items():
        if name in state.graph.weights:
            state.codes[name] = quantize(state.graph.weights[name], grid, threads=state.setup.threads)
    if step is None or not (METHODS[step.method].uses_moments or step.compensate) or state.placement is None:
        return
    placed = [layer for layer, _ in state.placement.layers]
    readers = [layer.weight for layer in placed]
    layers = []
    for layer in placed:
        reason = _unfit(state, layer, readers.count(layer.weight))
        if reason:
            state.log.append(Record("round", layer.name, f"nearest: {reason}", kept=False))
        else:
            layers.append(layer)
    for stage in stages(state, layers, joint=step.compensate):
        tasks = (_Task(step, state, stage, layer) for layer in stage.layers)
        for task, choice in state.setup.workers.each(partial(_choose, step), tasks):
            _keep(step, state, task, choice)


def _unfit(state: State, layer: Layer, readers: int) -> str:
    """Why a layer's rounding cannot be chosen from moments; empty where it can."""
    if readers > 1:
        return f"{readers} layers share its weight"
    placement = state.placement
    seen = None if placement is None else state.histograms.get(placement.root.get(layer.input, ""))
    if seen is not None and max(np.abs(seen.lo).max(), np.abs(seen.hi).max()) >= LARGEST:
        return f"its input {layer.input} reaches {LARGEST:g}, whose square is beyond float32"
    return ""


class _Task:
    """One layer, as rows against features: its weight, and what its inputs were like, seen and held out.

    Errors are (w x - q y)^2, x read in float and y on the quantised path, where moments are joint; else (w y - q y)^2.
    """

    def __init__(self, step: Round, state: State, stage: Stage, layer: Layer) -> None:
        self.layer, self.threads, self.joint = layer, state.setup.threads, step.compensate
        self.rows = Rows(state.graph, layer)
        self.weight = self.rows(state.graph.weights[layer.weight])
        self.grid = self.rows.grid(state.grids[layer.weight])
        # A bias takes the mean of the error away, so that only what varies about it counts.
        self.centred = layer.bias is not None and layer.bias in state.grids
        self.nearest = self.rows(state.codes[layer.weight])
        self._mean = np.atleast_2d(stage.seen[layer.name].mean)
        seen, held_out = (self._moments(source[layer.name]) for source in (stage.seen, stage.held_out))
        half = seen.shape[1] // 2 if self.joint else 0
        before, after = slice(half), slice(half, None)  # x, y
        self.gram, self.held_out = (np.ascontiguousarray(m[:, after, after]) for m in (seen, held_out))
        self.cross = np.ascontiguousarray(seen[:, before, after])
        # Each row's error is that of w (x - y), less twice what d = q - w makes up for of it, and d's own.
        self._left, self._made_up = np.zeros(len(self.weight)), np.zeros(self.weight.shape)
        if self.joint:
            grouped, late = self._grouped(self.weight), held_out[:, before, after] - self.held_out
            self._made_up = (grouped @ late).reshape(self.weight.shape)
            early = held_out[:, before, before] - held_out[:, after, before]
            self._left = ((grouped @ (early - late)) * grouped).sum(2).ravel()

    def _moments(self, moments: Moments) -> Doubles:
        matrix = moments.matrix(self.centred)
        return matrix if matrix.ndim == 3 else matrix[None]

    def _grouped(self, values: NDArray[Any]) -> Doubles:
        """Rows as (groups, rows of a group, features)."""
        return values.reshape(len(self.gram), -1, values.shape[1]).astype(np.float64)

    def error(self, values: NDArray[Any], rows: NDArray[np.int64] | None = None) -> float:
        """Of rows in float (or dequantised), on held-out samples; of some, as many of each group, where `rows` says."""
        which = slice(None) if rows is None else rows
        moved = self._grouped(values) - self._grouped(self.weight[which])
        taken = (moved @ self.held_out).reshape(values.shape) - 2 * self._made_up[which]
        return float(self._left[which].sum() + np.sum(taken * moved.reshape(values.shape)))

    def mean_error(self, values: NDArray[Any]) -> NDArray[np.float64]:
        """For each row: what the bias has to give back."""
        mean = self._mean[:, :, None]
        half = mean.shape[1] // 2 if self.joint else 0
        after = self._grouped(values) @ mean[:, half:]
        before = self._grouped(self.weight) @ (mean[:, :half] if self.joint else mean)
        return np.asarray(after - before)


@dataclass(frozen=True)
class _Choice:
    """A layer's codes as rows, what they were rounded from, how, and the errors of the nearest codes and of these."""

    codes: NDArray[Any]
    target: NDArray[np.float32]
    how: str
    before: float
    after: float


def _choose(step: Round, task: _Task) -> _Choice:
    """From arrays alone, so that any machine may."""
    grid = task.grid
    target, note = task.weight, ""
    if task.joint:
        target, note = _compensated(step, task)
    codes, how = decide.codes_of(
        target,
        grid,
        step.method,
        task.gram,
        held_out=task.held_out,
        threads=task.threads,
        **options_of(step, METHODS[step.method]),
    )
    before, after = (task.error(dequantize(values, grid)) for values in (task.nearest, codes))
    return _Choice(codes, target, f"{note}{how}", before, after)


def _keep(step: Round, state: State, task: _Task, choice: _Choice) -> None:
    layer, before, after = task.layer, choice.before, choice.after
    kept = after < before
    state.log.append(Record("round", layer.name, f"{choice.how}, held-out squared error", before, after, kept))
    if kept:
        state.codes |= _with_bias(state, task, choice.codes)
    last = layer.output in {value.name for value in state.graph.outputs}
    whole = layer.kind in ("linear", "conv") and layer.groups == 1
    if step.kfac and METHODS[step.method].uses_moments and whole and not last:
        _couple(step, state, task, choice.target)


def _with_bias(state: State, task: _Task, codes: NDArray[Any]) -> dict[str, NDArray[Any]]:
    """The weight's new codes, given as rows, and those of a bias that takes the mean of the error that they leave."""
    layer = task.layer
    weight = {layer.weight: task.rows.back(codes)}
    if not task.centred:
        return weight
    assert layer.bias is not None
    bias = state.codes[layer.bias]
    # of a transposed convolution with a row for each tap, each output pixel meets one of them
    shift = task.mean_error(dequantize(codes, task.grid)).reshape(bias.size, -1).mean(1)
    return weight | {layer.bias: decide.shifted_bias(bias, state.grids[layer.bias], shift)}


def _couple(step: Round, state: State, task: _Task, target: NDArray[np.float32]) -> None:
    """Go on from the layer's codes where its outputs count jointly; kept if the network's outputs gain more than luck.

    EfficientNet-Lite0 at 4 bits lost 0.8 dB on other pictures when any gain on the held-out ones sufficed.
    """
    layer = task.layer
    few = state.setup.calibration.take(PROBED)
    with state.setup.progress(f"probe {layer.name}"):
        fisher = output_factor(state.graph, layer, few, threads=state.setup.threads)
    start, neighbours = task.rows(state.codes[layer.weight]), METHODS[step.method].neighbours
    codes = descend(target, task.gram, task.grid, start, neighbours=neighbours, fisher=fisher)
    changed = state.codes | _with_bias(state, task, codes)
    before, after = output_error(state), output_error(state.fork(codes=changed))
    kept = after < before / LUCK
    state.log.append(Record("round", layer.name, "K-FAC, simulated output error", before, after, kept))
    if kept:
        state.codes = changed


def _compensated(step: Round, task: _Task) -> tuple[NDArray[np.float32], str]:
    """The weight that best makes up for the errors of the layer's inputs: of several dampings, or the weight itself."""
    gram, cross, weight = task.gram, task.cross, task.weight
    dead = np.trace(gram, axis1=1, axis2=2) <= _NOTHING
    if dead.any():  # a group that reads nothing, but for what underflow leaves, keeps its weight
        gram, cross = (np.where(dead[:, None, None], np.eye(gram.shape[1]), moments) for moments in (gram, cross))
    few = probed_rows(len(weight), len(gram), ASKED)

    def made(damping: float, rows: NDArray[np.int64] | None = None) -> Compensated:
        part = weight if rows is None else weight[rows]
        return compensate(part, cross, gram, damping=damping, threads=task.threads)

    damping = step.damping
    if not damping:
        damping, error = best_damping(lambda d: task.error(made(d, few).weight, few))
        if error >= task.error(weight[few], few):
            return weight, ""
    compensated = made(damping)
    if task.error(compensated.weight) < task.error(weight):
        return compensated.weight, f"compensated, damped {compensated.damping:g}; "
    return weight, ""
