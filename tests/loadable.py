"""Whether others take an artefact: onnx's full check, and onnxruntime with its optimisations and without."""

from __future__ import annotations

import hashlib
from pathlib import Path

import onnx
import onnxruntime as ort

_SEEN: set[str] = set()
_LEVELS = ort.GraphOptimizationLevel
_WAYS = ((_LEVELS.ORT_DISABLE_ALL, "0"), (_LEVELS.ORT_ENABLE_ALL, "0"), (_LEVELS.ORT_ENABLE_ALL, "1"))
"""Optimisations, and ``session.x64quantprecision``."""


def check(model: onnx.ModelProto | Path) -> None:
    """AssertionError with the first reason why not. What was checked before is not checked again."""
    known = digest(model)
    if known in _SEEN:
        return
    for refusal in refusals(model):
        raise AssertionError(refusal)
    _SEEN.add(known)


def digest(model: onnx.ModelProto | Path) -> str:
    if not isinstance(model, Path):
        return hashlib.sha256(model.SerializeToString(deterministic=True)).hexdigest()
    beside = model.with_name(f"{model.name}.data")
    parts = [file.read_bytes() for file in (model, beside) if file.exists()]
    return hashlib.sha256(b"".join(parts)).hexdigest()


def refusals(model: onnx.ModelProto | Path) -> list[str]:
    """One line for each that does not take the model."""
    found = []
    try:
        onnx.checker.check_model(str(model) if isinstance(model, Path) else model, full_check=True)
    except Exception as error:  # the checker has two unrelated classes
        found.append(f"onnx.checker: {error}")
    ways = _WAYS[:1] if _many_scales(model if isinstance(model, onnx.ModelProto) else onnx.load(model)) else _WAYS
    given = str(model) if isinstance(model, Path) else model.SerializeToString()
    for level, precise in ways:
        options = ort.SessionOptions()
        options.graph_optimization_level, options.log_severity_level = level, 4
        options.intra_op_num_threads = options.inter_op_num_threads = 1
        options.add_session_config_entry("session.x64quantprecision", precise)
        try:
            ort.InferenceSession(given, options, providers=["CPUExecutionProvider"])
        except Exception as error:  # onnxruntime has a class for each status code
            found.append(f"onnxruntime, {level.name}, x64quantprecision {precise}: {error}")
    return found


def _many_scales(model: onnx.ModelProto) -> bool:
    """Whether activations have a scale per channel: a mere simulation (see `leadline.export.limits`), whose operators
    onnxruntime fuses to kernels that then want one scale."""
    sides = {tensor.name: tensor.dims for tensor in model.graph.initializer}
    return any(node.op_type == "QuantizeLinear" and len(sides.get(node.input[1], ())) for node in model.graph.node)
