"""The step heads: what an 8-bit grid for boxes and scores does to a detector, and what is left of it."""

from __future__ import annotations

from dataclasses import replace

import numpy as np
import pytest

from data_samples import refused
from head_networks import APART, JOINED, KINDS, frames
from leadline import quantize
from leadline.cache import Cache
from leadline.graph import Graph, Session
from leadline.graph.heads import find
from leadline.inspector import inspect
from leadline.pipeline import Quantized, prepare
from leadline.recipe import Calibrate, Equalize, Heads, Override, Recipe
from leadline.sqnr import Sqnr
from leadline.steps import apply
from leadline.steps.gate import output_error
from leadline.types import Grid, Scheme
from small_networks import outputs, residual, samples
from yolov8_onnx import detector, picture, yolov8

SIZE = 64


@pytest.fixture(scope="module")
def graph() -> Graph:
    return Graph.from_model(yolov8(SIZE, 4, 4))


@pytest.fixture(scope="module")
def pictures() -> np.ndarray:
    return np.stack([picture(i, SIZE, SIZE)[0].transpose(2, 0, 1) for i in range(6)]).astype(np.float32) / 255


def quick(name: str, **heads: object) -> Recipe:
    """A shipped recipe without what takes time."""
    recipe = Recipe.load(name)
    steps = [replace(step, activations="minmax") if isinstance(step, Calibrate) else step for step in recipe.steps]
    steps = [replace(step, **{"widen": 0.0, **heads}) if isinstance(step, Heads) else step for step in steps]
    return replace(recipe, steps=tuple(step for step in steps if not isinstance(step, Equalize)))


def plain(**heads: object) -> Recipe:
    return quick("w8a8", **heads)


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
    assert {value.name for value in done.graph.outputs} <= wide
    assert {layer.output for layer in done.graph.layers() if layer.output in wide} == {
        *(f"model.22.cv{branch}.{level}.2" for branch in (2, 3) for level in range(3)),
        "model.22.dfl.conv",
    }
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


def test_features_stay_narrow_for_hexagon(graph, pictures):
    """It builds no 16-bit convolution here and there; its last layers it does."""
    done = quantize(graph, plain(widen=0.2), pictures, threads=1, target="hexagon")
    (head,) = find(done.graph)
    wide = {layer.name for layer in done.graph.layers() if done.grids[layer.output].scheme.bits == 16}
    assert wide == set(head.layers)


@pytest.mark.parametrize("share", [0.05, 0.2])
def test_the_features_that_cost_most_are_wide(graph, pictures, share):
    done = quantize(graph, plain(widen=share), pictures, threads=1)
    (head,) = find(done.graph)
    wide = {name for name in done.graph.values if name in done.grids and done.grids[name].scheme.bits == 16}
    features = wide - set(head.wide) - set(done.graph.weights)
    (note,) = [r.note for r in done.log if r.step == "heads" and "features at 16 bits" in r.note]
    count, _, total = note.split()[:3]
    assert int(count) == round(share * int(total)) > 0 and features
    for node in done.graph.nodes:  # a gate and its factors are wide together
        if node.op_type == "Mul" and node.outputs[0] in features:
            assert features.issuperset(node.inputs)


def test_overrides_that_the_recipe_states_win(graph, pictures):
    own = Override("*dfl.softmax*", activations={"bits": 8})
    done = quantize(graph, replace(plain(), overrides=(own,)), pictures, threads=1)
    assert done.grids["model.22.dfl.softmax"].scheme.bits == 8
    assert done.grids["model.22.dfl.conv"].scheme.bits == 16
    assert done.recipe.overrides[0] == own and len(done.recipe.overrides) > 10


RECIPES = ("w8a8", "adaround-w8a8", "w4a8", "w4a4", "w8a16")


def bare(recipe: Recipe) -> Recipe:
    return replace(recipe, steps=tuple(step for step in recipe.steps if not isinstance(step, Heads)))


@pytest.mark.parametrize("name", RECIPES)
def test_a_network_without_a_head_is_left_alone(name):
    data = samples(8)
    recipe = Recipe.load(name)
    assert sum(isinstance(step, Heads) for step in recipe.steps) == 1
    with_step, without = (
        quantize(Graph.from_model(residual()), own, data, threads=1) for own in (recipe, bare(recipe))
    )
    assert with_step.to_qdq().SerializeToString() == without.to_qdq().SerializeToString()
    assert [record.to_dict() for record in with_step.log] == [record.to_dict() for record in without.log]


