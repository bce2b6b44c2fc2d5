"""quantize takes a torch module, whatever its data come as, and gives what its Graph would give."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from data_samples import picture, refused
from leadline import pipeline
from leadline.data import Data, Preprocess, load_samples
from leadline.sweep import sensitivity

torch = pytest.importorskip("torch", reason="torch is not installed")
pytest.importorskip("onnxscript", reason="onnxscript is not installed")
pytestmark = pytest.mark.torch

from leadline.torch import to_graph  # noqa: E402

SHAPE = (6, 3, 8, 10)


class Small(torch.nn.Module):  # type: ignore[misc]
    def __init__(self) -> None:
        super().__init__()
        torch.manual_seed(0)
        self.first, self.second = torch.nn.Conv2d(3, 4, 3), torch.nn.Conv2d(4, 2, 1)

    def forward(self, picture: Any) -> Any:
        return self.second(self.first(picture).relu())


VALUES = np.random.default_rng(0).standard_normal(SHAPE).astype(np.float32)
FORMS = {
    "array": lambda: VALUES,
    "float64": lambda: VALUES.astype(np.float64),
    "tensor": lambda: torch.from_numpy(VALUES),
    "dict": lambda: {"picture": VALUES},
    "list of tensors": lambda: list(torch.from_numpy(VALUES).split(1)),
    "list of dicts": lambda: [{"picture": one[None]} for one in VALUES],
    "batches": lambda: list(torch.from_numpy(VALUES).split(3)),
    "generator": lambda: (one[None] for one in VALUES),
    "loader": lambda: torch.utils.data.DataLoader(torch.from_numpy(VALUES), batch_size=2),
    "Samples": lambda: load_samples(VALUES, [("picture", np.float32, (1, 3, 8, 10))]),
}


@pytest.fixture(scope="module")
def reference() -> Any:
    return pipeline.quantize(to_graph(Small(), torch.from_numpy(VALUES[:1])), "minmax-w8a8", VALUES, threads=1)


@pytest.mark.filterwarnings("ignore:.*float64 is converted")
@pytest.mark.parametrize("form", FORMS)
def test_a_module_is_its_graph(form: str, reference: Any) -> None:
    made = pipeline.quantize(Small(), "minmax-w8a8", FORMS[form](), threads=1)
    assert made.graph.inputs[0].name == "picture" and made.calibrated == reference.calibrated
    assert made.grids == reference.grids
    assert all(np.array_equal(made.codes[name], reference.codes[name]) for name in reference.codes)


def test_pictures_say_their_size(tmp_path: Path) -> None:
    for i in range(4):
        picture(tmp_path / f"{i}.png", i)
    data = Data(tmp_path, preprocess=Preprocess(resize=(12, 14)), num_samples=3)
    made = pipeline.quantize(Small(), "minmax-w8a8", data, threads=1)
    assert made.graph.inputs[0].shape == (1, 3, 12, 14) and made.calibrated + len(made.held_out) == 3
    with refused("[load_samples] input 'picture' (float32, 1x?x?x?) leaves height and width open"):
        pipeline.quantize(Small(), "minmax-w8a8", tmp_path, threads=1)


@pytest.mark.parametrize("empty", [[], iter(())], ids=["list", "iterator"])
def test_a_module_needs_a_sample(empty: Any) -> None:
    with refused("data must hold at least one sample"):
        pipeline.quantize(Small(), "minmax-w8a8", empty, threads=1)


def test_sensitivity_takes_a_module(reference: Any) -> None:
    found = sensitivity(Small(), VALUES, {"weights": [4]}, recipe="minmax-w8a8", threads=1)
    assert [cost.name for cost in found.costs] == [layer.name for layer in reference.graph.layers()]


def test_torch_is_not_imported_for_networks_that_are_none() -> None:
    code = (
        "import sys, leadline, numpy as np\n"
        "from leadline.depth import networks\n"
        "x = np.zeros((2, *[d or 1 for d in leadline.Graph.load(networks.path()).inputs[0].shape][1:]), np.float32)\n"
        "leadline.quantize(networks.path(), 'minmax-w8a8', x, threads=1)\n"
        "assert 'torch' not in sys.modules\n"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, timeout=300, check=False)
    assert done.returncode == 0, done.stderr
