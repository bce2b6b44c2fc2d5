"""The search for alpha beside the same in numpy, on one thread: eleven candidates for one layer.

numpy scales, rounds and multiplies with BLAS, in float32, whole matrices at a time.
    python benchmarks/bench_smoothing.py
"""

from __future__ import annotations

import argparse
import os

os.environ["OPENBLAS_NUM_THREADS"] = "1"  # before numpy is imported

import numpy as np
from numpy.typing import NDArray

from harness import interleave, table
from leadline import Scheme
from leadline.gram import Gram
from leadline.smoothing import ALPHAS, Reader, migration_scales, search

WEIGHT = Scheme(8, signed=True, symmetric=True, granularity="axis", axis=0, narrow=True)
ACTIVATION = Scheme(8)
SHAPES = ("384x128", "1152x384", "1536x384", "4096x1024")


def main() -> None:
    parser = argparse.ArgumentParser(description=(__doc__ or "").split("\n")[0])
    parser.add_argument("--shapes", nargs="*", default=SHAPES, metavar="OUTxIN")
    options = parser.parse_args()
    rng = np.random.default_rng(0)
    rows = []
    for shape in options.shapes:
        out, features = (int(part) for part in shape.split("x"))
        x = (rng.standard_normal((2048, features)) * np.exp(rng.normal(0, 1, features))).astype(np.float32)
        weight = rng.standard_normal((out, features)).astype(np.float32)
        gram, lo, hi = Gram(features).update(x, threads=1).matrix(), x.min(0), x.max(0)
        reader = Reader(weight, gram, WEIGHT)
        ours = search([reader], lo, hi, activation=ACTIVATION, threads=1)
        single = gram.astype(np.float32)
        theirs = loop(weight, single, lo, hi)
        np.testing.assert_allclose(ours.after, min(theirs), rtol=1e-3)
        np.testing.assert_allclose(ours.before, theirs[0], rtol=1e-3)
        timings = interleave(
            {
                "numpy": lambda w=weight, g=single, lo=lo, hi=hi: loop(w, g, lo, hi),
                "search": lambda r=reader, lo=lo, hi=hi: search([r], lo, hi, activation=ACTIVATION, threads=1),
            },
            seconds=3.0,
        )
        rows.append(
            [
                shape,
                *(f"{1e3 * timings[name].best:.3g}" for name in ("numpy", "search")),
                f"{timings['numpy'].best / timings['search'].best:.1f}x",
                f"{len(ALPHAS) * 2 * out * features**2 / timings['search'].best / 1e9:.0f}",
            ]
        )
    columns = ["weight", "numpy, ms", "search, ms", "faster", "GFLOP/s of a whole product"]
    table("Eleven alphas for one layer", columns, rows, "one thread; the core forms half of the product")


def loop(
    weight: NDArray[np.float32], gram: NDArray[np.float32], lo: NDArray[np.float32], hi: NDArray[np.float32]
) -> list[float]:
    errors = []
    power = np.square(weight, dtype=np.float64).sum(0)
    largest, columns = np.maximum(-lo, hi), np.abs(weight).max(0)
    for alpha in ALPHAS:
        s = migration_scales(largest, columns, alpha) if alpha else np.ones(len(lo))
        scaled = weight * s.astype(np.float32)
        step = np.abs(scaled).max(1, keepdims=True) / np.float32(127)
        difference = (np.rint(scaled / step) * step - scaled) / s.astype(np.float32)
        noise = (max(0.0, (hi / s).max()) - min(0.0, (lo / s).min())) / 255
        weights = np.einsum("ij,ij->", difference @ gram, difference, dtype=np.float64)
        errors.append(float(noise**2 / 12 * (power @ np.square(s)) + weights))
    return errors


if __name__ == "__main__":
    main()
