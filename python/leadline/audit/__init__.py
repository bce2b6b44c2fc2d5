"""Which operators of a network a target takes, which leadline rewrites for it, and which it refuses."""

from __future__ import annotations

import os
from pathlib import Path

from leadline.audit.findings import Audit, Finding, Rewrite
from leadline.graph.ir import Sample
from leadline.recipe import Recipe
from leadline.types import refuse

__all__ = ["TARGETS", "Audit", "Finding", "Rewrite", "audit"]

TARGETS = ("hexagon", "litert")


def audit(
    path: str | os.PathLike[str], target: str, sample: Sample | None = None, recipe: str | Recipe = "w8a8"
) -> Audit:
    """Ask a target about every operator of a network.

    "hexagon": the network as leadline's import leaves it is taken apart; each distinct operator (type, attributes,
    shapes, constant settings) becomes a quantised model of its own, which Qualcomm's emulation builds or refuses, in a
    process of its own. "litert": ai-edge-quantizer is asked about each operator of a ``.tflite``, and the interpreter
    whether it can be run; for an ONNX network what litert-torch writes for each operator comes from a list.

    Parameters
    ----------
    path : path
        A float ONNX network; for "litert" also a ``.tflite``.
    target : {"hexagon", "litert"}
    sample : dict of input name to array or shape, optional
        Fixes free axes, as in `Graph.load`.
    recipe : str or Recipe
        Whose widths and granularities the operators are asked with ("hexagon").

    Raises
    ------
    InputError
        An unknown target, a file that cannot be read, free axes without a sample, or a missing extra
        (``leadline[hexagon]``, ``leadline[tflite]``).
    """
    if target not in TARGETS:
        raise refuse("audit", f"target must be {' or '.join(TARGETS)}", repr(target))
    file = Path(path)
    if file.suffix == ".tflite":
        if target != "litert":
            raise refuse("audit", f"a network for {target} must be an ONNX file", f"'{file.name}'")
        from leadline.audit.litert import audit_tflite

        return audit_tflite(file)
    from leadline.audit.network import open_network

    network = open_network(file, sample)
    if target == "hexagon":
        from leadline.audit.hexagon import audit_hexagon

        return audit_hexagon(network, Recipe.load(recipe))
    from leadline.audit.litert import audit_onnx

    return audit_onnx(network)
