"""A cell: one network, one recipe, one choice of data, judged in one way; and the cells that a sweep consists of."""

from __future__ import annotations

import functools
import itertools
import json
import os
import tomllib
from collections.abc import Iterator, Mapping
from dataclasses import asdict, dataclass, fields, replace
from pathlib import Path
from typing import Any

import numpy as np

from leadline.cache import digest, environment
from leadline.depth import networks
from leadline.graph import external_files
from leadline.recipe import Recipe
from leadline.sweep.spec import EVALUATION_ONLY, Data, Range, Sweep, check_data
from leadline.targets import target_of
from leadline.types import refuse

Value = str | int | float | bool | None
"""What a table shows of a value: longer ones as JSON."""


@dataclass(frozen=True)
class Cell:
    """What is computed once. `values` say what varies, for tables; they are no part of the cell's identity."""

    network: str
    recipe: Recipe
    target: str
    data: Data
    evaluation: tuple[Data, ...]
    values: Mapping[str, Value]

    @functools.cached_property
    def key(self) -> str:
        """Of the content of everything that the result depends on, leadline's own code included."""
        named = replace(self.recipe, name="", description="")
        sources = (data_identity(self.data), [data_identity(data) for data in self.evaluation])
        return digest(environment(), content(self.file), named.to_toml(), self.target, *sources)

    def to_dict(self) -> dict[str, Any]:
        """Everything but `values`, as plain types."""
        evaluation = [asdict(data) for data in self.evaluation]
        recipe = {"name": self.recipe.name, "toml": self.recipe.to_toml()}
        return {
            "network": self.network,
            "recipe": recipe,
            "target": self.target,
            "data": asdict(self.data),
            "evaluation": evaluation,
        }

    @classmethod
    def from_dict(cls, table: Mapping[str, Any], values: Mapping[str, Value]) -> Cell:
        """What `to_dict` gave."""
        recipe = Recipe.from_toml(table["recipe"]["toml"], f"recipe {table['recipe']['name']}")
        evaluation = tuple(Data(**data) for data in table["evaluation"])
        return cls(
            table["network"],
            recipe,
            table.get("target", "onnxruntime"),
            Data(**table["data"]),
            evaluation,
            dict(values),
        )

    @property
    def file(self) -> Path:
        """The network's ONNX file."""
        return network_file(self.network)

    @property
    def label(self) -> str:
        """The values, short."""
        parts = [f"{key.rpartition('.')[2]}={value}" for key, value in self.values.items()]
        return ", ".join(parts) or self.recipe.name


def network_file(network: str) -> Path:
    """The ONNX file of a network: of a shipped one by its name."""
    return networks.path(network) if network in networks.NAMES else Path(network)


def content(path: str | Path) -> str:
    """The digest of a file (of an ONNX file with every file of weights that it names), or of all files in a folder;
    read anew only where they changed."""
    where = Path(path)
    if where.is_dir():
        files = sorted(file for file in where.rglob("*") if file.is_file() and not file.name.startswith("."))
        return digest([(str(file.relative_to(where)), content(file)) for file in files])
    beside = external_files(where) if where.suffix == ".onnx" else []
    named = [(os.path.relpath(file, where.resolve().parent), _file(file)) for file in beside if file.is_file()]
    return digest(_file(where), named)


def _file(path: Path) -> str:
    state = path.stat()
    return _bytes(str(path), state.st_ino, state.st_ctime_ns, state.st_mtime_ns, state.st_size)


@functools.lru_cache(maxsize=100_000)
def _bytes(path: str, *state: int) -> str:
    return digest(np.memmap(path, np.uint8, "r") if state[-1] else b"")


def data_identity(data: Data) -> dict[str, Any]:
    """What the samples depend on: not where they lie, and not what they are called."""
    table = asdict(data) | {"name": ""}
    return table | ({"source": content(data.source)} if data.source else {})


def grid(sweep: Sweep) -> Iterator[Cell]:
    """All cells of a sweep, table by table; a cell may come more than once. Raises InputError, naming the key, for one
    that cannot be."""
    for block in sweep.vary:
        choices: dict[str, tuple[Any, ...]] = {"network": sweep.networks, "recipe": sweep.recipes}
        choices["target"] = sweep.targets
        choices |= {key: _listed(key, values) for key, values in block.items()}
        for combination in itertools.product(*choices.values()):
            yield make(sweep, dict(zip(choices, combination, strict=True)))


def _listed(key: str, values: tuple[Any, ...] | Range) -> tuple[Any, ...]:
    if not isinstance(values, Range):
        return values
    if not values.step > 0:
        raise refuse("sweep", f"{key}: a grid needs a step above 0 between low and high", values.step)
    count = int(np.floor((values.high - values.low) / values.step + 1e-9)) + 1
    return tuple(type(values.low)(values.low + i * values.step) for i in range(count))


