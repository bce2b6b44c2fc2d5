"""leadline.torch.load_weights: a graph's weights in the module that it came from, proved by the outputs."""

from __future__ import annotations

import copy
from dataclasses import replace
from typing import Any

import numpy as np
import pytest

from leadline import quantize
from leadline.affine import dequantize
from leadline.graph import Session
from leadline.types import InputError

torch = pytest.importorskip("torch", reason="torch is not installed")
pytest.importorskip("onnxscript", reason="onnxscript is not installed")
pytestmark = pytest.mark.torch

from leadline.torch import load_weights, to_graph  # noqa: E402
from torch_models import drawn, small_vit  # noqa: E402

nn = torch.nn


@pytest.mark.parametrize("recipe", ["minmax-w8a8", "w8a8"])
def test_the_values_of_the_codes(recipe: str) -> None:
    """With BatchNorm and LayerScale folded away, and (w8a8) the residual stream rotated."""
    torch.manual_seed(1)
    module, x = small_vit(depth=1), torch.randn(1, 3, 16, 16)
    graph = to_graph(module, x)
    data = torch.randn(8, 3, 16, 16).numpy()
    done = quantize(graph, recipe, data, threads=1)
    changed = load_weights(module, done, x)
    valued = done.graph.copy()
    valued.weights |= {name: dequantize(codes, done.grids[name]) for name, codes in done.codes.items()}
    want = Session(valued, threads=1).run({"image": x.numpy()})["output"]
    assert np.abs(module(x).detach().numpy() - want).max() < 1e-3 * want.std()
    assert {"blocks.0.attn.qkv.weight", "head.0.weight", "head.0.bias", "blocks.0.gamma"} <= changed.keys()
    assert torch.equal(module.blocks[0].gamma, torch.ones(16)) and torch.equal(module.head[1].weight, torch.ones(8))


class Turned(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.first, self.matrix = nn.Linear(8, 8, bias=False), nn.Parameter(torch.zeros(8, 8))

    def forward(self, x: Any) -> Any:
        return self.first(torch.relu(self.first(x))) @ self.matrix


def test_turned_and_shared() -> None:
    module, x = drawn(Turned()), torch.randn(3, 8)
    wanted = copy.deepcopy(module)
    with torch.no_grad():
        for parameter in wanted.parameters():
            parameter.mul_(1.5).add_(0.01)
    changed = load_weights(module, to_graph(wanted, x), x)
    assert changed.keys() == {"first.weight", "matrix"}
    assert all(torch.equal(a, b) for a, b in zip(module.parameters(), wanted.parameters(), strict=True))
    assert load_weights(module, to_graph(module, x), x) == {}


def test_what_does_not_fit_changes_nothing() -> None:
    module, x = small_vit(depth=1), torch.randn(1, 3, 16, 16)
    state = copy.deepcopy(module.state_dict())
    graph = to_graph(module, x)
    other = graph.copy()
    other.weights["blocks.0.fc1.weight"] = other.weights["blocks.0.fc1.weight"][:, :8]
    cases = [(other, r"'blocks\.0\.fc1\.weight' of the graph must have shape \(32, 16\)\. Received \(32, 8\)")]
    other = graph.copy()
    name = next(name for name, array in other.weights.items() if array.dtype == np.float32 and name not in state)
    other.weights[name] = other.weights[name] * 3
    cases.append((other, r"must be able to hold what the graph holds: 'output' within .*a difference of"))
    other = graph.copy()
    other.nodes = [replace(node, name="another") if node.name == "blocks.0.fc1" else node for node in other.nodes]
    cases.append((other, r"must have the node 'blocks\.0\.fc1' of the module\. Received no Gemm"))
    cases.append((to_graph(drawn(Turned()), torch.randn(3, 8)), r"must have inputs and outputs of the module's shapes"))
    for source, said in cases:
        with pytest.raises(InputError, match=rf"\[load_weights\] .*{said}"):
            load_weights(module, source, x)
        assert module.state_dict().keys() == state.keys()
        assert all(torch.equal(state[key], tensor) for key, tensor in module.state_dict().items())
