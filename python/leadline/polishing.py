"""LogNP polishing: quantise the logarithm of activations, y = sign(x) log2(1 + |x| / omega), channel by channel.

The codes are then dense near zero and sparse in the tails. omega is where the logarithm bends: well below it y is
proportional to x. An omega of infinity is never reached: such a channel is not polished, and y = x.

Source: Shen et al., QuartDepth (CVPR 2025), which takes omega as a channel's 95th percentile. `choose` can do better,
from a histogram. No matrix unit multiplies such codes: they are looked up (`table`), or baked to a grid (`bake`).
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Any

import numpy as np
from numpy.typing import ArrayLike, NDArray

from leadline._native import core, thread_count
from leadline.arrays import Layout, as_float32, axis_layout, axis_of, check_out, native_scheme, not_finite
from leadline.observers import Histogram
from leadline.sqnr import LIMIT_DB
from leadline.types import FloatArray, Grid, IntArray, Scheme, refuse

__all__ = [
    "KINDS",
    "PERCENTILES",
    "RATIOS",
    "Baked",
    "Choice",
    "bake",
    "choose",
    "fake_quantize_polished",
    "polish",
    "predicted_error",
    "table",
    "unpolish",
]

KINDS = ("none", "clip", "polish")
"""What `choose` may do with a channel."""
PERCENTILES = (90.0, 95.0, 99.0)
"""Of |x|: the bends that an adaptive choice tries, beside those of `RATIOS`."""
RATIOS = (0.05, 0.1, 0.15, 0.2, 0.3, 0.5, 0.7, 1.0, 1.4, 2.0)
"""Of the given percentile of |x|: the bends that an adaptive choice tries."""


def polish(
    x: Any, omega: ArrayLike, axis: int | None = None, *, out: FloatArray | None = None, threads: int | None = None
) -> FloatArray:
    """y = sign(x) log2(1 + |x| / omega), element by element: odd, monotone, and zero at zero.

    Parameters
    ----------
    x : float32 array of any shape (numpy or DLPack)
    omega : float or array, () or, with an axis, (channels,)
        In the units of x. Positive, or infinity where a channel is to pass through unchanged.
    axis : int or None
        The channel axis.
    out : float32 array, optional
        x itself, or an array like it apart from it.
    threads : int or None

    Returns
    -------
    float32 array of x's shape, within 2.2 units in the last place of the true value, unless |x| / omega is below the
    normal floats. Beyond 2**126 it counts as 2**126, so that |y| never exceeds 126.

    Raises
    ------
    InputError : NaN or infinity in x, an omega that does not fit x or is not positive, an `out` that does not fit.
    """
    return _pass(core.polish, "polish", "x", x, omega, axis, out, threads)


def unpolish(
    y: Any, omega: ArrayLike, axis: int | None = None, *, out: FloatArray | None = None, threads: int | None = None
) -> FloatArray:
    """x = sign(y) omega (2**|y| - 1), the inverse of `polish`; parameters, precision and errors are its own.

    |y| beyond 126 counts as 126, and no result exceeds the largest float32.
    """
    return _pass(core.unpolish, "unpolish", "y", y, omega, axis, out, threads)


def fake_quantize_polished(
    x: Any,
    grid: Grid,
    omega: ArrayLike,
    axis: int | None = None,
    *,
    out: FloatArray | None = None,
    threads: int | None = None,
) -> FloatArray:
    """unpolish(affine.fake_quantize(polish(x, omega, axis), grid), omega, axis), bit for bit, in one pass.

    Parameters
    ----------
    x : float32 array of any shape (numpy or DLPack)
    grid : Grid
        Of y, not of x: per tensor, or per channel along `axis`. At most 16 bits.
    omega : float or array, () or, with an axis, (channels,)
        As for `polish`.
    axis : int or None
        The channel axis; None takes the grid's.
    out, threads : as for `polish`

    Raises
    ------
    InputError : as for `polish`, or a grid that does not fit x.
    """
    function = "fake_quantize_polished"
    native = _scheme_of(grid, function)
    array = as_float32(x, "x", function)
    of_grid = None if grid.scheme.granularity == "tensor" else axis_of(array.shape, grid.scheme.axis, function)
    place = of_grid if axis is None else axis_of(array.shape, axis, function)
    if of_grid not in (None, place):
        raise refuse(function, f"axis must be the grid's, {grid.scheme.axis}", axis)
    layout, bends = _bends(omega, array, place, function)
    scale, zero_point = _spread(grid, layout[1], function)
    result = np.empty_like(array) if out is None else check_out(out, array, function)
    count = thread_count(threads, function)
    if not core.fake_quantize_polished(array, layout, bends, scale, zero_point, native, result, count):
        raise _refusal(array, result, "x", function)
    return result


@dataclass(frozen=True, eq=False)
class Choice:
    """What `choose` found: arrays of shape () or (channels,), as the histogram's.

    Attributes
    ----------
    omega : float32
        Infinity where the channel is not polished.
    lo, hi : float32
        The range to quantise after polishing: `choose_grid(lo, hi, scheme)` is the grid.
    error : float64
        The predicted mean squared error per element, in the units of x squared.
    kind : str
        One of `KINDS`: "none", the observed range without polishing; "clip", a smaller range without polishing;
        "polish".
    """

    omega: FloatArray
    lo: FloatArray
    hi: FloatArray
    error: NDArray[np.float64]
    kind: NDArray[np.str_] = field(repr=False)


def choose(
    histogram: Histogram,
    scheme: Scheme,
    *,
    percentile: float = 95.0,
    adaptive: bool = True,
    threads: int | None = None,
) -> Choice:
    """The bend of each channel, from its histogram.

    Parameters
    ----------
    histogram : Histogram
        Per tensor for a scheme of granularity "tensor", per channel for "axis".
    scheme : Scheme
        Of the polished values. At most 16 bits.
    percentile : float
        Of |x|, above 0 and at most 100. Where most elements are zero, so that it is zero, the percentile of the nonzero
        ones is taken instead.
    adaptive : bool
        False: every channel bends at the percentile. True: each channel takes, of all that follows, what has the least
        predicted error: no polishing, on its observed range or on that of least squared error; the bends at
        `PERCENTILES`; and the percentile times each of `RATIOS`. The same number of bits is compared throughout.
    threads : int or None
        Channels are searched in parallel.

    Returns
    -------
    Choice
        The error counts rounding as `fake_quantize_polished` does it, with the values of a bucket spread evenly around
        its mean. A channel without nonzero elements is not polished.

    Raises
    ------
    InputError : a scheme whose granularity is not the histogram's, a percentile out of range, no data.

    Source: the fixed percentile is QuartDepth's; the choice among several bends, and none, is leadline's own.
    """
    native = _scheme_for(histogram, scheme, "choose")
    if not 0.0 < percentile <= 100.0:
        raise refuse("choose", "percentile must lie in (0, 100]", percentile)
    bends = [(float(percentile), 1.0)]
    if adaptive:
        bends = [(p, 1.0) for p in PERCENTILES] + [(float(percentile), ratio) for ratio in RATIOS]
    return _chosen(histogram, native, bends, adaptive, thread_count(threads, "choose"))


def predicted_error(
    histogram: Histogram, grid: Grid, omega: ArrayLike, threads: int | None = None
) -> NDArray[np.float64]:
    """The mean squared error per element of `fake_quantize_polished`, predicted on the histogram: () or (channels,).

    `grid` and `omega` have one entry, or one for each of the histogram's channels. Raises InputError otherwise, or
    without data.
    """
    function = "predicted_error"
    native = _scheme_of(grid, function)
    channels = _channels(histogram, function)
    bends = _positive(omega, channels, function)
    scale, zero_point = _spread(grid, channels, function)
    error = np.empty(channels, np.float64)
    count = thread_count(threads, function)
    core.polished_error(histogram._native, native, bends, scale, zero_point, error, count)
    return np.asarray(error.reshape(histogram._shape) / np.maximum(histogram.count, 1))


def table(grid: Grid, omega: ArrayLike) -> FloatArray:
    """The real value of every code, for look-up: float32 (channels, 2**bits), or (2**bits,) without channels.

    Column i is code `grid.scheme.qmin + i`; a narrow scheme has one column less. These are the values that
    `fake_quantize_polished` gives, bit for bit. Raises InputError for more than 16 bits, or if grid and omega do not
    fit each other.
    """
    _scheme_of(grid, "table")
    channels = max(grid.scale.size, np.size(omega))
    bends = _positive(omega, channels, "table")
    scale, zero_point = _spread(grid, channels, "table")
    codes = np.arange(grid.scheme.qmin, grid.scheme.qmax + 1)
    steps = (codes - zero_point[:, None]).astype(np.float32)
    values = unpolish(steps * scale[:, None], bends, 0)
    return values if grid.scale.ndim or np.ndim(omega) else values[0]


@dataclass(frozen=True, eq=False)
class Baked:
    """The affine grid that replaces a polished one: arrays of shape () or (channels,), as the histogram's.

    Attributes
    ----------
    lo, hi : float32
        Its range: the observed one or that of least squared error, whichever predicts less.
    error : float64
        The predicted mean squared error per element, in the units of x squared.
    loss_db : float64
        How much larger that is than with polishing, in dB: 0 where a channel is not polished and chosen well, below 0
        where polishing was a loss. Within [-200, 200].
    """

    lo: FloatArray
    hi: FloatArray
    error: NDArray[np.float64]
    loss_db: NDArray[np.float64]


def bake(histogram: Histogram, grid: Grid, omega: ArrayLike, threads: int | None = None) -> Baked:
    """What polishing costs to give up: the best affine grid of the same scheme, from the histogram.

    Parameters
    ----------
    histogram : Histogram
        As for `choose`.
    grid, omega
        Of the polished values, as for `fake_quantize_polished`.
    threads : int or None

    Returns
    -------
    Baked

    Raises
    ------
    InputError : grid or omega do not fit the histogram, or it has no data.
    """
    polished = predicted_error(histogram, grid, omega, threads)
    affine = _chosen(histogram, native_scheme(grid.scheme, "bake"), [], True, thread_count(threads, "bake"))
    tiny = np.finfo(np.float64).tiny  # two errors of zero differ by nothing
    loss = 10 * (np.log10(np.maximum(affine.error, tiny)) - np.log10(np.maximum(polished, tiny)))
    return Baked(affine.lo, affine.hi, affine.error, np.clip(loss, -LIMIT_DB, LIMIT_DB))


def _chosen(histogram: Histogram, scheme: Any, bends: list[tuple[float, float]], affine: bool, threads: int) -> Choice:
    channels, shape = _channels(histogram, "choose"), histogram._shape
    omega, lo, hi = (np.empty(channels, np.float32) for _ in range(3))
    error, code = np.empty(channels, np.float64), np.empty(channels, np.int8)
    tried = np.array(bends, np.float64).reshape(-1, 2)
    core.choose_polishing(histogram._native, scheme, tried, affine, omega, lo, hi, error, code, threads)
    mean = np.asarray(error.reshape(shape) / np.maximum(histogram.count, 1))
    kind = np.array(KINDS)[code].reshape(shape)
    return Choice(omega.reshape(shape), lo.reshape(shape), hi.reshape(shape), mean, kind)


def _pass(
    call: Callable[..., bool],
    function: str,
    name: str,
    values: Any,
    omega: ArrayLike,
    axis: int | None,
    out: Any,
    threads: int | None,
) -> FloatArray:
    array = as_float32(values, name, function)
    layout, bends = _bends(omega, array, None if axis is None else axis_of(array.shape, axis, function), function)
    result = np.empty_like(array) if out is None else check_out(out, array, function)
    if not call(array, layout, bends, result, thread_count(threads, function)):
        raise _refusal(array, result, name, function)
    return result


def _refusal(array: FloatArray, result: FloatArray, name: str, function: str) -> Exception:
    """Which element was not finite; in place it is gone."""
    if result.ctypes.data == array.ctypes.data:
        return refuse(function, f"{name} must be finite", "NaN or infinity")
    return not_finite(array, name, function)


def _bends(omega: ArrayLike, array: FloatArray, axis: int | None, function: str) -> tuple[Layout, FloatArray]:
    layout = (1, 1, array.size) if axis is None else axis_layout(array.shape, axis)
    return layout, _positive(omega, layout[1], function)


def _positive(omega: ArrayLike, channels: int, function: str) -> FloatArray:
    """omega as float32 (channels,), checked."""
    with np.errstate(over="ignore"):
        array = np.asarray(omega, np.float32)
    if array.shape not in ((), (channels,)):
        raise refuse(function, f"omega must have one entry, or one for each of {channels} channels", array.shape)
    good = array >= np.finfo(np.float32).tiny
    if not good.all():
        rule = "omega must be positive normal float32 values, or infinity for channels that are not polished"
        raise refuse(function, rule, array[~good][0])
    return np.ascontiguousarray(np.broadcast_to(array, channels))


def _spread(grid: Grid, channels: int, function: str) -> tuple[FloatArray, IntArray]:
    """scale and zero point, (channels,) each."""
    if grid.scale.shape not in ((), (channels,)):
        rule = f"the grid's scale must have one entry, or one for each of {channels} channels"
        raise refuse(function, rule, grid.scale.shape)
    scale = np.ascontiguousarray(np.broadcast_to(grid.scale, channels))
    return scale, np.ascontiguousarray(np.broadcast_to(grid.zero_point, channels))


def _scheme_of(grid: Grid, function: str) -> Any:
    if not isinstance(grid, Grid):
        raise refuse(function, "grid must be a leadline.Grid", f"a {type(grid).__name__}")
    return _narrow(grid.scheme, function)


def _narrow(scheme: Scheme, function: str) -> Any:
    native = native_scheme(scheme, function)
    if scheme.bits > 16 or scheme.granularity == "block":
        rule = "the scheme must have at most 16 bits and granularity 'tensor' or 'axis'"
        raise refuse(function, rule, f"{scheme.bits} bits, {scheme.granularity!r}")
    return native


def _channels(histogram: Histogram, function: str) -> int:
    if not isinstance(histogram, Histogram):
        raise refuse(function, "histogram must be a Histogram", f"a {type(histogram).__name__}")
    return histogram.count.size  # refuses a histogram without data


def _scheme_for(histogram: Histogram, scheme: Scheme, function: str) -> Any:
    native = _narrow(scheme, function)
    _channels(histogram, function)
    wanted = "tensor" if histogram.axis is None else "axis"
    if scheme.granularity != wanted:
        rule = f"the scheme's granularity must be the histogram's, {wanted!r}"
        raise refuse(function, rule, repr(scheme.granularity))
    return native
