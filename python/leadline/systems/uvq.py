"""UVQ 1.5: the quality of a video's frames, by three networks in a chain, from the user's clone and checkpoints.

Content and distortion are EfficientNets with SiLU and squeeze-excitation; the first sees the whole frame at 256x256,
the second the frame in patches at full resolution. Aggregation makes one score of 1 to 5 of the features of both.
"""

from __future__ import annotations

import os
from collections.abc import Callable, Mapping
from importlib import import_module
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from leadline.data import Preprocess
from leadline.depth import scenes
from leadline.systems import system
from leadline.systems.chain import Chain
from leadline.systems.system import System
from leadline.targets.litert.chain import Arrays, Call
from leadline.types import refuse

SOURCE = "https://github.com/google/uvq"
PATCH = (360, 640)
"""Height and width of the pieces that the distortion net sees one at a time."""

SOURCES: Mapping[str, Mapping[str, str]] = {
    "content": {"frame": "frame"},
    "distortion": {"patch": "frame"},
    "aggregation": {"content": "content.features", "distortion": "distortion.features"},
}
"""Of each network, where its inputs come from: the frame, or an output of another."""

CHECKPOINTS = {name: f"{name}_net.pth" for name in SOURCES}


def load(
    clone: str | os.PathLike[str],
    checkpoints: str | os.PathLike[str] | None = None,
    *,
    patches: tuple[int, int] = (3, 3),
    seed: int = 0,
) -> Chain:
    """The content, distortion and aggregation networks of UVQ 1.5.

    Parameters
    ----------
    clone : path
        Of the repository. Its code needs torchvision.
    checkpoints : path, optional
        A folder with ``content_net.pth``, ``distortion_net.pth`` and ``aggregation_net.pth``. Default: the clone's own.
        A network whose file is not there has random weights, and its note says so; its BatchNorms then have the
        statistics of a few rendered pictures.
    patches : (rows, columns)
        Of 360x640 pixels each, that make a frame. UVQ's own frames have 3x3: 1080x1920.
    seed : int
        Of random weights and of the example frame.

    Returns
    -------
    Chain
        Reads "frame" (1, 3, height, width) of -1 to 1. "content": input "frame", output "features" (1, 8, 8, 128).
        "distortion": input "patch" (1, 3, 360, 640), called once for each, output "features" (1, 8, 8, 128), which
        `patchwise` joins. "aggregation": inputs "content" and "distortion", output "score" (1, 1), of 1 to 5.

    Raises
    ------
    InputError
        The clone, a package or a tensor of a checkpoint is missing; or patches are out of place.
    """
    function = "uvq.load"
    rows, columns = patches
    if not all(isinstance(count, int) and count > 0 for count in patches):
        raise refuse(function, "patches must be two positive integers", repr(patches))
    system.need(function, {"torch": "'leadline[torch]'"})
    import torch

    with system.clone(function, clone, "uvq1p5_pytorch/utils/contentnet.py", SOURCE) as root:
        system.need(function, {"torchvision": "torchvision"})
        names = {"content": "ContentNet", "distortion": "DistortionNet", "aggregation": "AggregationNet"}
        kinds = {name: getattr(import_module(f"uvq1p5_pytorch.utils.{name}net"), cls) for name, cls in names.items()}
    folder = root / "uvq1p5_pytorch/checkpoints" if checkpoints is None else Path(checkpoints).expanduser()
    if checkpoints is not None and not folder.is_dir():
        raise refuse(function, "checkpoints must be a folder that exists", f"'{checkpoints}'")
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        nets = {name: kind(pretrained=False) for name, kind in kinds.items()}
        notes = {name: _weights(function, name, net.model, folder) for name, net in nets.items()}
    size = (rows * PATCH[0], columns * PATCH[1])
    frame = np.random.default_rng(seed).uniform(-1, 1, (1, 3, *size)).astype(np.float32)
    examples: dict[str, dict[str, NDArray[np.float32]]] = {
        "content": {"frame": frame},
        "distortion": {"patch": frame[:, :, : PATCH[0], : PATCH[1]]},
        "aggregation": {
            "content": np.zeros((1, 8, 8, 128), np.float32),
            "distortion": np.zeros((1, 8 * rows, 8 * columns, 128), np.float32),
        },
    }
    modules = _modules(nets)
    preprocess = Preprocess(resize=size, mean=0.5, std=0.5)
    return Chain(
        {
            name: System(
                f"UVQ 1.5 {name}",
                modules[name].eval(),
                examples[name],
                ("score",) if name == "aggregation" else ("features",),
                preprocess,
                "weight-only-int8",
                notes[name],
            )
            for name in SOURCES
        },
        SOURCES,
        {"distortion": patchwise(patches)},
    )


def patchwise(patches: tuple[int, int]) -> Call:
    """How the distortion net is called for a frame of so many rows and columns of patches."""
    rows, columns = patches

    def call(run: Callable[[Arrays], Arrays], inputs: Arrays) -> Arrays:
        (frame,), (height, width) = inputs, PATCH
        lines = []
        for top in range(0, rows * height, height):
            line = [frame[:, :, top : top + height, left : left + width] for left in range(0, columns * width, width)]
            lines.append(np.concatenate([run([np.ascontiguousarray(patch)])[0] for patch in line], 2))
        return [np.concatenate(lines, 1)]

    return call


def pictures(count: int = 4, size: tuple[int, int] = PATCH) -> NDArray[np.float32]:
    """Rendered scenes as the networks take frames: (count, 3, height, width) of -1 to 1."""
    from PIL import Image

    frames = [Image.fromarray(scenes.views(seed, count=1)[0].rgb).resize(size[::-1]) for seed in range(count)]
    values = np.stack([np.asarray(frame, np.float32) for frame in frames]) / np.float32(127.5) - 1
    return np.ascontiguousarray(values.transpose(0, 3, 1, 2))


def _weights(function: str, name: str, core: Any, folder: Path) -> tuple[str, ...]:
    """Fill a network from its checkpoint, if there is one; what is to be said about it."""
    import torch

    file = folder / CHECKPOINTS[name]
    if file.is_file():
        system.load_state(function, core, system.read_checkpoint(function, file), file)
        return ()
    norms = [module for module in core.modules() if isinstance(module, torch.nn.BatchNorm2d)]
    if norms:
        core.eval()
        for norm in norms:
            norm.train()
            norm.reset_running_stats()
            momentum, norm.momentum = norm.momentum, 1.0
        with torch.no_grad():
            core(torch.from_numpy(pictures()))
        for norm in norms:
            norm.momentum = momentum
        core.eval()
    return (f"{name}: weights are random, since there is no {file.name}; its scores mean nothing.",)


def _modules(nets: Mapping[str, Any]) -> dict[str, Any]:
    """The networks of the chain as modules from tensors to one tensor."""
    import torch

    class Content(torch.nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.model = nets["content"].model

        def forward(self, frame: Any) -> Any:
            return self.model(frame).permute(0, 2, 3, 1)

    class Distortion(torch.nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.model = nets["distortion"].model

        def forward(self, patch: Any) -> Any:
            return self.model(patch)

    class Aggregation(torch.nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.model = nets["aggregation"].model

        def forward(self, content: Any, distortion: Any) -> Any:
            return self.model({"content": content.permute(0, 3, 1, 2), "distortion": distortion.permute(0, 3, 1, 2)})

    return {"content": Content(), "distortion": Distortion(), "aggregation": Aggregation()}
