"""Inspections, comparisons and audits as tables in the terminal, and as pages of one file."""

from __future__ import annotations

import os
import traceback
import warnings
from collections.abc import Callable, Iterable
from pathlib import Path
from typing import TYPE_CHECKING, Any

from rich.filesize import decimal

import leadline
from leadline.files import REPORT, replacing

if TYPE_CHECKING:
    from rich.console import Console

    from leadline.audit import Audit
    from leadline.inspector import Difference, Inspection


_WORDS = {
    "unsupported": "not supported",
    "unknown": "not asked",
    "rewrite": "supported once rewritten",
    "float": "stay in float",
    "supported": "supported",
}


def show_inspection(inspection: Inspection, console: Console) -> None:
    """What a file holds, as a table."""
    _show(inspection.rows(), console)


def show_difference(difference: Difference, console: Console) -> None:
    """What differs between two files, as a table."""
    _show(difference.rows(), console)


def write_inspection(inspection: Inspection, path: str | os.PathLike[str]) -> None:
    """What a file holds, as a page that opens anywhere. Raises InputError when the folder cannot be written."""
    write_page(path, lambda: render("inspection.html", inspection=inspection.to_dict()))


def write_difference(difference: Difference, path: str | os.PathLike[str]) -> None:
    """What differs between two files, likewise."""
    write_page(path, lambda: render("difference.html", difference=difference.to_dict()))


def show_audit(audit: Audit, console: Console) -> None:
    """What a target says, and what leadline's import did before, as tables."""
    from rich.table import Table

    console.print(f"{audit.file} for {audit.target}: {audit.basis}", markup=False, highlight=False, soft_wrap=True)
    for rewrite in audit.rewrites:
        console.print(f"  {rewrite.text} ({rewrite.how})", markup=False, highlight=False, soft_wrap=True)
    table = Table("operator", "count", "", "answer", box=None)
    for row in audit.rows():
        table.add_row(*row)
    console.print(table, markup=False)
    counts = [f"{count} {_WORDS[status]}" for status, count in audit.counts().items() if count]
    console.print(f"operators: {', '.join(counts)}", markup=False, highlight=False)


def write_audit(audit: Audit, path: str | os.PathLike[str]) -> None:
    """The same as a page."""
    write_page(path, lambda: render("audit.html", audit=audit.to_dict(), words=_WORDS))


def _show(rows: Iterable[tuple[str, str]], console: Console) -> None:
    from rich.table import Table

    table = Table("", "", box=None, show_header=False)
    for key, value in rows:
        table.add_row(str(key), str(value))
    console.print(table, markup=False)


def write_page(path: str | os.PathLike[str], draw: Callable[[], str]) -> bool:
    """Write the page that `draw` gives, and whether that went well.

    The work is done when its page is drawn, so a page that cannot be drawn does not undo it: the traceback goes to
    ``report-error.txt`` beside the page, an earlier page goes, and a warning says so. Raises InputError when the folder
    cannot be written.
    """
    page = Path(path)
    failure = page.with_name(REPORT[-1])
    try:
        text = draw()
    except Exception as error:
        with replacing(failure) as temporary:
            temporary.write_text(traceback.format_exc(), "utf-8", "replace")
        page.unlink(missing_ok=True)
        what = f"{type(error).__name__}: {error}"
        warnings.warn(f"[report] '{page}' could not be drawn ({what}); the traceback is in '{failure}'", stacklevel=3)
        return False
    with replacing(page) as temporary:
        temporary.write_text(text, "utf-8", "replace")  # names of files may hold bytes that are no UTF-8
    failure.unlink(missing_ok=True)
    return True


def render(template: str, **values: Any) -> str:
    """One of the templates beside this file as a page that needs nothing else."""
    from jinja2 import Environment, PackageLoader, StrictUndefined

    environment = Environment(
        loader=PackageLoader("leadline.report", "."),
        autoescape=True,
        undefined=StrictUndefined,
        trim_blocks=True,
        lstrip_blocks=True,
    )
    environment.filters["size"] = decimal
    return environment.get_template(template).render(leadline=leadline.__version__, **values)
