"""Progress with time left, on standard error, through rich; silent where nobody looks."""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from contextlib import AbstractContextManager, contextmanager
from typing import Any, Protocol


class Progress(Protocol):
    """How long work shows how far it is; `Bars` and `Quiet` do."""

    def over(self, samples: Iterable[Any], what: str, total: int) -> Iterator[Any]: ...

    def __call__(self, what: str) -> AbstractContextManager[None]: ...


class Quiet:
    """Shows nothing: the default of the Python API."""

    def over(self, samples: Iterable[Any], what: str, total: int) -> Iterator[Any]:
        """Iterate over the samples."""
        yield from samples

    @contextmanager
    def __call__(self, what: str) -> Iterator[None]:
        """Name the work of a with-block that has no samples to count."""
        yield


class Bars(Quiet):
    """A bar for each pass, with time gone and time left; a bar that is done stays as a line with its time."""

    def __init__(self, console: Any = None) -> None:
        from rich.console import Console

        self.console = console or Console(stderr=True)

    def over(self, samples: Iterable[Any], what: str, total: int) -> Iterator[Any]:
        from rich.progress import (
            BarColumn,
            MofNCompleteColumn,
            Progress,
            TextColumn,
            TimeElapsedColumn,
            TimeRemainingColumn,
        )

        columns = (
            TextColumn("{task.description:<14}"),
            BarColumn(),
            MofNCompleteColumn(),
            TimeElapsedColumn(),
            TextColumn("left"),
            TimeRemainingColumn(),
        )
        with Progress(*columns, console=self.console) as progress:
            task = progress.add_task(what, total=total)
            for sample in samples:
                yield sample
                progress.advance(task)

    @contextmanager
    def __call__(self, what: str) -> Iterator[None]:
        with self.console.status(what):
            yield
        self.console.print(f"{what:<14} done")
