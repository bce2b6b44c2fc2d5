"""The architectures of `zoo.py`, with random weights, and both exporters of PyTorch. timm's have their real widths."""

from __future__ import annotations

import contextlib
import io
import itertools
import json
import re
import sys
import warnings
from collections.abc import Callable
from pathlib import Path
from typing import Any

sys.path.insert(0, str(Path(__file__).parent.parent / "tests"))
from torch_stand_ins import define_torchvision

EXPORTERS = ("dynamo", "legacy")
Made = tuple[Any, dict[str, tuple[int, ...]]]
"""A module, and the shape of each input."""


def timm(name: str, side: int = 96, **options: Any) -> Callable[[], Made]:
    def make() -> Made:
        define_torchvision()
        import timm

        return timm.create_model(name, pretrained=False, **options), {"image": (1, 3, side, side)}

    return make


def hugging(kind: str, config: Callable[[Any], Any], side: int = 96, fields: str = "") -> Callable[[], Made]:
    """A model of transformers by its class, and which fields of its output count (with commas)."""

    def make() -> Made:
        import torch

        define_torchvision()
        import transformers

        class Outputs(torch.nn.Module):
            def __init__(self) -> None:
                super().__init__()
                self.model = getattr(transformers, kind)(config(transformers))

            def forward(self, image: Any) -> Any:
                given = self.model(pixel_values=image, return_dict=True)
                return tuple(given[field] for field in fields.split(",")) if fields else given[0]

        return Outputs(), {"image": (1, 3, side, side)}

    return make


def _resnet(t: Any, **changes: Any) -> Any:
    sizes = {"embedding_size": 16, "hidden_sizes": [32, 64, 96, 128], "depths": [1, 1, 2, 1], "layer_type": "basic"}
    return t.ResNetConfig(**sizes | changes)


def _dino(t: Any, registers: bool = False) -> Any:
    kind = t.Dinov2WithRegistersConfig if registers else t.Dinov2Config
    return kind(
        image_size=98, patch_size=14, hidden_size=192, num_attention_heads=3, num_hidden_layers=6,
        out_indices=[2, 3, 5, 6], reshape_hidden_states=False, apply_layernorm=True,
    )  # fmt: skip


def _depth_anything(t: Any, registers: bool = False) -> Any:
    return t.DepthAnythingConfig(
        backbone_config=_dino(t, registers), reassemble_hidden_size=192, patch_size=14,
        neck_hidden_sizes=[24, 48, 96, 96], fusion_hidden_size=32, head_hidden_size=16,
    )  # fmt: skip


def _dpt(t: Any) -> Any:
    return t.DPTConfig(
        hidden_size=192, num_hidden_layers=6, num_attention_heads=3, intermediate_size=384, image_size=96,
        patch_size=16, backbone_out_indices=[1, 2, 4, 5], neck_hidden_sizes=[24, 48, 96, 96], fusion_hidden_size=32,
    )  # fmt: skip


def _zoe(t: Any) -> Any:
    beit = t.BeitConfig(
        image_size=96, hidden_size=192, num_hidden_layers=6, num_attention_heads=3, intermediate_size=384,
        use_relative_position_bias=True, out_indices=[2, 3, 5, 6], reshape_hidden_states=False,
    )  # fmt: skip
    return t.ZoeDepthConfig(
        backbone_config=beit, backbone_hidden_size=192, neck_hidden_sizes=[24, 48, 96, 96], fusion_hidden_size=32,
        bottleneck_features=32, num_relative_features=16,
    )  # fmt: skip


def _swin(t: Any, **changes: Any) -> Any:
    return t.SwinConfig(
        image_size=96, embed_dim=32, depths=[1, 1, 2, 1], num_heads=[2, 4, 8, 8], window_size=3,
        out_features=["stage1", "stage2", "stage3", "stage4"], **changes,
    )  # fmt: skip


def _mask2former(t: Any) -> Any:
    return t.Mask2FormerConfig(
        backbone_config=_swin(t), feature_size=64, mask_feature_size=64, hidden_dim=64, encoder_layers=2,
        encoder_feedforward_dim=128, decoder_layers=3, dim_feedforward=128, num_attention_heads=4, num_queries=20,
        num_labels=10,
    )  # fmt: skip


