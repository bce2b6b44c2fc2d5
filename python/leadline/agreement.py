"""How far a target's outputs are from what was expected of it."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray


@dataclass(frozen=True)
class DeviceAgreement:
    """Distance of a target from the simulation, in steps of the output's grid.

    `exact` and `within_one` are shares of all elements so far, `mean` and `largest` are in steps. An output without
    a grid is measured in 1/256 of its standard deviation.
    """

    count: int = 0
    exact: float = 1.0
    within_one: float = 1.0
    mean: float = 0.0
    largest: float = 0.0

    def updated(self, simulated: NDArray[Any], device: NDArray[Any], step: float) -> DeviceAgreement:
        """With one more sample."""
        x, y = np.asarray(simulated, np.float64), np.asarray(device, np.float64)
        with np.errstate(invalid="ignore"):
            distance: NDArray[np.float64] = np.abs(x - y) / (step or 1.0)
        same = (x == y) | (np.isnan(x) & np.isnan(y))
        distance = np.where(same, 0.0, np.nan_to_num(distance, nan=np.inf, posinf=np.inf))
        if distance.size == 0:
            return self
        count = self.count + distance.size

        def share(old: float, new: float) -> float:
            return (old * self.count + new) / count

        return DeviceAgreement(
            count,
            share(self.exact, float((distance < 0.5).sum())),
            share(self.within_one, float((distance < 1.5).sum())),
            share(self.mean, float(distance.sum())),
            max(self.largest, float(distance.max())),
        )
