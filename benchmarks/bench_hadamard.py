"""Fast Hadamard rotation beside a plain copy and the dense product, on one thread: GB/s of input read once.

Marks (design.md 5): powers of two as fast as a copy, other sizes at half of it, and 50 times the dense product.
    python benchmarks/bench_hadamard.py
"""

from __future__ import annotations

import argparse

import numpy as np

from harness import interleave, rate, table
from leadline import hadamard

BYTES = 16 << 20


def main() -> None:
    parser = argparse.ArgumentParser(description=(__doc__ or "").split("\n")[0])
    parser.add_argument("--sizes", nargs="*", type=int, default=[64, 256, 384, 768, 1024, 1536, 4096])
    options = parser.parse_args()
    rng = np.random.default_rng(0)
    rows = []
    for size in options.sizes:
        x = rng.standard_normal((BYTES // 4 // size, size)).astype(np.float32)
        columns = np.ascontiguousarray(x.T)
        out, across = np.empty_like(x), np.empty_like(columns)
        random, keeping = hadamard.random_rotation(size), hadamard.layernorm_rotation(size)
        dense = random.matrix().astype(np.float32)
        np.testing.assert_allclose(random(x), x @ dense, atol=1e-4)
        np.testing.assert_allclose(random(columns, 0), random(x).T, atol=1e-5)
        few = x[: max(1, len(x) // 16)]
        product = np.empty_like(few)
        timings = interleave(
            {
                "copy": lambda out=out, x=x: np.copyto(out, x),
                "rotation": lambda r=random, x=x, out=out: r(x, out=out, threads=1),
                "layernorm": lambda r=keeping, x=x, out=out: r(x, out=out, threads=1),
                "axis 0": lambda r=random, x=columns, out=across: r(x, 0, out=out, threads=1),
                "dense": lambda x=few, d=dense, out=product: np.matmul(x, d, out=out),
            },
            seconds=2.0,
        )
        ours = timings["rotation"].best
        rows.append(
            [
                str(size),
                *(rate(x.nbytes, timings[name]) for name in ("copy", "rotation", "layernorm", "axis 0")),
                f"{timings['copy'].best / ours:.0%}",
                f"{timings['dense'].best * len(x) / len(few) / ours:.0f}x",
            ]
        )
    names = ["size", "copy", "rotation", "layernorm", "axis 0", "of the copy", "against dense"]
    table("Hadamard rotation, float32, 16 MB", names, rows, "GB/s of input, one thread; dense: BLAS as numpy has it")


if __name__ == "__main__":
    main()
