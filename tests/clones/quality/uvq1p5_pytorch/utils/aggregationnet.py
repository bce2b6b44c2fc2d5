"""One score of the features of both."""

import torch
from torch import nn


class Core(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.resizer, self.conv1, self.linear1 = nn.AdaptiveAvgPool2d((4, 4)), nn.Conv2d(256, 32, 1), nn.Linear(32, 1)

    def forward(self, features: dict[str, torch.Tensor]) -> torch.Tensor:
        x = torch.cat([self.resizer(features[name]) for name in ("content", "distortion")], 1)
        return torch.tanh(self.linear1(nn.functional.relu(self.conv1(x)).amax((2, 3)))) * 2 + 3


class AggregationNet(nn.Module):
    def __init__(self, model_path: str = "", pretrained: bool = True, eval_mode: bool = True) -> None:
        super().__init__()
        self.model = Core().train(not eval_mode)
