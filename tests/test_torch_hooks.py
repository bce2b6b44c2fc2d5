"""leadline.torch.calibrate: grids from hooks, fake quantisation in place, out again, trained, and as QDQ."""

from __future__ import annotations

import copy
from typing import Any

import numpy as np
import pytest

from leadline import Scheme
from leadline.affine import choose_grid, fake_quantize
from leadline.export import qdq
from leadline.graph import Session
from leadline.observers import Histogram, search_range
from leadline.types import InputError

torch = pytest.importorskip("torch", reason="torch is not installed")
pytestmark = pytest.mark.torch

from leadline.torch import Calibration, calibrate, to_graph  # noqa: E402
from torch_models import drawn, seeded, small_vit  # noqa: E402, F401

nn = torch.nn
WEIGHTS = Scheme(8, signed=True, symmetric=True, granularity="axis", axis=0, narrow=True)


def pictures(count: int = 4) -> list[Any]:
    return [torch.randn(2, 3, 16, 16) for _ in range(count)]


def convolutions() -> Any:
    return drawn(nn.Sequential(nn.Conv2d(3, 8, 3, padding=1), nn.ReLU(), nn.Conv2d(8, 4, 1)))


def test_it_computes_what_the_grids_say() -> None:
    module, data = convolutions(), pictures()
    plain = copy.deepcopy(module)
    found = calibrate(module, data, observer="minmax")
    assert [layer.name for layer in found.layers] == ["0", "2"] and not found.left
    seen = Histogram()
    for x in data:
        seen.update(x.numpy())
    assert found.grids["0.input"] == choose_grid(*search_range(seen, "minmax", Scheme(8)), Scheme(8))
    x = data[0]
    with torch.no_grad():
        for name, layer in (("0", plain[0]), ("2", plain[2])):
            layer.weight.copy_(torch.from_numpy(fake_quantize(layer.weight.numpy(), found.grids[f"{name}.weight"])))
        x = torch.from_numpy(fake_quantize(x.numpy(), found.grids["0.input"]))
        middle = torch.relu(plain[0](x))
        wanted = plain[2](torch.from_numpy(fake_quantize(middle.numpy(), found.grids["2.input"])))
        assert torch.equal(module(data[0]), wanted)
    assert "int8 per axis" in str(found) and "uint8 per tensor" in str(found)


@pytest.mark.parametrize("bits", [8, 12, 16])
def test_wide_grids_of_activations_have_the_head_room_of_recipes(bits: int) -> None:
    module, data, scheme = convolutions(), pictures(), Scheme(bits)
    grids = calibrate(module, data, observer="minmax", activations=scheme).grids
    lo, hi = (f([f(x.numpy()) for x in data]) for f in (np.min, np.max))
    factor = np.float32(1.5 if bits > 8 else 1)
    assert grids["0.input"] == choose_grid(factor * lo, factor * hi, scheme)


def test_it_goes_again() -> None:
    module, data = small_vit(), pictures()
    module.train()
    module.blocks[0].eval()
    before, state = {m: m.training for m in module.modules()}, copy.deepcopy(module.state_dict())
    wanted = module.eval()(data[0]).detach()
    for m, flag in before.items():
        m.training = flag
    found = calibrate(module, data, outputs=True)
    assert {m: m.training for m in before} == before
    module.eval()
    assert not torch.equal(module(data[0]), wanted)
    found.enable(False)
    assert torch.equal(module(data[0]), wanted)
    found.enable()
    found.remove()
    found.remove()
    assert torch.equal(module(data[0]), wanted) and not found.grids
    assert module.state_dict().keys() == state.keys()
    assert all(torch.equal(state[name], tensor) for name, tensor in module.state_dict().items())
    assert type(module.blocks[0].fc1) is nn.Linear and not module.blocks[0].fc1._forward_pre_hooks
    calibrate(module, data)


def test_a_copy_has_its_own() -> None:
    module, data = convolutions(), pictures()
    calibrate(module, data)
    wanted = module(data[0])
    other = copy.deepcopy(module)
    assert torch.equal(other(data[0]), wanted)
    with torch.no_grad():
        other[0].input_quantizer.scale.mul_(8.0)
    assert not torch.equal(other(data[0]), wanted) and torch.equal(module(data[0]), wanted)


@pytest.mark.parametrize("kind", ["axis", "token"])
def test_other_granularities(kind: Any) -> None:
    module, data = small_vit(depth=1), pictures()
    wanted = module(data[0]).detach()
    blocks = Scheme(8, signed=True, symmetric=True, granularity="block", axis=1, block_size=8)
    found = calibrate(module, data, pattern="blocks.*", weights=blocks, activations=Scheme(8, granularity=kind, axis=0))
    assert found.grids["blocks.0.fc1.weight"].scale.shape == (32, 2)
    if kind == "axis":
        assert found.grids["blocks.0.fc1.input"].scale.shape == (16,)
    lost = (module(data[0]) - wanted).square().mean() / wanted.var()
    assert 0 < lost < 1e-3


