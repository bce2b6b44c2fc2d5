"""QuantVGGT's order on a torch model: rotate, smooth, quantise each linear layer, by what it sees in float.

Feng et al., QuantVGGT (2025). Unlike the authors' code, the rotation is n log n steps and not a dense product, and
smoothing looks at the maxima of the rotated weight, which is what it scales. Both are done only where they lower the
error of the layer's output, on rows that calibration did not see.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, replace
from fnmatch import fnmatchcase
from typing import Any

import numpy as np
from torch import nn

from leadline.gram import Gram
from leadline.hadamard import LARGEST, random_rotation
from leadline.progress import Progress, Quiet
from leadline.rounding import METHODS
from leadline.torch.conv import QuantizedConv2d, as_linear, obstacle
from leadline.torch.linear import PER_ROW, replace_module, weight_as_seen
from leadline.torch.observation import Seen, observe
from leadline.torch.search import LayerRecord, Search
from leadline.types import refuse

__all__ = ["LayerRecord", "Report", "quantize_linears"]


@dataclass(frozen=True)
class Report:
    """`layers` in the model's order, and `left`: why others that the pattern names stayed in float. Prints a table."""

    layers: tuple[LayerRecord, ...]
    left: Mapping[str, str]

    def __str__(self) -> str:
        width = max((len(record.name) for record in self.layers), default=5)
        lines = [f"{'layer':<{width}}  {'weight':>11}  rotated  alpha   clip  error before   after"]
        for r in self.layers:
            alpha = "-" if r.alpha is None else f"{r.alpha:g}"
            kind = "-" if not r.rotated else "yes" if r.blocks == 1 else f"/{r.blocks}"
            cells = f"{r.outputs}x{r.inputs}".rjust(11), kind.rjust(7), alpha.rjust(5), f"{r.clip:5.2f}"
            lines.append(f"{r.name:<{width}}  {'  '.join(cells)}  {r.error_before:12.2%} {r.error_after:7.2%}")
        return "\n".join(lines + [f"{name} is left in float: {why}" for name, why in self.left.items()])


