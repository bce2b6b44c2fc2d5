"""Two artefacts beside each other: tensors, grids, codes and sizes, whatever files they are spelt in."""

from __future__ import annotations

import itertools
from collections.abc import Iterable
from dataclasses import asdict, dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray
from rich.filesize import decimal

from leadline.inspector.inspection import Artefact, Inspection, described
from leadline.types import Grid, few

_CLOSE = 1e-6
"""Relative: scales survive text, and a division by 127 and back, to the last bit or so of a float32."""


@dataclass(frozen=True)
class Codes:
    """Codes of one parameter: how many of `size` differ, and by how many steps at most."""

    different: int
    size: int
    largest: int


@dataclass(frozen=True)
class Difference:
    """What differs between two files.

    Attributes
    ----------
    first, second : Inspection
    renamed : dict of str to str
        Parameters of the first file to what the second one calls them: same codes under another name.
    only_first, only_second : dict of str to str
        Tensors with a grid in one file alone, and whether the other has them in float, under a name that nothing pairs
        (it holds an equal scale), or not at all.
    grids : dict of str to str
        Tensor name (the first file's) to what differs: type, granularity, scale, zero point.
    codes : dict of str to Codes
        Parameters that both files hold and whose codes differ.
    equal_grids, equal_codes : int
        How many grids and how many parameters' codes are equal.
    """

    first: Inspection
    second: Inspection
    renamed: dict[str, str]
    only_first: dict[str, str]
    only_second: dict[str, str]
    grids: dict[str, str]
    codes: dict[str, Codes]
    equal_grids: int
    equal_codes: int

    @property
    def same(self) -> bool:
        """Whether every tensor has the same grid and the same codes in both files."""
        return not (self.only_first or self.only_second or self.grids or self.codes)

    def to_dict(self) -> dict[str, Any]:
        """Plain values, ready for JSON."""
        return asdict(self) | {"first": self.first.to_dict(), "second": self.second.to_dict(), "same": self.same}

    def rows(self, longest: int = 8) -> list[tuple[str, str]]:
        """Label and text of each line of a table; lists are cut after `longest`."""
        rows = [
            (label, f"{inspection.file}, {inspection.kind}, {decimal(inspection.bytes)}")
            for label, inspection in (("first", self.first), ("second", self.second))
        ]
        smaller = 100 * (1 - self.second.bytes / self.first.bytes) if self.first.bytes else 0.0
        text = f"the second file is {abs(smaller):.1f} % {'smaller' if smaller >= 0 else 'larger'}"
        rows.append(("size", text if self.first.bytes != self.second.bytes else "the same"))
        rows.append(("equal", f"{self.equal_grids} grids, the codes of {self.equal_codes} parameters"))
        if self.renamed:
            some = tuple(f"{ours} = {theirs}" for ours, theirs in self.renamed.items())
            rows.append(("other names", f"{len(some)}: {few(some, min(longest, 3))}"))
        codes = {name: _codes_text(difference) for name, difference in self.codes.items()}
        for label, table in (
            ("only in the first", self.only_first),
            ("only in the second", self.only_second),
            ("grid differs", self.grids),
            ("codes differ", codes),
        ):
            rows += [(label, f"{name}: {what}") for name, what in list(table.items())[:longest]]
            if len(table) > longest:
                rows.append((label, f"and {len(table) - longest} more"))
        return rows


def compare_artefacts(first: Artefact, second: Artefact) -> Difference:
    """See `leadline.inspector.compare`."""
    renamed = _pair_by_codes(first, second)
    partners = {name: name for name in _biases_last(first.grids) if name in second.grids} | renamed
    grids: dict[str, str] = {}
    codes: dict[str, Codes] = {}
    equal_codes = 0
    for ours, theirs in partners.items():
        differences = [*_grid_differences(first.grids[ours], second.grids[theirs])]
        if differences:
            grids[ours] = "; ".join(differences)
        if ours in first.codes and theirs in second.codes:
            code_difference = _code_differences(
                _centred(first.codes[ours], first.grids[ours]), _centred(second.codes[theirs], second.grids[theirs])
            )
            if code_difference.different:
                codes[ours] = code_difference
            else:
                equal_codes += 1
    return Difference(
        first.inspection,
        second.inspection,
        renamed,
        _alone(first, second, partners, partners.values()),
        _alone(second, first, partners.values(), partners),
        grids,
        codes,
        len(partners) - len(grids),
        equal_codes,
    )


