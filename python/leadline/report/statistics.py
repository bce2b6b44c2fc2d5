"""What quantisation did to weights and ranges, as figures."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import numpy as np

from leadline.affine import dequantize
from leadline.affine import quantize as to_codes
from leadline.sqnr import Sqnr

if TYPE_CHECKING:
    from leadline.quantized import Quantized

BINS = 80


def rounding(quantized: Quantized) -> list[dict[str, Any]]:
    """Each quantised weight: SQNR in dB, bits, and shares of codes that are in use, at the grid's ends, and not the
    nearest ones (what learned rounding and bias correction chose)."""
    rows = []
    for name, codes in quantized.codes.items():
        weight, grid = quantized.graph.weights.get(name), quantized.grids[name]
        scheme = grid.scheme
        if weight is None or scheme.bits > 16:
            continue
        rows.append(
            {
                "name": name,
                "bits": scheme.bits,
                "size": int(codes.size),
                "sqnr": Sqnr().update(weight, dequantize(codes, grid)).db,
                "used": len(np.unique(codes)) / (scheme.qmax - scheme.qmin + 1),
                "at_ends": float(np.mean((codes == scheme.qmin) | (codes == scheme.qmax))),
                "not_nearest": float(np.mean(codes != to_codes(weight, grid))),
            }
        )
    return rows


def ranges(quantized: Quantized) -> list[dict[str, Any]]:
    """Each activation with one grid: what calibration saw, the chosen range, and the share of values outside."""
    rows = []
    for name, histogram in quantized.histograms.items():
        grid = quantized.grids.get(name)
        if grid is None or grid.scale.ndim:
            continue
        lo, hi = float(histogram.lo.min()), float(histogram.hi.max())
        low, high = float(grid.lo), float(grid.hi)
        cuts = np.unique([min(lo, low) - 1, low, high, max(hi, high) + 1])
        count = max(float(histogram.count.sum()), 1.0)
        inside = histogram.binned(cuts)[np.searchsorted(cuts, low)]
        rows.append(
            {
                "name": name,
                "bits": grid.scheme.bits,
                "seen": [lo, hi],
                "chosen": [low, high],
                "clipped": max(0.0, 1 - inside / count),
            }
        )
    return rows


def densities(quantized: Quantized, rows: list[dict[str, Any]]) -> dict[str, list[float]]:
    """For each row of `ranges`: the share of values in each of BINS equal bins over what was seen, in percent."""
    shares = {}
    for row in rows:
        lo, hi = row["seen"]
        if lo < hi:
            counts = quantized.histograms[row["name"]].binned(np.linspace(lo, hi, BINS + 1))
            shares[row["name"]] = [round(float(share), 4) for share in 100 * counts / max(counts.sum(), 1)]
    return shares
