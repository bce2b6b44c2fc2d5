"""What a sweep has found: rows, pivot tables in Markdown and LaTeX, Pareto fronts, files for other tools."""

from __future__ import annotations

import csv
import math
import os
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from leadline.display import table as html_table
from leadline.files import replacing
from leadline.sweep.metrics import DIRECTIONS, WHOLE
from leadline.sweep.store import Row
from leadline.types import refuse

Table = tuple[list[str], list[list[str]]]
"""Column names, and rows of text."""

DIGITS = {"sqnr": 2, "rmse": 3, "seconds": 1, "size": 0, "collapsed": 0}
"""Of a metric, behind the point; four for the others."""


@dataclass(frozen=True)
class Results:
    """The cells of one sweep as the storage has them.

    Attributes
    ----------
    study : str
        The name of the Optuna study.
    about : dict
        The sweep: "name", "varied", "columns" (the metrics to show), "objectives", "directions", "tables", "planned".
    rows : list of Row
    """

    study: str
    about: Mapping[str, Any]
    rows: Sequence[Row]

    @property
    def complete(self) -> list[Row]:
        """Cells that have their figures."""
        return [row for row in self.rows if row.state == "complete"]

    @property
    def failed(self) -> list[Row]:
        return [row for row in self.rows if row.state == "fail"]

    def count(self) -> dict[str, int]:
        """Cells by state."""
        states = [row.state for row in self.rows]
        return {state: states.count(state) for state in ("complete", "running", "waiting", "pruned", "fail")}

    def table(self) -> Table:
        """A row for each finished cell: what varies, then the metrics; in front the float networks."""
        varied, columns = list(self.about["varied"]), list(self.about["columns"])
        if len(self.complete) > 1:  # what a file fixes for all of its cells tells none of them apart
            varied = [key for key in varied if len({_text(row.values.get(key)) for row in self.complete}) > 1]
        rows = [
            [_text(row.values.get(key)) for key in varied]
            + [number(column, row.figures.get(column)) for column in columns]
            for row in self.complete
        ]
        return [key.removeprefix("steps.") for key in varied] + columns, self._floats(varied, columns) + rows

    def _floats(self, varied: Sequence[str], columns: Sequence[str]) -> list[list[str]]:
        """The float networks' own figures, where there is a truth."""
        found: dict[str, list[str]] = {}
        for row in self.complete:
            own = [number(column, row.figures.get(f"float.{column}")) for column in columns]
            network = str(row.values.get("network", ""))
            if any(own) and network not in found:
                name = {"network": network, "recipe": "float"}
                labels = [name.get(key, "") for key in varied]
                if "recipe" not in varied:
                    labels[0] = f"{labels[0]} float".strip()
                found[network] = [*labels, *own]
        return list(found.values()) if varied else []

    def pivot(self, rows: Sequence[str], columns: Sequence[str], value: str) -> Table:
        """The mean of a metric over the cells of each combination, with their number where it is not the same.

        Raises InputError for keys that do not vary and a metric that no cell has.
        """
        for key in (*rows, *columns):
            if key not in self.about["varied"]:
                raise refuse("pivot", f"keys must be among {', '.join(self.about['varied'])}", repr(key))
        cells: dict[tuple[str, ...], dict[tuple[str, ...], list[float]]] = {}
        heads: dict[tuple[str, ...], None] = {}
        for row in self.complete:
            if value not in row.figures:
                continue
            across = tuple(_text(row.values.get(key)) for key in columns)
            down = tuple(_text(row.values.get(key)) for key in rows)
            heads[across] = None
            cells.setdefault(down, {}).setdefault(across, []).append(row.figures[value])
        if not cells and self.complete:
            raise refuse("pivot", "a metric must be one that the cells have", repr(value))
        sizes = {len(found) for line in cells.values() for found in line.values()}

        def shown(found: list[float]) -> str:
            text = number(value, sum(found) / len(found)) if found else ""
            return f"{text} ({len(found)})" if found and len(sizes) > 1 else text

        names = [
            ", ".join(f"{key.rpartition('.')[2]} {v}" for key, v in zip(columns, head, strict=True)) for head in heads
        ]
        lines = [[*down, *(shown(line.get(head, [])) for head in heads)] for down, line in cells.items()]
        return [*(key.removeprefix("steps.") for key in rows), *(name or value for name in names)], lines

    def apart(self, keys: Sequence[str], metric: str) -> list[dict[tuple[Any, ...], float]]:
        """Sets of cells that agree in all but `keys`: the mean of a metric by the keys' values.

        Where a key switches off what belongs to it, as `steps.polish` does its percentile, such a cell stands beside
        those of every value.
        """
        varied = [key for key in self.about["varied"] if key not in keys]
        below = [key for key in varied if key.startswith(tuple(f"{key}." for key in keys))]
        others = [key for key in varied if key not in below]
        sets: dict[tuple[str, ...], dict[tuple[Any, ...], dict[tuple[Any, ...], list[float]]]] = {}
        for row in self.complete:
            if metric in row.figures:
                rest, inner, own = (tuple(row.values.get(key) for key in names) for names in (others, below, keys))
                cells = sets.setdefault(tuple(map(_text, rest)), {}).setdefault(inner, {})
                cells.setdefault(own, []).append(row.figures[metric])
        found = []
        for parts in sets.values():
            off = parts.pop((None,) * len(below), {}) if len(parts) > 1 else {}
            found += [off | cells for cells in parts.values()]
        return [{values: sum(each) / len(each) for values, each in cells.items()} for cells in found]

    def effects(self, metric: str) -> dict[str, float]:
        """How far a metric moves when one parameter alone changes: its range over cells that agree in all others, the
        mean of all such sets; the largest first. Parameters that never change alone are left out."""
        found: dict[str, float] = {}
        for key in self.about["varied"]:
            ranges = [
                max(cells.values()) - min(cells.values()) for cells in self.apart([key], metric) if len(cells) > 1
            ]
            if ranges:
                found[key] = sum(ranges) / len(ranges)
        return dict(sorted(found.items(), key=lambda item: -item[1]))

    def front(self, objectives: Sequence[str] | None = None) -> list[Row]:
        """The Pareto front: cells that no other one beats in one objective without losing in another."""
        names = list(objectives or self.about["objectives"])
        signs = [-1 if DIRECTIONS[name.rpartition(".")[2]] == "maximize" else 1 for name in names]
        points = [
            (row, [sign * row.figures[name] for name, sign in zip(names, signs, strict=True)])
            for row in self.complete
            if all(math.isfinite(row.figures.get(name, math.nan)) for name in names)
        ]
        return [row for row, own in points if not any(_beats(other, own) for _, other in points)]

    def best(self) -> Row | None:
        """The front's first: the best cell where there is one objective."""
        return next(iter(self.front()), None)

    def to_csv(self, path: str | os.PathLike[str]) -> None:
        """All cells, finished or not: number, state, key, what varies, every figure, the last line of an error."""
        names, records = self._records()
        with replacing(path) as temporary, temporary.open("w", newline="", encoding="utf-8") as file:
            writer = csv.DictWriter(file, names, lineterminator="\n")
            writer.writeheader()
            writer.writerows(records)

    def to_parquet(self, path: str | os.PathLike[str]) -> None:
        """The same as Parquet. A column that holds numbers and texts is text. Raises InputError without pyarrow."""
        try:
            import pyarrow as pa
            import pyarrow.parquet as pq
        except ImportError:
            raise refuse("sweep", "Parquet needs pip install 'leadline[sweep]'", "no pyarrow") from None
        names, records = self._records()
        columns = {}
        for name in names:
            values = [record.get(name) for record in records]
            kinds = {type(value) for value in values if value is not None}
            if len(kinds) > 1:
                plain = kinds <= {int, float}
                values = [None if v is None else float(v) if plain else str(v) for v in values]
            columns[name] = pa.array(values) if kinds else pa.array(values, pa.string())
        with replacing(path) as temporary:
            pq.write_table(pa.table(columns), temporary)

    def _records(self) -> tuple[list[str], list[dict[str, Any]]]:
        figures = list(dict.fromkeys(name for row in self.rows for name in row.figures))
        names = ["number", "state", "key", *self.about["varied"], *figures, "error"]
        last = {row.number: row.error.strip().rpartition("\n")[2] for row in self.rows}
        return names, [
            {"number": row.number, "state": row.state, "key": row.key, "error": last[row.number]}
            | dict(row.values)
            | dict(row.figures)
            for row in self.rows
        ]

    def _repr_html_(self) -> str:
        names, rows = self.table()
        return html_table(names, rows, self.about["name"])


