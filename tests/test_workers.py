"""Where work is done; with a Ray cluster in tests/full/test_quantize_ray.py."""

from __future__ import annotations

import sys

import pytest

from data_samples import refused
from leadline.workers import Cluster, Here, workers_of


def test_here_asks_for_an_item_when_its_turn_comes():
    """What an item holds may be large, and may depend on what became of the one before."""
    begun = []

    def items():
        for i in range(3):
            begun.append(i)
            yield i

    for item, double in Here().each(lambda item: 2 * item, items()):
        assert double == 2 * item and begun == list(range(item + 1))


def test_an_error_ends_it():
    done = []
    with pytest.raises(ZeroDivisionError):
        for item, _ in Here().each(lambda item: 1 / item, [1, 0, 2]):
            done.append(item)
    assert done == [1]


def test_engines_are_named():
    assert isinstance(workers_of("local", 2), Here)
    with refused("quantize", "engine must be local or ray", "'dask'"):
        workers_of("dask", None)


@pytest.mark.parametrize("asked_by", ["quantize", "sweep"])
def test_without_ray_it_is_said_what_to_install(asked_by, monkeypatch):
    monkeypatch.setitem(sys.modules, "ray", None)
    with refused(asked_by, "engine ray needs pip install 'leadline[ray]'", "no ray"):
        Cluster(1, asked_by)
