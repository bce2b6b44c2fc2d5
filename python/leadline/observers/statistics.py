"""Statistics of a tensor that see each batch once, merge, and do not grow with the number of samples.

`MinMax` and `MovingAverage` keep a range, `Histogram` a log-linear histogram.
"""

from __future__ import annotations

import copy
from typing import Any, Self

import numpy as np
from numpy.typing import ArrayLike, NDArray

from leadline._native import core, thread_count
from leadline.arrays import Layout, as_float32, axis_layout, axis_of, not_finite
from leadline.types import FloatArray, refuse

__all__ = ["Histogram", "MinMax", "MovingAverage"]


class _Statistics:
    """What statistics share: the axis, the name for messages, and the check of what comes in.

    Parameters
    ----------
    axis : int or None
        The channel axis; None observes the tensor as a whole.
    name : str or None
        The tensor's name, for messages.
    """

    def __init__(self, axis: int | None = None, name: str | None = None) -> None:
        self.axis = axis if axis is None else int(axis)
        self.name = name
        self._channels: int | None = None if axis is not None else 1

    @property
    def _title(self) -> str:
        return f"{type(self).__name__}.update"

    @property
    def _shape(self) -> tuple[int, ...]:
        return () if self.axis is None else (self._channels or 0,)

    def _where(self, sample: object) -> str:
        tensor = f" in tensor {self.name!r}" if self.name is not None else ""
        return tensor + (f", sample {sample}" if sample is not None else "")

    def _enter(self, x: Any) -> tuple[FloatArray, Layout]:
        array = as_float32(x, "x", self._title)
        if self.axis is None:
            return array, (1, 1, array.size)
        axis = axis_of(array.shape, self.axis, self._title)
        if self._channels not in (None, array.shape[axis]):
            rule = f"x must have {self._channels} channels on axis {self.axis}{self._where(None)}, as before"
            raise refuse(self._title, rule, f"shape {array.shape}")
        return array, axis_layout(array.shape, axis)

    def _check_other(self, other: object) -> None:
        title = f"{type(self).__name__}.merge"
        if type(other) is not type(self):
            raise refuse(title, f"other must be a {type(self).__name__}", f"a {type(other).__name__}")
        assert isinstance(other, _Statistics)
        if other.axis != self.axis:
            raise refuse(title, "both must observe the same axis", f"{self.axis} and {other.axis}")
        if None not in (self._channels, other._channels) and self._channels != other._channels:
            raise refuse(title, "both must have the same channels", f"{self._channels} and {other._channels}")

    def _nothing_seen(self) -> Exception:
        return refuse(type(self).__name__, f"there must be data first{self._where(None)}", "none so far")


class MinMax(_Statistics):
    """The running minimum and maximum, per tensor or along `axis`: `lo` and `hi`, float32, () or (channels,)."""

    def __init__(self, axis: int | None = None, name: str | None = None) -> None:
        super().__init__(axis, name)
        self._range: tuple[FloatArray, FloatArray] | None = None

    def _batch(self, x: Any, sample: object, threads: int | None) -> tuple[FloatArray, FloatArray] | None:
        array, layout = self._enter(x)
        lo, hi = np.empty(layout[1], np.float32), np.empty(layout[1], np.float32)
        if not core.range(array, layout, lo, hi, thread_count(threads, self._title)):
            raise not_finite(array, "x", self._title, self._where(sample))
        self._channels = layout[1]
        return None if array.size == 0 else (lo.reshape(self._shape), hi.reshape(self._shape))

    def _take(self, lo: FloatArray, hi: FloatArray) -> None:
        if self._range is not None:
            lo, hi = np.minimum(lo, self._range[0]), np.maximum(hi, self._range[1])
        self._range = (np.asarray(lo), np.asarray(hi))

    def update(self, x: Any, sample: object = None, threads: int | None = None) -> Self:
        """Takes in `x` (float32, any shape). InputError, naming tensor and `sample`, if it holds NaN or infinity."""
        batch = self._batch(x, sample, threads)
        if batch is not None:
            self._take(*batch)
        return self

    def merge(self, other: Self) -> Self:
        """Takes in what `other` has seen. Order does not matter."""
        self._check_other(other)
        if other._range is not None:
            self._channels = other._channels
            self._take(*other._range)
        return self

    @property
    def lo(self) -> FloatArray:
        if self._range is None:
            raise self._nothing_seen()
        return self._range[0]

    @property
    def hi(self) -> FloatArray:
        if self._range is None:
            raise self._nothing_seen()
        return self._range[1]


