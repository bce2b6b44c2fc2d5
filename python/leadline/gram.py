"""Second moments of a layer's inputs, streamed: what rounding, compensation and smoothing work from."""

from __future__ import annotations

import math
from collections.abc import Iterator, Sequence
from typing import Any, Self

import numpy as np
from numpy.typing import NDArray

from leadline._native import core, thread_count
from leadline.arrays import as_float32, not_finite
from leadline.types import FloatArray, InputError, refuse

__all__ = ["ConvGram", "Gram"]

Doubles = NDArray[np.float64]


_FAR = 4.0
"""A mean this many deviations away is taken off before the products: centred, float32 loses a tenth of its digits."""

_PROBED = 1024
"""Rows that the pivot is taken from."""


class _Moments:
    """Sums over rows of x, and of (x - pivot) (x - pivot)^T, in double; the shape of the queries is the subclass's.

    The pivot is zero, but for features whose mean in the first update is far larger than their deviation: products of
    their float32 values would lose what varies. It stays what it is, and is added back in double.
    """

    def __init__(self, groups: int, features: int, name: str | None) -> None:
        self.name = name
        self.count = 0
        self._sum: Doubles = np.zeros((groups, features))
        self._second: Doubles = np.zeros((groups, features, features))  # upper triangles
        self._pivot: Doubles = np.zeros((groups, features))  # values of float32

    def _title(self) -> str:
        return f"{type(self).__name__}.update"

    def _not_finite(self, x: FloatArray, sample: object) -> InputError:
        tensor = f" in tensor {self.name!r}" if self.name is not None else ""
        where = tensor + (f", sample {sample}" if sample is not None else "")
        return not_finite(x, "x", self._title(), where)

    def _pivot_for(self, samples: FloatArray) -> Doubles:
        """(groups, features): before any data, that of the first (samples, channels), for all taps alike."""
        if self.count or not len(samples):
            return self._pivot
        with np.errstate(all="ignore"):  # NaN and infinity, which the core finds
            mean, deviation = samples.mean(0, np.float64), samples.std(0, np.float64)
            pivot = np.where(np.abs(mean) > _FAR * deviation, mean.astype(np.float32).astype(np.float64), 0.0)
        return pivot.reshape(len(self._sum), -1).repeat(self._sum.size // pivot.size, 1)

    def _taken(self, count: int, pivot: Doubles) -> None:
        if count:
            self._pivot = pivot
        self.count += count

    def _add(self, other: _Moments) -> None:
        if not self.count:
            self._pivot = other._pivot
        self._second += other._second
        shift = other._pivot - self._pivot
        if other.count and shift.any():
            about = other._sum - other.count * other._pivot
            crossed = about[:, :, None] * shift[:, None, :]
            self._second += crossed + crossed.swapaxes(1, 2) + other.count * shift[:, :, None] * shift[:, None, :]
        self.count += other.count
        self._sum += other._sum

    def _mean(self) -> Doubles:
        if self.count == 0:
            raise refuse(type(self).__name__, "there must be data first", "none so far")
        return self._sum / self.count

    def _matrix(self, centred: bool) -> Doubles:
        mean = self._mean()
        out = self._second / self.count
        if not np.isfinite(out).all():
            where = f" in tensor {self.name!r}" if self.name is not None else ""
            rule = f"magnitudes must stay below 1e18{where}, or their squares overflow"
            raise refuse(type(self).__name__, rule, "more")
        core.gram_mirror(out, *self._sum.shape, 0)
        about = mean - self._pivot
        if centred:
            out -= about[:, :, None] * about[:, None, :]
        elif self._pivot.any():  # E[x x^T] = E[d d^T] + E[x] E[x]^T - E[d] E[d]^T
            out += mean[:, :, None] * mean[:, None, :] - about[:, :, None] * about[:, None, :]
        return out


class Gram(_Moments):
    """The Gram matrix of a linear layer's inputs.

    Parameters
    ----------
    features : int
        Input features of the layer.
    name : str or None
        The tensor's name, for messages.

    Attributes
    ----------
    count : int
        Rows seen. Memory is 8 * features**2 bytes, whatever the count.

    Products are formed in float32 over blocks of 1024 rows and summed in double, in a fixed order: the same for any
    number of threads. (Between the v2 and v3 modules the last bits of a float32 product may differ.) Where the mean of
    the first update is far larger than the deviation, it is taken off before, so that `matrix(centred=True)` keeps its
    digits.
    """

    def __init__(self, features: int, name: str | None = None) -> None:
        if isinstance(features, bool) or not isinstance(features, (int, np.integer)) or features < 1:
            raise refuse("Gram", "features must be a positive integer", repr(features))
        super().__init__(1, int(features), name)
        self.features = int(features)

    def update(self, x: Any, sample: object = None, threads: int | None = None) -> Self:
        """Takes in rows: float32 (rows, features). Nothing has changed if it raises.

        InputError, naming tensor and `sample`, for another shape and for NaN or infinity.
        """
        array = as_float32(x, "x", "Gram.update")
        if array.ndim != 2 or array.shape[1] != self.features:
            raise refuse("Gram.update", f"x must have shape (rows, {self.features})", array.shape)
        count, pivot = thread_count(threads, "Gram.update"), self._pivot_for(array[:_PROBED])
        if not core.gram_update(array, *array.shape, pivot.astype(np.float32), self._sum, self._second, count):
            raise self._not_finite(array, sample)
        self._taken(len(array), pivot)
        return self

    def merge(self, other: Gram) -> Self:
        """Takes in what `other` has seen."""
        if not isinstance(other, Gram) or other.features != self.features:
            received = f"a {type(other).__name__} of {getattr(other, 'features', 'no')} features"
            raise refuse("Gram.merge", f"other must be a Gram of {self.features} features", received)
        self._add(other)
        return self

    @property
    def mean(self) -> Doubles:
        """E[x], float64 (features,)."""
        mean: Doubles = self._mean()[0]
        return mean

    def matrix(self, centred: bool = False) -> Doubles:
        """E[x x^T], or E[(x - E[x]) (x - E[x])^T], float64 (features, features)."""
        matrix: Doubles = self._matrix(centred)[0]
        return matrix


def _integers(values: Sequence[int], length: int, least: int, argument: str) -> tuple[int, ...]:
    good = len(values) == length and all(
        isinstance(v, (int, np.integer)) and not isinstance(v, bool) and v >= least for v in values
    )
    if not good:
        raise refuse("ConvGram", f"{argument} must be {length} integers of at least {least}", tuple(values))
    return tuple(int(v) for v in values)


class ConvGram(_Moments):
    """The Gram matrix of the patches that a convolution over one to three axes sees, per group, zero padding included:
    exactly the one of the im2col matrix, without forming it.

    Parameters (those of ONNX Conv)
    ----------
    weight_shape : (out channels, input channels of a group, kernel sizes: one for each spatial axis)
    strides, dilations : one for each spatial axis, default ones
    pads : in front of each spatial axis, then behind each (top, left, bottom, right), default zeros
    groups : int
        As many as there are input channels for a depthwise convolution.
    name : str or None
        The tensor's name, for messages.

    A row is one output pixel; its features run as in the weight: channel, then kernel position, so that
    `weight.reshape(out channels, -1)` multiplies them.
    """

    def __init__(
        self,
        weight_shape: Sequence[int],
        strides: Sequence[int] = (),
        pads: Sequence[int] = (),
        dilations: Sequence[int] = (),
        groups: int = 1,
        name: str | None = None,
    ) -> None:
        if not 3 <= len(weight_shape) <= 5:
            raise refuse("ConvGram", "weight_shape must hold 3 to 5 integers", tuple(weight_shape))
        axes = len(weight_shape) - 2
        shape = _integers(weight_shape, axes + 2, 1, "weight_shape")
        self.strides = _integers(strides or (1,) * axes, axes, 1, "strides")
        self.pads = _integers(pads or (0,) * 2 * axes, 2 * axes, 0, "pads")
        self.dilations = _integers(dilations or (1,) * axes, axes, 1, "dilations")
        self.groups = _integers((groups,), 1, 1, "groups")[0]
        self.channels, self.kernel = shape[1], shape[2:]
        self.features = math.prod(shape[1:])
        super().__init__(self.groups, self.features, name)

    def update(self, x: Any, sample: object = None, threads: int | None = None) -> Self:
        """Takes in inputs of the convolution: float32 (N, groups * channels, spatial axes). Nothing has changed if it
        raises.

        InputError, naming tensor and `sample`, for another shape and for NaN or infinity.
        """
        array, axes = as_float32(x, "x", "ConvGram.update"), len(self.kernel)
        if array.ndim != axes + 2 or array.shape[1] != self.groups * self.channels:
            rule = f"x must have shape (N, {self.groups * self.channels}, {', '.join('DHW'[-axes:])})"
            raise refuse("ConvGram.update", rule, array.shape)
        padded = tuple(n + a + b for n, a, b in zip(array.shape[2:], self.pads[:axes], self.pads[axes:], strict=True))
        reach = [(k - 1) * d + 1 for k, d in zip(self.kernel, self.dilations, strict=True)]
        if any(p < r for p, r in zip(padded, reach, strict=True)):
            patch = "x".join(map(str, reach))
            raise refuse("ConvGram.update", f"x must hold a patch of {patch}", f"{padded} with padding")
        steps = [(p - r) // s + 1 for p, r, s in zip(padded, reach, self.strides, strict=True)]
        count = thread_count(threads, "ConvGram.update")
        if axes > 2 and not np.isfinite(array).all():  # several updates of the sums would stop in the middle
            raise self._not_finite(array, sample)
        kernel, strides, dilations = ((1, *per_axis)[-2:] for per_axis in (self.kernel, self.strides, self.dilations))
        pads = [0, *self.pads[:axes]][-2:] + [0, *self.pads[axes:]][-2:]
        pivot = self._pivot_for(array[:1].reshape(array.shape[1], -1).T)
        of_channels = pivot[:, :: math.prod(kernel)].astype(np.float32)
        for picture in self._pictures(array, steps[:-2]):
            n, channels, *size = picture.shape
            if not core.conv_gram_update(
                picture, (n, channels // self.groups, *size), self.groups, kernel, strides, dilations, pads,
                of_channels, self._sum, self._second, count,
            ):  # fmt: skip
                raise self._not_finite(array, sample)
        self._taken(array.shape[0] * math.prod(steps), pivot)
        return self

    def _pictures(self, x: FloatArray, steps: Sequence[int]) -> Iterator[FloatArray]:
        """What the core sees, who knows pictures of two axes: a single axis gets another of one pixel; where there are
        more, the taps along the first of them are channels, for each of the outputs' `steps` along these."""
        lead = len(steps)
        if x.ndim < 5:
            yield x.reshape(*x.shape[:2], *(1, *x.shape[2:])[-2:])
            return
        n, c = x.shape[:2]
        for place in np.ndindex(*steps):
            columns = np.zeros((n, c, *self.kernel[:lead], *x.shape[2 + lead :]), np.float32)
            for tap in np.ndindex(*self.kernel[:lead]):
                at = [
                    o * s + t * d - before
                    for o, s, t, d, before in zip(place, self.strides, tap, self.dilations, self.pads, strict=False)
                ]
                if all(0 <= i < size for i, size in zip(at, x.shape[2:], strict=False)):
                    columns[:, :, *tap] = x[:, :, *at]
            yield columns.reshape(n, -1, *x.shape[2 + lead :])

    def merge(self, other: ConvGram) -> Self:
        """Takes in what `other` has seen."""
        same = ("channels", "kernel", "groups", "strides", "pads", "dilations")
        if not isinstance(other, ConvGram) or any(getattr(self, k) != getattr(other, k) for k in same):
            raise refuse(
                "ConvGram.merge", "other must be a ConvGram of the same convolution", f"a {type(other).__name__}"
            )
        self._add(other)
        return self

    @property
    def mean(self) -> Doubles:
        """E[patch], float64 (groups, features)."""
        return self._mean()

    def matrix(self, centred: bool = False) -> Doubles:
        """E[p p^T] over patches p, centred or not, float64 (groups, features, features)."""
        return self._matrix(centred)
