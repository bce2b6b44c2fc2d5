"""Calibration of a torch module in place: hooks feed leadline's observers, and fake quantisation stays behind.

The module keeps its structure and its code: a layer's input passes a FakeQuantize in a forward pre-hook, its weight one
in a parametrization, and both go again.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from fnmatch import fnmatchcase
from typing import Any

from torch import Tensor, nn
from torch.nn.utils import parametrize

from leadline import decide
from leadline.graph import Graph
from leadline.observers import METHODS, Histogram
from leadline.progress import Progress, Quiet
from leadline.torch.fake import FakeQuantize
from leadline.torch.linear import check_float32, torch_threads
from leadline.torch.observation import passes
from leadline.types import Grid, Scheme, refuse

LAYERS = (nn.Linear, nn.Conv1d, nn.Conv2d, nn.Conv3d)
WEIGHTS = Scheme(8, signed=True, symmetric=True, granularity="axis", axis=0, narrow=True)
ACTIVATIONS = Scheme(8)


@dataclass(frozen=True)
class CalibratedLayer:
    """`name`, `kind` (its class), and the grids found: of the weight, of the input, and of the output or None."""

    name: str
    kind: str
    weight: Grid | None
    input: Grid | None
    output: Grid | None


class Calibration:
    """A module with fake quantisation in it; made by `calibrate`. Prints a table.

    Attributes
    ----------
    layers : tuple of CalibratedLayer
        In the model's order, as calibration found them; `grids` says how they are now.
    left : dict of str to str
        Why other layers that the pattern names stayed in float.
    """

    def __init__(self, module: nn.Module, layers: tuple[CalibratedLayer, ...], left: Mapping[str, str]) -> None:
        self.layers, self.left = layers, dict(left)
        self._module = module
        self._handles: list[Any] = []

    def __str__(self) -> str:
        width = max((len(layer.name) for layer in self.layers), default=5)
        lines = [f"{'layer':<{width}}  {'weight':>14}  {'input':>14}  {'output':>14}"]
        for layer in self.layers:
            cells = (_short(grid).rjust(14) for grid in (layer.weight, layer.input, layer.output))
            lines.append(f"{layer.name:<{width}}  {'  '.join(cells)}")
        return "\n".join(lines + [f"{name} is left in float: {why}" for name, why in self.left.items()])

    @property
    def quantizers(self) -> dict[str, FakeQuantize]:
        """By ``layer.weight``, ``layer.input`` and ``layer.output``. Empty once removed."""
        quantizers: dict[str, FakeQuantize] = {}
        for layer in self.layers if self._handles else ():
            owner = self._module.get_submodule(layer.name)
            if layer.weight is not None:
                (quantizer,) = owner.parametrizations["weight"]
                quantizers[f"{layer.name}.weight"] = quantizer
            for side in ("input", "output"):
                if hasattr(owner, f"{side}_quantizer"):
                    quantizers[f"{layer.name}.{side}"] = getattr(owner, f"{side}_quantizer")
        return quantizers

    @property
    def grids(self) -> dict[str, Grid]:
        """As they are now, with what training changed; named as in `quantizers`."""
        return {name: quantizer.grid for name, quantizer in self.quantizers.items()}

    def enable(self, on: bool = True) -> None:
        """Let everything pass in float, or quantise again."""
        for quantizer in self.quantizers.values():
            quantizer.enabled = on

    def placed(self, graph: Graph) -> dict[str, Grid]:
        """The grids by the names of a graph, for `leadline.export.qdq.to_qdq` and `to_module`.

        Parameters
        ----------
        graph : Graph
            ``leadline.torch.to_graph`` of the module as it was before, or after `remove`.

        Returns
        -------
        dict of tensor name to Grid
            Weights, what their layers read and write, and biases on the grid of their layer's int32 sums.

        Raises
        ------
        InputError : a calibrated layer is not in the graph under its name.
        """
        there = {layer.weight: layer for layer in graph.layers()}
        grids: dict[str, Grid] = {}
        for name, grid in self.grids.items():
            layer, side = there.get(f"{name.rpartition('.')[0]}.weight"), name.rpartition(".")[2]
            if layer is None:
                raise refuse("Calibration.placed", f"graph must hold the weight of '{name}'", f"'{graph.name}'")
            grids[{"weight": layer.weight, "input": layer.input, "output": layer.output}[side]] = grid
        for layer in there.values():
            if layer.bias:
                channels = graph.weights[layer.bias].size
                sums = decide.bias_grid(grids.get(layer.weight), grids.get(layer.input), channels)
                grids |= {} if sums is None else {layer.bias: sums}
        return grids

    def remove(self) -> None:
        """Take everything out again: weights are float as before, or as training left them. Twice is once."""
        if not self._handles:
            return
        for layer in self.layers:
            owner = self._module.get_submodule(layer.name)
            if layer.weight is not None:
                # torch's remove_parametrizations takes the weight from copies of the module, too: they share the class
                weight, others = owner.parametrizations["weight"].original, dict(owner._parameters)
                del owner.parametrizations
                owner.__class__ = type(owner).__bases__[0]
                owner._parameters.clear()  # the weight goes first again: an optimiser's state knows it by its place
                owner.register_parameter("weight", weight)
                owner._parameters.update(others)
            for side in ("input", "output"):
                if hasattr(owner, f"{side}_quantizer"):
                    delattr(owner, f"{side}_quantizer")
        for handle in self._handles:
            handle.remove()
        self._handles = []


def calibrate(
    module: nn.Module,
    data: Iterable[Any],
    *,
    pattern: str = "*",
    weights: Scheme | None = WEIGHTS,
    activations: Scheme | None = ACTIVATIONS,
    observer: str = "mse",
    outputs: bool = False,
    learn_scales: bool = False,
    progress: Progress | None = None,
) -> Calibration:
    """Finds grids for the linear and convolutional layers of a float module, and puts fake quantisation in, in place.

    Afterwards the module computes with quantised weights and inputs, in the same code; gradients pass straight through,
    so it can be trained at once. Biases and everything else stay float.

    Parameters
    ----------
    module : nn.Module
        On the CPU, float32. It is run in eval mode, and left in its own.
    data : iterable of batches
        A batch is what `module` is called with: a tensor, a tuple or list of arguments, or a dict of keywords. None is
        kept: only histograms are.
    pattern : str
        Shell pattern for the names of layers (``blocks.*.qkv``).
    weights, activations : Scheme or None
        None: left in float. A Scheme per axis is taken along the output channels of a weight and the channels of an
        activation, per block along the inputs of a weight. Per token: the scales are found at each call.
    observer : str
        Of `leadline.observers.search_range`, for weights and activations alike. Grids of activations of more than 8
        bits have head-room beyond it, as in recipes.
    outputs : bool
        Layers' outputs get a grid too, per tensor or as `activations` says.
    learn_scales : bool
        Scales are parameters and learn by LSQ; see `FakeQuantize`.
    progress : progress.Bars, optional

    Returns
    -------
    Calibration
        ``print`` shows what was found; `Calibration.remove` undoes it.

    Raises
    ------
    InputError : an argument does not fit, a layer is quantised already or sees NaN, or nothing matches.
    """
    _check(module, weights, activations, observer)
    named = {n: m for n, m in module.named_modules() if isinstance(m, LAYERS) and fnmatchcase(n, pattern) and n}
    if not named:
        raise refuse("calibrate", "pattern must match a linear or convolutional layer of the module", repr(pattern))
    left = {n: f"it is a {type(m).__name__}" for n, m in named.items() if type(m) not in LAYERS}
    seen = {n: _Seen(n, m, activations, outputs) for n, m in named.items() if n not in left}
    batch = 0
    handles = [handle for layer_seen in seen.values() for handle in layer_seen.watch(lambda: batch)]
    try:
        for batch in passes(module, data, progress or Quiet(), "calibrate"):  # noqa: B007 the hooks read it
            pass
    finally:
        for handle in handles:
            handle.remove()
    left |= {name: "its forward was never called" for name, layer_seen in seen.items() if not layer_seen.calls}
    left |= _matrices(module, pattern, named)
    reached = {name: layer_seen for name, layer_seen in seen.items() if layer_seen.calls}
    if not reached and any(parametrize.is_parametrized(layer) for layer in named.values()):
        raise refuse("calibrate", "module must not be calibrated yet: remove() what is in it", type(module).__name__)
    if not reached:
        raise refuse("calibrate", "data must hold batches that reach the layers", "none")
    calibrated = tuple(
        CalibratedLayer(
            name,
            type(layer_seen.layer).__name__,
            None if weights is None else _weight_grid(layer_seen.layer, weights, observer, name),
            layer_seen.grid("input", observer),
            layer_seen.grid("output", observer) if outputs else None,
        )
        for name, layer_seen in reached.items()
    )
    calibration = Calibration(module, calibrated, left)
    for layer in calibrated:
        calibration._handles += _insert(module.get_submodule(layer.name), layer, learn_scales)
    return calibration


def _matrices(module: nn.Module, pattern: str, named: Mapping[str, nn.Module]) -> dict[str, str]:
    """Other modules with a weight that a graph would quantise, by name: a transposed convolution, or attention that
    projects its inputs itself."""
    reasons = {}
    for name, other in module.named_modules():
        wide = any(weight.dim() > 1 for _, weight in other.named_parameters(recurse=False))
        if wide and name not in named and fnmatchcase(name, pattern) and not isinstance(other, nn.Embedding):
            reasons[name] = f"it is a {type(other).__name__}; to_graph and quantize take it"
    return reasons


class _Seen:
    """What a layer saw: a histogram of its inputs, and one of its outputs."""

    def __init__(self, name: str, layer: nn.Module, scheme: Scheme | None, outputs: bool) -> None:
        self.name, self.layer, self.scheme, self.calls = name, layer, scheme, 0
        self._sides = ("input", "output") if outputs else ("input",)
        self._histograms: dict[str, Histogram] = {}
        self._ranks: dict[str, int] = {}

    def watch(self, batch: Any) -> list[Any]:
        def before(_: nn.Module, args: tuple[Any, ...], kwargs: dict[str, Any]) -> None:
            self.calls += 1
            self._update("input", args[0] if args else kwargs["input"], batch())

        def behind(_: nn.Module, args: tuple[Any, ...], output: Tensor) -> None:
            self._update("output", output, batch())

        handles = [self.layer.register_forward_pre_hook(before, with_kwargs=True)]
        return handles + ([self.layer.register_forward_hook(behind)] if "output" in self._sides else [])

    def _update(self, side: str, x: Any, batch: int) -> None:
        check_float32("calibrate", f"the {side} of {self.name}", x)
        if self._ranks.setdefault(side, x.dim()) != x.dim():
            rule = f"the {side} of {self.name} must have {self._ranks[side]} axes, as before"
            raise refuse("calibrate", rule, x.dim())
        if self.scheme is None or self.scheme.granularity == "token":
            return
        if side not in self._histograms:
            axis = self._axis(side) if self.scheme.granularity == "axis" else None
            self._histograms[side] = Histogram(axis=axis, name=f"{self.name}.{side}")
        self._histograms[side].update(x.detach().contiguous().numpy(), batch, torch_threads())

    def _axis(self, side: str) -> int:
        """Of the channels."""
        rank = self._ranks[side]
        return rank - 1 if isinstance(self.layer, nn.Linear) else rank - self.layer.weight.dim() + 1

    def grid(self, side: str, observer: str) -> Grid | None:
        if self.scheme is None:
            return None
        scheme = self.scheme.at(self._axis(side))
        if scheme.granularity == "token":
            return decide.activation_grid(0.0, 0.0, scheme)
        lo, hi = decide.activation_range(self._histograms[side], scheme, observer, torch_threads())
        return decide.activation_grid(lo, hi, scheme)


def _weight_grid(layer: nn.Module, scheme: Scheme, observer: str, name: str) -> Grid:
    weight = layer.weight.detach().contiguous().numpy()
    along = scheme.at(1 if scheme.granularity == "block" else 0)
    return decide.weight_grid(weight, along, observer, name=f"{name}.weight", threads=torch_threads())


def _insert(layer: nn.Module, grids: CalibratedLayer, learn_scales: bool) -> list[Any]:
    handles = []
    if grids.input is not None:
        layer.input_quantizer = FakeQuantize(grids.input, learn_scales and grids.input.scheme.granularity != "token")
        handles.append(layer.register_forward_pre_hook(_quantize_input, with_kwargs=True))
    if grids.output is not None:
        layer.output_quantizer = FakeQuantize(grids.output, learn_scales and grids.output.scheme.granularity != "token")
        handles.append(layer.register_forward_hook(_quantize_output))
    if grids.weight is not None:
        quantizer = FakeQuantize(grids.weight, learn_scales)
        parametrize.register_parametrization(layer, "weight", quantizer)
        handles.append(_Nothing())
    return handles


def _quantize_input(layer: nn.Module, args: tuple[Any, ...], kwargs: dict[str, Any]) -> Any:
    """Looks its quantizer up, so that a copy of the module has its own."""
    if args:
        return (layer.input_quantizer(args[0]), *args[1:]), kwargs
    return args, {**kwargs, "input": layer.input_quantizer(kwargs["input"])}


def _quantize_output(layer: nn.Module, args: tuple[Any, ...], output: Tensor) -> Tensor:
    changed: Tensor = layer.output_quantizer(output)
    return changed


class _Nothing:
    """A handle of what torch's parametrize removes itself."""

    def remove(self) -> None:
        pass


def _check(module: Any, weights: Any, activations: Any, observer: Any) -> None:
    if not isinstance(module, nn.Module) or isinstance(module, LAYERS):
        raise refuse("calibrate", "module must be an nn.Module that holds layers", f"a {type(module).__name__}")
    if weights is None and activations is None:
        raise refuse("calibrate", "weights or activations must be a Scheme", "None for both")
    for argument, scheme in (("weights", weights), ("activations", activations)):
        if scheme is not None and not isinstance(scheme, Scheme):
            raise refuse("calibrate", f"{argument} must be a Scheme or None", f"a {type(scheme).__name__}")
        refused = "token" if argument == "weights" else "block"
        if scheme is not None and (scheme.granularity == refused or scheme.bits > 16):
            rule = f"{argument} must have at most 16 bits, and no grid for each {refused}"
            raise refuse("calibrate", rule, f"{scheme.bits} bits per {scheme.granularity}")
    if observer not in METHODS:
        raise refuse("calibrate", f"observer must be one of {', '.join(METHODS)}", repr(observer))


def _short(grid: Grid | None) -> str:
    if grid is None:
        return "float"
    scheme = grid.scheme
    return f"{'' if scheme.signed else 'u'}int{scheme.bits} per {scheme.granularity}"
