"""What a network's tail makes of the float network's tensors at the border and of the artefact's."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from numpy.typing import NDArray

from leadline.graph import Graph, Session
from leadline.sqnr import Sqnr

if TYPE_CHECKING:
    import onnx


@dataclass(frozen=True)
class FinalScore:
    """An output behind the quantised part, where its shape depends on the data: in how many of the samples the artefact
    gives as many elements as the float network, and the SQNR in dB over those; None where there are none."""

    name: str
    samples: int
    alike: int
    sqnr: float | None


class Tailed:
    """The tail of a network behind the float network's tensors and behind the artefact's."""

    def __init__(self, graph: Graph, threads: int | None) -> None:
        self._tail = graph.tail
        self._alike = dict.fromkeys(self._tail.written if self._tail else (), 0)
        self._sqnr = {name: Sqnr() for name in self._alike}
        self._samples = 0
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
        exact, rough = (self._session.run({name: one[name] for name in self._tail.reads}) for one in (wanted, got))
        for name, total in self._sqnr.items():
            if exact[name].shape == rough[name].shape:
                self._alike[name] += 1
                total.update(exact[name], rough[name])

    def scores(self) -> list[FinalScore]:
        return [
            FinalScore(name, self._samples, alike, self._sqnr[name].db if alike else None)
            for name, alike in self._alike.items()
        ]


def front(model: onnx.ModelProto, graph: Graph) -> onnx.ModelProto:
    """An artefact of the graph without the tail: what a device that runs fixed shapes is given."""
    from leadline.graph.tail import drop

    return drop(model, graph)
