"""Commands that read and rewrite files: inspect, convert."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer
from rich.console import Console

from leadline.cli import flags
from leadline.types import refuse


def inspect(
    file: Annotated[Path, typer.Argument(help="ONNX (QDQ, float, or around a context binary), .encodings or .tflite.")],
    against: Annotated[
        Path | None, typer.Option(help="Say what differs from this file, of any of these kinds.")
    ] = None,
    model: Annotated[
        Path | None, typer.Option(help="The ONNX network that encodings are for: finds their gaps.")
    ] = None,
    html: Annotated[Path | None, typer.Option(help="Write a page of one file here.")] = None,
    as_json: flags.Json = False,
) -> None:
    """Say what a file quantises and what it leaves in float, or what differs between two files."""
    from leadline import inspector, report

    if against is not None and model is not None:
        raise refuse("inspect", "--model and --against cannot go together", "both")
    if against is not None:
        difference = inspector.compare(file, against)
        if html is not None:
            report.write_difference(difference, html)
        if as_json:
            flags.print_json(difference.to_dict())
        else:
            report.show_difference(difference, Console())
        return
    inspection = inspector.inspect(file, model)
    if html is not None:
        report.write_inspection(inspection, html)
    if as_json:
        flags.print_json(inspection.to_dict())
    else:
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
