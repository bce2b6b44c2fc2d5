"""What every test folder shares: the testbed and the benchmarks' task decoders are importable by name."""

import functools
import sys
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

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


@pytest.fixture(scope="session", autouse=True)
def _artefacts_are_whole() -> Iterator[None]:
    """Whatever a test quantises or saves passes onnx's full check, and onnxruntime loads it, with and without its
    optimisations. Each content once."""
    from leadline.export import qdq
    from leadline.graph import Graph
    from leadline.pipeline import Quantized
    from loadable import check

    def checked(function: Callable[..., Any], what: Callable[..., Any]) -> Callable[..., Any]:
        @functools.wraps(function)
        def call(*given: Any, **options: Any) -> Any:
            result = function(*given, **options)
            check(what(result, *given))
            return result

        return call

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(Quantized, "to_qdq", checked(Quantized.to_qdq, lambda model, run: model))
        patch.setattr(Graph, "save", checked(Graph.save, lambda _, graph, path, *more: Path(path)))
        patch.setattr(qdq, "save", checked(qdq.save, lambda _, model, path, *more: Path(path)))
        yield
