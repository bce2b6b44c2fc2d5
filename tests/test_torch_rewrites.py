"""leadline.torch.rewrite: rotary positions, resized tables and einops; the depth-only wrapper; users' clones."""

from __future__ import annotations

import copy
import os
import sys
from pathlib import Path

import numpy as np
import pytest

from leadline.types import InputError

torch = pytest.importorskip("torch", reason="torch is not installed")

import torch_stand_ins as stand_ins  # noqa: E402
from leadline.torch import DepthOnly, rewrite  # noqa: E402
from leadline.torch.observation import tensors  # noqa: E402
from leadline.torch.rewrites import einops as own  # noqa: E402
from leadline.torch.rewrites.proof import difference  # noqa: E402
from small_vggt import Interleaved2d, Rotary2d, SmallVGGT  # noqa: E402

pytestmark = [pytest.mark.torch, pytest.mark.filterwarnings("ignore")]  # the exporters warn about themselves

nn, F = torch.nn, torch.nn.functional
VIEWS = torch.rand(1, 2, 3, 12, 16, generator=torch.Generator().manual_seed(0))


@pytest.fixture(autouse=True)
def _seed():
    torch.manual_seed(0)


def found(rewrites, pattern):
    return [r.name for r in rewrites.done if r.pattern == pattern]


def state(module):
    modules = {name: (id(m), type(m), sorted(m.__dict__)) for name, m in module.named_modules()}
    return modules, {name: id(p) for name, p in module.named_parameters()}


@pytest.mark.parametrize("kind", [Rotary2d, Interleaved2d])
def test_rotary_positions(kind):
    network = DepthOnly(SmallVGGT(rope=kind())).eval()
    before = state(network)
    wanted = network(VIEWS).detach()
    with pytest.raises(Exception, match=r"data-dependent|GuardOnDataDependent"):
        torch.export.export(copy.deepcopy(network), (VIEWS,), strict=False)
    rewrites = rewrite(network, VIEWS, patterns=["rope"])
    assert found(rewrites, "rope") == ["aggregator.rope"] and len(rewrites.done) == 1
    assert rewrites.difference == difference([wanted], [network(VIEWS).detach()]) < 1e-6
    program = torch.export.export(network, (VIEWS,), strict=False)
    assert not any(word in str(n.target) for n in program.graph.nodes for word in ("aten.item", "aten.sin", "aten.cos"))
    assert difference([wanted], tensors(program.module()(VIEWS))) < 1e-6
    rewrites.undo()
    assert state(network) == before


def test_tables_are_the_rotation():
    rope = Rotary2d(base=7.0)

    class Network(nn.Module):
        def __init__(self):
            super().__init__()
            self.rope = rope

        def forward(self, x):
            return self.rope(x, torch.tensor([[[0, 3], [2, 1]]]))

    rewrite(Network(), torch.randn(1, 1, 2, 8))
    cosines = rope.static_rotary.get_buffer("cos_1x1x2x8")[0, 0]
    root = 7**0.5
    angles = np.array([[0, 0, 0, 0, 3, 3 / root, 3, 3 / root], [2, 2 / root, 2, 2 / root, 1, 1 / root, 1, 1 / root]])
    assert np.allclose(cosines, np.cos(angles), atol=1e-6)


def test_other_positions_are_computed_as_before():
    network = DepthOnly(SmallVGGT()).eval()
    other = torch.rand(1, 2, 3, 16, 12)  # as many patches, another grid
    wanted = network(other).detach()
    rewrite(network, VIEWS)
    assert difference([wanted], [network(other).detach()]) < 1e-5
    larger = torch.rand(1, 3, 3, 20, 20)
    assert network(larger).shape == (1, 3, 20, 20)


def test_positions_that_are_data_are_left():
    class Network(nn.Module):
        def __init__(self):
            super().__init__()
            self.rope = Rotary2d()

        def forward(self, x):
            return self.rope(x, (x[:, 0, :, :2] > 0).long())

    assert not found(rewrite(Network(), torch.randn(1, 1, 5, 8)), "rope")


def test_what_is_not_linear_is_left():
    class Clipped(Rotary2d):
        def forward(self, tokens, positions):
            return super().forward(tokens, positions).clamp(-0.5, 0.5) + 0.1

    network = DepthOnly(SmallVGGT(rope=Clipped())).eval()
    before = state(network)
    rewrites = rewrite(network, VIEWS, patterns=["rope"])
    assert not rewrites.done and rewrites.left == {"aggregator.rope": "it is not linear in its tokens"}
    assert state(network) == before


def test_resized_tables():
    network = DepthOnly(SmallVGGT()).eval()
    before = state(network)
    rewrites = rewrite(network, VIEWS, patterns=["rope", "constants"])
    assert found(rewrites, "constants") == ["aggregator"] and rewrites.difference == 0  # the head resizes data
    table = F.interpolate(network.aggregator.table, size=(3, 4), mode="bicubic", antialias=True)
    assert torch.equal(network.aggregator.baked_constants.constant_0, table)
    program = torch.export.export(network, (VIEWS,), strict=False).run_decompositions()
    targets = [str(n.target) for n in program.graph.nodes]
    assert not any("bicubic" in target for target in targets) and any("bilinear" in target for target in targets)
    rewrites.undo()
    assert {name for name in state(network)[1]} == set(before[1])


