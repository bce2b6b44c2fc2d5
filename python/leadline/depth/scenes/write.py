"""Scenes on disk in the layout of BlendedMVS (https://github.com/YoYo000/BlendedMVS), so that its loaders read them."""

from __future__ import annotations

import os
from collections.abc import Sequence
from pathlib import Path

import numpy as np

from leadline.depth.scenes.render import Frame
from leadline.files import filling
from leadline.types import refuse


def write_blendedmvs(folder: str | os.PathLike[str], frames: Sequence[Frame]) -> None:
    """One scene: ``blended_images/``, ``cams/`` with ``pair.txt``, ``rendered_depth_maps/`` as PFM.

    Each camera file holds the world-to-camera matrix, the intrinsics, and nearest depth, interval, number of steps and
    farthest depth. Depth is in metres; 0 where there is none (the sky), as BlendedMVS has it. A view's sources are its
    neighbours in time. All files appear together.

    Raises InputError for no frames or a folder that cannot be written.
    """
    if not frames:
        raise refuse("write_blendedmvs", "frames must not be empty", len(frames))
    with filling(folder) as out:
        for name in ("blended_images", "cams", "rendered_depth_maps"):
            (out / name).mkdir()
        for index, frame in enumerate(frames):
            _write(out, f"{index:08d}", frame)
        (out / "cams" / "pair.txt").write_text(_pairs(len(frames)), "utf-8")


def _write(out: Path, name: str, frame: Frame) -> None:
    from PIL import Image

    Image.fromarray(frame.rgb).save(out / "blended_images" / f"{name}.jpg", quality=95, subsampling=0)
    depth = np.where(np.isfinite(frame.depth), frame.depth, 0).astype(np.float32)
    Image.fromarray(depth).save(out / "rendered_depth_maps" / f"{name}.pfm", "PPM")
    seen = depth[depth > 0]
    near, far = (float(seen.min()), float(seen.max())) if seen.size else (0.0, 0.0)
    steps = 128
    lines = [
        "extrinsic",
        *_rows(frame.camera.extrinsics),
        "",
        "intrinsic",
        *_rows(frame.camera.intrinsics),
        "",
        f"{near:.6f} {(far - near) / (steps - 1):.6f} {steps} {far:.6f}",
    ]
    (out / "cams" / f"{name}_cam.txt").write_text("\n".join(lines) + "\n", "utf-8")


def _rows(matrix: np.ndarray) -> list[str]:
    return [" ".join(f"{value:.9g}" for value in row) for row in matrix]


def _pairs(count: int) -> str:
    lines = [str(count)]
    for view in range(count):
        others = sorted((other for other in range(count) if other != view), key=lambda other: abs(other - view))[:10]
        scores = " ".join(f"{other} {100 / abs(other - view):.2f}" for other in others)
        lines += [str(view), f"{len(others)} {scores}".strip()]
    return "\n".join(lines) + "\n"
