"""The driver of a sweep: hands cells out, takes figures in, survives whoever dies."""

from __future__ import annotations

import fcntl
import os
import socket
import time
from collections.abc import Iterator, Mapping, Sequence
from contextlib import closing, contextmanager, suppress
from dataclasses import asdict, dataclass, field, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any, Protocol

from leadline.cache import digest, environment
from leadline.recipe import Recipe
from leadline.sweep.cell import Cell, content, grid, make, network_file
from leadline.sweep.engines import Engine, Local, Ray
from leadline.sweep.outcome import Results
from leadline.sweep.spec import Budget, Range, Sweep
from leadline.sweep.store import PATIENCE, Store, sqlite
from leadline.types import InputError, refuse

if TYPE_CHECKING:
    from optuna.distributions import BaseDistribution

LIVES = 5
"""Workers that may die over one cell before it counts as failed."""

REPEATS = 50
"""Proposals in a row that a sampler may repeat before the search is over: there is nothing left to try."""

TICK = 0.5
"""Seconds between two looks at a queue that has nothing for us."""


class Watcher(Protocol):
    """Sees what happens. ``leadline.sweep.watch.Display`` shows it."""

    def planned(self, total: int, done: int) -> None: ...
    def started(self, job: int, cell: Cell) -> None: ...
    def progress(self, job: int, what: str, done: int, total: int) -> None: ...
    def ended(self, job: int, cell: Cell, state: str, figures: Mapping[str, float], error: str) -> None: ...
    def say(self, text: str) -> None: ...


class Nobody:
    """Watches nothing."""

    def planned(self, total: int, done: int) -> None: ...
    def started(self, job: int, cell: Cell) -> None: ...
    def progress(self, job: int, what: str, done: int, total: int) -> None: ...
    def ended(self, job: int, cell: Cell, state: str, figures: Mapping[str, float], error: str) -> None: ...
    def say(self, text: str) -> None: ...


def run(
    sweep: Sweep | str | os.PathLike[str],
    out: str | os.PathLike[str],
    *,
    engine: str | Engine = "local",
    storage: str | None = None,
    workers: int | None = None,
    threads: int | None = None,
    resume: bool = False,
    retry: bool = False,
    share: bool = True,
    patience: float = PATIENCE,
    watcher: Watcher | None = None,
) -> Results:
    """Compute the cells of a sweep.

    Parameters
    ----------
    sweep : Sweep, name or path
        See ``Sweep.names()``, or a TOML file.
    out : path
        A folder: the embedded storage, what cells share, and a lock that dies with its driver.
    engine : {"local", "ray"} or Engine
        Processes of this machine, or a Ray cluster.
    storage : str, optional
        URL of a database, for teams: ``postgresql+psycopg://user@host/base``. Several drivers with the same sweep, each
        with its own `out`, share the cells. Default: SQLite in `out`.
    workers, threads : int, optional
        Processes, and threads of each. Default: as many as processors are given to this process, one thread each; with
        `workers` alone the processors are shared among them.
    resume : bool
        Go on with a sweep that has begun. Finished cells are never computed again.
    retry : bool
        Failed cells, too.
    share : bool
        Compute what cells have in common once; see ``leadline.cache``.
    patience : float
        Seconds to wait for a storage that is away or full.

    Raises
    ------
    InputError
        A sweep that cannot be, a storage that cannot be opened or stays away, a folder with another sweep's driver, a
        sweep that has begun where `resume` is not set, an extra that is missing.
    """
    sweep, folder, watcher = Sweep.load(sweep), Path(out), watcher or Nobody()
    cells = list(grid(sweep)) if sweep.search.method == "grid" else []
    url, study = storage or sqlite(folder), study_name(sweep)
    with alone(folder), closing(Store(url, study, _driver(folder), patience=patience, say=watcher.say)) as store:
        store.create(sweep.directions, _about(sweep, len(cells)))
        rows = store.rows()
        if rows and not resume:
            done = sum(row.state == "complete" for row in rows)
            raise refuse("sweep", "a sweep that has begun goes on with --resume", f"{done} cells finished in {out}")
        if cells:
            store.add(cells[: sweep.budget.cells or None], _grid_space(cells), retry)
        if isinstance(engine, str):
            engine = _engine(engine, workers, threads, folder / "shared" if share else None)
        with closing(engine):
            _Driver(sweep, store, engine, watcher, cells).run()
    return results(url, study)


def results(url: str, study: str) -> Results:
    """What a storage holds of a sweep. Raises InputError where it does not hold it."""
    with closing(Store(url, study)) as store:
        return Results(study, store.open(), store.rows())


