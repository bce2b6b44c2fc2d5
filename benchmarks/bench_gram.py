"""gram beside numpy (OpenBLAS, float32; one thread each) doing the same sums, and the memory that im2col would take.

Ours sums in double over blocks and finds NaN on the way; numpy's x.T @ x sums in float32 throughout.
    python benchmarks/bench_gram.py
"""

from __future__ import annotations

import os

os.environ["OPENBLAS_NUM_THREADS"] = "1"  # before numpy is imported

import numpy as np

from harness import interleave, peak_bytes, table
from leadline.gram import ConvGram, Gram

LINEAR = [(4107, 384), (4107, 1536), (2048, 4096)]
CONVOLUTIONS = {
    "3x3, 64 channels, 56x56": ((64, 64, 3, 3), (1, 1), 1, (2, 64, 56, 56)),
    "1x1, 256 channels, 28x28": ((64, 256, 1, 1), (1, 1), 1, (4, 256, 28, 28)),
    "depthwise 3x3, 96 channels, 56x56": ((96, 1, 3, 3), (1, 1), 96, (2, 96, 56, 56)),
    "3x3 stride 2, 32 channels, 112x112": ((64, 32, 3, 3), (2, 2), 1, (2, 32, 112, 112)),
}


def im2col(x: np.ndarray, weight: tuple[int, ...], strides: tuple[int, int], groups: int) -> np.ndarray:
    pad = weight[2] // 2
    x = np.pad(x, ((0, 0), (0, 0), (pad, pad), (pad, pad)))
    windows = np.lib.stride_tricks.sliding_window_view(x, weight[2:], (2, 3))[:, :, :: strides[0], :: strides[1]]
    n, c, h, w = windows.shape[:4]
    grouped = windows.reshape(n, groups, c // groups, h, w, -1).transpose(1, 0, 3, 4, 2, 5)
    return grouped.reshape(groups, n * h * w, -1)


def row(name: str, flops: float, ours: object, theirs: object, memory: tuple[int, int]) -> list[str]:
    t = interleave({"ours": ours, "numpy": theirs}, seconds=2.0)  # type: ignore[dict-item]
    return [
        name,
        f"{t['ours'].best * 1e3:.2f}",
        f"{flops / t['ours'].best / 1e9:.1f}",
        f"{t['numpy'].best * 1e3:.2f}",
        f"{t['numpy'].best / t['ours'].best:.2f}x",
        f"{memory[0] / 1e6:.1f}",
        f"{memory[1] / 1e6:.1f}",
    ]


def main() -> None:
    rng = np.random.default_rng(0)
    rows = []
    for n, features in LINEAR:
        x = rng.standard_normal((n, features)).astype(np.float32)
        g = Gram(features)
        expected = x.T @ x / n
        assert np.abs(g.update(x).matrix() - expected).max() < 1e-3
        memory = peak_bytes(lambda g=g, x=x: g.update(x)), peak_bytes(lambda x=x: x.T @ x)
        rows.append(
            row(
                f"linear {n} x {features}",
                n * features**2,
                lambda g=g, x=x: g.update(x, threads=1),
                lambda x=x: x.T @ x,
                memory,
            )
        )
    for name, (weight, strides, groups, shape) in CONVOLUTIONS.items():
        x = rng.standard_normal(shape).astype(np.float32)
        pad = weight[2] // 2
        g = ConvGram(weight, strides, (pad,) * 4, groups=groups).update(x)
        patches = im2col(x, weight, strides, groups)

        def theirs(x=x, weight=weight, strides=strides, groups=groups):  # type: ignore[no-untyped-def]
            p = im2col(x, weight, strides, groups)
            return p.transpose(0, 2, 1) @ p

        assert np.abs(g.matrix() - theirs() / patches.shape[1]).max() < 1e-3
        flops = patches.shape[0] * patches.shape[1] * patches.shape[2] ** 2
        memory = peak_bytes(lambda g=g, x=x: g.update(x)), peak_bytes(theirs)
        rows.append(row(name, flops, lambda g=g, x=x: g.update(x, threads=1), theirs, memory))
    table(
        "Gram update, one thread",
        ["layer", "ours ms", "Gflop/s", "numpy ms", "faster", "ours, Python MB", "numpy MB"],
        rows,
        "flops counted once for the symmetric half; the state of 8 n^2 bytes is not counted",
    )


if __name__ == "__main__":
    main()
