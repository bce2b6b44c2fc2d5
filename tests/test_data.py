"""leadline.data: pictures and videos, sampling, splitting, and what is refused."""

from __future__ import annotations

import gc
import sys
import zlib
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from PIL import Image

from data_samples import OPEN, PICTURE, VECTOR, Settled, equal, peak_below, picture, refused
from leadline.data import Data, Preprocess, Samples, load_samples


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    """Six pictures in two folders, among other files."""
    for index, name in enumerate(["b.png", "a.JPG", "sub/c.webp", "sub/d.bmp", "sub/deeper/e.tif", "z.gif"]):
        picture(tmp_path / name, index)
    (tmp_path / "labels.txt").write_text("no picture")
    (tmp_path / ".hidden.png").write_bytes(b"")
    (tmp_path / ".git").mkdir()
    (tmp_path / ".git" / "x.png").write_bytes(b"")
    return tmp_path


def names(samples: Samples) -> list[str]:
    return [Path(label).name for label in samples.labels]


# ---- folders of pictures -------------------------------------------------------------------------------------------


def test_folder_is_read_recursively_in_order_of_name(folder: Path) -> None:
    samples = load_samples(folder, PICTURE)
    assert names(samples) == ["a.JPG", "b.png", "c.webp", "d.bmp", "e.tif", "z.gif"]
    assert len(samples) == 6
    assert samples.skipped == []
    assert samples.ignored == 2  # labels.txt and .hidden.png; hidden folders are not entered
    for feed in samples:
        assert list(feed) == ["x"]
        assert feed["x"].shape == (1, 3, 8, 10)
        assert feed["x"].dtype == np.float32
        assert feed["x"].flags.c_contiguous
        assert 0 <= feed["x"].min() < feed["x"].max() <= 1


def test_each_iteration_gives_the_same_feeds(folder: Path) -> None:
    samples = load_samples(folder, PICTURE)
    assert all(equal(a, b) for a, b in zip(samples, samples, strict=True))


def test_file_list_and_text_paths(folder: Path) -> None:
    assert names(load_samples(str(folder / "b.png"), PICTURE)) == ["b.png"]
    assert names(load_samples([folder / "z.gif", str(folder / "b.png")], PICTURE)) == ["z.gif", "b.png"]
    assert names(load_samples((folder / "z.gif", folder / "sub"), PICTURE)) == ["z.gif", "c.webp", "d.bmp", "e.tif"]


def test_limit_is_seeded_and_keeps_the_order(folder: Path) -> None:
    first, again = (
        load_samples(Data(folder, num_samples=3, seed=5), PICTURE),
        load_samples(Data(folder, num_samples=3, seed=5), PICTURE),
    )
    assert names(first) == names(again) == sorted(names(first))
    chosen = {tuple(names(load_samples(Data(folder, num_samples=3, seed=seed), PICTURE))) for seed in range(8)}
    assert len(chosen) > 1
    assert len(load_samples(Data(folder, num_samples=99), PICTURE)) == 6


def test_stated_size_wins_over_a_files_dims_but_not_over_a_settled_shape(folder: Path) -> None:
    placeholder = [("x", np.float32, (10, 3, 32, 32))]
    samples = load_samples(Data(folder, preprocess=Preprocess(resize=(12, 14))), placeholder)
    assert next(iter(samples))["x"].shape == (1, 3, 12, 14)
    with refused(
        "[load_samples] resize and crop must lead to the size of input 'x' (float32, 1x3x8x10). Received 12x14."
    ):
        load_samples(Data(folder, preprocess=Preprocess(resize=(12, 14))), [Settled("x", np.float32, (1, 3, 8, 10))])
    assert (
        len(
            load_samples(
                Data(folder, preprocess=Preprocess(resize=(12, 14))), [Settled("x", np.float32, (1, 3, 12, 14))]
            )
        )
        == 6
    )


def test_sizes_that_lead_nowhere_are_refused(folder: Path) -> None:
    rule = "input 'x' (float32, ?x3x?x?) leaves height and width open: state resize as [height, width], or crop"
    with refused(f"[load_samples] {rule}. Received resize=8, crop=None."):
        load_samples(Data(folder, preprocess=Preprocess(resize=8)), OPEN)
    with refused("[load_samples] resize must reach the longer side of input 'x' (float32, 1x3x8x10). Received 9."):
        load_samples(Data(folder, preprocess=Preprocess(resize=9)), PICTURE)


