"""A network of VGGT's structure, small and of our own writing: two kinds of attention over tokens of several views,
rotary positions looked up by the largest of them, a position table that is resized, several heads."""

from __future__ import annotations

from typing import Any

import pytest

torch = pytest.importorskip("torch", reason="torch is not installed")
nn, F = torch.nn, torch.nn.functional


class Rotary2d(nn.Module):
    """Rows turn the first half of the features, columns the second; the table is as long as the positions ask."""

    def __init__(self, base: float = 100.0) -> None:
        super().__init__()
        self.base = base

    def forward(self, tokens: Any, positions: Any) -> Any:
        half = tokens.shape[-1] // 2
        table = self.angles(int(positions.max()) + 1, half)
        parts = (
            self.turn(t, table[p][:, None]) for t, p in zip(tokens.chunk(2, -1), positions.unbind(-1), strict=True)
        )
        return torch.cat(list(parts), -1)

    def angles(self, length: int, width: int) -> Any:
        frequency = self.base ** -(torch.arange(0, width, 2) / width)
        angle = torch.arange(length)[:, None] * frequency
        return torch.cat([angle, angle], -1)

    def turn(self, x: Any, angle: Any) -> Any:
        a, b = x.chunk(2, -1)
        return x * angle.cos() + torch.cat([-b, a], -1) * angle.sin()


class Interleaved2d(Rotary2d):
    """The same with neighbouring features as pairs."""

    def angles(self, length: int, width: int) -> Any:
        return super().angles(length, width)[:, : width // 2].repeat_interleave(2, -1)

    def turn(self, x: Any, angle: Any) -> Any:
        return x * angle.cos() + torch.stack([-x[..., 1::2], x[..., ::2]], -1).flatten(-2) * angle.sin()


class Attention(nn.Module):
    def __init__(self, width: int, heads: int, rope: Any) -> None:
        super().__init__()
        self.heads, self.rope = heads, rope
        self.qkv, self.proj = nn.Linear(width, 3 * width), nn.Linear(width, width)

    def forward(self, x: Any, positions: Any) -> Any:
        b, n, c = x.shape
        q, k, v = self.qkv(x).reshape(b, n, 3, self.heads, c // self.heads).permute(2, 0, 3, 1, 4).unbind(0)
        y = F.scaled_dot_product_attention(self.rope(q, positions), self.rope(k, positions), v)
        return self.proj(y.transpose(1, 2).reshape(b, n, c))


class Block(nn.Module):
    def __init__(self, width: int, heads: int, rope: Any) -> None:
        super().__init__()
        self.norm1, self.norm2 = nn.LayerNorm(width), nn.LayerNorm(width)
        self.attn = Attention(width, heads, rope)
        self.mlp = nn.Sequential(nn.Linear(width, 2 * width), nn.GELU(), nn.Linear(2 * width, width))

    def forward(self, x: Any, positions: Any) -> Any:
        x = x + self.attn(self.norm1(x), positions)
        return x + self.mlp(self.norm2(x))


class Aggregator(nn.Module):
    """Pictures (b, s, 3, h, w) to tokens of the last layers, and where patches begin."""

    def __init__(self, width: int = 32, heads: int = 2, depth: int = 2, patch: int = 4, rope: Any = None) -> None:
        super().__init__()
        self.patch, self.rope = patch, rope or Rotary2d()
        self.embed = nn.Conv2d(3, width, patch, patch)
        self.table = nn.Parameter(torch.randn(1, width, 5, 5) * 0.1)
        self.camera = nn.Parameter(torch.randn(1, 2, 1, width))
        self.frame = nn.ModuleList(Block(width, heads, self.rope) for _ in range(depth))
        self.whole = nn.ModuleList(Block(width, heads, self.rope) for _ in range(depth))

    def forward(self, images: Any) -> Any:
        b, s = images.shape[:2]
        x = self.embed(images.flatten(0, 1))
        rows, columns = x.shape[-2:]
        table = F.interpolate(self.table, size=(rows, columns), mode="bicubic", antialias=True)
        x = (x + table).flatten(2).transpose(1, 2)
        camera = torch.cat([self.camera[:, :1], self.camera[:, 1:].expand(1, s - 1, -1, -1)], 1)
        x = torch.cat([camera.expand(b, -1, -1, -1).flatten(0, 1), x], 1)
        grid = torch.cartesian_prod(torch.arange(rows), torch.arange(columns)) + 1
        positions = torch.cat([grid.new_zeros(1, 2), grid]).expand(b * s, -1, -1).clone()
        n, c = x.shape[1:]
        found = []
        for frame, whole in zip(self.frame, self.whole, strict=True):
            first = frame(x.reshape(b * s, n, c), positions)
            x = whole(first.reshape(b, s * n, c), positions.reshape(b, s * n, 2))
            found.append(torch.cat([first.reshape(b, s, n, c), x.reshape(b, s, n, c)], -1))
        return found, 1


class DepthHead(nn.Module):
    def __init__(self, width: int, patch: int) -> None:
        super().__init__()
        self.patch, self.norm = patch, nn.LayerNorm(width)
        self.project, self.last = nn.Conv2d(width, 16, 1), nn.Conv2d(16, 2, 3, padding=1)

    def forward(self, tokens: Any, images: Any, patch_start_idx: int) -> Any:
        b, s, _, h, w = images.shape
        x = self.norm(tokens[-1][:, :, patch_start_idx:]).flatten(0, 1).transpose(1, 2)
        x = self.project(x.reshape(b * s, -1, h // self.patch, w // self.patch))
        x = F.interpolate(F.relu(x), size=(h, w), mode="bilinear", align_corners=True)
        depth, confidence = self.last(x).permute(0, 2, 3, 1).split(1, -1)
        return depth.exp().reshape(b, s, h, w, 1), (1 + confidence.exp()).reshape(b, s, h, w)


class SmallVGGT(nn.Module):
    def __init__(self, width: int = 32, patch: int = 4, rope: Any = None) -> None:
        super().__init__()
        self.aggregator = Aggregator(width, patch=patch, rope=rope)
        self.depth_head = DepthHead(2 * width, patch)
        self.camera_head = nn.Linear(2 * width, 9)
