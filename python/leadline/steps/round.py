"""Round: every weight that has a grid becomes integers."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import numpy as np
from numpy.typing import NDArray

from leadline import rounding
from leadline.affine import dequantize, quantize
from leadline.graph import Layer
from leadline.recipe import Round
from leadline.steps.path import Stage, stages
from leadline.steps.state import Record, State
from leadline.types import Grid


def round_weights(step: Round | None, state: State) -> None:
    """Nearest rounding first: half to even after dividing by the scale, as ONNX QuantizeLinear does.

    Then, unless that is all that is asked for, level by level, each layer's codes are chosen against the moments of
    the inputs that it reads once everything upstream is quantised. A layer keeps them where its error on held-out
    samples falls below nearest rounding's.
    """
    for name, grid in state.grids.items():
        if name in state.graph.weights:
            state.codes[name] = quantize(state.graph.weights[name], grid, threads=state.threads)
    if step is None or step.method == "nearest" or state.placement is None:
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
    for stage in stages(state, layers):
        for layer in stage.layers:
            _round(step, state, stage, layer)


def _unfit(state: State, layer: Layer, readers: int) -> str:
    """Why a layer's rounding cannot be chosen from moments; empty where it can."""
    if readers > 1:
        return f"{readers} layers share its weight"
    if layer.kind == "transpose":
        attrs = layer.node.attrs
        weight = state.graph.weights[layer.weight]
        if layer.groups > 1 or tuple(attrs.get("strides", (1, 1))) != weight.shape[2:] or any(attrs.get("pads", ())):
            return "a transposed convolution whose taps overlap"
    return ""


def _round(step: Round, state: State, stage: Stage, layer: Layer) -> None:
    weight, grid = state.graph.weights[layer.weight], state.grids[layer.weight]
    # A bias takes the mean of the error away, so that only what varies about it counts.
    centred = layer.bias is not None and layer.bias in state.grids
    seen, kept = (moments[layer.name].matrix(centred) for moments in (stage.seen, stage.held_out))
    transposed = layer.kind == "transpose" or (layer.kind == "linear" and layer.axis == 1)
    near = state.codes[layer.weight]
    codes, note = _METHODS[step.method](weight, seen, kept, grid, transposed, state.threads)

    def error(candidate: NDArray[Any]) -> float:
        return float(rounding.layer_error(weight, kept, grid, candidate, transposed=transposed).sum())

    before, after = error(near), error(codes)
    state.log.append(Record("round", layer.name, f"{note}, held-out squared error", before, after, after < before))
    if after < before:
        state.codes[layer.weight] = codes
        if centred:
            _shift_bias(state, layer, stage.seen[layer.name].mean, transposed)


def _shift_bias(state: State, layer: Layer, mean: NDArray[np.float64], transposed: bool) -> None:
    """Take the mean error of the rounded weight, (q - w) E[x], out of the layer's bias."""
    assert layer.bias is not None
    grid = state.grids[layer.weight]
    error = dequantize(state.codes[layer.weight], grid).astype(np.float64) - state.graph.weights[layer.weight]
    if transposed:  # (inputs, outputs, taps): each output pixel meets one of the taps
        shift = np.tensordot(mean, error, (0, 0)).reshape(error.shape[1], -1).mean(1)
    else:  # groups of rows, each with inputs of its own
        rows = error.reshape(len(np.atleast_2d(mean)), -1, mean.shape[-1])
        shift = np.einsum("grf,gf->gr", rows, np.atleast_2d(mean)).ravel()
    own = state.grids[layer.bias]
    moved = state.codes[layer.bias] - np.rint(shift / own.scale)
    state.codes[layer.bias] = np.clip(moved, own.scheme.qmin, own.scheme.qmax).astype(np.int32)


Choice = Callable[[Any, Any, Any, Grid, bool, int | None], tuple[NDArray[Any], str]]


def _descent(weight: Any, seen: Any, kept: Any, grid: Grid, transposed: bool, threads: int | None) -> Any:
    return rounding.descend(weight, seen, grid, transposed=transposed, threads=threads), "descent"


def _gptq(weight: Any, seen: Any, kept: Any, grid: Grid, transposed: bool, threads: int | None) -> Any:
    return rounding.gptq(weight, seen, grid, transposed=transposed, threads=threads), "gptq"


def _adaround(weight: Any, seen: Any, kept: Any, grid: Grid, transposed: bool, threads: int | None) -> Any:
    return rounding.adaround(weight, seen, grid, transposed=transposed, threads=threads), "adaround"


def _best(weight: Any, seen: Any, kept: Any, grid: Grid, transposed: bool, threads: int | None) -> Any:
    return rounding.round_best(weight, seen, grid, held_out=kept, transposed=transposed, threads=threads)


_METHODS: dict[str, Choice] = {"descent": _descent, "gptq": _gptq, "adaround": _adaround, "best": _best}
