"""Attention as MatMul, Softmax, MatMul, wherever a module calls torch's or xFormers' fused one.

Exporters write fused attention with guards against rows without a key (IsNaN, Where), or not at all; quantisers want
its two products and the softmax as operators of their own. What computes queries, keys and values stays as it is.
"""

from __future__ import annotations

import math
from types import MethodType, SimpleNamespace
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional

from leadline.torch.rewrites.patches import Handlers, Patch, methods, names_in, relinked, routed
from leadline.types import refuse

CHILD = "quantizable_attention"
"""Name of the child that a module's attention goes through."""

MASKED = -1e4
"""What is added to a masked score: exp of it is 0 in float32, and a grid can still hold it."""

FUSED = functional.scaled_dot_product_attention


class MatMul(nn.Module):
    """The product of two inputs, as a module of its own, so that hooks see inputs and output."""

    def forward(self, a: Tensor, b: Tensor) -> Tensor:
        """(..., n, k) and (..., k, m) to (..., n, m)."""
        return torch.matmul(a, b)


class QuantizableAttention(nn.Module):
    """softmax(scale q k^T + mask) v, each step a module: `scores`, `softmax`, `mix`. It has no weights.

    Scaling comes first, on the queries: they are smaller than the scores, and a constant factor folds into the layer
    that computes them.
    """

    def __init__(self) -> None:
        super().__init__()
        self.scores, self.softmax, self.mix = MatMul(), nn.Softmax(-1), MatMul()

    def forward(
        self,
        query: Tensor,
        key: Tensor,
        value: Tensor,
        attn_mask: Tensor | None = None,
        dropout_p: float = 0.0,
        is_causal: bool = False,
        scale: float | None = None,
        enable_gqa: bool = False,
    ) -> Tensor:
        """As torch.nn.functional.scaled_dot_product_attention, in evaluation: dropout is left out.

        Parameters
        ----------
        query, key, value : tensors (..., heads, queries, d), (..., heads, keys, d), (..., heads, keys, e)
        attn_mask : tensor that broadcasts to (..., queries, keys), optional
            bool: True where a key counts; otherwise it is added to the scores.
        scale : float, optional
            1 / sqrt(d) by default.
        enable_gqa : bool
            Keys and values have fewer heads, each for a run of query heads.

        Returns
        -------
        tensor (..., heads, queries, e)
        """
        if enable_gqa and query.shape[-3] != key.shape[-3]:
            repeats = query.shape[-3] // key.shape[-3]
            key, value = key.repeat_interleave(repeats, -3), value.repeat_interleave(repeats, -3)
        factor = 1 / math.sqrt(query.shape[-1]) if scale is None else scale
        scores = self.scores(query * factor, key.transpose(-2, -1))
        if is_causal:
            attn_mask = torch.ones(scores.shape[-2:], dtype=torch.bool, device=scores.device).tril()
        if attn_mask is not None:
            if attn_mask.dtype == torch.bool:
                attn_mask = torch.where(attn_mask, 0.0, MASKED)
            scores = scores + attn_mask
        mixed: Tensor = self.mix(self.softmax(scores), value)
        return mixed


def unfuse(module: nn.Module) -> Patch:
    """The patch by which the module's calls of torch's fused attention go through a child of its own."""
    return Patch(module, {"forward": routed(module, _handlers)}, {CHILD: QuantizableAttention()})


def without_xformers(module: nn.Module) -> Patch | None:
    """The patch by which the module's own methods call torch's fused attention in place of xFormers'; None: they
    call none."""
    if not mentions(module, "memory_efficient_attention"):
        return None
    entries: dict[str, MethodType] = relinked(module, _in_place_of_xformers)
    return Patch(module, entries) if entries else None


def mentions(module: nn.Module, *names: str) -> bool:
    """Whether a method of the module's class speaks of one of the names."""
    return any(not names_in(function.__code__).isdisjoint(names) for _, function in methods(module))


def _handlers(module: nn.Module) -> Handlers:
    return {FUSED: getattr(module, CHILD)}


def _fused(
    query: Tensor,
    key: Tensor,
    value: Tensor,
    attn_bias: Any = None,
    p: float = 0.0,
    scale: float | None = None,
    **_: Any,
) -> Tensor:
    """xFormers' layout, (batch, tokens, heads, d) or (batch, tokens, d), through torch's function."""
    if attn_bias is not None and not isinstance(attn_bias, Tensor):
        rule = "attn_bias of memory_efficient_attention must be a tensor or None"
        raise refuse("rewrite", rule, f"a {type(attn_bias).__name__}")
    if query.ndim == 3:
        return FUSED(query, key, value, attn_mask=attn_bias, scale=scale)
    query, key, value = (x.transpose(1, 2) for x in (query, key, value))
    return FUSED(query, key, value, attn_mask=attn_bias, scale=scale).transpose(1, 2)


class _Namespace(SimpleNamespace):
    """Some names of our own, all others of the module behind."""

    def __getattr__(self, name: str) -> Any:
        return getattr(self.__dict__["behind"], name)


def _in_place_of_xformers(name: str, value: Any) -> Any:
    if name == "memory_efficient_attention" and callable(value):
        return _fused
    if name == "unbind" and getattr(value, "__module__", "").startswith("xformers"):
        return torch.unbind
    if hasattr(value, "memory_efficient_attention"):
        return _operators(value)
    inner = getattr(value, "ops", None) if name == "xformers" else None
    return _Namespace(behind=value, ops=_operators(inner)) if inner is not None else None


def _operators(behind: Any) -> _Namespace:
    return _Namespace(behind=behind, memory_efficient_attention=_fused, unbind=torch.unbind)
