"""A sweep as its TOML file says it: networks, recipes, what varies, data, metrics, budget; typed, every key checked."""

from __future__ import annotations

import os
import tomllib
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, fields, replace
from importlib import resources
from pathlib import Path
from typing import Any, Literal, get_args

from leadline.data.choice import CHOICES
from leadline.depth import networks as depth_networks
from leadline.sweep.metrics import DIRECTIONS, WHOLE
from leadline.targets import target_of
from leadline.types import refuse

Method = Literal["grid", "random", "bayesian"]
Scenes = Literal["", "rooms", "streets", "both"]


@dataclass(frozen=True)
class Data:
    """Pictures to calibrate on or to judge by: a `source` as ``--data`` takes it, or rendered `scenes`.

    `scenes` are "rooms", "streets" or "both": `views` pictures each of `count` places from seed `first` on, or as a
    `video` a clip of `count` frames; `noise`, `darkness` and `blur` as ``depth.scenes.disturbed`` has them.
    `num_samples` (0: all) are chosen by `choice`, `features` and `seed` as in ``leadline.Data``. `preprocess` is a
    table as a recipe's [data]. `name` tells evaluations apart.
    """

    name: str = ""
    source: str = ""
    scenes: Scenes = ""
    first: int = 0
    count: int = 24
    views: int = 1
    video: bool = False
    noise: float = 0.0
    darkness: float = 0.0
    blur: float = 0.0
    num_samples: int = 0
    seed: int = 0
    choice: str = "random"
    features: str = ""
    preprocess: Mapping[str, Any] = field(default_factory=dict)


CALIBRATION_ONLY, EVALUATION_ONLY = ("choice", "features"), ("name", "video")


@dataclass(frozen=True)
class Range:
    """Numbers from `low` to `high`, whole ones where both are. `step` 0: any; `log`: evenly in the logarithm."""

    low: float
    high: float
    step: float = 0.0
    log: bool = False


@dataclass(frozen=True)
class Search:
    """How cells are chosen. "grid": all; "random"; "bayesian": by Optuna's tree-structured Parzen estimator.

    `objectives` are metrics; several give a Pareto front. `pruning` (one objective) first calibrates on a quarter and
    on half of the samples, and gives a cell up that falls behind the median of the others there.
    """

    method: Method = "grid"
    objectives: tuple[str, ...] = ()
    pruning: bool = False
    seed: int = 0


@dataclass(frozen=True)
class Budget:
    """At most so many `cells` (0: a grid's all; a search must say) and so many `minutes` (0: any)."""

    cells: int = 0
    minutes: float = 0.0


@dataclass(frozen=True)
class Pivot:
    """A table: the mean of `value` (a metric; none: a table for each) by `rows` and `columns` (what varies)."""

    rows: tuple[str, ...] = ()
    columns: tuple[str, ...] = ()
    value: str = ""


