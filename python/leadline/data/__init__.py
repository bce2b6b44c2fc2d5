"""Calibration data: pictures, videos, arrays or any Python iterable, as a re-iterable sequence of feeds."""

from leadline.data.choice import choose
from leadline.data.loading import load
from leadline.data.preprocess import Preprocess
from leadline.data.samples import Samples

__all__ = ["Preprocess", "Samples", "choose", "load"]
