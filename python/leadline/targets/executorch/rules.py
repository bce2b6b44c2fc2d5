"""What ExecuTorch takes."""

from __future__ import annotations

from leadline.rules import Rules

EXECUTORCH = Rules(
    "ExecuTorch",
    activation_bits=frozenset(range(2, 9)),
    activation_scales=("tensor",),
    weight_bits=frozenset(range(2, 9)),
    weight_signs=True,
    blocks=frozenset({2, 3, 4}),
    block_multiple=32,
    blocks_beside_float=True,
    float_only_in_blocks=True,
)
"""XNNPACK's kernels in ExecuTorch 1.5."""
