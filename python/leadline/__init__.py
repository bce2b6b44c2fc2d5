"""leadline: post-training quantisation of vision networks. Importing it imports numpy and nothing heavy."""

from __future__ import annotations

from importlib import import_module
from importlib.metadata import version
from typing import Any

from leadline import affine, compensation, equalization, gram, hadamard, observers, polishing, rounding, smoothing
from leadline._native import build_info
from leadline.arrays import ConversionWarning
from leadline.rounding import adaround
from leadline.types import Grid, InputError, Scheme

__all__ = [
    "ConversionWarning",
    "Grid",
    "InputError",
    "Scheme",
    "adaround",
    "affine",
    "build_info",
    "compensation",
    "equalization",
    "gram",
    "hadamard",
    "observers",
    "polishing",
    "rounding",
    "smoothing",
]

# Names that cost an import of onnx or more are looked up when they are first used.
_LAZY = {
    "Data": "leadline.data",
    "Graph": "leadline.graph",
    "Preprocess": "leadline.data",
    "Quantized": "leadline.pipeline",
    "Recipe": "leadline.recipe",
    "load_samples": "leadline.data",
    "quantize": "leadline.pipeline",
    "verify": "leadline.verification",
}


def __getattr__(name: str) -> Any:
    if name == "__version__":
        return version("leadline")
    if name == "sweep":
        return import_module("leadline.sweep")
    if name in _LAZY:
        return getattr(import_module(_LAZY[name]), name)
    raise AttributeError(f"module 'leadline' has no attribute {name!r}")


def __dir__() -> list[str]:
    return sorted({*__all__, *_LAZY, "sweep", "__version__"})
