"""Commands for LiteRT: quantize-tflite."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer
from rich.console import Console
from rich.filesize import decimal
from rich.table import Table

from leadline.cli import flags

if TYPE_CHECKING:
    from leadline.progress import Bars
    from leadline.targets.litert.calibrate import Plan
    from leadline.targets.litert.interpreter import Verification


@flags.with_pictures
def quantize_tflite(
    model: Annotated[Path, typer.Argument(help="A float .tflite, or an ONNX network (needs litert-torch).")],
    data: flags.Data,
    out: Annotated[Path, typer.Option(help="Folder for model.tflite and report.json.")],
    recipe: Annotated[
        str, typer.Option(help="A recipe's name or TOML file, or dynamic-int8, weight-only-int8, fp16.")
    ] = "w8a8",
    preset: Annotated[
        str | None, typer.Option(help="cpu, npu, dynamic, weight-only or fp16. Default: the recipe's usual one.")
    ] = None,
    io: Annotated[
        str, typer.Option(help="Type of inputs and outputs: float, int8, or int8-float: int8 in, float out.")
    ] = "float",
    samples: flags.Samples = None,
    seed: flags.Seed = 0,
    *,
    pictures: flags.Pictures,
    strict: flags.Strict = False,
    threads: flags.Threads = None,
    as_json: flags.Json = False,
) -> None:
    """Quantise a network to TFLite and check it in LiteRT's interpreter, on samples that calibration did not see.

    Exit code 3: all is written, but an output has collapsed; see `leadline quantize --help`.
    """
    from leadline.files import REPORT, filling, replacing, to_json
    from leadline.profiles import LITERT
    from leadline.progress import Bars
    from leadline.recipe import Recipe
    from leadline.targets.litert import calibrate as tflite
    from leadline.targets.litert import interpreter as litert

    name, chosen, kind = tflite.named(recipe, preset, io)
    wanted = Recipe.load(name)
    if model.suffix == ".onnx":
        LITERT.check(wanted, "quantize-tflite")
    preprocess = pictures.over(wanted.data)
    given = {"preprocess": preprocess, "samples": samples, "seed": seed, "strict": strict, "threads": threads}
    progress = Bars()
    with filling(out, REPORT) as folder:
        plan = _plan(model, wanted, data, given, progress)
        with progress("write"):
            tflite.save(plan, folder / "model.tflite", preset=chosen, io=kind)
    with progress("verify"):
        verification = litert.verify(plan.content, out / "model.tflite", plan.held_out, plan=plan, threads=threads)
    document: dict[str, Any] = {"recipe": wanted.name, "preset": chosen, "io": io, "notes": list(plan.notes)}
    document |= verification.to_dict()
    with replacing(out / "report.json") as temporary:
        temporary.write_text(to_json(document), "utf-8")
    if as_json:
        flags.print_json(document)
    else:
        show(verification, plan.notes, Console())
    flags.exit_if_collapsed(verification.collapse)


def _plan(model: Path, recipe: Any, data: Path, given: dict[str, Any], progress: Bars) -> Plan:
    """What to write."""
    from leadline import pipeline
    from leadline.graph.tail import check_whole
    from leadline.original import Original
    from leadline.preparation import load_pair
    from leadline.targets.litert import calibrate as tflite
    from leadline.targets.litert.convert import check_installed

    if model.suffix != ".onnx":
        return tflite.quantize(model, recipe, data, over=progress.over, **given)
    check_installed()
    threads = given.pop("threads")
    graph, kept = load_pair(model, data, **given)
    check_whole(graph, "LiteRT", "quantize-tflite")
    from leadline.torch import to_module

    to_module(graph)  # refuses here what torch has no function for
    quantized = pipeline.quantize(graph, recipe, kept, progress=progress, threads=threads, original=Original(model))
    with progress("convert"):
        return tflite.plan(quantized, threads=threads)


def show(verification: Verification, notes: tuple[str, ...], console: Console) -> None:
    """Print what was measured."""
    table = Table(box=None)
    for head in ("output", *verification.milliseconds, "simulated", "mean difference", "relative"):
        table.add_column(head, justify="left" if head == "output" else "right")
    for score in verification.outputs:
        decibels = [f"{score.sqnr[name]:.1f} dB" for name in verification.milliseconds]
        table.add_row(
            score.name, *decibels, f"{score.simulated:.1f} dB", f"{score.absolute:.3g}", f"{score.relative:.2%}"
        )
    console.print(table)
    size = verification.size
    if size is not None:
        console.print(f"{size.quantized} of {size.tensors} tensors quantised")
        console.print(f"{decimal(size.bytes)}, float {decimal(size.bytes_float)}: {size.saved:.1f} % saved")
        if size.float_operators:
            kinds = ", ".join(f"{kind} {count}" for kind, count in size.float_operators.items())
            console.print(f"in float: {kinds}")
    times = ", ".join(f"{name} {ms:.3g} ms" for name, ms in verification.milliseconds.items())
    console.print(f"{times}; XNNPACK in {verification.partitions} parts")
    for note in notes:
        console.print(f"note: {note}", highlight=False, markup=False)
    for line in verification.collapse:
        console.print(f"collapsed: {line}", markup=False, highlight=False, soft_wrap=True)
    if verification.differing:
        console.print(f"not as planned: {', '.join(verification.differing)}", highlight=False, markup=False)
