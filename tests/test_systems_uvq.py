"""leadline.systems.uvq and chains of networks: on a small clone, and on the real one."""

from __future__ import annotations

import os
import shutil
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from data_samples import refused
from graph_models import model, node
from leadline.graph import Graph, Session
from leadline.systems import uvq
from leadline.systems.chain import Chain, to_tflite
from small_networks import draw
from torch_stand_ins import define_torchvision

CLONE = Path(__file__).parent / "clones" / "quality"
torch_wanted = pytest.mark.torch
quiet = pytest.mark.filterwarnings("ignore")  # torch, torchao and litert-torch warn about themselves


@pytest.fixture(autouse=True)
def forgotten() -> Iterator[None]:
    """The next test imports another folder's packages of the same names."""
    yield
    for name in [name for name in sys.modules if name.split(".")[0] == "uvq1p5_pytorch"]:
        del sys.modules[name]


def loaded(**options: Any) -> Chain:
    pytest.importorskip("torch", reason="torch is not installed")
    pytest.importorskip("onnxscript", reason="onnxscript is not installed")
    if not CLONE.exists():
        pytest.skip("no small clone")
    define_torchvision()
    pytest.importorskip("torchvision", reason="torchvision is not installed")
    return uvq.load(options.pop("clone", CLONE), **options)


@torch_wanted
@quiet
def test_the_chain_gives_what_the_modules_give() -> None:
    torch = pytest.importorskip("torch", reason="torch is not installed")
    chain = loaded(patches=(2, 1))
    assert list(chain.stages) == ["content", "distortion", "aggregation"] and len(chain.notes) == 3
    assert all("weights are random, since there is no" in note for note in chain.notes)
    frame = uvq.pictures(1, (720, 640))
    with torch.no_grad():
        first, last, end = (stage.network for stage in chain.stages.values())
        patches = [torch.from_numpy(frame[:, :, row : row + 360]) for row in (0, 360)]
        wanted = end(first(torch.from_numpy(frame)), torch.cat([last(patch) for patch in patches], 1)).numpy()
    graphs = chain.to_graphs()
    assert [[v.name for v in g.inputs] for g in graphs.values()] == [["frame"], ["patch"], ["content", "distortion"]]

    def run(name: str, *arrays: np.ndarray) -> np.ndarray:
        feed = dict(zip((v.name for v in graphs[name].inputs), arrays, strict=True))
        with Session(graphs[name], threads=1) as session:
            (output,) = session.run(feed).values()
        return output

    (joined,) = chain.calls["distortion"](lambda given: [run("distortion", *given)], [frame])
    assert joined.shape == (1, 16, 8, 128)
    assert run("aggregation", run("content", frame), joined) == pytest.approx(wanted, abs=1e-4)
    assert 1 <= float(wanted.item()) <= 5


@torch_wanted
@quiet
def test_random_networks_answer_to_pictures() -> None:
    """BatchNorms have the statistics of pictures: features are neither dead nor huge."""
    torch = pytest.importorskip("torch", reason="torch is not installed")
    chain = loaded(patches=(1, 1))
    with torch.no_grad():
        seen = chain.stages["distortion"].network(torch.from_numpy(uvq.pictures(2)[1:])).numpy()
    assert 0.01 < seen.std() < 10 and loaded(patches=(1, 1)).stages["content"].network is not None


@torch_wanted
@quiet
def test_checkpoints_are_read_or_refused(tmp_path: Path) -> None:
    torch = pytest.importorskip("torch", reason="torch is not installed")
    chain = loaded(patches=(1, 1), seed=5)
    for name, stage in chain.stages.items():
        torch.save(stage.network.model.state_dict(), tmp_path / f"{name}_net.pth")
    again = loaded(checkpoints=tmp_path, patches=(1, 1))
    assert again.notes == []
    (tmp_path / "content_net.pth").unlink()
    assert len(loaded(checkpoints=tmp_path, patches=(1, 1)).notes) == 1
    torch.save({"features.0.bias": torch.zeros(3)}, tmp_path / "content_net.pth")
    with refused("[uvq.load] checkpoint must hold the network's", "content_net.pth", "missing"):
        loaded(checkpoints=tmp_path, patches=(1, 1))
    with refused("[uvq.load] checkpoints must be a folder that exists. Received '"):
        loaded(checkpoints=tmp_path / "nowhere")
    with refused("[uvq.load] patches must be two positive integers. Received (0, 1)."):
        loaded(patches=(0, 1))
    shutil.copytree(CLONE, tmp_path / "other")
    (tmp_path / "other/uvq1p5_pytorch/utils/contentnet.py").unlink()
    with refused("[uvq.load] clone must be a folder that holds uvq1p5_pytorch/utils/contentnet.py: git clone"):
        loaded(clone=tmp_path / "other")


