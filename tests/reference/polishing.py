"""The specification of LogNP polishing, in double: y = sign(x) log2(1 + |x| / omega), omega of infinity leaves x."""

from __future__ import annotations

import numpy as np

from leadline import Scheme


def along(values: np.ndarray, shape: tuple[int, ...], axis: int) -> np.ndarray:
    """One value per channel, as it broadcasts against an array of `shape`."""
    around = [1] * len(shape)
    around[axis] = -1
    return np.broadcast_to(np.asarray(values).reshape(around), shape)


def polish(x: np.ndarray, omega: np.ndarray) -> np.ndarray:
    x = x.astype(np.float64)
    with np.errstate(over="ignore"):
        t = np.minimum(np.abs(x) / omega, 2.0**126)
    return np.where(np.isinf(omega), x, np.sign(x) * np.log1p(t) / np.log(2))


def unpolish(y: np.ndarray, omega: np.ndarray) -> np.ndarray:
    y = y.astype(np.float64)
    with np.errstate(invalid="ignore"):
        x = np.sign(y) * omega * np.expm1(np.minimum(np.abs(y), 126.0) * np.log(2))
    return np.where(np.isinf(omega), y, np.clip(x, *(s * float(np.finfo(np.float32).max) for s in (-1, 1))))


def fake_quantize(x: np.ndarray, omega: float, scale: float, zero: int, scheme: Scheme) -> np.ndarray:
    """In double throughout: not where float32 decides which of two neighbouring codes is nearer."""
    codes = np.clip(np.rint(polish(x, np.float64(omega)) / scale) + zero, scheme.qmin, scheme.qmax)
    return unpolish((codes - zero) * scale, np.float64(omega))


def percentile(x: np.ndarray, p: float) -> float:
    """Of |x|; of the nonzero ones where it is zero."""
    magnitude = np.sort(np.abs(x.ravel().astype(np.float64)))
    found = float(np.quantile(magnitude, p / 100))
    return found if found > 0 else float(np.quantile(magnitude[magnitude > 0], p / 100))
