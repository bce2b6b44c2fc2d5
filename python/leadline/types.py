"""The frozen data that every part of leadline shares: Scheme (the grid wanted) and Grid (the grid found)."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any, Literal, NamedTuple, get_args

import numpy as np
from numpy.typing import NDArray

Granularity = Literal["tensor", "axis", "block", "token"]

FloatArray = NDArray[np.float32]
IntArray = NDArray[np.int32]


class InputError(ValueError):
    """A user's mistake. The message names the function, the rule, and what was received.

    The command line answers it with exit code 2 and without a traceback.
    """


def refuse(function: str, rule: str, received: object) -> InputError:
    """The one message form: ``[function] rule. Received actual.``"""
    return InputError(f"[{function}] {rule.rstrip('.')}. Received {received}.")


def few(names: Sequence[str], longest: int = 10) -> str:
    """Names with commas, cut after `longest`."""
    rest = len(names) - longest
    return ", ".join(names[:longest]) + (f" and {rest} more" if rest > 0 else "")


class Option(NamedTuple):
    """An option of an algorithm: its default, whose type is the option's, and its bounds, both included."""

    default: float
    low: float
    high: float


def chosen_options(
    options: Mapping[str, Option], values: Mapping[str, float], function: str, whose: str
) -> dict[str, float]:
    """All options of an algorithm: `values`, and defaults for the rest. InputError for one that it does not have, or
    out of bounds."""
    unknown = sorted(values.keys() - options.keys())
    if unknown:
        known = f"takes {', '.join(options)}" if options else "takes no option"
        raise refuse(function, f"{whose} {known}", f"option {unknown[0]!r}")
    for name, value in values.items():
        option = options[name]
        if not option.low <= value <= option.high:
            raise refuse(function, f"{name} must lie in [{option.low:g}, {option.high:g}]", value)
    return {name: values.get(name, option.default) for name, option in options.items()}


@dataclass(frozen=True)
class Scheme:
    """The grid wanted for a tensor.

    Parameters
    ----------
    bits : int
        2 to 16, or 32 for a bias.
    signed : bool
        Codes run from -2**(bits-1) when True, from 0 when False.
    symmetric : bool
        Zero point fixed at the middle of the grid: 0 when signed, 2**(bits-1) when unsigned.
    granularity : {"tensor", "axis", "block", "token"}
        One scale for the tensor, one per index of `axis`, or one per run of `block_size` elements along `axis`.
        "token" is for activations in simulation: one scale for each vector along `axis`, from its own extremes, at run
        time.
    axis : int or None
        Needed by "axis" (the channel axis), by "block" (the axis that is cut into blocks, as in ONNX) and by "token"
        (the channel axis).
    block_size : int or None
        Needed by "block".
    narrow : bool
        Leave out the lowest code of a signed symmetric grid (-127..127 at 8 bits).
    fit : {"absmax", "aimet"}
        How a symmetric scale covers [lo, hi]. "absmax": max(|lo|, |hi|) / qmax.
        "aimet": max(-lo / -qmin, hi / qmax), the exact rule of aimet-onnx 2.42, which also uses the lowest code.
    """

    bits: int = 8
    signed: bool = False
    symmetric: bool = False
    granularity: Granularity = "tensor"
    axis: int | None = None
    block_size: int | None = None
    narrow: bool = False
    fit: Literal["absmax", "aimet"] = "absmax"

    def __post_init__(self) -> None:
        for name, kind in (("bits", int), ("signed", bool), ("symmetric", bool), ("narrow", bool)):
            if type(getattr(self, name)) is not kind:
                raise refuse("Scheme", f"{name} must be of type {kind.__name__}", repr(getattr(self, name)))
        for name in ("axis", "block_size"):
            if type(getattr(self, name)) not in (int, type(None)):
                raise refuse("Scheme", f"{name} must be of type int, or None", repr(getattr(self, name)))
        if not (2 <= self.bits <= 16 or self.bits == 32):
            raise refuse("Scheme", "bits must be 2 to 16, or 32 for a bias", repr(self.bits))
        if self.granularity not in get_args(Granularity):
            raise refuse("Scheme", "granularity must be 'tensor', 'axis', 'block' or 'token'", repr(self.granularity))
        if (self.block_size or 0) < 0 or (self.granularity == "block" and not self.block_size):
            raise refuse("Scheme", "granularity 'block' needs a positive block_size", repr(self.block_size))
        if self.narrow and not (self.signed and self.symmetric):
            received = f"signed={self.signed}, symmetric={self.symmetric}"
            raise refuse("Scheme", "narrow applies to a signed symmetric grid", received)
        if self.fit not in ("absmax", "aimet"):
            raise refuse("Scheme", "fit must be 'absmax' or 'aimet'", repr(self.fit))
        if self.granularity == "token" and self.symmetric and not (self.signed and self.fit == "absmax"):
            received = f"signed={self.signed}, fit={self.fit!r}"
            raise refuse("Scheme", "a symmetric grid per token must be signed, with fit 'absmax'", received)

    @property
    def qmin(self) -> int:
        return -(1 << self.bits - 1) + int(self.narrow) if self.signed else 0

    @property
    def qmax(self) -> int:
        return (1 << self.bits - int(self.signed)) - 1

    @property
    def dtype(self) -> np.dtype[Any]:
        """The smallest numpy integer type that holds the codes."""
        size = 8 if self.bits <= 8 else 16 if self.bits <= 16 else 32
        return np.dtype(f"{'int' if self.signed else 'uint'}{size}")

    def at(self, axis: int) -> Scheme:
        """The same scheme along another axis (a per-tensor scheme stays as it is)."""
        return self if self.granularity == "tensor" else replace(self, axis=axis)


