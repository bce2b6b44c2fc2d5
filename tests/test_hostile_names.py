"""Names are nothing but names: a network whose tensors and nodes are called what leadline itself makes up gives the
same numbers as any other, whatever the recipe."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any

import numpy as np
import onnx
import pytest

from graph_models import model, node
from leadline import pipeline
from leadline.graph import Graph, Node, Session, Value, edit
from leadline.recipe import Recipe
from leadline.targets.litert.convert import _guarded
from small_networks import SHAPE, conv_relu6_depthwise, draw, gemm_relu_gemm, residual, samples
from small_transformer import transformer


def bare() -> onnx.ModelProto:
    """No layer has a bias, two share a weight, and one reads a sum with a constant."""
    nodes = [
        node("Conv", "x w1", "a", name="first", pads=[1, 1, 1, 1]),
        node("Clip", "a lo hi", "b", name="clip"),
        node("Conv", "b w2", "c", name="second", pads=[1, 1, 1, 1]),
        node("Add", "c shift", "d", name="shifted"),
        node("Conv", "d w2", "y", name="third", pads=[1, 1, 1, 1]),
    ]
    weights = {"w1": draw(1, 8, 3, 3, 3), "w2": draw(2, 8, 8, 3, 3), "shift": draw(3, 1, 8, 1, 1)}
    return model(nodes, SHAPE, lo=np.float32(0), hi=np.float32(1), **weights)


NETWORKS: dict[str, Callable[[], Graph]] = {
    "bare": lambda: Graph.from_model(bare()),
    "depthwise": lambda: Graph.from_model(conv_relu6_depthwise()),
    "linear": lambda: Graph.from_model(gemm_relu_gemm()),
    "residual": lambda: Graph.from_model(residual()),
    "transformer": lambda: transformer(fold=False),
}


@contextmanager
def overheard(monkeypatch: pytest.MonkeyPatch) -> Iterator[dict[str, None]]:
    """Every name that is asked for meanwhile."""
    asked: dict[str, None] = {}
    real = edit.free_name

    def free_name(wanted: str, taken: Any) -> str:
        asked[wanted] = None
        return real(wanted, taken)

    with monkeypatch.context() as patch:
        patch.setattr(edit, "free_name", free_name)
        patch.setattr("leadline.export.qdq.free_name", free_name)
        yield asked


def renamed(graph: Graph, names: dict[str, str]) -> Graph:
    """The same network with other names for tensors, and for the nodes that write them."""

    def of(name: str) -> str:
        return names.get(name, name)

    def value(old: Value) -> Value:
        return Value(of(old.name), old.dtype, old.shape)

    nodes = [
        Node(n.op_type, [*map(of, n.inputs)], [*map(of, n.outputs)], of(n.name), dict(n.attrs), n.domain)
        for n in graph.nodes
    ]
    weights = {of(name): array for name, array in graph.weights.items()}
    values = {of(name): value(old) for name, old in graph.values.items()}
    inputs, outputs = [value(old) for old in graph.inputs], [value(old) for old in graph.outputs]
    return Graph(nodes, weights, inputs, outputs, values, graph.name, graph.opset)


def artefact(graph: Graph, recipe: str) -> list[np.ndarray]:
    """What the artefact gives, output by output; `quantize` itself proves the float Graph."""
    data = samples(6, graph.inputs[0].shape)
    quantised = pipeline.quantize(graph, recipe, {graph.inputs[0].name: data}, threads=1)
    feed = {graph.inputs[0].name: data[: graph.inputs[0].shape[0]]}
    with Session(quantised.to_qdq(), optimize=False, threads=1) as session:
        return list(session.run(feed).values())


RUNS = [(recipe, network) for recipe in Recipe.names() for network in ("bare", "linear")]
RUNS += [("w8a8", network) for network in ("depthwise", "residual", "transformer")]
RUNS += [("w4a8", "depthwise"), ("quartdepth-w4a8", "residual"), ("quantvggt-w4a4", "transformer")]
RUNS.remove(("quantvggt-w4a4", "bare"))  # a recipe for linear layers alone


@pytest.mark.parametrize(("recipe", "network"), RUNS)
def test_a_name_that_a_step_makes_up_may_be_taken(recipe: str, network: str, monkeypatch: pytest.MonkeyPatch) -> None:
    graph = NETWORKS[network]()
    with overheard(monkeypatch) as asked:
        wanted = artefact(graph, recipe)
    hostile = [name for name in asked if name not in graph.weights and name not in graph.values]
    tensors = [*graph.values, *graph.weights]
    assert hostile
    for start in range(0, len(hostile), len(tensors)):
        names = dict(zip(tensors[::-1], hostile[start : start + len(tensors)], strict=False))
        for got, expected in zip(artefact(renamed(graph, names), recipe), wanted, strict=True):
            np.testing.assert_array_equal(got, expected)


@pytest.mark.parametrize("proto", [bare, conv_relu6_depthwise, gemm_relu_gemm, residual])
def test_a_name_that_loading_makes_up_may_be_taken(
    proto: Callable[[], onnx.ModelProto], monkeypatch: pytest.MonkeyPatch
) -> None:
    plain = proto()
    with overheard(monkeypatch) as asked:
        loaded = Graph.from_model(plain)
    tensors = [*(t.name for t in plain.graph.initializer), *(o for n in plain.graph.node for o in n.output)]
    feed = samples(1, loaded.inputs[0].shape)
    with Session(plain, threads=1) as session:
        expected = list(session.run({"x": feed}).values())
    for start in range(0, len(asked), len(tensors)):
        names = dict(zip(tensors, list(asked)[start : start + len(tensors)], strict=False))
        hostile = onnx.ModelProto.FromString(plain.SerializeToString())
        for item in (*hostile.graph.initializer, *hostile.graph.output):
            item.name = names.get(item.name, item.name)
        for item in hostile.graph.node:
            for i, name in enumerate(item.input):
                item.input[i] = names.get(name, name)
            for i, name in enumerate(item.output):
                item.output[i] = names.get(name, name)
        with Session(Graph.from_model(hostile), threads=1) as session:
            for got, wanted in zip(session.run({"x": feed}).values(), expected, strict=True):
                np.testing.assert_allclose(got, wanted, rtol=1e-4, atol=1e-5)


@pytest.mark.parametrize("network", NETWORKS)
def test_a_name_that_a_conversion_makes_up_may_be_taken(network: str, monkeypatch: pytest.MonkeyPatch) -> None:
    graph = NETWORKS[network]()
    with overheard(monkeypatch) as asked:
        _guarded(graph)
    tensors = [*graph.values, *graph.weights]
    hostile = dict(zip(tensors[::-1], asked, strict=False))
    assert hostile
    x = samples(1, graph.inputs[0].shape)
    given = renamed(graph, hostile)
    with Session(graph, optimize=False) as plain, Session(_guarded(given), optimize=False) as guarded:
        (wanted,), (got,) = (
            session.run({own.inputs[0].name: x}).values() for session, own in ((plain, graph), (guarded, given))
        )
    np.testing.assert_array_equal(got, wanted)
