"""A small ViT depth network in torch, with random weights: patches, attention, and a head back to pixels."""

from __future__ import annotations

import torch
from torch import Tensor, nn
from torch.nn import functional as F


class Block(nn.Module):
    def __init__(self, width: int, heads: int) -> None:
        super().__init__()
        self.heads = heads
        self.norm1, self.norm2 = nn.LayerNorm(width), nn.LayerNorm(width)
        self.qkv, self.out = nn.Linear(width, 3 * width), nn.Linear(width, width)
        self.up, self.down = nn.Linear(width, 4 * width), nn.Linear(4 * width, width)

    def forward(self, x: Tensor) -> Tensor:
        batch, tokens, width = x.shape
        parts = self.qkv(self.norm1(x)).reshape(batch, tokens, 3, self.heads, -1).permute(2, 0, 3, 1, 4)
        q, k, v = parts[0], parts[1], parts[2]
        weights = torch.softmax(q @ k.transpose(-2, -1) * (width / self.heads) ** -0.5, dim=-1)
        x = x + self.out((weights @ v).transpose(1, 2).reshape(batch, tokens, width))
        return x + self.down(F.gelu(self.up(self.norm2(x))))


class SmallVit(nn.Module):
    """(1, 3, side, side) to (1, 1, side, side)."""

    def __init__(self, width: int = 64, heads: int = 2, depth: int = 2, side: int = 64, patch: int = 16) -> None:
        super().__init__()
        self.patches = nn.Conv2d(3, width, patch, patch)
        self.position = nn.Parameter(0.02 * torch.randn(1, (side // patch) ** 2, width))
        self.blocks = nn.Sequential(*(Block(width, heads) for _ in range(depth)))
        self.norm = nn.LayerNorm(width)
        self.head = nn.Conv2d(width, 8, 3, padding=1)
        self.last = nn.Conv2d(8, 1, 1)
        self.side = side

    def forward(self, x: Tensor) -> Tensor:
        tokens = self.patches(x)
        rows, columns = tokens.shape[2:]
        tokens = self.norm(self.blocks(tokens.flatten(2).transpose(1, 2) + self.position))
        picture = tokens.transpose(1, 2).reshape(x.shape[0], -1, rows, columns)
        wide = F.interpolate(F.relu(self.head(picture)), size=(self.side, self.side), mode="bilinear")
        return self.last(wide)


def small_vit(**sizes: int) -> SmallVit:
    torch.manual_seed(3)
    return SmallVit(**sizes).eval().requires_grad_(False)


def batches(count: int, side: int = 64) -> list[Tensor]:
    generator = torch.Generator().manual_seed(1)
    return [torch.randn(1, 3, side, side, generator=generator) for _ in range(count)]
