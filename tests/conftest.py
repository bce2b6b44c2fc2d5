"""What every test folder shares: the testbed and the benchmarks' task decoders are importable by name."""

import sys
from pathlib import Path

import pytest

HERE = Path(__file__).parent
for folder in (HERE, HERE.parent / "benchmarks"):
    if str(folder) not in sys.path:
        sys.path.insert(0, str(folder))


@pytest.hookimpl(tryfirst=True)
def pytest_runtest_setup() -> None:
    """Each test gets the same random numbers, whichever ran before it."""
    if models := sys.modules.get("graph_models"):
        models.seed()
