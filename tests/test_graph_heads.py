"""Detection heads: found by what operators say about ranges, parted and separated without changing a value."""

from __future__ import annotations

import numpy as np
import pytest

from data_samples import refused
from graph_models import distance, model, node, random
from leadline.graph import Graph, Session, heads
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
    assert found.output == "output0"
    assert [producers[name].op_type for name in found.scores] == ["Sigmoid"]
    assert [producers[name].op_type for name in found.others] == ["Mul"]
    operators = [producers[name].op_type for name in found.decoding]
    assert operators[:2] == ["Softmax", "Conv"] and operators[-2:] == ["Concat", "Mul"]
    peaks = [producers[name].op_type for name in found.peaks]
    assert peaks.count("Conv") == 7 and set(found.decoding) < set(found.peaks)  # six last layers, and the expectation
    assert sorted(operators[2:-2]) == sorted(["Reshape", "Split", "Split", "Sub", "Add", "Add", "Div", "Sub"])


@pytest.mark.parametrize(
    ("graph", "why"),
    [
        (head(inputs="p l"), "nothing is bounded"),
        (head(inputs="s s"), "everything is bounded"),
        (head("Relu"), "a Relu reads the Concat"),
    ],
    ids=lambda value: value if isinstance(value, str) else "",
)
def test_other_concats_are_left_alone(graph, why):
    assert heads.find(graph) == [] and heads.separate(graph) == [], why


def test_parted_logits_never_meet_and_nothing_changes():
    graph, feed = loaded()
    before = run(graph, feed)
    lines = heads.part(graph)
    assert len(lines) == 1 and "3 Concats undone" in lines[0]
    assert distance(before, run(graph, feed)) == 0
    joined = [node for node in graph.nodes if node.op_type == "Concat"]
    by_name = {layer.output: layer.weight for layer in graph.layers()}
    for concat in joined:  # no tensor holds both kinds of logits any more
        names = [by_name.get(name, "") for name in concat.inputs]
        assert not (any("cv2" in name for name in names) and any("cv3" in name for name in names))
    assert heads.part(graph) == []


def test_logits_that_never_met_stay_as_they_are():
    graph, _ = loaded(shared=False)
    nodes = len(graph.nodes)
    assert heads.part(graph) == [] and len(graph.nodes) == nodes


def test_a_split_in_other_places_is_kept():
    nodes = [
        node("Conv", "x w", "a"), node("Conv", "x w", "b"), node("Concat", "a b", "c", axis=1),
        node("Split", "c sizes", "d e", axis=1), node("Relu", "d", "y"), node("Relu", "e", "z"),
    ]  # fmt: skip
    graph = Graph.from_model(model(nodes, (1, 3, 4, 4), "y z", w=random(8, 3, 1, 1), sizes=np.array([4, 12])))
    assert heads.part(graph) == []


@pytest.mark.parametrize("names", [(), ("boxes", "scores")])
def test_separated_parts_are_outputs_with_the_same_values(names):
    graph, feed = loaded()
    before = run(graph, feed)["output0"]
    ((head, outputs),) = heads.separate(graph, names)
    after = run(graph, feed)
    assert head.output == "output0" and list(after) == list(outputs) == list(names or ("output0.0", "output0.1"))
    assert np.array_equal(before, np.concatenate(list(after.values()), 1))
    assert heads.find(graph) == [] and not any(n.op_type == "Identity" for n in graph.nodes)


def test_a_transpose_behind_the_concat_goes_to_each_part():
    graph = head("Transpose")
    feed = {"x": random(1, 3, 4, 4)}
    before = run(graph, feed)["c1"]
    heads.separate(graph)
    after = run(graph, feed)
    assert np.array_equal(before, np.concatenate(list(after.values()), 3))


def test_a_reshape_behind_the_concat_keeps_it_whole():
    graph = head("Reshape")
    assert len(heads.find(graph)) == 1 and heads.separate(graph) == []
    assert [value.name for value in graph.outputs] == ["c1"]


def test_names_are_checked():
    graph = head()
    with refused("[separate] names must be 2 new ones, for the parts of 'c0'. Received boxes."):
        heads.separate(graph, ["boxes"])
    with refused("[separate] names must be 2 new ones, for the parts of 'c0'. Received boxes, p."):
        heads.separate(graph, ["boxes", "p"])
