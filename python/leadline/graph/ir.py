"""Graph: the network as ONNX nodes with numpy weights, and the questions that rewriting steps ask of it."""

from __future__ import annotations

import copy
import math
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from typing import TYPE_CHECKING, Any, Literal, Self

import numpy as np
from numpy.typing import NDArray

from leadline.types import refuse

if TYPE_CHECKING:
    from leadline.graph.batch import Batch
    from leadline.graph.tail import Tail

DOMAIN = "leadline"
"""Of leadline's own operators, which `leadline.graph.functions` defines."""
OPSET = 21
Array = NDArray[Any]
Sample = Mapping[str, Array | Sequence[int]]


@dataclass(slots=True)
class Node:
    """One ONNX operator. An input left out is "". Attributes are plain Python values, tensors among them numpy."""

    op_type: str
    inputs: list[str]
    outputs: list[str]
    name: str = ""
    attrs: dict[str, Any] = field(default_factory=dict)
    domain: str = ""


@dataclass(frozen=True)
class Value:
    """An activation: its name, numpy dtype and fixed shape."""

    name: str
    dtype: np.dtype[Any]
    shape: tuple[int, ...]


@dataclass(frozen=True)
class Layer:
    """A node that multiplies its input by a constant weight.

    Attributes
    ----------
    name : str
        The node's name.
    node : Node
    input, output : str
        Activations read and written by the node itself (2-D for a Gemm).
    weight : str
        Name in ``Graph.weights``.
    bias : str or None
        Name in ``Graph.weights``; None when there is none or it is no constant vector.
    axis : int
        Output-channel axis of the weight: 0 for Conv and Gemm, 1 for ConvTranspose, the last for MatMul.
    groups : int
        Convolution groups. A ConvTranspose with groups holds ``shape[1] * groups`` channels. Of a MatMul the matrices,
        one for each entry of a batch; 1 for any other linear layer.
    kind : {"linear", "conv", "depthwise", "transpose"}
    """

    name: str
    node: Node
    input: str
    output: str
    weight: str
    bias: str | None
    axis: int
    groups: int
    kind: Literal["linear", "conv", "depthwise", "transpose"]


