"""Commands of sweeps: run one, look at it, write its tables again."""

from __future__ import annotations

import sys
from pathlib import Path
from typing import Annotated, Any

import typer
from rich.console import Console
from typer.core import TyperGroup

from leadline.cli import flags
from leadline.types import refuse

Where = Annotated[str, typer.Argument(help="A sweep's folder, or the URL of a storage.")]
Study = Annotated[str | None, typer.Option(help="Which sweep of the storage. Default: the newest.")]


class _Runs(TyperGroup):
    """``leadline sweep FILE`` is ``leadline sweep run FILE``."""

    def parse_args(self, ctx: Any, args: list[str]) -> list[str]:
        if args and args[0] not in self.commands and args[0] not in ("--help", "-h"):
            args = ["run", *args]
        return super().parse_args(ctx, args)


app = typer.Typer(cls=_Runs, no_args_is_help=True, help="Many recipes on many networks, each cell computed once.")


@app.command()
def run(
    sweep: Annotated[str, typer.Argument(help="A TOML file, or the name of a shipped sweep (see `sweep list`).")],
    out: Annotated[Path, typer.Option(help="Folder for the embedded storage, tables and page.")] = Path("sweep"),
    engine: Annotated[str, typer.Option(help="local or ray.")] = "local",
    storage: Annotated[
        str | None, typer.Option(help="URL of a database that drivers share. Default: in --out.")
    ] = None,
    workers: Annotated[int | None, typer.Option(help="Processes. Default: one for each processor.")] = None,
    threads: Annotated[int | None, typer.Option(help="Threads of each. Default: processors / workers.")] = None,
    resume: Annotated[bool, typer.Option("--resume", help="Go on with a sweep that has begun.")] = False,
    retry: Annotated[bool, typer.Option("--retry", help="Compute failed cells again.")] = False,
    share: Annotated[bool, typer.Option(help="Compute what cells have in common once.")] = True,
    as_json: flags.Json = False,
) -> None:
    """Compute the cells of a sweep, and write tables and a page."""
    from leadline.sweep import Sweep
    from leadline.sweep import run as compute
    from leadline.sweep.watch import Display

    loaded = Sweep.load(sweep)
    with Display(loaded.columns) as display:
        found = compute(
            loaded,
            out,
            engine=engine,
            storage=storage,
            workers=workers,
            threads=threads,
            resume=resume,
            retry=retry,
            share=share,
            watcher=display,
        )
    _write(found, out)
    _show(found, as_json)


@app.command()
def status(where: Where, study: Study = None, as_json: flags.Json = False) -> None:
    """How far a sweep has come, what is being computed, what failed."""
    found = _find(where, study)
    if as_json:
        flags.print_json(_document(found))
        return
    console = Console(highlight=False, soft_wrap=True)
    counts = ", ".join(f"{count} {state}" for state, count in found.count().items() if count)
    console.print(f"{found.study}: {counts or 'nothing yet'}, of {found.about['planned']}", markup=False)
    for row in found.rows:
        text = ", ".join(f"{key}={value}" for key, value in row.values.items())
        if row.state == "running":
            console.print(f"running {row.number}: {text}, on {row.driver}", markup=False)
        elif row.state == "fail":
            console.print(f"failed {row.number}: {text}\n{row.error.rstrip()}", markup=False)
    best = found.best()
    if best is not None:
        figures = ", ".join(f"{name} {best.figures[name]:.5g}" for name in found.about["objectives"])
        console.print(f"best {best.number}: {figures}; {dict(best.values)}", markup=False)


@app.command()
def report(where: Where, out: Annotated[Path, typer.Option(help="Folder.")], study: Study = None) -> None:
    """Write a sweep's cells, tables and page once more."""
    found = _find(where, study)
    _write(found, out)


@app.command()
def compare(
    folder: Annotated[Path, typer.Argument(help="A sweep's folder.")],
    first: Annotated[int, typer.Argument(help="A cell's number, as in cells.csv.")],
    second: Annotated[int, typer.Argument(help="Another one's.")],
    storage: Annotated[str | None, typer.Option(help="URL of the storage. Default: in the folder.")] = None,
    study: Study = None,
    threads: flags.Threads = None,
) -> None:
    """Two cells layer by layer: a page in the sweep's folder."""
    from leadline.cache import Cache
    from leadline.progress import Bars
    from leadline.sweep import versus

    found = _find(storage or str(folder), study)
    cache = Cache(folder / "shared")
    if versus.write(found, first, second, folder, cache=cache, threads=threads, progress=Bars()):
        Console(stderr=True).print(f"wrote {folder}/compare-{first}-{second}.html", markup=False)


