"""A convolution as a quantised linear layer of its patches.

What one output position sees, channels by kernel positions, is a token: rotated (kernels of 1x1), smoothed and put on a
grid as `QuantizedLinear` does it. Groups are not taken.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import torch
from torch import nn
from torch.nn import functional

from leadline.hadamard import Rotation
from leadline.torch.linear import PER_ROW, QuantizedLinear, replace_module
from leadline.types import Grid, Scheme, refuse

__all__ = ["QuantizedConv2d", "as_linear", "load_quantized", "obstacle", "patches"]


class QuantizedConv2d(nn.Module):
    """A 2-D convolution on integer codes; `from_float` makes one of an ``nn.Conv2d``.

    Parameters
    ----------
    linear : QuantizedLinear
        Of the patches: in is channels times kernel positions, as ``nn.Unfold`` orders them.
    conv : nn.Conv2d
        Gives kernel, stride, padding and dilation.

    The input is float32 on the CPU, (channels, height, width) or with a batch axis in front. Gradients are those of
    `QuantizedLinear`.
    """

    def __init__(self, linear: QuantizedLinear, conv: nn.Conv2d) -> None:
        super().__init__()
        if linear.in_features != conv.weight[0].numel() or linear.out_features != conv.out_channels:
            wanted = f"{conv.weight[0].numel()} to {conv.out_channels}"
            received = f"{linear.in_features} to {linear.out_features}"
            raise refuse("QuantizedConv2d", f"linear must have the features of conv, {wanted}", received)
        self.linear = linear
        self.in_channels, self.out_channels = conv.in_channels, conv.out_channels
        self.kernel_size, self.stride, self.padding, self.dilation = (
            conv.kernel_size,
            conv.stride,
            conv.padding,
            conv.dilation,
        )

    @classmethod
    def from_float(
        cls,
        conv: nn.Conv2d,
        weights: Scheme | Grid = PER_ROW,
        activations: Scheme | Grid | None = PER_ROW,
        *,
        rotation: Rotation | None = None,
        smooth: Any = None,
        clip: float = 1.0,
    ) -> QuantizedConv2d:
        """The quantised form of `conv`, which stays as it is; arguments as `QuantizedLinear.from_float` has them.

        Raises InputError for groups, for padding other than zeros, and as `QuantizedLinear` does.
        """
        why = obstacle(conv)
        if why is not None:
            raise refuse("QuantizedConv2d", "conv must be an nn.Conv2d without groups, padded with zeros", why)
        options: dict[str, Any] = {"rotation": rotation, "smooth": smooth, "clip": clip}
        return cls(QuantizedLinear.from_float(as_linear(conv), weights, activations, **options), conv)

    def forward(self, input: torch.Tensor) -> torch.Tensor:
        """Raises InputError for another dtype, device or number of channels, and for NaN."""
        if input.ndim not in (3, 4) or input.shape[-3] != self.in_channels:
            rule = f"input must have shape (..., {self.in_channels}, height, width)"
            raise refuse("QuantizedConv2d", rule, tuple(input.shape))
        batch = input if input.ndim == 4 else input[None]
        sizes = [
            (length + 2 * pad - reach * (kernel - 1) - 1) // step + 1
            for length, pad, reach, kernel, step in zip(
                batch.shape[2:], self.padding, self.dilation, self.kernel_size, self.stride, strict=True
            )
        ]
        tokens: torch.Tensor = self.linear(patches(self, batch))
        output = tokens.transpose(1, 2).reshape(len(batch), self.out_channels, *sizes)
        return output if input.ndim == 4 else output[0]

    def extra_repr(self) -> str:
        """What ``print(model)`` says."""
        parts = [f"{self.in_channels}, {self.out_channels}, kernel_size={self.kernel_size}, stride={self.stride}"]
        return ", ".join([*parts, f"padding={self.padding}, dilation={self.dilation}"])


def patches(conv: Any, input: torch.Tensor) -> torch.Tensor:
    """(batch, channels, height, width) to (batch, positions, channels x kernel positions)."""
    if conv.kernel_size == (1, 1):
        rows, columns = conv.stride
        below, beside = conv.padding
        padded = functional.pad(input, (beside, beside, below, below)) if below or beside else input
        return padded[:, :, ::rows, ::columns].flatten(2).transpose(1, 2)
    return functional.unfold(input, conv.kernel_size, conv.dilation, conv.padding, conv.stride).transpose(1, 2)


def obstacle(conv: nn.Module) -> str | None:
    """Why a module cannot become a `QuantizedConv2d`; None if it can."""
    if type(conv) is not nn.Conv2d:
        return f"a {type(conv).__name__}"
    if conv.groups != 1:
        return f"{conv.groups} groups"
    if conv.padding_mode != "zeros" or isinstance(conv.padding, str):
        return f"padding {conv.padding!r}, {conv.padding_mode}"
    return None


def as_linear(conv: nn.Conv2d) -> nn.Linear:
    """The linear layer of the patches, on the same memory."""
    weight = conv.weight.detach().flatten(1)
    linear = nn.Linear(weight.shape[1], weight.shape[0], bias=conv.bias is not None, device="meta")
    linear.weight = nn.Parameter(weight, requires_grad=conv.weight.requires_grad)
    linear.bias = conv.bias
    return linear.train(conv.training)


def load_quantized(module: nn.Module, state: Mapping[str, Any]) -> None:
    """Loads the state_dict of a quantised model into its float one, in place.

    Every ``nn.Linear`` and ``nn.Conv2d`` of `module` whose state is that of a QuantizedLinear or QuantizedConv2d is
    replaced by one; then ``module.load_state_dict(state)`` runs, which raises RuntimeError for what does not fit.
    """
    for name, layer in list(module.named_modules()):
        if name and type(layer) is nn.Linear and f"{name}.codes" in state:
            replace_module(module, layer, QuantizedLinear.from_float(layer))
        elif name and type(layer) is nn.Conv2d and f"{name}.linear.codes" in state:
            replace_module(module, layer, QuantizedConv2d.from_float(layer))
    module.load_state_dict(state)
