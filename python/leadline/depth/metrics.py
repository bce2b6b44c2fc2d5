"""Depth against the truth and against the float network: the field's metrics, with their usual alignments.

Arrays are (height, width), or (frames, height, width); metrics are taken over the valid pixels of each frame, then
averaged over frames. Depth is in metres. A network that gives inverse depth (disparity, 1/m up to scale and shift, as
MiDaS, Depth Anything and Video-Depth-Anything do) is aligned as such and inverted afterwards: `inverse=True`.
"""

from __future__ import annotations

import functools
from collections.abc import Iterable
from dataclasses import asdict, dataclass, fields
from typing import Any, Literal, get_args

import numpy as np
from numpy.typing import ArrayLike, NDArray

from leadline.display import table
from leadline.types import refuse

Alignment = Literal["none", "median", "scale-shift"]
Array = NDArray[np.float64]
Mask = NDArray[np.bool_]

NEAR, FAR = 1e-3, 80.0
"""Metres. Truth outside is not evaluated, and predictions are clipped to it, as KITTI's evaluation does."""


@dataclass(frozen=True)
class _Figures:
    """What the results below share."""

    def to_dict(self) -> dict[str, Any]:
        return asdict(self)

    def _repr_html_(self) -> str:
        figures = self.to_dict()
        return table(tuple(figures), [tuple(figures.values())])


@dataclass(frozen=True)
class DepthScores(_Figures):
    """Depth y against truth t over pixels i. Lower is better but for `delta1` to `delta3`.

    Attributes
    ----------
    abs_rel : float
        mean |y - t| / t.
    sq_rel : float
        mean (y - t)^2 / t, in metres.
    rmse : float
        sqrt(mean (y - t)^2), in metres.
    rmse_log : float
        sqrt(mean (ln y - ln t)^2).
    log10 : float
        mean |log10 y - log10 t|.
    silog : float
        100 sqrt(mean g^2 - (mean g)^2) with g = ln y - ln t: KITTI's benchmark. (Depth Anything V2 prints
        sqrt(mean g^2 - 0.5 (mean g)^2) under this name.)
    delta1, delta2, delta3 : float
        Share of pixels with max(y / t, t / y) below 1.25, 1.25^2, 1.25^3.
    frames, pixels : int
        What was evaluated.

    Source: Eigen, Puhrsch and Fergus, "Depth map prediction from a single image", 2014.
    """

    abs_rel: float
    sq_rel: float
    rmse: float
    rmse_log: float
    log10: float
    silog: float
    delta1: float
    delta2: float
    delta3: float
    frames: int
    pixels: int


@dataclass(frozen=True)
class DepthSimilarity(_Figures):
    """An output against the float network's, over all pixels of each frame.

    Attributes
    ----------
    pearson : float
        Correlation of values.
    spearman : float
        Correlation of ranks, ties averaged: 1 where the order of depths is kept.
    mse : float
        Mean squared difference, in squared units of the output.
    ssim : float
        Structural similarity (Wang et al., 2004): Gaussian window of 11 pixels with sigma 1.5, K1 0.01, K2 0.03; the
        data range is that of the reference's frame.
    """

    pearson: float
    spearman: float
    mse: float
    ssim: float


def valid(truth: ArrayLike, *, near: float = NEAR, far: float = FAR, mask: ArrayLike | None = None) -> Mask:
    """Where truth is finite and between `near` and `far` (metres), and `mask` is true."""
    t = np.asarray(truth)
    usable: Mask = np.isfinite(t) & (t > near) & (t < far)
    if mask is not None:
        allowed = np.asarray(mask, bool)
        if allowed.shape != t.shape:
            raise refuse("depth.metrics", f"mask must have truth's shape {t.shape}", allowed.shape)
        usable &= allowed
    return usable