def test_a_module_that_resizes_both_constants_and_data():
    class Inner(nn.Module):
        def forward(self, x):
            return F.interpolate(x, scale_factor=2)

    class Network(nn.Module):
        def __init__(self):
            super().__init__()
            self.table, self.inner = nn.Parameter(torch.randn(1, 1, 2, 2)), Inner()

        def forward(self, x):
            x = self.inner(x) + F.interpolate(x, size=(8, 8), mode="bilinear")
            x = x + F.interpolate(self.table, size=(8, 8), mode="bicubic")
            return self.inner(x) + F.interpolate(self.table * 2, size=(16, 16), mode="bicubic")

    network = Network()
    rewrites = rewrite(network, torch.randn(1, 1, 4, 4))
    assert found(rewrites, "constants") == [""] and rewrites.difference == 0
    assert [tuple(b.shape) for b in network.baked_constants.buffers()] == [(1, 1, 8, 8), (1, 1, 16, 16)]
    assert "(network)" in str(rewrites)


def test_grids():
    class Inner(nn.Module):
        def forward(self, x):
            rows = torch.linspace(0, 1, x.shape[-2], dtype=torch.float64)
            table = torch.einsum("i,j->ij", torch.linspace(0, 1, x.shape[-1]).double(), rows.sin()).T.float()
            return x + table[None, None].expand(x.shape) + torch.rand(1).mul(0)

    class Network(nn.Module):
        def __init__(self):
            super().__init__()
            self.inner, self.scale = Inner(), nn.Parameter(torch.ones(2, 1, 1))

        def forward(self, x):
            y = x * torch.arange(4).float().expand(3, 4)
            return self.inner(y)[..., 1:] * self.scale + self.inner(y[..., 1:])

    network, x = Network(), torch.randn(5, 2, 3, 4)
    rewrites = rewrite(network, x)
    assert [(r.name, r.found) for r in rewrites.done] == [("", "grid (1)"), ("inner", "grid (1)")]
    assert rewrites.difference == 0
    assert sorted(tuple(b.shape) for b in network.buffers()) == [(1, 1, 3, 4), (1, 4)]  # no copies
    assert list(network.state_dict()) == ["scale"]


EINOPS = [
    ("rearrange", "b c f h w -> (b f) c h w", {}, (2, 3, 4, 5, 6)),
    ("rearrange", "(b f) d c -> (b d) f c", {"f": 4}, (8, 3, 5)),
    ("rearrange", "b (h w) c -> b c h w", {"h": 2}, (2, 6, 5)),
    ("rearrange", "... c -> c ...", {}, (2, 3, 4)),
    ("rearrange", "b ... (h d) -> b h ... d", {"h": 2}, (2, 3, 4, 6)),
    ("rearrange", "b 1 c -> b c 1 1", {}, (2, 1, 3)),
    ("rearrange", "b () c -> (b c)", {}, (2, 1, 3)),
    ("repeat", "b n c -> (b d) n c", {"d": 3}, (2, 4, 5)),
    ("repeat", "h w -> h (w k) c", {"k": 2, "c": 3}, (4, 5)),
    ("repeat", "... -> b ...", {"b": 2}, (4, 5)),
]


@pytest.mark.parametrize(("function", "pattern", "sizes", "shape"), EINOPS, ids=[case[1] for case in EINOPS])
def test_einops_by_its_own(function, pattern, sizes, shape):
    einops = pytest.importorskip("einops", reason="einops is not installed")
    x = torch.randn(shape)
    assert torch.equal(getattr(own, function)(x, pattern, **sizes), getattr(einops, function)(x, pattern, **sizes))


@pytest.mark.parametrize("reduction", ["mean", "sum", "max", "min"])
def test_einops_reductions(reduction):
    einops = pytest.importorskip("einops", reason="einops is not installed")
    x = torch.randn(2, 3, 4, 6)
    pattern, sizes = "b c (h s) (w t) -> b c h w", {"s": 2, "t": 3}
    assert torch.allclose(own.reduce(x, pattern, reduction, **sizes), einops.reduce(x, pattern, reduction, **sizes))


@pytest.mark.parametrize(
    ("call", "message"),
    [
        (lambda x: own.rearrange(x, "a b"), r"\[rearrange\] pattern must have two sides"),
        (lambda x: own.rearrange(x, "a b c -> a"), r"\[rearrange\] 'a b c -> a' must name as many axes.* \(2, 3\)\."),
        (lambda x: own.rearrange(x, "a b -> a"), r"\[rearrange\] axes of .* both sides, or be reduced. Received b\."),
        (lambda x: own.rearrange(x, "(a c) b -> a c b"), r"\[rearrange\] axes of .* must fill"),
        (lambda x: own.repeat(x, "a b -> a b c"), r"\[repeat\] new axes of .* must have sizes. Received c\."),
    ],
)
def test_einops_mistakes(call, message):
    with pytest.raises(InputError, match=message):
        call(torch.zeros(2, 3))


