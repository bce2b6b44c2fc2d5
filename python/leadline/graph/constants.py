"""One walk through a file's nodes in their order: constants are computed, shapes fixed, control flow written out, and
each node is stated in opset 21."""

from __future__ import annotations

from collections import deque
from collections.abc import Mapping
from typing import Any

import numpy as np
import onnx
from onnx import helper

from leadline.graph import control, evaluate
from leadline.graph.edit import derived
from leadline.graph.expand import body, standard, taken_apart
from leadline.graph.ir import OPSET, Array, Graph, Node, Value
from leadline.graph.known import Known, first_output
from leadline.graph.operators import RANDOM, SHAPE_DEPENDS_ON_DATA, SHAPE_INPUTS, is_quantised
from leadline.graph.opset import restated
from leadline.graph.sequences import Sequences
from leadline.graph.tail import DependsOnDataError
from leadline.graph.writer import Steps
from leadline.types import InputError, refuse

FLOATS = frozenset(np.dtype(kind) for kind in ("float16", "float64"))
"""What activations hold in float32 instead; bfloat16 is read so from the start."""

_FLOAT_CODES = {helper.np_dtype_to_tensor_dtype(dtype) for dtype in FLOATS}
_SEQUENCE_TYPES = ("Sequence", "Optional", "SplitToSequence", "ConcatFromSequence")
_SAMPLED = 16  # elements: an input that says shapes is a vector, and short


def fold(graph: Graph, label: str, sample: Mapping[str, Array], verbatim: bool = False) -> None:
    """Bring the nodes of a file to opset 21, and fill ``graph.values`` and ``graph.weights``.

    `label` is what messages call the file, `sample` the inputs' values where they are known: what they say of shapes
    is taken. `verbatim` leaves an operator that opset 21 has as it is.
    """
    walk = _Walk(graph, label, sample, verbatim)
    for node in graph.nodes:
        walk.take(node, graph.opset)
    graph.nodes, graph.opset = walk.kept, OPSET
    graph.values, graph.weights = walk.known.values, walk.known.weights
    graph.notes += walk.known.notes
    _ends(graph, walk.known, walk.sequences)
    for name, array in graph.weights.items():
        graph.weights[name] = as_float32(array)
    graph.prune()


def _ends(graph: Graph, known: Known, sequences: Sequences) -> None:
    """The graph's outputs: one that is constant is written by a node, too."""
    for output in graph.outputs:
        if output.name in known.weights:
            array = as_float32(known.weights.pop(output.name))
            inner = known.fresh(derived(output.name, "constant"))
            known.weights[inner] = array
            for node in graph.nodes:
                node.inputs = [inner if name == output.name else name for name in node.inputs]
            known.values[output.name] = Value(output.name, array.dtype, array.shape)
            graph.nodes.append(Node("Identity", [inner], [output.name]))
        elif output.name in sequences:
            raise refuse("Graph.load", f"outputs of '{known.label}' must be tensors", f"the sequence '{output.name}'")
        elif output.name not in known.values:
            raise refuse("Graph.load", f"outputs of '{known.label}' must be written by a node", repr(output.name))
    graph.outputs = [known.values[output.name] for output in graph.outputs]


def as_float32(array: Array) -> Array:
    """A float16 or float64 array in float32; the ends of float64 become those of float32. Others as they are."""
    if array.dtype not in FLOATS:
        return array
    most = np.finfo(np.float32).max
    inside = array if array.dtype == np.float16 else np.where(np.isinf(array), array, np.clip(array, -most, most))
    return inside.astype(np.float32)


