"""The demo as a newcomer runs it: no download, folders of artefacts, one report, mistakes named."""

from __future__ import annotations

import json
import math
import os
import subprocess
import sys

import onnx
import pytest

from leadline.depth import networks

COMMAND = [sys.executable, "-m", "leadline.cli", "demo", "--network", "tinydepth-conv"]
OFFLINE = """import socket
def refuse(*_, **__): raise OSError("the demo wants the network")
socket.socket.connect = socket.create_connection = socket.getaddrinfo = refuse
"""


@pytest.fixture(scope="module")
def done(tmp_path_factory):
    folder = tmp_path_factory.mktemp("demo")
    (folder / "site").mkdir()
    (folder / "site" / "sitecustomize.py").write_text(OFFLINE)
    environment = {**os.environ, "PYTHONPATH": str(folder / "site"), "COLUMNS": "160"}
    command = [*COMMAND, "--out", str(folder / "out"), "--recipe", "minmax-w8a8", "--recipe", "weight-only-int8"]
    return folder, subprocess.run(command, capture_output=True, text=True, timeout=300, env=environment)


def test_it_needs_no_network_and_says_what_it_made(done):
    folder, run = done
    assert run.returncode == 0, run.stderr
    assert "wrote" in run.stderr and "report.html" in run.stderr and "render" in run.stderr
    for word in ("16 pictures", "24 frames of video", "float", "minmax-w8a8", "weight-only-int8", "delta1"):
        assert word in run.stdout
    assert {path.name for path in (folder / "out").iterdir()} == {
        "minmax-w8a8", "weight-only-int8", "report.html", "report.json",
    }  # fmt: skip


def test_artefacts_are_whole_and_depth_survives(done):
    folder, _ = done
    document = json.loads((folder / "out" / "report.json").read_text())
    floats = document["depth"]["float"][0]["scores"]
    assert floats["delta1"] > 0.6 and floats["frames"] == 16
    for run in document["runs"]:
        onnx.checker.check_model(onnx.load(folder / "out" / run["recipe"]["name"] / "model.qdq.onnx"))
        assert run["depth"][0]["scores"]["abs_rel"] < floats["abs_rel"] + 0.1
        assert run["collapse"] == []


def test_networks_that_come_with_leadline_are_what_the_card_says():
    sizes = [networks.path(name).stat().st_size for name in networks.NAMES]
    assert sum(sizes) < 8e6
    card = (networks.path().parent / "MODEL_CARD.md").read_text("utf-8")
    for name in networks.NAMES:
        weights = onnx.load(networks.path(name)).graph.initializer
        parameters = sum(math.prod(w.dims) for w in weights if w.data_type == onnx.TensorProto.FLOAT)
        assert f"{parameters / 1e6:.2f} M" in card


@pytest.mark.parametrize(
    ("flags", "message"),
    [
        (["--network", "huge"], "name must be one of tinydepth, tinydepth-conv. Received 'huge'."),
        (["--recipe", "w9"], "recipe must be one of"),
        (
            ["--recipe", "w8a8", "--recipe", "w8a8"],
            "recipes must be at least one, of different names. Received w8a8, w8a8.",
        ),
    ],
)
def test_mistakes_are_named_before_work_begins(flags, message, tmp_path):
    run = subprocess.run(
        [*COMMAND, "--out", str(tmp_path / "out"), *flags], capture_output=True, text=True, timeout=120
    )
    assert run.returncode == 2 and message in run.stderr and "Traceback" not in run.stderr
    assert not (tmp_path / "out").exists()
