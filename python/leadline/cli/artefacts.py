"""Commands that read and rewrite files: inspect, convert."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer
from rich.console import Console

from leadline.cli import flags


def inspect(
    file: Annotated[Path, typer.Argument(help="A QDQ or float ONNX file, or .encodings.")], as_json: flags.Json = False
) -> None:
    """Say what a file quantises and what it leaves in float."""
    from leadline.inspector import inspect as run

    inspection = run(file)
    if as_json:
        flags.print_json(inspection.to_dict())
    else:
        from leadline import report

        report.show_inspection(inspection, Console())


def convert(
    source: Annotated[Path, typer.Argument(help="An AIMET .encodings file.")],
    target: Annotated[Path, typer.Argument(help="The file to write.")],
    version: Annotated[str, typer.Option(help="0.6.1, 1.0.0 or 2.0.0.")],
    model: Annotated[Path | None, typer.Option(help="The ONNX network it is for: settles the channel axes.")] = None,
) -> None:
    """Rewrite AIMET encodings in another version."""
    from leadline.export.encodings import convert as run
    from leadline.graph import Graph

    run(source, target, version, Graph.load(model) if model else None)
