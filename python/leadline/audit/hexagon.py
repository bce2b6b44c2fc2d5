"""Hexagon: every distinct operator, and the network, built by the emulation as leadline's exporter writes them."""

from __future__ import annotations

from typing import TYPE_CHECKING

from leadline.audit.emulation import Answer, ask
from leadline.audit.findings import Audit, Finding, Status, ordered
from leadline.audit.operators import Form, forms, plausible_grids

if TYPE_CHECKING:
    import onnx

    from leadline.audit.network import Network
    from leadline.graph import Graph
    from leadline.recipe import Recipe

_HINTS = {
    "Erf": "Gelu is taken, Erf is not: export GELU as one operator, or in a form that import recognises",
    "Einsum": "write it as Transpose, Reshape and MatMul",
}


def audit_hexagon(network: Network, recipe: Recipe) -> Audit:
    """Ask about each form in the recipe's widths."""
    basis = f"each distinct operator, then the whole network, in {recipe.name}: Qualcomm's emulation (onnxruntime-qnn)"
    graph = network.graph
    if graph is None:
        return Audit(network.file, "hexagon", "leadline's import, which the network does not pass", network.nodes,
                     network.nodes, (), ordered(network.obstacles))  # fmt: skip
    every = forms(graph)
    *answers, whole = ask([_artefact(one, recipe) for one in (*(form.graph for form in every), graph)])
    findings = [*_findings(every, answers), *_only_together(graph, network.file, answers, whole)]
    return Audit(network.file, "hexagon", basis, network.nodes, len(graph.nodes), network.rewrites, ordered(findings))


def _artefact(graph: Graph, recipe: Recipe) -> onnx.ModelProto:
    from leadline.export import qdq

    return qdq.to_qdq(graph, plausible_grids(graph, recipe))


def _findings(every: list[Form], answers: list[Answer]) -> list[Finding]:
    groups: dict[tuple[str, Status, str], list[Form]] = {}
    for form, answer in zip(every, answers, strict=True):
        kind = form.nodes[0].op_type
        note = answer.reason
        if not answer.accepted and kind in _HINTS:
            note = f"{note}; {_HINTS[kind]}"
        status: Status = "supported" if answer.accepted else "unsupported"
        groups.setdefault((kind, status, note), []).append(form)
    return [
        Finding(kind, status, tuple(node.name for form in some for node in form.nodes), len(some), note)
        for (kind, status, note), some in groups.items()
    ]


def _only_together(graph: Graph, file: str, answers: list[Answer], whole: Answer) -> list[Finding]:
    """What the network as a whole says where each of its operators is taken alone."""
    if whole.accepted or not all(answer.accepted for answer in answers):
        return []
    if not whole.left:
        return [
            Finding("the whole network", "unsupported", (file,), 1, f"each operator alone is taken; {whole.reason}")
        ]
    note = f"alone taken, but not in the whole network: {whole.reason}"
    kinds = {node.name: node.op_type for node in graph.nodes}
    names: dict[str, list[str]] = {}
    for name in whole.left:
        names.setdefault(kinds.get(name, "between operators"), []).append(name)
    return [Finding(kind, "unsupported", tuple(some), 1, note) for kind, some in names.items()]
