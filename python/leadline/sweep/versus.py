"""Two cells side by side, layer by layer."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from leadline.cache import Cache
from leadline.progress import Progress
from leadline.report.artefacts import write_page
from leadline.report.charts import available
from leadline.sweep import charts, page
from leadline.sweep.cell import Cell
from leadline.sweep.measure import quantize_cell
from leadline.sweep.outcome import Results, Table, number
from leadline.sweep.store import Row
from leadline.types import refuse

SHOWN = 40
"""Tensors that the page lists, those first whose SQNR differs most."""


def write(
    results: Results,
    first: int,
    second: int,
    folder: Path,
    *,
    cache: Cache | None = None,
    threads: int | None = None,
    progress: Progress | None = None,
) -> bool:
    """``compare-<first>-<second>.html``: settings, figures, and each tensor's SQNR and bits in both cells.

    Both are computed again (what they share with the sweep comes from the cache) and verified on the held-out samples.
    Returns whether the page could be drawn; where not there is a warning.

    Raises InputError for a number that no finished cell has.
    """
    rows = [_row(results, one) for one in (first, second)]
    layers = [_layers(row, cache, threads, progress) for row in rows]
    names = tuple(dict.fromkeys([*layers[0], *layers[1]]))
    table = [{"name": name, "order": i} | _sides(layers, name) for i, name in enumerate(names)]
    labels = (f"cell {first}", f"cell {second}")

    def draw() -> str:
        return page.page(
            title=f"{results.about['name']}: {labels[0]} and {labels[1]}",
            description="SQNR on the held-out samples, beside the float network.",
            counts={},
            tables=[
                ("what differs", _settings(rows, labels)),
                ("figures", _figures(rows, labels)),
                _tensors(table, labels),
            ],
            drawn={"layers": charts.bars(table, labels)} if available() else {},
            failed=[],
        )

    return write_page(folder / f"compare-{first}-{second}.html", draw)


def _row(results: Results, number: int) -> Row:
    found = [row for row in results.complete if row.number == number]
    if not found:
        known = ", ".join(str(row.number) for row in results.complete) or "none"
        raise refuse("sweep", f"a cell must be one of the finished ones, {known}", number)
    return found[0]


def _layers(row: Row, cache: Cache | None, threads: int | None, progress: Progress | None) -> dict[str, dict[str, Any]]:
    """Of each compared tensor, in order: its SQNR, and the bits of its grid and of the weight before it."""
    cell = Cell.from_dict(row.cell, row.values)
    _, quantized = quantize_cell(cell, cache=cache, threads=threads, progress=progress)
    weights = {layer.output: layer.weight for layer in quantized.graph.layers()}
    found = {}
    for score in sorted(quantized.verify(threads=threads, progress=progress).tensors, key=lambda score: score.order):
        grids = [quantized.grids.get(name) for name in (weights.get(score.name, ""), score.name)]
        bits = "/".join(str(grid.scheme.bits) if grid else "–" for grid in grids)
        found[score.name] = {"db": score.sqnr, "bits": bits}
    return found


def _sides(layers: list[dict[str, dict[str, Any]]], name: str) -> dict[str, Any]:
    a, b = (side.get(name) for side in layers)
    return {"a": a and a["db"], "b": b and b["db"], "bits": (a["bits"] if a else "", b["bits"] if b else "")}


def _settings(rows: list[Row], labels: tuple[str, str]) -> Table:
    keys = [key for key in rows[0].values if rows[0].values[key] != rows[1].values.get(key)]
    return ["", *labels], [[key, *(str(row.values.get(key)) for row in rows)] for key in keys]


def _figures(rows: list[Row], labels: tuple[str, str]) -> Table:
    names = [name for name in rows[0].figures if not name.startswith("float.")]
    return ["", *labels], [[name, *(number(name, row.figures.get(name)) for row in rows)] for name in names]


def _tensors(table: list[dict[str, Any]], labels: tuple[str, str]) -> tuple[str, Table]:
    both = [row for row in table if row["a"] is not None and row["b"] is not None]
    both.sort(key=lambda row: -abs(row["a"] - row["b"]))
    head = ["tensor", *(f"{label}, dB" for label in labels), "difference", *(f"bits, {label}" for label in labels)]
    rows = [
        [row["name"], f"{row['a']:.1f}", f"{row['b']:.1f}", f"{row['b'] - row['a']:+.1f}", *row["bits"]]
        for row in both[:SHOWN]
    ]
    return "tensors that differ most; bits of weight/activation", (head, rows)
