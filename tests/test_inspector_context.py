"""Context ONNX: binaries that Qualcomm's emulation compiles here, embedded and beside the file."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

import numpy as np
import onnx
import pytest
from onnx import helper

from leadline.export import qdq
from leadline.graph import Graph
from leadline.inspector import inspect
from leadline.types import Grid, InputError, Scheme
from small_networks import conv_relu_conv

BUILD = """
import sys, onnxruntime as ort, onnxruntime_qnn as qnn
source, target, embed, offload = sys.argv[1:]
ort.register_execution_provider_library("qnn", qnn.get_library_path())
devices = [device for device in ort.get_ep_devices() if device.ep_name == "qnn"]
options = ort.SessionOptions()
for key, value in (("context_enable", "1"), ("context_file_path", target), ("context_embed_mode", embed)):
    options.add_session_config_entry("ep." + key, value)
options.add_provider_for_devices(devices, {"backend_path": qnn.get_qnn_htp_path(), "htp_arch": "75",
                                           "soc_model": "60", "offload_graph_io_quantization": offload})
ort.InferenceSession(source, options)
"""


def built(folder: Path, embed: int, offload: int) -> Path:
    """In a process of its own: nothing of the vendor's library may reach the tests'."""
    pytest.importorskip("onnxruntime_qnn", reason="needs onnxruntime-qnn: pip install 'leadline[hexagon]'")
    graph = Graph.from_model(conv_relu_conv())
    grid = Grid(np.float32(0.05), np.int32(128), Scheme(8))
    axis = Scheme(8, True, True, "axis", 0)
    grids = {name: grid for name in graph.activations()}
    for layer in graph.layers():
        count = graph.weights[layer.weight].shape[0]
        grids[layer.weight] = Grid(np.full(count, 0.01, np.float32), np.zeros(count, np.int32), axis)
    qdq.save(qdq.to_qdq(graph, grids), folder / "qdq.onnx")
    target = folder / "context.onnx"
    command = [sys.executable, "-c", BUILD, folder / "qdq.onnx", target, str(embed), str(offload)]
    done = subprocess.run(list(map(str, command)), capture_output=True, text=True, timeout=300)
    assert target.exists(), done.stderr[-2000:]
    return target


def test_a_binary_beside_the_file(tmp_path: Path) -> None:
    found = inspect(built(tmp_path, embed=0, offload=1))
    (binary,) = tmp_path.glob("*.bin")
    assert found.kind == "ONNX context" and found.tensors is None
    assert found.bytes == (tmp_path / "context.onnx").stat().st_size + binary.stat().st_size
    assert binary.name in found.facts["context"] and "qnn" in found.facts["  source"]
    assert found.facts["made for qnn"].startswith("htp_arch 75, soc_model 60 (")
    assert found.inputs.keys() == {"x"} and found.inputs["x"].startswith("float32 1x")
    assert set(found.float_operators) == {"QuantizeLinear", "DequantizeLinear"}  # left to the CPU
    rows = dict(found.rows())
    assert "quantised" not in rows and rows["outside the binary"].startswith(("Quantize", "Dequantize"))
    binary.unlink()
    with pytest.raises(InputError, match="the context binary must be beside the file"):
        inspect(tmp_path / "context.onnx")


def test_an_embedded_binary_with_its_inputs_quantised_inside(tmp_path: Path) -> None:
    found = inspect(built(tmp_path, embed=1, offload=0))
    assert found.facts["context"].endswith("embedded") and found.float_operators == {}
    assert found.facts["  reads and writes"] == "x -> y" and found.bytes == (tmp_path / "context.onnx").stat().st_size


def test_several_contexts_and_unknown_hardware(tmp_path: Path) -> None:
    """Written by hand: the second node lives in the first one's binary."""
    nodes = [
        helper.make_node("EPContext", ["x"], ["m"], domain="com.microsoft", embed_mode=1, ep_cache_context=b"1234"),
        helper.make_node("EPContext", ["m"], ["y"], domain="com.microsoft", main_context=0, notes="second half"),
    ]
    ports = [helper.make_tensor_value_info(name, onnx.TensorProto.UINT8, [1, "n"]) for name in "xy"]
    model = helper.make_model(helper.make_graph(nodes, "g", ports[:1], ports[1:]))
    helper.set_model_props(model, {"ep_compatibility_info.other": "anything"})
    onnx.save(model, tmp_path / "c.onnx")
    found = inspect(tmp_path / "c.onnx")
    assert (
        found.facts["context 1"] == "4 bytes, embedded" and found.facts["context 2"] == "in the binary of another node"
    )
    assert found.facts["  notes 2"] == "second half" and found.facts["made for other"] == "anything"
    assert found.inputs == {"x": "uint8 1x?"}
