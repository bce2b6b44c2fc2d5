"""Where the cells of a sweep are kept: an Optuna study, in SQLite unless a team names another database."""

from __future__ import annotations

import json
import sqlite3
import time
from collections.abc import Callable, Mapping, Sequence
from contextlib import closing, suppress
from dataclasses import dataclass, field
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Any, TypeVar

from leadline.sweep.cell import Cell, Value
from leadline.types import refuse

if TYPE_CHECKING:
    from optuna.distributions import BaseDistribution
    from optuna.trial import FrozenTrial

T = TypeVar("T")

PATIENCE = 600.0
"""Seconds to wait for a storage that is away or full: results stay in memory meanwhile."""

BEAT, SILENCE = 30.0, 300.0
"""Seconds between two signs of life of a driver; and how long one may be silent before others take over its cells."""

ADDER, ADDED = "leadline adder", "leadline added"
"""Attributes of a study: which driver puts its cells in the queue, and that it has."""

PAUSE = 0.2
"""Seconds between two looks at what another driver does."""

ATTEMPTS = 4
"""To open a storage."""

INSTALL = "sweeps need pip install 'leadline[sweep]'"


@dataclass(frozen=True)
class Row:
    """A cell as the storage has it. `state` is waiting, running, complete, pruned or fail."""

    number: int
    state: str
    key: str
    values: Mapping[str, Value]
    figures: Mapping[str, float] = field(default_factory=dict)
    error: str = ""
    cell: Mapping[str, Any] = field(default_factory=dict)
    driver: str = ""


@dataclass(frozen=True)
class Claim:
    """A cell that is ours to compute."""

    trial: int
    cell: Cell


