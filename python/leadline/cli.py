"""The command line: demo, quantize, verify, inspect, convert, recipe, info."""

from __future__ import annotations

import json
import sys
import time
from pathlib import Path
from typing import Annotated, Any, get_args

import typer
from rich.console import Console

from leadline.recipe import Recipe
from leadline.types import InputError, refuse

app = typer.Typer(
    help="A trained vision network in, a verified low-bit artefact out.",
    no_args_is_help=True,
    add_completion=False,
    pretty_exceptions_enable=False,
    rich_markup_mode="rich",
)

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
Strict = Annotated[bool, typer.Option("--strict", help="Refuse unreadable files instead of skipping them.")]
Threads = Annotated[int | None, typer.Option(help="Threads of the cores and of onnxruntime. Default: all.")]


@app.command()
def demo(
    out: Annotated[Path, typer.Option(help="Folder for the artefacts and the report.")] = Path("demo"),
    network: Annotated[str, typer.Option(help="tinydepth or tinydepth-conv.")] = "tinydepth",
    recipe: Annotated[list[str] | None, typer.Option(help="Recipes to compare; may be repeated.")] = None,
    threads: Threads = None,
    as_json: Json = False,
) -> None:
    """Quantise a small depth network on rendered scenes, and show what each recipe does to the depth. No download."""
    from leadline import demo as tour
    from leadline import report
    from leadline.files import filling
    from leadline.progress import Bars

    comparison = tour.demo(out, network, recipe or tour.RECIPES, threads=threads, progress=Bars())
    document = report.compared(comparison)
    with filling(out) as folder:
        report.write_compared(document, comparison, folder)
    if as_json:
        _print_json(document)
    else:
        report.show_compared(document, Console())
        Console(stderr=True).print(f"wrote {out}/report.html")


@app.command()
def quantize(
    model: Annotated[Path, typer.Argument(help="A float ONNX network.")],
    data: Data,
    out: Annotated[Path, typer.Option(help="Folder for the artefacts and the report.")],
    recipe: Annotated[str, typer.Option(help="A recipe's name (see `leadline recipe`) or a TOML file.")] = "w8a8",
    target: Annotated[str, typer.Option(help="What the artefact is placed for: onnxruntime.")] = "onnxruntime",
    encodings: Annotated[str, typer.Option(help="Version of model.encodings: 0.6.1, 1.0.0 or 2.0.0.")] = "1.0.0",
    samples: Samples = None,
    choose: Choose = "random",
    features: Features = None,
    seed: Seed = 0,
    resize: Resize = None,
    crop: Crop = None,
    mean: Mean = None,
    std: Std = None,
    scale: Scale = None,
    layout: Layout = None,
    channels: Channels = None,
    strict: Strict = False,
    threads: Threads = None,
    as_json: Json = False,
) -> None:
    """Quantise a network, check the artefact against it, and write both with a report."""
    from leadline import pipeline, report
    from leadline.export.encodings import Version
    from leadline.files import filling
    from leadline.progress import Bars

    if target != "onnxruntime":
        raise refuse("quantize", "target must be onnxruntime", repr(target))
    if encodings not in get_args(Version):
        raise refuse("quantize", f"encodings must be one of {', '.join(get_args(Version))}", repr(encodings))
    start = time.monotonic()
    plan = Recipe.load(recipe)
    preprocess = _preprocess(plan.data, resize, crop, mean, std, scale, layout, channels)
    progress = Bars()
    with filling(out) as folder:
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
        )
        with progress("write"):
            quantized.save(folder, encodings_version=encodings)
        verification = quantized.verify(threads=threads, progress=progress)
        document = report.document(model, quantized, verification, folder, time.monotonic() - start)
        report.write(document, verification.pictures, folder, quantized)
    if as_json:
        _print_json(document)
    else:
        report.show(document, Console())
        Console(stderr=True).print(f"wrote {out}/report.html")


@app.command()
def verify(
    fp32: Annotated[Path, typer.Argument(help="The float network: the original, or model.fp32.onnx.")],
    qdq: Annotated[Path, typer.Argument(help="The artefact: an ONNX file with QuantizeLinear and DequantizeLinear.")],
    data: Data,
    out: Annotated[Path | None, typer.Option(help="Folder for report.json and report.html.")] = None,
    samples: Samples = None,
    seed: Seed = 0,
    resize: Resize = None,
    crop: Crop = None,
    mean: Mean = None,
    std: Std = None,
    scale: Scale = None,
    layout: Layout = None,
    channels: Channels = None,
    strict: Strict = False,
    threads: Threads = None,
    as_json: Json = False,
) -> None:
    """Compare an artefact with its float network on samples: SQNR, worst layers, fused kernels."""
    from leadline import pipeline, report
    from leadline.files import filling
    from leadline.progress import Bars
    from leadline.verification import verify as run

    preprocess = _preprocess({}, resize, crop, mean, std, scale, layout, channels)
    graph, feeds = pipeline.load_pair(fp32, data, preprocess, samples, seed, strict)
    verification = run(graph, qdq, feeds, threads=threads, progress=Bars())
    document = report.verified(fp32, graph, qdq, feeds, verification)
    if out is not None:
        with filling(out) as folder:
            report.write(document, verification.pictures, folder)
    if as_json:
        _print_json(document)
    else:
        report.show(document, Console())


@app.command()
def inspect(
    file: Annotated[Path, typer.Argument(help="A QDQ or float ONNX file, or .encodings.")], as_json: Json = False
) -> None:
    """Say what a file quantises and what it leaves in float."""
    from leadline.inspector import inspect as run

    inspection = run(file)
    if as_json:
        _print_json(inspection.to_dict())
    else:
        from leadline import report

        report.show_inspection(inspection, Console())


@app.command()
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


@app.command()
def recipe(
    name: Annotated[str | None, typer.Argument(help="Print this recipe as TOML, to copy and edit.")] = None,
) -> None:
    """List the recipes, or print one."""
    if name is not None:
        print(Recipe.load(name).to_toml(), end="")
        return
    from rich.table import Table

    table = Table("recipe", "what it does", box=None)
    for known in Recipe.names():
        table.add_row(known, Recipe.load(known).description)
    Console().print(table)


@app.command()
def info(as_json: Json = False) -> None:
    """Versions and build of leadline, for bug reports."""
    import leadline

    facts: dict[str, Any] = {"version": leadline.__version__} | leadline.build_info() | {"recipes": Recipe.names()}
    if as_json:
        _print_json(facts)
        return
    for key, value in facts.items():
        text = ", ".join(value) if isinstance(value, (list, tuple)) else value
        print(f"{key}: {text}")


def _preprocess(
    base: Any,
    resize: str | None,
    crop: str | None,
    mean: str | None,
    std: str | None,
    scale: float | None,
    layout: str | None,
    channels: str | None,
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


def _print_json(document: Any) -> None:
    print(json.dumps(document, indent=2))


def main() -> None:
    """Exit codes: 0 done, 2 a user's mistake, 130 interrupted."""
    try:
        app()
    except InputError as error:
        print(f"error: {error}", file=sys.stderr)
        sys.exit(2)
    except SystemExit as stop:
        if stop.code == 130:
            print("interrupted; nothing was written", file=sys.stderr)
        raise


if __name__ == "__main__":
    main()
