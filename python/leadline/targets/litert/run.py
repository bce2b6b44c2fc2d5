"""Running a ``.tflite`` network in LiteRT's interpreter, inner tensors included."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from typing import Any, Literal

import numpy as np
from numpy.typing import NDArray

from leadline.affine import choose_grid
from leadline.graph import Value
from leadline.observers import MinMax
from leadline.targets.litert.read import Tflite, read
from leadline.types import Grid, Scheme, refuse

Kernels = Literal["xnnpack", "plain", "reference"]
"""XNNPACK where it has kernels; LiteRT's own optimised kernels; its reference kernels."""

_RESOLVERS = {"xnnpack": "BUILTIN", "plain": "BUILTIN_WITHOUT_DEFAULT_DELEGATES", "reference": "BUILTIN_REF"}


class Interpreter:
    """A network in LiteRT's interpreter on the CPU.

    Parameters
    ----------
    content : bytes
        Of a ``.tflite`` file.
    kernels : {"xnnpack", "plain", "reference"}
    threads : int, optional
        Default: LiteRT's own choice.
    inner : bool
        Keep every activation readable after a run (not with "xnnpack": a delegate hides what it fuses).

    Attributes
    ----------
    model : Tflite
    inputs, outputs : dict of name to Value
        As the file's first signature names them, or else its tensors. An axis left free counts 1.

    Raises
    ------
    InputError
        LiteRT refuses the file, or an input has a free shape that is not its first axis.
    """

    def __init__(
        self, content: bytes, kernels: Kernels = "xnnpack", threads: int | None = None, inner: bool = False
    ) -> None:
        self.model: Tflite = read(content)
        from ai_edge_litert import interpreter as litert

        resolver = getattr(litert.OpResolverType, _RESOLVERS[kernels])
        try:
            self._interpreter: Any = litert.Interpreter(
                model_content=content,
                num_threads=threads,
                experimental_op_resolver_type=resolver,
                experimental_preserve_all_tensors=inner,
            )
            self._interpreter.allocate_tensors()
        except (ValueError, RuntimeError) as error:
            received = str(error).strip().splitlines()[0]
            raise refuse("Interpreter", "LiteRT must be able to run the network", received) from error
        main = self.model.main
        signature = next((s for s in self.model.signatures if s.subgraph == 0), None)
        named = [
            dict(table) if signature else {main.tensors[index].name: index for index in indices}
            for table, indices in (
                (signature.inputs if signature else {}, main.inputs),
                (signature.outputs if signature else {}, main.outputs),
            )
        ]
        self._inputs, self._outputs = named
        self.inputs = {name: self._value(name, index) for name, index in self._inputs.items()}
        self.outputs = {name: self._value(name, index) for name, index in self._outputs.items()}

    def _value(self, name: str, index: int) -> Value:
        tensor = self.model.main.tensors[index]
        if any(n < 1 for n in tensor.shape[1:]):
            raise refuse("Interpreter", f"tensor '{name}' must have a fixed shape", tensor.shape)
        return Value(name, np.dtype(tensor.dtype), tuple(max(n, 1) for n in tensor.shape))

    def run(self, feed: Mapping[str, NDArray[Any]]) -> dict[str, NDArray[Any]]:
        """One forward pass: a dict of input name to array to a dict of output name to array, as they are stored.

        Raises InputError where an input is missing or unknown, or has another dtype or shape.
        """
        if set(feed) != set(self._inputs):
            raise refuse("Interpreter.run", f"feed must hold exactly the inputs {sorted(self._inputs)}", sorted(feed))
        for name, index in self._inputs.items():
            value, array = self.inputs[name], feed[name]
            if array.dtype != value.dtype or array.shape != value.shape:
                rule = f"input '{name}' must be {value.dtype} of shape {value.shape}"
                raise refuse("Interpreter.run", rule, f"{array.dtype} of shape {array.shape}")
            self._interpreter.set_tensor(index, array)
        self._interpreter.invoke()
        return self.tensors(self._outputs)

    def run_real(self, feed: Mapping[str, NDArray[Any]]) -> dict[str, NDArray[Any]]:
        """The same in real values: integer inputs are quantised, integer outputs dequantised, by the file's grids."""
        inputs = {}
        for name, array in feed.items():
            tensor = self.model.main.tensors[self._inputs[name]] if name in self._inputs else None
            inputs[name] = array
            if tensor is not None and tensor.scale is not None and array.dtype == np.float32:
                assert tensor.zero_point is not None
                codes = np.rint(array / tensor.scale) + tensor.zero_point
                bounds = np.iinfo(tensor.dtype)
                inputs[name] = np.clip(codes, bounds.min, bounds.max).astype(tensor.dtype)
        outputs = self.run(inputs)
        for name, array in outputs.items():
            tensor = self.model.main.tensors[self._outputs[name]]
            if tensor.scale is not None and tensor.zero_point is not None:
                outputs[name] = ((array - tensor.zero_point) * tensor.scale).astype(np.float32)
        return outputs

    @property
    def output_indices(self) -> list[int]:
        """Tensor indices of the outputs, in their order."""
        return list(self._outputs.values())

    def tensors(self, wanted: Mapping[str, int]) -> dict[str, NDArray[Any]]:
        """Copies of tensors by name, given their indices: of the last run."""
        return {name: np.array(self._interpreter.get_tensor(index)) for name, index in wanted.items()}

    @property
    def partitions(self) -> int:
        """Parts of the network that a delegate has taken over; each border costs a hand-over."""
        inner = self._interpreter._interpreter
        return sum(inner.NodeName(node) == "DELEGATE" for node in range(inner.NumNodes()))

    def observe(self, indices: Iterable[int]) -> dict[int, NDArray[Any]]:
        """Copies of tensors by index: of the last run."""
        return {index: np.array(self._interpreter.get_tensor(index)) for index in indices}


def observe(
    content: bytes, names: Sequence[str], feeds: Iterable[Sequence[NDArray[Any]]], threads: int | None = None
) -> dict[str, Grid]:
    """Grids of activations from the extremes that LiteRT's float kernels show.

    Parameters
    ----------
    content : bytes
        A float ``.tflite``.
    names : sequence of str
        Its activations to observe.
    feeds : iterable of lists of arrays
        The samples, inputs in the network's order.
    """
    runner = Interpreter(content, "plain", threads, inner=True)
    wanted = set(names)
    indices = {tensor.index: tensor.name for tensor in runner.model.main.tensors if tensor.name in wanted}
    seen = {index: MinMax(name=name) for index, name in indices.items()}
    for feed in feeds:
        runner.run(dict(zip(runner.inputs, feed, strict=True)))
        for index, array in runner.observe(indices).items():
            seen[index].update(array)
    return {indices[index]: choose_grid(extremes.lo, extremes.hi, Scheme()) for index, extremes in seen.items()}
