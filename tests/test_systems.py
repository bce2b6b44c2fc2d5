"""What adapters of systems share: clones, packages, checkpoints, and the System itself."""

from __future__ import annotations

import json
import sys
from pathlib import Path

import numpy as np
import pytest

from leadline.data import Preprocess
from leadline.graph import Graph
from leadline.systems import System
from leadline.systems.system import clone, load_state, need, read_checkpoint
from leadline.types import InputError
from small_networks import conv_relu6_depthwise


def test_a_system_that_is_a_graph_is_its_graph():
    graph = Graph.from_model(conv_relu6_depthwise())
    inputs = {value.name: np.zeros(value.shape, np.float32) for value in graph.inputs}
    system = System("small", graph, inputs, tuple(v.name for v in graph.outputs), Preprocess(), "w8a8")
    assert system.to_graph() is graph
    assert system.notes == () and system.rewrites is None


def test_missing_packages_are_named_together():
    need("small.load", {"json": "json"})
    with pytest.raises(InputError) as refusal:
        need("small.load", {"json": "json", "nowhere_a": "nowhere", "nowhere_b": "nowhere", "nowhere_c": "else"})
    assert str(refusal.value) == (
        "[small.load] packages must be installed: pip install nowhere else. "
        "Received no nowhere_a, nowhere_b, nowhere_c."
    )


@pytest.fixture
def repository(tmp_path: Path) -> Path:
    root = tmp_path / "clone"
    (root / "json").mkdir(parents=True)  # a name that is taken
    (root / "json" / "__init__.py").write_text("ours = True\n")
    (root / "leadline_broken.py").write_text("import nowhere_a\n")
    yield root
    for name in [name for name, module in sys.modules.items() if str(root) in str(getattr(module, "__file__", ""))]:
        del sys.modules[name]


def test_a_clone_is_imported_and_leaves_other_modules_as_they_are(repository: Path):
    path = list(sys.path)
    with clone("small.load", repository, "json/__init__.py", "https://example.org/x") as root:
        import json as theirs

        assert theirs.ours and root == repository
    assert sys.path == path and sys.modules["json"] is json


def test_a_clone_that_is_something_else(repository: Path):
    with (
        pytest.raises(InputError, match=r"must be a folder that holds model.py: git clone https://x.*no folder"),
        clone("small.load", repository / "no", "model.py", "https://x"),
    ):
        pass
    with (
        pytest.raises(InputError, match=r"\[small.load\] clone must .*without that file"),
        clone("small.load", repository, "model.py", "https://x"),
    ):
        pass
    with (
        pytest.raises(InputError, match=r"code imports must be installed. Received No module named 'nowhere_a'"),
        clone("small.load", repository, "json/__init__.py", "https://x"),
    ):
        import leadline_broken  # noqa: F401


@pytest.mark.torch
class TestCheckpoints:
    def test_tensors_are_found_under_their_key_and_without_the_prefix(self, tmp_path: Path):
        torch = pytest.importorskip("torch", reason="torch is not installed")
        layer = torch.nn.Linear(3, 2)
        inner = {f"module.{name}": value for name, value in layer.state_dict().items()}
        torch.save({"epoch": 3, "model": inner}, tmp_path / "net.pth")
        read = read_checkpoint("small.load", tmp_path / "net.pth", ("state_dict", "model"))
        assert list(read) == ["weight", "bias"]
        other = torch.nn.Linear(3, 2)
        load_state("small.load", other, read, "net.pth")
        assert torch.equal(other.weight, layer.weight)

    def test_wrong_checkpoints_are_refused_with_counts_and_names(self, tmp_path: Path):
        torch = pytest.importorskip("torch", reason="torch is not installed")
        layers = torch.nn.Sequential(*[torch.nn.Linear(3, 2, bias=False) for _ in range(7)])
        with pytest.raises(InputError) as refusal:
            load_state("small.load", layers, {"0.weight": torch.zeros(2, 4), "head.bias": torch.zeros(2)}, "net.pth")
        assert str(refusal.value) == (
            "[small.load] checkpoint must hold the network's 7 tensors. Received 'net.pth': 6 missing (1.weight, "
            "2.weight, 3.weight, 4.weight, 5.weight and 1 more); 1 unknown (head.bias); 1 of another shape "
            "(0.weight (2, 4) for (2, 3))."
        )
        for content in ({"epoch": 3}, [1, 2]):
            torch.save(content, tmp_path / "net.pth")
            with pytest.raises(InputError, match=r"checkpoint must hold tensors by name. Received"):
                read_checkpoint("small.load", tmp_path / "net.pth")
        (tmp_path / "net.pth").write_bytes(b"no checkpoint")
        with pytest.raises(InputError, match=r"checkpoint must hold tensors by name, and nothing else"):
            read_checkpoint("small.load", tmp_path / "net.pth")
        with pytest.raises(InputError, match=r"checkpoint must be a file that exists"):
            read_checkpoint("small.load", tmp_path / "gone.pth")