def _detr(t: Any) -> Any:
    return t.DetrConfig(
        use_timm_backbone=False, use_pretrained_backbone=False, backbone=None, d_model=64, encoder_layers=2,
        decoder_layers=2, encoder_ffn_dim=128, decoder_ffn_dim=128, encoder_attention_heads=4,
        decoder_attention_heads=4, num_queries=20, backbone_config=_resnet(t, out_features=["stage4"]),
    )  # fmt: skip


def _rt_detr(t: Any) -> Any:
    backbone = t.RTDetrResNetConfig(
        embedding_size=16, hidden_sizes=[32, 64, 96, 128], depths=[2, 2, 2, 2], layer_type="basic",
        out_features=["stage2", "stage3", "stage4"],
    )  # fmt: skip
    return t.RTDetrConfig(
        backbone_config=backbone, encoder_hidden_dim=64, encoder_in_channels=[64, 96, 128], encoder_ffn_dim=128,
        d_model=64, decoder_in_channels=[64, 64, 64], num_queries=30, decoder_layers=2, decoder_ffn_dim=128,
        decoder_attention_heads=4, encoder_attention_heads=4, num_labels=10, eval_size=None,
    )  # fmt: skip


def _segformer(t: Any) -> Any:
    return t.SegformerConfig(num_labels=19, depths=[2, 2, 2, 2], hidden_sizes=[32, 64, 160, 256])


def _sam(t: Any) -> Any:
    return t.SamVisionConfig(
        hidden_size=192, num_hidden_layers=4, num_attention_heads=3, image_size=128, patch_size=16, mlp_dim=384,
        output_channels=64, window_size=4, global_attn_indexes=[1, 3],
    )  # fmt: skip


def _upernet(t: Any) -> Any:
    backbone = t.ConvNextConfig(
        hidden_sizes=[32, 64, 96, 128], depths=[1, 1, 2, 1], out_features=["stage1", "stage2", "stage3", "stage4"]
    )
    return t.UperNetConfig(backbone_config=backbone, hidden_size=64, num_labels=19, auxiliary_in_channels=96)


def _vision(kind: str) -> Callable[[Any], Any]:
    return lambda t: getattr(t, kind)(
        hidden_size=192, num_hidden_layers=4, num_attention_heads=3, intermediate_size=384, image_size=96, patch_size=16
    )


