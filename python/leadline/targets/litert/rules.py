"""What LiteRT takes."""

from __future__ import annotations

from leadline.rules import Rules

LITERT = Rules(
    "LiteRT",
    activation_bits=frozenset({8}),
    activation_scales=("tensor",),
    weight_bits=frozenset(range(2, 9)),
    weight_scales=("axis", "block"),
    weight_signs=True,
    weight_narrow=True,
    blocks=frozenset({2, 3, 4}),
    block_multiple=32,
    blocks_beside_float=True,
)
"""LiteRT's kernels by way of ai-edge-quantizer 0.10: codes of fewer than 4 bits travel in 4, and of 5 to 7 in 8.
Where a convolution's weight has one scale, its files do not load, or its kernels give garbage."""
