"""Rounding as the search for a near point of a lattice: GPTQ's order of features, with several paths at once."""

from __future__ import annotations

import math
from typing import Any

import numpy as np
from numpy.typing import NDArray

from leadline._native import thread_count
from leadline.rounding.problem import Codes, Doubles, Problem
from leadline.types import Grid, refuse

PATHS = 8
"""Roundings of a row that are kept on the way."""

_PANEL = 32
_TILE = 1 << 21
"""Features that are rounded before the others hear of it, and values worked on at once: both for speed alone."""


def k_best(
    weight: Any,
    gram: Any,
    grid: Grid,
    *,
    paths: int = PATHS,
    damping: float = 0.01,
    transposed: bool = False,
    threads: int | None = None,
) -> Codes:
    """GPTQ that changes its mind: the K-best decoder (Guo and Nilsson, 2006) on the lattice that GPTQ searches.

    GPTQ is Babai's nearest plane (Chen et al., 2025): it rounds one feature after another and never comes back. Here
    each row keeps the `paths` roundings of least error so far; each is continued with the two codes nearest to what its
    own earlier errors ask for. One path is GPTQ. Time grows with `paths` x rows x features^2.

    `damping` as in `rounding.gptq`; other parameters, result and errors as in `rounding.descend`. No row's error is
    above GPTQ's.
    """
    problem = Problem(weight, gram, grid, transposed, "k_best")
    if isinstance(paths, bool) or not isinstance(paths, (int, np.integer)) or paths < 1:
        raise refuse("k_best", "paths must be an integer of at least 1", paths)
    if not (math.isfinite(damping) and damping >= 0):
        raise refuse("k_best", "damping must be a finite number of at least 0", damping)
    count = thread_count(threads, "k_best")
    start = problem.gptq(count, damping)

    codes = start.copy()
    per_group = len(codes) // problem.groups
    tile = max(1, _TILE // (paths * codes.shape[1]))
    scale, zero_point = problem.spread()
    for group, moments in enumerate(problem.gram):
        order = np.argsort(-np.diag(moments), kind="stable")
        factor = _factor(moments[np.ix_(order, order)], damping)
        for first in range(group * per_group, (group + 1) * per_group, tile):
            rows = slice(first, min(first + tile, (group + 1) * per_group))
            weights, scales, zero_points = (array[rows][:, order] for array in (problem.weight, scale, zero_point))
            codes[rows, order] = _search(factor, weights, scales, zero_points, grid, paths)
    return problem.finish(problem.best_rows([codes, start], count))


def _factor(gram: Doubles, damping: float) -> Doubles:
    """Upper triangular R with R R^T = gram + damping, so that d gram d^T = |d R|^2, whose column j holds what features
    up to j do."""
    diagonal = np.diag(gram)
    mean = diagonal.mean() if diagonal.mean() > 0 else 1.0
    while True:
        damped = gram + np.diag(np.where(diagonal > 0, damping * mean, mean))
        try:
            return np.ascontiguousarray(np.linalg.cholesky(damped[::-1, ::-1])[::-1, ::-1])
        except np.linalg.LinAlgError:
            damping = max(10 * damping, 1e-8)


def _search(
    factor: Doubles, weight: Doubles, scale: Doubles, zero_point: Doubles, grid: Grid, paths: int
) -> NDArray[np.int32]:
    """The codes of the best path of each row; features in the factor's order."""
    rows, features = weight.shape
    qmin, qmax = grid.scheme.qmin, grid.scheme.qmax
    errors = np.zeros((rows, 1))
    left = np.zeros((rows, 1, features))  # what the errors of earlier panels do to each feature
    chosen = np.zeros((rows, 1, features), np.int32)
    for begin in range(0, features, _PANEL):
        panel = slice(begin, min(begin + _PANEL, features))
        inner = factor[panel, panel]
        moved = np.zeros((rows, errors.shape[1], len(inner)))  # dequantised less wanted
        codes = np.zeros(moved.shape, np.int32)
        origin = np.tile(np.arange(errors.shape[1]), (rows, 1))  # paths as they were before the panel
        for step in range(len(inner)):
            at = begin + step
            pull = np.take_along_axis(left[:, :, at], origin, 1) + moved[:, :, :step] @ inner[:step, step]
            wanted = weight[:, at, None] - pull / factor[at, at]
            place = wanted / scale[:, at, None] + zero_point[:, at, None]
            near = np.clip(np.rint(place), qmin, qmax)
            other = np.clip(near + np.where(place >= near, 1, -1), qmin, qmax)
            both = np.stack([near, other], 2)
            values = scale[:, at, None, None] * (both - zero_point[:, at, None, None])
            grown = errors[:, :, None] + np.square((values - wanted[:, :, None]) * factor[at, at])
            grown[:, :, 1][other == near] = np.inf  # beyond the end of the grid there is no second code
            kept = np.argsort(grown.reshape(rows, -1), 1, kind="stable")[:, :paths]
            parent = kept // 2
            errors = np.take_along_axis(grown.reshape(rows, -1), kept, 1)
            origin = np.take_along_axis(origin, parent, 1)
            moved = np.take_along_axis(moved, parent[:, :, None], 1)
            codes = np.take_along_axis(codes, parent[:, :, None], 1)
            codes[:, :, step] = np.take_along_axis(both.reshape(rows, -1), kept, 1)
            moved[:, :, step] = np.take_along_axis(values.reshape(rows, -1), kept, 1) - weight[:, at, None]
        left = np.take_along_axis(left, origin[:, :, None], 1)
        chosen = np.take_along_axis(chosen, origin[:, :, None], 1)
        chosen[:, :, panel] = codes
        left[:, :, panel.stop :] += moved @ factor[panel, panel.stop :]
    best: NDArray[np.int32] = chosen[np.arange(rows), errors.argmin(1)]
    return best
