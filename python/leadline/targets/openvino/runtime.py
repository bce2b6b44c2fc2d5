"""An ONNX model in OpenVINO's CPU plug-in, and the kernels that it runs."""

from __future__ import annotations

import time
from collections.abc import Iterable, Iterator, Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
from numpy.typing import NDArray

from leadline.types import refuse

if TYPE_CHECKING:
    import onnx

_PRODUCTS = ("Convolution", "Deconvolution", "FullyConnected", "MatMul")
"""What the plug-in calls operators that sum products."""


class Runtime:
    """One model, compiled for this machine's CPU.

    Parameters
    ----------
    model : onnx.ModelProto or path
    execution : {"performance", "accuracy"}
        OpenVINO's hint; see `targets.openvino.target.OpenVINO`.
    threads : int, optional

    Attributes
    ----------
    reason : str
        Why OpenVINO does not take the model; empty where it does.
    milliseconds : float
        The least time of a run.

    Raises
    ------
    InputError : OpenVINO is not installed.
    """

    def __init__(
        self, model: onnx.ModelProto | Path, execution: str = "performance", threads: int | None = None
    ) -> None:
        core = _openvino().Core()
        hints: dict[str, Any] = {"EXECUTION_MODE_HINT": execution.upper()}
        if threads is not None:
            hints["INFERENCE_NUM_THREADS"] = threads
        self.reason, self.milliseconds = "", np.inf
        self._kernels: list[tuple[list[str], bool, str]] = []
        try:
            read = core.read_model(str(model) if isinstance(model, Path) else model.SerializeToString())
            self._compiled = core.compile_model(read, "CPU", hints)
        except RuntimeError as error:
            self.reason = _sentence(str(error))
            return
        for node in self._compiled.get_runtime_model().get_ordered_ops():
            facts = {key: str(getattr(value, "value", value)) for key, value in node.get_rt_info().items()}
            names = facts.get("originalLayersNames", "").replace("/WithoutBiases", "").split(",")
            self._kernels.append((names, facts.get("layerType", "") in _PRODUCTS, facts.get("primitiveType", "")))

    def kernel(self, name: str) -> str:
        """The kernel that an operator of the model runs in, alone or fused with others; empty where none names it."""
        return next((kernel for names, _, kernel in self._kernels if name in names), "")

    def products(self, known: Mapping[str, str]) -> Iterator[tuple[str, str]]:
        """Each layer and product with its kernel, by the name that `known` gives to one of the operators in it; where
        there is none, by the last of them."""
        for names, is_product, kernel in self._kernels:
            if is_product:
                yield next((known[name] for name in names if name in known), names[-1]), kernel

    def run(self, feed: Mapping[str, NDArray[Any]]) -> list[NDArray[Any]]:
        """The outputs, in the order of the model. Raises InputError where OpenVINO fails."""
        inputs = {port: np.ascontiguousarray(feed[name]) for port, name in self._inputs(feed)}
        start = time.perf_counter()
        try:
            outputs = self._compiled(inputs)
        except RuntimeError as error:
            raise refuse("OpenVINO", "a model that was compiled must run", _sentence(str(error))) from None
        self.milliseconds = min(self.milliseconds, 1e3 * (time.perf_counter() - start))
        return [np.array(outputs[port]) for port in self._compiled.outputs]

    def _inputs(self, feed: Mapping[str, NDArray[Any]]) -> Iterable[tuple[Any, str]]:
        for port in self._compiled.inputs:
            yield port, next(name for name in feed if name in port.get_names())


def in_integers(kernel: str) -> bool:
    """Whether a kernel, as OpenVINO calls it (brgconv_avx512_amx_I8, jit_gemm_i8, ...), multiplies 8-bit integers.

    What the plug-in calls the precision of a layer is that of its weights in memory, whatever it computes in.
    """
    return kernel.lower().endswith("i8")


def check_installed(function: str) -> None:
    """Raises InputError without OpenVINO."""
    _openvino(function)


def _openvino(function: str = "OpenVINO") -> Any:
    try:
        import openvino
    except ImportError:
        raise refuse(function, "this needs OpenVINO: pip install 'leadline[openvino]'", "none") from None
    return openvino


def _sentence(text: str) -> str:
    """What an error of OpenVINO says, without the places in its source that it went through."""
    lines = [line.strip() for line in text.splitlines()]
    told = [line for line in lines if line and not line.startswith(("Exception from", "Check '", "While "))]
    return (told or lines)[0] if told or lines else "no reason"
