"""The ranges that may be quantised, each found by its observer on what was seen of a tensor."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass, field

import numpy as np
from numpy.typing import NDArray

from leadline._native import thread_count
from leadline.arrays import native_scheme
from leadline.observers.statistics import Histogram, MinMax, MovingAverage
from leadline.types import FloatArray, Grid, Option, Scheme, chosen_options, refuse

Range = tuple[FloatArray, FloatArray]
"""Lowest and highest value, () or (channels,)."""


@dataclass(frozen=True)
class Observer:
    """One way to find a range.

    Attributes
    ----------
    search : callable
        ``search(statistics, scheme, threads, **options)`` gives lo and hi, float32 of the statistics' shape.
    about : str
    options : mapping of name to Option
        What `search` takes. Recipes, `search_range` and everything that calibrates take the same names, so one name
        means one thing among all observers.
    statistics : callable
        The class of what has to see the tensor. A Histogram serves weights and activations alike, any other (with
        ``update(x, sample=, threads=)``, made with the options, `axis` and `name`) activations only.
    """

    search: Callable[..., Range]
    about: str
    options: Mapping[str, Option] = field(default_factory=dict)
    statistics: Callable[..., Histogram | MinMax] = Histogram


def _searched(method: str) -> Callable[..., Range]:
    """The core's search, whose one option, if it has one, goes by its place."""

    def search(histogram: Histogram, scheme: Scheme, threads: int | None, **options: float) -> Range:
        native = native_scheme(scheme, "search_range")
        (option,) = options.values() or (0.0,)
        channels = histogram._channels or 0
        lo, hi = np.empty(channels, np.float32), np.empty(channels, np.float32)
        count = thread_count(threads, "search_range")
        histogram._native.search(method, native, float(option), lo, hi, count)
        return lo.reshape(histogram._shape), hi.reshape(histogram._shape)

    return search


def _averaged(averages: MovingAverage, scheme: Scheme, threads: int | None, **options: float) -> Range:
    return averages.lo, averages.hi


OBSERVERS: Mapping[str, Observer] = {
    "minmax": Observer(_searched("minmax"), "The observed range."),
    "moving-average": Observer(
        _averaged,
        "An average of the samples' ranges; `momentum`: the weight of each new sample.",
        {"momentum": Option(0.01, 1e-6, 1)},
        MovingAverage,
    ),
    "percentile": Observer(
        _searched("percentile"),
        "Keeps `percentile` percent of the elements: leaves the rest out half at each end, or by magnitude where the "
        "scheme is symmetric. The default is onnxruntime's.",
        {"percentile": Option(99.999, 50, 100)},
    ),
    "entropy": Observer(
        _searched("entropy"),
        "Least Kullback-Leibler divergence between the observed and the quantised density (TensorRT's calibration, "
        "2048 bins on either side; exact zeros are left out). Above 10 bits it is the observed range.",
    ),
    "mse": Observer(
        _searched("mse"),
        "Least sum of |x - quantised x|**p. Both ends are searched.",
        {"p": Option(2.0, 0.5, 16)},
    ),
    "sqnr": Observer(
        _searched("sqnr"),
        'Least gamma * clipping error + rounding error, squared: the cost of AIMET\'s "tf_enhanced".',
        {"gamma": Option(3.0, 1e-3, 1e3)},
    ),
    "octav": Observer(
        _searched("octav"),
        "The Newton iteration of OCTAV (Sakr et al. 2022) for the mean squared error, on both ends.",
    ),
}
"""By the name that recipes use. A new observer is one entry."""

METHODS = tuple(name for name, observer in OBSERVERS.items() if observer.statistics is Histogram)
"""Those that need a histogram, and so serve weights as well: what `search_range` takes."""


def search_range(
    histogram: Histogram, method: str, scheme: Scheme, threads: int | None = None, **options: float
) -> Range:
    """The range to quantise, found on the histogram. It lies inside the observed range and contains zero;
    `choose_grid` makes it a grid. All methods respect the scheme: bits, signed, symmetric, fit.

    Parameters
    ----------
    histogram : Histogram
        Per tensor for a scheme of granularity "tensor", per channel for "axis".
    method : str
        One of `METHODS`; what each does is said in `OBSERVERS`.
    scheme : Scheme
    threads : int or None
        Channels are searched in parallel.
    **options : float
        The method's own: `percentile` of "percentile", `p` of "mse", `gamma` of "sqnr".

    Returns
    -------
    lo, hi : float32 arrays, () or (channels,). Zeros for a tensor without elements.

    Raises
    ------
    InputError : an unknown method or option, or a scheme whose granularity is not the histogram's.
    """
    if not isinstance(histogram, Histogram):
        raise refuse("search_range", "histogram must be a Histogram", f"a {type(histogram).__name__}")
    if method not in METHODS:
        raise refuse("search_range", f"method must be one of {', '.join(METHODS)}", repr(method))
    native_scheme(scheme, "search_range")
    wanted = "tensor" if histogram.axis is None else "axis"
    if scheme.granularity != wanted:
        rule = f"the scheme's granularity must be the histogram's, {wanted!r}"
        raise refuse("search_range", rule, repr(scheme.granularity))
    observer = OBSERVERS[method]
    values = chosen_options(observer.options, options, "search_range", f"method {method!r}")
    if histogram._native is None:
        raise histogram._nothing_seen()
    return observer.search(histogram, scheme, threads, **values)


def cost(histogram: Histogram, method: str, grid: Grid, p: float = 2.0, gamma: float = 1.0) -> NDArray[np.float64]:
    """What `search_range` minimises, for a given grid: () or (channels,).

    "mse": the sum over elements of |x - quantised x|**p, where elements beyond the grid weigh `gamma`.
    "entropy": the divergence in nats. For scale (s) and data spread evenly inside each bucket, both are exact.
    """
    if method not in ("mse", "entropy"):
        raise refuse("cost", "method must be 'mse' or 'entropy'", repr(method))
    native = native_scheme(grid.scheme, "cost")
    if histogram._native is None:
        raise histogram._nothing_seen()
    if grid.scale.shape != histogram._shape:
        raise refuse("cost", f"the grid's scale must have shape {histogram._shape}", grid.scale.shape)
    scale, zero = grid.scale.reshape(-1), grid.zero_point.reshape(-1)
    values = [
        histogram._native.cost(c, method, native, float(scale[c]), int(zero[c]), float(p), float(gamma))
        for c in range(scale.size)
    ]
    return np.array(values, np.float64).reshape(histogram._shape)
