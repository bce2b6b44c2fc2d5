"""Hexagon: every distinct operator built by the emulation as leadline's exporter writes it.

Operators are asked on plausible grids. A whole network is not: on grids that no calibration gave, the vendor's compiler
may never end (EfficientNet-Lite0); ``leadline verify --target hexagon`` builds it on its own.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

from leadline.audit.each import Answer, apart, ask_each, wrong
from leadline.audit.findings import Audit
from leadline.audit.operators import Form, quantised
from leadline.graph.operators import variant
from leadline.rules import ONNXRUNTIME
from leadline.targets.hexagon.emulator import Build, Emulator
from leadline.targets.hexagon.expected import expected
from leadline.targets.hexagon.rules import HEXAGON
from leadline.types import InputError

if TYPE_CHECKING:
    from leadline.audit.network import Network
    from leadline.recipe import Recipe

_PAIR = ("QuantizeLinear", "DequantizeLinear")


def audit_hexagon(network: Network, recipe: Recipe) -> Audit:
    """Ask about each form in the recipe's widths."""
    basis = f"each distinct operator in {recipe.name}: Qualcomm's emulation (onnxruntime-qnn)"
    with Emulator() as emulator:
        return ask_each(network, "hexagon", basis, lambda form: _ask(emulator, form, recipe))


def _ask(emulator: Emulator, form: Form, recipe: Recipe) -> Answer:
    """The answer to one operator as Hexagon's rules have it; where that changes something, what it is without."""
    advice = HEXAGON.refused.get(variant(form.graph, form.graph.nodes[0]), "")
    fitted, changes = quantised(form.graph, recipe, HEXAGON)
    build = emulator.build(fitted)
    if not _takes(build):
        return "unsupported", "; ".join(filter(None, (build.reason, advice)))
    try:
        distance = apart(form, expected(fitted), emulator.run) if build.accepted else None
    except InputError as error:
        return "unsupported", f"built, but not run: {error}"
    if reason := wrong(distance):
        return "unsupported", reason
    if advice:
        return "unsupported", f"taken with loss: {advice}"
    if not changes:
        return "supported", ""
    note = ", ".join(dict.fromkeys(change.split(": ", 1)[1].split(" for ", 1)[0] for change in changes))
    plain = emulator.build(quantised(form.graph, recipe, ONNXRUNTIME)[0])
    return ("supported", note) if _takes(plain) else ("rewrite", f"{note} (as it is: {plain.reason})")


def _takes(build: Build) -> bool:
    """Whether the operator itself runs on the NPU; conversions of the model's own inputs and outputs may not."""
    return build.taken > 0 and all(kind in _PAIR for _, kind in build.left)
