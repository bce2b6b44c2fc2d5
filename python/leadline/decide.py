"""What is decided about one layer: its weight's grid and codes, its activations' ranges and grids, its bias.

Functions of arrays, Histograms, moments and Schemes, which know no network. Every road to integers goes through here:
the steps, LiteRT's calibration, the layers in torch and ExecuTorch's programs.
"""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import replace
from typing import Any

import numpy as np
from numpy.typing import ArrayLike, NDArray

from leadline.affine import accumulator_grid, choose_grid, fake_quantize, range_of
from leadline.observers import OBSERVERS, Histogram, MinMax, search_range
from leadline.rounding import METHODS
from leadline.types import FloatArray, Grid, Scheme, chosen_options, refuse

__all__ = [
    "activation_grid",
    "activation_range",
    "adds_integers",
    "bias_grid",
    "codes_of",
    "fine_bias_grid",
    "least_squares_grid",
    "roomy_weight_grid",
    "shifted_bias",
    "weight_grid",
]

Codes = NDArray[Any]

WIDE = 8
"""Grids of more bits are wide."""

HEADROOM = 1.5
"""How far beyond the range that was chosen a wide grid reaches, for what calibration did not see: half a bit of 16,
against the clipping that few samples leave (22 dB instead of 36 on a network fed with noise, 12 samples)."""

INT32_LIMIT = 2.0**31 - 2**16
"""A bias code beyond this leaves no head-room for the accumulator."""


def weight_grid(
    weight: Any,
    scheme: Scheme,
    observer: str = "minmax",
    *,
    name: str | None = None,
    threads: int | None = None,
    **options: float,
) -> Grid:
    """The grid of a weight.

    Parameters
    ----------
    weight : float32 array of any shape
    scheme : Scheme
        Its axis filled in. Blocks reach to their extremes, whatever the observer.
    observer : str
        One of `leadline.observers.METHODS`, with its `options`.
    name : str, optional
        The weight's, for messages.
    threads : int, optional

    Raises
    ------
    InputError : an unknown observer or option, a scheme that does not fit the weight, NaN or infinity in it.
    """
    if scheme.granularity == "block" or observer == "minmax":
        return choose_grid(*range_of(weight, scheme, threads), scheme)
    histogram = Histogram(scheme.axis if scheme.granularity == "axis" else None, name).update(weight, threads=threads)
    return choose_grid(*search_range(histogram, observer, scheme, threads, **options), scheme)


def least_squares_grid(
    weight: FloatArray, grids: Iterable[Grid], power: FloatArray | None = None, threads: int | None = None
) -> Grid:
    """Of several grids of one scheme, scale by scale the one that leaves the least squared error; the first of equals.

    Parameters
    ----------
    weight : float32 (rows, features)
    grids : iterable of Grid
        Symmetric, for each row (axis 0) or in blocks along axis 1.
    power : float32 (features,), optional
        What the errors of each feature weigh: the mean square of what it multiplies. For grids of rows.
    """
    best, errors = None, np.empty_like(weight)
    for grid in grids:
        np.square(np.subtract(weight, fake_quantize(weight, grid, threads, errors), out=errors), out=errors)
        cells = errors.reshape(*grid.scale.shape, -1)
        lost = cells.sum(-1) if power is None else cells @ power
        if best is None:
            best, scale, lowest = grid, grid.scale.copy(), np.full(lost.shape, np.inf)
        better = lost < lowest
        scale[better], lowest[better] = grid.scale[better], lost[better]
    if best is None:
        raise refuse("least_squares_grid", "there must be a grid to choose", "none")
    return replace(best, scale=scale)


def activation_range(
    statistics: Histogram | MinMax, scheme: Scheme, observer: str, threads: int | None = None, **options: float
) -> tuple[FloatArray, FloatArray]:
    """The range of an activation, of the shape of the scheme's scale, by one of `leadline.observers.OBSERVERS`, from
    the statistics that it wants. Raises InputError for an unknown observer or option, or where nothing was seen."""
    if isinstance(statistics, Histogram):
        return search_range(statistics, observer, scheme, threads, **options)
    return OBSERVERS[observer].search(statistics, scheme, threads, **options)


def activation_grid(
    lo: ArrayLike, hi: ArrayLike, scheme: Scheme, bounds: tuple[float, float] = (-np.inf, np.inf)
) -> Grid:
    """The grid of an activation whose range has been chosen; per token one without scales, which are found at run time.

    Parameters
    ----------
    lo, hi : float or array
        Of the shape of the scheme's scale.
    scheme : Scheme
        Beyond 8 bits the grid reaches further than the range by `HEADROOM`.
    bounds : pair of float
        What no value exceeds, as a clamp says: head-room ends there, since a kernel performs the clamp by its grid.
    """
    if scheme.granularity == "token":
        return Grid(np.ones((), np.float32), np.zeros((), np.int32), scheme)
    if scheme.bits > WIDE:
        lo = np.minimum(lo, np.maximum(np.multiply(lo, HEADROOM), bounds[0]))
        hi = np.maximum(hi, np.minimum(np.multiply(hi, HEADROOM), bounds[1]))
    return choose_grid(lo, hi, scheme)