# Chains of any networks


def small_chain() -> tuple[dict[str, Graph], dict[str, dict[str, str]], dict[str, Any]]:
    """Both halves of a picture through one network, and a score of their joined features."""

    def half(run: Any, given: list[np.ndarray]) -> list[np.ndarray]:
        parts = [run([np.ascontiguousarray(part)])[0] for part in np.split(given[0], 2, 3)]
        return [np.concatenate(parts, 1)]

    features = [
        node("Conv", "x w b", "c", name="conv", pads=[1, 1, 1, 1]), node("Sigmoid", "c", "s"), node("Mul", "c s", "m"),
        node("GlobalAveragePool", "m", "g"), node("Reshape", "g rows", "y"),
    ]  # fmt: skip
    first = model(features, (1, 3, 8, 8), w=draw(1, 16, 3, 3, 3), b=draw(2, 16), rows=np.array([1, 16]))
    score = [node("Gemm", "x w b", "y", name="score", transB=1)]
    last = model(score, (1, 32), w=draw(3, 1, 32), b=np.array([3], np.float32))
    graphs = {"features": Graph.from_model(first), "score": Graph.from_model(last)}
    return graphs, {"features": {"x": "picture"}, "score": {"x": "features.y"}}, {"features": half}


@pytest.mark.full
@quiet
def test_a_chain_becomes_tflite_and_its_error_is_measured(tmp_path: Path) -> None:
    pytest.importorskip("litert_torch", reason="litert-torch is not installed", exc_type=ImportError)
    graphs, sources, calls = small_chain()
    data = [{"picture": draw(seed, 1, 3, 8, 16, spread=1.0)} for seed in range(6)]
    recipes = ["dynamic-int8", "fp16", "w8a8"]
    made = to_tflite(graphs, sources, data, recipes, tmp_path / "out", calls=calls, threads=1)
    assert [one.recipe for one in made] == recipes
    for one in made:
        assert one.score_error < 0.05 and one.measured.samples == 6
        assert sorted(p.name for p in (tmp_path / "out" / one.recipe).iterdir()) == ["features.tflite", "score.tflite"]
        assert one.to_dict()["quantized"] == one.quantized and set(one.measured.stages) == {"features", "score"}
    assert made[0].quantized >= 2 and made[1].quantized == 0 and made[2].quantized > made[0].quantized
    assert made[1].score_error < made[0].score_error + 1e-3
    assert "end score off by" in made[0]._repr_html_()


@pytest.mark.full
def test_chains_that_do_not_fit_are_refused(tmp_path: Path) -> None:
    pytest.importorskip("litert_torch", reason="litert-torch is not installed", exc_type=ImportError)
    graphs, sources, calls = small_chain()
    with refused("[to_tflite] data must hold at least one sample. Received none."):
        to_tflite(graphs, sources, [], ["fp16"], tmp_path / "out")
    data = [{"frame": draw(0, 1, 3, 8, 16)}]
    with refused("[to_tflite] input 'x' of 'features' must come from one of ['frame']. Received 'picture'."):
        to_tflite(graphs, sources, data, ["fp16"], tmp_path / "out", calls=calls)
    assert not (tmp_path / "out").exists()


@pytest.mark.full
@torch_wanted
@quiet
@pytest.mark.slow
def test_the_real_networks_export_and_agree() -> None:
    torch = pytest.importorskip("torch", reason="torch is not installed")
    where = os.environ.get("LEADLINE_UVQ")
    if not where:
        pytest.skip("LEADLINE_UVQ does not say where google/uvq is cloned")
    chain = loaded(clone=where, patches=(1, 1))
    frame = uvq.pictures(5)[4:]
    for name, stage in list(chain.stages.items())[:2]:
        graph = stage.to_graph()
        assert len(graph.layers()) == 81, name
        with torch.no_grad():
            wanted = stage.network(torch.from_numpy(frame)).numpy()
        with Session(graph, threads=1) as session:
            (got,) = session.run({graph.inputs[0].name: frame}).values()
        assert np.abs(got - wanted).max() < 1e-3 * wanted.std() + 1e-4
    assert [note.split(":")[0] for note in chain.notes] == ["content", "distortion"]