@dataclass(slots=True)
class Graph:
    """A network in normal form, ready to be rewritten; `leadline.graph.Graph` reads and writes itself, too.

    Nodes are in topological order. Every activation has a fixed shape; constants are folded into ``weights``.
    Linear layers are Gemm(transB=1, alpha=beta=1) on a 2-D input, without addend or with a constant vector, and with a
    Reshape on either side where the tensor has another rank (a constant batch of matrices stays a MatMul);
    LayerNormalization and Gelu are single nodes. Input and output names are the file's own.

    Attributes
    ----------
    nodes : list of Node
    weights : dict of name to array
        Every constant tensor, integer ones (shapes, indices) included.
    inputs, outputs : list of Value
    values : dict of name to Value
        Every activation, inputs and outputs included.
    name : str
    opset : int
        Version of the default ONNX domain.
    metadata : dict of str to str
        Written to the file's metadata; empty after loading.
    tail : Tail or None
        What follows in float because its shapes depend on the data. The outputs above then are the tensors at the
        border, under the file's names; what is written ends as the file does.
    notes : list of str
        What loading changed that a user should know, as ``<tensor>: <what>``; a run's log begins with them.
    batch : Batch or None
        The batch axis that the file leaves free, if it does; once it is proven, what is written has it, too.
    """

    nodes: list[Node]
    weights: dict[str, Array]
    inputs: list[Value]
    outputs: list[Value]
    values: dict[str, Value]
    name: str = "network"
    opset: int = OPSET
    metadata: dict[str, str] = field(default_factory=dict)
    tail: Tail | None = None
    notes: list[str] = field(default_factory=list)
    batch: Batch | None = None

    def __repr__(self) -> str:
        """On one line; the weights of a network are no text."""
        sides = (", ".join(f"{end.name} {list(end.shape)}" for end in ends) for ends in (self.inputs, self.outputs))
        count = sum(array.size for array in self.weights.values())
        return f"Graph '{self.name}': {len(self.nodes)} nodes, {count:,} weights, {' -> '.join(sides)}"

    def front(self) -> Self:
        """The network without its tail, at its own batch size: outputs are the tensors at the border. Everything is
        shared, not copied."""
        return replace(self, tail=None, batch=None)

    def copy(self) -> Self:
        """A copy whose nodes and tables are its own; arrays are shared, so replace them, never write into them."""
        nodes = [
            Node(n.op_type, list(n.inputs), list(n.outputs), n.name, copy.copy(n.attrs), n.domain) for n in self.nodes
        ]
        return type(self)(
            nodes, dict(self.weights), list(self.inputs), list(self.outputs), dict(self.values),
            self.name, self.opset, dict(self.metadata), self.tail, list(self.notes), self.batch,
        )  # fmt: skip

    def is_same(self, other: Graph) -> bool:
        """Whether both have the same nodes in the same order, the same ends, and, as copies do, the same arrays."""
        arrays, others = self.weights, other.weights
        return (
            self.inputs == other.inputs
            and self.outputs == other.outputs
            and self.tail is other.tail
            and arrays.keys() == others.keys()
            and all(array is others[name] for name, array in arrays.items())
            and len(self.nodes) == len(other.nodes)
            and all(_are_alike(mine, theirs) for mine, theirs in zip(self.nodes, other.nodes, strict=True))
        )

    def producer(self, tensor: str) -> Node | None:
        """The node that writes `tensor`; None for an input or a weight."""
        return next((node for node in self.nodes if tensor and tensor in node.outputs), None)

    def consumers(self, tensor: str) -> list[Node]:
        """The nodes that read `tensor`, each once, in order; none for "", which stands for an input left out."""
        return [node for node in self.nodes if tensor and tensor in node.inputs]

    def producers(self) -> dict[str, Node]:
        """Every activation's writer: one pass instead of many `producer` calls."""
        return {output: node for node in self.nodes for output in node.outputs if output}

    def readers(self) -> dict[str, list[Node]]:
        """Every tensor's readers, each once: one pass instead of many `consumers` calls."""
        table: dict[str, list[Node]] = {}
        for node in self.nodes:
            for tensor in dict.fromkeys(node.inputs):
                if tensor:
                    table.setdefault(tensor, []).append(node)
        return table

    def shape(self, tensor: str) -> tuple[int, ...]:
        """Shape of an activation or a weight."""
        if tensor in self.values:
            return self.values[tensor].shape
        if tensor in self.weights:
            return tuple(self.weights[tensor].shape)
        raise refuse("Graph.shape", "tensor must be an activation or a weight of the graph", repr(tensor))

    def layers(self) -> list[Layer]:
        """Every Conv, ConvTranspose and Gemm (and MatMul that could not become one) with a constant weight."""
        return [layer for layer in map(self._layer, self.nodes) if layer is not None]

    def _layer(self, node: Node) -> Layer | None:
        axes = {"Conv": 0, "ConvTranspose": 1, "Gemm": 0 if node.attrs.get("transB") else 1, "MatMul": -1}
        if node.op_type not in axes or node.inputs[1] not in self.weights or node.inputs[0] in self.weights:
            return None
        weight = self.weights[node.inputs[1]]
        if weight.ndim < 2:
            return None  # a vector has no output channels; normal form writes it as a matrix
        bias = next((name for name in node.inputs[2:] if name in self.weights and self.weights[name].ndim == 1), None)
        groups = math.prod(weight.shape[:-2]) if node.op_type == "MatMul" else int(node.attrs.get("group", 1))
        kind: Literal["linear", "conv", "depthwise", "transpose"] = "linear"
        if node.op_type == "ConvTranspose":
            kind = "transpose"
        elif node.op_type == "Conv":
            kind = "depthwise" if groups > 1 and weight.shape[1] == 1 else "conv"
        axis = axes[node.op_type] % weight.ndim
        return Layer(node.name, node, node.inputs[0], node.outputs[0], node.inputs[1], bias, axis, groups, kind)

    def activations(self) -> list[str]:
        """Names of the float32 activations, inputs first, in the order of the nodes: what is worth observing."""
        order = [value.name for value in self.inputs] + [name for node in self.nodes for name in node.outputs if name]
        return [name for name in order if self.values[name].dtype == np.float32]

    def prune(self) -> None:
        """Drop the nodes, weights and values that no output needs."""
        needed = {value.name for value in self.outputs}
        kept = []
        for node in reversed(self.nodes):
            if needed.intersection(node.outputs):
                kept.append(node)
                needed.update(node.inputs)
        self.nodes = kept[::-1]
        self.weights = {name: array for name, array in self.weights.items() if name in needed}
        written: Iterable[str] = (name for node in self.nodes for name in node.outputs)
        alive = {value.name for value in self.inputs}.union(written)
        self.values = {name: value for name, value in self.values.items() if name in alive}


def _are_alike(node: Node, other: Node) -> bool:
    if (node.op_type, node.domain, node.inputs, node.outputs) != (
        other.op_type,
        other.domain,
        other.inputs,
        other.outputs,
    ):
        return False
    attrs, others = node.attrs, other.attrs
    return attrs.keys() == others.keys() and all(
        value is others[name] or (not isinstance(value, np.ndarray | Graph) and value == others[name])
        for name, value in attrs.items()
    )
