"""UVQ 1.5: the quality of a video's frames, by three networks in a chain, from the user's clone and checkpoints.

Content and distortion are EfficientNets with SiLU and squeeze-excitation; the first sees the whole frame at 256x256, the
second the frame in patches at full resolution. Aggregation makes one score of 1 to 5 of the features of both.
"""

from __future__ import annotations

import os
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from importlib import import_module
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from leadline import tflite
from leadline.data import Preprocess
from leadline.export.tflite_run import Interpreter
from leadline.files import filling
from leadline.graph import Graph, Session
from leadline.pipeline import quantize
from leadline.recipe import Recipe
from leadline.systems import system
from leadline.systems.system import System
from leadline.targets.litert_chain import Chain, Stage, verify_chain
from leadline.types import refuse

SOURCE = "https://github.com/google/uvq"
PATCH = (360, 640)
"""Height and width of the pieces that the distortion net sees one at a time."""

STAGES = ("content", "distortion", "aggregation")
SOURCES: Mapping[str, Mapping[str, str]] = {
    "content": {"frame": "frame"},
    "distortion": {"frame": "frame"},
    "aggregation": {"content": "content.features", "distortion": "distortion.features"},
}
"""Of each network, where its inputs come from: the frame, or an output of another."""

CHECKPOINTS = {name: f"{name}_net.pth" for name in STAGES}


def load(
    clone: str | os.PathLike[str],
    checkpoints: str | os.PathLike[str] | None = None,
    *,
    patches: tuple[int, int] = (3, 3),
    seed: int = 0,
) -> tuple[System, System, System]:
    """The content, distortion and aggregation networks of UVQ 1.5.

    Parameters
    ----------
    clone : path
        Of the repository. Its code needs torchvision.
    checkpoints : path, optional
        A folder with ``content_net.pth``, ``distortion_net.pth`` and ``aggregation_net.pth``. Default: the clone's own.
        A network whose file is not there has random weights, and its note says so; its BatchNorms then have the
        statistics of noise, as trained ones have those of pictures.
    patches : (rows, columns)
        Of 360x640 pixels each, that make a frame. UVQ's own frames have 3x3: 1080x1920.
    seed : int
        Of random weights and of the example frame.

    Returns
    -------
    three of System
        "content" and "distortion": input "frame" (1, 3, height, width) of -1 to 1, output "features" (1, 8, 8, 128) and
        (1, 8 * rows, 8 * columns, 128). "aggregation": inputs "content" and "distortion", output "score" (1, 1).

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
    folder = root / "uvq1p5_pytorch" / "checkpoints" if checkpoints is None else Path(checkpoints).expanduser()
    if not folder.is_dir():
        raise refuse(function, "checkpoints must be a folder that exists", f"'{checkpoints}'")
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        nets = {name: kind(pretrained=False) for name, kind in kinds.items()}
        notes = {name: _weights(function, name, net.model, folder, patches) for name, net in nets.items()}
    frame = np.random.default_rng(seed).uniform(-1, 1, (1, 3, rows * PATCH[0], columns * PATCH[1])).astype(np.float32)
    features = {
        "content": np.zeros((1, 8, 8, 128), np.float32),
        "distortion": np.zeros((1, 8 * rows, 8 * columns, 128), np.float32),
    }
    modules = _modules(nets, patches)
    preprocess = Preprocess(resize=frame.shape[2:], mean=0.5, std=0.5)  # type: ignore[arg-type]
    return tuple(  # type: ignore[return-value]
        System(
            f"UVQ 1.5 {name}",
            modules[name].eval(),
            dict(features) if name == "aggregation" else {"frame": frame},
            ("score",) if name == "aggregation" else ("features",),
            preprocess,
            "weight-only-int8",
            notes[name],
        )
        for name in STAGES
    )


def _weights(function: str, name: str, core: Any, folder: Path, patches: tuple[int, int]) -> tuple[str, ...]:
    """Fill a network from its checkpoint, if there is one; what is to be said about it."""
    import torch

    file = folder / CHECKPOINTS[name]
    if file.is_file():
        system.load_weights(function, core, system.read_checkpoint(function, file), file)
        return ()
    norms = [module for module in core.modules() if isinstance(module, torch.nn.BatchNorm2d)]
    momenta = [norm.momentum for norm in norms]
    if norms:
        for norm in norms:
            norm.reset_running_stats()
            norm.momentum = 1.0
        core.train()
        for module in core.modules():  # stochastic depth and dropout stay off
            if not isinstance(module, torch.nn.BatchNorm2d) and module is not core:
                module.train(isinstance(module, torch.nn.Sequential))
        for norm in norms:
            norm.train()
        with torch.no_grad():
            core(torch.rand(2, 3, *PATCH) * 2 - 1)
        core.eval()
        for norm, momentum in zip(norms, momenta, strict=True):
            norm.momentum = momentum
    return (f"{name}: weights are random, since there is no {file.name}; its scores mean nothing.",)


def _modules(nets: Mapping[str, Any], patches: tuple[int, int]) -> dict[str, Any]:
    """The networks of the chain as modules from tensors to one tensor."""
    import torch

    class Content(torch.nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.model = nets["content"].model

        def forward(self, frame: Any) -> Any:
            return self.model(frame).permute(0, 2, 3, 1)

    class Distortion(torch.nn.Module):
        """Cuts the frame by slices and joins the features by concatenation: tensors of rank 4 alone, for phones."""

        def __init__(self) -> None:
            super().__init__()
            self.model = nets["distortion"].model

        def forward(self, frame: Any) -> Any:
            (height, width), (rows, columns) = PATCH, patches
            cut = [
                frame[:, :, row * height : (row + 1) * height, column * width : (column + 1) * width]
                for row in range(rows)
                for column in range(columns)
            ]
            found = self.model(torch.cat(cut) if len(cut) > 1 else cut[0])
            lines = [
                torch.cat([found[i : i + 1] for i in range(row * columns, (row + 1) * columns)], 2)
                for row in range(rows)
            ]
            return torch.cat(lines, 1)

    class Aggregation(torch.nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.model = nets["aggregation"].model

        def forward(self, content: Any, distortion: Any) -> Any:
            return self.model({"content": content.permute(0, 3, 1, 2), "distortion": distortion.permute(0, 3, 1, 2)})

    return {"content": Content(), "distortion": Distortion(), "aggregation": Aggregation()}
