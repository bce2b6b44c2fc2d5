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

    The mean is not removed in `db`; `centred_db` leaves it out of the signal, which says more of a map whose values lie
    close together far from zero. Neither says where the error sits: look at the worst sample and at pictures. What is
    NaN or infinite in the reference is left out; elsewhere it is an infinite error.
    """

    signal: float = 0.0
    noise: float = 0.0
    largest: float = 0.0
    total: float = 0.0
    count: int = 0

    def update(self, reference: ArrayLike, other: ArrayLike) -> Self:
        """Add one sample: two arrays of one shape."""
        wanted, got = np.asarray(reference, np.float64), np.asarray(other, np.float64)
        known = np.isfinite(wanted)
        if not known.all():  # nothing can be said of what is infinite in float
            wanted, got = wanted[known], got[known]
        error = got - wanted
        if not np.isfinite(error).all():
            error = np.full(1, np.inf)
        self.signal += float(np.square(wanted).sum())
        self.noise += float(np.square(error).sum())
        self.total += float(wanted.sum())
        self.count += wanted.size
        self.largest = max(self.largest, float(np.abs(error).max(initial=0.0)))
        return self

    @property
    def db(self) -> float:
        """dB, within [-200, 200]; an error on a signal of zeros is -200."""
        return self._ratio(self.signal)

    @property
    def centred_db(self) -> float:
        """dB of the signal about its mean over all samples, to the same error."""
        return self._ratio(self.centred_signal)

    @property
    def centred_signal(self) -> float:
        """Sum of squares about the mean."""
        return max(self.signal - self.total**2 / max(self.count, 1), 0.0)

    def _ratio(self, signal: float) -> float:
        if self.noise == 0:
            return LIMIT_DB
        if signal == 0 or not np.isfinite(self.noise):
            return -LIMIT_DB
        return float(np.clip(10 * np.log10(signal / self.noise), -LIMIT_DB, LIMIT_DB))
