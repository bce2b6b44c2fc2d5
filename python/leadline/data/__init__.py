"""Calibration data: pictures, videos, arrays or any Python iterable, as a re-iterable sequence of feeds."""

from leadline.data.blendedmvs import Pairs, load_blendedmvs_pairs
from leadline.data.choice import choose
from leadline.data.layouts import Labelled, load_coco
from leadline.data.loading import load
from leadline.data.preprocess import Preprocess
from leadline.data.samples import Samples

__all__ = ["Labelled", "Pairs", "Preprocess", "Samples", "choose", "load", "load_blendedmvs_pairs", "load_coco"]
