"""What targets ask of an artefact's types, beyond what every runtime takes."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from leadline.types import refuse


@dataclass(frozen=True)
class Profile:
    """The rules of one target, for placement and export.

    Attributes
    ----------
    name : str
        As `--target` takes it.
    one_type : bool
        An operator's inputs must have as many bits as its output. Where they have not, a requantisation goes before it.
    second_operand_bits : int
        The widest activation that MatMul takes as its second input.
    resize_keeps_grid : bool
        Resize gives codes on the grid of its input: with another one its kernels round twice, upwards.
    single_scale_bits : int
        The narrowest weight of a convolution that has only one scale: per tensor, or with a single output channel.
    multiplier_bits : int or None
        Fractional bits of the factor by which sums become codes (input scale x weight scale / output scale), where the
        target rounds it so coarsely that scales are better chosen to suit.
    dropped_bits, fraction_bits : int or None
        What sums lose, rounded down, before they become codes: over 16-bit inputs so many low bits, and the bias with
        the output's offset as many on its own; over 8-bit inputs all but so many bits behind the point of the code, its
        factor's mantissa aside. Biases take the mean of it back.
    integers_only : bool
        Every layer's input needs a grid per tensor, every weight a symmetric one per tensor or channel.
    """

    name: str
    one_type: bool = False
    second_operand_bits: int = 16
    resize_keeps_grid: bool = False
    single_scale_bits: int = 2
    multiplier_bits: int | None = None
    dropped_bits: int | None = None
    fraction_bits: int | None = None
    integers_only: bool = False


ONNXRUNTIME = Profile("onnxruntime")

HEXAGON = Profile(
    "hexagon",
    one_type=True,
    second_operand_bits=8,
    resize_keeps_grid=True,
    single_scale_bits=8,
    multiplier_bits=10,
    dropped_bits=8,
    fraction_bits=4,
    integers_only=True,
)
"""Qualcomm's HTP, as its emulation in onnxruntime-qnn 2.7 answers when asked operator by operator
(`benchmarks/hexagon_operators.py`). A product of two 16-bit activations has its second one cut to 8 bits on the way;
done in the artefact instead, on a grid from calibration, the simulation sees it."""


def lost(profile: Profile, bits: int, factor: NDArray[np.float64]) -> NDArray[np.float64]:
    """The unit that sums over inputs of so many bits are cut to, counted in products of codes; below 1: not cut.

    Parameters
    ----------
    bits : int
    factor : array
        Input scale x weight scale / output scale.
    """
    if bits > 8:
        return np.full(np.shape(factor), 0.0 if profile.dropped_bits is None else 2.0**profile.dropped_bits)
    if profile.fraction_bits is None:
        return np.zeros(np.shape(factor))
    exponent = np.frexp(factor)[1] - 1
    unit: NDArray[np.float64] = np.ldexp(1.0, -exponent - profile.fraction_bits)
    return unit


PROFILES = {profile.name: profile for profile in (ONNXRUNTIME, HEXAGON)}


def profile_of(target: str, function: str = "quantize") -> Profile:
    """By name. Raises InputError, from the function that was given it, for an unknown one."""
    if target not in PROFILES:
        raise refuse(function, f"target must be one of {', '.join(PROFILES)}", repr(target))
    return PROFILES[target]
