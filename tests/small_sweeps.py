"""Sweeps of seconds for the tests: two small networks, arrays as data, and an engine in this process."""

from __future__ import annotations

import traceback
from pathlib import Path
from typing import Any

import numpy as np
import onnx
import tomli_w

from leadline.cache import Cache
from leadline.sweep.cell import Cell
from leadline.sweep.engines import Event
from leadline.sweep.measure import measure
from small_networks import conv_relu_conv, residual, samples

VARY = {"weights.bits": [4, 8], "steps.calibrate.activations": ["minmax", "mse"]}


def small(folder: Path, **changes: Any) -> Path:
    """A sweep's TOML file; a key that is None is left out."""
    folder.mkdir(parents=True, exist_ok=True)
    onnx.save(conv_relu_conv(), folder / "conv.onnx")
    onnx.save(residual(), folder / "residual.onnx")
    np.save(folder / "seen.npy", samples(8))
    np.save(folder / "judged.npy", samples(4, seed=5))
    document: dict[str, Any] = {
        "networks": ["conv.onnx"],
        "recipes": ["minmax-w8a8"],
        "data": {"source": "seen.npy"},
        "evaluation": [{"source": "judged.npy"}],
        "vary": [VARY],
        "search": {"objectives": ["sqnr", "size"]},
    } | changes
    file = folder / "small.toml"
    file.write_text(tomli_w.dumps({key: value for key, value in document.items() if value is not None}), "utf-8")
    return file


class Inline:
    """An Engine without processes; it keeps what it was given, and runs at most `most` cells."""

    def __init__(self, cache: Cache | None = None, slots: int = 1, most: int = 10**6) -> None:
        self.slots, self._cache, self._most = slots, cache, most
        self.cells: list[Cell] = []
        self._waiting: list[tuple[int, Cell]] = []

    def submit(self, job: int, cell: Cell) -> None:
        self._waiting.append((job, cell))

    def wait(self, seconds: float) -> list[Event]:
        if not self._waiting:
            return []
        if len(self.cells) == self._most:
            raise KeyboardInterrupt
        job, cell = self._waiting.pop(0)
        self.cells.append(cell)
        try:
            return [Event(job, "done", measure(cell, cache=self._cache, threads=1))]
        except Exception:
            return [Event(job, "failed", traceback.format_exc())]

    def close(self) -> None:
        self._waiting.clear()


def figures(results: Any) -> dict[str, dict[str, float]]:
    """What each finished cell found, but for the time that it took."""
    return {
        str(sorted(row.values.items(), key=str)): {key: f for key, f in row.figures.items() if key != "seconds"}
        for row in results.complete
    }
