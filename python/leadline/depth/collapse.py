"""Depth maps that have collapsed: lost as any output, or no longer depth beside the truth."""

from __future__ import annotations

import numpy as np
from numpy.typing import ArrayLike

from leadline.collapse import Sums
from leadline.depth.metrics import DepthScores
from leadline.types import refuse

ABS_REL = 0.4
"""QuartDepth's marker: above it a quantised depth network has collapsed."""


def collapsed(
    output: ArrayLike,
    reference: ArrayLike,
    scores: DepthScores | None = None,
    reference_scores: DepthScores | None = None,
) -> list[str]:
    """Why an output has collapsed, in words; empty where it has not.

    Parameters
    ----------
    output, reference : arrays of equal shape, (height, width) or (frames, height, width)
        The quantised and the float network's.
    scores, reference_scores : DepthScores, optional
        Against the truth: AbsRel above 0.4 is a collapse where the float network's is not.

    Findings
    --------
    Those of `leadline.collapse`, as `leadline.verify` has them: NaN and infinities, a constant or dead range, an SQNR
    below 5 dB, about the mean too, and frames whose correlation with the float network's is below 0.5. And AbsRel.
    """
    y, r = np.asarray(output, np.float64), np.asarray(reference, np.float64)
    if y.shape != r.shape or y.ndim not in (2, 3):
        raise refuse("depth.collapsed", "output must have the reference's shape, of 2 or 3 axes", (y.shape, r.shape))
    sums = Sums()
    for frame, wanted in zip(y, r, strict=True) if y.ndim == 3 else [(y, r)]:
        sums.update(wanted.reshape(1, -1), frame.reshape(1, -1))
    reasons = sums.likeness().reasons()
    sound = reference_scores is None or reference_scores.abs_rel <= ABS_REL
    if scores is not None and sound and scores.abs_rel > ABS_REL:
        reasons.append(f"AbsRel {scores.abs_rel:.2f} is above {ABS_REL}")
    return reasons
