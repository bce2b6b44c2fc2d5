"""The distinct operators of a network, each as a quantised model of its own."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING, Any

import numpy as np

from leadline import decide
from leadline.affine import choose_grid
from leadline.graph import Graph, Node
from leadline.types import Grid, Scheme

if TYPE_CHECKING:
    import onnx

    from leadline.recipe import Recipe
    from leadline.rules import Rules

_SETTINGS = 1024  # elements: integer constants up to here are shapes, axes and pads
_FEW = 16  # elements: float constants up to here are factors and bounds
_BOUNDS = {"Softmax": (0.0, 1.0), "Sigmoid": (0.0, 1.0), "HardSigmoid": (0.0, 1.0), "Relu": (0.0, 4.0),
           "Tanh": (-1.0, 1.0)}  # fmt: skip
_ORDINARY = (-4.0, 4.0)
"""The range of any other activation. Targets take or refuse types, shapes and attributes, not values."""


@dataclass(frozen=True)
class Form:
    """One distinct operator: the nodes that are alike, and the first of them as a network."""

    nodes: tuple[Node, ...]
    graph: Graph


def forms(graph: Graph) -> list[Form]:
    """The distinct operators of a network in normal form, in order."""
    by_key: dict[Any, list[Node]] = {}
    for node in graph.nodes:
        by_key.setdefault(_key(graph, node), []).append(node)
    return [Form(tuple(nodes), _alone(graph, nodes[0])) for nodes in by_key.values()]


def _key(graph: Graph, node: Node) -> Any:
    def text(value: Any) -> str:
        return f"{value.shape}{value.tobytes().hex()}" if isinstance(value, np.ndarray) else repr(value)

    inputs: list[Any] = []
    twins = {name: index for index, name in reversed(list(enumerate(node.inputs)))}
    for name in node.inputs:
        array = graph.weights.get(name)
        if array is None:
            value = graph.values.get(name)
            inputs.append((twins[name], value and (str(value.dtype), value.shape)))
        elif array.size <= (_FEW if array.dtype.kind == "f" else _SETTINGS):
            inputs.append((str(array.dtype), text(array)))
        else:
            inputs.append((str(array.dtype), array.shape))
    outputs = tuple(graph.values[name].shape if name else None for name in node.outputs)
    attributes = tuple(sorted((key, text(value)) for key, value in node.attrs.items()))
    return node.op_type, node.domain, tuple(inputs), outputs, attributes


def _alone(graph: Graph, node: Node) -> Graph:
    weights = {name: graph.weights[name] for name in node.inputs if name in graph.weights}
    inputs = list(dict.fromkeys(name for name in node.inputs if name in graph.values))
    values = {name: graph.values[name] for name in (*inputs, *node.outputs) if name}
    only = Node(node.op_type, list(node.inputs), list(node.outputs), node.name, dict(node.attrs), node.domain)
    outputs = [values[name] for name in node.outputs if name]
    return Graph([only], weights, [values[name] for name in inputs], outputs, dict(values), "operator")


def quantised(graph: Graph, recipe: Recipe, rules: Rules) -> tuple[onnx.ModelProto, tuple[str, ...]]:
    """A network as the exporter writes it for a target, on plausible grids, and what the target made it change.

    Grids are where the recipe places them (its overrides by name aside): of weights from their values, of activations
    from what their operator gives.
    """
    from leadline.export import qdq
    from leadline.steps.fitting import fit, respell
    from leadline.steps.placement import place

    graph = graph.copy()
    spelled = respell(graph, recipe, rules)
    placement = place(graph, replace(recipe, overrides=()), rules)
    known = len(placement.notes)
    placement = fit(graph, placement, rules)
    grids: dict[str, Grid] = {}
    for name, scheme in (*placement.constants.items(), *((layer.weight, scheme) for layer, scheme in placement.layers)):
        if name not in grids:
            grids[name] = decide.weight_grid(graph.weights[name], scheme)
    writers = graph.producers()
    for tensor, scheme in placement.schemes.items():
        writer = writers.get(placement.root[tensor])
        bounds = _BOUNDS.get(writer.op_type, _ORDINARY) if writer else _ORDINARY
        grids[tensor] = _grid(bounds, scheme, graph.shape(tensor))
    grids |= dict(_biases(graph, grids, rules.single_bias_scale))
    return qdq.to_qdq(graph, grids), (*spelled, *placement.notes[known:])


def _grid(bounds: tuple[float, float], scheme: Scheme, whole: tuple[int, ...]) -> Grid:
    if scheme.granularity == "token":
        return Grid(np.ones((), np.float32), np.zeros((), np.int32), scheme)
    shape = (whole[scheme.axis],) if scheme.granularity == "axis" and scheme.axis is not None else ()
    return choose_grid(np.full(shape, bounds[0]), np.full(shape, bounds[1]), scheme)


def _biases(graph: Graph, grids: dict[str, Grid], single: bool) -> Iterator[tuple[str, Grid]]:
    """int32 at input scale x weight scale, as integer kernels want it. One that several layers read stays float here;
    calibration gives each its own."""
    readers = graph.readers()
    for layer in graph.layers():
        if layer.bias is None or len(readers[layer.bias]) > 1:
            continue
        size = graph.weights[layer.bias].size
        grid = decide.bias_grid(grids.get(layer.weight), grids.get(layer.input), size, single)
        if grid is not None:
            yield layer.bias, grid
