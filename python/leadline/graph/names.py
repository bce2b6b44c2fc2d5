"""Readable names for every node and tensor, the same each time: the exporter's module paths, or operator and number."""

from __future__ import annotations

import ast
import re
from collections import Counter

import onnx

from leadline.graph.edit import free_name
from leadline.graph.ir import Graph, Node

# What exporters write where they have no name to give.
_ANONYMOUS = re.compile(
    r"_?\d+|onnx::.*|.*Constant(_.*)?|.*_output_\d+|(val|const|getitem|tmp|p2o)[._].*|", re.IGNORECASE
)
_ROLE = re.compile(r"[._/](weight|kernel|bias|gamma|beta|scale|w|b)(_\d+)?$", re.IGNORECASE)
_ROLES = {
    "BatchNormalization": ("", "weight", "bias", "running_mean", "running_var"),
    **dict.fromkeys(
        ("Conv", "ConvTranspose", "Gemm", "GroupNormalization", "InstanceNormalization"), ("", "weight", "bias")
    ),
    **dict.fromkeys(("LayerNormalization", "MatMul", "PRelu"), ("", "weight", "bias")),
}
_SPECIFIC = re.compile(r"[a-z_]{3,}")  # schema input names that say something: shape, starts, axes, scales


def scope(proto: onnx.NodeProto) -> str:
    """A node's name, or the module path that torch's dynamo exporter notes in the metadata, as "path/operator"."""
    noted = next((item.value for item in proto.metadata_props if item.key == "pkg.torch.onnx.name_scopes"), "")
    try:
        parts = ast.literal_eval(noted) if noted else []
    except (SyntaxError, ValueError):
        parts = []
    return f"/{parts[-2]}/{proto.op_type}" if len(parts) > 1 and isinstance(parts[-2], str) else proto.name


def number(graph: Graph) -> None:
    """Give every node a name of its own: the first of a name keeps it, the others and the nameless are numbered."""
    taken = {node.name for node in graph.nodes}
    seen: set[str] = set()
    for node in graph.nodes:
        if not node.name or node.name in seen:
            node.name = free_name(node.name or node.op_type, taken)
            taken.add(node.name)
        seen.add(node.name)


def assign(graph: Graph) -> None:
    """Rename everything but the graph's inputs and outputs."""
    kept = {value.name for value in (*graph.inputs, *graph.outputs)}
    names = {name: name for name in kept}
    taken = kept | (graph.tail.names if graph.tail is not None else set())
    for name in graph.weights:
        origin = _origin(name)
        if origin not in graph.values and (clean := _clean(origin)) and clean not in taken:
            names[name] = clean
            taken.add(clean)
    for node, stem in zip(graph.nodes, _stems(graph), strict=True):
        node.name = free_name(stem, taken)
        taken.add(node.name)
        written = [name for name in node.outputs if name]
        for index, name in enumerate(written):
            if name not in kept:
                names[name] = node.name if len(written) == 1 else free_name(f"{node.name}.{index}", taken)
                taken.add(names[name])
        for index, name in enumerate(node.inputs):
            if name in graph.weights and name not in names:
                names[name] = free_name(f"{node.name}.{_role(node, index)}", taken)
                taken.add(names[name])
    _rename(graph, names)


def _stems(graph: Graph) -> list[str]:
    """What each node would be called if names could repeat."""
    counts: Counter[str] = Counter()
    uses = Counter(name for node in graph.nodes for name in node.inputs)
    stems = []
    for node in graph.nodes:
        unshared = [name for name in node.inputs[1:] if name in graph.weights and uses[name] == 1]
        stem = _from_weights(node, unshared) or _from_node(graph, node)
        if not stem and node.op_type != "Reshape":
            stem = _from_output(graph, node)
        if not stem and node.op_type != "Reshape":
            stem = f"{node.op_type.lower()}_{counts[node.op_type]}"
            counts[node.op_type] += 1
        stems.append(stem)
    # A Reshape without a name stands before or behind the linear layer that it serves.
    writers, readers = graph.producers(), graph.readers()
    known = {id(node): stem for node, stem in zip(graph.nodes, stems, strict=True)}
    for index, node in enumerate(graph.nodes):
        if not stems[index]:
            before = writers.get(node.inputs[0])
            after = next((n for n in readers.get(node.outputs[0], []) if n.op_type == "Gemm"), None)
            if before is not None and before.op_type == "Gemm":
                stems[index] = f"{known[id(before)]}.unflatten"
            elif after is not None:
                stems[index] = f"{known[id(after)]}.flatten"
            else:
                stems[index] = _from_output(graph, node) or "reshape"
    return stems


def _has_weights(graph: Graph, node: Node) -> bool:
    return node.op_type in _ROLES and any(name in graph.weights for name in node.inputs[1:])


def _from_weights(node: Node, unshared: list[str]) -> str:
    """The module a layer belongs to, by the names of the weights that it alone reads."""
    for name in unshared if node.op_type in _ROLES else ():
        if _ROLE.search(clean := _clean(_origin(name))):
            return _ROLE.sub("", clean)
    return ""


def _from_node(graph: Graph, node: Node) -> str:
    """The node's own name: a layer is called as its module, anything else "module.operator"."""
    path, _, leaf = node.name.strip("/").rpartition("/")
    is_operator = onnx.defs.has(re.sub(r"_\d+$", "", leaf).rpartition(".")[2])
    leaf = _clean(leaf.lower() if is_operator else leaf) or node.op_type.lower()
    module = _clean(path)
    if not module:
        return _clean(leaf) if node.name else ""
    return module if is_operator and _has_weights(graph, node) else f"{module}.{leaf}"


def _from_output(graph: Graph, node: Node) -> str:
    """The name of the tensor it writes, unless a pass made that or users fixed it."""
    ends = {value.name for value in graph.outputs}
    return (
        "" if "|" in node.outputs[0] or node.outputs[0] in ends else re.sub(r"\.tmp_\d+$", "", _clean(node.outputs[0]))
    )


def _role(node: Node, index: int) -> str:
    """What a constant is to the node that reads it."""
    roles = _ROLES.get(node.op_type, ())
    if index < len(roles) and roles[index]:
        return roles[index]
    formal = onnx.defs.get_schema(node.op_type).inputs
    name = formal[min(index, len(formal) - 1)].name
    return name if _SPECIFIC.fullmatch(name) and name not in ("data", "input", "inputs") else "constant"


def _origin(name: str) -> str:
    """The file's name of a tensor that a pass derived; what the pass calls it where there is none."""
    before, _, after = name.partition("|")
    return before or after


def _clean(name: str) -> str:
    """Letters, digits, dot, dash and underscore; "" for a name that says nothing."""
    name = name.removesuffix(":0").strip("/")
    if _ANONYMOUS.fullmatch(name):
        return ""
    name = re.sub(r"[^\w.-]", "_", name.replace("::", ".").replace("/", "."))
    return re.sub(r"\.{2,}", ".", name).strip(".")


def _rename(graph: Graph, names: dict[str, str]) -> None:
    for node in graph.nodes:
        node.inputs = [names.get(name, name) for name in node.inputs]
        node.outputs = [names.get(name, name) for name in node.outputs]
    graph.weights = {names[name]: array for name, array in graph.weights.items()}
    graph.values = {
        names[value.name]: type(value)(names[value.name], value.dtype, value.shape) for value in graph.values.values()
    }
    graph.name = _clean(graph.name) or "network"
