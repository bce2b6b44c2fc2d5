"""What whoever writes or rebuilds a quantised network needs of it."""

from __future__ import annotations

from collections.abc import Mapping
from typing import TYPE_CHECKING, Any, Protocol

from numpy.typing import NDArray

from leadline.types import Grid

if TYPE_CHECKING:
    from leadline.data import Samples
    from leadline.graph.graph import Graph


class Quantised(Protocol):
    """`leadline.quantized.Quantized` is one: the float network, and beside it grids and integers by tensor name."""

    @property
    def graph(self) -> Graph: ...
    @property
    def grids(self) -> Mapping[str, Grid]: ...
    @property
    def codes(self) -> Mapping[str, NDArray[Any]]: ...


class Judged(Quantised, Protocol):
    """With the samples that calibration did not see."""

    @property
    def held_out(self) -> Samples: ...
