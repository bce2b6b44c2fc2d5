"""What targets take: of a recipe before the work, and of an artefact's types, beyond what every runtime takes."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass, field

import numpy as np
from numpy.typing import NDArray

from leadline.recipe import Calibrate, Recipe
from leadline.types import Granularity, Scheme, refuse

WIDTHS = frozenset(range(2, 17))


@dataclass(frozen=True)
class Rules:
    """The rules of one target, for recipes, placement and export.

    Attributes
    ----------
    name : str
        As `--target` takes it.
    activation_bits, channel_bits : frozenset of int
        Of activations; and of those with a scale for each channel.
    activation_scales, weight_scales : tuple of granularities
    float_activations : bool
        Whether a recipe may leave all activations in float.
    weight_bits : frozenset of int
    weight_signs : bool
        Weights are signed, and symmetric about zero; in 8 bits without the lowest code where `weight_narrow` is set.
    blocks : frozenset of int
        Bits of weights in blocks.
    block_multiple : int
        What the sizes of blocks are multiples of.
    blocks_beside_float : bool
        Weights come in blocks only where activations are float.
    float_only_in_blocks : bool
        Beside float activations there must be weights in blocks.
    own_operators : bool
        Whether it takes, or simulates, operators that leadline brings along: LogNP, rotations at run time.
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
    single_bias_scale : bool
        Where a weight has one scale, so has the bias.
    operators : frozenset of str
        Operator types that run on quantised tensors, beyond those of every target.
    constants : Mapping of str to int
        Operator types whose constant operands need grids, too, and of how many bits (0: as many as the output).
    spelled, spelled_wide : frozenset of str
        Forms of operators (`graph.operators.variant`) that are spelled in others, which compute the same in float
        (`graph.spellings`); the latter only where activations have more than 8 bits.
    refused : Mapping of str to str
        Forms of operators that it does not take, or not without loss, and what to do.
    """

    name: str
    activation_bits: frozenset[int] = WIDTHS
    channel_bits: frozenset[int] = frozenset({4, 8, 16})
    activation_scales: tuple[Granularity, ...] = ("tensor", "axis", "token")
    float_activations: bool = True
    weight_bits: frozenset[int] = WIDTHS
    weight_scales: tuple[Granularity, ...] = ("tensor", "axis", "block")
    weight_signs: bool = False
    weight_narrow: bool = False
    blocks: frozenset[int] = WIDTHS
    block_multiple: int = 1
    blocks_beside_float: bool = False
    float_only_in_blocks: bool = False
    own_operators: bool = True
    one_type: bool = False
    second_operand_bits: int = 16
    resize_keeps_grid: bool = False
    single_scale_bits: int = 2
    multiplier_bits: int | None = None
    dropped_bits: int | None = None
    fraction_bits: int | None = None
    integers_only: bool = False
    single_bias_scale: bool = False
    operators: frozenset[str] = frozenset()
    constants: Mapping[str, int] = field(default_factory=dict)
    spelled: frozenset[str] = frozenset()
    spelled_wide: frozenset[str] = frozenset()
    refused: Mapping[str, str] = field(default_factory=dict)

    def check(self, recipe: Recipe, function: str = "quantize") -> None:
        """Raises InputError, before any work, for a recipe that no network makes this target take. What a recipe
        merely simulates passes: `leadline.export.limits` says it of the artefact."""

        def refused(rule: str, received: object) -> Exception:
            return refuse(function, f"recipe {recipe.name}: {rule}", received)

        steps = ", ".join(step.step for step in recipe.steps) or "none"
        if not any(isinstance(step, Calibrate) for step in recipe.steps):
            raise refused("a recipe must calibrate", f"the steps {steps}")
        weights, activations = recipe.schemes("weights"), recipe.schemes("activations")
        if not any((*weights.values(), *activations.values())):
            raise refused("a recipe must quantise weights or activations", "both in float")
        for place, scheme in activations.items():
            if scheme is not None:
                self._check_activations(scheme, place, refused)
        if recipe.activations is None and not self.float_activations:
            raise refused(f"{self.name} takes no float activations", "activations in float")
        for place, scheme in weights.items():
            if scheme is not None:
                self._check_weights(scheme, place, any(activations.values()), refused)
        blocks = any(scheme is not None and scheme.granularity == "block" for scheme in weights.values())
        if self.float_only_in_blocks and not any(activations.values()) and not blocks:
            raise refused(f"{self.name} takes float activations beside weights in blocks alone", "no blocks")
        for step in recipe.steps:
            if step.own_operators and not self.own_operators:
                raise refused(f"{self.name} has no operators for logarithms and rotations at run time", step.step)

    def _check_activations(self, scheme: Scheme, place: str, refused: Callable[[str, object], Exception]) -> None:
        bits = self.activation_bits & (self.channel_bits if scheme.granularity == "axis" else self.activation_bits)
        if scheme.granularity not in self.activation_scales:
            rule = f"{self.name} takes activations with scales per {' or '.join(self.activation_scales)}"
            raise refused(rule, f"{place} per {scheme.granularity}")
        if scheme.bits not in bits or (scheme.granularity == "axis" and scheme.narrow):
            per = " per channel" if scheme.granularity == "axis" else ""
            received = f"{place} of {scheme.bits} bits{', narrow' if scheme.narrow else ''}"
            raise refused(f"{self.name} takes activations{per} of {_listed(bits)} bits", received)

    def _check_weights(
        self, scheme: Scheme, place: str, beside: bool, refused: Callable[[str, object], Exception]
    ) -> None:
        block = scheme.granularity == "block"
        if scheme.granularity not in self.weight_scales:
            rule = f"{self.name} takes weights with scales per {' or '.join(self.weight_scales)}"
            raise refused(rule, f"{place} per {scheme.granularity}")
        if block and beside and self.blocks_beside_float:
            raise refused(f"{self.name} takes weights in blocks beside float activations alone", f"{place} per block")
        if block and (scheme.block_size or 0) % self.block_multiple:
            rule = f"{self.name} takes weights in blocks of a multiple of {self.block_multiple}"
            raise refused(rule, f"{place} in blocks of {scheme.block_size}")
        bits = self.blocks if block else self.weight_bits
        if scheme.bits not in bits:
            where = " in blocks" if block else ""
            raise refused(f"{self.name} takes weights{where} of {_listed(bits)} bits", f"{place} of {scheme.bits} bits")
        if self.weight_signs and not (scheme.signed and scheme.symmetric):
            received = f"{place} with signed={scheme.signed}, symmetric={scheme.symmetric}"
            raise refused(f"{self.name} takes signed symmetric weights", received)
        if self.weight_narrow and scheme.bits == 8 and not scheme.narrow:
            rule = f"{self.name} takes 8-bit weights that are narrow (-127 to 127)"
            raise refused(rule, f"{place} with narrow=False")


def _listed(bits: frozenset[int]) -> str:
    """The numbers, a run of them by its ends."""
    numbers = sorted(bits)
    if len(numbers) > 2 and numbers == list(range(numbers[0], numbers[-1] + 1)):
        return f"{numbers[0]} to {numbers[-1]}"
    return " or ".join(map(str, numbers))


ONNXRUNTIME = Rules("onnxruntime")


def lost(rules: Rules, bits: int, factor: NDArray[np.float64]) -> NDArray[np.float64]:
    """The unit that sums over inputs of so many bits are cut to, counted in products of codes; below 1: not cut.

    Parameters
    ----------
    bits : int
    factor : array
        Input scale x weight scale / output scale.
    """
    if bits > 8:
        return np.full(np.shape(factor), 0.0 if rules.dropped_bits is None else 2.0**rules.dropped_bits)
    if rules.fraction_bits is None:
        return np.zeros(np.shape(factor))
    exponent = np.frexp(factor)[1] - 1
    unit: NDArray[np.float64] = np.ldexp(1.0, -exponent - rules.fraction_bits)
    return unit
