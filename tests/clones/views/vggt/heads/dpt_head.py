"""In the place of VGGT's: the same arguments and outputs."""

from small_vggt import DepthHead


class DPTHead(DepthHead):
    def __init__(self, dim_in, output_dim, activation, conf_activation, features, out_channels, intermediate_layer_idx):
        assert (output_dim, activation, conf_activation) == (2, "exp", "expp1")
        assert len(out_channels) == len(intermediate_layer_idx) == 4
        super().__init__(dim_in, 14)
        self.taken = intermediate_layer_idx

    def forward(self, tokens, images, patch_start_idx):
        return super().forward([tokens[i] for i in self.taken], images, patch_start_idx)