class MovingAverage(MinMax):
    """An exponential moving average of each batch's minimum and maximum: m += momentum * (new - m).

    The first batch starts it. torch.ao and onnxruntime use momentum 0.01. `merge(other)` gives what one observer would
    hold had it seen other's batches after its own; so, unlike elsewhere, order matters.
    """

    def __init__(self, momentum: float = 0.01, axis: int | None = None, name: str | None = None) -> None:
        super().__init__(axis, name)
        if not 0.0 < momentum <= 1.0:
            raise refuse("MovingAverage", "momentum must lie in (0, 1]", repr(momentum))
        self.momentum = float(momentum)
        self._first: NDArray[np.float64] | None = None
        self._mean: NDArray[np.float64] | None = None
        self._batches = 0

    def _take(self, lo: FloatArray, hi: FloatArray) -> None:
        new = np.stack([lo, hi]).astype(np.float64)
        if self._first is None or self._mean is None:
            self._first, self._mean = new, new
        else:
            self._mean = self._mean + self.momentum * (new - self._mean)
        self._batches += 1
        self._store()

    def _store(self) -> None:
        assert self._mean is not None
        self._range = (np.asarray(self._mean[0], np.float32), np.asarray(self._mean[1], np.float32))

    def merge(self, other: Self) -> Self:
        self._check_other(other)
        if other.momentum != self.momentum:
            raise refuse("MovingAverage.merge", "both must have one momentum", f"{self.momentum} and {other.momentum}")
        if other._mean is None or other._first is None:
            return self
        if self._mean is None or self._first is None:
            self._first, self._mean = other._first, other._mean
        else:  # other's average, as if it had not started from its first batch but gone on from here
            self._mean = other._mean + (1.0 - self.momentum) ** other._batches * (self._mean - other._first)
        self._batches += other._batches
        self._channels = other._channels
        self._store()
        return self


