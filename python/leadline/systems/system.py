"""System: a network with everything that quantising it takes; and the clones, packages and checkpoints behind it."""

from __future__ import annotations

import os
import sys
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field, replace
from importlib.util import find_spec
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from leadline.data import Preprocess
from leadline.graph import Graph
from leadline.types import few, refuse

RANDOM = "the weights are random: figures say what the network costs, not how good it is"
SHOWN = 5
"""Names of a checkpoint's keys that a message lists."""


@dataclass(frozen=True)
class System:
    """A network with everything that quantising it takes.

    Attributes
    ----------
    name : str
    network : torch.nn.Module or Graph
        A module is in eval mode, on the CPU, in float32, and takes the inputs by position.
    inputs : dict of input name to array
        Examples, in the order in which the network takes them; their shapes are the artefact's.
    outputs : tuple of str
        Names, in order.
    preprocess : Preprocess
        From a picture to one input (of one frame, where an input holds several).
    recipe : str
        The one that the system is known by; see ``Recipe.names()``.
    notes : tuple of str
        What the user should know, a sentence each, such as that the weights are random.
    rewrites : Rewrites or None
        What `leadline.torch.rewrite` replaced in the module.
    """

    name: str
    network: Any
    inputs: dict[str, NDArray[Any]] = field(repr=False)
    outputs: tuple[str, ...]
    preprocess: Preprocess
    recipe: str
    notes: tuple[str, ...] = ()
    rewrites: Any = None

    def to_graph(self) -> Graph:
        """The network as a Graph: itself, or exported by `leadline.torch.to_graph`."""
        if isinstance(self.network, Graph):
            return self.network
        import torch

        from leadline.torch import to_graph

        tensors = tuple(torch.from_numpy(np.ascontiguousarray(array)) for array in self.inputs.values())
        graph: Graph = to_graph(self.network, tensors, input_names=list(self.inputs), output_names=list(self.outputs))
        return graph


def need(function: str, packages: Mapping[str, str]) -> None:
    """Refuse, naming all that is missing, unless every module of `packages` (its name to pip's) can be imported."""
    missing = {module: pip for module, pip in packages.items() if find_spec(module) is None}
    if missing:
        line = " ".join(dict.fromkeys(missing.values()))
        raise refuse(function, f"packages must be installed: pip install {line}", f"no {', '.join(missing)}")


@contextmanager
def clone(function: str, folder: str | os.PathLike[str], holds: str, source: str) -> Iterator[Path]:
    """Within it, Python imports the packages of a cloned repository, whatever else is called as they are.

    Parameters
    ----------
    function : str
        Whose message it is.
    folder : path
        The user's clone.
    holds : str
        A file that must be in it, relative.
    source : str
        Where it can be cloned from.

    Raises
    ------
    InputError
        The folder is not there, or is something else; or its code imports a package that is not installed.
    """
    root = Path(folder).expanduser().resolve()
    if not (root / holds).is_file():
        received = f"'{folder}', " + ("without that file" if root.is_dir() else "which is no folder")
        raise refuse(function, f"clone must be a folder that holds {holds}: git clone {source}", received)
    packages = {path.stem for path in root.iterdir() if path.is_dir() or path.suffix == ".py"}
    foreign = {n: m for n, m in sys.modules.items() if n.split(".")[0] in packages and not _inside(m, root)}
    for name in foreign:
        del sys.modules[name]
    sys.path.insert(0, str(root))
    try:
        yield root
    except ModuleNotFoundError as error:
        raise refuse(function, "packages that the clone's code imports must be installed", str(error)) from error
    finally:
        sys.path.remove(str(root))
        sys.modules.update(foreign)


def _inside(module: Any, root: Path) -> bool:
    places = [getattr(module, "__file__", None), *getattr(module, "__path__", [])]
    return any(place is not None and Path(place).resolve().is_relative_to(root) for place in places)


