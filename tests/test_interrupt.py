"""A signal in a long call ends it, and what it worked on is as it was."""

import signal

import numpy as np
import pytest

from leadline.gram import ConvGram, Gram
from leadline.rounding.problem import Problem
from leadline.types import Grid, Scheme
from natives import native  # noqa: F401


class Stop(Exception):
    """What the handler raises, as Python's own raises KeyboardInterrupt."""


@pytest.fixture
def alarm():
    def stop(*_):
        raise Stop

    before = signal.signal(signal.SIGALRM, stop)
    yield lambda: signal.setitimer(signal.ITIMER_REAL, 0.3)
    signal.setitimer(signal.ITIMER_REAL, 0)
    signal.signal(signal.SIGALRM, before)


@pytest.mark.parametrize("threads", [1, 2])
@pytest.mark.parametrize(
    ("make", "shape"),
    [
        (lambda: Gram(2048), (20_000, 2048)),
        (lambda: ConvGram((1, 64, 3, 3), pads=(1, 1, 1, 1)), (8, 64, 160, 160)),
        (lambda: ConvGram((2, 64, 3, 3), pads=(1, 1, 1, 1), groups=2), (8, 128, 128, 128)),
    ],
    ids=["linear", "convolution", "groups"],
)
@pytest.mark.usefixtures("native")
def test_moments_are_as_they_were(alarm, make, shape, threads):
    x = np.random.default_rng(0).standard_normal(shape, np.float32)
    gram = make().update(x[:1], threads=threads)
    matrix, mean, count = gram.matrix(), gram.mean.copy(), gram.count
    with pytest.raises(Stop):
        alarm()
        gram.update(x, threads=threads)
    assert gram.count == count
    np.testing.assert_array_equal(gram.matrix(), matrix)
    np.testing.assert_array_equal(gram.mean, mean)


@pytest.mark.parametrize("threads", [1, 2])
@pytest.mark.parametrize("solver", ["adaround", "gptq"])
def test_codes_are_as_they_were(alarm, solver, threads):
    """Left alone, each would take seconds, and change some."""
    rows, features = {"adaround": (140, 64), "gptq": (12_000, 1200)}[solver]
    weight = np.random.default_rng(0).standard_normal((rows, features)).astype(np.float32)
    scheme = Scheme(bits=4, signed=True, granularity="axis", axis=0)
    grid = Grid(np.full(rows, 0.2, np.float32), np.zeros(rows, np.int32), scheme)
    problem = Problem(weight, np.eye(features) + 0.5, grid, False, solver)
    start = problem.start(None, threads)
    codes = start.copy()

    def solve(iterations: int) -> None:
        if solver == "gptq":
            problem.native.gptq(codes, 0.01, True, threads)
        else:
            problem.native.adaround(codes, iterations, 0.1, 0.0, 1.0, 20.0, 2.0, 0.0, threads)

    with pytest.raises(Stop):
        alarm()
        solve(30_000)
    np.testing.assert_array_equal(codes, start)
    solve(100)
    assert (codes != start).any()
