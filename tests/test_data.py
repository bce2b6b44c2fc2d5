"""leadline.data: sources, sampling, splitting, and what is refused."""

from __future__ import annotations

import gc
import itertools
import re
import sys
import tracemalloc
import zlib
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import ml_dtypes
import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from PIL import Image

from leadline.data import Preprocess, Samples, load
from leadline.types import InputError

PICTURE = [("x", np.float32, (1, 3, 8, 10))]
OPEN = [("x", np.float32, (None, 3, None, None))]
VECTOR = [("v", np.float32, (None, 4))]
PAIR = [("v", np.float32, (None, 4)), ("n", np.int64, (None,))]


class Settled:
    """A graph's Value, as far as the loader looks at it."""

    def __init__(self, name: str, dtype: Any, shape: tuple[int, ...]) -> None:
        self.name, self.dtype, self.shape = name, dtype, shape


def refused(*parts: str) -> Any:
    """Expect an InputError whose message holds these parts, in this order."""
    return pytest.raises(InputError, match=".*".join(map(re.escape, parts)))


@contextmanager
def peak_below(size: float) -> Iterator[None]:
    """Refuse a block whose Python and numpy allocations pass `size` bytes at once."""
    tracemalloc.start()
    try:
        yield
        peak = tracemalloc.get_traced_memory()[1]
    finally:
        tracemalloc.stop()
    assert peak < size


def picture(path: Path, seed: int = 0, size: tuple[int, int] = (20, 16), mode: str = "RGB") -> Path:
    """A picture of noise; size is (width, height)."""
    pixels = np.random.default_rng(seed).integers(0, 256, (size[1], size[0], 3), dtype=np.uint8)
    path.parent.mkdir(parents=True, exist_ok=True)
    Image.fromarray(pixels).convert(mode).save(path)
    return path


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


def equal(a: dict[str, Any], b: dict[str, Any]) -> bool:
    return a.keys() == b.keys() and all(np.array_equal(a[k], b[k]) and a[k].dtype == b[k].dtype for k in a)


# ---- folders of pictures -------------------------------------------------------------------------------------------


def test_folder_is_read_recursively_in_order_of_name(folder: Path) -> None:
    samples = load(folder, PICTURE)
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
    samples = load(folder, PICTURE)
    assert all(equal(a, b) for a, b in zip(samples, samples, strict=True))


def test_file_list_and_text_paths(folder: Path) -> None:
    assert names(load(str(folder / "b.png"), PICTURE)) == ["b.png"]
    assert names(load([folder / "z.gif", str(folder / "b.png")], PICTURE)) == ["z.gif", "b.png"]
    assert names(load((folder / "z.gif", folder / "sub"), PICTURE)) == ["z.gif", "c.webp", "d.bmp", "e.tif"]


def test_limit_is_seeded_and_keeps_the_order(folder: Path) -> None:
    first, again = load(folder, PICTURE, limit=3, seed=5), load(folder, PICTURE, limit=3, seed=5)
    assert names(first) == names(again) == sorted(names(first))
    chosen = {tuple(names(load(folder, PICTURE, limit=3, seed=seed))) for seed in range(8)}
    assert len(chosen) > 1
    assert len(load(folder, PICTURE, limit=99)) == 6


def test_a_feed_is_the_formula(tmp_path: Path) -> None:
    path = picture(tmp_path / "p.png", size=(10, 8))
    pixels = np.asarray(Image.open(path)).astype(np.float64)
    mean, std = [0.4, 0.5, 0.6], [0.2, 0.25, 0.3]
    (feed,) = load(path, PICTURE, Preprocess(mean=tuple(mean), std=tuple(std)))
    np.testing.assert_allclose(feed["x"][0], ((pixels / 255 - mean) / std).transpose(2, 0, 1), rtol=1e-5, atol=1e-6)
    (raw,) = load(path, PICTURE, Preprocess(scale=1.0, channels="BGR"))
    np.testing.assert_array_equal(raw["x"][0], pixels.transpose(2, 0, 1)[::-1])
    (last,) = load(path, [("x", np.float32, (1, 8, 10, 3))], Preprocess(scale=1.0, layout="NHWC"))
    np.testing.assert_array_equal(last["x"][0], pixels)
    (grey,) = load(path, [("x", np.float32, (1, 1, 8, 10))], Preprocess(scale=1.0, channels="L"))
    np.testing.assert_array_equal(grey["x"][0, 0], np.asarray(Image.open(path).convert("L")))
    (half,) = load(path, [("x", np.float16, (1, 3, 8, 10))])
    assert half["x"].dtype == np.float16


