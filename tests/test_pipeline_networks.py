"""The verb on a real network: what the small ones cannot show, in one run."""

from __future__ import annotations

import json
import os

import numpy as np
import pytest

import testbed
from leadline.data import Data, Preprocess, load_samples
from leadline.export import qdq
from leadline.graph import Graph, Session
from leadline.pipeline import quantize
from leadline.verification import verify

pytestmark = pytest.mark.slow
COUNT = 8


@pytest.fixture(scope="module")
def run():
    """EfficientNet-Lite0 (D) by the static recipe, calibrated with a few photographs."""
    testbed.need("D"), testbed.need("pictures")
    pictures = testbed.pictures("calibration", wheels_only=True)
    return quantize(
        testbed.network("D"),
        "w8a8",
        Data(pictures, preprocess=Preprocess.from_dict(testbed.PREPROCESS["D"]), num_samples=COUNT),
    )


@pytest.fixture(scope="module")
def evaluation(run):
    preprocess = Preprocess.from_dict(testbed.PREPROCESS["D"])
    return load_samples(Data(testbed.pictures("evaluation", wheels_only=True), preprocess=preprocess), run.graph.inputs)


def test_equalising_and_folding_kept_the_float_function(run, evaluation):
    original = Graph.load(testbed.network("D"), testbed.INPUTS["D"])
    with Session(original) as before, Session(run.graph) as after:
        for feed in evaluation:
            ((_, wanted),), ((_, got),) = before.run(feed).items(), after.run(feed).items()
            np.testing.assert_allclose(got, wanted, atol=1e-3 * wanted.std())


def test_eight_bits_stay_close_on_pictures_never_seen(run, evaluation):
    original = Graph.load(testbed.network("D"), testbed.INPUTS["D"])
    result = verify(original, run.to_qdq(), evaluation)
    (score,) = result.outputs
    assert score.sqnr > 15
    with Session(original) as exact, Session(run.to_qdq(), optimize=False) as artefact:
        same = [
            next(iter(exact.run(feed).values())).argmax() == next(iter(artefact.run(feed).values())).argmax()
            for feed in evaluation
        ]
    assert np.mean(same) >= 0.6


def test_every_layer_is_quantised_and_logged(run):
    layers = run.graph.layers()
    assert len(layers) > 40 and all(layer.weight in run.grids and layer.bias in run.grids for layer in layers)
    logged = {record.target for record in run.log if record.step == "correct-bias"}
    assert {layer.name for layer in layers} <= logged


def test_saved_and_read_back_it_is_the_run(run, tmp_path):
    run.save(tmp_path)
    back = qdq.read(tmp_path / "model.qdq.onnx")
    assert back.grids == run.grids
    assert all(np.array_equal(back.codes[name], run.codes[name]) for name in run.codes)
    assert os.path.getsize(tmp_path / "model.qdq.onnx") < os.path.getsize(tmp_path / "model.fp32.onnx") / 3
    encodings = json.loads((tmp_path / "model.encodings").read_text())
    assert len(encodings["param_encodings"]) == len({layer.weight for layer in run.graph.layers()})
