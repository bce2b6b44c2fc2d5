"""Hexagon: every distinct operator built by the emulation, quantised as leadline's exporter writes it."""

from __future__ import annotations

from typing import TYPE_CHECKING

from leadline.audit.emulation import Answer, ask
from leadline.audit.findings import Audit, Finding, Status, ordered
from leadline.audit.operators import Form, forms, plausible_grids

if TYPE_CHECKING:
    import onnx

    from leadline.audit.network import Network
    from leadline.recipe import Recipe

_HINTS = {
    "Erf": "Gelu is taken, Erf is not: export GELU as one operator, or in a form that import recognises",
    "Einsum": "write it as Transpose, Reshape and MatMul",
}


def audit_hexagon(network: Network, recipe: Recipe) -> Audit:
    """Ask about each form in the recipe's widths."""
    basis = f"each distinct operator in {recipe.name}, built by Qualcomm's emulation (onnxruntime-qnn)"
    graph = network.graph
    if graph is None:
        return Audit(network.file, "hexagon", "leadline's import, which the network does not pass", network.nodes,
                     network.nodes, (), ordered(network.obstacles))  # fmt: skip
    every = forms(graph)
    answers = ask([_artefact(form, recipe) for form in every])
    findings = ordered(_findings(every, answers))
    return Audit(network.file, "hexagon", basis, network.nodes, len(graph.nodes), network.rewrites, findings)


def _artefact(form: Form, recipe: Recipe) -> onnx.ModelProto:
    from leadline.export import qdq

    return qdq.to_qdq(form.graph, plausible_grids(form.graph, recipe))


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
