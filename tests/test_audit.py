"""Audits: what the targets themselves answer, what import rewrote before, and every way in which a network is bad."""

from __future__ import annotations

import json
import sys
from pathlib import Path
from typing import Any

import numpy as np
import onnx
import pytest
from onnx import TensorProto, helper

import small_tflite
from graph_models import model, node, random
from leadline.audit import Audit, audit
from leadline.audit.findings import Finding, Rewrite, ordered
from leadline.audit.operators import forms, quantised
from leadline.graph import Graph
from leadline.recipe import Recipe
from leadline.rules import ONNXRUNTIME
from leadline.targets.hexagon.rules import HEXAGON
from leadline.targets.litert import audit as litert
from leadline.types import InputError
from small_transformer import transformer
from test_cli import spawn

emulated = pytest.mark.skipif(
    not litert.find_spec("onnxruntime_qnn"), reason="needs onnxruntime-qnn: pip install 'leadline[hexagon]'"
)
quantizer = pytest.mark.skipif(
    not litert.find_spec("ai_edge_quantizer"), reason="needs ai-edge-quantizer: pip install 'leadline[tflite]'"
)


def saved(proto: onnx.ModelProto, tmp_path: Path) -> Path:
    onnx.save(proto, tmp_path / "net.onnx")
    return tmp_path / "net.onnx"


def found(result: Audit) -> dict[str, Finding]:
    return {finding.operator: finding for finding in result.findings}


def mixed() -> onnx.ModelProto:
    """Three convolutions of which two are alike, an Erf that is no GELU's, and one more than six axes."""
    w = {name: random(5, 5, 3) for name in ("w1", "w2")}
    nodes = [
        node("Conv", "x w1", "a", name="first", pads=[1, 1]),
        node("Conv", "a w2", "b", name="second", pads=[1, 1]),
        node("Conv", "b w3", "c", name="third"),
        node("Erf", "c", "y", name="lonely"),
    ]
    return model(nodes, **w, w3=random(5, 5, 1))


@emulated
def test_hexagon_answers_for_each_distinct_operator(tmp_path: Path) -> None:
    result = audit(saved(mixed(), tmp_path), "hexagon")
    own = found(result)
    assert own.keys() == {"Conv", "Erf"} and not result.passed
    assert (own["Conv"].status, own["Conv"].forms, len(own["Conv"].names)) == ("supported", 2, 3)
    assert own["Erf"].status == "unsupported" and own["Erf"].asked and len(own["Erf"].names) == 1
    assert "`Erf` are not supported" in own["Erf"].note and "export GELU as one operator" in own["Erf"].note
    assert result.findings[0] is own["Erf"]  # worst first
    assert result.counts() == {"unsupported": 1, "unknown": 0, "rewrite": 0, "float": 0, "supported": 3}


@emulated
def test_import_makes_a_vision_transformer_fit(tmp_path: Path) -> None:
    """LayerNorm, GELU in pieces: refused as they are, taken as import writes them."""
    transformer().save(tmp_path / "net.onnx")
    result = audit(tmp_path / "net.onnx", "hexagon")
    assert result.passed and {"LayerNormalization", "Gelu", "Softmax", "Gemm"} <= found(result).keys()
    assert {finding.status for finding in result.findings} == {"supported"}


@emulated
def test_a_tensor_of_six_axes_is_refused_with_the_vendors_code(tmp_path: Path) -> None:
    nodes = [node("ReduceMax", "x", "y", name="largest", axes=[5])]
    result = audit(saved(model(nodes, shape=(1, 2, 3, 4, 5, 6)), tmp_path), "hexagon")
    assert found(result)["ReduceMax"].note == "backendValidateOpConfig of ReduceMax: error 3110"