def align(
    prediction: ArrayLike,
    truth: ArrayLike,
    alignment: Alignment = "none",
    *,
    inverse: bool = False,
    near: float = NEAR,
    far: float = FAR,
    mask: ArrayLike | None = None,
    together: bool = True,
) -> Array:
    """Depth in metres from a prediction, brought to the truth's scale and clipped to `near`..`far`.

    Parameters
    ----------
    prediction, truth : array of equal shape
    alignment : {"none", "median", "scale-shift"}
        "median": depth times median(truth) / median(depth). "scale-shift": least squares of a * x + b against truth,
        in inverse depth where `inverse`, else in depth (Ranftl et al., MiDaS, 2020).
    inverse : bool
        The prediction is inverse depth.
    near, far : float
        Metres.
    mask : bool array, optional
    together : bool
        All frames get one alignment, as video evaluation does; else each its own, and a frame without a valid pixel is
        `far` everywhere.

    Raises
    ------
    InputError
        Shapes differ, a prediction is NaN or infinite, or no pixel is valid.
    """
    y, t = _pair(prediction, truth)
    usable = valid(t, near=near, far=far, mask=mask)
    if not usable.any():
        raise refuse("depth.metrics", f"truth must have pixels between {near} and {far} m", "none")
    if alignment not in get_args(Alignment):
        raise refuse("depth.metrics", f"alignment must be one of {', '.join(get_args(Alignment))}", repr(alignment))
    if not together and y.ndim == 3:
        depth = np.full(y.shape, far, np.float64)
        for i in np.flatnonzero(usable.any((1, 2))):
            depth[i] = align(y[i], t[i], alignment, inverse=inverse, near=near, far=far, mask=usable[i])
        return depth
    if alignment == "scale-shift":
        target = 1 / t[usable] if inverse else t[usable]
        scale, shift = _least_squares(y[usable], target)
        y = scale * y + shift
    depth = 1 / np.maximum(y, 1 / far) if inverse else y
    if alignment == "median":
        depth = depth * (np.median(t[usable]) / max(float(np.median(depth[usable])), 1e-12))
    return np.clip(depth, near, far)


def score(
    prediction: ArrayLike,
    truth: ArrayLike,
    alignment: Alignment = "none",
    *,
    inverse: bool = False,
    near: float = NEAR,
    far: float = FAR,
    mask: ArrayLike | None = None,
    together: bool = False,
) -> DepthScores:
    """Depth metrics of a prediction. Parameters as in `align`.

    `together`: one alignment for all frames of a video, as Video-Depth-Anything evaluates; default: one for each frame.
    Frames without a valid pixel are left out.
    """
    y, t = _pair(prediction, truth)
    y, t = _frames(y), _frames(t)
    usable = valid(t, near=near, far=far, mask=None if mask is None else _frames(np.asarray(mask, bool)))
    seen = np.flatnonzero(usable.any((1, 2)))
    depth = align(y, t, alignment, inverse=inverse, near=near, far=far, mask=usable, together=together)
    rows = np.array([_frame_scores(depth[i][usable[i]], t[i][usable[i]]) for i in seen])
    names = [field.name for field in fields(DepthScores)][: rows.shape[1]]
    means = dict(zip(names, map(float, rows.mean(0)), strict=True))
    return DepthScores(**means, frames=len(seen), pixels=int(usable.sum()))


def _frame_scores(y: Array, t: Array) -> list[float]:
    difference, g = y - t, np.log(y) - np.log(t)
    ratio = np.maximum(y / t, t / y)
    return [
        np.mean(np.abs(difference) / t),
        np.mean(difference**2 / t),
        np.sqrt(np.mean(difference**2)),
        np.sqrt(np.mean(g**2)),
        np.mean(np.abs(np.log10(y) - np.log10(t))),
        100 * np.sqrt(max(np.mean(g**2) - np.mean(g) ** 2, 0.0)),
        *(np.mean(ratio < 1.25**power) for power in (1, 2, 3)),
    ]


def similarity(output: ArrayLike, reference: ArrayLike) -> DepthSimilarity:
    """How close an output is to the float network's, as it stands: no alignment, averaged over frames.

    A constant frame has no correlation: it counts as 0, and as 1 where both are constant and equal.
    Raises InputError where shapes differ, a value is not finite, or frames are smaller than 11 pixels.
    """
    y, r = (_frames(v) for v in _pair(output, reference))
    if min(y.shape[1:]) < _WINDOW:
        raise refuse("depth.metrics", f"frames must have at least {_WINDOW} pixels a side", y.shape[1:])
    rows = [
        (_correlation(a, b), _correlation(_ranks(a), _ranks(b)), float(np.mean((a - b) ** 2)), _ssim(a, b))
        for a, b in zip(y, r, strict=True)
    ]
    return DepthSimilarity(*map(float, np.mean(rows, 0)))


