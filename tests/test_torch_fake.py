"""Fake quantisation with gradients: the values of the cores, the gradients of the papers, and training with it."""

from __future__ import annotations

import copy
from pathlib import Path
from typing import Any

import numpy as np
import onnx
import pytest

from graph_models import random
from leadline import Grid, Scheme, quantize
from leadline.affine import choose_grid, fake_quantize, range_of
from leadline.export import qdq
from leadline.graph import Graph, Session
from leadline.recipe import Calibrate, Recipe, Round
from leadline.types import InputError
from small_networks import conv_relu6_depthwise, samples
from small_transformer import transformer

torch = pytest.importorskip("torch", reason="torch is not installed")
pytestmark = pytest.mark.torch

from leadline.torch import FakeQuantize, SimulatedModule, to_module  # noqa: E402

SCHEMES = {
    "tensor": Scheme(8),
    "signed": Scheme(4, signed=True, symmetric=True, narrow=True),
    "axis": Scheme(4, granularity="axis", axis=1),
    "block": Scheme(5, signed=True, symmetric=True, granularity="block", axis=1, block_size=4),
    "sixteen": Scheme(16),
}


def fitted(scheme: Scheme, x: np.ndarray, share: float = 1.0) -> Grid:
    lo, hi = range_of(x, scheme)
    return choose_grid(share * lo, share * hi, scheme)


@pytest.mark.parametrize("name", SCHEMES)
@pytest.mark.parametrize("learn", [False, True])
def test_values_are_the_cores(name: str, learn: bool) -> None:
    x = random(6, 12, spread=3.0)
    grid = fitted(SCHEMES[name], x, 0.7)  # a third saturates
    module = FakeQuantize(grid, learn)
    given = torch.from_numpy(x).requires_grad_()
    assert np.array_equal(module(given).detach().numpy(), fake_quantize(x, grid))  # with a gradient and without
    with torch.no_grad():
        assert np.array_equal(module(given).numpy(), fake_quantize(x, grid))
    assert module.grid == grid
    module.enabled = False
    assert module(given) is given


@pytest.mark.parametrize("symmetric", [False, True])
def test_tokens(symmetric: bool) -> None:
    scheme = Scheme(6, signed=symmetric, symmetric=symmetric, granularity="token", axis=2)
    x = random(2, 5, 8)
    x[0, 0] = 0.0
    empty = Grid(np.float32(1), np.int32(0), scheme)
    found = FakeQuantize(empty)(torch.from_numpy(x)).numpy()
    for row, want in zip(x.reshape(-1, 8), found.reshape(-1, 8), strict=True):
        one = Scheme(6, signed=symmetric, symmetric=symmetric)
        np.testing.assert_allclose(want, fake_quantize(row, fitted(one, row)), atol=1e-6)


@pytest.mark.parametrize("name", SCHEMES)
def test_gradients(name: str) -> None:
    """Of x: one inside, nothing outside. Of the scale: the slope of the surrogate s clamp(x / s + (code - x / s))."""
    x = random(6, 12, spread=3.0)
    grid = fitted(SCHEMES[name], x, 0.7)
    module, given = FakeQuantize(grid, True), torch.from_numpy(x).requires_grad_()
    upstream = random(6, 12)
    (module(given) * torch.from_numpy(upstream)).sum().backward()
    low, high, scale, zero = (
        wide(part, x.shape, grid.scheme) for part in (grid.lo, grid.hi, grid.scale, grid.zero_point)
    )
    inside = (x > low) & (x < high)
    border = np.minimum(abs(x - low), abs(x - high)) < 1e-4 * scale
    assert given.grad is not None
    np.testing.assert_allclose(given.grad.numpy()[~border], (upstream * inside)[~border], rtol=1e-6)

    def surrogate(s: np.ndarray) -> np.ndarray:
        """The straight-through function, its rounding's offset held: what the gradient is a derivative of."""
        v = x.astype(np.float64) / s
        least, most = grid.scheme.qmin - zero, grid.scheme.qmax - zero
        offset = np.round(np.clip(x / scale.astype(np.float64), least, most)) - np.clip(
            x / scale.astype(np.float64), least, most
        )
        return (np.clip(v, least, most) + offset) * s * upstream

    step = 1e-5 * scale.astype(np.float64)
    slope = (surrogate(scale + step) - surrogate(scale - step)) / (2 * step)
    shared = x.size // grid.scale.size
    wanted = sums(slope, grid) / np.sqrt(shared * grid.scheme.qmax)
    assert module.scale.grad is not None
    np.testing.assert_allclose(module.scale.grad.numpy(), wanted, rtol=2e-3, atol=2e-3 * np.abs(wanted).max())


def wide(part: np.ndarray, shape: tuple[int, ...], scheme: Scheme) -> np.ndarray:
    if scheme.granularity == "axis":
        part = part[None, :]
    elif scheme.granularity == "block":
        part = part.repeat(scheme.block_size or 1, 1)[:, : shape[1]]
    return np.broadcast_to(part, shape)


def sums(slope: np.ndarray, grid: Grid) -> np.ndarray:
    if grid.scheme.granularity == "axis":
        return slope.sum(0)
    if grid.scheme.granularity == "block":
        return slope.reshape(len(slope), -1, 4).sum(2)
    return slope.sum()


