"""Notebooks whose metadata say ``"leadline": {"extra": "torch"}`` are skipped where that extra is not installed."""

from __future__ import annotations

import json
from importlib.util import find_spec

import pytest

MODULES = {"torch": ("torch", "onnxscript"), "tflite": ("ai_edge_quantizer", "ai_edge_litert")}
"""What an extra installs."""


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    for item in items:
        if item.path.suffix == ".ipynb":
            extra = json.loads(item.path.read_text("utf-8"))["metadata"].get("leadline", {}).get("extra")
            missing = [name for name in MODULES.get(extra, ()) if find_spec(name) is None]
            if missing:
                reason = f"needs {', '.join(missing)}: pip install 'leadline[{extra}]'"
                item.add_marker(pytest.mark.skip(reason=reason))