def quantize_linears(
    module: nn.Module,
    data: Iterable[Any],
    *,
    pattern: str = "*",
    convolutions: bool = False,
    weight_bits: int = 4,
    activation_bits: int | None = 4,
    rotate: bool = True,
    smooth: float | Sequence[float] | None = 0.5,
    clip: bool = True,
    gate: bool = True,
    rounding: str = "nearest",
    momentum: float | None = None,
    seed: int = 0,
    progress: Progress | None = None,
) -> Report:
    """Replaces the linear layers of a float model by quantised ones, in place; biases and all else stay float.

    Parameters
    ----------
    module : nn.Module
        On the CPU; ``copy.deepcopy`` it first to keep the float one. It is run in eval mode.
    data : iterable of batches
        A batch is what `module` is called with: a tensor, a tuple or list of arguments, or a dict of keywords. With a
        length of 4 or more, every fourth batch is held out; otherwise every fourth token of each.
    pattern : str
        Shell pattern for the names of ``nn.Linear`` modules (``blocks.*.qkv``). A later call may name others: it sees
        the layers of the earlier one quantised.
    convolutions : bool
        ``nn.Conv2d`` modules that the pattern names, too, as layers of their patches (`QuantizedConv2d`): kernels of
        1x1 as linear layers are, others without rotation; with groups they stay in float.
    weight_bits : int
        2 to 16: symmetric, a grid for each output.
    activation_bits : int or None
        2 to 16: symmetric, a grid for each token at run time. None: activations stay float.
    rotate : bool
        Each layer gets a random Hadamard rotation of its own, at run time.
    smooth : float, sequence of floats or None
        Exponent of smoothing, in [0, 1]: c = max|x|^alpha / max|w|^(1 - alpha) for each (rotated) channel, centred on
        a geometric mean of one. Of several the best of each layer is taken.
    clip : bool
        Weights get, row by row, and tokens for the layer, that share of their range which leaves the least error.
        (QuantVGGT learns both by gradient descent.)
    gate : bool
        A layer is rotated, smoothed, both or neither, whatever leaves the least error. False: every layer as asked.
    rounding : str
        One of `leadline.rounding.METHODS`. All but "nearest" work on the Gram matrix of what the layer sees: 8 in^2
        bytes for each layer of the pattern while calibration runs.
    momentum : float or None
        None: maxima are over all tokens. In [0, 1): a moving average of the batches' maxima, in which the past has
        this weight (QuantVGGT: 0.95).
    seed : int
        Of the rotations and of the choice of rows to judge by.
    progress : progress.Bars, optional

    Returns
    -------
    Report

    Raises
    ------
    InputError : an argument does not fit, a layer is not float32 on the CPU or sees NaN, or nothing matches.
    """
    alphas = _check(module, weight_bits, activation_bits, smooth, rounding, momentum)
    progress = progress or Quiet()
    kinds = (nn.Linear, nn.Conv2d) if convolutions else (nn.Linear,)
    named = {n: m for n, m in module.named_modules() if isinstance(m, kinds) and fnmatchcase(n, pattern) and n}
    if not named:
        what = "an nn.Linear or nn.Conv2d" if convolutions else "an nn.Linear"
        raise refuse("quantize_linears", f"pattern must match {what} inside the module", repr(pattern))
    reasons = {n: obstacle(m) for n, m in named.items() if type(m) is not nn.Linear}
    left = {n: f"it is {why}" if why.startswith("a ") else f"it has {why}" for n, why in reasons.items() if why}
    seen: dict[str, Seen] = {}
    uses_moments = METHODS[rounding].uses_moments
    for place, (name, layer) in enumerate(named.items()):
        if name not in left:
            conv = layer if isinstance(layer, nn.Conv2d) else None
            linear = as_linear(layer) if isinstance(layer, nn.Conv2d) else layer
            weight_as_seen(linear)  # refuses what cannot be quantised before anything has run
            size = linear.in_features
            turned = rotate and 1 < size <= LARGEST and (conv is None or conv.kernel_size == (1, 1))
            rotation = random_rotation(size, seed + place) if turned else None
            judged = np.random.default_rng((seed, place))
            seen[name] = Seen(
                name, linear, rotation, momentum, Gram(size, name) if uses_moments else None, judged, conv
            )
    observe(module, seen.values(), data, progress)
    for name, s in seen.items():
        if not s.tokens:
            left[name] = "its forward was never called"
        elif not (s.bases[0].tokens and len(s.judged)):
            left[name] = f"{s.tokens} tokens are too few to fit to and to judge by"
    weights = replace(PER_ROW, bits=weight_bits)
    activations = None if activation_bits is None else replace(PER_ROW, bits=activation_bits)
    records = []
    reached = [s for name, s in seen.items() if name not in left]
    for s in progress.over(reached, "linear layers", len(reached)):
        linear, record = Search(s, weights, activations, clip).run(alphas, rounding, gate)
        replace_module(module, s.conv or s.linear, linear if s.conv is None else QuantizedConv2d(linear, s.conv))
        records.append(record)
        s.gram = None  # its memory goes before the next layer is worked on
    return Report(tuple(records), left)


def _check(
    module: Any, weight_bits: Any, activation_bits: Any, smooth: Any, rounding: Any, momentum: Any
) -> tuple[float, ...]:
    """The exponents to try. Raises InputError."""
    if not isinstance(module, nn.Module) or isinstance(module, nn.Linear):
        rule = "module must be an nn.Module that holds linear layers (of one alone: QuantizedLinear.from_float)"
        raise refuse("quantize_linears", rule, f"a {type(module).__name__}")
    for name, bits in (("weight_bits", weight_bits), ("activation_bits", activation_bits)):
        optional = name == "activation_bits" and bits is None
        if not optional and (isinstance(bits, bool) or not isinstance(bits, int) or not 2 <= bits <= 16):
            raise refuse("quantize_linears", f"{name} must be an integer from 2 to 16", repr(bits))
    alphas = () if smooth is None else tuple(smooth) if isinstance(smooth, Sequence) else (smooth,)
    for alpha in alphas:
        if isinstance(alpha, bool) or not isinstance(alpha, (int, float)) or not 0 <= alpha <= 1:
            raise refuse(
                "quantize_linears", "smooth must lie in [0, 1], or be a sequence of such, or None", repr(smooth)
            )
    if rounding not in METHODS:
        raise refuse("quantize_linears", f"rounding must be one of {', '.join(METHODS)}", repr(rounding))
    if momentum is not None and not 0 <= momentum < 1:
        raise refuse("quantize_linears", "momentum must lie in [0, 1), or be None", repr(momentum))
    return alphas
