"""Chooses the compiled module: one of two built from the same sources on x86-64, the only one elsewhere.

The environment variable LEADLINE_ISA ("v2" or "v3") overrides the choice.
"""

from __future__ import annotations

import os
import platform
from importlib import import_module
from importlib.metadata import version
from types import ModuleType
from typing import Any

from leadline.types import refuse


def _load(name: str) -> ModuleType:
    try:
        return import_module(f"leadline.{name}")
    except ImportError as error:
        hint = f"the compiled module leadline.{name} cannot be loaded: install leadline with `pip install .`"
        raise ImportError(f"{hint} ({error})") from error


def _choose() -> ModuleType:
    wanted = os.environ.get("LEADLINE_ISA", "")
    levels = ("v2", "v3") if platform.machine().lower() in ("x86_64", "amd64") else ()
    if wanted and wanted not in levels:
        known = " or ".join(levels) or "unset on this processor"
        raise refuse("import leadline", f"the environment variable LEADLINE_ISA must be {known}", repr(wanted))
    if not levels:
        return _load("_core")
    baseline = _load("_core_v2")
    has_v3: bool = baseline.supports_v3()
    if wanted == "v3" and not has_v3:
        raise refuse(
            "import leadline", "LEADLINE_ISA=v3 needs a processor with AVX2, FMA and BMI2", platform.processor()
        )
    return baseline if wanted == "v2" or not has_v3 else _load("_core_v3")


core: Any = _choose()


def thread_count(threads: int | None, function: str) -> int:
    """Checks a `threads` argument: None (the OpenMP default, returned as 0) or exactly that many, 1 to 256."""
    if threads is None:
        return 0
    if isinstance(threads, bool) or not isinstance(threads, int) or not 1 <= threads <= 256:
        raise refuse(function, "threads must be None or an integer from 1 to 256", repr(threads))
    return threads


def build_info() -> dict[str, Any]:
    """What a bug report needs: versions, compiler, instruction set in use and available, OpenMP, Eigen."""
    info: dict[str, Any] = {
        "version": version("leadline"),
        "python": platform.python_version(),
        "platform": platform.platform(),
        "machine": platform.machine(),
        "module": core.__name__.rpartition(".")[2],
    }
    info.update(core.build_info())
    return info
