"""Each distinct operator of a network, asked of a target that builds and runs it as a quantised model of its own."""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping
from typing import TYPE_CHECKING, Any

import numpy as np
from numpy.typing import NDArray

from leadline.audit.findings import Audit, Finding, Status, ordered, unread
from leadline.audit.operators import Form, forms
from leadline.graph import Session
from leadline.sqnr import Sqnr

if TYPE_CHECKING:
    import onnx

    from leadline.audit.network import Network

WRONG = 10.0
"""dB: what is further away from what was expected is another function."""

LARGE = 1 << 20
"""Elements of a tensor that running a single operator is worth the seconds for."""

Answer = tuple[Status, str]


def ask_each(network: Network, target: str, basis: str, ask: Callable[[Form], Answer]) -> Audit:
    """One finding for all operators of a type whose answers are the same."""
    if network.graph is None:
        return unread(network, target)
    groups: dict[tuple[str, Status, str], list[Form]] = {}
    for form in forms(network.graph):
        groups.setdefault((form.nodes[0].op_type, *ask(form)), []).append(form)
    findings = [
        Finding(kind, status, tuple(node.name for form in some for node in form.nodes), len(some), note)
        for (kind, status, note), some in groups.items()
    ]
    return Audit(network.file, target, basis, network.nodes, len(network.graph.nodes), network.rewrites,
                 ordered(findings))  # fmt: skip


def wrong(distance: float | None) -> str:
    """Why a result so far from what was expected is refused, in words; empty where it is not."""
    if distance is None or distance >= WRONG:
        return ""
    return f"taken, but its result is wrong: {distance:.0f} dB from what it should be"


def apart(
    form: Form,
    expected: onnx.ModelProto,
    run: Callable[[Mapping[str, NDArray[Any]]], Mapping[str, NDArray[Any]]],
) -> float | None:
    """How far what a target gives is from what is expected of it, in dB, on noise; None where that cannot be asked: an
    input is no picture, or too large a one."""
    inputs = form.graph.inputs
    sizes = [math.prod(value.shape) for value in (*inputs, *form.graph.outputs)]
    if not inputs or any(value.dtype != np.float32 for value in inputs) or max(sizes) > LARGE:
        return None
    noise = np.random.default_rng(0)
    feed = {value.name: noise.uniform(0.5, 3.5, value.shape).astype(np.float32) for value in inputs}
    received = run(feed)
    with Session(expected, optimize=False) as session:
        wanted = session.run(feed)
    distance = Sqnr()
    for name, value in wanted.items():
        if value.dtype == np.float32:
            distance.update(value, received[name])
    return distance.db if distance.signal else None
