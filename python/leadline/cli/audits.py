"""The command that asks a target: audit."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from leadline.cli import flags
from leadline.targets.target import auditors
from leadline.types import refuse


def audit(
    model: Annotated[
        Path, typer.Argument(help="A float ONNX network, a .pt2 of torch.export, or a .tflite for litert.")
    ],
    target: Annotated[str, typer.Option(help=f"{' or '.join(auditors())}.")],
    shape: Annotated[
        list[str] | None, typer.Option(help="NAME=1x3x224x224: fixes an input's free axes; may be repeated.")
    ] = None,
    recipe: Annotated[str, typer.Option(help="Whose bits and granularities operators are asked with.")] = "w8a8",
    html: Annotated[Path | None, typer.Option(help="Write a page of one file here.")] = None,
    as_json: flags.Json = False,
) -> None:
    """Ask a target which operators of a network it takes. Exit code 1 if any is refused."""
    from leadline import report
    from leadline.audit import audit as run

    found = run(model, target, dict(map(_shape, shape or [])) or None, recipe)
    flags.deliver(found, html, as_json, report.write_audit, report.show_audit)
    if not found.passed:
        raise typer.Exit(1)


def _shape(text: str) -> tuple[str, tuple[int, ...]]:
    name, _, dims = text.rpartition("=")
    parts = dims.lower().split("x")
    if not name or not all(part.isdigit() for part in parts):
        raise refuse("audit", "--shape must be NAME=1x3x224x224", repr(text))
    return name, tuple(map(int, parts))
