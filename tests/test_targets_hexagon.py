"""Hexagon: placement and scales fitted to it, and Qualcomm's real emulation of it."""

import json
import os
import signal
import subprocess
import sys

import numpy as np
import onnx
import pytest

import small_networks as small
from data_samples import refused
from graph_models import model, node
from leadline.export.limits import limits
from leadline.graph import Graph, Session
from leadline.recipe import Recipe
from leadline.rules import ONNXRUNTIME, lost
from leadline.targets import target_of
from leadline.targets.hexagon import emulator as hexagon
from leadline.targets.hexagon.expected import expected
from leadline.targets.hexagon.rules import HEXAGON
from leadline.types import InputError, Scheme
from leadline.verification import verify
from small_transformer import transformer

SHAPE = (1, 3, 12, 12)


@pytest.fixture(scope="module")
def npu():
    pytest.importorskip("onnxruntime_qnn", reason="the extra 'hexagon' is not installed")
    with hexagon.Emulator() as emulator:
        yield emulator


def widths(weights: int, activations: int) -> Recipe:
    """Min-max in these widths, nothing else."""
    first, second = Recipe.load("minmax-w8a8").to_toml().split("[activations]")
    first = first.replace("bits = 8", f"bits = {weights}")
    return Recipe.from_toml(f"{first}[activations]{second.replace('bits = 8', f'bits = {activations}', 1)}")


def decoder(channels: int = 1) -> onnx.ModelProto:
    """Convolutions, a transposed one, Resize, a sum, and a head with as many output channels."""
    tensors = {
        "w1": small.draw(1, 8, 3, 3, 3), "b1": small.draw(2, 8),
        "w2": small.draw(3, 8, 8, 2, 2), "b2": small.draw(4, 8),
        "sizes": np.array([1, 8, 24, 24], np.int64),
        "w3": small.draw(5, channels, 8, 3, 3), "b3": small.draw(6, channels),
    }  # fmt: skip
    nodes = [
        node("Conv", "x w1 b1", "a", pads=[1, 1, 1, 1]),
        node("Relu", "a", "r"),
        node("ConvTranspose", "r w2 b2", "up", strides=[2, 2]),
        node("Resize", "r   sizes", "wide", mode="linear"),
        node("Add", "up wide", "sum"),
        node("Conv", "sum w3 b3", "y", pads=[1, 1, 1, 1], name="head"),
    ]
    nodes[3].input[:] = ["r", "", "", "sizes"]
    return model(nodes, SHAPE, **tensors)


def unknown() -> onnx.ModelProto:
    """With an operator that the HTP has not."""
    nodes = [node("Conv", "x w", "a"), node("Erf", "a", "y", name="gauss")]
    return model(nodes, SHAPE, w=small.draw(1, 4, 3, 3, 3))


def network(name: str) -> tuple[Graph, np.ndarray, str]:
    graph = transformer() if name == "transformer" else Graph.from_model(decoder())
    (value,) = graph.inputs
    return graph, small.samples(8, value.shape), value.name


@pytest.mark.parametrize("weights, activations", [(8, 8), (8, 16), (4, 8), (4, 16)])
@pytest.mark.parametrize("name", ["transformer", "decoder"])
def test_every_node_runs_on_the_npu_and_gives_what_was_expected(npu, name, weights, activations):
    graph, data, entry = network(name)
    made = small.quantized(graph, widths(weights, activations), data, target="hexagon")
    artefact = made.to_qdq()
    build = npu.build(artefact)
    assert build.accepted, str(build)
    feed = {entry: data[: graph.inputs[0].shape[0]]}
    found = npu.run(feed)
    with Session(expected(artefact), optimize=False) as session:
        promised = session.run(feed)
    with Session(made.graph) as session:
        exact = session.run(feed)
    for output, value in exact.items():
        step = float(made.grids[output].scale)
        ours, theirs = (np.sqrt(np.square(one[output] - value).mean()) for one in (promised, found))
        assert theirs < 1.3 * ours + (0.6 if activations == 8 else 12) * step