@app.command()
@flags.with_data
def mix(
    model: Annotated[Path, typer.Argument(help="A float ONNX network.")],
    data: flags.Given,
    out: Annotated[Path, typer.Option(help="Folder for sensitivity.csv and the recipe.")],
    recipe: Annotated[str, typer.Option(help="The recipe to begin from.")] = "w8a8",
    weights: Annotated[str, typer.Option(help="Widths to choose from, with commas.")] = "4,8",
    activations: Annotated[str, typer.Option(help="Likewise; empty: as the recipe has them.")] = "8,16",
    size: Annotated[
        float | None, typer.Option(help="Bytes of the weights, or up to 1 a share of their widest.")
    ] = None,
    traffic: Annotated[float | None, typer.Option(help="Bytes of the activations, likewise.")] = None,
    sqnr: Annotated[float | None, typer.Option(help="dB to keep, in place of the others.")] = None,
    threads: flags.Threads = None,
) -> None:
    """Measure what each tensor costs at each width, and write a recipe of mixed precision."""
    from leadline.cache import Cache
    from leadline.progress import Bars
    from leadline.recipe import Recipe
    from leadline.sweep import mixed_precision, sensitivity

    base = Recipe.load(recipe)
    widths = {"weights": _widths("weights", weights), "activations": _widths("activations", activations)}
    if (sqnr is None) == (size is None and traffic is None):
        raise refuse("leadline", "there must be a budget: --size, --traffic, or both, or --sqnr", "none or all")
    found = sensitivity(
        model,
        data.over(base.data),
        {kind: bits for kind, bits in widths.items() if bits},  # type: ignore[misc]
        recipe=base,
        threads=threads,
        progress=Bars(),
        cache=Cache(out / "shared"),
    )
    found.to_csv(out / "sensitivity.csv")
    mixed = mixed_precision(found, size=size, traffic=traffic, sqnr=sqnr)
    mixed.save(out / "mixed.toml")
    print(mixed.description)
    Console(stderr=True).print(f"wrote {out}/mixed.toml, sensitivity.csv", markup=False)


def _widths(flag: str, text: str) -> list[int]:
    try:
        return [int(part) for part in text.split(",") if part.strip()]
    except ValueError:
        raise refuse("leadline", f"--{flag} must be whole numbers with commas between them", repr(text)) from None


@app.command("list")
def list_() -> None:
    """The sweeps that come with leadline."""
    from rich.table import Table

    from leadline.sweep import Sweep

    table = Table("sweep", "what it shows", box=None)
    for name in Sweep.names():
        table.add_row(name, Sweep.load(name).description)
    Console().print(table)


def _find(where: str, study: str | None) -> Any:
    from leadline.sweep import results
    from leadline.sweep.store import sqlite, studies

    if "://" not in where and not (Path(where) / "sweep.db").is_file():
        raise refuse("sweep", "there must be a sweep: a folder with sweep.db, or a storage's URL", where)
    url = where if "://" in where else sqlite(Path(where))
    known = studies(url)
    if not known:
        raise refuse("sweep", "the storage must hold a sweep", where)
    return results(url, study or known[0])


def _write(found: Any, out: Path) -> None:
    from leadline.sweep import page
    from leadline.sweep.outcome import write

    write(found, out)
    drawn = ["report.html"] if page.write(found, out) else []
    names = [*drawn, "tables.md", "tables.tex", "cells.csv", "cells.parquet"]
    Console(stderr=True).print(f"wrote {out}/{', '.join(names)}", markup=False)


def _show(found: Any, as_json: bool) -> None:
    from rich.table import Table

    if as_json:
        flags.print_json(_document(found))
        return
    names, rows = found.table()
    table = Table(*(name.removeprefix("steps.") for name in names), box=None)
    for row in rows:
        table.add_row(*row)
    Console(width=None if sys.stdout.isatty() else 240).print(table, markup=False)
    for row in found.failed:
        print(f"failed {row.number}: {dict(row.values)}: {row.error.strip().splitlines()[-1]}")


def _document(found: Any) -> dict[str, Any]:
    rows = [{"number": row.number, "state": row.state, "key": row.key, "values": dict(row.values),
             "figures": dict(row.figures), "error": row.error} for row in found.rows]  # fmt: skip
    return {"study": found.study, "planned": found.about["planned"], "count": found.count(), "cells": rows}
