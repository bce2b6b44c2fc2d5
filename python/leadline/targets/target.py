"""The noun: what the pipeline, verification, audit, sweeps, reports and the command line know of any target."""

from __future__ import annotations

import os
from collections.abc import Iterator, Mapping, Sequence
from contextlib import AbstractContextManager
from dataclasses import Field, dataclass, fields, replace
from importlib import import_module
from pathlib import Path
from typing import TYPE_CHECKING, Any, ClassVar, Protocol, Self

from numpy.typing import NDArray

from leadline.recipe import Recipe
from leadline.rules import ONNXRUNTIME, Rules
from leadline.types import Grid, refuse

if TYPE_CHECKING:
    import onnx

    from leadline.audit import Audit
    from leadline.audit.network import Network
    from leadline.data import Data, Samples
    from leadline.graph import Graph
    from leadline.graph.quantised import Judged
    from leadline.original import Original
    from leadline.progress import Progress
    from leadline.scores import OutputScore

TARGETS = ("onnxruntime", "hexagon", "litert", "executorch", "openvino")
"""Each has its class in ``leadline.targets.<name>.target``. A new one is a folder, and its name here."""

Arrays = dict[str, NDArray[Any]]


class Facts(Protocol):
    """What a target says of an artefact beyond its outputs."""

    def to_dict(self) -> dict[str, Any]:
        """Plain values, ready for JSON."""

    def lines(self) -> list[str]:
        """Sentences for the terminal and the page."""


class Device(AbstractContextManager["Device"]):
    """An artefact on its target, beside leadline's simulation of it. All tensors are called as in the float network.

    Attributes
    ----------
    inner : tuple of str
        Activations that the simulation gives beside the outputs.
    grids : dict of tensor name to Grid
        Of what is compared, as the artefact holds them.
    judged : str
        How reports call what the target does where that is a device's doing, so that its outputs may be lost; empty
        where it is this machine's alone.
    """

    inner: tuple[str, ...] = ()
    grids: Mapping[str, Grid] = {}
    judged: str = ""

    def simulate(self, feed: Mapping[str, NDArray[Any]]) -> Arrays:
        """What is expected of the target: outputs, and `inner`."""
        raise NotImplementedError

    def pieces(self, feed: Mapping[str, NDArray[Any]]) -> Iterator[Arrays]:
        """The same, as it is computed."""
        yield self.simulate(feed)

    def run(self, feed: Mapping[str, NDArray[Any]]) -> Arrays:
        """What the target gives, outputs alone; empty where it does not take the artefact."""
        raise NotImplementedError

    def compare(self, exact: Mapping[str, NDArray[Any]], simulated: Mapping[str, NDArray[Any]]) -> None:
        """The sample that `simulate` and `run` saw last, beside the float network: for figures of the target's own."""

    def moved(self, graph: Graph, feed: Mapping[str, NDArray[Any]], suspects: Sequence[str]) -> list[str]:
        """Of broken tensors, those that hold something else than the float network's even without any rounding of
        activations, as rotated and scaled weights leave them."""
        return []

    def facts(self, outputs: Sequence[OutputScore]) -> Facts | None:
        """After the last sample, with what came of it."""
        return None


def option(help: str, kind: type = str, *, runs: bool = False) -> dict[str, Any]:
    """What makes a field of a Target an option of the user's, which the command line spells as a flag of type `kind`;
    with `runs`, one that says how an artefact is run, not how it is made."""
    return {"help": help, "kind": kind, "runs": runs}


