"""Sweeps whose driver, workers or storage die, or whose disk is full: no finished cell is lost, and the table ends up
the same."""

from __future__ import annotations

import os
import random
import signal
import subprocess
import sys
import time
from contextlib import contextmanager, suppress
from pathlib import Path

import numpy as np
import pytest

from leadline.sweep import Sweep, results, run
from leadline.sweep.driver import LIVES, Nobody, study_name
from leadline.sweep.engines import Local
from leadline.sweep.store import sqlite
from leadline.types import InputError
from small_networks import samples
from small_sweeps import VARY, Inline, figures, small

LARGE = {"vary": [VARY | {"steps.calibrate.weights": ["minmax", "mse", "sqnr"]}]}
"""Twelve cells."""


def slow(folder):
    """The same with cells that take a while, so that there is something to interrupt."""
    sweep = small(folder, **LARGE)
    np.save(folder / "judged.npy", samples(3000, seed=5))
    return sweep


@pytest.fixture(scope="module")
def undisturbed(tmp_path_factory):
    folder = tmp_path_factory.mktemp("undisturbed")
    return figures(run(small(folder, **LARGE), folder / "out", engine=Inline()))


@pytest.fixture(scope="module")
def undisturbed_slow(tmp_path_factory):
    folder = tmp_path_factory.mktemp("undisturbed-slow")
    return figures(run(slow(folder), folder / "out", engine=Inline()))


def found(sweep, out, url=None):
    return results(url or sqlite(out), study_name(Sweep.load(sweep)))


def kept(before, after):
    """Every cell that was finished is there as it was, the time that it took included."""
    later = {row.number: row for row in after.complete}
    return all(later[row.number] == row for row in before.complete)


class Killer(Nobody):
    """Kills a worker now and then."""

    def __init__(self, engine, chance):
        self.engine, self.chance, self.random, self.killed = engine, chance, random.Random(7), 0
        self.said = []

    def started(self, job, cell):
        if self.random.random() < self.chance:
            os.kill(self.random.choice(self.engine.pids()), signal.SIGKILL)
            self.killed += 1

    def ended(self, job, cell, state, figures, error):
        self.started(job, cell)

    def say(self, text):
        self.said.append(text)


@pytest.mark.slow
def test_workers_that_are_killed_are_replaced(tmp_path, undisturbed):
    engine = Local(2, 1, tmp_path / "shared")
    engine.submit(-1, next(iter(_cells(small(tmp_path, **LARGE)))))
    while not [event for event in engine.wait(1) if event.kind == "done"]:
        pass
    killer = Killer(engine, 0.3)
    done = run(tmp_path / "small.toml", tmp_path / "out", engine=engine, watcher=killer)
    assert killer.killed > 1 and any("a worker died (signal 9)" in text for text in killer.said)
    assert figures(done) == undisturbed and done.failed == []


def _cells(sweep):
    from leadline.sweep.cell import grid

    return grid(Sweep.load(sweep))


class Murderous(Inline):
    """An engine whose every worker dies over 4-bit cells."""

    def wait(self, seconds):
        from leadline.sweep.engines import Event

        if self._waiting and self._waiting[0][1].recipe.weights.bits == 4:
            job, cell = self._waiting.pop(0)
            self.cells.append(cell)
            return [Event(job, "lost", "signal 9")]
        return super().wait(seconds)


def test_a_cell_that_kills_its_workers_fails_in_the_end(tmp_path):
    engine = Murderous()
    done = run(small(tmp_path), tmp_path / "out", engine=engine)
    assert len(done.complete) == 2 and len(engine.cells) == 2 + 2 * LIVES
    assert all("workers died over it, the last by signal 9" in row.error for row in done.failed)


def start(sweep, out, *more):
    command = [sys.executable, "-m", "leadline.cli", "sweep", sweep, "--out", out, "--workers", "2", "--threads", "1"]
    return subprocess.Popen(
        [*map(str, command), "--resume", *map(str, more)],
        stdout=subprocess.DEVNULL, stderr=subprocess.PIPE, text=True,
        preexec_fn=lambda: signal.signal(signal.SIGINT, signal.SIG_DFL),  # tests in a shell's background ignore it
    )  # fmt: skip


def children(pid):
    return [int(text) for text in Path(f"/proc/{pid}/task/{pid}/children").read_text().split()]


def alive(pid):
    try:
        return Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[0] != "Z"
    except OSError:
        return False


@contextmanager
def ended(process):
    """However the block ends."""
    try:
        yield
    finally:
        process.kill()


