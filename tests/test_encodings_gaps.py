"""What encodings leave to the vendor's tool, and somebody's grids made into a Quantized."""

from __future__ import annotations

import json
from collections import Counter
from pathlib import Path

import numpy as np
import onnx
import pytest

import small_networks as small
from graph_models import model, node
from leadline.affine import quantize as to_codes
from leadline.export import encodings, qdq
from leadline.export.encodings import Encodings
from leadline.export.encodings_gaps import Gap, accepted, gaps
from leadline.graph import Graph
from leadline.pipeline import Quantized
from leadline.types import Grid, InputError, Scheme

U8 = Grid(np.float32(0.05), np.int32(128), Scheme(8))
S8 = Grid(np.float32(0.01), np.int32(0), Scheme(8, True, True))


def foreign() -> onnx.ModelProto:
    """As an exporter writes it: x -> MatMul -> m -> Add -> a -> Relu -> r -> Transpose -> t -> Concat with k -> c
    -> Erf -> e -> Mul by g -> y, and an average of t beside it."""
    return model(
        [
            node("MatMul", "x w", "m", name="mm"),
            node("Add", "m b", "a"),
            node("Relu", "a", "r"),
            node("Transpose", "r", "t", perm=[1, 0]),
            node("Concat", "t k", "c", axis=0),
            node("Erf", "c", "e"),
            node("Mul", "e g", "y"),
        ],
        (4, 6),
        w=small.draw(1, 6, 5), b=small.draw(2, 5), k=small.draw(3, 2, 4), g=small.draw(4, 4),
    )  # fmt: skip


def verbatim(tmp_path: Path) -> Graph:
    onnx.save(foreign(), tmp_path / "net.onnx")
    return Graph.load(tmp_path / "net.onnx", verbatim=True)


def reasons(found: list[Gap]) -> dict[str, str]:
    return {gap.tensor: gap.reason for gap in found}


# ---------------------------------------------------------------------------------------------- the file's own names


def test_verbatim_keeps_operators_and_names(tmp_path: Path) -> None:
    graph = verbatim(tmp_path)
    assert [n.op_type for n in graph.nodes] == ["MatMul", "Add", "Relu", "Transpose", "Concat", "Erf", "Mul"]
    assert set(graph.values) == {"x", "m", "a", "r", "t", "c", "e", "y"} and set(graph.weights) == {"w", "b", "k", "g"}
    assert len({n.name for n in graph.nodes}) == len(graph.nodes) and all(n.name for n in graph.nodes)
    x = small.samples(1, (4, 6))
    both = [small.outputs(net, x)["y"] for net in (graph, Graph.load(tmp_path / "net.onnx"))]
    np.testing.assert_allclose(*both, atol=1e-5)


# ---------------------------------------------------------------------------------------------- gaps


def test_each_gap_has_its_reason(tmp_path: Path) -> None:
    graph = verbatim(tmp_path)
    grids = {name: U8 for name in ("x", "r", "c", "m")} | {"w": S8}
    found = gaps(graph, Encodings.from_grids(graph, grids), "1.0.0")
    assert [gap.tensor for gap in found] == ["m", "b", "a", "t", "k", "e", "g", "y"]
    assert reasons(found) == {
        "m": "supergroup", "b": "int32 bias", "a": "clamp", "t": "data movement", "k": "constant", "e": "float",
        "g": "constant", "y": "float",
    }  # fmt: skip
    by_name = {gap.tensor: gap for gap in found}
    assert by_name["b"].kind == "parameter" and "--bias_bitwidth 32" in by_name["b"].consequence
    assert by_name["t"].harmless and by_name["t"].consequence == "takes the grid of 'r'"
    assert "calibrated from --input_list" in by_name["e"].consequence and not by_name["e"].harmless
    two = {gap.tensor: gap for gap in gaps(graph, Encodings.from_grids(graph, grids), "2.0.0")}
    assert two["e"].consequence == "left in float" and two["b"].reason == "int32 bias"


def test_a_layer_in_float_leaves_weight_and_bias(tmp_path: Path) -> None:
    graph = verbatim(tmp_path)
    found = reasons(gaps(graph, Encodings.from_grids(graph, {"x": U8}), "1.0.0"))
    assert found["w"] == found["b"] == "weight" and found["m"] == "supergroup" and found["a"] == "float"


