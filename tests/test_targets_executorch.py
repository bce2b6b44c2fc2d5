"""leadline.targets.executorch where ExecuTorch is not installed; tests/full/test_executorch.py has the rest."""

from __future__ import annotations

import importlib.util
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest

from graph_models import model, node
from leadline.graph import Graph
from leadline.targets.target import target_of
from leadline.types import InputError


def test_the_command_says_at_once_what_it_needs(tmp_path: Path) -> None:
    if importlib.util.find_spec("executorch") is not None:
        pytest.skip("ExecuTorch is installed")
    command = [sys.executable, "-m", "leadline.cli", "quantize", "net.onnx", "--target=executorch"]
    given = ["--data", str(tmp_path), "--out", str(tmp_path / "out")]
    done = subprocess.run([*command, *given], capture_output=True, text=True, check=False)
    assert done.returncode == 2 and done.stderr.count("\n") == 1
    assert "[quantize] this needs ExecuTorch, in an environment of its own: pip install " in done.stderr
    assert not (tmp_path / "out").exists()


@pytest.mark.parametrize("axes", [1, 2, 3])
@pytest.mark.parametrize("kind", ["Conv", "ConvTranspose"])
def test_convolutions_over_three_axes_are_refused_before_the_work(kind: str, axes: int) -> None:
    shape, weight = (1, 4, *[6] * axes), np.ones((4, 4, *[2] * axes), np.float32)
    graph = Graph.from_model(model([node(kind, "x w", "y")], shape, w=weight))
    target = target_of("executorch")
    if axes == 3:
        with pytest.raises(InputError, match=r"\[quantize\] XNNPACK has no convolution over three axes: '\w+' must go"):
            target.check_network(graph, "quantize")
    elif importlib.util.find_spec("torch") is not None:
        target.check_network(graph, "quantize")
