"""A run fitted to its target: widths that operators take, requantisations where two widths meet, scales and biases that
suit the arithmetic."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

import numpy as np
from numpy.typing import NDArray

from leadline.graph import Graph, Layer, Node, Value
from leadline.graph.movement import MOVES_DATA
from leadline.profiles import Profile, lost
from leadline.steps.placement import ABSORBED, ELEMENTWISE, Placement
from leadline.steps.state import State
from leadline.types import Grid, Scheme

_SAME = frozenset("Conv ConvTranspose Gemm Gelu Concat Max Min".split()) | ELEMENTWISE
"""Operators that do not narrow what they read. Others give 8 bits of a 16-bit input themselves."""


def fit(graph: Graph, placement: Placement, profile: Profile) -> Placement:
    """The placement as a target takes it. Where an input needs other bits than its tensor has, an Identity goes before
    the reader, in place; its two sides are one requantisation on the device, and `export.qdq` writes it as that."""
    layers, notes = [], list(placement.notes)
    for layer, scheme in placement.layers:
        if _is_too_narrow(graph, layer, scheme, profile):
            scheme = replace(scheme, bits=profile.single_scale_bits)
            notes.append(
                f"{layer.name}: {scheme.bits}-bit weights, since {profile.name} takes no narrower single scale"
            )
        layers.append((layer, scheme))
    placement = replace(placement, layers=layers, notes=notes)
    if profile.resize_keeps_grid:
        _share_resizes(graph, placement)
    if not profile.one_type:
        return placement
    _requantise(graph, placement, profile)
    current = {layer.name: layer for layer in graph.layers()}
    return replace(placement, layers=[(current[layer.name], scheme) for layer, scheme in layers])


def _is_too_narrow(graph: Graph, layer: Layer, scheme: Scheme, profile: Profile) -> bool:
    if layer.kind == "linear" or scheme.bits >= profile.single_scale_bits:
        return False
    return scheme.granularity == "tensor" or graph.weights[layer.weight].shape[layer.axis] == 1


def _share_resizes(graph: Graph, placement: Placement) -> None:
    schemes, root = placement.schemes, placement.root
    for node in graph.nodes:
        source, target = node.inputs[0] if node.inputs else "", node.outputs[0]
        if node.op_type != "Resize" or node.attrs.get("mode") == "cubic" or not {source, target} <= schemes.keys():
            continue
        if schemes[source] == schemes[target] and schemes[source].granularity == "tensor":
            moved = [tensor for tensor, own in root.items() if own == root[target]]
            root.update(dict.fromkeys(moved, root[source]))


def _requantise(graph: Graph, placement: Placement, profile: Profile) -> None:
    schemes, made = placement.schemes, dict[tuple[str, int], str]()
    nodes: list[Node] = []
    for node in graph.nodes:
        bits = max((schemes[name].bits for name in node.outputs if name in schemes), default=0)
        if bits and node.op_type not in MOVES_DATA:
            for position, name in enumerate(node.inputs):
                if name in placement.constants:
                    placement.constants[name] = replace(placement.constants[name], bits=bits)
                elif name in schemes and schemes[name].granularity == "tensor":
                    want = _wanted(node, position, schemes[name].bits, bits, profile)
                    if want != schemes[name].bits:
                        if (name, want) not in made:
                            made[name, want] = _insert(graph, placement, name, want, nodes)
                            placement.notes.append(f"{name}: requantised to {want} bits for {node.name}")
                        node.inputs[position] = made[name, want]
        nodes.append(node)
    graph.nodes = nodes


def _wanted(node: Node, position: int, have: int, output: int, profile: Profile) -> int:
    """Bits that a node's input must have, where its tensor has `have` and the node's output `output`."""
    bits = output if have < output or node.op_type in _SAME else have
    second = node.op_type == "MatMul" and position == 1
    return min(bits, profile.second_operand_bits) if second else bits


def _insert(graph: Graph, placement: Placement, name: str, bits: int, nodes: list[Node]) -> str:
    converted = f"{name}.as{bits}"
    while converted in graph.values or converted in graph.weights:
        converted += "_"
    nodes.append(Node("Identity", [name], [converted], converted))
    graph.values[converted] = Value(converted, graph.values[name].dtype, graph.shape(name))
    placement.schemes[converted] = replace(placement.schemes[name], bits=bits)
    placement.root[converted] = converted
    return converted


def output_grid(state: State, tensor: str) -> Grid | None:
    """The grid, per tensor, that a layer's output is rounded to: its own, or that of the clamp that takes its place."""
    while tensor not in state.grids:
        readers = state.graph.consumers(tensor)
        if len(readers) != 1 or readers[0].op_type not in ABSORBED:
            return None
        tensor = readers[0].outputs[0]
    grid = state.grids[tensor]
    return grid if grid.scheme.granularity == "tensor" else None


def suit_multipliers(state: State) -> None:
    """Enlarge scales, by less than a thousandth, until input scale x weight scale / output scale is a factor that the
    target holds exactly: scales of weights, and those of the outputs of products of two activations."""
    bits, placement = state.profile.multiplier_bits, state.placement
    if bits is None or placement is None:
        return
    grids = state.grids
    for node in state.graph.nodes:
        factors = [grids[name] for name in node.inputs[:2] if name in grids and name in state.graph.values]
        if node.op_type == "MatMul" and len(factors) == 2 and node.outputs[0] in grids:
            product = float(factors[0].scale) * float(factors[1].scale)
            scale = product / _rounded(product / grids[node.outputs[0]].scale, bits, np.floor)
            root = placement.root[node.outputs[0]]
            for tensor in (name for name, other in placement.root.items() if other == root):
                grids[tensor] = replace(grids[tensor], scale=scale.astype(np.float32))
    for layer, _ in placement.layers:
        given, written, weight = grids.get(layer.input), output_grid(state, layer.output), grids[layer.weight]
        if given is not None and written is not None and weight.scheme.granularity != "block":
            step = float(given.scale) / float(written.scale)
            grids[layer.weight] = replace(
                weight, scale=(_rounded(weight.scale * step, bits, np.ceil) / step).astype(np.float32)
            )


def _rounded(values: NDArray[np.floating[Any]], bits: int, how: np.ufunc) -> NDArray[np.float64]:
    """To so many fractional bits of the mantissa, up or down, unless they are that already (but for float32)."""
    mantissa, exponent = np.frexp(np.asarray(values, np.float64))
    whole = mantissa * 2.0 ** (bits + 1)
    found: NDArray[np.float64] = np.where(np.abs(np.rint(whole) - whole) < 1e-3, np.rint(whole), how(whole))
    return np.ldexp(found / 2.0 ** (bits + 1), exponent)


def recentre(state: State) -> None:
    """Give the biases half of what the target's sums lose by rounding down."""
    if state.placement is None:
        return
    for layer, _ in state.placement.layers:
        given, written = state.grids.get(layer.input), output_grid(state, layer.output)
        if layer.bias not in state.codes or given is None or written is None:
            continue
        own = state.grids[layer.bias].scale
        unit = lost(state.profile, given.scheme.bits, own.astype(np.float64) / float(written.scale))
        state.codes[layer.bias] = state.codes[layer.bias] + np.where(unit > 1, unit / 2, 0).astype(np.int32)
