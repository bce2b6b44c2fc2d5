"""Adapters of depth networks: on small networks in the place of the users' clones, and on the clones themselves."""

from __future__ import annotations

import os
import subprocess
import sys
from collections.abc import Callable, Iterator
from importlib.machinery import ModuleSpec
from importlib.util import find_spec
from pathlib import Path
from types import ModuleType

import numpy as np
import pytest
from PIL import Image

from leadline import quantize
from leadline.data import Preprocess, load_samples
from leadline.depth import networks, scenes
from leadline.evaluation import feeds
from leadline.graph import Graph, Session
from leadline.systems import System, depth_anything, metric3d, video_depth_anything
from leadline.systems.agreement import agreement
from leadline.types import InputError
from torch_stand_ins import define_torchvision

EXAMPLES = Path(__file__).parents[1] / "examples"
CLONES = Path(__file__).parent / "clones"
TEMPORAL, RECURRENT = CLONES / "temporal", CLONES / "recurrent"
SMALL = {"width": 48, "heads": 3, "layers": 4, "neck": [16, 24, 32, 48], "fusion": 16, "size": (56, 70)}


@pytest.fixture(autouse=True)
def forgotten() -> Iterator[None]:
    """The next test imports another folder's packages of the same names."""
    yield
    for name, module in list(sys.modules.items()):
        if str(CLONES) in str(getattr(module, "__file__", "")):
            del sys.modules[name]


PACKAGES = ("cv2", "einops", "easydict", "tqdm", "torchvision")


@pytest.fixture
def torch():
    torch = pytest.importorskip("torch", reason="torch is not installed")
    pytest.importorskip("onnxscript", reason="onnxscript is not installed")
    define_torchvision()
    return torch


@pytest.fixture
def cloned(torch, monkeypatch: pytest.MonkeyPatch):
    """PyTorch, and by name what the real clones import and ours do not."""
    for name in PACKAGES:
        if find_spec(name) is None:
            module = ModuleType(name)
            module.__spec__ = ModuleSpec(name, None)
            monkeypatch.setitem(sys.modules, name, module)
    return torch


def refused(message: str):
    return pytest.raises(InputError, match=message)


def same(system: System, graph: Graph) -> None:
    """The graph computes what the module does."""
    import torch

    with torch.no_grad():
        wanted = system.network(*(torch.from_numpy(array) for array in system.inputs.values()))
    wanted = wanted.predicted_depth if hasattr(wanted, "predicted_depth") else wanted
    with Session(graph, threads=1) as session:
        (got,) = session.run(system.inputs).values()
    assert got.shape == tuple(wanted.shape) and got.std() > 1e-4
    assert np.abs(got - wanted.numpy()).max() < 1e-4 * np.abs(got).max()


@pytest.mark.parametrize(
    ("load", "options", "message"),
    [
        (video_depth_anything.load, {"clone": "x", "encoder": "vitx"}, "encoder must be one of vits, vitb, vitl"),
        (video_depth_anything.load, {"clone": "x", "frames": 33}, "frames must be 1 to 32. Received 33"),
        (video_depth_anything.load, {"clone": "x", "size": 256}, "size must be a multiple of 14, .* Received 256"),
        (metric3d.load, {"clone": "x", "size": (56, 70)}, "size must be a multiple of 28"),
        (metric3d.load, {"clone": "x", "encoder": "tiny"}, "encoder must be one of small, large, giant"),
        (metric3d.load, {"clone": "x", "iterations": 0}, "iterations must be at least 1"),
        (depth_anything.load, {"encoder": "vits"}, "encoder must be one of small, base, large"),
        (depth_anything.sized, SMALL | {"layers": 6}, "layers must be a multiple of 4"),
    ],
)
def test_settings_out_of_place(load: Callable[..., System], options: dict, message: str) -> None:
    with refused(rf"^\[(video_depth_anything|metric3d|depth_anything)\.(load|sized)\] {message}"):
        load(**options)


