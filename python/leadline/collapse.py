"""Whether an output is lost, and which part of it: one definition for whatever runs an artefact."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from functools import partial
from itertools import pairwise
from typing import Any

import numpy as np
from numpy.typing import NDArray

from leadline.sqnr import Sqnr

LOST = 5.0
"""dB: below it a third of an output's power is error."""

DEAD = 0.1
"""Share of the float network's range below which a range is dead."""

UNLIKE = 0.5
"""Correlation below which a map no longer resembles the float network's."""

FLAT = 1 / 512
"""Half a step of an 8-bit grid from zero: an output that varies less, beside its magnitude, is a constant."""

NOTHING = 1e-6
"""What float32 leaves of sums of ones that should cancel: not larger is zero."""

APART = 10.0
"""Factor between the magnitudes of neighbours from which they are parts of their own."""

PARTS = 4
"""Parts of an output, at most."""

DENSE = 64
"""Elements at an index from which they are a map, whose own correlation says something."""

LONGEST, SEVERAL = 4096, 8
"""Indices that an axis of parts has at most, and elements at each of them at least: a vector has none."""

ALIKE, PICTURE = 0.9, 8
"""Correlation of neighbours, and how many there are at least, that tell places from channels."""

Array = NDArray[np.float64]


@dataclass(frozen=True)
class Likeness:
    """What stands for an output, or for a part of it, beside the float network's.

    Attributes
    ----------
    sqnr : Sqnr
    reference, other : (float, float)
        Least and greatest value.
    deviations : (float, float)
        Standard deviations of both.
    correlation : float or None
        Pearson's, of each map (all elements at one index of the channels, in one sample) about its own mean; None
        where there are no maps, or the float network's are flat.
    broken : int
        Values that are NaN or infinite where the float network's are not.
    equal : float or None
        Share of equal elements, of integers and booleans alone.
    """

    sqnr: Sqnr
    reference: tuple[float, float]
    other: tuple[float, float]
    deviations: tuple[float, float]
    correlation: float | None
    broken: int
    equal: float | None

    def reasons(self, peak: float = 1.0) -> list[str]:
        """Why it is lost, in words; empty where it is not. `peak` is the magnitude beside which it may be nothing.

        Lost is what is NaN or infinite, constant, or of a range below a tenth of the float network's, where that one
        varies; below 5 dB, about its mean too; and a map with a correlation below 0.5. Integers are lost where most of
        them differ, and by more than that (labels, not the last bit of a picture).
        """
        db, centred = self.sqnr.db, self.sqnr.centred_db
        if self.broken:
            return [f"{self.broken} values are NaN or infinite"]
        if not self.sqnr.count or max(map(abs, self.reference)) <= NOTHING * max(peak, 1.0):
            return []
        flat = self.sqnr.centred_signal <= FLAT**2 * self.sqnr.signal
        if not flat and self.other[0] == self.other[1]:
            return [f"constant, {self.other[0] + 0.0:.3g}"]
        if self.equal is not None:
            lost = self.equal < 0.5 and min(db, centred) < LOST
            return [f"{self.equal:.0%} of the values are equal"] if lost else []
        reasons = [] if flat else self._dead()
        if (db if flat else min(db, centred)) < LOST:
            reasons.append(f"SQNR {db:.1f} dB" + ("" if flat else f", {centred:.1f} dB about its mean"))
        if self.correlation is not None and self.correlation < UNLIKE:
            reasons.append(f"correlation {self.correlation:.2f}")
        return reasons

    def _dead(self) -> list[str]:
        wide, left = (high - low for low, high in (self.reference, self.other))
        if left < DEAD * wide or self.deviations[1] < DEAD * self.deviations[0]:
            return [f"the range is dead: {left:.3g} wide, the float network's {wide:.3g}"]
        return []


