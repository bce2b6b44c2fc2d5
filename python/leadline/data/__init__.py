"""Calibration data: pictures, videos, arrays or any Python iterable, as a re-iterable sequence of feeds."""

from leadline.data.blendedmvs import Pairs, load_blendedmvs_pairs
from leadline.data.choice import choose
from leadline.data.layouts import Labelled, load_coco
from leadline.data.loading import Data, load_samples
from leadline.data.preprocess import Preprocess
from leadline.data.samples import Samples

__all__ = [
    "Data",
    "Labelled",
    "Pairs",
    "Preprocess",
    "Samples",
    "choose",
    "load_blendedmvs_pairs",
    "load_coco",
    "load_samples",
]