class _Walk:
    def __init__(self, graph: Graph, label: str, sample: Mapping[str, Array], verbatim: bool) -> None:
        self.kept: list[Node] = []
        values = {value.name: value for value in graph.inputs}
        taken = {*values, *graph.weights, *(name for node in graph.nodes for name in node.outputs)}
        read = {name for node in graph.nodes for name in node.inputs}.union(value.name for value in graph.outputs)
        self.known = Known(label, values, graph.weights, taken, frozenset(read))
        self.sequences = Sequences(self.known)
        self._sample = {
            n: as_float32(array) for n, array in sample.items() if array.ndim < 2 and array.size <= _SAMPLED
        }
        self._writers: dict[str, Node] = {}
        self._verbatim = verbatim

    def take(self, node: Node, opset: int) -> None:
        """A node of the file, and all that takes its place."""
        queue: deque[tuple[Node, int]] = deque([(node, opset)])
        first = first_output(node)
        while queue:
            node, opset = queue.popleft()
            try:
                nodes = self._replaced(node, opset)
            except DependsOnDataError as error:
                raise DependsOnDataError(error, first) from None  # what is taken apart depends on the data as a whole
            queue.extendleft(reversed(nodes or []))

    def _replaced(self, node: Node, opset: int) -> Steps | None:
        """What takes a node's place; None once it is done with."""
        known = self.known
        _named(node, known)
        if (nodes := self.sequences.unpack(node)) is not None:
            return [(item, opset) for item in nodes]
        missing = [n for n in node.inputs if n and not (n in known.weights or n in known.values or n in self.sequences)]
        if missing:
            raise refuse(
                "Graph.load", f"every tensor of '{known.label}' must be written before it is read", repr(missing[0])
            )
        if control.has_branches(node):
            return [(item, opset) for item in control.written_out(node, known)]
        check(node, opset, known)
        if node.op_type == "CastLike":  # of its second input, the type alone counts
            node = Node("Cast", node.inputs[:1], node.outputs, node.name, {"to": _code(known.dtype(node.inputs[1]))})
        if node.op_type in ("Shape", "Size", "EyeLike") and node.inputs[0] in known.values:
            known.weights.update(_of_shape(node, opset, known))
        elif all(name in known.weights for name in node.inputs if name):
            known.weights.update(evaluate.constants(node, opset, known))
        else:
            return self._activation(node, opset)
        return None

    def _activation(self, node: Node, opset: int) -> Steps | None:
        known = self.known
        for index, name in enumerate(node.inputs):
            if name in known.weights and known.weights[name].dtype in FLOATS:
                node.inputs[index] = derived(name, "float32")
                known.weights.setdefault(node.inputs[index], as_float32(known.weights[name]))
        if (nodes := taken_apart(node, opset, known, self._verbatim)) is not None:
            return nodes
        if opset != OPSET:
            same = restated(node, opset, known)
            if same is not None:
                return [(item, OPSET) for item in same]
            if (nodes := body(node, opset, known)) is not None:
                return nodes
            raise known.refuse(
                f"operators of {{label}} must be in opset {OPSET}, or made of such", node, f", opset {opset}"
            )
        if node.op_type == "Cast" and node.attrs["to"] in _FLOAT_CODES:
            node.attrs["to"] = onnx.TensorProto.FLOAT
        for value in self._outputs(node):
            known.values[value.name] = value
            self._writers[value.name] = node
        self.kept.append(node)
        return None

    def _outputs(self, node: Node) -> list[Value]:
        """The types of what a node writes: where a tensor decides a shape, by the sample's values."""
        known, data = self.known, {}
        for place in SHAPE_INPUTS.get(node.op_type, ()):
            name = node.inputs[place] if place < len(node.inputs) else ""
            if name in known.values:
                array = self._sampled(name)
                if array is None:
                    rule = "shapes of {label} must not depend on the data"
                    raise known.depends(rule, node)
                data[name] = array
        if data:
            known.notes.append(f"{first_output(node)}: its shape depends on {', '.join(data)}, and is the sample's")
        evaluate.check_channels(node, known)
        inferred = evaluate.outputs(node, OPSET, known, data)
        if not isinstance(inferred, str):
            if any(dim < 0 for value in inferred for dim in value.shape):
                raise evaluate.misfit(node, known, "axes of less than nothing")
            return inferred
        feed = {name: known.weights[name] for name in node.inputs if name in known.weights} | data
        zeros = {n: np.zeros(known.shape(n), known.dtype(n)) for n in node.inputs if n and n not in feed}
        try:
            arrays = evaluate.run_node(node, feed | zeros, OPSET, known.label)
        except InputError:
            if not inferred:
                raise
            raise evaluate.misfit(node, known, " ".join(inferred.split())) from None
        return [Value(name, array.dtype, array.shape) for name, array in arrays.items()]

    def _sampled(self, name: str) -> Array | None:
        """What a tensor holds for the sample, where that follows from short inputs alone."""
        known = self.known
        if name in known.weights:
            return known.weights[name]
        if name not in self._sample and name in self._writers:
            node = self._writers[name]
            feed = {source: self._sampled(source) for source in node.inputs if source}
            arrays = {source: array for source, array in feed.items() if array is not None}
            if len(arrays) == len(feed) and len(known.shape(name)) < 2 and np.prod(known.shape(name)) <= _SAMPLED:
                self._sample.update(evaluate.run_node(node, arrays, OPSET, known.label))
        return self._sample.get(name)


