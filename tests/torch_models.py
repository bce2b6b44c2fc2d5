"""Small torch modules of the structures that users have, and transformers' Depth Anything made small."""

from __future__ import annotations

from typing import Any

import pytest

from torch_stand_ins import define_torchvision

torch = pytest.importorskip("torch", reason="torch is not installed")
nn = torch.nn


@pytest.fixture(autouse=True)
def seeded() -> Any:
    """For every test of a module that imports it: the same draws, one thread."""
    torch.manual_seed(0)
    before = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(before)


class Attention(nn.Module):
    """Attention as timm writes it."""

    def __init__(self, width: int = 16, heads: int = 2) -> None:
        super().__init__()
        self.heads = heads
        self.qkv, self.proj = nn.Linear(width, 3 * width), nn.Linear(width, width)

    def forward(self, x: Any) -> Any:
        b, n, c = x.shape
        q, k, v = self.qkv(x).reshape(b, n, 3, self.heads, c // self.heads).permute(2, 0, 3, 1, 4).unbind(0)
        y = torch.nn.functional.scaled_dot_product_attention(q, k, v)
        return self.proj(y.transpose(1, 2).reshape(b, n, c))


class Block(nn.Module):
    """A transformer block with LayerScale."""

    def __init__(self, width: int = 16) -> None:
        super().__init__()
        self.norm1, self.attn, self.norm2 = nn.LayerNorm(width), Attention(width), nn.LayerNorm(width)
        self.fc1, self.fc2 = nn.Linear(width, 2 * width), nn.Linear(2 * width, width)
        self.gamma = nn.Parameter(torch.ones(width))

    def forward(self, x: Any) -> Any:
        x = x + self.attn(self.norm1(x))
        return x + self.gamma * self.fc2(nn.functional.gelu(self.fc1(self.norm2(x))))


class SmallViT(nn.Module):
    """Patches, class token, position table, blocks, a convolutional head with BatchNorm: (b, 3, 16, 16) to depth."""

    def __init__(self, width: int = 16, depth: int = 2) -> None:
        super().__init__()
        self.patches = nn.Conv2d(3, width, 4, 4)
        self.cls, self.pos = nn.Parameter(torch.zeros(1, 1, width)), nn.Parameter(torch.zeros(1, 17, width))
        self.blocks = nn.ModuleList([Block(width) for _ in range(depth)])
        self.norm = nn.LayerNorm(width)
        self.head = nn.Sequential(
            nn.Conv2d(width, 8, 3, padding=1, bias=False), nn.BatchNorm2d(8), nn.ReLU(), nn.Conv2d(8, 1, 1)
        )

    def forward(self, image: Any) -> Any:
        x = self.patches(image).flatten(2).transpose(1, 2)
        x = torch.cat([self.cls.expand(x.shape[0], -1, -1), x], 1) + self.pos
        for block in self.blocks:
            x = block(x)
        x = self.norm(x)[:, 1:].transpose(1, 2).reshape(x.shape[0], -1, 4, 4)
        return nn.functional.interpolate(self.head(x), scale_factor=4, mode="bilinear")


def drawn(module: Any, seed: int = 0) -> Any:
    """The module in eval mode, nothing in it zero or one: every parameter and statistic drawn, of a sensible size."""
    generator = torch.Generator().manual_seed(seed)
    with torch.no_grad():
        for name, tensor in (*module.named_parameters(), *module.named_buffers()):
            if not tensor.is_floating_point():
                continue
            size = tensor[0].numel() ** -0.5 if tensor.ndim > 1 else 0.2
            tensor.copy_(size * torch.randn(tensor.shape, generator=generator))
            if tensor.ndim == 1 and not name.endswith("bias") and "mean" not in name:
                tensor.abs_().add_(0.8)
    return module.eval()


def small_vit(**sizes: int) -> Any:
    return drawn(SmallViT(**sizes))


def depth_anything(width: int = 32, layers: int = 4, heads: int = 2) -> Any:
    """transformers' DepthAnythingForDepthEstimation, small, drawn."""
    define_torchvision()
    transformers = pytest.importorskip("transformers", reason="transformers is not installed")
    backbone = transformers.Dinov2Config(
        hidden_size=width,
        num_hidden_layers=layers,
        num_attention_heads=heads,
        image_size=56,
        patch_size=14,
        out_indices=list(range(1, layers + 1)),
        reshape_hidden_states=False,
        apply_layernorm=True,
    )
    config = transformers.DepthAnythingConfig(
        backbone_config=backbone,
        reassemble_hidden_size=width,
        neck_hidden_sizes=[8, 8, 16, 16],
        fusion_hidden_size=8,
        head_hidden_size=8,
        patch_size=14,
    )
    module = drawn(transformers.DepthAnythingForDepthEstimation(config))
    module.head.conv3.bias.data.fill_(1.0)  # behind it a ReLU, which would leave nothing
    return module