@pytest.mark.torch
def test_a_folder_that_is_no_clone(cloned, tmp_path: Path) -> None:
    with refused("holds video_depth_anything/video_depth.py: git clone https://github.com/DepthAnything/"):
        video_depth_anything.load(tmp_path)
    with refused("holds mono/model/monodepth_model.py: git clone https://github.com/YvanYin/Metric3D"):
        metric3d.load(tmp_path)


@pytest.mark.torch
def test_video_depth_anything_from_clips_to_artefacts(cloned, tmp_path: Path) -> None:
    system = video_depth_anything.load(TEMPORAL, frames=5, size=(56, 70))
    assert system.inputs["frames"].shape == (1, 5, 3, 56, 70) and "random" in system.notes[0]
    assert len(system.rewrites.done) == 3
    graph = system.to_graph()
    same(system, graph)
    assert sum(node.op_type == "Conv" for node in graph.nodes) == 3, "the head runs once for all frames"
    assert "blocks.1.attn.qkv.weight" in graph.weights
    clips = [np.random.default_rng(i).standard_normal((1, 5, 3, 56, 70), np.float32) for i in range(6)]
    quantized = quantize(graph, system.recipe, clips, threads=1)
    quantized.save(tmp_path)
    assert {file.name for file in tmp_path.iterdir()} >= {"model.fp32.onnx", "model.qdq.onnx", "model.encodings"}
    found = agreement(quantized, threads=1)
    assert found.frames == 5 * len(quantized.held_out) and found.correlation > 0.9
    assert found.flicker is not None and 0 < found.flicker < 20 and "flicker" in str(found)


@pytest.mark.torch
def test_checkpoints_are_taken_or_refused(cloned, tmp_path: Path) -> None:
    torch = cloned
    first = video_depth_anything.load(TEMPORAL, frames=1, size=56)
    torch.save(first.network.state_dict(), tmp_path / "net.pth")
    again = video_depth_anything.load(TEMPORAL, tmp_path / "net.pth", frames=1, size=56, seed=3)
    assert again.notes == ()
    with torch.no_grad():
        picture = torch.from_numpy(first.inputs["frames"])
        assert torch.equal(first.network(picture), again.network(picture))
    torch.save({"patches.weight": torch.zeros(1)}, tmp_path / "net.pth")
    with refused(r"must hold the network's \d+ tensors. Received '.*net.pth': \d+ missing \(.* more\); 1 of another"):
        video_depth_anything.load(TEMPORAL, tmp_path / "net.pth")


@pytest.mark.torch
def test_metric3d_unrolled(cloned, tmp_path: Path) -> None:
    torch = cloned
    system = metric3d.load(RECURRENT, size=(56, 84), iterations=2)
    graph = system.to_graph()
    same(system, graph)
    assert sum(node.op_type == "Tanh" for node in graph.nodes) == 3, "two updates and a first state"
    tensors = system.network.network.state_dict()
    torch.save({"model_state_dict": tensors | {"teacher.weight": torch.zeros(3)}}, tmp_path / "net.pth")
    assert metric3d.load(RECURRENT, tmp_path / "net.pth", size=56).notes == (
        "1 tensors of the checkpoint are not the network's",
    )


@pytest.mark.torch
def test_depth_anything_of_transformers(torch, tmp_path: Path) -> None:
    pytest.importorskip("transformers", reason="transformers is not installed")
    system = depth_anything.sized(**SMALL)
    graph = system.to_graph()
    same(system, graph)
    assert not {"IsNaN", "Where"} & {node.op_type for node in graph.nodes}
    system.rewrites.undo()
    system.network.save_pretrained(tmp_path)
    again = depth_anything.load(tmp_path, size=(56, 70))
    assert again.notes == ()
    with Session(again.to_graph(), threads=1) as session, Session(graph, threads=1) as first:
        got, wanted = session.run(system.inputs), first.run(system.inputs)
    assert np.allclose(got["predicted_depth"], wanted["predicted_depth"], atol=1e-5)
    with refused("model must be a folder or a name that transformers can read as Depth Anything"):
        depth_anything.load(tmp_path / "gone")


