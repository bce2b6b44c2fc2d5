"""What each tensor costs at each width, measured one at a time, and the recipe that spends a budget where it counts."""

from __future__ import annotations

import csv
import glob
import math
import os
from collections import Counter
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, replace
from itertools import pairwise
from typing import TYPE_CHECKING, Any, Literal

from leadline.affine import quantize as to_codes
from leadline.cache import Cache, digest
from leadline.data import Data, Samples
from leadline.display import table
from leadline.files import replacing
from leadline.graph import Graph
from leadline.preparation import captured, prepare
from leadline.progress import Progress
from leadline.recipe import ACTIVATIONS, WEIGHTS, Calibrate, Override, Recipe
from leadline.steps import State, apply
from leadline.steps.gate import output_error
from leadline.targets import Target
from leadline.types import Scheme, refuse

if TYPE_CHECKING:
    from torch import nn

Kind = Literal["weights", "activations"]

CANDIDATES: Mapping[Kind, Sequence[int]] = {"weights": (4, 8), "activations": (8, 16)}

JUDGED = 4
"""Held-out samples that an error is measured on."""


@dataclass(frozen=True)
class Cost:
    """One tensor at one width, everything else in float.

    Attributes
    ----------
    kind : {"weights", "activations"}
    name : str
        As an override's pattern takes it: a layer's name, or a tensor's.
    bits : int
    error : float
        Noise over signal at the network's outputs.
    size : float
        Bytes: of the weight in the file, or of the activation each time that it is written.
    """

    kind: Kind
    name: str
    bits: int
    error: float
    size: float


@dataclass(frozen=True)
class Sensitivity:
    """What `sensitivity` measured, and the recipe that it belongs to."""

    recipe: Recipe
    costs: tuple[Cost, ...]

    def of(self, kind: Kind) -> dict[str, list[Cost]]:
        """For each tensor its widths, narrow ones first."""
        found: dict[str, list[Cost]] = {}
        for cost in sorted((cost for cost in self.costs if cost.kind == kind), key=lambda cost: cost.bits):
            found.setdefault(cost.name, []).append(cost)
        return found

    def to_csv(self, path: str | os.PathLike[str]) -> None:
        """kind, name, bits, error, size; a line for each."""
        with replacing(path) as temporary, temporary.open("w", newline="", encoding="utf-8") as file:
            writer = csv.writer(file, lineterminator="\n")
            writer.writerow(("kind", "name", "bits", "error", "size"))
            writer.writerows((cost.kind, cost.name, cost.bits, cost.error, cost.size) for cost in self.costs)

    def _repr_html_(self) -> str:
        worst = sorted(self.costs, key=lambda cost: -cost.error)
        rows = [(cost.kind, cost.name, cost.bits, cost.error, cost.size) for cost in worst]
        return table(("kind", "name", "bits", "error", "bytes"), rows, self.recipe.name)


def sensitivity(
    network: Graph | str | os.PathLike[str] | nn.Module,
    data: Any,
    candidates: Mapping[Kind, Sequence[int]] = CANDIDATES,
    *,
    recipe: Recipe | str | os.PathLike[str] = "w8a8",
    target: str | Target = "onnxruntime",
    held_out: Samples | None = None,
    threads: int | None = None,
    progress: Progress | None = None,
    cache: Cache | None = None,
) -> Sensitivity:
    """The error that each weight and each activation causes at each width, alone quantised.

    The network is first folded, equalised and rotated as the recipe says. Weights are rounded to nearest, ranges are
    those of least squared error unless the recipe names another observer than "best".

    Parameters
    ----------
    network, data, target, held_out, threads, progress, cache
        As in ``leadline.quantize``. With a `cache`, an interrupted analysis goes on where it was.
    candidates : dict of "weights" and "activations" to bits
        Leave one out to leave these as the recipe has them.
    recipe : Recipe, name or path
        Its overrides to float are respected, those to other widths are not.

    Raises
    ------
    InputError
        Unknown kinds, widths out of range, a recipe that does not calibrate; and whatever ``leadline.quantize`` finds.
    """
    plain = _plain(Recipe.load(recipe))
    for kind, widths in candidates.items():
        if kind not in ("weights", "activations"):
            raise refuse("sensitivity", "candidates must be for weights and activations", repr(kind))
        if not widths or not all(isinstance(bits, int) and 2 <= bits <= 16 for bits in widths):
            raise refuse("sensitivity", f"{kind} must have widths from 2 to 16 bits", widths)
    network, data = captured(network, Data.of(data).defaulting(plain.data))
    state, _ = prepare(
        network, plain, data, target=target, held_out=held_out, threads=threads, progress=progress, cache=cache
    )
    calibration = next((step for step in plain.steps if isinstance(step, Calibrate)), None)
    if calibration is None:
        raise refuse("sensitivity", "the recipe must calibrate", plain.name)
    for step in plain.steps[: plain.steps.index(calibration)]:
        apply(step, state)
    observer = "mse" if calibration.activations == "best" else calibration.activations
    calibration = replace(calibration, activations=observer, widen=0.0)
    costs: list[Cost] = []
    for kind, widths in candidates.items():
        for bits in sorted(set(widths)):
            costs += _costs(state, calibration, kind, bits)
    return Sensitivity(plain, tuple(costs))