class Store:
    """The cells of one sweep. One process writes: the driver. Several drivers may share a study in a database.

    A cell is finished when its figures and its state are in the storage; one that was running when its driver died
    waits again.

    Parameters
    ----------
    url : str
        As SQLAlchemy has it: ``sqlite:///sweep.db``, ``postgresql+psycopg://user@host/base``.
    study : str
    driver : str
        Who we are: a later driver of the same name takes over what this one leaves.
    patience : float
        Seconds to wait for a storage that is away or full.
    say : callable
        Told once when that happens.
    """

    def __init__(
        self,
        url: str,
        study: str,
        driver: str = "",
        *,
        patience: float = PATIENCE,
        say: Callable[[str], None] = lambda text: None,
    ) -> None:
        self.url, self.study, self.driver, self._patience, self._say = url, study, driver, patience, say
        self._storage, self._engine = open_storage(url)
        self._beaten = 0.0
        self._known: dict[str, dict[str, float]] = {}

    def close(self) -> None:
        """Give the connections back."""
        self._storage.remove_session()
        self._engine.dispose()

    def create(self, directions: Sequence[str], about: Mapping[str, Any]) -> None:
        """The study, if it is not there yet; what it is about; and what other studies of this storage know."""
        from optuna.exceptions import DuplicatedStudyError
        from optuna.study import StudyDirection

        wanted = [StudyDirection[direction.upper()] for direction in directions]
        try:
            self._id = self._patient(lambda: self._storage.create_new_study(wanted, self.study))
            self._patient(lambda: self._storage.set_study_user_attr(self._id, ADDER, self.driver))
        except DuplicatedStudyError:
            self._id = self._patient(lambda: self._storage.get_study_id_from_name(self.study))
        for key, value in about.items():
            self._patient(partial(self._storage.set_study_user_attr, self._id, key, value))
        for other in self._patient(self._storage.get_all_studies):
            for trial in self._trials(other._study_id):
                if trial.state.name == "COMPLETE" and "figures" in trial.user_attrs:
                    self._known.setdefault(trial.user_attrs.get("key", ""), trial.user_attrs["figures"])
        self._take_over()

    def open(self) -> dict[str, Any]:
        """What the study is about. Raises InputError where there is none of that name."""
        try:
            self._id = self._storage.get_study_id_from_name(self.study)
        except KeyError:
            known = ", ".join(study.study_name for study in self._storage.get_all_studies()) or "none"
            raise refuse("sweep", f"the storage must hold the sweep; it has {known}", self.study) from None
        found: dict[str, Any] = self._storage.get_study_user_attrs(self._id)
        return found

    def rows(self) -> list[Row]:
        """Every cell."""
        return [_row(trial) for trial in self._trials(self._id)]

    def add(self, cells: Sequence[Cell], space: Mapping[str, BaseDistribution], retry: bool = False) -> None:
        """Put cells that are not there yet in the queue, and failed ones again if asked to."""
        from optuna.trial import TrialState, create_trial

        self._await_others()
        rows = self.rows()
        again = {_spelling(row.values) for row in rows if row.state == "fail"} if retry else set()
        there = {_spelling(row.values) for row in rows if row.state != "fail"}
        there |= {_spelling(row.values) for row in rows} - again
        for cell in cells:
            if _spelling(cell.values) in there:
                continue
            there.add(_spelling(cell.values))
            given: dict[str, Any] = {"params": dict(cell.values), "distributions": dict(space)}
            trial = create_trial(state=TrialState.WAITING, user_attrs=_attributes(cell), **given)
            self._patient(partial(self._storage.create_new_trial, self._id, trial))
        self._patient(lambda: self._storage.set_study_user_attr(self._id, ADDED, True))

    def _await_others(self) -> None:
        """One driver fills the queue: who made the study, or we if that one has died over it."""
        start = time.monotonic()
        while time.monotonic() - start < SILENCE:
            self.beat()
            about = self._patient(lambda: self._storage.get_study_user_attrs(self._id))
            adder = about.get(ADDER)
            silent = adder and time.time() - about.get(f"driver {adder}", time.time()) > SILENCE
            if about.get(ADDED) or adder == self.driver or silent:
                return
            time.sleep(PAUSE)

    def claim(self) -> Claim | None:
        """The next cell in the queue that nobody computes; None where there is none at the moment."""
        from optuna.trial import TrialState

        self.beat()
        trials = self._trials(self._id)
        busy = {trial.user_attrs.get("key") for trial in trials if trial.state == TrialState.RUNNING}
        for trial in trials:
            if trial.state == TrialState.COMPLETE:
                self._known.setdefault(trial.user_attrs["key"], trial.user_attrs["figures"])
        for trial in trials:
            key = trial.user_attrs.get("key", "")
            if trial.state != TrialState.WAITING or key in busy or not self._take(trial._trial_id):
                continue
            if key in self._known:
                self.finish(trial._trial_id, self._known[key])
                continue
            return Claim(trial._trial_id, Cell.from_dict(trial.user_attrs["cell"], trial.user_attrs["values"]))
        return None

    def known(self, key: str) -> dict[str, float] | None:
        """The figures of a cell that some sweep in this storage has finished."""
        return self._known.get(key)

    def describe(self, trial: int, cell: Cell) -> None:
        """Say what a trial that a sampler has made is, and that it is ours."""
        for name, value in (_attributes(cell) | {"driver": self.driver}).items():
            self._attribute(trial, name, value)

    def report(self, trial: int, step: int, value: float) -> None:
        """An intermediate value, for pruning."""
        self._patient(lambda: self._storage.set_trial_intermediate_value(trial, step, value))

    def finish(self, trial: int, figures: Mapping[str, float], state: str = "complete") -> None:
        """A cell's figures, and with them its end: complete or pruned."""
        self._attribute(trial, "figures", dict(figures))
        objectives = self._patient(lambda: self._storage.get_study_user_attrs(self._id))["objectives"]
        missing = [name for name in objectives if name not in figures]
        if missing and state == "complete":
            self.fail(trial, f"no such metric here: {', '.join(missing)}; there are {', '.join(figures)}")
            return
        if state == "complete":
            self._known[self._patient(lambda: self._storage.get_trial_user_attrs(trial))["key"]] = dict(figures)
        self._end(trial, state, [figures[name] for name in objectives] if state == "complete" else None)

    def fail(self, trial: int, error: str) -> None:
        """A cell that cannot be computed, with its traceback."""
        self._attribute(trial, "error", error)
        self._end(trial, "fail", None)

    def give_back(self, trial: int) -> None:
        """Let a claimed cell wait again."""
        from optuna.trial import TrialState

        self._patient(lambda: self._storage.set_trial_state_values(trial, TrialState.WAITING))

    def give_back_all(self) -> None:
        """Let every cell that this driver has claimed wait again."""
        self._take_over()

    def beat(self) -> None:
        """A sign of life, now and then; cells of drivers that give none wait again."""
        if time.monotonic() - self._beaten > BEAT:
            self._beaten = time.monotonic()
            name = f"driver {self.driver}"
            self._patient(lambda: self._storage.set_study_user_attr(self._id, name, time.time()))
            self._take_over(silent_only=True)

    def ask(self, sampler: Any, space: Mapping[str, BaseDistribution]) -> tuple[int, dict[str, Any]]:
        """A trial that an Optuna sampler proposes."""
        import optuna

        study = self._patient(lambda: optuna.load_study(study_name=self.study, storage=self._storage, sampler=sampler))
        trial = self._patient(lambda: study.ask(dict(space)))
        return trial._trial_id, trial.params

    def falls_behind(self, trial: int) -> bool:
        """Whether the median of the other trials at the last step that was reported is better."""
        import optuna

        pruner = optuna.pruners.MedianPruner(n_startup_trials=4)
        study = self._patient(lambda: optuna.load_study(study_name=self.study, storage=self._storage, pruner=pruner))
        return bool(self._patient(lambda: optuna.Trial(study, trial).should_prune()))

    def _take(self, trial: int) -> bool:
        from optuna.exceptions import UpdateFinishedTrialError
        from optuna.trial import TrialState

        try:
            if not self._patient(lambda: self._storage.set_trial_state_values(trial, TrialState.RUNNING)):
                return False  # another driver was faster
        except UpdateFinishedTrialError:
            return False  # and is done by now
        self._attribute(trial, "driver", self.driver)
        return True

    def _take_over(self, silent_only: bool = False) -> None:
        """Running cells of a driver of our name, which is dead, and of silent ones, wait again."""
        from optuna.trial import TrialState

        about = self._patient(lambda: self._storage.get_study_user_attrs(self._id))
        for trial in self._trials(self._id):
            if trial.state != TrialState.RUNNING:
                continue
            driver = trial.user_attrs.get("driver", "")
            ours = driver == self.driver
            silent = time.time() - about.get(f"driver {driver}", 0.0) > SILENCE
            if (ours and not silent_only) or (not ours and silent):
                self.give_back(trial._trial_id)

    def _attribute(self, trial: int, name: str, value: Any) -> None:
        self._patient(lambda: self._storage.set_trial_user_attr(trial, name, value))

    def _end(self, trial: int, state: str, values: Sequence[float] | None) -> None:
        from optuna.exceptions import UpdateFinishedTrialError
        from optuna.trial import TrialState

        with suppress(UpdateFinishedTrialError):  # the storage went away between doing it and saying so
            self._patient(lambda: self._storage.set_trial_state_values(trial, TrialState[state.upper()], values))

    def _trials(self, study: int) -> list[FrozenTrial]:
        return self._patient(lambda: self._storage.get_all_trials(study, deepcopy=False))

    def _patient(self, call: Callable[[], T]) -> T:
        """Again and again while the storage is away or full."""
        from optuna.exceptions import StorageInternalError
        from sqlalchemy.exc import SQLAlchemyError

        start, pause, told = time.monotonic(), 0.1, False
        while True:
            try:
                return call()
            except (StorageInternalError, SQLAlchemyError) as error:
                if time.monotonic() - start > self._patience:
                    rule = f"the storage must take results; it did not for {self._patience:g} s"
                    raise refuse("sweep", rule, f"{_reason(error)}; nothing that was finished is lost") from error
                if not told:
                    self._say(f"waiting for the storage: {_reason(error)}")
                    told = True
                time.sleep(pause)
                pause = min(2 * pause, 5.0)