def make(sweep: Sweep, values: Mapping[str, Any]) -> Cell:
    """The cell at these values: "network", "recipe", "target", and dotted keys. Raises InputError where the target does
    not take the recipe."""
    recipe = Recipe.load(values["recipe"])
    document = tomllib.loads(recipe.to_toml())
    own = {key: value for key, value in values.items() if key not in ("network", "recipe", "target")}
    dropped = {key.partition(".")[2] for key, value in own.items() if key.count(".") == 1 and value is False}
    data = sweep.data
    # Steps are left out first: what else is said of them is void then.
    for key, value in sorted(own.items(), key=lambda item: item[0].count(".") if item[0].startswith("steps") else 9):
        if key.startswith("data."):
            data = _changed(data, key, value)
        else:
            _set(document, key, value, dropped, recipe.name)
    made = Recipe.from_toml(_toml(document), f"recipe {recipe.name}")
    target = target_of(values["target"], "sweep")
    target.settle(made)
    shown: dict[str, Value] = {"network": Path(values["network"]).stem, "recipe": recipe.name, "target": target.name}
    shown |= {key: _plain(_get(document, data, key, own)) for key in sweep.varied if key not in shown}
    return Cell(values["network"], made, target.name, data, sweep.evaluation, {key: shown[key] for key in sweep.varied})


def _toml(document: dict[str, Any]) -> str:
    import tomli_w

    return tomli_w.dumps(document)


def _changed(data: Data, key: str, value: Any) -> Data:
    name = key.partition(".")[2]
    known = {f.name: getattr(data, f.name) for f in fields(Data) if f.name not in EVALUATION_ONLY}
    if name not in known:
        raise refuse("sweep", f"data knows only the keys {', '.join(known)}", repr(key))
    fits = type(value) is type(known[name]) or (isinstance(known[name], float) and type(value) is int)
    if not fits:
        raise refuse("sweep", f"{key} must be of type {type(known[name]).__name__}", repr(value))
    if name in ("source", "scenes") and bool(getattr(data, "source" if name == "scenes" else "scenes")):
        data = replace(data, source="", scenes="")
    changed: Data = replace(data, **{name: value})
    check_data(changed, "data")
    return changed


def _place(document: dict[str, Any], key: str, recipe: str) -> tuple[Any, str | int]:
    """The table or list that holds a dotted key, and the key in it. Steps go by name or by number."""
    at: Any = document
    parts = key.split(".")
    for i, part in enumerate(parts):
        index: str | int = int(part) if isinstance(at, list) and part.isdigit() else part
        if isinstance(at, list) and not isinstance(index, int):
            named = [j for j, step in enumerate(at) if step.get("step") == part]
            if len(named) != 1:
                steps = ", ".join(step.get("step", "") for step in at)
                raise refuse("sweep", f"{key}: recipe {recipe} must have one such entry; it has {steps}", len(named))
            index = named[0]
        if isinstance(index, int) and index >= len(at):
            raise refuse("sweep", f"{key}: recipe {recipe} has fewer entries", len(at))
        if i + 1 == len(parts):
            return at, index
        if isinstance(at, dict) and index not in at:
            raise refuse("sweep", f"{key}: a recipe knows only the keys {', '.join(at)}", repr(part))
        at = at[index]
        if not isinstance(at, dict | list):
            raise refuse("sweep", f"{key}: recipe {recipe} must have a table there", repr(at))
    raise AssertionError(key)


def _set(document: dict[str, Any], key: str, value: Any, dropped: set[str], recipe: str) -> None:
    stem, _, rest = key.partition(".")
    if stem == "steps" and rest.partition(".")[0] in dropped and "." in rest:
        return
    if stem == "overrides" and stem not in document:
        document[stem] = []
    table, last = _place(document, key, recipe)
    if stem == "steps" and "." not in rest:
        if not isinstance(value, bool):
            raise refuse("sweep", f"{key} must be true or false: whether the recipe keeps the step", repr(value))
        if not value:
            del table[last]
        return
    table[last] = value


def _get(document: dict[str, Any], data: Data, key: str, own: Mapping[str, Any]) -> Any:
    """A value of a cell whether its table varies it or not; None where the step is left out."""
    if key.startswith("data."):
        return getattr(data, key.partition(".")[2], None)
    if key.startswith("steps.") and key.count(".") == 1:
        return own.get(key, any(step["step"] == key.partition(".")[2] for step in document["steps"]))
    try:
        table, last = _place(document, key, "")
        return table[last]
    except (ValueError, KeyError):
        return None


def _plain(value: Any) -> Value:
    return value if value is None or isinstance(value, str | int | float | bool) else json.dumps(value)
