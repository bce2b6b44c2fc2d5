"""Metric3D, second version: metric depth of one picture by a ViT and a recurrent decoder; what QuartDepth quantises."""

from __future__ import annotations

import math
import os
import sys
import warnings
from importlib import import_module
from types import ModuleType, SimpleNamespace
from typing import Any

import numpy as np

from leadline.systems import system
from leadline.systems.system import System
from leadline.types import refuse

SOURCE = "https://github.com/YvanYin/Metric3D"
MULTIPLE = 28
CONFIGS = {"small": "vit.raft5.small.py", "large": "vit.raft5.large.py", "giant": "vit.raft5.giant2.py"}
"""Of ``mono/configs/HourglassDecoder``."""
CANONICAL_FOCAL_LENGTH = 1000.0
"""Pixels. Depth in metres is the output times the camera's own focal length (at the input's size) over this."""


def load(
    clone: str | os.PathLike[str],
    checkpoint: str | os.PathLike[str] | None = None,
    *,
    encoder: str = "small",
    size: int | tuple[int, int] = (616, 1064),
    iterations: int | None = None,
    seed: int = 0,
) -> System:
    """Metric3D v2 for one picture of a fixed size, its attention made of MatMul and Softmax.

    Parameters
    ----------
    clone : path
        Of the repository. Its code needs mmcv (mmcv-lite does), mmengine and timm; xFormers may be there.
    checkpoint : path, optional
        ``metric_depth_vit_small_800k.pth`` and its like. None: random weights, and LayerScale 1 instead of 1e-5.
    encoder : {"small", "large", "giant"}
    size : int or (height, width)
        In pixels, multiples of 28; (616, 1064) is what it was trained at.
    iterations : int, optional
        Updates of the recurrent decoder, each of which is unrolled. Default: the configuration's, 4 (small) or 8.
    seed : int
        Of random weights.

    Returns
    -------
    System
        Input "picture" (1, 3, height, width), output "depth" (1, 1, height, width): metres in the canonical camera, see
        `CANONICAL_FOCAL_LENGTH`. Normals and confidence are left out. Its recipe is "quartdepth-w4a8".

    Raises
    ------
    InputError
        The clone, a package or a tensor of the checkpoint is missing; `size` or `iterations` is out of place.

    The decoder looks for NaN in between and prints what it finds, which no export can hold, and makes its depth bins on
    a GPU: the first is switched off in its module, the second done here. Its convex upsampling has tensors of rank 7,
    which ONNX and its runtimes take and Hexagon does not.
    """
    function = "metric3d.load"
    if encoder not in CONFIGS:
        raise refuse(function, f"encoder must be one of {', '.join(CONFIGS)}", repr(encoder))
    height, width = system.picture_size(function, size, MULTIPLE)
    if iterations is not None and (not isinstance(iterations, int) or iterations < 1):
        raise refuse(function, "iterations must be at least 1", repr(iterations))
    system.need(function, {"torch": "'leadline[torch]'"})
    import torch

    with system.clone(function, clone, "mono/model/monodepth_model.py", SOURCE) as root:
        system.need(function, {"mmcv": "mmcv-lite", "mmengine": "mmengine", "timm": "timm"})
        config = import_module("mmengine").Config.fromfile(
            root / "mono" / "configs" / "HourglassDecoder" / CONFIGS[encoder]
        )
        head = config.model.decode_head
        head.iters = iterations or head.iters
        build = import_module("mono.model.monodepth_model").get_configured_monodepth_model
        with torch.random.fork_rng(devices=[]), warnings.catch_warnings():
            warnings.simplefilter("ignore")  # of xFormers that is not there
            torch.manual_seed(seed)
            network = build(config).eval()
            if checkpoint is None:
                _draw(network)
                system.awaken(network)
    notes: tuple[str, ...] = (system.RANDOM,)
    if checkpoint is not None:
        tensors = system.read_checkpoint(function, checkpoint, ("model_state_dict",))
        foreign = system.load_state(function, network, tensors, checkpoint, strict=False)
        notes = (f"{len(foreign)} tensors of the checkpoint are not the network's",) if foreign else ()
    _prepare(network.depth_model.decoder)
    example = np.random.default_rng(seed).standard_normal((1, 3, height, width), np.float32)
    return system.rewritten(
        System(
            f"Metric3D v2 {encoder}",
            _depth_only(network),
            {"picture": example},
            ("depth",),
            system.imagenet((height, width)),
            "quartdepth-w4a8",
            notes,
        )
    )


def _draw(network: Any) -> None:
    """The repository's layers with room for LoRA leave their weights as memory had them."""
    from torch.nn import Conv2d, ConvTranspose2d, Linear

    for part in network.modules():
        for kind in (Linear, Conv2d, ConvTranspose2d):
            if isinstance(part, kind):
                kind.reset_parameters(part)


def _prepare(decoder: Any) -> None:
    """The bins of depth on the CPU, and no looking for NaN."""
    import torch

    anchors = torch.linspace(math.log(decoder.min_val), math.log(decoder.max_val), decoder.num_depth_regressor_anchor)
    decoder.register_buffer("depth_expectation_anchor", anchors.exp()[None], persistent=False)
    home = sys.modules[type(decoder).__module__]
    if not isinstance(home.torch, _WithoutWatch):
        home.torch = _WithoutWatch(home.torch)  # type: ignore[attr-defined]


class _WithoutWatch(ModuleType):
    """torch, but that nothing is ever NaN or infinite."""

    def __init__(self, torch: ModuleType) -> None:
        super().__init__("torch")
        self._torch = torch
        self.isnan = self.isinf = lambda values: SimpleNamespace(any=lambda: False)

    def __getattr__(self, name: str) -> Any:
        return getattr(self._torch, name)


def _depth_only(network: Any) -> Any:
    import torch

    class Metric3D(torch.nn.Module):
        """The network as a function of the picture alone, depth its only output."""

        def __init__(self) -> None:
            super().__init__()
            self.network = network

        def forward(self, picture: Any) -> Any:
            depth, _, _ = self.network({"input": picture})
            return depth

    return Metric3D().eval()