def open_storage(url: str) -> tuple[Any, Any]:
    """An Optuna storage, and its SQLAlchemy engine. Raises InputError, with the reason, where there is none."""
    try:
        import optuna
        from optuna.storages import RDBStorage, get_storage
        from sqlalchemy.exc import SQLAlchemyError
    except ImportError:
        raise refuse("sweep", INSTALL, "no optuna") from None
    optuna.logging.set_verbosity(optuna.logging.WARNING)
    for attempt in range(ATTEMPTS):
        try:
            if url.startswith("sqlite:///"):
                _let_readers_in(url.removeprefix("sqlite:///"))
            storage = RDBStorage(url, engine_kwargs={"pool_pre_ping": True})
            return get_storage(storage), storage.engine
        except ImportError as error:
            rule = "the storage's driver must be installed; for PostgreSQL pip install 'leadline[postgresql]'"
            raise refuse("sweep", rule, f"{url}: {error.__cause__ or error}") from error
        except (SQLAlchemyError, sqlite3.Error, optuna.exceptions.OptunaError, RuntimeError) as error:
            if attempt + 1 == ATTEMPTS:
                rule = "the storage must be one that SQLAlchemy opens"
                raise refuse("sweep", rule, f"{url}: {_reason(error)}") from error
            time.sleep(0.2 * 2**attempt)  # two that make the tables at the same time get in each other's way
    raise AssertionError(url)


def _let_readers_in(file: str) -> None:
    """With a write-ahead log whoever looks does not hold up the driver; the file remembers it."""
    with closing(sqlite3.connect(file)) as connection:
        connection.execute("PRAGMA journal_mode=WAL")


def studies(url: str) -> list[str]:
    """The sweeps in a storage, newest first."""
    storage, engine = open_storage(url)
    found = [study.study_name for study in reversed(storage.get_all_studies()) if "objectives" in study.user_attrs]
    storage.remove_session()
    engine.dispose()
    return found


def sqlite(folder: Path) -> str:
    """The URL of the embedded storage in a sweep's folder."""
    return f"sqlite:///{folder / 'sweep.db'}"


def _reason(error: BaseException) -> str:
    cause = error.__cause__ or error
    return str(getattr(cause, "orig", None) or cause).strip().splitlines()[0]


def _attributes(cell: Cell) -> dict[str, Any]:
    return {"key": cell.key, "cell": cell.to_dict(), "values": dict(cell.values)}


def _spelling(values: Mapping[str, Value]) -> str:
    return json.dumps(dict(values), sort_keys=True)


def _row(trial: FrozenTrial) -> Row:
    attributes = trial.user_attrs
    return Row(
        trial.number,
        trial.state.name.lower(),
        attributes.get("key", ""),
        attributes.get("values", dict(trial.params)),
        attributes.get("figures", {}),
        attributes.get("error", ""),
        attributes.get("cell", {}),
        attributes.get("driver", ""),
    )
