"""Running a network in onnxruntime, with any of its tensors as outputs."""

from __future__ import annotations

import atexit
import ctypes
import os
import shutil
import sys
import tempfile
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field, replace
from functools import cache
from pathlib import Path
from types import TracebackType
from typing import TYPE_CHECKING, Any, Self

import numpy as np

from leadline.graph.ir import Array, Graph
from leadline.graph.spool import LARGE, rest
from leadline.types import refuse

if TYPE_CHECKING:
    import onnx

_FOLDER = "session.model_external_initializers_file_folder_path"
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
    integers : bool
        False keeps what is quantised as it is written, a pair of operators and a layer in float, and fuses the rest:
        the values of an artefact without optimisations, but for float noise, in a third to all of the time.
    threads : int, optional
        Threads inside an operator. Default: onnxruntime's own choice.
    folder : path, optional
        Of a model in memory: where its external data are. Default: it has none.

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
        integers: bool = True,
        folder: str | os.PathLike[str] | None = None,
    ) -> None:
        content = _content(model, outputs, optimize, folder)
        self._values: dict[str, Any] = {}
        self._arrays = list(content.arrays.values())
        try:
            try:
                self._parts = [self._started(content, part, optimize, threads, integers) for part in content.parts]
            except Exception:
                if not (optimize and content.borrowed):
                    raise
                content = replace(content, borrowed=frozenset())  # an optimisation reads one after all
                self._parts = [self._started(content, part, optimize, threads, integers) for part in content.parts]
        except Exception as error:  # onnxruntime raises a dozen unrelated classes
            label = f"'{model}': " if isinstance(model, (str, os.PathLike)) else ""
            raise refuse("Session", "model must load in onnxruntime", f"{label}{error}") from error
        self.inputs = [(i.name, _dtype(i.type), tuple(i.shape)) for i in self._parts[0].get_inputs()]
        self.outputs = list(outputs) if outputs is not None else [o.name for o in self._parts[-1].get_outputs()]
        self._asked = frozenset(self.outputs)

    def _started(
        self, content: _Content, part: onnx.ModelProto, optimize: bool, threads: int | None, integers: bool
    ) -> Any:
        import onnxruntime as ort

        options = ort.SessionOptions()
        options.log_severity_level = 4  # what is raised is not printed as well
        level = ort.GraphOptimizationLevel
        options.graph_optimization_level = level.ORT_ENABLE_ALL if optimize else level.ORT_DISABLE_ALL
        if threads is not None:
            options.intra_op_num_threads = threads
            options.inter_op_num_threads = 1
        # Waiting threads would spin on while numpy and the cores work: a quarter of a run's processor time.
        options.add_session_config_entry("session.intra_op.allow_spinning", "0")
        options.add_session_config_entry(_FOLDER, content.folder)
        if not integers:
            options.add_session_config_entry("session.disable_quant_qdq", "1")
        if content.bytes > LARGE:  # no second copy, laid out for its kernels: large networks run as fast without
            options.add_session_config_entry("session.disable_prepacking", "1")
        if len(content.parts) > 1:
            options.enable_cpu_mem_arena = False  # each would keep what it once needed
        # The values borrow the memory of the arrays; the session keeps these alive.
        values = {
            tensor.name: ort.OrtValue.ortvalue_from_numpy(content.arrays[tensor.name])
            for tensor in part.graph.initializer
            if tensor.name in content.arrays
        }
        self._values.update(values)
        for name in content.borrowed & values.keys():
            options.add_initializer(name, values.pop(name))
        if values:
            options.add_external_initializers(list(values), list(values.values()))
        return ort.InferenceSession(part.SerializeToString(), options, providers=["CPUExecutionProvider"])

    def run(self, feed: Mapping[str, Array]) -> dict[str, Array]:
        """One forward pass; see `pieces`."""
        arrays: dict[str, Array] = {}
        for piece in self.pieces(feed):
            arrays |= piece
        return {name: arrays[name] for name in self.outputs}

    def pieces(self, feed: Mapping[str, Array]) -> Iterator[dict[str, Array]]:
        """One forward pass, whose outputs come as they are computed: whoever lets go of them holds a few at a time.

        Parameters
        ----------
        feed : dict of input name to array
            Exactly the network's inputs, with its dtypes and shapes.

        Yields
        ------
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
        alive = dict(feed)
        for place, part in enumerate(self._parts):
            names = self.outputs if len(self._parts) == 1 else [output.name for output in part.get_outputs()]
            inputs = {value.name: alive[value.name] for value in part.get_inputs()}
            try:
                arrays = dict(zip(names, part.run(names, inputs), strict=True))
            except Exception as error:  # onnxruntime raises a dozen unrelated classes
                raise refuse("Session.run", "the model must run on its inputs", str(error).splitlines()[0]) from error
            del inputs
            later = {value.name for other in self._parts[place + 1 :] for value in other.get_inputs()}
            alive = {name: array for name, array in (alive | arrays).items() if name in later}
            yield {name: array for name, array in arrays.items() if name in self._asked}
            del arrays

    def close(self) -> None:
        """Give the memory back; the session cannot run any more."""
        del self._parts
        self._values.clear()
        for array in self._arrays:
            rest(array)
        self._arrays.clear()
        give_back()

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


@dataclass(frozen=True)
class _Content:
    """What InferenceSession takes.

    `parts` are the pieces of the network, `arrays` weights handed over beside them: those `borrowed` are read where
    they are, of the others onnxruntime makes a copy, which its optimisations may change. `folder` holds external data.
    `bytes` of all weights.
    """

    parts: list[onnx.ModelProto]
    folder: str
    arrays: dict[str, Array] = field(default_factory=dict)
    borrowed: frozenset[str] = frozenset()
    bytes: int = 0


def _content(
    model: Graph | onnx.ModelProto | str | os.PathLike[str],
    outputs: Sequence[str] | None,
    optimize: bool,
    folder: str | os.PathLike[str] | None,
) -> _Content:
    import onnx

    from leadline.graph.read import parse
    from leadline.graph.write import INLINE_BYTES, layout, to_model

    if isinstance(model, (str, os.PathLike)):
        return _content(parse(model, "Session"), outputs, optimize, Path(model).resolve().parent)
    if folder is not None and not isinstance(model, Graph):
        proto = onnx.ModelProto()
        proto.CopyFrom(model)
        _expose(proto, outputs)
        return _Content(_parts(proto, outputs, optimize), str(folder), bytes=_size(proto))
    if isinstance(model, Graph):
        proto = to_model(model.front(), INLINE_BYTES)
        apart = {name: array for name, array, offset in layout(model, INLINE_BYTES) if offset is not None}
    else:
        proto, apart = _without_weights(model)
    _expose(proto, outputs)
    stored = {tensor.name for tensor in proto.graph.initializer}
    arrays = {name: np.ascontiguousarray(array) for name, array in apart.items() if name in stored}
    borrowed = arrays.keys() if not optimize else _products(proto) & arrays.keys()
    total = sum(array.nbytes for array in arrays.values())
    return _Content(_parts(proto, outputs, optimize), _nowhere(), arrays, frozenset(borrowed), total)


def _size(model: onnx.ModelProto) -> int:
    """Bytes of weights, wherever they are."""
    apart = (item.value for t in model.graph.initializer for item in t.external_data if item.key == "length")
    return int(model.ByteSize()) + sum(map(int, apart))


def _parts(model: onnx.ModelProto, outputs: Sequence[str] | None, optimize: bool) -> list[onnx.ModelProto]:
    from leadline.graph.pieces import pieces

    return [model] if outputs is None else pieces(model, outputs, anywhere=not optimize)


def _products(model: onnx.ModelProto) -> set[str]:
    """Weights of linear layers that no optimisation changes: all but those in front of a BatchNormalization, since
    onnxruntime joins the two."""
    normalised = {name for node in model.graph.node if node.op_type == "BatchNormalization" for name in node.input[:1]}
    products = [node for node in model.graph.node if node.op_type in ("Gemm", "MatMul")]
    plain = {node.input[1] for node in products if not normalised.intersection(node.output)}
    others = [n.input[:1] if n.op_type in ("Gemm", "MatMul") else n.input for n in model.graph.node]
    return plain.difference(*others)


@cache
def _nowhere() -> str:
    """A folder with an empty file "weights": onnxruntime wants one to be where the model says that borrowed weights
    are, and fails, instead of reading something else, where it reads it."""
    folder = tempfile.mkdtemp(prefix="leadline-session-")
    atexit.register(shutil.rmtree, folder, ignore_errors=True)
    Path(folder, "weights").touch()
    return folder


def give_back() -> None:
    """Ask the allocator to return what is free: glibc's keeps what large networks leave."""
    trim = getattr(ctypes.CDLL(None), "malloc_trim", None) if sys.platform == "linux" else None
    if trim is not None:
        trim(0)


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
