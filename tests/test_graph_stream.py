"""Residual streams: found whole, with clean borders, or refused with the reason; gains of norms move into readers."""

from __future__ import annotations

import numpy as np
import pytest

from graph_models import distance, random
from leadline.graph import Graph, Session
from leadline.graph.stream import find_streams, strip_norms
from small_transformer import TOKENS, Builder, body, transformer

SAME = 1e-5


def same(before: Graph, after: Graph) -> bool:
    feed = {"x": random(*before.inputs[0].shape)}
    return distance(Session(before, threads=1).run(feed), Session(after, threads=1).run(feed)) < SAME


def found(graph: Graph):
    assert strip_norms(graph) is not None
    return find_streams(graph)


def names(layers):
    return {layer.name for layer in layers}


@pytest.mark.parametrize("fused", [False, True])
@pytest.mark.parametrize("batch", [1, 2])
def test_a_transformer_has_one_stream_with_all_its_borders(fused, batch):
    (stream,), refused = found(transformer(fused=fused, batch=batch))
    assert not refused and stream.size == 16
    assert names(stream.writers) == {"patch", "one_proj", "one_fc2", "two_proj", "two_fc2"}
    attention = ["qkv"] if fused else ["q", "k", "v"]
    blocks = {f"{block}_{layer}" for block in ("one", "two") for layer in (*attention, "fc1")}
    assert names(stream.readers) == blocks | {"tap_conv", "up_conv"}
    by_name = {node.name: (index, axis) for node, index, axis in stream.constants}
    assert by_name["joined"] == (0, -1) and by_name["stem"] == (1, -1)  # the class token and the position
    assert {"one_n1", "one_n2", "two_n1", "two_n2", "last"} <= set(by_name)  # what is left of the norms' offsets
    # Features lie on the channel axis of pictures and last elsewhere.
    assert stream.tensors["patch"] == -3 and stream.tensors["tap"] == -3 and stream.tensors["tap_t"] == -2
    assert all(axis == -1 for name, axis in stream.tensors.items() if name in ("stem", "one", "two", "last"))
    inside = {"one_gelu", "one_qk", "one_av", "one_fc1"} | {f"one_{part}" for part in attention}
    assert inside.isdisjoint(stream.tensors)  # attention and the hidden layer are spaces of their own


@pytest.mark.parametrize("fold", [False, True])
def test_gains_and_offsets_move_into_the_layers_that_read_them(fold):
    before = transformer(fold=fold)
    graph = before.copy()
    assert strip_norms(graph) == ["one_n1", "one_n2", "two_n1", "two_n2", "last"]
    assert same(before, graph)
    norms = {node.name: node for node in graph.nodes if node.op_type == "LayerNormalization"}
    for name, node in norms.items():
        assert (graph.weights[node.inputs[1]] == 1).all()
        # At the borders of a transposed convolution an offset cannot become a bias: the norm keeps it.
        assert graph.weights[node.inputs[2]].any() == (name == "last")
    kept = before.weights["last_b"] / before.weights["last_g"]
    np.testing.assert_allclose(graph.weights[norms["last"].inputs[2]], kept, rtol=1e-6)
    assert not {"last_g", "last.gain", "last.offset"} & (set(graph.weights) | set(graph.values))
    again = graph.copy()
    strip_norms(again)
    assert same(before, again)
    assert len(again.nodes) == len(graph.nodes)


def test_a_norm_without_offset_keeps_none_it_does_not_need():
    b = Builder()
    stem = b.stem()
    b.add("LayerNormalization", f"{stem} {b.weight('gain', 16, centre=1)}", "n")
    b.conv(b.picture("n", "p"), "y")
    before = b.graph()
    graph = before.copy()
    assert strip_norms(graph) == ["n"]
    assert same(before, graph)


