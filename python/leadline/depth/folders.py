"""NYU Depth v2 and KITTI as folders of pictures and 16-bit depth maps: frames for `leadline.evaluation`."""

from __future__ import annotations

import os
import re
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Literal, overload

import numpy as np
from numpy.typing import NDArray

from leadline.depth.scenes import Camera, Frame
from leadline.types import FloatArray, few, refuse

Crop = Literal["eigen", "garg"]
Size = tuple[int, int]

NYU_FAR = 10.0
"""Metres to which NYU is evaluated."""

NYU_INTRINSICS = (518.857901, 519.469611, 325.582449, 253.736166)
"""fx, fy, cx, cy of the colour camera at 480x640, from the data set's toolbox."""

_SUFFIXES = (".png", ".jpg", ".jpeg")
_CROPS = {
    "eigen": (0.3324324, 0.91351351, 0.0359477, 0.96405229),
    "garg": (0.40810811, 0.99189189, 0.03594771, 0.96405229),
}
"""First and last row, first and last column, as shares of height and width: Eigen et al. (2014) and Garg et al. (2016),
as KITTI's evaluations take them."""


class DepthFolder(Sequence[Frame]):
    """Frames read when they are asked for.

    Attributes
    ----------
    files : tuple of (picture, depth map)
    far : float
        Metres to which the data set is evaluated: what ``leadline.evaluation.Footage`` takes.
    """

    def __init__(self, files: Sequence[tuple[Path, Path]], read: Callable[[Path, Path], Frame], far: float) -> None:
        self.files, self.far, self._read = tuple(files), far, read

    def __len__(self) -> int:
        return len(self.files)

    @overload
    def __getitem__(self, index: int) -> Frame: ...
    @overload
    def __getitem__(self, index: slice) -> DepthFolder: ...
    def __getitem__(self, index: int | slice) -> Frame | DepthFolder:
        if isinstance(index, slice):
            return DepthFolder(self.files[index], self._read, self.far)
        return self._read(*self.files[index])

    def __repr__(self) -> str:
        return f"DepthFolder({len(self)}, far={self.far:g})"

    @property
    def pictures(self) -> list[Path]:
        """Their files, which `leadline.quantize` and `leadline.data.load` take as data."""
        return [picture for picture, _ in self.files]


@dataclass(frozen=True)
class _Reader:
    """Turns two files into a Frame of one size."""

    unit: float
    size: Size | None
    crop: Callable[[int, int], tuple[slice, slice]] | None
    intrinsics: Callable[[Path, int, int], NDArray[np.float64]]

    def __call__(self, picture: Path, depth: Path) -> Frame:
        from PIL import Image
        from PIL.Image import Resampling

        try:
            with Image.open(picture) as opened:
                rgb = opened.convert("RGB")
            with Image.open(depth) as opened:
                known = np.asarray(opened)
        except OSError as error:
            raise refuse("DepthFolder", "pictures and depth maps must be readable", str(error)) from error
        if known.shape != (rgb.height, rgb.width) or known.dtype.kind not in "iu":
            rule = f"'{depth}' must be a 16-bit map of the size of its picture, {rgb.height}x{rgb.width}"
            raise refuse("DepthFolder", rule, f"{known.dtype} {'x'.join(map(str, known.shape))}")
        metres: FloatArray = known.astype(np.float32) / np.float32(self.unit)
        if self.crop is not None:
            inside = np.zeros(metres.shape, bool)
            inside[self.crop(*metres.shape)] = True
            metres[~inside] = 0
        intrinsics, (height, width) = self.intrinsics(picture, *metres.shape), metres.shape
        if self.size is not None and self.size != (height, width):
            rgb = rgb.resize(self.size[::-1], Resampling.BILINEAR)
            rows, columns = (
                ((np.arange(n) + 0.5) * m / n).astype(int) for n, m in zip(self.size, metres.shape, strict=True)
            )
            metres = metres[rows[:, None], columns]  # taken, not mixed: holes and edges stay what they are
            factors = np.array([self.size[1] / width, self.size[0] / height, 1.0])
            intrinsics = factors[:, None] * intrinsics
            intrinsics[:2, 2] += 0.5 * factors[:2] - 0.5
        return Frame(np.asarray(rgb), metres, Camera(intrinsics, np.eye(4), (metres.shape[0], metres.shape[1])))