def read_checkpoint(function: str, path: str | os.PathLike[str], inner: Sequence[str] = ()) -> dict[str, Any]:
    """The tensors of a ``.pth``, ``.pt``, ``.bin`` or ``.safetensors`` file by name.

    `inner`: keys under which training scripts put them, such as "model" or "state_dict"; the first one that is there
    is entered. A leading "module." of data-parallel training is cut off. Raises InputError for anything else.
    """
    import pickle

    import torch

    file = Path(path).expanduser()
    if not file.is_file():
        raise refuse(function, "checkpoint must be a file that exists", f"'{path}'")
    try:
        if file.suffix == ".safetensors":
            need(function, {"safetensors": "safetensors"})
            from safetensors.torch import load_file

            content = load_file(file)
        else:
            content = torch.load(file, map_location="cpu", weights_only=True)
    except (RuntimeError, EOFError, pickle.UnpicklingError, ValueError, OSError) as error:
        first = str(error).splitlines()[0][:200] if str(error) else type(error).__name__
        raise refuse(
            function, "checkpoint must hold tensors by name, and nothing else", f"'{path}': {first}"
        ) from error
    for key in inner:
        if isinstance(content, dict) and isinstance(content.get(key), dict):
            content = content[key]
            break
    if not isinstance(content, dict) or not any(isinstance(value, torch.Tensor) for value in content.values()):
        is_table = isinstance(content, dict)
        kind = f"keys {', '.join(map(str, list(content)[:SHOWN]))}" if is_table else type(content).__name__
        raise refuse(function, "checkpoint must hold tensors by name", f"'{path}' with {kind}")
    tensors = {name: value for name, value in content.items() if isinstance(value, torch.Tensor)}
    return {name.removeprefix("module."): value for name, value in tensors.items()}


def load_state(
    function: str, module: Any, tensors: Mapping[str, Any], source: object, *, strict: bool = True
) -> list[str]:
    """Put a checkpoint's tensors into a module; refuse, with counts and names, unless they are exactly its own.

    Not `strict`: what the module does not know is left out and its names are returned.
    """
    state = module.state_dict()
    missing = [name for name in state if name not in tensors]
    foreign = [name for name in tensors if name not in state]
    shapes = [
        f"{name} {tuple(tensors[name].shape)} for {tuple(value.shape)}"
        for name, value in state.items()
        if name in tensors and tensors[name].shape != value.shape
    ]
    wrong = {"missing": missing, "unknown": foreign if strict else [], "of another shape": shapes}
    if any(wrong.values()):
        differences = "; ".join(f"{len(names)} {what} ({few(names, SHOWN)})" for what, names in wrong.items() if names)
        raise refuse(function, f"checkpoint must hold the network's {len(state)} tensors", f"'{source}': {differences}")
    module.load_state_dict({name: value for name, value in tensors.items() if name in state})
    return foreign


def picture_size(function: str, size: int | tuple[int, int], multiple: int) -> tuple[int, int]:
    """Height and width in pixels. Raises InputError unless they are positive multiples."""
    pair = size if isinstance(size, list | tuple) else (size, size)
    if len(pair) != 2 or not all(isinstance(side, int) and side > 0 and side % multiple == 0 for side in pair):
        raise refuse(function, f"size must be a multiple of {multiple}, or (height, width) of such", repr(size))
    return pair[0], pair[1]


def imagenet(size: tuple[int, int]) -> Preprocess:
    """Pictures as DINOv2 and its descendants take them."""
    return Preprocess(resize=size, mean=(0.485, 0.456, 0.406), std=(0.229, 0.224, 0.225))


def awaken(module: Any) -> None:
    """Random weights for what starts without effect: projections of zeros, and LayerScale below a tenth."""
    import torch

    with torch.no_grad():
        for part in module.modules():
            if isinstance(part, torch.nn.Linear) and not part.weight.any():
                part.reset_parameters()
        for name, parameter in module.named_parameters():
            if name.split(".")[-1] in ("gamma", "lambda1") and parameter.abs().max() < 0.1:
                parameter.fill_(1.0)


def rewritten(system: System) -> System:
    """The system with its module's attention in operators that quantisers know, proved on its inputs."""
    import torch

    from leadline.torch import rewrite

    record = rewrite(system.network, tuple(torch.from_numpy(array) for array in system.inputs.values()))
    return replace(system, rewrites=record)