def _plain(recipe: Recipe) -> Recipe:
    """Without overrides to other widths, which would hide what is asked for."""
    kept = [
        replace(
            override,
            weights="float" if override.weights == "float" else None,
            activations="float" if override.activations == "float" else None,
        )
        for override in recipe.overrides
        if "float" in (override.weights, override.activations)
    ]
    return recipe.changed(
        overrides=tuple(kept), weights=recipe.weights or WEIGHTS, activations=recipe.activations or ACTIVATIONS
    )


def _at(recipe: Recipe, kind: Kind, bits: int) -> Recipe:
    scheme: Scheme = getattr(recipe, kind)
    return recipe.changed(**{kind: replace(scheme, bits=bits)})


def _costs(state: State, calibration: Calibrate, kind: Kind, bits: int) -> list[Cost]:
    at_width = replace(state.setup, recipe=_at(state.recipe, kind, bits))
    trial = state.fork(setup=at_width, overrides=(), graph=state.graph.copy(), grids={}, codes={}, histograms={})
    apply(calibration, trial)
    assert trial.placement is not None
    groups: dict[str, list[str]] = {}
    if kind == "weights":
        for layer, _ in trial.placement.layers:
            if not any(layer.weight in names for names in groups.values()):
                groups[layer.name] = [layer.weight]
    else:
        for tensor, root in trial.placement.root.items():
            groups.setdefault(root, []).append(tensor)
    costs = []
    for name in state.setup.progress.over(groups, f"{kind} at {bits} bits", len(groups)):
        grids = {tensor: trial.grids[tensor] for tensor in groups[name] if tensor in trial.grids}
        if not grids:
            continue
        codes = {tensor: to_codes(trial.graph.weights[tensor], grids[tensor]) for tensor in grids if kind == "weights"}
        alone = trial.fork(grids=grids, codes=codes)
        width = max(grid.scheme.bits for grid in grids.values())
        size = math.prod(trial.graph.shape(groups[name][0])) * width / 8
        costs.append(Cost(kind, name, bits, _error(alone), size))
    return costs


def _error(state: State) -> float:
    def compute() -> float:
        return output_error(state, JUDGED)

    cache, held_out = state.setup.cache, state.setup.held_out
    if cache is None:
        return compute()
    return cache.recall(digest("alone", state.graph, held_out, state.grids, state.codes), compute)


def mixed_precision(
    found: Sensitivity,
    *,
    size: float | None = None,
    traffic: float | None = None,
    sqnr: float | None = None,
    name: str = "mixed",
) -> Recipe:
    """A recipe in which each tensor has the width that a budget is best spent on.

    Errors of tensors quantised alone are taken to add up. Each tensor's widths are cut down to their lower convex hull;
    all begin narrow, and the step that takes away most error for each byte is taken next, as long as the budget allows
    (Sinha and Zoltners, "The multiple-choice knapsack problem", 1979: within one step of the optimum).

    Parameters
    ----------
    found : Sensitivity
    size : float, optional
        Bytes that the weights may take; up to 1: a share of what they take at their widest.
    traffic : float, optional
        Bytes that the activations may take, likewise.
    sqnr : float, optional
        In dB: as narrow as the predicted error allows. Weights and activations then count by the share of their widest.
        In place of the others.
    name : str
        Of the recipe.

    Returns
    -------
    Recipe
        The analysed one with an override for each tensor that is not of the most usual width. What has no budget is as
        wide as it gains from. ``description`` holds the predicted figures.

    Raises
    ------
    InputError
        No budget, or one that even the narrowest or the widest choice misses.
    """
    if (sqnr is None) == (size is None and traffic is None):
        raise refuse("mixed_precision", "there must be a budget: size, traffic, or both, or sqnr", "none or all")
    chosen: dict[Kind, dict[str, Cost]] = {}
    hulls = {kind: {key: _hull(costs) for key, costs in found.of(kind).items()} for kind in _kinds(found)}
    widest = {kind: sum(max(c.size for c in costs) for costs in found.of(kind).values()) for kind in hulls}
    if sqnr is not None:
        chosen = _by_error(hulls, widest, 10 ** (-sqnr / 10), sqnr)
    else:
        for kind, budget in (("weights", size), ("activations", traffic)):
            if budget is not None and kind not in hulls:
                raise refuse("mixed_precision", f"a budget for {kind} needs candidates for them", budget)
        for kind, own in hulls.items():
            budget = size if kind == "weights" else traffic
            limit = math.inf if budget is None else budget * widest[kind] if budget <= 1 else budget
            chosen[kind] = _by_size(own, limit, kind)
    return _recipe(found.recipe, chosen, name)


