"""The feeds themselves: read when iterated, never all held."""

from __future__ import annotations

import shutil
import tempfile
import weakref
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from leadline.cache import digest
from leadline.types import refuse

Feed = dict[str, NDArray[Any]]

HELD_OUT = 0.25
"""Share of the samples that calibration does not see."""

KEPT = 64 << 20
"""Bytes of feeds that a run keeps, so that pictures are not decoded in each of its passes."""


@dataclass(frozen=True)
class Item:
    """One sample: how messages name it, and how to read it."""

    label: str
    read: Callable[[], Feed]


class Samples:
    """A re-iterable of feeds: dicts from input name to array with exactly the input's rank, batch axis first.

    Every iteration reads the same feeds in the same order (the source's); only the current one is held. Made by
    `load_samples`.

    Attributes
    ----------
    labels : list of str
        How each sample is called in messages: a path, a path and index, or "sample 3".
    skipped : list of (path, reason)
        What could not be read and was left out.
    ignored : int
        Files of other kinds passed over in folders.
    """

    def __init__(
        self, items: Sequence[Item], seed: int = 0, skipped: Sequence[tuple[str, str]] = (), ignored: int = 0
    ) -> None:
        self._items = tuple(items)
        self._seed = seed
        self._digest: str | None = None
        self.skipped = list(skipped)
        self.ignored = ignored

    def __len__(self) -> int:
        return len(self._items)

    def __iter__(self) -> Iterator[Feed]:
        for item in self._items:
            yield item.read()

    def __repr__(self) -> str:
        return f"Samples({len(self)}, skipped={len(self.skipped)}, ignored={self.ignored})"

    def digest(self) -> str:
        """Of the content of every sample, in order; each is read once. For `leadline.cache`."""
        if self._digest is None:
            self._digest = digest([digest(feed) for feed in self])
        return self._digest

    @property
    def labels(self) -> list[str]:
        return [item.label for item in self._items]

    def take(self, n: int) -> Samples:
        """The first `n` samples, or all where there are fewer. `n` at least 1."""
        if n < 1:
            raise refuse("Samples.take", "n must be at least 1", repr(n))
        return self.part(range(min(n, len(self))))

    def split(self, held_out: float = HELD_OUT) -> tuple[Samples, Samples]:
        """Two disjoint parts, (calibration, held out), each in the source's order.

        `held_out` is the share of the second part, above 0 and below 1; from two samples on, each part has at least
        one. A single sample is in both parts. The samples are shuffled by the seed of their `Data` and the held out
        ones taken at even distances, so the same seed always splits alike.
        """
        if not 0 < held_out < 1:
            raise refuse("Samples.split", "held_out must be above 0 and below 1", repr(held_out))
        n = len(self)
        if n < 2:
            return self, self
        count = min(max(round(n * held_out), 1), n - 1)
        shuffled = np.random.default_rng(self._seed).permutation(n)
        chosen = set(shuffled[np.arange(count) * n // count].tolist())
        return self.part([i for i in range(n) if i not in chosen]), self.part(sorted(chosen))

    def kept(self, limit: int = KEPT) -> Samples:
        """The same samples; what is read first stays in memory, up to `limit` bytes of arrays."""
        feeds: dict[Item, Feed] = {}
        left = [limit]

        def reader(item: Item) -> Callable[[], Feed]:
            def read() -> Feed:
                if item in feeds:
                    return dict(feeds[item])
                feed = item.read()
                size = sum(array.nbytes for array in feed.values())
                if size <= left[0]:
                    left[0] -= size
                    feeds[item] = dict(feed)
                return feed

            return read

        items = [Item(item.label, reader(item)) for item in self._items]
        return Samples(items, self._seed, self.skipped, self.ignored)

    def joined(self, others: Samples) -> Samples:
        """These samples, and then the others."""
        return Samples([*self._items, *others._items], self._seed, self.skipped, self.ignored)

    def part(self, indices: Sequence[int]) -> Samples:
        """The samples at these places, in this order."""
        return Samples([self._items[i] for i in indices], self._seed, self.skipped, self.ignored)


def check_seed(function: str, seed: object) -> None:
    if not isinstance(seed, int | np.integer) or seed < 0:
        raise refuse(function, "seed must be a whole number of at least 0", repr(seed))


class Spool:
    """Arrays kept on disk instead of in memory, for sources that can be read only once or only in order.

    The temporary folder lives as long as any Item that reads through the spool.
    """

    def __init__(self) -> None:
        self._folder: Path | None = None
        self._count = 0

    def file(self) -> Path:
        """A new path ending in .npy."""
        if self._folder is None:
            self._folder = Path(tempfile.mkdtemp(prefix="leadline-"))
            weakref.finalize(self, shutil.rmtree, self._folder, ignore_errors=True)
        self._count += 1
        return self._folder / f"{self._count}.npy"

    def add(self, label: str, feed: Feed) -> Item:
        files = {name: self.file() for name in feed}
        for name, array in feed.items():
            np.save(files[name], array, allow_pickle=False)
        return Item(label, lambda: {name: np.array(self.open(file)) for name, file in files.items()})

    def open(self, file: Path) -> NDArray[Any]:
        """Map a .npy file, the spool's own or another. Opened anew for each sample: pages read do not stay."""
        array: NDArray[Any] = np.load(file, mmap_mode="r", allow_pickle=False)
        return array
