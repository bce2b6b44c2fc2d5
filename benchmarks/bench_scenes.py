"""Rendering speed: pictures of 128x160 a second, in one process and in one for each core. The mark is 32 a second.

python benchmarks/bench_scenes.py
"""

from __future__ import annotations

import multiprocessing
import os
import time

from rich.console import Console
from rich.table import Table

from leadline.depth import scenes

PLACES, VIEWS = range(900_000, 900_016), 12
MARK = 32


def render(seed: int) -> tuple[float, float]:
    """Seconds to build a place, and to render VIEWS pictures of it; the first picture also makes its shadows."""
    start = time.perf_counter()
    scenes.world(seed)
    built = time.perf_counter()
    scenes.views(seed, VIEWS)
    return built - start, time.perf_counter() - built


def main() -> None:
    table = Table("places", "processes", "pictures/s", "of the mark", "solids")
    for kind, seeds in (("rooms", PLACES[::2]), ("streets", PLACES[1::2])):
        seconds = sum(sum(render(seed)) for seed in seeds)
        solids = sum(len(scenes.world(seed)[0].solids.kinds) for seed in seeds) // len(seeds)
        rate = len(seeds) * VIEWS / seconds
        table.add_row(kind, "1", f"{rate:.1f}", f"{rate / MARK:.0%}", str(solids))
    cores = len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1
    with multiprocessing.Pool(cores) as pool:
        pool.map(abs, range(cores))
        start = time.perf_counter()
        pool.map(render, [seed + 1000 for seed in PLACES], chunksize=1)
        rate = len(PLACES) * VIEWS / (time.perf_counter() - start)
    table.add_row("both", str(cores), f"{rate:.1f}", f"{rate / MARK:.0%}", "")
    Console().print(table)


if __name__ == "__main__":
    main()
