"""Where in the user's code something comes from: the module by its qualified name, and the line of its source."""

from __future__ import annotations

import linecache
import re
from dataclasses import dataclass
from pathlib import Path
from types import TracebackType
from typing import Any

import torch
from torch import nn

_TORCH = str(Path(torch.__file__).parent)
_FRAME = re.compile(r'File "(?P<file>.+?)", line (?P<line>\d+), in .*\n(?P<code>(?!\s*File ").*)?')


@dataclass(frozen=True)
class Origin:
    """Of an operator or an error. Prints as ``'blocks.0.attn' (Attention), model.py:12: y = x.item()``.

    Attributes
    ----------
    module : str
        Qualified name, "" for the module itself.
    kind : str
        Its class.
    file : str
        Path of the source; "" where it is not known.
    line : int
    code : str
        What stands there.
    """

    module: str
    kind: str
    file: str = ""
    line: int = 0
    code: str = ""

    def __str__(self) -> str:
        name = f"'{self.module}'" if self.module else "the module itself"
        return f"{name} ({self.kind})" + (f", {self.place}: {self.code}" if self.file else "")

    @property
    def place(self) -> str:
        """``model.py:12``; "" where it is not known."""
        return f"{Path(self.file).name}:{self.line}" if self.file else ""


def of_node(node: Any) -> Origin | None:
    """Of a node of torch.export's graph; None for one that no module made."""
    stack = list((node.meta.get("nn_module_stack") or {}).values())
    if not stack:
        return None
    name, kind = stack[-1][0], stack[-1][1]
    kind = kind if isinstance(kind, str) else f"{kind.__module__}.{kind.__qualname__}"
    return of_trace(str(name), kind, node.meta.get("stack_trace") or "")


def of_trace(module: str, kind: str, trace: str) -> Origin:
    """From a stack trace as torch notes it: the innermost line outside torch, or else the innermost of all."""
    frames = [(m["file"], int(m["line"]), (m["code"] or "").strip()) for m in _FRAME.finditer(trace)]
    own = [frame for frame in frames if not frame[0].startswith(_TORCH)]
    found = (own or frames or [("", 0, "")])[-1]
    return Origin(module, kind.rpartition(".")[2], *found)


def of_error(module: nn.Module, error: BaseException) -> Origin | None:
    """Of an exception that passed through the forward of `module`, or of one inside it."""
    names = {id(child): name for name, child in module.named_modules()}
    cause: BaseException | None = error
    while cause is not None:
        found: Origin | None = None
        trace: TracebackType | None = cause.__traceback__
        while trace is not None:
            code = trace.tb_frame.f_code
            owner = trace.tb_frame.f_locals.get(code.co_varnames[0]) if code.co_argcount else None
            if isinstance(owner, nn.Module) and id(owner) in names:
                found = Origin(names[id(owner)], type(owner).__name__)
            if found is not None and not code.co_filename.startswith(_TORCH):
                text = linecache.getline(code.co_filename, trace.tb_lineno).strip()
                found = Origin(found.module, found.kind, code.co_filename, trace.tb_lineno, text)
            trace = trace.tb_next
        if found is not None:
            return found
        cause = cause.__cause__ or cause.__context__
    return None
