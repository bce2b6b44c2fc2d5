"""What verification adds up: outputs, their parts and inner tensors beside the float network's, over samples."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field, replace
from typing import Any

import numpy as np
from numpy.typing import NDArray

from leadline.agreement import DeviceAgreement
from leadline.collapse import FLAT, LOST, Comparison, Likeness
from leadline.graph import Graph
from leadline.graph.masks import Masks
from leadline.graph.operators import by_channel, channel_axes
from leadline.graph.picks import picks
from leadline.graph.trace import bounded
from leadline.graph.trace import origin as made_by
from leadline.sqnr import Sqnr
from leadline.types import Grid, refuse

BROKEN = 10.0
"""dB: with a tenth of its power in error, a tensor no longer carries its signal."""

SAME = 0.5
"""Share of equal picks below which what is picked is lost."""

PICTURES = 4
"""Samples whose dense outputs are kept for the report."""


@dataclass(frozen=True)
class PartScore:
    """Neighbouring channels of an output whose magnitude is another than the rest's, named as numpy spells them:
    ``output0[:, 4:84]``. Figures as those of an output; `share` is that of its elements."""

    name: str
    sqnr: float
    centred: float
    share: float
    collapse: list[str] = field(default_factory=list)


@dataclass(frozen=True)
class OutputScore:
    """One output over all samples.

    Attributes
    ----------
    sqnr, device : float
        dB: the simulation, and the target (onnxruntime's fused kernels, Hexagon's emulation, LiteRT, ...; None where it
        does not take the artefact), against the float network.
    centred : float
        The simulation's SQNR with the output's mean left out: far below `sqnr` where values lie close together far
        from zero.
    worst : float
        The lowest SQNR of a single sample.
    largest : float
        The largest absolute error.
    absolute, relative : float
        Mean absolute error of the target, or of the simulation where there is none; and that over the mean magnitude.
    agreement : DeviceAgreement
        Of the target with the simulation.
    correlation : float or None
        Pearson's, of maps, each about its own mean.
    equal : float or None
        Share of equal elements, of integers and booleans.
    parts : list of PartScore
        Where magnitudes lie ten times apart: in the whole output the large values hide what becomes of the small ones.
    collapse : list of str
        Why the whole output is lost; see `leadline.collapse`. Empty where it is not.
    picked, placed : float or None
        Where a TopK has picked its rows: the share of the float network's picks that the artefact has made as well,
        which all other figures are of, in one order; and SQNR in dB place by place, as it would come out otherwise.
    """

    name: str
    sqnr: float
    centred: float
    worst: float
    largest: float
    device: float | None
    agreement: DeviceAgreement
    absolute: float = 0.0
    relative: float = 0.0
    correlation: float | None = None
    equal: float | None = None
    parts: list[PartScore] = field(default_factory=list)
    collapse: list[str] = field(default_factory=list)
    picked: float | None = None
    placed: float | None = None

    @property
    def lost(self) -> float:
        """Share of its elements that are lost."""
        return 1.0 if self.collapse else sum(part.share for part in self.parts if part.collapse)

    @property
    def collapsed(self) -> list[str]:
        """What of it is lost, and why: a line for the output and for each part."""
        reasons = {self.name: self.collapse} | {part.name: part.collapse for part in self.parts}
        return [f"{name}: {'; '.join(causes)}" for name, causes in reasons.items() if causes]

    @property
    def order(self) -> str:
        """What to know of the order of picked rows, in words; empty where none are picked."""
        if self.picked is None or self.placed is None:
            return ""
        share = f"{self.picked:.0%} of the rows that are picked are those of the float network"
        return f"{share}, and compared in one order; place by place {self.placed:.1f} dB"

    def to_dict(self) -> dict[str, Any]:
        """Plain values."""
        parts = [vars(part) for part in self.parts]
        return vars(self) | {"agreement": vars(self.agreement), "parts": parts, "order": self.order}


@dataclass(frozen=True)
class TensorScore:
    """One activation: SQNR in dB over all samples, and with its mean left out. `rescaled` tells that each channel was
    first brought to the float network's scale, because folding or equalisation had moved it. `order` counts tensors
    as they are computed. `lost` is the share of channels below 5 dB."""

    name: str
    op: str
    sqnr: float
    centred: float
    rescaled: bool = False
    order: int = 0
    lost: float = 0.0

    @property
    def broken(self) -> bool:
        """Whether it no longer carries its signal."""
        return min(self.sqnr, self.centred) < BROKEN


@dataclass(frozen=True)
class Dense:
    """One channel of one dense output of one sample: (height, width) float32 arrays."""

    output: str
    sample: str
    reference: NDArray[np.float32]
    artefact: NDArray[np.float32]


class Run:
    """Sums over samples; memory does not grow with their number.

    `outputs` and `inner` are tensors of `graph`. With `judged` the target's outputs may be lost as well as the
    simulation's: where it says what a device does.
    """

    def __init__(self, graph: Graph, outputs: list[str], inner: list[str], judged: str = "") -> None:
        self._graph, self._inner, self._judged = graph, inner, judged
        self._ops = {name: node.op_type for node in graph.nodes for name in node.outputs}
        self._order = {name: position for position, name in enumerate(self._ops)}
        self.axes = channel_axes(graph)
        self._masked = Masks(graph).bounded
        self._channels: dict[str, NDArray[np.float64]] = {}
        producers = {name: node for node in graph.nodes for name in node.outputs}
        sources = {name: made_by(graph, producers, name)[1] for name in outputs}
        self._picked = {name for name, node in sources.items() if node is not None and node.op_type == "TopK"}
        self.places = picks(graph)
        self._shares: dict[str, list[float]] = {name: [] for name in self.places}
        self._placed = {name: Sqnr() for name in self.places}
        self._simulated = {name: Comparison(self.axes[name]) for name in outputs}
        self._device = {name: Comparison(self.axes[name], whole=not judged) for name in outputs}
        self._worst = dict.fromkeys(outputs, np.inf)
        self._agreement = {name: DeviceAgreement() for name in outputs}
        self._sums = {name: np.zeros(3) for name in outputs}  # difference, magnitude, elements
        self.pictures: list[Dense] = []
        self._seen = 0

    def update(
        self,
        label: str,
        wanted: Mapping[str, NDArray[Any]],
        got: Mapping[str, NDArray[Any]],
        device: Mapping[str, NDArray[Any]],
        grids: Mapping[str, Grid],
    ) -> None:
        """Add one sample; inner tensors that are not among its arrays have been added by themselves (`inner`)."""
        for name, total in self._simulated.items():
            if got[name].shape != wanted[name].shape:
                rule = f"the artefact's output {name!r} must have the shape {wanted[name].shape}"
                raise refuse("verify", rule, got[name].shape)
            exact, rough, target = wanted[name], got[name], device.get(name)
            if name in self._picked:  # which elements these are, whatever their order
                exact, rough = np.sort(exact), np.sort(rough)
            elif name in self.places:
                exact, rough, target = self._in_order(name, wanted, got, target)
            total.update(exact, rough)
            self._worst[name] = min(self._worst[name], Sqnr().update(exact, rough).db)
            if target is not None:
                known = name in grids and grids[name].scheme.granularity != "token"
                step = float(grids[name].scale.min()) if known else _spread(wanted[name]) / 256
                self._device[name].update(wanted[name] if name in self._picked else exact, target)
                self._agreement[name] = self._agreement[name].updated(got[name], device[name], step)
            self._sums[name] += _differences(exact, rough if target is None else target)
            if self._seen < PICTURES and (planes := _planes(wanted[name], got[name])):
                self.pictures.append(Dense(name, label, *planes))
        for name in self._inner:
            if name in wanted and name in got:
                self.inner(name, wanted[name], got[name], grids.get(name))
        self._seen += 1

    def inner(self, name: str, wanted: NDArray[Any], got: NDArray[Any], grid: Grid | None) -> None:
        """Add one sample of an inner tensor."""
        if wanted.dtype.kind != "f":  # of places nothing but which they are counts
            return
        if name in self._masked and grid is not None and grid.scheme.granularity == "tensor":
            wanted = np.clip(wanted, grid.lo, grid.hi)  # how far masks lie beyond it nobody sees
        self._channels[name] = self._channels.get(name, 0) + channel_sums(wanted, got, self.axes[name])

    def _in_order(
        self,
        name: str,
        wanted: Mapping[str, NDArray[Any]],
        got: Mapping[str, NDArray[Any]],
        target: NDArray[Any] | None,
    ) -> tuple[NDArray[Any], NDArray[Any], NDArray[Any] | None]:
        """The rows of an output that both have picked, in one order; all of them where none are known to be the same.
        What the target gives is in the artefact's order."""
        pick, exact, rough = self.places[name], wanted[name], got[name]
        if pick.places not in wanted or pick.places not in got:
            return exact, rough, target
        places = wanted[pick.places]
        mine, theirs, share = pick.kept(places, got[pick.places])
        self._shares[name].append(share)
        self._placed[name].update(exact, rough)
        rows = [pick.rows(array, places) for array in (exact, rough, target) if array is not None]
        if not share or any(array is None for array in rows):
            return exact, rough, target
        ours, *others = [array[mine if i == 0 else theirs] for i, array in enumerate(rows) if array is not None]
        return ours, others[0], others[1] if others[1:] else None

    def scores(self) -> list[OutputScore]:
        """Of the outputs, in their order."""
        return [self._score(name) for name in self._simulated]

    def _score(self, name: str) -> OutputScore:
        simulated, device, agreement = self._simulated[name], self._device[name], self._agreement[name]
        judged = [("", simulated)] + [(f"on {self._judged}: ", device)] * bool(self._judged and agreement.count)
        whole = simulated.likeness()
        peak = max(map(abs, whole.reference))

        def reasons(part: Any = None) -> list[str]:
            return [
                prefix + reason
                for prefix, comparison in judged
                for reason in comparison.likeness(part).reasons(1.0 if part is None else peak)
            ]

        same = float(np.mean(self._shares[name])) if self._shares.get(name) else None
        few = [f"{same:.0%} of what is picked is the same"] if same is not None and same < SAME else []
        difference, magnitude, count = map(float, self._sums[name])
        parts = []
        for part in simulated.parts(lambda axis: bounded(self._graph, name, axis)):
            likeness = simulated.likeness(part)
            share = likeness.sqnr.count / max(whole.sqnr.count, 1)
            parts.append(PartScore(part.of(name), likeness.sqnr.db, likeness.sqnr.centred_db, share, reasons(part)))
        return OutputScore(
            name,
            whole.sqnr.db,
            whole.sqnr.centred_db,
            float(self._worst[name]),
            whole.sqnr.largest,
            device.likeness().sqnr.db if agreement.count else None,
            agreement,
            difference / max(count, 1.0),
            difference / (magnitude or 1.0),
            whole.correlation,
            whole.equal,
            parts,
            reasons() + few,
            same,
            None if same is None else self._placed[name].db,
        )

    def tensor_scores(self) -> list[TensorScore]:
        """Of all that were compared, worst first."""
        scores = [tensor_score(name, self._ops[name], sums) for name, sums in self._channels.items()]
        for name, comparison in self._simulated.items():
            likeness = comparison.likeness()
            scores.append(TensorScore(name, self._ops.get(name, ""), likeness.sqnr.db, _about_mean(likeness)))
        in_order = sorted(scores, key=lambda score: self._order.get(score.name, -1))
        numbered = [replace(score, order=position) for position, score in enumerate(in_order)]
        return sorted(numbered, key=lambda score: (score.sqnr, score.name))


