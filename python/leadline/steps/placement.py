"""Which tensors get a grid: the placement that integer kernels and NPU compilers fuse.

An activation is quantised once, right behind its producer, for all its consumers. Three rules shape the rest:
an activation function that the kernel before it can absorb takes the place of that kernel's output; data movement
(Reshape, Transpose, ...) shares its input's grid, so that moving data never requantises, and what a Where selects from
shares its output's; and the constant operand of an elementwise operator or a Concat (a class token) is quantised like
an activation, since no NPU mixes float constants with integer data.
"""

from __future__ import annotations

from dataclasses import dataclass, field, replace

import numpy as np

from leadline.graph import DOMAIN, Graph, Layer, Node
from leadline.graph.masks import Masks
from leadline.graph.operators import ABSORBING, CLAMPS, ELEMENTWISE, MOVES_DATA, channel_axes, moves_data
from leadline.graph.relative import relative
from leadline.graph.tables import tables
from leadline.recipe import Recipe
from leadline.rules import ONNXRUNTIME, Rules
from leadline.types import Scheme, refuse

QUANTISED = (
    frozenset(
        "Conv ConvTranspose Gemm MatMul Softmax Sigmoid HardSigmoid HardSwish Gelu Relu Clip LeakyRelu PRelu Tanh Elu "
        "LayerNormalization InstanceNormalization GroupNormalization GlobalAveragePool AveragePool ReduceMean Resize "
        "Concat Pad Sqrt Pow Max Min Where".split()
    )
    | ELEMENTWISE
    | MOVES_DATA
)
"""Operators that run on quantised tensors. Any other operator stays float and asks for no grid."""


@dataclass(frozen=True)
class Placement:
    """`schemes`: the scheme of each activation that gets a grid. `root`: the tensor whose grid it shares (itself
    where it shares none); constants among them are what a Where selects. `constants`: weights used as operands of
    elementwise operators and Concat, matrices of recurrent operators and embeddings, with their scheme. `layers`: each
    layer to quantise, with the scheme of its weight along the layer's axis."""

    schemes: dict[str, Scheme]
    root: dict[str, str]
    constants: dict[str, Scheme]
    layers: list[tuple[Layer, Scheme]]
    notes: list[str] = field(default_factory=list)


def place(graph: Graph, recipe: Recipe, rules: Rules = ONNXRUNTIME) -> Placement:
    """Decide which tensors of a normalised graph are quantised under a recipe. What no grid holds, masks that reach
    their readers and tensors whose relative error counts, stays float, or has 16 bits where the target has no float.

    Raises InputError when an override's pattern matches neither a layer nor a tensor.
    """
    kinds = _kinds(graph)
    _check_patterns(graph, recipe, kinds)
    layers, notes = _layers(graph, recipe, kinds)
    extreme, fine = Masks(graph).extreme, relative(graph)
    quantised = QUANTISED | rules.operators
    plain = extreme if rules.integers_only else extreme | fine
    schemes, root = _activations(
        graph, recipe, kinds, {layer.input for layer, _ in layers}, plain, quantised, rules.integers_only
    )
    if rules.integers_only:
        schemes |= {name: replace(schemes[name], bits=16) for name in schemes if name in fine}
    if schemes:
        notes += [f"{name}: float, since masks reach its readers" for name in graph.values if name in extreme]
        what = "16 bits" if rules.integers_only else "float"
        notes += [f"{name}: {what}, since its relative error counts" for name in graph.values if name in fine]
    constants = {
        name: scheme
        for node in graph.nodes
        if node.op_type in ELEMENTWISE or node.op_type == "Concat" or node.op_type in rules.constants
        for position, name in enumerate(node.inputs)
        if name in graph.weights and graph.weights[name].dtype == np.float32
        if name not in extreme or node.outputs[0] in schemes
        if (scheme := _constant(graph, node, position, schemes, rules)) is not None
    }
    matrices, more = _tables(graph, recipe)
    return Placement(schemes, root, constants | matrices, layers, notes + more)


def _kinds(graph: Graph) -> dict[str, tuple[str, ...]]:
    """Of each layer, by its name: its kind, and whether it is among the first or the last."""
    kinds: dict[str, list[str]] = {layer.name: [layer.kind] for layer in graph.layers()}
    forward = [(node, node.inputs, node.outputs) for node in graph.nodes]
    backward = [(node, node.outputs, node.inputs) for node in reversed(graph.nodes)]
    for end, walk in (("first", forward), ("last", backward)):
        passed: set[str] = set()  # tensors with a layer on their way
        for node, reached, next_ones in walk:
            inner = not passed.isdisjoint(reached)
            if node.name in kinds and not inner:
                kinds[node.name].append(end)
            if node.name in kinds or inner:
                passed.update(next_ones)
    return {name: tuple(of_layer) for name, of_layer in kinds.items()}