def load_nyu(
    root: str | os.PathLike[str],
    *,
    size: Size | None = None,
    crop: Literal["eigen"] | None = "eigen",
    num_samples: int | None = None,
    seed: int = 0,
) -> DepthFolder:
    """NYU Depth v2 from pictures: folders ``rgb/`` and ``depth/`` with files of the same names, anywhere below `root`,
    or ``rgb_00045.jpg`` beside ``sync_depth_00045.png``.

    Parameters
    ----------
    root : path
        Depth maps are 16-bit PNG in millimetres, 0 where nothing is known.
    size : (height, width), optional
        Of the frames: what the network takes. Pictures are resized with antialiasing, depth takes the nearest value.
    crop : "eigen" or None
        Depth outside rows 45 to 471 and columns 41 to 601 (of 480x640) is 0, not evaluated, as in the literature.
    num_samples, seed : int
        At most so many frames, at random.

    Raises
    ------
    InputError
        No depth maps; or, all in one message, depth maps without their pictures. When a frame is read: a file that is
        damaged, or a depth map of another size than its picture.
    """
    top = _folder("load_nyu", root)
    depths = [path for path in _pngs(top) if path.parent.name == "depth" or path.name.startswith("sync_depth")]
    if not depths:
        rule = "root must hold rgb/ and depth/, or rgb_*.jpg beside sync_depth_*.png"
        raise refuse("load_nyu", rule, f"'{root}', with no depth maps")

    def candidates(depth: Path) -> list[Path]:
        if depth.name.startswith("sync_depth"):
            return [depth.with_name(depth.stem.replace("sync_depth", "rgb") + s) for s in _SUFFIXES]
        return [depth.parent.parent / "rgb" / f"{depth.stem}{suffix}" for suffix in _SUFFIXES]

    def cut(height: int, width: int) -> tuple[slice, slice]:
        row, column = height / 480, width / 640
        return slice(round(45 * row), round(471 * row)), slice(round(41 * column), round(601 * column))

    def intrinsics(picture: Path, height: int, width: int) -> NDArray[np.float64]:
        fx, fy, cx, cy = NYU_INTRINSICS
        scale = np.diag([width / 640, height / 480, 1.0])
        return np.asarray(scale @ np.array([[fx, 0, cx], [0, fy, cy], [0, 0, 1]]))

    if crop not in (None, "eigen"):
        raise refuse("load_nyu", "crop must be 'eigen' or None", repr(crop))
    files = _paired("load_nyu", depths, candidates, top)
    reader = _Reader(1000.0, _size("load_nyu", size), None if crop is None else cut, intrinsics)
    return DepthFolder(_some("load_nyu", files, num_samples, seed), reader, NYU_FAR)


