"""Writes docs/api.md: every public name of leadline with the first sentence of what it says of itself.

    python docs/api.py

Reads sources only, so that it needs nothing installed.
"""

from __future__ import annotations

import ast
import functools
from pathlib import Path

ROOT = Path(__file__).parents[1]

MODULES = (
    "leadline",
    "leadline.data",
    "leadline.graph",
    "leadline.recipe",
    "leadline.quantized",
    "leadline.verification",
    "leadline.targets",
    "leadline.audit",
    "leadline.inspector",
    "leadline.report",
    "leadline.sweep",
    "leadline.comparison",
    "leadline.evaluation",
    "leadline.depth",
    "leadline.torch",
    "leadline.systems",
    "leadline.export.qdq",
    "leadline.export.encodings",
    "leadline.affine",
    "leadline.observers",
    "leadline.gram",
    "leadline.rounding",
    "leadline.compensation",
    "leadline.equalization",
    "leadline.hadamard",
    "leadline.smoothing",
    "leadline.polishing",
    "leadline.fisher",
    "leadline.decide",
    "leadline.progress",
    "leadline.cache",
    "leadline.types",
)
"""What a user may import; everything else may change without a word."""


def file_of(module: str) -> Path:
    """The source of a module."""
    path = ROOT / "python" / Path(*module.split("."))
    return path / "__init__.py" if path.is_dir() else path.with_suffix(".py")


@functools.cache
def tree(module: str) -> ast.Module:
    """A module, parsed."""
    return ast.parse(file_of(module).read_text("utf-8"))


def _statements(module: str) -> list[ast.stmt]:
    """A module's statements, with those for type checkers in their place."""
    body = tree(module).body
    checked = [node for node in body if isinstance(node, ast.If) and ast.unparse(node.test) == "TYPE_CHECKING"]
    return [inner for node in body for inner in (node.body if node in checked else [node])]


def _bound(node: ast.stmt) -> str | None:
    """The name that an assignment, a class or a function binds."""
    if isinstance(node, (ast.FunctionDef, ast.ClassDef)):
        return node.name
    target = node.targets[0] if isinstance(node, ast.Assign) else getattr(node, "target", None)
    return target.id if isinstance(target, ast.Name) and isinstance(node, (ast.Assign, ast.AnnAssign)) else None


def names(module: str) -> list[str]:
    """The public names: ``__all__``, or what is defined there without an underscore; lazy ones, too."""
    listed: list[str] = []
    for node in tree(module).body:
        if isinstance(node, ast.Assign) and _bound(node) in ("__all__", "_LAZY"):
            listed += ast.literal_eval(node.value)
        elif isinstance(node, ast.AugAssign) and ast.unparse(node.target) == "__all__":
            listed += names(f"leadline.{ast.unparse(node.value).removesuffix('.__all__')}")
    if not listed:
        functions = (node for node in tree(module).body if isinstance(node, (ast.FunctionDef, ast.ClassDef)))
        listed = [node.name for node in functions if not node.name.startswith("_")]
    return sorted({*listed, *(["sweep"] if module == "leadline" else [])}, key=lambda name: (name.lower(), name))


def said(module: str, name: str) -> str:
    """The first sentence of a name's docstring, wherever it is defined; empty where it has none."""
    body = _statements(module)
    for i, node in enumerate(body):
        if _bound(node) == name:
            if isinstance(node, (ast.FunctionDef, ast.ClassDef)):
                return _first(ast.get_docstring(node)) or _of_base(module, node)
            below = body[i + 1] if i + 1 < len(body) else None
            return _first(ast.literal_eval(below.value)) if _is_text(below) else ""
        if isinstance(node, ast.Assign) and _bound(node) == "_LAZY" and name in ast.literal_eval(node.value):
            return said(ast.literal_eval(node.value)[name], name)
        if not isinstance(node, ast.ImportFrom) or not (node.module or "").startswith("leadline"):
            continue
        for alias in node.names:
            inner = f"{node.module}.{alias.name}"
            if (alias.asname or alias.name) == name:
                return _of_module(inner) if file_of(inner).is_file() else said(node.module or "", alias.name)
            if alias.name == "*" and name in names(node.module or ""):
                return said(node.module or "", name)
    inner = f"{module}.{name}"
    return _of_module(inner) if file_of(inner).is_file() else ""


def _of_base(module: str, node: ast.stmt) -> str:
    """Of a class that takes over the docstring of the class that it stands on, ``neighbour.Name``."""
    base = node.bases[0] if isinstance(node, ast.ClassDef) and node.bases else None
    if not isinstance(base, ast.Attribute) or not isinstance(base.value, ast.Name):
        return ""
    return said(f"{module.rpartition('.')[0]}.{base.value.id}", base.attr)


def _is_text(node: ast.stmt | None) -> bool:
    return isinstance(node, ast.Expr) and isinstance(node.value, ast.Constant) and isinstance(node.value.value, str)


def _of_module(module: str) -> str:
    return _first(ast.get_docstring(tree(module)))


def _first(text: str | None) -> str:
    """The first paragraph's first sentence, in one line."""
    line = " ".join((text or "").strip().split("\n\n")[0].split())
    end = line.find(". ")
    return line if end < 0 else line[: end + 1]


def page() -> str:
    """The page, as Markdown."""
    parts = ["# Public names", "What a user may import, from `python docs/api.py`. `help(name)` says the rest."]
    for module in MODULES:
        rows = [f"| `{name}` | {said(module, name).replace('|', chr(92) + '|')} |" for name in names(module)]
        parts += [f"## {module}", _of_module(module), "\n".join(["| name | what it is |", "|---|---|", *rows])]
    return "\n\n".join(parts) + "\n"


if __name__ == "__main__":
    (ROOT / "docs" / "api.md").write_text(page(), "utf-8")
