"""Core `equalization`: per-channel scales that move range between two layers without changing their product.

Dividing output channel i of one layer by s_i and multiplying input channel i of the next by s_i changes nothing where
what lies between them commutes with a positive factor (ReLU, max and average pooling, bilinear resizing).

Sources: Nagel et al., Data-Free Quantization Through Weight Equalization and Bias Correction (2019), eq. 8-11, for
the balance of two ranges; Xiao et al., SmoothQuant (2023), eq. 4, for its exponent.
"""

from __future__ import annotations

import numpy as np
from numpy.typing import ArrayLike, NDArray

from leadline.types import refuse

Float64 = NDArray[np.float64]


def balance(first: ArrayLike, second: ArrayLike, alpha: float = 0.5, max_scale: float = 32.0) -> Float64:
    """Scales s = first^alpha / second^(1 - alpha), normalised to a geometric mean of one.

    Parameters
    ----------
    first : (channels,) array
        Range of each channel before: of the activation, or of the first layer's weight rows.
    second : (channels,) array
        Range of each input channel of the next layer's weight.
    alpha : float
        Share of the disparity of `first` that moves. 0.5 with weight ranges is cross-layer equalisation, 1 makes all
        channels of the activation equally wide.
    max_scale : float
        Scales stay within [1/max_scale, max_scale].

    Returns
    -------
    (channels,) float64
        1 where either range is zero: a dead channel is left alone.

    Raises
    ------
    InputError
        Shapes differ, a range is negative or not finite, alpha is outside [0, 1], or max_scale is below 1.
    """
    a, b = np.asarray(first, np.float64), np.asarray(second, np.float64)
    if a.ndim != 1 or a.shape != b.shape:
        raise refuse("balance", "first and second must be vectors of one length", f"shapes {a.shape} and {b.shape}")
    for name, ranges in (("first", a), ("second", b)):
        wrong = np.flatnonzero(~(np.isfinite(ranges) & (ranges >= 0)))
        if wrong.size:
            received = f"{ranges[wrong[0]]} in {name}[{wrong[0]}]"
            raise refuse("balance", "ranges must be finite and not negative", received)
    if not 0 <= alpha <= 1:
        raise refuse("balance", "alpha must lie in [0, 1]", alpha)
    if not max_scale >= 1:
        raise refuse("balance", "max_scale must be at least 1", max_scale)
    alive = (a > 0) & (b > 0)
    scales = np.ones_like(a)
    if alive.any():
        log = alpha * np.log(a[alive]) - (1 - alpha) * np.log(b[alive])
        scales[alive] = np.clip(np.exp(log - log.mean()), 1 / max_scale, max_scale)
    return scales


def predicted_noise(
    scales: ArrayLike,
    activation_range: ArrayLike,
    second_moment: ArrayLike,
    weight: ArrayLike,
    bits: tuple[int, int] = (8, 8),
) -> float:
    """Noise power at the next layer's output that uniform grids would cause after scaling by `scales`.

    The activation has one grid for all channels, so its step is that of the widest channel; each row of the weight has
    a grid of its own. Both noises are taken as uniform within a step (variance step^2 / 12) and uncorrelated.

    Parameters
    ----------
    scales, activation_range, second_moment : (channels,) arrays
        Scales s; width of each channel of the activation; mean of its square. All before scaling.
    weight : (outputs, channels, taps) array
        The next layer's weight before scaling. A depthwise layer has (channels, 1, taps): each row meets one channel.
    bits : (int, int)
        Bits of the weight and of the activation.
    """
    s, width, moment = (np.asarray(v, np.float64) for v in (scales, activation_range, second_moment))
    w = np.asarray(weight, np.float64)
    depthwise = w.shape[1] == 1 and s.size > 1
    columns = s[:, None, None] if depthwise else s[None, :, None]
    step = (width / s).max() / (2 ** bits[1] - 1)
    activation_noise = step**2 / 12 * np.square(w * columns).sum()
    rows = np.abs(w * columns).max(axis=(1, 2)) / (2 ** (bits[0] - 1) - 1)
    power = moment / np.square(s)
    weight_noise = np.square(rows) / 12 @ (power if depthwise else np.full(len(w), power.sum())) * w.shape[2]
    return float(activation_noise + weight_noise)