@pytest.mark.parametrize("bits", [8, 16])
@pytest.mark.parametrize("kind", ["Conv", "Gemm"])
def test_sums_are_cut_as_expected(npu, kind, bits):
    """Code by code; and biases make up for it, so that nothing is lost on average."""
    if kind == "Conv":
        nodes, shape = [node("Conv", "x w b", "y", pads=[1, 1, 1, 1])], (1, 4, 24, 24)
        weights = {"w": small.draw(1, 32, 4, 3, 3), "b": small.draw(2, 32)}
    else:
        nodes, shape = [node("Gemm", "x w b", "y", transB=1)], (256, 64)
        weights = {"w": small.draw(1, 32, 64), "b": small.draw(2, 32)}
    data = small.samples(8, shape) + np.float32(0.5)
    made = small.quantized(model(nodes, shape, **weights), widths(8, bits), data, target="hexagon")
    assert npu.build(made.to_qdq()).accepted
    feed, step = {"x": data[: shape[0]]}, float(made.grids["y"].scale)
    found = npu.run(feed)["y"]
    with Session(expected(made.to_qdq()), optimize=False) as promised, Session(made.to_qdq()) as plain:
        apart, lost_in_all = ((found - one.run(feed)["y"]) / step for one in (promised, plain))
    assert (np.abs(apart) > 0.5).mean() < 0.06
    (layer,) = made.graph.layers()
    factor = made.grids[layer.bias].scale.astype(np.float64) / step
    given = factor * lost(HEXAGON, bits, factor) * (1 if bits > 8 else 0.5)  # to the biases
    assert abs(lost_in_all.mean() / given.mean() + 1) < 0.2


def test_scales_of_a_layer_suit_its_multiplier():
    graph, data, _ = network("decoder")
    made = small.quantized(graph, widths(8, 16), data, target="hexagon")
    for layer in made.graph.layers():
        grids = [made.grids[name].scale.astype(np.float64) for name in (layer.input, layer.weight)]
        written = made.grids.get(layer.output) or made.grids["r"]
        mantissa = np.frexp(grids[0] * grids[1] / float(written.scale))[0] * 2.0**11
        assert np.abs(mantissa - np.rint(mantissa)).max() < 1e-3
    plain = small.quantized(graph, widths(8, 16), data)
    assert all(made.grids[layer.weight].scale.max() < 1.01 * plain.grids[layer.weight].scale.max()
               for layer in plain.graph.layers())  # fmt: skip


def test_second_operands_of_16_bit_products_are_requantised_to_8():
    graph, data, _ = network("transformer")
    made = small.quantized(graph, widths(8, 16), data, target="hexagon")
    products = [n for n in made.graph.nodes if n.op_type == "MatMul" and n.inputs[1] in made.graph.values]
    assert products
    for product in products:
        first, second = (made.grids[name].scheme.bits for name in product.inputs)
        assert (first, second) == (16, 8)
        assert product.inputs[1].endswith(".as8")
    written = made.to_qdq()
    assert not [n for n in written.graph.node if n.op_type == "Identity"]


def test_mixed_widths_meet_in_requantisations(npu):
    recipe = Recipe.from_toml(
        widths(8, 8).to_toml() + '\n[[overrides]]\npattern = "head"\nactivations = { bits = 16 }\n'
    )
    graph, data, entry = network("decoder")
    made = small.quantized(graph, recipe, data, target="hexagon")
    (head,) = [layer for layer in made.graph.layers() if layer.name == "head"]
    assert made.grids[head.input].scheme.bits == made.grids[head.output].scheme.bits == 16
    assert head.input == "sum.as16" and made.grids["sum"].scheme.bits == 8
    build = npu.build(made.to_qdq())
    assert build.accepted, str(build)
    assert npu.run({entry: data[:1]})["y"].shape == (1, 1, 24, 24)


def test_four_bit_convolutions_with_one_scale_get_eight():
    graph, data, _ = network("decoder")
    made = small.quantized(graph, widths(4, 8), data, target="hexagon")
    bits = {layer.name: made.grids[layer.weight].scheme.bits for layer in made.graph.layers()}
    assert bits["head"] == 8 and sorted(bits.values()) == [4, 4, 8]
    assert any("no narrower single scale" in record.note for record in made.log)


def test_resize_keeps_the_grid_of_its_input():
    graph, data, _ = network("decoder")
    assert (
        small.quantized(graph, widths(8, 8), data, target="hexagon").grids["wide"]
        == small.quantized(graph, widths(8, 8), data, target="hexagon").grids["r"]
    )


def test_nearly_dead_channels_keep_room_for_the_offset_of_the_output(npu):
    tensors = {"w": small.draw(1, 4, 8), "b": small.draw(2, 4)}
    tensors["w"][2] *= 1e-9
    tensors["b"][2] *= 1e-6
    proto = model([node("Gemm", "x w b", "y", transB=1)], (16, 8), **tensors)
    data = small.samples(8, (16, 8))
    made = small.quantized(proto, widths(8, 8), data, target="hexagon")
    assert npu.build(made.to_qdq()).accepted
    found = npu.run({"x": data[:16]})["y"]
    assert np.abs(found[:, 2]).max() <= float(made.grids["y"].scale)


