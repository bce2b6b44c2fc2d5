"""Inspections, comparisons and audits as tables in the terminal, and as pages of one file."""

from __future__ import annotations

import os
from collections.abc import Iterable
from pathlib import Path
from typing import TYPE_CHECKING, Any

from rich.filesize import decimal

import leadline
from leadline.files import replacing

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
    write_page(path, "inspection.html", leadline=leadline.__version__, found=inspection.to_dict())


def write_difference(difference: Difference, path: str | os.PathLike[str]) -> None:
    """What differs between two files, likewise."""
    write_page(path, "difference.html", leadline=leadline.__version__, found=difference.to_dict())


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
    write_page(path, "audit.html", leadline=leadline.__version__, found=audit.to_dict(), words=_WORDS)


def _show(rows: Iterable[tuple[str, str]], console: Console) -> None:
    from rich.table import Table

    table = Table("", "", box=None, show_header=False)
    for key, value in rows:
        table.add_row(str(key), str(value))
    console.print(table, markup=False)


def write_page(path: str | os.PathLike[str], template: str, **values: Any) -> None:
    """Render one of the templates beside this file into a page that needs nothing else.

    Raises InputError when the folder cannot be written.
    """
    from jinja2 import Environment, PackageLoader, StrictUndefined

    environment = Environment(
        loader=PackageLoader("leadline.report", "."),
        autoescape=True,
        undefined=StrictUndefined,
        trim_blocks=True,
        lstrip_blocks=True,
    )
    environment.filters["size"] = decimal
    page = environment.get_template(template).render(**values)
    with replacing(Path(path)) as temporary:
        temporary.write_text(page, "utf-8")