@dataclass(frozen=True)
class Sweep:
    """What is computed, on what, and what is judged.

    `vary` is one table or several, each a grid of its own: a dotted key of a recipe ("weights.bits",
    "steps.round.method", or "steps.polish" with false to leave the step out) or of the data ("data.num_samples"),
    "network", "recipe" or "target", with the values it takes. Of a target's cells the simulation of its artefact is
    judged."""

    name: str
    networks: tuple[str, ...]
    recipes: tuple[str, ...]
    data: Data
    targets: tuple[str, ...] = ("onnxruntime",)
    evaluation: tuple[Data, ...] = ()
    metrics: tuple[str, ...] = ()
    vary: tuple[Mapping[str, tuple[Any, ...] | Range], ...] = ({},)
    search: Search = Search()
    budget: Budget = Budget()
    tables: tuple[Pivot, ...] = ()
    description: str = ""

    @staticmethod
    def names() -> list[str]:
        """The sweeps that come with leadline."""
        return sorted(p.name.removesuffix(".toml") for p in _shipped().iterdir() if p.name.endswith(".toml"))

    @staticmethod
    def load(source: str | os.PathLike[str] | Sweep) -> Sweep:
        """A shipped sweep by name, or one from a TOML file; paths in it are relative to the file.

        ``extends = "rotation"`` takes a shipped sweep for what the file does not say: to run it on other networks.

        Raises InputError for an unknown name, a malformed file, an unknown key or a value of the wrong type, named.
        """
        if isinstance(source, Sweep):
            return source
        text = os.fspath(source)
        if text in Sweep.names():
            return _parse(_shipped().joinpath(f"{text}.toml").read_text("utf-8"), text, Path())
        path = Path(text)
        if not path.is_file():
            raise refuse("Sweep.load", f"sweep must be one of {', '.join(Sweep.names())}, or a TOML file", repr(text))
        return _parse(path.read_text("utf-8", errors="replace"), path.stem, path.parent)

    @property
    def varied(self) -> list[str]:
        """What varies, "network", "recipe" and "target" first where they do."""
        stated = {"network": self.networks, "recipe": self.recipes, "target": self.targets}
        keys = [key for key, names in stated.items() if len(names) > 1]
        return list(dict.fromkeys([*keys, *(key for block in self.vary for key in block)]))

    @property
    def columns(self) -> list[str]:
        """The metrics in full: with the evaluation's name in front where there are several."""
        return [full for metric in self.metrics for full in self.full(metric)]

    def full(self, metric: str) -> list[str]:
        """A metric's full names: one for each evaluation, unless it says which."""
        name, _, stem = metric.rpartition(".")
        if stem in WHOLE or name or len(self.evaluation) < 2:
            return [metric]
        return [f"{data.name}.{stem}" for data in self.evaluation]

    @property
    def directions(self) -> list[str]:
        """Of the objectives: "minimize" or "maximize"."""
        return [DIRECTIONS[objective.rpartition(".")[2]] for objective in self.search.objectives]


def _shipped() -> Any:
    return resources.files("leadline.sweep").joinpath("shipped")


def _parse(text: str, name: str, folder: Path) -> Sweep:
    try:
        document = tomllib.loads(text)
    except tomllib.TOMLDecodeError as error:
        raise refuse("Sweep.load", f"{name} must be valid TOML", str(error)) from error
    inherits = "extends" in document and "tables" not in document
    document = _extended(document, name, folder)
    _known(document, {f.name for f in fields(Sweep)}, name)
    for key in ("networks", "recipes", "data"):
        if key not in document:
            raise refuse("Sweep.load", f"{name} must have the key {key}", ", ".join(document) or "none")
    evaluations = _tables(document.get("evaluation", []), f"{name}: evaluation")
    sweep = Sweep(
        name=_text(document.get("name", name), f"{name}: name"),
        description=_text(document.get("description", ""), f"{name}: description"),
        networks=_read("network", document["networks"], f"{name}: networks", folder),
        recipes=_read("recipe", document["recipes"], f"{name}: recipes", folder),
        data=_data(document["data"], f"{name}: data", EVALUATION_ONLY, folder),
        targets=_read("target", document.get("targets", ["onnxruntime"]), f"{name}: targets", folder),
        evaluation=tuple(
            _data(one, f"{name}: evaluation[{i}]", CALIBRATION_ONLY, folder) for i, one in enumerate(evaluations)
        ),
        metrics=_texts(document.get("metrics", ["sqnr", "size", "seconds"]), f"{name}: metrics"),
        vary=tuple(
            _vary(one, f"{name}: vary[{i}]", folder)
            for i, one in enumerate(_tables(document.get("vary", [{}]), f"{name}: vary"))
        ),
        search=_typed(Search, document.get("search", {}), f"{name}: search"),
        budget=_typed(Budget, document.get("budget", {}), f"{name}: budget"),
        tables=tuple(
            _typed(Pivot, one, f"{name}: tables[{i}]")
            for i, one in enumerate(_tables(document.get("tables", []), f"{name}: tables"))
        ),
    )
    if inherits:  # tables of what varied there, and may not here
        kept = (replace(one, rows=_among(one.rows, sweep), columns=_among(one.columns, sweep)) for one in sweep.tables)
        sweep = replace(sweep, tables=tuple(one for one in kept if one.rows or one.columns))
    return _checked(sweep)


def _among(keys: tuple[str, ...], sweep: Sweep) -> tuple[str, ...]:
    return tuple(key for key in keys if key in sweep.varied)


