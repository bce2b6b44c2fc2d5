"""In the place of VGGT's: the same arguments and outputs."""

from small_vggt import Aggregator as Small


class Aggregator(Small):
    def __init__(self, embed_dim, num_heads, depth, patch_embed):
        assert patch_embed.startswith("dinov2_vit")
        super().__init__(embed_dim, num_heads, depth, patch=14)