def study_name(sweep: Sweep) -> str:
    """The sweep's name, and a digest of what its cells depend on: another grid, other files or other code are another
    study."""
    same = replace(sweep, budget=Budget(), metrics=(), tables=(), description="")
    recipes = [Recipe.load(recipe).to_toml() for recipe in (*sweep.recipes, *_varied(sweep, "recipe"))]
    networks = map(network_file, (*sweep.networks, *_varied(sweep, "network")))
    sources = [sweep.data.source, *(data.source for data in sweep.evaluation), *_varied(sweep, "data.source")]
    contents = [content(file) for file in (*networks, *map(Path, filter(None, sources))) if file.exists()]
    return f"{sweep.name}-{digest(environment(), same, recipes, contents)[:8]}"


def _varied(sweep: Sweep, key: str) -> list[str]:
    found = [block.get(key, ()) for block in sweep.vary]
    return [value for values in found if isinstance(values, tuple) for value in values]


def _driver(folder: Path) -> str:
    return f"{socket.gethostname()}:{folder.resolve()}"


def _engine(name: str, workers: int | None, threads: int | None, shared: Path | None) -> Engine:
    if name not in ("local", "ray"):
        raise refuse("sweep", "engine must be local or ray", repr(name))
    if name == "ray":
        return Ray(threads or 1, shared)
    cores = len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1
    count = max(1, workers if workers is not None else cores // (threads or 1))
    return Local(count, threads or max(1, cores // count), shared)


@contextmanager
def alone(folder: Path) -> Iterator[None]:
    """One driver at a time in a folder; the kernel gives the lock back when it dies."""
    try:
        folder.mkdir(parents=True, exist_ok=True)
        lock = (folder / "driver.lock").open("w")
    except OSError as error:
        raise refuse("sweep", "the output folder must be writable", f"{folder}: {error.strerror}") from error
    with lock:
        try:
            fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except OSError:
            raise refuse(
                "sweep", "a folder has room for one sweep at a time", f"{folder}, where one is running"
            ) from None
        yield


def _about(sweep: Sweep, planned: int) -> dict[str, Any]:
    """What reports need, kept with the study."""
    return {
        "name": sweep.name,
        "description": sweep.description,
        "method": sweep.search.method,
        "planned": min(planned, sweep.budget.cells or planned) if planned else sweep.budget.cells,
        "objectives": list(sweep.search.objectives),
        "directions": sweep.directions,
        "varied": sweep.varied,
        "columns": sweep.columns,
        "tables": [asdict(table) | {"values": sweep.full(table.value)} for table in sweep.tables],
    }


def _grid_space(cells: Sequence[Cell]) -> dict[str, BaseDistribution]:
    from optuna.distributions import CategoricalDistribution

    keys = cells[0].values
    return {key: CategoricalDistribution(list(dict.fromkeys(cell.values[key] for cell in cells))) for key in keys}


def _search_space(sweep: Sweep) -> dict[str, BaseDistribution]:
    from optuna.distributions import CategoricalDistribution, FloatDistribution, IntDistribution

    space: dict[str, BaseDistribution] = {}
    choices: dict[str, Any] = {"network": sweep.networks, "recipe": sweep.recipes, "target": sweep.targets}
    choices |= dict(sweep.vary[0])
    for key, values in choices.items():
        if isinstance(values, Range):
            whole = isinstance(values.low, int) and isinstance(values.high, int)
            cls: Any = IntDistribution if whole else FloatDistribution
            step = values.step or (1 if whole else None)
            space[key] = cls(values.low, values.high, log=values.log, step=None if values.log and not whole else step)
        else:
            if not all(isinstance(value, str | int | float | bool) for value in values):
                raise refuse("sweep", f"{key}: a search takes plain values", repr(values))
            space[key] = CategoricalDistribution(values)
    return space


@dataclass
class _Job:
    """A trial, the cell that it is about, and the samples that it is tried on first."""

    trial: int
    cell: Cell
    rungs: list[Cell]
    step: int = 0
    lost: int = 0


@dataclass
class _Driver:
    sweep: Sweep
    store: Store
    engine: Engine
    watcher: Watcher
    cells: Sequence[Cell]
    jobs: dict[int, _Job] = field(default_factory=dict)
    start: float = field(default_factory=time.monotonic)
    over: bool = False

    def run(self) -> None:
        rows = self.store.rows()
        total = len(rows) if self.cells else self.sweep.budget.cells
        self.watcher.planned(total, sum(row.state not in ("waiting", "running") for row in rows))
        searching = self._search() if not self.cells else None
        minutes = self.sweep.budget.minutes
        try:
            while True:
                late = minutes and time.monotonic() - self.start > 60 * minutes
                while len(self.jobs) < self.engine.slots and not late:
                    job = next(searching, None) if searching else self._claim()
                    if job is None:
                        break
                    self._submit(job)
                self.store.beat()
                waiting = not late and any(row.state in ("waiting", "running") for row in self._others())
                if not self.jobs and not waiting:
                    return
                if not self.jobs:
                    time.sleep(TICK)  # other drivers have the rest
                    continue
                for event in self.engine.wait(TICK):
                    self._handle(event.job, event.kind, event.payload)
        except BaseException as error:
            with suppress(InputError):  # the storage is away: whoever resumes takes them over
                self.store.give_back_all()  # also what was being claimed or finished just now
            if isinstance(error, KeyboardInterrupt):
                self.watcher.say("finished cells are kept: go on with --resume")
            raise

    def _others(self) -> list[Any]:
        """Cells of a grid, where we have nothing to do: somebody else may leave us theirs."""
        return self.store.rows() if self.cells and not self.jobs else []

    def _claim(self) -> _Job | None:
        claim = self.store.claim()
        return None if claim is None else _Job(claim.trial, claim.cell, [claim.cell])

    def _submit(self, job: _Job) -> None:
        self.jobs[job.trial] = job
        if job.step == 0 and job.lost == 0:
            self.watcher.started(job.trial, job.cell)
        self.engine.submit(job.trial, job.rungs[job.step])

    def _handle(self, number: int, kind: str, payload: Any) -> None:
        if kind == "progress":
            self.watcher.progress(number, *payload)
            return
        job = self.jobs.pop(number)
        if kind == "done":
            self._done(job, payload)
        elif kind == "lost" and job.lost + 1 < LIVES:
            self.watcher.say(f"a worker died ({payload}); {job.cell.label} begins again")
            job.lost += 1
            self._submit(job)
        else:
            error = payload if kind == "failed" else f"{LIVES} workers died over it, the last by {payload}"
            self.store.fail(number, error)
            self.watcher.ended(number, job.cell, "fail", {}, error)

    def _done(self, job: _Job, figures: dict[str, float]) -> None:
        state = "complete"
        if self.sweep.search.pruning and self.sweep.search.objectives[0] in figures:
            self.store.report(job.trial, job.step, figures[self.sweep.search.objectives[0]])
            if job.step + 1 < len(job.rungs):
                if not self.store.falls_behind(job.trial):
                    job.step += 1
                    self._submit(job)
                    return
                state = "pruned"
        self.store.finish(job.trial, figures, state)
        self.watcher.ended(job.trial, job.cell, state, figures, "")

    def _search(self) -> Iterator[_Job | None]:
        """Proposals of the sampler, until the budget is used up; cells that are known count, but cost nothing."""
        import optuna

        seed = self.sweep.search.seed
        samplers: dict[str, Any] = {"random": optuna.samplers.RandomSampler, "bayesian": optuna.samplers.TPESampler}
        space, repeats, seen = _search_space(self.sweep), 0, {row.key for row in self.store.rows() if row.key}
        begun = len(self.store.rows())
        sampler = samplers[self.sweep.search.method](seed=seed + begun)  # resumed, it goes on, not over
        while len(seen) < self.sweep.budget.cells and repeats < REPEATS:
            if (waiting := self._claim()) is not None:
                yield waiting
                continue
            trial, values = self.store.ask(sampler, space)
            try:
                cell = make(self.sweep, values)
            except InputError as error:
                self.store.fail(trial, str(error))
                repeats += 1
                continue
            self.store.describe(trial, cell)
            known = self.store.known(cell.key)
            repeats = repeats + 1 if cell.key in seen else 0
            if known is None and any(job.cell.key == cell.key for job in self.jobs.values()):
                self.store.give_back(trial)  # until it is known
                continue
            seen.add(cell.key)
            if known is not None:
                self.store.finish(trial, known)
                self.watcher.ended(trial, cell, "complete", known, "")
                continue
            yield _Job(trial, cell, self._rungs(cell))
        while True:
            yield self._claim()

    def _rungs(self, cell: Cell) -> list[Cell]:
        data = cell.data
        most = data.num_samples or (data.count * data.views if data.scenes else 0)
        if not self.sweep.search.pruning or most < 8:
            return [cell]
        return [replace(cell, data=replace(data, num_samples=most // part)) for part in (4, 2)] + [cell]