def until(sweep, out, driver, count):
    """Look now and then, at random moments, until so many cells are finished. The driver's workers."""
    workers: list[int] = []
    chance, deadline = random.Random(count), time.monotonic() + 120
    while driver.poll() is None and time.monotonic() < deadline:
        time.sleep(chance.uniform(0, 0.1))
        workers = children(driver.pid) or workers
        with suppress(InputError):  # it is not there yet
            if (out / "sweep.db").exists() and len(found(sweep, out).complete) >= count:
                return workers
    raise AssertionError(f"the driver ended with {driver.returncode} before {count} cells were finished")


@pytest.mark.slow
@pytest.mark.skipif(sys.platform != "linux", reason="looks for the workers in /proc")
def test_a_driver_that_is_killed_loses_nothing_and_leaves_nobody(tmp_path, undisturbed_slow):
    sweep, out = slow(tmp_path), tmp_path / "out"
    before = None
    for count in (1, 4, 7):
        if before is not None and len(before.complete) >= 12:
            break  # it was faster than we looked
        with start(sweep, out) as driver, ended(driver):
            workers = until(sweep, out, driver, max(count, len(before.complete) + 1 if before else 1))
            driver.send_signal(signal.SIGKILL)
        after = found(sweep, out)
        assert len(workers) == 2 and (before is None or kept(before, after))
        before, end = after, time.monotonic() + 20
        while any(map(alive, workers)) and time.monotonic() < end:
            time.sleep(0.05)
        assert not any(map(alive, workers))
    done = run(sweep, out, engine=Inline(), resume=True)
    assert kept(before, done) and figures(done) == undisturbed_slow


@pytest.mark.slow
def test_ctrl_c(tmp_path, undisturbed_slow):
    sweep, out = slow(tmp_path), tmp_path / "out"
    with start(sweep, out) as driver, ended(driver):
        until(sweep, out, driver, 1)
        driver.send_signal(signal.SIGINT)
        _, text = driver.communicate(timeout=60)
    assert driver.returncode == 130 and "Traceback" not in text and "--resume" in text, text
    before = found(sweep, out)
    assert before.count()["running"] == 0 and before.complete
    done = run(sweep, out, engine=Inline(), resume=True)
    assert kept(before, done) and figures(done) == undisturbed_slow


FULL = """
import resource, sys
from leadline.sweep import run
from leadline.types import InputError
sys.path.insert(0, {tests!r})
from small_networks import samples
from small_sweeps import Inline

class Filling(Inline):
    def wait(self, seconds):
        if len(self.cells) == 3:  # the disk is full from now on
            resource.setrlimit(resource.RLIMIT_FSIZE, (1024, resource.RLIM_INFINITY))
        return super().wait(seconds)

try:
    run({sweep!r}, {out!r}, engine=Filling(), patience=1.0)
except InputError as error:
    print(error)
"""


def test_a_full_disk_loses_no_finished_cell(tmp_path, undisturbed):
    sweep, out = small(tmp_path, **LARGE), tmp_path / "out"
    names = {"tests": str(Path(__file__).parent), "sweep": str(sweep), "out": str(out)}
    program = FULL.format(**names)
    done = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True, timeout=120)
    assert "[sweep] the storage must take results; it did not for 1 s" in done.stdout, done.stderr
    assert "nothing that was finished is lost" in done.stdout
    before = found(sweep, out)
    assert len(before.complete) == 3
    whole = run(sweep, out, engine=Inline(), resume=True)
    assert kept(before, whole) and figures(whole) == undisturbed


def test_a_disk_that_is_full_for_a_while_costs_only_time(tmp_path, undisturbed, monkeypatch):
    """Every third write fails twice; the figures stay in memory until they are written."""
    from optuna.storages import RDBStorage
    from sqlalchemy.exc import OperationalError

    calls = []

    def failing(method):
        def write(*arguments, **named):
            calls.append(method)
            if len(calls) % 3:
                raise OperationalError("INSERT", {}, Exception("database or disk is full"))
            return method(*arguments, **named)

        return write

    for name in ("set_trial_state_values", "set_trial_user_attr", "create_new_trial"):
        monkeypatch.setattr(RDBStorage, name, failing(getattr(RDBStorage, name)))
    said = Killer(None, 0)
    done = run(small(tmp_path, **LARGE), tmp_path / "out", engine=Inline(), watcher=said)
    assert figures(done) == undisturbed and "waiting for the storage: database or disk is full" in said.said


def test_a_full_disk_leaves_the_cache_empty_and_the_cells_whole(tmp_path, undisturbed, monkeypatch):
    from leadline import cache as module

    def full(path):
        raise OSError(28, "No space left on device")

    cache = module.Cache(tmp_path / "shared", least=0)
    monkeypatch.setattr(module, "replacing", full)
    done = run(small(tmp_path, **LARGE), tmp_path / "out", engine=Inline(cache))
    assert figures(done) == undisturbed and list(cache.folder.glob("*.pickle")) == []