def _differences(x: NDArray[Any], y: NDArray[Any]) -> NDArray[np.float64]:
    """Sum of |x - y|, of |x|, and the number of elements, where both are finite."""
    known = np.isfinite(x) & np.isfinite(y)
    a, b = x[known].astype(np.float64), y[known].astype(np.float64)
    return np.array([np.abs(a - b).sum(), np.abs(a).sum(), a.size], np.float64)


def channel_sums(x: NDArray[Any], y: NDArray[Any], axis: int) -> NDArray[np.float64]:
    """Rows: sum of x*x, of x*y, of y*y, of (x-y)^2, of x, and the number of elements; columns: channels."""
    a, b = (by_channel(v, axis).astype(np.float64) for v in (x, y))
    known = np.isfinite(a)
    lost = known & ~np.isfinite(b)
    known &= ~lost
    if not known.all():  # nothing can be said of what is infinite in float; elsewhere it is an infinite error
        a, b = np.where(known, a, 0), np.where(known, b, 0)
    error = np.where(lost.any(1), np.inf, np.square(a - b).sum(1))
    return np.stack([(a * a).sum(1), (a * b).sum(1), (b * b).sum(1), error, a.sum(1), known.sum(1)])


def tensor_score(name: str, op: str, sums: NDArray[np.float64]) -> TensorScore:
    """Plain SQNR, unless a factor for each channel explains the difference: then with that factor removed.

    Folding and equalisation leave such factors beside the original network; a folded LayerScale may be negative.
    """
    xx, xy, yy, error, x, count = sums
    total = float(xx.sum()), float(x.sum()), int(count.sum())
    plain = Sqnr(total[0], float(error.sum()), 0.0, *total[1:])
    alive = yy > 0
    # With y brought to x's scale by f = xy / yy, the remaining error is xx - xy^2 / yy.
    rest = np.where(alive, xx - np.divide(xy**2, yy, out=np.zeros_like(yy), where=alive), xx)
    scaled = Sqnr(total[0], float(np.maximum(rest, 0).sum()), 0.0, *total[1:])
    moved = scaled.db > plain.db + 6 and plain.db < 15 and bool(np.isfinite(error).all())
    best = scaled if moved else plain
    lost = float(np.mean((rest if moved else error)[xx > 0] > 10 ** (-LOST / 10) * xx[xx > 0])) if xx.any() else 0.0
    return TensorScore(name, op, best.db, best.db if _is_flat(best) else best.centred_db, moved, lost=lost)


