"""One layer's way to its quantised form, stage by stage."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray

from leadline import decide
from leadline.affine import choose_grid, range_of
from leadline.equalization import balance
from leadline.rounding import METHODS
from leadline.torch.linear import QuantizedLinear, torch_threads, weight_as_seen
from leadline.torch.observation import Channels, Doubles, Seen
from leadline.types import FloatArray, Grid, Scheme

WEIGHT_SHARES = np.linspace(1.0, 0.5, 21)
TOKEN_SHARES = (0.95, 0.9, 0.85, 0.8, 0.75, 0.7, 0.65, 0.6, 0.55, 0.5)
"""Shares of a range tried: of a weight row's; of all tokens', until one is no better than the one before."""


@dataclass(frozen=True)
class LayerRecord:
    """What was done to a layer.

    Attributes
    ----------
    name : str
    inputs, outputs : int
    tokens : int
        Rows that it was calibrated on.
    rotated : bool
    blocks : int
        Of the rotation, 1 where it mixes all channels; 0 without one.
    alpha : float or None
        Smoothing's exponent, None without smoothing.
    clip : float
        Share of each token's range that its grid covers.
    rounding : str
        The method that gave the codes.
    error_before, error_after : float
        Squared error of the output over its power, bias apart, on held-out rows: rounded to nearest on ranges of
        extremes and nothing else, and as it is now.
    """

    name: str
    inputs: int
    outputs: int
    tokens: int
    rotated: bool
    blocks: int
    alpha: float | None
    clip: float
    rounding: str
    error_before: float
    error_after: float


class Search:
    """What is done is kept if it lowers the error of the layer's output on the rows to judge by."""

    def __init__(self, seen: Seen, weights: Scheme, activations: Scheme | None, clip: bool) -> None:
        self.seen, self.weights, self.activations, self.clip = seen, weights, activations, clip
        self.rows = torch.from_numpy(seen.judged)
        with torch.no_grad():
            self.wanted = self.rows @ seen.linear.weight.T
        self.power = float(self.wanted.double().square().sum())
        self.best = QuantizedLinear.from_float(seen.linear, weights, activations)
        self.lowest = self.before = self.error(self.best)

    def run(self, alphas: Sequence[float], method: str, gate: bool) -> tuple[QuantizedLinear, LayerRecord]:
        alpha, rounding = None, "nearest"
        if not gate:
            self.lowest = np.inf
        # Together, not in turn: where a few wide channels matter little, only the two together or smoothing alone help.
        for basis in self.seen.bases if gate else self.seen.bases[-1:]:
            for exponent in alphas if alphas and not gate else (None, *alphas):
                if self.lowers(self.quantized(basis, exponent)):
                    alpha = exponent
        if self.clip and self.activations is not None:
            self.clip_tokens()
        if METHODS[method].uses_moments:
            codes, how = self.rounded(method)
            if self.lowers(self.like_best(codes)):
                rounding = how
        linear, rotation = self.seen.linear, self.best.rotation
        self.best.train(linear.training)
        return self.best, LayerRecord(
            name=self.seen.name,
            inputs=linear.in_features,
            outputs=linear.out_features,
            tokens=self.seen.tokens,
            rotated=rotation is not None,
            blocks=0 if rotation is None else rotation.blocks,
            alpha=alpha,
            clip=self.best.clip,
            rounding=rounding,
            error_before=self.before,
            error_after=self.lowest,
        )

    def lowers(self, candidate: QuantizedLinear) -> bool:
        error = self.error(candidate)
        if error < self.lowest:
            self.best, self.lowest = candidate, error
            return True
        return False

    def error(self, candidate: QuantizedLinear) -> float:
        """Of the output, over its power; the bias has no part in either."""
        with torch.no_grad():
            got = candidate.prepare(self.rows)[0] @ candidate.dequantized().T
        lost = float((got - self.wanted).double().square().sum())
        return lost / self.power if self.power else lost

    def quantized(self, basis: Channels, alpha: float | None) -> QuantizedLinear:
        linear, rotation, smooth = self.seen.linear, basis.rotation, None
        squares = basis.squares / basis.tokens
        if alpha is not None:
            largest = np.abs(weight_as_seen(linear, rotation)).max(0)
            smooth = balance(basis.maxima, largest, alpha).astype(np.float32)
            squares = squares / np.square(smooth, dtype=np.float64)
        weight = weight_as_seen(linear, rotation, smooth)
        grid = self.grid(weight, squares)
        options: dict[str, Any] = {"activations": self.activations, "rotation": rotation, "smooth": smooth}
        return QuantizedLinear(decide.codes_of(weight, grid)[0], grid, linear.bias, **options)

    def grid(self, weight: FloatArray, squares: Doubles) -> Grid:
        """Row by row the range that leaves the least error, each channel's weighted with its mean square."""
        if not self.clip:
            return decide.weight_grid(weight, self.weights)
        lo, hi = range_of(weight, self.weights)
        grids = (choose_grid(share * lo, share * hi, self.weights) for share in WEIGHT_SHARES)
        power = (squares / (squares.max() or 1.0)).astype(np.float32)
        return decide.least_squares_grid(weight, grids, power, torch_threads())

    def clip_tokens(self) -> None:
        best_share = 1.0
        for share in TOKEN_SHARES:
            self.best.clip = share
            error = self.error(self.best)
            if error >= self.lowest:
                break
            best_share, self.lowest = share, error
        self.best.clip = best_share

    def rounded(self, method: str) -> tuple[NDArray[Any], str]:
        """Codes against what the layer sees, judged by what it sees once quantised."""
        assert self.seen.gram is not None
        best = self.best
        smooth = None if best.smooth is None else best.smooth.numpy()
        gram = self.seen.gram.matrix()
        if best.rotation is not None:
            gram = best.rotation(best.rotation(gram), axis=0)
        if smooth is not None:
            gram /= np.outer(smooth, smooth).astype(np.float64)
        rows = best.prepare(self.rows)[0].double().numpy()
        weight = weight_as_seen(self.seen.linear, best.rotation, smooth)
        held_out = rows.T @ rows / len(rows)
        return decide.codes_of(weight, best.grid, method, gram, held_out=held_out, threads=torch_threads())

    def like_best(self, codes: NDArray[Any]) -> QuantizedLinear:
        best = self.best
        options: dict[str, Any] = {"activations": self.activations, "rotation": best.rotation, "smooth": best.smooth}
        return QuantizedLinear(codes, best.grid, self.seen.linear.bias, clip=best.clip, **options)
