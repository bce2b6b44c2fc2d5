"""Dense outputs as pictures: float, artefact and their difference side by side."""

from __future__ import annotations

import base64
import io
from typing import TYPE_CHECKING, Any

import numpy as np
from numpy.typing import NDArray

if TYPE_CHECKING:
    from leadline.verification import Dense

# Anchors of viridis, which grows evenly in lightness, and of a blue-white-red for signed differences.
VIRIDIS = ("440154", "482878", "3e4989", "31688e", "26828e", "1f9e89", "35b779", "6ece58", "b5de2b", "fde725")
SIGNED = ("2166ac", "67a9cf", "d1e5f0", "f7f7f7", "fddbc7", "ef8a62", "b2182b")
SIDE = 360


def coloured(plane: NDArray[Any], lo: float, hi: float, anchors: tuple[str, ...] = VIRIDIS) -> NDArray[np.uint8]:
    """A (height, width) array as (height, width, 3) RGB; lo and below is the first anchor, hi and above the last."""
    table = np.array([[int(a[i : i + 2], 16) for i in (0, 2, 4)] for a in anchors], np.float64)
    position = np.clip((plane.astype(np.float64) - lo) / ((hi - lo) or 1.0), 0, 1) * (len(anchors) - 1)
    low = np.minimum(position.astype(int), len(anchors) - 2)
    weight = (position - low)[..., None]
    pixels: NDArray[np.uint8] = np.rint(table[low] * (1 - weight) + table[low + 1] * weight).astype(np.uint8)
    return pixels


def triptych(dense: Dense) -> dict[str, Any]:
    """Data URIs of the three pictures, and the ranges that their colours span."""
    lo, hi = float(dense.reference.min()), float(dense.reference.max())
    difference = dense.artefact - dense.reference
    bound = float(np.abs(difference).max()) or 1.0
    return {
        "output": dense.output,
        "sample": dense.sample.replace("\\", "/").rsplit("/", 1)[-1],
        "lo": lo,
        "hi": hi,
        "bound": bound,
        "float": _uri(coloured(dense.reference, lo, hi)),
        "artefact": _uri(coloured(dense.artefact, lo, hi)),
        "difference": _uri(coloured(difference, -bound, bound, SIGNED)),
    }


def _uri(pixels: NDArray[np.uint8]) -> str:
    from PIL import Image

    image = Image.fromarray(pixels)
    image.thumbnail((SIDE, SIDE))
    buffer = io.BytesIO()
    image.save(buffer, "PNG", optimize=True)
    return "data:image/png;base64," + base64.b64encode(buffer.getvalue()).decode()