def origin(graph: Graph, scores: Mapping[str, TensorScore], outputs: list[OutputScore]) -> str | None:
    """Upstream from the outputs that are lost or broken, as long as tensors are broken: what is computed first.

    An output that is lost in part comes of tensors that have lost as many of their channels, too; half of it will do.
    """
    sources = {name: node.inputs for node in graph.nodes for name in node.outputs}
    broken = {output.name for output in outputs if output.lost or scores[output.name].broken}
    partly = min((output.lost for output in outputs if output.lost and not scores[output.name].broken), default=2.0) / 2
    open_, seen = list(broken), set(broken)
    while open_:
        for name in sources.get(open_.pop(), ()):
            # Tensors that were not compared (a reshape's) pass the search on.
            if name not in seen and (name not in scores or scores[name].broken or scores[name].lost >= partly):
                open_.append(name)
                broken |= {name} & set(scores)
            seen.add(name)
    return next((name for node in graph.nodes for name in node.outputs if name in broken), None)


def _about_mean(likeness: Likeness) -> float:
    return likeness.sqnr.db if _is_flat(likeness.sqnr) else likeness.sqnr.centred_db


def _is_flat(score: Sqnr) -> bool:
    return score.centred_signal <= FLAT**2 * score.signal


def _spread(x: NDArray[Any]) -> float:
    known = x[np.isfinite(x)]
    return float(np.std(known, dtype=np.float64)) if known.size else 0.0


def _planes(x: NDArray[Any], y: NDArray[Any]) -> tuple[NDArray[np.float32], NDArray[np.float32]] | None:
    """The first channel of a dense output; None where the output is no picture."""
    if x.ndim < 3 or min(x.shape[-2:]) < 8 or not x.size:
        return None
    first = (0,) * (x.ndim - 2)
    with np.errstate(over="ignore"):  # doubles may not fit
        return x[first].astype(np.float32), y[first].astype(np.float32)
