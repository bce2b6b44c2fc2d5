"""Depth networks judged on frames: the float network, artefacts, collapse and the layer that caused it."""

from __future__ import annotations

from dataclasses import replace

import numpy as np
import pytest

import leadline
import testbed
from data_samples import refused
from graph_models import model, node
from leadline.comparison import compare_recipes
from leadline.data import Preprocess
from leadline.depth import collapsed, networks, scenes, score
from leadline.evaluation import Footage, feeds, judge, predict
from leadline.graph import Graph
from leadline.recipe import Recipe
from leadline.types import Grid

PLAIN = Preprocess(**networks.PREPROCESS)


@pytest.fixture(scope="module")
def stills():
    return Footage([scenes.views(seed)[0] for seed in (500_000, 500_001, 500_002)])


@pytest.fixture(scope="module")
def tiny():
    return Graph.load(networks.path("tinydepth-conv"))


@pytest.fixture(scope="module")
def quantized(tiny):
    frames = [scenes.views(seed)[0] for seed in range(600_000, 600_008)]
    return leadline.quantize(tiny, "minmax-w8a8", feeds(frames, PLAIN))


def test_the_truth_itself_is_perfect(stills):
    judged = judge(1 / stills.truth, stills)
    assert judged.scores.abs_rel == pytest.approx(0, abs=1e-6) and judged.scores.delta1 == 1
    assert judged.sharpness > 0.9 and judged.collapse == [] and judged.agreement is None


def test_depth_may_be_given_instead_of_its_inverse(stills):
    depth = np.where(np.isfinite(stills.truth), stills.truth, 80)
    judged = judge(depth * 3, replace(stills, inverse=False, alignment="median"))
    assert judged.scores.abs_rel == pytest.approx(0, abs=1e-6)
    assert judge(depth * 3, replace(stills, inverse=False)).scores.abs_rel > 1


def test_a_network_is_better_than_chance_and_its_artefact_close_to_it(stills, tiny, quantized):
    own = judge(predict(tiny, stills.frames, PLAIN), stills)
    mean = np.broadcast_to(own.output.mean((1, 2), keepdims=True), own.output.shape)
    assert own.scores.abs_rel < 0.8 * judge(mean, stills).scores.abs_rel
    artefact = judge(predict(quantized.to_qdq(), stills.frames, PLAIN), stills, own)
    assert artefact.agreement.pearson > 0.9 and artefact.collapse == []
    assert artefact.output.shape == artefact.depth.shape == (3, *scenes.SIZE)


def test_a_video_has_temporal_figures(tiny, quantized):
    video = Footage(scenes.clip(500_003, 4), video=True)
    own = judge(predict(tiny, video.frames, PLAIN), video)
    assert set(own.temporal) == {"alignment_error", "warped_change"}
    artefact = judge(predict(quantized.to_qdq(), video.frames, PLAIN), video, own)
    assert {name: len(values) for name, values in artefact.temporal.items()} == {
        "alignment_error": 3, "warped_change": 3, "flicker": 3,
    }  # fmt: skip
    assert 0 < artefact.temporal["flicker"].mean() < 20


@pytest.mark.parametrize("name", ["up.0.add", "relu_1"])
def test_the_layer_that_collapses_the_depth_is_named(name, stills, tiny, quantized):
    """A range chosen a thousand times too small at one layer."""
    grid = quantized.grids[name]
    broken = replace(quantized, grids=quantized.grids | {name: Grid(grid.scale / 1000, grid.zero_point, grid.scheme)})
    own = judge(predict(tiny, stills.frames, PLAIN), stills)
    judged = judge(predict(broken.to_qdq(), stills.frames, PLAIN), stills, own)
    assert judged.collapse
    assert broken.verify().origin == name
    assert quantized.verify().origin is None


