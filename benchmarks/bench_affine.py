"""affine beside a plain copy and a rival: range (min and max) and fake quantisation, per tensor, channel and block.

Mark (design.md 5): at least 80 % of the copy's bandwidth.
    python benchmarks/bench_affine.py
"""

from __future__ import annotations

import numpy as np

from harness import interleave, rate, table
from leadline import Scheme, affine

SHAPES = {"32 MB": (8, 64, 128, 128), "256 kB": (1, 64, 32, 32)}
SCHEMES = {
    "tensor": Scheme(),
    "axis 1": Scheme(granularity="axis", axis=1, signed=True, symmetric=True),
    "axis -1": Scheme(granularity="axis", axis=-1, signed=True, symmetric=True),
    "block 32": Scheme(bits=4, granularity="block", axis=-1, block_size=32, signed=True, symmetric=True),
}


def numpy_range(x: np.ndarray, scheme: Scheme) -> tuple[np.ndarray, np.ndarray]:
    if scheme.granularity == "block":
        x = x.reshape(*x.shape[:-1], -1, scheme.block_size)
        return x.min(-1), x.max(-1)
    axes = None if scheme.axis is None else tuple(i for i in range(x.ndim) if i != scheme.axis % x.ndim)
    return x.min(axes), x.max(axes)


def numpy_fake(x: np.ndarray, scheme: Scheme, scale: np.ndarray, zero: np.ndarray) -> np.ndarray:
    shape = x.shape
    if scheme.granularity == "block":
        x, scale, zero = x.reshape(*scale.shape, -1), scale[..., None], zero[..., None]
    elif scheme.axis is not None:
        spread = [1] * x.ndim
        spread[scheme.axis] = -1
        scale, zero = scale.reshape(spread), zero.reshape(spread)
    codes = np.clip(np.rint(x / scale), scheme.qmin - zero, scheme.qmax - zero).astype(np.float32)
    return (codes * scale).reshape(shape)


def main() -> None:
    rng = np.random.default_rng(0)
    rows = []
    for size, shape in SHAPES.items():
        x = rng.standard_normal(shape).astype(np.float32)
        out = np.empty_like(x)
        for name, scheme in SCHEMES.items():
            lo, hi = affine.range_of(x, scheme)
            expected = numpy_range(x, scheme)
            assert np.array_equal(lo, expected[0]) and np.array_equal(hi, expected[1])
            grid = affine.choose_grid(lo, hi, scheme)
            rival = numpy_fake(x, scheme, grid.scale, grid.zero_point)
            assert np.array_equal(affine.fake_quantize(x, grid, out=out), rival)
            for what, ours, theirs in (
                (
                    "range",
                    lambda x=x, s=scheme: affine.range_of(x, s, threads=1),
                    lambda x=x, s=scheme: numpy_range(x, s),
                ),
                (
                    "fake_quantize",
                    lambda x=x, g=grid, out=out: affine.fake_quantize(x, g, threads=1, out=out),
                    lambda x=x, g=grid: numpy_fake(x, g.scheme, g.scale, g.zero_point),
                ),
            ):
                t = interleave({"ours": ours, "copy": lambda x=x, out=out: np.copyto(out, x), "rival": theirs})
                share = t["copy"].best / t["ours"].best
                rows.append(
                    [
                        f"{what}, {name}, {size}",
                        rate(x.nbytes, t["ours"]),
                        rate(x.nbytes, t["copy"]),
                        f"{share:.0%}",
                        f"{t['copy'].median / t['ours'].median:.0%}",
                        f"{t['rival'].best / t['ours'].best:.1f}x",
                    ]
                )
    table(
        "affine, one thread",
        ["pass", "ours GB/s", "copy GB/s", "of copy (best)", "(median)", "faster than numpy"],
        rows,
        "GB/s of input; the mark is 80 % of the copy",
    )


if __name__ == "__main__":
    main()
