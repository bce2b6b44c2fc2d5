"""What a network's inputs take, and cutting arrays into samples of that shape."""

from __future__ import annotations

import warnings
from collections.abc import Collection, Sequence
from dataclasses import dataclass
from typing import Any, Protocol

import numpy as np
from numpy.typing import NDArray

from leadline.types import refuse


class HasShape(Protocol):
    """A graph's Value: its shape is settled."""

    @property
    def name(self) -> str: ...
    @property
    def dtype(self) -> Any: ...
    @property
    def shape(self) -> tuple[int, ...]: ...


Declared = tuple[str, Any, Sequence[int | None]]
"""(name, dtype, dims with None where dynamic), as a file declares it."""


@dataclass(frozen=True)
class Input:
    """One input. `settled` tells a graph's fixed shape from the dims of a file, which may be placeholders."""

    name: str
    dtype: np.dtype[Any]
    dims: tuple[int | None, ...]
    settled: bool

    @property
    def batch(self) -> int:
        """Rows of the first axis that make one sample."""
        return (self.dims[0] if self.dims else None) or 1

    def __str__(self) -> str:
        return f"{self.name!r} ({self.dtype}, {shape_text(self.dims)})"


def parse_inputs(inputs: Sequence[Declared | HasShape]) -> list[Input]:
    parsed = []
    for item in inputs:
        if isinstance(item, tuple):
            name, dtype, dims = item
            parsed.append(Input(name, np.dtype(dtype), tuple(dims), settled=False))
        else:
            parsed.append(Input(item.name, np.dtype(item.dtype), tuple(item.shape), settled=True))
    if not parsed:
        raise refuse("load_samples", "the network must have at least one input", "none")
    return parsed


def check_names(inputs: Sequence[Input], names: Collection[str], where: str) -> None:
    wanted = [item.name for item in inputs]
    if set(names) != set(wanted):
        received = f"{', '.join(map(str, names)) or 'none'} in {where}"
        raise refuse("load_samples", f"keys must be the input names {', '.join(wanted)}", received)


def count_samples(item: Input, shape: tuple[int, ...], dtype: np.dtype[Any], where: str) -> int:
    """How many samples an array holds for an input. Accepts three shapes, else refuses:

    the input's own with any number of batches along its first axis; one more axis in front, along which each entry is a
    whole input; or, where the input's batch is one, one axis fewer: a sample without its batch axis.
    """
    _check_dtype(item, dtype, where)
    extra = len(shape) - len(item.dims)
    rule = f"input {item} takes arrays of that shape, samples along the first axis"
    received = f"shape {shape_text(shape)} in {where}"
    if extra not in (-1, 0, 1) or (extra == -1 and item.batch != 1):
        raise refuse("load_samples", rule, f"{received}, of rank {len(shape)}")
    inner = {-1: (shape, item.dims[1:]), 0: (shape[1:], item.dims[1:]), 1: (shape[1:], item.dims)}[extra]
    if any(want is not None and want != have for have, want in zip(*inner, strict=True)):
        raise refuse("load_samples", rule, received)
    if 0 in shape:
        raise refuse("load_samples", rule, f"{received}: an empty array")
    if not shape or extra == -1:
        return 1
    if extra == 0 and shape[0] % item.batch:
        raise refuse("load_samples", f"input {item} takes {item.batch} rows at a time", received)
    return shape[0] // item.batch if extra == 0 else shape[0]


def cut_sample(item: Input, array: NDArray[Any], index: int, where: str) -> NDArray[Any]:
    """Sample `index` of an array that `count_samples` accepted, as a fresh contiguous array of the input's dtype."""
    extra = array.ndim - len(item.dims)
    if extra == -1:
        part = array[np.newaxis]
    elif array.ndim == 0:
        part = array
    else:
        part = array[index * item.batch : (index + 1) * item.batch] if extra == 0 else array[index]
    with np.errstate(over="ignore"):
        sample: NDArray[Any] = np.array(part, dtype=item.dtype, order="C")
    if item.dtype.kind in "iu" and part.dtype != item.dtype and not np.array_equal(sample, part):
        raise refuse("load_samples", f"input {item} takes values within {item.dtype}", f"values outside it in {where}")
    if is_float(item.dtype) and not (sample < np.inf).all():  # -inf may be a mask
        kind = "NaN" if np.isnan(sample).any() else "infinity"
        raise refuse("load_samples", f"input {item.name!r} takes finite numbers", f"{kind} in {where}")
    return sample


def is_float(dtype: np.dtype[Any]) -> bool:
    return dtype.kind == "f" or dtype.name == "bfloat16"


def _check_dtype(item: Input, dtype: np.dtype[Any], where: str) -> None:
    if dtype == item.dtype:
        return
    if not ((is_float(dtype) and is_float(item.dtype)) or (dtype.kind in "iu" and item.dtype.kind in "iu")):
        raise refuse("load_samples", f"input {item} takes {item.dtype}", f"{dtype} in {where}")
    warnings.warn(f"[load_samples] input {item.name!r} takes {item.dtype}: {dtype} is converted", stacklevel=2)


def shape_text(dims: Sequence[int | None]) -> str:
    return "x".join("?" if d is None else str(d) for d in dims) or "scalar"