def _kinds(found: Sensitivity) -> list[Kind]:
    kinds: tuple[Kind, ...] = ("weights", "activations")
    return [kind for kind in kinds if found.of(kind)]


def _hull(costs: Iterable[Cost]) -> list[Cost]:
    """Widths on the lower convex hull of error over size, narrow ones first."""
    hull: list[Cost] = []
    for cost in sorted(costs, key=lambda cost: (cost.size, cost.error)):
        if hull and cost.error >= hull[-1].error:
            continue
        while len(hull) > 1 and _gain(hull[-2], hull[-1]) <= _gain(hull[-1], cost):
            hull.pop()
        hull.append(cost)
    return hull


def _gain(narrow: Cost, wide: Cost) -> float:
    """Error that a byte takes away."""
    return (narrow.error - wide.error) / max(wide.size - narrow.size, 1e-9)


def _steps(hulls: Mapping[str, list[Cost]]) -> list[tuple[float, str, int]]:
    """(error that a byte takes away, tensor, place in its hull), the best first; a tensor's own in order."""
    steps = [(_gain(a, b), key, i + 1) for key, hull in hulls.items() for i, (a, b) in enumerate(pairwise(hull))]
    return sorted(steps, key=lambda step: (-step[0], step[1], step[2]))


def _by_size(hulls: Mapping[str, list[Cost]], limit: float, kind: Kind) -> dict[str, Cost]:
    chosen = {key: hull[0] for key, hull in hulls.items()}
    spent = sum(cost.size for cost in chosen.values())
    if spent > limit:
        rule = f"the budget for {kind} must hold their narrowest widths, {spent:,.0f} bytes"
        raise refuse("mixed_precision", rule, f"{limit:,.0f} bytes")
    for _, key, place in _steps(hulls):
        wider = hulls[key][place]
        if hulls[key].index(chosen[key]) == place - 1 and spent + wider.size - chosen[key].size <= limit:
            spent += wider.size - chosen[key].size
            chosen[key] = wider
    return chosen


def _by_error(
    hulls: Mapping[Kind, Mapping[str, list[Cost]]], widest: Mapping[Kind, float], limit: float, sqnr: float
) -> dict[Kind, dict[str, Cost]]:
    chosen: dict[Kind, dict[str, Cost]] = {
        kind: {key: hull[0] for key, hull in own.items()} for kind, own in hulls.items()
    }
    steps = [(gain * widest[kind], kind, key, place) for kind, own in hulls.items() for gain, key, place in _steps(own)]
    error = sum(cost.error for own in chosen.values() for cost in own.values())
    for _, kind, key, place in sorted(steps, key=lambda step: (-step[0], step[1:])):
        if error <= limit:
            break
        error += hulls[kind][key][place].error - chosen[kind][key].error
        chosen[kind][key] = hulls[kind][key][place]
    if error > limit:
        rule = f"the widest choice must reach the error; it is predicted to reach {-10 * math.log10(error):.1f} dB"
        raise refuse("mixed_precision", rule, f"{sqnr:g} dB")
    return chosen


def _recipe(recipe: Recipe, chosen: Mapping[Kind, Mapping[str, Cost]], name: str) -> Recipe:
    overrides: list[Override] = []
    notes = []
    for kind, own in chosen.items():
        widths = Counter(cost.bits for cost in own.values())
        usual = widths.most_common(1)[0][0]
        recipe = _at(recipe, kind, usual)
        for key, cost in own.items():
            if cost.bits != usual:
                change: dict[str, Any] = {kind: {"bits": cost.bits}}
                overrides.append(Override(glob.escape(key), **change))
        counts = ", ".join(f"{count} at {bits}" for bits, count in sorted(widths.items()))
        notes.append(f"{kind} {counts} bits, {sum(cost.size for cost in own.values()) / 1e3:,.0f} kB")
    error = sum(cost.error for own in chosen.values() for cost in own.values())
    predicted = f"{-10 * math.log10(max(error, 1e-20)):.1f} dB predicted"
    description = f"Mixed precision from {recipe.name}: {'; '.join(notes)}; {predicted}."
    return recipe.changed(name=name, description=description, overrides=(*overrides, *recipe.overrides))
