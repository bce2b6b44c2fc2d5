"""The specification of rounding against a Gram matrix, one row at a time, in double."""

from __future__ import annotations

import numpy as np

GAMMA, ZETA = -0.1, 1.1


def error(weight: np.ndarray, gram: np.ndarray, scale: np.ndarray, zero: np.ndarray, codes: np.ndarray) -> float:
    """(q - w) G (q - w)^T of one row."""
    d = scale * (codes - zero) - weight
    return float(d @ gram @ d)


def nearest(weight, scale, zero, qmin, qmax):
    return np.clip(np.rint(weight / scale) + zero, qmin, qmax).astype(int)


def descend(weight, gram, scale, zero, codes, qmin, qmax, sweeps=50):
    """Each code in turn takes the value that is best with all others fixed, inputs of large moments first."""
    codes = codes.astype(int).copy()
    d = scale * (codes - zero) - weight
    order = np.argsort(-np.diag(gram), kind="stable")
    for _ in range(sweeps):
        moved = False
        for j in order:
            if gram[j, j] <= 0:
                continue
            step = np.rint(-(d @ gram[:, j]) / gram[j, j] / scale[j])
            new = int(np.clip(codes[j] + step, qmin, qmax))
            if new != codes[j] and abs(-(d @ gram[:, j]) / gram[j, j] / scale[j]) > 0.501:
                d[j] += scale[j] * (new - codes[j])
                codes[j], moved = new, True
        if not moved:
            break
    return codes


def gptq(weight, gram, scale, zero, qmin, qmax, damping=0.01, ordered=True):
    """Optimal brain quantisation in a fixed order: after each column, the others take the best change; the inverse
    Hessian of those that are left is recomputed from scratch."""
    n = len(weight)
    diagonal = np.diag(gram).copy()
    mean = diagonal.mean() if diagonal.mean() > 0 else 1.0
    h = gram + np.diag(np.where(diagonal > 0, damping * mean, mean))
    order = list(np.argsort(-diagonal, kind="stable")) if ordered else list(range(n))
    w, codes = weight.astype(float).copy(), np.zeros(n, int)
    for k, j in enumerate(order):
        left = order[k:]
        inverse = np.linalg.inv(h[np.ix_(left, left)])
        codes[j] = int(np.clip(np.rint(w[j] / scale[j]) + zero[j], qmin, qmax))
        e = (w[j] - scale[j] * (codes[j] - zero[j])) / inverse[0, 0]
        w[left] -= e * inverse[0]
    return codes


def k_best(weight, gram, scale, zero, qmin, qmax, paths, damping=0.01):
    """A list of roundings as far as they go: each continues with the two codes nearest to the value that is best for
    the error so far, the later features taking their best real values; the `paths` of least error stay."""
    n = len(weight)
    diagonal = np.diag(gram).copy()
    mean = diagonal.mean() if diagonal.mean() > 0 else 1.0
    h = gram + np.diag(np.where(diagonal > 0, damping * mean, mean))
    order = list(np.argsort(-diagonal, kind="stable"))
    alive = [(0.0, [], np.zeros(0))]  # error, codes, differences, in order
    for k, j in enumerate(order):
        done, left = order[: k + 1], order[k + 1 :]
        schur = h[np.ix_(done, done)]  # of what is rounded, once the rest has made up for it
        if left:
            schur = schur - h[np.ix_(done, left)] @ np.linalg.inv(h[np.ix_(left, left)]) @ h[np.ix_(left, done)]
        longer = []
        for _, codes, d in alive:
            wanted = weight[j] - d @ schur[:k, k] / schur[k, k]
            place = wanted / scale[j] + zero[j]
            near = int(np.clip(np.rint(place), qmin, qmax))
            other = int(np.clip(near + (1 if place >= near else -1), qmin, qmax))
            for code in dict.fromkeys((near, other)):
                moved = np.append(d, scale[j] * (code - zero[j]) - weight[j])
                longer.append((float(moved @ schur @ moved), [*codes, code], moved))
        alive = sorted(longer, key=lambda path: path[0])[:paths]
    result = np.zeros(n, int)
    result[order] = alive[0][1]
    return result


def rectified(v):
    return np.clip(1 / (1 + np.exp(-v)) * (ZETA - GAMMA) + GAMMA, 0, 1)


def adaround(weight, gram, scale, zero, qmin, qmax, iterations, rate, regularisation, warm_start, beta=(20.0, 2.0)):
    """The paper's soft rounding, Adam, one row, errors in units of nearest rounding's; no early stop."""
    below = np.floor(weight / scale) + zero
    low, high = np.clip(below, qmin, qmax), np.clip(below + 1, qmin, qmax)
    free = (high > low) & (np.diag(gram) > 0)
    floor = scale * (low - zero) - weight
    part = np.clip(-floor / scale, 0.01, 0.99)
    near = np.clip(np.rint(weight / scale) + zero, qmin, qmax)
    part = np.where(near == low, np.minimum(part, 0.45), part)
    part = np.where((near == high) & free, np.maximum(part, 0.55), part)
    v = -np.log((ZETA - GAMMA) / (part - GAMMA) - 1)
    d = floor + scale * np.where(free, np.round(np.clip(-floor / scale, 0, 1)), 0)
    unit = float(d @ gram @ d) / len(weight)
    mean, square = np.zeros_like(v), np.zeros_like(v)
    warm = int(warm_start * iterations)
    for k in range(iterations):
        share = (k - warm_start * iterations) / max(iterations - warm_start * iterations, 1)
        b = beta[1] + 0.5 * (beta[0] - beta[1]) * (1 + np.cos(share * np.pi))
        s = 1 / (1 + np.exp(-v))
        raw = s * (ZETA - GAMMA) + GAMMA
        inside = (raw > 0) & (raw < 1) & free
        d = floor + scale * free * np.clip(raw, 0, 1)
        g = 2 * (d @ gram) * scale / unit if unit > 0 else np.zeros_like(v)
        side = 2 * raw - 1
        if k >= warm:
            g = g - regularisation * 2 * b * np.sign(side) * np.abs(side) ** (b - 1) * inside * (np.abs(side) > 1e-3)
        g = np.where(inside, g * (ZETA - GAMMA) * s * (1 - s), 0)
        mean, square = 0.9 * mean + 0.1 * g, 0.999 * square + 0.001 * g * g
        v = v - rate * (mean / (1 - 0.9 ** (k + 1))) / (np.sqrt(square / (1 - 0.999 ** (k + 1))) + 1e-8)
    return np.where(free & (v >= 0), high, low).astype(int)
