"""A sweep in the terminal: a bar over all cells, and a line for each one that is being computed."""

from __future__ import annotations

import sys
from collections.abc import Mapping, Sequence
from typing import Any

from rich.console import Console
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TaskID, TextColumn, TimeElapsedColumn

from leadline.sweep.cell import Cell
from leadline.sweep.outcome import number


class Display:
    """Bars on standard error while a terminal looks, and a line for each cell that ends. Use as a with-block."""

    def __init__(self, columns: Sequence[str]) -> None:
        self._columns = columns
        self._console = Console(stderr=True)
        layout = (TextColumn("{task.description}"), BarColumn(20), MofNCompleteColumn(), TimeElapsedColumn())
        self._progress = Progress(*layout, console=self._console, disable=not sys.stderr.isatty())
        self._all: TaskID | None = None
        self._cells: dict[int, TaskID] = {}
        self._labels: dict[int, str] = {}

    def __enter__(self) -> Display:
        self._progress.start()
        return self

    def __exit__(self, *raised: Any) -> None:
        self._progress.stop()

    def planned(self, total: int, done: int) -> None:
        self._all = self._progress.add_task("cells", total=total, completed=done)

    def started(self, job: int, cell: Cell) -> None:
        self._labels[job] = cell.label
        self._cells[job] = self._progress.add_task(f"  {cell.label}", total=None)

    def progress(self, job: int, what: str, done: int, total: int) -> None:
        if job in self._cells:
            text = f"  {self._labels[job]}: {what}"
            self._progress.update(self._cells[job], description=text, completed=done, total=total or None)

    def ended(self, job: int, cell: Cell, state: str, figures: Mapping[str, float], error: str) -> None:
        if job in self._cells:
            self._progress.remove_task(self._cells.pop(job))
        if self._all is not None:
            self._progress.advance(self._all)
        shown = [f"{name} {number(name, figures[name])}" for name in self._columns if name in figures]
        what = ", ".join(shown) if state == "complete" else f"{state} {error.strip().rpartition(chr(10))[2]}".strip()
        self.say(f"{cell.label}: {what}")

    def say(self, text: str) -> None:
        self._console.print(text, markup=False, highlight=False, soft_wrap=True)
