"""A linear layer whose weight is integer codes and whose input is rotated, smoothed and put on a grid before it.

    y = Q((x R) / c) Q((W R) * c)^T + b

R is orthogonal and c divides what it multiplies, so that without Q this is x W^T + b. Sources: Ashkboos et al., QuaRot
(2024), for the rotation; Xiao et al., SmoothQuant (2023), eq. 3, for c; Feng et al., QuantVGGT (2025), for both in this
order, with grids found for each token as it comes.
"""

from __future__ import annotations

import math
from collections.abc import Mapping
from typing import Any

import numpy as np
import torch
from torch import nn
from torch.nn import functional

from leadline import decide
from leadline.affine import choose_grid, dequantize, fake_quantize, range_of
from leadline.hadamard import Rotation
from leadline.torch.state import pack, unpack
from leadline.types import FloatArray, Grid, InputError, Scheme, refuse

__all__ = ["PER_ROW", "QuantizedLinear", "weight_as_seen"]

PER_ROW = Scheme(4, signed=True, symmetric=True, granularity="axis", axis=0)
"""QuantVGGT's four bits: of a weight, a grid for each output; of an activation, one for each token at run time."""

_BUFFERS = ("codes", "scale", "zero_point", "smooth", "activation_scale", "activation_zero_point")


