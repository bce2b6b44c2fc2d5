"""The codebase tests itself: versions, lean imports, layers, docstrings, sizes, no trace of a machine."""

from __future__ import annotations

import ast
import re
import subprocess
import sys
import tomllib
from importlib.metadata import version
from pathlib import Path

import pytest

import leadline

ROOT = Path(__file__).parents[1]
PACKAGE = ROOT / "python" / "leadline"
MODULES = sorted(PACKAGE.rglob("*.py"))
SOURCES = [
    file
    for folder in ("python", "cpp", "tests", "benchmarks", "notebooks")
    for file in (ROOT / folder).rglob("*")
    if file.suffix in {".py", ".pyi", ".cpp", ".hpp", ".toml", ".html", ".ipynb", ".md", ".txt"}
] + [file for file in ROOT.iterdir() if file.is_file() and file.suffix in {".md", ".toml", ".txt", ""}]
HEAVY = ["onnx", "onnxruntime", "PIL", "torch", "rich", "typer", "jinja2", "av", "ml_dtypes"]


def name(file: Path) -> str:
    return file.relative_to(ROOT).as_posix()


def test_there_is_something_to_look_at():
    assert len(MODULES) > 30 and len(SOURCES) > len(MODULES)


def test_the_versions_agree():
    stated = tomllib.loads((ROOT / "pyproject.toml").read_text("utf-8"))["project"]["version"]
    assert stated == leadline.__version__ == version("leadline")
    elsewhere = [name(f) for f in MODULES if re.search(rf"""['"]{re.escape(stated)}['"]""", f.read_text("utf-8"))]
    assert elsewhere == []


def test_importing_is_lean():
    """The bound is generous; benchmarks measure the 0.3 s of a quiet machine."""
    program = (
        "import sys, time, numpy; start = time.perf_counter(); import leadline; took = time.perf_counter() - start\n"
        f"print(took, *(m for m in {HEAVY} if m in sys.modules))"
    )
    done = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True, check=True, timeout=60)
    took, *loaded = done.stdout.split()
    assert loaded == []
    assert float(took) < 2


@pytest.mark.parametrize("module", ["leadline.recipe", "leadline.files", "leadline.equalization", "leadline.sqnr"])
def test_plain_modules_stay_plain(module):
    program = f"import sys, {module}; print(*(m for m in {HEAVY} if m in sys.modules))"
    done = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True, check=True, timeout=60)
    assert done.stdout.split() == []


def test_what_the_package_offers_is_there():
    for public in (*leadline.__all__, "Graph", "Recipe", "quantize", "verify"):
        assert getattr(leadline, public) is not None
    with pytest.raises(AttributeError, match="nonsense"):
        _ = leadline.nonsense


def test_layers_are_kept():
    pytest.importorskip("importlinter")
    program = "from importlinter.cli import lint_imports_command; lint_imports_command(['--no-cache'])"
    done = subprocess.run([sys.executable, "-c", program], cwd=ROOT, capture_output=True, text=True, timeout=120)
    assert done.returncode == 0, done.stdout + done.stderr
    assert "0 broken" in done.stdout


def imports(file: Path) -> set[str]:
    """Modules that a file imports anywhere in it."""
    found = set()
    for item in ast.walk(ast.parse(file.read_text("utf-8"))):
        if isinstance(item, ast.Import):
            found |= {alias.name for alias in item.names}
        elif isinstance(item, ast.ImportFrom) and item.module:
            found |= {item.module, *(f"{item.module}.{alias.name}" for alias in item.names)}
    return found


def within(modules: set[str], *packages: str) -> set[str]:
    return {m for m in modules for p in packages if m == p or m.startswith(p + ".")}


def test_exporters_know_no_algorithm_and_algorithms_no_exporter():
    for file in (PACKAGE / "export").rglob("*.py"):
        assert within(imports(file), "leadline.steps", "leadline.recipe", "leadline.pipeline") == set()
    for file in (PACKAGE / "steps").rglob("*.py"):
        assert within(imports(file), "leadline.export", "leadline.targets", "leadline.pipeline") == set()


def test_algorithms_know_no_framework():
    stems = ("affine", "decide", "options", "gram", "equalization", "compensation", "sqnr", "arrays")
    folders = (file for name in ("observers", "rounding", "steps") for file in (PACKAGE / name).rglob("*.py"))
    for file in (*(PACKAGE / f"{stem}.py" for stem in stems), *folders):
        assert within(imports(file), "onnx", "onnxruntime", "torch") == set(), name(file)


def read_at_run_time(tree: ast.Module) -> list[ast.AST]:
    """All nodes but those that only a type checker reads."""
    checked = [one for one in ast.walk(tree) if isinstance(one, ast.If) and ast.unparse(one.test) == "TYPE_CHECKING"]
    left = {id(inner) for one in checked for inner in ast.walk(one)}
    return [one for one in ast.walk(tree) if id(one) not in left]


def test_no_modules_stand_in_a_circle():
    """Imports inside functions count, too: what they tie together is understood together alone."""
    files = {".".join(file.relative_to(PACKAGE.parent).with_suffix("").parts): file for file in MODULES}
    files = {module.removesuffix(".__init__"): file for module, file in files.items()}
    edges: dict[str, set[str]] = {}
    for module, file in files.items():
        wanted = set()
        for node in read_at_run_time(ast.parse(file.read_text("utf-8"))):
            if isinstance(node, ast.ImportFrom) and node.module:
                whole = {f"{node.module}.{alias.name}" for alias in node.names}
                wanted |= {one if one in files else node.module for one in whole}
            elif isinstance(node, ast.Import):
                wanted |= {alias.name for alias in node.names}
        edges[module] = wanted & files.keys() - {module}
    while free := [module for module, wanted in edges.items() if not wanted & edges.keys()]:
        for module in free:
            del edges[module]
    assert not edges, f"in a circle, or above one: {sorted(edges)}"


def test_every_module_says_what_it_is():
    assert [name(f) for f in MODULES if not ast.get_docstring(ast.parse(f.read_text("utf-8")))] == []


def test_what_the_package_offers_is_documented():
    for public in (*leadline.__all__, "Graph", "Recipe", "quantize", "verify"):
        assert len(getattr(leadline, public).__doc__ or "") > 20, public


def test_files_are_short():
    """400 lines is a smell; tests, which are lists, may have 600."""
    code = [f for f in SOURCES if f.suffix in {".py", ".cpp", ".hpp"}]
    lines = {name(f): len(f.read_text("utf-8").splitlines()) for f in code}
    assert {f: n for f, n in lines.items() if n > (600 if f.startswith("tests/") else 400)} == {}


def test_no_path_of_a_machine_is_committed():
    """Home folders and the like, in networks, too, whose exporters note where nodes come from; "somebody" is nobody."""
    homes = re.compile("/(?:home|Users|root|work|mnt)/(?!somebody)[a-z]" + r"|[A-Z]:\\\\Users")
    networks = [file for folder in ("python", "benchmarks") for file in (ROOT / folder).rglob("*.onnx")]
    texts = ((file, file.read_text("utf-8", "replace")) for file in (*SOURCES, *networks) if file != Path(__file__))
    assert [name(file) for file, text in texts if homes.search(text)] == [] and networks


def test_nothing_is_left_to_do():
    marks = re.compile(r"\b(?:TO" + r"DO|FIX" + r"ME|XX" + r"X)\b")
    assert [name(f) for f in SOURCES if marks.search(f.read_text("utf-8"))] == []
