"""What the benchmarks share: interleaved timing, a table, and peak memory.

Every figure is a ratio within one run. The contestants of a row take turns, so that a busy machine slows them alike;
the best time of each is compared. Contestants run on one thread, timed by that thread's own processor time, which
leaves out what other programs took in between. GB/s counts the bytes of the input read once, for a copy and a core.
"""

from __future__ import annotations

import statistics
import time
import tracemalloc
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

from rich.console import Console
from rich.table import Table

import leadline


@dataclass(frozen=True)
class Timing:
    best: float
    median: float


def interleave(contestants: dict[str, Callable[[], Any]], seconds: float = 1.5, rounds: int = 400) -> dict[str, Timing]:
    """Times each contestant once a round, for `seconds` or `rounds`, after one warm-up."""
    for function in contestants.values():
        function()
    times: dict[str, list[float]] = {name: [] for name in contestants}
    until = time.perf_counter() + seconds
    for done in range(rounds):
        for name, function in contestants.items():
            start = time.thread_time()
            function()
            times[name].append(time.thread_time() - start)
        if time.perf_counter() > until and done >= 4:
            break
    return {name: Timing(min(t), statistics.median(t)) for name, t in times.items()}


def peak_bytes(function: Callable[[], Any]) -> int:
    """The most memory that numpy and Python held at once during the call, above what they held before."""
    tracemalloc.start()
    try:
        function()
        return tracemalloc.get_traced_memory()[1]
    finally:
        tracemalloc.stop()


def table(title: str, columns: list[str], rows: list[list[str]], note: str = "") -> None:
    info = leadline.build_info()
    out = Table(title=f"{title} ({info['isa']}, {info['compiler']})", caption=note or None)
    for i, column in enumerate(columns):
        out.add_column(column, justify="left" if i == 0 else "right")
    for row in rows:
        out.add_row(*row)
    Console(width=132).print(out)


def rate(size: int, timing: Timing) -> str:
    return f"{size / timing.best / 1e9:.2f}"