def _extended(document: dict[str, Any], name: str, folder: Path) -> dict[str, Any]:
    """`extends` names another sweep: what this one says replaces what that one does, inside tables key by key."""
    if "extends" not in document:
        return document
    text = _text(document.pop("extends"), f"{name}: extends")
    if text not in Sweep.names():
        raise refuse("Sweep.load", f"{name}: extends must be one of {', '.join(Sweep.names())}", repr(text))
    return _merged(tomllib.loads(_shipped().joinpath(f"{text}.toml").read_text("utf-8")) | {"name": name}, document)


def _merged(base: Mapping[str, Any], over: Mapping[str, Any]) -> dict[str, Any]:
    tables = {key for key in base.keys() & over.keys() if isinstance(base[key], dict) and isinstance(over[key], dict)}
    return {**base, **over, **{key: _merged(base[key], over[key]) for key in tables}}


def _checked(sweep: Sweep) -> Sweep:
    names = [data.name for data in sweep.evaluation]
    if len(names) > 1 and (len(set(names)) < len(names) or "" in names):
        raise refuse("Sweep.load", f"{sweep.name}: several evaluations must have different names", names)
    asked = [table.value for table in sweep.tables if table.value]
    for metric in (*sweep.metrics, *sweep.search.objectives, *asked):
        name, _, stem = metric.rpartition(".")
        if stem not in DIRECTIONS or (name and (name not in names or stem in WHOLE or len(names) < 2)):
            known = f"{', '.join(DIRECTIONS)}, with an evaluation's name in front where there are several"
            raise refuse("Sweep.load", f"{sweep.name}: a metric must be one of {known}", repr(metric))
    search = sweep.search
    for objective in search.objectives:
        if len(sweep.full(objective)) > 1:
            raise refuse("Sweep.load", f"{sweep.name}: an objective must name its evaluation", repr(objective))
    if search.method not in get_args(Method):
        raise refuse(
            "Sweep.load", f"{sweep.name}: search.method must be one of {', '.join(get_args(Method))}", search.method
        )
    if search.pruning and (search.method == "grid" or len(search.objectives) != 1):
        received = f"{search.method}, {len(search.objectives)} objectives"
        raise refuse("Sweep.load", f"{sweep.name}: pruning needs a search with one objective", received)
    if search.method != "grid" and not (search.objectives and sweep.budget.cells and len(sweep.vary) == 1):
        rule = f"{sweep.name}: a search needs search.objectives, budget.cells and one [[vary]]"
        raise refuse("Sweep.load", rule, f"{len(sweep.vary)} tables, budget.cells = {sweep.budget.cells}")
    if sweep.budget.cells < 0 or sweep.budget.minutes < 0:
        raise refuse("Sweep.load", f"{sweep.name}: the budget must not be negative", sweep.budget)
    for table in sweep.tables:
        for key in (*table.rows, *table.columns):
            if key not in sweep.varied:
                raise refuse("Sweep.load", f"{sweep.name}: a table's keys must be among what varies", repr(key))
    if not (sweep.networks and sweep.recipes and sweep.targets):
        raise refuse("Sweep.load", f"{sweep.name}: there must be networks, recipes and targets", "none")
    if search.objectives:
        return sweep
    return replace(sweep, search=replace(search, objectives=(sweep.full(sweep.metrics[0])[0],)))


def _known(table: Mapping[str, Any], known: set[str], where: str) -> None:
    unknown = sorted(set(table) - known)
    if unknown:
        raise refuse("Sweep.load", f"{where} knows only the keys {', '.join(sorted(known))}", ", ".join(unknown))


def _typed(cls: type[Any], table: Any, where: str, without: Sequence[str] = ()) -> Any:
    """A dataclass of plain values from a table; each value must be of its default's type."""
    if not isinstance(table, Mapping):
        raise refuse("Sweep.load", f"{where} must be a table", repr(table))
    _known(table, {f.name for f in fields(cls)} - set(without), where)
    given, default = dict(table), cls()
    for key, value in table.items():
        wanted = getattr(default, key)
        if isinstance(wanted, tuple):
            given[key] = _texts(value, f"{where}.{key}")
        elif isinstance(wanted, Mapping):
            given[key] = dict(value) if isinstance(value, Mapping) else value
        fits = type(given[key]) is type(wanted) or (isinstance(wanted, float) and type(value) is int)
        if not fits:
            raise refuse("Sweep.load", f"{where}.{key} must be of type {type(wanted).__name__}", repr(value))
    return cls(**given)