def _layers(
    graph: Graph, recipe: Recipe, kinds: dict[str, tuple[str, ...]]
) -> tuple[list[tuple[Layer, Scheme]], list[str]]:
    chosen: list[tuple[Layer, Scheme]] = []
    notes = []
    for layer in graph.layers():
        scheme = recipe.weight_scheme(layer.name, *kinds[layer.name])
        if scheme is None:
            continue
        if scheme.granularity == "block":
            scheme, note = _blocks(graph, layer, scheme)
            notes += note
        elif scheme.granularity == "axis":
            scheme = scheme.at(layer.axis)
        chosen.append((layer, scheme))
    return chosen, notes


def _tables(graph: Graph, recipe: Recipe) -> tuple[dict[str, Scheme], list[str]]:
    """The schemes of matrices of recurrent operators and of embeddings: one scale per gate's row or per entry, and 8
    bits at least unless an override says otherwise, since an error comes back with every turn of a sequence."""
    chosen: dict[str, Scheme] = {}
    notes = []
    for table in tables(graph):
        scheme = recipe.weight_scheme(table.name, table.kind)
        if scheme is None:
            continue
        if scheme is recipe.weights and scheme.bits < 8:
            scheme = replace(scheme, bits=8)
            notes.append(f"{table.weight}: 8 bits, as the weights of {table.op_type} {table.name} ({table.kind})")
        if scheme.granularity == "block":
            scheme = replace(scheme, granularity="axis", block_size=None)
        chosen[table.weight] = scheme.at(table.axis) if scheme.granularity == "axis" else scheme
    return chosen, notes


def _blocks(graph: Graph, layer: Layer, scheme: Scheme) -> tuple[Scheme, list[str]]:
    """Blocks run along the input features of a linear layer; the block is halved until it divides them."""
    inputs = layer.axis - 1 if layer.node.op_type == "MatMul" else 1 - layer.axis
    features = graph.shape(layer.weight)[inputs]
    size = scheme.block_size or 0
    if layer.kind == "linear":
        while size >= 16 and features % size:
            size //= 2
        if size >= 16:
            note = [] if size == scheme.block_size else [f"{layer.name}: {features} features, blocks of {size}"]
            return replace(scheme, axis=inputs, block_size=size), note
    per_axis = replace(scheme, granularity="axis", axis=layer.axis, block_size=None)
    return per_axis, [f"{layer.name}: {layer.kind} of {features} features takes no blocks, one scale per channel"]


def _activations(
    graph: Graph,
    recipe: Recipe,
    kinds: dict[str, tuple[str, ...]],
    read: set[str],
    plain: set[str],
    quantised: frozenset[str],
    integers_only: bool,
) -> tuple[dict[str, Scheme], dict[str, str]]:
    wanted: dict[str, Scheme] = {}
    root: dict[str, str] = {}
    producers, readers = graph.producers(), graph.readers()
    outputs = {value.name for value in graph.outputs}
    axes, reached = channel_axes(graph), _reached(graph, read)
    for node in graph.nodes:
        if node.op_type not in quantised and node.domain != DOMAIN:
            continue
        if all(name in graph.weights for name in node.inputs):
            continue  # an output that is constant
        for tensor in (*_data_inputs(node), *node.outputs):
            producer = producers.get(tensor)
            if tensor in wanted or not _is_float(graph, tensor) or _stays_float(tensor, producer, readers):
                continue
            if tensor in plain:
                continue
            if recipe.scope == "layers" and tensor not in read and not _is_polished(producer):
                continue
            if tensor not in outputs and _absorbed(graph, producer, readers.get(tensor, []), integers_only):
                continue
            names, known_kinds = _known_as(tensor, producers, kinds)
            scheme = recipe.activation_scheme(
                *names, kinds=known_kinds if tensor in reached else (*known_kinds, "unread")
            )
            if scheme is not None and not graph.shape(tensor):
                wanted[tensor] = replace(scheme, granularity="tensor", axis=None)
            elif scheme is not None:
                wanted[tensor] = scheme.at(axes[tensor])
    for tensor in wanted:
        root[tensor] = tensor
    # Nodes are in topological order, so an input's root is final before its outputs ask for it. Channels may lie on
    # another axis once data has moved, so only a grid for the whole tensor is shared.
    for node in graph.nodes:
        source = node.inputs[0] if node.inputs else ""
        if moves_data(node) and source in wanted and wanted[source].granularity == "tensor":
            for output in node.outputs:
                if output in wanted:
                    wanted[output] = wanted[source]
                    root[output] = root[source]
    for node in graph.nodes:
        if node.op_type == "Where" and node.outputs[0] in wanted:
            _share_branches(graph, node, wanted, root, readers)
    return wanted, root


def _share_branches(
    graph: Graph, select: Node, wanted: dict[str, Scheme], root: dict[str, str], readers: dict[str, list[Node]]
) -> None:
    """What a Where selects from takes the grid of its output: constants, and tensors that nobody else reads."""
    output = select.outputs[0]
    if wanted[output].granularity != "tensor":
        return
    for name in select.inputs[1:]:
        if name in graph.weights:
            wanted[name], root[name] = wanted[output], root[output]
        elif wanted.get(name) == wanted[output] and readers[name] == [select] and root[name] == name:
            root[name] = root[output]


