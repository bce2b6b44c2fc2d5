"""The inspector's figures, counted by hand on networks whose every grid is known."""

from __future__ import annotations

import json
from dataclasses import replace
from pathlib import Path

import numpy as np
import onnx
import pytest
from onnx import helper, numpy_helper

from leadline.export import qdq
from leadline.export.encodings import Encodings
from leadline.graph import Graph, Node, Value
from leadline.inspector import Inspection, inspect
from leadline.types import Grid, InputError, Scheme

F32 = np.dtype(np.float32)
U8 = Grid(np.float32(0.05), np.int32(128), Scheme(8))


def network() -> Graph:
    """x -> Conv -> c -> Relu -> r -> Reshape -> f -> Gemm -> g -> Erf -> e -> Mul -> y"""
    rng = np.random.default_rng(11)
    weights = {
        "conv.w": rng.standard_normal((8, 4, 3, 3), np.float32),
        "conv.b": rng.standard_normal(8, np.float32),
        "shape": np.array([4, 128]),
        "fc.w": rng.standard_normal((16, 128), np.float32),
        "fc.b": rng.standard_normal(16, np.float32),
        "gain": rng.standard_normal(16, np.float32),
    }
    nodes = [
        Node("Conv", ["x", "conv.w", "conv.b"], ["c"], "conv", {"pads": [1, 1, 1, 1]}),
        Node("Relu", ["c"], ["r"], "relu"),
        Node("Reshape", ["r", "shape"], ["f"], "reshape"),
        Node("Gemm", ["f", "fc.w", "fc.b"], ["g"], "fc", {"transB": 1}),
        Node("Erf", ["g"], ["e"], "erf"),
        Node("Mul", ["e", "gain"], ["y"], "mul"),
    ]
    shapes = {
        "x": (1, 4, 8, 8),
        "c": (1, 8, 8, 8),
        "r": (1, 8, 8, 8),
        "f": (4, 128),
        "g": (4, 16),
        "e": (4, 16),
        "y": (4, 16),
    }
    values = {name: Value(name, F32, shape) for name, shape in shapes.items()}
    return Graph(nodes, weights, [values["x"]], [values["y"]], values)


def grids() -> dict[str, Grid]:
    """All but c (absorbed by the Relu), e and gain."""
    found = {name: U8 for name in ("x", "r", "f", "g", "y")}
    axis = Scheme(8, True, True, "axis", 0)
    found["conv.w"] = Grid(np.full(8, 0.03, F32), np.zeros(8), axis)
    found["fc.w"] = Grid(np.full((16, 4), 0.5, F32), np.zeros((16, 4)), Scheme(4, True, True, "block", 1, 32))
    found["conv.b"] = Grid(np.full(8, 0.0015, F32), np.zeros(8), replace(axis, bits=32))
    found["fc.b"] = Grid(np.full(16, 0.0015, F32), np.zeros(16), replace(axis, bits=32))
    return found


def written(tmp_path: Path, some: dict[str, Grid], codes: dict[str, np.ndarray] | None = None) -> Inspection:
    qdq.save(qdq.to_qdq(network(), some, codes), tmp_path / "m.onnx")
    return inspect(tmp_path / "m.onnx")


