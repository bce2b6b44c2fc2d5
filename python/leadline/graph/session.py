"""Running a network in onnxruntime, with any of its tensors as outputs."""

from __future__ import annotations

import os
from collections.abc import Mapping, Sequence
from pathlib import Path
from types import TracebackType
from typing import TYPE_CHECKING, Any, Self

import numpy as np

from leadline.graph.ir import Array, Graph
from leadline.types import refuse

if TYPE_CHECKING:
    import onnx

_DTYPES = {"float": "float32", "double": "float64"}


class Session:
    """One network loaded in onnxruntime on the CPU. Weights are handed over as they are: no serialised copy.

    Parameters
    ----------
    model : Graph, path or onnx.ModelProto
        Anything onnxruntime runs: a path or a model may be quantised already or have free shapes. Of a Graph with a
        tail, the part in front.
    outputs : sequence of str, optional
        Tensors to return, inner activations included. Default: the network's own outputs.
    optimize : bool
        False turns off every graph optimisation: each operator runs as it is written, unfused.
    threads : int, optional
        Threads inside an operator. Default: onnxruntime's own choice.

    Raises
    ------
    InputError
        onnxruntime refuses the model, or an output is not a tensor of it.
    """

    def __init__(
        self,
        model: Graph | onnx.ModelProto | str | os.PathLike[str],
        outputs: Sequence[str] | None = None,
        optimize: bool = True,
        threads: int | None = None,
    ) -> None:
        import onnxruntime as ort

        options = ort.SessionOptions()
        options.log_severity_level = 3
        level = ort.GraphOptimizationLevel
        options.graph_optimization_level = level.ORT_ENABLE_ALL if optimize else level.ORT_DISABLE_ALL
        if threads is not None:
            options.intra_op_num_threads = threads
            options.inter_op_num_threads = 1
        content, shared = _content(model, outputs)
        if isinstance(model, (str, os.PathLike)):
            folder = str(Path(model).resolve().parent)
            options.add_session_config_entry("session.model_external_initializers_file_folder_path", folder)
        # Kept alive by the session: the values borrow the memory of the arrays.
        self._values = [ort.OrtValue.ortvalue_from_numpy(array) for array in shared.values()]
        if shared:
            options.add_external_initializers(list(shared), self._values)
        try:
            self._session = ort.InferenceSession(content, options, providers=["CPUExecutionProvider"])
        except Exception as error:  # onnxruntime raises a dozen unrelated classes
            label = f"'{model}': " if isinstance(model, (str, os.PathLike)) else ""
            raise refuse("Session", "model must load in onnxruntime", f"{label}{error}") from error
        self.inputs = [(i.name, _dtype(i.type), tuple(i.shape)) for i in self._session.get_inputs()]
        self.outputs = list(outputs) if outputs is not None else [o.name for o in self._session.get_outputs()]

    def run(self, feed: Mapping[str, Array]) -> dict[str, Array]:
        """One forward pass.

        Parameters
        ----------
        feed : dict of input name to array
            Exactly the network's inputs, with its dtypes and shapes.

        Returns
        -------
        dict of output name to array

        Raises
        ------
        InputError
            An input is missing, unknown, or has the wrong dtype or shape; or onnxruntime cannot run the model on it.
        """
        names = [name for name, _, _ in self.inputs]
        if set(feed) != set(names):
            raise refuse("Session.run", f"feed must hold exactly the inputs {names}", f"{list(feed)}")
        # What is computed from a number in an array is no array any more.
        feed = {name: np.asarray(value) if isinstance(value, np.generic) else value for name, value in feed.items()}
        for name, dtype, dims in self.inputs:
            array = feed[name]
            if not isinstance(array, np.ndarray) or array.dtype != dtype:
                received = getattr(array, "dtype", type(array).__name__)
                raise refuse("Session.run", f"input '{name}' must be an array of {dtype}", received)
            fits = not dims or len(dims) == array.ndim  # onnxruntime reports a shape left open as ()
            fits &= all(
                not isinstance(want, int) or want == have for want, have in zip(dims, array.shape, strict=False)
            )
            if not fits:
                raise refuse("Session.run", f"input '{name}' must have shape {_text(dims)}", _text(array.shape))
        try:
            arrays = self._session.run(self.outputs, dict(feed))
        except Exception as error:  # onnxruntime raises a dozen unrelated classes
            raise refuse("Session.run", "the model must run on its inputs", str(error).splitlines()[0]) from error
        return dict(zip(self.outputs, arrays, strict=True))

    def close(self) -> None:
        """Give the memory back; the session cannot run any more."""
        del self._session
        self._values.clear()

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.close()


