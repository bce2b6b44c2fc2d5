"""The online rotation of a linear layer beside a dense torch product, and whole layers beside the float one.

    python benchmarks/torch_linear.py            # needs pip install 'leadline[torch]'; a few minutes

For each size n, on one thread: milliseconds for tokens x n float32 inputs. "rotation" is leadline's, "dense" a torch
matrix product with the same rotation as an n x n matrix, which is what QuantVGGT runs. Then layers n -> n: torch's
float one, that with a dense rotation before it, leadline's W4A4 without and with rotation and smoothing.
"""

from __future__ import annotations

import argparse
from collections.abc import Callable
from typing import Any

import numpy as np
import torch
from torch import nn

from harness import interleave, table
from leadline import hadamard
from leadline.torch import QuantizedLinear


def main() -> None:
    parser = argparse.ArgumentParser(description=(__doc__ or "").split("\n")[0])
    parser.add_argument("--sizes", nargs="*", type=int, default=[384, 1024, 1536, 4096])
    parser.add_argument("--tokens", type=int, default=4096)
    parser.add_argument("--seconds", type=float, default=6.0, help="for each size")
    options = parser.parse_args()
    torch.set_num_threads(1)
    torch.manual_seed(0)
    rotations, layers = [], []
    with torch.inference_mode():
        for size in options.sizes:
            times = measure(size, options.tokens, options.seconds)
            ours, dense = times["rotation"], times["dense"]
            milliseconds = [f"{1e3 * times[name]:.1f}" for name in ("copy", "rotation", "dense")]
            rotations.append([str(size), *milliseconds, f"{dense / ours:.0f}x"])
            names = ("float", "dense + float", "w4a4", "rotated w4a4")
            cells = [f"{1e3 * times[name]:.1f}" for name in names]
            layers.append([str(size), *cells, *(f"{times[name] / times['float']:.2f}" for name in names[1:])])
    note = f"{options.tokens} tokens, float32, one thread, torch {torch.__version__}"
    table("Online rotation, ms", ["size", "copy", "rotation", "dense", "dense / rotation"], rotations, note)
    columns = ["size", "float", "dense + float", "w4a4", "rotated w4a4", "to float:", "", ""]
    table("Layers n -> n, ms", columns, layers, note)


def measure(size: int, tokens: int, seconds: float) -> dict[str, float]:
    """Seconds, the best of each."""
    x = torch.randn(tokens, size)
    out = torch.empty_like(x)
    values = out.numpy()
    rotation, linear = hadamard.random_rotation(size), nn.Linear(size, size)
    smooth = np.exp(0.3 * np.random.default_rng(0).standard_normal(size))
    dense = torch.from_numpy(rotation.matrix().astype(np.float32))
    torch.testing.assert_close(torch.from_numpy(rotation(x, threads=1)), x @ dense, rtol=1e-4, atol=1e-4)
    plain = QuantizedLinear.from_float(linear)
    rotated = QuantizedLinear.from_float(linear, rotation=rotation, smooth=smooth)
    contestants: dict[str, Callable[[], Any]] = {
        "copy": lambda: out.copy_(x),
        "rotation": lambda: rotation(x, out=values, threads=1),
        "dense": lambda: torch.matmul(x, dense, out=out),
        "float": lambda: linear(x),
        "dense + float": lambda: linear(x @ dense),
        "w4a4": lambda: plain(x),
        "rotated w4a4": lambda: rotated(x),
    }
    return {name: timing.best for name, timing in interleave(contestants, seconds).items()}


if __name__ == "__main__":
    main()
