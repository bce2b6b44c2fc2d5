"""A decoder that watches for NaN, regresses bins made on a GPU, and updates depth by a convolutional GRU."""

import math

import torch
from torch import nn
from torch.nn import functional as F

FACTOR = 7


class Decoder(nn.Module):
    def __init__(self, width, hidden, iters):
        super().__init__()
        self.min_val, self.max_val, self.num_depth_regressor_anchor, self.iters = 0.1, 200.0, 16, iters
        self.regressor = nn.Conv2d(width, self.num_depth_regressor_anchor, 1)
        self.state = nn.Conv2d(width, hidden, 1)
        self.z, self.q = (nn.Conv2d(hidden + 1, hidden, 3, padding=1) for _ in range(2))
        self.delta, self.mask = nn.Conv2d(hidden, 1, 3, padding=1), nn.Conv2d(hidden, 9 * FACTOR**2, 1)

    def forward(self, features):
        bins = self.regressor(features).softmax(1)
        if torch.isnan(bins).any():
            print("NaN")
        if "depth_expectation_anchor" not in self._buffers:
            ends = math.log(self.min_val), math.log(self.max_val)
            anchors = torch.linspace(*ends, self.num_depth_regressor_anchor, device="cuda").exp()[None]
            self.register_buffer("depth_expectation_anchor", anchors, persistent=False)
        depth = (bins * self.depth_expectation_anchor[:, :, None, None]).sum(1, keepdim=True)
        state = torch.tanh(self.state(features))
        for _ in range(self.iters):
            both = torch.cat((state, depth / self.max_val), 1)
            z = torch.sigmoid(self.z(both))
            state = (1 - z) * state + z * torch.tanh(self.q(both))
            depth = depth + self.delta(state)
        return {"prediction": self.upsampled(depth, self.mask(state)), "confidence": state}

    def upsampled(self, depth, mask):
        """Convex combinations of nine neighbours, of rank 6 as Metric3D's of rank 7."""
        n, _, h, w = depth.shape
        mask = mask.view(n, 9, FACTOR, FACTOR, h, w).softmax(1)
        near = F.unfold(depth, [3, 3], padding=1).view(n, 9, 1, 1, h, w)
        return (mask * near).sum(1).permute(0, 3, 1, 4, 2).reshape(n, 1, FACTOR * h, FACTOR * w)
