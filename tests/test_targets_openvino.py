"""OpenVINO: what its CPU plug-in takes, which layers run in integers there, and what they give beside the promise."""

from __future__ import annotations

import itertools
from pathlib import Path

import numpy as np
import onnx
import pytest

import head_networks
import operator_kinds
import small_networks as small
from data_samples import refused
from graph_models import model, node
from leadline import pipeline
from leadline.audit import audit
from leadline.graph import Graph
from leadline.recipe import ACTIVATIONS, WEIGHTS, Calibrate, CorrectBias, Fold, Override, Recipe, Rotate, Round
from leadline.targets import target_for, target_of
from leadline.targets.openvino.rules import OPENVINO
from leadline.targets.openvino.target import OpenVINO
from leadline.types import InputError, Scheme
from leadline.verification import Verification, verify
from small_transformer import transformer
from test_cli import spawn

EXACT = OpenVINO(execution="accuracy")


@pytest.fixture(scope="module", autouse=True)
def installed():
    pytest.importorskip("openvino", reason="the extra 'openvino' is not installed")


def plan(weights: Scheme | None = WEIGHTS, activations: Scheme | None = ACTIVATIONS, *steps) -> Recipe:
    taken = (Fold(), *steps, Calibrate("minmax", "minmax"), Round(), CorrectBias())
    return Recipe("mine", taken, weights=weights, activations=activations)


def gemms() -> onnx.ModelProto:
    nodes = [node("Gemm", "x w1 b1", "a", name="first", transB=1), small.RELU,
             node("Gemm", "b w2 b2", "y", name="second", transB=1)]  # fmt: skip
    tensors = {"w1": small.draw(1, 64, 64), "b1": small.draw(2, 64), "w2": small.draw(3, 32, 64)}
    return model(nodes, (32, 64), **tensors, b2=small.draw(4, 32))


NETWORKS = {"conv": lambda: small.conv_relu_conv(False), "gemm": gemms}


def measured(network: Graph | onnx.ModelProto, recipe: Recipe, target: str = "openvino") -> Verification:
    """Beside the artefact as written, with float32 where OpenVINO computes in float."""
    made = small.quantized(network, recipe, target=target)
    return verify(made.graph, made.artefact, made.held_out, target=EXACT, threads=1)


def kept(found: Verification) -> bool:
    """Whether hardly a code is another than the one promised."""
    assert found.outputs
    return all(o.agreement.within_one == 1 and abs(o.device - o.sqnr) < 0.3 for o in found.outputs)


@pytest.mark.parametrize("name", NETWORKS)
@pytest.mark.parametrize(("bits", "granularity"), [*itertools.product((2, 4, 5, 8), ("tensor", "axis"))])
def test_weights_of_five_to_eight_bits_run_in_integers_and_all_give_what_was_promised(name, bits, granularity):
    recipe = plan(Scheme(bits, True, True, granularity))
    OPENVINO.check(recipe)
    found = measured(NETWORKS[name](), recipe)
    assert kept(found)
    assert found.facts.integers == (("first", "second") if bits >= 5 else ())


@pytest.mark.parametrize("bits", [2, 4, 6])
@pytest.mark.parametrize("signed", [False, True])
def test_narrow_activations_run_in_integers(bits, signed):
    found = measured(gemms(), plan(activations=Scheme(bits, signed)))
    assert kept(found) and found.facts.integers == ("first", "second")


@pytest.mark.parametrize(("bits", "static"), [*itertools.product((3, 4, 8), (True, False))])
def test_weights_in_blocks_run_as_promised_in_float(bits, static):
    recipe = plan(Scheme(bits, True, True, "block", block_size=32), ACTIVATIONS if static else None)
    OPENVINO.check(recipe)
    found = measured(gemms(), recipe)
    assert len(found.facts.floats) == 2 and not found.facts.integers
    assert all(abs(o.device - o.sqnr) < 0.3 for o in found.outputs)


BEYOND = {
    "zero points": plan(Scheme(8, False, False, "axis")),
    "16-bit weights": plan(Scheme(16, True, True, "axis")),
    "per channel": plan(activations=Scheme(8, False, False, "axis")),
}


