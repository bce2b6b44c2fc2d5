"""Weights from a Graph, or a quantised one, back into the torch module that it was made of."""

from __future__ import annotations

from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor, nn

from leadline.affine import dequantize
from leadline.graph import Graph, Node, Session
from leadline.graph.quantised import Quantised
from leadline.torch.export import to_graph
from leadline.torch.observation import arguments, evaluating, tensors
from leadline.types import InputError, refuse

CLOSE = 1e-3
"""Largest difference between module and graph, over the output's standard deviation: float32 sums in another order."""

Array = NDArray[np.float32]


def load_weights(module: nn.Module, source: Graph | Quantised, inputs: Any) -> dict[str, float]:
    """Writes a graph's weights into the module that it was made of, in place, and proves it by the outputs.

    A parameter takes what the node that reads it holds in the graph; of a Quantized, the values of the codes. What was
    folded away (BatchNormalization, LayerScale) becomes neutral, and a layer without a bias gets one where the graph
    has it.

    Parameters
    ----------
    module : nn.Module
        float32, on the CPU.
    source : Graph or Quantized
        From `to_graph` of this module; equalised, rotated, rounded since, as long as its nodes keep their names.
    inputs : tensor, tuple or list of arguments, or dict of keywords
        What `module` is called with, of the graph's shapes; the proof runs on it.

    Returns
    -------
    dict of parameter name to float
        The parameters and buffers that changed, and by how much at most.

    Raises
    ------
    InputError
        Graph and module do not fit, by name; or the module cannot hold what the graph holds (a constant that it
        computes itself), by the difference of the outputs. The module is as it was before then.
    """
    graph = source if isinstance(source, Graph) else _valued(source)
    fresh = to_graph(module, inputs)
    shapes = [[value.shape for value in ends] for side in (graph, fresh) for ends in (side.inputs, side.outputs)]
    if shapes[:2] != shapes[2:]:
        rule = f"graph must have inputs and outputs of the module's shapes {shapes[2]} and {shapes[3]}"
        raise refuse("load_weights", rule, f"{shapes[0]} and {shapes[1]}")
    before = {name: tensor.clone() for name, tensor in module.state_dict().items()}
    bare = [owner for owner in module.modules() if getattr(owner, "bias", True) is None]
    try:
        _write(module, fresh, graph)
        _prove(module, graph, inputs)
    except InputError:
        for owner in bare:
            owner.bias = None
        module.load_state_dict(before)
        raise
    after = module.state_dict()
    gone = {
        name: (after[name] - before[name]).abs().max() if name in before else after[name].abs().max() for name in after
    }
    return {name: float(by) for name, by in gone.items() if by > 0}


def _valued(source: Quantised) -> Graph:
    graph = source.graph.copy()
    graph.weights |= {name: dequantize(codes, source.grids[name]) for name, codes in source.codes.items()}
    return graph


def _write(module: nn.Module, fresh: Graph, graph: Graph) -> None:
    parameters = dict(module.named_parameters()) | dict(module.named_buffers())
    there = {node.name: node for node in graph.nodes}
    written: dict[str, Array] = {}
    for node in fresh.nodes:
        for index, name in enumerate(node.inputs):
            if name in parameters and parameters[name].dtype == torch.float32:
                array = _held(graph, there.get(node.name), node, index)
                if name in written and not np.array_equal(array, written[name]):
                    raise refuse(
                        "load_weights", f"the nodes that share '{name}' must agree", f"another at '{node.name}'"
                    )
                written[name] = array
    for name, array in written.items():
        _put(parameters[name], array, fresh.weights[name], name)
    for layer in fresh.layers():
        counterpart = there.get(layer.name)
        bias = graph.weights.get(counterpart.inputs[2]) if counterpart and len(counterpart.inputs) > 2 else None
        # The exporter writes zeros where there is none.
        if layer.bias not in parameters and bias is not None and bias.any():
            _give_bias(module, layer.weight, bias)


def _held(graph: Graph, counterpart: Node | None, node: Node, index: int) -> Array:
    """What a graph holds for the constant input `index` of a node."""
    if counterpart is None:
        return _neutral(graph, node, index)
    name = counterpart.inputs[index] if index < len(counterpart.inputs) else ""
    if counterpart.op_type != node.op_type or name not in graph.weights:
        rule = f"graph must hold a constant input {index} of {node.op_type} '{node.name}'"
        raise refuse("load_weights", rule, f"{counterpart.op_type} of '{name}'")
    held: Array = graph.weights[name]
    return held


def _neutral(graph: Graph, node: Node, index: int) -> Array:
    """What makes a node, which was folded into its neighbours, do nothing."""
    values: dict[str, dict[int, float]] = {
        "Mul": {0: 1.0, 1: 1.0},
        "Div": {1: 1.0},
        "Add": {0: 0.0, 1: 0.0},
        "Sub": {1: 0.0},
        "BatchNormalization": {1: 1.0, 2: 0.0, 3: 0.0, 4: 1.0 - float(node.attrs.get("epsilon", 1e-5))},
    }
    if index not in values.get(node.op_type, {}):
        rule = f"graph '{graph.name}' must have the node '{node.name}' of the module"
        raise refuse("load_weights", rule, f"no {node.op_type} of this name")
    return np.full((), values[node.op_type][index], np.float32)


def _put(tensor: Tensor, array: Array, exported: Array, name: str) -> None:
    """Writes into a parameter; the graph holds it as it is, or turned."""
    as_it_is = np.array_equal(exported.reshape(-1), tensor.detach().numpy().reshape(-1))
    if array.ndim and array.shape != exported.shape:
        raise refuse("load_weights", f"'{name}' of the graph must have shape {exported.shape}", array.shape)
    values = array if as_it_is or array.ndim != 2 else array.T
    with torch.no_grad():
        tensor.copy_(
            torch.from_numpy(np.array(values)).reshape(tensor.shape) if array.ndim else torch.tensor(float(array))
        )


def _give_bias(module: nn.Module, weight: str, bias: Array) -> None:
    owner = module.get_submodule(weight.rpartition(".")[0]) if weight.endswith(".weight") else None
    if owner is None or getattr(owner, "bias", True) is not None:
        raise refuse("load_weights", f"the layer of '{weight}' must be able to have a bias", "a bias in the graph only")
    owner.bias = nn.Parameter(torch.from_numpy(np.array(bias)))


def _prove(module: nn.Module, graph: Graph, inputs: Any) -> None:
    args, keywords = arguments(inputs)
    with evaluating(module):
        outputs = tensors(module(*args, **keywords))
    feed = {value.name: x.detach().numpy() for value, x in zip(graph.inputs, tensors(inputs), strict=True)}
    with Session(graph) as session:
        wanted = session.run(feed)
    for (name, want), have in zip(wanted.items(), outputs, strict=True):
        difference = float(np.abs(have.detach().numpy().reshape(want.shape) - want).max())
        spread = float(want.std()) or 1.0
        if not difference <= CLOSE * spread:
            rule = f"the module must be able to hold what the graph holds: '{name}' within {CLOSE * spread:.3g}"
            raise refuse("load_weights", rule, f"a difference of {difference:.3g}")
