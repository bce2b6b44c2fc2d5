"""Where channels of an activation can be scaled exactly: what writes it absorbs 1/s, and all that read it take s."""

from __future__ import annotations

from dataclasses import dataclass, replace

import numpy as np
from numpy.typing import NDArray

from leadline.graph import DOMAIN, Graph, Layer, Node
from leadline.graph.operators import CURVED, layer_axis
from leadline.graph.trace import Use, features, origin, trace

Ids = NDArray[np.int64]


@dataclass(frozen=True)
class Place:
    """Channels `rows` of what `source` writes, and the layers that read them.

    `source` is a LayerNormalization (its gain and offset), a Rotate (columns of its matrix), or the Gemm that makes the
    values of an attention. Each reader comes with the place in `rows` of each of its input channels.
    """

    source: Node
    rows: Ids
    readers: tuple[tuple[Layer, Ids], ...]
    shifts: bool
    """Whether a shift could be absorbed as well."""
    heads: Ids | None = None
    """Of values: the channels of each head, (heads, channels), as the source counts them."""

    @property
    def name(self) -> str:
        return f"{self.source.name} > {', '.join(layer.name for layer, _ in self.readers)}"


@dataclass(frozen=True)
class Product:
    """A query and a key whose channels meet in one MatMul: the layers that write them, the rows of each layer that
    belong together, and the uses of both by the MatMul, with which of these rows an element holds."""

    query: Layer
    key: Layer
    rows: tuple[Ids, Ids]
    uses: tuple[Use, Use]

    @property
    def name(self) -> str:
        return self.query.name if self.query is self.key else f"{self.query.name} * {self.key.name}"


class Unfit(Exception):
    """Why channels cannot be scaled."""


def find_norms(graph: Graph) -> tuple[list[Place], list[tuple[str, str]]]:
    """Every LayerNormalization and Rotate whose readers are all layers; the others, and the layers whose input nothing
    can absorb, with the reason."""
    finder = _Finder(graph)
    places: list[Place] = []
    refused: list[tuple[str, str]] = []
    for node in graph.nodes:
        if node.op_type == "LayerNormalization" or (node.op_type == "Rotate" and node.domain == DOMAIN):
            try:
                places.append(finder.norm(node))
            except Unfit as reason:
                refused.append((node.name, str(reason)))
    for layer in finder.layers.values():
        _, writer = origin(graph, finder.producers, layer.input)
        if writer is not None and (bent := _bent(writer, finder.producers)):
            refused.append((layer.name, f"{bent} in front of it does not commute with scaling"))
    return places, refused


def find_attention(graph: Graph) -> tuple[list[Place], list[Product], list[tuple[str, str]]]:
    """Values and the layers that read what attention mixes of them; queries and keys; and what cannot be scaled."""
    finder = _Finder(graph)
    values: list[Place] = []
    products: list[Product] = []
    refused: list[tuple[str, str]] = []
    for node in graph.nodes:
        if node.op_type != "MatMul" or any(name not in graph.values for name in node.inputs):
            continue
        if any(len(graph.shape(name)) < 2 for name in node.inputs):
            continue  # a vector: no attention
        _, left = origin(graph, finder.producers, node.inputs[0])
        try:
            if left is not None and left.op_type == "Softmax":
                values.append(finder.value(node))
            else:
                products.append(finder.product(node))
        except Unfit as reason:
            refused.append((node.name, str(reason)))
    return values, products, refused


def _bent(writer: Node, producers: dict[str, Node]) -> str:
    if writer.op_type in CURVED:
        return writer.op_type
    gate = any((before := producers.get(name)) and before.op_type == "Sigmoid" for name in writer.inputs)
    return "SiLU" if writer.op_type == "Mul" and gate else ""


