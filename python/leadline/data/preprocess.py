"""How a picture becomes a network's input."""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass, fields
from typing import TYPE_CHECKING, Any, Literal

import numpy as np
from numpy.typing import NDArray

from leadline.types import refuse

if TYPE_CHECKING:
    from PIL.Image import Image

Size = tuple[int, int]


GREY = 114
"""What a letterboxed picture is filled up with, of 255: as YOLOv8 was trained."""


class Unreadable(Exception):
    """One sample that cannot be used; the message says why. `load_samples` skips it, or refuses it when strict."""


@dataclass(frozen=True)
class Preprocess:
    """Steps from a picture to an input, in this order; the plain types of a recipe's [data] table.

    Parameters
    ----------
    resize : int, (height, width) or None
        In pixels. An integer is the length of the shorter side, the other one follows. Bilinear with antialiasing.
        None: the network's own input size, both sides squeezed to it.
    crop : int, (height, width) or None
        Centre crop after resize; an integer is a square. None: no crop, except that after `resize` by the shorter
        side the picture is cut to the network's own size.
    mean, std : float or sequence of floats
        One for all channels or one per channel, in the order of `channels`: x = (pixel / scale - mean) / std.
    scale : float
        What pixels 0..255 are divided by: 255.0 for inputs of 0..1, 1.0 for raw ones.
    layout : {"NCHW", "NHWC"}
    channels : {"RGB", "BGR", "L"}
        Order of the channels; "L" is one channel of luma.
    letterbox : bool
        Resize by one factor for both sides until the picture fits, and fill up with grey (114 of 255) on both sides
        alike, as YOLO detectors want it. `resize` is then (height, width) or None, without a crop.

    `mean`, `std` and `scale` do not apply to uint8 inputs, which take pixels as they are.
    Raises InputError for a value that is out of place.
    """

    resize: int | Size | None = None
    crop: int | Size | None = None
    mean: float | tuple[float, ...] = 0.0
    std: float | tuple[float, ...] = 1.0
    scale: float = 255.0
    layout: Literal["NCHW", "NHWC"] = "NCHW"
    channels: Literal["RGB", "BGR", "L"] = "RGB"
    letterbox: bool = False

    def __post_init__(self) -> None:
        if self.layout not in ("NCHW", "NHWC"):
            raise refuse("Preprocess", "layout must be 'NCHW' or 'NHWC'", repr(self.layout))
        if self.channels not in ("RGB", "BGR", "L"):
            raise refuse("Preprocess", "channels must be 'RGB', 'BGR' or 'L'", repr(self.channels))
        for name in ("resize", "crop"):
            object.__setattr__(self, name, _size(name, getattr(self, name)))
        for name in ("mean", "std"):
            object.__setattr__(self, name, _per_channel(name, getattr(self, name), self.depth))
        if not (_is_number(self.scale) and self.scale > 0):
            raise refuse("Preprocess", "scale must be a positive finite number", repr(self.scale))
        if not np.all(np.asarray(self.std) > 0):
            raise refuse("Preprocess", "std must be positive", repr(self.std))
        if not isinstance(self.letterbox, bool):
            raise refuse("Preprocess", "letterbox must be true or false", repr(self.letterbox))
        if self.letterbox and (self.crop is not None or isinstance(self.resize, int)):
            received = f"resize={self.resize}, crop={self.crop}"
            raise refuse("Preprocess", "letterbox takes resize as [height, width], and no crop", received)
        if self.crop is not None and self.resize is not None:
            room = self.resize if isinstance(self.resize, tuple) else (self.resize, self.resize)
            wanted = self.crop if isinstance(self.crop, tuple) else (self.crop, self.crop)
            if wanted[0] > room[0] or wanted[1] > room[1]:
                raise refuse("Preprocess", f"crop must fit in the picture resized to {self.resize}", repr(self.crop))

    @property
    def depth(self) -> int:
        """Number of channels of the result."""
        return 1 if self.channels == "L" else 3

    @property
    def size(self) -> Size | None:
        """Height and width of the result where `crop` or `resize` settle them, else None."""
        if self.crop is not None:
            return self.crop if isinstance(self.crop, tuple) else (self.crop, self.crop)
        return self.resize if isinstance(self.resize, tuple) else None

    @classmethod
    def from_dict(cls, table: Mapping[str, Any]) -> Preprocess:
        """From plain types, as TOML gives them. Unknown keys are refused."""
        known = [f.name for f in fields(cls)]
        unknown = sorted(set(table) - set(known))
        if unknown:
            raise refuse("Preprocess", f"data knows only the keys {', '.join(known)}", ", ".join(unknown))
        return cls(**table)

    def to_dict(self) -> dict[str, Any]:
        """As plain types (numbers, text, lists); what is None is left out. `from_dict` reads it back."""
        table = {f.name: getattr(self, f.name) for f in fields(self)}
        return {k: list(v) if isinstance(v, tuple) else v for k, v in table.items() if v is not None and v is not False}

    def place(self, height: int, width: int) -> tuple[float, int, int]:
        """Where a letterboxed picture of this size lies in the input: (factor, top, left), in pixels of the input.

        A point (x, y) of the picture is (factor * x + left, factor * y + top) there.
        """
        if not self.letterbox or not isinstance(self.resize, tuple):
            raise refuse("Preprocess.place", "letterbox must be true, with resize stated", repr(self))
        factor = min(self.resize[0] / height, self.resize[1] / width)
        top, left = (
            (room - round(side * factor)) // 2 for room, side in zip(self.resize, (height, width), strict=True)
        )
        return factor, top, left

    def __call__(self, picture: Image, dtype: np.dtype[Any] | type = np.float32) -> NDArray[Any]:
        """A Pillow picture of any mode as one feed: (1, channels, height, width), or (1, height, width, channels).

        The picture's EXIF orientation is applied. A dtype of uint8 gives raw pixels, a float one the formula above.
        """
        dtype = np.dtype(dtype)
        pixels = self._pixels(picture)
        if dtype != np.uint8:
            values = pixels.astype(np.float32)
            values /= np.float32(self.scale)
            values -= np.asarray(self.mean, np.float32)
            values /= np.asarray(self.std, np.float32)
            pixels = values.astype(dtype, copy=False)
        if self.layout == "NCHW":
            pixels = pixels.transpose(2, 0, 1)
        return np.ascontiguousarray(pixels[np.newaxis])

    def _pixels(self, picture: Image) -> NDArray[np.uint8]:
        """Oriented, converted, resized and cropped: (height, width, channels)."""
        from PIL import Image, ImageOps
        from PIL.Image import Resampling

        picture = _eight_bits(ImageOps.exif_transpose(picture)).convert("L" if self.channels == "L" else "RGB")
        width, height = picture.size
        if self.letterbox and self.resize is not None:
            factor, top, left = self.place(height, width)
            inner = picture.resize((round(width * factor), round(height * factor)), Resampling.BILINEAR)
            height, width = self.resize  # type: ignore[misc]  # letterbox takes no single side
            picture = Image.new(picture.mode, (width, height), GREY if picture.mode == "L" else (GREY,) * 3)
            picture.paste(inner, (left, top))
        elif self.resize is not None:
            if isinstance(self.resize, tuple):
                height, width = self.resize
            else:
                short = min(height, width)
                height, width = self.resize * height // short, self.resize * width // short
            picture = picture.resize((width, height), Resampling.BILINEAR)
        if self.crop is not None:
            wanted = self.crop if isinstance(self.crop, tuple) else (self.crop, self.crop)
            top, left = round((height - wanted[0]) / 2), round((width - wanted[1]) / 2)
            if height < wanted[0] or width < wanted[1]:
                raise Unreadable(f"{height}x{width} pixels, smaller than the crop {wanted[0]}x{wanted[1]}")
            picture = picture.crop((left, top, left + wanted[1], top + wanted[0]))
        pixels = np.asarray(picture).reshape(picture.height, picture.width, self.depth)
        return pixels[..., ::-1] if self.channels == "BGR" else pixels


