"""The step heads: what an 8-bit grid for boxes and scores does to a detector, and what is left of it."""

from __future__ import annotations

from dataclasses import replace

import numpy as np
import pytest

from data_samples import refused
from leadline import quantize
from leadline.cache import Cache
from leadline.graph import Graph
from leadline.inspector import inspect
from leadline.pipeline import Quantized
from leadline.recipe import Calibrate, Equalize, Heads, Override, Recipe
from small_networks import outputs, residual
from yolov8_onnx import detector, picture, yolov8

SIZE = 64


@pytest.fixture(scope="module")
def graph() -> Graph:
    return Graph.from_model(yolov8(SIZE, 4, 4))


@pytest.fixture(scope="module")
def pictures() -> np.ndarray:
    return np.stack([picture(i, SIZE, SIZE)[0].transpose(2, 0, 1) for i in range(6)]).astype(np.float32) / 255


def plain(**heads: object) -> Recipe:
    """The shipped recipe without what takes time."""
    recipe = Recipe.load("detector-w8a8")
    steps = [replace(step, activations="minmax") if isinstance(step, Calibrate) else step for step in recipe.steps]
    steps = [replace(step, **heads) if isinstance(step, Heads) else step for step in steps]
    return replace(recipe, steps=tuple(step for step in steps if not isinstance(step, Equalize)))


def scores(done: Quantized, pictures: np.ndarray) -> np.ndarray:
    found = list(outputs(done.to_qdq(), pictures, "images", optimize=False).values())
    return found[0][:, 4:] if len(found) == 1 else found[1]


def test_a_naive_artefact_has_no_scores_and_the_inspector_says_why(graph, pictures, tmp_path):
    naive = quantize(graph, "minmax-w8a8", pictures, threads=1)
    exact = outputs(graph, pictures, "images")["output0"][:, 4:]
    assert exact.max() > 0.5
    left = scores(naive, pictures)
    assert len(np.unique(left)) <= 2  # 0, or a whole step of the boxes' grid
    naive.save(tmp_path)
    findings = str(inspect(tmp_path / "model.qdq.onnx").to_dict())
    assert "one grid for inputs of different ranges" in findings


@pytest.mark.parametrize("separate", [False, True])
def test_scores_survive(graph, pictures, separate, tmp_path):
    done = quantize(graph, plain(separate=separate), pictures, threads=1)
    exact = outputs(graph, pictures, "images")["output0"]
    assert [value.name for value in done.graph.outputs] == (["output0.0", "output0.1"] if separate else ["output0"])
    got = scores(done, pictures)
    assert np.corrcoef(exact[:, 4:].ravel(), got.ravel())[0, 1] > 0.95
    assert done.grids["model.22.dfl.conv"].scheme.bits == 16
    notes = [record.note for record in done.log if record.step == "heads"]
    wide = {name for name, grid in done.grids.items() if grid.scheme.bits == 16}
    assert ("output0.0" if separate else "output0") in wide and "output0.1" not in wide
    assert any("at 16 bits" in note for note in notes) and any("never meet" in note for note in notes)
    done.save(tmp_path)
    assert "one grid for inputs of different ranges" not in str(inspect(tmp_path / "model.qdq.onnx").to_dict())


@pytest.mark.parametrize("separate", [False, True])
def test_rare_peaks_are_no_outliers(separate):
    """Least divergence takes the few high scores for outliers; the heads keep them in range."""
    trained = Graph.from_model(detector())
    data = np.stack([picture(i)[0].transpose(2, 0, 1) for i in range(8)]).astype(np.float32) / 255
    entropy = [replace(s, activations="entropy") if isinstance(s, Calibrate) else s for s in plain().steps]
    steps = tuple(replace(s, separate=separate) if isinstance(s, Heads) else s for s in entropy)
    kept = quantize(trained, replace(plain(), steps=steps), data, threads=1)
    lost = quantize(
        trained, replace(plain(), steps=tuple(s for s in steps if not isinstance(s, Heads))), data, threads=1
    )
    assert scores(kept, data).max() > 0.6
    assert scores(lost, data).max() < 0.25


def test_overrides_that_the_recipe_states_win(graph, pictures):
    own = Override("*dfl.softmax*", activations={"bits": 8})
    done = quantize(graph, replace(plain(), overrides=(own,)), pictures, threads=1)
    assert done.grids["model.22.dfl.softmax"].scheme.bits == 8
    assert done.grids["model.22.dfl.conv"].scheme.bits == 16
    assert done.recipe.overrides[0] == own and len(done.recipe.overrides) > 10


def test_a_network_without_a_head_is_told_so():
    done = quantize(Graph.from_model(residual()), plain(), np.zeros((4, 3, 12, 12), np.float32), threads=1)
    assert [record.note for record in done.log if record.step == "heads"] == [
        "no Concat at an output joins scores with something wider"
    ]


def test_a_cached_step_gives_the_same_recipe(graph, pictures, tmp_path):
    cache = Cache(tmp_path)
    first, second = (quantize(graph, plain(), pictures, threads=1, cache=cache) for _ in range(2))
    assert first.recipe == second.recipe and first.grids.keys() == second.grids.keys()
    assert all(np.array_equal(first.grids[name].scale, second.grids[name].scale) for name in first.grids)


def test_bits_are_checked():
    with refused("[Recipe] heads: bits must lie from 8 to 16. Received 4."):
        Heads(bits=4)
