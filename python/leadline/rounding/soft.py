"""AdaRound against the Gram of a layer's inputs."""

from __future__ import annotations

import math
from typing import Any

import numpy as np
from numpy.typing import NDArray

from leadline._native import thread_count
from leadline.rounding.damping import best_damping, probed_rows
from leadline.rounding.problem import GPTQ_DAMPING, Clipped, Codes, Problem, lowest
from leadline.types import Grid, refuse

EARNED, TRIED = 0.02, 64
"""Share of the error that soft choices have to take away from quick ones, to be made for a whole layer; and rows of
each group on which they are tried, at most."""


def adaround(
    weight: Any,
    gram: Any,
    grid: Grid,
    codes: Any = None,
    *,
    held_out: Any = None,
    iterations: int = 120,
    rate: float = 0.1,
    regularisation: float = 10.0,
    warm_start: float = 0.2,
    beta: tuple[float, float] = (20.0, 2.0),
    clipped: Clipped | None = None,
    transposed: bool = False,
    threads: int | None = None,
) -> Codes:
    """AdaRound (Nagel et al., 2020) in Gram form: each weight goes to one of the two codes beside it.

    The choices are made in two ways, and each row takes the better outcome. The published way: a rectified sigmoid per
    weight; Adam lowers the row's error plus a regulariser, with an annealed exponent, that drives the choices apart.
    The objective is of all samples and its gradient is one matrix product, so that 120 steps at a rate of 0.1 do what
    thousands on batches do. And GPTQ's codes, brought back beside the weights. Both end in `descend`, whose single
    flips find what soft choices left.

    Parameters
    ----------
    codes : integer array of the weight's shape, optional
        Where each soft choice starts. Default: the nearest codes, and the sigmoid that reproduces the weight.
    held_out : like `gram`, optional
        Of inputs that `gram` did not see. Both ways then take the damping that is best there, as in `round_best`; and
        the published way, which takes most of the time, is first tried on 64 rows of each group, and on the others only
        where it lowers the error of these by more than a fiftieth.
    iterations : int
        At most; rows whose choices are settled stop.
    rate : float
        Adam's.
    regularisation : float
        Times the row's error of nearest rounding over its number of features: the published absolute weight would mean
        something else for every layer.
    warm_start : float
        Share of the iterations without the regulariser.
    beta : (start, end)
        The exponent, annealed by a cosine.
    clipped : Clipped, optional
        Samples by which to take the error behind a following ReLU or Clip: a third way for each row, and what decides
        among the three. Slower: a step costs 4 rows x samples x features operations, not 2 rows x features^2.

    Other parameters, result and errors as in `descend`.
    """
    problem = Problem(weight, gram, grid, transposed, "adaround")
    for name, value, least in (("iterations", iterations, 1), ("rate", rate, 0), ("regularisation", regularisation, 0)):
        if not (math.isfinite(value) and value >= least):
            raise refuse("adaround", f"{name} must be a finite number of at least {least}", value)
    if not 0 <= warm_start <= 1:
        raise refuse("adaround", "warm_start must lie in [0, 1]", warm_start)
    judge = None if held_out is None else Problem(weight, held_out, grid, transposed, "adaround")
    count = thread_count(threads, "adaround")
    options = (iterations, rate, regularisation, warm_start, *beta)
    start = problem.start(codes, threads)

    def greedy(part: Problem, damping: float) -> NDArray[np.int32]:
        choices = part.beside(part.gptq(count, damping or GPTQ_DAMPING))
        part.descend(choices, count, neighbours=True, damping=damping)
        return choices

    def soft(part: Problem, begin: NDArray[np.int32], damping: float) -> NDArray[np.int32]:
        choices = begin.copy()
        part.native.adaround(choices, *options, damping, count)
        part.descend(choices, count, neighbours=True, damping=damping)
        return choices

    damping, earns = 0.0, True
    if judge is not None:
        rows, solved = probed_rows(len(start), problem.groups), {}
        few, judge_few = problem.part(rows), judge.part(rows)

        def error(damping: float) -> float:
            solved[damping] = greedy(few, damping)
            return float(judge_few.error(solved[damping], count).sum())

        damping, _ = best_damping(error)
        tried = probed_rows(len(rows), problem.groups, TRIED)
        few, judge_few, quick = few.part(tried), judge_few.part(tried), solved[damping][tried]
        better = few.best_rows([quick, soft(few, start[rows[tried]], damping)], count)
        before, after = (judge_few.error(c, count).sum() for c in (quick, better))
        earns = after < (1 - EARNED) * before
    candidates = [start, greedy(problem, damping)]
    if earns:
        candidates.append(soft(problem, start, damping))
    if clipped is None:
        return problem.finish(problem.best_rows(candidates, count))
    features = problem.weight.shape[1]
    inputs, outputs = clipped.check(len(start), features, problem.groups)
    candidates.append(start.copy())
    samples = inputs, outputs, inputs.shape[1], clipped.low, clipped.high
    problem.native.adaround(candidates[-1], *options, damping, count, *samples)
    errors = [problem.clipped_error(c, inputs, outputs, clipped) for c in candidates]
    return problem.finish(lowest(candidates, errors))
