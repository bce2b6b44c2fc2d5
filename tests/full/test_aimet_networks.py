"""aimet-onnx 2.42 loads what a run writes, and decides by itself about exactly the tensors that `gaps` names."""

from __future__ import annotations

import functools
import json
from pathlib import Path
from typing import Any

import numpy as np
import onnx
import pytest

import small_networks as small
import testbed
from leadline.depth import networks
from leadline.export import encodings
from leadline.graph import Graph, Session
from leadline.graph.operators import moved_from
from leadline.pipeline import Quantized
from small_transformer import transformer

pytestmark = [
    pytest.mark.full,
    # torch, torchvision and aimet-onnx warn about themselves while they load and convert
    pytest.mark.filterwarnings("ignore"),
]

SMALL = ("conv_relu_conv", "conv_relu6_depthwise", "gemm_relu_gemm", "residual", "transformer")
LARGE = ("tinydepth", "D", "A")
VERSIONS = ("2.0.0", "1.0.0", "0.6.1")


@pytest.fixture(scope="module")
def aimet() -> Any:
    module = pytest.importorskip("aimet_onnx", reason="aimet-onnx is not installed", exc_type=ImportError)
    import aimet_onnx.quantsim  # noqa: F401

    return module


@functools.cache
def quantized(name: str) -> Quantized:
    """Random samples: ranges do not matter here. `w8a8` corrects biases, the plain recipe leaves them nearest."""
    if name == "transformer":
        return small.quantized(transformer(fused=True))
    if name in SMALL:
        return small.quantized(getattr(small, name)())
    if name == "tinydepth":
        graph = Graph.load(networks.path())
    else:
        graph = Graph.load(testbed.network(name), testbed.INPUTS[name])
    return small.quantized(graph, "minmax-w8a8", small.samples(4, graph.inputs[0].shape))


def feed(q: Quantized) -> dict[str, np.ndarray]:
    (value,) = q.graph.inputs
    return {value.name: small.samples(1, value.shape, seed=7)}


def run(model: onnx.ModelProto, q: Quantized) -> dict[str, np.ndarray]:
    with Session(model, optimize=False, threads=1) as session:
        return session.run(feed(q))


def load(aimet: Any, folder: Path, strict: bool = False) -> tuple[Any, Any]:
    """aimet-onnx's simulation of the network beside the encodings, and what it says about them."""
    sim = aimet.QuantizationSimModel(onnx.load(folder / "model.encodings.onnx"), providers=["CPUExecutionProvider"])
    read = json.loads((folder / "model.encodings").read_text())
    return sim, aimet.quantsim.load_encodings_to_sim(sim, read, strict=strict)


@pytest.mark.parametrize("version", VERSIONS)
@pytest.mark.parametrize("name", SMALL + LARGE)
def test_its_qdq_model_computes_what_ours_does(name: str, version: str, tmp_path: Path, aimet: Any) -> None:
    """Bit for bit in every version: where a version holds no biases, the network beside it holds their values."""
    q = quantized(name)
    q.save(tmp_path, encodings_version=version)
    theirs = aimet.encodings_to_onnx_qdq(str(tmp_path / "model.encodings.onnx"), str(tmp_path / "model.encodings"))
    ours = run(q.to_qdq(), q)
    assert any(np.ptp(array) for array in ours.values())
    for tensor, array in run(theirs, q).items():
        np.testing.assert_array_equal(array, ours[tensor])


@pytest.mark.parametrize("version", VERSIONS)
@pytest.mark.parametrize("name", SMALL + LARGE)
def test_its_simulation_loads_every_entry(name: str, version: str, tmp_path: Path, aimet: Any) -> None:
    q = quantized(name)
    q.save(tmp_path, encodings_version=version)
    sim, mismatches = load(aimet, tmp_path)
    gaps = {gap.tensor: gap.reason for gap in q.gaps(version)}
    bounds = {name for node in q.graph.nodes if node.op_type == "Clip" for name in node.inputs[1:]}  # no data: settings
    left = {found.quantizer_name for found in mismatches if found.enabled_mismatch == (True, False)} - bounds
    assert left <= gaps.keys()
    assert {gaps[tensor] for tensor in left} <= {"constant", "float", "clamp"}
    written = encodings.read(tmp_path / "model.encodings").grids
    overruled = set()
    moved = moved_from(q.graph)  # 2.0.0 holds what data movement writes; the quantiser in front of it stands for that
    for tensor, quantizer in sim.qc_quantize_op_dict.items():
        if tensor in written and tensor not in moved and written[tensor].scheme.bits < 32:
            assert quantizer.enabled and quantizer.bitwidth == written[tensor].scheme.bits, tensor
            scale = np.array(quantizer.export_encodings("1.0.0")["scale"], np.float32)
            if not np.allclose(scale, written[tensor].scale.ravel(), rtol=1e-6, atol=0):
                overruled.add(tensor)
    assert overruled <= {tensor for tensor, reason in gaps.items() if reason == "tied"}


@pytest.mark.parametrize("version", ["1.0.0", "0.6.1"])
@pytest.mark.parametrize("name", ["conv_relu_conv", "gemm_relu_gemm", "residual"])
def test_its_strict_mode_takes_networks_without_gaps(name: str, version: str, tmp_path: Path, aimet: Any) -> None:
    """Strict wants exactly its own quantisers, 2.0.0 never passes: its own files do not, for the biases."""
    q = quantized(name)
    assert {gap.reason for gap in q.gaps(version)} <= {"int32 bias", "data movement", "clamp"}
    q.save(tmp_path, encodings_version=version)
    sim, mismatches = load(aimet, tmp_path, strict=True)
    assert not mismatches
    (theirs,) = sim.session.run(None, feed(q))
    (ours,) = run(q.to_qdq(), q).values()
    np.testing.assert_allclose(theirs, ours, atol=float(q.grids["y"].scale) * 1.01)


def test_ties_are_foreseen(tmp_path: Path, aimet: Any) -> None:
    """TinyDepth's Resizes: aimet-onnx's simulation overrules grids there, unless its quantisers are parted first."""
    q = quantized("tinydepth")
    q.save(tmp_path, encodings_version="2.0.0")
    sim, _ = load(aimet, tmp_path)
    tied = {gap.tensor for gap in q.gaps("2.0.0") if gap.reason == "tied"}
    scale = {t: sim.qc_quantize_op_dict[t].export_encodings("1.0.0")["scale"][0] for t in tied}
    differs = {t for t in tied if abs(scale[t] / float(q.grids[t].scale) - 1) > 1e-6}
    assert len(tied) > 5 and differs == tied
