"""DepthOnly: of a network with several heads on shared tokens (VGGT), the depth head alone, pictures to depth."""

from __future__ import annotations

from torch import Tensor, nn

from leadline.types import refuse


class DepthOnly(nn.Module):
    """Pictures (batch, views, 3, height, width) to depth (batch, views, height, width).

    Parameters
    ----------
    network : nn.Module
        With children `aggregator`, which gives a list of tokens and where those of patches begin, and `depth_head`,
        which makes depth and confidence of them, as VGGT has (Wang et al., VGGT, 2025). Other heads are left out.
    confidence : bool
        Give the confidence, too, of the same shape.

    Raises
    ------
    InputError
        The network has no such children.
    """

    def __init__(self, network: nn.Module, confidence: bool = False) -> None:
        super().__init__()
        missing = [
            name for name in ("aggregator", "depth_head") if not isinstance(getattr(network, name, None), nn.Module)
        ]
        if missing:
            received = f"a {type(network).__name__} without {' and '.join(missing)}"
            raise refuse("DepthOnly", "network must have an aggregator and a depth_head", received)
        self.aggregator, self.depth_head, self.confidence = network.aggregator, network.depth_head, confidence

    def forward(self, images: Tensor) -> Tensor | tuple[Tensor, Tensor]:
        """float32, values of 0 to 1."""
        tokens, start = self.aggregator(images)
        depth, confidence = self.depth_head(tokens, images=images, patch_start_idx=start)
        depth = depth.reshape(images.shape[:2] + depth.shape[2:4])
        return (depth, confidence.reshape(depth.shape)) if self.confidence else depth