class QuantizedLinear(nn.Module):
    """A linear layer on integer codes; `from_float` makes one of an ``nn.Linear``.

    Parameters
    ----------
    codes : integer array (out, in)
        Of the weight as it is behind rotation and smoothing, of dtype `grid.scheme.dtype`.
    grid : Grid
        Of `codes`: per tensor, per output (axis 0), or in blocks along axis 1.
    bias : float32 tensor (out,), optional
    activations : Scheme, Grid or None
        The input seen as (tokens, in): a Scheme is dynamic, its grids are found at each call, for each token (axis 0)
        or for all (per tensor); a Grid is static, per tensor or for each channel (axis 1). None: no grid.
    rotation : hadamard.Rotation, optional
        Of size in; computed at run time, in n log n steps.
    smooth : (in,) array, optional
        What rotated inputs are divided by: finite and positive.
    clip : float
        Share of each token's range that a dynamic grid covers, in (0, 1].

    Attributes
    ----------
    codes, scale, zero_point, smooth, activation_scale, activation_zero_point : buffers, or None where there is none
    bias : Parameter or None
    weight_scheme, activation_scheme : Scheme (or None for the latter)
    rotation, clip : as given

    The input is float32 on the CPU, of shape (..., in). Gradients pass the quantiser straight through to the input
    (zero where a static grid saturates) and reach the bias; codes are integers and do not learn. Threads are torch's.
    """

    codes: torch.Tensor
    scale: torch.Tensor
    zero_point: torch.Tensor
    smooth: torch.Tensor | None
    activation_scale: torch.Tensor | None
    activation_zero_point: torch.Tensor | None

    def __init__(
        self,
        codes: Any,
        grid: Grid,
        bias: torch.Tensor | None = None,
        *,
        activations: Scheme | Grid | None = PER_ROW,
        rotation: Rotation | None = None,
        smooth: Any = None,
        clip: float = 1.0,
    ) -> None:
        super().__init__()
        values = np.asarray(codes)
        if values.ndim != 2:
            raise refuse("QuantizedLinear", "codes must have shape (out, in)", values.shape)
        if grid.scheme.bits > 16:
            raise refuse("QuantizedLinear", "weights must have at most 16 bits", grid.scheme.bits)
        self.out_features, self.in_features = values.shape
        dequantize(values, grid)  # refuses what does not fit
        self.rotation = _rotation(rotation, self.in_features)
        self.clip = _clip(clip)
        static = activations if isinstance(activations, Grid) else None
        self.weight_scheme, self.activation_scheme = grid.scheme, _activations(activations, self.in_features)
        self.register_buffer("codes", _owned(values))
        self.register_buffer("scale", _owned(grid.scale))
        self.register_buffer("zero_point", _owned(grid.zero_point))
        self.register_buffer("smooth", None if smooth is None else _owned(_smooth(smooth, self.in_features)))
        self.register_buffer("activation_scale", None if static is None else _owned(static.scale))
        self.register_buffer("activation_zero_point", None if static is None else _owned(static.zero_point))
        if bias is not None and tuple(bias.shape) != (self.out_features,):
            raise refuse("QuantizedLinear", f"bias must have shape ({self.out_features},)", tuple(bias.shape))
        learns = bias is not None and bias.requires_grad
        self.bias = None if bias is None else nn.Parameter(bias.detach().clone(), requires_grad=learns)

    @classmethod
    def from_float(
        cls,
        linear: nn.Linear,
        weights: Scheme | Grid = PER_ROW,
        activations: Scheme | Grid | None = PER_ROW,
        *,
        rotation: Rotation | None = None,
        smooth: Any = None,
        clip: float = 1.0,
    ) -> QuantizedLinear:
        """The quantised form of `linear`, which stays as it is.

        Parameters
        ----------
        linear : nn.Linear
            float32, on the CPU. Subclasses are refused: they may compute something else.
        weights : Scheme or Grid
            A Scheme: ranges are the extremes of the rotated and smoothed weight. A Grid is of that weight too.
        activations, rotation, smooth, clip : as in the class

        Raises
        ------
        InputError : what does not fit, by the argument's name.
        """
        if not isinstance(weights, (Scheme, Grid)):
            raise refuse("QuantizedLinear", "weights must be a Scheme or a Grid", f"a {type(weights).__name__}")
        weight = weight_as_seen(linear, rotation, smooth)
        grid = weights if isinstance(weights, Grid) else decide.weight_grid(weight, weights)
        options: dict[str, Any] = {"rotation": rotation, "smooth": smooth, "clip": clip}
        quantized = cls(decide.codes_of(weight, grid)[0], grid, linear.bias, activations=activations, **options)
        quantized.train(linear.training)
        return quantized

    @property
    def grid(self) -> Grid:
        """Of the weight."""
        return Grid(self.scale.numpy(), self.zero_point.numpy(), self.weight_scheme)

    @property
    def activations(self) -> Scheme | Grid | None:
        """As given."""
        scheme, scale, zero_point = self.activation_scheme, self.activation_scale, self.activation_zero_point
        if scheme is None or scale is None or zero_point is None:
            return scheme
        return Grid(scale.numpy(), zero_point.numpy(), scheme)

    def dequantized(self) -> torch.Tensor:
        """The weight's values on their grid, float32 (out, in), in the rotated and smoothed channels."""
        return torch.from_numpy(dequantize(self.codes.numpy(), self.grid))

    def forward(self, input: torch.Tensor) -> torch.Tensor:
        """float32 (..., in) to (..., out). Raises InputError for another dtype, device or size, and for NaN."""
        check_float32("QuantizedLinear", "input", input)
        if input.ndim == 0 or input.shape[-1] != self.in_features:
            raise refuse("QuantizedLinear", f"input must have shape (..., {self.in_features})", tuple(input.shape))
        apply: Any = _Prepare.apply
        return functional.linear(apply(input, self), self.dequantized(), self.bias)

    def extra_repr(self) -> str:
        """What ``print(model)`` says."""
        parts = [f"{self.in_features}, {self.out_features}, bias={self.bias is not None}"]
        parts.append(f"weights={_short(self.weight_scheme)}")
        kind = "static " if self.activation_scale is not None else "dynamic " if self.activation_scheme else ""
        parts.append(f"activations={kind}{_short(self.activation_scheme)}")
        if self.rotation is not None:
            parts.append("rotated" if self.rotation.blocks == 1 else f"rotated in {self.rotation.blocks} blocks")
        if self.smooth is not None:
            parts.append("smoothed")
        if self.clip < 1:
            parts.append(f"clip={self.clip:g}")
        return ", ".join(parts)

    def get_extra_state(self) -> torch.Tensor:
        """Schemes, clip and rotation, as bytes."""
        return pack(self.weight_scheme, self.activation_scheme, self.clip, self.rotation)

    def set_extra_state(self, state: Any) -> None:
        """Takes over what `get_extra_state` gave."""
        self.weight_scheme, self.activation_scheme, self.clip, self.rotation = unpack(state)

    def _load_from_state_dict(self, state_dict: Mapping[str, Any], prefix: str, *rest: Any) -> None:
        # A state may come from other grids, with smoothing or without: buffers take its form, as long as sizes agree.
        codes = state_dict.get(f"{prefix}codes")
        if codes is not None and codes.shape == self.codes.shape:
            for name in _BUFFERS:
                value = state_dict.get(prefix + name)
                setattr(self, name, None if value is None else torch.empty_like(value, device="cpu"))
        super()._load_from_state_dict(state_dict, prefix, *rest)

    def __getattr__(self, name: str) -> Any:
        if name == "weight":
            what = "QuantizedLinear has no float weight: whatever reads it would pass by the quantisation"
            hint = "torch's fused transformer layers do, until torch.backends.mha.set_fastpath_enabled(False)"
            raise AttributeError(f"{what} ({hint})")
        return super().__getattr__(name)

    def prepare(self, input: torch.Tensor, gradient: bool = False) -> tuple[torch.Tensor, torch.Tensor | None]:
        """Q((x R) / c); and, for a gradient, where a static grid does not saturate (else, and without one, None)."""
        threads = torch_threads()
        rows = input.detach().reshape(-1, self.in_features).contiguous()
        values = rows if self.rotation is None else torch.from_numpy(self.rotation(rows, threads=threads))
        if self.smooth is not None:
            values = torch.div(values, self.smooth, out=None if values is rows else values)
        activations, inside, array = self.activations, None, values.numpy()
        into = None if values is rows else array
        try:
            if isinstance(activations, Scheme):
                low, high = range_of(array, activations, threads)
                grid = choose_grid(self.clip * low, self.clip * high, activations)
                values = torch.from_numpy(fake_quantize(array, grid, threads, into))
            elif activations is not None:
                if gradient:
                    lo, hi = torch.from_numpy(np.asarray(activations.lo)), torch.from_numpy(np.asarray(activations.hi))
                    inside = (values >= lo) & (values <= hi)
                values = torch.from_numpy(fake_quantize(array, activations, threads, into))
        except InputError as error:
            bad = torch.nonzero(~torch.isfinite(rows).all(1))
            if len(bad):
                received = f"NaN or infinity in token {int(bad[0])}"
                raise refuse("QuantizedLinear", "input must be finite", received) from error
            raise
        return values.reshape(input.shape), None if inside is None else inside.reshape(input.shape)


