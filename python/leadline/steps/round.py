"""Round: every weight that has a grid becomes integers."""

from __future__ import annotations

from leadline.affine import quantize
from leadline.recipe import Round
from leadline.steps.state import State


def round_weights(step: Round | None, state: State) -> None:
    """Nearest rounding: half to even after dividing by the scale, as ONNX QuantizeLinear does."""
    for name, grid in state.grids.items():
        if name in state.graph.weights:
            state.codes[name] = quantize(state.graph.weights[name], grid, threads=state.threads)
