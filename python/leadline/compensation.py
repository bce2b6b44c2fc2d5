"""Weight compensation: weights that make up for the errors that quantisation leaves in their inputs."""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import Any

import numpy as np

from leadline._native import core, thread_count
from leadline.arrays import as_float32, as_moments, as_weight
from leadline.types import FloatArray, refuse

__all__ = ["Compensated", "compensate"]


@dataclass(frozen=True)
class Compensated:
    """The new weight (and bias), and the damping that was needed."""

    weight: FloatArray
    bias: FloatArray | None
    damping: float


def compensate(
    weight: Any,
    cross: Any,
    gram: Any,
    *,
    damping: float = 0.01,
    bias: Any = None,
    mean: Any = None,
    quantised_mean: Any = None,
    threads: int | None = None,
) -> Compensated:
    """V = W (C + lambda I) (G + lambda I)^-1, the ridge regression of W x on y, shrunk toward W.

    x is what the layer read in float, y what it reads once everything upstream is quantised. (The formula that
    circulates with a minus sign, V = W - W (x - y) y^T (y y^T)^-1, raises the error it is meant to lower, and ridge
    regression toward zero shrinks the layer.)

    Parameters
    ----------
    weight : float32 (out, ...)
        Rows are output channels; the other axes are the features, in order.
    cross : (features, features) or (groups, features, features)
        E[x y^T]; centred, E[(x - E x) (y - E y)^T], where a bias takes up the means.
    gram : like `cross`
        E[y y^T], centred likewise.
    damping : float
        lambda over the mean diagonal of `gram`. Ten times as much is tried until the system can be solved.
    bias : float32 (out,), optional
        With `mean` = E[x] and `quantised_mean` = E[y], (features,) or (groups, features): b + W E[x] - V E[y].
    threads : int or None

    Returns
    -------
    Compensated

    Raises
    ------
    InputError : arguments do not fit each other, or hold NaN or infinity.

    Source: the normal equations; QuartDepth (CVPR 2025) and ERQ (ICML 2024) use the same objective.
    """
    array = as_weight(weight, "compensate")
    if not (math.isfinite(damping) and damping >= 0):
        raise refuse("compensate", "damping must be a finite number of at least 0", damping)
    rows = np.ascontiguousarray(array).reshape(array.shape[0], -1)
    first, second = (as_moments(m, *rows.shape, name, "compensate") for name, m in (("cross", cross), ("gram", gram)))
    groups = len(second)
    if len(first) != groups:
        raise refuse("compensate", "cross and gram must have the same groups", f"{len(first)} and {groups}")
    out = np.empty_like(rows)
    count = thread_count(threads, "compensate")
    needed = core.compensate(rows, first, second, *rows.shape, groups, damping, out, count)
    shifted = None if bias is None else _shifted(rows, out, groups, bias, mean, quantised_mean)
    return Compensated(out.reshape(array.shape), shifted, needed)


def _shifted(rows: FloatArray, out: FloatArray, groups: int, bias: Any, mean: Any, quantised_mean: Any) -> FloatArray:
    """b + W E[x] - V E[y], for each group of rows."""
    bias = as_float32(bias, "bias", "compensate")
    if bias.shape != (len(rows),):
        raise refuse("compensate", f"bias must have shape ({len(rows)},)", bias.shape)
    means = []
    for name, value in (("mean", mean), ("quantised_mean", quantised_mean)):
        array = np.asarray(value, np.float64) if value is not None else np.zeros(0)
        if array.size != groups * rows.shape[1]:
            raise refuse("compensate", f"a bias needs {name}, of {groups * rows.shape[1]} values", array.shape)
        means.append(array.reshape(groups, 1, -1))
    parts = [array.astype(np.float64).reshape(groups, -1, array.shape[1]) for array in (rows, out)]
    moved = (parts[0] * means[0]).sum(2) - (parts[1] * means[1]).sum(2)
    shifted: FloatArray = (bias + moved.ravel()).astype(np.float32)
    return shifted