def _alone(first: Artefact, second: Artefact, known: Iterable[str], others: Iterable[str]) -> dict[str, str]:
    """Tensors of the first that are not `known`; of the second, `others` are. Those without any likeness come first."""
    floats, taken, there = set(second.inspection.uncovered), set(known), set(others)
    scales = np.sort(
        [float(grid.scale) for name, grid in second.grids.items() if name not in there and not grid.scale.ndim]
    )
    entries: list[tuple[bool, str, str]] = []
    for name, grid in _biases_last(first.grids).items():
        if name not in taken:
            alike = name not in floats and not grid.scale.ndim and _holds(scales, float(grid.scale))
            where = "in float" if name in floats else "not"
            text = "an equal scale under another name there" if alike else f"{where} in the other file"
            entries.append((alike, name, f"{described(grid)}, {text}"))
    return {name: text for _, name, text in sorted(entries, key=lambda item: item[0])}


def _holds(scales: NDArray[Any], scale: float) -> bool:
    place = int(np.searchsorted(scales, scale))
    return any(abs(float(near) - scale) <= _CLOSE * scale for near in scales[max(place - 1, 0) : place + 1])


def _biases_last(grids: dict[str, Grid]) -> dict[str, Grid]:
    """A bias follows from its layer's input and weight: what says more comes first."""
    return dict(sorted(grids.items(), key=lambda item: item[1].scheme.bits == 32))


def _pair_by_codes(first: Artefact, second: Artefact) -> dict[str, str]:
    """Parameters that only the names tell apart: each one's codes, in whatever order, are no other's."""

    def prints(artefact: Artefact, other: Artefact) -> dict[bytes, list[str]]:
        table: dict[bytes, list[str]] = {}
        for name, array in artefact.codes.items():
            if name not in other.grids and name in artefact.grids:
                centred = np.sort(_centred(array, artefact.grids[name]), axis=None)
                table.setdefault(centred.tobytes(), []).append(name)
        return table

    ours, theirs = prints(first, second), prints(second, first)
    return {
        names[0]: theirs[key][0] for key, names in ours.items() if len(names) == 1 and len(theirs.get(key, ())) == 1
    }


def _shift(grid: Grid) -> int:
    """What moves unsigned codes to signed ones."""
    return 0 if grid.scheme.signed else 1 << grid.scheme.bits - 1


def _centred(codes: NDArray[Any], grid: Grid) -> NDArray[np.int64]:
    return codes.astype(np.int64) - _shift(grid)


def _grid_differences(ours: Grid, theirs: Grid) -> Iterable[str]:
    our_scheme, their_scheme = ours.scheme, theirs.scheme
    if our_scheme.bits != their_scheme.bits:
        yield f"{our_scheme.bits} bits against {their_scheme.bits}"
        return
    scales, others = ours.scale.reshape(-1), theirs.scale.reshape(-1)
    if scales.size != others.size:
        yield f"{described(ours)} ({scales.size} scales) against {described(theirs)} ({others.size})"
        return
    if ours.scale.ndim > 1 and ours.scale.shape == theirs.scale.shape[::-1] != theirs.scale.shape:
        others = theirs.scale.T.reshape(-1)  # blocks of a matrix that the other file holds transposed
    apart = np.abs(scales - others) > _CLOSE * np.maximum(scales, others)
    if apart.any():
        worst = int(np.argmax(np.maximum(scales, others) / np.minimum(scales, others)))
        where = f"{int(apart.sum())} of {scales.size} scales, " if scales.size > 1 else "scale "
        yield f"{where}{scales[worst]:.6g} against {others[worst]:.6g}"
    points = ours.zero_point.reshape(-1).astype(np.int64) - _shift(ours)
    offsets = theirs.zero_point.reshape(-1).astype(np.int64) - _shift(theirs)
    if (points != offsets).any():
        worst = int(np.argmax(np.abs(points - offsets)))
        where = f"{int((points != offsets).sum())} of {points.size} zero points, " if points.size > 1 else "zero point "
        yield f"{where}{points[worst] + _shift(ours)} against {offsets[worst] + _shift(ours)}"


def _code_differences(ours: NDArray[np.int64], theirs: NDArray[np.int64]) -> Codes:
    """Formats lay the same weight out in different orders of axes: the order with the fewest differences is meant."""
    if ours.size != theirs.size:
        return Codes(max(ours.size, theirs.size), max(ours.size, theirs.size), 0)
    orders = [ours.reshape(-1)] if ours.ndim != theirs.ndim or ours.ndim > 4 else []
    if not orders:
        every = itertools.permutations(range(ours.ndim))
        orders = [ours.transpose(axes).reshape(-1) for axes in every if ours.transpose(axes).shape == theirs.shape]
        if not orders:
            return Codes(ours.size, ours.size, 0)
    gaps = [np.abs(order - theirs.reshape(-1)) for order in orders]
    least = min(gaps, key=np.count_nonzero)
    return Codes(int(np.count_nonzero(least)), ours.size, int(least.max(initial=0)))


def _codes_text(difference: Codes) -> str:
    steps = f", by {difference.largest} at most" if difference.largest else ""
    return f"{difference.different} of {difference.size}{steps}"
