"""Depth networks that come with leadline, trained in the open on its own scenes: see MODEL_CARD.md beside this file.

Both take (1, 3, 128, 160) pictures with ImageNet's mean and std, seen at a horizontal field of view of 65 degrees, and
give (1, 1, 128, 160) inverse depth in 1/m.
"""

from __future__ import annotations

from pathlib import Path
from typing import Any

from leadline.types import refuse

NAMES = ("tinydepth", "tinydepth-conv")
"""A ViT with a DPT decoder, and a convolutional network of depthwise-separable blocks."""

PREPROCESS: dict[str, Any] = {"mean": (0.485, 0.456, 0.406), "std": (0.229, 0.224, 0.225)}
"""For ``leadline.Preprocess(**PREPROCESS)``."""


def path(name: str = "tinydepth") -> Path:
    """The ONNX file of a network; its shapes are fixed. Raises InputError for a name not in `NAMES`."""
    if name not in NAMES:
        raise refuse("depth.networks", f"name must be one of {', '.join(NAMES)}", repr(name))
    return Path(__file__).with_name(f"{name.replace('-', '_')}.onnx")
