"""AIMET encodings: what they name, and with the network beside them, what they leave to the vendor's tool."""

from __future__ import annotations

import os
from collections import Counter
from pathlib import Path
from typing import TYPE_CHECKING

from leadline.export import encodings
from leadline.inspector.concat import starved
from leadline.inspector.inspection import Artefact, Inspection, count, suspicious

if TYPE_CHECKING:
    from leadline.export.encodings_gaps import Gap


def read_encodings(file: Path, model: str | os.PathLike[str] | None = None) -> Artefact:
    """An encodings file of any version; `model` is the ONNX network it is for."""
    return _alone(file) if model is None else _beside(file, model)


def _alone(file: Path) -> Artefact:
    entries, version = encodings.read_with_version(file)
    kinds = {name: "tensor" for name in (*entries.grids, *entries.floats)}
    if entries.params is not None:
        kinds = {name: "parameter" if name in entries.params else "activation" for name in kinds}
    inspection = _inspection(file, version, entries, kinds, tuple(sorted(entries.floats)))
    return Artefact(inspection, entries.grids)


def _beside(file: Path, model: str | os.PathLike[str]) -> Artefact:
    from leadline.export.encodings_gaps import gaps
    from leadline.export.qdq_read import open_model
    from leadline.graph import Graph
    from leadline.inspector.onnx_file import Network

    graph = Graph.load(model, verbatim=True)
    entries, version = encodings.read_with_version(file, graph)
    missing = gaps(graph, file)
    left = [gap.tensor for gap in missing if not gap.harmless and gap.reason != "tied"]
    uncovered = tuple(dict.fromkeys((*sorted(entries.floats), *left)))
    kinds = {name: "parameter" if name in graph.weights else "activation" for name in (*entries.grids, *uncovered)}
    network = Network(open_model(model, "inspect")[0])
    inspection = _inspection(
        file,
        version,
        entries,
        kinds,
        uncovered,
        absorbed=sum(gap.harmless for gap in missing),
        wrong=dict(starved(network.operators(), entries.grids)),
        gaps={gap.tensor: f"{gap.reason}, {gap.consequence}" for gap in missing if not gap.harmless},
        ports=(network.inputs, network.outputs),
        facts=_facts(missing),
    )
    return Artefact(inspection, entries.grids)


def _facts(missing: list[Gap]) -> dict[str, str]:
    harmless = Counter(gap.reason for gap in missing if gap.harmless)
    text = ", ".join(f"{reason} {number}" for reason, number in harmless.most_common())
    return {"without entry, harmless": text} if text else {}


def _inspection(
    file: Path,
    version: str,
    entries: encodings.Encodings,
    kinds: dict[str, str],
    uncovered: tuple[str, ...],
    *,
    absorbed: int = 0,
    wrong: dict[str, str] | None = None,
    gaps: dict[str, str] | None = None,
    ports: tuple[dict[str, str], dict[str, str]] = ({}, {}),
    facts: dict[str, str] | None = None,
) -> Inspection:
    every, quantised = Counter(kinds.values()), Counter(kinds[name] for name in entries.grids)
    known = "tensor" not in every
    return Inspection(
        file=file.name,
        kind=f"encodings {version}",
        bytes=file.stat().st_size,
        tensors=len(kinds),
        quantized=len(entries.grids),
        parameters=every["parameter"] if known else None,
        parameters_quantized=quantised["parameter"] if known else None,
        activations=every["activation"] if known else None,
        activations_quantized=quantised["activation"] if known else None,
        absorbed=absorbed,
        grids=count(entries.grids, kinds),
        uncovered=uncovered,
        suspicious=suspicious(entries.grids, {}) | (wrong or {}),
        gaps=gaps or {},
        inputs=ports[0],
        outputs=ports[1],
        facts=facts or {},
    )