class Sums:
    """A reference x beside y, over samples, each index of one axis by itself. Their size is that of the axis."""

    def __init__(self) -> None:
        self._sums: dict[str, Array] = {}
        self._peaks: dict[str, Array] = {}
        self._dense, self._integers = False, False

    def update(self, reference: NDArray[Any], other: NDArray[Any]) -> None:
        """Add one sample: two arrays of one shape, (indices, elements)."""
        x, y = np.asarray(reference, np.float64), np.asarray(other, np.float64)
        known = np.isfinite(x)
        broken = known & ~np.isfinite(y)
        known &= ~broken
        if not known.all():
            x, y = np.where(known, x, 0), np.where(known, y, 0)
        error = x - y
        count, x_sum, y_sum = known.sum(1), x.sum(1), y.sum(1)
        safe = np.maximum(count, 1)
        xx, yy, xy, ee = (np.einsum("ij,ij->i", a, b) for a, b in ((x, x), (y, y), (x, y), (error, error)))
        sums = {
            "count": count, "x": x_sum, "y": y_sum, "xx": xx, "yy": yy, "ee": ee,
            "x about": np.maximum(xx - x_sum**2 / safe, 0), "y about": np.maximum(yy - y_sum**2 / safe, 0),
            "xy about": xy - x_sum * y_sum / safe,
            "broken": broken.sum(1), "equal": (known & (error == 0)).sum(1),
            "neighbours": np.append(np.einsum("ij,ij->i", x[1:], x[:-1]), 0),
        }  # fmt: skip
        self._sums = {key: _longer(np.add, self._sums.get(key), value, 0.0) for key, value in sums.items()}
        for key, value in {"x": x, "-x": -x, "y": y, "-y": -y, "error": np.abs(error)}.items():
            highest = value.max(1, initial=-np.inf, where=known)
            self._peaks[key] = _longer(np.maximum, self._peaks.get(key), highest, -np.inf)
        self._dense |= x.shape[1] >= DENSE
        self._integers |= np.asarray(reference).dtype.kind in "iub"

    def likeness(self, part: slice = slice(None)) -> Likeness:
        """Of the indices of a part."""
        s = {key: float(value[part].sum()) for key, value in self._sums.items()}
        peaks = {key: float(value[part].max(initial=-np.inf)) for key, value in self._peaks.items()}
        count = s["count"]
        means = [s[key] / max(count, 1) for key in ("x", "y")]
        powers = [s[key] / max(count, 1) for key in ("xx", "yy")]
        deviations = [max(power - mean**2, 0) ** 0.5 for power, mean in zip(powers, means, strict=True)]
        correlation = None
        if self._dense and s["x about"] > FLAT**2 * s["xx"]:
            scale = (s["x about"] * s["y about"]) ** 0.5
            correlation = s["xy about"] / scale if scale else 0.0
        noise, largest = (np.inf, np.inf) if s["broken"] else (s["ee"], max(peaks["error"], 0.0))
        return Likeness(
            Sqnr(s["xx"], noise, largest, s["x"], int(count)),
            (-peaks["-x"], peaks["x"]),
            (-peaks["-y"], peaks["y"]),
            (deviations[0], deviations[1]),
            correlation,
            int(s["broken"]),
            s["equal"] / max(count, 1) if self._integers else None,
        )

    def apart(self, inseparable: Callable[[], NDArray[np.bool_]]) -> tuple[float, list[slice]]:
        """Neighbouring parts whose magnitudes lie ten times apart and more, four at most, and how far the farthest;
        none along places, where neighbours resemble each other. What is `inseparable` from its neighbour stays
        together."""
        power = self._sums["xx"] / np.maximum(self._sums["count"], 1)
        if self._integers or not power.any() or self._places():
            return 1.0, []
        alive = np.flatnonzero(power)
        # Zeros go with what stands before them.
        power = power[alive[np.maximum(np.searchsorted(alive, np.arange(len(power)), "right") - 1, 0)]]
        cuts = np.flatnonzero(np.abs(np.diff(np.log10(power))) >= 2 * np.log10(APART)) + 1
        if len(cuts):
            together = inseparable()
            cuts = cuts[~(together[cuts] & together[cuts - 1])]
        ends = [0, *map(int, cuts), len(power)]
        while len(ends) > 2:
            # By the median as well: of few peaks each quiet place lies far below the mean.
            levels = np.log10([(power[a:b].mean(), np.median(power[a:b])) for a, b in pairwise(ends)]) / 2
            steps = np.abs(np.diff(levels, axis=0)).min(1)
            if len(ends) - 1 <= PARTS and steps.min() >= np.log10(APART):
                return float(10 ** steps.max()), [slice(a, b) for a, b in pairwise(ends)]
            del ends[1 + int(steps.argmin())]
        return 1.0, []

    def _places(self) -> bool:
        """Whether the indices are places of a map: their neighbours resemble each other, as channels do not."""
        count, total, squares = (self._sums[key] for key in ("count", "x", "xx"))
        if len(count) < PICTURE:
            return False
        safe = np.maximum(count, 1)
        mean, variance = total / safe, np.maximum(squares / safe - (total / safe) ** 2, 0)
        joint = self._sums["neighbours"][:-1] / safe[:-1] - mean[:-1] * mean[1:]
        scale = np.sqrt(variance[:-1] * variance[1:])
        return bool(np.median(joint / np.where(scale > 0, scale, np.inf)) > ALIKE)