def test_uint8_inputs_take_raw_pixels(tmp_path: Path) -> None:
    path = picture(tmp_path / "p.png", size=(10, 8))
    (feed,) = load(path, [("x", np.uint8, (1, 3, 8, 10))])
    assert feed["x"].dtype == np.uint8
    np.testing.assert_array_equal(feed["x"][0].transpose(1, 2, 0), np.asarray(Image.open(path)))
    with refused("takes raw pixels: mean, std and scale do not apply. Received mean=0.5, std=1.0, scale=255.0."):
        load(path, [("x", np.uint8, (1, 3, 8, 10))], Preprocess(mean=0.5))


@pytest.mark.parametrize("mode", ["L", "LA", "P", "1", "RGBA", "CMYK", "I;16"])
def test_every_mode_becomes_rgb(tmp_path: Path, mode: str) -> None:
    path = tmp_path / ("p.tif" if mode == "CMYK" else "p.png")
    if mode == "I;16":
        Image.fromarray((np.arange(80, dtype=np.uint16) * 800).reshape(8, 10)).save(path)
        expected = np.repeat((np.arange(80) * 800 // 256).reshape(1, 8, 10), 3, axis=0)
    else:
        picture(path, size=(10, 8), mode=mode)
        expected = np.asarray(Image.open(path).convert("RGB")).transpose(2, 0, 1)
    (feed,) = load(path, PICTURE, Preprocess(scale=1.0))
    np.testing.assert_array_equal(feed["x"][0], expected)


def test_palette_with_transparency_gives_no_warning(tmp_path: Path) -> None:
    path = tmp_path / "p.png"
    Image.fromarray(np.zeros((8, 10), np.uint8), mode=None).convert("P").save(path, transparency=b"\x00\x80")
    (feed,) = load(path, PICTURE)
    assert feed["x"].shape == (1, 3, 8, 10)


def test_exif_orientation_is_applied(tmp_path: Path) -> None:
    path = picture(tmp_path / "p.png", size=(8, 10))
    upright = Image.open(path)
    exif = Image.Exif()
    exif[0x0112] = 6  # the camera was turned: rotate by 270 degrees to see it upright
    upright.save(tmp_path / "turned.png", exif=exif)
    (feed,) = load(tmp_path / "turned.png", PICTURE, Preprocess(scale=1.0))
    expected = np.rot90(np.asarray(upright), -1)
    np.testing.assert_array_equal(feed["x"][0].transpose(1, 2, 0), expected)


# ---- size ----------------------------------------------------------------------------------------------------------


@given(
    size=st.tuples(st.integers(1, 90), st.integers(1, 90)),
    resize=st.one_of(st.none(), st.integers(1, 40), st.tuples(st.integers(1, 40), st.integers(1, 40))),
    crop=st.one_of(st.none(), st.integers(1, 40), st.tuples(st.integers(1, 40), st.integers(1, 40))),
)
def test_shape_after_resize_and_crop(size: tuple[int, int], resize: Any, crop: Any) -> None:
    source = Image.new("RGB", size, (10, 20, 30))
    width, height = size
    try:
        preprocess = Preprocess(resize=resize, crop=crop)
    except InputError as error:
        assert "crop must fit" in str(error)
        return
    if isinstance(resize, int):
        short = min(size)
        height, width = resize * height // short, resize * width // short
        assert min(height, width) == resize
    elif resize is not None:
        height, width = resize
    if crop is not None:
        wanted = (crop, crop) if isinstance(crop, int) else crop
        if resize is None and (wanted[0] > height or wanted[1] > width):
            return
        height, width = wanted
    feed = preprocess(source)
    assert feed.shape == (1, 3, height, width)
    np.testing.assert_allclose(feed[0, :, 0, 0], np.array([10, 20, 30]) / 255, rtol=1e-6)


def test_resize_keeps_the_middle(tmp_path: Path) -> None:
    pixels = np.zeros((8, 30, 3), np.uint8)
    pixels[:, 10:20] = 255
    Image.fromarray(pixels).save(tmp_path / "p.png")
    (feed,) = load(tmp_path, OPEN, Preprocess(crop=(8, 10)))
    assert feed["x"].min() == 1.0
    # With the input's size known, the shorter side resized and no crop stated, the picture is cut to the input.
    (feed,) = load(tmp_path, [("x", np.float32, (1, 3, 8, 8))], Preprocess(resize=8))
    assert feed["x"].shape == (1, 3, 8, 8)
    assert feed["x"].min() == 1.0
    (squeezed,) = load(tmp_path, [("x", np.float32, (1, 3, 8, 10))])
    assert squeezed["x"].min() == 0.0


def test_stated_size_wins_over_a_files_dims_but_not_over_a_settled_shape(folder: Path) -> None:
    placeholder = [("x", np.float32, (10, 3, 32, 32))]
    samples = load(folder, placeholder, Preprocess(resize=(12, 14)))
    assert next(iter(samples))["x"].shape == (1, 3, 12, 14)
    with refused("[load] resize and crop must lead to the size of input 'x' (float32, 1x3x8x10). Received 12x14."):
        load(folder, [Settled("x", np.float32, (1, 3, 8, 10))], Preprocess(resize=(12, 14)))
    assert len(load(folder, [Settled("x", np.float32, (1, 3, 12, 14))], Preprocess(resize=(12, 14)))) == 6


def test_sizes_that_lead_nowhere_are_refused(folder: Path) -> None:
    rule = "[load] input 'x' (float32, ?x3x?x?) leaves height and width open: state resize as [height, width], or crop"
    with refused(f"{rule}. Received resize=8, crop=None."):
        load(folder, OPEN, Preprocess(resize=8))
    with refused("[load] resize must reach the longer side of input 'x' (float32, 1x3x8x10). Received 9."):
        load(folder, PICTURE, Preprocess(resize=9))


def test_pictures_smaller_than_the_crop_are_skipped(tmp_path: Path) -> None:
    picture(tmp_path / "a.png", size=(30, 30))
    picture(tmp_path / "b.png", size=(30, 8))
    samples = load(tmp_path, OPEN, Preprocess(crop=16))
    assert names(samples) == ["a.png"]
    assert samples.skipped == [(str(tmp_path / "b.png"), "8x30 pixels, smaller than the crop 16x16")]


# ---- what the network does not take --------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("inputs", "message"),
    [
        (VECTOR, "network with one float or uint8 input of rank 4. Received inputs 'v' (float32, ?x4)."),
        ([*PICTURE, *VECTOR], "Received inputs 'x' (float32, 1x3x8x10), 'v' (float32, ?x4)."),
        ([("x", np.int64, (1, 3, 8, 8))], "Received inputs 'x' (int64, 1x3x8x8)."),
        ([("x", np.float32, (1, 1, 8, 8))], "Received channels='RGB' (3) and layout='NCHW'."),
        ([("x", np.float32, (1, 8, 8, 3))], "must have as many channels as the pictures give"),
        (
            [("x", np.float32, (4, 3, 8, 8))],
            "pictures feed a network one at a time. Received input 'x' (float32, 4x3x8x8)",
        ),
        ([], "[load] the network must have at least one input. Received none."),
    ],
)
def test_inputs_that_pictures_cannot_feed(folder: Path, inputs: Any, message: str) -> None:
    with refused(message):
        load(folder, inputs)


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
    samples = load(tmp_path, PICTURE)
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
        load(tmp_path / "bomb.png", PICTURE)


def test_strict_refuses_the_first_unreadable_picture(tmp_path: Path) -> None:
    picture(tmp_path / "a.png")
    (tmp_path / "b.png").write_bytes(b"")
    with refused(f"[load] every file must be readable when strict. Received {tmp_path / 'b.png'}: an empty file."):
        load(tmp_path, PICTURE, strict=True)


def test_limit_counts_readable_pictures(tmp_path: Path) -> None:
    for index in range(4):
        picture(tmp_path / f"{index}.png", index)
        (tmp_path / f"{index}x.png").write_bytes(b"")
    for seed in range(6):
        assert len(load(tmp_path, PICTURE, limit=3, seed=seed)) == 3


def test_nothing_readable(tmp_path: Path) -> None:
    (tmp_path / "b.png").write_bytes(b"")
    (tmp_path / "a.png").write_bytes(b"")
    with refused(f"must be readable in {tmp_path}. Received 2 that are not: {tmp_path / 'a.png'}: an empty file."):
        load(tmp_path, PICTURE)


def test_a_picture_that_goes_away_is_named(folder: Path) -> None:
    samples = load(folder, PICTURE)
    (folder / "b.png").unlink()
    with refused(
        f"[Samples] a picture must stay readable while it is in use. Received {folder / 'b.png'}: no such file."
    ):
        list(samples)


def test_empty_and_foreign_folders(tmp_path: Path) -> None:
    with refused(f"arrays (.npy .npz). Received {tmp_path}, with 0 files, none of them such."):
        load(tmp_path, PICTURE)
    (tmp_path / "notes.txt").write_text("")
    with refused("with 1 files, none of them such."):
        load(tmp_path, PICTURE)
    with refused("[load] a data file must end in one of .avif"):
        load(tmp_path / "notes.txt", PICTURE)
    with refused(f"[load] data must be a file or folder that exists. Received {tmp_path / 'none'}."):
        load(tmp_path / "none", PICTURE)


def test_kinds_are_not_mixed(folder: Path) -> None:
    np.save(folder / "x.npy", np.zeros((1, 3, 8, 10), np.float32))
    with refused(f"must be of one kind: pictures, videos or arrays. Received 6 pictures, 1 arrays in {folder}."):
        load(folder, PICTURE)


# ---- arrays --------------------------------------------------------------------------------------------------------


def vectors(n: int) -> np.ndarray:
    return np.arange(n * 4, dtype=np.float32).reshape(n, 4)


def test_npy_first_axis_is_the_sample(tmp_path: Path) -> None:
    np.save(tmp_path / "v.npy", vectors(5))
    samples = load(tmp_path / "v.npy", VECTOR)
    assert len(samples) == 5
    for index, feed in enumerate(samples):
        assert feed["v"].shape == (1, 4)
        np.testing.assert_array_equal(feed["v"][0], vectors(5)[index])
    assert samples.labels[3] == f"{tmp_path / 'v.npy'}[3]"
    np.save(tmp_path / "v.npy", np.asfortranarray(vectors(5)))
    (last,) = itertools.islice(load(tmp_path / "v.npy", VECTOR), 4, None)
    np.testing.assert_array_equal(last["v"][0], vectors(5)[4])


@pytest.mark.parametrize("save", [np.savez, np.savez_compressed])
def test_npz_keys_are_the_input_names(tmp_path: Path, save: Any) -> None:
    save(tmp_path / "d.npz", v=vectors(3), n=np.arange(3))
    samples = load(tmp_path / "d.npz", PAIR)
    gc.collect()  # what the samples read from must outlive the loader
    feeds = list(samples)
    assert [feed["n"].tolist() for feed in feeds] == [[0], [1], [2]]
    np.testing.assert_array_equal(np.concatenate([feed["v"] for feed in samples]), vectors(3))
    assert all(equal(a, b) for a, b in zip(feeds, samples, strict=True))


def test_npz_names_must_match(tmp_path: Path) -> None:
    np.savez(tmp_path / "d.npz", w=vectors(3))
    with refused(f"[load] keys must be the input names v. Received w in {tmp_path / 'd.npz'}."):
        load(tmp_path / "d.npz", VECTOR)
    np.savez(tmp_path / "d.npz", v=vectors(3), n=np.arange(2))
    with refused(f"the same number of samples. Received 3 of v, 2 of n in {tmp_path / 'd.npz'}."):
        load(tmp_path / "d.npz", PAIR)
    np.save(tmp_path / "d.npy", vectors(3))
    with refused("[load] a network with the inputs v, n takes a .npz or dicts by input name. Received one array in"):
        load(tmp_path / "d.npy", PAIR)


def test_folder_of_arrays(tmp_path: Path) -> None:
    for index in range(3):
        np.savez(tmp_path / f"{index}.npz", v=vectors(2) + index)
    (tmp_path / "readme.md").write_text("")
    samples = load(tmp_path, VECTOR)
    assert len(samples) == 6
    assert samples.ignored == 1
    assert [feed["v"][0, 0] for feed in samples] == [0, 4, 1, 5, 2, 6]
    assert len(load(tmp_path, VECTOR, limit=4, seed=1)) == 4
    (tmp_path / "3.npy").write_bytes(b"\x93NUMPY")
    assert [Path(path).name for path, _ in load(tmp_path, VECTOR).skipped] == ["3.npy"]
    with refused("every file must be readable when strict"):
        load(tmp_path, VECTOR, strict=True)


def test_pickles_are_not_opened(tmp_path: Path) -> None:
    np.save(tmp_path / "o.npy", np.array([{"a": 1}], dtype=object), allow_pickle=True)
    with refused("o.npy: not a .npy file of plain numbers"):
        load(tmp_path / "o.npy", VECTOR)


def test_samples_with_and_without_a_batch_axis() -> None:
    images = np.random.default_rng(0).random((6, 3, 8, 10), np.float32)
    assert [f["x"].shape for f in load(images, PICTURE)] == [(1, 3, 8, 10)] * 6
    assert len(load(images[0], PICTURE)) == 1
    (feed,) = load(images[0], PICTURE)
    np.testing.assert_array_equal(feed["x"][0], images[0])
    assert len(load(images[:, np.newaxis], PICTURE)) == 6
    # A first axis fixed above one belongs to the sample.
    views = [("x", np.float32, (2, 3, 8, 10))]
    assert [f["x"].shape for f in load(images, views)] == [(2, 3, 8, 10)] * 3
    assert [f["x"].shape for f in load(images.reshape(3, 2, 3, 8, 10), views)] == [(2, 3, 8, 10)] * 3
    with refused("[load] input 'x' (float32, 2x3x8x10) takes 2 rows at a time. Received shape 5x3x8x10 in the data."):
        load(images[:5], views)


@pytest.mark.parametrize(
    ("array", "received"),
    [
        (np.zeros((2, 5), np.float32), "shape 2x5 in the data."),
        (np.zeros((2, 2, 2, 4), np.float32), "shape 2x2x2x4 in the data, of rank 4."),
        (np.float32(3), "shape scalar in the data, of rank 0."),
        (np.zeros((0, 4), np.float32), "shape 0x4 in the data: an empty array."),
        (np.zeros((2, 4), np.uint8), "uint8 in the data."),
        (np.zeros((2, 4), bool), "bool in the data."),
    ],
)
def test_wrong_rank_shape_or_dtype(array: Any, received: str) -> None:
    with refused("[load] input 'v' (float32, ?x4) takes", f"Received {received}"):
        load(array, VECTOR)


def test_dtypes_of_one_kind_are_converted_loudly() -> None:
    with pytest.warns(UserWarning, match=re.escape("[load] input 'v' takes float32: float64 is converted")):
        samples = load(vectors(2).astype(np.float64), VECTOR)
    assert [feed["v"].dtype for feed in samples] == [np.float32] * 2
    with pytest.warns(UserWarning, match="bfloat16 is converted"):
        load(vectors(2).astype(ml_dtypes.bfloat16), VECTOR)
    with pytest.warns(UserWarning, match="uint64 is converted"):
        samples = load(np.array([7, 2**63], np.uint64), [("n", np.int64, (None,))])
    with refused("[load] input 'n' (int64, ?) takes values within int64. Received values outside it in sample 1."):
        list(samples)


@pytest.mark.parametrize(("value", "kind"), [(np.nan, "NaN"), (np.inf, "infinity"), (-np.inf, "infinity")])
def test_nan_and_infinity_name_the_input_and_the_sample(tmp_path: Path, value: float, kind: str) -> None:
    data = vectors(4)
    data[2, 1] = value
    with refused(f"[load] input 'v' takes finite numbers. Received {kind} in sample 2."):
        list(load(data, VECTOR))
    np.savez(tmp_path / "d.npz", v=data)
    with refused(f"Received {kind} in {tmp_path / 'd.npz'}[2]."):
        list(load(tmp_path / "d.npz", VECTOR))
    with refused(f"Received {kind} in item 2."):
        list(load(list(data), VECTOR))
    with refused(f"Received {kind} in item 2."):
        load(iter(data), VECTOR)
    with pytest.warns(UserWarning, match="float64 is converted"):
        too_large = load(np.full((1, 4), 1e300), VECTOR)
    with refused("Received infinity in sample 0."):
        list(too_large)


# ---- iterables -----------------------------------------------------------------------------------------------------


def test_lists_of_arrays_and_of_dicts() -> None:
    samples = load([vectors(1), vectors(3)[1:], vectors(5)[4]], VECTOR)
    assert [feed["v"][0, 0] for feed in samples] == [0, 4, 8, 16]
    assert samples.labels == ["item 0", "item 1[0]", "item 1[1]", "item 2"]
    samples = load([{"v": vectors(1), "n": np.array([7])}, {"n": np.array([8]), "v": vectors(1)}], PAIR)
    assert [feed["n"].tolist() for feed in samples] == [[7], [8]]
    assert [list(feed) for feed in samples] == [["v", "n"]] * 2
    assert len(load({"v": vectors(3), "n": np.arange(3)}, PAIR)) == 3
    with refused("[load] keys must be the input names v, n. Received v in item 1."):
        load([{"v": vectors(1), "n": np.array([7])}, {"v": vectors(1)}], PAIR)


def test_generators_run_once_and_may_reuse_their_buffer() -> None:
    runs = []

    def frames() -> Iterator[np.ndarray]:
        runs.append(1)
        buffer = np.empty((1, 4), np.float32)
        for index in range(5):
            buffer[:] = index
            yield buffer

    samples = load(frames(), VECTOR)
    gc.collect()
    assert runs == [1]
    for _ in range(2):
        assert [feed["v"][0, 0] for feed in samples] == [0, 1, 2, 3, 4]


def test_an_endless_iterator_stops_at_the_limit() -> None:
    samples = load((np.full((1, 4), i, np.float32) for i in itertools.count()), VECTOR, limit=3)
    assert [feed["v"][0, 0] for feed in samples] == [0, 1, 2]


def test_spooled_samples_leave_nothing_behind(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("tempfile.tempdir", str(tmp_path))
    samples = load(iter(vectors(3)), VECTOR)
    part = samples.take(1)
    del samples
    gc.collect()
    assert len(list(part)) == 1
    assert len(list(tmp_path.iterdir())) == 1
    del part
    gc.collect()
    assert list(tmp_path.iterdir()) == []


def test_memory_does_not_grow_with_the_samples(tmp_path: Path) -> None:
    """A generator, a .npz and a folder of pictures: the peak is that of a few samples, not of 64."""
    one = 3 * 96 * 96 * 4
    inputs = [("x", np.float32, (None, 3, 96, 96))]
    np.savez(tmp_path / "d.npz", x=np.random.default_rng(0).random((64, 3, 96, 96), np.float32))
    for index in range(64):
        picture(tmp_path / "pictures" / f"{index:02}.png", index, size=(96, 96))
    generator = (np.full((1, 3, 96, 96), i, np.float32) for i in range(64))
    for source in (tmp_path / "d.npz", tmp_path / "pictures", generator):
        with peak_below(16 * one):
            assert sum(1 for _ in load(source, inputs)) == 64


class Tensor:
    """What a torch tensor shows of itself: detach, DLPack, and a refusal to export a gradient."""

    def __init__(self, values: np.ndarray, grad: bool) -> None:
        self.values, self.grad = values, grad

    def detach(self) -> Tensor:
        return Tensor(self.values, grad=False)

    def __dlpack__(self, **options: Any) -> Any:
        if self.grad:
            raise BufferError("Can't export tensors that require gradient")
        return self.values.__dlpack__(**options)

    def __dlpack_device__(self) -> tuple[int, int]:
        return self.values.__dlpack_device__()


class OnDevice(Tensor):
    def detach(self) -> Tensor:
        return self

    def __dlpack__(self, **options: Any) -> Any:
        raise BufferError("Cannot export a tensor on an accelerator to the CPU")


def test_dlpack_tensors() -> None:
    for source in (
        Tensor(vectors(3), grad=True),
        [Tensor(vectors(3), grad=False)],
        {"v": Tensor(vectors(3), grad=True)},
    ):
        samples = load(source, VECTOR)
        assert [feed["v"][0, 0] for feed in samples] == [0, 4, 8]
    with refused("[load] each item must be an array or CPU tensor of numbers", "Received OnDevice in item 0"):
        load([OnDevice(vectors(3), grad=False)], VECTOR)


def test_torch_tensors_where_torch_is_installed() -> None:
    torch = pytest.importorskip("torch")
    samples = load([torch.ones(1, 4, requires_grad=True)], VECTOR)
    np.testing.assert_array_equal(next(iter(samples))["v"], np.ones((1, 4)))


@pytest.mark.parametrize(
    ("source", "message"),
    [
        (3, "[load] data must be a path, an array, or an iterable of arrays. Received int."),
        ([], "[load] data must hold at least one sample. Received an empty list."),
        (iter(()), "[load] data must hold at least one sample. Received an empty tuple_iterator."),
        ([object()], "an array of object in item 0."),
        ([[1.0, [2.0]]], "Received list in item 0"),
        (["a", vectors(1)], "in item 0"),
        (
            [(vectors(1), vectors(1))],
            "from a loader of pairs: (x for x, _ in loader)). Received a tuple of 2 in item 0.",
        ),
    ],
)
def test_sources_that_are_no_data(source: Any, message: str) -> None:
    with refused(message):
        load(source, VECTOR)


def test_other_refusals() -> None:
    with refused("[load] limit must be at least 1. Received 0."):
        load(vectors(3), VECTOR, limit=0)
    with refused("preprocess applies to pictures and videos; arrays enter as they are. Received ndarray."):
        load(vectors(3), VECTOR, Preprocess())


def test_samples_pass_through(folder: Path) -> None:
    samples = load(folder, PICTURE)
    assert load(samples, PICTURE) is samples
    assert len(load(samples, PICTURE, limit=2)) == 2


# ---- split and take ------------------------------------------------------------------------------------------------


def numbered(n: int, seed: int = 0) -> Samples:
    return load(np.arange(n * 4, dtype=np.float32).reshape(n, 4), VECTOR, seed=seed)


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
    parts = load(folder, PICTURE).split(0.5)
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
    samples = load(video, PICTURE, Preprocess(scale=1.0), limit=5)
    gc.collect()
    assert samples.labels == [f"{video}[{i}]" for i in (0, 10, 20, 29, 39)]
    for feed, index in zip(samples, (0, 10, 20, 29, 39), strict=True):
        assert feed["x"].shape == (1, 3, 8, 10)
        assert abs(feed["x"].mean() - index * 6) < 6
    assert all(equal(a, b) for a, b in zip(samples, samples, strict=True))
    assert len(load(video, PICTURE)) == 32
    assert len(load(video, PICTURE, limit=99)) == 40


def test_several_videos_share_the_limit(video: Path) -> None:
    (video.parent / "second.mp4").write_bytes(video.read_bytes())
    assert len(load(video.parent, PICTURE, limit=7)) == 7
    assert len(load(video.parent, PICTURE)) == 64


def test_broken_video(video: Path) -> None:
    (video.parent / "a.mp4").write_bytes(b"no film")
    samples = load(video.parent, PICTURE, limit=4)
    assert len(samples) >= 2
    assert "not a video that PyAV can read" in samples.skipped[0][1]
    with refused("a.mp4: not a video"):
        load(video.parent, PICTURE, strict=True)


def test_missing_video_extra_says_what_to_type(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "av", None)
    (tmp_path / "f.mp4").write_bytes(b"")
    with refused(f"[load] a video needs PyAV: pip install 'leadline[video]'. Received {tmp_path / 'f.mp4'}."):
        load(tmp_path / "f.mp4", PICTURE)


# ---- Preprocess ----------------------------------------------------------------------------------------------------

sizes = st.one_of(st.none(), st.integers(1, 500), st.tuples(st.integers(1, 500), st.integers(1, 500)))


@given(
    resize=sizes,
    mean=st.one_of(st.floats(-9, 9), st.tuples(*[st.floats(-9, 9)] * 3)),
    scale=st.floats(0.1, 1000),
    layout=st.sampled_from(["NCHW", "NHWC"]),
    channels=st.sampled_from(["RGB", "BGR"]),
)
def test_preprocess_survives_a_round_trip(resize: Any, mean: Any, scale: float, layout: Any, channels: Any) -> None:
    preprocess = Preprocess(resize=resize, mean=mean, scale=scale, layout=layout, channels=channels)
    table = preprocess.to_dict()
    assert Preprocess.from_dict(table) == preprocess
    assert all(isinstance(value, int | float | str | list) for value in table.values())


@pytest.mark.parametrize(
    ("table", "message"),
    [
        (
            {"sizes": 3},
            "[Preprocess] data knows only the keys resize, crop, mean, std, scale, layout, channels. Received sizes.",
        ),
        ({"resize": 0}, "[Preprocess] resize must be a positive integer or [height, width]. Received 0."),
        ({"resize": True}, "Received True."),
        ({"crop": [3]}, "[Preprocess] crop must be a positive integer or [height, width]. Received [3]."),
        ({"resize": 10, "crop": 11}, "[Preprocess] crop must fit in the picture resized to 10. Received 11."),
        ({"resize": [10, 20], "crop": [12, 8]}, "crop must fit in the picture resized to (10, 20). Received (12, 8)."),
        ({"mean": [1.0, 2.0]}, "[Preprocess] mean must have one value for each of the 3 channels. Received 2 values."),
        ({"mean": "0.5"}, "[Preprocess] mean must be a finite number or one per channel. Received '0.5'."),
        ({"std": [1.0, 0.0, 1.0]}, "[Preprocess] std must be positive. Received (1.0, 0.0, 1.0)."),
        ({"std": float("inf")}, "[Preprocess] std must be a finite number or one per channel. Received inf."),
        ({"scale": 0}, "[Preprocess] scale must be a positive finite number. Received 0."),
        ({"layout": "HWC"}, "[Preprocess] layout must be 'NCHW' or 'NHWC'. Received 'HWC'."),
        ({"channels": "RGBA"}, "[Preprocess] channels must be 'RGB', 'BGR' or 'L'. Received 'RGBA'."),
    ],
)
def test_preprocess_refusals(table: dict[str, Any], message: str) -> None:
    with refused(message) as caught:
        Preprocess.from_dict(table)
    assert str(caught.value).isascii()