def _data(table: Any, where: str, without: Sequence[str], folder: Path) -> Data:
    if isinstance(table, Mapping) and isinstance(table.get("source"), str):
        table = {**table, "source": _path(table["source"], folder)}
    data: Data = _typed(Data, table, where, without)
    if bool(data.source) == bool(data.scenes):
        received = f"source={data.source!r}, scenes={data.scenes!r}"
        raise refuse("Sweep.load", f"{where} must name a source or scenes", received)
    check_data(data, where)
    return data


def check_data(data: Data, where: str) -> None:
    """Refuses values that `Data` does not know, with their key."""
    if data.scenes not in get_args(Scenes):
        raise refuse("Sweep.load", f"{where}.scenes must be rooms, streets or both", repr(data.scenes))
    if data.choice not in CHOICES:
        raise refuse("Sweep.load", f"{where}.choice must be one of {', '.join(CHOICES)}", repr(data.choice))
    for key, least in (("count", 1), ("views", 1), ("num_samples", 0), ("seed", 0), ("first", 0)):
        if getattr(data, key) < least:
            raise refuse("Sweep.load", f"{where}.{key} must be at least {least}", getattr(data, key))
    if data.source and not Path(data.source).exists():
        raise refuse("Sweep.load", f"{where}.source must be a file or folder that exists", data.source)


def _vary(table: Any, where: str, folder: Path) -> dict[str, tuple[Any, ...] | Range]:
    if not isinstance(table, Mapping):
        raise refuse("Sweep.load", f"{where} must be a table", repr(table))
    found: dict[str, tuple[Any, ...] | Range] = {}
    for key, value in _flat(table):
        if isinstance(value, Mapping):
            _known(value, {f.name for f in fields(Range)}, f"{where}.{key}")
            if not {"low", "high"} <= set(value) or not all(isinstance(v, int | float) for v in value.values()):
                raise refuse("Sweep.load", f"{where}.{key} must have low and high, numbers", dict(value))
            if value["low"] > value["high"] or (value.get("log") and value["low"] <= 0):
                raise refuse("Sweep.load", f"{where}.{key}: low must not exceed high, and with log be above 0", value)
            found[key] = Range(**value)
            continue
        values = tuple(value) if isinstance(value, list) else (value,)
        if not values:
            raise refuse("Sweep.load", f"{where}.{key} must have at least one value", "none")
        found[key] = _read(key, list(values), f"{where}.{key}", folder) if key in _WHOLE else values
    return found


def _flat(table: Mapping[str, Any], prefix: str = "") -> list[tuple[str, Any]]:
    """Dotted keys: TOML may write them as tables in tables. A table with `low` is a Range."""
    rows: list[tuple[str, Any]] = []
    for key, value in table.items():
        if isinstance(value, Mapping) and "low" not in value:
            rows += _flat(value, f"{prefix}{key}.")
        else:
            rows.append((f"{prefix}{key}", value))
    return rows


def _tables(value: Any, where: str) -> list[Any]:
    return value if isinstance(value, list) else [value]


def _text(value: Any, where: str) -> str:
    if not isinstance(value, str):
        raise refuse("Sweep.load", f"{where} must be text", repr(value))
    return value


def _texts(value: Any, where: str) -> tuple[str, ...]:
    if isinstance(value, str):
        return (value,)
    if not isinstance(value, list | tuple) or not all(isinstance(item, str) for item in value):
        raise refuse("Sweep.load", f"{where} must be a list of texts", repr(value))
    return tuple(value)


def _path(text: str, folder: Path) -> str:
    return str((folder / text).resolve())


def _network(text: str, folder: Path) -> str:
    if text in depth_networks.NAMES:
        return text
    path = _path(text, folder)
    if not Path(path).is_file():
        known = ", ".join(depth_networks.NAMES)
        raise refuse("Sweep.load", f"a network must be one of {known}, or an ONNX file that exists", path)
    return path


def _recipe(text: str, folder: Path) -> str:
    return _path(text, folder) if text.endswith(".toml") else text


def _target(text: str, folder: Path) -> str:
    return target_of(text, "Sweep.load").name


_WHOLE = {"network": _network, "recipe": _recipe, "target": _target}
"""What is named as a whole, in a list of its own or among what varies."""


def _read(key: str, value: Any, where: str, folder: Path) -> tuple[str, ...]:
    return tuple(_WHOLE[key](text, folder) for text in _texts(value, where))
