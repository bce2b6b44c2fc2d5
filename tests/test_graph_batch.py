"""The batch axis that a file leaves free is free in the artefact, where it has been seen to work."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import numpy as np
import onnx
import pytest
from onnx import TensorProto as T
from onnx import helper, numpy_helper

import leadline
from graph_models import node
from leadline.graph import Graph, Session
from leadline.sqnr import Sqnr

Made = tuple[list[onnx.NodeProto], dict[str, np.ndarray], tuple, tuple]


def random(*shape: int, seed: int = 0, scale: float = 1.0) -> np.ndarray:
    return (np.random.default_rng([seed, *shape]).standard_normal(shape) * scale).astype(np.float32)


def picture() -> Made:
    nodes = [
        node("Conv", "x k", "c", pads=[1, 1, 1, 1]), node("Relu", "c", "r"), node("GlobalAveragePool", "r", "p"),
        node("Flatten", "p", "f"), node("Gemm", "f w", "y"),
    ]  # fmt: skip
    return nodes, {"k": random(8, 3, 3, 3, scale=0.2), "w": random(8, 5, scale=0.3)}, ("N", 3, 8, 8), ("N", 5)


def tokens() -> Made:
    """A class token as many times as there are samples, attention of two heads: shapes by arithmetic."""
    nodes = [
        node("Shape", "x", "s"), node("Gather", "s i0", "n"), node("Concat", "n one dim", "cs", axis=0),
        node("Expand", "cls cs", "c"), node("Concat", "c x", "t", axis=1), node("Add", "t pos", "u"),
        node("MatMul", "u wq", "q0"), node("MatMul", "u wk", "k0"), node("MatMul", "u wv", "v0"),
        node("Concat", "n len heads width", "hs", axis=0),
        *(node("Reshape", f"{a}0 hs", f"{a}1") for a in "qkv"), node("Transpose", "q1", "q", perm=[0, 2, 1, 3]),
        node("Transpose", "k1", "k", perm=[0, 2, 3, 1]), node("Transpose", "v1", "v", perm=[0, 2, 1, 3]),
        node("MatMul", "q k", "a"), node("Softmax", "a", "m", axis=-1), node("MatMul", "m v", "o"),
        node("Transpose", "o", "o1", perm=[0, 2, 1, 3]), node("Concat", "n len dim", "fs", axis=0),
        node("Reshape", "o1 fs", "o2"), node("MatMul", "o2 wo", "p"), node("Add", "p u", "z"),
        node("Gather", "z first", "g", axis=1), node("MatMul", "g wy", "y"),
    ]  # fmt: skip
    weights = {name: random(12, 12, seed=i, scale=0.3) for i, name in enumerate(("wq", "wk", "wv", "wo"))}
    weights |= {
        "i0": np.array([0]), "one": np.array([1]), "dim": np.array([12]), "len": np.array([6]), "heads": np.array([2]),
        "width": np.array([6]), "cls": random(1, 1, 12), "pos": random(1, 6, 12), "wy": random(12, 4, scale=0.3),
        "first": np.int64(0),
    }  # fmt: skip
    return nodes, weights, ("N", 5, 12), ("N", 4)


def recurrent() -> Made:
    """Batch on the second axis, an initial state of zeros by its size."""
    nodes = [
        node("Shape", "x", "s"), node("Gather", "s i0", "n"), node("Concat", "one n h", "hs", axis=0),
        node("ConstantOfShape", "hs", "h0"), node("Transpose", "x", "t", perm=[1, 0, 2]),
        node("LSTM", "t w r - - h0 h0", "q", hidden_size=6), node("Squeeze", "q ax", "q1"),
        node("Transpose", "q1", "b", perm=[1, 0, 2]), node("MatMul", "b wy", "y"),
    ]  # fmt: skip
    weights = {
        "i0": np.array([0]), "one": np.array([1]), "h": np.array([6]), "w": random(1, 24, 7, scale=0.3),
        "ax": np.array([1]), "r": random(1, 24, 6, scale=0.3), "wy": random(6, 3, scale=0.3),
    }  # fmt: skip
    return nodes, weights, ("N", 9, 7), ("N", 9, 3)


def attention() -> Made:
    """As torch writes it: the sequence first, samples and heads on one axis."""
    nodes = [
        node("Transpose", "x", "t", perm=[1, 0, 2]), node("Shape", "t", "ts"), node("Gather", "ts i1", "n", axis=0),
        *(node("MatMul", f"t w{a}", f"{a}0") for a in "qkv"), node("Mul", "n heads", "nh"),
        node("Concat", "len nh width", "hs", axis=0), *(node("Reshape", f"{a}0 hs", f"{a}1") for a in "qkv"),
        node("Transpose", "q1", "q", perm=[1, 0, 2]), node("Transpose", "k1", "k", perm=[1, 2, 0]),
        node("Transpose", "v1", "v", perm=[1, 0, 2]), node("MatMul", "q k", "a"), node("Softmax", "a", "m", axis=-1),
        node("MatMul", "m v", "o"), node("Transpose", "o", "o1", perm=[1, 0, 2]), node("Mul", "len n", "tn"),
        node("Concat", "tn dim", "fs", axis=0), node("Reshape", "o1 fs", "f"), node("Gemm", "f wo", "g"),
        node("Concat", "len n dim", "bs", axis=0), node("Reshape", "g bs", "z"), node("Add", "z t", "s"),
        node("Transpose", "s", "y", perm=[1, 0, 2]),
    ]  # fmt: skip
    weights = {name: random(12, 12, seed=i, scale=0.3) for i, name in enumerate(("wq", "wk", "wv", "wo"))}
    weights |= {
        "i1": np.array([1]), "dim": np.array([12]), "len": np.array([5]), "heads": np.array([3]),
        "width": np.array([4]),
    }  # fmt: skip
    return nodes, weights, ("N", 5, 12), ("N", 5, 12)


def resized() -> Made:
    """Sizes that hold the batch, and that scales in float32 just miss."""
    nodes = [
        node("Conv", "x k", "c", pads=[1, 1, 1, 1]), node("Shape", "c", "s"), node("Slice", "s zero two", "nc"),
        node("Concat", "nc hw", "sizes", axis=0), node("Resize", "c - - sizes", "r", mode="nearest"),
        node("Conv", "r k2", "y", pads=[1, 1, 1, 1]),
    ]  # fmt: skip
    weights = {
        "k": random(4, 3, 3, 3, scale=0.2), "k2": random(2, 4, 3, 3, scale=0.2), "zero": np.array([0]),
        "two": np.array([2]), "hw": np.array([13, 17]),
    }  # fmt: skip
    return nodes, weights, ("N", 3, 9, 9), ("N", 2, 13, 17)


def windows() -> Made:
    """Samples and windows on one axis, and back."""
    nodes = [
        node("Reshape", "x s1", "a"), node("Transpose", "a", "b", perm=[0, 1, 3, 2, 4, 5]),
        node("Reshape", "b s2", "c"), node("MatMul", "c w", "d"), node("Softmax", "d", "e", axis=-1),
        node("Reshape", "e s3", "f"), node("Transpose", "f", "g", perm=[0, 1, 3, 2, 4, 5]),
        node("Reshape", "g s4", "h"), node("MatMul", "h w2", "y"),
    ]  # fmt: skip
    weights = {
        "s1": np.array([-1, 2, 4, 2, 4, 6]), "s2": np.array([-1, 16, 6]), "s3": np.array([-1, 2, 2, 4, 4, 6]),
        "s4": np.array([-1, 8, 8, 6]), "w": random(6, 6), "w2": random(6, 3),
    }  # fmt: skip
    return nodes, weights, ("N", 8, 8, 6), ("N", 8, 8, 3)


def unnamed() -> Made:
    nodes, weights, (_, *x), (_, *y) = picture()
    return nodes, weights, (None, *x), (None, *y)


def constant_left() -> Made:
    nodes = [node("MatMul", "w x", "a"), node("Relu", "a", "b"), node("Einsum", "b v", "y", equation="nst,td->nsd")]
    return nodes, {"w": random(5, 6, scale=0.4), "v": random(7, 4, scale=0.4)}, ("N", 6, 7), ("N", 5, 4)


FREE: list[Callable[[], Made]] = [picture, tokens, attention, recurrent, resized, windows, unnamed, constant_left]


def baked() -> Made:
    """The batch in the shape of a Reshape joins other axes."""
    nodes = [node("MatMul", "x w", "a"), node("Reshape", "a s", "b"), node("MatMul", "b v", "y")]
    return nodes, {"w": random(6, 6), "s": np.array([1, 30]), "v": random(30, 2)}, ("N", 5, 6), (1, 2)


def mixed() -> Made:
    nodes = [node("MatMul", "x w", "a"), node("ReduceMean", "a", "m", axes=[0]), node("Sub", "a m", "y")]
    return nodes, {"w": random(6, 4)}, ("N", 5, 6), ("N", 5, 4)


def first_only() -> Made:
    nodes = [node("MatMul", "x w", "a"), node("Slice", "a zero one", "y")]
    return nodes, {"w": random(6, 4), "zero": np.array([0]), "one": np.array([1])}, ("N", 5, 6), (1, 5, 4)


def network(made: Made, behind: bool = False) -> onnx.ModelProto:
    nodes, weights, x, y = made
    ends = [helper.make_tensor_value_info("y", T.FLOAT, y)]
    if behind:
        nodes = [*nodes, node("NonZero", "y", "places")]
        ends.append(helper.make_tensor_value_info("places", T.INT64, (len(y), "found")))
    tensors = [numpy_helper.from_array(array, name) for name, array in weights.items()]
    graph = helper.make_graph(nodes, "net", [helper.make_tensor_value_info("x", T.FLOAT, x)], ends, tensors)
    model = helper.make_model(graph, opset_imports=[helper.make_opsetid("", 17)], ir_version=8)
    onnx.checker.check_model(model, full_check=True)
    return model


def saved(model: onnx.ModelProto, folder: Path) -> Path:
    onnx.save(model, folder / "net.onnx")
    return folder / "net.onnx"


def feeds(made: Made, count: int, batch: int = 1) -> list[dict[str, np.ndarray]]:
    return [{"x": random(batch, *made[2][1:], seed=seed)} for seed in range(count)]


def together(some: list[dict[str, np.ndarray]]) -> dict[str, np.ndarray]:
    return {name: np.concatenate([feed[name] for feed in some]) for name in some[0]}


def dims(file: Path) -> list[tuple]:
    graph = onnx.load(file).graph
    return [
        tuple(d.dim_param or d.dim_value for d in v.type.tensor_type.shape.dim) for v in (*graph.input, *graph.output)
    ]


@pytest.mark.parametrize("make", FREE)
@pytest.mark.parametrize("recipe", ["w8a8", "w4a8", "w8a16", "weight-only-int8"])
def test_every_file_takes_any_batch(make, recipe, tmp_path: Path):
    made = make()
    file, data = saved(network(made), tmp_path), feeds(made, 12)
    done = leadline.quantize(file, recipe, data[:9])
    (entry,) = [record for record in done.log if record.step == "batch"]
    assert entry.kept, entry.note
    done.save(tmp_path / "out")
    symbol = made[2][0] or "batch"
    with Session(file, optimize=False) as session:
        wanted = session.run(together(data[9:]))["y"]
    for name in ("model.fp32.onnx", "model.qdq.onnx", "model.encodings.onnx"):
        written = tmp_path / "out" / name
        if not written.exists():
            continue
        onnx.checker.check_model(str(written), full_check=True)
        assert [shape[0] for shape in dims(written)] == [symbol, symbol]
        for optimize in (False, True):
            with Session(written, optimize=optimize) as session:
                got = session.run(together(data[9:]))["y"]
                alone = np.concatenate([session.run(feed)["y"] for feed in data[9:]])
            assert got.shape == wanted.shape
            assert Sqnr().update(alone, got).db > 40
            least = 60 if "fp32" in name else 12 if recipe == "w4a8" else 16
            assert Sqnr().update(wanted, got).db > least
    assert leadline.verification.verify(file, tmp_path / "out/model.qdq.onnx", data[9:]).samples == 3


@pytest.mark.parametrize(
    ("make", "why"),
    [(mixed, "'y'"), (first_only, "from the file"), (baked, "must run")],
)
def test_what_depends_on_the_batch_stays_fixed_and_says_why(make, why, tmp_path: Path):
    made = make()
    file, data = saved(network(made), tmp_path), feeds(made, 6)
    done = leadline.quantize(file, "minmax-w8a8", data)
    (entry,) = [record for record in done.log if record.step == "batch"]
    assert not entry.kept
    assert "batch 1, as quantised" in entry.note and why in entry.note
    done.save(tmp_path / "out")
    assert dims(tmp_path / "out/model.qdq.onnx")[0][0] == 1


def test_hexagon_takes_fixed_shapes(tmp_path: Path):
    made = picture()
    done = leadline.quantize(saved(network(made), tmp_path), "w8a8", feeds(made, 6), target="hexagon")
    (entry,) = [record for record in done.log if record.step == "batch"]
    assert not entry.kept and "hexagon takes fixed shapes" in entry.note
    assert dims_of(done.to_qdq())[0] == (1, 3, 8, 8)


def dims_of(model: onnx.ModelProto) -> list[tuple]:
    return [tuple(d.dim_param or d.dim_value for d in v.type.tensor_type.shape.dim) for v in model.graph.input]


def test_a_fixed_file_stays_fixed_without_a_word():
    made = picture()
    model = network((made[0], made[1], (1, 3, 8, 8), (1, 5)))
    done = leadline.quantize(Graph.from_model(model), "minmax-w8a8", feeds(made, 4))
    assert not [record for record in done.log if record.step == "batch"]
    assert dims_of(done.to_qdq()) == [(1, 3, 8, 8)]


def test_a_tail_behind_a_free_batch(tmp_path: Path):
    made = tokens()
    file, data = saved(network(made, behind=True), tmp_path), feeds(made, 8)
    done = leadline.quantize(file, "minmax-w8a8", data)
    done.save(tmp_path / "out")
    for written in (tmp_path / "out").glob("*.onnx"):
        onnx.checker.check_model(str(written), full_check=True)
        assert dims(written) == [("N", 5, 12), ("N", 4), (2, "found")]
        with Session(written) as session:
            got = session.run(together(data[:3]))
        assert got["y"].shape == (3, 4) and set(got["places"][0]) == {0, 1, 2}


def test_a_graph_that_is_only_loaded_is_written_as_it_is(tmp_path: Path):
    graph = Graph.load(saved(network(picture()), tmp_path))
    assert graph.batch is not None and not graph.batch.proven
    assert dims_of(graph.to_model()) == [(1, 3, 8, 8)]