def tables(results: Results) -> list[tuple[str, Table]]:
    """All cells, and the pivot tables that the sweep asks for, with their titles."""
    found = [("all cells", results.table())]
    for asked in results.about["tables"]:
        for value in asked["values"] if asked["value"] else results.about["columns"]:
            found.append((value, results.pivot(asked["rows"], asked["columns"], value)))
    return found


def markdown(table: Table) -> str:
    """A pipe table; numbers to the right."""
    names, rows = table
    clean = [[text.replace("|", "\\|") for text in row] for row in (names, *rows)]
    right = [bool(rows) and all(_is_number(row[i]) for row in rows) for i in range(len(names))]
    rule = ["---:" if flag else "---" for flag in right]
    return "".join(f"| {' | '.join(row)} |\n" for row in (clean[0], rule, *clean[1:]))


def latex(table: Table, caption: str = "") -> str:
    """A ``table`` with a ``tabular`` of booktabs."""
    names, rows = table
    right = [bool(rows) and all(_is_number(row[i]) for row in rows) for i in range(len(names))]
    spec = "".join("r" if flag else "l" for flag in right)
    lines = [" & ".join(_escape(text) for text in row) + r" \\" for row in (names, *rows)]
    body = "\n".join([r"\toprule", lines[0], r"\midrule", *lines[1:], r"\bottomrule"])
    title = f"\\caption{{{_escape(caption)}}}\n" if caption else ""
    inner = f"\\begin{{tabular}}{{{spec}}}\n{body}\n\\end{{tabular}}\n"
    return f"\\begin{{table}}\n\\centering\n{inner}{title}\\end{{table}}\n"


