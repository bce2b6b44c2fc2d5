"""The steps of recipes, each a frozen configuration. What they do lives in ``leadline.steps``."""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar, Literal, get_args

from leadline.types import refuse

Observer = Literal["minmax", "moving-average", "percentile", "entropy", "mse", "sqnr", "octav", "best"]
WeightObserver = Literal["minmax", "percentile", "entropy", "mse", "sqnr", "octav"]
Rounding = Literal["nearest", "descent", "gptq", "adaround", "best"]


def _within(step: str, key: str, value: float, low: float, high: float) -> None:
    if not low <= value <= high:
        raise refuse("Recipe", f"{step}: {key} must lie from {low:g} to {high:g}", repr(value))


@dataclass(frozen=True)
class Fold:
    """Fold BatchNorm, LayerScale and constant per-channel factors into the neighbouring layer. Exact."""

    step: ClassVar[str] = "fold"


@dataclass(frozen=True)
class Heads:
    """Detection heads: part what is only joined to be split again, and compute boxes at more bits than features. Exact.

    On one 8-bit grid for boxes in pixels and scores of 0 to 1, as exports of YOLOv8 ask for, all scores become 0.
    """

    step: ClassVar[str] = "heads"
    separate: bool = False
    """Give boxes and scores an output each; else they stay in one, of `bits` bits."""
    bits: int = 16
    """Of the activations that boxes are decoded in, from the softmax of their logits on."""

    def __post_init__(self) -> None:
        _within("heads", "bits", self.bits, 8, 16)


@dataclass(frozen=True)
class Equalize:
    """Cross-layer equalisation of chains joined by ReLU-like activations, and absorption of high biases.

    Source: Nagel et al., Data-Free Quantization Through Weight Equalization and Bias Correction, 2019, eq. 8-15.
    """

    step: ClassVar[str] = "equalize"
    iterations: int = 20
    """Sweeps over all chains at most; stops early once no scale moves by more than 1 %."""
    max_scale: float = 32.0
    """Scales are clamped to [1/max_scale, max_scale], so that a pruned channel cannot blow up its neighbour."""
    absorb_bias: bool = True
    """Move max(0, mean - 3 std) of each ReLU input into the next layer's bias (means from calibration)."""


@dataclass(frozen=True)
class Rotate:
    """Hadamard rotations that spread outlier channels over all channels. Exact.

    Sources: Ashkboos et al., QuaRot, 2024, for rotating a transformer's weights; `leadline.hadamard.layernorm_rotation`
    for the rotations that LayerNorm does not see.
    """

    step: ClassVar[str] = "rotate"
    residual: bool = True
    """Rotate the residual stream; folded into the weights around it."""
    heads: bool = True
    """Rotate each attention head between value and projection; folded into their weights."""
    online: bool = False
    """Rotate what every linear layer reads by an operator of its own, which runs on the device: the graph gains
    multiplications, and the log counts them. In place of the others. (Feng et al., QuantVGGT, 2025.)"""
    seeds: int = 8
    """Random rotations of the residual stream to choose from: the flattest is kept."""

    def __post_init__(self) -> None:
        _within("rotate", "seeds", self.seeds, 1, 1000)


@dataclass(frozen=True)
class Smooth:
    """Move the spread of channels from activations into weights, where it can be folded. Exact.

    Sources: Xiao et al., SmoothQuant, 2023, eq. 4; Li et al., RepQ-ViT, 2023, for shifts.
    """

    step: ClassVar[str] = "smooth"
    alpha: float = 0.0
    """How much of the spread moves, 0 to 1; 0 chooses for each layer by the predicted error of its output."""
    shift: bool = False
    """Move the middle of each channel's range as well, into the bias of the layer that reads it."""
    attention: bool = True
    """Also scale value against projection, and query against key, channel by channel."""

    def __post_init__(self) -> None:
        _within("smooth", "alpha", self.alpha, 0, 1)


@dataclass(frozen=True)
class Polish:
    """LogNP: quantise the logarithm of activations, channel by channel, with explicit operators around the grid.

    Source: Shen et al., QuartDepth, 2025. No NPU multiplies such codes: for simulation, or look-up tables.
    """

    step: ClassVar[str] = "polish"
    pattern: str = "*"
    """Shell pattern: the layers whose inputs are polished, by name."""
    percentile: float = 95.0
    """Of |x|, for each channel: where the logarithm bends."""
    adaptive: bool = True
    """Choose for each channel among several bends, and none, by the error on its histogram."""

    def __post_init__(self) -> None:
        _within("polish", "percentile", self.percentile, 1, 100)


@dataclass(frozen=True)
class Calibrate:
    """Observe the network on the calibration samples and choose every grid."""

    step: ClassVar[str] = "calibrate"
    activations: Observer = "best"
    """"best" tries min-max, SQNR and Lp ranges for the tensors of each operator type and keeps what simulates
    best on held-out samples."""
    weights: WeightObserver = "mse"
    percentile: float = 99.999
    """Used by "percentile": share of the values, in percent, that the range keeps."""
    p: float = 2.0
    """Exponent of the error that "mse" minimises."""
    momentum: float = 0.01
    """Used by "moving-average": weight of each new sample."""
    widen: float = 0.0
    """Of the activations with fewer than 8 bits, the share (0 to 1) that get 8: those whose grids, each by itself,
    disturb the network's outputs most."""

    def __post_init__(self) -> None:
        _within("calibrate", "widen", self.widen, 0, 1)


@dataclass(frozen=True)
class Round:
    """Turn weights into integer codes."""

    step: ClassVar[str] = "round"
    method: Rounding = "nearest"
    """The others choose codes against the moments of each layer's inputs behind everything quantised upstream:
    "best" keeps, for each layer, what is lowest on held-out samples."""
    compensate: bool = False
    """Round not the weight itself, but the one that makes up for the errors of the layer's inputs; kept where that
    lowers the layer's error on held-out samples."""
    damping: float = 0.0
    """Of the compensation, as a share of the mean second moment; 0 tries several and keeps what is lowest on held-out
    samples."""
    iterations: int = 120
    """Used by "adaround": its steps for each layer."""
    kfac: bool = False
    """Then let a layer's outputs make up for one another, as the network's outputs depend on them (K-FAC); kept where
    the simulated output error falls. Dozens of forward passes for each layer. Ignored by "nearest"."""

    def __post_init__(self) -> None:
        _within("round", "damping", self.damping, 0, 100)


@dataclass(frozen=True)
class CorrectBias:
    """Shift each layer's bias by the mean output error that quantising the layer causes.

    Source: Nagel et al. 2019, section 4.2, in its empirical form.
    """

    step: ClassVar[str] = "correct-bias"


Step = Fold | Heads | Equalize | Rotate | Smooth | Polish | Calibrate | Round | CorrectBias
STEPS: dict[str, type[Step]] = {cls.step: cls for cls in get_args(Step)}
