"""The specification of the Gram engine, in numpy: im2col, then one matrix product in double."""

from __future__ import annotations

import numpy as np


def gram(rows: np.ndarray, centered: bool = False) -> np.ndarray:
    """E[x x^T] over the rows x."""
    rows = rows.astype(np.float64)
    if centered:
        rows = rows - rows.mean(0)
    return rows.T @ rows / len(rows)


def im2col(x: np.ndarray, kernel, strides, pads, dilations, groups: int) -> np.ndarray:
    """(groups, output pixels of all samples, channels of a group * kernel area), features in the weight's order."""
    (kh, kw), (sh, sw), (dh, dw), (top, left, bottom, right) = kernel, strides, dilations, pads
    x = np.pad(x, ((0, 0), (0, 0), (top, bottom), (left, right)))
    n, c, h, w = x.shape
    out_h, out_w = (h - (kh - 1) * dh - 1) // sh + 1, (w - (kw - 1) * dw - 1) // sw + 1
    columns = [
        x[:, :, i * dh : i * dh + (out_h - 1) * sh + 1 : sh, j * dw : j * dw + (out_w - 1) * sw + 1 : sw]
        for i in range(kh)
        for j in range(kw)
    ]
    patches = np.stack(columns, 2).reshape(n, groups, c // groups * kh * kw, out_h * out_w)
    return patches.transpose(1, 0, 3, 2).reshape(groups, n * out_h * out_w, -1)
