"""A Graph as a torch module and back: for torch.export, litert-torch and training."""

from __future__ import annotations

import re
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor, nn

from leadline.affine import dequantize
from leadline.graph import Graph
from leadline.torch.movement import Function, Site
from leadline.torch.operators import OPERATORS
from leadline.types import Grid, refuse


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
            if node.op_type not in OPERATORS or node.domain not in ("", "ai.onnx"):
                known = f"operator of '{node.name}' must be one of {', '.join(sorted(OPERATORS))}"
                received = f"{node.domain}.{node.op_type}" if node.domain else node.op_type
                raise refuse("to_module", known, received)
            settings: set[str] = set()
            function = OPERATORS[node.op_type](Site(graph, node, settings))
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
        own = re.sub(r"\W", "_", name)
        while own in self._parameters or hasattr(self, own):
            own += "_"
        self.names[name] = own
        values = dequantize(codes[name], self._grids[name]) if name in codes else array
        self.register_parameter(own, nn.Parameter(torch.from_numpy(np.array(values))))

    def forward(self, *inputs: Tensor) -> Tensor | tuple[Tensor, ...]:
        values: dict[str, Tensor] = dict(self._fixed)
        for name, own in self.names.items():
            values[name] = self._seen(name, getattr(self, own))
        for value, given in zip(self._graph.inputs, inputs, strict=True):
            values[value.name] = self._seen(value.name, given)
        for call in self._calls:
            result = call.function(*(None if name is None else values[name] for name in call.inputs))
            written = result if isinstance(result, (tuple, list)) else (result,)
            for name, tensor in zip(call.outputs, written, strict=True):
                values[name] = self._seen(name, tensor)
        outputs = tuple(values[value.name] for value in self._graph.outputs)
        return outputs if len(outputs) > 1 else outputs[0]

    def _seen(self, name: str, x: Tensor) -> Tensor:
        """What the readers of a tensor see: itself, or its value on the grid."""
        grid = self._grids.get(name)
        return x if grid is None else _fake_quantize(x, grid)

    def to_graph(self) -> Graph:
        """The graph with the parameters as they are now."""
        graph = self._graph.copy()
        for name, own in self.names.items():
            graph.weights[name] = getattr(self, own).detach().cpu().numpy().copy()
        return graph


def to_module(
    graph: Graph, grids: Mapping[str, Grid] | None = None, codes: Mapping[str, NDArray[Any]] | None = None
) -> GraphModule:
    """A graph as a torch module, in evaluation mode, that torch.export and litert-torch take.

    Linear layers become torch.nn.functional.linear, LayerNormalization layer_norm, Gelu gelu, convolutions conv2d: the
    operators that converters know. Constants that are settings (shapes, bounds, sizes) are fixed in the code; float32
    constants are parameters. Training it and `GraphModule.to_graph` bring new weights back.

    Parameters
    ----------
    graph : Graph
        Normalised. It is not changed.
    grids, codes : dict, optional
        Of a Quantized: then every tensor with a grid passes through it, as in the exported simulation (half to even,
        after a division by the scale). Rounding has no gradient.

    Raises
    ------
    InputError
        An operator, or a setting of it, that torch has no function for; a grid per block or token of an activation.
    """
    for name, grid in (grids or {}).items():
        if name not in graph.weights and grid.scheme.granularity in ("block", "token"):
            rule = f"the grid of activation '{name}' must be per tensor or per channel"
            raise refuse("to_module", rule, f"one per {grid.scheme.granularity}")
    with torch.no_grad():
        module = GraphModule(graph, grids or {}, codes or {})
    module.eval()
    return module


def _fake_quantize(x: Tensor, grid: Grid) -> Tensor:
    scheme = grid.scheme
    scale, zero_point = (torch.from_numpy(np.array(part, np.float32)) for part in (grid.scale, grid.zero_point))
    if scheme.granularity == "axis":
        shape = [1] * x.dim()
        shape[scheme.axis or 0] = -1
        scale, zero_point = scale.reshape(shape), zero_point.reshape(shape)
    elif scheme.granularity == "block":
        axis, size = scheme.axis or 0, scheme.block_size or 1
        scale, zero_point = (part.repeat_interleave(size, axis) for part in (scale, zero_point))
    codes = torch.clamp(torch.round(x / scale) + zero_point, scheme.qmin, scheme.qmax)
    return (codes - zero_point) * scale
