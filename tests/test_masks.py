"""Masks: judged by the original network in onnxruntime, against the same network without a mask."""

from __future__ import annotations

import functools

import numpy as np
import onnx
import onnxruntime as ort
import pytest

from leadline.graph import Graph
from leadline.pipeline import Quantized, quantize
from leadline.recipe import Calibrate, Recipe, Round
from masked_networks import CONSTANT, INPUT, Make, attention, feeds

LOWEST = float(np.finfo(np.float32).min)


def recipe(bits: int = 8, wide: int = 8, observer: str = "minmax") -> Recipe:
    base = Recipe.load("minmax-w8a8")
    own = {"weights": base.weights.__class__(**vars(base.weights) | {"bits": bits})} if bits != 8 else {}
    wider = {"activations": base.activations.__class__(**vars(base.activations) | {"bits": wide})} if wide != 8 else {}
    return base.changed(steps=(Calibrate(observer, "mse"), Round()), **own, **wider)


def run(model: onnx.ModelProto, data: list) -> list:
    session = ort.InferenceSession(model.SerializeToString(), providers=["CPUExecutionProvider"])
    return [session.run(None, feed)[0] for feed in data]


def score(
    network: tuple[onnx.ModelProto, Make], chosen: Recipe, target: str = "onnxruntime"
) -> tuple[float, Quantized]:
    """SQNR in dB on other samples, where the original is finite; there the artefact has to be finite, too."""
    model, make = network
    data = feeds(make, 100, 8)
    q = quantize(Graph.from_model(model, data[0]), chosen, data, target=target)
    test = feeds(make, 900, 6)
    wanted, got = (np.stack(run(proto, test)).astype(np.float64) for proto in (model, q.to_qdq()))
    finite = np.isfinite(wanted)
    assert np.isfinite(got[finite]).all()
    return 10 * np.log10(np.square(wanted[finite]).sum() / np.square((wanted - got)[finite]).sum()), q


@functools.cache
def unmasked(bits: int, wide: int) -> float:
    return score(attention(), recipe(bits, wide))[0]


@pytest.mark.parametrize("value", [-np.inf, LOWEST, -1e9, -65504.0, -1e4, -100.0])
@pytest.mark.parametrize("kind", CONSTANT + INPUT)
def test_a_mask_costs_nothing(kind: str, value: float) -> None:
    if value == -np.inf and kind in ("ones", "keys", "trilu"):
        pytest.skip("0 * inf is NaN")
    assert score(attention(kind, value), recipe())[0] > unmasked(8, 8) - 1


@pytest.mark.parametrize(("bits", "wide"), [(4, 8), (8, 16)])
@pytest.mark.parametrize("kind", ["add", "where", "causal", "input", "ones"])
def test_at_other_widths(kind: str, bits: int, wide: int) -> None:
    assert score(attention(kind, -1e4), recipe(bits, wide))[0] > unmasked(bits, wide) - 1


@pytest.mark.parametrize("kind", ["add", "where", "where_zero", "input", "bool"])
def test_rows_masked_as_a_whole_are_guarded(kind: str) -> None:
    assert score(attention(kind, -np.inf, rows=True, guard=True), recipe())[0] > unmasked(8, 8) - 1
