"""Which operators of a network a target takes, which leadline rewrites for it, and which it refuses."""

from __future__ import annotations

import os
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

from leadline.audit.findings import Audit, Finding, Rewrite, located, ordered
from leadline.recipe import Recipe
from leadline.targets.target import Target, every_target, target_of
from leadline.types import refuse

if TYPE_CHECKING:
    from torch import nn


__all__ = ["Audit", "Finding", "Rewrite", "audit"]


def audit(
    network: str | os.PathLike[str] | nn.Module, target: str | Target, sample: Any = None, recipe: str | Recipe = "w8a8"
) -> Audit:
    """Ask a target about every operator of a network.

    "hexagon": the network as leadline's import leaves it is taken apart; each distinct operator (type, attributes,
    shapes, constant settings) becomes a quantised model of its own, which Qualcomm's emulation builds or refuses, in a
    process of its own. "litert": ai-edge-quantizer is asked about each operator of a ``.tflite``, and the interpreter
    whether it can be run; for an ONNX network what litert-torch writes for each operator comes from a list.
    "openvino": as for hexagon, compiled and run on this CPU; "float" is what no integer kernel computes.

    Where torch exported the network, findings name the module and the line of the user's code.

    Parameters
    ----------
    network : path or nn.Module
        A float ONNX network; for "litert" also a ``.tflite``. A torch module, or the ``.pt2`` file of one that
        torch.export captured, goes through torch's ONNX exporter; what it cannot take is a finding, too.
    target : name or Target
        "hexagon", "litert" or another that answers for single operators.
    sample : dict of input name to array or shape, optional
        Fixes free axes, as in `Graph.load`. Of a torch module: what it is called with (a tensor, a tuple or list of
        arguments, or a dict of keywords).
    recipe : str or Recipe
        Whose widths and granularities the operators are asked with (not "litert").

    Raises
    ------
    InputError
        An unknown target, a file that cannot be read, free axes without a sample, or a missing extra
        (``leadline[hexagon]``, ``leadline[tflite]``, ...).
    ModuleNotFoundError : a torch module or a ``.pt2`` without the extra ``leadline[torch]``.
    """
    chosen, settled = target_of(target, "audit"), Recipe.load(recipe)
    if not isinstance(network, (str, os.PathLike)) or Path(network).suffix == ".pt2":
        from leadline.audit.exported import open_program

        opened = open_program(network, sample)
    else:
        file = Path(network)
        known = chosen.audit_file(file)
        if known is not None:
            return known
        if any(kind.file != Target.file and Path(kind.file).suffix == file.suffix for kind in every_target()):
            raise refuse("audit", f"a network for {chosen.name} must be an ONNX file", f"'{file.name}'")
        from leadline.audit.network import open_network

        opened = open_network(file, sample)
    answers = chosen.audit(opened, settled)
    return located(replace(answers, findings=ordered([*answers.findings, *opened.behind])), opened.origins)
