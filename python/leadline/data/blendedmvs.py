"""Pairs of neighbouring views from BlendedMVS (https://github.com/YoYo000/BlendedMVS), with depth and cameras."""

from __future__ import annotations

import os
from collections.abc import Sequence
from dataclasses import dataclass
from itertools import pairwise
from pathlib import Path
from typing import overload

import numpy as np
from numpy.typing import NDArray

from leadline.types import few, refuse

SIDE = 518
"""Pixels of VGGT's pictures."""


@dataclass(frozen=True)
class View:
    """One view's files."""

    picture: Path
    camera: Path
    depth: Path


class Pairs(Sequence[NDArray[np.float32]]):
    """Pairs of pictures, each read when asked for: ``pairs[i]`` is (1, 2, 3, side, side) float32 of 0 to 1, RGB.

    The source of a `leadline.Data`. Pictures are resized by their shorter side and cut in the middle; depth and
    intrinsics follow.
    """

    def __init__(self, pairs: Sequence[tuple[View, View]], side: int) -> None:
        self.views = tuple(pairs)
        self.side = side

    def __len__(self) -> int:
        return len(self.views)

    @overload
    def __getitem__(self, index: int) -> NDArray[np.float32]: ...
    @overload
    def __getitem__(self, index: slice) -> Pairs: ...
    def __getitem__(self, index: int | slice) -> NDArray[np.float32] | Pairs:
        if isinstance(index, slice):
            return Pairs(self.views[index], self.side)
        return np.stack([_picture(view.picture, self.side) for view in self.views[index]])[None]

    def __repr__(self) -> str:
        return f"Pairs({len(self)}, side={self.side})"

    def depth(self, index: int) -> NDArray[np.float32]:
        """(2, side, side) depth of a pair in the scene's own unit, 0 where there is none."""
        maps = [read_pfm(view.depth) for view in self.views[index]]
        return np.stack([_nearest(depth, self.side) for depth in maps])

    def cameras(self, index: int) -> tuple[NDArray[np.float64], NDArray[np.float64]]:
        """Intrinsics (2, 3, 3) in pixels of the cut pictures, and world-to-camera matrices (2, 4, 4)."""
        from PIL import Image

        intrinsics, extrinsics = [], []
        for view in self.views[index]:
            extrinsic, intrinsic = read_camera(view.camera)
            with Image.open(view.picture) as picture:
                width, height = picture.size
            factor, top, left = _fit(height, width, self.side)
            scaled = intrinsic.copy()
            scaled[:2] *= factor
            # Pixel centres lie at whole numbers: their corner is half a pixel away.
            scaled[:2, 2] += 0.5 * factor - 0.5 - np.array([left, top])
            intrinsics.append(scaled)
            extrinsics.append(extrinsic)
        return np.stack(intrinsics), np.stack(extrinsics)


