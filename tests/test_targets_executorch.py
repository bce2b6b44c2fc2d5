"""leadline.targets.executorch where ExecuTorch is not installed; tests/full/test_executorch.py has the rest."""

from __future__ import annotations

import importlib.util
import subprocess
import sys
from pathlib import Path

import pytest


def test_the_command_says_at_once_what_it_needs(tmp_path: Path) -> None:
    if importlib.util.find_spec("executorch") is not None:
        pytest.skip("ExecuTorch is installed")
    command = [sys.executable, "-m", "leadline.cli", "quantize", "net.onnx", "--target=executorch"]
    given = ["--data", str(tmp_path), "--out", str(tmp_path / "out")]
    done = subprocess.run([*command, *given], capture_output=True, text=True, check=False)
    assert done.returncode == 2 and done.stderr.count("\n") == 1
    assert "[quantize] this needs ExecuTorch, in an environment of its own: pip install " in done.stderr
    assert not (tmp_path / "out").exists()
