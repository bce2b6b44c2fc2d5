"""AIMET encodings: what they name, and with the network beside them, what they leave out."""

from __future__ import annotations

import os
from collections import Counter
from pathlib import Path

from leadline.export import encodings
from leadline.inspector.concat import starved
from leadline.inspector.inspection import Artefact, Inspection, count, suspicious


def read_encodings(file: Path, model: str | os.PathLike[str] | None = None) -> Artefact:
    """An encodings file of any version; `model` is the ONNX network it is for."""
    found, version = encodings.read_with_version(file)
    params, grids = found.params, found.grids
    names = [*grids, *found.floats]
    uncovered = sorted(found.floats)
    wrong = suspicious(grids, {})
    inputs: dict[str, str] = {}
    outputs: dict[str, str] = {}
    if model is not None:
        from leadline.export.qdq_read import open_model
        from leadline.inspector.onnx_file import Network

        network = Network(open_model(model, "inspect")[0])
        params = frozenset(name for name in names if name in network.parameters.left)
        missing = [name for name in (*network.parameters.left, *network.activations.left) if name not in grids]
        uncovered = list(dict.fromkeys(uncovered + missing))
        names = [*grids, *uncovered]
        params |= set(network.parameters.left).intersection(uncovered)
        wrong |= dict(starved(network.operators(), grids))
        inputs, outputs = network.inputs, network.outputs
    kinds = {name: "tensor" if params is None else "parameter" if name in params else "activation" for name in names}
    quantised = Counter(kinds[name] for name in grids)
    every = Counter(kinds.values())
    known = params is not None
    inspection = Inspection(
        file=file.name,
        kind=f"encodings {version}",
        bytes=file.stat().st_size,
        tensors=len(names),
        quantized=len(grids),
        parameters=every["parameter"] if known else None,
        parameters_quantized=quantised["parameter"] if known else None,
        activations=every["activation"] if known else None,
        activations_quantized=quantised["activation"] if known else None,
        grids=count(grids, kinds),
        uncovered=tuple(uncovered),
        suspicious=wrong,
        inputs=inputs,
        outputs=outputs,
    )
    return Artefact(inspection, grids)
