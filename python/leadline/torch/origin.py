"""Where in the user's code an operator of torch.export, or an error, comes from."""

from __future__ import annotations

import linecache
from types import TracebackType
from typing import Any

from torch import nn

from leadline.graph.origin import Origin, is_torch, of_trace


def of_node(node: Any) -> Origin | None:
    """Of a node of torch.export's graph; None for one that no module made."""
    stack = list((node.meta.get("nn_module_stack") or {}).values())
    if not stack:
        return None
    name, kind = stack[-1][0], stack[-1][1]
    kind = kind if isinstance(kind, str) else kind.__qualname__
    return of_trace(str(name), kind, node.meta.get("stack_trace") or "")


def of_error(module: nn.Module, error: BaseException) -> Origin | None:
    """Of an exception that passed through the forward of `module`, or of one inside it."""
    names = {id(child): name for name, child in module.named_modules()}
    cause: BaseException | None = error
    while cause is not None:
        origin: Origin | None = None
        trace: TracebackType | None = cause.__traceback__
        while trace is not None:
            code = trace.tb_frame.f_code
            owner = trace.tb_frame.f_locals.get(code.co_varnames[0]) if code.co_argcount else None
            if isinstance(owner, nn.Module) and id(owner) in names:
                origin = Origin(names[id(owner)], type(owner).__name__)
            if origin is not None and not is_torch(code.co_filename):
                text = linecache.getline(code.co_filename, trace.tb_lineno).strip()
                origin = Origin(origin.module, origin.kind, code.co_filename, trace.tb_lineno, text)
            trace = trace.tb_next
        if origin is not None:
            return origin
        cause = cause.__cause__ or cause.__context__
    return None
