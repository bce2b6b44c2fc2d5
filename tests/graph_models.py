"""Small ONNX models for the tests of the graph, and the one question they ask: is the output still the same?"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np
import onnx
from onnx import NodeProto, TensorProto, helper, numpy_helper

from leadline.graph import Graph, Session

FLOAT = TensorProto.FLOAT
RNG = np.random.default_rng(3)

# Rewriting reorders float32 arithmetic: a few hundred roundings of 6e-8 each, relative to the output's spread.
FLOAT_NOISE = 1e-4


def node(op_type: str, inputs: str, outputs: str, **attrs: Any) -> NodeProto:
    """make_node with names separated by blanks; "-" is an input left out."""
    name = attrs.pop("name", "")
    names = ["" if name == "-" else name for name in inputs.split()]
    return helper.make_node(op_type, names, outputs.split(), name=name, **attrs)


def model(
    nodes: Sequence[NodeProto],
    shape: Sequence[int | str | None] = (2, 5, 8),
    outputs: str = "y",
    opset: int = 17,
    **weights: Any,
) -> onnx.ModelProto:
    """One float input x, and weights by name ("__" stands for a dot)."""
    tensors = [numpy_helper.from_array(np.asarray(array), name.replace("__", ".")) for name, array in weights.items()]
    graph = helper.make_graph(
        list(nodes),
        "test",
        [helper.make_tensor_value_info("x", FLOAT, shape)],
        [helper.make_tensor_value_info(name, FLOAT, None) for name in outputs.split()],
        tensors,
    )
    return helper.make_model(graph, opset_imports=[helper.make_opsetid("", opset)], ir_version=8)


def seed() -> None:
    RNG.bit_generator.state = np.random.default_rng(3).bit_generator.state


def random(*shape: int, spread: float = 1.0) -> np.ndarray:
    return (RNG.standard_normal(shape) * spread).astype(np.float32)


def distance(before: dict[str, np.ndarray], after: dict[str, np.ndarray]) -> float:
    """Largest difference, relative to each output's standard deviation; of a single number, to itself."""
    assert list(before) == list(after)
    return max(
        float(np.abs(before[name] - after[name]).max() / (before[name].std() or np.abs(before[name]).max() or 1.0))
        for name in before
    )


def load_same(proto: onnx.ModelProto, shape: Sequence[int] | None = None, fold: bool = False) -> Graph:
    """The normal form of a model, after checking that it (folded too, if asked) computes the same."""
    graph = Graph.from_model(proto, {"x": shape} if shape else None)
    if fold:
        graph.fold()
    feed = {"x": random(*graph.inputs[0].shape)}
    assert distance(Session(proto, optimize=False).run(feed), Session(graph, optimize=False).run(feed)) < FLOAT_NOISE
    onnx.checker.check_model(graph.to_model(), full_check=True)
    return graph


def ops(graph: Graph) -> list[str]:
    return [item.op_type for item in graph.nodes]