def test_training_goes_on_in_place() -> None:
    module, data = small_vit(depth=1), pictures(6)
    wanted = [module(x).detach() for x in data]
    three = Scheme(3, signed=True, symmetric=True, granularity="axis", axis=0)
    found = calibrate(module, data, pattern="blocks.*", weights=three, learn_scales=True)
    scale = found.grids["blocks.0.fc1.input"].scale

    def lost() -> float:
        with torch.no_grad():
            return sum(float((module(x) - want).square().mean()) for x, want in zip(data, wanted, strict=True))

    before = lost()
    optimiser = torch.optim.Adam(module.parameters(), 1e-3)
    for _ in range(15):
        for x, want in zip(data, wanted, strict=True):
            optimiser.zero_grad()
            (module(x) - want).square().mean().backward()
            optimiser.step()
    assert lost() < 0.6 * before
    assert found.grids["blocks.0.fc1.input"].scale != scale


def test_as_qdq() -> None:
    pytest.importorskip("onnxscript", reason="onnxscript is not installed")
    module, data = convolutions(), pictures()
    found = calibrate(module, data)
    wanted = module(data[0]).detach().numpy()
    grids = dict(found.grids)
    other = copy.deepcopy(module)
    placed_by = found
    found.remove()
    plain = module(data[0]).detach().numpy()
    graph = to_graph(module, data[0])
    again = calibrate(module, data)
    assert again.grids == grids and placed_by.grids == {}
    model = qdq.to_qdq(graph, again.placed(graph))
    found_by_file = Session(model, optimize=False, threads=1).run({"input": data[0].numpy()})["output"]
    error = np.square(wanted - plain, dtype=np.float64).mean()
    # the same but for biases, which the file rounds, and codes where float32 sums fall between two
    assert np.square(found_by_file - wanted, dtype=np.float64).mean() < 0.02 * error
    assert torch.equal(other(data[0]), torch.from_numpy(wanted))


class Unused(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.attention, self.never = nn.MultiheadAttention(8, 2, batch_first=True), nn.Linear(8, 8)
        self.used = nn.Linear(8, 8)

    def forward(self, x: Any) -> Any:
        return self.used(self.attention(x, x, x)[0])


def test_what_is_left_and_what_is_refused() -> None:
    module, data = Unused(), [torch.randn(1, 5, 8) for _ in range(3)]
    found = calibrate(module, data)
    assert isinstance(found, Calibration)
    assert found.left == {
        "attention.out_proj": "it is a NonDynamicallyQuantizableLinear",
        "never": "its forward was never called",
        "attention": "it is a MultiheadAttention; to_graph and quantize take it",
    }
    with pytest.raises(InputError, match=r"must not be calibrated yet: remove\(\) what is in it\. Received Unused"):
        calibrate(module, data)
    found.remove()
    assert [name for name, _ in module.named_parameters()] == [name for name, _ in Unused().named_parameters()]
    with pytest.raises(InputError, match=r"the module must run on its data \(batch 1\)\. Received .* 7\.$"):
        calibrate(module, [data[0], torch.randn(1, 5, 7)])
    with pytest.raises(InputError, match=r"data must hold batches that reach the layers\. Received none\."):
        calibrate(module, data, pattern="never")
    for keywords, said in (
        ({"pattern": "x*"}, r"pattern must match a linear or convolutional layer.*Received 'x\*'"),
        ({"weights": None, "activations": None}, r"weights or activations must be a Scheme\. Received None for both"),
        ({"weights": 8}, r"weights must be a Scheme or None\. Received a int"),
        ({"observer": "best"}, r"observer must be one of minmax, percentile.*Received 'best'"),
        (
            {"weights": Scheme(8, granularity="token", axis=0)},
            r"weights must have .*no grid for each token\. Received 8 bits per token",
        ),
    ):
        with pytest.raises(InputError, match=rf"\[calibrate\] {said}"):
            calibrate(Unused(), data, **keywords)  # type: ignore[arg-type]
    with pytest.raises(InputError, match=r"data must be an iterable of batches\. Received a Tensor"):
        calibrate(Unused(), data[0])
    with pytest.raises(InputError, match=r"'used\.input'.*sample 1"):
        calibrate(Unused(), [data[0], data[0] * float("nan")])
    with pytest.raises(InputError, match=r"module must be an nn\.Module that holds layers\. Received a Linear"):
        calibrate(nn.Linear(8, 8), data)
