"""Convolution, BatchNorm and SiLU with squeeze-excitation, in the smallest form."""

from itertools import pairwise

import torch
from torch import nn


class Block(nn.Module):
    def __init__(self, before: int, after: int, stride: int) -> None:
        super().__init__()
        self.conv = nn.Conv2d(before, after, 3, stride, 1, bias=False)
        self.norm = nn.BatchNorm2d(after, momentum=0)
        self.squeeze, self.excite = nn.Conv2d(after, 4, 1), nn.Conv2d(4, after, 1)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        x = nn.functional.silu(self.norm(self.conv(x)))
        gate = nn.functional.silu(self.squeeze(x.mean((2, 3), keepdim=True)))
        return x * torch.sigmoid(self.excite(gate))


def stack(*widths: int) -> nn.Sequential:
    return nn.Sequential(*(Block(a, b, 2) for a, b in pairwise(widths)))
