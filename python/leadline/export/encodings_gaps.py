"""What an encodings file leaves to the vendor's tool, and the form of it that aimet-onnx accepts.

Tried with aimet-onnx 2.42. Its own files of version 0.6.1 and 1.0.0 hold neither int32 biases nor the outputs of data
movement, those of 2.0.0 hold both, and none names what it takes for the inside of one operator (the product in front of
a linear layer's bias); `accepted` writes files likewise. What Qualcomm's converters do about a tensor without entry:
``qnn-onnx-converter --quantization_overrides`` (0.6.1, 1.0.0) calibrates it from ``--input_list``, or leaves it in
float with ``--float_fallback``; ``qairt-converter`` (2.0.0) leaves it in float. Sources: qualcomm/aimet issues 2444,
4069, 4071, 4090 and discussion 3902.
"""

from __future__ import annotations

import os
from collections.abc import Iterator
from dataclasses import dataclass, replace
from typing import Literal, get_args

import numpy as np

from leadline.affine import accumulator_grid
from leadline.export.encodings import Encodings, Version, read_with_version
from leadline.graph import Graph, Layer, Node
from leadline.graph.operators import ABSORBING, CLAMPS, moved_from
from leadline.types import Grid, Scheme, refuse

_LEGACY = ("0.6.1", "1.0.0")
_SETTINGS = {"Resize", "Upsample", "Clip", "Pad", "Slice", "Tile", "Expand", "Range", "TopK"}
"""Operators whose constant inputs say how, and are no data."""
_TIED = {"Concat", "AveragePool", "Relu", "Resize", "Upsample"}
"""Operators whose inputs and outputs share one quantiser in aimet-onnx's QuantizationSimModel: the last entry wins."""

Reason = Literal["int32 bias", "data movement", "clamp", "supergroup", "constant", "weight", "float", "tied"]


@dataclass(frozen=True)
class Gap:
    """A tensor about which the vendor's tool decides by itself.

    Attributes
    ----------
    tensor : str
    kind : {"activation", "parameter"}
    reason : str
        "int32 bias": of a quantised layer. "data movement": holds elements of a tensor that has an entry. "clamp": only
        a quantised Relu, Clip or Min reads it, which the kernel performs. "supergroup": the product in front of a
        linear layer's bias. "constant": an operand that is no layer's weight or bias. "weight": of a layer that is not
        quantised, or its bias. "float": an activation that the recipe left in float, or whose operator stays float.
        "tied": has an entry, but shares its quantiser with a neighbour of another entry in aimet-onnx.
    consequence : str
        What the tool does then.
    harmless : bool
        Nothing is decided that could differ from leadline's simulation.
    """

    tensor: str
    kind: Literal["activation", "parameter"]
    reason: Reason
    consequence: str
    harmless: bool


def accepted(graph: Graph, encodings: Encodings, version: str) -> Encodings:
    """The entries that a file of a version should hold for aimet-onnx to load it onto this very network.

    Without the products in front of a linear layer's bias; 0.6.1 and 1.0.0 also without int32 biases, and without
    outputs of data movement whose grid is their input's. The tool derives those again.

    Raises InputError for an unknown version.
    """
    if version not in get_args(Version):
        raise refuse("encodings", f"version must be one of {', '.join(get_args(Version))}", repr(version))
    grids = {name: grid for name, grid in encodings.grids.items() if name not in _inside(graph)}
    if version in _LEGACY:
        moved = {name: source for name, source in moved_from(graph).items() if grids.get(name) == grids.get(source)}
        grids = {name: grid for name, grid in grids.items() if grid.scheme.bits < 32 and name not in moved}
    params = encodings.params
    return replace(encodings, grids=grids, params=None if params is None else params & {*grids, *encodings.floats})


def completed(graph: Graph, encodings: Encodings) -> dict[str, Grid]:
    """The grids of a file, and those that every tool adds: of moved data, and int32 at input scale times weight scale
    for the bias of a layer whose input and weight have integer grids."""
    grids = dict(encodings.grids)
    for name, source in moved_from(graph).items():
        if source in grids and grids[source].scheme.granularity == "tensor":
            grids.setdefault(name, grids[source])
    for layer in graph.layers():
        known = layer.bias is not None and layer.bias not in grids and layer.bias not in encodings.floats
        x, weight = grids.get(layer.input), grids.get(layer.weight)
        if layer.bias is None or not known or x is None or weight is None or x.scheme.granularity != "tensor":
            continue
        channels = graph.weights[layer.bias].size
        if weight.scheme.granularity == "block" or channels % weight.scale.size:
            continue
        if weight.scheme.granularity == "tensor":
            grids[layer.bias] = Grid(x.scale * weight.scale, np.zeros((), np.int32), Scheme(32, True, True))
        else:
            grids[layer.bias] = accumulator_grid(weight, x, channels)
    return grids


def gaps(graph: Graph, encodings: Encodings | str | os.PathLike[str], version: str | None = None) -> list[Gap]:
    """Every float tensor about which the vendor's tool decides by itself, in the order of computation.

    Parameters
    ----------
    graph : Graph
        The network that the encodings name: ``model.encodings.onnx``, or ``Graph.load(path, verbatim=True)`` of
        somebody else's.
    encodings : Encodings or path
        A file is taken as it is; Encodings as `accepted` would write them.
    version : str, optional
        0.6.1, 1.0.0 or 2.0.0; needed with Encodings, told by a file.

    Raises
    ------
    InputError
        The file cannot be read (`encodings.read`) or names tensors that the graph does not have; no version is known.
    """
    if isinstance(encodings, Encodings):
        if version is None:
            raise refuse("gaps", "Encodings need a version: 0.6.1, 1.0.0 or 2.0.0", "none")
        entries = accepted(graph, encodings, version)
    else:
        entries, version = read_with_version(encodings, graph)
    return list(_Search(graph, entries, version in _LEGACY).run())


