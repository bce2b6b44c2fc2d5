"""rewrite: finds patterns by running the module, replaces in place, proves, and puts back what is not equal."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from typing import Any

from torch import Tensor, nn

from leadline.torch.rewrites import constants, einops, rope
from leadline.torch.rewrites.attention import FUSED, mentions, unfuse, without_xformers
from leadline.torch.rewrites.patches import Patch
from leadline.torch.rewrites.proof import Runner, difference
from leadline.torch.rewrites.record import Rewrite, Rewrites
from leadline.types import refuse

PATTERNS = ("einops", "rope", "constants", "attention")
"""In the order in which they are rewritten."""


def rewrite(module: nn.Module, inputs: Any = None, *, patterns: Sequence[str] = PATTERNS) -> Rewrites:
    """Rewrites a module in place, for quantisers and converters, with equal outputs at the inputs' shapes.

    ==========  ===================================================  ==================================================
    pattern     found                                                becomes
    ==========  ===================================================  ==================================================
    einops      rearrange, repeat, reduce and their layers           reshape, permute, expand, mean
    rope        rotations of tokens at integer positions that do     products with fixed tables
                not depend on the inputs' values
    constants   position tables that are resized; grids of           buffers
                coordinates and what is computed from them
    attention   torch's scaled_dot_product_attention (so timm's,     `QuantizableAttention`: MatMul, Softmax, MatMul
                transformers' and DINOv2's); xFormers'
                memory_efficient_attention
    ==========  ===================================================  ==================================================

    Classes, names, parameters and submodules stay; a module that is rewritten gets a `forward` of its own, and children
    that hold what is new. Each one is run on the inputs both ways; where the outputs differ, it is put back. At other
    shapes baked constants are left aside, and the module computes as before.

    Parameters
    ----------
    module : nn.Module
        On the CPU. It is run in evaluation mode.
    inputs : tensor, tuple or list of arguments, or dict of keywords; optional
        Examples, on which modules are found and proved. None: attention and einops alone are looked for, in the code of
        the modules' classes, and nothing is proved.
    patterns : sequence of str

    Returns
    -------
    Rewrites : with a record of each, and `undo()`.

    Raises
    ------
    InputError
        An unknown pattern. What the module itself raises on the inputs is passed on.
    """
    unknown = sorted(set(patterns) - set(PATTERNS))
    if unknown:
        raise refuse("rewrite", f"patterns must be among {', '.join(PATTERNS)}", ", ".join(unknown))
    work = _Work(module, None if inputs is None else Runner(module, inputs))
    try:
        work.start("attention" in patterns)
        for pattern in PATTERNS:
            if pattern in patterns:
                getattr(work, pattern)()
        return work.result()
    except BaseException:
        work.undo()
        raise


class _Work:
    """One call of `rewrite`."""

    def __init__(self, module: nn.Module, runner: Runner | None) -> None:
        self.module, self.runner = module, runner
        self.names = {m: name for name, m in module.named_modules()}
        self.rewrites: list[Rewrite] = []
        self.left: dict[str, str] = {}
        self.patches: list[Patch] = []
        self.reference: list[Tensor] | None = None
        self.xformers: dict[nn.Module, float | None] = {}

    def start(self, attention: bool) -> None:
        """xFormers' function made torch's, and the first run."""
        patches = _each(self.module, without_xformers) if attention else {}
        if self.runner is None:
            self._keep(patches)
            self.xformers.update(dict.fromkeys(patches))
            return
        try:
            self.reference = self.runner.run()
        except Exception:
            if not patches:
                raise
            # xFormers may have no kernel for the CPU: then its definition, torch's function, stands for it.
            self._keep(patches)
            self.reference = self.runner.run()
            self.xformers.update(dict.fromkeys(patches, 0.0))
            return
        self.xformers.update(self._prove(patches))

    def einops(self) -> None:
        patches = _each(self.module, einops.without)
        self._record("einops", dict.fromkeys(patches, "einops"), self._prove(patches))

    def rope(self) -> None:
        if self.runner is None:
            return
        patches, labels = {}, {}
        for m, calls in rope.find(self.runner).items():
            patch = rope.bake(m, calls)
            if isinstance(patch, str):
                self.left[self.names[m]] = patch
            else:
                patches[m], labels[m] = patch, f"{type(m).__name__}, {len(calls)} calls"
        self._record("rope", labels, self._prove(patches))

    def constants(self) -> None:
        if self.runner is None:
            return
        to_bake = constants.Finder(self.runner).to_bake()
        patches = {m: constants.bake(m, calls) for m, (calls, _) in to_bake.items()}
        self._record("constants", {m: label for m, (_, label) in to_bake.items()}, self._prove(patches))

    def attention(self) -> None:
        if self.runner is None:
            modules = [m for m in self.module.modules() if m in self.xformers or _speaks_of_attention(m)]
        else:
            called: dict[nn.Module, None] = {}
            self.runner.watch(lambda stack, f, *_: called.update({stack[-1]: None}) if f is FUSED else None)
            modules = [m for m in self.module.modules() if m in called]
        differences = self._prove({m: unfuse(m) for m in modules})
        for m, first in self.xformers.items():
            last = differences.get(m)
            if first is not None and last is not None:
                differences[m] = max(first, last)
        labels = {m: "memory_efficient_attention" if m in self.xformers else FUSED.__name__ for m in modules}
        self._record("attention", labels, differences)

    def undo(self) -> None:
        for patch in reversed(self.patches):
            patch.undo()

    def result(self) -> Rewrites:
        whole = None
        if self.runner is not None and self.reference is not None:
            whole = difference(self.reference, self.runner.run())
        return Rewrites(tuple(self.rewrites), dict(self.left), whole, tuple(self.patches))

    def _prove(self, patches: Mapping[nn.Module, Patch]) -> dict[nn.Module, float | None]:
        """Applies and keeps the patches that prove equal; their differences, None where there is nothing to run."""
        if self.runner is None or not patches:
            self._keep(patches)
            return dict.fromkeys(patches)
        differences, refused = self.runner.prove(patches)
        self.left.update({self.names[m]: why for m, why in refused.items()})
        self._keep({m: patches[m] for m in differences})
        return dict(differences)

    def _keep(self, patches: Mapping[nn.Module, Patch]) -> None:
        for patch in patches.values():
            patch.apply()
            self.patches.append(patch)

    def _record(
        self, pattern: str, labels: Mapping[nn.Module, str], differences: Mapping[nn.Module, float | None]
    ) -> None:
        for m, label in labels.items():
            if m in differences:
                self.rewrites.append(Rewrite(self.names[m], pattern, label, differences[m]))


def _each(module: nn.Module, make: Callable[[nn.Module], Patch | None]) -> dict[nn.Module, Patch]:
    return {m: patch for m in module.modules() if (patch := make(m)) is not None}


def _speaks_of_attention(module: nn.Module) -> bool:
    implementation = getattr(getattr(module, "config", None), "_attn_implementation", None)
    by_interface = implementation == "sdpa" and mentions(module, "ALL_ATTENTION_FUNCTIONS")
    return by_interface or mentions(module, FUSED.__name__)
