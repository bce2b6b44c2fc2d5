"""Commands for ExecuTorch: quantize-executorch."""

from __future__ import annotations

from dataclasses import asdict
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer
from rich.console import Console
from rich.filesize import decimal
from rich.table import Table

from leadline.cli import flags

if TYPE_CHECKING:
    from leadline.targets.executorch.program import Program, Verified


@flags.with_pictures
def quantize_executorch(
    model: Annotated[Path, typer.Argument(help="An ONNX network.")],
    data: flags.Data,
    out: Annotated[Path, typer.Option(help="Folder for model.pte and report.json.")],
    recipe: Annotated[
        str, typer.Option(help="A recipe's name or TOML file: w8a8 and its kin, or int4-block128.")
    ] = "w8a8",
    samples: flags.Samples = None,
    seed: flags.Seed = 0,
    *,
    pictures: flags.Pictures,
    strict: flags.Strict = False,
    threads: flags.Threads = None,
    as_json: flags.Json = False,
) -> None:
    """Quantise a network to an ExecuTorch program for XNNPACK and check it there, on samples held out of calibration.

    Needs ExecuTorch, in an environment of its own. Exit code 3: all is written, but an output has collapsed; see
    `leadline quantize --help`.
    """
    from leadline import pipeline
    from leadline.files import REPORT, filling, replacing, to_json
    from leadline.graph.tail import check_whole
    from leadline.original import Original
    from leadline.preparation import load_pair
    from leadline.profiles import EXECUTORCH
    from leadline.progress import Bars
    from leadline.recipe import Recipe
    from leadline.targets.executorch import program as executorch

    wanted = Recipe.load(recipe)
    EXECUTORCH.check(wanted, "quantize-executorch")
    executorch.check_installed("quantize-executorch")
    graph, given = load_pair(model, data, pictures.over(wanted.data), samples, seed, strict)
    check_whole(graph, "ExecuTorch", "quantize-executorch")
    import torch

    from leadline.torch import to_module

    to_module(graph)  # refuses here what torch has no function for
    progress = Bars()
    with filling(out, REPORT) as folder:
        done = pipeline.quantize(graph, wanted, given, progress=progress, threads=threads, original=Original(model))
        run = done.graph, done.grids, done.codes
        with progress("write"):
            program = executorch.export_grids(*run, folder / "model.pte")
    with progress("verify"):
        held = (tuple(map(torch.from_numpy, feed.values())) for feed in done.held_out)
        simulation = executorch.simulation(*run)
        names = [value.name for value in done.graph.outputs]
        module = to_module(done.graph)
        verified = executorch.verify(out / "model.pte", module, held, simulation=simulation, names=names)
    document = {"recipe": wanted.name, "outputs": names, "samples": len(done.held_out)}
    document |= {"program": asdict(program), "verified": asdict(verified)}
    with replacing(out / "report.json") as temporary:
        temporary.write_text(to_json(document), "utf-8")
    if as_json:
        flags.print_json(document)
    else:
        show(names, program, verified, Console())
    flags.exit_if_collapsed(verified.collapse)


def show(names: list[str], program: Program, verified: Verified, console: Console) -> None:
    """Print what was measured."""
    table = Table("output", box=None)
    for head in ("ExecuTorch", "simulated"):
        table.add_column(head, justify="right")
    for name, measured, said in zip(names, verified.sqnr, verified.simulated, strict=True):
        table.add_row(name, f"{measured:.1f} dB", f"{said:.1f} dB")
    console.print(table)
    console.print(f"{decimal(program.bytes)}, {program.layers} layers in integers, {verified.milliseconds:.3g} ms")
    if program.outside:
        kinds = ", ".join(f"{kind} {count}" for kind, count in program.outside.items())
        console.print(f"outside XNNPACK: {kinds}; XNNPACK in {program.delegates} parts")
    for line in verified.collapse:
        console.print(f"collapsed: {line}", markup=False, highlight=False, soft_wrap=True)
