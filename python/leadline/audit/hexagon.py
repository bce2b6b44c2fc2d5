"""Hexagon: every distinct operator built by the emulation as leadline's exporter writes it.

Operators are asked on plausible grids. A whole network is not: on grids that no calibration gave, the vendor's compiler
may never end (EfficientNet-Lite0); ``leadline verify --target hexagon`` builds it on its own.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

from leadline.audit.findings import Audit, Finding, Status, ordered
from leadline.audit.operators import Form, forms, quantised
from leadline.profiles import HEXAGON, ONNXRUNTIME
from leadline.targets.hexagon import Build, Emulator

if TYPE_CHECKING:
    from leadline.audit.network import Network
    from leadline.recipe import Recipe

_HINTS = {
    "Erf": "Gelu is taken, Erf is not: export GELU as one operator, or in a form that import recognises",
    "Einsum": "write it as Transpose, Reshape and MatMul",
}
_PAIR = ("QuantizeLinear", "DequantizeLinear")


def audit_hexagon(network: Network, recipe: Recipe) -> Audit:
    """Ask about each form in the recipe's widths."""
    graph = network.graph
    if graph is None:
        return Audit(network.file, "hexagon", "leadline's import, which the network does not pass", network.nodes,
                     network.nodes, (), ordered(network.obstacles))  # fmt: skip
    basis = f"each distinct operator in {recipe.name}: Qualcomm's emulation (onnxruntime-qnn)"
    every = forms(graph)
    with Emulator() as emulator:
        answers = [_ask(emulator, form, recipe) for form in every]
    return Audit(network.file, "hexagon", basis, network.nodes, len(graph.nodes), network.rewrites,
                 ordered(_grouped(every, answers)))  # fmt: skip


def _ask(emulator: Emulator, form: Form, recipe: Recipe) -> tuple[Status, str]:
    """The answer to one operator as Hexagon's profile has it; where that changes something, what it is without."""
    fitted, changes = quantised(form.graph, recipe, HEXAGON)
    build = emulator.build(fitted)
    if not _takes(build):
        kind = form.nodes[0].op_type
        return "unsupported", f"{build.reason}; {_HINTS[kind]}" if kind in _HINTS else build.reason
    if not changes:
        return "supported", ""
    note = ", ".join(dict.fromkeys(change.split(": ", 1)[1].split(" for ", 1)[0] for change in changes))
    plain = emulator.build(quantised(form.graph, recipe, ONNXRUNTIME)[0])
    return ("supported", note) if _takes(plain) else ("rewrite", f"{note} (as it is: {plain.reason})")


def _takes(build: Build) -> bool:
    """Whether the operator itself runs on the NPU; conversions of the model's own inputs and outputs may not."""
    return build.taken > 0 and all(kind in _PAIR for _, kind in build.left)


def _grouped(every: list[Form], answers: list[tuple[Status, str]]) -> list[Finding]:
    groups: dict[tuple[str, Status, str], list[Form]] = {}
    for form, (status, note) in zip(every, answers, strict=True):
        groups.setdefault((form.nodes[0].op_type, status, note), []).append(form)
    return [
        Finding(kind, status, tuple(node.name for form in some for node in form.nodes), len(some), note)
        for (kind, status, note), some in groups.items()
    ]
