"""A Graph as a torch module and back: for torch.export, litert-torch and training."""

from __future__ import annotations

import re
from collections.abc import Mapping
from dataclasses import dataclass, replace
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor, nn

from leadline import decide
from leadline.affine import accumulator_grid, dequantize, quantize
from leadline.graph import DOMAIN, Graph, Node
from leadline.graph.operators import moves_data
from leadline.graph.quantised import Quantised
from leadline.graph.tail import check_whole
from leadline.torch.fake import FakeQuantize
from leadline.torch.movement import Builder, Function, Site
from leadline.torch.operators import OPERATORS, OWN
from leadline.types import Grid, refuse

__all__ = ["GraphModule", "SimulatedModule", "to_module"]


@dataclass(frozen=True)
class _Call:
    """One node, ready to run. `inputs` are graph names, None where left out."""

    function: Function
    inputs: tuple[str | None, ...]
    outputs: tuple[str, ...]


class GraphModule(nn.Module):
    """A network as torch sees it; made by `to_module`.

    Inputs come in the graph's order and layout; the output is one tensor, or a tuple in the graph's order.

    Attributes
    ----------
    names : dict of str to str
        Graph name to parameter name: letters, digits and underscores as they are, anything else an underscore.
    """

    def __init__(self, graph: Graph, grids: Mapping[str, Grid], codes: Mapping[str, NDArray[Any]]) -> None:
        super().__init__()
        self._graph, self._grids = graph, dict(grids)
        self._calls: list[_Call] = []
        read: set[str] = set()
        for node in graph.nodes:
            settings: set[str] = set()
            function = _builder(node)(Site(graph, node, settings))
            names = [name for name in node.inputs if name == "" or name not in settings]
            while names and names[-1] == "":
                names.pop()
            self._calls.append(_Call(function, tuple(name or None for name in names), tuple(node.outputs)))
            read.update(name for name in names if name in graph.weights)
        self.names: dict[str, str] = {}
        self._fixed: dict[str, Tensor] = {}
        for name in graph.weights:
            if name in read:
                self._hold(name, graph.weights[name], codes)

    def _hold(self, name: str, array: NDArray[Any], codes: Mapping[str, NDArray[Any]]) -> None:
        if array.dtype != np.float32:
            self._fixed[name] = torch.from_numpy(np.array(array))
            return
        attribute = re.sub(r"\W", "_", name)
        while attribute in self._parameters or hasattr(self, attribute):
            attribute += "_"
        self.names[name] = attribute
        values = dequantize(codes[name], self._grids[name]) if name in codes else array
        self.register_parameter(attribute, nn.Parameter(torch.from_numpy(np.array(values))))

    def forward(self, *inputs: Tensor) -> Tensor | tuple[Tensor, ...]:
        values: dict[str, Tensor] = dict(self._fixed)
        for name, attribute in self.names.items():
            values[name] = self._seen(name, getattr(self, attribute))
        for value, x in zip(self._graph.inputs, inputs, strict=True):
            values[value.name] = self._seen(value.name, x)
        for call in self._calls:
            result = call.function(*(None if name is None else values[name] for name in call.inputs))
            written = result if isinstance(result, (tuple, list)) else (result,)
            for name, tensor in zip(call.outputs, written, strict=True):
                values[name] = self._seen(name, tensor)
        outputs = tuple(values[value.name] for value in self._graph.outputs)
        return outputs if len(outputs) > 1 else outputs[0]

    def _seen(self, name: str, x: Tensor) -> Tensor:
        """What the readers of a tensor see."""
        return x

    def to_graph(self) -> Graph:
        """The graph with the parameters as they are now."""
        graph = self._graph.copy()
        for name, attribute in self.names.items():
            graph.weights[name] = getattr(self, attribute).detach().cpu().numpy().copy()
        return graph