def test_it_refuses() -> None:
    with pytest.raises(InputError, match=r"\[FakeQuantize\] grid must be a Grid\. Received a Scheme\."):
        FakeQuantize(Scheme(8))
    token = Grid(np.float32(1), np.int32(0), Scheme(8, granularity="token", axis=1))
    with pytest.raises(InputError, match=r"scale that learns must belong to.*Received 8 bits per token\."):
        FakeQuantize(token, True)
    module = FakeQuantize(fitted(SCHEMES["axis"], random(6, 10)))
    with pytest.raises(
        InputError, match=r"must fit scales of shape \(10,\) per axis, axis 1\. Received shape \(6, 9\)"
    ):
        module(torch.zeros(6, 9))
    done = quantize(Graph.from_model(conv_relu6_depthwise()), "minmax-w8a8", samples(), threads=1)
    with pytest.raises(InputError, match=r"a Quantized brings its own grids and codes\. Received others"):
        to_module(done, done.grids)
    with pytest.raises(InputError, match=r"name must be a tensor with a grid\. Received 'nothing'"):
        to_module(done).quantizer("nothing")


def error(module: Any, x: Any, wanted: Any) -> Any:
    return (module(x) - wanted).square().mean()


@pytest.mark.parametrize("learn_scales", [False, True])
def test_training_lowers_the_error_and_is_saved_as_it_is(learn_scales: bool, tmp_path: Path) -> None:
    """Three-bit weights, taught by the float network."""
    graph = transformer()
    data = random(16, *graph.inputs[0].shape[1:])
    weights = Scheme(3, signed=True, symmetric=True, granularity="axis", narrow=True)
    recipe = Recipe("t", (Calibrate(activations="minmax"), Round()), weights=weights)
    done = quantize(graph, recipe, data, threads=1)
    module, teacher = to_module(done, learn_scales=learn_scales), to_module(done.graph)
    assert isinstance(module, SimulatedModule)
    batches = list(torch.from_numpy(data).split(graph.inputs[0].shape[0]))
    with torch.no_grad():
        wanted = [teacher(batch) for batch in batches]
    pairs = list(zip(batches, wanted, strict=True))
    before = whole_error(module, pairs)
    scales = [p for name, p in module.named_parameters() if name.endswith(".scale")]
    assert bool(scales) == learn_scales
    others = [p for name, p in module.named_parameters() if not name.endswith(".scale")]
    optimiser = torch.optim.Adam([{"params": others, "lr": 2e-3}, {"params": scales, "lr": 2e-4}])
    for _ in range(15):
        for batch, want in pairs:
            optimiser.zero_grad()
            (module(batch) - want).square().mean().backward()
            optimiser.step()
    after = whole_error(module, pairs)
    assert after < 0.6 * before
    trained = module.to_quantized()
    trained.save(tmp_path)
    stored = qdq.read(tmp_path / "model.qdq.onnx")
    for key, codes in trained.codes.items():
        assert np.array_equal(stored.codes[key], codes) and stored.grids[key] == trained.grids[key], key
    assert learn_scales == any(trained.grids[key] != grid for key, grid in done.grids.items())
    file = Session(onnx.load(tmp_path / "model.qdq.onnx"), optimize=False, threads=1)
    saved = lambda batch: torch.from_numpy(file.run({graph.inputs[0].name: batch.numpy()})[graph.outputs[0].name])  # noqa: E731
    # the same but for codes where float32 sums fall between two
    assert whole_error(module, [(batch, saved(batch)) for batch in batches]) < 0.05 * after
    again = to_module(trained)
    assert whole_error(again, [(batch, module(batch).detach()) for batch in batches]) < 0.05 * after


def whole_error(module: Any, pairs: Any) -> float:
    with torch.no_grad():
        return sum(float((module(batch) - want).square().mean()) for batch, want in pairs)


def test_tensors_that_share_a_grid_learn_one_scale_and_biases_follow() -> None:
    graph = transformer()
    done = quantize(graph, "minmax-w8a8", random(6, *graph.inputs[0].shape[1:]), threads=1)
    module = to_module(done, learn_scales=True)
    assert isinstance(module, SimulatedModule)
    moved = [
        (node.inputs[0], node.outputs[0])
        for node in done.graph.nodes
        if node.op_type in ("Reshape", "Transpose") and {node.inputs[0], node.outputs[0]} <= done.grids.keys()
    ]
    assert moved and all(module.quantizer(a) is module.quantizer(b) for a, b in moved)
    layer = next(layer for layer in done.graph.layers() if layer.bias in done.grids)
    with torch.no_grad():
        module.quantizer(layer.input).scale.mul_(2.0)
    trained = module.to_quantized()
    assert layer.bias is not None
    np.testing.assert_array_equal(trained.grids[layer.bias].scale, 2 * done.grids[layer.bias].scale)


def test_it_can_be_copied_and_its_state_loaded() -> None:
    done = quantize(Graph.from_model(conv_relu6_depthwise()), "minmax-w8a8", samples(), threads=1)
    module, x = to_module(done, learn_scales=True), torch.from_numpy(samples())[:1]
    other = copy.deepcopy(module)
    with torch.no_grad():
        for parameter in module.parameters():
            parameter.mul_(1.1)
    assert not torch.equal(other(x), module(x))
    other.load_state_dict(module.state_dict())
    assert torch.equal(other(x), module(x))