def columns(kind: str, found: dict[str, np.ndarray], names: tuple[str, ...]) -> tuple[np.ndarray, np.ndarray]:
    """Scores and positions."""
    if kind in JOINED:
        rows = np.moveaxis(next(iter(found.values())), 1 if kind == "yolov8" else -1, 0)
        return rows[4:], rows[:4]
    return tuple(
        np.concatenate([array.ravel() for name, array in found.items() if (name in names) == own])
        for own in (True, False)
    )


LEAST = {"w8a8": 25, "adaround-w8a8": 25, "w4a8": 20, "w4a4": 12, "w8a16": 30}
"""dB of the scores. Whatever shares the boxes' 8-bit grid has none; 4-bit features cost most of it."""


@pytest.mark.parametrize("kind", [*JOINED, *APART])
@pytest.mark.parametrize("name", ["w8a8", "w4a8"])
def test_every_kind_keeps_its_scores_and_its_boxes(kind, name):
    graph, data = Graph.from_model(KINDS[kind]()), np.concatenate(frames(12))
    done = quantize(graph, quick(name), data, threads=1)
    scores_of = tuple(name for head in find(done.graph) for name in head.scores)
    kept = [Sqnr(), Sqnr()]
    with Session(graph, threads=1) as exact, Session(done.to_qdq(), optimize=False, threads=1) as rough:
        for x in frames(6, seed=1):
            parts = [columns(kind, session.run({"x": x}), scores_of) for session in (exact, rough)]
            for score, wanted, got in zip(kept, *parts, strict=True):
                score.update(wanted, got)
    assert kept[0].db > LEAST[name] and kept[1].db > LEAST[name] + 5
    (head,) = find(done.graph)
    assert all(done.grids[name].scheme.bits == 16 for name in head.wide if name in done.grids)
    weights = {layer.name: done.grids[layer.weight].scheme.bits for layer in done.graph.layers()}
    assert all(weights[name] == 8 for name in head.layers)


@pytest.mark.parametrize("name", RECIPES)
def test_every_recipe_keeps_the_scores_of_a_joined_head(name):
    test_every_kind_keeps_its_scores_and_its_boxes("yolov8", name)


def test_labels_stay_whole_numbers():
    graph, data = Graph.from_model(KINDS["yolov10"]()), np.concatenate(frames(12))
    done = quantize(graph, plain(), data, threads=1)
    (head,) = find(done.graph)
    assert head.labels and not {*head.labels, *head.joined}.intersection(done.grids)
    with Session(done.to_qdq(), optimize=False, threads=1) as session:
        for x in frames(4, seed=1):
            (found,) = session.run({"x": x}).values()
            assert np.array_equal(found[..., 5], np.rint(found[..., 5]))
            assert (np.diff(found[0, :, 4]) <= 0).all()  # the best first


def test_gates_look_at_scores_and_at_positions_where_they_are_high():
    graph, data = Graph.from_model(KINDS["yolov8"]()), np.concatenate(frames(8))
    state, _ = prepare(graph, "w8a8", data, threads=1)
    assert output_error(state) == pytest.approx(1e-20)  # of the outputs as they are
    for step in state.recipe.steps[:2]:
        apply(step, state)
    (head,) = find(state.graph)
    assert list(state.judged) == [*head.scores, *head.others]
    assert state.judged[head.others[0]] == ((head.scores[0], 1, 1),) and state.judged[head.scores[0]] == ()
    assert output_error(state) == pytest.approx(1e-20)  # nothing is quantised
    # A step of a tenth in the scores is an error, however large the boxes are.
    coarse = Grid(np.float32(0.1), np.int32(0), Scheme(signed=False, symmetric=False))
    assert output_error(state.fork(grids={head.scores[0]: coarse})) > 1e-3


def test_a_cached_step_gives_the_same_recipe(graph, pictures, tmp_path):
    cache = Cache(tmp_path)
    first, second = (quantize(graph, plain(), pictures, threads=1, cache=cache) for _ in range(2))
    assert first.recipe == second.recipe and first.grids.keys() == second.grids.keys()
    assert all(np.array_equal(first.grids[name].scale, second.grids[name].scale) for name in first.grids)


def test_bits_are_checked():
    with refused("[Recipe] heads: bits must lie from 8 to 16. Received 4."):
        Heads(bits=4)
