"""VGGT to a phone: depth of two views, from the user's clone and checkpoint to an INT8 ``.tflite``.

Wang et al., VGGT: Visual Geometry Grounded Transformer (2025); Feng et al., QuantVGGT (2025), whose repository holds
the same code. Of its heads, the one for depth stays.
"""

from __future__ import annotations

import os
from collections.abc import Sequence
from importlib import import_module
from typing import Any

import numpy as np

from leadline.data import Preprocess
from leadline.systems import system
from leadline.systems.system import System
from leadline.types import refuse

SOURCE = "https://github.com/facebookresearch/vggt"
PATCH = 14
FULL_DEPTH = 24
SIZES = {
    "vitl": (1024, 16, "dinov2_vitl14_reg", 256, (256, 512, 1024, 1024)),
    "vits": (384, 6, "dinov2_vits14_reg", 64, (48, 96, 192, 384)),
}
"""Encoder to width, heads, picture encoder, and the decoder's channels and inputs; "vitl" is the published network."""


def load(
    clone: str | os.PathLike[str],
    checkpoint: str | os.PathLike[str] | None = None,
    *,
    encoder: str = "vitl",
    depth: int = FULL_DEPTH,
    views: int = 2,
    size: int | tuple[int, int] = 518,
    seed: int = 0,
) -> System:
    """VGGT's depth alone, for a fixed number of views of a fixed size, in operators that phones have.

    Attention is made of MatMul and Softmax, rotary positions of fixed tables, and the position tables and grids of
    coordinates are parameters; each replacement is proved on an example.

    Parameters
    ----------
    clone : path
        Of VGGT, or of QuantVGGT: the folder that holds the package ``vggt``.
    checkpoint : path, optional
        ``model.pt`` or ``model.safetensors``; tensors of the other heads are left aside. None: random weights.
    encoder : {"vitl", "vits"}
        "vitl" is the published network; "vits" is a small one, for trials with random weights.
    depth : int
        Pairs of blocks, 4 or more; the published network has 24.
    views : int
    size : int or (height, width)
        In pixels, multiples of 14.
    seed : int
        Of random weights.

    Returns
    -------
    System
        Input "images" (1, views, 3, height, width) of 0 to 1, output "depth" (1, views, height, width): above 0, up to
        the scene's scale. Its recipe is "w8a8".

    Raises
    ------
    InputError
        The clone, a package or a tensor of the checkpoint is missing; a number is out of place.
    """
    function = "vggt.load"
    if encoder not in SIZES:
        raise refuse(function, f"encoder must be one of {', '.join(SIZES)}", repr(encoder))
    for name, value, least in (("depth", depth, 4), ("views", views, 1)):
        if not isinstance(value, int) or value < least:
            raise refuse(function, f"{name} must be {least} or more", repr(value))
    height, width = system.picture_size(function, size, PATCH)
    system.need(function, {"torch": "'leadline[torch]'"})
    import torch

    with system.clone(function, clone, "vggt/models/aggregator.py", SOURCE), torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        network = _network(encoder, depth)
    notes = []
    if checkpoint is None:
        system.awaken(network)
        notes.append(system.RANDOM)
    else:
        tensors = system.read_checkpoint(function, checkpoint, ("model", "state_dict"))
        used = {name: value for name, value in tensors.items() if name.split(".")[0] in ("aggregator", "depth_head")}
        system.load_state(function, network, used, checkpoint)
    example = np.random.default_rng(seed).random((1, views, 3, height, width), np.float32)
    preprocess = Preprocess(resize=(height, width))
    loaded = System(f"VGGT {encoder}", network, {"images": example}, ("depth",), preprocess, "w8a8", tuple(notes))
    return system.rewritten(loaded)


def _network(encoder: str, depth: int) -> Any:
    """The two parts that depth needs, with the published network's settings."""
    from torch import nn

    from leadline.torch import DepthOnly

    width, heads, pictures, features, channels = SIZES[encoder]
    Aggregator = import_module("vggt.models.aggregator").Aggregator
    DPTHead = import_module("vggt.heads.dpt_head").DPTHead
    parts = nn.Module()
    parts.aggregator = Aggregator(embed_dim=width, num_heads=heads, depth=depth, patch_embed=pictures)
    parts.depth_head = DPTHead(
        dim_in=2 * width,
        output_dim=2,
        activation="exp",
        conf_activation="expp1",
        features=features,
        out_channels=list(channels),
        intermediate_layer_idx=_taken(depth),
    )
    return DepthOnly(parts).eval()


def _taken(depth: int) -> Sequence[int]:
    """Blocks that the decoder reads: the published network's, at the same share of another depth."""
    return [4, 11, 17, 23] if depth == FULL_DEPTH else [round((depth - 1) * share) for share in (0.17, 0.48, 0.74, 1)]
