"""A network on its way through leadline's import, watched: what was rewritten, or which nodes stopped it."""

from __future__ import annotations

from collections import Counter
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING

from leadline.audit.findings import Finding, Rewrite
from leadline.types import InputError

if TYPE_CHECKING:
    from leadline.graph import Graph, ir
    from leadline.graph.ir import Node, Sample
    from leadline.graph.origin import Origin
    from leadline.graph.read import Source
    from leadline.graph.tail import Tail


@dataclass(frozen=True)
class Network:
    """`graph` is None where `obstacles` kept import from reading the network; `behind` is what stays in float behind it
    because its shapes depend on the data. `origins` are of nodes of both by their names."""

    file: str
    nodes: int
    graph: Graph | None
    rewrites: tuple[Rewrite, ...]
    obstacles: tuple[Finding, ...]
    origins: Mapping[str, Origin] = field(default_factory=dict)
    behind: tuple[Finding, ...] = ()


def open_network(file: Path, sample: Sample | None) -> Network:
    """Read a float ONNX network as `leadline quantize` does, up to its folds.

    Unknown operators, and what depends on the data, are findings; any other InputError is raised.
    """
    from leadline.graph import Graph
    from leadline.graph.load import normalise
    from leadline.graph.origin import origins
    from leadline.graph.read import parse, unpack

    model = parse(file)
    noted, source = origins(model), unpack(model, file.resolve().parent, file.name)
    written: list[str] = []
    before = Counter(node.op_type for node in source.nodes)
    rewrites: list[Rewrite] = []

    def watch(how: str, graph: ir.Graph) -> None:
        nonlocal before, written
        written = [node.outputs[0] for node in graph.nodes]  # as the file calls them; nodes keep their order
        after = Counter(node.op_type for node in graph.nodes)
        if after != before:
            rewrites.append(Rewrite(dict(before - after), dict(after - before), how))
        before = after

    try:
        graph = Graph.of(normalise(source, sample, watch))
    except InputError:
        obstacles = _obstacles(source)
        if not obstacles:
            raise
        names = ((node.name or node.outputs[0], noted.get(node.outputs[0])) for node in reversed(source.nodes))
        places = {name: origin for name, origin in names if origin}
        return Network(file.name, len(source.nodes), None, (), obstacles, places)
    names = ((node.name, noted.get(name.partition("|")[0])) for node, name in zip(graph.nodes, written, strict=True))
    places = {name: origin for name, origin in names if origin}
    graph.fold()
    watch("folded into the neighbouring layers", graph)
    behind: tuple[Finding, ...] = ()
    if graph.tail is not None:
        behind = _behind(graph.tail)
        places |= {_name(node): noted[node.outputs[0]] for node in graph.tail.nodes if node.outputs[0] in noted}
    return Network(file.name, len(source.nodes), graph.front(), tuple(rewrites), (), places, behind)


def _behind(tail: Tail) -> tuple[Finding, ...]:
    by_operator: dict[str, list[str]] = {}
    for node in tail.nodes:
        by_operator.setdefault(node.op_type, []).append(_name(node))
    note = f"stays in float, where a CPU has to run it: shapes depend on the data from {tail.causes[0]} on"
    return tuple(
        Finding(kind, "unsupported", tuple(names), len(names), note, False) for kind, names in by_operator.items()
    )


def _name(node: Node) -> str:
    return node.name or next(filter(None, node.outputs))


def _obstacles(source: Source) -> tuple[Finding, ...]:
    """Every node that import cannot read, and the others as not asked."""
    from leadline.graph.constants import obstacle

    reasons = [(node, obstacle(node, source.opset)) for node in source.nodes]
    if not any(reason for _, reason in reasons):
        return ()
    grouped: dict[tuple[str, str], list[str]] = {}
    for node, reason in reasons:
        kind = f"{node.domain}.{node.op_type}" if node.domain else node.op_type
        grouped.setdefault((kind, reason or ""), []).append(node.name or node.outputs[0])
    return tuple(
        Finding(kind, "unsupported" if reason else "unknown", tuple(names), len(names),
                reason or "not asked: the network cannot be read")
        for (kind, reason), names in grouped.items()
    )  # fmt: skip
