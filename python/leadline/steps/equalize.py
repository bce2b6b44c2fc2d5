"""Equalize: cross-layer equalisation of chains, and absorption of high biases, kept only where simulation gains."""

from __future__ import annotations

from dataclasses import dataclass, replace

import numpy as np
from numpy.typing import NDArray

from leadline.data import Samples
from leadline.equalization import balance, predicted_noise
from leadline.graph import Graph, Layer, Node, Session
from leadline.graph.edit import add_value, insert, is_shared, new_name, own_biases, set_constant
from leadline.graph.operators import CURVED, HOMOGENEOUS, WINDOWS, by_channel, layer_axis
from leadline.recipe import Equalize
from leadline.steps.gate import LUCK, SAMPLES
from leadline.steps.state import Record, State
from leadline.steps.trial import FLOAT, can_try, trial_error
from leadline.types import Scheme

ALPHAS = (0.25, 0.5, 0.75, 1.0)

SEEN = 8
"""Calibration samples whose channels are looked at, at most."""


@dataclass(frozen=True)
class Chain:
    """`first` -> `through` -> each of `nexts`, all of which read `tensor` and nothing else does."""

    first: Layer
    through: tuple[Node, ...]
    tensor: str
    nexts: tuple[Layer, ...]

    @property
    def name(self) -> str:
        return f"{self.first.name} > {', '.join(layer.name for layer in self.nexts)}"


@dataclass
class ChannelStats:
    """Of one activation, per channel over the samples: extremes, mean and mean square."""

    lo: NDArray[np.float64]
    hi: NDArray[np.float64]
    mean: NDArray[np.float64]
    square: NDArray[np.float64]

    @property
    def std(self) -> NDArray[np.float64]:
        return np.sqrt(np.maximum(self.square - self.mean**2, 0))


def run(step: Equalize, state: State) -> None:
    """Scale chains until they settle, then absorb biases; each is kept only if the simulated held-out error falls."""
    own_biases(state.graph)
    chains, refused = find_chains(state.graph)
    state.log += [Record("equalize", name, note, kept=False) for name, note in refused]
    if not chains or not can_try(state):
        reason = "no chain of layers to equalise" if not chains else FLOAT
        state.log.append(Record("equalize", state.graph.name, reason, kept=False))
        return
    stats = _observe(state, state.graph, state.setup.calibration.take(SEEN), chains)
    best: Graph = state.graph
    kept_records: list[Record] = []
    for limit in _limits(step.max_scale):
        scaled = state.graph.copy()
        records = _scale(step, scaled, chains, stats, _bits(state), limit)
        if not any((record.before or 0.0) > LUCK * (record.after or 0.0) for record in records):
            note = f"{len(chains)} chains, scales up to {limit:g}, gain too little to be tried"
            state.log.append(Record("equalize", state.graph.name, note, kept=False))
            continue
        with state.setup.progress(f"equalize x{limit:g}"):
            best_error, error = trial_error(state, best), trial_error(state, scaled)
        # The first scaling has to prove itself; from then on the better limit wins.
        kept = error < (best_error / LUCK if best is state.graph else best_error)
        note = f"{len(chains)} chains, scales up to {limit:g}, simulated output error"
        state.log.append(Record("equalize", state.graph.name, note, best_error, error, kept))
        if kept:
            best, kept_records = scaled, records
        elif best is state.graph and error < LUCK * best_error:
            break  # these chains hardly matter
    state.log += kept_records
    if step.absorb_bias:
        absorbed = best.copy()
        done = _absorb(absorbed, state, [c for c in chains if _absorbs(c)], stats if best is state.graph else None)
        if done:
            with state.setup.progress("absorb bias"):
                best_error, error = trial_error(state, best), trial_error(state, absorbed)
            kept = error < best_error
            names = ", ".join(chain.name for chain, _ in done)
            state.log.append(Record("equalize", names, "high bias absorbed", best_error, error, kept))
            if kept:
                best = absorbed
                state.shifted |= {name: c for chain, c in done for name in (chain.first.output, chain.tensor)}
    state.graph = best


