"""Detection heads: found by what operators say about ranges, parted and separated without changing a value."""

from __future__ import annotations

import numpy as np
import pytest

from data_samples import refused
from graph_models import distance, model, node, random
from head_networks import APART, JOINED, KINDS, best, frames, objectness
from leadline.graph import Graph, Session, heads, parting
from small_networks import residual
from yolov8_onnx import yolov8

SIZE = 96


def run(graph: Graph, feed: dict[str, np.ndarray]) -> dict[str, np.ndarray]:
    with Session(graph, optimize=False, threads=1) as session:
        return session.run(feed)


def loaded(shared: bool = True) -> tuple[Graph, dict[str, np.ndarray]]:
    graph = Graph.from_model(yolov8(SIZE, 4, 4, shared))
    return graph, {"images": np.random.default_rng(0).random((1, 3, SIZE, SIZE), dtype=np.float32)}


def head(*behind: str, inputs: str = "p s") -> Graph:
    """Boxes p and scores s of one convolution each, joined; and nodes behind the Concat, by type."""
    nodes = [node("Conv", "x w", "p", name="boxes"), node("Conv", "x w", "l", name="logits")]
    nodes += [node("Sigmoid", "l", "s", name="sigmoid"), node("Concat", inputs, "c0", name="joined", axis=1)]
    for i, op in enumerate(behind):
        own = {"Transpose": {"perm": [0, 2, 3, 1]}}.get(op, {})
        wires = f"c{i} rows" if op == "Reshape" else f"c{i}"
        nodes.append(node(op, wires, f"c{i + 1}", **own))
    rows = {"rows": np.array([1, 16, -1])} if "Reshape" in behind else {}
    return Graph.from_model(model(nodes, (1, 3, 4, 4), f"c{len(behind)}", w=random(8, 3, 1, 1), **rows))


def test_the_head_of_a_detector_is_found_with_all_that_boxes_are_decoded_in():
    graph, _ = loaded()
    (found,) = heads.find(graph)
    producers = graph.producers()
    assert found.outputs == ("output0",) and found.joined == ("output0",) and len(found.concats) == 1
    assert [producers[name].op_type for name in found.scores] == ["Sigmoid"]
    assert [producers[name].op_type for name in found.others] == ["Mul"]
    operators = [producers[name].op_type for name in found.wide]
    assert operators.count("Conv") == 7 == len(found.layers)  # six last layers, and the expectation
    assert {"Softmax", "Sigmoid", "Sub", "Add", "Div", "Mul"} <= set(operators)
    assert not any(name.endswith(".mul") and ".cv" in name for name in found.wide)  # features keep their bits
    assert found.weights == {found.others[0]: (heads.Weight(found.scores[0], 1, 1),)}


@pytest.mark.parametrize(
    ("graph", "why"),
    [
        (head(inputs="p l"), "nothing is bounded"),
        (head(inputs="s s"), "everything is bounded"),
        (head("Relu"), "a Relu reads the Concat"),
        (Graph.from_model(residual()), "one output, and nothing is joined"),
    ],
    ids=lambda value: value if isinstance(value, str) else "",
)
def test_other_concats_are_left_alone(graph, why):
    assert heads.find(graph) == [] and parting.separate(graph) == [], why


def test_parted_logits_never_meet_and_nothing_changes():
    graph, feed = loaded()
    before = run(graph, feed)
    lines = parting.part(graph)
    assert len(lines) == 1 and "3 Concats undone" in lines[0]
    assert distance(before, run(graph, feed)) == 0
    joined = [node for node in graph.nodes if node.op_type == "Concat"]
    by_name = {layer.output: layer.weight for layer in graph.layers()}
    for concat in joined:  # no tensor holds both kinds of logits any more
        names = [by_name.get(name, "") for name in concat.inputs]
        assert not (any("cv2" in name for name in names) and any("cv3" in name for name in names))
    assert parting.part(graph) == []


def test_logits_that_never_met_stay_as_they_are():
    graph, _ = loaded(shared=False)
    nodes = len(graph.nodes)
    assert parting.part(graph) == [] and len(graph.nodes) == nodes


def test_a_split_in_other_places_is_kept():
    nodes = [
        node("Conv", "x w", "a"), node("Conv", "x w", "b"), node("Concat", "a b", "c", axis=1),
        node("Split", "c sizes", "d e", axis=1), node("Relu", "d", "y"), node("Relu", "e", "z"),
    ]  # fmt: skip
    graph = Graph.from_model(model(nodes, (1, 3, 4, 4), "y z", w=random(8, 3, 1, 1), sizes=np.array([4, 12])))
    assert parting.part(graph) == []


@pytest.mark.parametrize("names", [(), ("boxes", "scores")])
def test_separated_parts_are_outputs_with_the_same_values(names):
    graph, feed = loaded()
    before = run(graph, feed)["output0"]
    ((head, outputs),) = parting.separate(graph, names)
    after = run(graph, feed)
    assert head.outputs == ("output0",) and list(after) == list(outputs) == list(names or ("output0.0", "output0.1"))
    assert np.array_equal(before, np.concatenate(list(after.values()), 1))
    ((found,), parts) = heads.find(graph), set(outputs)
    assert set(found.outputs) == parts and not found.joined  # still a head, of two outputs
    assert not any(n.op_type == "Identity" for n in graph.nodes)


