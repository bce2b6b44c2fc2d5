"""Where in the user's code a node comes from: torch's exporter notes it in the file."""

from __future__ import annotations

import ast
import re
from dataclasses import dataclass
from pathlib import PurePath
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    import onnx

_FRAME = re.compile(r'File "(?P<file>.+?)", line (?P<line>\d+), in .*\n(?P<code>(?!\s*File ").*)?')
_NOTED = "pkg.torch.onnx."


@dataclass(frozen=True)
class Origin:
    """Of an operator or an error. Prints as ``'blocks.0.attn' (Attention), model.py:12: y = x.item()``.

    Attributes
    ----------
    module : str
        Qualified name, "" for the whole module itself.
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
        place = f", {PurePath(self.file).name}:{self.line}: {self.code}" if self.file else ""
        return f"{name} ({self.kind}){place}"


def is_torch(file: str) -> bool:
    """A source file of torch itself."""
    return "/site-packages/torch/" in file.replace("\\", "/")


def of_trace(module: str, kind: str, trace: str) -> Origin:
    """From a stack trace as torch notes it: the innermost line outside torch, or else the innermost of all."""
    frames = [(m["file"], int(m["line"]), (m["code"] or "").strip()) for m in _FRAME.finditer(trace)]
    outside = [frame for frame in frames if not is_torch(frame[0])]
    return Origin(module, kind.rpartition(".")[2], *(outside or frames or [("", 0, "")])[-1])


def origins(model: onnx.ModelProto) -> dict[str, Origin]:
    """Of each tensor that a node writes, where the file has notes: torch.onnx.export(dynamo=True) leaves them."""
    by_tensor = {}
    for node in model.graph.node:
        noted = {item.key: item.value for item in node.metadata_props if item.key.startswith(_NOTED)}
        try:
            scopes = ast.literal_eval(noted[f"{_NOTED}name_scopes"])
            kinds = ast.literal_eval(noted[f"{_NOTED}class_hierarchy"])
            origin = of_trace(scopes[-2], kinds[-2], noted.get(f"{_NOTED}stack_trace", ""))
        except (KeyError, IndexError, SyntaxError, TypeError, ValueError):
            continue
        by_tensor.update(dict.fromkeys(node.output, origin))
    return by_tensor