def _limits(most: float) -> list[float]:
    """Three steps up to `most`: how far scales may go is decided by simulation. A channel that lay quiet on the
    calibration samples can wake up on others, and the more it was stretched the more it is clipped then."""
    return [most / 4**k for k in range(2, -1, -1) if most / 4**k >= 2]


def find_chains(graph: Graph) -> tuple[list[Chain], list[tuple[str, str]]]:
    """The chains that can be equalised exactly, and the layers that cannot, with the reason."""
    layers = {id(layer.node): layer for layer in graph.layers()}
    readers = graph.readers()
    outputs = {value.name for value in graph.outputs}
    chains, refused = [], []
    for first in layers.values():
        if is_shared(graph, first.weight) or (first.kind in ("transpose", "linear") and first.groups > 1):
            continue
        if first.bias is None and len(first.node.inputs) > 2:
            continue
        tensor, through = first.output, []
        while tensor not in outputs and len(readers.get(tensor, ())) == 1:
            node = readers[tensor][0]
            if not _commutes(graph, node, tensor, layer_axis(first)):
                break
            through.append(node)
            tensor = node.outputs[0]
        # SiLU reads its input twice, as x and as Sigmoid(x).
        blocking = [node.op_type for node in readers.get(tensor, ()) if node.op_type in CURVED]
        if blocking:
            refused.append((first.name, f"{blocking[0]} behind it does not commute with scaling"))
        nexts = [layers.get(id(node)) for node in readers.get(tensor, ())]
        if tensor in outputs or not nexts or not all(_takes(graph, first, layer, tensor) for layer in nexts):
            continue
        chains.append(Chain(first, tuple(through), tensor, tuple(layer for layer in nexts if layer is not None)))
    return chains, refused


def _commutes(graph: Graph, node: Node, tensor: str, axis: int) -> bool:
    """Whether what a node makes of scaled channels, which lie along the axis, is scaled alike."""
    if not node.outputs[0] or (node.op_type in WINDOWS and axis != 1):
        return False
    if node.op_type == "Reshape":
        source, target = graph.shape(tensor), graph.shape(node.outputs[0])
        return axis == -1 and 2 in (len(source), len(target)) and source[-1:] == target[-1:]
    if node.op_type == "Resize":
        return node.attrs.get("mode", "nearest") in ("nearest", "linear")
    if node.op_type == "Clip":
        low, high = (float(graph.weights[n]) if n in graph.weights else None for n in (*node.inputs[1:3], "", "")[:2])
        return low == 0 and high is not None
    if node.op_type == "Min":
        bound = graph.weights.get(node.inputs[1]) if len(node.inputs) == 2 else None
        return bound is not None and bound.ndim <= len(graph.shape(tensor)) == len(graph.shape(node.outputs[0]))
    return node.op_type in HOMOGENEOUS


def _takes(graph: Graph, first: Layer, layer: Layer | None, tensor: str) -> bool:
    if layer is None or layer.input != tensor or is_shared(graph, layer.weight):
        return False
    if layer_axis(layer) != layer_axis(first):
        return False
    return layer.groups == 1 or (layer.kind == "depthwise" and graph.weights[layer.weight].shape[0] == layer.groups)


def _observe(state: State, graph: Graph, samples: Samples, chains: list[Chain]) -> dict[str, ChannelStats]:
    """Per-channel statistics of the tensors between the layers, and before their activation functions."""
    names = sorted({chain.tensor for chain in chains} | {chain.first.output for chain in chains})
    stats: dict[str, ChannelStats] = {}
    axes = {name: layer_axis(chain.first) for chain in chains for name in (chain.tensor, chain.first.output)}
    with Session(graph, outputs=names, threads=state.setup.threads) as session:
        for feed in state.setup.progress.over(samples, "channel ranges", len(samples)):
            for name, array in session.run(feed).items():
                rows = by_channel(array, axes[name])
                new = ChannelStats(
                    rows.min(1).astype(np.float64),
                    rows.max(1).astype(np.float64),
                    rows.mean(1, dtype=np.float64),
                    np.square(rows, dtype=np.float64).mean(1),
                )
                old = stats.get(name)
                stats[name] = new if old is None else ChannelStats(
                    np.minimum(old.lo, new.lo), np.maximum(old.hi, new.hi), old.mean + new.mean, old.square + new.square
                )  # fmt: skip
    count = len(samples)
    return {name: replace(s, mean=s.mean / count, square=s.square / count) for name, s in stats.items()}


