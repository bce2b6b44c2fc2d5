"""The specification of the Gram engine, in numpy: im2col, then one matrix product in double."""

from __future__ import annotations

import numpy as np


def gram(rows: np.ndarray, centred: bool = False) -> np.ndarray:
    """E[x x^T] over the rows x."""
    rows = rows.astype(np.float64)
    if centred:
        rows = rows - rows.mean(0)
    return rows.T @ rows / len(rows)


def im2col(x: np.ndarray, kernel, strides, pads, dilations, groups: int) -> np.ndarray:
    """(groups, output pixels of all samples, channels of a group * kernel size), features in the weight's order."""
    axes = len(kernel)
    x = np.pad(x, [(0, 0), (0, 0), *zip(pads[:axes], pads[axes:], strict=True)])
    n = len(x)
    out = [
        (size - (k - 1) * d - 1) // s + 1 for size, k, d, s in zip(x.shape[2:], kernel, dilations, strides, strict=True)
    ]
    columns = [
        x[
            :,
            :,
            *(
                slice(t * d, t * d + (o - 1) * s + 1, s)
                for t, d, o, s in zip(tap, dilations, out, strides, strict=True)
            ),
        ]
        for tap in np.ndindex(*kernel)
    ]
    patches = np.stack(columns, 2).reshape(n, groups, -1, np.prod(out))
    return patches.transpose(1, 0, 3, 2).reshape(groups, n * np.prod(out), -1)
