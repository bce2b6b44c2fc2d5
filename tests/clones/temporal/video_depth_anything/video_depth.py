"""A ViT of two blocks with fused attention, a decoder with a temporal module, and the names that the adapter uses."""

import torch
from torch import nn
from torch.nn import functional as F

WIDTH, HEADS, GROUPS = 48, 3, 4


class Attention(nn.Module):
    def __init__(self, width):
        super().__init__()
        self.qkv = nn.Linear(width, 3 * width)
        self.proj = nn.Linear(width, width)

    def forward(self, x):
        b, n, c = x.shape
        q, k, v = self.qkv(x).reshape(b, n, 3, HEADS, c // HEADS).permute(2, 0, 3, 1, 4).unbind(0)
        return self.proj(F.scaled_dot_product_attention(q, k, v).transpose(1, 2).reshape(b, n, c))


class Block(nn.Module):
    def __init__(self, width):
        super().__init__()
        self.norm1, self.attn = nn.LayerNorm(width), Attention(width)
        self.gamma = nn.Parameter(torch.full((width,), 1e-5))
        self.norm2, self.fc1, self.fc2 = nn.LayerNorm(width), nn.Linear(width, 2 * width), nn.Linear(2 * width, width)

    def forward(self, x):
        x = x + self.gamma * self.attn(self.norm1(x))
        return x + self.gamma * self.fc2(F.gelu(self.fc1(self.norm2(x))))


class Temporal(nn.Module):
    """Attention over the frames at each place, GEGLU, and a last projection of zeros."""

    def __init__(self, width, frames):
        super().__init__()
        self.norm, self.attn = nn.GroupNorm(GROUPS, width), Attention(width)
        self.register_buffer("pe", torch.randn(1, frames, width))
        self.gate, self.proj_out = nn.Linear(width, 2 * width), nn.Linear(width, width)
        nn.init.zeros_(self.proj_out.weight)

    def forward(self, x):
        b, c, t, h, w = x.shape
        y = self.norm(x.transpose(1, 2).flatten(0, 1)).unflatten(0, (b, t))
        y = y.permute(0, 3, 4, 1, 2).reshape(b * h * w, t, c)
        y = y + self.attn(y + self.pe[:, :t])
        value, gate = self.gate(y).chunk(2, dim=-1)
        y = self.proj_out(value * F.gelu(gate)).reshape(b, h, w, t, c).permute(0, 4, 3, 1, 2)
        return x + y


class Head(nn.Module):
    def __init__(self, width, features, frames):
        super().__init__()
        self.project, self.temporal = nn.Conv2d(width, features, 1), Temporal(features, frames)
        self.out = nn.Conv2d(features, 1, 3, padding=1)

    def forward(self, x, height, width, frames, micro_batch_size=4):
        x = self.project(x.transpose(1, 2).unflatten(2, (height, width)))
        x = self.temporal(x.unflatten(0, (-1, frames)).transpose(1, 2)).transpose(1, 2).flatten(0, 1)
        return torch.cat([self._one(part, height, width) for part in x.split(micro_batch_size)]), []

    def _one(self, x, height, width):
        return self.out(F.interpolate(x, (height * 14, width * 14), mode="bilinear", align_corners=True))


class VideoDepthAnything(nn.Module):
    def __init__(self, encoder, features, out_channels, num_frames=32):
        super().__init__()
        self.patches = nn.Conv2d(3, WIDTH, 14, 14)
        self.blocks = nn.ModuleList(Block(WIDTH) for _ in range(2))
        self.head = Head(WIDTH, out_channels[0], num_frames)

    def forward(self, x):
        b, t, _, h, w = x.shape
        tokens = self.patches(x.flatten(0, 1)).flatten(2).transpose(1, 2)
        for block in self.blocks:
            tokens = block(tokens)
        return F.relu(self.head(tokens, h // 14, w // 14, t)[0] + 1).squeeze(1).unflatten(0, (b, t))