class _Search:
    def __init__(self, graph: Graph, entries: Encodings, legacy: bool) -> None:
        self._graph, self._grids = graph, entries.grids
        self._legacy = legacy
        self._covered = {*entries.grids, *(entries.floats if legacy else ())}
        self._producers, self._readers = graph.producers(), graph.readers()
        self._moved, self._inside = moved_from(graph), _inside(graph)
        self._layers = {
            name: layer for layer in graph.layers() for name in (layer.weight, layer.bias) if name is not None
        } | {bias: layer for layer, bias in _apart(graph)}
        self._other = (
            "calibrated from --input_list, or float with --float_fallback" if self._legacy else "left in float"
        )

    def run(self) -> Iterator[Gap]:
        graph, activations = self._graph, set(self._graph.activations())
        order = [value.name for value in graph.inputs if value.name in activations]
        for node in graph.nodes:
            order += [name for name in node.inputs if self._is_operand(node, name)]
            order += [name for name in node.outputs if name in activations]
        order = list(dict.fromkeys(order))
        tied = self._tied(order)
        for name in order:
            if name in tied:
                winner = tied[name]
                text = f"aimet-onnx's simulation gives it the grid of '{winner}'; its QDQ export does not"
                yield Gap(name, "activation", "tied", text, False)
            elif name not in self._covered:
                yield self._parameter(name) if name in graph.weights else self._activation(name)

    def _is_operand(self, node: Node, name: str) -> bool:
        weight = self._graph.weights.get(name)
        if weight is None or weight.dtype != np.float32:
            return False
        return node.op_type not in _SETTINGS or name == node.inputs[0]

    def _parameter(self, name: str) -> Gap:
        layer = self._layers.get(name)
        if layer is None:
            text = "quantised from its own values, with the type that the tool is told" if self._legacy else self._other
            return Gap(name, "parameter", "constant", text, False)
        if name != layer.weight and layer.weight in self._grids:
            if self._legacy:
                text = "quantised by the converter: tell it --bias_bitwidth 32"
            else:
                text = "left in float, and its layer with it"
            return Gap(name, "parameter", "int32 bias", text, False)
        return Gap(name, "parameter", "weight", self._other.replace("calibrated from --input_list", "quantised"), False)

    def _activation(self, name: str) -> Gap:
        source = self._moved.get(name)
        if source in self._covered:
            return Gap(name, "activation", "data movement", f"takes the grid of '{source}'", True)
        producer, readers = self._producers.get(name), self._readers.get(name, [])
        if name in self._inside:
            text = f"part of the linear layer that writes '{readers[0].outputs[0]}'"
            return Gap(name, "activation", "supergroup", text, True)
        behind = self._behind_clamps(name)
        if producer is not None and producer.op_type in ABSORBING and behind is not None:
            return Gap(name, "activation", "clamp", f"never exists: the kernel clamps and writes '{behind}'", True)
        return Gap(name, "activation", "float", self._other, False)

    def _behind_clamps(self, name: str) -> str | None:
        """The tensor with an entry that a run of clamps, each the only reader, makes of this one."""
        while len(readers := self._readers.get(name, [])) == 1 and readers[0].op_type in CLAMPS:
            name = readers[0].outputs[0]
            if name in self._covered:
                return name
        return None

    def _tied(self, order: list[str]) -> dict[str, str]:
        """Tensors whose entry gives way to that of a tied tensor, and that tensor: the one that is computed last."""
        groups: dict[str, set[str]] = {}
        for node in self._graph.nodes:
            if node.op_type in _TIED and not node.domain:
                data = node.inputs if node.op_type == "Concat" else node.inputs[:1]
                # Data movement has no quantiser of its own: that of the tensor in front of it stands for both.
                names = {self._moved.get(name, name) for name in (*data, *node.outputs)}
                group = names.union(*(groups.get(name, ()) for name in names))
                groups |= dict.fromkeys(group, group)
        position = {name: i for i, name in enumerate(order)}
        replacement: dict[str, str] = {}
        for name, group in groups.items():
            if name in self._grids:
                last = max(group & self._grids.keys(), key=lambda other: position.get(other, -1))
                if self._grids[name] != self._grids[last]:
                    replacement[name] = last
        return replacement


def _linear_pairs(graph: Graph) -> Iterator[tuple[Node, Node, str]]:
    """MatMul with a constant matrix, the Add behind it, and the constant vector that it adds."""
    readers = graph.readers()
    for node in graph.nodes:
        if node.op_type != "MatMul" or getattr(graph.weights.get(node.inputs[1]), "ndim", 0) != 2:
            continue
        following = readers.get(node.outputs[0], [])
        if len(following) == 1 and following[0].op_type == "Add":
            bias = next((name for name in following[0].inputs if name != node.outputs[0]), "")
            if bias in graph.weights and graph.weights[bias].ndim == 1:
                yield node, following[0], bias


def _inside(graph: Graph) -> set[str]:
    """Products that a tool takes for the inside of a linear layer."""
    outputs = {value.name for value in graph.outputs}
    return {product.outputs[0] for product, _, _ in _linear_pairs(graph)} - outputs


def _apart(graph: Graph) -> Iterator[tuple[Layer, str]]:
    """Layers whose bias an Add behind them adds."""
    layers = {layer.output: layer for layer in graph.layers()}
    for product, _, bias in _linear_pairs(graph):
        if product.outputs[0] in layers:
            yield layers[product.outputs[0]], bias
