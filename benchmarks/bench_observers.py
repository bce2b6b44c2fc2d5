"""observers beside a plain copy and numpy.histogram, and the time of each range search on the finished histogram.

Marks (design.md 5): the histogram at least 25 % of the copy's bandwidth and 10x numpy.histogram; entropy, percentile
and MSE searches under a millisecond for one tensor.
    python benchmarks/bench_observers.py
"""

from __future__ import annotations

import numpy as np

from harness import interleave, peak_bytes, rate, table
from leadline import Scheme
from leadline.observers import METHODS, Histogram, MinMax, search_range

SHAPE = (8, 64, 128, 128)
SEARCHED = {
    "uint8": Scheme(),
    "int8 symmetric": Scheme(signed=True, symmetric=True),
    "uint4": Scheme(bits=4),
    "int4 symmetric": Scheme(bits=4, signed=True, symmetric=True),
}


def tensors() -> dict[str, np.ndarray]:
    rng = np.random.default_rng(0)
    normal = rng.standard_normal(SHAPE).astype(np.float32)
    return {
        "normal": normal,
        "after a ReLU": np.maximum(normal, 0),
        "heavy tails": rng.standard_t(2.5, SHAPE).astype(np.float32),
        "all equal": np.ones(SHAPE, np.float32),
    }


def main() -> None:
    rows, searches = [], []
    for name, x in tensors().items():
        out = np.empty_like(x)
        whole = Histogram().update(x)
        assert whole.count == x.size and abs(whole.sum - x.sum(dtype=np.float64)) <= 1e-9 * np.abs(x).sum()
        for axis in (None, 1, -1):
            t = interleave(
                {
                    "ours": lambda x=x, axis=axis: Histogram(axis).update(x, threads=1),
                    "min-max": lambda x=x, axis=axis: MinMax(axis).update(x, threads=1),
                    "copy": lambda x=x, out=out: np.copyto(out, x),
                },
                seconds=2.0,
            )
            few = x.reshape(-1)[: 1 << 20]
            rival = interleave(
                {
                    "ours": lambda few=few: Histogram().update(few, threads=1),
                    "numpy": lambda few=few: np.histogram(few, 2048),
                },
                seconds=0.7,
            )
            rows.append(
                [
                    f"{name}, " + ("tensor" if axis is None else f"axis {axis}"),
                    rate(x.nbytes, t["ours"]),
                    rate(x.nbytes, t["copy"]),
                    f"{t['copy'].best / t['ours'].best:.0%}",
                    f"{rival['numpy'].best / rival['ours'].best:.0f}x" if axis is None else "",
                    f"{t['copy'].best / t['min-max'].best:.0%}",
                    f"{peak_bytes(lambda x=x, a=axis: Histogram(a).update(x)) / 1e3:.0f}",
                ]
            )
        for kind, scheme in SEARCHED.items():
            contestants = {m: lambda m=m, s=scheme, h=whole: search_range(h, m, s, threads=1) for m in METHODS}
            t = interleave(contestants, seconds=0.5, rounds=100)
            searches.append([f"{name}, {kind}", *(f"{t[m].best * 1e6:.0f}" for m in METHODS)])
    table(
        "Histogram, 8.4 million floats, one thread",
        ["tensor", "ours GB/s", "copy GB/s", "of copy", "numpy.histogram", "MinMax of copy", "Python memory kB"],
        rows,
        "GB/s of input; marks: 25 % of the copy, 10x numpy.histogram (2048 bins); MinMax 80 %",
    )
    table("search_range, microseconds a tensor", ["tensor, grid", *METHODS], searches, "mark: 1000")


if __name__ == "__main__":
    main()