@pytest.mark.parametrize("what", BEYOND)
def test_what_is_refused_would_run_in_float(what):
    with refused("OpenVINO takes"):
        OPENVINO.check(BEYOND[what])
    found = measured(gemms(), BEYOND[what], target="onnxruntime")
    assert len(found.facts.floats) == 2 and not found.facts.integers


def test_wide_activations_are_refused_since_openvino_drops_their_clamps():
    wide = plan(activations=Scheme(16, False, False))
    with refused("OpenVINO takes activations of 2 to 8 bits"):
        OPENVINO.check(wide)
    found = measured(gemms(), wide, target="onnxruntime")
    (output,) = found.outputs
    assert output.sqnr > 35 and output.device < 5 and found.collapse


def test_operators_of_leadlines_own_are_refused_and_no_error_where_a_file_has_them():
    recipe = plan(Scheme(4, True, True, "axis"), Scheme(4, True, True, "token"), Rotate(online=True))
    with refused("OpenVINO takes activations with scales per tensor"):
        OPENVINO.check(recipe)
    made = small.quantized(transformer(), recipe)
    found = verify(made.graph, made.artefact, made.held_out, target="openvino")
    assert found.facts.reason and found.facts.lines() == [f"OpenVINO does not take it: {found.facts.reason}"]
    assert all(output.device is None for output in found.outputs)


def test_wide_heads_stay_in_float(tmp_path):
    """A detector's last layers ask for 16 bits, which only float has here; what is saved is what was verified."""
    graph = Graph.from_model(head_networks.joined(True))
    made = small.quantized(graph, "w8a8", target="openvino")
    assert any(grid.scheme.bits == 16 for name, grid in made.grids.items() if name in made.graph.values)
    made.save(tmp_path)
    stored = onnx.load(tmp_path / "model.qdq.onnx")
    wide = (onnx.TensorProto.UINT16, onnx.TensorProto.INT16)
    assert not [tensor.name for tensor in stored.graph.initializer if tensor.data_type in wide]
    assert stored == made.artefact
    found = verify(made.graph, tmp_path / "model.qdq.onnx", made.held_out, target=EXACT)
    assert found.facts.integers and not found.collapse
    assert all(output.device > output.sqnr - 1 for output in found.outputs)


@pytest.mark.parametrize("kind", ["Resize, down, antialias", "Pad, wrap", "AveragePool, ceil_mode", "Gelu"])
def test_what_openvino_gets_wrong_is_spelled_in_others(kind):
    proto, shape = operator_kinds.network(kind)
    made = small.quantized(proto, plan(), small.samples(4, shape), target="openvino")
    (output,) = verify(made.graph, made.artefact, made.held_out, target=EXACT, threads=1).outputs
    assert abs(output.device - output.sqnr) < 1


@pytest.mark.parametrize("kind", ["AveragePool, count_include_pad", "LSTM", "GRU"])
def test_what_it_does_not_take_is_warned_of_and_so_is_the_way_out(kind):
    proto, shape = operator_kinds.network(kind)
    with pytest.warns(UserWarning, match="OpenVINO does not take"):
        made = small.quantized(proto, plan(), small.samples(4, shape), target="openvino")
    (output,) = verify(made.graph, made.artefact, made.held_out, target=EXACT, threads=1).outputs
    assert output.device is None or output.device < output.sqnr - 10
    if not kind.startswith("AveragePool"):
        floats = plan().changed(overrides=(Override(kinds=("recurrent",), weights="float"),))
        with pytest.warns(UserWarning, match="leave their weights in float"):
            made = small.quantized(proto, floats, small.samples(4, shape), target="openvino")
        (output,) = verify(made.graph, made.artefact, made.held_out, target=EXACT, threads=1).outputs
        assert abs(output.device - output.sqnr) < 1


