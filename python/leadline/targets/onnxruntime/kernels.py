"""Target onnxruntime: how its fused integer kernels on this machine relate to the artefact as written."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
from numpy.typing import NDArray

from leadline.graph import Session

if TYPE_CHECKING:
    import onnx


@dataclass(frozen=True)
class Agreement:
    """Distance of fused kernels from the unfused artefact, in steps of the output's grid.

    `exact` and `within_one` are shares of all elements so far, `mean` and `largest` are in steps. An output without
    a grid is measured in 1/256 of its standard deviation.
    """

    count: int = 0
    exact: float = 1.0
    within_one: float = 1.0
    mean: float = 0.0
    largest: float = 0.0

    def updated(self, simulated: NDArray[Any], fused: NDArray[Any], step: float) -> Agreement:
        """With one more sample."""
        x, y = np.asarray(simulated, np.float64), np.asarray(fused, np.float64)
        with np.errstate(invalid="ignore"):
            distance: NDArray[np.float64] = np.abs(x - y) / (step or 1.0)
        same = (x == y) | (np.isnan(x) & np.isnan(y))
        distance = np.where(same, 0.0, np.nan_to_num(distance, nan=np.inf, posinf=np.inf))
        if distance.size == 0:
            return self
        count = self.count + distance.size

        def share(old: float, new: float) -> float:
            return (old * self.count + new) / count

        return Agreement(
            count,
            share(self.exact, float((distance < 0.5).sum())),
            share(self.within_one, float((distance < 1.5).sum())),
            share(self.mean, float(distance.sum())),
            max(self.largest, float(distance.max())),
        )


def kernels_saturate() -> bool:
    """Whether this processor's u8 x s8 kernels saturate at 16 bits, as x86 without VNNI does.

    onnxruntime then strays from the artefact wherever two products overflow together; phones, and x86 with VNNI,
    do not. ``session.x64quantprecision=1`` avoids it at some cost in speed.
    """
    try:
        text = Path("/proc/cpuinfo").read_text()
    except OSError:
        return False
    flags = next((line.split(":", 1)[1].split() for line in text.splitlines() if line.startswith("flags")), None)
    return flags is not None and not {"avx512_vnni", "avx_vnni"} & set(flags)


class Fused:
    """An artefact with all fusions."""

    build = None

    def __init__(
        self, model: onnx.ModelProto | str | Path, outputs: list[str], fuses: bool, threads: int | None
    ) -> None:
        self.simulation = model
        self._session = Session(model, outputs, optimize=fuses, threads=threads)

    def __enter__(self) -> Fused:
        return self

    def __exit__(self, *_: object) -> None:
        self._session.close()

    def run(self, feed: Mapping[str, NDArray[Any]]) -> dict[str, NDArray[Any]]:
        return self._session.run(feed)