def _bits(state: State) -> tuple[int, int]:
    weights, activations = state.recipe.weights or Scheme(), state.recipe.activations or Scheme()
    return weights.bits, activations.bits


def _scale(
    step: Equalize,
    graph: Graph,
    chains: list[Chain],
    stats: dict[str, ChannelStats],
    bits: tuple[int, int],
    limit: float,
) -> list[Record]:
    """Sweep over the chains, each time with the scales that minimise the predicted noise behind the chain."""
    nodes = {node.name: node for node in graph.nodes}
    total = {chain.name: np.ones(stats[chain.tensor].lo.size) for chain in chains}
    records: dict[str, Record] = {}
    for _ in range(step.iterations):
        moved = 0.0
        for chain in chains:
            width, square = _width(stats, chain), stats[chain.tensor].square
            s, before, after = _best_scales(graph, chain, width, square, total[chain.name], bits, limit)
            if after < before:
                _apply(graph, nodes, chain, s)
                total[chain.name] *= s
                moved = max(moved, float(np.abs(np.log(s)).max()))
                first = records.get(chain.name)
                before = first.before if first and first.before else before
                records[chain.name] = Record("equalize", chain.name, "predicted noise", before, after)
        if moved < 0.01:
            break
    return list(records.values())


def _width(stats: dict[str, ChannelStats], chain: Chain) -> NDArray[np.float64]:
    """Width of each channel. Behind a ReLU at least mean + 6 std of its input (Nagel et al. 2019, section 4.2.1): the
    largest value seen says little about a channel that is rarely active."""
    after, before = stats[chain.tensor], stats[chain.first.output]
    width = np.maximum(after.hi, 0) - np.minimum(after.lo, 0)
    if [node.op_type for node in chain.through][:1] in (["Relu"], ["Clip"]):
        width = np.maximum(width, np.minimum(before.mean + 6 * before.std, width.max()))
    return width


def _best_scales(
    graph: Graph,
    chain: Chain,
    width: NDArray[np.float64],
    square: NDArray[np.float64],
    total: NDArray[np.float64],
    bits: tuple[int, int],
    limit: float,
) -> tuple[NDArray[np.float64], float, float]:
    """Candidate scales from activation and weight ranges; the best with the noise now and the noise with it.

    `width` and `square` are of the activation before any scaling, `total` is the scaling so far. With one scale per
    output channel the first layer and a depthwise next layer lose nothing, so what is weighed is the shared grid of
    the activation against the next layer's rows.
    """
    width, moment = width / total, square / np.square(total)
    views = [_view(graph, layer) for layer in chain.nexts]
    columns = np.max([_column_range(view, width.size) for view in views], axis=0)
    rows = _row_range(graph, chain.first)

    def noise(s: NDArray[np.float64]) -> float:
        return sum(predicted_noise(s, width, moment, view, bits) for view in views)

    candidates = [balance(width, columns, alpha, limit) for alpha in ALPHAS] + [balance(rows, columns, 0.5, limit)]
    bounded = [np.clip(s * total, 1 / limit, limit) / total for s in candidates]
    best = min(bounded, key=noise)
    return best, noise(np.ones_like(best)), noise(best)


def _view(graph: Graph, layer: Layer) -> NDArray[np.float64]:
    """(outputs, inputs, taps); (channels, 1, taps) of a depthwise layer."""
    weight = graph.weights[layer.weight].astype(np.float64)
    if layer.axis != 0:
        weight = np.moveaxis(weight, layer.axis, 0)
    return weight.reshape(weight.shape[0], weight.shape[1], -1)


def _column_range(view: NDArray[np.float64], channels: int) -> NDArray[np.float64]:
    columns: NDArray[np.float64] = np.abs(view).max(axis=(1, 2) if view.shape[1] == 1 and channels > 1 else (0, 2))
    return columns


