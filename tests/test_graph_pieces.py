"""Networks run piece by piece: every tensor once, and the same in every bit."""

from __future__ import annotations

import numpy as np
import pytest

from kind_networks import KINDS, network
from leadline.graph import Graph, Session, pieces
from small_networks import quantized, samples
from small_transformer import transformer


def whole_and_pieces(
    graph: Graph, feed: dict[str, np.ndarray], monkeypatch: pytest.MonkeyPatch, optimize: bool
) -> tuple[dict[str, np.ndarray], list[dict[str, np.ndarray]]]:
    watched = [name for name in graph.activations() if name not in feed]
    with Session(graph, watched, optimize=optimize, threads=1) as session:
        whole = session.run(feed)
    monkeypatch.setattr(pieces, "LIMIT", 0)
    with Session(graph, watched, optimize=optimize, threads=1) as session:
        assert [value[0] for value in session.inputs] == [value.name for value in graph.inputs]
        parts = list(session.pieces(feed))
        again = session.run(feed)
    monkeypatch.undo()
    assert list(again) == watched
    assert all(np.array_equal(again[name], whole[name], equal_nan=True) for name in watched)
    return whole, parts


@pytest.mark.parametrize("optimize", [False, True])
@pytest.mark.parametrize("kind", sorted(KINDS))
def test_pieces_give_what_the_whole_gives(kind: str, optimize: bool, monkeypatch: pytest.MonkeyPatch) -> None:
    net = network(kind)
    feed = net.feed(0)
    whole, parts = whole_and_pieces(Graph.from_model(net.model(), feed), feed, monkeypatch, optimize)
    assert sorted(name for part in parts for name in part) == sorted(whole)
    for part in parts:
        for name, array in part.items():
            np.testing.assert_array_equal(array, whole[name], name)


def test_a_transformer_falls_into_pieces(monkeypatch: pytest.MonkeyPatch) -> None:
    graph = transformer()
    feed = {v.name: np.random.default_rng(0).standard_normal(v.shape).astype(np.float32) for v in graph.inputs}
    for optimize, least in ((False, 20), (True, 4)):
        assert len(whole_and_pieces(graph, feed, monkeypatch, optimize)[1]) >= least


def test_a_run_in_pieces_is_the_run(monkeypatch: pytest.MonkeyPatch, tmp_path) -> None:
    """Codes, grids and what verification says."""
    graph, data = transformer(), samples(6, tuple(transformer().inputs[0].shape))
    one = quantized(graph, data=data)
    monkeypatch.setattr(pieces, "LIMIT", 0)
    other = quantized(graph, data=data)
    assert one.to_qdq().SerializeToString() == other.to_qdq().SerializeToString()
    assert one.verify().to_dict() == other.verify().to_dict()
