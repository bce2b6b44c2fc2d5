"""One piece of the frame at full resolution; channels last."""

import torch
from torch import nn

from .layers import stack


class Core(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.features = stack(3, 8, 12, 16, 128)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return nn.functional.max_pool2d(self.features(x), (16, 33), 1).permute(0, 2, 3, 1)


class DistortionNet(nn.Module):
    def __init__(self, model_path: str = "", eval_mode: bool = True, pretrained: bool = True) -> None:
        super().__init__()
        self.model = Core().train(not eval_mode)
