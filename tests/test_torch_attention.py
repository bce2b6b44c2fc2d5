"""leadline.torch.rewrite: fused attention of every kind made MatMul, Softmax, MatMul, proved equal, and put back."""

from __future__ import annotations

import copy
import sys
import types

import pytest

from leadline.types import InputError

torch = pytest.importorskip("torch", reason="torch is not installed")

import torch_stand_ins as stand_ins  # noqa: E402
from leadline.torch import QuantizableAttention, rewrite  # noqa: E402
from leadline.torch.observation import tensors  # noqa: E402
from leadline.torch.rewrites.proof import difference  # noqa: E402

pytestmark = [pytest.mark.torch, pytest.mark.filterwarnings("ignore")]  # the exporters warn about themselves

nn, F = torch.nn, torch.nn.functional
WIDTH, HEADS = 32, 4


@pytest.fixture(autouse=True)
def _seed():
    torch.manual_seed(0)


class Fused(nn.Module):
    """Self-attention by torch's function, with whatever options."""

    def __init__(self, **options):
        super().__init__()
        self.qkv, self.proj, self.options = nn.Linear(WIDTH, 3 * WIDTH), nn.Linear(WIDTH, WIDTH), options

    def forward(self, x):
        b, n, c = x.shape
        q, k, v = self.qkv(x).reshape(b, n, 3, HEADS, c // HEADS).permute(2, 0, 3, 1, 4).unbind(0)
        return self.proj(F.scaled_dot_product_attention(q, k, v, **self.options).transpose(1, 2).reshape(b, n, c))


class Plain(Fused):
    """No fused function, though its parent has one."""

    def forward(self, x):
        return self.proj(self.qkv(x)[..., :WIDTH])


class Network(nn.Module):
    def __init__(self, *layers):
        super().__init__()
        self.layers = nn.ModuleList(layers)

    def forward(self, x):
        for layer in self.layers:
            x = x + layer(x)
        return x


TOKENS = torch.randn(2, 7, WIDTH, generator=torch.Generator().manual_seed(1))


def state(module):
    """Objects of a module, by identity, and what its own dictionaries hold."""
    modules = {name: (id(m), type(m), sorted(m.__dict__)) for name, m in module.named_modules()}
    return modules, {name: id(p) for name, p in module.named_parameters()}


def fused_calls(module, *inputs):
    count = 0

    class Count(torch.overrides.TorchFunctionMode):
        def __torch_function__(self, func, types, args=(), kwargs=None):
            nonlocal count
            count += func is F.scaled_dot_product_attention
            return func(*args, **(kwargs or {}))

    with torch.no_grad(), Count():
        module(*inputs)
    return count


def test_attention_is_found_by_what_is_called():
    network = Network(Fused(), Plain(), Fused()).eval()
    wanted = network(TOKENS).detach()
    before = state(network)
    rewrites = rewrite(network, TOKENS)
    assert [r.name for r in rewrites.done] == ["layers.0", "layers.2"]
    assert all(r.difference < 1e-5 and r.pattern == "attention" for r in rewrites.done) and not rewrites.left
    assert rewrites.difference == difference([wanted], [network(TOKENS).detach()]) < 1e-5
    assert isinstance(network.layers[0].quantizable_attention, QuantizableAttention)
    assert fused_calls(network, TOKENS) == 0
    assert "layers.2" in str(rewrites) and "scaled_dot_product_attention" in rewrites._repr_html_()
    rewrites.undo()
    assert state(network) == before and fused_calls(network, TOKENS) == 2
    assert torch.equal(network(TOKENS), wanted)
    rewrites.undo()
    assert state(network) == before


def test_parameters_are_the_same_objects():
    network = Network(Fused())
    names, flags = dict(network.named_parameters()), [m.training for m in network.modules()]
    rewrite(network, TOKENS)
    assert all(network.get_parameter(name) is value for name, value in names.items())
    assert set(network.state_dict()) == set(names)
    assert [m.training for m in network.modules()][: len(flags)] == flags  # training goes on where it was


@pytest.mark.parametrize(
    "options",
    [
        {"scale": 0.3},
        {"is_causal": True},
        {"attn_mask": torch.randn(HEADS, 7, 7)},
        {"attn_mask": torch.eye(7, dtype=torch.bool) | (torch.rand(7, 7) > 0.5)},
    ],
    ids=lambda options: ",".join(f"{k}={getattr(v, 'dtype', v)}" for k, v in options.items()),
)
def test_options(options):
    network = Network(Fused(**options)).eval()
    assert rewrite(network, TOKENS).done[0].difference < 1e-5


def test_fewer_key_heads():
    q, k, v = torch.randn(2, 6, 5, 8), torch.randn(2, 3, 9, 8), torch.randn(2, 3, 9, 4)
    wanted = F.scaled_dot_product_attention(q, k, v, enable_gqa=True)
    assert torch.allclose(QuantizableAttention()(q, k, v, enable_gqa=True), wanted, atol=1e-6)


def test_steps_are_modules_that_hooks_see():
    network = Network(Fused()).eval()
    rewrite(network, TOKENS)
    seen = {}
    for name, module in network.named_modules():
        module.register_forward_hook(lambda m, i, o, name=name: seen.update({name: o}))
    network(TOKENS)
    core = "layers.0.quantizable_attention."
    assert seen[core + "scores"].shape == seen[core + "softmax"].shape == (2, HEADS, 7, 7)
    assert torch.allclose(seen[core + "softmax"].sum(-1), torch.ones(2, HEADS, 7))
    assert seen[core + "mix"].shape == (2, HEADS, 7, WIDTH // HEADS)


def test_what_is_not_equal_is_put_back():
    class Shaky(Fused):  # all keys of a row masked: torch says 0, a softmax cannot
        def forward(self, x):
            return super().forward(x)

    mask = torch.ones(7, 7, dtype=torch.bool)
    mask[3] = False
    network = Network(Shaky(attn_mask=mask), Fused()).eval()
    before = state(network.layers[0])
    rewrites = rewrite(network, TOKENS)
    assert [r.name for r in rewrites.done] == ["layers.1"]
    assert "differ" in rewrites.left["layers.0"] and "layers.0 stays" in str(rewrites)
    assert state(network.layers[0]) == before and rewrites.difference < 1e-5


def test_a_copy_computes_with_its_own_weights():
    network = Network(Fused()).eval()
    rewrite(network, TOKENS)
    other = copy.deepcopy(network)
    with torch.no_grad():
        other.layers[0].proj.weight.zero_()
        other.layers[0].proj.bias.zero_()
    assert torch.equal(other(TOKENS), TOKENS) and not torch.equal(network(TOKENS), TOKENS)


def test_without_inputs_nothing_is_proved():
    network = Network(Fused(), Plain())
    rewrites = rewrite(network)
    assert [(r.name, r.difference) for r in rewrites.done] == [("layers.0", None)]
    assert rewrites.difference is None and "not proved" in str(rewrites)
    assert fused_calls(network, TOKENS) == 0


def test_the_user_is_told():
    with pytest.raises(InputError, match=r"^\[rewrite\] patterns must be among .*attention.* Received atention\.$"):
        rewrite(Network(), TOKENS, patterns=["atention"])
    network = Network(Fused())
    before = state(network)
    with pytest.raises(RuntimeError, match="shapes cannot be multiplied"):  # torch's own words
        rewrite(network, TOKENS[..., 1:])
    assert state(network) == before


# xFormers: its function takes (batch, tokens, heads, d) and runs on GPUs alone.


def xformers_of(runs: bool) -> types.ModuleType:
    def memory_efficient_attention(query, key, value, attn_bias=None, p=0.0, scale=None):
        if not runs:
            raise NotImplementedError("No operator found for memory_efficient_attention_forward")
        scale = query.shape[-1] ** -0.5 if scale is None else scale
        scores = torch.einsum("bqhd,bkhd->bhqk", query * scale, key)
        scores = scores if attn_bias is None else attn_bias + scores
        return torch.einsum("bhqk,bkhd->bqhd", scores.softmax(-1), value)

    package, ops = types.ModuleType("xformers"), types.ModuleType("xformers.ops")
    memory_efficient_attention.__module__ = "xformers.ops.fmha"
    ops.memory_efficient_attention, ops.unbind, ops.other = memory_efficient_attention, torch.unbind, 3
    package.ops = ops
    return package


MODULES = """
import torch
from torch import nn
import xformers
import xformers.ops
from xformers.ops import memory_efficient_attention, unbind

class Attention(nn.Module):
    def __init__(self, width, heads):
        super().__init__()
        self.heads, self.qkv, self.proj = heads, nn.Linear(width, 3 * width), nn.Linear(width, width)

    def forward(self, x):
        return self.proj(x)

class MemEffAttention(Attention):
    def forward(self, x, attn_bias=None):
        b, n, c = x.shape
        q, k, v = unbind(self.qkv(x).reshape(b, n, 3, self.heads, c // self.heads), 2)
        return super().forward(memory_efficient_attention(q, k, v, attn_bias=attn_bias).reshape(b, n, c))

class Split(Attention):
    def forward(self, x):
        b, n, c = x.shape
        parts = self.qkv(x).reshape(b, n, 3, self.heads, c // self.heads).unbind(2)
        return self.proj(self._split(*parts).reshape(b, n, c))

    def _split(self, q, k, v):
        assert xformers.ops.other == 3
        parts = [xformers.ops.memory_efficient_attention(*(y[i : i + 1] for y in (q, k, v))) for i in range(len(q))]
        return torch.cat(parts)

class Triangle:
    __add__ = __radd__ = lambda self, other: other

class Biased(Attention):
    def forward(self, x):
        b, n, c = x.shape
        q, k, v = self.qkv(x).reshape(b, n, 3, self.heads, c // self.heads).unbind(2)
        return self.proj(memory_efficient_attention(q, k, v, Triangle()).reshape(b, n, c))
"""


@pytest.fixture(params=[True, False], ids=["runs", "no-kernel"])
def clone(request, monkeypatch):
    """A user's file, with an xFormers that runs here or does not."""
    package = xformers_of(request.param)
    monkeypatch.setitem(sys.modules, "xformers", package)
    monkeypatch.setitem(sys.modules, "xformers.ops", package.ops)
    module = types.ModuleType("clone")
    exec(MODULES, module.__dict__)  # a user's file
    module.runs = request.param
    return module


def test_xformers(clone):
    network = Network(clone.MemEffAttention(WIDTH, HEADS), clone.Split(WIDTH, HEADS)).eval()
    before, globals_before = state(network), dict(clone.__dict__)
    rewrites = rewrite(network, TOKENS)
    assert [(r.name, r.found) for r in rewrites.done] == [
        ("layers.0", "memory_efficient_attention"),
        ("layers.1", "memory_efficient_attention"),
    ]
    assert all(r.difference < 1e-5 for r in rewrites.done) and rewrites.difference < 1e-5
    first = network.layers[0]
    q, k, v = first.qkv(TOKENS).reshape(2, 7, 3, HEADS, -1).permute(2, 0, 3, 1, 4)
    scores = (q @ k.transpose(-2, -1) / (WIDTH // HEADS) ** 0.5).softmax(-1)
    assert torch.allclose(first(TOKENS), first.proj((scores @ v).transpose(1, 2).reshape(2, 7, WIDTH)), atol=1e-5)
    program = torch.export.export(network, (TOKENS,))
    assert not [n for n in program.graph.nodes if "attention" in str(n.target)]
    assert clone.__dict__ == globals_before  # other networks of the same file are as they were
    rewrites.undo()
    assert state(network) == before
    if not clone.runs:
        with pytest.raises(NotImplementedError):
            network(TOKENS)


def test_a_bias_that_is_no_tensor_stays(clone):
    network = Network(clone.Biased(WIDTH, HEADS), clone.Split(WIDTH, HEADS)).eval()
    before = state(network)
    if not clone.runs:
        with pytest.raises(InputError, match=r"^\[rewrite\] attn_bias of memory_efficient_attention .* a Triangle\.$"):
            rewrite(network, TOKENS)
        assert state(network) == before
        return
    rewrites = rewrite(network, TOKENS)
    assert [r.name for r in rewrites.done] == ["layers.1"] and "Triangle" in rewrites.left["layers.0"]
    assert state(network)[0]["layers.0"] == before[0]["layers.0"]


# Libraries that users take their networks from.


def exported(network, inputs):
    program = torch.onnx.export(network, inputs, dynamo=True, opset_version=21, verbose=False)
    return {node.op_type for node in program.model.graph}


def test_timm():
    timm = stand_ins.import_timm()
    network = timm.create_model("vit_tiny_patch16_224", img_size=32, depth=2, num_classes=3).eval()
    picture = (torch.randn(1, 3, 32, 32),)
    assert len(rewrite(network, picture).done) == 2
    pytest.importorskip("onnxscript", reason="onnxscript is not installed")
    assert exported(network, picture).isdisjoint({"IsNaN", "Where"})


DINOV2 = {"hidden_size": 32, "num_attention_heads": 2, "num_hidden_layers": 4, "image_size": 28, "patch_size": 14}
DPT = {"hidden_size": 32, "num_attention_heads": 2, "num_hidden_layers": 4, "intermediate_size": 32, "image_size": 64}
DPT |= {"backbone_out_indices": [0, 1, 2, 3], "neck_hidden_sizes": [8] * 4, "fusion_hidden_size": 8}
DPT |= {"use_batch_norm_in_fusion_residual": False}


@pytest.mark.parametrize(
    ("name", "settings", "side"),
    [("Dinov2", DINOV2, 28), ("ViT", DINOV2, 28), ("DPT", DPT, 64)],
    ids=["Dinov2", "ViT", "DPT"],
)
def test_transformers(name, settings, side):
    stand_ins.define_torchvision()
    transformers = pytest.importorskip("transformers", reason="transformers is not installed")
    kind = "DPTForDepthEstimation" if name == "DPT" else f"{name}Model"
    network = getattr(transformers, kind)(getattr(transformers, f"{name}Config")(**settings)).eval()
    picture = {"pixel_values": torch.randn(1, 3, side, side)}
    wanted = tensors(network(**picture))
    pytest.importorskip("onnxscript", reason="onnxscript is not installed")
    if name == "Dinov2":
        assert "IsNaN" in exported(copy.deepcopy(network), tuple(picture.values()))  # what the rewrite is for
    rewrites = rewrite(network, picture)
    assert [r.pattern for r in rewrites.done].count("attention") == 4
    assert difference(wanted, tensors(network(**picture))) < 1e-5
    assert exported(network, tuple(picture.values())).isdisjoint({"IsNaN", "Where"})
