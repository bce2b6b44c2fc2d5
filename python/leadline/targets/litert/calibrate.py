"""TFLite from a float ``.tflite`` alone, without torch and without the network's source; and LiteRT's names of recipes.

Ranges come from leadline's observers over LiteRT's float interpreter; weights are rounded against the second moments of
what each layer reads. The graph is not rewritten: of a recipe's steps, calibrate, round and correct-bias apply here;
folding is the converter's work, and equalisation and rotations need the network as ONNX, as
`leadline.targets.litert.convert.plan` takes it. What LiteRT's recipes are called, and what they are here (`named`):

====================  =====================  ===============
called                recipe                 preset
====================  =====================  ===============
``dynamic-int8``      ``weight-only-int8``   "dynamic"
``weight-only-int8``  ``weight-only-int8``   "weight-only"
``fp16``              none is needed         "fp16"
``int4-block128``     ``int4-block128``      "dynamic"
static INT8           ``w8a8`` and its kin   "cpu" or "npu"
====================  =====================  ===============
"""

from __future__ import annotations

import math
import os
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any, get_args

import numpy as np
from numpy.typing import NDArray

from leadline import decide
from leadline.affine import dequantize
from leadline.affine import quantize as to_codes
from leadline.data import Data, Samples, load_samples
from leadline.gram import ConvGram, Gram
from leadline.observers import OBSERVERS, Histogram, MinMax
from leadline.options import options_of
from leadline.progress import Progress, Quiet
from leadline.recipe import Calibrate, CorrectBias, Fold, Heads, Recipe, Round
from leadline.rounding import METHODS
from leadline.sqnr import Sqnr
from leadline.targets.litert.convert import Converted, Io, Plan, Preset, convert, plan, save
from leadline.targets.litert.kernels import BLOCKS, block_scales, tie
from leadline.targets.litert.layers import ends, from_rows, input_rows, moments_of, to_rows
from leadline.targets.litert.match import Site, sites
from leadline.targets.litert.read import Subgraph, Tflite, read
from leadline.targets.litert.rules import LITERT
from leadline.targets.litert.run import Interpreter
from leadline.targets.litert.write import check_io, prepare, write
from leadline.types import Grid, Scheme, refuse

__all__ = ["Converted", "Io", "Plan", "Preset", "convert", "named", "plan", "quantize", "save"]

_DONE = (Calibrate, Round, CorrectBias)
"""The steps that apply to a ``.tflite``."""
Codes = NDArray[Any]
Moments = Gram | ConvGram

_KINDS = {
    "FULLY_CONNECTED": "linear",
    "CONV_2D": "conv",
    "DEPTHWISE_CONV_2D": "depthwise",
    "TRANSPOSE_CONV": "transpose",
}
_CANDIDATES: tuple[tuple[str, dict[str, float]], ...] = (("minmax", {}), ("mse", {"p": 3.0}), ("sqnr", {}))
"""What the observer "best" tries for all ranges around the layers; the least error on held-out samples wins."""

Over = Callable[[Iterable[Any], str, int], Iterable[Any]]

_NAMED: Mapping[str, tuple[str, Preset]] = {
    "dynamic-int8": ("weight-only-int8", "dynamic"),
    "weight-only-int8": ("weight-only-int8", "weight-only"),
    "fp16": ("weight-only-int8", "fp16"),
}


def named(
    recipe: Recipe | str | os.PathLike[str], preset: str | None = None, io: str = "float"
) -> tuple[Recipe, Preset, Io]:
    """leadline's recipe and the preset for what LiteRT's recipe is called; a `preset` that is given wins.

    Any other recipe of leadline gets "cpu" where it quantises activations, and "dynamic" where it does not.
    Raises InputError for an unknown recipe, preset or io, or where they do not go together.
    """
    for what, value, known in (("preset", preset, get_args(Preset)), ("io", io, get_args(Io))):
        if value is not None and value not in known:
            raise refuse("to_tflite", f"{what} must be one of {', '.join(known)}", repr(value))
    name, usual = (recipe, None) if isinstance(recipe, Recipe) else _NAMED.get(str(recipe), (recipe, None))
    loaded = Recipe.load(name)
    static = loaded.activations is not None
    chosen: Any = preset or usual or ("cpu" if static else "dynamic")
    if chosen in ("cpu", "npu") and not static:
        raise refuse("to_tflite", f"preset {chosen} needs a recipe with activations", repr(loaded.name))
    blocks = any(scheme is not None and scheme.granularity == "block" for scheme in loaded.schemes("weights").values())
    if chosen == "weight-only" and blocks:
        rule = "weights in blocks need the preset dynamic: LiteRT has no float kernels for them"
        raise refuse("to_tflite", rule, f"preset {chosen} with recipe {loaded.name!r}")
    check_io(chosen, io)
    kind: Any = io
    return loaded, chosen, kind


