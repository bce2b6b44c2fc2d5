"""Rewrites: a user's torch module, in place, into operators that quantisers and converters know, with equal outputs."""

from leadline.torch.rewrites.attention import QuantizableAttention
from leadline.torch.rewrites.depth_only import DepthOnly
from leadline.torch.rewrites.driver import PATTERNS, rewrite
from leadline.torch.rewrites.record import Rewrite, Rewrites

__all__ = ["PATTERNS", "DepthOnly", "QuantizableAttention", "Rewrite", "Rewrites", "rewrite"]
