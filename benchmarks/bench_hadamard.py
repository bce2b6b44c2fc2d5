"""Fast Hadamard rotation beside a plain copy and the dense product, on one thread: GB/s of input read once.

Marks (design.md 5): powers of two as fast as a copy and as FFHT, other sizes at half of a copy, and 50 times the dense
product. FFHT (github.com/FALCONN-LIB/FFHT) takes part where `--ffht` names it, built as a shared library.
    python benchmarks/bench_hadamard.py [--ffht libffht.so]
"""

from __future__ import annotations

import argparse
import ctypes
from collections.abc import Callable

import numpy as np

from harness import interleave, rate, table
from leadline import hadamard

BYTES = 16 << 20


def ffht(library: ctypes.CDLL, x: np.ndarray, out: np.ndarray, doublings: int) -> Callable[[], None]:
    """FFHT on each row of x, without a scale; 0 doublings cost what the calls themselves cost."""
    starts = range(0, x.nbytes, x.strides[0])
    rows = [(ctypes.c_void_p(x.ctypes.data + at), ctypes.c_void_p(out.ctypes.data + at)) for at in starts]

    def run(transform: Callable[..., int] = library.fht_float_oop) -> None:
        for source, target in rows:
            transform(source, target, doublings)

    return run


def coverage() -> None:
    rows = []
    for name, sizes in (("1, 2, 3, ... 4096", range(1, 4097)), ("4, 8, 12, ... 4096", range(4, 4097, 4))):
        blocks = [hadamard.block_size(size) for size in sizes]
        parts = sorted(size // block for size, block in zip(sizes, blocks, strict=True))
        whole = sum(part == 1 for part in parts)
        rows.append([name, str(len(parts)), str(whole), f"{whole / len(parts):.0%}", str(parts[len(parts) // 2])])
    names = ["sizes", "all", "one matrix", "", "blocks, median"]
    table("Sizes with a Hadamard matrix", names, rows, "others are cut into equal blocks of the largest that has one")


def main() -> None:
    parser = argparse.ArgumentParser(description=(__doc__ or "").split("\n")[0])
    parser.add_argument("--sizes", nargs="*", type=int, default=[64, 256, 384, 768, 1024, 1536, 4096])
    parser.add_argument("--ffht", help="path of FFHT as a shared library")
    options = parser.parse_args()
    library = ctypes.CDLL(options.ffht) if options.ffht else None
    coverage()
    rng = np.random.default_rng(0)
    rows = []
    for size in options.sizes:
        x = rng.standard_normal((BYTES // 4 // size, size)).astype(np.float32)
        columns = np.ascontiguousarray(x.T)
        out, across, place = np.empty_like(x), np.empty_like(columns), x.copy()
        random, keeping = hadamard.random_rotation(size), hadamard.layernorm_rotation(size)
        dense = random.matrix().astype(np.float32)
        np.testing.assert_allclose(random(x), x @ dense, atol=1e-4)
        np.testing.assert_allclose(random(columns, 0), random(x).T, atol=1e-5)
        few = x[: max(1, len(x) // 16)]
        product = np.empty_like(few)
        contestants: dict[str, Callable[[], object]] = {
            "copy": lambda out=out, x=x: np.copyto(out, x),
            "rotation": lambda r=random, x=x, out=out: r(x, out=out, threads=1),
            "in place": lambda r=random, x=place: r(x, out=x, threads=1),
            "layernorm": lambda r=keeping, x=x, out=out: r(x, out=out, threads=1),
            "axis 0": lambda r=random, x=columns, out=across: r(x, 0, out=out, threads=1),
            "dense": lambda x=few, d=dense, out=product: np.matmul(x, d, out=out),
        }
        if library and size >= 1024 and size & (size - 1) == 0:  # below, the calls take longer than FFHT
            contestants["FFHT"] = ffht(library, x, out, size.bit_length() - 1)
            contestants["calls"] = ffht(library, x, out, 0)
        timings = interleave(contestants, seconds=3.0)
        ours, copied = timings["rotation"].best, timings["copy"].best
        theirs = timings["FFHT"].best - timings["calls"].best if "FFHT" in timings else None
        rows.append(
            [
                str(size),
                *(rate(x.nbytes, timings[name]) for name in ("copy", "rotation")),
                *(f"{copied / timings[name].best:.0%}" for name in ("rotation", "in place", "layernorm", "axis 0")),
                f"{theirs / ours:.1f}x" if theirs else "",
                f"{timings['dense'].best * len(x) / len(few) / ours:.0f}x",
            ]
        )
    names = ["size", "copy", "rotation", "of the copy", "in place", "layernorm", "axis 0", "against FFHT", "dense"]
    note = "copy and rotation: GB/s of input, one thread; then shares of the copy's speed, and times another's"
    table("Hadamard rotation, float32, 16 MB", names, rows, note)


if __name__ == "__main__":
    main()
