"""Commands that run networks: demo, quantize, verify."""

from __future__ import annotations

import time
from contextlib import nullcontext
from pathlib import Path
from typing import Annotated, Any, get_args

import typer
from rich.console import Console

from leadline.cli import flags
from leadline.targets import Target, target_for, target_of
from leadline.types import refuse


def demo(
    out: Annotated[Path, typer.Option(help="Folder for the artefacts and the report.")] = Path("demo"),
    network: Annotated[str, typer.Option(help="tinydepth or tinydepth-conv.")] = "tinydepth",
    recipe: Annotated[list[str] | None, typer.Option(help="Recipes to compare; may be repeated.")] = None,
    threads: flags.Threads = None,
    as_json: flags.Json = False,
) -> None:
    """Quantise a small depth network on rendered scenes, and show what each recipe does to the depth. No download."""
    from leadline import demo as tour
    from leadline import report
    from leadline.progress import Bars

    comparison = tour.demo(out, network, recipe or tour.RECIPES, threads=threads, progress=Bars())
    document = report.compared(comparison)
    drawn = report.write_compared(document, comparison, out)
    if as_json:
        flags.print_json(document)
    else:
        report.show_compared(document, Console())
        flags.print_written(out, drawn)


@flags.with_target
@flags.with_data
def quantize(
    model: Annotated[Path, typer.Argument(help="A float ONNX network; for litert also a float .tflite.")],
    data: flags.Given,
    out: Annotated[Path, typer.Option(help="Folder for the artefacts and the report.")],
    recipe: Annotated[str, typer.Option(help="A recipe's name (see `leadline recipe`) or a TOML file.")] = "w8a8",
    target: flags.TargetName = "onnxruntime",
    *,
    options: dict[str, Any],
    encodings_version: Annotated[str, typer.Option(help="Of model.encodings: 0.6.1, 1.0.0 or 2.0.0.")] = "1.0.0",
    engine: Annotated[str, typer.Option(help="Who rounds layers: local, or ray, the machines of a cluster.")] = "local",
    threads: flags.Threads = None,
    as_json: flags.Json = False,
) -> None:
    """Quantise a network for a target, check the artefact there, and write both with a report.

    Exit code 3: all is written, but an output, or a part of one, has collapsed: below 5 dB, dead, constant or not
    finite where the float network's is not, or without correlation to it.
    """
    from leadline import pipeline, quantized, report
    from leadline.export.encodings import Version
    from leadline.files import REPORT, filling
    from leadline.progress import Bars

    if encodings_version not in get_args(Version):
        rule = f"encodings-version must be one of {', '.join(get_args(Version))}"
        raise refuse("quantize", rule, repr(encodings_version))
    start = time.monotonic()
    chosen, settled = target_of(target).with_options(options).settle(recipe)
    given, progress = data.over(settled.data), Bars()
    with filling(out, (*quantized.files(), *REPORT)) as folder:
        run = pipeline.quantize(model, settled, given, target=chosen, threads=threads, progress=progress, engine=engine)
        with progress("write"):
            run.save(folder, encodings_version=encodings_version)
    # The artefact is in place: whatever becomes of what is said about it, the run is not lost.
    judged = run.held_out if chosen.frames is None else run.held_out.take(chosen.frames)
    written = out / chosen.file if chosen.file == Target.file else None
    verification = run.verify(judged, artefact=written, threads=threads, progress=progress)
    document = report.document(model, run, verification, out, time.monotonic() - start)
    drawn = report.write(document, verification.pictures, out, run)
    if as_json:
        flags.print_json(document)
    else:
        report.show(document, Console())
        flags.print_written(out, drawn)
    chosen.finish(out / chosen.file)
    flags.exit_if_collapsed(verification.collapse)


@flags.with_target
@flags.with_data
def verify(
    fp32: Annotated[Path, typer.Argument(help="The float network: the original, or model.fp32.onnx.")],
    artefact: Annotated[
        Path, typer.Argument(help="ONNX with QuantizeLinear and DequantizeLinear, a .tflite or a .pte.")
    ],
    data: flags.Given,
    out: Annotated[Path | None, typer.Option(help="Folder for report.json and report.html.")] = None,
    target: Annotated[
        str | None, typer.Option(help="What runs it: hexagon's emulation, ... Default: what its suffix says.")
    ] = None,
    *,
    options: dict[str, Any],
    threads: flags.Threads = None,
    as_json: flags.Json = False,
) -> None:
    """Compare an artefact with its float network on samples, on its target: SQNR, worst layers, what the target says.

    Exit code 3: an output, or a part of one, has collapsed; see `leadline quantize --help`.
    """
    from leadline import report
    from leadline.files import REPORT, filling
    from leadline.progress import Bars
    from leadline.verification import load_reference
    from leadline.verification import verify as run

    chosen = target_for(artefact, target).with_options(options)
    chosen.check_installed("verify")
    with filling(out, REPORT) if out is not None else nullcontext():
        graph, original, feeds = load_reference(chosen, fp32, data.over({}), threads)
        verification = run(graph, artefact, feeds, original=original, target=chosen, threads=threads, progress=Bars())
        document = report.verified(fp32, graph, artefact, feeds, verification)
    if out is not None:
        report.write(document, verification.pictures, out)
    if as_json:
        flags.print_json(document)
    else:
        report.show(document, Console())
    chosen.finish(artefact)
    flags.exit_if_collapsed(verification.collapse)