def _eight_bits(picture: Image) -> Image:
    """Modes that Pillow would convert badly: 16-bit grey (clipped) and palettes with transparency (a warning)."""
    from PIL import Image

    if picture.mode.startswith("I"):
        values = np.asarray(picture).astype(np.int64)
        return Image.fromarray((values >> 8 if values.max(initial=0) > 255 else values).clip(0, 255).astype(np.uint8))
    if picture.mode == "F":
        raise Unreadable("floating-point pixels have no agreed range")
    if picture.mode == "P" and "transparency" in picture.info:
        return picture.convert("RGBA")
    return picture


def _is_number(value: object) -> bool:
    return isinstance(value, int | float) and not isinstance(value, bool) and math.isfinite(value)


def _size(name: str, value: Any) -> int | Size | None:
    def positive(number: object) -> bool:
        return isinstance(number, int) and not isinstance(number, bool) and number > 0

    if value is None or positive(value):
        return value  # type: ignore[no-any-return]
    if isinstance(value, list | tuple) and len(value) == 2 and all(map(positive, value)):
        return (value[0], value[1])
    raise refuse("Preprocess", f"{name} must be a positive integer or [height, width]", repr(value))


def _per_channel(name: str, value: Any, depth: int) -> float | tuple[float, ...]:
    if _is_number(value):
        return float(value)
    if isinstance(value, list | tuple) and all(map(_is_number, value)):
        if len(value) == depth:
            return tuple(map(float, value))
        rule = f"{name} must have one value for each of the {depth} channels"
        raise refuse("Preprocess", rule, f"{len(value)} values")
    raise refuse("Preprocess", f"{name} must be a finite number or one per channel", repr(value))
