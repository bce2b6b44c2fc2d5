"""Few samples: all of them say how far ranges reach, and clipping what they show needs a reason."""

from __future__ import annotations

import numpy as np
import pytest

from leadline.data import load_samples
from leadline.graph import Graph, Session
from leadline.pipeline import quantize
from leadline.sqnr import Sqnr
from small_networks import conv_relu6_depthwise, conv_relu_conv, residual, samples

NETWORKS = {"plain": conv_relu_conv, "clamped": conv_relu6_depthwise, "residual": residual}


def loud(count: int) -> np.ndarray:
    """Of `count` samples those that are held out are louder than the others."""
    data = samples(count)
    given = load_samples(data, Graph.from_model(conv_relu_conv()).inputs)
    kept = set(given.split()[1].labels)
    for place, label in enumerate(given.labels):
        data[place] *= 2 if label in kept and count > 1 else 1
    return data


def notes(made) -> list[str]:
    return [record.note for record in made.log if record.note.startswith("few samples")]


@pytest.mark.parametrize("count", [1, 2, 3, 8, 13, 14, 32])
def test_where_samples_are_few_ranges_come_from_all(count: int) -> None:
    data = loud(count)
    if count == 1:
        with pytest.warns(UserWarning, match="one sample"):
            made = quantize(Graph.from_model(conv_relu_conv()), "w8a8", data, threads=1)
    else:
        made = quantize(Graph.from_model(conv_relu_conv()), "w8a8", data, threads=1)
    few = 1 < count < 14  # fewer than four are held out
    assert bool(notes(made)) == few
    extreme = float(np.abs(data).max())
    if few:
        assert max(float(made.grids["x"].hi), -float(made.grids["x"].lo)) == pytest.approx(extreme, rel=0.01)
    elif count > 1:
        assert max(float(made.grids["x"].hi), -float(made.grids["x"].lo)) < 0.8 * extreme


def test_samples_that_were_named_as_held_out_set_no_range() -> None:
    data = samples(8)
    graph = Graph.from_model(conv_relu_conv())
    apart = load_samples(data[6:] * np.float32(3), graph.inputs)
    made = quantize(graph, "w8a8", data[:6], held_out=apart, threads=1)
    assert not notes(made)
    assert float(made.grids["x"].hi) <= float(data[:6].max()) * 1.01


@pytest.mark.parametrize("seed", range(3))
@pytest.mark.parametrize("name", NETWORKS)
def test_on_samples_that_nobody_saw_nothing_is_lost_to_observed_extremes(name: str, seed: int) -> None:
    graph = Graph.from_model(NETWORKS[name]())
    unseen = samples(24, graph.inputs[0].shape, seed=100 + seed)
    found = {}
    for recipe in ("minmax-w8a8", "w8a8"):
        made = quantize(graph, recipe, samples(8, graph.inputs[0].shape, seed=seed), threads=1)
        scores = {value.name: Sqnr() for value in graph.outputs}
        with Session(graph, threads=1) as exact, Session(made.to_qdq(), optimize=False, threads=1) as rough:
            for one in unseen:
                feed = {graph.inputs[0].name: one[None]}
                wanted, got = exact.run(feed), rough.run(feed)
                for output, score in scores.items():
                    score.update(wanted[output], got[output])
        found[recipe] = min(score.db for score in scores.values())
    assert found["w8a8"] > found["minmax-w8a8"] - 1
