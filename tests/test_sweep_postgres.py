"""A sweep in PostgreSQL: drivers that share it, and a server that is killed. Skipped where none is installed."""

from __future__ import annotations

import os
import shutil
import subprocess
import sys
import time
from pathlib import Path

import pytest

from data_samples import refused
from leadline.sweep import Sweep, results, run
from leadline.sweep.driver import Nobody, study_name
from leadline.sweep.store import studies
from private_postgres import Server, binary
from small_sweeps import VARY, Inline, figures, small

LARGE = {"vary": [VARY | {"steps.calibrate.weights": ["minmax", "mse", "sqnr"]}]}


pytestmark = pytest.mark.skipif(not (binary("postgres") and binary("initdb")), reason="needs a PostgreSQL server")


@pytest.fixture
def server(tmp_path_factory):
    pytest.importorskip("psycopg")
    folder = Path("/tmp") / f"leadline-{os.getpid()}-{time.monotonic_ns()}"  # a socket's path must be short
    server = Server(folder).start()
    yield server
    server.kill()
    shutil.rmtree(folder)


@pytest.mark.slow
def test_two_drivers_share_the_cells(tmp_path, server):
    sweep = small(tmp_path, **LARGE)
    whole = figures(run(sweep, tmp_path / "whole", engine=Inline()))
    command = [sys.executable, "-m", "leadline.cli", "sweep", str(sweep), "--resume", "--storage", server.url]
    drivers = [
        subprocess.Popen(
            [*command, "--workers", "1", "--threads", "1", "--out", str(tmp_path / name)],
            stdout=subprocess.DEVNULL, stderr=subprocess.PIPE, text=True,
        )
        for name in ("one", "other")
    ]  # fmt: skip
    for driver in drivers:
        _, said = driver.communicate(timeout=240)
        assert driver.returncode == 0, said
    done = results(server.url, study_name(Sweep.load(sweep)))
    assert figures(done) == whole and len(done.rows) == 12
    assert {row.driver.rpartition("/")[2] for row in done.rows} == {"one", "other"}
    assert studies(server.url) == [done.study]
    status = subprocess.run(
        [*command[:4], "status", server.url], capture_output=True, text=True, timeout=60, check=True
    )
    assert "12 complete, of 12" in status.stdout


class Shaky(Nobody):
    """Kills the server when a cell ends, and starts it again while the driver waits for it."""

    def __init__(self, server):
        self.server, self.kills, self.waits = server, 0, 0

    def ended(self, job, cell, state, figures, error):
        if self.kills < 4:
            self.kills += 1
            self.server.kill()

    def say(self, text):
        if "waiting for the storage" in text:
            self.waits += 1
            self.server.start()


@pytest.mark.slow
def test_a_server_that_is_killed_loses_no_finished_cell(tmp_path, server):
    sweep = small(tmp_path, **LARGE)
    whole = figures(run(sweep, tmp_path / "whole", engine=Inline()))
    watcher, engine = Shaky(server), Inline()
    done = run(sweep, tmp_path / "out", storage=server.url, engine=engine, watcher=watcher)
    assert watcher.kills == watcher.waits == 4
    assert figures(done) == whole and len(engine.cells) == 12


def test_a_server_that_is_not_there(tmp_path):
    pytest.importorskip("psycopg")
    url = f"postgresql+psycopg://nobody@/postgres?host={tmp_path}"
    with refused("[sweep] the storage must be one that SQLAlchemy opens", "connection"):
        run(small(tmp_path), tmp_path / "out", storage=url, engine=Inline())