def test_pictures_smaller_than_the_crop_are_skipped(tmp_path: Path) -> None:
    picture(tmp_path / "a.png", size=(30, 30))
    picture(tmp_path / "b.png", size=(30, 8))
    samples = load_samples(Data(tmp_path, preprocess=Preprocess(crop=16)), OPEN)
    assert names(samples) == ["a.png"]
    assert samples.skipped == [(str(tmp_path / "b.png"), "8x30 pixels, smaller than the crop 16x16")]


# ---- what the network does not take --------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("inputs", "message"),
    [
        (
            VECTOR,
            "network with one float or uint8 input of rank 4, or 5 for clips. Received inputs 'v' (float32, ?x4).",
        ),
        ([*PICTURE, *VECTOR], "Received inputs 'x' (float32, 1x3x8x10), 'v' (float32, ?x4)."),
        ([("x", np.int64, (1, 3, 8, 8))], "Received inputs 'x' (int64, 1x3x8x8)."),
        ([("x", np.float32, (1, 1, 8, 8))], "Received channels='RGB' (3) and layout='NCHW'."),
        ([("x", np.float32, (1, 8, 8, 3))], "must have as many channels as the pictures give"),
        (
            [("x", np.float32, (4, 3, 8, 8))],
            "pictures feed a network one at a time. Received input 'x' (float32, 4x3x8x8)",
        ),
        ([], "[load_samples] the network must have at least one input. Received none."),
    ],
)
def test_inputs_that_pictures_cannot_feed(folder: Path, inputs: Any, message: str) -> None:
    with refused(message):
        load_samples(folder, inputs)


# ---- unreadable files ----------------------------------------------------------------------------------------------


def spoil(folder: Path) -> dict[str, str]:
    """Broken files of several kinds, and what is said of each."""
    picture(folder / "whole.png", size=(200, 200))
    (folder / "c1.png").write_bytes((folder / "whole.png").read_bytes()[:3000])
    picture(folder / "whole.jpg", size=(200, 200))
    (folder / "c2.jpg").write_bytes((folder / "whole.jpg").read_bytes()[:2000])
    (folder / "c3.png").write_bytes(b"")
    (folder / "c4.jpg").write_text("this is no picture")
    png = (folder / "whole.png").read_bytes()
    header = png[12:16] + (60000).to_bytes(4, "big") * 2 + png[24:29]
    (folder / "c5.png").write_bytes(png[:12] + header + zlib.crc32(header).to_bytes(4, "big") + png[33:])
    Image.fromarray(np.zeros((8, 8), np.float32)).save(folder / "c6.tif")
    return {
        "c1.png": "",
        "c2.jpg": "truncated",
        "c3.png": "an empty file",
        "c4.jpg": "not a picture that Pillow can read",
        "c5.png": "pixels",
        "c6.tif": "floating-point pixels",
    }


def test_unreadable_pictures_are_skipped_and_counted(tmp_path: Path) -> None:
    reasons = spoil(tmp_path)
    samples = load_samples(tmp_path, PICTURE)
    assert names(samples) == ["whole.jpg", "whole.png"]
    assert [Path(path).name for path, _ in samples.skipped] == list(reasons)
    for (path, reason), expected in zip(samples.skipped, reasons.values(), strict=True):
        assert expected in reason, path
        assert reason.isascii()
    assert len(list(samples)) == 2


def test_a_huge_picture_is_never_decoded(tmp_path: Path) -> None:
    spoil(tmp_path)
    (tmp_path / "c5.png").rename(tmp_path / "bomb.png")
    with peak_below(20e6), refused("bomb.png: more than"):
        load_samples(tmp_path / "bomb.png", PICTURE)


def test_strict_refuses_the_first_unreadable_picture(tmp_path: Path) -> None:
    picture(tmp_path / "a.png")
    (tmp_path / "b.png").write_bytes(b"")
    with refused(
        f"[load_samples] every file must be readable when strict. Received {tmp_path / 'b.png'}: an empty file."
    ):
        load_samples(Data(tmp_path, strict=True), PICTURE)


def test_limit_counts_readable_pictures(tmp_path: Path) -> None:
    for index in range(4):
        picture(tmp_path / f"{index}.png", index)
        (tmp_path / f"{index}x.png").write_bytes(b"")
    for seed in range(6):
        assert len(load_samples(Data(tmp_path, num_samples=3, seed=seed), PICTURE)) == 3


