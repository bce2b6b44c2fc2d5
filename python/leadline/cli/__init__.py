"""The command line: flags to calls, nothing else."""

from __future__ import annotations

import sys
import warnings
from io import TextIOWrapper

import typer

from leadline.cli import about, artefacts, audits, networks, sweep
from leadline.types import InputError

app = typer.Typer(
    help="A trained vision network in, a verified low-bit artefact out.",
    no_args_is_help=True,
    add_completion=False,
    pretty_exceptions_enable=False,
    rich_markup_mode="rich",
)
for command in (
    networks.demo,
    networks.quantize,
    networks.verify,
    artefacts.inspect,
    artefacts.convert,
    audits.audit,
    about.recipe,
    about.info,
):
    app.command()(command)
app.add_typer(sweep.app, name="sweep")


def main() -> None:
    """Exit codes: 0 done, 1 an audit found what its target refuses, 2 a user's mistake, 3 done, but the artefact has
    collapsed, 130 interrupted."""
    for stream in (sys.stdout, sys.stderr):
        if isinstance(stream, TextIOWrapper):  # a name that the terminal cannot spell stops no run
            stream.reconfigure(errors="backslashreplace")
    try:
        with warnings.catch_warnings():
            warnings.showwarning = lambda message, *_: print(f"warning: {message}", file=sys.stderr)
            app()
    except InputError as error:
        print(f"error: {error}", file=sys.stderr)
        sys.exit(2)
    except SystemExit as stop:
        if stop.code == 130:
            print("interrupted; nothing half-written is left", file=sys.stderr)
        raise
