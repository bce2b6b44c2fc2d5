"""A quantised depth network against the float one: the figures that its users ask for, from one pass over the data."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

from leadline.data import Samples
from leadline.depth import metrics
from leadline.depth.temporal import flicker
from leadline.display import table
from leadline.graph import Session
from leadline.pipeline import Quantized
from leadline.types import refuse

NEAR_ZERO = 0.01
"""Share of a frame's highest value below which a relative error says nothing."""


@dataclass(frozen=True)
class DepthAgreement:
    """Means over frames; units are the output's own, and the truth is the float network's output.

    Attributes
    ----------
    correlation : float
        Pearson's.
    mse, rmse : float
        Mean squared difference, and its root.
    abs_rel : float
        mean |y - r| / |r| where |r| is above a hundredth of the frame's highest.
    ssim : float
        See `leadline.depth.metrics.DepthSimilarity`.
    flicker : float or None
        Percent, see `leadline.depth.temporal.flicker`; None where no two frames follow each other.
    frames : int
    """

    correlation: float
    mse: float
    rmse: float
    abs_rel: float
    ssim: float
    flicker: float | None
    frames: int

    def __str__(self) -> str:
        unrest = "" if self.flicker is None else f", flicker {self.flicker:.2f} %"
        return (
            f"{self.frames} frames against float: correlation {self.correlation:.4f}, MSE {self.mse:.4g}, "
            f"RMSE {self.rmse:.4g}, AbsRel {self.abs_rel:.4f}, SSIM {self.ssim:.4f}{unrest}"
        )

    def _repr_html_(self) -> str:
        return table(tuple(vars(self)), [tuple(vars(self).values())])


def agreement(
    quantized: Quantized, data: Samples | None = None, *, video: bool = False, threads: int | None = None
) -> DepthAgreement:
    """Runs the float network and the exported simulation on samples; the first output is taken as depth.

    Parameters
    ----------
    quantized : Quantized
    data : Samples, optional
        Default: what was held out.
    video : bool
        The samples follow each other in time. Clips (a network with several frames in one output) need not say so.
    threads : int, optional
        Of onnxruntime. Default: all.

    Raises
    ------
    InputError
        There are no samples, or the first output is no map: (frames, height, width) with any axes of 1 in front.
    """
    samples = quantized.held_out if data is None else data
    if not len(samples):
        raise refuse("agreement", "data must hold a sample", "none")
    name, shape = quantized.graph.outputs[0].name, quantized.graph.outputs[0].shape
    if len(shape) < 3 or min(shape[-2:]) < 11:
        raise refuse("agreement", "the first output must be a map of at least 11 pixels a side", f"'{name}' {shape}")
    clips = []
    with (
        Session(quantized.graph, [name], threads=threads) as reference,
        Session(quantized.to_qdq(), [name], optimize=False, threads=threads) as simulation,
    ):
        for feed in samples:
            clips.append([session.run(feed)[name].reshape(-1, *shape[-2:]) for session in (simulation, reference)])
    if len(clips[0][0]) == 1 and video:
        clips = [[np.concatenate(part) for part in zip(*clips, strict=True)]]
    similarities = [metrics.similarity(y, r) for y, r in clips]
    weights = [len(y) for y, _ in clips]

    def mean(values: list[float]) -> float:
        return float(np.average(values, weights=weights))

    mse = mean([similarity.mse for similarity in similarities])
    return DepthAgreement(
        mean([similarity.pearson for similarity in similarities]),
        mse,
        mse**0.5,
        mean([_relative(y, r) for y, r in clips]),
        mean([similarity.ssim for similarity in similarities]),
        mean([float(flicker(y, r).mean()) for y, r in clips]) if weights[0] > 1 else None,
        sum(weights),
    )


def _relative(output: NDArray[Any], reference: NDArray[Any]) -> float:
    sizes = np.abs(reference)
    seen = sizes > NEAR_ZERO * sizes.max((1, 2), keepdims=True)
    return float((np.abs(output - reference)[seen] / sizes[seen]).mean()) if seen.any() else 0.0