def test_tied_grids_that_differ_are_named(tmp_path: Path) -> None:
    graph = verbatim(tmp_path)
    other = Grid(np.float32(0.1), np.int32(128), Scheme(8))
    found = gaps(graph, Encodings.from_grids(graph, {"r": U8, "t": U8, "c": other}), "2.0.0")
    assert reasons(found)["r"] == "tied" and "grid of 'c'" in found[[g.tensor for g in found].index("r")].consequence
    assert "tied" not in reasons(gaps(graph, Encodings.from_grids(graph, {"r": U8, "c": U8}), "2.0.0")).values()


def test_a_whole_run_leaves_only_what_tools_derive() -> None:
    q = small.quantized(small.residual())
    assert Counter(reasons(q.gaps("1.0.0")).values()) == {"int32 bias": 4, "data movement": 3, "clamp": 2}
    assert Counter(reasons(q.gaps("2.0.0")).values()) == {"clamp": 2}


def test_gaps_of_a_file(tmp_path: Path) -> None:
    graph, file = verbatim(tmp_path), tmp_path / "e"
    Encodings.from_grids(graph, {"x": U8, "w": S8, "b": Grid(np.float32(5e-4), 0, Scheme(32, True, True))}).write(
        file, "2.0.0"
    )
    found = reasons(gaps(graph, file))
    assert "b" not in found and "x" not in found and found["r"] == "float"
    with pytest.raises(InputError, match=r"\[gaps\] Encodings need a version: 0\.6\.1, 1\.0\.0 or 2\.0\.0"):
        gaps(graph, Encodings.from_grids(graph, {"x": U8}))
    with pytest.raises(InputError, match=r"version must be one of 0\.6\.1, 1\.0\.0, 2\.0\.0\. Received '2\.1\.0'"):
        gaps(graph, Encodings.from_grids(graph, {"x": U8}), "2.1.0")
    with pytest.raises(InputError, match=r"tensor 'b': encodings must name tensors of the graph"):
        gaps(small.graph(small.gemm_relu_gemm()), file)


def test_accepted_drops_what_the_versions_do_not_take(tmp_path: Path) -> None:
    graph = verbatim(tmp_path)
    bias = Grid(np.float32(5e-4), np.int32(0), Scheme(32, True, True))
    said = Encodings.from_grids(graph, {"x": U8, "m": U8, "r": U8, "t": U8, "w": S8, "b": bias})
    assert accepted(graph, said, "2.0.0").grids.keys() == {"x", "r", "t", "w", "b"}
    assert accepted(graph, said, "1.0.0").grids.keys() == {"x", "r", "w"}
    assert accepted(graph, said, "1.0.0").params == {"w"}
    moved = Grid(np.float32(0.06), np.int32(128), Scheme(8))
    requantised = Encodings.from_grids(graph, {"r": U8, "t": moved})
    assert accepted(graph, requantised, "1.0.0").grids.keys() == {"r", "t"}


# ---------------------------------------------------------------------------------------------- reading back


@pytest.mark.parametrize("version", ["0.6.1", "1.0.0", "2.0.0"])
@pytest.mark.parametrize("network", [small.residual, small.conv_relu6_depthwise, small.gemm_relu_gemm])
def test_what_a_run_saved_comes_back(network, version: str, tmp_path: Path) -> None:
    """The network beside the encodings rounds to the same codes, biases and moved data included, in every version."""
    q = small.quantized(network())
    q.save(tmp_path, encodings_version=version)
    back = Quantized.from_encodings(tmp_path / "model.encodings.onnx", tmp_path / "model.encodings")
    assert back.grids.keys() == q.grids.keys() and back.codes.keys() == q.codes.keys()
    for name, codes in q.codes.items():
        np.testing.assert_array_equal(back.codes[name], codes, name)
    x = small.samples(2, q.graph.inputs[0].shape, seed=3)
    ours, theirs = (small.outputs(found.to_qdq(), x, optimize=False)["y"] for found in (q, back))
    np.testing.assert_array_equal(theirs, ours)


def test_from_encodings_can_be_verified_exported_and_saved_again(tmp_path: Path) -> None:
    graph = verbatim(tmp_path)
    grids = {name: U8 for name in ("x", "r", "c", "e", "y")} | {"w": S8}
    Encodings.from_grids(graph, grids).write(tmp_path / "theirs.encodings", "1.0.0")
    q = Quantized.from_encodings(tmp_path / "net.onnx", tmp_path / "theirs.encodings")
    assert q.recipe.name == "theirs.encodings" and not q.log and q.grids["t"] == U8
    np.testing.assert_array_equal(q.codes["w"], to_codes(graph.weights["w"], S8))
    with pytest.raises(InputError, match=r"\[Quantized\.verify\] data must be given: grids from a file bring no"):
        q.verify()
    assert q.verify(small.samples(3, (4, 6))).outputs[0].sqnr > 10
    q.save(tmp_path / "out", encodings_version="2.0.0")
    again = encodings.read(tmp_path / "out" / "model.encodings").grids
    assert again.keys() == q.grids.keys() and again["x"] == U8
    assert qdq.read(tmp_path / "out" / "model.qdq.onnx").grids == q.grids