def boundary_f1(prediction: ArrayLike, truth: ArrayLike) -> float:
    """Sharpness of depth edges, 0 to 1: scale-invariant boundary F1 (Bochkovskii et al., Depth Pro, 2024).

    Two neighbouring pixels are an edge where their depths' ratio is above t. F1 of the prediction's edges against the
    truth's, for ten t from 1.05 to 1.25, weighted by t; left, right, up and down apart. Both are depth (not inverse),
    positive; infinite truth (the sky) is an edge against all that is finite. Averaged over frames.
    """
    y, t = np.asarray(prediction, np.float64), np.asarray(truth, np.float64)
    if y.shape != t.shape or y.ndim not in (2, 3):
        raise refuse("depth.metrics", "prediction and truth must have one shape, of 2 or 3 axes", (y.shape, t.shape))
    thresholds = np.linspace(1.05, 1.25, 10)
    weights = thresholds / thresholds.sum()
    inverse = (1 / np.maximum(_frames(depth), 1e-6) for depth in (y, t))
    scores = [
        sum(weight * _f1(a, b, threshold) for weight, threshold in zip(weights, thresholds, strict=True))
        for a, b in zip(*inverse, strict=True)
    ]
    return float(np.mean(scores))


def _f1(y: Array, t: Array, threshold: float) -> float:
    recall = precision = 0.0
    for mine, theirs in zip(_edges(y, threshold), _edges(t, threshold), strict=True):
        both = int(np.count_nonzero(mine & theirs))
        recall += both / max(int(np.count_nonzero(theirs)), 1) / 4
        precision += both / max(int(np.count_nonzero(mine)), 1) / 4
    return 2 * recall * precision / (recall + precision) if recall + precision else 0.0


def _edges(near: Array, threshold: float) -> list[Mask]:
    """Of inverse depth: to the left, right, top and bottom."""
    pairs = [(near[:, 1:], near[:, :-1]), (near[1:], near[:-1])]
    return [a > threshold * b for pair in pairs for a, b in (pair, pair[::-1])]


def _pair(prediction: ArrayLike, truth: ArrayLike) -> tuple[Array, Array]:
    y, t = np.asarray(prediction, np.float64), np.asarray(truth, np.float64)
    if y.shape != t.shape or y.ndim not in (2, 3):
        rule = "prediction and truth must have one shape, (height, width) or (frames, height, width)"
        raise refuse("depth.metrics", rule, f"{y.shape} and {t.shape}")
    if not np.isfinite(y).all():
        frame = np.argwhere(~np.isfinite(y))[0][:-2]
        where = f" of frame {frame[0]}" if frame.size else ""
        raise refuse(
            "depth.metrics",
            "prediction must be finite",
            f"{np.count_nonzero(~np.isfinite(y))} NaN or infinite values, the first{where}",
        )
    return y, t


def _frames(values: NDArray[Any]) -> NDArray[Any]:
    return values if values.ndim == 3 else values[None]


def _least_squares(x: Array, target: Array) -> tuple[float, float]:
    """a, b of a * x + b; a constant x gets the mean."""
    middle = x.mean()
    variance = np.mean((x - middle) ** 2)
    if variance <= 1e-12 * max(middle**2, 1e-300):
        return 0.0, float(target.mean())
    scale = float(np.mean((x - middle) * target) / variance)
    return scale, float(target.mean() - scale * middle)


def _correlation(a: Array, b: Array) -> float:
    a, b = a.ravel() - a.mean(), b.ravel() - b.mean()
    norm = np.sqrt((a @ a) * (b @ b))
    if norm == 0:
        return float(np.array_equal(a, b))
    return float(a @ b / norm)


def _ranks(values: Array) -> Array:
    _, inverse, counts = np.unique(values.ravel(), return_inverse=True, return_counts=True)
    last = np.cumsum(counts)
    ranks: Array = (last - (counts - 1) / 2)[inverse]
    return ranks


def _summed(parts: Iterable[Array]) -> Array:
    return functools.reduce(np.add, parts)


_WINDOW = 11


def _ssim(a: Array, b: Array) -> float:
    taps = np.exp(-0.5 * (np.arange(_WINDOW) - _WINDOW // 2) ** 2 / 1.5**2)
    taps /= taps.sum()

    def blurred(x: Array) -> Array:
        rows = _summed(tap * x[i : x.shape[0] - _WINDOW + 1 + i] for i, tap in enumerate(taps))
        return _summed(tap * rows[:, i : x.shape[1] - _WINDOW + 1 + i] for i, tap in enumerate(taps))

    span = float(b.max() - b.min()) or 1.0
    c1, c2 = (0.01 * span) ** 2, (0.03 * span) ** 2
    ma, mb = blurred(a), blurred(b)
    va, vb, cov = blurred(a * a) - ma**2, blurred(b * b) - mb**2, blurred(a * b) - ma * mb
    return float(np.mean((2 * ma * mb + c1) * (2 * cov + c2) / ((ma**2 + mb**2 + c1) * (va + vb + c2))))
