"""Commands that read and rewrite files: inspect, convert."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

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
        flags.deliver(difference, html, as_json, report.write_difference, report.show_difference)
    else:
        inspection = inspector.inspect(file, model)
        flags.deliver(inspection, html, as_json, report.write_inspection, report.show_inspection)


def convert(
    source: Annotated[Path, typer.Argument(help="AIMET .encodings of any version, or a QDQ ONNX file.")],
    target: Annotated[
        Path, typer.Argument(help="To write: FILE.encodings, FILE.onnx (QDQ), or a folder for both and their networks.")
    ],
    version: Annotated[str | None, typer.Option(help="Of the encodings to write: 0.6.1, 1.0.0 or 2.0.0.")] = None,
    model: Annotated[
        Path | None,
        typer.Option(help="The float ONNX network whose tensors the source names. Not needed between 0.6.1 and 1.0.0."),
    ] = None,
) -> None:
    """Turn encodings into another version, or encodings and QDQ ONNX into each other, whoever wrote them."""
    from leadline.export import encodings
    from leadline.graph import Graph

    is_qdq, is_file = source.suffix == ".onnx", target.suffix in (".encodings", ".json")
    if is_file and version is None:
        raise refuse("convert", "--version must say which encodings to write: 0.6.1, 1.0.0 or 2.0.0", "none")
    if is_file and is_qdq:
        rule = "encodings of a QDQ file go with a network that rounds to its codes: give a folder for both"
        raise refuse("convert", rule, f"'{target}'")
    if target.suffix == ".onnx" and version is not None:
        raise refuse("convert", "--version goes with encodings, not with a QDQ target", f"{version} for '{target}'")
    if is_file:
        encodings.convert(source, target, version or "", Graph.load(model, verbatim=True) if model else None)
        return
    if model is None:
        raise refuse("convert", "--model must give the float network that the source names", "none")
    from leadline.export import qdq
    from leadline.pipeline import Quantized

    found = (Quantized.from_qdq if is_qdq else Quantized.from_encodings)(model, source)
    if target.suffix == ".onnx":
        qdq.save(found.to_qdq(), target)
    else:
        found.save(target, encodings_version=version or "1.0.0")