def quantize(
    source: str | os.PathLike[str] | bytes,
    recipe: Recipe | str | os.PathLike[str],
    data: Any,
    *,
    threads: int | None = None,
    progress: Progress | None = None,
) -> Plan:
    """Choose grids and codes for a float ``.tflite``; `leadline.targets.litert.convert.save` writes them.

    Parameters
    ----------
    source : path or bytes
        A float ``.tflite`` with fixed shapes (a free first axis counts 1).
    recipe : Recipe, name or path
        Weights and activations as its schemes and overrides say, by the name of each operator's output and its kind.
        "best" ranges are chosen for all tensors around the layers together. Rounding works from the moments of each
        layer's float inputs.
    data : Data, or the source of one
        Inputs are called as in the file's signature. Preprocessing of pictures, where none is stated: the recipe's
        [data] table, or pixels divided by 255 in the layout that the input has. A quarter of the samples decides and is
        not calibrated on.
    threads : int, optional
    progress : Progress, optional

    Raises
    ------
    InputError
        LiteRT has no kernels for what the recipe asks for; the file is no ``.tflite``, is quantised already, or LiteRT
        does not run it; or the data do not suit it.
    """
    recipe = Recipe.load(recipe)
    LITERT.check(recipe.changed(steps=tuple(step for step in recipe.steps if isinstance(step, _DONE))))
    content = prepare(_bytes(source))
    runner = Interpreter(content, "plain", threads, inner=True)
    _check_float(runner.model)
    inputs = list(runner.inputs.values())
    data = Data.of(data)
    if data.preprocess is None and _takes_pictures(data.source):
        shape = inputs[0].shape
        last = len(shape) == 4 and shape[3] <= 4 < shape[1]
        data = data.defaulting({"layout": "NHWC" if last else "NCHW"} | dict(recipe.data))
    calibration, held_out = load_samples(data, inputs, progress=progress).split()
    work = _Work(content, runner, recipe, calibration, held_out, threads, progress or Quiet())
    return replace(work.plan(), calibrated=len(calibration))


def _takes_pictures(data: Any) -> bool:
    """Arrays enter as they are."""
    if not isinstance(data, (str, os.PathLike)):
        return False
    path = Path(data)
    kinds = {file.suffix.lower() for file in (path.rglob("*") if path.is_dir() else [path])}
    return not kinds & {".npy", ".npz"}


def _bytes(source: str | os.PathLike[str] | bytes) -> bytes:
    read(source)  # refuses what is not a .tflite
    return source if isinstance(source, bytes) else Path(source).read_bytes()


def _check_float(model: Tflite) -> None:
    names = [tensor.name for tensor in model.main.tensors if tensor.scale is not None]
    if names:
        raise refuse(
            "quantize", "the .tflite must be a float network", f"{len(names)} quantised tensors, such as {names[0]}"
        )
    if not sites(model):
        raise refuse("quantize", "the .tflite must have a layer to quantise", f"{len(model.main.operators)} operators")


@dataclass
class _Observed:
    """What was seen of each activation, by index: its histogram, and what the recipe's observer wants, which decides
    around the layers."""

    histograms: dict[int, Histogram]
    around: dict[int, Histogram | MinMax]