def test_nothing_readable(tmp_path: Path) -> None:
    (tmp_path / "b.png").write_bytes(b"")
    (tmp_path / "a.png").write_bytes(b"")
    with refused(f"must be readable in {tmp_path}. Received 2 that are not: {tmp_path / 'a.png'}: an empty file."):
        load_samples(tmp_path, PICTURE)


def test_a_picture_that_goes_away_is_named(folder: Path) -> None:
    samples = load_samples(folder, PICTURE)
    (folder / "b.png").unlink()
    with refused(
        f"[Samples] a picture must stay readable while it is in use. Received {folder / 'b.png'}: no such file."
    ):
        list(samples)


def test_empty_and_foreign_folders(tmp_path: Path) -> None:
    with refused(f"arrays (.npy .npz). Received {tmp_path}, with 0 files, none of them such."):
        load_samples(tmp_path, PICTURE)
    (tmp_path / "notes.txt").write_text("")
    with refused("with 1 files, none of them such."):
        load_samples(tmp_path, PICTURE)
    with refused("[load_samples] a data file must end in one of .avif"):
        load_samples(tmp_path / "notes.txt", PICTURE)
    with refused(f"[load_samples] data must be a file or folder that exists. Received {tmp_path / 'none'}."):
        load_samples(tmp_path / "none", PICTURE)


def test_kinds_are_not_mixed(folder: Path) -> None:
    np.save(folder / "x.npy", np.zeros((1, 3, 8, 10), np.float32))
    with refused(f"must be of one kind: pictures, videos or arrays. Received 6 pictures, 1 arrays in {folder}."):
        load_samples(folder, PICTURE)


def test_samples_pass_through(folder: Path) -> None:
    samples = load_samples(folder, PICTURE)
    assert load_samples(samples, PICTURE) is samples
    assert len(load_samples(Data(samples, num_samples=2), PICTURE)) == 2


# ---- split and take ------------------------------------------------------------------------------------------------


def numbered(n: int, seed: int = 0) -> Samples:
    return load_samples(Data(np.arange(n * 4, dtype=np.float32).reshape(n, 4), seed=seed), VECTOR)


@settings(deadline=None)
@given(n=st.integers(2, 60), share=st.floats(0.001, 0.999), seed=st.integers(0, 2**31))
def test_split_is_a_partition(n: int, share: float, seed: int) -> None:
    samples = numbered(n, seed)
    calibration, held_out = samples.split(share)
    assert sorted(calibration.labels + held_out.labels) == sorted(samples.labels)
    assert len(calibration) >= 1
    assert len(held_out) == min(max(round(n * share), 1), n - 1)
    order = {label: i for i, label in enumerate(samples.labels)}
    for part in (calibration, held_out):
        positions = [order[label] for label in part.labels]
        assert positions == sorted(positions)
    assert numbered(n, seed).split(share)[1].labels == held_out.labels


def test_split_depends_on_the_seed_and_keeps_the_records(folder: Path) -> None:
    assert len({tuple(numbered(20, seed).split()[1].labels) for seed in range(5)}) > 1
    (folder / "broken.png").write_bytes(b"")
    parts = load_samples(folder, PICTURE).split(0.5)
    assert [len(part) for part in parts] == [3, 3]
    assert all(len(part.skipped) == 1 and part.ignored == 2 for part in parts)


def test_one_sample_is_in_both_parts() -> None:
    calibration, held_out = numbered(1).split()
    assert calibration.labels == held_out.labels == ["sample 0"]


@pytest.mark.parametrize("share", [0.0, 1.0, -0.1, 1.5, float("nan")])
def test_split_refuses_a_share_outside(share: float) -> None:
    with refused(f"[Samples.split] held_out must be above 0 and below 1. Received {share}."):
        numbered(4).split(share)


def test_take() -> None:
    assert numbered(5).take(2).labels == ["sample 0", "sample 1"]
    assert len(numbered(5).take(9)) == 5
    with refused("[Samples.take] n must be at least 1. Received 0."):
        numbered(5).take(0)
    assert repr(numbered(5)) == "Samples(5, skipped=0, ignored=0)"


# ---- videos --------------------------------------------------------------------------------------------------------