def load_blendedmvs_pairs(
    scenes: Sequence[str], root: str | os.PathLike[str], num_samples: int = 200, *, side: int = SIDE
) -> Pairs:
    """Consecutive views of scenes, as VGGT takes two of them.

    Parameters
    ----------
    scenes : sequence of str
        Folders under `root`, each with ``blended_images/``, ``cams/`` and ``rendered_depth_maps/``; views are called by
        their number, ``00000000.jpg``, ``00000000_cam.txt``, ``00000000.pfm``. ``*_masked`` pictures are left out.
    root : path
    num_samples : int
        At most so many pairs, evenly from all: a pair is a view and the one behind it in the order of their numbers.
    side : int
        Of the square pictures, in pixels.

    Raises
    ------
    InputError
        No scenes, a scene of fewer than two views, or, all in one message, what is missing: folders, cameras and depth
        maps of views that have a picture.
    """
    function, top = "load_blendedmvs_pairs", Path(root).expanduser()
    if isinstance(scenes, str) or not scenes:
        raise refuse(function, "scenes must be a list of folders", repr(scenes))
    for name, value in (("num_samples", num_samples), ("side", side)):
        if not isinstance(value, int) or value < 1:
            raise refuse(function, f"{name} must be at least 1", repr(value))
    if not top.is_dir():
        raise refuse(function, "root must be a folder that exists", f"'{root}'")
    missing: list[str] = []
    pairs: list[tuple[View, View]] = []
    for scene in scenes:
        views = _views(top, scene, missing)
        pairs += pairwise(views)
    if missing:
        raise refuse(function, f"each view of a scene in '{root}' must have its files", f"no {few(missing)}")
    if not pairs:
        raise refuse(function, "scenes must hold at least two views each", ", ".join(scenes))
    if len(pairs) > num_samples:
        pairs = [pairs[i] for i in np.arange(num_samples) * len(pairs) // num_samples]
    return Pairs(pairs, side)


def _views(root: Path, scene: str, missing: list[str]) -> list[View]:
    folders = [root / scene / name for name in ("blended_images", "cams", "rendered_depth_maps")]
    absent = [f"{scene}/{folder.name}/" for folder in folders if not folder.is_dir()]
    missing += absent
    if absent:
        return []
    pictures = [path for path in sorted(folders[0].iterdir()) if path.suffix.lower() in (".jpg", ".png")]
    views = [
        View(path, folders[1] / f"{path.stem}_cam.txt", folders[2] / f"{path.stem}.pfm")
        for path in pictures
        if path.stem.isdigit()
    ]
    files = [file for view in views for file in (view.camera, view.depth)]
    missing += [file.relative_to(root).as_posix() for file in files if not file.is_file()]
    return views


def read_camera(path: str | os.PathLike[str]) -> tuple[NDArray[np.float64], NDArray[np.float64]]:
    """World-to-camera (4, 4) and intrinsics (3, 3) of a ``_cam.txt``: two titles, each with its matrix below it.

    Raises InputError for any other file.
    """
    try:
        words = Path(path).read_text("utf-8").split()
        first, second = words.index("extrinsic"), words.index("intrinsic")
        extrinsic = np.array(words[first + 1 : first + 17], np.float64).reshape(4, 4)
        intrinsic = np.array(words[second + 1 : second + 10], np.float64).reshape(3, 3)
    except (OSError, ValueError) as error:
        rule = "camera must be a file with 'extrinsic' and 16 numbers, 'intrinsic' and 9"
        raise refuse("read_camera", rule, f"'{path}' ({error})") from error
    return extrinsic, intrinsic


def read_pfm(path: str | os.PathLike[str]) -> NDArray[np.float32]:
    """A portable float map: (height, width), or (height, width, 3), float32, top row first.

    Raises InputError for any other file, and for one that is cut off.
    """
    try:
        with Path(path).open("rb") as file:
            kind = file.readline().strip()
            width, height = (int(word) for word in file.readline().split())
            scale = float(file.readline())
            content = file.read()
        depth = {b"Pf": 1, b"PF": 3}[kind]
        values = np.frombuffer(content, "<f4" if scale < 0 else ">f4", count=height * width * depth)
    except (OSError, ValueError, KeyError) as error:
        raise refuse("read_pfm", "depth must be a whole portable float map (.pfm)", f"'{path}' ({error})") from error
    rows = values.reshape((height, width) if depth == 1 else (height, width, depth))[::-1]  # bottom row first
    return np.ascontiguousarray(rows, np.float32)


def _fit(height: int, width: int, side: int) -> tuple[float, int, int]:
    """Factor, and the first row and column of the square in the middle."""
    factor = side / min(height, width)
    return factor, (round(height * factor) - side) // 2, (round(width * factor) - side) // 2


def _picture(path: Path, side: int) -> NDArray[np.float32]:
    from PIL import Image
    from PIL.Image import Resampling

    try:
        with Image.open(path) as opened:
            picture = opened.convert("RGB")
    except OSError as error:
        raise refuse("load_blendedmvs_pairs", "a picture must be readable", f"'{path}' ({error})") from error
    factor, top, left = _fit(picture.height, picture.width, side)
    size = (round(picture.width * factor), round(picture.height * factor))
    cut = picture.resize(size, Resampling.BILINEAR).crop((left, top, left + side, top + side))
    pixels: NDArray[np.float32] = np.asarray(cut, np.float32) / np.float32(255)
    return pixels.transpose(2, 0, 1)


def _nearest(depth: NDArray[np.float32], side: int) -> NDArray[np.float32]:
    """Values are taken, not mixed: between near and far there is nothing."""
    factor, top, left = _fit(depth.shape[0], depth.shape[1], side)
    rows, columns = (((np.arange(side) + start + 0.5) / factor).astype(int) for start in (top, left))
    taken: NDArray[np.float32] = depth[rows.clip(0, depth.shape[0] - 1)[:, None], columns.clip(0, depth.shape[1] - 1)]
    return taken
