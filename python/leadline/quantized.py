"""Quantized: what a run leaves. It goes into a folder, and comes back from it."""

from __future__ import annotations

import json
import os
from dataclasses import asdict, dataclass, field
from functools import cached_property
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
from numpy.typing import NDArray

import leadline
from leadline.affine import dequantize
from leadline.affine import quantize as to_codes
from leadline.data import Samples
from leadline.display import table
from leadline.export import encodings, qdq
from leadline.export.encodings_gaps import Gap, accepted, completed, gaps
from leadline.export.limits import limits
from leadline.files import filling, to_json
from leadline.graph import Graph
from leadline.graph.ir import Sample
from leadline.observers import Histogram
from leadline.original import Original
from leadline.progress import Progress
from leadline.recipe import Recipe
from leadline.steps import Record
from leadline.targets import Target, target_of
from leadline.targets.target import every_target
from leadline.types import Grid, refuse
from leadline.verification import Verification, verify

if TYPE_CHECKING:
    import onnx


RUN = "run.json"
"""What `Quantized.load` needs beside the networks: target, recipe, log."""


def files() -> tuple[str, ...]:
    """What `Quantized.save` may write, for any target."""
    stored = ("fp32.onnx", "fp32.onnx.data", "qdq.onnx", "qdq.onnx.data", "encodings", "encodings.onnx",
              "encodings.onnx.data")  # fmt: skip
    return (*dict.fromkeys([*(f"model.{name}" for name in stored), *(kind.file for kind in every_target())]), RUN)