def write(results: Results, folder: Path) -> None:
    """``cells.csv``, ``cells.parquet``, ``tables.md`` and ``tables.tex``."""
    results.to_csv(folder / "cells.csv")
    results.to_parquet(folder / "cells.parquet")
    found = tables(results)
    with replacing(folder / "tables.md") as temporary:
        temporary.write_text("\n".join(f"## {title}\n\n{markdown(one)}" for title, one in found), "utf-8")
    with replacing(folder / "tables.tex") as temporary:
        temporary.write_text(
            "\n".join(latex(one, f"{results.about['name']}: {title}") for title, one in found), "utf-8"
        )


def number(metric: str, value: float | None) -> str:
    """A figure as tables show it; sizes in kB."""
    if value is None:
        return ""
    stem = metric.rpartition(".")[2]
    return f"{value / 1e3:,.0f} kB" if stem == WHOLE[0] else f"{value:.{DIGITS.get(stem, 4)}f}"


def _text(value: Any) -> str:
    return "–" if value is None else str(value).lower() if isinstance(value, bool) else str(value)


def _is_number(text: str) -> bool:
    return text.replace("–", "")[:1].isdigit() or text in ("", "–") or text[:1] == "-"


def _beats(other: Sequence[float], own: Sequence[float]) -> bool:
    return all(a <= b for a, b in zip(other, own, strict=True)) and any(a < b for a, b in zip(other, own, strict=True))


def _escape(text: str) -> str:
    for mark in "&%$#_{}":
        text = text.replace(mark, f"\\{mark}")
    return text