class _Work:
    """One run: observe, then decide."""

    def __init__(
        self,
        content: bytes,
        runner: Interpreter,
        recipe: Recipe,
        calibration: Samples,
        held_out: Samples,
        threads: int | None,
        progress: Progress,
    ) -> None:
        self.content, self.runner, self.recipe, self.threads = content, runner, recipe, threads
        self.calibration, self.held_out = calibration, held_out
        self.graph: Subgraph = runner.model.main
        self.over: Over = progress.over
        self.sites = sites(runner.model)
        self.static = recipe.activations is not None
        self.notes: list[str] = []
        unknown = {step.step for step in recipe.steps if not isinstance(step, (Fold, Heads, *_DONE))}
        self.notes += [f"{step}: needs the network as ONNX, not done" for step in sorted(unknown)]
        self.calibrate = next((step for step in recipe.steps if isinstance(step, Calibrate)), Calibrate())
        self.round = next((step for step in recipe.steps if isinstance(step, Round)), Round())
        self.corrects = self.static and any(isinstance(step, CorrectBias) for step in recipe.steps)

    def plan(self) -> Plan:
        wanted = [(site, scheme) for site in self.sites if (scheme := self._scheme(site)) is not None]
        rounded = [site for site, _ in wanted if METHODS[self.round.method].uses_moments or self.corrects]
        observed, seen, held = self._observe(rounded)
        weights = {site.weight: self._weight_grid(site, scheme) for site, scheme in wanted}
        codes = {}
        for site in self.over([site for site, _ in wanted], "round", len(wanted)):
            codes[site.weight] = self._codes(site, weights[site.weight], seen, held)
        parameters = {self._name(index): (grid, codes[index]) for index, grid in weights.items()}

        def whole(observer: str, options: Mapping[str, float]) -> Plan:
            activations = self._activations(observed, observer, options)
            biases = self._biases([site for site, _ in wanted], weights, codes, activations, seen)
            return Plan(self.content, activations, parameters | biases, tuple(self.notes), self.held_out)

        if not self.static:
            return Plan(self.content, {}, parameters, tuple(self.notes), self.held_out)
        observer = self.calibrate.activations
        if observer != "best":
            return whole(observer, options_of(self.calibrate, OBSERVERS[observer]))
        trials = {name: whole(name, options) for name, options in _CANDIDATES}
        errors = {name: self._error(trial) for name, trial in trials.items()}
        best = min(errors, key=lambda name: errors[name])
        self.notes.append("ranges by " + ", ".join(f"{name} {1e3 * error:.3g}" for name, error in errors.items())
                          + f" (thousandths of the outputs' power): {best}")  # fmt: skip
        return replace(trials[best], notes=tuple(self.notes))

    def _name(self, index: int) -> str:
        return self.graph.tensors[index].name

    def _scheme(self, site: Site) -> Scheme | None:
        name, tensor = self._name(site.output), self.graph.tensors[site.weight]
        scheme = self.recipe.weight_scheme(name, _KINDS[site.operator.type], *ends(site, self.sites, self.graph))
        if scheme is None or scheme.granularity == "tensor":
            return scheme
        whole = replace(scheme, granularity="axis", axis=site.axis, block_size=None)
        if scheme.granularity != "block":
            return whole
        fits = [size for size in BLOCKS if size <= (scheme.block_size or 0) and tensor.shape[-1] % size == 0]
        if site.operator.type == "FULLY_CONNECTED" and fits:
            if fits[-1] != scheme.block_size:
                self.notes.append(f"{name}: {tensor.shape[-1]} features, blocks of {fits[-1]}")
            return replace(scheme, axis=1, block_size=fits[-1])
        self.notes.append(f"{name}: {tensor.shape[-1]} features take no blocks, 8 bits per channel")
        return replace(whole, bits=8, narrow=True)

    def _weight_grid(self, site: Site, scheme: Scheme) -> Grid:
        observer = self.calibrate.weights
        grid = decide.weight_grid(
            self.graph.tensors[site.weight].array,
            scheme,
            observer,
            name=self._name(site.weight),
            threads=self.threads,
            **options_of(self.calibrate, OBSERVERS[observer]),
        )
        return Grid(block_scales(grid), grid.zero_point, scheme) if scheme.granularity == "block" else grid

    def _observe(self, rounded: Sequence[Site]) -> tuple[_Observed, dict[int, Moments], dict[int, Moments]]:
        """Statistics of the activations; moments of the layers' inputs, by weight, seen and held out."""
        floats = [tensor for tensor in self.graph.activations() if tensor.dtype == "float32" and self.static]
        histograms = {tensor.index: Histogram(name=tensor.name) for tensor in floats}
        observed = _Observed(histograms, dict(histograms))
        observer = OBSERVERS.get(self.calibrate.activations)
        if observer is not None and observer.statistics is not Histogram:
            options = options_of(self.calibrate, observer)
            observed.around = {tensor.index: observer.statistics(name=tensor.name, **options) for tensor in floats}
        moments = [{site.weight: m for site in rounded if (m := moments_of(site, self.graph))} for _ in range(2)]
        inputs = {site.weight: site for site in rounded}
        indices = {*histograms, *(site.input for site in rounded)}
        for samples, grams in zip((self.calibration, self.held_out), moments, strict=True):
            labels = iter(samples.labels)
            for feed in self.over(samples, "observe", len(samples)):
                label = next(labels)
                self.runner.run(feed)
                seen = self.runner.observe(indices if samples is self.calibration else [inputs[w].input for w in grams])
                if samples is self.calibration:
                    for index, histogram in histograms.items():
                        histogram.update(seen[index], sample=label, threads=self.threads)
                        if observed.around[index] is not histogram:
                            observed.around[index].update(seen[index], sample=label, threads=self.threads)
                for weight, gram in grams.items():
                    gram.update(input_rows(inputs[weight], seen[inputs[weight].input]), label, self.threads)
        return observed, moments[0], moments[1]

    def _codes(self, site: Site, grid: Grid, seen: Mapping[int, Moments], held: Mapping[int, Moments]) -> Codes:
        weight, method = self.graph.tensors[site.weight].array, self.round.method
        if site.weight not in seen or not METHODS[method].uses_moments:
            return to_codes(weight, grid, self.threads)
        rows_axis = 1 if grid.scheme.granularity == "block" else 0
        codes, _ = decide.codes_of(
            to_rows(site, weight),
            grid if grid.scheme.axis is None else replace(grid, scheme=grid.scheme.at(rows_axis)),
            method,
            seen[site.weight].matrix(self.corrects),
            held_out=held[site.weight].matrix(self.corrects),
            threads=self.threads,
            **options_of(self.round, METHODS[method]),
        )
        return from_rows(site, codes)

    def _activations(self, observed: _Observed, observer: str, options: Mapping[str, float]) -> dict[str, Grid]:
        """Around the layers by `observer`; elsewhere, where one value may decide (a variance), what was seen."""
        around = {index for site in self.sites for index in (site.input, site.output)}
        around |= {i for op in self.graph.operators if op.type in ("ADD", "GELU") for i in (*op.inputs, *op.outputs)}
        grids: dict[str, Grid] = {}
        for index, histogram in observed.histograms.items():
            name = self._name(index)
            scheme = self.recipe.activation_scheme(name)
            if scheme is None:
                continue
            if index in around:
                bounds = decide.activation_range(observed.around[index], scheme, observer, self.threads, **options)
            else:
                bounds = decide.activation_range(histogram, scheme, "minmax", self.threads)
            grids[name] = decide.activation_grid(*bounds, scheme)
        return tie(self.runner.model, grids)

    def _biases(
        self,
        layers: Sequence[Site],
        weights: Mapping[int, Grid],
        codes: Mapping[int, Codes],
        activations: Mapping[str, Grid],
        seen: Mapping[int, Moments],
    ) -> dict[str, tuple[Grid, Codes]]:
        """int32 at input scale x weight scale; with what takes away the mean error of the rounded weight."""
        biases = {}
        for site in layers:
            if site.bias is None:
                continue
            real, weight = self.graph.tensors[site.bias].array, weights[site.weight]
            grid = decide.bias_grid(weight, activations.get(self._name(site.input)), real.size)
            if grid is None:
                continue
            if self.corrects and site.weight in seen:
                lost = to_rows(site, self.graph.tensors[site.weight].array - dequantize(codes[site.weight], weight))
                mean = np.atleast_2d(seen[site.weight].mean)
                flat = lost.reshape(len(mean), -1, mean.shape[1])
                real = real + np.einsum("grf,gf->gr", flat, mean).reshape(-1).astype(np.float32)
            biases[self._name(site.bias)] = (grid, to_codes(real, grid))
        return biases

    def _error(self, plan: Plan) -> float:
        """Of the outputs, relative to their power, as the preset "cpu" gives them on the held-out samples."""
        quantised = Interpreter(write(plan, "cpu"), "plain", self.threads)
        total = {name: Sqnr() for name in self.runner.outputs}
        for feed in self.held_out:
            wanted, got = self.runner.run(feed), quantised.run_real(feed)
            for name, score in total.items():
                score.update(wanted[name], got[name])
        return math.exp(float(np.mean([-score.db for score in total.values()])) * math.log(10) / 10)