@pytest.mark.torch
def test_a_checkpoint_of_transformers_that_lacks_tensors(torch, tmp_path: Path) -> None:
    pytest.importorskip("transformers", reason="transformers is not installed")
    from safetensors.torch import load_file, save_file

    system = depth_anything.sized(**SMALL)
    system.rewrites.undo()
    system.network.save_pretrained(tmp_path)
    tensors = load_file(tmp_path / "model.safetensors")
    save_file({n: t for n, t in tensors.items() if "head.conv" not in n}, tmp_path / "model.safetensors")
    with refused(r"model must hold the network's \d+ tensors. Received '.*': 6 missing \(head.conv1.bias, "):
        depth_anything.load(tmp_path, size=56)


def test_agreement_of_single_frames() -> None:
    graph = Graph.load(networks.path("tinydepth-conv"))
    samples = load_samples(feeds(scenes.clip(41, frames=6), Preprocess(**networks.PREPROCESS)), graph.inputs)
    quantized = quantize(graph, "minmax-w8a8", samples, threads=1)
    still, moving = agreement(quantized, samples, threads=1), agreement(quantized, samples, video=True, threads=1)
    assert still.flicker is None and moving.flicker is not None and moving.flicker > 0
    assert still.frames == moving.frames == 6 and still.correlation > 0.95
    assert still.rmse == pytest.approx(still.mse**0.5) and still.abs_rel > 0


def script(name: str, *arguments: object) -> str:
    command = [sys.executable, str(EXAMPLES / f"{name}.py"), *map(str, arguments)]
    done = subprocess.run(command, capture_output=True, text=True, timeout=600)
    assert done.returncode == 0, done.stderr
    return done.stdout


@pytest.mark.parametrize("name", ["video_depth_anything", "depth_anything", "metric3d"])
def test_scripts_say_what_to_give_them(name: str) -> None:
    assert "--data" in script(name, "--help")


@pytest.mark.torch
@pytest.mark.slow
@pytest.mark.parametrize(
    ("name", "clone", "options"),
    [("video_depth_anything", TEMPORAL, ["--frames", 2]), ("metric3d", RECURRENT, ["--recipe", "w8a8"])],
)
def test_scripts_run_from_the_clone_to_the_artefacts(
    torch, tmp_path: Path, name: str, clone: Path, options: list[object]
) -> None:
    if any(find_spec(package) is None for package in PACKAGES):
        pytest.skip("packages that the real clone imports are not installed")
    (tmp_path / "pictures").mkdir()
    for index in range(8):
        pixels = np.random.default_rng(index).integers(0, 256, (60, 60, 3), np.uint8)
        Image.fromarray(pixels).save(tmp_path / "pictures" / f"{index}.png")
    where = ["--clone", clone, "--data", tmp_path / "pictures", "--out", tmp_path / "out"]
    said = script(name, *where, "--size", 56, "--num-samples", 4, "--threads", 1, *options)
    assert "the weights are random" in said and "frames against float: correlation" in said
    assert (tmp_path / "out" / "model.encodings").exists()


def clone_of(variable: str) -> str:
    if variable not in os.environ:
        pytest.skip(f"{variable} does not name a clone")
    return os.environ[variable]


@pytest.mark.full
@pytest.mark.torch
def test_the_real_video_depth_anything(torch) -> None:
    system = video_depth_anything.load(clone_of("LEADLINE_VIDEO_DEPTH_ANYTHING"), frames=2, size=56)
    graph = system.to_graph()
    same(system, graph)
    assert len(graph.layers()) == 129


@pytest.mark.full
@pytest.mark.torch
def test_the_real_metric3d(torch) -> None:
    for package in ("mmcv", "mmengine", "timm"):
        pytest.importorskip(package, reason=f"{package} is not installed")
    system = metric3d.load(clone_of("LEADLINE_METRIC3D"), size=56, iterations=1)
    same(system, system.to_graph())