@pytest.fixture
def video(tmp_path: Path) -> Path:
    """Forty frames that grow brighter."""
    av = pytest.importorskip("av")
    path = tmp_path / "film.mp4"
    with av.open(str(path), "w") as container:
        stream = container.add_stream("mpeg4", rate=20)
        stream.width, stream.height, stream.pix_fmt = 64, 48, "yuv420p"
        for index in range(40):
            frame = av.VideoFrame.from_ndarray(np.full((48, 64, 3), index * 6, np.uint8), format="rgb24")
            container.mux(stream.encode(frame))
        container.mux(stream.encode())
    return path


def test_frames_are_evenly_spread(video: Path) -> None:
    samples = load_samples(Data(video, preprocess=Preprocess(scale=1.0), num_samples=5), PICTURE)
    gc.collect()
    assert samples.labels == [f"{video}[{i}]" for i in (0, 10, 20, 29, 39)]
    for feed, index in zip(samples, (0, 10, 20, 29, 39), strict=True):
        assert feed["x"].shape == (1, 3, 8, 10)
        assert abs(feed["x"].mean() - index * 6) < 6
    assert all(equal(a, b) for a, b in zip(samples, samples, strict=True))
    assert len(load_samples(video, PICTURE)) == 32
    assert len(load_samples(Data(video, num_samples=99), PICTURE)) == 40


CLIP = [("x", np.float32, (1, 4, 3, 8, 10))]


def test_clips_are_consecutive_frames(video: Path) -> None:
    samples = load_samples(Data(video, preprocess=Preprocess(scale=1.0), num_samples=3), CLIP)
    assert samples.labels == [f"{video}[0:4]", f"{video}[18:22]", f"{video}[36:40]"]
    for feed, start in zip(samples, (0, 18, 36), strict=True):
        assert feed["x"].shape == (1, 4, 3, 8, 10)
        assert np.abs(feed["x"].mean((0, 2, 3, 4)) - np.arange(start, start + 4) * 6).max() < 6
    assert len(load_samples(Data(video, num_samples=99), CLIP)) == 37, "clips may overlap"
    with refused("40 frames, fewer than the 41 of a clip"):
        load_samples(Data(video, strict=True), [("x", np.float32, (1, 41, 3, 8, 10))])
    with refused("must say how many frames make a clip"):
        load_samples(video, [("x", np.float32, (1, None, 3, 8, 10))])


def test_clips_of_pictures_stay_within_a_folder(tmp_path: Path) -> None:
    for scene, count in (("a", 5), ("b", 3), ("c", 4)):
        (tmp_path / scene).mkdir()
        for index in range(count):
            Image.new("RGB", (10, 8), (index, 0, 0)).save(tmp_path / scene / f"{index}.png")
    samples = load_samples(Data(tmp_path, preprocess=Preprocess(scale=1.0)), CLIP)
    assert samples.labels == [f"{tmp_path / scene / '0.png'} to 3.png" for scene in "ac"]
    assert [feed["x"][0, :, 0, 0, 0].tolist() for feed in samples] == [[0, 1, 2, 3]] * 2
    (tmp_path / "a" / "1.png").write_bytes(b"")
    assert [
        feed["x"][0, :, 0, 0, 0].tolist()
        for feed in load_samples(Data(tmp_path, preprocess=Preprocess(scale=1.0)), CLIP)
    ] == [
        [0, 2, 3, 4],
        [0, 1, 2, 3],
    ]
    with refused("a folder must hold the 4 pictures of a clip. Received 3"):
        load_samples(tmp_path / "b", CLIP)


def test_several_videos_share_the_limit(video: Path) -> None:
    (video.parent / "second.mp4").write_bytes(video.read_bytes())
    assert len(load_samples(Data(video.parent, num_samples=7), PICTURE)) == 7
    assert len(load_samples(video.parent, PICTURE)) == 64


def test_broken_video(video: Path) -> None:
    (video.parent / "a.mp4").write_bytes(b"no film")
    samples = load_samples(Data(video.parent, num_samples=4), PICTURE)
    assert len(samples) >= 2
    assert "not a video that PyAV can read" in samples.skipped[0][1]
    with refused("a.mp4: not a video"):
        load_samples(Data(video.parent, strict=True), PICTURE)


def test_missing_video_extra_says_what_to_type(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "av", None)
    (tmp_path / "f.mp4").write_bytes(b"")
    with refused(f"[load_samples] a video needs PyAV: pip install 'leadline[video]'. Received {tmp_path / 'f.mp4'}."):
        load_samples(tmp_path / "f.mp4", PICTURE)