class SimulatedModule(GraphModule):
    """A quantised network in torch: the exported simulation, with gradients; made by `to_module`.

    Every tensor with a grid passes a FakeQuantize. Tensors that must share a grid (behind data movement, or joined by a
    Concat) share one module; a bias is rounded at the scale of its layer's input times that of its weight.

    Attributes
    ----------
    quantizers : ModuleDict
        The FakeQuantize modules, named as parameters are; `quantizer` finds one by the graph's name.
    """

    def __init__(self, source: Quantised, learn_scales: bool) -> None:
        super().__init__(source.graph, source.grids, source.codes)
        self._source = source
        self._biases = {
            layer.bias: (layer.weight, layer.input)
            for layer in source.graph.layers()
            if layer.bias is not None
            and layer.bias in source.grids
            and _is_accumulator(source, layer.bias, layer.weight, layer.input)
        }
        self.quantizers = nn.ModuleDict()
        self._keys: dict[str, str] = {}
        shared = _shared(source.graph, source.grids)
        for name, grid in source.grids.items():
            key = re.sub(r"\W", "_", shared.get(name, name))
            self._keys[name] = key
            if key not in self.quantizers:
                learns = learn_scales and grid.scheme.bits <= 16 and grid.scheme.granularity != "token"
                self.quantizers[key] = FakeQuantize(grid, learns)
        self._moved = {
            output: node.inputs[0]
            for node in source.graph.nodes
            for output in node.outputs
            if moves_data(node) and output in self._keys
            and self._keys[output] == self._keys.get(node.inputs[0])
        }  # fmt: skip

    def quantizer(self, name: str) -> FakeQuantize:
        """Of a tensor of the graph. Raises InputError where it has none."""
        if name not in self._keys:
            raise refuse("SimulatedModule", "name must be a tensor with a grid", repr(name))
        module = self.quantizers[self._keys[name]]
        assert isinstance(module, FakeQuantize)
        return module

    def _seen(self, name: str, x: Tensor) -> Tensor:
        if name not in self._keys or name in self._moved:  # what a movement copies is on the grid already
            return x
        quantizer = self.quantizer(name)
        if name in self._biases:
            weight, activation = (self.quantizer(part) for part in self._biases[name])
            if weight.scale.requires_grad or activation.scale.requires_grad:
                with torch.no_grad():
                    quantizer.scale.copy_(torch.from_numpy(self._sums(name).scale))
        return quantizer(x)

    def _sums(self, bias: str) -> Grid:
        weight, activation = (self.quantizer(part).grid for part in self._biases[bias])
        return accumulator_grid(weight, activation, self._graph.weights[bias].size)

    def to_quantized(self) -> Any:
        """The Quantized that this module came from, with the grids and weights as they are now, rounded to nearest.

        Its saved simulation computes what the module computes in eval mode.
        """
        grids = {name: self.quantizer(name).grid for name in self._keys}
        grids |= {name: self._sums(name) for name in self._biases}
        graph = self.to_graph()
        codes = {name: quantize(graph.weights[name], grids[name]) for name in self._source.codes}
        source: Any = self._source
        return replace(source, graph=graph, grids=grids, codes=codes)


def to_module(
    graph: Graph | Quantised,
    grids: Mapping[str, Grid] | None = None,
    codes: Mapping[str, NDArray[Any]] | None = None,
    *,
    learn_scales: bool = False,
) -> GraphModule:
    """A graph as a torch module, in evaluation mode, that torch.export and litert-torch take.

    Linear layers become torch.nn.functional.linear, LayerNormalization layer_norm, Gelu gelu, convolutions conv2d: the
    operators that converters know. Constants that are settings (shapes, bounds, sizes) are fixed in the code; float32
    constants are parameters. Training it and `GraphModule.to_graph` bring new weights back.

    Parameters
    ----------
    graph : Graph or Quantized
        Normalised. It is not changed. A Quantized brings its grids and codes.
    grids, codes : dict, optional
        Of a Quantized. With grids the module is a SimulatedModule: every tensor with a grid passes through it, as in
        the exported simulation, and gradients pass straight through (`FakeQuantize`), for training with quantisation.
        Weights begin at the values of their codes. `SimulatedModule.to_quantized` brings it back.
    learn_scales : bool
        Scales are parameters too, and learn by LSQ. Grids fitted to a target (`target="hexagon"`) then lose the fit.

    Raises
    ------
    InputError
        An operator, or a setting of it, that torch has no function for; shapes that depend on the data; a grid per
        block of an activation.
    """
    if not isinstance(graph, Graph):
        if grids is not None or codes is not None:
            raise refuse("to_module", "a Quantized brings its own grids and codes", "others beside it")
        source: Quantised = graph
    else:
        source = _Given(graph, dict(grids or {}), dict(codes or {}))
    check_whole(source.graph, "a module", "to_module")
    for name, grid in source.grids.items():
        if name not in source.graph.weights and grid.scheme.granularity == "block":
            raise refuse("to_module", f"the grid of activation '{name}' must not be per block", "one per block")
    with torch.no_grad():
        whole = SimulatedModule(source, learn_scales) if source.grids else GraphModule(source.graph, {}, {})
    whole.eval()
    return whole


@dataclass(frozen=True)
class _Given:
    graph: Graph
    grids: dict[str, Grid]
    codes: dict[str, NDArray[Any]]


def _builder(node: Node) -> Builder:
    builder = (OWN if node.domain == DOMAIN else OPERATORS if node.domain in ("", "ai.onnx") else {}).get(node.op_type)
    if builder is None:
        known = f"operator of '{node.name}' must be one of {', '.join(sorted(OPERATORS))}"
        received = f"{node.domain}.{node.op_type}" if node.domain else node.op_type
        raise refuse("to_module", known, received)
    return builder


def _is_accumulator(source: Quantised, bias: str, weight: str, activation: str) -> bool:
    """The bias is on the grid of its layer's integer sums, and has to stay there."""
    channels = source.graph.weights[bias].size
    sums = decide.bias_grid(source.grids.get(weight), source.grids.get(activation), channels)
    return sums is not None and np.array_equal(sums.scale, source.grids[bias].scale)


def _shared(graph: Graph, grids: Mapping[str, Grid]) -> dict[str, str]:
    """Tensors that stand for others whose grid they share: behind data movement, or joined by a Concat."""
    first: dict[str, str] = {}

    def root(name: str) -> str:
        while first.get(name, name) != name:
            name = first[name]
        return name

    for node in graph.nodes:
        joined = node.inputs if node.op_type == "Concat" else node.inputs[:1] if moves_data(node) else []
        for output in node.outputs:
            for name in joined:
                if name in grids and name in graph.values and grids[name] == grids.get(output):
                    first[root(output)] = root(name)
    return {name: root(name) for name in first}
