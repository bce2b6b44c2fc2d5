"""The boundary: what enters a core, and how. Nothing is copied or converted without saying so.

numpy arrays and any DLPack CPU exporter (a torch CPU tensor) enter without a copy when they are C-contiguous float32.
Everything else is either converted with a `ConversionWarning` or refused.
"""

from __future__ import annotations

import math
import warnings
from typing import Any

import numpy as np
from numpy.typing import NDArray

from leadline._native import core
from leadline.types import FloatArray, InputError, Scheme, refuse

_CONVERTIBLE = ("float64", "float16", "bfloat16", "float32")
_DLPACK_CPU = 1

Layout = tuple[int, int, int]  # outer, channels, inner


class ConversionWarning(UserWarning):
    """An argument was copied or converted on its way in; the message says which and how to avoid it."""


def _warn(function: str, argument: str, what: str) -> None:
    message = f"[{function}] {argument} was {what}; pass C-contiguous float32 to avoid it."
    warnings.warn(message, ConversionWarning, stacklevel=4)


def as_array(x: Any, argument: str, function: str) -> NDArray[Any]:
    """`x` as a numpy array without a copy: numpy itself, or through DLPack on the CPU. Anything else is refused."""
    if isinstance(x, np.ndarray):
        return x
    if isinstance(x, np.generic):
        return np.asarray(x)
    rule = f"{argument} must be a numpy array or a DLPack CPU tensor"
    if not hasattr(x, "__dlpack__") or not hasattr(x, "__dlpack_device__"):
        raise refuse(function, rule, f"a {type(x).__name__}")
    if int(x.__dlpack_device__()[0]) != _DLPACK_CPU:
        raise refuse(function, f"{rule}: move it to the CPU first", f"a {type(x).__name__} on another device")
    try:
        return np.from_dlpack(x)
    except (BufferError, RuntimeError, TypeError, ValueError) as error:
        # numpy has no bfloat16 of its own: a tensor that can turn itself into float32 is asked to.
        if "bfloat16" in str(getattr(x, "dtype", "")) and hasattr(x, "float"):
            _warn(function, argument, "converted from bfloat16 to float32")
            return np.from_dlpack(x.float())
        raise refuse(function, rule, f"a {type(x).__name__} that does not export: {error}") from error


def as_float32(x: Any, argument: str, function: str) -> FloatArray:
    """`x` as a C-contiguous, aligned, native-endian float32 array.

    Without a copy where it is one already. float64, float16, bfloat16, another byte order and strided arrays are
    converted with a ConversionWarning; integers, bools, complex numbers, objects and lists are refused (InputError).
    """
    array = as_array(x, argument, function)
    if array.dtype.name not in _CONVERTIBLE:
        raise refuse(function, f"{argument} must be float32 (float64, float16 and bfloat16 are converted)", array.dtype)
    if array.dtype != np.float32:
        _warn(function, argument, f"converted from {array.dtype.name} to float32")
    elif not array.dtype.isnative:
        _warn(function, argument, "converted to the native byte order")
    elif not array.flags.c_contiguous or not array.flags.aligned:
        _warn(function, argument, "copied because it is strided")
    with np.errstate(over="ignore"):  # an overflow becomes infinity, which the cores report by name
        return np.require(array, np.dtype("=f4"), ["C_CONTIGUOUS", "ALIGNED"])


def as_weight(weight: Any, function: str) -> FloatArray:
    """`weight` as float32 with at least two axes and one element, all of them finite."""
    array = as_float32(weight, "weight", function)
    if array.ndim < 2 or array.size == 0:
        raise refuse(function, "weight must have at least two axes and one element", array.shape)
    bad = np.count_nonzero(~np.isfinite(array))
    if bad:
        raise refuse(function, "weight must be finite", f"{bad} NaN or infinite values")
    return array