def test_sums_lose_what_was_measured():
    assert lost(HEXAGON, 16, np.array([0.5, 1e-3])).tolist() == [256, 256]
    assert lost(HEXAGON, 8, np.array([2.0**-10, 1.999 * 2.0**-10, 2.0**-3])).tolist() == [64, 64, 0.5]
    assert not lost(ONNXRUNTIME, 8, np.array([1e-3])).any()


def test_limits_name_what_integers_cannot_carry():
    made = small.quantized(small.conv_relu_conv(), "weight-only-int8")
    assert limits(made.graph, made.grids) == []
    (line,) = limits(made.graph, made.grids, HEXAGON)
    assert line.startswith("2 layers with float inputs, which hexagon does not take, such as")


def test_refused_models_come_with_the_node_and_the_reason(npu):
    proto = unknown()
    build = npu.build(small.quantized(proto, widths(8, 8)).to_qdq())
    assert not build.accepted
    assert ("gauss", "Erf") in build.left
    assert str(build).startswith("hexagon leaves") and "gauss (Erf)" in str(build)


def test_a_dead_process_is_an_error_and_the_next_build_starts_another(npu, tmp_path):
    artefact = small.quantized(small.conv_relu_conv(), widths(8, 8)).to_qdq()
    assert npu.build(artefact).accepted
    os.kill(npu._process.pid, signal.SIGKILL)
    with pytest.raises(InputError, match=r"must run the model. Received the vendor's library ended its process"):
        npu.run({"x": small.samples(1)})
    assert npu.build(artefact).accepted
    missing = npu.build(tmp_path / "missing.onnx")
    assert not missing.accepted and "missing.onnx" in missing.reason


def test_context_binary(npu, tmp_path):
    path = tmp_path / "model.qdq.onnx"
    path.write_bytes(small.quantized(small.conv_relu_conv(), widths(8, 8)).to_qdq().SerializeToString())
    build = hexagon.compile_context(path, tmp_path / "context.onnx", arch=75)
    assert build.accepted
    context = onnx.load(tmp_path / "context.onnx")
    assert [n.op_type for n in context.graph.node] == ["EPContext"]
    assert sorted(file.name for file in tmp_path.iterdir()) == ["context.onnx", "model.qdq.onnx"]
    with pytest.raises(InputError, match="must build for the chip"):
        hexagon.compile_context(tmp_path / "none.onnx", tmp_path / "other.onnx")
    assert not (tmp_path / "other.onnx").exists()


def test_verify_compares_simulation_and_emulation(npu):
    made = small.quantized(small.residual(), "w8a8", target="hexagon")
    found = made.verify()
    (output,) = found.outputs
    assert found.target == "hexagon" and found.facts.accepted
    assert abs(output.device - output.sqnr) < 3
    assert output.agreement.within_one > 0.95
    document = json.loads(json.dumps(found.to_dict()))
    assert document["facts"]["text"].startswith("hexagon: all ")


def test_a_refused_artefact_is_reported_not_run(npu):
    proto = unknown()
    made = small.quantized(proto, widths(8, 8))
    found = verify(made.graph, made.to_qdq(), made.held_out, target="hexagon")
    assert found.outputs[0].device is None and not found.facts.accepted


def test_patience_ends_and_the_next_model_is_built(npu):
    made = small.quantized(small.residual(), widths(8, 8))
    with hexagon.Emulator(patience=0.001) as hasty:
        assert hasty.build(made.to_qdq()).reason == "no answer within 0.001 s"
        hasty._patience = 600.0
        assert hasty.build(made.to_qdq()).accepted


def test_unknown_target_and_missing_extra(monkeypatch):
    with pytest.raises(InputError, match=r"\[quantize\] target must be one of onnxruntime, hexagon, .* Received 'tpu'"):
        target_of("tpu")
    monkeypatch.setattr(hexagon.importlib.util, "find_spec", lambda name: None)
    with pytest.raises(InputError, match=r"pip install 'leadline\[hexagon\]'"):
        hexagon.Emulator()


def test_command_line(npu, tmp_path):
    (tmp_path / "net.onnx").write_bytes(small.residual().SerializeToString())
    np.save(tmp_path / "data.npy", small.samples(8))

    def leadline(*arguments):
        command = [sys.executable, "-m", "leadline.cli", *map(str, arguments)]
        return subprocess.run(command, capture_output=True, text=True, cwd=tmp_path)

    fixed = ["--data", "data.npy", "--target", "hexagon"]
    done = leadline("quantize", "net.onnx", *fixed, "--recipe", "w8a16", "--out", "out")
    assert done.returncode == 0, done.stderr
    assert "on the NPU, none on the CPU" in done.stdout
    assert "on the NPU" in (tmp_path / "out" / "report.html").read_text()
    done = leadline(
        "verify", "net.onnx", "out/model.qdq.onnx", *fixed, "--num-samples", 2, "--context", "chip.onnx", "--arch", 75
    )
    assert done.returncode == 0, done.stderr
    assert "hexagon dB" in done.stdout and (tmp_path / "chip.onnx").exists()
    done = leadline("verify", "net.onnx", "out/model.qdq.onnx", "--data", "data.npy", "--context", "c.onnx")
    assert done.returncode == 2 and "onnxruntime takes none" in done.stderr


