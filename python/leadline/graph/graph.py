"""The Graph as all outside of this package know it: what `ir` says it is, and how it is read, written and folded."""

from __future__ import annotations

import os
from dataclasses import dataclass, fields
from pathlib import Path
from typing import TYPE_CHECKING

from leadline.graph import ir, load
from leadline.graph.fold import fold
from leadline.graph.ir import Sample
from leadline.graph.read import read, unpack
from leadline.graph.write import INLINE_BYTES, LIMIT, save, to_model

if TYPE_CHECKING:
    import onnx


@dataclass(slots=True, repr=False)
class Graph(ir.Graph):
    __doc__ = ir.Graph.__doc__

    @classmethod
    def of(cls, graph: ir.Graph) -> Graph:
        """The same network; everything is shared, not copied."""
        return cls(**{field.name: getattr(graph, field.name) for field in fields(graph)})

    @classmethod
    def load(cls, path: str | os.PathLike[str], sample: Sample | None = None, *, verbatim: bool = False) -> Graph:
        """Read an ONNX file and bring it to normal form.

        Parameters
        ----------
        path : path
            An ONNX file, opset 7 to what the installed onnx knows, with or without external data. Where it has
            float16, bfloat16 or float64, the Graph has float32, and says so in `notes`.
        sample : dict of input name to array or shape, optional
            Fixes the input shapes; it wins over the shapes that the file declares. Without it a free first axis
            becomes 1 and any other free axis is refused.
        verbatim : bool
            Leave the file's operators, and the names of its tensors, as they are: only constants are folded, shapes
            fixed and the opset raised. For files of grids that others wrote against this very network. The steps of
            recipes want the normal form.

        Raises
        ------
        InputError
            The file is missing, damaged, not ONNX, already quantised, holds strings, NaN or infinite weights, has
            operators that neither ONNX nor `leadline.graph.contrib` defines, or does not fit the sample.
        """
        return cls.of((load.verbatim if verbatim else load.normalise)(read(path), sample))

    @classmethod
    def from_model(
        cls, model: onnx.ModelProto, sample: Sample | None = None, base_dir: str | os.PathLike[str] | None = None
    ) -> Graph:
        """The same as `load`, from a model in memory. `base_dir` holds its external data, if any."""
        return cls.of(load.normalise(unpack(model, base_dir, model.graph.name or "model"), sample))

    def to_model(self, weights: bool = True) -> onnx.ModelProto:
        """An ONNX model. With ``weights=False`` large weights are named but left out (see `Session`)."""
        return to_model(self, None if weights else INLINE_BYTES)

    def save(self, path: str | os.PathLike[str], limit: int = LIMIT) -> None:
        """Write the network; nothing is left at `path` if it fails.

        Parameters
        ----------
        path : path
        limit : int
            Bytes of weights from which they go to a file of their own, ``<path>.data``. One ONNX file holds 2 GiB.
        """
        save(self, Path(path), limit)

    def fold(self) -> list[str]:
        """Fold BatchNormalization, LayerScale and constant per-channel Mul and Add into the layers around them.

        Exact but for rounding: an Add in front of a zero-padded convolution stays. A weight shared by several nodes
        gets a copy of its own. A second call does nothing.

        Returns
        -------
        list of str
            One line for each fold: ``<layer or layers>: <what was folded>``.
        """
        return fold(self)