def test_a_gain_that_does_not_fold_is_put_back():
    b = Builder()
    n = b.norm(b.stem(), "n")
    b.add("Add", f"{b.add('Sigmoid', n, 's')} {b.linear(n, 'fc', 16, 16)}", "y")
    before = b.graph()
    graph = before.copy()
    assert strip_norms(graph) == []
    assert [(node.op_type, node.outputs) for node in graph.nodes] == [(n.op_type, n.outputs) for n in before.nodes]
    norm = next(node for node in graph.nodes if node.op_type == "LayerNormalization")
    for index, name in ((1, "n_g"), (2, "n_b")):
        assert np.array_equal(graph.weights[norm.inputs[index]], before.weights[name])
    assert np.array_equal(graph.weights[graph.layers()[-1].weight], before.weights[before.layers()[-1].weight])
    assert same(before, graph)


def test_a_norm_that_is_an_output_or_gives_its_mean_is_left_alone():
    b = Builder()
    stem = b.stem()
    b.add("LayerNormalization", f"{stem} {b.weight('g', 16)} {b.weight('b', 16)}", "n mean")
    b.linear("n", "fc", 16, 4)
    b.add("Add", "fc mean", "y")
    out = b.norm(stem, "z")
    b.linear(out, "unused", 16, 4)
    graph = b.graph("y z unused")
    assert strip_norms(graph) == []
    assert {node.inputs[1] for node in graph.nodes if node.op_type == "LayerNormalization"} == {"g", "z_g"}


# Each builds from the stem on, and says why its stream has no clean border.
def reaches_the_output(b):
    b.linear(b.norm(b.stem(), "n"), "fc", 16, 16)
    b.add("Add", "stem fc", "y")


def normalises_the_input(b):
    b.add("Reshape", f"x {b.constant('s', [1, 48, 16])}", "r")
    b.linear(b.norm("r", "n"), "y", 16, 4)


def keeps_its_gain(b):
    b.add("Sigmoid", b.norm(b.stem(), "n"), "y")


def multiplies_two(b):
    h = b.linear(b.norm(b.stem(), "n"), "fc", 16, 16)
    b.linear(b.add("Mul", f"{b.add('Sigmoid', h, 's')} stem", "gated"), "y", 16, 4)


def divides_by_itself(b):
    h = b.linear(b.norm(b.stem(), "n"), "fc", 16, 16)
    far = b.add("Add", f"{b.add('Add', f'stem {h}', 'sum')} {b.constant('ten', np.float32(10))}", "far")
    b.linear(b.add("Div", f"{b.constant('one', np.float32(1))} {far}", "d"), "y", 16, 4)


def scales_its_features(b):
    """A factor for each feature that folds nowhere, since the Tanh needs the sum as it is."""
    h = b.linear(b.norm(b.stem(), "n"), "fc", 16, 16)
    scaled = b.add("Mul", f"{b.add('Add', f'stem {h}', 'sum')} {b.weight('f', 16, centre=1)}", "scaled")
    b.add("Tanh", scaled, "y")


def joins_along_features(b):
    h = b.linear(b.norm(b.stem(), "n"), "fc", 16, 16)
    b.linear(b.add("Concat", f"stem {h}", "wide", axis=-1), "y", 32, 4)


def bends(b):
    h = b.linear(b.norm(b.stem(), "n"), "fc", 16, 16)
    b.linear(b.add("Relu", b.add("Add", f"stem {h}", "sum"), "bent"), "y", 16, 4)


def groups(b):
    h = b.linear(b.norm(b.stem(), "n"), "fc", 16, 16)
    image = b.picture(b.add("Add", f"stem {h}", "sum"), "p")
    b.add("Relu", b.add("Conv", f"{image} {b.weight('w', 4, 8, 1, 1)}", "grouped", group=2), "y")


def writes_in_groups(b):
    b.add("Conv", f"x {b.weight('w', 16, 3, 4, 4)}", "a", strides=[4, 4])
    b.add("Conv", f"a {b.weight('v', 16, 1, 1, 1)}", "c", group=16)
    b.add("Reshape", f"c {b.constant('s', [1, 16, 16])}", "r")
    b.linear(b.norm(b.add("Transpose", "r", "t", perm=[0, 2, 1]), "n"), "y", 16, 4)


