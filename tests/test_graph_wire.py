"""ONNX files by place: what is left where it is, and what is written tensor by tensor, are the same model."""

from __future__ import annotations

import io
from pathlib import Path

import ml_dtypes
import numpy as np
import onnx
import pytest
from numpy.typing import NDArray
from onnx import TensorProto, helper, numpy_helper

from leadline.graph import Graph, Session
from leadline.graph.read import array, external_files, parse
from leadline.graph.wire import LARGE, write
from leadline.types import InputError

DTYPES = ("float32", "float16", "float64", "int8", "uint8", "int16", "int32", "int64", "bool")
COUNTS = (0, 1, LARGE - 1, LARGE, LARGE + 1, 3 * LARGE)


def model(tensors: list[TensorProto]) -> onnx.ModelProto:
    ends = [helper.make_tensor_value_info(name, TensorProto.FLOAT, [1]) for name in "xy"]
    graph = helper.make_graph([helper.make_node("Relu", ["x"], ["y"])], "g", ends[:1], ends[1:], tensors)
    made = helper.make_model(graph, opset_imports=[helper.make_opsetid("", 21)], ir_version=10)
    helper.set_model_props(made, {"key": "value"})
    return made


def values(dtype: str, count: int) -> NDArray[np.generic]:
    return np.random.default_rng(count).integers(0, 2, count).astype(dtype)


def tensors() -> list[TensorProto]:
    made = [numpy_helper.from_array(values(d, n), f"{d}{n}") for d in DTYPES for n in COUNTS]
    packed = values("int8", 3 * LARGE).astype(ml_dtypes.int4)
    listed = helper.make_tensor("listed", TensorProto.FLOAT, [LARGE], np.arange(LARGE, dtype=np.float32))
    return [*made, numpy_helper.from_array(packed, "packed"), listed]


def saved(tmp_path: Path) -> Path:
    (tmp_path / "m.onnx").write_bytes(model(tensors()).SerializeToString())
    return tmp_path / "m.onnx"


def test_every_tensor_is_found_and_large_ones_are_not_in_memory(tmp_path: Path) -> None:
    file = saved(tmp_path)
    light = parse(file)
    assert [t.name for t in light.graph.initializer] == [t.name for t in tensors()]
    for found, wanted in zip(light.graph.initializer, tensors(), strict=True):
        assert (found.data_location == TensorProto.EXTERNAL) == (len(wanted.raw_data) > LARGE)
        np.testing.assert_array_equal(array(found, tmp_path, "m"), numpy_helper.to_array(wanted))
    assert light.ByteSize() < file.stat().st_size / 3
    assert external_files(file) == []


def test_what_is_written_in_turn_is_what_protobuf_writes(tmp_path: Path) -> None:
    whole, stream = model(tensors()), io.BytesIO()
    write(whole, stream)
    assert stream.getvalue() == whole.SerializeToString()
    light, stream = parse(saved(tmp_path)), io.BytesIO()
    apart = {t.name: array(t, tmp_path, "m") for t in light.graph.initializer if t.data_location and t.name != "packed"}
    next(t for t in light.graph.initializer if t.name == "packed").CopyFrom(whole.graph.initializer[-2])
    write(light, stream, apart)
    assert stream.getvalue() == whole.SerializeToString()


def test_damage_is_refused_wherever_it_is(tmp_path: Path) -> None:
    content = saved(tmp_path).read_bytes()
    rng = np.random.default_rng(0)
    for cut in (0, 1, 2, len(content) - 1, *rng.integers(3, len(content), 30)):
        (tmp_path / "cut.onnx").write_bytes(content[:cut])
        with pytest.raises(InputError, match="path must be a whole ONNX file"):
            parse(tmp_path / "cut.onnx")
    (tmp_path / "noise.onnx").write_bytes(rng.integers(0, 256, 5000, np.uint8).tobytes())
    with pytest.raises(InputError, match="path must be a whole ONNX file"):
        parse(tmp_path / "noise.onnx")
    (tmp_path / "noise.onnx").write_bytes(b"\x80" * 1_000_000)  # one number without an end
    with pytest.raises(InputError, match="path must be a whole ONNX file"):
        parse(tmp_path / "noise.onnx")
    assert external_files(tmp_path / "noise.onnx") == []


@pytest.mark.parametrize("external", [False, True])
@pytest.mark.parametrize("shift", range(8))
def test_a_network_runs_from_its_file_at_any_offset(tmp_path: Path, external: bool, shift: int) -> None:
    """Weights lie where they lie: nothing aligns them in a file."""
    weight = np.random.default_rng(1).standard_normal((200, 300)).astype(np.float32)
    ends = [helper.make_tensor_value_info(n, TensorProto.FLOAT, [1, k]) for n, k in (("x", 200), ("y", 300))]
    nodes = [helper.make_node("MatMul", ["x", "w"], ["y"], name="n" * (shift + 1))]
    graph = helper.make_graph(nodes, "g", ends[:1], ends[1:], [numpy_helper.from_array(weight, "w")])
    made = helper.make_model(graph, opset_imports=[helper.make_opsetid("", 21)], ir_version=10)
    onnx.save(
        onnx.ModelProto.FromString(made.SerializeToString()),
        tmp_path / "m.onnx",
        save_as_external_data=external,
        location="w.bin",
        size_threshold=0,
    )
    feed = {"x": np.random.default_rng(2).standard_normal((1, 200)).astype(np.float32)}
    loaded = Graph.load(tmp_path / "m.onnx")
    for optimize in (False, True):
        for way in (tmp_path / "m.onnx", loaded, made):
            with Session(way, optimize=optimize) as session:
                np.testing.assert_allclose(session.run(feed)["y"], feed["x"] @ weight, rtol=1e-4, atol=1e-4)
    loaded.save(tmp_path / "again.onnx")
    assert (tmp_path / "again.onnx").read_bytes() == loaded.to_model().SerializeToString()
