"""The specification of Hadamard matrices and rotations: dense matrices, as the textbooks write them."""

from __future__ import annotations

import numpy as np


def sylvester(doublings: int) -> np.ndarray:
    """H_2n = [[H, H], [H, -H]]."""
    h = np.ones((1, 1), int)
    for _ in range(doublings):
        h = np.block([[h, h], [h, -h]])
    return h


def rotated(x: np.ndarray, rotation: np.ndarray, axis: int) -> np.ndarray:
    """x R along an axis, in double."""
    return np.moveaxis(np.moveaxis(x.astype(np.float64), axis, -1) @ rotation, -1, axis)


def layer_norm(x: np.ndarray) -> np.ndarray:
    centred = x - x.mean(-1, keepdims=True)
    return centred / np.sqrt((centred**2).mean(-1, keepdims=True) + 1e-6)
