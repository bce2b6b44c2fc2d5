"""einops' rearrange, repeat and reduce as reshape, permute and expand of torch, at the shapes they meet.

Rogozhnikov, Einops: Clear and Reliable Tensor Manipulations with Einstein-like Notation (2022), for the notation.
Patterns are read once for each shape, in plain Python: nothing of einops runs in the forward pass.
"""

from __future__ import annotations

import math
import re
from types import MethodType
from typing import Any

import torch
from torch import Tensor, nn

from leadline.torch.rewrites.patches import Patch, relinked
from leadline.types import refuse

Group = tuple[str, ...]
_REDUCE = {"mean": torch.mean, "sum": torch.sum, "max": torch.amax, "min": torch.amin, "prod": None}


def without(module: nn.Module) -> Patch | None:
    """The patch by which the module's own methods call functions of this file; None where it has no use for einops."""
    if type(module).__module__.startswith("einops.layers") and hasattr(module, "pattern"):
        kind = {"Rearrange": rearrange, "Reduce": reduce}.get(type(module).__name__)
        return None if kind is None else Patch(module, {"forward": MethodType(_layer, module)})
    entries: dict[str, MethodType] = relinked(module, _in_place_of)
    return Patch(module, entries) if entries else None


def rearrange(tensor: Any, pattern: str, **sizes: int) -> Tensor:
    """As einops.rearrange, of a tensor or a list of tensors (whose order is then the first axis)."""
    return _apply("rearrange", tensor, pattern, sizes)


def repeat(tensor: Any, pattern: str, **sizes: int) -> Tensor:
    """As einops.repeat."""
    return _apply("repeat", tensor, pattern, sizes)


def reduce(tensor: Any, pattern: str, reduction: str, **sizes: int) -> Tensor:
    """As einops.reduce with "mean", "sum", "max" or "min"."""
    return _apply("reduce", tensor, pattern, sizes, reduction)


_OWN = {"rearrange": rearrange, "repeat": repeat, "reduce": reduce}


class _Einops:
    """In place of the package, for code that writes ``einops.rearrange``."""

    def __init__(self, package: Any) -> None:
        self._package = package

    def __getattr__(self, name: str) -> Any:
        return _OWN.get(name) or getattr(self._package, name)


def _in_place_of(name: str, value: Any) -> Any:
    if getattr(value, "__name__", "") == "einops":
        return _Einops(value)
    if str(getattr(value, "__module__", "")).split(".")[0] == "einops":
        return _OWN.get(getattr(value, "__name__", ""))
    return None


def _layer(self: Any, input: Tensor) -> Tensor:
    """The forward of einops' layers Rearrange and Reduce."""
    sizes = dict(self.axes_lengths)
    reduction = getattr(self, "reduction", None)
    return (
        rearrange(input, self.pattern, **sizes)
        if reduction is None
        else reduce(input, self.pattern, reduction, **sizes)
    )


def _apply(function: str, tensor: Any, pattern: str, sizes: dict[str, int], reduction: str = "") -> Tensor:
    x: Tensor = torch.stack(list(tensor)) if isinstance(tensor, list | tuple) else tensor
    left, right = _sides(function, pattern, x.ndim)
    ones = {axis: 1 for group in (*left, *right) for axis in group if axis.startswith("1.")}
    known = _sizes(function, pattern, left, list(x.shape), ones | sizes)
    x = x.reshape([known[axis] for group in left for axis in group])
    axes, wanted = [a for g in left for a in g], [a for g in right for a in g]
    gone, new = [a for a in axes if a not in wanted], [a for a in wanted if a not in axes]
    if gone:
        along = [axes.index(axis) for axis in gone if known[axis] > 1 or reduction]
        if along and reduction not in ("mean", "sum", "max", "min"):
            raise refuse(function, f"axes of '{pattern}' must stand on both sides, or be reduced", ", ".join(gone))
        x = _REDUCE[reduction](x, along) if along else x.reshape([known[a] for a in axes if a not in gone])
        axes = [axis for axis in axes if axis not in gone]
    x = x.permute([axes.index(axis) for axis in wanted if axis in axes])
    if new:
        missing = [axis for axis in new if axis not in known]
        if missing:
            raise refuse(function, f"new axes of '{pattern}' must have sizes", ", ".join(missing))
        for place, axis in enumerate(wanted):
            x = x.unsqueeze(place) if axis in new else x
        x = x.expand([known[axis] for axis in wanted])
    return x.reshape([math.prod(known[axis] for axis in group) for group in right])


def _sides(function: str, pattern: str, ndim: int) -> tuple[list[Group], list[Group]]:
    """Groups of axis names on both sides; "..." and numbers get names of their own."""
    parts = pattern.split("->")
    if len(parts) != 2:
        raise refuse(function, "pattern must have two sides, as in 'a b -> (a b)'", repr(pattern))
    sides = [re.findall(r"\([^()]*\)|\.\.\.|\w+|…", side) for side in parts]
    rest = ndim - sum(token not in ("...", "…") for token in sides[0])
    dots = tuple(f".{i}" for i in range(max(rest, 0)))
    ones = iter(range(10**6))

    def names(token: str) -> Group:
        out: list[str] = []
        for name in token.strip("()").replace("…", "...").split():
            out += dots if name == "..." else [f"1.{next(ones)}"] if name == "1" else [name]
        return tuple(out)

    def groups(tokens: list[str]) -> list[Group]:
        return [g for t in tokens for g in ([(d,) for d in dots] if t in ("...", "…") else [names(t)])]

    return groups(sides[0]), groups(sides[1])


def _sizes(function: str, pattern: str, left: list[Group], shape: list[int], sizes: dict[str, int]) -> dict[str, int]:
    """The size of every axis by its name."""
    if len(left) != len(shape):
        raise refuse(function, f"'{pattern}' must name as many axes as the tensor has", f"shape {tuple(shape)}")
    known = dict(sizes)
    for group, size in zip(left, shape, strict=True):
        free = [axis for axis in group if axis not in known]
        filled = math.prod(known[axis] for axis in group if axis in known)
        if len(free) > 1 or (not free and filled != size) or (free and size % max(filled, 1)):
            raise refuse(function, f"axes of '{pattern}' must fill the tensor's", f"{group} for a size of {size}")
        known |= {axis: size // filled for axis in free}
    return known
