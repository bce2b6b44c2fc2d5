"""Recipes: an ordered tuple of Steps, the default schemes, and overrides by name; loaded from and saved to TOML.

A Step is only its frozen configuration (``leadline.options``); its handler lives in ``leadline.steps``.
"""

from __future__ import annotations

import os
import tomllib
from collections.abc import Collection, Iterable, Iterator, Mapping, Sequence
from dataclasses import Field, dataclass, field, fields, replace
from fnmatch import fnmatchcase
from importlib import resources
from pathlib import Path
from typing import Any, Literal, get_args

from leadline import options
from leadline.options import *  # noqa: F403  the steps, for whoever writes a recipe
from leadline.options import STEPS, Step, check_options, check_type
from leadline.types import InputError, Scheme, refuse

__all__ = ["ACTIVATIONS", "WEIGHTS", "Kind", "Override", "Recipe", "Scope"]
__all__ += options.__all__

Scope = Literal["all", "layers"]
"""Which activations get a grid: all that a device holds as integers, or those that layers read."""

Kind = Literal["linear", "conv", "depthwise", "transpose", "recurrent", "embedding", "first", "last", "unread"]
"""What a layer is; "recurrent" are the matrices of LSTM, GRU and RNN, "embedding" tables that Gather reads; and "first"
where no other layer comes before it (or an activation is the network's input), "last" where none comes behind. "unread"
is an activation that no layer reads: sums, attention, what stands in front of an activation function."""


@dataclass(frozen=True)
class Override:
    """Other schemes for some layers or tensors. The first override that matches wins.

    `pattern` is a shell pattern (``*``, ``?``, ``[]``) compared with layer names (for weights and the layer's
    output) and with tensor names (for activations); `kinds` restricts it to kinds of layers. `weights` and
    `activations` are "float", or a table of the Scheme's fields to change, or None to leave them.
    """

    pattern: str = "*"
    kinds: tuple[Kind, ...] = ()
    weights: Mapping[str, Any] | Literal["float"] | None = None
    activations: Mapping[str, Any] | Literal["float"] | None = None

    def __post_init__(self) -> None:
        values = {field.name: getattr(self, field.name) for field in fields(self)}
        _check_override(values, f"overrides {self.pattern!r}")

    def matches(self, *names: str, kinds: Collection[str] = ()) -> bool:
        fits = not self.kinds or not set(self.kinds).isdisjoint(kinds)
        return fits and any(name == self.pattern or fnmatchcase(name, self.pattern) for name in names)


def _check_override(values: Mapping[str, Any], where: str) -> None:
    check_type(values.get("pattern", "*"), str, f"{where}: pattern")
    kinds = values.get("kinds", ())
    if not isinstance(kinds, tuple) or any(kind not in get_args(Kind) for kind in kinds):
        raise refuse("Recipe", f"{where}: kinds must be a tuple of some of {', '.join(get_args(Kind))}", repr(kinds))
    for key in ("weights", "activations"):
        table = values.get(key)
        if table is not None and table != "float":
            _check_table(table, f"{where}.{key}")


def _check_table(table: object, where: str) -> None:
    """A Scheme's fields, or some of them, as TOML has them."""
    if not isinstance(table, Mapping):
        raise refuse("Recipe", f'{where} must be a table or "float"', repr(table))
    _known_keys(table, {f.name for f in fields(Scheme)} - {"axis"}, where)
    for key, value in table.items():
        check_type(value, int if key == "block_size" else type(getattr(Scheme(), key)), f"{where}.{key}")


def _scheme(table: Mapping[str, Any], base: Scheme, where: str) -> Scheme:
    merged = {f.name: getattr(base, f.name) for f in fields(Scheme)} | dict(table)
    try:
        return Scheme(**merged)
    except InputError as error:
        raise InputError(f"[Recipe] {where}: {str(error).removeprefix('[Scheme] ')}") from None


def _known_keys(table: Mapping[str, Any], known: set[str], where: str) -> None:
    unknown = sorted(set(table) - known)
    if unknown:
        raise refuse("Recipe", f"{where} knows only the keys {', '.join(sorted(known))}", ", ".join(unknown))


def check_order(steps: Sequence[Step], where: str) -> None:
    """InputError, naming both, where a step comes before one that it works on, or behind one that it would spoil."""
    received = f"the order {', '.join(step.step for step in steps)}"
    for i, step in enumerate(steps):
        earlier = {other.step for other in steps[:i]}
        for name in step.needs:
            if name not in earlier:
                raise refuse("Recipe", f"{where}: {step.step} must come behind {name}, whose work it needs", received)
        for name in step.must_precede():
            if name in earlier:
                rule = f"{step.step} must come before {name}, whose work it would spoil"
                once = f"{name} must come once, since a second {name} makes no sense behind the first"
                raise refuse("Recipe", f"{where}: {once if name == step.step else rule}", received)


WEIGHTS = Scheme(bits=8, signed=True, symmetric=True, granularity="axis", narrow=True)
"""The Scheme of weights where a recipe names none."""

ACTIVATIONS = Scheme(bits=8, signed=False, symmetric=False, granularity="tensor")
"""The Scheme of activations where a recipe names none."""


