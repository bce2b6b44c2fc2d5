"""What torch's exporters write today, if torch is there: both of them, at several opsets."""

from __future__ import annotations

import numpy as np
import pytest

from graph_models import FLOAT_NOISE, ops
from leadline.graph import Graph, Session

torch = pytest.importorskip("torch", reason="torch is not installed")
pytest.importorskip("onnxscript", reason="onnxscript is not installed")
pytestmark = [pytest.mark.torch, pytest.mark.filterwarnings("ignore")]  # the exporters warn about themselves

nn, F = torch.nn, torch.nn.functional


class Block(nn.Module):
    """A transformer block with LayerScale and fused attention."""

    def __init__(self, width=64, heads=4):
        super().__init__()
        self.heads = heads
        self.norm1, self.norm2 = nn.LayerNorm(width), nn.LayerNorm(width)
        self.qkv, self.proj = nn.Linear(width, 3 * width), nn.Linear(width, width)
        self.fc1, self.fc2 = nn.Linear(width, 2 * width), nn.Linear(2 * width, width)
        self.ls1, self.ls2 = nn.Parameter(torch.rand(width)), nn.Parameter(torch.rand(width))

    def forward(self, x):
        b, n, c = x.shape
        q, k, v = self.qkv(self.norm1(x)).reshape(b, n, 3, self.heads, c // self.heads).permute(2, 0, 3, 1, 4).unbind(0)
        x = x + self.ls1 * self.proj(F.scaled_dot_product_attention(q, k, v).transpose(1, 2).reshape(b, n, c))
        return x + self.ls2 * self.fc2(F.gelu(self.fc1(self.norm2(x))))


class Stack(nn.Module):
    def __init__(self):
        super().__init__()
        self.blocks = nn.ModuleList([Block(), Block()])

    def forward(self, x):
        for block in self.blocks:
            x = block(x)
        return x


EXPORTERS = [(True, 18), (True, 21), (True, 23), (True, 25), (False, 14), (False, 17), (False, 20)]


def export(module, x, path, dynamo, opset):
    torch.onnx.export(module.eval(), (x,), path, dynamo=dynamo, opset_version=opset, verbose=False)


@pytest.mark.parametrize(("dynamo", "opset"), EXPORTERS)
def test_transformer(tmp_path, dynamo, opset):
    torch.manual_seed(0)
    module, x = Stack(), torch.randn(2, 10, 64)
    export(module, x, tmp_path / "net.onnx", dynamo, opset)
    graph = Graph.load(tmp_path / "net.onnx")
    graph.fold()
    with torch.no_grad():
        want = module(x).numpy()
    (got,) = Session(graph, optimize=False).run({graph.inputs[0].name: x.numpy()}).values()
    assert np.abs(got - want).max() / want.std() < FLOAT_NOISE
    counts = {
        op_type: ops(graph).count(op_type) for op_type in ("LayerNormalization", "Gelu", "Gemm", "Softmax", "Where")
    }
    assert counts == {"LayerNormalization": 4, "Gelu": 2, "Gemm": 8, "Softmax": 2, "Where": 0}
    want_names = [f"blocks.{i}.{name}" for i in (0, 1) for name in ("qkv", "proj", "fc1", "fc2")]
    assert [layer.name for layer in graph.layers()] == want_names


@pytest.mark.parametrize(("dynamo", "opset"), EXPORTERS)
def test_convolutions(tmp_path, dynamo, opset):
    torch.manual_seed(0)
    module = nn.Sequential(
        nn.Conv2d(3, 8, 3, 2, 1, bias=False), nn.BatchNorm2d(8), nn.SiLU(),
        nn.Conv2d(8, 8, 3, 1, 1, groups=8), nn.GroupNorm(2, 8),
        nn.Hardswish(), nn.ConvTranspose2d(8, 6, 2, 2), nn.ReLU6(), nn.Upsample(scale_factor=2, mode="bilinear"),
        nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Linear(6, 5),
    )  # fmt: skip
    x = torch.randn(2, 3, 32, 32)
    export(module, x, tmp_path / "net.onnx", dynamo, opset)
    graph = Graph.load(tmp_path / "net.onnx")
    graph.fold()
    with torch.no_grad():
        want = module(x).numpy()
    (got,) = Session(graph, optimize=False).run({graph.inputs[0].name: x.numpy()}).values()
    assert np.abs(got - want).max() / want.std() < FLOAT_NOISE
    assert "HardSwish" in ops(graph)
    assert [layer.kind for layer in graph.layers()] == ["conv", "depthwise", "transpose", "linear"]
