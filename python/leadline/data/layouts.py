"""Folders as public data sets lay them out: which of their files are pictures, and the labels beside them."""

from __future__ import annotations

import os
from dataclasses import dataclass
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from leadline.data.pictures import SUFFIXES
from leadline.types import few, refuse

_DEPTH = ("depth", "depths", "sync_depth", "groundtruth_depth", "proj_depth", "rendered_depth_maps", "labels", "masks")
_PICTURES = ("images", "rgb", "image", "image_02", "image_03", "blended_images")


@dataclass(frozen=True, eq=False)
class Labelled:
    """A picture and the objects in it.

    Attributes
    ----------
    picture : Path
    boxes : (objects, 5) float64
        Class; centre x, centre y, width and height as shares of the picture's width and height.
    """

    picture: Path
    boxes: NDArray[np.float64]


def load_coco(root: str | os.PathLike[str]) -> list[Labelled]:
    """The pictures of a folder laid out as COCO128 is, with their boxes, in order of name.

    Parameters
    ----------
    root : path
        Holds ``images/`` and ``labels/`` (or ``images/train2017/`` and ``labels/train2017/``, and so on); a label file
        is called as its picture, ``.txt``, with a line ``class x y width height`` for each object. A picture without
        one shows no object.

    Raises
    ------
    InputError
        A folder is missing; or, all in one message, label files without a picture and lines that are not such.
    """
    top = Path(root).expanduser()
    absent = [name for name in ("images", "labels") if not (top / name).is_dir()]
    if absent:
        raise refuse("load_coco", "root must hold images/ and labels/", f"'{root}' without {' and '.join(absent)}")
    pictures = {path.relative_to(top / "images").with_suffix(""): path for path in find_pictures(top / "images")}
    labels = {
        path.relative_to(top / "labels").with_suffix(""): path
        for path in sorted((top / "labels").rglob("*.txt"))
        if not path.name.startswith(".")
    }
    missing = [f"images/{name}" for name in labels if name not in pictures]
    if missing or not pictures:
        rule = "each file in labels/ must have its picture in images/"
        raise refuse("load_coco", rule, f"no {few(missing)}" if missing else f"no pictures in '{top / 'images'}'")
    wrong: list[str] = []
    found = [Labelled(path, _boxes(labels.get(name), wrong)) for name, path in pictures.items()]
    if wrong:
        raise refuse(
            "load_coco", "lines of labels must be: class x y width height, the last four of 0 to 1", few(wrong)
        )
    return found


def _boxes(path: Path | None, wrong: list[str]) -> NDArray[np.float64]:
    rows = []
    lines = [] if path is None else path.read_text("utf-8", errors="replace").splitlines()
    for number, line in enumerate(lines, 1):
        words = line.split()
        if not words:
            continue
        try:
            row = [float(word) for word in words]
        except ValueError:
            row = []
        if len(row) != 5 or row[0] < 0 or row[0] % 1 or not all(0 <= value <= 1 for value in row[1:]):
            wrong.append(f"{path}:{number} '{line[:60]}'")
        rows.append(row)
    return np.array([row for row in rows if len(row) == 5], np.float64).reshape(-1, 5)


def pictures_of(folder: Path) -> list[Path] | None:
    """The colour pictures of a folder that holds such beside depth maps, labels or masks in folders of their own, by
    the names that COCO, NYU, KITTI and BlendedMVS give these; None for any other folder."""
    inner = [Path(parent) / name for parent, folders, _ in os.walk(folder) for name in folders if name[0] != "."]
    theirs = [path for path in inner if path.name in _DEPTH]
    ours = [path for path in inner if path.name in _PICTURES and not any(other in path.parents for other in theirs)]
    if not theirs or not ours:
        return None
    found = {picture: None for path in ours for picture in find_pictures(path)}
    return sorted(found, key=lambda path: path.relative_to(folder).as_posix())


def find_pictures(folder: Path) -> list[Path]:
    """Pictures in a folder and those within it, in order of name, hidden ones left out."""
    files = (path for path in folder.rglob("*") if path.suffix.lower() in SUFFIXES)
    kept = (path for path in files if not any(part.startswith(".") for part in path.relative_to(folder).parts))
    return sorted(kept, key=lambda path: path.relative_to(folder).as_posix())