def load_kitti(
    root: str | os.PathLike[str],
    depth: str | os.PathLike[str] | None = None,
    *,
    size: Size | None = None,
    crop: Crop | None = "garg",
    num_samples: int | None = None,
    seed: int = 0,
) -> DepthFolder:
    """KITTI's depth from its raw pictures and annotated depth maps, or its selected validation set.

    Parameters
    ----------
    root : path
        Raw drives: ``.../2011_09_26_drive_0002_sync/image_02/data/0000000005.png``; or the validation set,
        ``image/..._image_0000000005_image_02.png`` beside ``groundtruth_depth/``.
    depth : path, optional
        Where ``.../2011_09_26_drive_0002_sync/proj_depth/groundtruth/image_02/0000000005.png`` lies (its pictures are
        those of the same drive, camera and number). Default: below `root`. 16-bit PNG, metres times 256, 0 where
        nothing is known.
    size : (height, width), optional
        Of the frames: what the network takes; drives differ in theirs. Pictures are resized with antialiasing, depth
        takes the nearest value.
    crop : {"garg", "eigen"} or None
        Depth outside is 0, not evaluated: rows 0.408 to 0.992, or 0.332 to 0.914, and columns 0.036 to 0.964.
    num_samples, seed : int
        At most so many frames, at random.

    Returns
    -------
    DepthFolder
        Cameras are those of ``calib_cam_to_cam.txt`` in the day's folder, where it is; otherwise focal lengths are 0.58
        of the width and 1.92 of the height.

    Raises
    ------
    InputError
        As `load_nyu`.
    """
    function = "load_kitti"
    top = _folder(function, root)
    below = top if depth is None else _folder(function, depth)
    raw = [p for p in _pngs(below) if p.parts[-4:-2] == ("proj_depth", "groundtruth")]
    chosen = [p for p in _pngs(below) if p.parent.name == "groundtruth_depth"]
    if not raw and not chosen:
        rule = "there must be <drive>/proj_depth/groundtruth/image_02/*.png, or groundtruth_depth/*.png"
        raise refuse(function, rule, f"'{below}', with no depth maps")
    pictures = {
        (path.parts[-4], path.parts[-3], path.stem): path
        for path in sorted(top.rglob("*"))
        if path.suffix.lower() in _SUFFIXES and path.parent.name == "data"
    }

    def candidates(map_: Path) -> list[Path]:
        if map_.parent.name == "groundtruth_depth":
            name = map_.name.replace("_groundtruth_depth_", "_image_")
            return [map_.parent.parent / "image" / name]
        drive, camera = map_.parts[-5], map_.parent.name
        named = top / drive / camera / "data" / map_.name
        return [pictures.get((drive, camera, map_.stem), named)]

    if crop is not None and crop not in _CROPS:
        raise refuse(function, f"crop must be one of {', '.join(_CROPS)}, or None", repr(crop))

    def cut(height: int, width: int) -> tuple[slice, slice]:
        first, last, left, right = _CROPS[crop or "garg"]
        return slice(int(first * height), int(last * height)), slice(int(left * width), int(right * width))

    files = _paired(function, raw + chosen, candidates, top)
    reader = _Reader(256.0, _size(function, size), None if crop is None else cut, _kitti_intrinsics)
    return DepthFolder(_some(function, files, num_samples, seed), reader, 80.0)


def _kitti_intrinsics(picture: Path, height: int, width: int) -> NDArray[np.float64]:
    camera = re.search(r"image_(\d\d)", str(picture.parent)) or re.search(r"image_(\d\d)", picture.name)
    for folder in picture.parents[:4]:
        file = folder / "calib_cam_to_cam.txt"
        if camera is not None and file.is_file():
            for line in file.read_text("utf-8", errors="replace").splitlines():
                if line.startswith(f"P_rect_{camera[1]}:"):
                    projection = np.array(line.split()[1:], np.float64).reshape(3, 4)
                    return np.ascontiguousarray(projection[:, :3])
    return np.array([[0.58 * width, 0, (width - 1) / 2], [0, 1.92 * height, (height - 1) / 2], [0, 0, 1]])


def _folder(function: str, path: str | os.PathLike[str]) -> Path:
    folder = Path(path).expanduser()
    if not folder.is_dir():
        raise refuse(function, "root must be a folder that exists", f"'{path}'")
    return folder


def _pngs(folder: Path) -> list[Path]:
    return sorted(path for path in folder.rglob("*.png") if not path.name.startswith("."))


def _paired(
    function: str, depths: list[Path], candidates: Callable[[Path], list[Path]], root: Path
) -> list[tuple[Path, Path]]:
    pairs, missing = [], []
    for depth in depths:
        wanted = candidates(depth)
        picture = next((path for path in wanted if path.is_file()), None)
        if picture is None:
            missing.append(str(wanted[0].relative_to(root) if wanted[0].is_relative_to(root) else wanted[0]))
        else:
            pairs.append((picture, depth))
    if missing:
        raise refuse(function, f"each depth map must have its picture in '{root}'", f"no {few(missing)}")
    return pairs


def _size(function: str, size: Size | None) -> Size | None:
    if size is None:
        return None
    if len(size) != 2 or not all(isinstance(side, int) and side > 0 for side in size):
        raise refuse(function, "size must be (height, width) in pixels", repr(size))
    return (size[0], size[1])


def _some(function: str, files: list[tuple[Path, Path]], num_samples: int | None, seed: int) -> list[tuple[Path, Path]]:
    if num_samples is not None and (not isinstance(num_samples, int) or num_samples < 1):
        raise refuse(function, "num_samples must be at least 1", repr(num_samples))
    if num_samples is None or num_samples >= len(files):
        return files
    return [files[i] for i in sorted(np.random.default_rng(seed).permutation(len(files))[:num_samples].tolist())]
