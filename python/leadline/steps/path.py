"""The quantised path: what each layer really reads once everything upstream is quantised, computed layer by layer
without running the network from the start for each."""

from __future__ import annotations

import tempfile
from collections.abc import Hashable, Iterator, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from leadline.affine import fake_quantize
from leadline.data import Samples
from leadline.graph import Graph, Layer
from leadline.graph.segments import Segment, segments
from leadline.steps.rows import Inputs, Moments
from leadline.steps.state import State


@dataclass(frozen=True)
class Stage:
    """Layers whose inputs are known, and the moments of these inputs over the samples, by layer name: from calibration
    and from held-out samples.

    Joint moments are of features twice as long: what the layer reads in float, then what it reads on the quantised
    path, within each group.
    """

    layers: list[Layer]
    seen: dict[str, Moments]
    held_out: dict[str, Moments]


def stages(state: State, layers: Sequence[Layer], joint: bool = False) -> Iterator[Stage]:
    """Level by level, from the inputs on. Whoever iterates gives each stage's layers their codes before the next is
    asked for: it then sees inputs that come through them.

    Tensors between segments lie on disk while they are needed, one file for each and sample; memory holds one sample.
    """
    parts = segments(state.graph, layers)
    with tempfile.TemporaryDirectory(prefix="leadline-path-") as folder:
        calibration = _Store(Path(folder) / "calibration", state.setup.calibration, joint)
        held_out = _Store(Path(folder) / "held-out", state.setup.held_out, joint)
        readers = _last_readers(parts)
        total = sum(len(part.layers) > 0 for part in parts)
        for place, part in enumerate(parts):
            if part.layers:
                with state.setup.progress(f"moments {place}/{total}"):
                    seen = calibration.moments(part.layers, state)
                    kept = held_out.moments(part.layers, state)
                yield Stage(part.layers, seen, kept)
                seen.clear()  # before the next are added up
                kept.clear()
            if place + 1 < len(parts):
                for store in (calibration, held_out):
                    store.advance(part, state, {name for name, last in readers.items() if last == place})


def _last_readers(parts: Sequence[Segment]) -> dict[str, int]:
    """The last segment that reads each tensor."""
    return {value.name: place for place, part in enumerate(parts) for value in part.graph.inputs}


class _Store:
    """The tensors that later segments read, for every sample of some data: on the quantised path, and, where moments
    are joint, on the float one."""

    def __init__(self, folder: Path, samples: Samples, joint: bool) -> None:
        folder.mkdir()
        self._folder, self._count = folder, len(samples)
        self._paths = ("quantised", "float") if joint else ("quantised",)
        self._names: dict[str, int] = {}
        for i, feed in enumerate(samples):
            for name, array in feed.items():
                for path in self._paths:
                    np.save(self._file(path, i, name), array)

    def _file(self, path: str, sample: int, name: str) -> Path:
        return self._folder / f"{path}-{self._names.setdefault(name, len(self._names))}-{sample}.npy"

    def _read(self, path: str, sample: int, name: str) -> NDArray[Any]:
        return np.load(self._file(path, sample, name))  # type: ignore[no-any-return]

    def advance(self, part: Segment, state: State, done: set[str]) -> None:
        """Run a segment as quantised so far, keep its outputs, and forget what nobody reads after it."""
        graph = part.graph
        names = [value.name for value in graph.outputs]
        if names:
            present = set(graph.values) | set(graph.weights)
            grids = {name: grid for name, grid in state.grids.items() if name in present}
            codes = {name: array for name, array in state.codes.items() if name in present}
            inputs = [value.name for value in graph.inputs]
            for path in self._paths:
                quantised = path == "quantised"
                part_state = replace(
                    state, graph=Graph.of(graph), grids=grids if quantised else {}, codes=codes if quantised else {}
                )
                with state.setup.simulate(part_state, names) as session:
                    for i in range(self._count):
                        feed = {name: self._read(path, i, name) for name in inputs}
                        for name, array in session.run(feed).items():
                            np.save(self._file(path, i, name), array)
        for name in done:
            for path in self._paths:
                for i in range(self._count):
                    self._file(path, i, name).unlink(missing_ok=True)

    def moments(self, layers: Sequence[Layer], state: State) -> dict[str, Moments]:
        """Of each layer's input on its grid; layers that read one tensor alike share theirs."""
        shared: dict[tuple[str, Hashable], Moments] = {}
        by_layer: dict[str, Moments] = {}
        readers: dict[str, list[tuple[Moments, Inputs]]] = {}
        for layer in layers:
            inputs = Inputs(state.graph, layer)
            key = (layer.input, inputs.key)
            if key not in shared:
                shared[key] = inputs.moments(len(self._paths))
                readers.setdefault(layer.input, []).append((shared[key], inputs))
            by_layer[layer.name] = shared[key]
        for i in range(self._count):
            for name, each in readers.items():
                x = np.ascontiguousarray(self._read("quantised", i, name), np.float32)
                if name in state.grids:
                    x = fake_quantize(x, state.grids[name], threads=state.setup.threads)
                paths = [self._read("float", i, name), x] if "float" in self._paths else [x]
                for moments, inputs in each:
                    inputs.update(moments, paths, state.setup.threads)
        return by_layer
