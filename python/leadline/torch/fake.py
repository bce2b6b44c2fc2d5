"""Fake quantisation in torch, with gradients: the values are on a Grid, the gradient goes straight through.

    y = s round(clamp(x / s, qmin - z, qmax - z))

Backwards dy/dx is 1 inside the range and 0 outside (the straight-through estimator of Bengio et al., 2013), and dy/ds
is round(x / s) - x / s inside and the nearer end of the range, in codes, outside (Esser et al., Learned Step Size
Quantization, 2020, eq. 3), times 1 / sqrt(n qmax) for the n elements that share a scale.
"""

from __future__ import annotations

import math
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn

from leadline.types import Grid, Scheme, refuse

SMALLEST = float(np.finfo(np.float32).tiny)


class FakeQuantize(nn.Module):
    """float32 tensors of one shape to the values of a Grid, rounded half to even after a division by the scale.

    Parameters
    ----------
    grid : Grid
        Of any granularity. "token" finds its scales at each call.
    learn_scale : bool
        The scale is a parameter, and learns by LSQ. Zero points stay, and with them real zero on the grid.

    Attributes
    ----------
    scale : Parameter or buffer, float32 in the shape of the grid's
    zero_point : buffer, int32
    scheme : Scheme
    enabled : bool
        False: the tensor passes as it is.
    """

    scale: Tensor
    zero_point: Tensor

    def __init__(self, grid: Grid, learn_scale: bool = False) -> None:
        super().__init__()
        if not isinstance(grid, Grid):
            raise refuse("FakeQuantize", "grid must be a Grid", f"a {type(grid).__name__}")
        if learn_scale and (grid.scheme.granularity == "token" or grid.scheme.bits == 32):
            rule = "a scale that learns must belong to a grid of up to 16 bits, not one for each token"
            raise refuse("FakeQuantize", rule, f"{grid.scheme.bits} bits per {grid.scheme.granularity}")
        self.scheme: Scheme = grid.scheme
        self.enabled = True
        scale = torch.from_numpy(np.array(grid.scale, np.float32))
        if learn_scale:
            self.scale = nn.Parameter(scale)
        else:
            self.register_buffer("scale", scale)
        self.register_buffer("zero_point", torch.from_numpy(np.array(grid.zero_point, np.int32)))

    @property
    def grid(self) -> Grid:
        """As it is now."""
        scale = np.maximum(self.scale.detach().numpy(), SMALLEST).astype(np.float32)
        return Grid(scale.copy(), self.zero_point.numpy().copy(), self.scheme)

    def forward(self, x: Tensor) -> Tensor:
        """Raises InputError where `x` does not have the grid's shape."""
        if not self.enabled:
            return x
        scheme = self.scheme
        if scheme.granularity == "token":
            scale, zero_point = _of_tokens(x, scheme)
        else:
            scale, zero_point = self.scale, self.zero_point.to(torch.float32)
            if scale.requires_grad and torch.is_grad_enabled():
                shares = math.sqrt(max(x.numel() // scale.numel(), 1) * scheme.qmax)
                scale = _ScaledGradient.apply(scale.clamp_min(SMALLEST), 1 / shares)
            scale, zero_point = (spread(part, x.shape, scheme) for part in (scale, zero_point))
        if scheme.bits == 32:  # int32 codes are finer than float32
            return (_rounded(x.double() / scale.double()) * scale.double()).to(x.dtype)
        inside = torch.clamp(x / scale, scheme.qmin - zero_point, scheme.qmax - zero_point)
        return _rounded(inside) * scale

    def extra_repr(self) -> str:
        """What ``print(model)`` says."""
        kind = f"{'' if self.scheme.signed else 'u'}int{self.scheme.bits} per {self.scheme.granularity}"
        return kind + (", learns" if isinstance(self.scale, nn.Parameter) else "")


def spread(part: Tensor, shape: Any, scheme: Scheme) -> Tensor:
    """Scales or zero points of a grid, to be broadcast over a tensor of `shape`. Raises InputError for a misfit."""
    axis = scheme.axis or 0
    if scheme.granularity == "tensor":
        return part
    if axis < len(shape) and scheme.granularity == "axis" and shape[axis] == part.shape[0]:
        return part.reshape([-1 if index == axis else 1 for index in range(len(shape))])
    if scheme.granularity == "block" and part.dim() == len(shape):
        size = scheme.block_size or 1
        whole = part.repeat_interleave(size, axis).narrow(axis, 0, min(shape[axis], part.shape[axis] * size))
        if whole.shape == shape:
            return whole
    rule = f"the tensor must fit scales of shape {tuple(part.shape)} per {scheme.granularity}, axis {axis}"
    raise refuse("FakeQuantize", rule, f"shape {tuple(shape)}")


def _rounded(x: Tensor) -> Tensor:
    """Half to even; the gradient passes. The difference is exact in floating point, so the sum is the whole number."""
    return x + (torch.round(x) - x).detach() if torch.is_grad_enabled() and x.requires_grad else torch.round(x)


def _of_tokens(x: Tensor, scheme: Scheme) -> tuple[Tensor, Tensor]:
    """Scale and zero point of each vector along the scheme's axis, as ``leadline.graph.functions`` computes them."""
    axis, seen = scheme.axis or 0, x.detach()
    if scheme.symmetric:
        scale = seen.abs().amax(axis, keepdim=True) / scheme.qmax
        return torch.where(scale == 0, torch.ones_like(scale), scale), torch.zeros_like(scale)
    low, high = seen.amin(axis, keepdim=True).clamp(max=0), seen.amax(axis, keepdim=True).clamp(min=0)
    scale = (high - low) / (scheme.qmax - scheme.qmin)
    scale = torch.where(scale == 0, torch.ones_like(scale), scale)
    return scale, torch.round(scheme.qmin - low / scale)


class _ScaledGradient(torch.autograd.Function):
    """The tensor itself; its gradient times a factor."""

    @staticmethod
    def forward(ctx: Any, x: Tensor, factor: float) -> Tensor:
        ctx.factor = factor
        return x.view_as(x)

    @staticmethod
    def backward(ctx: Any, gradient: Tensor) -> tuple[Tensor, None]:
        return gradient * ctx.factor, None
