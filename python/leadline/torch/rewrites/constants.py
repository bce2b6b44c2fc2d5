"""What shapes and weights alone determine, baked: resized position tables, and grids of coordinates.

DINOv2 and its kin resize their position table bicubically at each call (with antialiasing, in some), for which phones
have no operator; depth heads compute sines of coordinates, in float64 at times. At a fixed input size both are
constant.
"""

from __future__ import annotations

from collections import Counter
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional
from torch.utils import _pytree as pytree

from leadline.torch.rewrites.patches import Handlers, Patch, routed
from leadline.torch.rewrites.proof import Runner

CHILD = "baked_constants"
RESIZE = functional.interpolate
_RANDOM = ("rand", "normal", "bernoulli", "dropout", "empty")

Sequence = list[tuple[Any, "Tensor | None"]]
"""Calls of torch functions in order, with the result where that is to be baked."""


@dataclass
class _Event:
    """A call of a torch function while `stack` runs; without one, the end of the innermost module's forward."""

    stack: tuple[nn.Module, ...]
    function: Any
    baked: Tensor | None = None
    what: str = ""


class Finder:
    """One run, in which each tensor is a grid (no tensor went into it), of weights (nothing else did), or data."""

    def __init__(self, runner: Runner) -> None:
        module = runner.module
        self._weights = {id(t) for t in (*module.parameters(), *module.buffers())}
        self._grids: dict[int, _Event] = {}
        self._kept: list[Any] = []  # so that no id is used again
        self._events: list[_Event] = []
        runner.watch(self._see)

    def _see(self, stack: list[nn.Module], function: Any, args: Any, kwargs: Any, result: Any) -> None:
        event = _Event(tuple(stack), function)
        self._events.append(event)
        if function is None:
            return
        inputs = [leaf for leaf in pytree.tree_leaves((args, kwargs)) if isinstance(leaf, Tensor)]
        outputs = [leaf for leaf in pytree.tree_leaves(result) if isinstance(leaf, Tensor)]
        if not outputs:
            return
        grids = [t for t in inputs if id(t) in self._grids]
        name = getattr(function, "__name__", "")
        if len(grids) == len(inputs) and not any(word in name for word in _RANDOM):
            self._kept += outputs
            self._grids.update({id(t): event for t in outputs})
        elif all(id(t) in self._weights or id(t) in self._grids for t in inputs):
            self._kept += outputs
            self._weights.update(id(t) for t in outputs)
            if function is RESIZE:
                event.baked, event.what = outputs[0].detach().clone(), f"{kwargs.get('mode', 'nearest')} resize"
        else:
            for t in grids:
                if t.is_floating_point() and t.numel() > 1 and isinstance(result, Tensor):
                    self._grids[id(t)].baked, self._grids[id(t)].what = t.detach(), "grid"

    def to_bake(self) -> dict[nn.Module, tuple[Sequence, str]]:
        """Modules with constants to bake: the calls of their first forward, less those of other such modules, and what
        was found."""
        owners = {event.stack[-1] for event in self._events if event.baked is not None}
        sequences: dict[nn.Module, Sequence] = {}
        kinds: dict[nn.Module, Counter[str]] = {}
        ended: set[nn.Module] = set()
        for event in self._events:
            owner = next((module for module in reversed(event.stack) if module in owners), None)
            if owner is None or owner in ended:
                continue
            if event.function is None:
                ended |= {owner} & {event.stack[-1]}
                continue
            sequences.setdefault(owner, []).append((event.function, event.baked))
            if event.baked is not None:
                kinds.setdefault(owner, Counter())[event.what] += 1
        labels = {m: ", ".join(f"{what} ({n})" for what, n in sorted(kind.items())) for m, kind in kinds.items()}
        return {m: (sequences[m], label) for m, label in labels.items()}


def bake(module: nn.Module, calls: Sequence) -> Patch:
    """The patch by which the n-th call of a function gives what it gave in `calls`, while shapes are the same."""
    values = nn.Module()  # of buffers that are no part of a checkpoint
    places: dict[Any, list[tuple[str, tuple[int, ...]] | None]] = {}
    for function, baked in calls:
        sequence = places.setdefault(function, [])
        if baked is None:
            sequence.append(None)
            continue
        name = f"constant_{sum(1 for _ in values.buffers())}"
        sequence.append((name, tuple(baked.shape)))
        values.register_buffer(name, _narrow(baked), persistent=False)
    places = {function: sequence for function, sequence in places.items() if any(sequence)}

    def make(self: nn.Module) -> Handlers:
        baked = getattr(self, CHILD)

        def handler(function: Any, order: Any) -> Any:
            def call(*args: Any, **kwargs: Any) -> Any:
                place = next(order, None)
                result = function(*args, **kwargs)  # left over: no exporter writes what nothing reads
                if place is None or not isinstance(result, Tensor) or tuple(result.shape) != place[1]:
                    return result
                return baked.get_buffer(place[0]).expand(place[1])

            return call

        return {function: handler(function, iter(sequence)) for function, sequence in places.items()}

    return Patch(module, {"forward": routed(module, make)}, {CHILD: values})


def _narrow(x: Tensor) -> Tensor:
    """Without the copies that expand made: axes of stride 0 have one entry."""
    for axis, (size, stride) in enumerate(zip(x.shape, x.stride(), strict=True)):
        if stride == 0 and size > 1:
            x = x.narrow(axis, 0, 1)
    return x.detach().clone(memory_format=torch.contiguous_format)
