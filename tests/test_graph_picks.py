"""Rows that a TopK picks are compared as the rows that they are, whatever their order."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
import onnx
import pytest

from graph_models import model, node
from leadline.graph import Graph
from leadline.graph.picks import Pick, picks
from leadline.scores import SAME
from leadline.sqnr import Sqnr
from leadline.verification import verify

ROWS, WIDTH, TAKEN = 24, 6, 5


def network(batch: int, gather: str, swap: Sequence[int] = range(ROWS), noise: float = 0.0) -> onnx.ModelProto:
    """The rows of x with the highest scores, by a layer of theirs; the scores of `swap` are exchanged, so that others
    are picked."""
    generator = np.random.default_rng(7)
    weight = generator.standard_normal((WIDTH, 4)).astype(np.float32)
    scores = np.linspace(1, 2, ROWS, dtype=np.float32)[list(swap)][None]
    nodes = [node("ReduceMax", "x", "most", axes=[-1], keepdims=0), node("Mul", "most nothing", "still")]
    nodes += [node("Add", "still scores", "ranks"), node("TopK", "ranks k", "values places", axis=1)]
    constants = {"last": np.array([-1]), "nothing": np.zeros(1, np.float32), "scores": scores, "k": np.array([TAKEN])}
    if gather == "GatherElements":
        nodes += [node("Unsqueeze", "places last", "column"), node("Expand", "column wide", "where")]
        nodes += [node("GatherElements", "x where", "rows", axis=1)]
        constants |= {"wide": np.array([batch, TAKEN, WIDTH])}
    elif gather == "GatherND":
        nodes += [node("Unsqueeze", "places last", "where"), node("GatherND", "x where", "rows", batch_dims=1)]
    else:
        nodes += [node("Squeeze", "places first", "where"), node("Gather", "x where", "rows", axis=1)]
        constants |= {"first": np.array([0])}
    nodes += [node("MatMul", "rows w", "moved"), node("Add", "moved b", "y")]
    shift = noise * np.float32(generator.standard_normal(4))
    return model(nodes, (batch, ROWS, WIDTH), w=weight, b=np.ones(4, np.float32) + shift, **constants)


def judged(batch: int, gather: str, swap: Sequence[int], noise: float = 0.01):
    feeds = [{"x": np.random.default_rng(i).standard_normal((batch, ROWS, WIDTH)).astype(np.float32)} for i in range(3)]
    graph, artefact = (Graph.from_model(network(batch, gather, *how)) for how in ((), (swap, noise)))
    (score,) = verify(graph, artefact.to_model(), feeds).outputs
    return score


def order(*exchanged: tuple[int, int]) -> list[int]:
    places = list(range(ROWS))
    for one, other in exchanged:
        places[one], places[other] = places[other], places[one]
    return places


GATHERS = [(1, "Gather"), (1, "GatherElements"), (3, "GatherElements"), (1, "GatherND"), (3, "GatherND")]


@pytest.mark.parametrize(("batch", "gather"), GATHERS)
def test_a_change_of_places_is_no_loss(batch, gather):
    same, swapped = (judged(batch, gather, order(*pairs)) for pairs in ([], [(ROWS - 1, ROWS - 2), (20, 21)]))
    assert (same.picked, swapped.picked) == (1.0, 1.0)
    assert swapped.sqnr == pytest.approx(same.sqnr, abs=0.2) and swapped.sqnr > 30
    assert same.placed == pytest.approx(same.sqnr, abs=0.2) and swapped.placed < 10
    assert not swapped.collapse
    assert swapped.device == pytest.approx(swapped.sqnr, abs=0.2)
    assert "100%" in swapped.order and f"{swapped.placed:.1f} dB" in swapped.order


@pytest.mark.parametrize(("batch", "gather"), GATHERS)
@pytest.mark.parametrize("lost", range(1, TAKEN + 1))
def test_other_rows_are_a_loss_where_they_are_most(batch, gather, lost):
    score = judged(batch, gather, order(*((ROWS - 1 - i, i) for i in range(lost))))
    assert score.picked == pytest.approx(1 - lost / TAKEN)
    assert bool(score.collapse) == (score.picked < SAME)
    assert lost == TAKEN or score.sqnr > 30


@pytest.mark.parametrize(("batch", "gather"), GATHERS)
def test_what_is_wrong_in_the_rows_themselves_is_not_hidden(batch, gather):
    score = judged(batch, gather, order(), noise=30.0)
    assert score.sqnr < 5 and score.collapse


def test_outputs_that_no_single_topk_picks_are_compared_place_by_place():
    nodes = [node("TopK", "x k", "values places", axis=1), node("Cast", "places", "y", to=1)]
    proto = model(nodes, (2, ROWS), "y values", k=np.array([TAKEN]))
    assert [pick.axis for pick in picks(Graph.from_model(proto)).values()] == [1]
    twice = [node("TopK", "x k", "values places", axis=1), node("TopK", "values j", "more others", axis=1)]
    proto = model([*twice, node("Cast", "others", "y", to=1)], (2, ROWS), k=np.array([TAKEN]), j=np.array([2]))
    assert not picks(Graph.from_model(proto))


def test_rows_of_batches_are_their_own():
    pick, generator = Pick("places", 1), np.random.default_rng(0)
    wanted, got = np.array([[3, 1, 2], [0, 4, 5]]), np.array([[1, 3, 9], [5, 0, 4]])
    mine, theirs, share = pick.kept(wanted, got)
    assert share == pytest.approx(5 / 6)
    rows = generator.standard_normal((2, 10, 4)).astype(np.float32)
    taken = [np.take_along_axis(rows, places[..., None], 1) for places in (wanted, got)]
    one, other = (pick.rows(output, wanted) for output in taken)
    assert one is not None and other is not None
    assert Sqnr().update(one[mine], other[theirs]).db == Sqnr().update(one, one).db
