"""Flags that several commands share, and what they mean."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from typing import Annotated, Any

import typer
from rich.console import Console

from leadline.types import refuse

Data = Annotated[Path, typer.Option(help="Pictures, a video, .npy or .npz files: a file, or a folder of one kind.")]
Json = Annotated[bool, typer.Option("--json", help="Print JSON to standard output instead of tables.")]
Samples = Annotated[int | None, typer.Option(help="Use at most so many samples, chosen by --seed.")]
Choose = Annotated[str, typer.Option(help="How --samples are chosen: random, folder, brightness, farthest or diverse.")]
Features = Annotated[str | None, typer.Option(help="Tensor of the network that farthest and diverse compare.")]
Seed = Annotated[int, typer.Option(help="For the choice of samples and what is held out.")]
Resize = Annotated[str | None, typer.Option(help="Pixels of the shorter side, or HEIGHTxWIDTH.")]
Crop = Annotated[str | None, typer.Option(help="Centre crop: SIDE or HEIGHTxWIDTH.")]
Mean = Annotated[str | None, typer.Option(help="Subtracted after --scale: one number or one per channel, with commas.")]
Std = Annotated[str | None, typer.Option(help="Divided by, likewise.")]
Scale = Annotated[float | None, typer.Option(help="Divides pixels of 0..255 first; 1 keeps them raw. Default 255.")]
Layout = Annotated[str | None, typer.Option(help="NCHW or NHWC.")]
Channels = Annotated[str | None, typer.Option(help="RGB, BGR or L.")]
Letterbox = Annotated[
    bool, typer.Option("--letterbox", help="Keep the picture's proportions: fit it into the size, fill up with grey.")
]
Strict = Annotated[bool, typer.Option("--strict", help="Refuse unreadable files instead of skipping them.")]
Threads = Annotated[int | None, typer.Option(help="Threads of the cores and of onnxruntime. Default: all.")]


def preprocessing(
    base: Any,
    resize: str | None,
    crop: str | None,
    mean: str | None,
    std: str | None,
    scale: float | None,
    layout: str | None,
    channels: str | None,
    letterbox: bool = False,
) -> Any:
    """The recipe's [data] table with the flags on top; None where neither says anything, as arrays want it."""
    from leadline.data import Preprocess

    flags = {
        "resize": _size("resize", resize),
        "crop": _size("crop", crop),
        "mean": _numbers("mean", mean),
        "std": _numbers("std", std),
        "scale": scale,
        "layout": layout,
        "channels": channels,
        "letterbox": letterbox or None,
    }
    stated = dict(base) | {key: value for key, value in flags.items() if value is not None}
    return Preprocess.from_dict(stated) if stated else None


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
    print(json.dumps(document, indent=2))