def _named(node: Node, known: Known) -> None:
    """Nothing left out at the end, and a name for a result that is left out before others."""
    for names in (node.inputs, node.outputs):
        while len(names) > 1 and not names[-1]:
            names.pop()
    if node.inputs == [""]:
        node.inputs = []
    node.outputs = [name or known.fresh(f"{first_output(node)}.unread") for name in node.outputs]


def _drops(node: Node, known: Known) -> bool:
    """A Dropout that drops something."""
    if node.op_type != "Dropout" or len(node.inputs) < 3 or not node.inputs[2]:
        return False
    ratio = known.weights.get(node.inputs[1]) if node.inputs[1] else np.array(0.5)
    training = known.weights.get(node.inputs[2])
    return (training is None or bool(training.any())) and (ratio is None or bool(ratio.any()))


def _code(dtype: np.dtype[Any]) -> int:
    return helper.np_dtype_to_tensor_dtype(dtype)


def _of_shape(node: Node, opset: int, known: Known) -> dict[str, Array]:
    """What depends on its input's shape alone."""
    shape = known.shape(node.inputs[0])
    if node.op_type == "EyeLike":
        zeros = {node.inputs[0]: np.zeros(shape, known.dtype(node.inputs[0]))}
        return evaluate.run_node(node, zeros, opset, known.label)
    if node.op_type == "Size":
        return {node.outputs[0]: np.array(np.prod(shape, dtype=np.int64))}
    return {node.outputs[0]: np.array(shape[node.attrs.get("start", 0) : node.attrs.get("end")], np.int64)}


def check(node: Node, opset: int, known: Known) -> None:
    """Refuse what the normal form cannot hold."""
    if is_quantised(node.op_type):
        raise known.refuse("{label} must be a float network; this one is already quantised", node)
    if node.op_type in RANDOM or _drops(node, known):
        raise known.refuse("{label} must give the same output twice", node)
    if node.op_type.startswith(_SEQUENCE_TYPES):
        raise known.refuse("values of {label} must be tensors", node)
    if node.op_type in SHAPE_DEPENDS_ON_DATA and any(name in known.values for name in node.inputs):
        raise known.depends("shapes of {label} must not depend on the data", node)


def obstacle(node: Node, opset: int) -> str | None:
    """Why a network with this node may be refused whatever else it holds; None for a node that can be read."""
    known = Known("the network", {}, {}, set())
    try:
        check(node, opset, known)
        standard(node, opset, known)
    except InputError as error:
        return str(error).split("] ", 1)[1].split(". Received", 1)[0]
    if control.has_branches(node):
        return "control flow must depend on constants only"
    return "its output's shape depends on the data" if node.op_type in SHAPE_DEPENDS_ON_DATA else None
