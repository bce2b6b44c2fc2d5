"""The specification of weight compensation: ridge regression toward the weight, in double."""

from __future__ import annotations

import numpy as np


def compensate(weight: np.ndarray, cross: np.ndarray, gram: np.ndarray, damping: float) -> np.ndarray:
    """argmin_V E|W x - V y|^2 + lambda |V - W|^2 from C = E[x y^T], G = E[y y^T]; lambda = damping * mean diag G."""
    lam = damping * np.diag(gram).mean() * np.eye(len(gram))
    return np.linalg.solve((gram + lam).T, (weight @ (cross + lam)).T).T


def objective(weight, candidate, x, y, damping):
    """The objective itself, from samples (rows of x and y)."""
    lam = damping * np.mean(y**2)
    return np.sum((x @ weight.T - y @ candidate.T) ** 2) / len(x) + lam * np.sum((candidate - weight) ** 2)
