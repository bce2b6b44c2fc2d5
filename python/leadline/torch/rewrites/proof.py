"""Runs of a module on its example inputs: who calls what, and how equal a patched module is to the one before."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from contextlib import ExitStack
from typing import Any

import torch
from torch import Tensor, nn
from torch.overrides import TorchFunctionMode
from torch.utils import _pytree as pytree

from leadline.torch.observation import arguments, evaluating, tensors
from leadline.torch.rewrites.patches import Patch

TOLERANCE = 1e-4
"""Largest difference that is called equal, over the largest magnitude: float32 in another order of sums."""


See = Callable[[list[nn.Module], Any, tuple[Any, ...], dict[str, Any], Any], None]
"""Gets the modules that run, outermost first; a torch function, or None for a call of the innermost module; arguments,
keywords and the result."""


class Runner:
    """A module with its example inputs: a tensor, a tuple or list of arguments, or a dict of keywords."""

    def __init__(self, module: nn.Module, inputs: Any) -> None:
        self.module = module
        self._args, self._kwargs = arguments(inputs)

    def run(self) -> list[Tensor]:
        """The tensors of the module's output."""
        with evaluating(self.module):
            return tensors(self.module(*self._args, **self._kwargs))

    def other(self) -> Runner:
        """The same with other numbers: what is equal in a run of both does not depend on the inputs' values."""
        args, kwargs = pytree.tree_map_only(Tensor, _other, (self._args, self._kwargs))
        return Runner(self.module, kwargs or args)

    def watch(self, see: See) -> None:
        """One run, with every call of a torch function and of a module seen."""
        stack: list[nn.Module] = [self.module]

        class Watching(TorchFunctionMode):
            def __torch_function__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
                result = func(*args, **(kwargs or {}))
                see(stack, func, args, kwargs or {}, result)
                return result

        def leave(module: nn.Module, args: tuple[Any, ...], kwargs: dict[str, Any], output: Any) -> None:
            see(stack, None, args, kwargs, output)
            stack.pop()

        with ExitStack() as handles:
            for module in self.module.modules():
                _enter(handles, module.register_forward_pre_hook(lambda m, _: stack.append(m)))
                _enter(handles, module.register_forward_hook(leave, with_kwargs=True))
            with Watching():
                self.run()

    def prove(self, patches: Mapping[nn.Module, Patch]) -> tuple[dict[nn.Module, float], dict[nn.Module, str]]:
        """Applies patches, runs each module with its patch and without, and undoes what is not equal.

        Returns the relative differences of those that stay, and why others do not.
        """
        differences: dict[nn.Module, float] = {}
        refused: dict[nn.Module, str] = {}
        for patch in patches.values():
            patch.apply()
        while True:
            kept = {m: patch for m, patch in patches.items() if m not in refused}
            stack: list[nn.Module] = []
            differences.clear()
            try:
                with ExitStack() as handles:
                    _compare(handles, kept, stack, differences)
                    self.run()
                break
            except Exception as error:  # of a user's module: any
                if not stack:
                    raise
                refused[stack[-1]] = f"{type(error).__name__}: {error}"
                patches[stack[-1]].undo()
        for module, patch in kept.items():
            if module not in differences:
                refused[module] = "the example inputs do not reach it"
            elif not differences[module] <= TOLERANCE:
                refused[module] = f"outputs would differ by {differences.pop(module):.1e}"
            if module in refused:
                patch.undo()
        return differences, refused


def _compare(
    handles: ExitStack, patches: Mapping[nn.Module, Patch], stack: list[nn.Module], differences: dict[nn.Module, float]
) -> None:
    """Hooks by which each patched module is run without its patch, too."""
    inside: list[nn.Module] = []

    def enter(module: nn.Module, _: Any) -> None:
        if not inside:
            stack.append(module)

    def leave(module: nn.Module, args: tuple[Any, ...], kwargs: dict[str, Any], output: Any) -> None:
        if inside:
            return
        inside.append(module)
        patches[module].undo()
        try:
            before = module.forward(*args, **kwargs)
        finally:
            patches[module].apply()
            inside.pop()
        differences[module] = max(differences.get(module, 0.0), difference(tensors(before), tensors(output)))
        stack.pop()

    for module in patches:
        _enter(handles, module.register_forward_pre_hook(enter))
        _enter(handles, module.register_forward_hook(leave, with_kwargs=True))


def difference(before: list[Tensor], after: list[Tensor]) -> float:
    """Largest difference over the largest magnitude; infinite where numbers, shapes or NaN do not match."""
    if len(before) != len(after) or not before or any(a.shape != b.shape for a, b in zip(before, after, strict=True)):
        return float("inf")
    largest = 0.0
    for a, b in zip(before, after, strict=True):
        a, b = a.detach().double(), b.detach().double()
        if a.numel() and not torch.equal(a.nan_to_num(), b.nan_to_num()):
            distance, scale = (a - b).abs().max().item(), a.abs().max().item()
            largest = max(largest, distance / scale) if distance <= float("inf") and scale > 0 else float("inf")
        elif not torch.equal(a.isnan(), b.isnan()):
            return float("inf")
    return largest


def _other(x: Tensor) -> Tensor:
    return x.flip(-1) * 0.75 + 0.125 if x.is_floating_point() and x.ndim else x


def _enter(handles: ExitStack, handle: Any) -> None:
    handles.callback(handle.remove)
