"""A sweep whose driver, workers and database are killed at random moments, beside one that is left alone.

    python benchmarks/sweep_kills.py                # twenty kills, five minutes on two cores; needs a PostgreSQL server
    python benchmarks/sweep_kills.py --kills 5

Sixteen cells on TinyDepth and its convolutional sister in a private PostgreSQL. After each kill every cell that was
finished must still be there with the figures that it had; at the end the table must be the undisturbed sweep's. A kill
comes some seconds after the next cell has finished.
"""

from __future__ import annotations

import argparse
import os
import random
import signal
import subprocess
import sys
import tempfile
import time
from collections.abc import Sequence
from contextlib import suppress
from pathlib import Path

from rich.console import Console
from rich.table import Table

from leadline.sweep import Results, Sweep, results, run
from leadline.sweep.driver import study_name
from leadline.sweep.store import Row
from leadline.types import InputError

sys.path.insert(0, str(Path(__file__).resolve().parents[1] / "tests"))
from private_postgres import Server

SWEEP = """
networks = ["tinydepth", "tinydepth-conv"]
recipes = ["minmax-w8a8"]
metrics = ["sqnr", "delta1", "size"]
[data]
scenes = "both"
first = 200000
count = 8
[[evaluation]]
scenes = "both"
first = 310000
count = 4
[[vary]]
weights.bits = [4, 8]
steps.calibrate.activations = ["minmax", "mse", "percentile", "sqnr"]
"""


def main() -> None:
    parser = argparse.ArgumentParser(description=(__doc__ or "").split("\n")[0])
    parser.add_argument("--kills", type=int, default=20)
    parser.add_argument("--seed", type=int, default=0)
    options = parser.parse_args()
    with tempfile.TemporaryDirectory(prefix="leadline-kills-") as name:
        folder = Path(name)
        folder.chmod(0o755)
        file = folder / "kills.toml"
        file.write_text(SWEEP)
        whole = figures(run(file, folder / "whole", threads=1).complete)
        server = Server(folder / "server").start()
        try:
            disturbed(file, folder / "out", server, options.kills, random.Random(options.seed), whole)
        finally:
            server.kill()


def disturbed(
    file: Path, out: Path, server: Server, kills: int, chance: random.Random, whole: dict[str, dict[str, float]]
) -> None:
    study, driver = study_name(Sweep.load(file)), start(file, out, server.url)
    table = Table("kill", "what", "after s", "cells finished", "lost", title=f"{kills} kills, {len(whole)} cells")
    seen: dict[int, Row] = {}
    for kill in range(kills):
        begun, pause = time.monotonic(), chance.uniform(0, 5)
        while len(look(server.url, study)) == len(seen) and time.monotonic() - begun < 60:
            time.sleep(0.5)
        time.sleep(pause)
        pause = time.monotonic() - begun
        what = chance.choice(("driver", "worker", "server"))
        workers = children(driver.pid)
        if what == "worker" and not workers:
            what = "driver"
        if what == "driver":
            driver.kill()
            driver.wait()
            driver = start(file, out, server.url)
        elif what == "worker":
            with suppress(ProcessLookupError):
                os.kill(chance.choice(workers), signal.SIGKILL)
        else:
            server.kill()
            time.sleep(chance.uniform(0, 1))
            server.start()
        now = look(server.url, study)
        lost = [number for number, row in seen.items() if now.get(number) != row]
        seen = now
        table.add_row(str(kill + 1), what, f"{pause:.1f}", str(len(seen)), str(len(lost)))
        if driver.poll() is not None:
            driver = start(file, out, server.url)
        if len(seen) == len(whole):  # begin again, so that there is something to disturb
            driver.wait()
            out, seen = out.with_name(f"{out.name}-again"), {}
            server.forget()
            driver = start(file, out, server.url)
    driver.wait()
    done = run(file, out, storage=server.url, threads=1, resume=True)
    Console(width=None if sys.stdout.isatty() else 100).print(table)
    print(
        f"final table equal to the undisturbed one: {figures(done.complete) == whole}; failed cells: {len(done.failed)}"
    )


def start(file: Path, out: Path, url: str) -> subprocess.Popen[bytes]:
    command = [sys.executable, "-m", "leadline.cli", "sweep", file, "--out", out, "--storage", url, "--threads", "1"]
    return subprocess.Popen([*map(str, command), "--resume"], stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL)


def look(url: str, study: str) -> dict[int, Row]:
    """The finished cells, by number; the server may take a moment to be back."""
    for _ in range(50):
        with suppress(InputError):
            found: Results = results(url, study)
            return {row.number: row for row in found.complete}
        time.sleep(0.2)
    return {}


def figures(rows: Sequence[Row]) -> dict[str, dict[str, float]]:
    """But for the time that cells took."""
    return {str(row.values): {key: f for key, f in row.figures.items() if key != "seconds"} for row in rows}


def children(pid: int) -> list[int]:
    try:
        return [int(text) for text in Path(f"/proc/{pid}/task/{pid}/children").read_text().split()]
    except OSError:
        return []


if __name__ == "__main__":
    main()
