"""Planes as pictures: dense outputs beside the float network's, depth maps and their errors, videos as strips."""

from __future__ import annotations

import base64
import io
from collections.abc import Sequence
from typing import TYPE_CHECKING, Any

import numpy as np
from numpy.typing import NDArray

from leadline.depth.metrics import valid

if TYPE_CHECKING:
    from leadline.scores import Dense

# Anchors of viridis and inferno, which grow evenly in lightness, and of a blue-white-red for signed differences.
VIRIDIS = ("440154", "482878", "3e4989", "31688e", "26828e", "1f9e89", "35b779", "6ece58", "b5de2b", "fde725")
INFERNO = ("000004", "1b0c41", "4a0c6b", "781c6d", "a52c60", "cf4446", "ed6925", "fb9b06", "f7d13d", "fcffa4")
SIGNED = ("2166ac", "67a9cf", "d1e5f0", "f7f7f7", "fddbc7", "ef8a62", "b2182b")
SIDE = 360

ERROR = 0.25
"""Relative depth error at which error maps are brightest: beyond it a pixel no longer counts for delta1."""

GREY = 210
"""Where nothing is known."""

Pixels = NDArray[np.uint8]


def coloured(plane: NDArray[Any], lo: float, hi: float, anchors: tuple[str, ...] = VIRIDIS) -> Pixels:
    """A (height, width) array as (height, width, 3) RGB; lo and below is the first anchor, hi and above the last, and
    NaN is grey."""
    table = np.array([[int(a[i : i + 2], 16) for i in (0, 2, 4)] for a in anchors], np.float64)
    unknown = np.isnan(plane)
    plane = np.where(unknown, lo, plane.astype(np.float64))
    position = np.clip((plane - lo) / ((hi - lo) or 1.0), 0, 1) * (len(anchors) - 1)
    low = np.minimum(position.astype(int), len(anchors) - 2)
    weight = (position - low)[..., None]
    pixels: Pixels = np.rint(table[low] * (1 - weight) + table[low + 1] * weight).astype(np.uint8)
    pixels[unknown] = GREY
    return pixels


def triptych(dense: Dense) -> dict[str, Any]:
    """Data URIs of the three pictures, and the ranges that their colours span: of what is finite."""
    known = dense.reference[np.isfinite(dense.reference)]
    lo, hi = (float(known.min()), float(known.max())) if known.size else (0.0, 0.0)
    with np.errstate(invalid="ignore"):  # what is infinite in both has no difference
        difference = dense.artefact.astype(np.float64) - dense.reference
    bound = float(np.abs(difference[np.isfinite(difference)]).max(initial=0)) or 1.0
    return {
        "output": dense.output,
        "sample": dense.sample.replace("\\", "/").rsplit("/", 1)[-1],
        "lo": lo,
        "hi": hi,
        "bound": bound,
        "float": uri(coloured(dense.reference, lo, hi)),
        "artefact": uri(coloured(dense.artefact, lo, hi)),
        "difference": uri(coloured(difference, -bound, bound, SIGNED)),
    }


def depth_scale(truth: NDArray[Any], far: float) -> tuple[float, float]:
    """The inverse depths, farthest and nearest, that colours span: of the truth's middle 98 %."""
    known = valid(truth, far=far)
    if not known.any():
        return 0.0, 1.0
    low, high = np.percentile(1 / truth[known], [1, 99])
    return float(low), float(high)


def depth_map(depth: NDArray[Any], scale: tuple[float, float]) -> Pixels:
    """Depth in metres, near bright and far dark: the colour is linear in inverse depth."""
    return coloured(1 / np.maximum(depth, 1e-6), *scale, INFERNO)


def error_map(depth: NDArray[Any], truth: NDArray[Any], far: float) -> Pixels:
    """|depth - truth| / truth, black at 0 and brightest from 25 % on; grey where there is no truth."""
    known = valid(truth, far=far)
    safe = np.where(known, truth, 1.0)
    pixels = coloured(np.where(known, np.abs(depth - safe) / safe, 0), 0, ERROR, INFERNO)
    pixels[~known] = GREY
    return pixels


def strip(frames: Sequence[Pixels], count: int = 6) -> Pixels:
    """`count` of the frames, evenly spread, side by side."""
    chosen = np.linspace(0, len(frames) - 1, min(count, len(frames))).round().astype(int)
    return np.concatenate([frames[i] for i in chosen], 1)


def over_time(frames: Sequence[Pixels], scale: int = 5) -> Pixels:
    """The middle column of every frame side by side, each `scale` pixels wide: time runs to the right."""
    slices = [frame[:, frame.shape[1] // 2, None].repeat(scale, 1) for frame in frames]
    return np.concatenate(slices, 1)


def uri(pixels: Pixels, side: int = SIDE, photograph: bool = False) -> str:
    """A data URI, scaled down to `side` pixels at most; photographs as JPEG, all else as PNG."""
    from PIL import Image

    image = Image.fromarray(pixels)
    image.thumbnail((side, side))
    buffer = io.BytesIO()
    if photograph:
        image.save(buffer, "JPEG", quality=88)
    else:
        image.save(buffer, "PNG", optimize=True)
    kind = "jpeg" if photograph else "png"
    return f"data:image/{kind};base64," + base64.b64encode(buffer.getvalue()).decode()
