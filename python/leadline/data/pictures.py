"""Pictures as samples."""

from __future__ import annotations

import warnings
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path

import numpy as np

from leadline.data.inputs import Input, is_float, shape_text
from leadline.data.preprocess import Preprocess, Unreadable
from leadline.data.samples import Feed, Item
from leadline.types import InputError, refuse

SUFFIXES = tuple(
    [".avif", ".bmp", ".gif", ".jp2", ".jpeg", ".jpg", ".pbm", ".pgm", ".png", ".pnm", ".ppm", ".tif", ".tiff", ".webp"]
)


def fit(preprocess: Preprocess, inputs: Sequence[Input]) -> tuple[Input, Preprocess, int | None]:
    """The one input that pictures feed, the preprocessing with its size settled for it, and how many make a clip.

    An input of rank 5 takes clips: its second axis is their length, and the input that is returned is of one frame.

    A size that the caller states (crop, or resize to height and width) wins over the dims of a file, which may be
    placeholders; against a graph's settled shape it must agree. With none stated the input's own size is used.
    """
    rule = "pictures feed a network with one float or uint8 input of rank 4, or 5 for clips"
    if (
        len(inputs) != 1
        or len(inputs[0].dims) not in (4, 5)
        or not (is_float(inputs[0].dtype) or inputs[0].dtype == np.uint8)
    ):
        raise refuse("load_samples", rule, f"inputs {', '.join(map(str, inputs))}")
    (item,) = inputs
    clip = None
    if len(item.dims) == 5:
        clip = item.dims[1]
        if clip is None:
            raise refuse("load_samples", f"input {item} must say how many frames make a clip", "an open second axis")
        item = replace(item, dims=(item.dims[0], *item.dims[2:]))
    default = Preprocess()
    if item.dtype == np.uint8 and any(getattr(preprocess, k) != getattr(default, k) for k in ("mean", "std", "scale")):
        stated = f"mean={preprocess.mean}, std={preprocess.std}, scale={preprocess.scale}"
        raise refuse("load_samples", f"input {item} takes raw pixels: mean, std and scale do not apply", stated)

    batch, first, second, third = item.dims
    depth, height, width = (first, second, third) if preprocess.layout == "NCHW" else (third, first, second)
    if depth not in (None, preprocess.depth):
        received = f"channels={preprocess.channels!r} ({preprocess.depth}) and layout={preprocess.layout!r}"
        raise refuse("load_samples", f"input {item} must have as many channels as the pictures give", received)

    stated_size = preprocess.size
    if stated_size is None:
        if height is None or width is None:
            rule = f"input {item} leaves height and width open: state resize as [height, width], or crop"
            raise refuse("load_samples", rule, f"resize={preprocess.resize}, crop={preprocess.crop}")
        size = (height, width)
        if isinstance(preprocess.resize, int) and preprocess.resize < max(size):
            raise refuse("load_samples", f"resize must reach the longer side of input {item}", preprocess.resize)
        preprocess = replace(preprocess, resize=size) if preprocess.resize is None else replace(preprocess, crop=size)
    elif item.settled and any(d not in (None, s) for d, s in zip((height, width), stated_size, strict=True)):
        raise refuse("load_samples", f"resize and crop must lead to the size of input {item}", shape_text(stated_size))
    if batch not in (None, 1) and (item.settled or stated_size is None):
        raise refuse("load_samples", "pictures feed a network one at a time", f"input {item}, of batch {batch}")
    return item, preprocess, clip


def read(path: Path, item: Input, preprocess: Preprocess) -> Feed:
    """Decode a picture into a feed. Raises Unreadable."""
    from PIL import Image

    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")  # metadata oddities are no concern of the user's
            warnings.simplefilter("error", Image.DecompressionBombWarning)
            with Image.open(path) as picture:
                return {item.name: preprocess(picture, item.dtype)}
    except Unreadable:
        raise
    except Exception as error:  # decoders of broken files raise nearly anything
        raise Unreadable(_reason(error, path)) from error


def sample(path: Path, item: Input, preprocess: Preprocess) -> Item:
    def feed() -> Feed:
        try:
            return read(path, item, preprocess)
        except Unreadable as error:
            raise refuse("Samples", "a picture must stay readable while it is in use", f"{path}: {error}") from error

    return Item(str(path), feed)


def clip(paths: Sequence[Path], item: Input, preprocess: Preprocess) -> Item:
    """Pictures that are a clip's frames, in order, along a new second axis."""
    frames = [sample(path, item, preprocess) for path in paths]

    def feed() -> Feed:
        return {item.name: np.stack([frame.read()[item.name] for frame in frames], 1)}

    return Item(f"{paths[0]} to {paths[-1].name}", feed)


def _reason(error: Exception, path: Path) -> str:
    from PIL import Image, UnidentifiedImageError

    if isinstance(error, InputError):
        raise error
    if isinstance(error, UnidentifiedImageError):
        return "an empty file" if path.stat().st_size == 0 else "not a picture that Pillow can read"
    if isinstance(error, Image.DecompressionBombError | Image.DecompressionBombWarning):
        return f"more than {Image.MAX_IMAGE_PIXELS} pixels"
    if isinstance(error, FileNotFoundError):
        return "no such file"
    return str(error) or type(error).__name__
