"""The specification of leadline.smoothing: scales channel by channel, errors from whole matrices in double."""

from __future__ import annotations

import math

import numpy as np

from leadline.affine import choose_grid


def migration_scales(activation, weight, alpha, max_scale=32.0):
    """s_j = a_j^alpha / w_j^(1 - alpha) over its geometric mean, clamped; 1 for a channel of zeros; a channel that
    nobody reads is brought down to the widest of the others."""
    channels = range(len(activation))
    read = [j for j in channels if activation[j] > 0 and weight[j] > 0]
    raw = {j: activation[j] ** alpha / weight[j] ** (1 - alpha) for j in read}
    mean = math.prod(raw[j] ** (1 / len(read)) for j in read)
    scales = [min(max(raw[j] / mean, 1 / max_scale), max_scale) if j in raw else 1.0 for j in channels]
    widest = max((activation[j] / scales[j] for j in channels if weight[j] > 0), default=0)
    for j in channels:
        if weight[j] == 0 and widest > 0:
            scales[j] = min(max(activation[j] / widest, 1.0), max_scale)
    return np.array(scales)


def rounded(values, grid):
    """To nearest, half to even, of a float32 quotient as in ONNX; `grid` broadcasts against `values`."""
    zero = grid.zero_point.astype(np.float64)
    steps = np.rint(values.astype(np.float32) / grid.scale).astype(np.float64)
    return grid.scale.astype(np.float64) * (np.clip(steps + zero, grid.scheme.qmin, grid.scheme.qmax) - zero)


def weight_error(weight, gram, scales, scheme):
    """tr(D G D^T); `weight` (out, channels, taps), one grid for the weight or for each run of features of a row."""
    out, _, taps = weight.shape
    s = np.repeat(scales, taps)
    rows = weight.reshape(out, -1)
    scaled = (rows.astype(np.float64) * s).astype(np.float32)
    shapes = {"tensor": (1, 1, -1), "axis": (out, 1, -1), "block": (out, -1, scheme.block_size)}
    runs = scaled.reshape(shapes[scheme.granularity])
    lo, hi = runs.min(2, keepdims=True).astype(np.float64), runs.max(2, keepdims=True).astype(np.float64)
    difference = (rounded(runs, choose_grid(lo, hi, scheme)) - runs).reshape(out, -1) / s
    return float(np.trace(difference @ gram @ difference.T))


def activation_noise(scales, lo, hi, power, scheme):
    """step^2 / 12 for each channel, times what the layer makes of it."""
    low, high = min(0.0, (lo / scales).min()), max(0.0, (hi / scales).max())
    if scheme.granularity == "axis":
        low, high = np.minimum(0, lo / scales), np.maximum(0, hi / scales)
    if scheme.symmetric:
        step = np.maximum(-np.asarray(low), high) / (2 ** (scheme.bits - 1) - 1)
    else:
        step = (np.asarray(high) - low) / (2**scheme.bits - 1)
    dead = (lo == 0) & (hi == 0)
    return float(np.sum(np.where(dead, 0, np.square(step) / 12) * power))


def error(readers, lo, hi, scales, activation):
    """Of all readers (weight, gram, scheme) together; weights as (out, channels, taps)."""
    total = 0.0
    for weight, gram, scheme in readers:
        if activation is not None:
            power = np.square(weight.astype(np.float64) * scales[:, None]).sum(axis=(0, 2))
            total += activation_noise(scales, lo, hi, power, activation)
        if scheme is not None:
            total += weight_error(weight, gram, scales, scheme)
    return total
