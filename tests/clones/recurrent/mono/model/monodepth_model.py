"""Encoder and decoder under the names that the adapter uses."""

from torch import nn

from mono.model.decoder import Decoder


class Dense(nn.Module):
    def __init__(self, iters):
        super().__init__()
        self.encoder = nn.Sequential(nn.Conv2d(3, 24, 7, 7), nn.GELU(), nn.Conv2d(24, 24, 3, padding=1))
        self.decoder = Decoder(24, 12, iters)

    def forward(self, input):
        return self.decoder(self.encoder(input))


class DepthModel(nn.Module):
    def __init__(self, config):
        super().__init__()
        self.depth_model = Dense(config.model.decode_head.iters)

    def forward(self, data):
        output = self.depth_model(**data)
        return output["prediction"], output["confidence"], output


def get_configured_monodepth_model(config):
    return DepthModel(config)
