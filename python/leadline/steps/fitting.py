"""A run fitted to its target: widths that operators take, requantisations where two widths meet, scales and biases that
suit the arithmetic."""

from __future__ import annotations

import warnings
from collections.abc import Mapping
from dataclasses import replace
from itertools import chain
from typing import Any

import numpy as np
from numpy.typing import NDArray

from leadline.graph import Graph, Layer, Node, Session
from leadline.graph.edit import add_constant, add_value
from leadline.graph.operators import CLAMPS, ELEMENTWISE, moves_data, variant
from leadline.graph.relative import relative, sensitive
from leadline.graph.spelling import spell
from leadline.graph.spellings import SPELLINGS
from leadline.graph.tables import tables
from leadline.recipe import Recipe
from leadline.rules import Rules, lost
from leadline.steps.placement import Placement
from leadline.steps.state import Record, State
from leadline.types import Grid, Scheme, few

_SAME = frozenset("Conv ConvTranspose Gemm Gelu Concat Max Min Where".split()) | ELEMENTWISE
"""Operators that do not narrow what they read. Others give 8 bits of a 16-bit input themselves."""

FINEST = 2**16 - 1
"""Steps of the finest grid."""

SCARCE = 0.02
"""Share of values that may be lost: those around a zero that a tensor passes through are fewer."""

_KEEPS_WIDTH = frozenset("Div Reciprocal Pow Elu HardSigmoid LpNormalization".split())
"""Operators that cannot narrow: where they read 16 bits they write 16, and their readers narrow."""


def adapt(state: State) -> None:
    """Before any step: spell what the target has no operators for, and warn of what it will not take."""
    lines = respell(state.graph, state.recipe, state.setup.rules)
    state.log += [Record.of("adapt", f"{line}, for {state.setup.rules.name}") for line in lines]
    for line in [*refusals(state.graph, state.setup.rules), *spans(state)]:
        warnings.warn(line, stacklevel=4)


def respell(graph: Graph, recipe: Recipe, rules: Rules) -> list[str]:
    """Spell in place what a target lacks or gets wrong; one line for each node."""
    wide = max((scheme.bits for scheme in recipe.schemes("activations").values() if scheme), default=0) > 8
    lines = spell(graph, rules.spelled, SPELLINGS)
    if rules.spelled_wide and (wide or relative(graph)):
        lines += spell(graph, rules.spelled_wide, SPELLINGS)
    return lines


def refusals(graph: Graph, rules: Rules) -> list[str]:
    """What a target does not take, or only with loss: one line for each kind of operator."""
    nodes_of: dict[str, list[str]] = {}
    for node in graph.nodes:
        nodes_of.setdefault(variant(graph, node), []).append(node.name)
    return [
        f"{rules.name} does not take {kind} ({few(names)}) without loss: {rules.refused[kind]}"
        for kind, names in nodes_of.items()
        if kind in rules.refused
    ]


def spans(state: State) -> list[str]:
    """Where integers are all that a target has: what is divided by, or read by a logarithm, and lies so far apart that
    small values are lost between the steps of a grid, as far as one sample tells; one line for each such node."""
    if not state.setup.rules.integers_only or state.recipe.activations is None:
        return []
    watched = sensitive(state.graph)
    if not watched:
        return []
    feed = next(iter(state.setup.calibration))
    names = [name for name in dict.fromkeys(chain(*watched.values())) if name not in feed]
    seen = dict(feed)
    if names:
        with Session(state.graph, outputs=names, threads=state.setup.threads) as session:
            seen |= session.run(feed)
    lines = []
    for node, tensors in watched.items():
        lost, tensor = max((_lost(seen[name]), name) for name in tensors)
        if lost > SCARCE:
            rule = f"{state.setup.rules.name} gives something else for {node}, which cannot take zero"
            why = f"{lost:.0%} of what '{tensor}' holds is less than one step of its grid, 1/{FINEST} of the largest"
            lines.append(f"{rule}: {why}; bring these values nearer to each other, or keep it behind the network")
    return lines


def _lost(values: NDArray[Any]) -> float:
    """Share of what is not zero on the finest grid without being so."""
    sizes = np.abs(values[np.isfinite(values)])
    lost = (sizes > 0) & (sizes < sizes.max(initial=0) / FINEST)
    return float(lost.mean()) if sizes.size else 0.0


