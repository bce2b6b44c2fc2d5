"""Core `smoothing`: scales that move the spread of channels from an activation into the weights that read it.

A layer reads x / s with its weight's input channels times s: the product stays, a grid shared by all channels gets
finer, and the weight coarser. `search` chooses how far to go by what both would cost at the layer's output, exactly
for the weight and in closed form for the activation.

Sources: Xiao et al., SmoothQuant, 2023, eq. 4, for the scales; Li et al., RepQ-ViT, 2023, section 3.3, for shifts.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import ArrayLike, NDArray

from leadline._native import core, thread_count
from leadline.affine import choose_grid
from leadline.arrays import as_moments, as_weight, native_scheme
from leadline.equalization import balance
from leadline.types import Scheme, refuse

__all__ = ["ALPHAS", "Reader", "Smoothing", "migration_scales", "reparameterize", "search", "search_product"]

Float64 = NDArray[np.float64]

ALPHAS = tuple(k / 10 for k in range(11))
"""What `search` tries: 0 is no scaling at all, 1 makes all channels equally wide."""


@dataclass(frozen=True)
class Reader:
    """A layer that reads the activation.

    Attributes
    ----------
    weight : float32 (out, channels, ...)
        Any further axes are taps, as in a convolution's weight.
    gram : (channels * taps, channels * taps)
        E[x x^T] of what it reads; E[(x - E x) (x - E x)^T] where a bias takes up the mean.
    scheme : Scheme or None
        Of the weight; None where it stays float. An axis must be 0, a block must run along the input channels.
    """

    weight: Any
    gram: Any
    scheme: Scheme | None = None


@dataclass(frozen=True)
class Smoothing:
    """What a search found: alpha, the scales (channels,), and the predicted error power at the outputs of all readers
    without scaling and with it."""

    alpha: float
    scales: Float64
    before: float
    after: float


def migration_scales(activation: ArrayLike, weight: ArrayLike, alpha: float, max_scale: float = 32.0) -> Float64:
    """Scales s = activation^alpha / weight^(1 - alpha) (SmoothQuant, eq. 4): divide the activation's channels by them.

    They are normalised to a geometric mean of one, since a common factor changes no grid's error.

    Parameters
    ----------
    activation : (channels,) array
        Largest magnitude (or width) of each channel.
    weight : (channels,) array
        Largest magnitude of each input channel over all layers that read the activation.
    alpha : float
        0 to 1: how much of the activation's spread moves.
    max_scale : float
        Scales stay within [1/max_scale, max_scale].

    Returns
    -------
    (channels,) float64
        1 where the activation is zero. Where no layer reads a channel, just what it takes to keep it from being wider
        than the others, at most `max_scale`.

    Raises
    ------
    InputError : as `leadline.equalization.balance`, which this is but for channels that nobody reads.
    """
    scales = balance(activation, weight, alpha, max_scale)
    a, w = np.asarray(activation, np.float64), np.asarray(weight, np.float64)
    unread = (a > 0) & (w == 0)
    if unread.any() and not unread.all():
        widest = (a / scales)[~unread].max()
        if widest > 0:
            scales[unread] = np.clip(a[unread] / widest, 1.0, max_scale)
    return scales


def reparameterize(lo: ArrayLike, hi: ArrayLike) -> tuple[Float64, Float64]:
    """Scale and shift for each channel such that (x - shift) / scale has one range, symmetric about zero, in all of
    them: what a grid for each channel would do, run with one grid for the tensor.

    Parameters
    ----------
    lo, hi : (channels,) arrays
        Lowest and highest value of each channel.

    Returns
    -------
    scale, shift : (channels,) float64
        Scales have a geometric mean of one. A constant channel has scale 1 and is shifted to zero.

    Raises
    ------
    InputError : shapes differ, lo exceeds hi, or a value is not finite.

    RepQ-ViT keeps the mean zero point, which need not be an integer; the middle of the grid always is its middle.
    """
    low, high = _range(lo, hi, "reparameterize")
    width = high - low
    return balance(width, np.ones_like(width), 1.0, np.inf), low / 2 + high / 2


def search(
    readers: Sequence[Reader],
    lo: ArrayLike,
    hi: ArrayLike,
    *,
    activation: Scheme | None = None,
    alphas: Sequence[float] = ALPHAS,
    max_scale: float = 32.0,
    threads: int | None = None,
) -> Smoothing:
    """The alpha whose scales leave the least error at the outputs of all layers that read an activation.

    The error is that of rounding the activation, step^2 / 12 * |W diag s|^2 (uniform within a step, as on the grid of
    the scaled range), and that of rounding the weight, tr(D G D^T) with D = (round(W diag s) - W diag s) diag(1/s).

    Parameters
    ----------
    readers : sequence of Reader
        At least one.
    lo, hi : (channels,) arrays
        Lowest and highest value of each channel of the activation, less its shift if it is shifted.
    activation : Scheme or None
        Of the activation; None where it stays float. With granularity "axis" each channel has its own step, so that
        scaling cannot make it finer; with "token" the step is taken for the whole tensor's, its upper bound.
    alphas : sequence of float
        Candidates; 0 is no scaling. Of equal ones the first wins.
    max_scale : float
        Scales stay within [1/max_scale, max_scale].
    threads : int or None

    Returns
    -------
    Smoothing
        Never of a higher error than without scaling, if 0 is among the candidates.

    Raises
    ------
    InputError : arguments do not fit each other, or hold NaN or infinity; a scheme that does not fit its weight.

    The same for any number of threads. Products are formed in float32, so that two instruction sets may choose
    differently between candidates that are as good.
    """
    low, high = _range(lo, hi, "search")
    count = thread_count(threads, "search")
    layers = [_Layer(reader, low.size) for reader in readers]
    if not layers:
        raise refuse("search", "readers must hold at least one layer", "none")
    _check_activation(activation)
    largest = np.maximum(np.abs(low), np.abs(high))
    columns = np.max([layer.columns for layer in layers], axis=0)
    power = np.sum([layer.power for layer in layers], axis=0)
    scales = _candidates(largest, columns, alphas, max_scale)
    errors = np.array([_activation_noise(low / s, high / s, power * np.square(s), activation) for s in scales])
    for layer in layers:
        errors += layer.errors(scales, count)
    return _least(alphas, scales, errors)


def search_product(
    query: tuple[ArrayLike, ArrayLike, ArrayLike],
    key: tuple[ArrayLike, ArrayLike, ArrayLike],
    *,
    query_scheme: Scheme | None = None,
    key_scheme: Scheme | None = None,
    alphas: Sequence[float] = ALPHAS,
    max_scale: float = 32.0,
) -> Smoothing:
    """The alpha whose scales leave the least error in a product q k^T of two activations, as attention forms it, when
    q is divided by s and k multiplied.

    The layers that write q and k lose nothing: each row of a weight has its own grid.

    Parameters
    ----------
    query, key : (lo, hi, power), each (channels,)
        Lowest and highest value and mean square of each channel.
    query_scheme, key_scheme : Scheme or None
        None where the activation stays float.
    alphas, max_scale
        As in `search`. alpha is the share of q's spread that moves.

    Raises
    ------
    InputError : arguments do not fit each other, or are not finite.
    """
    (q_lo, q_hi), (k_lo, k_hi) = (_range(*side[:2], "search_product") for side in (query, key))
    q_power, k_power = (np.asarray(side[2], np.float64) for side in (query, key))
    if not q_lo.shape == k_lo.shape == q_power.shape == k_power.shape:
        received = f"{q_lo.size} and {k_lo.size}, powers of {q_power.size} and {k_power.size}"
        raise refuse("search_product", "query and key must have the same channels", received)
    if not all(np.isfinite(p).all() and (p >= 0).all() for p in (q_power, k_power)):
        raise refuse("search_product", "powers must be finite and not negative", "others")
    for scheme in (query_scheme, key_scheme):
        _check_activation(scheme)
    q_largest, k_largest = np.maximum(np.abs(q_lo), np.abs(q_hi)), np.maximum(np.abs(k_lo), np.abs(k_hi))
    scales = _candidates(q_largest, k_largest, alphas, max_scale)
    errors = [
        _activation_noise(q_lo / s, q_hi / s, k_power * np.square(s), query_scheme)
        + _activation_noise(k_lo * s, k_hi * s, q_power / np.square(s), key_scheme)
        for s in scales
    ]
    return _least(alphas, scales, np.array(errors))


class _Layer:
    """A reader, checked and laid out for the core."""

    def __init__(self, reader: Reader, channels: int) -> None:
        weight = as_weight(reader.weight, "search")
        if weight.shape[1] != channels:
            raise refuse("search", f"weight must have {channels} input channels, as lo and hi have", weight.shape)
        self.rows = np.ascontiguousarray(weight).reshape(weight.shape[0], -1)
        gram = as_moments(reader.gram, *self.rows.shape, "gram", "search")
        if len(gram) != 1:
            raise refuse("search", "gram must be one matrix", gram.shape)
        self.gram, self.scheme = gram[0], reader.scheme
        self.block = self._block(weight.shape)
        view = self.rows.reshape(len(self.rows), channels, -1)
        self.columns = np.abs(view).max(axis=(0, 2)).astype(np.float64)
        self.power: Float64 = np.square(view, dtype=np.float64).sum(axis=(0, 2))

    def _block(self, shape: tuple[int, ...]) -> int:
        """How many features share a grid in a row; 0 where all rows do."""
        scheme = self.scheme
        if scheme is None:
            return 0
        native_scheme(scheme, "search")
        if scheme.bits > 16:
            raise refuse("search", "a weight's scheme must have at most 16 bits", scheme.bits)
        if scheme.granularity == "tensor":
            return 0
        axis, size = scheme.axis or 0, scheme.block_size or 0
        if scheme.granularity == "axis":
            if axis % len(shape):
                raise refuse("search", "a weight's scheme must have one grid for each row (axis 0)", f"axis {axis}")
            return self.rows.shape[1]
        if axis % len(shape) != 1 or self.rows.shape[1] != shape[1] or shape[1] % size:
            rule = f"blocks must divide the {shape[1]} input channels of a matrix (axis 1)"
            raise refuse("search", rule, f"blocks of {size} along axis {axis} of {shape}")
        return size

    def errors(self, scales: Float64, threads: int) -> Float64:
        """tr(D G D^T) for each row of scales."""
        out = np.zeros(len(scales))
        if self.scheme is not None:
            rows, features = self.rows.shape
            taps = features // scales.shape[1]
            native = native_scheme(self.scheme, "search")
            core.smoothing_weight_errors(
                self.rows, self.gram, rows, scales.shape[1], taps, scales, native, self.block, out, threads
            )
        return out


def _range(lo: ArrayLike, hi: ArrayLike, function: str) -> tuple[Float64, Float64]:
    low, high = np.asarray(lo, np.float64), np.asarray(hi, np.float64)
    if low.ndim != 1 or low.shape != high.shape or not low.size:
        raise refuse(function, "lo and hi must be vectors of one length", f"shapes {low.shape} and {high.shape}")
    wrong = np.flatnonzero(~(np.isfinite(low) & np.isfinite(high) & (low <= high)))
    if wrong.size:
        received = f"{low[wrong[0]]} and {high[wrong[0]]} in channel {wrong[0]}"
        raise refuse(function, "lo and hi must be finite, and lo at most hi", received)
    return low, high


def _check_activation(scheme: Scheme | None) -> None:
    if scheme is not None and scheme.granularity == "block":
        raise refuse("search", "an activation's scheme must have one grid, or one for each channel", scheme.granularity)


def _candidates(first: Float64, second: Float64, alphas: Sequence[float], max_scale: float) -> Float64:
    """No scaling, then the scales of each alpha: (1 + alphas, channels)."""
    if not alphas:
        raise refuse("search", "alphas must hold at least one candidate", "none")
    none = np.ones_like(first)
    return np.array([none, *(migration_scales(first, second, a, max_scale) if a else none for a in alphas)])


def _activation_noise(lo: Float64, hi: Float64, power: Float64, scheme: Scheme | None) -> float:
    """Sum over channels of step^2 / 12 * power, the step that of the grid of lo..hi."""
    if scheme is None:
        return 0.0
    shared = scheme.granularity != "axis"  # a token's channels share a grid as well, no wider than the tensor's
    grid = choose_grid(lo.min() if shared else lo, hi.max() if shared else hi, scheme)
    step = np.where((lo == 0) & (hi == 0), 0.0, grid.scale.astype(np.float64))  # a channel of zeros is exact
    return float(np.square(step) @ power / 12)


def _least(alphas: Sequence[float], scales: Float64, errors: Float64) -> Smoothing:
    """Of the candidates behind the first, which is no scaling. What overflowed loses."""
    best = int(np.argmin(np.where(np.isfinite(errors), errors, np.inf)[1:]))
    return Smoothing(float(alphas[best]), scales[1 + best], float(errors[0]), float(errors[1 + best]))
