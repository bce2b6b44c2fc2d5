"""Rotary positions on a fixed grid: y = x * cos + partner(x) * sin, with tables in place of what computes them.

Su et al., RoFormer (2021); on a grid of patches, rows and columns each rotate half of the features. Networks look up
tables by the largest position they meet, which is data to an exporter (`int(positions.max())`) and stops it, though
positions on a fixed grid of patches are constants. Whatever the code, such a function is linear in each token: its
tables are read off the unit vectors.
"""

from __future__ import annotations

from dataclasses import dataclass
from types import MethodType
from typing import Any

import torch
from torch import Tensor, nn

from leadline.torch.rewrites.patches import Patch, function_of
from leadline.torch.rewrites.proof import Runner, See

CHILD = "static_rotary"
RUNS = 16
"""Longest list of slices that partners are put together from; beyond it they are gathered."""


class StaticRotary(nn.Module):
    """One table for each shape of tokens: own factor and partner's factor of each feature at each position."""

    def __init__(self) -> None:
        super().__init__()
        self.partners: dict[tuple[int, ...], list[int]] = {}

    def add(self, shape: tuple[int, ...], cos: Tensor, sin: Tensor, partners: list[int], positions: Tensor) -> None:
        name = self._name(shape)
        self.partners[shape] = partners
        for part, table in (("cos", cos), ("sin", sin), ("positions", positions)):
            self.register_buffer(f"{part}_{name}", table, persistent=False)

    def fits(self, tokens: Tensor, positions: Tensor) -> bool:
        """Whether there is a table; while exporting, positions are taken to be the grid's."""
        shape = tuple(tokens.shape)
        if shape not in self.partners:
            return False
        if torch.compiler.is_compiling():
            return True
        return bool(torch.equal(positions, getattr(self, f"positions_{self._name(shape)}")))

    def forward(self, tokens: Tensor) -> Tensor:
        """(..., tokens, features), rotated."""
        shape = tuple(tokens.shape)
        name = self._name(shape)
        cos, sin = getattr(self, f"cos_{name}"), getattr(self, f"sin_{name}")
        rotated: Tensor = tokens * cos + _gather(tokens, self.partners[shape]) * sin
        return rotated

    @staticmethod
    def _name(shape: tuple[int, ...]) -> str:
        return "x".join(map(str, shape))


@dataclass
class Call:
    """One call of a module, as a rotation of tokens (..., n, features) at integer positions (..., n) or (..., n, k)."""

    tokens: tuple[int, ...]
    dtype: torch.dtype
    positions: Tensor

    @classmethod
    def of(cls, module: nn.Module, args: tuple[Any, ...], output: Any) -> Call | None:
        """The call, if it looks like one: no parameters, two tensors, the output of the first one's shape."""
        if (
            len(args) != 2
            or not all(isinstance(x, Tensor) for x in (*args, output))
            or next(module.parameters(), None) is not None
        ):
            return None
        tokens, positions = args
        whole = not (positions.is_floating_point() or positions.is_complex() or positions.dtype == torch.bool)
        along = positions.ndim > 0 and tokens.ndim > 1 and tokens.shape[-2] in positions.shape[-2:]
        if not (whole and along and tokens.is_floating_point() and output.shape == tokens.shape):
            return None
        return cls(tuple(tokens.shape), tokens.dtype, positions.detach().clone())

    def equals(self, other: Call) -> bool:
        return self.tokens == other.tokens and torch.equal(self.positions, other.positions)


def find(runner: Runner) -> dict[nn.Module, list[Call]]:
    """Modules that may be rotations, and their calls, where positions are the same in a run on other numbers."""
    first: dict[nn.Module, list[Call]] = {}
    second: dict[nn.Module, list[Call]] = {}

    def seeing(calls: dict[nn.Module, list[Call]]) -> See:
        def see(stack: list[nn.Module], function: Any, args: Any, kwargs: Any, result: Any) -> None:
            call = Call.of(stack[-1], args, result) if function is None and not kwargs else None
            if call is not None:
                calls.setdefault(stack[-1], []).append(call)

        return see

    runner.watch(seeing(first))
    if first:
        runner.other().watch(seeing(second))
    same = {m: [a.equals(b) for a, b in zip(calls, second.get(m, []), strict=False)] for m, calls in first.items()}
    return {m: calls for m, calls in first.items() if len(same[m]) == len(calls) and all(same[m])}


def bake(module: nn.Module, calls: list[Call]) -> Patch | str:
    """The patch by which the module looks rotations up; or why there is none."""
    static = StaticRotary()
    for call in calls:
        if call.tokens in static.partners:
            if not static.fits(torch.zeros(call.tokens), call.positions):
                return "tokens of one shape come at several positions"
            continue
        tables = _tables(module, call)
        if isinstance(tables, str):
            return tables
        static.add(call.tokens, *tables, call.positions)
    inner = function_of(module, "forward")

    def forward(self: nn.Module, tokens: Tensor, positions: Tensor) -> Any:
        tables: StaticRotary = getattr(self, CHILD)
        return tables(tokens) if tables.fits(tokens, positions) else inner(self, tokens, positions)

    return Patch(module, {"forward": MethodType(forward, module)}, {CHILD: static})


def _tables(module: nn.Module, call: Call) -> tuple[Tensor, Tensor, list[int]] | str:
    """Own factors, partners' factors and partners of each feature; or why the module is no rotation."""
    *lead, count, width = call.tokens
    # The same for all heads, or the proof will tell.
    shape = (lead[0], *(1 for _ in lead[1:]), count, width) if lead else (count, width)
    columns = []
    for feature in range(width):
        unit = torch.zeros(shape, dtype=call.dtype)
        unit[..., feature] = 1
        columns.append(module(unit, call.positions))
    matrix = torch.stack(columns, -2)  # (..., token, feature read, feature written)
    if not torch.equal(module(torch.zeros(shape, dtype=call.dtype), call.positions), torch.zeros(shape)):
        return "it is not linear in its tokens"
    cos = matrix.diagonal(dim1=-2, dim2=-1).clone()
    rest = matrix - torch.diag_embed(cos)
    strength = rest.abs().flatten(0, -3).amax(0)
    partners = strength.argmax(0)
    sin = rest.gather(-2, partners.expand(*rest.shape[:-2], 1, width)).squeeze(-2)
    if strength.count_nonzero(0).max() > 1:
        return "a feature depends on more than one other"
    if lead and lead[0] > 1 and all(torch.equal(t, t[:1].expand_as(t)) for t in (cos, sin)):
        cos, sin = cos[:1].clone(), sin[:1].clone()
    return cos, sin, partners.tolist()


def _gather(x: Tensor, partners: list[int]) -> Tensor:
    """x[..., partners], as slices side by side where these are few."""
    starts = [i for i in range(len(partners)) if i == 0 or partners[i] != partners[i - 1] + 1]
    if len(starts) > RUNS:
        return x[..., torch.tensor(partners)]
    ends = [*starts[1:], len(partners)]
    slices = [x[..., partners[a] : partners[a] + b - a] for a, b in zip(starts, ends, strict=True)]
    return torch.cat(slices, -1)
