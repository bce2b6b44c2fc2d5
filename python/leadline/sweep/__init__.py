"""Sweeps: many recipes on many networks, each cell computed once, on one machine or many, and what papers need of them.

leadline.sweep.run("ablation.toml", "out")
leadline.sweep.sensitivity(graph, data)                 # what each tensor costs at 4, 8, 16 bits
leadline.sweep.mixed_precision(found, size=400_000)     # a recipe
"""

from __future__ import annotations

from leadline.sweep.driver import results, run
from leadline.sweep.mixed import Sensitivity, mixed_precision, sensitivity
from leadline.sweep.outcome import Results
from leadline.sweep.spec import Sweep

__all__ = ["Results", "Sensitivity", "Sweep", "mixed_precision", "results", "run", "sensitivity"]