def test_rewrites_of_import_are_named(tmp_path: Path) -> None:
    """x / sqrt(2) -> Erf -> +1 -> *x -> /2 is GELU; a BatchNormalization folds; Where(IsNaN(softmax)) goes."""
    nodes = [
        node("Conv", "x w", "c", pads=[1, 1]),
        node("BatchNormalization", "c g b m v", "n"),
        node("Div", "n root", "d"), node("Erf", "d", "e"), node("Add", "e one", "f"),
        node("Mul", "n f", "h"), node("Mul", "h half", "i"),
        node("Softmax", "i", "s", axis=-1), node("IsNaN", "s", "bad"), node("Where", "bad zero s", "y"),
    ]  # fmt: skip
    weights = {name: np.abs(random(5)) for name in "gbmv"} | {"w": random(5, 5, 3)}
    weights |= {"root": np.float32(2**0.5), "one": np.float32(1), "half": np.float32(0.5), "zero": np.float32(0)}
    from leadline.audit.network import open_network

    network = open_network(saved(model(nodes, **weights), tmp_path), None)
    assert network.graph is not None and [n.op_type for n in network.graph.nodes] == ["Conv", "Gelu", "Softmax"]
    texts = {rewrite.how: rewrite.text for rewrite in network.rewrites}
    assert texts["activation functions recognised by value"] == "Mul 2, Add 1, Div 1, Erf 1 become Gelu 1"
    assert texts["guards around Softmax that nothing can trigger"] == "IsNaN 1, Where 1 become Identity 1"
    assert texts["folded into the neighbouring layers"] == "BatchNormalization 1"
    kept = sum((sum(r.given.values()) - sum(r.taken.values()) for r in network.rewrites), network.nodes)
    assert kept == len(network.graph.nodes)  # nothing comes or goes unnoticed


def test_texts_of_rewrites() -> None:
    assert Rewrite({}, {"Mul": 2}, "").text == "Mul 2 added"
    assert Rewrite({"Cast": 1, "Add": 3}, {}, "").text == "Add 3, Cast 1"


def test_forms_differ_by_shape_setting_and_repeated_inputs() -> None:
    nodes = [
        node("Add", "x x", "a"), node("Add", "a x", "b"), node("Add", "b a", "c"),
        node("Transpose", "c", "d", perm=[0, 2, 1]), node("Transpose", "d", "e", perm=[0, 2, 1]),
        node("Relu", "e", "f"), node("Slice", "f one two", "y"),
    ]  # fmt: skip
    graph = Graph.from_model(model(nodes, one=np.array([1]), two=np.array([2])))
    assert [(form.nodes[0].op_type, len(form.nodes)) for form in forms(graph)] == [
        ("Add", 1), ("Add", 2), ("Relu", 1), ("Slice", 1),
    ]  # fmt: skip


@pytest.mark.parametrize("name", ["w8a8", "w4a8", "w8a16", "int4-block128", "quantvggt-w4a4", "minmax-w8a8"])
def test_every_recipe_can_be_asked_with(name: str) -> None:
    from leadline.export import qdq

    for form in forms(transformer()):
        for rules in (ONNXRUNTIME, HEXAGON):
            proto, _ = quantised(form.graph, Recipe.load(name), rules)
            layers = {layer.weight for layer in form.graph.layers()}
            assert layers <= qdq.read(proto).grids.keys()


