"""How much damping a layer wants: asked of held-out inputs, and of some of its rows."""

from __future__ import annotations

from collections.abc import Callable, Sequence

import numpy as np
from numpy.typing import NDArray

DAMPINGS = (0.003, 0.01, 0.03, 0.1, 0.3, 1.0)
"""What is added to a Gram, in units of its mean diagonal: few samples want more of it."""

PROBED = 192
"""Rows of each group that are asked at most: those of a layer see the same inputs, and agree about the damping that
these want."""


def probed_rows(rows: int, groups: int, most: int = PROBED) -> NDArray[np.int64]:
    """The rows that are asked, spread evenly over each group."""
    each = rows // groups
    count = min(each, most)
    return (np.arange(groups)[:, None] * each + np.arange(count) * each // count).ravel()


def best_damping(error: Callable[[float], float], dampings: Sequence[float] = DAMPINGS) -> tuple[float, float]:
    """The damping of least error, and that error, which grows away from it on either side: downhill from the middle."""
    best = len(dampings) // 2
    lowest = error(dampings[best])
    for step in (1, -1):
        start = best
        while 0 <= best + step < len(dampings) and (other := error(dampings[best + step])) < lowest:
            best, lowest = best + step, other
        if best != start:
            break
    return dampings[best], lowest
