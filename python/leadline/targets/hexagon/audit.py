"""Hexagon: every distinct operator built by the emulation as leadline's exporter writes it.

Operators are asked on plausible grids. A whole network is not: on grids that no calibration gave, the vendor's compiler
may never end (EfficientNet-Lite0); ``leadline verify --target hexagon`` builds it on its own.
"""

from __future__ import annotations

import math
from typing import TYPE_CHECKING

import numpy as np

from leadline.audit.findings import Audit, Finding, Status, ordered
from leadline.audit.operators import Form, forms, quantised
from leadline.graph import Session
from leadline.graph.operators import variant
from leadline.profiles import ONNXRUNTIME
from leadline.sqnr import Sqnr
from leadline.targets.hexagon.emulator import Build, Emulator
from leadline.targets.hexagon.expected import expected
from leadline.targets.hexagon.rules import HEXAGON
from leadline.types import InputError

if TYPE_CHECKING:
    import onnx

    from leadline.audit.network import Network
    from leadline.recipe import Recipe

WRONG = 10.0
"""dB: what is further away from what was expected is another function."""

LARGE = 1 << 20
"""Elements of a tensor that emulating a single operator is worth the seconds for."""

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
    advice = HEXAGON.refused.get(variant(form.graph, form.graph.nodes[0]), "")
    fitted, changes = quantised(form.graph, recipe, HEXAGON)
    build = emulator.build(fitted)
    if not _takes(build):
        return "unsupported", "; ".join(filter(None, (build.reason, advice)))
    try:
        apart = _apart(emulator, fitted, form) if build.accepted else None
    except InputError as error:
        return "unsupported", f"built, but not run: {error}"
    if apart is not None and apart < WRONG:
        return "unsupported", f"taken, but its result is wrong: {apart:.0f} dB from what it should be"
    if advice:
        return "unsupported", f"taken with loss: {advice}"
    if not changes:
        return "supported", ""
    note = ", ".join(dict.fromkeys(change.split(": ", 1)[1].split(" for ", 1)[0] for change in changes))
    plain = emulator.build(quantised(form.graph, recipe, ONNXRUNTIME)[0])
    return ("supported", note) if _takes(plain) else ("rewrite", f"{note} (as it is: {plain.reason})")


def _apart(emulator: Emulator, model: onnx.ModelProto, form: Form) -> float | None:
    """How far the emulation's output is from what is expected of it, in dB, on noise; None where that cannot be asked:
    an input is no picture, or too large a one."""
    inputs = form.graph.inputs
    sizes = [math.prod(value.shape) for value in (*inputs, *form.graph.outputs)]
    if not inputs or any(value.dtype != np.float32 for value in inputs) or max(sizes) > LARGE:
        return None
    noise = np.random.default_rng(0)
    feed = {value.name: noise.uniform(0.5, 3.5, value.shape).astype(np.float32) for value in inputs}
    found = emulator.run(feed)
    with Session(expected(model), optimize=False) as session:
        wanted = session.run(feed)
    distance = Sqnr()
    for name, value in wanted.items():
        if value.dtype == np.float32:
            distance.update(value, found[name])
    return distance.db if distance.signal else None


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