def as_moments(moments: Any, rows: int, features: int, argument: str, function: str) -> NDArray[np.float64]:
    """Second moments of a layer's inputs as float64 (groups, features, features), the rows shared among the groups."""
    values = np.asarray(as_array(moments, argument, function), np.float64)
    array = np.ascontiguousarray(values if values.ndim == 3 else values[None])
    if array.ndim != 3 or array.shape[1:] != (features, features) or not len(array) or rows % len(array):
        rule = f"{argument} must be ({features}, {features}), or one such for each group of the {rows} rows"
        raise refuse(function, rule, values.shape)
    if not np.isfinite(array).all():
        raise refuse(function, f"{argument} must be finite", "NaN or infinite values")
    return array


def as_codes(codes: Any, dtype: np.dtype[Any], argument: str, function: str) -> NDArray[Any]:
    """`codes` as a C-contiguous array of exactly `dtype`; strided ones are copied with a ConversionWarning."""
    array = as_array(codes, argument, function)
    if array.dtype != dtype:
        raise refuse(function, f"{argument} must be {dtype} as its scheme says", array.dtype)
    if not array.flags.c_contiguous or not array.flags.aligned:
        _warn(function, argument, "copied because it is strided")
    return np.require(array, dtype, ["C_CONTIGUOUS", "ALIGNED"])


def check_out(out: Any, x: NDArray[Any], function: str) -> NDArray[Any]:
    """Checks an `out` argument: a writable C-contiguous array of x's dtype and shape, x itself or apart from it."""
    rule = f"out must be a writable C-contiguous {x.dtype} array of shape {x.shape}"
    if not isinstance(out, np.ndarray):
        raise refuse(function, rule, f"a {type(out).__name__}")
    flags = out.flags
    fits = out.dtype == x.dtype and out.dtype.isnative and out.shape == x.shape
    if not (fits and flags.writeable and flags.c_contiguous and flags.aligned):
        state = "" if flags.writeable else ", read-only"
        raise refuse(function, rule, f"{out.dtype} of shape {out.shape}, strides {out.strides}{state}")
    if out.ctypes.data != x.ctypes.data and np.may_share_memory(out, x):
        raise refuse(function, "out must be x itself or apart from it", "two overlapping arrays")
    return out


def not_finite(x: FloatArray, argument: str, function: str, where: str = "") -> InputError:
    """The refusal of an array that holds NaN or infinity, naming the first such element."""
    first = np.unravel_index(int(np.argmin(np.isfinite(x))), x.shape)
    place = tuple(int(i) for i in first)
    return refuse(function, f"{argument} must be finite{where}", f"{x[first]} at index {place}")


def native_scheme(scheme: Scheme, function: str) -> Any:
    """The core's form of a scheme."""
    if not isinstance(scheme, Scheme):
        raise refuse(function, "scheme must be a leadline.Scheme", f"a {type(scheme).__name__}")
    if scheme.bits == 32 and not scheme.signed:
        raise refuse(function, "a 32-bit scheme must be signed", scheme)
    middle = 0 if scheme.signed else 2 ** (scheme.bits - 1)
    return core.Scheme(scheme.qmin, scheme.qmax, middle, scheme.symmetric, scheme.fit == "aimet")


def axis_of(shape: tuple[int, ...], axis: Any, function: str) -> int:
    """`axis` counted from the front; refused if it is not an integer or not in `shape`."""
    if isinstance(axis, bool) or not isinstance(axis, (int, np.integer)):
        raise refuse(function, "axis must be an integer", repr(axis))
    if not -len(shape) <= axis < len(shape):
        raise refuse(function, f"axis must lie in an array of shape {shape}", axis)
    return int(axis) % len(shape)


def axis_layout(shape: tuple[int, ...], axis: int) -> Layout:
    """An array of `shape` as (outer, channels, inner), the channels along `axis`."""
    return math.prod(shape[:axis]), shape[axis], math.prod(shape[axis + 1 :])
