"""Commands that run networks: demo, quantize, verify."""

from __future__ import annotations

import time
from contextlib import nullcontext
from pathlib import Path
from typing import Annotated, get_args

import typer
from rich.console import Console

from leadline.cli import flags
from leadline.profiles import profile_of
from leadline.recipe import Recipe
from leadline.types import refuse

FRAMES = 4
"""Held-out samples that an emulation runs after quantising: it takes seconds for each, for a ViT-S half a minute."""


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


@flags.with_pictures
def quantize(
    model: Annotated[Path, typer.Argument(help="A float ONNX network.")],
    data: flags.Data,
    out: Annotated[Path, typer.Option(help="Folder for the artefacts and the report.")],
    recipe: Annotated[str, typer.Option(help="A recipe's name (see `leadline recipe`) or a TOML file.")] = "w8a8",
    target: Annotated[str, typer.Option(help="What the artefact is for: onnxruntime or hexagon.")] = "onnxruntime",
    encodings: Annotated[str, typer.Option(help="Version of model.encodings: 0.6.1, 1.0.0 or 2.0.0.")] = "1.0.0",
    samples: flags.Samples = None,
    choose: flags.Choose = "random",
    features: flags.Features = None,
    seed: flags.Seed = 0,
    *,
    pictures: flags.Pictures,
    strict: flags.Strict = False,
    threads: flags.Threads = None,
    as_json: flags.Json = False,
) -> None:
    """Quantise a network, check the artefact against it, and write both with a report.

    Exit code 3: all is written, but an output, or a part of one, has collapsed: below 5 dB, dead, constant or not
    finite where the float network's is not, or without correlation to it.
    """
    from leadline import pipeline, report
    from leadline.export.encodings import Version
    from leadline.files import REPORT, filling
    from leadline.progress import Bars

    if target == "hexagon":
        from leadline.targets.hexagon.emulator import check_installed

        check_installed()
    if encodings not in get_args(Version):
        raise refuse("quantize", f"encodings must be one of {', '.join(get_args(Version))}", repr(encodings))
    start = time.monotonic()
    plan = Recipe.load(recipe)
    preprocess = pictures.over(plan.data)
    progress = Bars()
    with filling(out, (*pipeline.FILES, *REPORT)) as folder:
        quantized = pipeline.quantize(
            model,
            plan,
            data,
            preprocess=preprocess,
            samples=samples,
            choice=choose,
            features=features,
            seed=seed,
            strict=strict,
            threads=threads,
            progress=progress,
            target=target,
        )
        with progress("write"):
            quantized.save(folder, encodings_version=encodings)
    # The artefact is in place: whatever becomes of what is said about it, the run is not lost.
    judged = quantized.held_out if target == "onnxruntime" else quantized.held_out.take(FRAMES)
    verification = quantized.verify(judged, threads=threads, progress=progress)
    document = report.document(model, quantized, verification, out, time.monotonic() - start)
    drawn = report.write(document, verification.pictures, out, quantized)
    if as_json:
        flags.print_json(document)
    else:
        report.show(document, Console())
        flags.print_written(out, drawn)
    flags.exit_if_collapsed(verification.collapse)


@flags.with_pictures
def verify(
    fp32: Annotated[Path, typer.Argument(help="The float network: the original, or model.fp32.onnx.")],
    qdq: Annotated[Path, typer.Argument(help="The artefact: an ONNX file with QuantizeLinear and DequantizeLinear.")],
    data: flags.Data,
    out: Annotated[Path | None, typer.Option(help="Folder for report.json and report.html.")] = None,
    target: Annotated[str, typer.Option(help="What runs it: onnxruntime, or hexagon's emulation.")] = "onnxruntime",
    context: Annotated[
        Path | None, typer.Option(help="For hexagon: also write the compiled context ONNX to this file.")
    ] = None,
    soc: Annotated[int | None, typer.Option(help="For hexagon: Qualcomm's number of the chip.")] = None,
    arch: Annotated[
        int | None, typer.Option(help="For hexagon: version of the chip's HTP, such as 73, 75 or 79.")
    ] = None,
    samples: flags.Samples = None,
    seed: flags.Seed = 0,
    *,
    pictures: flags.Pictures,
    strict: flags.Strict = False,
    threads: flags.Threads = None,
    as_json: flags.Json = False,
) -> None:
    """Compare an artefact with its float network on samples: SQNR, worst layers, fused kernels.

    Exit code 3: an output, or a part of one, has collapsed; see `leadline quantize --help`.
    """
    from leadline import report
    from leadline.files import REPORT, filling
    from leadline.original import Original
    from leadline.preparation import load_pair
    from leadline.progress import Bars
    from leadline.verification import verify as run

    profile_of(target, "verify")
    if target != "hexagon" and (context, soc, arch) != (None, None, None):
        raise refuse("verify", "--context, --soc and --arch are for --target hexagon", repr(target))
    preprocess = pictures.over({})
    with filling(out, REPORT) if out is not None else nullcontext():
        graph, feeds = load_pair(fp32, data, preprocess, samples, seed, strict)
        original = Original(fp32)
        verification = run(
            graph, qdq, feeds, original=original, target=target, soc=soc, arch=arch, threads=threads, progress=Bars()
        )
        document = report.verified(fp32, graph, qdq, feeds, verification)
    if out is not None:
        report.write(document, verification.pictures, out)
    if as_json:
        flags.print_json(document)
    else:
        report.show(document, Console())
    if context is not None:
        from leadline.targets.hexagon.emulator import compile_context

        compile_context(qdq, context, soc, arch)
    flags.exit_if_collapsed(verification.collapse)
