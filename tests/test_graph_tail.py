"""What depends on the data is carried in float behind the part that is quantised."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from types import SimpleNamespace

import numpy as np
import onnx
import onnxruntime as ort
import pytest
from onnx import TensorProto as T
from onnx import helper, numpy_helper

import leadline
from graph_models import node
from leadline.cli import main
from leadline.graph import Graph, Session
from leadline.sqnr import Sqnr
from leadline.tail_scores import Tailed
from leadline.targets.litert.convert import plan
from leadline.types import InputError

ROWS, FEATURES = 20, 12
Tail = tuple[list[onnx.NodeProto], dict[str, np.ndarray], list[tuple[str, int, tuple]]]


def random(*shape: int, seed: int = 0, scale: float = 1.0) -> np.ndarray:
    return (np.random.default_rng([seed, *shape]).standard_normal(shape) * scale).astype(np.float32)


def network(tail: Tail, opset: int = 17, check: bool = True) -> onnx.ModelProto:
    """Three linear layers give boxes (1, ROWS, 4) and scores (1, 2, ROWS), and a tail reads them."""
    nodes, weights, outputs = tail
    front = [
        node("MatMul", "x w0", "h0"), node("Relu", "h0", "h"), node("MatMul", "h w1", "b0"), node("Abs", "b0", "boxes"),
        node("MatMul", "h w2", "s0"), node("Sigmoid", "s0", "s1"), node("Transpose", "s1", "scores", perm=[0, 2, 1]),
    ]  # fmt: skip
    weights = {
        "w0": random(FEATURES, FEATURES, scale=0.3), "w1": random(FEATURES, 4, scale=0.5),
        "w2": random(FEATURES, 2, scale=0.5), **weights,
    }  # fmt: skip
    ends = [helper.make_tensor_value_info(*one) for one in outputs]
    tensors = [numpy_helper.from_array(array, name) for name, array in weights.items()]
    x = helper.make_tensor_value_info("x", T.FLOAT, (1, ROWS, FEATURES))
    graph = helper.make_graph(front + nodes, "net", [x], ends, tensors)
    made = helper.make_model(graph, opset_imports=[helper.make_opsetid("", opset)], ir_version=8)
    if check:
        onnx.checker.check_model(made, full_check=True)
    return made


def suppression(axes_as_input: bool = True) -> Tail:
    """Boxes that survive, gathered: the tail of nearly every exported detector."""
    squeeze = node("Squeeze", "kept last", "rows") if axes_as_input else node("Squeeze", "kept", "rows", axes=[1])
    nodes = [
        node("NonMaxSuppression", "boxes scores most overlap least", "selected", name="nms"),
        node("Slice", "selected two three one", "kept"), squeeze,
        node("Gather", "boxes rows", "picked", axis=1), node("Identity", "picked", "detections"),
        node("Cast", "selected", "numbers", to=T.INT32),
    ]  # fmt: skip
    weights = {
        "most": np.array([5]), "overlap": np.float32([0.5]), "least": np.float32([0.3]), "two": np.array([2]),
        "three": np.array([3]), "one": np.array([1]), "last": np.array([1]),
    }  # fmt: skip
    if not axes_as_input:
        del weights["last"]
    return nodes, weights, [("detections", T.FLOAT, (1, "found", 4)), ("numbers", T.INT32, ("found", 3))]


def nonzero() -> Tail:
    """A threshold: the comparison goes with the tail, so that the border is what is compared."""
    nodes = [
        node("Greater", "scores threshold", "mask"), node("NonZero", "mask", "places"),
        node("Transpose", "places", "t", perm=[1, 0]), node("GatherND", "scores t", "above"),
    ]  # fmt: skip
    return nodes, {"threshold": np.float32(0.4)}, [("above", T.FLOAT, ("n",)), ("places", T.INT64, (3, "n"))]


def compress() -> Tail:
    nodes = [
        node("ReduceMax", "scores", "best", axes=[0, 1], keepdims=0), node("Greater", "best threshold", "keep"),
        node("Compress", "boxes keep", "left", axis=1),
    ]  # fmt: skip
    return nodes, {"threshold": np.float32(0.4)}, [("left", T.FLOAT, (1, "n", 4)), ("best", T.FLOAT, (ROWS,))]


def unique() -> Tail:
    nodes = [node("ArgMax", "boxes", "corner", axis=2, keepdims=0), node("Unique", "corner", "kinds", sorted=1)]
    return nodes, {}, [("kinds", T.INT64, ("n",)), ("boxes", T.FLOAT, (1, ROWS, 4))]


def topk() -> Tail:
    """As many boxes as scores lie above a threshold."""
    nodes = [
        node("ReduceMax", "scores", "best", axes=[1], keepdims=0), node("Greater", "best threshold", "above"),
        node("Cast", "above", "ones", to=T.INT64), node("ReduceSum", "ones axis", "k", keepdims=0),
        node("TopK", "best k", "values indices", axis=1),
    ]  # fmt: skip
    weights = {"threshold": np.float32(0.4), "axis": np.array([1])}
    return nodes, weights, [("values", T.FLOAT, (1, "k")), ("indices", T.INT64, (1, "k"))]


def ranges() -> Tail:
    nodes = [
        node("ReduceMax", "scores", "best", keepdims=0), node("Mul", "best ten", "m1"), node("Squeeze", "m1", "m"),
        node("Cast", "m", "n", to=T.INT64), node("Range", "zero n one", "counted"),
        node("Cast", "counted", "f", to=T.FLOAT), node("Mul", "f best", "y"),
    ]  # fmt: skip
    return nodes, {"ten": np.float32([10]), "zero": np.int64(0), "one": np.int64(1)}, [("y", T.FLOAT, ("n",))]


def condition() -> Tail:
    """An If on the data whose branches read the network around them."""

    def branch(name: str, *nodes: onnx.NodeProto) -> onnx.GraphProto:
        return helper.make_graph(list(nodes), name, [], [helper.make_tensor_value_info(f"{name}.y", T.FLOAT, None)])

    nodes = [
        node("ReduceMean", "scores", "mean", keepdims=0), node("Greater", "mean threshold", "many"),
        helper.make_node("If", ["many"], ["y"], name="choose",
                         then_branch=branch("all", node("Identity", "boxes", "all.y")),
                         else_branch=branch("half", node("Slice", "boxes zero ten one", "half.y"))),
    ]  # fmt: skip
    weights = {"threshold": np.float32(0.5), "zero": np.array([0]), "ten": np.array([10]), "one": np.array([1])}
    return nodes, weights, [("y", T.FLOAT, (1, "n", 4))]


def loop() -> Tail:
    """A Loop whose turns the data decide."""
    body = helper.make_graph(
        [node("Identity", "going", "on"), node("Add", "sum boxes", "next")], "body",
        [helper.make_tensor_value_info("i", T.INT64, ()), helper.make_tensor_value_info("going", T.BOOL, ()),
         helper.make_tensor_value_info("sum", T.FLOAT, (1, ROWS, 4))],
        [helper.make_tensor_value_info("on", T.BOOL, ()), helper.make_tensor_value_info("next", T.FLOAT, (1, ROWS, 4))],
    )  # fmt: skip
    nodes = [
        node("ReduceMax", "scores", "best", keepdims=0), node("Mul", "best ten", "m1"), node("Squeeze", "m1", "m"),
        node("Cast", "m", "turns", to=T.INT64),
        helper.make_node("Loop", ["turns", "", "boxes"], ["y"], name="again", body=body),
    ]  # fmt: skip
    return nodes, {"ten": np.float32([10])}, [("y", T.FLOAT, (1, ROWS, 4))]


def sequence() -> Tail:
    nodes = [
        *nonzero()[0],
        node("SequenceConstruct", "above above", "list"),
        node("ConcatFromSequence", "list", "twice", axis=0),
    ]
    return nodes, {"threshold": np.float32(0.4)}, [("twice", T.FLOAT, ("n",))]


TAILS: list[Callable[[], Tail]] = [
    suppression, nonzero, compress, unique, topk, ranges, condition, loop, sequence,
]  # fmt: skip


def plain(model: onnx.ModelProto | Path) -> ort.InferenceSession:
    options = ort.SessionOptions()
    options.graph_optimization_level = ort.GraphOptimizationLevel.ORT_DISABLE_ALL
    return ort.InferenceSession(str(model) if isinstance(model, Path) else model.SerializeToString(), options)


def ends(session: ort.InferenceSession) -> list[tuple[str, str, tuple]]:
    return [
        (one.name, one.type, tuple(one.shape)) for side in (session.get_inputs(), session.get_outputs()) for one in side
    ]


def feeds(count: int) -> list[dict[str, np.ndarray]]:
    return [{"x": random(1, ROWS, FEATURES, seed=seed)} for seed in range(count)]


# ReduceMax takes its axes as an input from opset 18 on
PAIRS = [(tail, opset) for tail in TAILS for opset in (13, 17, 21) if opset < 18 or tail not in (compress, topk)]


@pytest.mark.parametrize(("tail", "opset"), PAIRS)
def test_a_graph_ends_at_the_border_and_its_file_as_the_users(tail, opset, tmp_path: Path):
    model = network(tail(), opset)
    graph = Graph.from_model(model)
    assert graph.tail is not None
    static = {value.name for value in graph.values.values()}
    assert set(graph.tail.reads) <= static
    assert {value.name for value in graph.outputs} >= set(graph.tail.reads) - {"x"}
    assert all(value.dtype == np.float32 for value in graph.outputs)
    graph.save(tmp_path / "written.onnx")
    onnx.checker.check_model(str(tmp_path / "written.onnx"), full_check=True)
    original, written = plain(model), plain(tmp_path / "written.onnx")
    assert ends(written) == ends(original)
    for feed in feeds(4):
        for want, got in zip(original.run(None, feed), written.run(None, feed), strict=True):
            np.testing.assert_allclose(got, want, atol=1e-5)
    with Session(graph) as session:
        assert session.outputs == [value.name for value in graph.outputs]
    again = Graph.load(tmp_path / "written.onnx")
    assert again.tail is not None and len(again.tail.nodes) == len(graph.tail.nodes)


@pytest.mark.parametrize("tail", TAILS)
@pytest.mark.parametrize("recipe", ["w8a8", "w4a8", "w8a16", "weight-only-int8"])
def test_networks_with_a_tail_quantise(tail, recipe, tmp_path: Path):
    model, data = network(tail()), feeds(16)
    made = leadline.quantize(Graph.from_model(model), recipe, data[:12])
    assert {layer.weight for layer in made.graph.layers()} <= made.grids.keys()
    made.save(tmp_path)
    original = plain(model)
    for file in tmp_path.glob("*.onnx"):
        onnx.checker.check_model(str(file), full_check=True)
        assert ends(plain(file)) == ends(original)
        with Session(file) as session:
            session.run(data[0])
    scores = made.verify()
    assert {score.name for score in scores.outputs} == {value.name for value in made.graph.outputs}
    assert [score.name for score in scores.final] == [name for name in made.graph.tail.written]
    assert all(score.alike <= score.samples for score in scores.final)
    (entry,) = [record for record in made.log if record.step == "load"]
    assert "shapes depend on the data" in entry.note
    border = [value.name for value in made.graph.outputs]
    total = Sqnr()
    exact = onnx.ModelProto.FromString(model.SerializeToString())
    del exact.graph.output[:]
    exact.graph.output.extend(onnx.ValueInfoProto(name=name) for name in border)
    with Session(tmp_path / "model.qdq.onnx", outputs=border, optimize=False) as session:
        for feed in data[12:]:
            for want, got in zip(plain(exact).run(None, feed), session.run(feed).values(), strict=True):
                total.update(want, got)
    assert total.db > (15 if recipe == "w4a8" else 28)


def test_the_comparison_is_behind_the_border():
    graph = Graph.from_model(network(nonzero()))
    assert [value.name for value in graph.outputs] == ["scores"]
    assert next(n.op_type for n in graph.tail.nodes) == "Greater"


def test_nodes_of_one_name_get_names_of_their_own():
    nodes, weights, ends_ = nonzero()
    for item in nodes:
        item.name = "/head/filter"
    graph = Graph.from_model(network((nodes, weights, ends_)))
    with Session(graph.to_model()) as session:
        session.run(feeds(1)[0])


def test_a_converted_tail_takes_its_axes_as_inputs():
    graph = Graph.from_model(network(suppression(axes_as_input=False), 11))
    squeeze = next(n for n in graph.tail.nodes if n.op_type == "Squeeze")
    assert len(squeeze.inputs) == 2
    with Session(graph.to_model()) as session:
        session.run(feeds(1)[0])


def behind(*nodes: onnx.NodeProto, **weights: np.ndarray) -> onnx.ModelProto:
    made, constants, _ = nonzero()
    return network(([*made, *nodes], constants | weights, [("y", T.FLOAT, None)]), check=False)


@pytest.mark.parametrize(
    ("nodes", "weights", "what"),
    [
        ([node("Unsqueeze", "above one", "u"), node("MatMul", "u w", "y")],
         {"w": random(1, 100), "one": np.array([1])}, "MatMul writing 'y'"),
        ([node("RandomNormalLike", "above", "y")], {}, "RandomNormalLike writing 'y'"),
        ([node("Gelu", "above", "y", domain="com.microsoft")], {}, "com.microsoft.Gelu writing 'y'"),
    ],
)  # fmt: skip
def test_what_a_tail_must_not_hold(nodes, weights, what):
    model = behind(*nodes, **weights)
    with pytest.raises(InputError, match=what):
        Graph.from_model(model)


def test_a_network_that_only_depends_on_the_data_is_refused():
    x = helper.make_tensor_value_info("x", T.FLOAT, (2, 3))
    y = helper.make_tensor_value_info("y", T.INT64, (2, "n"))
    graph = helper.make_graph([node("NonZero", "x", "y")], "net", [x], [y])
    model = helper.make_model(graph, opset_imports=[helper.make_opsetid("", 17)])
    with pytest.raises(InputError, match=r"must not depend on the data. Received NonZero writing 'y'"):
        Graph.from_model(model)


@pytest.mark.parametrize("tail", [suppression, nonzero])
@pytest.mark.parametrize("target", ["litert", "executorch"])
def test_who_takes_fixed_shapes_alone_refuses_before_the_work(target, tail, tmp_path, capsys, monkeypatch):
    made = network(tail())
    onnx.save(made, str(tmp_path / "net.onnx"))
    np.save(tmp_path / "data.npy", np.concatenate([feed["x"] for feed in feeds(2)]))

    def never(*_, **__):
        raise AssertionError("the work has begun")

    monkeypatch.setattr("leadline.pipeline.apply", never)
    monkeypatch.setattr("leadline.targets.litert.target.LiteRT.check_installed", lambda *_: None)
    monkeypatch.setattr("leadline.targets.executorch.target.ExecuTorch.check_installed", lambda *_: None)
    given = [
        "quantize",
        tmp_path / "net.onnx",
        "--target",
        target,
        "--data",
        tmp_path / "data.npy",
        "--out",
        tmp_path / "out",
    ]
    monkeypatch.setattr("sys.argv", ["leadline", *map(str, given)])
    with pytest.raises(SystemExit) as ended:
        main()
    said = " ".join(capsys.readouterr().err.split())
    assert ended.value.code == 2 and said.startswith("error: [quantize] ") and not (tmp_path / "out").exists()
    assert f"takes fixed shapes alone: 'net' must end before {Graph.from_model(made).tail.causes[0]}" in said


def test_a_tflite_is_planned_of_no_part():
    done = leadline.quantize(Graph.from_model(network(suppression())), "minmax-w8a8", feeds(4), threads=1)
    with pytest.raises(InputError, match=r"^\[plan\] LiteRT takes fixed shapes alone: 'net' must end before Non"):
        plan(done)


DETECTIONS = np.random.default_rng(0).uniform(0, 9, (7, 4)).astype(np.float32)


@pytest.mark.parametrize(
    ("rough", "said"),
    [
        (DETECTIONS[::-1], ""),
        (DETECTIONS + 0.01, ""),
        (DETECTIONS[:5], ""),
        (DETECTIONS[:0], "0 elements"),
        (np.tile(DETECTIONS, (12, 1)), "336 elements in all samples, the float network's 28"),
        (DETECTIONS * 0 + 3, "constant, 3"),
        (DETECTIONS * 0.01, "dead"),
        (np.where(DETECTIONS > 5, np.nan, DETECTIONS), "NaN"),
    ],
)
def test_what_is_behind_the_quantised_part_collapses_by_what_it_holds(rough, said):
    """Whatever their order: nearly equal scores fall either way."""
    wanted = np.ascontiguousarray(DETECTIONS)
    graph = Graph.from_model(network(suppression()))
    with Tailed(graph, 1) as tailed:
        tailed._session.close()
        held = iter([{"detections": wanted, "numbers": wanted}, {"detections": rough, "numbers": wanted}])
        tailed._session = SimpleNamespace(run=lambda _: next(held), close=lambda: None)
        border = {name: wanted for name in graph.tail.reads}
        tailed.update(border, border)
        (score,) = [one for one in tailed.scores() if one.name == "detections"]
    assert bool(score.collapse) == bool(said)
    assert said in "".join(score.collapse)