def codes_of(
    weight: Any,
    grid: Grid,
    method: str = "nearest",
    gram: Any = None,
    *,
    held_out: Any = None,
    threads: int | None = None,
    **options: float,
) -> tuple[Codes, str]:
    """The integers of a weight, and what they came from in words.

    Parameters
    ----------
    weight : float32 (out, in), or as `leadline.rounding.descend` takes it
    grid : Grid
    method : str
        One of `leadline.rounding.METHODS`, with its `options`.
    gram : (features, features) or (groups, features, features), optional
        Second moments of the layer's inputs. Without them codes are the nearest ones.
    held_out : like `gram`, optional
        Of inputs that `gram` did not see.

    Raises
    ------
    InputError : an unknown method or option, or arguments that do not fit each other.
    """
    if method not in METHODS:
        raise refuse("codes_of", f"method must be one of {', '.join(METHODS)}", repr(method))
    values = chosen_options(METHODS[method].options, options, "codes_of", f"method {method!r}")
    if gram is None:
        method, values = "nearest", {}
    return METHODS[method].choose(weight, gram, grid, held_out, threads, **values)


def bias_grid(weight: Grid | None, read: Grid | None, channels: int, single: bool = False) -> Grid | None:
    """int32 at input scale x weight scale, as integer kernels want it; None where there is no integer kernel to suit:
    the weight or what the layer reads is float, or has scales for more than output channels.

    Parameters
    ----------
    weight, read : Grid or None
    channels : int
        Of the output.
    single : bool
        Give a weight that has one scale one scale for all channels.
    """
    if weight is None or read is None or not adds_integers(weight, read):
        return None
    return accumulator_grid(weight, read, channels, single and channels > 1)


def adds_integers(weight: Grid, read: Grid) -> bool:
    """Whether the products of a layer's codes can be added up as they are."""
    return read.scheme.granularity == "tensor" and weight.scheme.granularity != "block"


def fine_bias_grid(bias: FloatArray) -> Grid:
    """As fine as a bias (channels,) needs, where there is no integer kernel to suit."""
    scale = np.full(bias.shape, max(float(np.abs(bias).max(initial=0)), 1e-3) * 2.0**-20, np.float32)
    scheme = Scheme(bits=32, signed=True, symmetric=True, granularity="axis", axis=0)
    return Grid(scale, np.zeros(bias.shape, np.int32), scheme)


def shifted_bias(codes: Codes, grid: Grid, shift: ArrayLike) -> Codes:
    """The codes of a bias less `shift`, in real values, as far as its grid reaches: int32."""
    moved = codes - np.rint(np.asarray(shift) / grid.scale)
    within: Codes = np.clip(moved, grid.scheme.qmin, grid.scheme.qmax)
    return within.astype(np.int32)


def roomy_weight_grid(
    weight: FloatArray, grid: Grid, read: Grid, bias: FloatArray | None, reach: float
) -> tuple[Grid, float]:
    """The weight's grid with scales enlarged where the layer's int32 sums could not hold its bias (as aimet-onnx does)
    or the range of its output, whose offset kernels add to the bias: Hexagon's give the lowest code then, for a channel
    that is almost dead. And by how much the most enlarged was.

    A channel of zeros has the codes zero at any scale, so it takes one that is fine enough for its bias.

    Parameters
    ----------
    weight : float32 array
    grid, read : Grid
        Of the weight, per tensor or channel, and of what the layer reads, per tensor.
    bias : float32 (channels,) or None
        A grouped ConvTranspose has several channels for each scale of the weight.
    reach : float
        Largest magnitude on the output's grid; 0 where it has none.
    """
    step, largest = float(read.scale), np.zeros(grid.scale.shape)
    if bias is not None:
        largest = np.abs(bias).reshape(bias.size // grid.scale.size, -1).max(axis=0).reshape(grid.scale.shape)
    lo, hi = range_of(weight, grid.scheme)
    dead = (lo == 0) & (hi == 0) & (largest > 0)
    unit = grid.scale.astype(np.float64) * step
    unit = np.where(dead, np.minimum(unit, largest / 2.0**24), unit)
    factor = np.maximum(1.0, np.maximum(largest, 2 * reach) / (unit * INT32_LIMIT))
    if dead.any() or (factor > 1).any():
        grid = replace(grid, scale=(unit * factor / step).astype(np.float32))
    return grid, float(factor.max())
