"""SQNR: how far a quantised tensor is from the float one, gathered over samples."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Self

import numpy as np
from numpy.typing import ArrayLike

LIMIT_DB = 200.0
"""What identical tensors report: float32 cannot tell more apart."""


@dataclass
class Sqnr:
    """Signal-to-quantisation-noise ratio, 10 log10(sum x^2 / sum (x - y)^2) in dB, over all samples seen so far.

    The mean is not removed. A high SQNR does not say where the error sits: look at the worst sample and at pictures.
    """

    signal: float = 0.0
    noise: float = 0.0
    largest: float = 0.0

    def update(self, reference: ArrayLike, other: ArrayLike) -> Self:
        """Add one sample: two arrays of one shape."""
        wanted = np.asarray(reference, np.float64)
        error = np.asarray(other, np.float64) - wanted
        self.signal += float(np.square(wanted).sum())
        self.noise += float(np.square(error).sum())
        self.largest = max(self.largest, float(np.abs(error).max(initial=0.0)))
        return self

    @property
    def db(self) -> float:
        """dB, within [-200, 200]; an error on a signal of zeros is -200."""
        if self.noise == 0:
            return LIMIT_DB
        if self.signal == 0:
            return -LIMIT_DB
        return float(np.clip(10 * np.log10(self.signal / self.noise), -LIMIT_DB, LIMIT_DB))
