"""Where cells are computed: processes of this machine, or the machines of a Ray cluster."""

from __future__ import annotations

import os
import subprocess
import sys
import time
import traceback
from contextlib import suppress
from dataclasses import dataclass, field
from multiprocessing import Pipe
from multiprocessing.connection import Connection, wait
from pathlib import Path
from typing import Any, Literal, Protocol

from leadline.sweep.cell import Cell
from leadline.workers import Cluster

GRACE = 5.0
"""Seconds that a worker has to go when the sweep ends."""


@dataclass(frozen=True)
class Event:
    """What became of a job. "done" has its figures, "failed" a traceback, "lost" says how its worker died, "progress"
    has (what, done, total)."""

    job: int
    kind: Literal["done", "failed", "lost", "progress"]
    payload: Any


class Engine(Protocol):
    """Computes cells, `slots` at a time."""

    slots: int

    def submit(self, job: int, cell: Cell) -> None: ...
    def wait(self, seconds: float) -> list[Event]: ...
    def close(self) -> None: ...


@dataclass
class _Worker:
    process: subprocess.Popen[bytes]
    pipe: Connection
    job: int | None = None


@dataclass
class Local:
    """Processes of this machine, each with so many threads; one that dies is replaced.

    Workers are in process groups of their own, so that Ctrl-C reaches the driver alone, and end with it however it
    ends.
    """

    slots: int
    threads: int
    cache: Path | None
    _workers: list[_Worker] = field(default_factory=list)

    def submit(self, job: int, cell: Cell) -> None:
        worker = next((worker for worker in self._workers if worker.job is None), None)
        if worker is None:
            worker = self._start()
        worker.job = job
        with suppress(OSError):  # it has died; `wait` finds out
            worker.pipe.send(cell)

    def wait(self, seconds: float) -> list[Event]:
        events = []
        ready = wait([worker.pipe for worker in self._workers], seconds)
        for worker in [worker for worker in self._workers if worker.pipe in ready]:
            job = worker.job
            try:
                kind, *payload = worker.pipe.recv()
            except (EOFError, OSError):
                self._workers.remove(worker)
                worker.pipe.close()
                code = worker.process.wait()
                if job is not None:
                    events.append(Event(job, "lost", f"signal {-code}" if code < 0 else f"exit code {code}"))
                continue
            assert job is not None
            if kind != "progress":
                worker.job = None
            events.append(Event(job, kind, tuple(payload) if kind == "progress" else payload[0]))
        return events

    def close(self) -> None:
        for worker in self._workers:
            worker.pipe.close()
        for worker in self._workers:
            try:
                worker.process.wait(GRACE)
            except subprocess.TimeoutExpired:
                worker.process.kill()
                worker.process.wait()
        self._workers.clear()

    def pids(self) -> list[int]:
        """Of the workers."""
        return [worker.process.pid for worker in self._workers]

    def _start(self) -> _Worker:
        ours, theirs = Pipe()
        threads = str(self.threads)
        fixed = {"OMP_NUM_THREADS": threads, "OPENBLAS_NUM_THREADS": threads, "MKL_NUM_THREADS": threads}
        command = [sys.executable, "-m", "leadline.sweep.worker", str(theirs.fileno()), threads, str(self.cache or "")]
        with theirs:
            process = subprocess.Popen(command, env=os.environ | fixed, pass_fds=[theirs.fileno()], process_group=0)
        worker = _Worker(process, ours)
        self._workers.append(worker)
        return worker


class Ray:
    """The machines of a Ray cluster; see `leadline.workers.Cluster`.

    leadline, the network and the data must be found under the same paths everywhere; `cache` may be a folder that
    machines share, or each has its own under that name.
    """

    def __init__(self, threads: int, cache: Path | None) -> None:
        cluster = Cluster(threads, "sweep")
        from ray.util.queue import Queue
        from ray.util.scheduling_strategies import NodeAffinitySchedulingStrategy

        here = NodeAffinitySchedulingStrategy(cluster.ray.get_runtime_context().get_node_id(), soft=True)
        self._reports = Queue(actor_options={"num_cpus": 0, "scheduling_strategy": here})
        self.slots, self._measure = cluster.slots, cluster.remote(_measure)
        self._ray, self._threads, self._cache, self._jobs = cluster.ray, threads, str(cache or ""), dict[Any, int]()

    def submit(self, job: int, cell: Cell) -> None:
        self._jobs[self._measure.remote(cell, self._threads, self._cache, job, self._reports)] = job

    def wait(self, seconds: float) -> list[Event]:
        if not self._jobs:
            time.sleep(seconds)
            return []
        ready, _ = self._ray.wait(list(self._jobs), num_returns=len(self._jobs), timeout=seconds)
        running = set(self._jobs.values())
        reports = self._reports.get_nowait_batch(self._reports.qsize())
        events = [Event(job, "progress", payload) for job, payload in reports if job in running]
        for reference in ready:
            job = self._jobs.pop(reference)
            try:
                kind, payload = self._ray.get(reference)
            except self._ray.exceptions.RayError as error:
                kind, payload = "lost", str(error).strip().splitlines()[0]
            events.append(Event(job, kind, payload))
        return events

    def close(self) -> None:
        for reference in self._jobs:
            self._ray.cancel(reference, force=True)
        self._jobs.clear()
        self._reports.shutdown()


def _measure(cell: Cell, threads: int, cache: str, job: int, reports: Any) -> tuple[str, Any]:
    """Runs on a machine of the cluster; `reports` is the driver's queue."""
    from leadline.cache import Cache
    from leadline.sweep.measure import measure
    from leadline.sweep.worker import Reports

    shown = Reports(lambda report: reports.put_nowait((job, report[1:])))
    try:
        return "done", measure(cell, cache=Cache(cache) if cache else None, threads=threads, progress=shown)
    except Exception:
        return "failed", traceback.format_exc()
