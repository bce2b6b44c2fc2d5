"""leadline.torch.to_graph: the same numbers, the module's own names, and errors that say where."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import onnxruntime as ort
import pytest

from graph_models import FLOAT_NOISE
from leadline.graph import Graph, Session
from leadline.types import InputError

torch = pytest.importorskip("torch", reason="torch is not installed")
pytest.importorskip("onnxscript", reason="onnxscript is not installed")
pytestmark = pytest.mark.torch

from leadline.torch import to_graph  # noqa: E402
from torch_models import depth_anything, drawn, seeded, small_vit  # noqa: E402, F401

nn = torch.nn


def same(graph: Graph, wanted: Any, *inputs: Any) -> None:
    feed = {value.name: x.numpy() for value, x in zip(graph.inputs, inputs, strict=True)}
    found = Session(graph, threads=1).run(feed)
    given = wanted if isinstance(wanted, (tuple, list)) else (wanted,)
    for (name, array), tensor in zip(found.items(), given, strict=True):
        want = tensor.detach().numpy()
        assert np.abs(array - want).max() < FLOAT_NOISE * want.std(), name


def matching(module: Any, graph: Graph) -> set[str]:
    """The names that module and graph share, after checking that they hold the same numbers."""
    own = dict(module.named_parameters()) | dict(module.named_buffers())
    shared = own.keys() & graph.weights.keys()
    for name in shared:
        assert np.array_equal(graph.weights[name], own[name].detach().numpy()), name
    return set(shared)


def test_a_vit_keeps_its_names() -> None:
    module, x = small_vit(), torch.randn(2, 3, 16, 16)
    graph = to_graph(module, x)
    assert [value.name for value in (*graph.inputs, *graph.outputs)] == ["image", "output"]
    assert graph.inputs[0].shape == (2, 3, 16, 16)
    same(graph, module(x), x)
    own = {name for name, _ in (*module.named_parameters(), *module.named_buffers())}
    lost = own - matching(module, graph)
    assert lost == {"cls", "head.1.num_batches_tracked"}  # the token is repeated for two pictures
    layers = {layer.name: layer.weight for layer in graph.layers()}
    assert layers["blocks.1.attn.qkv"] == "blocks.1.attn.qkv.weight"


def test_a_token_for_one_picture_is_the_parameter() -> None:
    module = small_vit(depth=1)
    assert "cls" in matching(module, to_graph(module, torch.randn(1, 3, 16, 16)))


def test_the_module_stays_as_it_was() -> None:
    module, x = small_vit(depth=1).train(), torch.randn(1, 3, 16, 16)
    module.blocks[0].eval()
    before = {name: tensor.clone() for name, tensor in module.state_dict().items()}
    graph = to_graph(module, x)
    assert module.training and not module.blocks[0].training
    assert all(torch.equal(before[name], tensor) for name, tensor in module.state_dict().items())
    same(graph, module.eval()(x), x)


class Names(nn.Module):
    """Weights under odd names, in odd places, shared."""

    def __init__(self) -> None:
        super().__init__()
        self.attention = nn.MultiheadAttention(8, 2, batch_first=True)
        self.first = nn.Linear(8, 8, bias=False)
        self.tied = self.first
        self.table = nn.Linear(8, 8)
        self.a, self.b = nn.Parameter(torch.ones(8)), nn.Parameter(torch.ones(8))

    def forward(self, x: Any, *, shift: Any) -> dict[str, Any]:
        y = self.tied(self.first(x)) + self.a * self.b
        y = y + self.attention(y, y, y)[0] + shift
        return {"tokens": y, "product": y @ self.table.weight}


def test_shared_and_turned_weights_and_a_dict_of_outputs() -> None:
    module, x = drawn(Names()), torch.randn(1, 5, 8)
    graph = to_graph(module, {"x": x, "shift": x[:, :1]})
    assert [value.name for value in graph.inputs] == ["x", "shift"]
    assert [value.name for value in graph.outputs] == ["tokens", "product"]
    same(graph, [*module(x, shift=x[:, :1]).values()], x, x[:, :1])
    turned = graph.weights.pop("table.weight")  # x @ w is a layer of w transposed
    assert np.array_equal(turned, module.table.weight.detach().numpy().T)
    shared = matching(module, graph)
    assert {"first.weight", "attention.in_proj_weight", "attention.in_proj_bias"} <= shared
    assert sum(node.op_type == "Gemm" and "first.weight" in node.inputs for node in graph.nodes) == 2
    assert not {"tied.weight", "a", "b"} & graph.weights.keys()


class Several(nn.Module):
    def forward(self, x: Any, y: Any) -> tuple[Any, Any]:
        return x + y, x * y


def test_names_are_given_or_counted() -> None:
    x = torch.randn(2, 3)
    graph = to_graph(Several(), (x, x + 1))
    assert [value.name for value in graph.outputs] == ["output_0", "output_1"]
    graph = to_graph(Several(), [x, x + 1], input_names=["left", "right"], output_names=["sum", "product"])
    assert [value.name for value in graph.inputs] == ["left", "right"]
    same(graph, [2 * x + 1, x * (x + 1)], x, x + 1)
    with pytest.raises(InputError, match=r"\[to_graph\] input_names must be 2 different names\. Received \['a'\]\."):
        to_graph(Several(), (x, x), input_names=["a"])
    with pytest.raises(InputError, match=r"output_names must be 2 different names\. Received \['a', 'a'\]\."):
        to_graph(Several(), (x, x), output_names=["a", "a"])


def test_depth_anything() -> None:
    module = depth_anything()
    x = torch.randn(1, 3, 56, 70)
    graph = to_graph(module, {"pixel_values": x})
    assert [value.name for value in graph.outputs] == ["predicted_depth"]
    with torch.no_grad():
        same(graph, module(x).predicted_depth, x)
    missing = {name for name, _ in module.named_parameters()} - matching(module, graph)
    unused = "neck.fusion_stage.layers.0.residual_layer1."  # of the first fusion, which has nothing to add
    assert {name for name in missing if not name.startswith(unused)} == {
        "backbone.embeddings.mask_token",
        "backbone.embeddings.position_embeddings",  # resized
    }


def branch(x: Any) -> Any:
    return x if x.sum() > 0 else -x  # the line


class Branching(nn.Module):
    def forward(self, x: Any) -> Any:
        return branch(x)


class Decomposing(nn.Module):
    def forward(self, x: Any) -> Any:
        return torch.linalg.svd(x)[1]  # the line


class Picking(nn.Module):
    """How many rows it gives depends on the data. `scale` is used before and behind that."""

    def __init__(self) -> None:
        super().__init__()
        self.scale = nn.Parameter(torch.rand(4))

    def forward(self, x: Any) -> Any:
        x = x * self.scale.reshape(4)
        return x[x.sum(-1) > 0] * self.scale  # the line


class Late(nn.Module):
    """A layer behind what depends on the data."""

    def __init__(self) -> None:
        super().__init__()
        self.picking, self.layer = Picking(), nn.Linear(4, 20)

    def forward(self, x: Any) -> Any:
        x = self.picking(x)
        return self.layer(x)  # that line


@pytest.mark.parametrize(
    ("kind", "said"),
    [
        (Branching, r"\[to_graph\] torch\.export must capture the module; it fails at '1\.0' \(Branching\), PLACE"),
        (Decomposing, r"\[to_graph\] torch must have an ONNX spelling .*it has none at '1\.0' \(Decomposing\), PLACE"),
        (
            Late,
            r"\[Graph\.load\] layers of .* begins at NonZero writing '\w+', at '1\.0\.picking' \(Picking\), PLACE "
            r"\(.*\)\. Received Gemm writing '\w+', at '1\.0\.layer' \(Linear\), \w+\.py:\d+: .*\.$",
        ),
    ],
)
def test_refusals_say_where(kind: Any, said: str) -> None:
    module = nn.Sequential(nn.Linear(4, 4), nn.Sequential(kind()))
    with pytest.raises(InputError, match=said.replace("PLACE", r"test_torch_export\.py:\d+: .*# the line")):
        to_graph(module, torch.randn(2, 4))


def test_what_depends_on_the_data_is_behind(tmp_path: Path) -> None:
    torch.manual_seed(0)
    module, x = nn.Sequential(nn.Linear(4, 4), Picking()).eval(), torch.randn(16, 4)
    graph = to_graph(module, x)
    assert graph.tail is not None and graph.tail.names.isdisjoint(graph.weights)
    graph.save(tmp_path / "net.onnx")
    session = ort.InferenceSession(tmp_path / "net.onnx")
    with torch.no_grad():
        want = module(x).numpy()
    assert 0 < len(want) < len(x)
    (got,) = session.run(None, {graph.inputs[0].name: x.numpy()})
    np.testing.assert_allclose(got, want, atol=1e-6)


def test_refusals() -> None:
    with pytest.raises(InputError, match=r"\[to_graph\] module must be an nn\.Module\. Received a str\."):
        to_graph("model.pt", torch.randn(2, 4))
    with pytest.raises(InputError, match=r"must be float32 on the CPU.*\('weight' is not\)\. Received torch\.float16"):
        to_graph(nn.Linear(4, 4).half(), torch.randn(2, 4))
    with pytest.raises(InputError, match=r"must capture the module; it fails at the module itself \(Linear\)"):
        to_graph(nn.Linear(4, 4), torch.randn(2, 5))