def test_einops_in_a_module(monkeypatch):
    einops = pytest.importorskip("einops", reason="einops is not installed")
    from einops.layers.torch import Rearrange

    names = {"einops": einops, "rearrange": einops.rearrange, "nn": nn, "Rearrange": Rearrange}
    source = """
class Network(nn.Module):
    def __init__(self):
        super().__init__()
        self.layer = Rearrange("b (h w) c -> b c h w", h=2)

    def forward(self, x):
        return self.layer(self.swap(x))

    def swap(self, x):
        return einops.repeat(rearrange(x, "b n c -> b c n"), "b c n -> b n (c k)", k=2)
"""
    exec(source, names)  # a user's file
    network, x = names["Network"](), torch.randn(2, 6, 5)
    wanted = network(x)
    rewrites = rewrite(network, x)
    assert found(rewrites, "einops") == ["", "layer"] and rewrites.difference == 0
    for name in ("rearrange", "repeat", "reduce"):
        monkeypatch.setattr(einops, name, None)
    monkeypatch.setattr(type(network.layer), "forward", None)
    assert torch.equal(network(x), wanted)


def test_depth_only():
    network = SmallVGGT().eval()
    depth, confidence = DepthOnly(network, confidence=True)(VIEWS)
    tokens, start = network.aggregator(VIEWS)
    wanted = network.depth_head(tokens, VIEWS, start)
    assert torch.equal(depth, wanted[0].squeeze(-1)) and torch.equal(confidence, wanted[1])
    assert DepthOnly(network)(VIEWS).shape == (1, 2, 12, 16)
    with pytest.raises(InputError, match=r"^\[DepthOnly\] .* Received a Linear without aggregator and depth_head\.$"):
        DepthOnly(nn.Linear(2, 2))


def test_everything_exports_plainly():
    pytest.importorskip("onnxscript", reason="onnxscript is not installed")
    from leadline.graph import Session
    from leadline.torch import to_graph

    network = DepthOnly(SmallVGGT()).eval()
    rewrites = rewrite(network, VIEWS)
    assert {r.pattern for r in rewrites.done} == {"constants", "rope", "attention"} and rewrites.difference < 1e-6
    graph = to_graph(network, VIEWS)
    operators = {node.op_type for node in graph.nodes}
    assert operators.isdisjoint({"IsNaN", "Where", "Shape", "Gather", "Range", "Cos", "Sin", "Attention"})
    with Session(graph, optimize=False, threads=1) as session:
        (got,) = session.run({graph.inputs[0].name: VIEWS.numpy()}).values()
    assert np.allclose(got, network(VIEWS).detach().numpy(), rtol=1e-4)


# Users' own code.


def clone(variable, monkeypatch):
    folder = os.environ.get(variable)
    if not folder:
        pytest.skip(f"{variable} does not name a clone")
    monkeypatch.syspath_prepend(str(Path(folder)))
    for name in [n for n in sys.modules if n.split(".")[0] in ("vggt", "video_depth_anything", "utils")]:
        monkeypatch.delitem(sys.modules, name)


@pytest.mark.full
def test_video_depth_anything(monkeypatch):
    clone("LEADLINE_VIDEO_DEPTH_ANYTHING", monkeypatch)
    stand_ins.define_torchvision()
    from video_depth_anything.video_depth import VideoDepthAnything

    network = VideoDepthAnything(encoder="vits", features=64, out_channels=[48, 96, 192, 384]).eval()
    before = state(network)
    rewrites = rewrite(network, torch.rand(1, 2, 3, 56, 70))
    assert len(found(rewrites, "einops")) == 12 and found(rewrites, "constants") == [""]
    assert not rewrites.left and rewrites.difference < 1e-5
    rewrites.undo()
    assert state(network) == before


@pytest.mark.full
def test_vggt(monkeypatch):
    clone("LEADLINE_QUANTVGGT", monkeypatch)
    from vggt.layers.block import Block
    from vggt.layers.rope import RotaryPositionEmbedding2D

    class Network(nn.Module):
        def __init__(self):
            super().__init__()
            rope = RotaryPositionEmbedding2D(frequency=100)
            self.blocks = nn.ModuleList(Block(dim=64, num_heads=2, qk_norm=True, rope=rope) for _ in range(2))

        def forward(self, x):
            positions = torch.cartesian_prod(torch.arange(3), torch.arange(4))[None].expand(x.shape[0], -1, -1)
            for block in self.blocks:
                x = block(x, pos=positions)
            return x

    network = Network().eval()
    rewrites = rewrite(network, torch.randn(2, 12, 64))
    assert found(rewrites, "rope") == ["blocks.0.attn.rope"] and len(found(rewrites, "attention")) == 2
    assert rewrites.difference < 1e-5