def fit(graph: Graph, placement: Placement, rules: Rules) -> Placement:
    """The placement as a target takes it. Where an input needs other bits than its tensor has, an Identity goes before
    the reader, in place; its two sides are one requantisation on the device, and `export.qdq` writes it as that."""
    layers, notes = [], list(placement.notes)
    for layer, scheme in placement.layers:
        if _is_too_narrow(graph, layer, scheme, rules):
            scheme = replace(scheme, bits=rules.single_scale_bits)
            notes.append(f"{layer.name}: {scheme.bits}-bit weights, since {rules.name} takes no narrower single scale")
        layers.append((layer, scheme))
    constants = dict(placement.constants)
    if rules.integers_only:
        for table in tables(graph):
            if constants.pop(table.weight, None) is not None:
                notes.append(f"{table.weight}: float, as {table.op_type} {table.name} is on {rules.name}")
    placement = replace(placement, layers=layers, constants=constants, notes=notes)
    if rules.one_type:
        _keep_width(graph, placement)
        _requantise(graph, placement, rules)
    if rules.resize_keeps_grid:
        _share_resizes(graph, placement)
    current = {layer.name: layer for layer in graph.layers()}
    return replace(placement, layers=[(current[layer.name], scheme) for layer, scheme in layers])


def _is_too_narrow(graph: Graph, layer: Layer, scheme: Scheme, rules: Rules) -> bool:
    if layer.kind == "linear" or scheme.bits >= rules.single_scale_bits:
        return False
    return scheme.granularity == "tensor" or graph.weights[layer.weight].shape[layer.axis] == 1


def _share_resizes(graph: Graph, placement: Placement) -> None:
    schemes, root = placement.schemes, placement.root
    for node in graph.nodes:
        source, target = node.inputs[0] if node.inputs else "", node.outputs[0]
        if node.op_type != "Resize" or node.attrs.get("mode") == "cubic" or not {source, target} <= schemes.keys():
            continue
        if schemes[source] == schemes[target] and schemes[source].granularity == "tensor":
            moved = [tensor for tensor, other in root.items() if other == root[target]]
            root.update(dict.fromkeys(moved, root[source]))


def _keep_width(graph: Graph, placement: Placement) -> None:
    schemes, root = placement.schemes, placement.root
    for node in graph.nodes:
        divisor = 1 if node.op_type == "Div" else 0  # which may round to zero in 8 bits
        read, written = schemes.get(node.inputs[divisor] if node.inputs else ""), node.outputs[0]
        if node.op_type in _KEEPS_WIDTH and read and written in schemes and read.bits > 8 >= schemes[written].bits:
            moved = [tensor for tensor, other in root.items() if other == root[written]]
            schemes.update({tensor: replace(schemes[tensor], bits=16) for tensor in moved})
            placement.notes.append(f"{written}: 16 bits, as {node.name} cannot narrow what it reads")


def _requantise(graph: Graph, placement: Placement, rules: Rules) -> None:
    schemes, made = placement.schemes, dict[tuple[str, int], str]()
    nodes: list[Node] = []
    for node in graph.nodes:
        written = _written(graph, schemes, node)
        if written is not None and not moves_data(node):
            for position, name in enumerate(node.inputs):
                if name in placement.constants and rules.constants.get(node.op_type):
                    continue  # of a width that does not depend on the output's
                if name in placement.constants and _width(placement.constants[name]) != _width(written):
                    node.inputs[position] = _own_constant(graph, placement, name, written)
                elif name in schemes and schemes[name].granularity == "tensor":
                    want = _wanted(node, position, _width(schemes[name]), _width(written), rules)
                    if want != _width(schemes[name]):
                        if (name, want) not in made:
                            made[name, want] = _insert(graph, placement, name, want, nodes)
                            placement.notes.append(f"{name}: requantised to {want} bits for {node.name}")
                        node.inputs[position] = made[name, want]
        nodes.append(node)
    graph.nodes = nodes


def _width(scheme: Scheme) -> int:
    """Bits that activations of a scheme travel in."""
    return 8 if scheme.bits <= 8 else 16


def _written(graph: Graph, schemes: Mapping[str, Scheme], node: Node) -> Scheme | None:
    """The widest scheme among a node's outputs, or of the clamp in its output's place; None where it is float."""
    written = [schemes[name] for name in node.outputs if name in schemes]
    if written:
        return max(written, key=lambda scheme: scheme.bits)
    tensor = _clamped(graph, node.outputs[0], schemes)
    return None if tensor is None else schemes[tensor]


def _clamped(graph: Graph, tensor: str, known: Mapping[str, object]) -> str | None:
    """The tensor itself, or what clamps alone make of it, whichever is known."""
    while tensor not in known:
        readers = graph.consumers(tensor)
        if len(readers) != 1 or readers[0].op_type not in CLAMPS:
            return None
        tensor = readers[0].outputs[0]
    return tensor