class _Finder:
    def __init__(self, graph: Graph) -> None:
        self.graph = graph
        self.producers, self.readers = graph.producers(), graph.readers()
        self.layers = {id(layer.node): layer for layer in graph.layers()}

    def norm(self, node: Node) -> Place:
        constants = node.inputs[1:]
        tensor = node.outputs[0]
        shape = self.graph.shape(tensor)
        norm = node.op_type == "LayerNormalization"
        if any(name not in self.graph.weights for name in constants if name):
            raise Unfit("its parameters are not constant")
        if any(node.outputs[1:]) or (norm and node.attrs.get("axis", -1) % len(shape) != len(shape) - 1):
            raise Unfit("it does more than normalise the last axis")
        place = self._place(node, trace(self.graph, tensor, np.broadcast_to(np.arange(shape[-1]), shape)), norm)
        if place.rows.size < shape[-1]:
            raise Unfit("nothing reads some of its channels")
        return place

    def value(self, mixing: Node) -> Place:
        """Softmax mixes the values of different tokens, each channel by itself, so that scales pass through it."""
        layer, uses = self._written(mixing.inputs[1])
        use = self._only(uses, mixing, 1)
        shape = self.graph.shape(mixing.outputs[0])
        if not (use.ids == use.ids[..., :1, :]).all():
            raise Unfit("its values are not arranged token by token")
        mixed = np.broadcast_to(use.ids[..., :1, :], shape)
        place = self._place(layer.node, trace(self.graph, mixing.outputs[0], mixed), False)
        heads = np.unique(use.ids[..., 0, :].reshape(-1, shape[-1]), axis=0)  # those of a batch are the same
        return replace(place, heads=heads)

    def product(self, node: Node) -> Product:
        """q and k may differ from token to token in nothing but the layer's rows: a rotation by position would mix
        channels, and the scales of a pair would have to be equal."""
        sides = [self._written(name, factors=True) for name in node.inputs]
        uses = [self._only(written, node, index) for index, (_, written) in enumerate(sides)]
        contracted = (-1, -2)
        ids = []
        for use, axis in zip(uses, contracted, strict=True):
            held = np.moveaxis(use.ids, axis, -1)
            if not (held == held[..., :1, :]).all():
                raise Unfit("its channels are not arranged token by token")
            ids.append(held[..., 0, :])
        pairs = np.unique(np.stack([side.ravel() for side in np.broadcast_arrays(*ids)]), axis=1)
        if any(len(np.unique(side)) != pairs.shape[1] for side in pairs):
            raise Unfit("one channel meets several others, whose scales would have to be equal")
        return Product(sides[0][0], sides[1][0], (pairs[0], pairs[1]), (uses[0], uses[1]))

    def _written(self, tensor: str, factors: bool = False) -> tuple[Layer, list[Use]]:
        """The Gemm that `tensor` comes from, and every use of what it writes."""
        _, writer = origin(self.graph, self.producers, tensor, factors)
        layer = self.layers.get(id(writer))
        if layer is None:
            raise Unfit(f"{writer.op_type if writer else 'an input'} lies before it, where a linear layer should")
        self._check(layer)
        if layer.kind != "linear" or (layer.bias is None and len(layer.node.inputs) > 2):
            raise Unfit(f"{layer.name} is no plain linear layer")
        shape = self.graph.shape(layer.output)
        return layer, trace(self.graph, layer.output, np.broadcast_to(np.arange(shape[-1]), shape), factors)

    def _only(self, uses: list[Use], node: Node, index: int) -> Use:
        """The use by `node`, whose features nobody else may use."""
        wanted = [use for use in uses if use.node is node and use.index == index]
        if len(wanted) != 1:
            raise Unfit("its operands cannot be told apart")
        others = [use for use in uses if use is not wanted[0] and np.isin(use.ids, wanted[0].ids).any()]
        if others:
            raise Unfit(f"{_title(others[0])} reads the same channels")
        return wanted[0]

    def _check(self, layer: Layer) -> None:
        turned = layer.node.attrs.get("transA", 0)
        if turned or layer.axis != 0 or layer.groups > 1 or layer.kind not in ("linear", "conv"):
            raise Unfit(f"{layer.name} is no linear layer or plain convolution")
        if len(self.readers[layer.weight]) > 1:
            raise Unfit(f"{layer.name} shares its weight")

    def _place(self, source: Node, uses: list[Use], shifts: bool) -> Place:
        used = np.unique(np.concatenate([use.ids.ravel() for use in uses])) if uses else np.zeros(0, np.int64)
        readers = []
        for use in uses:
            layer = self.layers.get(id(use.node))
            if layer is None or use.index != 0:
                raise Unfit(f"{_title(use)} reads it")
            self._check(layer)
            channels = features(use.ids, layer_axis(layer))
            if channels is None or not np.array_equal(np.sort(channels), used):
                raise Unfit(f"{layer.name} reads its channels in another arrangement")
            readers.append((layer, np.searchsorted(used, channels)))
            constant_bias = layer.bias is not None or len(layer.node.inputs) < 3
            shifts = shifts and constant_bias and not _padded(layer.node)
        if not readers:
            raise Unfit("nothing reads it")
        return Place(source, used, tuple(readers), shifts)


def _padded(node: Node) -> bool:
    return any(node.attrs.get("pads", ())) or node.attrs.get("auto_pad", "NOTSET").startswith("SAME")


def _title(use: Use) -> str:
    return "the network's output" if use.node is None else f"{use.node.op_type} {use.node.name}".strip()
