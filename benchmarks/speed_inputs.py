"""What speed.py gives to those that do not read a user's file and pictures themselves.

    python benchmarks/speed_inputs.py NETWORK FOLDER

adds fixed.onnx and calibration.npz of a network of the testbed, by the pictures in FOLDER/pictures.
"""

from __future__ import annotations

import sys
from pathlib import Path

import numpy as np

import accuracy
import testbed
from leadline.data import Data, Preprocess, load_samples
from leadline.graph import inspect_inputs


def main() -> None:
    name, target = sys.argv[1], Path(sys.argv[2])
    file = testbed.network(name)
    preprocess = Preprocess.from_dict(testbed.preprocess(name))
    feeds = list(load_samples(Data(target / "pictures", preprocess=preprocess, strict=True), inspect_inputs(file)))
    accuracy.fix_shapes(file, feeds[0], target / "fixed.onnx")
    np.savez(target / "calibration.npz", **{key: np.stack([feed[key] for feed in feeds]) for key in feeds[0]})


if __name__ == "__main__":
    main()