@dataclass(frozen=True, eq=False)
class Grid:
    """The grid found for a tensor: real = scale * (code - zero_point).

    `scale` (float32) and `zero_point` (int32) have one shape: () per tensor, (channels,) per axis, and for blocks
    the tensor's own shape with the axis divided by block_size, as ONNX QuantizeLinear lays them out. Per token both
    are () and mean nothing: the scales are found at run time.
    """

    scale: FloatArray
    zero_point: IntArray
    scheme: Scheme

    def __post_init__(self) -> None:
        scale = np.asarray(self.scale, np.float32)
        zero_point = np.asarray(self.zero_point, np.int32)
        if scale.shape != zero_point.shape:
            raise refuse("Grid", "scale and zero_point must have one shape", f"{scale.shape} and {zero_point.shape}")
        if not (np.isfinite(scale).all() and (scale > 0).all()):
            raise refuse("Grid", "scale must be finite and positive", f"values from {scale.min()} to {scale.max()}")
        if zero_point.size and (zero_point.min() < self.scheme.qmin or zero_point.max() > self.scheme.qmax):
            rule = f"zero_point must lie on the grid {self.scheme.qmin}..{self.scheme.qmax}"
            raise refuse("Grid", rule, f"values from {zero_point.min()} to {zero_point.max()}")
        object.__setattr__(self, "scale", scale)
        object.__setattr__(self, "zero_point", zero_point)

    @property
    def lo(self) -> FloatArray:
        """Lowest real value on the grid, per scale."""
        return self.scale * (self.scheme.qmin - self.zero_point).astype(np.float32)

    @property
    def hi(self) -> FloatArray:
        """Highest real value on the grid, per scale."""
        return self.scale * (self.scheme.qmax - self.zero_point).astype(np.float32)

    def __eq__(self, other: object) -> bool:
        return (
            isinstance(other, Grid)
            and self.scheme == other.scheme
            and np.array_equal(self.scale, other.scale)
            and np.array_equal(self.zero_point, other.zero_point)
        )
