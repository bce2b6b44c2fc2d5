"""The specification of leadline.equalization: one channel, one weight, one noise at a time."""

import math

import numpy as np


def balance(first, second, alpha=0.5, max_scale=32.0):
    """s_i = r1_i^alpha / r2_i^(1 - alpha), divided by the geometric mean over living channels, then clamped.

    With alpha = 1/2 this is sqrt(r1 r2) / r2 up to the common factor (Nagel et al. 2019, eq. 11).
    """
    alive = [i for i in range(len(first)) if first[i] > 0 and second[i] > 0]
    raw = {i: float(first[i]) ** alpha / float(second[i]) ** (1 - alpha) for i in alive}
    mean = math.prod(raw[i] ** (1 / len(alive)) for i in alive)
    return np.array([min(max(raw[i] / mean, 1 / max_scale), max_scale) if i in raw else 1.0 for i in range(len(first))])


def predicted_noise(scales, activation_range, second_moment, weight, bits=(8, 8)):
    """y_o = sum_i,k w_oik x_i with x_i -> x_i / s_i and w_oik -> w_oik s_i, each rounded to its grid.

    Rounding adds noise of variance step^2 / 12 to every x_i and every w_oik:
    var(y_o) = sum_i,k (w_oik s_i)^2 step_x^2 / 12 + sum_i,k E[x_i^2] / s_i^2 step_o^2 / 12.
    """
    outputs, columns, taps = weight.shape
    depthwise = columns == 1 and len(scales) > 1
    step_x = max(r / s for r, s in zip(activation_range, scales, strict=True)) / (2 ** bits[1] - 1)
    noise = 0.0
    for o in range(outputs):
        meets = [(o, 0)] if depthwise else [(i, i) for i in range(columns)]  # (channel of x, column of w)
        largest = max(abs(weight[o, c, k]) * scales[i] for i, c in meets for k in range(taps))
        step_o = largest / (2 ** (bits[0] - 1) - 1)
        for i, c in meets:
            for k in range(taps):
                noise += (weight[o, c, k] * scales[i]) ** 2 * step_x**2 / 12
                noise += second_moment[i] / scales[i] ** 2 * step_o**2 / 12
    return noise
