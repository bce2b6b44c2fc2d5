"""Depth Anything, first and second version: relative or metric depth of one picture, through transformers."""

from __future__ import annotations

import os
import sys
from importlib import import_module
from typing import Any

import numpy as np

from leadline.systems import system
from leadline.systems.system import System
from leadline.types import few, refuse

PATCH = 14
SIZES: dict[str, dict[str, Any]] = {
    "small": {"width": 384, "heads": 6, "layers": 12, "neck": [48, 96, 192, 384], "fusion": 64},
    "base": {"width": 768, "heads": 12, "layers": 12, "neck": [96, 192, 384, 768], "fusion": 128},
    "large": {"width": 1024, "heads": 16, "layers": 24, "neck": [256, 512, 1024, 1024], "fusion": 256},
}
"""ViT-S, ViT-B, ViT-L as published; `sized` makes others."""


def load(
    model: str | os.PathLike[str] | None = None,
    *,
    encoder: str = "small",
    size: int | tuple[int, int] = 518,
    seed: int = 0,
) -> System:
    """Depth Anything for one picture of a fixed size, its attention made of MatMul and Softmax.

    Parameters
    ----------
    model : folder or name, optional
        What ``transformers.DepthAnythingForDepthEstimation.from_pretrained`` takes: a folder with config.json and
        weights, or a name such as "depth-anything/Depth-Anything-V2-Small-hf". None: random weights.
    encoder : {"small", "base", "large"}
        For random weights.
    size : int or (height, width)
        In pixels, multiples of 14; 518 is what it was trained at.
    seed : int
        Of random weights.

    Returns
    -------
    System
        Input "pixel_values" (1, 3, height, width), output "predicted_depth" (1, height, width): inverse depth up to
        scale and shift, or metres of a metric model. Its recipe is "w8a8".

    Raises
    ------
    InputError
        A package is missing; `model` cannot be read, or lacks tensors of the network.
    """
    function = "depth_anything.load"
    if encoder not in SIZES:
        raise refuse(function, f"encoder must be one of {', '.join(SIZES)}", repr(encoder))
    if model is not None:
        height, width = system.picture_size(function, size, PATCH)
        return _system(_pretrained(function, model), (height, width), seed, ())
    return sized(**SIZES[encoder], size=size, seed=seed)


def sized(
    *,
    width: int,
    heads: int,
    layers: int,
    neck: list[int],
    fusion: int,
    size: int | tuple[int, int] = 518,
    seed: int = 0,
) -> System:
    """The same with random weights at any size: `width` channels in `heads` heads of `layers` blocks (a multiple of 4),
    a decoder whose four inputs have `neck` channels and that works with `fusion` ones.
    """
    function = "depth_anything.sized"
    height, breadth = system.picture_size(function, size, PATCH)
    if layers % 4 or width % heads:
        rule = "layers must be a multiple of 4, and width one of heads"
        raise refuse(function, rule, f"layers={layers}, width={width}, heads={heads}")
    transformers = _transformers(function)
    import torch

    backbone = transformers.Dinov2Config(
        hidden_size=width,
        num_hidden_layers=layers,
        num_attention_heads=heads,
        image_size=518,
        patch_size=PATCH,
        out_features=[f"stage{(i + 1) * layers // 4}" for i in range(4)],
        reshape_hidden_states=False,
    )
    config = transformers.DepthAnythingConfig(
        backbone_config=backbone,
        reassemble_hidden_size=width,
        patch_size=PATCH,
        neck_hidden_sizes=neck,
        fusion_hidden_size=fusion,
    )
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        network = transformers.DepthAnythingForDepthEstimation(config).eval()
        system.awaken(network)
        for part in (*network.neck.modules(), *network.head.modules()):  # else nothing is left of the signal
            if isinstance(part, torch.nn.Conv2d | torch.nn.ConvTranspose2d):
                torch.nn.init.kaiming_normal_(part.weight)
    return _system(network, (height, breadth), seed, (system.RANDOM,))


def _system(network: Any, size: tuple[int, int], seed: int, notes: tuple[str, ...]) -> System:
    example = np.random.default_rng(seed).standard_normal((1, 3, *size), np.float32)
    inputs, outputs = {"pixel_values": example}, ("predicted_depth",)
    return system.rewritten(System("Depth Anything", network, inputs, outputs, system.imagenet(size), "w8a8", notes))


def _pretrained(function: str, model: str | os.PathLike[str]) -> Any:
    kind = _transformers(function).DepthAnythingForDepthEstimation
    try:
        network, loading_info = kind.from_pretrained(os.fspath(model), output_loading_info=True)
    except (OSError, ValueError, RuntimeError) as error:
        rule = "model must be a folder or a name that transformers can read as Depth Anything"
        raise refuse(function, rule, f"'{model}': {str(error).splitlines()[0][:200]}") from error
    missing = sorted(loading_info["missing_keys"]) + sorted(str(key) for key in loading_info["mismatched_keys"])
    if missing:
        received = f"'{model}': {len(missing)} missing ({few(missing, system.SHOWN)})"
        raise refuse(function, f"model must hold the network's {len(network.state_dict())} tensors", received)
    return network.float().eval()


def _transformers(function: str) -> Any:
    """transformers; it imports torchvision where that is installed, and does without one built for another torch."""
    system.need(function, {"torch": "'leadline[torch]'", "transformers": "transformers"})
    try:
        import_module("torchvision")
    except (ImportError, OSError, RuntimeError):
        sys.modules["torchvision"] = None  # type: ignore[assignment]
    try:
        transformers = import_module("transformers")
        _ = transformers.DepthAnythingForDepthEstimation  # imported when it is first looked at
    finally:
        if "torchvision" in sys.modules and sys.modules["torchvision"] is None:
            del sys.modules["torchvision"]
    return transformers