class Comparison:
    """One output beside the float network's, over samples: as a whole, and in parts of unlike magnitude.

    `channels` is the axis of its channels, counted from the front. With `whole` no parts are looked for.
    """

    def __init__(self, channels: int, whole: bool = False) -> None:
        self._channels, self._whole = channels, whole
        self._axes: dict[int, Sums] = {}

    def update(self, reference: NDArray[Any], other: NDArray[Any]) -> None:
        """Add one sample: two arrays of one shape, of any rank."""
        x, y = np.atleast_1d(reference), np.atleast_1d(other)
        self._channels = min(self._channels, x.ndim - 1)
        for axis, length in enumerate(x.shape):
            rest = x.size // max(length, 1)
            place = x.ndim > 3 and 1 == self._channels < axis  # (batch, channels, height, width)
            several = 1 < length <= LONGEST and rest >= SEVERAL
            if axis == self._channels or (several and not place and not self._whole):
                rows = (np.moveaxis(v, axis, 0).reshape(length, rest) for v in (x, y))
                self._axes.setdefault(axis, Sums()).update(*rows)

    def likeness(self, part: Part | None = None) -> Likeness:
        """Of the whole, or of a part."""
        return self._axes[part.axis].likeness(part.indices) if part else self._axes[self._channels].likeness()

    def parts(self, inseparable: Callable[[int], NDArray[np.bool_]]) -> list[Part]:
        """Along the axis on which they lie farthest apart. `inseparable` tells of each index of an axis whether it
        stays with those of its neighbours for which that is true as well."""
        splits = [(*sums.apart(partial(inseparable, axis)), axis) for axis, sums in self._axes.items()]
        _, slices, axis = max(splits, key=lambda split: split[0])
        return [Part(axis, piece) for piece in slices]


def reasons_of(name: str, comparison: Comparison) -> list[str]:
    """Why a whole output is lost, as a line that names it; empty where it is not."""
    reasons = comparison.likeness().reasons()
    return [f"{name}: {'; '.join(reasons)}"] if reasons else []


@dataclass(frozen=True)
class Part:
    """Indices of an axis of an output."""

    axis: int
    indices: slice

    def of(self, output: str) -> str:
        """As numpy spells it."""
        first, end = self.indices.start, self.indices.stop
        return f"{output}[{':, ' * self.axis}{first if end == first + 1 else f'{first}:{end}'}]"


def _longer(join: np.ufunc, known: Array | None, more: NDArray[Any], neutral: float) -> Array:
    """Joined element by element; what one does not reach is `neutral` there."""
    length = max(len(more), 0 if known is None else len(known))
    first, second = (
        np.pad(
            np.zeros(0) if values is None else values,
            (0, length - (0 if values is None else len(values))),
            constant_values=neutral,
        )
        for values in (known, np.asarray(more, np.float64))
    )
    joined: Array = join(first, second)
    return joined
