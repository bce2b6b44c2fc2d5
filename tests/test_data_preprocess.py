"""leadline.data.Preprocess: from a picture to an input."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from PIL import Image

from data_samples import OPEN, PICTURE, picture, refused
from leadline.data import Data, Preprocess, load_samples
from leadline.types import InputError


def test_a_feed_is_the_formula(tmp_path: Path) -> None:
    path = picture(tmp_path / "p.png", size=(10, 8))
    pixels = np.asarray(Image.open(path)).astype(np.float64)
    mean, std = [0.4, 0.5, 0.6], [0.2, 0.25, 0.3]
    (feed,) = load_samples(Data(path, preprocess=Preprocess(mean=tuple(mean), std=tuple(std))), PICTURE)
    np.testing.assert_allclose(feed["x"][0], ((pixels / 255 - mean) / std).transpose(2, 0, 1), rtol=1e-5, atol=1e-6)
    (raw,) = load_samples(Data(path, preprocess=Preprocess(scale=1.0, channels="BGR")), PICTURE)
    np.testing.assert_array_equal(raw["x"][0], pixels.transpose(2, 0, 1)[::-1])
    (last,) = load_samples(
        Data(path, preprocess=Preprocess(scale=1.0, layout="NHWC")), [("x", np.float32, (1, 8, 10, 3))]
    )
    np.testing.assert_array_equal(last["x"][0], pixels)
    (grey,) = load_samples(
        Data(path, preprocess=Preprocess(scale=1.0, channels="L")), [("x", np.float32, (1, 1, 8, 10))]
    )
    np.testing.assert_array_equal(grey["x"][0, 0], np.asarray(Image.open(path).convert("L")))
    (half,) = load_samples(path, [("x", np.float16, (1, 3, 8, 10))])
    assert half["x"].dtype == np.float16


@pytest.mark.parametrize(
    ("size", "room", "placed"),
    [((80, 60), (48, 64), (0.8, 0, 0)), ((64, 20), (64, 64), (1.0, 22, 0)), ((30, 90), (45, 60), (0.5, 0, 22))],
)
def test_a_letterboxed_picture_keeps_its_proportions(
    size: tuple[int, int], room: tuple[int, int], placed: tuple[float, int, int]
) -> None:
    preprocess = Preprocess(resize=room, scale=1.0, letterbox=True, layout="NHWC")
    factor, top, left = preprocess.place(size[1], size[0])
    assert (factor, top, left) == pytest.approx(placed)
    (pixels,) = preprocess(Image.new("RGB", size, (200, 10, 30)))
    height, width = round(size[1] * factor), round(size[0] * factor)
    inner = np.zeros(room, bool)
    inner[top : top + height, left : left + width] = True
    assert pixels.shape == (*room, 3)
    assert (pixels[inner] == [200, 10, 30]).all() and (pixels[~inner] == 114).all()


def test_a_letterbox_takes_the_networks_size(tmp_path: Path) -> None:
    path = picture(tmp_path / "p.png", size=(20, 8))
    (feed,) = load_samples(Data(path, preprocess=Preprocess(letterbox=True, scale=1.0)), PICTURE)
    grey = (feed["x"][0] == 114).all(0)
    assert grey[:2].all() and grey[-2:].all() and not grey[3:5].all()
    with refused("[Preprocess.place] letterbox must be true, with resize stated. Received Preprocess(resize=None"):
        Preprocess(letterbox=True).place(3, 4)


def test_uint8_inputs_take_raw_pixels(tmp_path: Path) -> None:
    path = picture(tmp_path / "p.png", size=(10, 8))
    (feed,) = load_samples(path, [("x", np.uint8, (1, 3, 8, 10))])
    assert feed["x"].dtype == np.uint8
    np.testing.assert_array_equal(feed["x"][0].transpose(1, 2, 0), np.asarray(Image.open(path)))
    with refused("takes raw pixels: mean, std and scale do not apply. Received mean=0.5, std=1.0, scale=255.0."):
        load_samples(Data(path, preprocess=Preprocess(mean=0.5)), [("x", np.uint8, (1, 3, 8, 10))])


@pytest.mark.parametrize("mode", ["L", "LA", "P", "1", "RGBA", "CMYK", "I;16"])
def test_every_mode_becomes_rgb(tmp_path: Path, mode: str) -> None:
    path = tmp_path / ("p.tif" if mode == "CMYK" else "p.png")
    if mode == "I;16":
        Image.fromarray((np.arange(80, dtype=np.uint16) * 800).reshape(8, 10)).save(path)
        expected = np.repeat((np.arange(80) * 800 // 256).reshape(1, 8, 10), 3, axis=0)
    else:
        picture(path, size=(10, 8), mode=mode)
        expected = np.asarray(Image.open(path).convert("RGB")).transpose(2, 0, 1)
    (feed,) = load_samples(Data(path, preprocess=Preprocess(scale=1.0)), PICTURE)
    np.testing.assert_array_equal(feed["x"][0], expected)


def test_palette_with_transparency_gives_no_warning(tmp_path: Path) -> None:
    path = tmp_path / "p.png"
    Image.fromarray(np.zeros((8, 10), np.uint8), mode=None).convert("P").save(path, transparency=b"\x00\x80")
    (feed,) = load_samples(path, PICTURE)
    assert feed["x"].shape == (1, 3, 8, 10)


def test_exif_orientation_is_applied(tmp_path: Path) -> None:
    path = picture(tmp_path / "p.png", size=(8, 10))
    upright = Image.open(path)
    exif = Image.Exif()
    exif[0x0112] = 6  # the camera was turned: rotate by 270 degrees to see it upright
    upright.save(tmp_path / "turned.png", exif=exif)
    (feed,) = load_samples(Data(tmp_path / "turned.png", preprocess=Preprocess(scale=1.0)), PICTURE)
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
    (feed,) = load_samples(Data(tmp_path, preprocess=Preprocess(crop=(8, 10))), OPEN)
    assert feed["x"].min() == 1.0
    # With the input's size known, the shorter side resized and no crop stated, the picture is cut to the input.
    (feed,) = load_samples(Data(tmp_path, preprocess=Preprocess(resize=8)), [("x", np.float32, (1, 3, 8, 8))])
    assert feed["x"].shape == (1, 3, 8, 8)
    assert feed["x"].min() == 1.0
    (squeezed,) = load_samples(tmp_path, [("x", np.float32, (1, 3, 8, 10))])
    assert squeezed["x"].min() == 0.0


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
            "[Preprocess] data knows only the keys resize, crop, mean, std, scale, layout, channels, letterbox. "
            "Received sizes.",
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
        ({"letterbox": 1}, "[Preprocess] letterbox must be true or false. Received 1."),
        (
            {"letterbox": True, "resize": 64},
            "[Preprocess] letterbox takes resize as [height, width], and no crop. Received resize=64, crop=None.",
        ),
        ({"letterbox": True, "crop": 64}, "Received resize=None, crop=64."),
        ({"channels": "RGBA"}, "[Preprocess] channels must be 'RGB', 'BGR' or 'L'. Received 'RGBA'."),
    ],
)
def test_preprocess_refusals(table: dict[str, Any], message: str) -> None:
    with refused(message) as caught:
        Preprocess.from_dict(table)
    assert str(caught.value).isascii()
