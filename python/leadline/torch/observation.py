"""What linear layers see: one pass of a model over the calibration data, with a hook on each."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping, Sized
from contextlib import contextmanager
from dataclasses import dataclass, field
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import nn
from torch.utils import _pytree as pytree

from leadline.gram import Gram
from leadline.hadamard import Rotation
from leadline.progress import Progress
from leadline.torch.conv import patches
from leadline.torch.linear import check_float32, torch_threads
from leadline.types import FloatArray, refuse

Doubles = NDArray[np.float64]

JUDGED = 512
"""Rows of each layer on which stages are judged."""


@dataclass
class Channels:
    """Largest magnitude and mean square of each channel in one basis: the layer's own, or a rotated one."""

    rotation: Rotation | None
    maxima: Doubles
    squares: Doubles
    tokens: int = 0

    def update(self, rows: FloatArray, momentum: float | None, threads: int) -> None:
        x = rows if self.rotation is None else self.rotation(rows, threads=threads)
        largest = np.abs(x).max(0).astype(np.float64)
        if momentum is None or not self.tokens:
            self.maxima = np.maximum(self.maxima, largest)
        else:
            self.maxima = momentum * self.maxima + (1 - momentum) * largest
        self.squares += np.einsum("ij,ij->j", x, x, dtype=np.float64)
        self.tokens += len(x)


@dataclass
class Seen:
    """What a layer saw: figures in both bases from the rows it is fitted to, and some held-out rows.

    Of a convolution, `linear` is the layer of its patches.
    """

    name: str
    linear: nn.Linear
    rotation: Rotation | None
    momentum: float | None
    gram: Gram | None
    rng: np.random.Generator
    conv: nn.Conv2d | None = None
    bases: list[Channels] = field(init=False)
    judged: FloatArray = field(init=False)
    tokens: int = 0

    def __post_init__(self) -> None:
        n = self.linear.in_features
        rotations = [None] if self.rotation is None else [None, self.rotation]
        self.bases = [Channels(rotation, np.zeros(n), np.zeros(n)) for rotation in rotations]
        self.judged = np.zeros((0, n), np.float32)
        self._keys: Doubles = np.zeros(0)

    def update(self, input: Any, batch: int, whole: bool) -> None:
        check_float32("quantize_linears", f"the input of {self.name}", input)
        seen = input if self.conv is None else patches(self.conv, input if input.ndim == 4 else input[None])
        rows = seen.detach().reshape(-1, self.linear.in_features).contiguous().numpy()
        if not np.isfinite(rows).all():
            raise refuse(
                "quantize_linears", f"the input of {self.name} must be finite", f"NaN or infinity, batch {batch}"
            )
        fourth = np.full(len(rows), batch % 4 == 3) if whole else (self.tokens + np.arange(len(rows))) % 4 == 3
        self.tokens += len(rows)
        self._judge(rows[fourth])
        fitted = rows if not fourth.any() else np.ascontiguousarray(rows[~fourth])
        if len(fitted):
            threads = torch_threads()
            for channels in self.bases:
                channels.update(fitted, self.momentum, threads)
            if self.gram is not None:
                self.gram.update(fitted, batch, threads)

    def _judge(self, rows: FloatArray) -> None:
        """Keeps `JUDGED` of all held-out rows, each as likely as any other."""
        self._keys = np.concatenate([self._keys, self.rng.random(len(rows))])
        self.judged = np.concatenate([self.judged, rows])
        if len(self._keys) > JUDGED:
            kept = np.sort(np.argpartition(self._keys, JUDGED)[:JUDGED])
            self._keys, self.judged = self._keys[kept], self.judged[kept]


def observe(module: nn.Module, seen: Iterable[Seen], data: Any, progress: Progress) -> None:
    """One pass over the data."""
    batch, whole = 0, isinstance(data, Sized) and len(data) >= 4

    def watch(s: Seen) -> Any:
        def hook(_: nn.Module, args: tuple[Any, ...], kwargs: dict[str, Any]) -> None:
            s.update(args[0] if args else kwargs["input"], batch, whole)

        return (s.conv or s.linear).register_forward_pre_hook(hook, with_kwargs=True)

    handles = [watch(s) for s in seen]
    try:
        for batch in passes(module, data, progress, "quantize_linears"):  # noqa: B007 the hooks read it
            pass
    finally:
        for handle in handles:
            handle.remove()
    if all(not s.tokens for s in seen):
        raise refuse("quantize_linears", "data must hold batches that reach the layers", "none")


def passes(module: nn.Module, data: Any, progress: Progress, function: str) -> Iterator[int]:
    """Runs a module over batches in eval mode; yields the number of each before it. Raises InputError for odd data."""
    if not isinstance(data, Iterable) or isinstance(data, (str, Mapping, torch.Tensor)):
        raise refuse(function, "data must be an iterable of batches", f"a {type(data).__name__}")
    with evaluating(module):
        for batch, sample in enumerate(progress.over(data, "calibrate", len(data) if isinstance(data, Sized) else 0)):
            yield batch
            args, keywords = arguments(sample)
            try:
                module(*args, **keywords)
            except (RuntimeError, TypeError) as error:
                rule = f"the module must run on its data (batch {batch})"
                raise refuse(function, rule, str(error).split("\n")[0]) from error


def arguments(inputs: Any) -> tuple[tuple[Any, ...], dict[str, Any]]:
    """What a module is called with: the keywords of a mapping, a tuple or list of arguments, or one argument."""
    if isinstance(inputs, Mapping):
        return (), dict(inputs)
    return tuple(inputs) if isinstance(inputs, (tuple, list)) else (inputs,), {}


def tensors(values: Any) -> list[torch.Tensor]:
    """The tensors of whatever a module takes or gives, in order."""
    return [leaf for leaf in pytree.tree_leaves(values) if isinstance(leaf, torch.Tensor)]


@contextmanager
def evaluating(module: nn.Module) -> Iterator[None]:
    training = {m: m.training for m in module.modules()}
    module.eval()
    try:
        with torch.no_grad():
            yield
    finally:
        for m, flag in training.items():
            m.training = flag
