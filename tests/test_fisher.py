"""The output factor of K-FAC, against derivatives written out."""

from __future__ import annotations

import numpy as np
import pytest

from graph_models import model, node
from leadline.data import load_samples
from leadline.fisher import output_factor
from leadline.graph import Graph, Session
from leadline.graph.segments import behind
from leadline.types import InputError
from small_networks import draw, residual


def linear():
    """Two linear layers with nothing in between: the derivative is the second one's weight."""
    return Graph.from_model(
        model(
            [node("Gemm", "x w1", "z", name="first", transB=1), node("Gemm", "z w2", "y", name="second", transB=1)],
            (5, 6),
            w1=draw(1, 8, 6), w2=draw(2, 3, 8),
        )
    )  # fmt: skip


def convolutions(act: str = "Identity"):
    return Graph.from_model(
        model(
            [
                node("Conv", "x w1", "a", name="first", pads=[1, 1, 1, 1]),
                node(act, "a", "b"),
                node("Conv", "b w2", "y", name="second", pads=[1, 1, 1, 1]),
            ],
            (1, 3, 8, 8),
            w1=draw(1, 6, 3, 3, 3), w2=draw(2, 4, 6, 3, 3),
        )
    )  # fmt: skip


def random_samples(graph: Graph, count: int, seed: int = 0):
    shape = graph.inputs[0].shape
    return load_samples(
        list(np.random.default_rng(seed).standard_normal((count, *shape)).astype(np.float32)), graph.inputs
    )


def written_out(graph: Graph, tensor: str, feed) -> np.ndarray:
    """Sum over positions of J_p^T J_p, by one run for each channel and position; outputs in units of their energy."""
    names = [value.name for value in behind(graph, tensor).inputs]
    with Session(graph, names, threads=1) as front, Session(behind(graph, tensor), threads=1) as back:
        given = front.run(feed)
        (usual,) = back.run(given).values()
        channels, *positions = given[tensor].shape[1:]
        total = np.zeros((channels, channels))
        for place in np.ndindex(*positions):
            rows = []
            for channel in range(channels):
                moved = given[tensor].copy()
                moved[(0, channel, *place)] += 0.01
                (changed,) = back.run(given | {tensor: moved}).values()
                rows.append((changed.astype(float) - usual).ravel() / 0.01)
            total += np.array(rows) @ np.array(rows).T
    return total / np.square(usual.astype(float)).sum()


def test_of_a_linear_network_it_is_exact():
    graph = linear()
    first, samples = graph.layers()[0], random_samples(graph, 3)
    w2 = graph.weights[graph.layers()[1].weight].astype(float)
    with Session(graph, threads=1) as session:
        energies = [np.square(session.run(feed)["y"].astype(float)).sum() for feed in samples]
    wanted = 5 * w2.T @ w2 * np.mean(1 / np.array(energies))
    np.testing.assert_allclose(output_factor(graph, first, samples, threads=1), wanted, rtol=1e-3, atol=1e-5)


@pytest.mark.parametrize("act", ["Identity", "Relu"])
def test_signs_keep_positions_apart(act):
    graph = convolutions(act)
    samples = random_samples(graph, 48)
    wanted = np.mean([written_out(graph, graph.layers()[0].output, feed) for feed in samples.take(8)], 0)
    found = output_factor(graph, graph.layers()[0], samples, threads=1)
    assert np.linalg.norm(found - wanted) < 0.2 * np.linalg.norm(wanted)
    assert np.allclose(found, found.T) and np.linalg.eigvalsh(found).min() > -1e-9


def test_few_probes_keep_the_trace():
    graph = linear()
    first, samples = graph.layers()[0], random_samples(graph, 2)
    full = output_factor(graph, first, samples, threads=1)
    few = [output_factor(graph, first, samples, probes=4, seed=seed, threads=1) for seed in range(30)]
    assert np.mean([np.trace(f) for f in few]) == pytest.approx(np.trace(full), rel=0.2)
    assert all(np.linalg.matrix_rank(f) == 8 for f in few)


def test_what_follows_a_tensor_computes_the_same():
    graph = Graph.from_model(residual())
    (feed,) = random_samples(graph, 1)
    wanted = Session(graph, threads=1).run(feed)
    for layer in graph.layers():
        part = behind(graph, layer.output)
        if part.nodes:
            assert part.inputs[0].name == layer.output
            given = Session(graph, [value.name for value in part.inputs], threads=1).run(feed)
            for name, array in Session(part, threads=1).run(given).items():
                np.testing.assert_allclose(array, wanted[name], rtol=1e-5, atol=1e-6)


def test_bad_arguments_are_named():
    graph = linear()
    first, last = graph.layers()
    samples = random_samples(graph, 1)
    for layer, options, message in (
        (first, {"probes": 0}, "probes must be at least 1"),
        (first, {"step": 0.0}, "step must be a finite number above 0"),
        (last, {}, "must depend on the layer. Received second"),
    ):
        with pytest.raises(InputError, match=message):
            output_factor(graph, layer, samples, **options)
