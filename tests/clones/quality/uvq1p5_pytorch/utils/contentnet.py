"""The whole frame at a fixed size."""

import torch
from torch import nn

from .layers import stack


class Core(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.features = stack(3, 8, 12, 128)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return self.features(nn.functional.interpolate(x, (64, 64), mode="bilinear", align_corners=False))


class ContentNet(nn.Module):
    def __init__(self, model_path: str = "", eval_mode: bool = True, pretrained: bool = True) -> None:
        super().__init__()
        self.model = Core().train(not eval_mode)