def _text(dims: Sequence[Any]) -> str:
    return "x".join(str(d) if d is not None else "?" for d in dims) or "()"


def _dtype(name: str) -> np.dtype[Any]:
    """'tensor(float)' as a numpy dtype."""
    inner = name.removeprefix("tensor(").removesuffix(")")
    try:
        return np.dtype(_DTYPES.get(inner, inner))
    except TypeError:
        raise refuse("Session", "inputs must be tensors of a numpy type", name) from None


def _content(
    model: Graph | onnx.ModelProto | str | os.PathLike[str], outputs: Sequence[str] | None
) -> tuple[bytes | str, dict[str, Array]]:
    """What InferenceSession takes, and the weights to hand over beside it."""
    from leadline.graph.read import parse
    from leadline.graph.write import INLINE_BYTES, to_model

    shared: dict[str, Array] = {}
    if isinstance(model, Graph):
        proto = to_model(model.front(), INLINE_BYTES)
        shared = {
            name: np.ascontiguousarray(array) for name, array in model.weights.items() if array.nbytes > INLINE_BYTES
        }
    elif isinstance(model, (str, os.PathLike)):
        if outputs is None:
            return str(model), shared
        proto = parse(model, "Session")
    else:
        proto, shared = _without_weights(model)
    _expose(proto, outputs)
    stored = {tensor.name for tensor in proto.graph.initializer}
    return proto.SerializeToString(), {name: array for name, array in shared.items() if name in stored}


def _expose(proto: onnx.ModelProto, outputs: Sequence[str] | None) -> None:
    """Make exactly `outputs` the outputs of the model."""
    import onnx

    from leadline.graph.tail import keep_needed

    if outputs is None:
        return
    existing = {value.name: value for value in proto.graph.output}
    written = {name for node in proto.graph.node for name in node.output}
    kept = []
    for name in outputs:
        if name not in written and name not in existing:
            raise refuse("Session", "outputs must be tensors that a node of the network writes", repr(name))
        kept.append(existing.get(name, onnx.ValueInfoProto(name=name)))
    del proto.graph.output[:]
    proto.graph.output.extend(kept)
    keep_needed(proto.graph)


def _without_weights(model: onnx.ModelProto) -> tuple[onnx.ModelProto, dict[str, Array]]:
    """A copy of the model whose large weights are placeholders: a model above 2 GB cannot be serialised whole."""
    import onnx
    from onnx import numpy_helper

    from leadline.graph.write import INLINE_BYTES, placeholder

    shared: dict[str, Array] = {}
    light = onnx.ModelProto(ir_version=model.ir_version, functions=model.functions, opset_import=model.opset_import)
    for name in ("node", "input", "output", "value_info", "quantization_annotation"):
        getattr(light.graph, name).extend(getattr(model.graph, name))
    light.graph.name = model.graph.name or "network"
    light.graph.sparse_initializer.extend(model.graph.sparse_initializer)
    for tensor in model.graph.initializer:
        if tensor.data_location == onnx.TensorProto.EXTERNAL:
            raise refuse("Session", "a model in memory must hold its weights; pass the path instead", repr(tensor.name))
        # onnxruntime takes borrowed memory for numpy's own types only
        if tensor.ByteSize() > INLINE_BYTES and tensor.data_type in _BORROWED:
            shared[tensor.name] = numpy_helper.to_array(tensor)
            light.graph.initializer.append(placeholder(tensor.name, shared[tensor.name], "weights"))
        else:
            light.graph.initializer.append(tensor)
    return light, shared


_BORROWED = {1, 2, 3, 4, 5, 6, 7, 11}  # FLOAT, UINT8, INT8, UINT16, INT16, INT32, INT64, DOUBLE