def splits_its_features(b):
    h = b.linear(b.norm(b.stem(), "n"), "fc", 16, 16)
    parts = b.add("Reshape", f"{b.add('Add', f'stem {h}', 'sum')} {b.constant('s', [1, TOKENS, 2, 8])}", "parted")
    b.add("Sigmoid", parts, "y")


def slices_its_features(b):
    h = b.linear(b.norm(b.stem(), "n"), "fc", 16, 16)
    bounds = " ".join(b.constant(f"s{k}", [v]) for k, v in enumerate((0, 8, 2)))
    b.linear(b.add("Slice", f"{b.add('Add', f'stem {h}', 'sum')} {bounds}", "half"), "y", 8, 4)


def turns_its_features_around(b):
    h = b.linear(b.norm(b.stem(), "n"), "fc", 16, 16)
    bounds = " ".join(b.constant(f"s{k}", [v]) for k, v in enumerate((-1, -17, 2, -1)))
    b.linear(b.add("Slice", f"{b.add('Add', f'stem {h}', 'sum')} {bounds}", "turned"), "y", 16, 4)


def gathers_features(b):
    h = b.linear(b.norm(b.stem(), "n"), "fc", 16, 16)
    index = b.constant("index", np.arange(16)[::-1].copy())
    b.linear(b.add("Gather", f"{b.add('Add', f'stem {h}', 'sum')} {index}", "g", axis=2), "y", 16, 4)


def multiplies_by_a_stack(b):
    h = b.linear(b.norm(b.stem(), "n"), "fc", 16, 16)
    b.add("Relu", b.add("MatMul", f"{b.add('Add', f'stem {h}', 'sum')} {b.weight('w', 2, 16, 4)}", "stack"), "y")


def averages_features(b):
    h = b.linear(b.norm(b.stem(), "n"), "fc", 16, 16)
    b.add("Relu", b.add("ReduceMean", f"{b.add('Add', f'stem {h}', 'sum')} {b.constant('axes', [2])}", "mean"), "y")


def reads_it_elsewhere(b):
    """A linear layer over the tokens."""
    h = b.linear(b.norm(b.stem(), "n"), "fc", 16, 16)
    b.linear(b.add("Transpose", b.add("Add", f"stem {h}", "sum"), "t", perm=[0, 2, 1]), "y", TOKENS, 4)


def normalises_two_axes(b):
    w = f"{b.weight('g', TOKENS, 16, centre=1)} {b.weight('b', TOKENS, 16)}"
    b.linear(b.norm(b.stem(), "n"), "z", 16, 4)
    b.linear(b.add("LayerNormalization", f"stem {w}", "both", axis=1), "q", 16, 4)
    b.add("Add", "z q", "y")


REFUSED = {
    reaches_the_output: "it reaches the network's output y",
    normalises_the_input: "it reaches the network's input x",
    keeps_its_gain: "the gain of n does not fold into the layers that read it",
    multiplies_two: "Mul gated is not linear in its features",
    divides_by_itself: "Div d is not linear in its features",
    scales_its_features: "Mul scaled is not linear in its features",
    joins_along_features: "wide joins it with other features",
    bends: "Relu bent is not linear in its features",
    groups: "grouped does not read it as its channels",
    writes_in_groups: "c does not write it as its channels",
    splits_its_features: "Reshape parted moves its features",
    slices_its_features: "Slice half moves its features",
    turns_its_features_around: "Slice turned moves its features",
    gathers_features: "Gather g moves its features",
    multiplies_by_a_stack: "stack does not read it as its channels",
    averages_features: "ReduceMean mean is not linear in its features",
    reads_it_elsewhere: "does not read it as its channels",
    normalises_two_axes: "LayerNormalization both is not linear in its features",
}