def test_a_qdq_model_is_counted(tmp_path: Path) -> None:
    found = written(tmp_path, grids())
    assert (found.file, found.kind, found.bytes) == ("m.onnx", "ONNX QDQ", (tmp_path / "m.onnx").stat().st_size)
    assert (found.tensors, found.quantized, found.absorbed) == (11, 9, 1)
    assert (found.parameters, found.parameters_quantized) == (5, 4)
    assert (found.activations, found.activations_quantized) == (6, 5)
    assert found.uncovered == ("gain", "e")
    assert found.grids == {
        "activation uint8 per tensor": 5,
        "parameter int32 per channel": 2,
        "parameter int4 in blocks of 32": 1,
        "parameter int8 per channel": 1,
    }
    assert found.float_operators == {"Erf": ("erf",), "Mul": ("mul",)}
    assert found.suspicious == {}
    conv, fc = 8 * 36, 16 * 128
    now = (conv + 8 * 5) + (fc // 2 + 64 * 4 + 32) + (8 * 4 + 8 * 8) + (16 * 4 + 16 * 8) + 16 * 4
    assert found.weight_bytes == now
    assert found.weight_bytes_float == 4 * (conv + fc + 8 + 16 + 16)
    assert found.saving == pytest.approx(100 - 100 * now / found.weight_bytes_float, abs=0.01)


def test_a_float_model_is_all_uncovered(tmp_path: Path) -> None:
    network().save(tmp_path / "f.onnx")
    found = inspect(tmp_path / "f.onnx")
    assert (found.kind, found.tensors, found.quantized, found.saving) == ("ONNX", 12, 0, 0.0)
    assert set(found.uncovered) == {"x", "c", "r", "f", "g", "e", "y", "conv.w", "conv.b", "fc.w", "fc.b", "gain"}
    assert set(found.float_operators) == {"Conv", "Relu", "Reshape", "Gemm", "Erf", "Mul"}


def test_a_fully_quantised_model_has_nothing_left(tmp_path: Path) -> None:
    some = grids() | {"e": U8, "gain": U8, "c": U8}
    found = written(tmp_path, some)
    assert (found.tensors, found.quantized, found.absorbed) == (12, 12, 0)
    assert found.uncovered == () and found.float_operators == {}


def test_weight_only_layers_compute_in_float(tmp_path: Path) -> None:
    found = written(tmp_path, {name: grid for name, grid in grids().items() if name.endswith(".w")})
    assert (found.parameters_quantized, found.activations_quantized) == (2, 0)
    assert found.float_operators["Gemm"] == ("fc",) and found.float_operators["Conv"] == ("conv",)


def test_the_clip_of_a_narrow_activation_is_no_tensor_of_its_own(tmp_path: Path) -> None:
    some = grids()
    some["x"] = Grid(np.float32(0.1), np.int32(16), Scheme(5))
    found = written(tmp_path, some)
    assert (found.tensors, found.quantized) == (11, 9)
    assert found.grids["activation uint5 per tensor"] == 1 and "Clip" not in found.float_operators


@pytest.mark.parametrize("symmetric", [False, True])
def test_grids_per_token_count_as_grids(symmetric: bool, tmp_path: Path) -> None:
    some = grids()
    some["x"] = Grid(F32.type(1), np.int32(0), Scheme(8, symmetric, symmetric, "token", 1))
    found = written(tmp_path, some)
    assert (found.tensors, found.quantized, found.uncovered) == (11, 9, ("gain", "e"))
    assert found.grids[f"activation {'' if symmetric else 'u'}int8 per token"] == 1
    assert found.float_operators == {"Erf": ("erf",), "Mul": ("mul",)}


def test_external_data_counts_as_the_file(tmp_path: Path) -> None:
    model = qdq.to_qdq(network(), grids())
    qdq.save(model, tmp_path / "m.onnx", limit=0)
    found = inspect(tmp_path / "m.onnx")
    assert found.bytes == sum(path.stat().st_size for path in tmp_path.iterdir())
    assert (found.tensors, found.quantized) == (11, 9)


def test_dead_and_saturated_grids_are_named(tmp_path: Path) -> None:
    some = grids()
    some["g"] = Grid(np.float32(1e-12), np.int32(0), Scheme(8))
    scale = some["conv.w"].scale.copy()
    scale[[2, 5]] = 1e-12
    some["conv.w"] = Grid(scale, some["conv.w"].zero_point, some["conv.w"].scheme)
    some["fc.w"] = Grid(np.full(16, 1e-3, F32), np.zeros(16), Scheme(8, True, True, "axis", 0))
    some["gain"] = Grid(np.float32(1e3), np.int32(0), Scheme(8, True, True))
    found = written(tmp_path, some)
    assert found.suspicious["g"] == "dead: 1 of 1 scales cover a range below 1e-06"
    assert found.suspicious["conv.w"] == "dead: 2 of 8 scales cover a range below 1e-06"
    assert found.suspicious["fc.w"].startswith("saturated: ")
    assert found.suspicious["gain"] == "dead: every code is 0"
    assert found.suspicious.keys() == {"g", "conv.w", "fc.w", "gain"}
    assert found.rows(longest=1)[-1 - len(found.float_operators)] == ("suspicious", "and 3 more")


def test_a_model_of_onnxruntimes_is_counted(tmp_path: Path) -> None:
    """No value_info, quantisation in the graph itself, weights in Constant nodes."""
    nodes = [
        helper.make_node("Constant", [], ["w"], value=numpy_helper.from_array(np.ones((4, 4), F32), "w")),
        helper.make_node("QuantizeLinear", ["w", "s", "z"], ["w.i"]),
        helper.make_node("DequantizeLinear", ["w.i", "s", "z"], ["w.f"]),
        helper.make_node("QuantizeLinear", ["x", "s", "z"], ["x.i"]),
        helper.make_node("DequantizeLinear", ["x.i", "s", "z"], ["x.f"]),
        helper.make_node("MatMul", ["x.f", "w.f"], ["m"], name="matmul"),
        helper.make_node("Relu", ["m"], ["y"], name="relu"),
    ]
    info = [helper.make_tensor_value_info(name, onnx.TensorProto.FLOAT, [4, 4]) for name in "xy"]
    stored = [numpy_helper.from_array(np.float32(0.5), "s"), numpy_helper.from_array(np.int8(0), "z")]
    onnx.save(helper.make_model(helper.make_graph(nodes, "g", info[:1], info[1:], stored)), tmp_path / "m.onnx")
    found = inspect(tmp_path / "m.onnx")
    assert (found.tensors, found.quantized, found.uncovered) == (4, 2, ("m", "y"))
    assert found.float_operators == {"MatMul": ("matmul",), "Relu": ("relu",)}
    assert found.weight_bytes_float == 64 and found.weight_bytes == 64 + 5  # stored in float: nothing saved


@pytest.mark.parametrize("version", ["0.6.1", "1.0.0", "2.0.0"])
def test_encodings_are_counted(version: str, tmp_path: Path) -> None:
    some = {name: grid for name, grid in grids().items() if name != "fc.w"}
    all_of_them = replace(Encodings.from_grids(network(), some), floats=frozenset({"e"}))
    all_of_them.write(tmp_path / "m.encodings", version)
    found = inspect(tmp_path / "m.encodings")
    assert found.kind == f"encodings {version}" and found.bytes == (tmp_path / "m.encodings").stat().st_size
    if version == "2.0.0":
        assert (found.tensors, found.quantized, found.parameters, found.activations) == (8, 8, None, None)
        assert found.grids == {
            "tensor int32 per channel": 2,
            "tensor int8 per channel": 1,
            "tensor uint8 per tensor": 5,
        }
    else:
        assert (found.tensors, found.quantized, found.uncovered) == (7, 6, ("e",))
        assert (found.parameters, found.activations, found.activations_quantized) == (1, 6, 5)
        assert found.grids == {"activation uint8 per tensor": 5, "parameter int8 per channel": 1}


def test_it_goes_into_json_and_a_table(tmp_path: Path) -> None:
    found = written(tmp_path, grids())
    table = json.loads(json.dumps(found.to_dict()))
    assert (
        table["quantized"] == 9 and table["uncovered"] == ["gain", "e"] and table["float_operators"]["Erf"] == ["erf"]
    )
    rows = dict(found.rows())
    assert rows["quantised"] == "9 of 11 tensors" and rows["  parameters"] == "4 of 5"
    assert rows["left in float"] == "gain, e" and "saved" in rows["weights"]
    assert dict(found.rows(longest=1))["left in float"] == "gain and 1 more"


def test_what_is_no_such_file_is_refused(tmp_path: Path) -> None:
    file = tmp_path / "f"
    with pytest.raises(InputError, match=r"path must be a file that can be read.*No such file"):
        inspect(file)
    with pytest.raises(InputError, match=r"path must be a file that can be read.*Is a directory"):
        inspect(tmp_path)
    for content in (b"", b"GIF89a nothing", b"\x08\x07\xff\xff"):
        file.write_bytes(content)
        with pytest.raises(InputError, match=r"\[inspect\] path must be a whole ONNX file"):
            inspect(file)
    file.write_text('{"some": "json"}')
    with pytest.raises(InputError, match="version must be one of"):
        inspect(file)