def test_networks_with_many_parts_give_what_was_promised():
    """Products of two activations are told from layers, and outputs by their names."""
    graph = transformer()
    found = measured(graph, plan())
    layers = {layer.node.name for layer in graph.layers()}
    products = {one.name for one in graph.nodes if one.op_type == "MatMul"} - layers
    assert layers and products
    assert layers <= {*found.facts.integers, *found.facts.floats}
    assert products <= {*found.facts.integers, *found.facts.floats}
    assert all(abs(output.device - output.sqnr) < 1 for output in found.outputs)


def test_what_stays_in_float_is_said_with_its_kernel():
    found = measured(gemms(), plan(Scheme(4, True, True, "axis")))
    lines = found.facts.lines()
    assert lines[0].startswith("0 of 2 layers and products in integers, ")
    assert lines[1].startswith("in float: first, second (")
    assert found.to_dict()["facts"]["execution"] == "accuracy"


def test_options_and_names():
    assert target_of("openvino").with_options({"execution": "accuracy"}) == EXACT
    assert target_for("a.onnx", "openvino") == OpenVINO()
    with refused("[target] execution must be performance or accuracy. Received 'fast'."):
        OpenVINO(execution="fast")
    with refused("openvino takes execution alone. Received soc"):
        target_of("openvino").with_options({"soc": 3})


def test_audit_asks_about_each_operator(tmp_path):
    nodes = [
        node("Conv", "x w1 b1", "a", name="first", pads=[1, 1, 1, 1]),
        node("Softmax", "a", "b", name="soft"),
        node("Conv", "b w2", "y", name="second"),
    ]
    tensors = {"w1": small.draw(1, 8, 3, 3, 3), "b1": small.draw(2, 8), "w2": small.draw(3, 4, 8, 1, 1)}
    onnx.save(model(nodes, small.SHAPE, **tensors), tmp_path / "net.onnx")
    result = audit(tmp_path / "net.onnx", "openvino")
    statuses = {finding.operator: finding.status for finding in result.findings}
    assert statuses == {"Conv": "supported", "Softmax": "float"} and result.passed
    narrow = audit(tmp_path / "net.onnx", "openvino", recipe="w4a8")
    assert {finding.operator for finding in narrow.findings if finding.status == "float"} >= {"Softmax"}


def test_the_command_line(tmp_path: Path):
    onnx.save(small.conv_relu_conv(), tmp_path / "net.onnx")
    np.save(tmp_path / "data.npy", small.samples())
    common = ["--data", tmp_path / "data.npy", "--target", "openvino", "--execution", "accuracy"]
    done = spawn("quantize", tmp_path / "net.onnx", "--out", tmp_path / "out", *common)
    assert done.returncode == 0, done.stderr
    assert "2 of 2 layers and products in integers" in done.stdout and "OpenVINO" in done.stdout
    done = spawn("verify", tmp_path / "net.onnx", tmp_path / "out" / "model.qdq.onnx", *common)
    assert done.returncode == 0 and "2 of 2 layers and products in integers" in done.stdout
    done = spawn("audit", tmp_path / "net.onnx", "--target", "openvino", "--html", tmp_path / "page.html")
    assert done.returncode == 0 and "net.onnx for openvino" in (tmp_path / "page.html").read_text()
    done = spawn("quantize", tmp_path / "net.onnx", "--out", tmp_path / "wide", *common, "--recipe", "w8a16")
    assert done.returncode == 2 and "recipe w8a16: OpenVINO takes activations of 2 to 8 bits" in done.stderr


@pytest.mark.parametrize("ask", ["quantize", "verify", "audit"])
def test_a_missing_extra_says_what_to_type(ask, monkeypatch, tmp_path):
    onnx.save(small.conv_relu_conv(), tmp_path / "net.onnx")
    made = small.quantized(small.conv_relu_conv(), plan())
    monkeypatch.setitem(__import__("sys").modules, "openvino", None)
    calls = {
        "quantize": lambda: pipeline.quantize(made.graph, "w8a8", small.samples(), target="openvino"),
        "verify": lambda: verify(made.graph, made.to_qdq(), made.held_out, target="openvino"),
        "audit": lambda: audit(tmp_path / "net.onnx", "openvino"),
    }
    with pytest.raises(InputError, match=rf"\[{ask}\] .*pip install 'leadline\[openvino\]'"):
        calls[ask]()
