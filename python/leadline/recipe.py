"""Recipes: an ordered tuple of Steps, the default schemes, and overrides by name; loaded from and saved to TOML.

A Step is only its frozen configuration (``leadline.options``); its handler lives in ``leadline.steps``.
"""

from __future__ import annotations

import os
import tomllib
from collections.abc import Collection, Mapping
from dataclasses import dataclass, field, fields, replace
from fnmatch import fnmatchcase
from importlib import resources
from pathlib import Path
from typing import Any, Literal, get_args

from leadline.options import (
    STEPS,
    Calibrate,
    CorrectBias,
    Equalize,
    Fold,
    Heads,
    Observer,
    Polish,
    Rotate,
    Round,
    Rounding,
    Smooth,
    Step,
    WeightObserver,
)
from leadline.types import Scheme, refuse

__all__ = [
    "ACTIVATIONS",
    "STEPS",
    "WEIGHTS",
    "Calibrate",
    "CorrectBias",
    "Equalize",
    "Fold",
    "Heads",
    "Kind",
    "Observer",
    "Override",
    "Polish",
    "Recipe",
    "Rotate",
    "Round",
    "Rounding",
    "Scope",
    "Smooth",
    "Step",
    "WeightObserver",
]

Scope = Literal["all", "layers"]
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

    def matches(self, *names: str, kinds: Collection[str] = ()) -> bool:
        fits = not self.kinds or not set(self.kinds).isdisjoint(kinds)
        return fits and any(fnmatchcase(name, self.pattern) for name in names)


def _scheme(table: Mapping[str, Any], base: Scheme, where: str) -> Scheme:
    known = {f.name for f in fields(Scheme)} - {"axis"}
    _known_keys(table, known, where)
    for key, value in table.items():
        wanted = type(getattr(Scheme(), key))
        if key != "block_size" and type(value) is not wanted:
            raise refuse("Recipe", f"{where}.{key} must be of type {wanted.__name__}", repr(value))
    merged = {f.name: getattr(base, f.name) for f in fields(Scheme)} | dict(table)
    return Scheme(**merged)


def _known_keys(table: Mapping[str, Any], known: set[str], where: str) -> None:
    unknown = sorted(set(table) - known)
    if unknown:
        raise refuse("Recipe", f"{where} knows only the keys {', '.join(sorted(known))}", ", ".join(unknown))


WEIGHTS = Scheme(bits=8, signed=True, symmetric=True, granularity="axis", narrow=True)
ACTIVATIONS = Scheme(bits=8, signed=False, symmetric=False, granularity="tensor")


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
        if self.activations is not None and self.activations.granularity == "block":
            raise refuse("Recipe", f"{self.name}: activations have no blocks; granularity must be another", "'block'")
        polished = next((i for i, step in enumerate(self.steps) if isinstance(step, Polish)), len(self.steps))
        late = [step.step for step in self.steps[polished:] if isinstance(step, (Fold, Equalize, Rotate, Smooth))]
        if late:
            raise refuse("Recipe", f"{self.name}: polish must come behind fold, equalize, rotate and smooth", late[0])

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

    def _override(self, key: str, base: Scheme | None, names: tuple[str, ...], kinds: Collection[str]) -> Scheme | None:
        for override in self.overrides:
            change = getattr(override, key)
            if change is not None and override.matches(*names, kinds=kinds):
                if change == "float":
                    return None
                default = WEIGHTS if key == "weights" else ACTIVATIONS
                return _scheme(change, base or default, f"overrides {override.pattern!r}.{key}")
        return base

    def changed(self, **changes: Any) -> Recipe:
        """A copy with some fields replaced."""
        return replace(self, **changes)


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
    if not isinstance(document.get("data", {}), Mapping):
        raise refuse("Recipe.load", f"{where}: data must be a table", repr(document["data"]))
    schemes: dict[str, Scheme | None] = {}
    for key, base in (("weights", WEIGHTS), ("activations", ACTIVATIONS)):
        table = document.get(key, {})
        if table != "float" and not isinstance(table, Mapping):
            raise refuse("Recipe.load", f'{where}: {key} must be a table or "float"', repr(table))
        # A table states its whole scheme: only `bits`, signedness and granularity have defaults, the fields do.
        schemes[key] = None if table == "float" else _scheme(table, Scheme() if table else base, f"{where}: {key}")
    if schemes["weights"] is not None and schemes["weights"].granularity == "token":
        raise refuse("Recipe.load", f"{where}: weights have no tokens; granularity must be another", "'token'")
    scope = document.get("scope", "all")
    if scope not in get_args(Scope):
        raise refuse("Recipe.load", f"{where}: scope must be one of {', '.join(get_args(Scope))}", repr(scope))
    return Recipe(
        name=_text(document, "name", where, Path(where).stem),
        description=_text(document, "description", where, ""),
        steps=tuple(_step(table, f"{where}: steps[{i}]") for i, table in enumerate(_tables(document, "steps", where))),
        overrides=tuple(
            _read_override(table, f"{where}: overrides[{i}]")
            for i, table in enumerate(_tables(document, "overrides", where))
        ),
        scope=scope,
        data=document.get("data", {}),
        **schemes,
    )


def _text(document: Mapping[str, Any], key: str, where: str, default: str) -> str:
    value = document.get(key, default)
    if not isinstance(value, str):
        raise refuse("Recipe.load", f"{where}: {key} must be text", repr(value))
    return value


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
    given = {key: value for key, value in table.items() if key != "step"}
    _known_keys(given, {f.name for f in fields(cls)}, f"{where} ({name})")
    default = cls()
    for key, value in given.items():
        wanted = getattr(default, key)
        if type(value) is not type(wanted) and not (isinstance(wanted, float) and type(value) is int):
            raise refuse("Recipe.load", f"{where} ({name}): {key} must be of type {type(wanted).__name__}", repr(value))
        choices = _CHOICES.get((name, key))
        if choices and value not in choices:
            raise refuse("Recipe.load", f"{where} ({name}): {key} must be one of {', '.join(choices)}", repr(value))
    return cls(**given)


_CHOICES: dict[tuple[str, str], tuple[str, ...]] = {
    ("calibrate", "activations"): get_args(Observer),
    ("calibrate", "weights"): get_args(WeightObserver),
    ("round", "method"): get_args(Rounding),
}


def _read_override(table: Mapping[str, Any], where: str) -> Override:
    _known_keys(table, {f.name for f in fields(Override)}, where)
    given = dict(table)
    _text(given, "pattern", where, "*")
    if "kinds" in given:
        kinds = tuple(given["kinds"]) if isinstance(given["kinds"], list) else (given["kinds"],)
        wrong = [kind for kind in kinds if kind not in get_args(Kind)]
        if wrong:
            raise refuse("Recipe.load", f"{where}: kinds must be among {', '.join(get_args(Kind))}", repr(wrong))
        given["kinds"] = kinds
    for key in ("weights", "activations"):
        if key in given and given[key] != "float":
            if not isinstance(given[key], Mapping):
                raise refuse("Recipe.load", f'{where}: {key} must be a table or "float"', repr(given[key]))
            scheme = _scheme(given[key], WEIGHTS if key == "weights" else ACTIVATIONS, f"{where}.{key}")
            if key == "weights" and scheme.granularity == "token":
                raise refuse("Recipe.load", f"{where}: weights have no tokens; granularity must be another", "'token'")
    return Override(**given)
