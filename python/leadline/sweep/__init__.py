"""Sweeps: many recipes on many networks, each cell computed once, on one machine or many, and what papers need of them.

leadline.sweep("ablation.toml", "out")                  # also leadline.sweep.run
leadline.sweep.sensitivity(graph, data)                 # what each tensor costs at 4, 8, 16 bits
leadline.sweep.mixed_precision(found, size=400_000)     # a recipe
"""

from __future__ import annotations

import sys
from types import ModuleType
from typing import Any

from leadline.sweep.driver import results, run
from leadline.sweep.mixed import Sensitivity, mixed_precision, sensitivity
from leadline.sweep.outcome import Results
from leadline.sweep.spec import Sweep

__all__ = ["Results", "Sensitivity", "Sweep", "mixed_precision", "results", "run", "sensitivity"]


class _Callable(ModuleType):
    def __call__(self, *args: Any, **options: Any) -> Results:
        """`run`."""
        return run(*args, **options)


sys.modules[__name__].__class__ = _Callable
