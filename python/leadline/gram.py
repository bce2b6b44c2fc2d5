"""Second moments of a layer's inputs, streamed: what rounding, compensation and smoothing work from."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, Self

import numpy as np
from numpy.typing import NDArray

from leadline._native import core, thread_count
from leadline.arrays import as_float32, not_finite
from leadline.types import FloatArray, InputError, refuse

__all__ = ["ConvGram", "Gram"]

Doubles = NDArray[np.float64]


class _Moments:
    """Sums over rows of x and of x x^T in double; the shape of the queries is the subclass's."""

    def __init__(self, groups: int, features: int, name: str | None) -> None:
        self.name = name
        self.count = 0
        self._sum: Doubles = np.zeros((groups, features))
        self._second: Doubles = np.zeros((groups, features, features))  # upper triangles

    def _title(self) -> str:
        return f"{type(self).__name__}.update"

    def _not_finite(self, x: FloatArray, sample: object) -> InputError:
        tensor = f" in tensor {self.name!r}" if self.name is not None else ""
        where = tensor + (f", sample {sample}" if sample is not None else "")
        return not_finite(x, "x", self._title(), where)

    def _add(self, other: _Moments) -> None:
        self.count += other.count
        self._sum += other._sum
        self._second += other._second

    def _mean(self) -> Doubles:
        if self.count == 0:
            raise refuse(type(self).__name__, "there must be data first", "none so far")
        return self._sum / self.count

    def _matrix(self, centered: bool) -> Doubles:
        mean = self._mean()
        out = self._second / self.count
        if not np.isfinite(out).all():
            raise refuse(type(self).__name__, "magnitudes must stay below 1e18, or their squares overflow", "more")
        core.gram_mirror(out, *self._sum.shape, 0)
        if centered:
            out -= mean[:, :, None] * mean[:, None, :]
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
    number of threads. (Between the v2 and v3 modules the last bits of a float32 product may differ.)
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
        count = thread_count(threads, "Gram.update")
        if not core.gram_update(array, array.shape[0], self.features, self._sum, self._second, count):
            raise self._not_finite(array, sample)
        self.count += array.shape[0]
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

    def matrix(self, centered: bool = False) -> Doubles:
        """E[x x^T], or E[(x - E[x]) (x - E[x])^T], float64 (features, features)."""
        matrix: Doubles = self._matrix(centered)[0]
        return matrix


def _integers(values: Sequence[int], length: int, least: int, argument: str) -> tuple[int, ...]:
    good = len(values) == length and all(
        isinstance(v, (int, np.integer)) and not isinstance(v, bool) and v >= least for v in values
    )
    if not good:
        raise refuse("ConvGram", f"{argument} must be {length} integers of at least {least}", tuple(values))
    return tuple(int(v) for v in values)


class ConvGram(_Moments):
    """The Gram matrix of the patches that a 2-D convolution sees, per group, zero padding included: exactly the one of
    the im2col matrix, without forming it.

    Parameters (those of ONNX Conv)
    ----------
    weight_shape : (out channels, input channels of a group, kernel height, kernel width)
    strides, dilations : (vertical, horizontal), default (1, 1)
    pads : (top, left, bottom, right), default zeros
    groups : int
        As many as there are input channels for a depthwise convolution.
    name : str or None
        The tensor's name, for messages.

    A row is one output pixel; its features run as in the weight: channel, kernel row, kernel column, so that
    `weight.reshape(out channels, -1)` multiplies them.
    """

    def __init__(
        self,
        weight_shape: Sequence[int],
        strides: Sequence[int] = (1, 1),
        pads: Sequence[int] = (0, 0, 0, 0),
        dilations: Sequence[int] = (1, 1),
        groups: int = 1,
        name: str | None = None,
    ) -> None:
        shape = _integers(weight_shape, 4, 1, "weight_shape")
        self.strides = _integers(strides, 2, 1, "strides")
        self.pads = _integers(pads, 4, 0, "pads")
        self.dilations = _integers(dilations, 2, 1, "dilations")
        self.groups = _integers((groups,), 1, 1, "groups")[0]
        self.channels, self.kernel = shape[1], shape[2:]
        self.features = shape[1] * shape[2] * shape[3]
        super().__init__(self.groups, self.features, name)

    def update(self, x: Any, sample: object = None, threads: int | None = None) -> Self:
        """Takes in inputs of the convolution: float32 (N, groups * channels, H, W). Nothing has changed if it raises.

        InputError, naming tensor and `sample`, for another shape and for NaN or infinity.
        """
        array = as_float32(x, "x", "ConvGram.update")
        if array.ndim != 4 or array.shape[1] != self.groups * self.channels:
            rule = f"x must have shape (N, {self.groups * self.channels}, H, W)"
            raise refuse("ConvGram.update", rule, array.shape)
        top, left, bottom, right = self.pads
        padded = (array.shape[2] + top + bottom, array.shape[3] + left + right)
        reach = [(k - 1) * d + 1 for k, d in zip(self.kernel, self.dilations, strict=True)]
        if any(p < r for p, r in zip(padded, reach, strict=True)):
            raise refuse("ConvGram.update", f"x must hold a patch of {reach[0]}x{reach[1]}", f"{padded} with padding")
        shape = (array.shape[0], self.channels, array.shape[2], array.shape[3])
        count = thread_count(threads, "ConvGram.update")
        if not core.conv_gram_update(
            array, shape, self.groups, self.kernel, self.strides, self.dilations, self.pads,
            self._sum, self._second, count,
        ):  # fmt: skip
            raise self._not_finite(array, sample)
        steps = [(p - r) // s + 1 for p, r, s in zip(padded, reach, self.strides, strict=True)]
        self.count += array.shape[0] * steps[0] * steps[1]
        return self

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

    def matrix(self, centered: bool = False) -> Doubles:
        """E[p p^T] over patches p, centred or not, float64 (groups, features, features)."""
        return self._matrix(centered)
