"""What the tests of leadline.data share: refusals by message, a ceiling on memory, pictures of noise."""

from __future__ import annotations

import re
import tracemalloc
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from PIL import Image

from leadline.types import InputError

PICTURE = [("x", np.float32, (1, 3, 8, 10))]
OPEN = [("x", np.float32, (None, 3, None, None))]
VECTOR = [("v", np.float32, (None, 4))]
PAIR = [("v", np.float32, (None, 4)), ("n", np.int64, (None,))]


class Settled:
    """A graph's Value, as far as the loader looks at it."""

    def __init__(self, name: str, dtype: Any, shape: tuple[int, ...]) -> None:
        self.name, self.dtype, self.shape = name, dtype, shape


def refused(*parts: str) -> Any:
    """Expect an InputError whose message holds these parts, in this order."""
    return pytest.raises(InputError, match=".*".join(map(re.escape, parts)))


class Tensor:
    """What torch's tensors look like from outside: DLPack and nothing of numpy."""

    def __init__(self, array):
        self.array = array

    def __dlpack__(self, **options):
        return self.array.__dlpack__(**options)

    def __dlpack_device__(self):
        return self.array.__dlpack_device__()


@contextmanager
def peak_below(size: float) -> Iterator[None]:
    """Refuse a block whose Python and numpy allocations pass `size` bytes at once."""
    tracemalloc.start()
    try:
        yield
        peak = tracemalloc.get_traced_memory()[1]
    finally:
        tracemalloc.stop()
    assert peak < size


def picture(path: Path, seed: int = 0, size: tuple[int, int] = (20, 16), mode: str = "RGB") -> Path:
    """A picture of noise; size is (width, height)."""
    pixels = np.random.default_rng(seed).integers(0, 256, (size[1], size[0], 3), dtype=np.uint8)
    path.parent.mkdir(parents=True, exist_ok=True)
    Image.fromarray(pixels).convert(mode).save(path)
    return path


def equal(a: dict[str, Any], b: dict[str, Any]) -> bool:
    return a.keys() == b.keys() and all(np.array_equal(a[k], b[k]) and a[k].dtype == b[k].dtype for k in a)


def vectors(n: int) -> np.ndarray:
    return np.arange(n * 4, dtype=np.float32).reshape(n, 4)