def test_from_qdq_takes_the_codes_as_they_are(tmp_path: Path) -> None:
    q = small.quantized(small.residual())
    q.save(tmp_path)
    back = Quantized.from_qdq(tmp_path / "model.fp32.onnx", tmp_path / "model.qdq.onnx")
    for name, codes in q.codes.items():
        np.testing.assert_array_equal(back.codes[name], codes, name)
    x = small.samples(2, seed=3)
    ours, theirs = (small.outputs(found.to_qdq(), x, optimize=False)["y"] for found in (q, back))
    np.testing.assert_array_equal(theirs, ours)
    other = tmp_path / "other.onnx"
    onnx.save(small.gemm_relu_gemm(), other)
    with pytest.raises(InputError, match=r"\[Quantized\.from_qdq\] '.*' must hold grids of tensors that 'test' has"):
        Quantized.from_qdq(other, tmp_path / "model.qdq.onnx")


def test_narrow_and_corrected_codes_survive_encodings() -> None:
    """The network beside the encodings: whatever AIMET rounds on its full grid is the artefact's integer."""
    q = small.quantized(small.conv_relu_conv())
    graph = q.encoded_graph()
    for name, codes in q.codes.items():
        np.testing.assert_array_equal(to_codes(graph.weights[name], encodings.plain(q.grids[name])), codes, name)


# ---------------------------------------------------------------------------------------------- faults


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"name": "nobody"}, "tensor 'nobody': encodings must name tensors of the graph"),
        ({"bw": 8}, "an entry of version 2.0.0 has only the fields"),
        ({"output_dtype": "int7x"}, "output_dtype must be an integer type. Received 'int7x'"),
        ({"y_scale": [0.1, 0.2], "axis": 1}, "scales must have shape (5,). Received (2,)"),
        ({"y_scale": [0.1] * 5, "axis": 1, "y_zero_point": [0]}, "y_zero_point must have the shape of y_scale"),
        ({"y_scale": -1}, "scale must be a positive float32"),
    ],
)
def test_faults_of_a_file_are_one_sentence(change: dict, message: str, tmp_path: Path) -> None:
    verbatim(tmp_path)
    entry = {"name": "w", "output_dtype": "int8", "y_scale": 0.1} | change
    (tmp_path / "bad").write_text(json.dumps({"version": "2.0.0", "encodings": [entry]}))
    with pytest.raises(InputError) as caught:
        Quantized.from_encodings(tmp_path / "net.onnx", tmp_path / "bad")
    assert message in str(caught.value) and "\n" not in str(caught.value) and "'" in str(caught.value)


def test_faults_of_whole_files(tmp_path: Path) -> None:
    verbatim(tmp_path)
    text = json.dumps({"version": "1.0.0", "activation_encodings": [], "param_encodings": []})
    for name, content, message in (
        ("truncated", text[: len(text) // 2], "must be JSON"),
        ("mixed", text.replace("param_encodings", "encodings"), "and no other"),
        ("future", text.replace("1.0.0", "9.0.0"), "version must be one of"),
    ):
        (tmp_path / name).write_text(content)
        with pytest.raises(InputError, match=message):
            Quantized.from_encodings(tmp_path / "net.onnx", tmp_path / name)
    (tmp_path / "whole").write_text(text)
    with pytest.raises(InputError, match=r"path must be an ONNX file.*no\.onnx', which does not exist"):
        Quantized.from_encodings(tmp_path / "no.onnx", tmp_path / "whole")
    with pytest.raises(InputError, match=r"path must be a file that can be read.*No such file"):
        Quantized.from_encodings(tmp_path / "net.onnx", tmp_path / "gone")
    with pytest.raises(InputError, match=r"holds no grids"):
        Quantized.from_encodings(tmp_path / "net.onnx", tmp_path / "whole")
    with pytest.raises(InputError, match=r"must be a float network; this one is already quantised"):
        small.quantized(small.conv_relu_conv()).save(tmp_path / "q")
        Quantized.from_encodings(tmp_path / "q" / "model.qdq.onnx", tmp_path / "whole")