class Histogram(_Statistics):
    """A mergeable log-linear histogram, 16 buckets to the octave, with each bucket's first and second moment.

    A bucket is a float's sign, exponent and top four bits of its mantissa: no range to guess, no first batch that
    decides. All counts and moments are integers, so that neither the order of batches, nor merging, nor the number of
    threads changes a bit. |x| < 2**-130 counts as zero. Memory: 24 bytes a bucket in use, some 30 kB for a tensor.

    Parameters
    ----------
    axis : int or None
        One histogram per index of this axis; None: one for the tensor.
    name : str or None
        The tensor's name, for messages.

    Attributes
    ----------
    lo, hi : float32, exact minimum and maximum; count, zeros : uint64; sum, sum_sq : float64. Shape () or (channels,).
    """

    def __init__(self, axis: int | None = None, name: str | None = None) -> None:
        super().__init__(axis, name)
        self._native: Any = core.Histogram(1) if axis is None else None

    def update(self, x: Any, sample: object = None, threads: int | None = None) -> Self:
        """Takes in `x` (float32, any shape). InputError, naming tensor and `sample`, if it holds NaN or infinity;
        nothing has changed then.
        """
        array, layout = self._enter(x)
        count = thread_count(threads, self._title)
        if self._native is None:
            self._native, self._channels = core.Histogram(layout[1]), layout[1]
        if not self._native.update(array, layout, count):
            raise not_finite(array, "x", self._title, self._where(sample))
        return self

    def merge(self, other: Self) -> Self:
        """Takes in what `other` has seen, exactly. Order does not matter."""
        self._check_other(other)
        if other._native is not None:
            if self._native is None:
                self._native, self._channels = core.Histogram(other._channels), other._channels
            self._native.merge(other._native)
        return self

    def _read(self, what: str) -> NDArray[Any]:
        if self._native is None:
            raise self._nothing_seen()
        values: NDArray[Any] = getattr(self._native, what)()
        return values.reshape(self._shape)

    def _extreme(self, what: str) -> FloatArray:
        values = self._read(what)
        return np.where(np.isfinite(values), values, np.float32(0))

    @property
    def lo(self) -> FloatArray:
        return self._extreme("lo")

    @property
    def hi(self) -> FloatArray:
        return self._extreme("hi")

    @property
    def count(self) -> NDArray[np.uint64]:
        return self._read("count")

    @property
    def zeros(self) -> NDArray[np.uint64]:
        return self._read("zeros")

    @property
    def sum(self) -> NDArray[np.float64]:
        return self._read("sum")

    @property
    def sum_sq(self) -> NDArray[np.float64]:
        return self._read("sum_sq")

    def to_arrays(self) -> dict[str, NDArray[Any]]:
        """The whole state as plain arrays, for `numpy.savez`: count, zeros, lo, hi (one entry a channel) and
        buckets (uint64, columns channel, sign, key, count, first moment, second moment).
        """
        if self._native is None:
            raise self._nothing_seen()
        return {k: getattr(self._native, k)() for k in ("count", "zeros", "lo", "hi", "buckets")}

    def binned(self, edges: ArrayLike) -> NDArray[np.float64]:
        """How many values lie between neighbouring `edges` (ascending), all channels together: for plots.

        A bucket that an edge cuts counts in proportion, as if its values were spread evenly over its span (a
        sixteenth of an octave at most). Returns (len(edges) - 1,) float64.
        """
        cuts = np.asarray(edges, np.float64)
        if cuts.ndim != 1 or cuts.size < 2 or not (np.diff(cuts) > 0).all():
            raise refuse("Histogram.binned", "edges must be at least two ascending numbers", edges)
        state = self.to_arrays()
        _, sign, key, count = state["buckets"][:, :4].T
        # The key is the upper bits of the float: the next one's float is where the bucket ends.
        inner, outer = (
            ((key + step) << np.uint64(19)).astype(np.uint32).view(np.float32).astype(float)
            for step in np.array([0, 1], np.uint64)
        )
        low = np.where(sign > 0, -outer, inner)
        high = np.where(sign > 0, -inner, outer)
        low, high = np.maximum(low, state["lo"].min()), np.minimum(high, state["hi"].max())
        share = (np.clip(cuts[None, :], low[:, None], high[:, None]) - low[:, None]) / np.maximum(high - low, 1e-300)[
            :, None
        ]
        # A bucket of one value (at an extreme) belongs to the bin that holds it.
        share = np.where((high <= low)[:, None], cuts[None, :] > low[:, None], share)
        below = count.astype(float) @ share + float(state["zeros"].sum()) * (cuts > 0)
        below[-1] += float(state["zeros"].sum()) * (cuts[-1] == 0)
        counts: NDArray[np.float64] = np.diff(below)
        return counts

    @classmethod
    def from_arrays(cls, arrays: dict[str, NDArray[Any]], axis: int | None = None, name: str | None = None) -> Self:
        """The histogram that `to_arrays` wrote. ValueError if the arrays are not such a state."""
        missing = {"count", "zeros", "lo", "hi", "buckets"} - set(arrays)
        if missing:
            raise refuse("Histogram.from_arrays", f"arrays must hold {sorted(missing)}", sorted(arrays))
        out = cls(axis, name)
        u64 = [np.ascontiguousarray(arrays[k], np.uint64) for k in ("count", "zeros", "buckets")]
        f32 = [np.ascontiguousarray(arrays[k], np.float32) for k in ("lo", "hi")]
        if axis is None and u64[0].size != 1:
            raise refuse("Histogram.from_arrays", "several channels need an axis", f"{u64[0].size} channels")
        out._native = core.Histogram.from_arrays(u64[0], u64[1], *f32, u64[2])
        out._channels = u64[0].size
        return out

    def __getstate__(self) -> dict[str, Any]:
        state = self.__dict__.copy()
        state["_native"] = None if self._native is None else self.to_arrays()
        return state

    def __setstate__(self, state: dict[str, Any]) -> None:
        self.__dict__.update(state)
        if state["_native"] is not None:
            self._native = Histogram.from_arrays(state["_native"], self.axis)._native

    def copy(self) -> Self:
        return copy.deepcopy(self)
