"""Weights of large networks on disk: the same arrays, read-only, and nothing left behind."""

from __future__ import annotations

import tempfile
from pathlib import Path

import numpy as np
import pytest

from leadline.graph import Session, spool
from small_networks import draw, graph, quantized, residual, samples
from small_transformer import transformer


@pytest.fixture
def everything(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(spool, "LARGE", 0)
    monkeypatch.setattr(spool, "_EACH", 0)


def test_weights_are_the_same_and_read_only(everything: None, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(tempfile, "tempdir", str(tmp_path))
    network = transformer()
    network.weights["again"] = next(iter(network.weights.values()))
    network.weights["turned"] = draw(1, 30, 20).T
    before = dict(network.weights)
    other = network.copy()
    moved = spool.spool(network, other)
    assert list(network.weights) == list(before)
    for name, array in network.weights.items():
        np.testing.assert_array_equal(array, before[name])
        assert array.dtype == before[name].dtype and (not array.size or not array.flags.writeable)
        spool.rest(array)
        np.testing.assert_array_equal(array, before[name])
        assert other.weights[name] is array is moved(before[name])
    assert network.weights["again"] is next(iter(network.weights.values()))
    assert list(tmp_path.iterdir()) == []
    held = dict(network.weights)
    spool.spool(network)
    assert all(held[name] is array for name, array in network.weights.items())


def test_small_networks_stay_in_memory() -> None:
    network = transformer()
    before = dict(network.weights)
    spool.spool(network)
    assert all(before[name] is array for name, array in network.weights.items())


def test_a_session_runs_on_them_again_and_again(everything: None) -> None:
    network = transformer()
    feed = {v.name: draw(2, *v.shape) for v in network.inputs}
    with Session(network) as session:
        wanted = session.run(feed)
    spool.spool(network)
    for _ in range(2):
        with Session(network) as session:
            assert all(np.array_equal(array, wanted[name]) for name, array in session.run(feed).items())


@pytest.mark.parametrize("recipe", ["w8a8", "w4a8"])
def test_a_run_is_the_same(recipe: str, monkeypatch: pytest.MonkeyPatch) -> None:
    """No step writes into a weight, and none looks at where it is."""

    def run() -> bytes:
        return quantized(graph(residual()), recipe, samples()).to_qdq().SerializeToString()

    one = run()
    monkeypatch.setattr(spool, "LARGE", 0)
    monkeypatch.setattr(spool, "_EACH", 0)
    assert run() == one