def test_a_transpose_behind_the_concat_goes_to_each_part():
    graph = head("Transpose")
    feed = {"x": random(1, 3, 4, 4)}
    before = run(graph, feed)["c1"]
    parting.separate(graph)
    after = run(graph, feed)
    assert np.array_equal(before, np.concatenate(list(after.values()), 3))


def test_a_reshape_behind_the_concat_keeps_it_whole():
    graph = head("Reshape")
    assert len(heads.find(graph)) == 1 and parting.separate(graph) == []
    assert [value.name for value in graph.outputs] == ["c1"]


def test_names_are_checked():
    graph = head()
    with refused("[separate] names must be 2 new ones, for the parts of 'c0'. Received boxes."):
        parting.separate(graph, ["boxes"])
    with refused("[separate] names must be 2 new ones, for the parts of 'c0'. Received boxes, p."):
        parting.separate(graph, ["boxes", "p"])


@pytest.mark.parametrize("kind", KINDS)
def test_every_kind_of_head_is_found(kind):
    graph = Graph.from_model(KINDS[kind]())
    parting.part(graph)
    (found,) = heads.find(graph)
    assert set(found.outputs) == {value.name for value in graph.outputs}
    assert bool(found.concats) == bool(found.joined) == (kind not in APART)
    assert {*found.scores, *found.others, *found.labels} == set(found.parts)
    assert found.scores and found.others and bool(found.labels) == (kind == "yolov10")
    assert not set(found.scores).intersection(found.others)
    last = {layer.name for layer in graph.layers()} - set(found.layers)
    features = {layer.output for layer in graph.layers() if layer.name in last}
    assert found.layers and features and not features.intersection(found.wide)
    if kind in ("detr", "yolox, decoded"):  # logits are no weights; other shapes
        return
    for other in found.others:
        for weight in found.weights[other]:
            highest = np.empty(graph.shape(weight.scores)).max(weight.axis)
            assert np.broadcast_shapes(np.expand_dims(highest, weight.onto).shape, graph.shape(other)) == graph.shape(
                other
            )
        assert found.weights[other]


@pytest.mark.parametrize("kind", KINDS)
def test_parting_changes_no_value(kind):
    graph = Graph.from_model(KINDS[kind]())
    feed = {"x": frames(1)[0]}
    before = run(graph, feed)
    lines = parting.part(graph)
    after = run(graph, feed)
    assert list(before) == list(after) and all(np.array_equal(before[name], after[name]) for name in before)
    assert bool(lines) == (kind in ("yolox, decoded", "yolov10"))
    assert parting.part(graph) == []


def test_what_slices_and_splits_take_apart_never_meets():
    for proto, others in ((objectness(True), ("Mul", "Mul")), (best(), ("GatherElements",))):
        graph = Graph.from_model(proto)
        parting.part(graph)
        (found,) = heads.find(graph)
        producers = graph.producers()
        assert tuple(producers[name].op_type for name in found.others) == others
        for node_ in graph.nodes:  # before the last one, no Concat joins a Sigmoid with anything else
            if node_.op_type == "Concat" and not set(node_.outputs).intersection(found.outputs):
                kinds = [heads._View(graph).is_bounded(name) for name in node_.inputs]
                assert all(kinds) or not any(kinds)


@pytest.mark.parametrize(
    ("other", "score", "axes"),
    [
        ((1, 4, 50), (1, 80, 50), (1, 1)),
        ((1, 50, 4), (1, 50, 80), (2, 2)),
        ((1, 50, 4), (1, 80, 50), (2, 1)),
        ((1, 4, 50), (1, 4, 50), (1, 1)),
        ((1, 3, 8, 8, 2), (1, 3, 8, 8, 5), (4, 4)),
        ((1, 2, 8, 8), (1, 1, 8, 8), (1, 1)),
        ((9, 4), (9, 3), (1, 1)),
        ((1, 4, 50), (1, 80, 49), None),
        ((1, 4), (1, 80), None),
        ((1, 4, 8, 8), (1, 80, 64), None),
        ((), (), None),
    ],
)
def test_features_lie_where_the_places_are_the_same(other, score, axes):
    assert heads.aligned(other, score) == axes


@pytest.mark.parametrize("kind", JOINED)
def test_heads_of_one_concat_can_be_separated(kind):
    graph = Graph.from_model(KINDS[kind]())
    feed = {"x": frames(1)[0]}
    (before,) = run(graph, feed).values()
    done = parting.separate(graph)
    after = list(run(graph, feed).values())
    assert bool(done) == (kind in ("yolov8", "yolov8, transposed", "rt-detr"))
    assert np.array_equal(before, np.concatenate(after, 1 if kind == "yolov8" else 2))


@pytest.mark.parametrize("indices", [[5], [4, 5, 7], 6, [-1, -2]])
def test_a_gather_reads_the_part_that_holds_what_it_gathers(indices):
    nodes = [
        node("Conv", "x w", "a"), node("Conv", "x w", "b"), node("Concat", "a b", "c", axis=1),
        node("Gather", "c i", "y", axis=1), node("Gather", "c k", "z", axis=1),
    ]  # fmt: skip
    graph = Graph.from_model(
        model(nodes, (1, 3, 4, 4), "y z", w=random(4, 3, 1, 1), i=np.array(indices), k=np.array([0, 7]))
    )
    feed = {"x": random(1, 3, 4, 4)}
    before = run(graph, feed)
    assert len(parting.part(graph)) == 1
    after = run(graph, feed)
    assert all(np.array_equal(before[name], after[name]) for name in before)
    assert graph.producer("y").inputs[0] != graph.producer("z").inputs[0]
