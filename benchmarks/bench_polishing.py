"""LogNP polishing beside a plain copy and numpy: both passes, the fused one, and the choice of the bends.

python benchmarks/bench_polishing.py
"""

from __future__ import annotations

import numpy as np

from harness import interleave, rate, table
from leadline import Scheme, affine, polishing
from leadline.observers import Histogram, search_range

SHAPES = {
    "tokens, 32 MB": ((16384, 512), 1),
    "pixels, 32 MB": ((8, 64, 128, 128), 1),
    "pixels, 1 MB": ((64, 64, 64), 0),
}
CHANNELS = 384


def numpy_polish(x: np.ndarray, omega: np.ndarray) -> np.ndarray:
    y = np.log1p(np.abs(x) / omega)
    y *= np.float32(1 / np.log(2))
    return np.copysign(y, x)


def numpy_unpolish(y: np.ndarray, omega: np.ndarray) -> np.ndarray:
    x = np.expm1(np.abs(y) * np.float32(np.log(2)))
    x *= omega
    return np.copysign(x, y)


def passes() -> None:
    rng, rows = np.random.default_rng(0), []
    for name, (shape, axis) in SHAPES.items():
        x = rng.standard_t(3, shape).astype(np.float32)
        scheme = Scheme(4, granularity="axis", axis=axis)
        omega = np.quantile(np.abs(x[:64]), 0.95) * rng.uniform(0.5, 2, shape[axis]).astype(np.float32)
        omega = omega.astype(np.float32)
        around = omega.reshape([-1 if i == axis else 1 for i in range(x.ndim)])
        y, out = polishing.polish(x, omega, axis), np.empty_like(x)
        grid = affine.choose_grid(*affine.range_of(y, scheme), scheme)
        np.testing.assert_allclose(y, numpy_polish(x, around), rtol=1e-5)
        np.testing.assert_allclose(polishing.unpolish(y, omega, axis), numpy_unpolish(y, around), rtol=1e-4)
        three = polishing.unpolish(affine.fake_quantize(y, grid), omega, axis)
        assert np.array_equal(polishing.fake_quantize_polished(x, grid, omega), three)
        timings = interleave(
            {
                "copy": lambda x=x, out=out: np.copyto(out, x),
                "polish": lambda x=x, w=omega, a=axis, out=out: polishing.polish(x, w, a, out=out, threads=1),
                "unpolish": lambda y=y, w=omega, a=axis, out=out: polishing.unpolish(y, w, a, out=out, threads=1),
                "fused": lambda x=x, g=grid, w=omega, out=out: polishing.fake_quantize_polished(
                    x, g, w, out=out, threads=1
                ),
                "numpy": lambda x=x, w=around: numpy_polish(x, w),
                "numpy inverse": lambda y=y, w=around: numpy_unpolish(y, w),
            },
            seconds=8.0,
        )
        rates = [rate(x.nbytes, t) for t in timings.values()]
        copied = timings["copy"].best
        faster = [timings[theirs].best / timings[ours].best for theirs, ours in (("numpy", "polish"),)]
        rows.append([name, *rates, f"{copied / timings['polish'].best:.0%}", f"{faster[0]:.1f}x"])
    names = ["array", "copy", "polish", "unpolish", "fused", "numpy", "numpy inverse", "polish of the copy", "of numpy"]
    table("LogNP, per channel, float32", names, rows, "GB/s of input read once, one thread")


def choices() -> None:
    rng, rows = np.random.default_rng(0), []
    histogram = Histogram(1).update(rng.standard_t(3, (20_000, CHANNELS)).astype(np.float32))
    for bits in (4, 8):
        scheme = Scheme(bits, granularity="axis", axis=1)
        timings = interleave(
            {
                "fixed": lambda s=scheme: polishing.choose(histogram, s, adaptive=False, threads=1),
                "adaptive": lambda s=scheme: polishing.choose(histogram, s, threads=1),
                "search": lambda s=scheme: search_range(histogram, "mse", s, threads=1),
            },
            seconds=8.0,
        )
        rows.append([str(bits), *(f"{1e3 * t.best:.0f}" for t in timings.values())])
    names = ["bits", "percentile", "adaptive", "of it the clipped range"]
    table(f"Bends of {CHANNELS} channels from their histograms", names, rows, "milliseconds, one thread")


if __name__ == "__main__":
    passes()
    choices()
