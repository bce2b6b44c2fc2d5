"""A torch module as a Graph: captured by torch.export, written by torch's ONNX exporter, read by leadline."""

from __future__ import annotations

import contextlib
import io
import logging
import re
import tempfile
import warnings
from collections.abc import Iterator, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import nn
from torch.utils import _pytree as pytree

from leadline.graph import Graph
from leadline.graph.ir import OPSET
from leadline.graph.load import normalise
from leadline.graph.origin import origins
from leadline.graph.read import Source, parse, read
from leadline.torch.observation import arguments, evaluating
from leadline.torch.origin import of_error, of_node
from leadline.types import InputError, refuse


def to_graph(
    module: nn.Module,
    inputs: Any,
    *,
    input_names: Sequence[str] | None = None,
    output_names: Sequence[str] | None = None,
) -> Graph:
    """A torch module as a Graph in normal form, its shapes fixed to those of `inputs`.

    Parameters
    ----------
    module : nn.Module
        float32, on the CPU. It is captured in eval mode and left as it was.
    inputs : tensor, tuple or list of arguments, or dict of keywords
        What `module` is called with.
    input_names, output_names : sequence of str, optional
        Default: the names of the parameters of ``forward``; the keys of an output that is a dict (or a ModelOutput),
        otherwise "output", or "output_0", "output_1" and so on.

    Returns
    -------
    Graph
        A constant that is a parameter or buffer of the module has its qualified name (``blocks.0.attn.qkv.weight``), of
        a tensor with several names the first. The weight of an ``nn.Linear`` has torch's layout (out, in), however the
        exporter turns it; so has a parameter p of ``x @ p``, which is therefore held transposed. What is computed from
        parameters alone (a resized position table, p * q) is one constant, named after the place of the computation. A
        parameter that changes nothing (a bias of zeros, a scale of ones, one that no output needs) is not there.

    Raises
    ------
    InputError
        torch.export cannot capture the module, torch has no ONNX spelling for an operator (both with the qualified name
        of the module at fault and the line of its source), or leadline cannot read the network.
    ModuleNotFoundError : onnxscript is not installed.
    """
    program = capture(module, inputs, "to_graph")
    _check_names(program, input_names, output_names)
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder) / f"{type(module).__name__}.onnx"
        write(program, path, "to_graph", input_names, output_names)
        try:
            graph = Graph.of(normalise(_first_names(module, read(path)), None))
        except InputError as error:
            raise _with_origins(error, path) from error
    _claim(module, graph)
    return graph


def capture(module: nn.Module, inputs: Any, function: str) -> torch.export.ExportedProgram:
    """What torch.export makes of a module in eval mode. Raises InputError under the name of `function`."""
    if not isinstance(module, nn.Module):
        raise refuse(function, "module must be an nn.Module", f"a {type(module).__name__}")
    for name, tensor in (*module.named_parameters(), *module.named_buffers()):
        if tensor.device.type != "cpu" or (tensor.is_floating_point() and tensor.dtype != torch.float32):
            rule = f"module must be float32 on the CPU: module.float().cpu() ('{name}' is not)"
            raise refuse(function, rule, f"{tensor.dtype} on {tensor.device}")
    args, keywords = arguments(inputs)
    try:
        with evaluating(module), quiet():
            return torch.export.export(module, args, keywords, strict=False)
    except Exception as error:  # torch raises a dozen unrelated classes, and the module whatever it likes
        origin = of_error(module, error)
        rule = "torch.export must capture the module" + (f"; it fails at {origin}" if origin else "")
        raise refuse(function, rule, f"{type(error).__name__}: {_first_line(error)}") from error


def load_program(path: Path) -> torch.export.ExportedProgram:
    """A ``.pt2`` file of torch.export.save. Raises InputError for any other."""
    if not path.is_file():
        raise refuse("audit", "path must be a .pt2 file of torch.export.save", f"'{path}', which does not exist")
    try:
        with quiet():
            return torch.export.load(path)
    except Exception as error:  # whatever zipfile, json and torch find wrong
        received = f"'{path}': {_first_line(error)}"
        raise refuse("audit", "path must be a .pt2 file of torch.export.save", received) from error


