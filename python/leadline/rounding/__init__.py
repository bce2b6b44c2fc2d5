"""Rounding weights against the Gram matrix of their inputs: AdaRound, GPTQ, coordinate descent, and the best of them.

Every solver minimises (q - w) G (q - w)^T for each row w of a weight, with G = E[x x^T] over the layer's inputs: the
squared error of the layer's output, without samples in the loop. Rows are independent and run in parallel; results do
not depend on the number of threads.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from typing import Any

import numpy as np
from numpy.typing import NDArray

from leadline._native import thread_count
from leadline.affine import quantize
from leadline.rounding.damping import DAMPINGS, best_damping, probed_rows
from leadline.rounding.lattice import PATHS, k_best
from leadline.rounding.problem import GPTQ_DAMPING, SWEEPS, Clipped, Codes, Doubles, Problem
from leadline.rounding.soft import adaround
from leadline.types import Grid, Option, refuse

__all__ = [
    "METHODS",
    "Clipped",
    "Method",
    "adaround",
    "coupled_error",
    "descend",
    "gptq",
    "k_best",
    "layer_error",
    "refit",
    "round_best",
]

BRIEF = 8
"""Sweeps behind GPTQ: what later ones move gains nothing on samples that were not seen."""


def layer_error(
    weight: Any, gram: Any, grid: Grid, codes: Any, *, transposed: bool = False, threads: int | None = None
) -> Doubles:
    """The error of each row, (q - w) G (q - w)^T: float64 (rows,). Parameters as in `descend`."""
    problem = Problem(weight, gram, grid, transposed, "layer_error")
    count = thread_count(threads, "layer_error")
    return problem.error(problem.start(codes, threads), count)


def descend(
    weight: Any,
    gram: Any,
    grid: Grid,
    codes: Any = None,
    *,
    sweeps: int = SWEEPS,
    neighbours: bool = False,
    fisher: Any = None,
    transposed: bool = False,
    threads: int | None = None,
) -> Codes:
    """Cyclic coordinate descent: each code takes the value that is best with all others fixed, until none changes.

    Parameters
    ----------
    weight : float32 (out, in), (out, in / groups, height, width), or transposed (in, out, height, width)
        numpy or any DLPack CPU tensor.
    gram : (features, features) or (groups, features, features)
        E[x x^T]; features run as in a row of the weight. For a transposed convolution: of its input channels.
    grid : Grid
        Per tensor, per output channel, or in blocks along axis 1 of a linear weight.
    codes : integer array of the weight's shape, optional
        Where to start. Default: the nearest ones.
    sweeps : int
        At most; a row stops when a sweep changes nothing.
    neighbours : bool
        Only the two codes beside each weight, as AdaRound chooses among.
    fisher : (rows, rows), optional
        F = E[g g^T] over the gradients g of a loss by the layer's outputs, as ``Gram(rows).update(gradients)`` gives
        it: then tr(F D G D^T) falls, the loss to second order (K-FAC; Martens and Grosse, 2015), not each row's error.
        What F has off its diagonal lets outputs make up for one another. One thread; a layer of one group.
    transposed : bool
        The weight is a transposed convolution's, with stride equal to its kernel.
    threads : int or None

    Returns
    -------
    Codes of the weight's shape and of dtype `grid.scheme.dtype`. No row's error is above that of the start.

    Raises
    ------
    InputError : weight, gram, grid or codes do not fit each other, or hold NaN or infinity.
    """
    problem = Problem(weight, gram, grid, transposed, "descend")
    count = thread_count(threads, "descend")
    start = problem.start(codes, threads)
    if fisher is None:
        descended = start.copy()
        problem.descend(descended, count, sweeps, neighbours)
        # Products are float32 on the way: a row that they misled keeps its start.
        return problem.finish(problem.best_rows([descended, start], count))
    factor, coupled = problem.factor(fisher), start.copy()
    problem.native.descend_coupled(coupled, factor, sweeps, neighbours)
    better = problem.coupled_error(coupled, factor) <= problem.coupled_error(start, factor)
    return problem.finish(coupled if better else start)


def coupled_error(weight: Any, gram: Any, grid: Grid, codes: Any, fisher: Any, *, transposed: bool = False) -> float:
    """tr(F D G D^T) with D = q - w, what `descend` lowers with a `fisher`. Parameters as there; of one group."""
    problem = Problem(weight, gram, grid, transposed, "coupled_error")
    return problem.coupled_error(problem.start(codes, None), problem.factor(fisher))


def gptq(
    weight: Any,
    gram: Any,
    grid: Grid,
    *,
    damping: float = GPTQ_DAMPING,
    ordered: bool = True,
    transposed: bool = False,
    threads: int | None = None,
) -> Codes:
    """GPTQ (Frantar et al., 2022): columns are rounded in turn, and those left make up for each one's error.

    `damping` times the Gram's mean diagonal is added to it, ten times as much until it is positive definite.
    `ordered`: columns of the largest diagonal first. Other parameters, result and errors as in `descend`.
    """
    problem = Problem(weight, gram, grid, transposed, "gptq")
    if not (math.isfinite(damping) and damping >= 0):
        raise refuse("gptq", "damping must be a finite number of at least 0", damping)
    return problem.finish(problem.gptq(thread_count(threads, "gptq"), damping, ordered))


def refit(weight: Any, gram: Any, grid: Grid, codes: Any, *, threads: int | None = None) -> Grid:
    """The scales that are best for given codes, in the least-squares sense: s = k G w^T / k G k^T with k = code - zero
    point, for grids per output channel (axis 0). A row keeps its scale where that does not lower its error.

    Returns a Grid with the same zero points. Raises InputError for other granularities.
    """
    if grid.scheme.granularity != "axis":
        raise refuse("refit", "the grid must be per output channel", grid.scheme.granularity)
    problem = Problem(weight, gram, grid, False, "refit")
    thread_count(threads, "refit")
    rows = problem.start(codes, threads)
    steps = (rows - problem.zero_point).astype(np.float64)
    moved = (steps.reshape(problem.groups, -1, steps.shape[1]) @ problem.gram).reshape(steps.shape)
    top, bottom = (moved * problem.weight).sum(1), (moved * steps).sum(1)
    good = (bottom > 0) & (top > 0)
    scale = problem.scale[:, 0]
    best = np.where(good, top / np.where(good, bottom, 1), scale).astype(np.float32)
    best = np.maximum(best, np.finfo(np.float32).tiny)
    # The error of a row is s^2 k G k^T - 2 s k G w^T + w G w^T.
    change = (best.astype(np.float64) - scale) * (bottom * (best.astype(np.float64) + scale) - 2 * top)
    return Grid(np.where(change < 0, best, scale).reshape(grid.scale.shape), grid.zero_point, grid.scheme)


def round_best(
    weight: Any,
    gram: Any,
    grid: Grid,
    *,
    held_out: Any = None,
    transposed: bool = False,
    threads: int | None = None,
) -> tuple[Codes, str]:
    """The portfolio: nearest rounding, and GPTQ followed by descent on the Gram with several dampings; what is lowest
    on `held_out` wins.

    A solver that fits the samples it saw too well loses on others: damping holds it back, and how much of it is best
    differs from layer to layer by factors. At most 192 rows of each group decide for all; rows agree about it.

    Parameters
    ----------
    held_out : like `gram`, optional
        Of inputs that `gram` did not see. Default: `gram` itself, with the smallest damping alone.

    Returns
    -------
    Codes as `descend` gives them, and the name of the method. Other parameters and errors as there.
    """
    problem = Problem(weight, gram, grid, transposed, "round_best")
    judge = problem if held_out is None else Problem(weight, held_out, grid, transposed, "round_best")
    count = thread_count(threads, "round_best")

    def solve(part: Problem, damping: float) -> NDArray[np.int32]:
        codes = part.gptq(count, damping)
        part.descend(codes, count, BRIEF, damping=damping)
        return codes

    rows = probed_rows(len(problem.weight), problem.groups)
    few, judge_few = problem.part(rows), judge.part(rows)
    nearest = problem.start(None, threads)

    def error(codes: NDArray[np.int32]) -> float:
        return float(judge_few.error(codes, count).sum())

    dampings = DAMPINGS[:1] if held_out is None else DAMPINGS
    damping, lowest = best_damping(lambda d: error(solve(few, d)), dampings)
    if lowest < error(nearest[rows]):
        return problem.finish(solve(problem, damping)), f"gptq and descent, damped {damping:g}"
    return problem.finish(nearest), "nearest"


@dataclass(frozen=True)
class Method:
    """One way to choose codes.

    Attributes
    ----------
    choose : callable
        ``choose(weight, gram, grid, held_out, threads, **options)`` gives the codes, and what they came from in words.
    about : str
    options : mapping of name to Option
        What `choose` takes, by the names that recipes use: one name means one thing among all methods.
    uses_moments : bool
        Whether it looks at `gram` and `held_out`, which cost passes over the samples.
    neighbours : bool
        It chooses among the two codes beside each weight, so what goes on from its codes should, too.
    """

    choose: Callable[..., tuple[Codes, str]]
    about: str
    options: Mapping[str, Option] = field(default_factory=dict)
    uses_moments: bool = True
    neighbours: bool = False


def _choose_nearest(weight: Any, gram: Any, grid: Grid, held_out: Any, threads: int | None) -> tuple[Codes, str]:
    return quantize(weight, grid, threads), "nearest"


def _choose_by_descent(weight: Any, gram: Any, grid: Grid, held_out: Any, threads: int | None) -> tuple[Codes, str]:
    return descend(weight, gram, grid, threads=threads), "descent"


def _choose_by_gptq(weight: Any, gram: Any, grid: Grid, held_out: Any, threads: int | None) -> tuple[Codes, str]:
    return gptq(weight, gram, grid, threads=threads), "gptq"


def _choose_by_paths(
    weight: Any, gram: Any, grid: Grid, held_out: Any, threads: int | None, paths: int
) -> tuple[Codes, str]:
    return k_best(weight, gram, grid, paths=paths, threads=threads), f"k-best of {paths}"


def _choose_by_adaround(
    weight: Any, gram: Any, grid: Grid, held_out: Any, threads: int | None, iterations: int
) -> tuple[Codes, str]:
    return adaround(weight, gram, grid, held_out=held_out, iterations=iterations, threads=threads), "adaround"


def _choose_best(weight: Any, gram: Any, grid: Grid, held_out: Any, threads: int | None) -> tuple[Codes, str]:
    return round_best(weight, gram, grid, held_out=held_out, threads=threads)


METHODS: Mapping[str, Method] = {
    "nearest": Method(_choose_nearest, "Half to even, as ONNX QuantizeLinear.", uses_moments=False),
    "descent": Method(_choose_by_descent, "Cyclic coordinate descent from the nearest codes."),
    "gptq": Method(_choose_by_gptq, "GPTQ (Frantar et al., 2022)."),
    "k-best": Method(
        _choose_by_paths,
        "GPTQ that keeps the `paths` best roundings of each row on its way (K-best decoding).",
        {"paths": Option(PATHS, 1, 256)},
    ),
    "adaround": Method(
        _choose_by_adaround,
        "AdaRound (Nagel et al., 2020) in Gram form; `iterations`: its steps for each layer.",
        {"iterations": Option(120, 1, 1_000_000)},
        neighbours=True,
    ),
    "best": Method(_choose_best, "`round_best`: of nearest codes and several dampings, the lowest on held-out inputs."),
}
"""By the name that recipes use. A new rounding method is one entry."""
