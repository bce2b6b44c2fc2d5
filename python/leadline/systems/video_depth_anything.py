"""Video-Depth-Anything: inverse depth of a few consecutive frames, from the user's clone and checkpoint."""

from __future__ import annotations

import os
from functools import partial
from importlib import import_module

import numpy as np

from leadline.systems import system
from leadline.systems.system import System
from leadline.types import refuse

SOURCE = "https://github.com/DepthAnything/Video-Depth-Anything"
PATCH = 14
LONGEST = 32
"""Frames that the temporal modules have positions for."""
SIZES = {"vits": (64, (48, 96, 192, 384)), "vitb": (128, (96, 192, 384, 768)), "vitl": (256, (256, 512, 1024, 1024))}
"""Encoder to channels of the decoder and of its four inputs, as the repository's run.py has them."""


def load(
    clone: str | os.PathLike[str],
    checkpoint: str | os.PathLike[str] | None = None,
    *,
    encoder: str = "vits",
    frames: int = 4,
    size: int | tuple[int, int] = 266,
    seed: int = 0,
) -> System:
    """Video-Depth-Anything for a fixed number of frames of a fixed size, its attention made of MatMul and Softmax.

    Parameters
    ----------
    clone : path
        Of the repository. Its code needs opencv-python, einops, easydict, tqdm and torchvision; xFormers may be there.
    checkpoint : path, optional
        ``video_depth_anything_vits.pth`` or the metric one. None: random weights, also in the temporal modules' last
        projections, which start as zeros.
    encoder : {"vits", "vitb", "vitl"}
    frames : int
        1 to 32. The model's own clips are of 32; the reference artefact for phones has 4.
    size : int or (height, width)
        In pixels, multiples of 14.
    seed : int
        Of random weights.

    Returns
    -------
    System
        Input "frames" (1, frames, 3, height, width), output "depth" (1, frames, height, width): inverse depth up to
        scale and shift, or metres of the metric checkpoint. Its recipe is "adaround-w8a8".

    Raises
    ------
    InputError
        The clone, a package or a tensor of the checkpoint is missing; frames or size are out of place.
    """
    function = "video_depth_anything.load"
    if encoder not in SIZES:
        raise refuse(function, f"encoder must be one of {', '.join(SIZES)}", repr(encoder))
    if not isinstance(frames, int) or not 1 <= frames <= LONGEST:
        raise refuse(function, f"frames must be 1 to {LONGEST}", repr(frames))
    height, width = system.picture_size(function, size, PATCH)
    system.need(function, {"torch": "'leadline[torch]'"})
    import torch

    with system.clone(function, clone, "video_depth_anything/video_depth.py", SOURCE):
        packages = {"cv2": "opencv-python", "einops": "einops", "easydict": "easydict", "tqdm": "tqdm"}
        system.need(function, packages | {"torchvision": "torchvision"})
        VideoDepthAnything = import_module("video_depth_anything.video_depth").VideoDepthAnything
    features, channels = SIZES[encoder]
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        network = VideoDepthAnything(encoder=encoder, features=features, out_channels=list(channels)).eval()
        if checkpoint is None:
            system.awaken(network)
            notes = [system.RANDOM]
        else:
            system.load_state(function, network, system.read_checkpoint(function, checkpoint), checkpoint)
            notes = []
        # The head works on four frames at a time, which an export would unroll.
        network.head.forward = partial(network.head.forward, micro_batch_size=frames)
        example = np.random.default_rng(seed).standard_normal((1, frames, 3, height, width), np.float32)
    return system.rewritten(
        System(
            f"Video-Depth-Anything {encoder}",
            network,
            {"frames": example},
            ("depth",),
            system.imagenet((height, width)),
            "adaround-w8a8",
            tuple(notes),
        )
    )
