"""A network cut into segments: together they compute what it computes, and no segment waits for itself."""

from __future__ import annotations

import numpy as np
import pytest

from graph_models import model, node, random
from leadline.graph import Graph, Session
from leadline.graph.segments import segments
from small_networks import conv_relu6_depthwise, conv_relu_conv, gemm_relu_gemm, residual


def branches():
    """Two layers side by side, a third behind one of them, and an Add that joins it all with the input."""
    return model(
        [
            node("Conv", "x w1", "a", name="left", pads=[1, 1, 1, 1]),
            node("Conv", "x w2", "b", name="right", pads=[1, 1, 1, 1]),
            node("Relu", "a", "c"),
            node("Conv", "c w3", "d", name="behind", pads=[1, 1, 1, 1]),
            node("Add", "b d", "e"),
            node("Add", "e x", "y"),
        ],
        (1, 4, 8, 8),
        w1=random(4, 4, 3, 3), w2=random(4, 4, 3, 3), w3=random(4, 4, 3, 3),
    )  # fmt: skip


NETWORKS = [conv_relu_conv, conv_relu6_depthwise, gemm_relu_gemm, residual, branches]


def run_in_parts(parts, feed):
    known = dict(feed)
    for part in parts:
        if part.graph.outputs:
            inputs = {value.name: known[value.name] for value in part.graph.inputs}
            with Session(part.graph, optimize=False, threads=1) as session:
                known |= session.run(inputs)
    return known


@pytest.mark.parametrize("build", NETWORKS)
@pytest.mark.parametrize("every", [1, 2])
def test_together_they_compute_the_same(build, every):
    graph = Graph.from_model(build())
    parts = segments(graph, graph.layers()[::every])
    feed = {"x": random(*graph.inputs[0].shape)}
    wanted = Session(graph, optimize=False, threads=1).run(feed)
    known = run_in_parts(parts, feed)
    for name, array in wanted.items():
        np.testing.assert_array_equal(known[name], array)


@pytest.mark.parametrize("build", NETWORKS)
def test_every_layer_stands_behind_its_input(build):
    graph = Graph.from_model(build())
    parts = segments(graph, graph.layers())
    made = {value.name for value in graph.inputs}
    names = []
    for part in parts:
        assert {value.name for value in part.graph.inputs} <= made
        assert all(layer.input in made for layer in part.layers)
        made |= {value.name for value in part.graph.outputs}
        names += [layer.name for layer in part.layers]
    assert sorted(names) == sorted(layer.name for layer in graph.layers())
    assert sum(len(part.graph.nodes) for part in parts) == len(graph.nodes)


def test_layers_side_by_side_share_a_segment():
    graph = Graph.from_model(branches())
    assert [[layer.name for layer in part.layers] for part in segments(graph, graph.layers())] == [
        [], ["left", "right"], ["behind"],
    ]  # fmt: skip


def test_without_layers_there_is_one_segment():
    graph = Graph.from_model(residual())
    (part,) = segments(graph, [])
    assert part.layers == [] and len(part.graph.nodes) == len(graph.nodes)
