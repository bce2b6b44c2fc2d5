"""Depth maps that have collapsed: what low bits do when a range or a layer is lost."""

from __future__ import annotations

import numpy as np
from numpy.typing import ArrayLike

from leadline.depth.metrics import DepthScores
from leadline.types import refuse

ABS_REL = 0.4
"""QuartDepth's marker: above it a quantised depth network has collapsed."""

DEAD = 0.1
"""Share of the float network's range below which an output's range is dead."""


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
    AbsRel above 0.4; a constant output where the float one is not; a dead range: the output's middle 98 % of values
    span less than a tenth of what the float network's do.
    """
    y, r = np.asarray(output, np.float64), np.asarray(reference, np.float64)
    if y.shape != r.shape or y.ndim not in (2, 3):
        raise refuse("depth.collapsed", "output must have the reference's shape, of 2 or 3 axes", (y.shape, r.shape))
    found = []
    if not np.isfinite(y).all():
        found.append(f"{np.count_nonzero(~np.isfinite(y))} values are NaN or infinite")
        y = np.nan_to_num(y, posinf=0.0, neginf=0.0)
    sound = reference_scores is None or reference_scores.abs_rel <= ABS_REL
    if scores is not None and sound and scores.abs_rel > ABS_REL:
        found.append(f"AbsRel {scores.abs_rel:.2f} is above {ABS_REL}")
    wanted = float(np.diff(np.percentile(r, [1, 99]))[0])
    got = float(np.diff(np.percentile(y, [1, 99]))[0])
    if wanted > 0 and np.ptp(y) == 0:
        found.append(f"the output is constant, {y.flat[0]:.3g}")
    elif wanted > 0 and got < DEAD * wanted:
        found.append(f"the range is dead: {got:.3g} wide, the float network's {wanted:.3g}")
    return found