def crnn() -> Made:
    """Text recognition: convolutions, a bidirectional LSTM, classes for each column."""
    import torch
    from torch import nn

    class Crnn(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            widths = [3, 32, 64, 128, 128]
            parts: list[Any] = []
            for i, (before, after) in enumerate(itertools.pairwise(widths)):
                parts += [nn.Conv2d(before, after, 3, padding=1), nn.BatchNorm2d(after), nn.ReLU()]
                parts.append(nn.MaxPool2d((2, 2 if i < 2 else 1)))
            self.features = nn.Sequential(*parts)
            self.lstm = nn.LSTM(256, 96, num_layers=2, bidirectional=True, batch_first=True)
            self.head = nn.Linear(192, 37)

        def forward(self, image: Any) -> Any:
            columns = self.features(image).flatten(1, 2).transpose(1, 2)
            return torch.log_softmax(self.head(self.lstm(columns)[0]), -1)

    return Crnn(), {"image": (1, 3, 32, 96)}


def flow() -> Made:
    """Optical flow: two pictures, features warped by GridSample, correlated, refined."""
    import torch
    import torch.nn.functional as f
    from torch import nn

    def block(a: int, b: int, stride: int = 1) -> Any:
        return nn.Sequential(nn.Conv2d(a, b, 3, stride, 1), nn.LeakyReLU(0.1))

    class Flow(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.encoder = nn.Sequential(block(3, 32, 2), block(32, 64, 2), block(64, 64))
            self.estimate = nn.Sequential(block(64 * 2 + 49, 96), block(96, 64), nn.Conv2d(64, 2, 3, 1, 1))
            self.refine = nn.Sequential(block(64 * 2 + 2, 64), nn.Conv2d(64, 2, 3, 1, 1))
            lines = [torch.linspace(-1, 1, 24)] * 2
            self.register_buffer("grid", torch.stack(torch.meshgrid(*lines, indexing="ij")[::-1], -1)[None])

        def forward(self, first: Any, second: Any) -> Any:
            a, b = self.encoder(first), self.encoder(second)
            padded = f.pad(b, (3, 3, 3, 3))
            shifts = [padded[:, :, i : i + 24, j : j + 24] for i in range(7) for j in range(7)]
            cost = torch.cat([(a * other).mean(1, keepdim=True) for other in shifts], 1)
            moved = self.estimate(torch.cat([a, b, f.leaky_relu(cost, 0.1)], 1))
            warped = f.grid_sample(b, self.grid + moved.permute(0, 2, 3, 1) / 12, align_corners=True)
            moved = moved + self.refine(torch.cat([a, warped, moved], 1))
            return f.interpolate(moved, scale_factor=4, mode="bilinear") * 4

    return Flow(), {"first": (1, 3, 96, 96), "second": (1, 3, 96, 96)}


def stereo() -> Made:
    """Disparity: a cost volume, 3-D convolutions, the expectation of a softmax."""
    import torch
    import torch.nn.functional as f
    from torch import nn

    class Stereo(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.encoder = nn.Sequential(nn.Conv2d(3, 16, 3, 2, 1), nn.ReLU(), nn.Conv2d(16, 16, 3, 2, 1), nn.ReLU())
            self.volume = nn.Sequential(
                nn.Conv3d(32, 16, 3, 1, 1), nn.BatchNorm3d(16), nn.ReLU(),
                nn.Conv3d(16, 16, 3, (1, 2, 2), 1), nn.ReLU(),
                nn.ConvTranspose3d(16, 8, 3, (1, 2, 2), 1, (0, 1, 1)), nn.ReLU(), nn.Conv3d(8, 1, 3, 1, 1),
            )  # fmt: skip
            self.register_buffer("disparities", torch.arange(12.0).reshape(1, 12, 1, 1))

        def forward(self, left: Any, right: Any) -> Any:
            a, b = self.encoder(left), self.encoder(right)
            pairs = [torch.cat([a, f.pad(b, (d, 0))[..., : b.shape[-1]]], 1) for d in range(12)]
            scores = self.volume(torch.stack(pairs, 2)).squeeze(1)
            return f.interpolate((scores.softmax(1) * self.disparities).sum(1, keepdim=True), scale_factor=4.0) * 4

    return Stereo(), {"left": (1, 3, 64, 96), "right": (1, 3, 64, 96)}


def super_resolution() -> Made:
    """EDSR-like: residual blocks, PixelShuffle, a picture as output."""
    from torch import nn

    class Residual(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.body = nn.Sequential(nn.Conv2d(48, 48, 3, 1, 1), nn.ReLU(), nn.Conv2d(48, 48, 3, 1, 1))

        def forward(self, x: Any) -> Any:
            return x + 0.1 * self.body(x)

    layers = [
        nn.Conv2d(3, 48, 3, 1, 1),
        *(Residual() for _ in range(6)),
        nn.Conv2d(48, 192, 3, 1, 1),
        nn.PixelShuffle(2),
    ]
    return nn.Sequential(*layers, nn.Conv2d(48, 3, 3, 1, 1)), {"image": (1, 3, 48, 48)}


NETWORKS: dict[str, Callable[[], Made]] = {
    **{
        name: timm(name)
        for name in (
            "resnet18 mobilenetv2_100 mobilenetv3_small_100 mobilenetv4_conv_small efficientnet_b0 "
            "tf_efficientnet_lite0 mobilenetv4_hybrid_medium efficientvit_b0 convnext_atto convnextv2_atto "
            "repvit_m0_9 fastvit_t8 ghostnet_100 regnety_002 densenet121 vgg11_bn mnasnet_100 "
            "edgenext_xx_small mobileone_s0 poolformer_s12 hrnet_w18_small dla34 rexnet_100 ese_vovnet19b_dw "
            "cspresnet50 hgnetv2_b0 inception_next_atto starnet_s1 mobilevitv2_050 pvt_v2_b0 "
            "focalnet_tiny_srf"
        ).split()
    },
    "swin_tiny": timm("swin_tiny_patch4_window7_224", 112, img_size=112),
    "swinv2_tiny": timm("swinv2_tiny_window8_256", 128, img_size=128),
    "vit_tiny": timm("vit_tiny_patch16_224", 96, img_size=96),
    "dinov2_small": timm("vit_small_patch14_dinov2", 98, img_size=98),
    "dinov2_registers": timm("vit_small_patch14_reg4_dinov2", 98, img_size=98),
    "eva02_tiny": timm("eva02_tiny_patch14_224", 98, img_size=98),
    "beit_relative": timm("vit_relpos_small_patch16_224", 96, img_size=96),
    "mobilevit_xxs": timm("mobilevit_xxs", 128),
    "levit_128s": timm("levit_128s", 224),
    "tiny_vit_5m": timm("tiny_vit_5m_224", 224),
    "xcit_nano": timm("xcit_nano_12_p16_224", 96, img_size=96),
    "mixer_s32": timm("mixer_s32_224", 96, img_size=96),
    "coat_lite_tiny": timm("coat_lite_tiny", 96, img_size=96),
    "davit_tiny": timm("davit_tiny", 112),
    "twins_svt_small": timm("twins_svt_small", 128, img_size=128),
    "efficientvit_m0": timm("efficientvit_m0", 112, img_size=112),
    "segformer": hugging("SegformerForSemanticSegmentation", _segformer),
    "mask2former": hugging(
        "Mask2FormerForUniversalSegmentation", _mask2former, 96, "class_queries_logits,masks_queries_logits"
    ),
    "detr": hugging("DetrForObjectDetection", _detr, 96, "logits,pred_boxes"),
    "rt_detr": hugging("RTDetrForObjectDetection", _rt_detr, 96, "logits,pred_boxes"),
    "sam_encoder": hugging("SamVisionModel", _sam, 128),
    "dpt": hugging("DPTForDepthEstimation", _dpt),
    "zoedepth": hugging("ZoeDepthForDepthEstimation", _zoe),
    "depth_anything": hugging("DepthAnythingForDepthEstimation", _depth_anything, 98),
    "depth_anything_registers": hugging("DepthAnythingForDepthEstimation", lambda t: _depth_anything(t, True), 98),
    "upernet_convnext": hugging("UperNetForSemanticSegmentation", _upernet),
    "clip_vision": hugging("CLIPVisionModel", _vision("CLIPVisionConfig")),
    "siglip_vision": hugging("SiglipVisionModel", _vision("SiglipVisionConfig")),
    "crnn": crnn,
    "flow": flow,
    "stereo": stereo,
    "super_resolution": super_resolution,
}


def export(name: str, exporter: str, file: Path) -> str:
    """Write the network and the shapes of its inputs beside it; what went wrong in PyTorch, if anything did."""
    import torch

    torch.manual_seed(0)
    temporary = file.with_suffix(".tmp")
    try:
        module, shapes = NETWORKS[name]()
        module.eval()
        lively(module)
        inputs = tuple(torch.randn(shape) for shape in shapes.values())
        with warnings.catch_warnings(), contextlib.redirect_stdout(io.StringIO()), torch.no_grad():
            warnings.simplefilter("ignore")
            options = {"opset_version": 20 if exporter == "dynamo" else 17, "dynamo": exporter == "dynamo"}
            if exporter == "dynamo":
                options |= {"external_data": False}
            torch.onnx.export(module, inputs, str(temporary), input_names=list(shapes), **options)
    except Exception as error:
        temporary.unlink(missing_ok=True)
        said = re.sub(r"\x1b\[[0-9;]*m", "", str(error)).strip() or "no word"  # without colours
        return f"PyTorch: {type(error).__name__}: {said.splitlines()[0][:120]}"
    file.with_suffix(".json").write_text(json.dumps(shapes))
    temporary.replace(file)
    return ""


def lively(module: Any) -> None:
    """Statistics, gains and LayerScales as training leaves them: no two channels alike, a few far above the others."""
    import torch

    generator = torch.Generator().manual_seed(1)

    def spread(tensor: Any, sigma: float) -> Any:
        return torch.exp(sigma * torch.randn(tensor.shape, generator=generator))

    with torch.no_grad():
        for part in module.modules():
            weight = getattr(part, "weight", None)
            if getattr(part, "running_var", None) is not None:
                part.running_mean.add_(0.2 * torch.randn(part.running_mean.shape, generator=generator))
                part.running_var.mul_(spread(part.running_var, 0.5))
            if "Norm" in type(part).__name__ and weight is not None and weight.dim() == 1:
                weight.mul_(spread(weight, 0.4))
            gamma = getattr(part, "gamma", None)
            if isinstance(gamma, torch.Tensor) and float(gamma.abs().max()) < 0.01:
                gamma.fill_(0.3).mul_(spread(gamma, 0.5))