class _Prepare(torch.autograd.Function):
    """`QuantizedLinear.prepare`, with a straight-through gradient."""

    @staticmethod
    def forward(ctx: Any, input: torch.Tensor, layer: QuantizedLinear) -> torch.Tensor:
        values, inside = layer.prepare(input, ctx.needs_input_grad[0])
        ctx.layer = layer
        ctx.save_for_backward(inside)
        # An output that shares memory with the input would be taken for the input itself.
        return values.clone() if values.data_ptr() == input.data_ptr() else values

    @staticmethod
    @torch.autograd.function.once_differentiable
    def backward(ctx: Any, gradient: torch.Tensor) -> tuple[torch.Tensor, None]:
        layer, (inside,) = ctx.layer, ctx.saved_tensors
        if inside is not None:
            gradient = gradient * inside
        if layer.smooth is not None:
            gradient = gradient / layer.smooth
        if layer.rotation is not None:
            rows = gradient.contiguous()
            gradient = torch.from_numpy(layer.rotation(rows, inverse=True, threads=torch_threads()))
        return gradient, None


def weight_as_seen(linear: nn.Linear, rotation: Rotation | None = None, smooth: Any = None) -> FloatArray:
    """(W R) * c, formed in double, float32 (out, in). Raises InputError as `QuantizedLinear.from_float` does."""
    if type(linear) is not nn.Linear:
        rule = "linear must be a torch.nn.Linear itself (a subclass may compute something else)"
        raise refuse("QuantizedLinear", rule, f"a {type(linear).__name__}")
    check_float32("QuantizedLinear", "linear", linear.weight)
    weight = linear.weight.detach().double().numpy()
    if not np.isfinite(weight).all():
        raise refuse("QuantizedLinear", "the weight of linear must be finite", "NaN or infinite values")
    if _rotation(rotation, linear.in_features) is not None:
        assert rotation is not None
        weight = rotation(weight)
    if smooth is not None:
        weight = weight * _smooth(smooth, linear.in_features)
    return np.asarray(weight, np.float32)