def _row_range(graph: Graph, layer: Layer) -> NDArray[np.float64]:
    rows: NDArray[np.float64] = np.abs(_view(graph, layer)).max(axis=(1, 2))
    return rows


def _apply(graph: Graph, nodes: dict[str, Node], chain: Chain, s: NDArray[np.float64]) -> None:
    """Divide the first layer's output channels by s, multiply the next layers' input channels by s. In double."""
    _multiply(graph, chain.first.weight, 1 / s, chain.first.axis)
    if chain.first.bias is not None:
        _multiply(graph, chain.first.bias, 1 / s, 0)
    for layer in chain.nexts:
        axis = 0 if layer.kind in ("depthwise", "transpose") else (1 - layer.axis)
        _multiply(graph, layer.weight, s, axis)
    for old in chain.through:
        node = nodes[old.name]
        if node.op_type == "Clip":
            _clip_to_min(graph, node)
        if node.op_type == "Min":
            rank = len(graph.shape(node.outputs[0]))
            wide = s.reshape(-1, *[1] * (rank - 1 - layer_axis(chain.first) % rank))
            set_constant(graph, node, 1, "bound", graph.weights[node.inputs[1]] / wide)


def _clip_to_min(graph: Graph, clip: Node) -> None:
    """Clip(x, 0, h) = Min(Relu(x), h), whose bound can differ from channel to channel."""
    source, target = clip.inputs[0], clip.outputs[0]
    relu = add_value(graph, f"{target}.relu", graph.shape(target))
    insert(graph, clip, Node("Relu", [source], [relu], new_name(graph, f"{clip.name}.relu")))
    clip.op_type, clip.inputs = "Min", [relu, clip.inputs[2]]


def _multiply(graph: Graph, name: str, factor: NDArray[np.float64], axis: int) -> None:
    weight = graph.weights[name]
    shape = [1] * weight.ndim
    shape[axis] = factor.size
    graph.weights[name] = (weight.astype(np.float64) * factor.reshape(shape)).astype(np.float32)


def _absorbs(chain: Chain) -> bool:
    """Absorption is exact inside the picture only; a padded next layer would see the wrong border."""
    return (
        [node.op_type for node in chain.through] == ["Relu"]
        and chain.first.bias is not None
        and all(layer.bias is not None and not any(layer.node.attrs.get("pads", [0])) for layer in chain.nexts)
        and all(layer.kind in ("conv", "linear") for layer in chain.nexts)
    )


def _lowest(seen: ChannelStats) -> NDArray[np.float64]:
    """What no value falls below."""
    return np.maximum(0.0, np.minimum(seen.lo, seen.mean - 6 * seen.std))


def _absorb(
    graph: Graph, state: State, chains: list[Chain], stats: dict[str, ChannelStats] | None
) -> list[tuple[Chain, NDArray[np.float64]]]:
    """b1 -= c and b2 += W2 c (Nagel et al. 2019, eq. 14-15), exact where the ReLU's input stays above c.

    The paper's c = max(0, mean - 3 std) changes what the network computes on one value in 740 of a normal one. Here c
    is also no higher than anything seen, in the gate's samples either, and 6 std below the mean. `stats`: of the
    graph, where they are known.
    """
    if stats is None and chains:
        stats = _observe(state, graph, state.setup.calibration.take(SEEN), chains)
    chains = [chain for chain in chains if stats is not None and _lowest(stats[chain.first.output]).any()]
    if not chains:
        return []
    every = _observe(state, graph, state.setup.calibration.joined(state.setup.held_out.take(SAMPLES)), chains)
    done = []
    for chain in chains:
        c = _lowest(every[chain.first.output])
        if not c.any() or chain.first.bias is None:
            continue
        graph.weights[chain.first.bias] = (graph.weights[chain.first.bias] - c).astype(np.float32)
        for layer in chain.nexts:
            if layer.bias is not None:
                shift = np.einsum("oik,i->o", _view(graph, layer), c)
                graph.weights[layer.bias] = (graph.weights[layer.bias] + shift).astype(np.float32)
        done.append((chain, c))
    return done