def test_the_signs_of_collapse():
    rng = np.random.default_rng(0)
    reference = rng.uniform(1, 5, (2, 20, 30))
    truth = 1 / reference
    good, bad = score(reference, truth, inverse=True), score(reference / 3, truth, inverse=True)
    assert collapsed(reference, reference, good, good) == []
    assert collapsed(reference, reference, bad, good) == [f"AbsRel {bad.abs_rel:.2f} is above 0.4"]
    assert collapsed(reference, reference, bad, bad) == []  # the float network is no better
    assert collapsed(np.full_like(reference, 2.5), reference) == ["constant, 2.5"]
    assert collapsed(np.full_like(reference, 2.5), np.full_like(reference, 2.4)) == []
    dead, weak = collapsed(0.05 * reference, reference)
    assert dead.startswith("the range is dead: 0.2") and weak.startswith("SQNR 0.4 dB")
    noise = rng.normal(0, 1.5, reference.shape)
    assert collapsed(reference + 100, reference + 100 + noise)[0].endswith("dB about its mean")
    assert (
        "12 values are NaN or infinite"
        in collapsed(np.where(reference > np.sort(reference.ravel())[-13], np.nan, reference), reference)[0]
    )
    with refused("[depth.collapsed]", "shape"):
        collapsed(reference, reference[0])


def test_networks_must_fit(stills):
    two = model([node("Relu", "x", "y"), node("Abs", "x", "z")], [1, 3, 128, 160], "y z")
    with refused("a depth network must have one input and one output", "1 inputs and 2 outputs"):
        predict(two, stills.frames, PLAIN)
    colours = model([node("Relu", "x", "y")], [1, 3, 128, 160])
    with refused("the output must be one plane of (128, 160), as the frames", "(3, 128, 160)"):
        predict(colours, stills.frames, PLAIN)


def test_recipes_are_compared(tmp_path, stills):
    frames = [scenes.views(seed)[0] for seed in range(600_000, 600_006)]
    recipes = ["minmax-w8a8", "weight-only-int8"]
    done = compare_recipes(networks.path("tinydepth-conv"), recipes, frames, [stills], tmp_path, preprocess=PLAIN)
    assert [run.name for run in done.runs] == recipes and done.calibration == 6
    for run in done.runs:
        assert run.judgements[0].agreement.pearson > 0.9 and run.collapse == []
        assert {p.name for p in (tmp_path / run.name).iterdir()} == {
            "model.fp32.onnx", "model.qdq.onnx", "model.encodings", "model.encodings.onnx", "run.json",
        }  # fmt: skip
    assert done.runs[1].judgements[0].agreement.mse < done.runs[0].judgements[0].agreement.mse
    page = done._repr_html_()
    assert "minmax-w8a8" in page and "3 pictures" in page


@pytest.mark.parametrize("recipes", [[], ["w8a8", "w8a8"]])
def test_recipes_need_names_of_their_own(recipes, tmp_path, stills):
    with refused("[compare_recipes] recipes must be at least one, of different names."):
        compare_recipes(networks.path(), recipes, stills.frames, [stills], tmp_path, preprocess=PLAIN)


def test_a_recipe_s_name_must_be_a_folder_s(tmp_path, stills):
    away = Recipe.load("minmax-w8a8").changed(name="../elsewhere")
    with refused("a recipe's name must be fit for a folder. Received '../elsewhere'."):
        compare_recipes(networks.path(), [away], stills.frames, [stills], tmp_path, preprocess=PLAIN)


def test_the_motorcycle_is_judged_like_any_frame(tiny):
    """A real photograph with measured depth: 2.1 to 5 m, known for nine tenths of the pixels."""
    testbed.need("stereo")
    frame = testbed.stereo_frame(scenes.SIZE)
    known = frame.depth > 0
    assert 0.9 < known.mean() < 0.97 and 2 < frame.depth[known].min() < 2.3 and 4.5 < frame.depth.max() < 5.2
    footage = Footage([frame], alignment="scale-shift")
    judged = judge(predict(tiny, [frame], PLAIN), footage)
    assert judged.scores.pixels == known.sum() and judged.scores.abs_rel < 0.4
    perfect = judge(1 / np.where(known, frame.depth, 1)[None], footage)
    assert perfect.scores.abs_rel == pytest.approx(0, abs=1e-6)


def test_unknown_networks_are_refused():
    with refused("[depth.networks] name must be one of tinydepth, tinydepth-conv. Received 'huge'."):
        networks.path("huge")
