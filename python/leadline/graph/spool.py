"""Weights of large networks in temporary files: in memory is what is in use, and the system may take that, too."""

from __future__ import annotations

import mmap
import tempfile
from collections.abc import Callable

import numpy as np

from leadline.graph.ir import Array, Graph

LARGE = 128_000_000
"""Bytes of weights above which a network's weights are held once, and on disk."""

_EACH = 1 << 18
"""Bytes from which an array is worth it."""


def size(graph: Graph) -> int:
    """Bytes of all weights."""
    return sum(array.nbytes for array in graph.weights.values())


def spool(*graphs: Graph) -> Callable[[Array], Array]:
    """Put those weights of large networks that are in memory into a file that goes with the last of them. The arrays
    that take their places are read-only; which they are is what comes back: of an array its map, of others themselves.
    """
    moved: dict[int, tuple[Array, Array]] = {}  # arrays may be shared
    with tempfile.TemporaryFile(prefix="leadline-weights-") as file:
        for graph in graphs:
            for name, array in graph.weights.items() if size(graph) > LARGE else ():
                if array.nbytes < _EACH or _map(array) is not None:
                    continue
                if id(array) not in moved:
                    start = -(-file.tell() // mmap.PAGESIZE) * mmap.PAGESIZE
                    file.seek(start)
                    file.write(np.ascontiguousarray(array).reshape(-1).view(np.uint8).data)
                    file.flush()
                    moved[id(array)] = array, np.asarray(np.memmap(file, array.dtype, "r", start, array.shape))
                    file.seek(start + array.nbytes)
                graph.weights[name] = moved[id(array)][1]
    return lambda array: moved[id(array)][1] if id(array) in moved else array


def rest(array: Array) -> None:
    """Let go of what is in memory of a mapped array; it is read from its file again when it is needed."""
    held = _map(array)
    if held is not None and hasattr(mmap, "MADV_DONTNEED"):
        held.madvise(mmap.MADV_DONTNEED)


def _map(array: Array) -> mmap.mmap | None:
    """The map that an array, or what it is a view of, lies in."""
    base: object = array
    while isinstance(base, np.ndarray):
        base = base.base
    return base if isinstance(base, mmap.mmap) else None