@emulated
def test_a_crash_of_the_vendors_library_is_one_answer(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    """Building the Erf kills the process; the others are still answered, by the next one."""
    from leadline.targets.hexagon import emulator as hexagon

    class Fragile(hexagon.Emulator):
        def _ask(self, request: str, *arguments: Any) -> tuple[bool, Any]:
            if request == "build" and any(node.op_type == "Erf" for node in onnx.load(arguments[0]).graph.node):
                if self._process is None:
                    self._start()
                assert self._process is not None
                self._process.kill()
            return super()._ask(request, *arguments)

    monkeypatch.setattr("leadline.targets.hexagon.audit.Emulator", Fragile)
    nodes = [node("Relu", "x", "a"), node("Erf", "a", "b"), node("Sigmoid", "b", "y")]
    own = found(audit(saved(model(nodes), tmp_path), "hexagon"))
    assert own["Erf"].status == "unsupported" and "the vendor's library ended its process" in own["Erf"].note
    assert own["Relu"].status == own["Sigmoid"].status == "supported"


@emulated
def test_what_hexagons_profile_changes_is_a_rewrite(tmp_path: Path) -> None:
    """A four-bit convolution with a bias and a single output channel is refused; the exporter gives it eight bits."""
    nodes = [node("Conv", "x w b", "y", name="head", pads=[1, 1, 1, 1])]
    proto = model(nodes, shape=(1, 8, 6, 6), w=random(1, 8, 3, 3), b=random(1))
    result = audit(saved(proto, tmp_path), "hexagon", recipe="w4a8")
    (finding,) = result.findings
    assert (finding.status, result.passed, result.counts()["rewrite"]) == ("rewrite", True, 1)
    assert finding.note.startswith("8-bit weights, since hexagon takes no narrower single scale (as it is: Unsupported")
    proto = model([node("Transpose", "x", "t", perm=[0, 2, 1]), node("MatMul", "x t", "y", name="product")])
    own = found(audit(saved(proto, tmp_path), "hexagon", recipe="w8a16"))
    assert (own["MatMul"].status, own["MatMul"].note) == ("supported", "requantised to 8 bits")


# -- Networks that cannot be read -------------------------------------------------------------------------------------


def branch() -> onnx.ModelProto:
    body = helper.make_graph([node("Relu", "x", "z")], "b", [], [helper.make_tensor_value_info("z", 1, None)])
    nodes = [
        node("ReduceMean", "x", "m", name="mean", keepdims=0),
        node("Greater", "m zero", "c", name="compare"),
        node("If", "c", "y", name="branch", then_branch=body, else_branch=body),
    ]
    return model(nodes, zero=np.float32(0))


def foreign() -> onnx.ModelProto:
    proto = model([node("Relu", "x", "r", name="relu"), node("Mine", "r", "y", name="mine", domain="acme")])
    proto.opset_import.append(helper.make_opsetid("acme", 1))
    return proto


def unbounded() -> onnx.ModelProto:
    return model([node("NonZero", "x", "n", name="where"), node("Cast", "n", "y", name="cast", to=TensorProto.FLOAT)])


@pytest.mark.parametrize("target", ["hexagon", "litert"])
@pytest.mark.parametrize(
    ("make", "operator", "name", "reason"),
    [
        (branch, "If", "branch", "stays in float"),
        (foreign, "acme.Mine", "mine", "must be standard ONNX"),
        (unbounded, "NonZero", "where", "depends on the data"),
    ],
)
def test_what_cannot_be_read_is_named(make, operator, name, reason, target: str, tmp_path: Path) -> None:
    result = audit(saved(make(), tmp_path), target)
    finding = next(one for one in result.findings if one.operator == operator)
    assert (finding.operator, finding.status, finding.names) == (operator, "unsupported", (name,))
    assert reason in finding.note and not result.passed
    if make is not branch:  # which is asked about but for the If
        assert {other.status for other in result.findings[1:]} == {"unknown"}


def test_free_axes_are_refused_or_fixed(tmp_path: Path) -> None:
    file = saved(model([node("Relu", "x", "y")], shape=("n", 5, "w")), tmp_path)
    done = spawn("audit", file, "--target", "litert")
    assert done.returncode == 2 and "must fix the free axes of input 'x'" in done.stderr
    for bad in ("x", "x=1x5xw", "=1x2"):
        done = spawn("audit", file, "--target", "litert", "--shape", bad)
        assert done.returncode == 2 and "[audit] --shape must be NAME=1x3x224x224" in done.stderr
    if litert.find_spec("ai_edge_quantizer"):
        assert spawn("audit", file, "--target", "litert", "--shape", "x=1x5x7").returncode == 0


@pytest.mark.parametrize(
    ("target", "module", "extra"),
    [("hexagon", "onnxruntime_qnn", "leadline[hexagon]"), ("litert", "ai_edge_quantizer.recipe", "leadline[tflite]")],
)
def test_a_missing_extra_says_what_to_type(
    target: str, module: str, extra: str, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    monkeypatch.setitem(sys.modules, module, None)
    with pytest.raises(InputError, match=rf"pip install '{extra[:8]}\[{extra[9:-1]}\]'"):
        audit(saved(model([node("Relu", "x", "y")]), tmp_path), target)


def test_other_targets_and_files_are_refused(tmp_path: Path) -> None:
    file = saved(model([node("Relu", "x", "y")]), tmp_path)
    with pytest.raises(InputError, match=r"\[audit\] target must be one of onnxruntime, hexagon, .*Received 'tpu'"):
        audit(file, "tpu")
    (tmp_path / "a.tflite").write_bytes(b"....TFL3")
    with pytest.raises(InputError, match="must be an ONNX file"):
        audit(tmp_path / "a.tflite", "hexagon")
    with pytest.raises(InputError, match="whole ONNX file"):
        (tmp_path / "half.onnx").write_bytes(file.read_bytes()[:40])
        audit(tmp_path / "half.onnx", "litert")


# -- LiteRT -----------------------------------------------------------------------------------------------------------


@quantizer
def test_litert_answers_for_a_tflite(tmp_path: Path) -> None:
    (tmp_path / "net.tflite").write_bytes(small_tflite.decoder())
    own = found(audit(tmp_path / "net.tflite", "litert"))
    assert own["CONV_2D"].note == "static int8, dynamic int8, dynamic int4" and len(own["CONV_2D"].names) == 3
    assert own["TRANSPOSE_CONV"].note == "static int8, dynamic int8"
    assert {finding.status for finding in own.values()} == {"supported"}


@quantizer
def test_an_operator_without_a_policy_stays_float(tmp_path: Path) -> None:
    builder = small_tflite.Builder()
    x = builder.tensor("x", (1, 4))
    (tmp_path / "net.tflite").write_bytes(builder.finish([x], [builder.op("EXP", [x], "y", (1, 4))]))
    result = audit(tmp_path / "net.tflite", "litert")
    assert (found(result)["EXP"].status, found(result)["EXP"].note) == ("float", "no static int8") and result.passed


@quantizer
def test_what_the_interpreter_cannot_run_is_refused(tmp_path: Path) -> None:
    builder = small_tflite.Builder()
    x = builder.tensor("x", (1, 4))
    y = builder.op("CUSTOM", [builder.op("RELU", [x], "r", (1, 4))], "y", (1, 4))
    builder.model.operatorCodes[-1].customCode = "Mine"
    (tmp_path / "net.tflite").write_bytes(builder.finish([x], [y]))
    result = audit(tmp_path / "net.tflite", "litert")
    own = found(result)
    assert own["Mine"].status == "unsupported" and "unresolved custom op: Mine" in own["Mine"].note
    assert own["RELU"].status == "supported" and not result.passed


@quantizer
def test_a_truncated_tflite_is_refused(tmp_path: Path) -> None:
    (tmp_path / "net.tflite").write_bytes(small_tflite.decoder()[:900])
    done = spawn("audit", tmp_path / "net.tflite", "--target", "litert")
    assert done.returncode == 2 and "must be a whole .tflite file" in done.stderr and "Traceback" not in done.stderr


@quantizer
def test_an_onnx_network_is_looked_up(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.setattr(litert, "find_spec", lambda name: None)
    bounds = {"low": np.float32(0), "six": np.float32(6)}
    nodes = [
        node("Conv", "x w", "a", name="conv", group=5, pads=[1, 1]),
        node("Clip", "a low six", "b", name="relu6"),
        node("Exp", "b", "c", name="exp"),
        node("Clip", "c low six", "d", name="alone"),
        node("Det", "square", "e", name="det"),
        node("Mul", "d e", "y"),
    ]
    nodes.insert(4, node("MatMul", "d turned", "square"))
    nodes.insert(4, node("Transpose", "d", "turned", perm=[0, 2, 1]))
    result = audit(saved(model(nodes, shape=(1, 5, 5), w=random(5, 1, 3), **bounds), tmp_path), "litert")
    own = {(finding.operator, finding.status): finding.note for finding in result.findings}
    assert own["Conv", "supported"] == "DEPTHWISE_CONV_2D: static int8, dynamic int8"
    assert own["Clip", "supported"] == "fused into the operator before it"
    assert own["Clip", "float"] == "RELU6: no static int8" and own["Exp", "float"] == "EXP: no static int8"
    assert own["Det", "unsupported"] == "leadline has no torch operator for it"
    assert not any(finding.asked for finding in result.findings)


@pytest.mark.torch
def test_the_list_holds_what_the_torch_module_takes() -> None:
    pytest.importorskip("torch")
    from leadline.torch.operators import OPERATORS

    assert litert._WRITTEN.keys() | {"Resize"} == OPERATORS.keys()


# -- What comes out ---------------------------------------------------------------------------------------------------


@quantizer
def test_the_command_prints_writes_and_says_by_its_exit_code(tmp_path: Path) -> None:
    file = saved(mixed(), tmp_path)
    done = spawn("audit", file, "--target", "litert", "--json", "--html", tmp_path / "page.html")
    assert done.returncode == 0, done.stderr
    document = json.loads(done.stdout)
    assert document["passed"] and document["file"] == "net.onnx" and document["counts"]["float"] == 1
    page = (tmp_path / "page.html").read_text()
    assert "net.onnx for litert" in page and "http" not in page
    bad = spawn("audit", saved(branch(), tmp_path), "--target", "litert")
    assert bad.returncode == 1 and "branch: stays in float" in " ".join(bad.stdout.split())


def test_rows_are_cut_and_marked() -> None:
    findings = [
        Finding("Relu", "supported", ("a",), 1),
        Finding("Erf", "unsupported", tuple("abcde"), 1, "no"),
        Finding("Exp", "float", ("f",), 1, "none", asked=False),
    ]
    result = Audit("n", "t", "", 7, 7, (), ordered(findings))
    assert result.rows() == [
        ("Erf", "5", "unsupported", "a, b, c and 2 more: no"),
        ("Exp", "1", "float", "none (from a list)"),
        ("Relu", "1", "supported", ""),
    ]
