"""Cells come through a pipe, figures go back: ``python -m leadline.sweep.worker DESCRIPTOR THREADS FOLDER``."""

from __future__ import annotations

import os
import queue
import sys
import threading
import time
import traceback
from collections.abc import Callable, Iterable, Iterator
from contextlib import contextmanager
from multiprocessing.connection import Connection
from typing import Any

from leadline.cache import Cache
from leadline.sweep.measure import measure

OFTEN = 0.25
"""Seconds between two reports of progress."""


class Reports:
    """Progress of a cell, handed on for the driver as ("progress", what, done, total)."""

    def __init__(self, send: Callable[[tuple[Any, ...]], object]) -> None:
        self._give, self._last = send, 0.0

    def over(self, samples: Iterable[Any], what: str, total: int) -> Iterator[Any]:
        for done, sample in enumerate(samples):
            self._send(what, done, total)
            yield sample

    @contextmanager
    def __call__(self, what: str) -> Iterator[None]:
        self._send(what, 0, 0)
        yield

    def _send(self, what: str, done: int, total: int) -> None:
        if time.monotonic() - self._last > OFTEN:
            self._last = time.monotonic()
            self._give(("progress", what, done, total))


def main() -> None:
    """Until the driver closes the pipe or dies: then at once, in the middle of a cell."""
    pipe = Connection(int(sys.argv[1]))
    threads, cache = int(sys.argv[2]), Cache(sys.argv[3]) if sys.argv[3] else None
    cells: queue.Queue[Any] = queue.Queue()

    def listen() -> None:
        try:
            while True:
                cells.put(pipe.recv())
        except (EOFError, OSError):
            os._exit(0)

    threading.Thread(target=listen, daemon=True).start()
    while True:
        cell = cells.get()
        try:
            answer: tuple[str, Any] = ("done", measure(cell, cache=cache, threads=threads, progress=Reports(pipe.send)))
        except Exception:
            answer = ("failed", traceback.format_exc())
        try:
            pipe.send(answer)
        except OSError:
            os._exit(0)


if __name__ == "__main__":
    main()