@pytest.mark.parametrize("build", REFUSED, ids=lambda build: build.__name__)
def test_streams_without_clean_borders_say_why(build):
    b = Builder()
    build(b)
    before = b.graph()
    graph = before.copy()
    streams, refused = found(graph)
    assert not streams
    ((name, reason),) = refused[:1]
    assert name in {node.name for node in graph.nodes if node.op_type == "LayerNormalization"}
    assert REFUSED[build] in reason
    assert same(before, graph)


def test_what_is_alike_for_all_features_passes():
    """Scalars, one constant for each token, an activation that is one wide: all are multiples of the vector of ones."""
    b = Builder()
    h = b.linear(b.norm(b.stem(), "n"), "fc", 16, 16)
    h = b.add("Add", f"stem {h}", "sum")
    h = b.add("Mul", f"{h} {b.constant('half', np.float32(0.5))}", "scaled")
    h = b.add("Add", f"{h} {b.weight('tokens', 1, TOKENS, 1)}", "shifted")
    h = b.add("Sub", f"{h} {b.linear(b.norm(h, 'm'), 'one', 16, 1)}", "less")
    h = b.add("Div", f"{h} {b.constant('third', np.float32(3))}", "part")
    b.add("Relu", b.linear(b.norm(h, "o"), "last", 16, 4), "y")
    (stream,), refused = found(b.graph(fold=False))
    assert not refused
    assert names(stream.writers) == {"patch", "fc"} and names(stream.readers) == {"fc", "one", "last"}
    assert "one" not in stream.tensors
    assert not {"scaled", "part"} & {node.name for node, _, _ in stream.constants}


def test_two_streams_are_told_apart():
    b = Builder()
    h = b.linear(b.norm(b.stem(), "n"), "fc", 16, 12)
    b.width = 12
    b.linear(b.norm(h, "m"), "y", 12, 4)
    streams, refused = found(b.graph())
    assert [stream.size for stream in streams] == [16, 12] and not refused
    assert names(streams[0].readers) == names(streams[1].writers) == {"fc"}


def test_one_refused_stream_does_not_hold_back_another():
    b = Builder()
    h = b.linear(b.norm(b.stem(), "n"), "fc", 16, 12)
    b.width = 12
    b.add("Relu", b.add("Add", f"{h} {b.linear(b.norm(h, 'm'), 'out', 12, 12)}", "end"), "y")
    (stream,), refused = found(b.graph())
    assert stream.size == 16
    ((name, reason),) = refused
    assert name == "m" and reason.startswith("Relu") and reason.endswith("is not linear in its features")


def test_a_network_without_norms_has_no_stream():
    b = Builder()
    b.linear(b.stem(), "y", 16, 4)
    assert found(b.graph()) == ([], [])


def test_the_body_of_a_transformer_alone_reaches_its_end():
    b = Builder()
    b.add("Identity", body(b), "y")
    streams, ((_, reason),) = found(b.graph())
    assert not streams and reason == "it reaches the network's output y"


def test_gains_that_came_back_after_stripping_are_moved_again():
    """As smoothing puts them back, under the names that stripping gave."""
    graph = transformer()
    strip_norms(graph)
    norms = [node for node in graph.nodes if node.op_type == "LayerNormalization"]
    for norm in norms:
        for name in norm.inputs[1:]:
            graph.weights[name] = graph.weights[name] + np.linspace(1, 2, 16, dtype=np.float32)
    before = graph.copy()
    assert len(strip_norms(graph)) == len(norms)
    assert same(before, graph)


def test_a_gemm_that_adds_the_stream_is_one_more_residual_sum():
    b = Builder()
    b.add("Reshape", f"{b.stem()} {b.constant('matrix', [TOKENS, 16])}", "flat")
    h = b.linear(b.norm("flat", "n"), "fc", 16, 16)
    b.add("Gemm", f"{h} {b.weight('w', 16, 16)} flat", "sum", transB=1)
    b.linear(b.norm("sum", "last"), "y", 16, 4)
    graph = b.graph()
    strip_norms(graph)
    (stream,), refused = find_streams(graph)
    assert not refused and "sum" in stream.tensors
    assert {layer.weight for layer in stream.writers} >= {"w"}
