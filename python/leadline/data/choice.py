"""Which samples to calibrate on: at random, evenly from scenes or brightness, far from one another, from clusters."""

from __future__ import annotations

import re
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from leadline.data.samples import Feed, Samples, check_seed
from leadline.progress import Progress, Quiet
from leadline.types import refuse

CHOICES = ("random", "folder", "brightness", "farthest", "diverse")
"""See `choose`."""

BY_FEATURES = CHOICES[3:]

CLUSTERS = 8
"""As many as QuantVGGT's authors form."""

STARTS, ROUNDS = 10, 30

Vectors = NDArray[np.float64]
Indices = NDArray[np.intp]
Features = Callable[[Feed], Any]


def choose(
    samples: Samples,
    num_samples: int,
    choice: str = "random",
    *,
    features: Features | None = None,
    seed: int = 0,
    progress: Progress | None = None,
) -> Samples:
    """`num_samples` of the samples, in their order. The same seed chooses alike.

    All but "random" and "folder" read every sample once; features are kept, not samples.

    Parameters
    ----------
    samples : Samples
    num_samples : int
        1 to ``len(samples)``.
    choice : str
        - "random": each with the same chance; what ``Data(..., num_samples=...)`` takes.
        - "folder": the same number from each folder of pictures, or from each file that holds several samples (a
          video, an array), as far as they go: stratified by scene.
        - "brightness": one from each of `num_samples` equal parts of the samples in order of their mean value.
        - "farthest": outliers are left out; then each one is the farthest from all before it (greedy k-centre: none
          lies more than twice as far from a chosen one as in the best choice), from a random first one.
        - "diverse": outliers are left out; the others form 8 clusters (k-means), from each of which the same number
          is drawn, as far as they go.
    features : callable from feed to (n,) array of numbers, optional
        What "farthest" and "diverse" compare: Euclidean distance after each column has been brought to unit
        variance. Default: the largest input, averaged in at most 4 pieces along each axis (a small picture), and 17
        quantiles of its values from minimum to maximum. From inside a network:
        ``leadline.graph.features.network_features``.
    seed : int
        At least 0.
    progress : optional
        ``leadline.progress.Bars()`` shows the pass over the samples. Default: silent.

    Raises
    ------
    InputError
        An unknown choice; a number or seed out of range; features for a choice that compares none; features that are
        not finite vectors of one length, with the sample named; "folder" where there is only one.

    Notes
    -----
    Outliers are samples whose distance to the median exceeds the upper quartile by 1.5 interquartile ranges; the
    farthest go, and never so many that fewer than `num_samples` remain. "diverse" is the noise-filtered diverse
    sampling of QuantVGGT (Feng et al., arXiv 2509.21302), which takes its features from deep layers; "farthest" is
    Gonzalez, Theor. Comput. Sci. 38 (1985); k-means is the best of 10, seeded as by Arthur and Vassilvitskii (SODA
    2007).
    """
    if not isinstance(samples, Samples):
        raise refuse("choose", "samples must be Samples, which leadline.load_samples gives", type(samples).__name__)
    n = len(samples)
    if not isinstance(num_samples, int | np.integer) or not 1 <= num_samples <= n:
        raise refuse("choose", f"num_samples must be 1 to {n}, the samples that there are", repr(num_samples))
    check_choice("choose", choice, features)
    check_seed("choose", seed)

    rng, progress = np.random.default_rng(seed), progress or Quiet()
    if choice == "random":
        chosen = _evenly(np.zeros(n, np.intp), num_samples, rng)
    elif choice == "folder":
        chosen = _evenly(_folders(samples.labels), num_samples, rng)
    elif choice == "brightness":
        order = np.argsort(_vectors(samples, _brightness, progress)[:, 0], kind="stable")
        rank = np.empty(n, np.intp)
        rank[order] = np.arange(n)
        chosen = _evenly(rank * num_samples // n, num_samples, rng)
    else:
        vectors = _vectors(samples, features or _look, progress)
        kept = _usual(_standard(vectors), num_samples)
        vectors = _standard(vectors[kept])  # anew: an outlier hides what tells the others apart
        if choice == "farthest":
            chosen = kept[_farthest(vectors, num_samples, rng)]
        else:
            chosen = kept[_evenly(_clusters(vectors, min(CLUSTERS, num_samples), rng), num_samples, rng)]
    return samples.part(sorted(chosen.tolist()))


def check_choice(function: str, choice: str, features: object = None) -> None:
    """Refuses a choice that `choose` does not know, and features for one that compares none."""
    if choice not in CHOICES:
        raise refuse(function, f"choice must be one of {', '.join(CHOICES)}", repr(choice))
    if features is not None and choice not in BY_FEATURES:
        raise refuse(function, f"features are for the choices {' and '.join(BY_FEATURES)}", f"choice {choice!r}")


def _evenly(groups: Indices, count: int, rng: np.random.Generator) -> Indices:
    """One of each group in turn until there are `count`; a group that is used up is passed over."""
    order = rng.permutation(len(groups))
    turn = np.empty(len(groups), np.intp)
    for group in np.unique(groups):
        members = np.flatnonzero(groups[order] == group)
        turn[members] = np.arange(len(members))
    chosen: Indices = order[np.argsort(turn, kind="stable")[:count]]
    return chosen


def _folders(labels: Sequence[str]) -> Indices:
    def scene(label: str) -> str:
        file = re.sub(r"\[\d+\]$", "", label)
        return str(Path(file).parent) if file == label else file

    names, groups = np.unique([scene(label) for label in labels], return_inverse=True)
    if len(names) < 2:
        rule = "samples must come from at least two folders, or files of several samples, to be chosen by 'folder'"
        raise refuse("choose", rule, f"{len(labels)} from {names[0]}")
    return np.asarray(groups, np.intp)


def _vectors(samples: Samples, features: Features, progress: Progress) -> Vectors:
    rows: list[Vectors] = []
    feeds = progress.over(samples, "choose", len(samples))
    for label, feed in zip(samples.labels, feeds, strict=True):
        found = features(feed)
        try:
            row = np.array(found, np.float64)
        except (TypeError, ValueError) as error:
            raise refuse("choose", "features must give a vector of numbers", f"{found!r} for {label}") from error
        if row.ndim != 1 or row.size == 0:
            raise refuse("choose", "features must give a vector of numbers", f"shape {row.shape} for {label}")
        if rows and row.size != rows[0].size:
            rule = f"features must give vectors of one length, {rows[0].size} as for {samples.labels[0]}"
            raise refuse("choose", rule, f"{row.size} for {label}")
        if not np.isfinite(row).all():
            raise refuse("choose", "features must be finite", f"{row[~np.isfinite(row)][0]} for {label}")
        rows.append(row)
    return np.stack(rows)


def _largest(feed: Feed) -> Vectors:
    return np.atleast_1d(np.asarray(max(feed.values(), key=lambda array: array.size), np.float64))


def _brightness(feed: Feed) -> Vectors:
    return np.array([_largest(feed).mean()])


def _look(feed: Feed) -> Vectors:
    """A small picture and quantiles. No layout is asked for: channels are few, and stay as they are."""
    values = small = _largest(feed)
    for axis, size in enumerate(values.shape):
        edges = np.arange(min(size, 4)) * size // min(size, 4)
        lengths = np.diff(edges, append=size).reshape([-1 if i == axis else 1 for i in range(values.ndim)])
        small = np.add.reduceat(small, edges, axis) / lengths
    return np.concatenate([small.ravel(), np.quantile(values, np.linspace(0, 1, 17))])


def _standard(vectors: Vectors) -> Vectors:
    """Each column with mean 0 and variance 1; one that only rounding tells apart is 0."""
    span = np.abs(vectors).max(0)
    scaled = vectors / np.where(span > 0, span, 1)  # first, so that no square overflows
    spread = scaled.std(0)
    standard: Vectors = np.where(spread > 1e-9, (scaled - scaled.mean(0)) / np.maximum(spread, 1e-9), 0)
    return standard


def _squares(vectors: Vectors, centre: Vectors) -> Vectors:
    """Squared distances. Not by a matrix product, whose last digit depends on the number of threads."""
    squares: Vectors = np.square(vectors - centre).sum(1)
    return squares


def _usual(vectors: Vectors, least: int) -> Indices:
    """All but the outliers, and at least so many."""
    away = np.sqrt(_squares(vectors, np.median(vectors, 0)))
    low, high = np.percentile(away, [25, 75])
    inside = int((away <= high + 1.5 * (high - low)).sum())
    return np.sort(np.argsort(away, kind="stable")[: max(inside, least)])


def _farthest(vectors: Vectors, count: int, rng: np.random.Generator) -> Indices:
    chosen = [int(rng.integers(len(vectors)))]
    nearest = np.full(len(vectors), np.inf)
    while len(chosen) < count:
        nearest = np.minimum(nearest, _squares(vectors, vectors[chosen[-1]]))
        nearest[chosen[-1]] = -1  # so that of twins each is chosen once
        chosen.append(int(nearest.argmax()))
    return np.array(chosen)


def _clusters(vectors: Vectors, count: int, rng: np.random.Generator) -> Indices:
    """The cluster of each vector, of the best of some k-means."""

    best, least = np.zeros(len(vectors), np.intp), np.inf
    for _ in range(STARTS):
        centres = _seeds(vectors, count, rng)
        for _ in range(ROUNDS):
            # Squared distances less what is the same for all centres. Not by BLAS: see _squares.
            squares = np.square(centres).sum(1) - 2 * np.einsum("nd,kd->nk", vectors, centres)
            groups, loss = squares.argmin(1), float(squares.min(1).sum())
            members = [vectors[groups == i] for i in range(len(centres))]
            moved = np.stack([m.mean(0) if len(m) else c for m, c in zip(members, centres, strict=True)])
            if np.array_equal(moved, centres):
                break
            centres = moved
        if loss < least:
            best, least = groups, loss
    return best


def _seeds(vectors: Vectors, count: int, rng: np.random.Generator) -> Vectors:
    """First centres: each drawn with a chance in proportion to its squared distance from those before it."""
    chosen = [int(rng.integers(len(vectors)))]
    nearest = np.full(len(vectors), np.inf)
    while len(chosen) < count:
        nearest = np.minimum(nearest, _squares(vectors, vectors[chosen[-1]]))
        if not nearest.any():
            break  # fewer different vectors than clusters
        chosen.append(int(rng.choice(len(vectors), p=nearest / nearest.sum())))
    return vectors[chosen]
