"""Which operators of a network a target takes, which leadline rewrites for it, and which it refuses."""

from __future__ import annotations

import os
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

from leadline.audit.findings import Audit, Finding, Rewrite, located, ordered
from leadline.recipe import Recipe
from leadline.types import refuse

if TYPE_CHECKING:
    from torch import nn

    from leadline.audit.network import Network

__all__ = ["TARGETS", "Audit", "Finding", "Rewrite", "audit"]

TARGETS = ("hexagon", "litert")


def audit(
    network: str | os.PathLike[str] | nn.Module, target: str, sample: Any = None, recipe: str | Recipe = "w8a8"
) -> Audit:
    """Ask a target about every operator of a network.

    "hexagon": the network as leadline's import leaves it is taken apart; each distinct operator (type, attributes,
    shapes, constant settings) becomes a quantised model of its own, which Qualcomm's emulation builds or refuses, in a
    process of its own. "litert": ai-edge-quantizer is asked about each operator of a ``.tflite``, and the interpreter
    whether it can be run; for an ONNX network what litert-torch writes for each operator comes from a list.

    Where torch exported the network, findings name the module and the line of the user's code.

    Parameters
    ----------
    network : path or nn.Module
        A float ONNX network; for "litert" also a ``.tflite``. A torch module, or the ``.pt2`` file of one that
        torch.export captured, goes through torch's ONNX exporter; what it cannot take is a finding, too.
    target : {"hexagon", "litert"}
    sample : dict of input name to array or shape, optional
        Fixes free axes, as in `Graph.load`. Of a torch module: what it is called with (a tensor, a tuple or list of
        arguments, or a dict of keywords).
    recipe : str or Recipe
        Whose widths and granularities the operators are asked with ("hexagon").

    Raises
    ------
    InputError
        An unknown target, a file that cannot be read, free axes without a sample, or a missing extra
        (``leadline[hexagon]``, ``leadline[tflite]``).
    ModuleNotFoundError : a torch module or a ``.pt2`` without the extra ``leadline[torch]``.
    """
    if target not in TARGETS:
        raise refuse("audit", f"target must be {' or '.join(TARGETS)}", repr(target))
    if not isinstance(network, (str, os.PathLike)) or Path(network).suffix == ".pt2":
        from leadline.audit.exported import open_program

        return _asked(open_program(network, sample), target, recipe)
    file = Path(network)
    if file.suffix == ".tflite":
        if target != "litert":
            raise refuse("audit", f"a network for {target} must be an ONNX file", f"'{file.name}'")
        from leadline.targets.litert.audit import audit_tflite

        return audit_tflite(file)
    from leadline.audit.network import open_network

    return _asked(open_network(file, sample), target, recipe)


def _asked(network: Network, target: str, recipe: str | Recipe) -> Audit:
    if target == "hexagon":
        from leadline.targets.hexagon.audit import audit_hexagon

        found = audit_hexagon(network, Recipe.load(recipe))
    else:
        from leadline.targets.litert.audit import audit_onnx

        found = audit_onnx(network)
    return located(replace(found, findings=ordered([*found.findings, *network.behind])), network.origins)
