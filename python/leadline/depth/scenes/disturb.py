"""Pictures as a camera takes them on a bad day: what a network that was calibrated on good ones has not seen."""

from __future__ import annotations

from dataclasses import replace

import numpy as np

from leadline.depth.scenes.render import Frame
from leadline.types import refuse


def disturbed(frame: Frame, *, noise: float = 0.0, darkness: float = 0.0, blur: float = 0.0, seed: int = 0) -> Frame:
    """A frame whose picture is out of focus, then dark, then noisy. Depth and camera stay.

    Parameters
    ----------
    frame : Frame
    noise : float
        Standard deviation of Gaussian noise, as a share of white: 0.1 is a night shot.
    darkness : float
        Share of the light that is missing, 0 to 1.
    blur : float
        Standard deviation of a Gaussian blur, in pixels.
    seed : int
        Of the noise.

    Raises InputError for figures out of range.
    """
    for name, value, most in (("noise", noise, np.inf), ("darkness", darkness, 1.0), ("blur", blur, np.inf)):
        if not 0 <= value <= most:
            raise refuse("disturbed", f"{name} must lie from 0 to {most:g}", repr(value))
    pixels = frame.rgb
    if blur:
        from PIL import Image, ImageFilter

        pixels = np.asarray(Image.fromarray(pixels).filter(ImageFilter.GaussianBlur(blur)))
    values = pixels.astype(np.float64) * (1 - darkness)
    if noise:
        values += np.random.default_rng(seed).normal(0, 255 * noise, pixels.shape)
    return replace(frame, rgb=np.rint(values).clip(0, 255).astype(np.uint8))
