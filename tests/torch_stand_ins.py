"""What tests need so that users' code imports here: torchvision's operators by name, for its CUDA build."""

from __future__ import annotations

from contextlib import suppress
from importlib import import_module
from typing import Any

import pytest

_NAMES = ("nms", "qnms", "roi_align", "roi_pool", "ps_roi_align", "ps_roi_pool", "deform_conv2d")
_kept: list[Any] = []


def define_torchvision() -> None:
    """Defines the operators that torchvision's registry build wants at import beside a CPU torch, unless its own are
    there."""
    import torch

    with suppress(ImportError, OSError, RuntimeError):
        import_module("torchvision")
    if _kept or hasattr(torch.ops.torchvision, "nms"):
        return
    library = torch.library.Library("torchvision", "DEF")
    for name in (*_NAMES, *(f"_{name}_backward" for name in _NAMES if name not in ("nms", "qnms"))):
        library.define(f"{name}(Tensor x) -> Tensor")
    _kept.append(library)


def import_timm() -> Any:
    """timm, or the test is skipped."""
    define_torchvision()
    return pytest.importorskip("timm", reason="timm is not installed")