def write(
    program: torch.export.ExportedProgram,
    path: Path,
    function: str,
    input_names: Sequence[str] | None = None,
    output_names: Sequence[str] | None = None,
) -> None:
    """An exported program as an ONNX file, unoptimised. Raises as `to_graph` does, under the name of `function`."""
    try:
        import onnxscript  # noqa: F401
    except ImportError as error:
        message = f"{function} needs onnxscript: pip install 'leadline[torch]'"
        raise ModuleNotFoundError(message, name="onnxscript") from error
    names = {"input_names": input_names, "output_names": output_names or _output_names(program)}
    try:
        with quiet():
            # Unoptimised: torch's own passes fold BatchNormalization into weights and make equal constants one.
            onnx = torch.onnx.export(program, dynamo=True, optimize=False, verbose=False, opset_version=OPSET, **names)
            onnx.save(str(path), external_data=True)
    except torch.onnx.errors.OnnxExporterError as error:
        rule = "torch must have an ONNX spelling for each operator of the module"
        blamed = re.search(r"node %(\w+)", str(error))
        if blamed:
            with quiet():
                nodes = program.run_decompositions().graph.nodes
            origin = next((of_node(node) for node in nodes if node.name == blamed[1]), None)
            rule += f"; it has none at {origin}" if origin else ""
        cause: BaseException = error
        while cause.__cause__ is not None:
            cause = cause.__cause__
        raise refuse(function, rule, _first_line(cause)) from error


def _first_names(module: nn.Module, source: Source) -> Source:
    """A tensor of several names under the one that torch lists first."""
    first: dict[int, str] = {}
    named = [*module.named_parameters(remove_duplicate=False), *module.named_buffers(remove_duplicate=False)]
    names = {name: first.setdefault(id(tensor), name) for name, tensor in named}
    for node in source.nodes:
        node.inputs = [names.get(name, name) for name in node.inputs]
    return replace(source, weights={names.get(name, name): array for name, array in source.weights.items()})


def _claim(module: nn.Module, graph: Graph) -> None:
    """A constant that the exporter computed, but whose values are a parameter's, gets the parameter's name."""
    tensors = dict(module.named_parameters()) | dict(module.named_buffers())
    others = {name: array for name, array in graph.weights.items() if name not in tensors and array.dtype == np.float32}
    names: dict[str, str] = {}
    taken = {*graph.weights, *graph.values, *(graph.tail.names if graph.tail is not None else ())}
    for parameter, tensor in tensors.items():
        if parameter not in taken and tensor.numel() > 1:
            array = tensor.detach().numpy()
            same = [n for n, a in others.items() if a.shape == array.shape and np.array_equal(a, array)]
            if len(same) == 1 and same[0] not in names:
                names[same[0]] = parameter
    graph.weights = {names.get(name, name): array for name, array in graph.weights.items()}
    for node in graph.nodes:
        node.inputs = [names.get(name, name) for name in node.inputs]


def _with_origins(error: InputError, path: Path) -> InputError:
    """The error with the places in the user's code that the tensors it names come from."""
    noted = origins(parse(path))

    def placed(named: re.Match[str]) -> str:
        origin = noted.get(named[1])
        return f"{named[0]}, at {origin}" if origin else named[0]

    return InputError(re.sub(r"writing '(.+?)'", placed, str(error)))


def _output_names(program: torch.export.ExportedProgram) -> list[str]:
    spec = program.call_spec.out_spec
    paths = [path for path, _ in pytree.tree_flatten_with_path(pytree.tree_unflatten(range(spec.num_leaves), spec))[0]]
    if all(path and hasattr(path[0], "key") for path in paths):
        return ["_".join(str(getattr(key, "key", getattr(key, "idx", key))) for key in path) for path in paths]
    return ["output"] if len(paths) == 1 else [f"output_{index}" for index in range(len(paths))]


def _check_names(program: torch.export.ExportedProgram, inputs: Any, outputs: Any) -> None:
    signature = program.graph_signature
    for argument, names, there in (
        ("input_names", inputs, signature.user_inputs),
        ("output_names", outputs, signature.user_outputs),
    ):
        if names is not None and (isinstance(names, str) or len(names) != len(there) or len({*names}) != len(names)):
            raise refuse("to_graph", f"{argument} must be {len(there)} different names", repr(names))


def _first_line(error: BaseException) -> str:
    """The first line of a message that says something."""
    return next((line.strip().rstrip(".") for line in str(error).splitlines() if line.strip()), "no message")


@contextlib.contextmanager
def quiet() -> Iterator[None]:
    """Neither deprecations inside torch nor the dumps of its exporter are the user's business."""
    before = logging.root.manager.disable
    logging.disable(logging.ERROR)
    try:
        with warnings.catch_warnings(), contextlib.redirect_stderr(io.StringIO()):
            warnings.simplefilter("ignore")
            yield
    finally:
        logging.disable(before)
