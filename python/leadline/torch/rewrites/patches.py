"""How a module is changed without changing its class, its parameters or its name.

A patch puts entries into the object's own dictionary, which Python reads before the class: a `forward` that runs the
one before with some torch functions answered by a child of ours, or methods rebuilt with other globals.
"""

from __future__ import annotations

import functools
from collections.abc import Callable, Iterator, Mapping
from types import CodeType, FunctionType, MethodType
from typing import Any, ClassVar

from torch import nn
from torch.overrides import TorchFunctionMode

_ABSENT = object()

Handlers = Mapping[Any, Callable[..., Any]]
"""Torch functions, and what is called in place of each."""


class Patch:
    """Entries for one module's dictionary, and children to add; made once, applied and undone at will."""

    def __init__(
        self, module: nn.Module, entries: Mapping[str, Any], children: Mapping[str, nn.Module] | None = None
    ) -> None:
        self.module, self.entries, self.children = module, dict(entries), dict(children or {})
        self._before: dict[str, Any] | None = None

    def apply(self) -> None:
        if self._before is not None:
            return
        attributes = self.module.__dict__
        self._before = {name: attributes.get(name, _ABSENT) for name in self.entries}
        attributes.update(self.entries)
        for name, child in self.children.items():
            self.module.add_module(name, child)

    def undo(self) -> None:
        if self._before is None:
            return
        attributes = self.module.__dict__
        for name, value in self._before.items():
            if value is _ABSENT:
                attributes.pop(name, None)
            else:
                attributes[name] = value
        for name in self.children:
            self.module._modules.pop(name, None)
        self._before = None


class _Routed(TorchFunctionMode):
    """Within it, calls of some torch functions go to handlers; those of the innermost one alone."""

    active: ClassVar[list[_Routed]] = []

    def __init__(self, handlers: Handlers) -> None:
        super().__init__()
        self.handlers = handlers

    def __enter__(self) -> Any:
        _Routed.active.append(self)
        return super().__enter__()

    def __exit__(self, *exception: Any) -> None:
        _Routed.active.pop()
        super().__exit__(*exception)

    def __torch_function__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        handler = self.handlers.get(func, func) if _Routed.active[-1] is self else func
        return handler(*args, **(kwargs or {}))


def routed(module: nn.Module, make: Callable[[nn.Module], Handlers]) -> MethodType:
    """A `forward` for the module, around the one it has now, in which calls of torch functions go to handlers.

    `make` gives them, for each call of `forward` anew.
    """
    inner = function_of(module, "forward")

    @functools.wraps(inner)
    def forward(self: nn.Module, *args: Any, **kwargs: Any) -> Any:
        with _Routed(make(self)):
            return inner(self, *args, **kwargs)

    # Bound, so that copy.deepcopy gives the copy a method of the copy.
    return MethodType(forward, module)


def relinked(module: nn.Module, replace: Callable[[str, Any], Any]) -> dict[str, MethodType]:
    """The module's own methods, rebuilt to see other globals: the ones for which `replace(name, value)` is not None."""
    rebuilt: dict[str, MethodType] = {}
    for name, function in methods(module):
        replaced = {}
        for used in names_in(function.__code__):
            value = function.__globals__.get(used)
            other = None if value is None else replace(used, value)
            if other is not None:
                replaced[used] = other
        if replaced:
            globals_ = {**function.__globals__, **replaced}
            copy = FunctionType(function.__code__, globals_, name, function.__defaults__, function.__closure__)
            copy.__kwdefaults__ = function.__kwdefaults__
            rebuilt[name] = MethodType(copy, module)
    return rebuilt


def methods(module: nn.Module) -> Iterator[tuple[str, FunctionType]]:
    """Python functions that are methods of the module, below nn.Module, as they are now."""
    names: dict[str, None] = {}
    for kind in type(module).__mro__:
        if kind is nn.Module:
            break
        names.update(dict.fromkeys(vars(kind)))
    for name in names:
        static = any(isinstance(vars(k).get(name), staticmethod | classmethod) for k in type(module).__mro__)
        function = None if static else function_of(module, name)
        if isinstance(function, FunctionType):
            yield name, function


def names_in(code: CodeType) -> set[str]:
    """Globals and attributes that a function mentions, nested functions included."""
    nested = [names_in(constant) for constant in code.co_consts if isinstance(constant, CodeType)]
    return set(code.co_names).union(*nested)


def function_of(module: nn.Module, name: str) -> Any:
    """A method as a function of the module: of its own dictionary, or of its class."""
    override = module.__dict__.get(name)
    if isinstance(override, MethodType) and override.__self__ is module:
        return override.__func__
    if override is not None:
        return lambda _, *args, **kwargs: override(*args, **kwargs)
    return getattr(type(module), name, None)
