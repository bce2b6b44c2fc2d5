"""Every public name has a docstring and stands in docs/api.md, and nothing else is public."""

from __future__ import annotations

import importlib
import importlib.util
from pathlib import Path
from types import ModuleType

import pytest

import leadline

SCRIPT = Path(__file__).parents[1] / "docs" / "api.py"
if not SCRIPT.is_file():
    pytest.skip("there are no sources", allow_module_level=True)


def script() -> ModuleType:
    spec = importlib.util.spec_from_file_location("api", SCRIPT)
    assert spec is not None and spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


API = script()
PUBLIC = [(module, name) for module in API.MODULES for name in API.names(module)]


def test_the_page_is_what_the_sources_say() -> None:
    assert SCRIPT.with_suffix(".md").read_text("utf-8") == API.page(), "run python docs/api.py"


@pytest.mark.parametrize(("module", "name"), PUBLIC, ids=[f"{module}.{name}" for module, name in PUBLIC])
def test_every_public_name_says_what_it_is(module: str, name: str) -> None:
    assert len(API.said(module, name)) > 8


def test_the_package_shows_these_names_and_no_others() -> None:
    assert [name for name in dir(leadline) if name != "__version__"] == sorted(API.names("leadline"))


@pytest.mark.parametrize("module", API.MODULES)
def test_what_is_listed_can_be_imported(module: str) -> None:
    if module == "leadline.torch":
        pytest.importorskip("torch", reason="torch is not installed")
    loaded = importlib.import_module(module)
    assert [name for name in API.names(module) if not hasattr(loaded, name)] == []


def test_the_steps_come_from_one_place() -> None:
    from leadline import options, recipe

    assert {kind.__name__ for kind in options.STEPS.values()} <= set(recipe.__all__)
