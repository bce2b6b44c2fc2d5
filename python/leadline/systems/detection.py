"""Detections out of a YOLO-like output, and how well those of two networks agree. Numpy alone."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from dataclasses import asdict, dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

from leadline.display import table
from leadline.types import refuse

Array = NDArray[np.float64]


@dataclass(frozen=True, eq=False)
class Detections:
    """What is left of one picture, best first.

    Attributes
    ----------
    boxes : (n, 4) float64
        Left, top, right, bottom in pixels of the network's input.
    scores : (n,) float64
    classes : (n,) int
    """

    boxes: Array
    scores: Array
    classes: NDArray[np.intp]

    def __len__(self) -> int:
        return len(self.scores)


@dataclass(frozen=True)
class DetectionAgreement:
    """One network's detections against another's, matched one to one by class and overlap.

    Attributes
    ----------
    pictures : int
    expected : int
        Detections of the first network.
    kept : float
        Share of them that the second one has, too.
    added : float
        Detections of the second one that the first has not, as a share of the expected ones.
    iou : float
        Mean overlap of the matched ones.
    score_difference, score_bias : float
        Mean absolute difference of the matched scores, and mean difference (second - first).
    box_difference : float
        Mean absolute difference of the matched boxes' sides, in pixels.
    top : float
        Highest score of the second network on any picture: 0 where scores did not survive.
    """

    pictures: int
    expected: int
    kept: float
    added: float
    iou: float
    score_difference: float
    score_bias: float
    box_difference: float
    top: float

    def to_dict(self) -> dict[str, Any]:
        """Plain values, ready for JSON; what nothing matched has no figure for is None."""
        return {key: None if np.isnan(value) else value for key, value in asdict(self).items()}

    def _repr_html_(self) -> str:
        return table(tuple(asdict(self)), [tuple(asdict(self).values())])


def detect(
    outputs: Mapping[str, NDArray[Any]] | NDArray[Any], score: float = 0.25, overlap: float = 0.7, limit: int = 300
) -> Detections:
    """Boxes above a score, without those that a better one of their class overlaps.

    Parameters
    ----------
    outputs : array, or dict of one or two
        (1, 4 + classes, anchors), or boxes (1, 4, anchors) and scores (1, classes, anchors) in this order; boxes as
        centre x, centre y, width, height in pixels.
    score, overlap : float
        The least score that is kept, and the most intersection over union.
    limit : int
        The most detections.

    Raises
    ------
    InputError
        Outputs of another shape.
    """
    arrays = [np.asarray(a, np.float64) for a in (outputs.values() if isinstance(outputs, Mapping) else [outputs])]
    joined = arrays[0] if len(arrays) == 1 else np.concatenate(arrays, 1) if _are_two(arrays) else None
    if joined is None or joined.ndim != 3 or joined.shape[0] != 1 or joined.shape[1] < 5:
        rule = "outputs must be (1, 4 + classes, anchors), or (1, 4, anchors) and (1, classes, anchors)"
        raise refuse("detect", rule, ", ".join(str(array.shape) for array in arrays))
    centre, extent, scores = joined[0, :2].T, joined[0, 2:4].T, joined[0, 4:].T
    boxes = np.concatenate([centre - extent / 2, centre + extent / 2], 1)
    classes = scores.argmax(1)
    best = scores.max(1)
    order = np.flatnonzero(best >= score)
    order = order[np.argsort(-best[order], kind="stable")]
    kept: list[int] = []
    while len(order) and len(kept) < limit:
        first, order = order[0], order[1:]
        kept.append(int(first))
        rival = (overlaps(boxes[first : first + 1], boxes[order])[0] > overlap) & (classes[order] == classes[first])
        order = order[~rival]
    return Detections(boxes[kept], best[kept], classes[kept])


def _are_two(arrays: list[Array]) -> bool:
    return len(arrays) == 2 and all(a.ndim == 3 for a in arrays) and arrays[0].shape[1:2] == (4,) and (
        arrays[0].shape[::2] == arrays[1].shape[::2]
    )  # fmt: skip


def overlaps(first: Array, second: Array) -> Array:
    """Intersection over union of each pair of boxes (left, top, right, bottom): (n, 4) and (m, 4) to (n, m)."""
    low = np.maximum(first[:, None, :2], second[None, :, :2])
    high = np.minimum(first[:, None, 2:], second[None, :, 2:])
    common = np.clip(high - low, 0, None).prod(2)
    areas = [np.clip(boxes[:, 2:] - boxes[:, :2], 0, None).prod(1) for boxes in (first, second)]
    union = areas[0][:, None] + areas[1][None] - common
    shared: Array = np.divide(common, union, out=np.zeros_like(common), where=union > 0)
    return shared


def match(first: Detections, second: Detections, least: float = 0.5) -> list[tuple[int, int, float]]:
    """(index, index, overlap) of detections of one class that overlap by `least` or more, the closest first, each
    once."""
    shared = overlaps(first.boxes, second.boxes) * (first.classes[:, None] == second.classes[None])
    pairs: list[tuple[int, int, float]] = []
    for flat in np.argsort(-shared, axis=None, kind="stable"):
        i, j = np.unravel_index(flat, shared.shape)
        if shared[i, j] < least:
            break
        if all(i != a and j != b for a, b, _ in pairs):
            pairs.append((int(i), int(j), float(shared[i, j])))
    return pairs


def agree(pairs: Iterable[tuple[Detections, Detections]], least: float = 0.5) -> DetectionAgreement:
    """How well the detections of two networks agree over pictures; `least` overlap makes a match."""
    pictures = expected = added = 0
    rows: list[tuple[float, float, float]] = []
    top = 0.0
    for first, second in pairs:
        matches = match(first, second, least)
        pictures, expected, added = pictures + 1, expected + len(first), added + len(second) - len(matches)
        top = max(top, float(second.scores.max(initial=0)))
        for i, j, shared in matches:
            rows.append(
                (shared, second.scores[j] - first.scores[i], float(abs(second.boxes[j] - first.boxes[i]).mean()))
            )
    values = np.array(rows).reshape(-1, 3)
    if not rows:
        shared, bias, moved, difference = (float("nan"),) * 4
    else:
        shared, bias, moved = (float(column.mean()) for column in values.T)
        difference = float(abs(values[:, 1]).mean())
    kept, more = len(rows) / expected if expected else 1.0, added / expected if expected else float(added)
    return DetectionAgreement(pictures, expected, kept, more, shared, difference, bias, moved, top)