@dataclass(frozen=True)
class Target:
    """A target, with its own options as fields.

    Attributes
    ----------
    name : str
        As ``--target`` takes it.
    title : str
        As a table's head calls what it gives.
    rules : Rules
        What it takes: bits, granularities, widths where they meet, scales, biases.
    file : str
        What its artefact is called in a run's folder.
    frames : int or None
        Held-out samples that are run after quantising, where each takes seconds.
    """

    name: ClassVar[str]
    title: ClassVar[str]
    rules: ClassVar[Rules] = ONNXRUNTIME
    file: ClassVar[str] = "model.qdq.onnx"
    frames: ClassVar[int | None] = None

    def __str__(self) -> str:
        return self.name

    @classmethod
    def options(cls) -> tuple[Field[Any], ...]:
        """The fields that a user may set."""
        return tuple(field for field in fields(cls) if "help" in field.metadata)

    @property
    def chosen(self) -> dict[str, Any]:
        """The options that are set, ready for JSON."""
        return {field.name: value for field in self.options() if (value := getattr(self, field.name)) != field.default}

    def with_options(self, options: Mapping[str, Any]) -> Self:
        """With options, given as text or as they are. Raises InputError for one that it does not have."""
        known = {field.name: field for field in self.options()}
        for name in options:
            if name not in known:
                takes = f"takes {', '.join(known)} alone" if known else "takes none"
                raise refuse("target", f"options must be the target's own: {self.name} {takes}", name)
        return replace(self, **{name: known[name].metadata["kind"](value) for name, value in options.items()})

    def check_installed(self, function: str, network: Any = None) -> None:
        """Raises InputError where what it needs is not installed; with `network`, what it needs to write that."""

    def settle(self, recipe: Recipe | str | os.PathLike[str]) -> tuple[Self, Recipe]:
        """With the options that a recipe decides, and the recipe. Raises InputError, before any work, where they do not
        go together, or the target does not take the recipe."""
        settled = Recipe.load(recipe)
        self.rules.check(settled)
        return self, settled

    def check_network(self, graph: Graph, function: str) -> None:
        """Raises InputError, before any work, for a network that it does not take."""

    def opens(self, path: Path) -> bool:
        """Whether a float network is in a format that this target alone reads."""
        return False

    def quantize(
        self, path: Path, recipe: Recipe, data: Data, *, threads: int | None = None, progress: Progress | None = None
    ) -> dict[str, Any]:
        """Such a network, quantised: the fields of a Quantized."""
        raise NotImplementedError

    def reference(self, network: Any, data: Data) -> tuple[Graph, Original, Samples] | None:
        """A float network that only this target reads, as a Graph of its ends, what runs it, and the samples; None for
        any other."""
        return None

    def make(self, run: Judged) -> Any:
        """A run as this target's artefact: what `open` takes, and `write`."""
        from leadline.export import qdq

        return qdq.to_qdq(run.graph, run.grids, run.codes)

    def write(self, artefact: Any, path: Path) -> None:
        """Write what `make` gave."""
        from leadline.export import qdq

        qdq.save(artefact, path)

    def open(
        self,
        artefact: onnx.ModelProto | Path | Any,
        graph: Graph,
        threads: int | None = None,
        original: Original | None = None,
    ) -> Device:
        """An artefact, of a run or in a file, on the target, beside the float network. Raises InputError where it is
        none."""
        raise NotImplementedError

    def finish(self, artefact: Path) -> None:
        """What options ask for once an artefact is verified."""

    def audit(self, network: Network, recipe: Recipe) -> Audit:
        """Ask the target about each operator."""
        raise refuse("audit", "target must be one that answers for single operators, such as hexagon", self.name)

    def audit_file(self, path: Path) -> Audit | None:
        """The same of a file in the target's own format; None for any other."""
        return None


def target_of(target: str | Target, function: str = "quantize") -> Target:
    """The target of this name. Raises InputError, from the function that was given it, for an unknown one."""
    if isinstance(target, Target):
        return target
    if target not in TARGETS:
        raise refuse(function, f"target must be one of {', '.join(TARGETS)}", repr(target))
    instance: Target = _class_of(target)()
    return instance


def every_target() -> Iterator[type[Target]]:
    """The classes of all targets."""
    return map(_class_of, TARGETS)


def auditors() -> list[str]:
    """The targets that answer for single operators."""
    return [kind.name for kind in every_target() if kind.audit is not Target.audit]


def target_for(artefact: Any, target: str | Target | None, function: str = "verify") -> Target:
    """What runs an artefact: the target that is named, or the one whose files end so.

    Raises InputError for an unknown name, and for a file that the target named does not run.
    """
    suffix = Path(artefact).suffix if isinstance(artefact, (str, os.PathLike)) else ""
    fitting = [kind for kind in every_target() if Path(kind.file).suffix == suffix]
    if target is None:
        return fitting[0]() if fitting else target_of("onnxruntime")
    chosen = target_of(target, function)
    if fitting and type(chosen) not in fitting:
        raise refuse(function, f"an artefact for {chosen.name} must be a {Path(chosen.file).suffix} file", artefact)
    return chosen


def _class_of(name: str) -> type[Target]:
    kind: type[Target] = import_module(f"leadline.targets.{name}.target").TARGET
    return kind
