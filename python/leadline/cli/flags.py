"""Flags that several commands share, and what they mean."""

from __future__ import annotations

import functools
import inspect
from collections.abc import Callable, Mapping
from dataclasses import MISSING, Field, dataclass, fields
from pathlib import Path
from typing import Annotated, Any, get_type_hints

import typer
from rich.console import Console

from leadline.files import to_json
from leadline.targets.target import TARGETS, every_target
from leadline.types import refuse

Json = Annotated[bool, typer.Option("--json", help="Print JSON to standard output instead of tables.")]
TargetName = Annotated[str, typer.Option("--target", help=f"What the artefact is for: {', '.join(TARGETS)}.")]
Threads = Annotated[int | None, typer.Option(help="Threads of the cores and of onnxruntime. Default: all.")]


@dataclass(frozen=True)
class Given:
    """The flags that say which data there are, which of them are used, and what becomes of a picture before the network
    sees it."""

    data: Annotated[Path, typer.Option(help="Pictures, a video, .npy or .npz files: a file, or a folder of one kind.")]
    num_samples: Annotated[int | None, typer.Option(help="Use at most so many samples, chosen by --seed.")] = None
    choice: Annotated[
        str, typer.Option(help="How --num-samples are chosen: random, folder, brightness, farthest or diverse.")
    ] = "random"
    features: Annotated[
        str | None, typer.Option(help="What farthest and diverse compare: a tensor of the network.")
    ] = None
    seed: Annotated[int, typer.Option(help="For the choice of samples and what is held out.")] = 0
    strict: Annotated[bool, typer.Option("--strict", help="Refuse unreadable files instead of skipping them.")] = False
    resize: Annotated[str | None, typer.Option(help="Pixels of the shorter side, or HEIGHTxWIDTH.")] = None
    crop: Annotated[str | None, typer.Option(help="Centre crop: SIDE or HEIGHTxWIDTH.")] = None
    mean: Annotated[
        str | None, typer.Option(help="Subtracted after --scale: one number or one per channel, with commas.")
    ] = None
    std: Annotated[str | None, typer.Option(help="Divided by, likewise.")] = None
    scale: Annotated[
        float | None, typer.Option(help="Divides pixels of 0..255 first; 1 keeps them raw. Default 255.")
    ] = None
    layout: Annotated[str | None, typer.Option(help="NCHW or NHWC.")] = None
    channels: Annotated[str | None, typer.Option(help="RGB, BGR or L.")] = None
    letterbox: Annotated[
        bool,
        typer.Option("--letterbox", help="Keep the picture's proportions: fit it into the size, fill up with grey."),
    ] = False

    def over(self, base: Mapping[str, Any]) -> Any:
        """The Data; what is said of pictures goes on top of the recipe's [data] table."""
        from leadline.data import Data, Preprocess

        pictures = {
            "resize": _size("resize", self.resize),
            "crop": _size("crop", self.crop),
            "mean": _numbers("mean", self.mean),
            "std": _numbers("std", self.std),
            "scale": self.scale,
            "layout": self.layout,
            "channels": self.channels,
            "letterbox": self.letterbox or None,
        }
        stated = {key: value for key, value in pictures.items() if value is not None}
        options = {name: getattr(self, name) for name in ("num_samples", "choice", "features", "seed", "strict")}
        return Data(self.data, preprocess=Preprocess.from_dict({**base, **stated}) if stated else None, **options)


def with_data(command: Callable[..., None]) -> Callable[..., None]:
    """The command with its parameter `data` spelled out as the flags of Given, which Typer does not do."""
    flags = fields(Given)

    @functools.wraps(command)
    def run(**values: Any) -> None:
        command(data=Given(**{flag.name: values.pop(flag.name) for flag in flags}), **values)

    hints = get_type_hints(Given, include_extras=True)
    spelled = [
        inspect.Parameter(
            flag.name,
            inspect.Parameter.KEYWORD_ONLY,
            default=inspect.Parameter.empty if flag.default is MISSING else flag.default,
            annotation=hints[flag.name],
        )
        for flag in flags
    ]
    return _respelled(run, command, "data", spelled)


def with_target(command: Callable[..., None]) -> Callable[..., None]:
    """The command with its parameter `options` spelled out as the flags of all targets; it gets those that were given.

    Of `verify`, and of whatever only runs artefacts, how they are made is no question.
    """
    runs = command.__name__ == "verify"
    kinds = [(kind, one) for kind in every_target() for one in kind.options() if one.metadata["runs"] or not runs]

    @functools.wraps(command)
    def run(**values: Any) -> None:
        given = {one.name: values.pop(one.name) for _, one in kinds}
        command(options={name: value for name, value in given.items() if value is not None}, **values)

    spelled = [
        inspect.Parameter(
            one.name,
            inspect.Parameter.KEYWORD_ONLY,
            default=None,
            annotation=Annotated[one.metadata["kind"] | None, typer.Option(help=f"For {kind.name}: {_lower(one)}")],
        )
        for kind, one in kinds
    ]
    return _respelled(run, command, "options", spelled)


def _lower(one: Field[Any]) -> str:
    text = str(one.metadata["help"])
    return text if text[:1].isupper() and not text[1:2].islower() else text[:1].lower() + text[1:]


def _respelled(
    run: Callable[..., None], command: Callable[..., None], name: str, spelled: list[inspect.Parameter]
) -> Callable[..., None]:
    """`run` with the signature of `command`, but for one parameter, in whose place others stand."""
    listed = inspect.signature(command, eval_str=True).parameters.values()
    parameters = [each for one in listed for each in (spelled if one.name == name else [one])]
    parameters = [one.replace(kind=inspect.Parameter.KEYWORD_ONLY) for one in parameters]
    run.__signature__ = inspect.Signature(parameters)  # type: ignore[attr-defined]
    run.__annotations__ = {one.name: one.annotation for one in parameters}
    return run


def _size(flag: str, text: str | None) -> int | list[int] | None:
    if text is None:
        return None
    try:
        sides = [int(part) for part in text.lower().split("x")]
    except ValueError:
        sides = []
    if len(sides) not in (1, 2):
        raise refuse("leadline", f"--{flag} must be SIDE or HEIGHTxWIDTH", repr(text))
    return sides[0] if len(sides) == 1 else sides


def _numbers(flag: str, text: str | None) -> float | list[float] | None:
    if text is None:
        return None
    try:
        values = [float(part) for part in text.split(",")]
    except ValueError:
        raise refuse("leadline", f"--{flag} must be numbers with commas between them", repr(text)) from None
    return values[0] if len(values) == 1 else values


def deliver(
    found: Any,
    html: Path | None,
    as_json: bool,
    write: Callable[[Any, Path], None],
    show: Callable[[Any, Console], None],
) -> None:
    """What was found: as a page if one is wanted, and as JSON or tables."""
    if html is not None:
        write(found, html)
    if as_json:
        print_json(found.to_dict())
    else:
        show(found, Console())


def print_json(document: Any) -> None:
    print(to_json(document))


def print_written(out: Path, drawn: bool) -> None:
    """Where the report is."""
    name = "report.html" if drawn else "report.json"
    Console(stderr=True).print(f"wrote {out}/{name}", markup=False, highlight=False, soft_wrap=True)


def exit_if_collapsed(lines: list[str]) -> None:
    """With code 3."""
    if lines:
        raise typer.Exit(3)