def _known_as(
    tensor: str, producers: dict[str, Node], kinds: dict[str, tuple[str, ...]]
) -> tuple[list[str], tuple[str, ...]]:
    """What overrides call a tensor, and the kinds of its producer. Behind an own operator, as what that reads: a grid
    that moves there keeps its scheme."""
    names = [tensor]
    while (producer := producers.get(names[-1])) is not None and producer.domain == DOMAIN:
        names.append(producer.inputs[0])
    return (names, ("first",)) if producer is None else ([*names, producer.name], kinds.get(producer.name, ()))


def _reached(graph: Graph, read: set[str]) -> set[str]:
    """What layers read, and what reaches them by moving data alone (or through a clamp, which takes its place)."""
    reached = set(read)
    for node in reversed(graph.nodes):
        moves = moves_data(node) or node.op_type in CLAMPS or node.domain == DOMAIN
        if moves and not reached.isdisjoint(node.outputs):
            reached.update(node.inputs[:1])
    return reached


def _is_polished(producer: Node | None) -> bool:
    return producer is not None and producer.op_type == "LogPolish" and producer.domain == DOMAIN


def _stays_float(tensor: str, producer: Node | None, readers: dict[str, list[Node]]) -> bool:
    """A tensor around a polished one, which is quantised in its place; or one that an own operator alone reads."""
    unpolished = producer is not None and producer.op_type == "LogUnpolish" and producer.domain == DOMAIN
    reads = readers.get(tensor, [])
    if any(node.op_type in ("IsInf", "IsNaN") for node in reads):  # which no code is
        return True
    return unpolished or (bool(reads) and all(node.domain == DOMAIN for node in reads) and not _is_polished(producer))


def _data_inputs(node: Node) -> list[str]:
    return node.inputs[:1] if moves_data(node) or node.op_type in ("Resize", "Pad", "Clip") else node.inputs


def _is_float(graph: Graph, tensor: str) -> bool:
    value = graph.values.get(tensor)
    return value is not None and value.dtype == np.float32


def _absorbed(graph: Graph, producer: Node | None, readers: list[Node], integers_only: bool) -> bool:
    """A tensor that only the clamp behind it reads never exists on the device. A clamp to positive values is no such
    clamp, for real zero is on every grid."""
    return (
        producer is not None
        and len(readers) == 1
        and readers[0].op_type in CLAMPS
        and not any(
            (graph.weights[name] > 0).any()
            for name in readers[0].inputs[1:2]
            if readers[0].op_type == "Clip" and name in graph.weights
        )
        and all(
            # One bound for each channel is what equalising a Relu6 leaves behind its Relu: no clamp to Hexagon.
            name in graph.weights
            and (graph.weights[name].size == 1 or (producer.op_type == "Relu" and not integers_only))
            for name in readers[0].inputs[1:]
            if name
        )
        and producer.op_type in ABSORBING
    )


def _constant(graph: Graph, node: Node, position: int, schemes: dict[str, Scheme], rules: Rules) -> Scheme | None:
    """The scheme of a constant operand: its partner's, unless the target wants a width of its own. What a normalisation
    adds goes straight to its sums, in 32 bits."""
    scheme = _partner(graph, node, node.inputs[position], schemes)
    bits = rules.constants.get(node.op_type)
    if not bits or scheme is None:
        return scheme
    if position == 2:
        return Scheme(bits=32, signed=True, symmetric=True)
    return Scheme(bits=bits, signed=False, symmetric=False)


def _partner(graph: Graph, node: Node, constant: str, schemes: dict[str, Scheme]) -> Scheme | None:
    """The scheme of the other operand (of the output, where all are constant): along the same channels if the constant
    has them, else with one scale."""
    other = next((name for name in (*node.inputs, *node.outputs) if name != constant and name in schemes), None)
    if other is None or schemes[other].granularity == "tensor":
        return None if other is None else schemes[other]
    scheme, shape = schemes[other], graph.shape(constant)
    axis = (scheme.axis or 0) + len(shape) - len(graph.shape(other))
    if scheme.granularity == "axis" and axis >= 0 and shape[axis] > 1:
        return scheme.at(axis)
    return replace(scheme, granularity="tensor", axis=None)


def _check_patterns(graph: Graph, recipe: Recipe, kinds: dict[str, tuple[str, ...]]) -> None:
    layers = [*kinds.items(), *((table.name, (table.kind,)) for table in tables(graph))]
    tensors: list[tuple[str, tuple[str, ...]]] = [(name, ()) for name in graph.values]
    for override in recipe.overrides:
        if override.pattern == "*":
            continue
        candidates = layers + (tensors if override.activations is not None else [])
        if not any(override.matches(name, kinds=kinds_of) for name, kinds_of in candidates):
            some = ", ".join(name for name, _ in layers[:5])
            raise refuse(
                "quantize",
                f"override pattern must match a layer or tensor; this network has layers such as {some}",
                repr(override.pattern),
            )
