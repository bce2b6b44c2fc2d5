"""Commands about leadline itself: recipe, info."""

from __future__ import annotations

from typing import Annotated, Any

import typer
from rich.console import Console

from leadline.cli import flags
from leadline.recipe import Recipe


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


def info(as_json: flags.Json = False) -> None:
    """Versions and build of leadline, for bug reports."""
    import leadline

    facts: dict[str, Any] = {"version": leadline.__version__} | leadline.build_info() | {"recipes": Recipe.names()}
    if as_json:
        flags.print_json(facts)
        return
    for key, value in facts.items():
        text = ", ".join(value) if isinstance(value, (list, tuple)) else value
        print(f"{key}: {text}")