@dataclass(frozen=True)
class Recipe:
    """What to do to a network: default schemes, steps in order, overrides, and how pictures become inputs.

    `weights` and `activations` are the default Scheme, or None to leave them in float. `scope` says which activations:
    "all" that a device would hold as integers, or, as papers simulate, only what "layers" read. `data` is the
    preprocessing table (see ``leadline.data.Preprocess``), used where the caller gives none.
    """

    name: str
    steps: tuple[Step, ...]
    description: str = ""
    weights: Scheme | None = WEIGHTS
    activations: Scheme | None = ACTIVATIONS
    scope: Scope = "all"
    overrides: tuple[Override, ...] = ()
    data: Mapping[str, Any] = field(default_factory=dict)

    def __post_init__(self) -> None:
        _check({field.name: getattr(self, field.name) for field in fields(self)}, f"recipe {self.name}")
        for key in ("weights", "activations"):  # the axis is each layer's own
            scheme = getattr(self, key)
            if scheme is not None:
                object.__setattr__(self, key, replace(scheme, axis=None))

    @staticmethod
    def names() -> list[str]:
        """The recipes that come with leadline."""
        return sorted(p.name.removesuffix(".toml") for p in _shipped().iterdir() if p.name.endswith(".toml"))

    @staticmethod
    def load(source: str | os.PathLike[str] | Recipe) -> Recipe:
        """A shipped recipe by name, or a recipe from a TOML file.

        Raises InputError for an unknown name, a malformed file, or any key that the recipe does not know.
        """
        if isinstance(source, Recipe):
            return source
        text = os.fspath(source)
        if text in Recipe.names():
            return _parse(_shipped().joinpath(f"{text}.toml").read_text("utf-8"), f"recipe {text}")
        path = Path(text)
        if not path.is_file():
            known = ", ".join(Recipe.names())
            raise refuse("Recipe.load", f"recipe must be one of {known}, or a TOML file", repr(text))
        try:
            return _parse(path.read_text("utf-8"), str(path))
        except UnicodeDecodeError as error:
            raise refuse("Recipe.load", "recipe file must be UTF-8 text", f"{path}: {error.reason}") from error

    @staticmethod
    def from_toml(text: str, where: str = "recipe") -> Recipe:
        """What `to_toml` wrote; `where` names it in messages. Raises InputError as `load` does."""
        return _parse(text, where)

    def save(self, path: str | os.PathLike[str]) -> None:
        """Write the recipe as TOML, complete, so that it can be edited and loaded again."""
        from leadline.files import replacing

        with replacing(path) as temporary:
            temporary.write_text(self.to_toml(), "utf-8")

    def to_toml(self) -> str:
        import tomli_w

        document: dict[str, Any] = {"name": self.name, "description": self.description}
        for key in ("weights", "activations"):
            scheme: Scheme | None = getattr(self, key)
            document[key] = "float" if scheme is None else _without_none(scheme, Scheme())
        if self.scope != "all":
            document["scope"] = self.scope
        document["steps"] = [{"step": s.step} | {f.name: getattr(s, f.name) for f in fields(s)} for s in self.steps]
        if self.overrides:
            document["overrides"] = [
                {f.name: _plain(getattr(o, f.name)) for f in fields(o) if getattr(o, f.name)} for o in self.overrides
            ]
        if self.data:
            document["data"] = dict(self.data)
        return tomli_w.dumps(document)

    def weight_scheme(self, layer: str, *kinds: str) -> Scheme | None:
        """The scheme for a layer's weight (its axis still to be filled in), or None for float."""
        return self._override("weights", self.weights, (layer,), kinds)

    def activation_scheme(self, *names: str, kinds: Collection[str] = ()) -> Scheme | None:
        """The scheme for an activation, known by its tensor name and its producer's name and kinds; None for float."""
        return self._override("activations", self.activations, names, kinds)

    def schemes(self, key: Literal["weights", "activations"]) -> dict[str, Scheme | None]:
        """All schemes that layers or tensors may get, by who says so. A default that an override for everything goes
        before is none of them."""
        return dict(_schemes(key, getattr(self, key), self.overrides))

    def _override(self, key: str, base: Scheme | None, names: tuple[str, ...], kinds: Collection[str]) -> Scheme | None:
        for override in self.overrides:
            change = getattr(override, key)
            if change is not None and override.matches(*names, kinds=kinds):
                return _changed(override, key, base)
        return base

    def overridden(self, overrides: Sequence[Override | Mapping[str, Any]], exclude: Sequence[str] = ()) -> Recipe:
        """A copy with overrides before its own, as Override or as tables, and before them what stays float by pattern.

        Raises InputError for what a recipe's [[overrides]] may not hold.
        """
        floats = [Override(pattern, weights="float", activations="float") for pattern in exclude]
        read = [
            override if isinstance(override, Override) else _read_override(override, f"overrides[{i}]")
            for i, override in enumerate(overrides)
        ]
        return self.changed(overrides=(*floats, *read, *self.overrides))

    def changed(self, **changes: Any) -> Recipe:
        """A copy with some fields replaced."""
        return replace(self, **changes)