@dataclass(frozen=True)
class Quantized:
    """A quantised network: what it computed in float, its grids and integers, and what each step did.

    Attributes
    ----------
    graph : Graph
        Computes the original function in float, folded and equalised. Its tensor names are the artefacts' names.
    grids : dict of tensor name to Grid
        Activations, weights and biases.
    codes : dict of tensor name to integer array
        Weights and biases. A corrected bias and a learned rounding live here, not in the graph.
    log : list of Record
        What each step did to each layer.
    histograms : dict of tensor name to Histogram
        What calibration saw.
    target : Target
        What the artefact is made for.
    original : Original or None
        The user's file, or the Graph that was given in its place: what artefacts are judged by.
    """

    graph: Graph
    grids: dict[str, Grid]
    codes: dict[str, NDArray[np.integer[Any]]]
    recipe: Recipe
    log: list[Record]
    held_out: Samples = field(repr=False)
    histograms: dict[str, Histogram] = field(default_factory=dict, repr=False)
    calibrated: int = 0
    target: Target = field(default_factory=lambda: target_of("onnxruntime"))
    skipped: list[tuple[str, str]] = field(default_factory=list)
    original: Original | None = field(default=None, repr=False)
    made: Any = field(default=None, repr=False)
    """What the target has decided already, where it quantised a network of its own format."""

    def __repr__(self) -> str:
        parts = f"{len(self.codes)} parameters, {len(self.grids) - len(self.codes)} activations"
        return f"Quantized by {self.recipe.name} for {self.target}: {parts}; {self.graph!r}"

    def _repr_html_(self) -> str:
        kept = {
            step: [record.kept for record in self.log if record.step == step] for step in {r.step for r in self.log}
        }
        rows = [(step, len(flags), sum(flags)) for step, flags in sorted(kept.items())]
        caption = f"{self.recipe.name}: {len(self.codes)} parameters, {len(self.grids) - len(self.codes)} activations"
        return table(("step", "entries", "kept"), rows, caption)

    @classmethod
    def from_encodings(
        cls, network: Graph | str | os.PathLike[str], path: str | os.PathLike[str], sample: Sample | None = None
    ) -> Quantized:
        """Somebody's AIMET encodings on the float network that they name; weights take the nearest codes.

        Parameters
        ----------
        network : Graph or path
            An ONNX file is loaded with ``verbatim=True``.
        path : path
            Of any version. What tools add to it is added here: grids of moved data, and int32 biases. Tensors that it
            keeps in float16 stay float32.
        sample : dict of input name to array or shape, optional
            See `Graph.load`.

        Returns
        -------
        Quantized
            To verify on data that is given, to export, to save again. No recipe ran, so the log is empty.

        Raises
        ------
        InputError
            A file cannot be read, or names what the network does not have.
        """
        graph = network if isinstance(network, Graph) else Graph.load(network, sample, verbatim=True)
        grids = completed(graph, encodings.read(path, graph))
        return cls._read(graph, grids, {}, path, Original(network))

    @classmethod
    def from_qdq(
        cls, network: Graph | str | os.PathLike[str], path: str | os.PathLike[str], sample: Sample | None = None
    ) -> Quantized:
        """The same from an ONNX model with QuantizeLinear and DequantizeLinear, whose codes are taken as they are."""
        graph = network if isinstance(network, Graph) else Graph.load(network, sample, verbatim=True)
        written = qdq.read(path)
        foreign = sorted(written.grids.keys() - graph.values.keys() - graph.weights.keys())
        if foreign:
            rule = f"'{path}' must hold grids of tensors that '{graph.name}' has"
            raise refuse("Quantized.from_qdq", rule, f"'{foreign[0]}'")
        known = encodings.Encodings.from_grids(graph, written.grids)
        codes = {}
        for name, integers in written.codes.items():
            if integers.size != graph.weights[name].size:
                rule = f"'{path}' must hold codes of '{name}' in the shape {graph.shape(name)}"
                raise refuse("Quantized.from_qdq", rule, integers.shape)
            codes[name] = integers.reshape(graph.shape(name))
        return cls._read(graph, known.grids, codes, path, Original(network))

    @classmethod
    def _read(
        cls,
        graph: Graph,
        grids: dict[str, Grid],
        codes: dict[str, NDArray[np.integer[Any]]],
        path: str | os.PathLike[str],
        original: Original,
    ) -> Quantized:
        if not grids:
            raise refuse("Quantized", f"'{path}' must hold a grid", "a file that holds no grids")
        nearest = {
            name: to_codes(graph.weights[name], grid)
            for name, grid in grids.items()
            if name in graph.weights and name not in codes
        }
        recipe = Recipe(Path(path).name, (), "grids that were read from a file")
        return cls(graph, grids, codes | nearest, recipe, [], Samples([]), original=original)

    def to_qdq(self) -> onnx.ModelProto:
        """The artefact as ONNX with QuantizeLinear and DequantizeLinear."""
        return qdq.to_qdq(self.graph, self.grids, self.codes)

    def encoded_graph(self) -> Graph:
        """The float network that belongs to the encodings: rounding it to nearest gives the artefact's integers.

        Biases take the value of their codes, since older encodings do not hold them. So do weights whose codes are not
        the nearest ones, or are on a narrow grid, which encodings do not know; and masks end where their grid does,
        since tools that round them know no infinity.
        """
        graph = self.graph.copy()
        graph.weights = {name: self._encoded(name, weight) for name, weight in graph.weights.items()}
        return graph

    def _encoded(self, name: str, weight: NDArray[Any]) -> NDArray[Any]:
        if name not in self.codes:
            return weight
        codes, grid = self.codes[name], self.grids[name]
        nearest = np.array_equal(to_codes(weight, encodings.plain(grid)), codes)
        same = nearest and grid.scheme.bits < 32 and np.isfinite(weight).all()
        return weight if same else dequantize(codes, grid)

    def verify(
        self,
        data: Any = None,
        *,
        artefact: str | os.PathLike[str] | None = None,
        threads: int | None = None,
        progress: Progress | None = None,
    ) -> Verification:
        """Compare simulation and float network, on the held-out samples unless others are given. `artefact`: the file
        that `save` wrote of it; then it is run from there, and no longer held in memory.

        Raises InputError where there are neither: a file of grids brings no samples.
        """
        samples = self.held_out if data is None else data
        if isinstance(samples, Samples) and not len(samples):
            raise refuse("Quantized.verify", "data must be given: grids from a file bring no samples", "none")
        if artefact is not None:
            self.__dict__.pop("artefact", None)
        return verify(
            self.graph,
            self.artefact if artefact is None else artefact,
            samples,
            original=self.original,
            target=self.target,
            threads=threads,
            progress=progress,
        )

    @cached_property
    def artefact(self) -> Any:
        """The run in its target's format, as `leadline.verify` takes it."""
        return self.target.make(self)

    @property
    def limits(self) -> list[str]:
        """What makes the artefact a simulation that no device runs, one line for each thing; empty: deployable."""
        return limits(self.graph, self.grids, self.target.rules)

    def gaps(self, encodings_version: str = "1.0.0") -> list[Gap]:
        """What ``model.encodings`` leaves to the vendor's tool. Raises InputError for an unknown version."""
        return gaps(self.graph, encodings.Encodings.from_grids(self.graph, self.grids), encodings_version)

    def save(self, folder: str | os.PathLike[str], *, encodings_version: str = "1.0.0") -> None:
        """Write the run: ``model.fp32.onnx``, ``model.qdq.onnx``, the target's file, and ``run.json`` for `load`.

        Where that is QDQ, too, also ``model.encodings`` and its network ``model.encodings.onnx``; but where there
        are `limits`, no encodings: they could not say what was simulated, and the vendor's tool would fill in its own.
        All or nothing; what an earlier run wrote and this one does not goes. Raises InputError where the folder cannot
        be written.
        """
        from leadline.graph.write import save

        with filling(folder, files()) as out:
            if self.graph.nodes:  # a float .tflite has no other form
                self.graph.save(out / "model.fp32.onnx")
                if self.target.file != Target.file:
                    qdq.save(self.to_qdq(), out / "model.qdq.onnx")
            self.target.write(self.artefact, out / self.target.file)
            if self.target.file == Target.file and not self.limits:
                save(self.graph, out / "model.encodings.onnx", change=self._encoded)
                whole = encodings.Encodings.from_grids(self.graph, self.grids)
                accepted(self.graph, whole, encodings_version).write(out / "model.encodings", encodings_version)
            (out / RUN).write_text(to_json(self._record()), "utf-8")

    def _record(self) -> dict[str, Any]:
        source = self.original and self.original.source
        return {
            "leadline": leadline.__version__,
            "original": str(Path(source).resolve()) if isinstance(source, Path) else None,
            "target": {"name": self.target.name, "options": {k: str(v) for k, v in self.target.chosen.items()}},
            "recipe": self.recipe.to_toml(),
            "inputs": {value.name: list(value.shape) for value in self.graph.inputs},
            "calibrated": self.calibrated,
            "skipped": self.skipped,
            "log": [asdict(record) for record in self.log],
        }

    @classmethod
    def load(cls, folder: str | os.PathLike[str]) -> Quantized:
        """A run that `save` wrote: network, grids, codes, recipe, target and log.

        What calibration saw and the samples held out are not in the folder: `verify` needs data.

        Raises
        ------
        InputError
            The folder holds no run, or one of its files is damaged.
        """
        path = Path(folder)
        try:
            record = json.loads((path / RUN).read_text("utf-8"))
            name, options = record["target"]["name"], record["target"]["options"]
            recipe, log = record["recipe"], [Record(**entry) for entry in record["log"]]
            shapes = {name: tuple(shape) for name, shape in record["inputs"].items()}
            counted = int(record["calibrated"]), [(file, why) for file, why in record["skipped"]]
            source = record["original"]
        except (OSError, ValueError, KeyError, TypeError, AttributeError) as error:
            rule = f"'{path}' must hold a run that was saved, with its {RUN}"
            raise refuse("Quantized.load", rule, f"{type(error).__name__}: {error}") from error
        if not (path / "model.fp32.onnx").is_file():
            rule = f"'{path}' must hold model.fp32.onnx, which a network that came as .tflite has not"
            raise refuse("Quantized.load", rule, ", ".join(sorted(file.name for file in path.iterdir())))
        graph = Graph.load(path / "model.fp32.onnx", shapes, verbatim=True)
        written = qdq.read(path / "model.qdq.onnx")
        codes = {name: array.reshape(graph.shape(name)) for name, array in written.codes.items()}
        return cls(
            graph,
            written.grids,
            codes,
            Recipe.from_toml(recipe, f"'{path / RUN}'"),
            log,
            Samples([]),
            calibrated=counted[0],
            target=target_of(name, "Quantized.load").with_options(options),
            skipped=counted[1],
            original=Original(source if source and Path(source).is_file() else graph),
        )
