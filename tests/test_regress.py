"""What benchmarks/regress.py calls a regression."""

from __future__ import annotations

import math

import pytest

from regress import Limits, Run, regressions
from speed import Cost


def run(processor: float = 10.0, peak_mb: float = 400.0, **decibels: float) -> Run:
    return Run(Cost(processor, processor, peak_mb), decibels or {"depth": 30.0})


@pytest.mark.parametrize("field, said", [("processor", "processor time"), ("peak_mb", "memory")])
@pytest.mark.parametrize("factor, kept", [(0.5, True), (1.0, True), (1.24, True), (1.26, False), (math.nan, False)])
def test_costs_may_grow_by_their_factor(field, said, factor, kept):
    limits = Limits(slower=1.25, larger=1.25)
    before = run()
    worse = regressions(before, run(**{field: factor * getattr(before.cost, field)}), limits)
    assert worse == ([] if kept else [f"{factor:.2f} times the {said}"])


@pytest.mark.parametrize(
    "before, now, kept",
    [
        (30.0, 35.0, True),
        (30.0, 29.95, True),
        (30.0, 29.85, False),
        (math.inf, math.inf, True),
        (math.inf, 80.0, False),
        (30.0, math.nan, False),
        (math.nan, 30.0, True),
        (math.nan, math.nan, True),
        (30.0, -math.inf, False),
    ],
)
def test_no_output_may_lose_more_than_its_decibels(before, now, kept):
    """Another output that gained makes up for nothing."""
    worse = regressions(run(depth=before, mask=20.0), run(depth=now, mask=50.0), Limits(lost=0.1))
    assert len(worse) == (0 if kept else 1) and all(line.startswith("depth: ") for line in worse)


def test_an_output_that_is_gone_is_lost():
    assert regressions(run(depth=30.0, mask=20.0), run(depth=30.0), Limits()) == ["mask: nan dB, not 20.00"]


def test_all_that_became_worse_is_said():
    assert len(regressions(run(), run(20.0, 900.0, depth=1.0), Limits())) == 3