def torch_threads() -> int:
    """As many threads as torch takes, and the cores can."""
    return min(int(torch.get_num_threads()), 256)


def replace_module(root: nn.Module, old: nn.Module, new: nn.Module) -> None:
    """Puts `new` wherever `old` is a child of `root` or of a module in it."""
    for parent in list(root.modules()):
        for name, child in list(parent._modules.items()):
            if child is old:
                setattr(parent, name, new)


def check_float32(function: str, what: str, x: Any) -> None:
    """Raises InputError unless it is a dense float32 tensor on the CPU."""
    rule = f"{what} must be float32 on the CPU"
    if not isinstance(x, torch.Tensor):
        raise refuse(function, rule, f"a {type(x).__name__}")
    if x.device.type != "cpu" or x.dtype != torch.float32 or x.layout != torch.strided:
        raise refuse(function, rule, f"{x.dtype} on {x.device}")


def _owned(array: Any) -> torch.Tensor:
    return torch.from_numpy(np.array(array, order="C"))


def _rotation(rotation: Any, size: int) -> Rotation | None:
    if rotation is not None and not isinstance(rotation, Rotation):
        raise refuse("QuantizedLinear", "rotation must be a hadamard.Rotation", f"a {type(rotation).__name__}")
    if rotation is not None and rotation.size != size:
        raise refuse("QuantizedLinear", f"rotation must have size {size}", rotation.size)
    return rotation


def _smooth(smooth: Any, size: int) -> FloatArray:
    scales = np.asarray(smooth, np.float32)
    if scales.shape != (size,):
        raise refuse("QuantizedLinear", f"smooth must have shape ({size},)", scales.shape)
    if not (np.isfinite(scales).all() and (scales > 0).all()):
        raise refuse("QuantizedLinear", "smooth must be finite and positive", f"{scales.min()} to {scales.max()}")
    return scales


def _clip(clip: Any) -> float:
    if not isinstance(clip, (int, float)) or not (math.isfinite(clip) and 0 < clip <= 1):
        raise refuse("QuantizedLinear", "clip must lie in (0, 1]", repr(clip))
    return float(clip)


def _activations(activations: Any, size: int) -> Scheme | None:
    """The scheme of an argument `activations`, which is refused where no input could have it."""
    if activations is None:
        return None
    rule = "activations must be a Scheme (found at each call), a Grid or None"
    if not isinstance(activations, (Scheme, Grid)):
        raise refuse("QuantizedLinear", rule, f"a {type(activations).__name__}")
    scheme = activations if isinstance(activations, Scheme) else activations.scheme
    if scheme.bits > 16:
        raise refuse("QuantizedLinear", "activations must have at most 16 bits", scheme.bits)
    if isinstance(activations, Scheme):
        if scheme.granularity != "tensor" and (scheme.granularity, scheme.axis) != ("axis", 0):
            rule = "a Scheme of activations must be per tensor, or per token (axis 0)"
            raise refuse("QuantizedLinear", rule, f"granularity {scheme.granularity!r}, axis {scheme.axis}")
    elif activations.scale.shape not in ((), (size,)) or (activations.scale.ndim and scheme.axis not in (1, -1)):
        rule = f"a Grid of activations must be per tensor, or for each of the {size} channels (axis 1)"
        raise refuse("QuantizedLinear", rule, f"scales of shape {activations.scale.shape}, axis {scheme.axis}")
    return scheme


def _short(scheme: Scheme | None) -> str:
    if scheme is None:
        return "float"
    kind = {"tensor": "tensor", "axis": f"axis {scheme.axis}", "block": f"blocks of {scheme.block_size}"}
    return f"{'' if scheme.signed else 'u'}int{scheme.bits} per {kind[scheme.granularity]}"
