"""A torch module, or what torch.export captured of one, on its way to ONNX."""

from __future__ import annotations

import os
import tempfile
from pathlib import Path
from typing import TYPE_CHECKING, Any

from leadline.audit.findings import Finding
from leadline.audit.network import Network, open_network
from leadline.types import InputError, refuse

if TYPE_CHECKING:
    from torch import nn


def open_program(network: str | os.PathLike[str] | nn.Module, inputs: Any) -> Network:
    """A module or a ``.pt2`` file as `open_network` gives it; what torch refuses is an obstacle."""
    from leadline.torch.export import capture, load_program, write

    is_file = isinstance(network, (str, os.PathLike))
    name = Path(os.fspath(network)).name if is_file else type(network).__name__
    if not is_file and inputs is None:
        raise refuse("audit", "sample must be what the module is called with", "none")
    try:
        program = load_program(Path(network)) if is_file else capture(network, inputs, "audit")
    except InputError as error:
        if error.__cause__ is None or is_file:
            raise
        return _stopped(name, "torch.export", error)
    with tempfile.TemporaryDirectory(prefix="leadline-audit-") as folder:
        file = Path(folder) / f"{name.removesuffix('.pt2')}.onnx"
        try:
            write(program, file, "audit")
        except InputError as error:
            return _stopped(name, "torch.onnx", error)
        return open_network(file, None)


def _stopped(name: str, by: str, error: InputError) -> Network:
    reason = str(error).removeprefix("[audit] ").removesuffix(".").replace(". Received ", "; torch says ")
    return Network(name, 1, None, (), (Finding(by, "unsupported", (name,), 1, reason),))
