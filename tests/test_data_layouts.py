"""Folders as COCO128, BlendedMVS, NYU and KITTI lay them out: what is read, and everything missing in one message."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from data_samples import PICTURE, refused
from leadline.data import Data, Preprocess, load_blendedmvs_pairs, load_coco, load_samples
from leadline.data.blendedmvs import read_camera, read_pfm
from leadline.depth import load_kitti, load_nyu, scenes
from leadline.depth.metrics import score
from leadline.evaluation import Footage, feeds, judge
from yolov8_onnx import picture, write_coco

SIZE = (60, 80)


def depth_png(path: Path, metres: np.ndarray, unit: float) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    Image.fromarray(np.rint(metres * unit).astype(np.uint16)).save(path)


def colour(path: Path, rgb: np.ndarray) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    Image.fromarray(rgb).save(path, quality=95)


@pytest.fixture(scope="module")
def frames() -> list[scenes.Frame]:
    return [scenes.views(seed, count=1)[0] for seed in (2, 4, 6)]


def known(frame: scenes.Frame) -> np.ndarray:
    return np.where(np.isfinite(frame.depth), frame.depth, 0)


# COCO


def test_coco_gives_pictures_with_their_boxes(tmp_path: Path) -> None:
    write_coco(tmp_path, 3)
    (tmp_path / "labels/train2017/000000000001.txt").unlink()  # shows nothing, as two of COCO128
    found = load_coco(tmp_path)
    assert [len(one.boxes) for one in found] == [len(picture(0, 120, 160)[1]), 0, len(picture(2, 120, 160)[1])]
    assert found[0].boxes == pytest.approx(picture(0, 120, 160)[1], abs=1e-6)
    assert [one.picture.name for one in found] == [f"{i:012d}.jpg" for i in range(3)]


def test_coco_tells_all_that_is_wrong_at_once(tmp_path: Path) -> None:
    with refused("[load_coco] root must hold images/ and labels/. Received", "without images and labels."):
        load_coco(tmp_path)
    write_coco(tmp_path, 3)
    for i in (0, 2):
        (tmp_path / f"images/train2017/{i:012d}.jpg").unlink()
    parts = ("each file in labels/ must have its picture", "no images/train2017/000000000000, ", "000000000002.")
    with refused(*parts):
        load_coco(tmp_path)
    write_coco(tmp_path, 3)
    (tmp_path / "labels/train2017/000000000000.txt").write_text("0 0.5 0.5 0.1\n1 2 0 0 0\n\nperson 0 0 0 0\n")
    with refused(
        "lines of labels must be: class x y width height", ":1 '0 0.5 0.5 0.1'", ":2 '1 2 0 0 0'", ":4 'person"
    ):
        load_coco(tmp_path)


def test_pictures_of_a_layout_are_taken_alone(tmp_path: Path) -> None:
    write_coco(tmp_path / "coco", 3)
    assert len(load_samples(tmp_path / "coco", PICTURE)) == 3
    for i in range(2):
        colour(tmp_path / f"nyu/kitchen/rgb/{i}.png", np.full((8, 10, 3), 90, np.uint8))
        depth_png(tmp_path / f"nyu/kitchen/depth/{i}.png", np.ones((8, 10)), 1000)
    samples = load_samples(Data(tmp_path / "nyu", preprocess=Preprocess(scale=1.0)), PICTURE)
    assert [Path(label).parent.name for label in samples.labels] == ["rgb", "rgb"] and samples.ignored == 2
    assert all((feed["x"] == 90).all() for feed in samples)
    for i in range(2):  # depth alone is a folder of pictures like any other
        assert len(load_samples(tmp_path / "nyu/kitchen/depth", PICTURE)) == 2, i


# BlendedMVS


@pytest.fixture(scope="module")
def blended(tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, list[scenes.Frame]]:
    root = tmp_path_factory.mktemp("blended")
    clip = scenes.clip(3, frames=4)
    for name in ("first", "second"):
        scenes.write_blendedmvs(root / name, clip)
    Image.new("RGB", (10, 10)).save(root / "first/blended_images/00000000_masked.jpg")
    return root, clip


def test_pairs_are_consecutive_views(blended: tuple[Path, list[scenes.Frame]]) -> None:
    root, clip = blended
    pairs = load_blendedmvs_pairs(["first", "second"], root, side=96)
    assert len(pairs) == 6 and pairs[0].shape == (1, 2, 3, 96, 96) and pairs[0].dtype == np.float32
    assert [(a.picture.stem, b.picture.stem) for a, b in pairs.views[:3]] == [
        ("00000000", "00000001"), ("00000001", "00000002"), ("00000002", "00000003"),
    ]  # fmt: skip
    assert np.array_equal(pairs[0][0, 1], pairs[1][0, 0])
    expected = Preprocess(resize=96, crop=96)(Image.fromarray(clip[0].rgb))[0]
    assert np.abs(pairs[0][0, 0] - expected).mean() < 0.03  # JPEG
    assert len(load_blendedmvs_pairs(["first", "second"], root, 4)) == 4
    assert load_blendedmvs_pairs(["first"], root, 1)[0].shape == (1, 2, 3, 518, 518)
    assert len(pairs[1:3]) == 2 and repr(pairs) == "Pairs(6, side=96)"


def test_pairs_feed_a_network_one_at_a_time(blended: tuple[Path, list[scenes.Frame]]) -> None:
    pairs = load_blendedmvs_pairs(["first"], blended[0], side=32)
    samples = load_samples(pairs, [("views", np.float32, (1, 2, 3, 32, 32))])
    assert len(samples) == 3 and next(iter(samples))["views"].shape == (1, 2, 3, 32, 32)


def test_depth_and_cameras_follow_the_cut(blended: tuple[Path, list[scenes.Frame]]) -> None:
    """A point seen in the middle of the cut picture lies where depth and camera put it."""
    root, clip = blended
    side = 96
    pairs = load_blendedmvs_pairs(["first"], root, side=side)
    depth, (intrinsics, extrinsics) = pairs.depth(1), pairs.cameras(1)
    assert depth.shape == (2, side, side) and intrinsics.shape == (2, 3, 3) and extrinsics.shape == (2, 4, 4)
    for i, frame in enumerate(clip[1:3]):
        u, v = 30, 70
        own = np.linalg.inv(extrinsics[i]) @ np.append(np.linalg.inv(intrinsics[i]) @ [u, v, 1] * depth[i, v, u], 1)
        x, y, z = frame.camera.project(own[None, :3])[0]
        assert z == pytest.approx(depth[i, v, u], rel=1e-4)
        assert frame.depth[round(y), round(x)] == pytest.approx(z, rel=0.05)


def test_missing_files_are_told_together(blended: tuple[Path, list[scenes.Frame]], tmp_path: Path) -> None:
    scenes.write_blendedmvs(tmp_path / "one", blended[1])
    (tmp_path / "one/cams/00000001_cam.txt").unlink()
    (tmp_path / "one/rendered_depth_maps/00000003.pfm").unlink()
    (tmp_path / "two/cams").mkdir(parents=True)
    with refused(
        "[load_blendedmvs_pairs] each view of a scene in", "no one/cams/00000001_cam.txt, ",
        "one/rendered_depth_maps/00000003.pfm, two/blended_images/, two/rendered_depth_maps/.",
    ):  # fmt: skip
        load_blendedmvs_pairs(["one", "two"], tmp_path)
    with refused("root must be a folder that exists"):
        load_blendedmvs_pairs(["one"], tmp_path / "nowhere")
    with refused("scenes must be a list of folders. Received 'one'."):
        load_blendedmvs_pairs("one", tmp_path)
    with refused("num_samples must be at least 1. Received 0."):
        load_blendedmvs_pairs(["one"], tmp_path, 0)


def test_damaged_files_are_named(tmp_path: Path) -> None:
    (tmp_path / "d.pfm").write_bytes(b"Pf\n4 4\n-1.0\n" + bytes(40))
    with refused("[read_pfm] depth must be a whole portable float map (.pfm). Received", "d.pfm"):
        read_pfm(tmp_path / "d.pfm")
    (tmp_path / "d.pfm").write_bytes(b"Pf\n2 2\n1.0\n" + np.arange(4, dtype=">f4").tobytes())
    assert read_pfm(tmp_path / "d.pfm").tolist() == [[2, 3], [0, 1]]
    (tmp_path / "c.txt").write_text("extrinsic\n1 2 3\n")
    with refused("[read_camera] camera must be a file with 'extrinsic' and 16 numbers, 'intrinsic' and 9. Received"):
        read_camera(tmp_path / "c.txt")


# NYU and KITTI


def test_nyu_gives_frames_in_metres(frames: list[scenes.Frame], tmp_path: Path) -> None:
    for i, frame in enumerate(frames):
        colour(tmp_path / f"kitchen/rgb/{i}.png", frame.rgb)
        depth_png(tmp_path / f"kitchen/depth/{i}.png", known(frame), 1000)
    found = load_nyu(tmp_path, crop=None)
    assert len(found) == 3 and found.far == 10 and repr(found) == "DepthFolder(3, far=10)"
    assert np.array_equal(found[1].rgb, frames[1].rgb)
    assert found[1].depth == pytest.approx(known(frames[1]), abs=6e-4)
    height, width = frames[0].depth.shape
    assert found[0].camera.intrinsics[0, 0] == pytest.approx(518.86 * width / 640, rel=1e-4)
    cropped = load_nyu(tmp_path, num_samples=2, seed=1)
    assert len(cropped) == 2
    kept = cropped[0].depth > 0
    assert not kept[: round(45 * height / 480)].any() and not kept[:, : round(41 * width / 640)].any() and kept.any()
    assert len(load_samples(found.pictures, [("x", np.float32, (1, 3, *SIZE))])) == 3


def test_nyu_in_one_folder(frames: list[scenes.Frame], tmp_path: Path) -> None:
    colour(tmp_path / "kitchen/rgb_00045.jpg", frames[0].rgb)
    depth_png(tmp_path / "kitchen/sync_depth_00045.png", known(frames[0]), 1000)
    assert [p.name for p in load_nyu(tmp_path).pictures] == ["rgb_00045.jpg"]


def kitti(root: Path, frames: list[scenes.Frame], day: str = "2011_09_26") -> None:
    for i, frame in enumerate(frames):
        drive = f"{day}_drive_{i:04d}_sync"
        colour(root / f"raw/{day}/{drive}/image_02/data/0000000005.png", frame.rgb)
        depth_png(root / f"depth/train/{drive}/proj_depth/groundtruth/image_02/0000000005.png", known(frame), 256)


def test_kitti_finds_the_pictures_of_annotated_depth(frames: list[scenes.Frame], tmp_path: Path) -> None:
    kitti(tmp_path, frames)
    line = "P_rect_02: 700 0 60 4 0 710 40 0 0 0 1 0\n"
    (tmp_path / "raw/2011_09_26/calib_cam_to_cam.txt").write_text(f"calib_time: today\n{line}")
    found = load_kitti(tmp_path / "raw", tmp_path / "depth", crop=None)
    assert len(found) == 3 and found.far == 80 and len(load_kitti(tmp_path)) == 3
    assert found[2].depth == pytest.approx(known(frames[2]), abs=1 / 500)
    assert found[2].camera.intrinsics.tolist() == [[700, 0, 60], [0, 710, 40], [0, 0, 1]]
    height, width = frames[0].depth.shape
    for crop, first in (("garg", 0.40810811), ("eigen", 0.3324324)):
        kept = load_kitti(tmp_path, crop=crop)[0].depth > 0
        rows = np.flatnonzero((known(frames[0])[:, width // 2] > 0) & (np.arange(height) >= int(first * height)))
        assert not kept[: int(first * height)].any() and kept[rows[0], width // 2]


def test_kitti_s_validation_set(frames: list[scenes.Frame], tmp_path: Path) -> None:
    name = "2011_09_26_drive_0002_sync_{}_0000000005_image_02.png"
    colour(tmp_path / "val/image" / name.format("image"), frames[0].rgb)
    depth_png(tmp_path / "val/groundtruth_depth" / name.format("groundtruth_depth"), known(frames[0]), 256)
    (frame,) = load_kitti(tmp_path)
    assert frame.camera.intrinsics[0, 0] == pytest.approx(0.58 * frame.depth.shape[1])


def test_frames_of_the_networks_size_are_judged(frames: list[scenes.Frame], tmp_path: Path) -> None:
    kitti(tmp_path, frames)
    found = load_kitti(tmp_path, size=SIZE, crop=None)
    assert found[0].rgb.shape == (*SIZE, 3) and found[0].depth.shape == SIZE and found[0].camera.size == SIZE
    values = set(np.round(found[0].depth[found[0].depth > 0] * 256).astype(int).tolist())
    assert values <= set(np.rint(known(frames[0]) * 256).astype(int).ravel().tolist())  # taken, not mixed
    footage = Footage(found, inverse=False, far=found.far)
    assert feeds(footage.frames, Preprocess())[0].shape == (1, 3, *SIZE)
    truth = footage.truth
    assert score(np.where(truth > 0, truth, 1), truth).abs_rel == 0
    assert judge(np.where(truth > 0, truth * 1.1, 1), footage).scores.abs_rel == pytest.approx(0.1, rel=1e-3)


@pytest.mark.parametrize(("loader", "name"), [(load_nyu, "load_nyu"), (load_kitti, "load_kitti")])
def test_what_is_missing_is_told_together(loader, name: str, frames: list[scenes.Frame], tmp_path: Path) -> None:
    with refused(f"[{name}] ", "with no depth maps."):
        loader(tmp_path)
    with refused(f"[{name}] root must be a folder that exists"):
        loader(tmp_path / "nowhere")
    for i in range(12):
        if name == "load_nyu":
            depth_png(tmp_path / f"depth/{i:02d}.png", known(frames[0]), 1000)
        else:
            depth_png(tmp_path / f"d_sync/proj_depth/groundtruth/image_02/{i:02d}.png", known(frames[0]), 256)
    with refused(f"[{name}] each depth map must have its picture in", "00.png, ", "09.png and 2 more."):
        loader(tmp_path)
    with refused(f"[{name}] crop must be "):
        loader(tmp_path, crop="middle")


def test_sizes_that_do_not_fit_are_refused(frames: list[scenes.Frame], tmp_path: Path) -> None:
    colour(tmp_path / "rgb/0.png", frames[0].rgb)
    depth_png(tmp_path / "depth/0.png", known(frames[0])[:10], 1000)
    with refused("[DepthFolder] '", "must be a 16-bit map of the size of its picture", "Received uint16 10x"):
        _ = load_nyu(tmp_path)[0]
    for wrong, message in (
        ({"size": (0, 3)}, "size must be (height, width)"),
        ({"num_samples": 0}, "num_samples must be at least"),
    ):
        with refused(f"[load_nyu] {message}"):
            load_nyu(tmp_path, **wrong)
