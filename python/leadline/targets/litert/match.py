"""Which tensor of a converted ``.tflite`` is which of the Graph that it was made from.

Weights are found by value: a converter transposes them and does nothing else. Activations are found by running both
networks on one sample: two tensors are the same where their sorted values are, so that layouts do not matter (a grid
has one scale for the whole tensor and does not depend on the layout either).
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from leadline.graph import Graph, Layer, Session
from leadline.graph.ir import Array
from leadline.targets.litert.read import Operator, Tflite
from leadline.targets.litert.run import Interpreter
from leadline.types import FloatArray

TOLERANCE = 2e-3
"""Of a tensor's standard deviation: kernels of two runtimes sum in different orders."""

WEIGHT_AXES: Mapping[str, tuple[int, int]] = {
    "FULLY_CONNECTED": (1, 0),
    "CONV_2D": (1, 0),
    "DEPTHWISE_CONV_2D": (1, 3),
    "TRANSPOSE_CONV": (1, 0),
}
"""Of each layer's operator: which input is its weight, and the weight's axis of output channels."""

_BIAS = {"FULLY_CONNECTED": 2, "CONV_2D": 2, "DEPTHWISE_CONV_2D": 2, "TRANSPOSE_CONV": 3}
_DATA = {"TRANSPOSE_CONV": 2}


@dataclass(frozen=True)
class Site:
    """A layer of a ``.tflite``: indices of its input, weight, bias (None: it has none) and output."""

    operator: Operator
    input: int
    weight: int
    bias: int | None
    output: int

    @property
    def axis(self) -> int:
        return WEIGHT_AXES[self.operator.type][1]


@dataclass(frozen=True)
class Matching:
    """`activations`: tensor index to the graph's names of the same values (moved data keeps its values). `layers`: name
    to Site. `missing`: layers of the graph that were not found."""

    activations: dict[int, tuple[str, ...]]
    layers: dict[str, Site]
    missing: tuple[str, ...]


def sites(model: Tflite) -> list[Site]:
    """Every layer with a constant weight."""
    layers = []
    for operator in model.main.operators:
        if operator.type not in WEIGHT_AXES:
            continue
        weight = operator.inputs[WEIGHT_AXES[operator.type][0]]
        if not model.main.tensors[weight].constant:
            continue
        at = _BIAS[operator.type]
        bias = operator.inputs[at] if at < len(operator.inputs) and operator.inputs[at] >= 0 else None
        layers.append(Site(operator, operator.inputs[_DATA.get(operator.type, 0)], weight, bias, operator.outputs[0]))
    return layers


def to_tflite(layer: Layer, weight: Array) -> Array:
    """A layer's weight, or its codes, in the layout of a ``.tflite``.

    Linear (out, in) stays (MatMul's (in, out) are transposed); convolutions become (out, height, width, in), depthwise
    ones (1, height, width, channels), each with as many spatial axes as they have: the file may add some of one.
    """
    if layer.kind == "linear":
        return weight if layer.axis == 0 else np.ascontiguousarray(weight.swapaxes(-1, -2))
    # depthwise (C, 1, H, W), transposed (in, out, H, W)
    return np.ascontiguousarray(np.moveaxis(weight, 1 if layer.kind == "conv" else 0, -1))


def match(graph: Graph, content: bytes, feed: Mapping[str, Array], threads: int | None = None) -> Matching:
    """Find the graph's tensors in the float ``.tflite`` made from it.

    Parameters
    ----------
    graph : Graph
        With the weights that the file holds.
    content : bytes
    feed : dict of graph input name to array
        One sample, of which every activation is compared.
    threads : int, optional
    """
    runner = Interpreter(content, "plain", threads, inner=True)
    runner.run(dict(zip(runner.inputs, (feed[value.name] for value in graph.inputs), strict=True)))
    model = runner.model
    floats = [tensor.index for tensor in model.main.activations() if tensor.dtype == "float32"]
    names = [name for name in graph.activations() if name not in feed]
    with Session(graph, names, optimize=False, threads=threads) as session:
        seen = {**{value.name: feed[value.name] for value in graph.inputs}, **session.run(dict(feed))}
    sizes: dict[int, list[tuple[str, FloatArray]]] = {}
    for name, array in seen.items():
        if array.dtype == np.float32:
            sizes.setdefault(array.size, []).append((name, np.sort(array, axis=None)))
    activations: dict[int, tuple[str, ...]] = {}
    for index, array in runner.observe(floats).items():
        same = _closest(np.sort(array, axis=None), sizes.get(array.size, []))
        if same:
            activations[index] = same
    layers = _layers(graph, model, activations)
    missing = tuple(layer.name for layer in graph.layers() if layer.name not in layers)
    return Matching(activations, layers, missing)


def _closest(wanted: FloatArray, candidates: list[tuple[str, FloatArray]]) -> tuple[str, ...]:
    """The candidates of the same sorted values: the nearest, and those that are as near but for rounding."""
    limit = TOLERANCE * float(wanted.std())
    distances = {name: float(np.abs(wanted - values).max(initial=0.0)) for name, values in candidates}
    nearest = min(distances.values(), default=np.inf)
    if not nearest <= limit:
        return ()
    return tuple(name for name, distance in distances.items() if distance <= nearest + 1e-3 * limit)


def _layers(graph: Graph, model: Tflite, activations: Mapping[int, tuple[str, ...]]) -> dict[str, Site]:
    """Layers by the values of weight and bias; of twins, the one whose input is the graph's."""
    tensors = model.main.tensors
    by_weight: dict[bytes, list[Site]] = {}
    for site in sites(model):
        by_weight.setdefault(_key(tensors[site.weight].array), []).append(site)
    by_name: dict[str, Site] = {}
    for layer in graph.layers():
        candidates = by_weight.get(_key(to_tflite(layer, graph.weights[layer.weight])), [])
        bias = graph.weights[layer.bias] if layer.bias is not None else None
        candidates = [site for site in candidates if _same_bias(bias, site, model)]
        if len(candidates) > 1:
            same = [site for site in candidates if layer.input in activations.get(site.input, ())]
            candidates = same or candidates
        if candidates:
            by_name[layer.name] = candidates[0]
    return by_name


def _key(array: NDArray[np.float32]) -> bytes:
    return repr(tuple(n for n in array.shape if n > 1)).encode() + np.ascontiguousarray(array, np.float32).tobytes()


def _same_bias(bias: Array | None, site: Site, model: Tflite) -> bool:
    held = None if site.bias is None else model.main.tensors[site.bias].array
    if bias is None or held is None:
        return (bias is None or not bias.any()) and (held is None or not held.any())
    return np.array_equal(bias, held)
