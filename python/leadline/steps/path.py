"""The quantised path: what each layer really reads once everything upstream is quantised, computed layer by layer
without running the network from the start for each."""

from __future__ import annotations

import tempfile
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from leadline.affine import fake_quantize
from leadline.data import Samples
from leadline.gram import ConvGram, Gram
from leadline.graph import Layer
from leadline.graph.segments import Segment, segments
from leadline.steps.state import State

Tensors = dict[str, NDArray[Any]]
Moments = Gram | ConvGram


@dataclass(frozen=True)
class Stage:
    """Layers whose inputs are known, and the moments of these inputs over the samples, by layer name: from calibration
    and from held-out samples."""

    layers: list[Layer]
    seen: dict[str, Moments]
    held_out: dict[str, Moments]


def stages(state: State, layers: Sequence[Layer]) -> Iterator[Stage]:
    """Level by level, from the inputs on. Whoever iterates gives each stage's layers their codes before the next is
    asked for: it then sees inputs that come through them.

    Tensors between segments lie on disk while they are needed, one file for each and sample; memory holds one sample.
    """
    parts = segments(state.graph, layers)
    with tempfile.TemporaryDirectory(prefix="leadline-path-") as folder:
        calibration = _Store(Path(folder) / "calibration", state.calibration)
        held_out = _Store(Path(folder) / "held-out", state.held_out)
        readers = _last_readers(parts)
        total = sum(len(part.layers) > 0 for part in parts)
        for place, part in enumerate(parts):
            if part.layers:
                with state.progress(f"moments {place}/{total}"):
                    seen = calibration.moments(part.layers, state)
                    kept = held_out.moments(part.layers, state)
                yield Stage(part.layers, seen, kept)
            if place + 1 < len(parts):
                for store in (calibration, held_out):
                    store.advance(part, state, {name for name, last in readers.items() if last == place})


def _last_readers(parts: Sequence[Segment]) -> dict[str, int]:
    """The last segment that reads each tensor."""
    return {value.name: place for place, part in enumerate(parts) for value in part.graph.inputs}


class _Store:
    """The tensors that later segments read, for every sample of some data."""

    def __init__(self, folder: Path, samples: Samples) -> None:
        folder.mkdir()
        self._folder, self._count = folder, len(samples)
        self._names: dict[str, int] = {}
        for i, feed in enumerate(samples):
            for name, array in feed.items():
                self._write(i, name, array)

    def _file(self, sample: int, name: str) -> Path:
        return self._folder / f"{self._names.setdefault(name, len(self._names))}-{sample}.npy"

    def _write(self, sample: int, name: str, array: NDArray[Any]) -> None:
        np.save(self._file(sample, name), array)

    def _read(self, sample: int, name: str) -> NDArray[Any]:
        return np.load(self._file(sample, name))  # type: ignore[no-any-return]

    def advance(self, part: Segment, state: State, done: set[str]) -> None:
        """Run a segment as quantised so far, keep its outputs, and forget what nobody reads after it."""
        graph = part.graph
        names = [value.name for value in graph.outputs]
        if names:
            own = set(graph.values) | set(graph.weights)
            grids = {name: grid for name, grid in state.grids.items() if name in own}
            codes = {name: array for name, array in state.codes.items() if name in own}
            inputs = [value.name for value in graph.inputs]
            with state.simulate(replace(state, graph=graph, grids=grids, codes=codes), names) as session:
                for i in range(self._count):
                    for name, array in session.run({name: self._read(i, name) for name in inputs}).items():
                        self._write(i, name, array)
        for name in done:
            for i in range(self._count):
                self._file(i, name).unlink(missing_ok=True)

    def moments(self, layers: Sequence[Layer], state: State) -> dict[str, Moments]:
        """Of each layer's input on its grid; layers that read one tensor alike share theirs."""
        shared: dict[tuple[Any, ...], Moments] = {}
        found: dict[str, Moments] = {}
        readers: dict[str, list[tuple[Any, ...]]] = {}
        for layer in layers:
            key = (layer.input, *_geometry(layer, state))
            if key not in shared:
                shared[key] = _moments(layer, state)
                readers.setdefault(layer.input, []).append(key)
            found[layer.name] = shared[key]
        for i in range(self._count):
            for name, keys in readers.items():
                x = np.ascontiguousarray(self._read(i, name), np.float32)
                if name in state.grids:
                    x = fake_quantize(x, state.grids[name], threads=state.threads)
                for key in keys:
                    _update(shared[key], x, state.threads)
        return found


def _geometry(layer: Layer, state: State) -> tuple[Any, ...]:
    if layer.kind in ("linear", "transpose"):
        return ("rows",)
    attrs = layer.node.attrs
    shape = state.graph.weights[layer.weight].shape
    axes = ("strides", "pads", "dilations")
    return (shape[1:], layer.groups, *(tuple(attrs.get(name, ())) for name in axes))


def _moments(layer: Layer, state: State) -> Moments:
    weight = state.graph.weights[layer.weight]
    if layer.kind == "linear":
        return Gram(weight.shape[1 - layer.axis], layer.input)
    if layer.kind == "transpose":
        return Gram(weight.shape[0], layer.input)
    attrs = layer.node.attrs
    return ConvGram(
        weight.shape,
        attrs.get("strides", (1, 1)),
        attrs.get("pads", (0, 0, 0, 0)),
        attrs.get("dilations", (1, 1)),
        layer.groups,
        layer.input,
    )


def _update(moments: Moments, x: NDArray[np.float32], threads: int | None) -> None:
    if isinstance(moments, Gram) and x.ndim == 4:  # a transposed convolution reads its input pixel by pixel
        x = np.ascontiguousarray(x.transpose(0, 2, 3, 1))
    moments.update(x.reshape(-1, x.shape[-1]) if isinstance(moments, Gram) else x, threads=threads)