def _schemes(
    key: str, base: Scheme | None, overrides: Iterable[Override], where: str = ""
) -> Iterator[tuple[str, Scheme | None]]:
    for i, override in enumerate(overrides):
        if getattr(override, key) is not None:
            place = f"{where}overrides[{i}].{key} ({override.pattern!r})"
            yield place, _changed(override, key, base, place)
            if override.pattern == "*" and not override.kinds:
                return
    yield f"{where}{key}", base


def _changed(override: Override, key: str, base: Scheme | None, place: str = "") -> Scheme | None:
    table = getattr(override, key)
    default = base or (WEIGHTS if key == "weights" else ACTIVATIONS)
    return None if table == "float" else _scheme(table, default, place)


def _check(values: Mapping[str, Any], where: str) -> None:
    """InputError, saying where, for a value of a Recipe that no recipe has."""
    for key, wanted in (("name", str), ("description", str), ("scope", Scope), ("data", Mapping)):
        check_type(values[key], wanted, f"{where}: {key}")
    for key, item in (("steps", Step), ("overrides", Override)):
        if not isinstance(values[key], tuple) or not all(isinstance(entry, item) for entry in values[key]):
            raise refuse("Recipe", f"{where}: {key} must be a tuple of {key}", repr(values[key]))
    for key, granularity, rule in (
        ("weights", "token", "weights have no tokens"),
        ("activations", "block", "activations have no blocks"),
    ):
        if values[key] is not None:
            check_type(values[key], Scheme, f"{where}: {key}")
        for place, scheme in _schemes(key, values[key], values["overrides"], f"{where}: "):
            if scheme is not None and scheme.granularity == granularity:
                raise refuse("Recipe", f"{place}: {rule}; granularity must be another", repr(granularity))
            if scheme is not None and scheme.bits > 16:
                raise refuse("Recipe", f"{place}: bits must be at most 16", scheme.bits)
    check_order(values["steps"], where)


def _shipped() -> Any:
    return resources.files("leadline").joinpath("recipes")


def _plain(value: Any) -> Any:
    return list(value) if isinstance(value, tuple) else dict(value) if isinstance(value, Mapping) else value


def _without_none(scheme: Scheme, default: Scheme) -> dict[str, Any]:
    always = ("bits", "signed", "symmetric", "granularity")
    return {
        f.name: getattr(scheme, f.name)
        for f in fields(Scheme)
        if f.name in always or getattr(scheme, f.name) != getattr(default, f.name)
    }


def _parse(text: str, where: str) -> Recipe:
    try:
        document = tomllib.loads(text)
    except tomllib.TOMLDecodeError as error:
        raise refuse("Recipe.load", f"{where} must be valid TOML", str(error)) from error
    _known_keys(document, {f.name for f in fields(Recipe)}, where)
    if "steps" not in document:
        raise refuse("Recipe.load", f"{where} must list its [[steps]]", f"keys {', '.join(sorted(document)) or 'none'}")
    values: dict[str, Any] = {f.name: document.get(f.name, _default(f, where)) for f in fields(Recipe)}
    for key, base in (("weights", WEIGHTS), ("activations", ACTIVATIONS)):
        table = document.get(key, {})
        if table != "float":
            _check_table(table, f"{where}: {key}")
        # A table states its whole scheme: only `bits`, signedness and granularity have defaults, the fields do.
        values[key] = None if table == "float" else _scheme(table, Scheme() if table else base, f"{where}: {key}")
    for key, read in (("steps", _step), ("overrides", _read_override)):
        tables = enumerate(_tables(document, key, where))
        values[key] = tuple(read(table, f"{where}: {key}[{i}]") for i, table in tables)
    _check(values, where)
    return Recipe(**values)


def _default(what: Field[Any], where: str) -> Any:
    return Path(where).stem if what.name == "name" else {} if what.name == "data" else what.default


def _tables(document: Mapping[str, Any], key: str, where: str) -> list[Mapping[str, Any]]:
    value = document.get(key, [])
    if not isinstance(value, list) or not all(isinstance(item, Mapping) for item in value):
        raise refuse("Recipe.load", f"{where}: {key} must be an array of tables ([[{key}]])", repr(value))
    return value


def _step(table: Mapping[str, Any], where: str) -> Step:
    name = table.get("step")
    if not isinstance(name, str) or name not in STEPS:
        raise refuse("Recipe.load", f"{where}: step must be one of {', '.join(STEPS)}", repr(name))
    cls = STEPS[name]
    values = {key: value for key, value in table.items() if key != "step"}
    _known_keys(values, {f.name for f in fields(cls)}, f"{where} ({name})")
    check_options(cls, values, f"{where} ({name})")
    return cls(**values)


def _read_override(table: Mapping[str, Any], where: str) -> Override:
    _known_keys(table, {f.name for f in fields(Override)}, where)
    values = dict(table)
    if "kinds" in values:
        values["kinds"] = tuple(values["kinds"]) if isinstance(values["kinds"], list) else (values["kinds"],)
    _check_override(values, where)
    return Override(**values)
