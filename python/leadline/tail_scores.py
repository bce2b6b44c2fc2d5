"""What a network's tail makes of the float network's tensors at the border and of the artefact's."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any

import numpy as np
from numpy.typing import NDArray

from leadline.collapse import DEAD, Comparison
from leadline.graph import Graph, Session
from leadline.sqnr import Sqnr


@dataclass(frozen=True)
class FinalScore:
    """An output behind the quantised part, where its shape depends on the data: in how many of the samples the artefact
    gives as many elements as the float network, and the SQNR in dB over those; None where there are none. `collapse`:
    why it is lost (`leadline.collapse`), where it holds a tenth of the elements or less, or ten times as many, and by
    which values it holds, whatever their order: two that nearly tie may change places."""

    name: str
    samples: int
    alike: int
    sqnr: float | None
    collapse: list[str] = field(default_factory=list)


class Tailed:
    """The tail of a network behind the float network's tensors and behind the artefact's."""

    def __init__(self, graph: Graph, threads: int | None) -> None:
        self._tail = graph.tail
        self._alike = dict.fromkeys(self._tail.written if self._tail else (), 0)
        self._sqnr = {name: Sqnr() for name in self._alike}
        self._held = {name: Comparison(0, whole=True) for name in self._alike}
        self._sizes = {name: (0, 0) for name in self._alike}
        self._samples = 0
        self.reads = frozenset(self._tail.reads if self._tail else ())
        if self._tail is not None:
            self._session = Session(self._tail.model(graph.values), threads=threads)

    def __enter__(self) -> Tailed:
        return self

    def __exit__(self, *_: object) -> None:
        if self._tail is not None:
            self._session.close()

    def update(self, wanted: Mapping[str, NDArray[Any]], got: Mapping[str, NDArray[Any]]) -> None:
        if self._tail is None:
            return
        self._samples += 1
        exact, rough = (self._session.run({name: at[name] for name in self._tail.reads}) for at in (wanted, got))
        for name, total in self._sqnr.items():
            reference, simulated = exact[name], rough[name]
            self._sizes[name] = self._sizes[name][0] + reference.size, self._sizes[name][1] + simulated.size
            if reference.shape == simulated.shape:
                self._alike[name] += 1
                total.update(reference, simulated)
                if reference.size:
                    self._held[name].update(*(np.sort(array, axis=None)[None] for array in (reference, simulated)))

    def scores(self) -> list[FinalScore]:
        return [
            FinalScore(name, self._samples, alike, self._sqnr[name].db if alike else None, self._lost(name))
            for name, alike in self._alike.items()
        ]

    def _lost(self, name: str) -> list[str]:
        wanted, got = self._sizes[name]
        if wanted and not DEAD * wanted < got < wanted / DEAD:
            return [f"{got} elements in all samples, the float network's {wanted}"]
        return self._held[name].likeness().reasons() if self._alike[name] and wanted else []
