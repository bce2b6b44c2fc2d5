"""The one verb: quantize(graph, recipe, data) -> Quantized."""

from __future__ import annotations

import os
from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
from numpy.typing import NDArray

from leadline.affine import dequantize
from leadline.affine import quantize as to_codes
from leadline.cache import Cache
from leadline.data import Preprocess, Samples
from leadline.data.samples import Feed
from leadline.display import table
from leadline.export import encodings, qdq
from leadline.export.encodings_gaps import Gap, accepted, completed, gaps
from leadline.export.limits import limits
from leadline.files import filling
from leadline.graph import Graph
from leadline.graph.ir import Sample
from leadline.observers import Histogram
from leadline.original import SAMPLES, Original, Proof
from leadline.preparation import prepare
from leadline.profiles import profile_of
from leadline.recipe import Recipe
from leadline.steps import Progress, Record, apply, recentre
from leadline.steps.batch import prove_batch
from leadline.types import Grid, refuse
from leadline.verification import Verification, verify

if TYPE_CHECKING:
    import onnx


FILES = tuple(
    f"model.{name}"
    for name in ("fp32.onnx", "fp32.onnx.data", "qdq.onnx", "qdq.onnx.data", "encodings", "encodings.onnx",
                 "encodings.onnx.data")
)  # fmt: skip
"""What `Quantized.save` may write."""


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
    target : str
        What the artefact was made for: "onnxruntime" or "hexagon".
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
    target: str = "onnxruntime"
    skipped: list[tuple[str, str]] = field(default_factory=list)
    original: Original | None = field(default=None, repr=False)

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
        return cls._found(graph, grids, {}, path, Original(network))

    @classmethod
    def from_qdq(
        cls, network: Graph | str | os.PathLike[str], path: str | os.PathLike[str], sample: Sample | None = None
    ) -> Quantized:
        """The same from an ONNX model with QuantizeLinear and DequantizeLinear, whose codes are taken as they are."""
        graph = network if isinstance(network, Graph) else Graph.load(network, sample, verbatim=True)
        found = qdq.read(path)
        foreign = sorted(found.grids.keys() - graph.values.keys() - graph.weights.keys())
        if foreign:
            rule = f"'{path}' must hold grids of tensors that '{graph.name}' has"
            raise refuse("Quantized.from_qdq", rule, f"'{foreign[0]}'")
        known = encodings.Encodings.from_grids(graph, found.grids)
        codes = {}
        for name, own in found.codes.items():
            if own.size != graph.weights[name].size:
                rule = f"'{path}' must hold codes of '{name}' in the shape {graph.shape(name)}"
                raise refuse("Quantized.from_qdq", rule, own.shape)
            codes[name] = own.reshape(graph.shape(name))
        return cls._found(graph, known.grids, codes, path, Original(network))

    @classmethod
    def _found(
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
        for name, codes in self.codes.items():
            grid = self.grids[name]
            weight = graph.weights[name]
            nearest = np.array_equal(to_codes(weight, encodings.plain(grid)), codes)
            if grid.scheme.bits == 32 or not nearest or not np.isfinite(weight).all():
                graph.weights[name] = dequantize(codes, grid)
        return graph

    def verify(self, data: Any = None, *, threads: int | None = None, progress: Progress | None = None) -> Verification:
        """Compare simulation and float network, on the held-out samples unless others are given.

        Raises InputError where there are neither: a file of grids brings no samples.
        """
        samples = self.held_out if data is None else data
        if isinstance(samples, Samples) and not len(samples):
            raise refuse("Quantized.verify", "data must be given: grids from a file bring no samples", "none")
        return verify(
            self.graph,
            self.to_qdq(),
            samples,
            original=self.original,
            target=self.target,
            threads=threads,
            progress=progress,
        )

    @property
    def limits(self) -> list[str]:
        """What makes the artefact a simulation that no device runs, one line for each thing; empty: deployable."""
        return limits(self.graph, self.grids, profile_of(self.target))

    def gaps(self, encodings_version: str = "1.0.0") -> list[Gap]:
        """What ``model.encodings`` leaves to the vendor's tool. Raises InputError for an unknown version."""
        return gaps(self.graph, encodings.Encodings.from_grids(self.graph, self.grids), encodings_version)

    def save(self, folder: str | os.PathLike[str], *, encodings_version: str = "1.0.0") -> None:
        """Write ``model.fp32.onnx``, ``model.qdq.onnx``, ``model.encodings`` and ``model.encodings.onnx``, its network.

        All four or none; but where there are `limits`, no encodings: they could not say what was simulated, and the
        vendor's tool would fill in its own, and those of an earlier run go. Raises InputError where the folder cannot
        be written.
        """
        deployable = not self.limits
        with filling(folder, FILES) as out:
            self.graph.save(out / "model.fp32.onnx")
            qdq.save(self.to_qdq(), out / "model.qdq.onnx")
            if deployable:
                encoded = self.encoded_graph()
                encoded.save(out / "model.encodings.onnx")
                said = encodings.Encodings.from_grids(encoded, self.grids)
                accepted(encoded, said, encodings_version).write(out / "model.encodings", encodings_version)


def quantize(
    graph: Graph | str | os.PathLike[str],
    recipe: Recipe | str | os.PathLike[str],
    data: Any,
    *,
    held_out: Samples | None = None,
    preprocess: Preprocess | None = None,
    samples: int | None = None,
    choice: str = "random",
    features: str | Callable[[Feed], Any] | None = None,
    seed: int = 0,
    strict: bool = False,
    threads: int | None = None,
    progress: Progress | None = None,
    cache: Cache | None = None,
    target: str = "onnxruntime",
    original: Original | None = None,
) -> Quantized:
    """Quantise a network by a recipe.

    Parameters
    ----------
    graph : Graph or path
        A float network. It is not changed.
    recipe : Recipe, name or path
        See ``Recipe.names()``, or a TOML file.
    data : Samples or anything that ``leadline.data.load`` takes
        Pictures, videos, arrays, or any iterable of arrays or torch tensors.
    held_out : Samples, optional
        What decides every gate. Default: a quarter of `data`, which calibration then does not see.
    preprocess : Preprocess, optional
        For pictures. Default: the recipe's [data] table.
    samples : int, optional
        Use at most this many of `data`, chosen by `choice` and `seed`.
    choice : str
        How: "random", "folder", "brightness", "farthest" or "diverse"; see ``leadline.data.choose``. All but the first
        look at the whole of `data` (of a video: 32 frames, evenly spread; an iterator is run to its end).
    features : str or callable, optional
        What "farthest" and "diverse" compare: a tensor of the network by name (`graph.features`), or any
        function from a feed to a vector. Default: the pictures themselves.
    seed : int
        For the choice of samples and the split.
    strict : bool
        Refuse unreadable pictures instead of skipping them.
    threads : int, optional
        For the cores and onnxruntime. Default: all.
    progress : Progress, optional
        ``leadline.progress.Bars()`` shows bars with time left. Default: silent.
    cache : Cache, optional
        ``leadline.cache.Cache(folder)``: what runs have in common (the same steps on the same network and samples, what
        tensors held) is computed once. The result is the same.
    target : str
        "onnxruntime", or "hexagon": with the widths that Qualcomm's HTP takes; see `leadline.profiles`.
    original : Original, optional
        What every step, and the artefact, is judged by. Default: `graph`. For a Graph that came from a file: that file.

    Raises
    ------
    InputError
        Whatever is wrong with the network, the recipe or the data, named.
    """
    state, given = prepare(
        graph,
        recipe,
        data,
        held_out=held_out,
        preprocess=preprocess,
        samples=samples,
        choice=choice,
        features=features,
        seed=seed,
        strict=strict,
        threads=threads,
        progress=progress,
        cache=cache,
        target=target,
    )
    original = original or Original(graph)
    proof = Proof(original, state.graph, state.setup.held_out, threads)
    proof.hold(state.graph, "loading")
    if proof.note:
        state.log.append(Record("load", state.graph.name, proof.note, kept=False))
    for step in state.recipe.steps:
        apply(step, state)
        proof.hold(state.graph, f"step {step.step}", 1, state.apart, state.shifted)
    recentre(state)
    proof.hold(state.graph, "all steps", SAMPLES, state.apart, state.shifted)
    if not state.grids:
        received = f"recipe {state.recipe.name}, no grids"
        raise refuse("quantize", "a recipe must calibrate and have a layer to quantise", received)
    prove_batch(
        state,
        lambda free: (free.to_model(), qdq.to_qdq(free, state.grids, state.codes)),
        lambda feed: original.run(state.graph, feed, threads),
    )
    return Quantized(
        state.graph,
        state.grids,
        state.codes,
        state.recipe,
        state.log,
        held_out=state.setup.held_out,
        histograms=state.histograms,
        calibrated=len(state.setup.calibration),
        target=state.setup.profile.name,
        skipped=given.skipped,
        original=original,
    )
