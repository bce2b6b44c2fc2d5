"""System 5, VGGT: its adapter on a small network in the place of the clone, on the clone, and the comparison."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from leadline.types import InputError

VIEWS = Path(__file__).parent / "clones" / "views"


@pytest.fixture
def torch():
    torch = pytest.importorskip("torch", reason="torch is not installed")
    pytest.importorskip("onnxscript", reason="onnxscript is not installed")
    return torch


def load(*arguments, **options):
    from leadline.systems import vggt

    return vggt.load(*arguments, **options)


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"encoder": "vitb"}, "encoder must be one of vitl, vits. Received 'vitb'"),
        ({"depth": 3}, "depth must be 4 or more. Received 3"),
        ({"views": 0}, "views must be 1 or more. Received 0"),
        ({"size": 512}, "size must be a multiple of 14"),
    ],
)
def test_settings_out_of_place(options, message) -> None:
    with pytest.raises(InputError, match=rf"^\[vggt\.load\] {message}"):
        load(VIEWS, **options)


@pytest.mark.torch
@pytest.mark.filterwarnings("ignore")
def test_from_the_clone_to_a_graph(torch, tmp_path: Path) -> None:
    system = load(VIEWS, encoder="vits", depth=4, size=(42, 56))
    assert {r.pattern for r in system.rewrites.done} == {"attention", "rope", "constants"} and not system.rewrites.left
    assert system.inputs["images"].shape == (1, 2, 3, 42, 56) and "random" in system.notes[0]
    graph = system.to_graph()
    assert "aggregator.frame.0.attn.qkv.weight" in graph.weights
    assert {node.op_type for node in graph.nodes}.isdisjoint({"IsNaN", "Where", "Gather", "Sin", "Cos"})
    from leadline.graph import Session

    with torch.no_grad(), Session(graph, optimize=False, threads=1) as session:
        wanted = system.network(torch.from_numpy(system.inputs["images"])).numpy()
        (got,) = session.run(system.inputs).values()
    assert got.shape == (1, 2, 42, 56) and np.allclose(got, wanted, rtol=1e-3)
    # A checkpoint of the whole network holds other heads, too.
    tensors = system.network.state_dict() | {"camera_head.weight": torch.zeros(2, 2)}
    assert not any("baked" in name for name in tensors)
    torch.save({"model": tensors}, tmp_path / "model.pt")
    again = load(VIEWS, tmp_path / "model.pt", encoder="vits", depth=4, size=(42, 56), seed=1)
    assert again.notes == ()
    with torch.no_grad():
        assert np.array_equal(again.network(torch.from_numpy(system.inputs["images"])).numpy(), wanted)
    with pytest.raises(InputError, match=r"^\[vggt\.load\] checkpoint must hold the network's \d+ tensors"):
        load(VIEWS, tmp_path / "model.pt", encoder="vits", depth=5, size=42)


@pytest.mark.torch
def test_a_folder_that_is_no_clone(torch, tmp_path: Path) -> None:
    with pytest.raises(InputError, match=r"holds vggt/models/aggregator.py: git clone https://github.com/facebook"):
        load(tmp_path)


def depth_network(shift: float = 0.0) -> bytes:
    """(1, 3, 24, 16) to depth (1, 1, 24, 16): 1 plus the mean of the channels."""
    import small_tflite

    b = small_tflite.Builder()
    x = b.tensor("image", (1, 3, 24, 16))
    axis = b.tensor("axis", (1,), np.array([1], np.int32))
    mean = b.op("MEAN", [x, axis], "mean", (1, 1, 24, 16), family="Reducer", keepDims=True)
    one = b.tensor("one", (1,), np.array([1 + shift], np.float32))
    return b.finish([x], [b.op("ADD", [mean, one], "depth", (1, 1, 24, 16), family="Add")])


def test_comparison(tmp_path: Path) -> None:
    pytest.importorskip("ai_edge_litert", reason="LiteRT is not installed")
    from leadline.systems.depth_pictures import compare_depth

    random = np.random.default_rng(0)
    ramp = np.linspace(0, 1, 16, dtype=np.float32)
    samples = [ramp * random.uniform(0.5, 1) + 0.02 * random.random((1, 3, 24, 16), np.float32) for _ in range(4)]
    found = compare_depth(depth_network(), depth_network(0.15), samples, tmp_path / "out", threads=1)
    assert (found.samples, found.views) == (4, 4) and found.correlation > 0.9999
    truth = np.concatenate([1 + sample.mean(1) for sample in samples])
    assert found.relative == pytest.approx(np.mean(0.15 / truth), rel=1e-3)
    assert found.mse == pytest.approx(0.15**2, rel=1e-3) and found.worst <= found.correlation
    document = json.loads((tmp_path / "out" / "results.json").read_text())
    assert document["relative"] == found.relative and document["float_operators"] == {"MEAN": 1, "ADD": 1}
    with Image.open(tmp_path / "out" / "comparison.png") as picture:
        assert picture.size == (4 * 16 + 3 * 6, 18 + 3 * 24 + 2 * 6)
        pixels = np.asarray(picture)
    left, right = pixels[18:42, 22:38], pixels[18:42, 44:60]  # near is bright: farther in the second
    assert left.mean() > right.mean() + 5
    assert "correlation 1.0000" in str(found)
    with pytest.raises(InputError, match=r"^\[compare_depth\] samples must hold at least one"):
        compare_depth(depth_network(), depth_network(), [], tmp_path / "none")


def test_the_script_says_what_to_give_it() -> None:
    script = Path(__file__).parents[1] / "examples" / "vggt_depth.py"
    done = subprocess.run([sys.executable, str(script), "--help"], capture_output=True, text=True, timeout=600)
    assert done.returncode == 0 and "--clone" in done.stdout, done.stderr


@pytest.mark.full
@pytest.mark.torch
@pytest.mark.filterwarnings("ignore")
def test_the_real_clone(torch) -> None:
    clone = os.environ.get("LEADLINE_QUANTVGGT")
    if not clone:
        pytest.skip("LEADLINE_QUANTVGGT does not name a clone")
    system = load(clone, encoder="vits", depth=4, size=70)
    kinds = [r.pattern for r in system.rewrites.done]
    assert kinds.count("attention") == 20 and {"rope", "constants"} <= set(kinds) and not system.rewrites.left
    assert system.rewrites.difference < 1e-5
    graph = system.to_graph()
    assert {node.op_type for node in graph.nodes}.isdisjoint({"IsNaN", "Where", "Einsum", "Gather", "Sin"})