def test_biases_take_back_what_is_lost_also_where_a_correction_made_them():
    tensors = {"w": small.draw(1, 6, 3, 3, 3)}
    proto = model([node("Conv", "x w", "a"), node("Relu", "a", "y")], SHAPE, **tensors)
    data = small.samples(8)
    made, plain = (small.quantized(proto, "w8a16", data, target=target) for target in ("hexagon", "onnxruntime"))
    (layer,), (other,) = made.graph.layers(), plain.graph.layers()
    assert layer.bias is not None and other.bias is not None
    moved = made.codes[layer.bias].astype(np.int64) - plain.codes[other.bias]
    assert np.abs(moved - 256).max() <= 0.002 * np.abs(plain.codes[other.bias]).max() + 2


def test_widths_meet_before_a_clamp_too(npu):
    nodes = [node("Conv", "x w", "a", name="conv"), node("Relu", "a", "r"), node("Mul", "r r", "y")]
    recipe = Recipe.from_toml(widths(8, 16).to_toml() + '\n[[overrides]]\npattern = "x"\nactivations = { bits = 8 }\n')
    made = small.quantized(model(nodes, SHAPE, w=small.draw(1, 4, 3, 3, 3)), recipe, small.samples(8), target="hexagon")
    (layer,) = made.graph.layers()
    assert layer.input == "x.as16" and made.grids["x"].scheme.bits == 8
    assert npu.build(made.to_qdq()).accepted


def test_expected_sums_have_the_shapes_of_the_network():
    nodes = [node("ConvTranspose", "x w b", "y", strides=[2, 2], group=3)]
    proto = model(nodes, SHAPE, w=small.draw(1, 3, 2, 2, 2), b=small.draw(2, 6))
    made = small.quantized(proto, widths(8, 16), small.samples(8), target="hexagon")
    feed = {"x": small.samples(1)}
    with Session(expected(made.to_qdq()), optimize=False) as cut, Session(made.to_qdq()) as plain:
        found, ours = cut.run(feed)["y"], plain.run(feed)["y"]
    assert found.shape == ours.shape == (1, 6, 24, 24)
    assert 0 < np.abs(found - ours).max() < 40 * float(made.grids["y"].scale)


def test_expected_of_an_artefact_that_stores_real_weights():
    """As aimet-onnx exports them: a QuantizeLinear stands before the DequantizeLinear of each weight."""
    made = small.quantized(small.conv_relu_conv(), widths(8, 16), small.samples(8), target="hexagon")
    proto = made.to_qdq()
    stored = {tensor.name: tensor for tensor in proto.graph.initializer}
    for at, reader in enumerate(list(proto.graph.node)):
        codes = reader.input[0] if reader.op_type == "DequantizeLinear" else ""
        if codes in stored and len(stored[codes].dims) == 4:
            _, scale, _ = (onnx.numpy_helper.to_array(stored[name]) for name in reader.input)
            real = onnx.numpy_helper.to_array(stored[codes]) * scale.reshape(-1, 1, 1, 1)
            stored[codes].CopyFrom(onnx.numpy_helper.from_array(real.astype(np.float32), f"{codes}.real"))
            before = onnx.helper.make_node("QuantizeLinear", [f"{codes}.real", *reader.input[1:]], [codes], axis=0)
            proto.graph.node.insert(at, before)
    feed = {"x": small.samples(1)}
    with Session(expected(proto), optimize=False) as one, Session(expected(made.to_qdq())) as other:
        assert np.allclose(one.run(feed)["y"], other.run(feed)["y"], atol=float(made.grids["y"].scale))


def test_what_is_only_simulated_is_refused_here_and_named_elsewhere():
    graph, data, _ = network("transformer")
    with refused("recipe quartdepth-w4a8: hexagon takes activations with scales per tensor", "per axis"):
        small.quantized(graph, "quartdepth-w4a8", data, target="hexagon")
    scheme = Scheme(granularity="axis")
    made = small.quantized(graph, widths(8, 8).changed(activations=scheme, scope="layers"), data)
    assert any("scale per channel" in line for line in made.limits)
