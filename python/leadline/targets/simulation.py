"""An ONNX artefact with QuantizeLinear and DequantizeLinear, run as it is written: what to expect of its targets."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from contextlib import ExitStack
from pathlib import Path
from typing import TYPE_CHECKING, Any, Self

from numpy.typing import NDArray

from leadline.affine import dequantize
from leadline.export import qdq
from leadline.export.qdq_read import open_model
from leadline.export.unrounded import unrounded
from leadline.graph import Graph, Session
from leadline.graph.operators import channel_axes, moves_data
from leadline.graph.picks import picks
from leadline.scores import BROKEN, channel_sums, tensor_score
from leadline.sqnr import Sqnr
from leadline.targets.target import Arrays, Device
from leadline.types import refuse

if TYPE_CHECKING:
    import onnx

REWRITTEN = 3.0
"""dB: a weight whose error is half its power is none that was rounded, to two bits and more."""


class Simulated(Device):
    """The simulation is the artefact itself, or what a target's arithmetic makes of it, without graph optimisation.

    Parameters
    ----------
    model : onnx.ModelProto or path
    graph : Graph
        The float network, of the same inputs and outputs.
    threads : int, optional
    expected : onnx.ModelProto, optional
        The artefact with a target's arithmetic written out. Default: as it is.
    """

    def __init__(
        self,
        model: onnx.ModelProto | str | Path,
        graph: Graph,
        threads: int | None = None,
        expected: onnx.ModelProto | None = None,
    ) -> None:
        _check_ends(graph, model)
        self.model, self.graph, self.threads = model, graph, threads
        self.written = qdq.read(model)
        self.grids = self.written.grids
        self.outputs = [value.name for value in graph.outputs]
        places = {pick.places for pick in picks(graph).values()} & self.written.tensors
        self.inner = tuple(dict.fromkeys([*_compared(graph, self.written), *sorted(places)]))
        self.inner = tuple(name for name in self.inner if name not in self.outputs)
        self._expected = expected
        self._stack = ExitStack()

    def __enter__(self) -> Self:
        with ExitStack() as stack:
            self._names = {name: name for name in self.outputs} | {name: self._held(name) for name in self.inner}
            simulated = self._expected if self._expected is not None else self.model
            self._simulation = stack.enter_context(
                Session(simulated, list(self._names.values()), optimize=False, threads=self.threads)
            )
            self._start(stack)
            self._stack = stack.pop_all()
        return self

    def _start(self, stack: ExitStack) -> None:
        """Open what else a target runs."""

    def __exit__(self, *_: object) -> None:
        self._stack.close()

    def _held(self, name: str) -> str:
        return self.written.dequantised.get(name, name)

    def simulate(self, feed: Mapping[str, NDArray[Any]]) -> Arrays:
        whole = {name: array for piece in self.pieces(feed) for name, array in piece.items()}
        return {name: whole[name] for name in (*self.outputs, *self.inner)}

    def pieces(self, feed: Mapping[str, NDArray[Any]]) -> Iterator[Arrays]:
        for piece in self._simulation.pieces(feed):
            yield {name: piece[held] for name, held in self._names.items() if held in piece}

    def moved(self, graph: Graph, feed: Mapping[str, NDArray[Any]], suspects: Sequence[str]) -> list[str]:
        if not suspects or not _is_rewritten(graph, self.written):
            return []
        with Session(graph, [*self.outputs, *suspects], threads=self.threads) as exact:
            wanted = exact.run(feed)
        model, names = unrounded(whole(self.model)), [*self.outputs, *map(self._held, suspects)]
        with Session(model, names, optimize=False) as session:
            got = dict(zip([*self.outputs, *suspects], session.run(feed).values(), strict=True))
        if any(Sqnr().update(wanted[name], got[name]).db < BROKEN for name in self.outputs):
            return []
        axes = channel_axes(graph)
        sums = {name: channel_sums(wanted[name], got[name], axes[name]) for name in suspects}
        return [name for name in suspects if tensor_score(name, "", sums[name]).broken]


def whole(model: onnx.ModelProto | str | Path) -> onnx.ModelProto:
    """With its external data."""
    proto, folder = open_model(model, "verify")
    if folder:
        from leadline.graph.read import load_weights

        load_weights(proto, folder)
    return proto


def _check_ends(graph: Graph, model: onnx.ModelProto | str | Path) -> None:
    proto = open_model(model, "verify")[0]
    stored = {tensor.name for tensor in proto.graph.initializer}  # old files list weights among the inputs
    inputs = {value.name for value in proto.graph.input} - stored
    outputs = {value.name for value in graph.outputs}
    if graph.tail is not None:
        outputs = {name for name, _ in graph.tail.outputs}
    pairs = ((inputs, {value.name for value in graph.inputs}), ({v.name for v in proto.graph.output}, outputs))
    for kind, (has, names) in zip(("inputs", "outputs"), pairs, strict=True):
        if has != names:
            raise refuse("verify", f"the artefact must have the {kind} {sorted(names)}", str(sorted(has)))


def _compared(graph: Graph, written: qdq.Qdq) -> list[str]:
    """Layer outputs and quantised tensors: what the worst-first table ranks. Moved data counts once, at its source.

    A layer output that only a clamp reads is not in the artefact: quantisation clamps there.
    """
    layers = {layer.output for layer in graph.layers()}
    return [
        name
        for node in graph.nodes
        for name in node.outputs
        if not moves_data(node) and ((name in layers and name in written.tensors) or name in written.grids)
    ]


def _is_rewritten(graph: Graph, written: qdq.Qdq) -> bool:
    """Whether weights are no roundings of the float network's: rotated or scaled, so that tensors may be, too.

    Both change the layers on either side of a tensor; a single one may have been compensated."""
    known = [name for name in {layer.weight for layer in graph.layers()} if name in written.codes]
    strangers = 0
    for name in known:
        weight, codes = graph.weights[name], written.codes[name]
        if codes.shape == weight.shape:
            strangers += Sqnr().update(weight, dequantize(codes, written.grids[name])).db < REWRITTEN
    return strangers >= max(2, len(known) / 10)
