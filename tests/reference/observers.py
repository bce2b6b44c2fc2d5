"""The specification of the observers, in numpy on the data itself (the core only has the histogram of it)."""

from __future__ import annotations

import numpy as np

from leadline import Grid

from . import affine

LOW_BITS = 19  # a float32 keeps sign, exponent and 4 mantissa bits in its bucket's key


def buckets(x: np.ndarray) -> dict[tuple[int, int], tuple[int, int, int]]:
    """(sign, key) -> (count, sum of m, sum of round(m / 32)^2), m being the 19 mantissa bits below the key."""
    out: dict[tuple[int, int], tuple[int, int, int]] = {}
    for bits in x.astype(np.float32).reshape(-1).view(np.uint32).tolist():
        sign, key, m = bits >> 31, (bits & 0x7FFFFFFF) >> LOW_BITS, bits & (2**LOW_BITS - 1)
        if key > 0:  # |x| < 2^-130 counts as zero
            count, first, second = out.get((sign, key), (0, 0, 0))
            out[sign, key] = (count + 1, first + m, second + ((m + 16) >> 5) ** 2)
    return out


def lp_cost(x: np.ndarray, grid: Grid, p: float, gamma: float = 1.0) -> float:
    """Sum of |x - Q(x)|^p; gamma times that where x lies more than half a step beyond the grid."""
    x = x.astype(np.float64).reshape(-1)
    scale = float(grid.scale)
    step = np.rint(x / scale)
    inside = np.clip(step, grid.scheme.qmin - int(grid.zero_point), grid.scheme.qmax - int(grid.zero_point))
    error = np.abs(x - inside * scale) ** p
    return float(np.sum(np.where(step == inside, 1.0, gamma) * error))


def uniform(edges: np.ndarray, count: np.ndarray, amax: float) -> tuple[np.ndarray, np.ndarray]:
    """Elements spread evenly over intervals edges[i] (n, 2), on 2048 bins from zero to amax on either side: the bins'
    edges and counts, empty ones left out."""
    edges = np.clip(edges, -amax, amax)
    borders = amax / 2048 * np.arange(-2048, 2049)
    bins = np.zeros(4096)
    for (lower, upper), n in zip(edges, count, strict=True):
        inside = np.diff(np.clip(borders, lower, upper))
        bins += n * inside / inside.sum()
    some = bins > 0
    return np.stack([borders[:-1], borders[1:]], 1)[some], bins[some]


def entropy_cost(edges: np.ndarray, count: np.ndarray, grid: Grid) -> float:
    """KL(P || Q) for an observed density that is flat over each interval edges[i] (n, 2) with count[i] elements.

    P: the observed density; what lies beyond the grid is put on the strip of 1/16 step inside its end.
    Q: without what lies beyond, each cell's mass flat over the part of the cell that P occupies; normalised.
    """
    step, total = float(grid.scale), count.sum()
    lowest, highest = grid.scheme.qmin - int(grid.zero_point), grid.scheme.qmax - int(grid.zero_point)
    left, right = (lowest - 0.5) * step, (highest + 0.5) * step
    # Cut the line wherever P or Q may change; on each piece both are flat.
    cells = (np.arange(lowest, highest + 2) - 0.5) * step
    cuts = np.unique(np.concatenate([edges.reshape(-1), cells, [left + step / 16, right - step / 16]]))
    begin, end = cuts[:-1], cuts[1:]
    middle, width = (begin + end) / 2, end - begin
    index = np.searchsorted(edges[:, 0], middle, "right") - 1
    occupied = (index >= 0) & (middle < edges[np.maximum(index, 0), 1])
    density = np.where(occupied, (count / (edges[:, 1] - edges[:, 0]))[np.maximum(index, 0)], 0.0)
    mass = density * width
    inside = (middle > left) & (middle < right)
    below, above = mass[middle < left].sum(), mass[middle > right].sum()

    cell = np.clip(np.rint(middle / step), lowest, highest).astype(int) - lowest
    kept = inside & occupied
    cell_mass = np.bincount(cell[kept], mass[kept], highest - lowest + 1)
    cell_width = np.bincount(cell[kept], width[kept], highest - lowest + 1)
    q = np.divide(cell_mass, cell_width, out=np.zeros_like(cell_mass), where=cell_width > 0) / cell_mass.sum()

    divergence = 0.0
    in_strip = np.zeros(len(middle), bool)
    for outside, strip, edge_q in (
        (below, inside & (middle < left + step / 16), q[0]),
        (above, inside & (middle > right - step / 16), q[-1]),
    ):
        if outside > 0:
            if edge_q == 0:
                return np.inf
            in_strip |= strip
            with_outside = (mass[strip].sum() + outside) / total
            divergence += with_outside * np.log(with_outside / (step / 16) / edge_q)
    rest = kept & ~in_strip
    p = density[rest] / total
    return float(divergence + np.sum(mass[rest] / total * np.log(p / q[cell[rest]])))


def octav(x: np.ndarray, bits: int) -> float:
    """OCTAV (Sakr et al. 2022, eq. 9) for a symmetric grid: Newton's iteration on the clipping threshold."""
    magnitude = np.abs(x[x != 0].astype(np.float64))
    c = magnitude.mean()
    for _ in range(100):
        above = magnitude > c
        c = magnitude[above].sum() / (4.0**-bits / 3 * np.sum(~above) + np.sum(above))
    return float(c)


def best_range(x: np.ndarray, scheme, cost) -> float:
    """The least cost over a dense grid of ranges: what a search is measured against."""
    lo, hi = min(float(x.min()), 0.0), max(float(x.max()), 0.0)
    shares = np.linspace(0.02, 1.0, 60)
    if scheme.symmetric or lo == 0 or hi == 0:
        top = max(-lo, hi)
        pairs = [(max(lo, -top * a), min(hi, top * a)) for a in shares]
    else:
        pairs = [(lo * a, hi * b) for a in shares[::3] for b in shares[::3]]
    grids = (affine.choose_grid(a, b, scheme) for a, b in pairs)
    return min(cost(Grid(np.float32(s), np.int32(z), scheme)) for s, z in grids)