def _wanted(node: Node, position: int, have: int, output: int, rules: Rules) -> int:
    """Bits that a node's input must have, where its tensor has `have` and the node's output `output`."""
    bits = output if have < output or node.op_type in _SAME else have
    second = node.op_type == "MatMul" and position == 1
    return min(bits, rules.second_operand_bits) if second else bits


def _own_constant(graph: Graph, placement: Placement, name: str, scheme: Scheme) -> str:
    """The name of a constant with as many bits as a scheme: a copy where others read it."""
    copied = name
    if len(graph.consumers(name)) > 1:
        copied = add_constant(graph, f"{name}.as{_width(scheme)}", graph.weights[name])
    placement.constants[copied] = replace(placement.constants[name], bits=_width(scheme))
    return copied


def _insert(graph: Graph, placement: Placement, name: str, bits: int, nodes: list[Node]) -> str:
    converted = add_value(graph, f"{name}.as{bits}", graph.shape(name), graph.values[name].dtype)
    nodes.append(Node("Identity", [name], [converted], converted))
    placement.schemes[converted] = replace(placement.schemes[name], bits=bits)
    placement.root[converted] = converted
    return converted


def output_grid(state: State, tensor: str) -> Grid | None:
    """The grid, per tensor, that a layer's output is rounded to: its own, or that of the clamp that takes its place."""
    known = _clamped(state.graph, tensor, state.grids)
    return None if known is None else _whole(state.grids[known])


def _whole(grid: Grid | None) -> Grid | None:
    """A grid with one scale."""
    return grid if grid is not None and grid.scheme.granularity == "tensor" else None


def suit_multipliers(state: State) -> None:
    """Enlarge scales, by less than a thousandth, until input scale x weight scale / output scale is a factor that the
    target holds exactly: scales of weights, and those of the outputs of products of two activations."""
    bits, placement = state.setup.rules.multiplier_bits, state.placement
    if bits is None or placement is None:
        return
    grids = state.grids
    for node in state.graph.nodes:
        sources = [_whole(grids.get(name)) for name in node.inputs[:2] if name in state.graph.values]
        written = _whole(grids.get(node.outputs[0]))
        factors = [grid for grid in sources if grid is not None]
        if node.op_type == "MatMul" and len(factors) == 2 and written is not None:
            product = float(factors[0].scale) * float(factors[1].scale)
            scale = product / _rounded(product / written.scale, bits, np.floor)
            root = placement.root[node.outputs[0]]
            for tensor in (name for name, other in placement.root.items() if other == root):
                grids[tensor] = replace(grids[tensor], scale=scale.astype(np.float32))
    for layer, _ in placement.layers:
        read, written, weight = _whole(grids.get(layer.input)), output_grid(state, layer.output), grids[layer.weight]
        if read is not None and written is not None and weight.scheme.granularity != "block":
            step = float(read.scale) / float(written.scale)
            scale = _rounded(weight.scale * step, bits, np.ceil) / step
            grids[layer.weight] = replace(weight, scale=scale.astype(np.float32))


def _rounded(values: NDArray[np.floating[Any]], bits: int, how: np.ufunc) -> NDArray[np.float64]:
    """To so many fractional bits of the mantissa, up or down, unless they are that already (but for float32)."""
    mantissa, exponent = np.frexp(np.asarray(values, np.float64))
    whole = mantissa * 2.0 ** (bits + 1)
    kept: NDArray[np.float64] = np.where(np.abs(np.rint(whole) - whole) < 1e-3, np.rint(whole), how(whole))
    return np.ldexp(kept / 2.0 ** (bits + 1), exponent)


def recentre(state: State) -> None:
    """Give the biases what the target's sums lose on average by rounding down: half a unit, and half a unit more over
    16-bit inputs, where the bias itself is rounded down on its own. Logged, but not gated: the simulation rounds to
    nearest, so that it cannot tell."""
    rules, moved = state.setup.rules, 0
    for layer in state.graph.layers():
        read, written = _whole(state.grids.get(layer.input)), output_grid(state, layer.output)
        if layer.bias is None or layer.bias not in state.codes or read is None or written is None:
            continue
        grid = state.grids[layer.bias]
        unit = lost(rules, read.scheme.bits, grid.scale.astype(np.float64) / float(written.scale))
        mean = np.where(unit > 1, unit if read.scheme.bits > 8 else unit / 2, 0).astype(np.int64)
        if mean.any():
            codes = state.codes[layer.bias] + mean
            state.codes[layer.bias] = np.clip(codes, grid.scheme.qmin, grid.scheme.qmax).astype(np.int32)
            moved += 1
    if moved:
        note = f"{moved} biases take back what {rules.name}'s sums lose on average by rounding down"
        state.log.append(Record("recentre", state.graph.name, note))
