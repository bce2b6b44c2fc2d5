"""A QDQ artefact in onnxruntime, with all that it fuses."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from contextlib import ExitStack
from dataclasses import dataclass
from typing import Any

from numpy.typing import NDArray

from leadline.export.qdq import Qdq
from leadline.graph import Session
from leadline.scores import OutputScore
from leadline.targets.processor import kernels_saturate, strays
from leadline.targets.simulation import Simulated
from leadline.targets.target import Arrays


@dataclass(frozen=True)
class Kernels:
    """Of this machine. `saturates`: its fused u8 x s8 kernels do; `strays`: so that an output is more than a decibel
    below the artefact as written."""

    saturates: bool
    strays: bool

    def to_dict(self) -> dict[str, Any]:
        return vars(self)

    def lines(self) -> list[str]:
        if not self.strays:
            return []
        why = "This processor's fused u8 x s8 kernels saturate (no VNNI), so onnxruntime strays from the artefact here"
        return [f"{why}; run it with session.x64quantprecision=1, or on a machine with VNNI."]


class Fused(Simulated):
    """With all fusions; where onnxruntime has no kernels for what it fuses (activations of at most four bits, or with a
    scale per channel), without."""

    def _start(self, stack: ExitStack) -> None:
        session = Session(self.model, self.outputs, optimize=_fits(self.written), threads=self.threads)
        self._fused = stack.enter_context(session)

    def run(self, feed: Mapping[str, NDArray[Any]]) -> Arrays:
        return self._fused.run(feed)

    def facts(self, outputs: Sequence[OutputScore]) -> Kernels:
        return Kernels(kernels_saturate(), strays(outputs))


def _fits(written: Qdq) -> bool:
    schemes = [grid.scheme for name, grid in written.grids.items() if name not in written.codes]
    return not any(scheme.bits <= 4 or scheme.granularity == "axis" for scheme in schemes)
