"""The depth networks that leadline trains, in torch: pictures (N, 3, H, W) in, inverse depth (N, 1, H, W) in 1/m out.

TinyDepth         a convolutional stem, a small ViT with explicit attention and LayerScale, a DPT decoder; 128x160
TinyDepthConv     depthwise-separable convolutions with BatchNorm and ReLU in a U
SmallDepthHead    a DPT decoder on tokens of four blocks of a frozen ViT-S (384 channels)

The decoder follows "Vision Transformers for Dense Prediction" (Ranftl et al., 2021): tokens of four blocks become maps
of four resolutions (reassemble), and are added from coarse to fine through residual convolutions (fusion). All end in
an exponential: relative errors then count alike near and far, which a linear output must learn (it learnt a third
slower here). Beyond FAR nothing is told apart, so that 8 bits of the logarithm are steps of 2 %.
"""

from __future__ import annotations

import math
from itertools import pairwise

import torch
import torch.nn.functional as F
from torch import Tensor, nn

FAR = 80.0
"""Metres."""


def inverse_depth(logarithm: Tensor) -> Tensor:
    return torch.exp(torch.clamp(logarithm, min=-math.log(FAR)))


class Attention(nn.Module):
    """Softmax(Q K^T / sqrt(d)) V with nothing fused, so that an NPU and a quantiser see every product."""

    def __init__(self, width: int, heads: int) -> None:
        super().__init__()
        self.heads = heads
        self.qkv = nn.Linear(width, 3 * width)
        self.proj = nn.Linear(width, width)

    def forward(self, x: Tensor) -> Tensor:
        n, tokens, width = x.shape
        qkv = self.qkv(x).reshape(n, tokens, 3, self.heads, width // self.heads).permute(2, 0, 3, 1, 4)
        q, k, v = qkv[0] * (width // self.heads) ** -0.5, qkv[1], qkv[2]
        seen = torch.softmax(torch.matmul(q, k.transpose(2, 3)), -1)
        return self.proj(torch.matmul(seen, v).transpose(1, 2).reshape(n, tokens, width))


class Block(nn.Module):
    def __init__(self, width: int, heads: int) -> None:
        super().__init__()
        self.norm1, self.norm2 = nn.LayerNorm(width, eps=1e-6), nn.LayerNorm(width, eps=1e-6)
        self.attention = Attention(width, heads)
        self.fc1, self.fc2 = nn.Linear(width, 4 * width), nn.Linear(4 * width, width)
        self.scale1, self.scale2 = (nn.Parameter(0.3 * torch.ones(width)) for _ in range(2))

    def forward(self, x: Tensor) -> Tensor:
        x = x + self.scale1 * self.attention(self.norm1(x))
        return x + self.scale2 * self.fc2(F.gelu(self.fc1(self.norm2(x))))


class Separable(nn.Module):
    """Pointwise, depthwise, pointwise, each with BatchNorm: the chains that cross-layer equalisation is for."""

    def __init__(self, inside: int, outside: int, stride: int = 1, expand: int = 3) -> None:
        super().__init__()
        wide = inside * expand
        self.expand, self.norm1 = nn.Conv2d(inside, wide, 1, bias=False), nn.BatchNorm2d(wide)
        self.depthwise = nn.Conv2d(wide, wide, 3, stride, 1, groups=wide, bias=False)
        self.norm2 = nn.BatchNorm2d(wide)
        self.project, self.norm3 = nn.Conv2d(wide, outside, 1, bias=False), nn.BatchNorm2d(outside)
        self.same = stride == 1 and inside == outside

    def forward(self, x: Tensor) -> Tensor:
        y = F.relu(self.norm1(self.expand(x)))
        y = self.norm3(self.project(F.relu(self.norm2(self.depthwise(y)))))
        return x + y if self.same else y


class Residual(nn.Module):
    def __init__(self, width: int) -> None:
        super().__init__()
        self.conv1, self.conv2 = (nn.Conv2d(width, width, 3, padding=1) for _ in range(2))

    def forward(self, x: Tensor) -> Tensor:
        return x + self.conv2(F.relu(self.conv1(F.relu(x))))


class Fusion(nn.Module):
    def __init__(self, width: int) -> None:
        super().__init__()
        self.side, self.merge = Residual(width), Residual(width)
        self.out = nn.Conv2d(width, width, 1)

    def forward(self, x: Tensor | None, side: Tensor, size: tuple[int, int]) -> Tensor:
        x = side if x is None else x + self.side(side)
        return self.out(F.interpolate(self.merge(x), size, mode="bilinear", align_corners=False))


class Decoder(nn.Module):
    """Four token sequences of a `grid` of patches to inverse depth of `size`."""

    def __init__(
        self, width: int, sides: tuple[int, ...], features: int, grid: tuple[int, int], size: tuple[int, int]
    ) -> None:
        super().__init__()
        self.grid, self.size = grid, size
        self.reassemble = nn.ModuleList(nn.Conv2d(width, side, 1) for side in sides)
        self.resize = nn.ModuleList(
            [
                nn.ConvTranspose2d(sides[0], sides[0], 4, 4),
                nn.ConvTranspose2d(sides[1], sides[1], 2, 2),
                nn.Identity(),
                nn.Conv2d(sides[3], sides[3], 3, 2, 1),
            ]
        )
        self.level = nn.ModuleList(nn.Conv2d(side, features, 3, padding=1, bias=False) for side in sides)
        self.fusion = nn.ModuleList(Fusion(features) for _ in sides)
        self.head1 = nn.Conv2d(features, 16, 3, padding=1)
        self.head2 = nn.Conv2d(16, 8, 3, padding=1)
        self.head3 = nn.Conv2d(8, 1, 1)
        nn.init.constant_(self.head3.bias, -1.5)

    def forward(self, tokens: list[Tensor], skips: list[Tensor] | None = None) -> Tensor:
        rows, columns = self.grid
        maps = [t.transpose(1, 2).reshape(t.shape[0], t.shape[2], rows, columns) for t in tokens]
        levels = [
            level(resize(reassemble(m)))
            for m, reassemble, resize, level in zip(maps, self.reassemble, self.resize, self.level, strict=True)
        ]
        if skips is not None:
            levels[:2] = [level + skip for level, skip in zip(levels, skips, strict=False)]
        sizes = [level.shape[2:] for level in levels]
        sizes.insert(0, (2 * sizes[0][0], 2 * sizes[0][1]))
        x = None
        for i in (3, 2, 1, 0):
            x = self.fusion[i](x, levels[i], tuple(int(s) for s in sizes[i]))
        x = F.interpolate(F.relu(self.head1(x)), self.size, mode="bilinear", align_corners=False)
        return inverse_depth(self.head3(F.relu(self.head2(x))))


class TinyDepth(nn.Module):
    size = (128, 160)

    def __init__(
        self, widths: tuple[int, ...] = (24, 32, 64, 128), depth: int = 4, heads: int = 4, features: int = 36
    ) -> None:
        super().__init__()
        # Convolutions up to 1/16 ("Early convolutions help transformers see better", Xiao et al., 2021).
        self.stem, self.stem_norm = nn.Conv2d(3, widths[0], 3, 2, 1, bias=False), nn.BatchNorm2d(widths[0])
        self.down = nn.ModuleList(
            nn.Sequential(Separable(a, b, 2), *(Separable(b, b) for _ in range(count)))
            for (a, b), count in zip(pairwise(widths), (1, 2, 2), strict=True)
        )
        width = widths[-1]
        self.skips = nn.ModuleList(nn.Conv2d(c, features, 1) for c in widths[1:3])
        self.grid = (self.size[0] // 16, self.size[1] // 16)
        self.position = nn.Parameter(0.02 * torch.randn(1, self.grid[0] * self.grid[1], width))
        self.blocks = nn.ModuleList(Block(width, heads) for _ in range(depth))
        self.taps = tuple(depth * k // 4 for k in (1, 2, 3, 4))
        self.tap_norms = nn.ModuleList(nn.LayerNorm(width, eps=1e-6) for _ in self.taps)
        self.decoder = Decoder(width, (24, 40, 56, 56), features, self.grid, self.size)

    def forward(self, x: Tensor) -> Tensor:
        x = F.relu(self.stem_norm(self.stem(x)))
        maps = [x := down(x) for down in self.down]
        x = x.flatten(2).transpose(1, 2) + self.position
        taps = []
        for i, block in enumerate(self.blocks, 1):
            x = block(x)
            taps += [x] * self.taps.count(i)
        sides = [skip(m) for skip, m in zip(self.skips, maps, strict=False)]
        return self.decoder([norm(t) for norm, t in zip(self.tap_norms, taps, strict=True)], sides)


class TinyDepthConv(nn.Module):
    size = (128, 160)

    def __init__(self, widths: tuple[int, ...] = (16, 24, 36, 52, 72)) -> None:
        super().__init__()
        self.stem, self.stem_norm = nn.Conv2d(3, widths[0], 3, 2, 1, bias=False), nn.BatchNorm2d(widths[0])
        self.down = nn.ModuleList(nn.Sequential(Separable(a, b, 2), Separable(b, b)) for a, b in pairwise(widths))
        self.context = nn.Sequential(*(Separable(widths[-1], widths[-1]) for _ in range(2)))
        self.narrow = nn.ModuleList(nn.Conv2d(b, a, 1) for a, b in pairwise(widths))
        self.up = nn.ModuleList(Separable(a, a) for a in widths[:-1])
        self.head1 = nn.Conv2d(widths[0], 16, 3, padding=1)
        self.head2 = nn.Conv2d(16, 1, 3, padding=1)
        nn.init.constant_(self.head2.bias, -1.5)

    def forward(self, x: Tensor) -> Tensor:
        x = F.relu(self.stem_norm(self.stem(x)))
        sides = []
        for down in self.down:
            sides.append(x)
            x = down(x)
        x = self.context(x)
        for i in reversed(range(len(sides))):
            size = tuple(int(s) for s in sides[i].shape[2:])
            x = self.up[i](F.interpolate(self.narrow[i](x), size, mode="bilinear", align_corners=False) + sides[i])
        x = F.interpolate(F.relu(self.head1(x)), self.size, mode="bilinear", align_corners=False)
        return inverse_depth(self.head2(x))


class SmallDepthHead(nn.Module):
    """On (N, 257, 384) tokens of four blocks of DINOv2 ViT-S/14 at 224x224, the class token first."""

    size = (224, 224)

    def __init__(self, features: int = 64) -> None:
        super().__init__()
        self.norms = nn.ModuleList(nn.LayerNorm(384, eps=1e-6) for _ in range(4))
        self.decoder = Decoder(384, (48, 96, 192, 384), features, (16, 16), self.size)

    def forward(self, *tokens: Tensor) -> Tensor:
        return self.decoder([norm(t[:, 1:]) for norm, t in zip(self.norms, tokens, strict=True)])
