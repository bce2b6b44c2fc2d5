"""rewrite: finds patterns by running the module, replaces in place, proves, and puts back what is not equal."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

from torch import Tensor, nn

from leadline.torch.rewrites.attention import FUSED, mentions, unfuse, without_xformers
from leadline.torch.rewrites.patches import Patch
from leadline.torch.rewrites.proof import Runner, difference
from leadline.torch.rewrites.record import Rewrite, Rewrites
from leadline.types import refuse

PATTERNS = ("attention",)
"""In the order in which they are rewritten."""


def rewrite(module: nn.Module, inputs: Any = None, *, patterns: Sequence[str] = PATTERNS) -> Rewrites:
    """Rewrites a module in place, for quantisers and converters, with equal outputs.

    Patterns: "attention": calls of torch's `scaled_dot_product_attention` (so those of timm, transformers and DINOv2,
    too) and of xFormers' `memory_efficient_attention` become `QuantizableAttention`: MatMul, Softmax, MatMul.

    Classes, names, parameters and submodules stay; a module that is rewritten gets a `forward` of its own and children
    without weights. Each one is run on the inputs both ways; where the outputs differ, it is put back.

    Parameters
    ----------
    module : nn.Module
        On the CPU. It is run in evaluation mode.
    inputs : tensor, tuple or list of arguments, or dict of keywords; optional
        Examples, on which modules are found and proved. None: attention alone is looked for, in the code of the
        modules' classes, and nothing is proved.
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
        if "attention" in patterns:
            work.attention()
        return work.result()
    except BaseException:
        work.undo()
        raise


class _Work:
    """One call of `rewrite`."""

    def __init__(self, module: nn.Module, runner: Runner | None) -> None:
        self.module, self.runner = module, runner
        self.names = {m: name for name, m in module.named_modules()}
        self.done: list[Rewrite] = []
        self.left: dict[str, str] = {}
        self.patches: list[Patch] = []
        self.reference: list[Tensor] | None = None

    def attention(self) -> None:
        xformers = {m: patch for m in self.module.modules() if (patch := without_xformers(m)) is not None}
        labels = dict.fromkeys(xformers, "memory_efficient_attention")
        if self.runner is None:
            speaking = [m for m in self.module.modules() if m in xformers or _speaks_of_attention(m)]
            self._keep(xformers)
            self._keep({m: unfuse(m) for m in speaking})
            self._record("attention", {m: labels.get(m, FUSED.__name__) for m in speaking}, {})
            return
        first = self._replace_xformers(self.runner, xformers)
        called: dict[nn.Module, None] = {}
        self.runner.watch(lambda m, function, *_: called.update({m: None}) if function is FUSED else None)
        found = [m for m in self.module.modules() if m in called]
        patches = {m: unfuse(m) for m in found}
        differences, refused = self.runner.prove(patches)
        self._left(refused)
        self._keep({m: patches[m] for m in differences})
        for m in first:
            if m in differences:
                differences[m] = max(differences[m], first[m])
        self._record("attention", {m: labels.get(m, FUSED.__name__) for m in found if m in differences}, differences)

    def _replace_xformers(self, runner: Runner, patches: Mapping[nn.Module, Patch]) -> dict[nn.Module, float]:
        """xFormers' function made torch's, and the differences that it makes."""
        try:
            self.reference = runner.run()
        except Exception:
            if not patches:
                raise
            # xFormers may have no kernel for the CPU: then its definition, torch's function, stands for it.
            self._keep(patches)
            self.reference = runner.run()
            return dict.fromkeys(patches, 0.0)
        if not patches:
            return {}
        differences, refused = runner.prove(patches)
        self._left(refused)
        self._keep({m: patches[m] for m in differences})
        return differences

    def undo(self) -> None:
        for patch in reversed(self.patches):
            patch.undo()

    def result(self) -> Rewrites:
        whole = None
        if self.runner is not None and self.reference is not None:
            whole = difference(self.reference, self.runner.run())
        return Rewrites(tuple(self.done), dict(self.left), whole, tuple(self.patches))

    def _keep(self, patches: Mapping[nn.Module, Patch]) -> None:
        for patch in patches.values():
            patch.apply()
            self.patches.append(patch)

    def _left(self, refused: Mapping[nn.Module, str]) -> None:
        self.left.update({self.names[m]: why for m, why in refused.items()})

    def _record(self, pattern: str, found: Mapping[nn.Module, str], differences: Mapping[nn.Module, float]) -> None:
        for m, label in found.items():
            self.done.append(Rewrite(self.names[m], pattern, label, differences.get(m)))


def _speaks_of_attention(module: nn.Module) -> bool:
    implementation = getattr(getattr(module, "config", None), "_attn_implementation", None)
    by_interface = implementation == "sdpa" and mentions(module, "ALL_ATTENTION_FUNCTIONS")
    return by_interface or mentions(module, FUSED.__name__)
