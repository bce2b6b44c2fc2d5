"""OpenVINO: every distinct operator compiled as leadline's exporter writes it."""

from __future__ import annotations

from typing import TYPE_CHECKING

from leadline.audit.each import Answer, apart, ask_each, wrong
from leadline.audit.findings import Audit
from leadline.audit.operators import Form, quantised
from leadline.targets.openvino.rules import OPENVINO
from leadline.targets.openvino.runtime import Runtime, check_installed, in_integers
from leadline.types import InputError

if TYPE_CHECKING:
    from leadline.audit.network import Network
    from leadline.recipe import Recipe


def audit_openvino(network: Network, recipe: Recipe) -> Audit:
    """Ask about each form in the recipe's widths. Whatever runs, but in no kernel of integers, stays in float."""
    check_installed("audit")
    basis = f"each distinct operator in {recipe.name}, compiled and run by OpenVINO on this CPU"
    return ask_each(network, "openvino", basis, lambda form: _ask(form, recipe))


def _ask(form: Form, recipe: Recipe) -> Answer:
    model, _ = quantised(form.graph, recipe, OPENVINO)
    runtime = Runtime(model, "accuracy", threads=1)
    if runtime.reason:
        return "unsupported", runtime.reason
    outputs = [value.name for value in model.graph.output]
    try:
        distance = apart(form, model, lambda feed: dict(zip(outputs, runtime.run(feed), strict=True)))
    except InputError as error:
        return "unsupported", f"compiled, but not run: {error}"
    if reason := wrong(distance):
        return "unsupported", reason
    node = form.graph.nodes[0]
    kernel = runtime.kernel(node.name) or runtime.kernel(node.outputs[0])
    if not kernel:
        return "supported", "no kernel of its own"
    return ("supported", "") if in_integers(kernel) else ("float", kernel)
