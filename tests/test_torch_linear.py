"""Quantised linear layers in PyTorch: what rotation and smoothing leave alone, numpy beside the quantiser, gradients,
states, whole models, refusals."""

from __future__ import annotations

import copy
import io
import subprocess
import sys

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from data_samples import refused
from leadline import Grid, Scheme, hadamard
from leadline.affine import choose_grid, range_of
from leadline.rounding import METHODS

torch = pytest.importorskip("torch", reason="torch is not installed")
pytestmark = pytest.mark.torch

from leadline.progress import Quiet  # noqa: E402
from leadline.torch import PER_ROW, QuantizedLinear, load_quantized, quantize_linears  # noqa: E402
from leadline.torch.observation import Seen, observe  # noqa: E402

nn, F = torch.nn, torch.nn.functional
FINE = Scheme(16, signed=True, symmetric=True, granularity="axis", axis=0)
TENSOR = Scheme(8)


@pytest.fixture(autouse=True)
def _seeded():
    torch.manual_seed(0)
    before = torch.get_num_threads()
    torch.set_num_threads(1)  # the layers are tiny
    yield
    torch.set_num_threads(before)


def linear(inputs=48, outputs=20, bias=True):
    return nn.Linear(inputs, outputs, bias=bias)


def scales(size, seed=0):
    return np.exp(np.random.default_rng(seed).standard_normal(size)).astype(np.float32)


def noise(found, wanted):
    """Squared error over the power of what is wanted."""
    found, wanted = found.detach().double(), wanted.detach().double()
    return float((found - wanted).square().sum() / wanted.square().sum())


def outliers(*shape, channels=3, factor=60.0):
    """Tokens as transformers have them: a few channels far above all others."""
    x = torch.randn(*shape)
    x[..., :channels] *= factor
    return x


# The product ---------------------------------------------------------------------------------------------------------


@given(
    st.integers(1, 70), st.integers(1, 9), st.sampled_from([(), (5,), (2, 3), (2, 0, 4)]), st.booleans(), st.booleans()
)
@settings(max_examples=40, deadline=None)
def test_rotation_and_smoothing_leave_the_product_alone(inputs, outputs, lead, rotated, smoothed):
    layer, x = linear(inputs, outputs), torch.randn(*lead, inputs)
    rotation = hadamard.random_rotation(inputs, 3) if rotated else None
    smooth = scales(inputs) if smoothed else None
    made = QuantizedLinear.from_float(layer, FINE, None, rotation=rotation, smooth=smooth)
    wanted = layer(x)
    assert made(x).shape == wanted.shape and made(x).dtype == torch.float32
    torch.testing.assert_close(made(x), wanted, rtol=1e-3, atol=2e-3)  # 16-bit weights
    exact = made.prepare(x)[0].double() @ (torch.from_numpy(rotated_weight(layer, rotation, smooth)).T)
    torch.testing.assert_close(exact + layer.bias.double(), wanted.double(), rtol=2e-5, atol=2e-5)


def rotated_weight(layer, rotation, smooth):
    weight = layer.weight.detach().double().numpy()
    weight = weight if rotation is None else weight @ rotation.matrix()
    return weight if smooth is None else weight * smooth


@pytest.mark.parametrize("rotated", [False, True])
@pytest.mark.parametrize("smoothed", [False, True])
def test_sixteen_bits_are_the_float_layer(rotated, smoothed):
    layer, x = linear(384, 96), torch.randn(2, 50, 384)
    rotation = hadamard.layernorm_rotation(384) if rotated else None
    made = QuantizedLinear.from_float(layer, FINE, FINE, rotation=rotation, smooth=scales(384) if smoothed else None)
    assert noise(made(x), layer(x)) < 1e-5  # scales of e^3 cost two of sixteen bits


def test_it_is_numpy_token_by_token():
    layer, x, rotation, smooth = linear(96, 30), outliers(3, 7, 96), hadamard.random_rotation(96), scales(96)
    made = QuantizedLinear.from_float(layer, rotation=rotation, smooth=smooth, clip=0.9)
    tokens = (rotation(x.numpy()) / smooth).reshape(-1, 96)
    step = np.float32(0.9) * np.abs(tokens).max(1, keepdims=True) / 7
    codes = np.clip(np.round(tokens / step.astype(np.float32)), -8, 7)
    weight = rotated_weight(layer, rotation, smooth)
    rows = np.abs(weight).max(1, keepdims=True) / 7
    weight_codes = np.clip(np.round(weight / rows), -8, 7)
    np.testing.assert_array_equal(made.codes.numpy(), weight_codes)
    assert made.codes.dtype == torch.int8
    wanted = (step * codes).astype(float) @ (rows * weight_codes).T + layer.bias.detach().numpy()
    np.testing.assert_allclose(made(x).detach().numpy().reshape(-1, 30), wanted, rtol=1e-4, atol=1e-4)


@pytest.mark.parametrize("activations", [None, TENSOR, FINE, "tensor", "channels"])
@pytest.mark.parametrize(
    "weights",
    [
        Scheme(8, signed=True, symmetric=True),
        Scheme(4, signed=False, granularity="axis", axis=0),
        Scheme(4, signed=True, symmetric=True, granularity="block", axis=1, block_size=16),
        Scheme(12, signed=False, granularity="axis", axis=0),
    ],
)
def test_any_grids(weights, activations):
    layer, x = linear(), torch.randn(4, 9, 48)
    if activations == "tensor":
        activations = choose_grid(-4.0, 4.0, TENSOR)
    elif activations == "channels":
        scheme = Scheme(8, granularity="axis", axis=1)
        activations = choose_grid(*range_of(x.reshape(-1, 48), scheme), scheme)
    made = QuantizedLinear.from_float(layer, weights, activations)
    assert made.activations == activations and made.grid.scheme == weights
    assert noise(made(x), layer(x)) < (0.02 if weights.bits == 4 else 2e-3)


def test_a_static_grid_is_the_same_at_every_call_and_a_dynamic_one_is_not():
    layer, x = linear(), torch.randn(10, 48)
    static = QuantizedLinear.from_float(layer, FINE, choose_grid(-1.0, 1.0, TENSOR))
    for_all, for_each = (QuantizedLinear.from_float(layer, FINE, s) for s in (TENSOR, PER_ROW))
    grown = torch.cat([x, 100 * x[:1]])
    assert torch.equal(static(grown)[:10], static(x)) and torch.equal(for_each(grown)[:10], for_each(x))
    assert noise(for_all(grown)[:10], layer(x)) > 10 * noise(for_all(x), layer(x))


def test_inputs_are_left_as_they_are_and_views_are_seen():
    layer = linear()
    x = torch.randn(48, 5, 2).permute(2, 1, 0)
    for rotation in (None, hadamard.random_rotation(48)):
        made = QuantizedLinear.from_float(layer, rotation=rotation)
        before = x.clone()
        assert torch.equal(made(x), made(x.contiguous())) and torch.equal(x, before)
        with torch.inference_mode():
            assert torch.equal(made(torch.zeros(2, 48)), layer.bias.expand(2, 20))
    assert torch.equal(QuantizedLinear.from_float(linear(bias=False))(torch.zeros(2, 48)), torch.zeros(2, 20))


def test_threads_change_nothing():
    layer, x = linear(384, 30), torch.randn(300, 384)
    made, before = QuantizedLinear.from_float(layer, rotation=hadamard.random_rotation(384)), torch.get_num_threads()
    results = []
    try:
        for threads in (1, 2, 3):
            torch.set_num_threads(threads)
            results.append(made.prepare(x)[0])
    finally:
        torch.set_num_threads(before)
    assert torch.equal(results[0], results[1]) and torch.equal(results[0], results[2])


def test_outlier_channels_are_what_rotation_and_smoothing_are_for():
    layer, x, rotation = linear(256, 64), outliers(400, 256, factor=20), hadamard.random_rotation(256)
    weight = rotation(layer.weight.detach().numpy())
    smooth = np.sqrt(np.abs(rotation(x.numpy())).max(0) / np.abs(weight).max(0))
    plain, rotated, both = (
        noise(QuantizedLinear.from_float(layer, **options)(x), layer(x))
        for options in ({}, {"rotation": rotation}, {"rotation": rotation, "smooth": smooth})
    )
    assert rotated < plain / 4 and both < rotated


# Gradients -----------------------------------------------------------------------------------------------------------


def test_gradients_pass_straight_through():
    layer, x = linear(), torch.randn(3, 5, 48, requires_grad=True)
    made = QuantizedLinear.from_float(layer, FINE, FINE, rotation=hadamard.random_rotation(48), smooth=scales(48))
    direction = torch.randn(3, 5, 20)
    made(x).backward(direction)
    found, x.grad = x.grad, None
    layer(x).backward(direction)
    torch.testing.assert_close(found, x.grad, rtol=1e-3, atol=2e-3)
    torch.testing.assert_close(made.bias.grad, layer.bias.grad)


def test_gradients_stop_where_a_static_grid_saturates():
    made = QuantizedLinear.from_float(linear(4, 1), FINE, choose_grid(-1.0, 1.0, TENSOR))
    x = torch.tensor([[0.5, -0.5, 3.0, -3.0]], requires_grad=True)
    made(x).sum().backward()
    assert ((x.grad != 0) == torch.tensor([[True, True, False, False]])).all()


def test_what_does_not_learn_has_no_gradient():
    layer = linear()
    layer.bias.requires_grad_(False)
    made = QuantizedLinear.from_float(layer)
    assert not made(torch.randn(2, 48)).requires_grad
    assert [n for n, _ in made.named_parameters()] == ["bias"]
    assert made.codes.numel() == made.codes.nbytes  # a quarter of the float weight


# States --------------------------------------------------------------------------------------------------------------


def every_kind():
    static = choose_grid(-3.0, 2.0, TENSOR)
    rotations = [None, hadamard.random_rotation(48, 5), hadamard.layernorm_rotation(48, 5)]
    for rotation in rotations:
        for smooth in (None, scales(48, 1)):
            for activations in (None, PER_ROW, static):
                yield {"rotation": rotation, "smooth": smooth, "activations": activations, "clip": 0.8}


@pytest.mark.parametrize("options", list(every_kind()))
def test_states_come_back_through_files_without_pickles(options):
    layer, x = linear(), torch.randn(6, 48)
    made = QuantizedLinear.from_float(layer, Scheme(6, granularity="axis", axis=0), **options)
    file = io.BytesIO()
    torch.save(made.state_dict(), file)
    file.seek(0)
    other = QuantizedLinear.from_float(linear(), rotation=hadamard.random_rotation(48, 9))
    other.load_state_dict(torch.load(file, weights_only=True))
    assert torch.equal(other(x), made(x)) and other.extra_repr() == made.extra_repr()
    assert all(isinstance(value, torch.Tensor) for value in made.state_dict().values())
    twin = copy.deepcopy(made)
    assert torch.equal(twin(x), made(x)) and twin.codes.data_ptr() != made.codes.data_ptr()


def test_a_state_of_another_size_is_refused():
    other = QuantizedLinear.from_float(linear(48, 21))
    with pytest.raises(RuntimeError, match="size mismatch for codes"):
        other.load_state_dict(QuantizedLinear.from_float(linear()).state_dict())
    state = QuantizedLinear.from_float(linear()).state_dict()
    state["_extra_state"] = torch.zeros(3, dtype=torch.uint8)
    with refused("[QuantizedLinear] extra state must be what a QuantizedLinear saved. Received"):
        QuantizedLinear.from_float(linear()).load_state_dict(state)


def test_it_says_what_it_is():
    made = QuantizedLinear.from_float(linear(), rotation=hadamard.random_rotation(48), smooth=scales(48), clip=0.9)
    assert repr(made) == (
        "QuantizedLinear(48, 20, bias=True, weights=int4 per axis 0, activations=dynamic int4 per axis 0, "
        "rotated, smoothed, clip=0.9)"
    )
    grid, rotation = choose_grid(0.0, 1.0, TENSOR), hadamard.random_rotation(10)
    static = QuantizedLinear.from_float(linear(10), Scheme(8), grid, rotation=rotation)
    said = "weights=uint8 per tensor, activations=static uint8 per tensor, rotated in 5 blocks"
    assert static.extra_repr().endswith(said)
    assert "activations=float" in repr(QuantizedLinear.from_float(linear(), activations=None))


# Models --------------------------------------------------------------------------------------------------------------


class Block(nn.Module):
    def __init__(self, width=64, heads=4):
        super().__init__()
        self.heads = heads
        self.norm1, self.norm2 = nn.LayerNorm(width), nn.LayerNorm(width)
        self.qkv, self.proj = nn.Linear(width, 3 * width), nn.Linear(width, width)
        self.fc1, self.fc2 = nn.Linear(width, 4 * width), nn.Linear(4 * width, width)
        with torch.no_grad():  # trained networks have such gains
            for norm in (self.norm1, self.norm2):
                norm.weight[torch.randperm(width)[:3]] *= 25

    def forward(self, x):
        b, n, c = x.shape
        q, k, v = self.qkv(self.norm1(x)).reshape(b, n, 3, self.heads, c // self.heads).permute(2, 0, 3, 1, 4).unbind(0)
        x = x + self.proj(F.scaled_dot_product_attention(q, k, v).transpose(1, 2).reshape(b, n, c))
        return x + self.fc2(F.gelu(self.fc1(self.norm2(x))))


class Transformer(nn.Module):
    def __init__(self):
        super().__init__()
        self.blocks = nn.ModuleList([Block(), Block()])
        self.head = nn.Linear(64, 8)

    def forward(self, x):
        for block in self.blocks:
            x = block(x)
        return self.head(x)


def model_and_data():
    model = Transformer().eval()
    return model, [torch.randn(2, 24, 64) for _ in range(8)], torch.randn(8, 24, 64)


def test_a_transformer_at_w4a4():
    model, data, x = model_and_data()
    errors = {}
    for name, options in {
        "nothing": {"rotate": False, "smooth": None, "clip": False},
        "quantvggt": {"clip": False, "gate": False, "momentum": 0.95},
        "gated": {"clip": False},
        "clip": {},
        "best": {"rounding": "best", "smooth": (0.3, 0.5, 0.7)},
        "adaround": {"rounding": "adaround"},
    }.items():
        made = copy.deepcopy(model)
        report = quantize_linears(made, data, pattern="blocks.*", **options)
        errors[name] = noise(made(x), model(x))
        assert [r.name for r in report.layers] == [
            f"blocks.{i}.{n}" for i in (0, 1) for n in ("qkv", "proj", "fc1", "fc2")
        ]
        assert type(made.head) is nn.Linear and report.left == {}
        for r in report.layers:
            layer = made.get_submodule(r.name)
            assert (layer.rotation is not None) == r.rotated and (layer.smooth is not None) == (r.alpha is not None)
            assert (
                (r.error_after <= r.error_before or name == "quantvggt") and layer.clip == r.clip and r.tokens == 8 * 48
            )
        if name == "quantvggt":
            assert all(r.rotated and r.alpha == 0.5 for r in report.layers)
        if name == "nothing":
            assert all(r.error_after == r.error_before and r.rounding == "nearest" for r in report.layers)
    assert errors["quantvggt"] < 0.8 * errors["nothing"]
    assert errors["gated"] < 0.8 * errors["quantvggt"]
    assert errors["best"] < errors["clip"] < errors["gated"]


def test_the_report_is_what_the_layer_does():
    layer = linear(64, 32)
    model = nn.Sequential(layer)
    x = outliers(4000, 64, factor=15)
    held_out = x[torch.arange(len(x)) % 4 == 3]
    wanted = F.linear(held_out, layer.weight)
    plain = noise(QuantizedLinear.from_float(layer)(held_out) - layer.bias, wanted)
    (record,) = quantize_linears(model, [x], clip=False, gate=False).layers
    assert record.error_before == pytest.approx(plain, rel=0.1)
    assert record.error_after == pytest.approx(noise(model(held_out) - layer.bias, wanted), rel=0.1)
    assert record.error_after < record.error_before / 3
    assert (record.name, record.inputs, record.outputs, record.tokens, record.blocks) == ("0", 64, 32, 4000, 1)


def test_smoothing_looks_at_the_rotated_weight():
    model, x = nn.Sequential(linear(64, 32)), outliers(400, 64, channels=1, factor=5.0)
    layer = model[0]
    with torch.no_grad():
        layer.weight[:, 5] *= 8
    quantize_linears(model, [x], clip=False, smooth=(0.5, 0.9), gate=False)
    made = model[0]
    fitted = x[torch.arange(400) % 4 != 3].numpy()
    rotated, weight = made.rotation(fitted), made.rotation(layer.weight.detach().numpy())
    alphas = [a for a in (0.5, 0.9) if ratio(rotated, weight, a, made.smooth.numpy()) < 1e-4]
    assert len(alphas) == 1


def ratio(x, weight, alpha, smooth):
    """How far `smooth` is from proportional to the formula."""
    found = np.log(np.abs(x).max(0) ** alpha / np.abs(weight).max(0) ** (1 - alpha)) - np.log(smooth)
    return np.ptp(found)


def test_momentum_is_a_moving_average():
    model = nn.Sequential(linear(4, 3, bias=False))
    data = [torch.eye(4) * v for v in (1.0, 3.0)]
    with torch.no_grad():
        model[0].weight[:] = torch.tensor([[1.0, 2.0, 4.0, 8.0]] * 3)
    held = [torch.cat([d, d, d, d]) for d in data]
    seen = Seen("x", model[0], None, 0.75, None, np.random.default_rng(0))
    for i, batch in enumerate(held):
        seen.update(batch, i, False)
    np.testing.assert_allclose(seen.bases[0].maxima, [1.5, 1.5, 1.5, 0])  # every fourth token is held out
    np.testing.assert_allclose(seen.judged[0], [0, 0, 0, 1])


def test_every_fourth_batch_is_held_out_where_they_are_counted():
    model, data = nn.Sequential(linear(8, 4)), [torch.full((3, 8), float(i + 1)) for i in range(4)]
    for given_data, wanted in ((data, 4.0), (iter(data), None)):
        seen = Seen("0", model[0], None, None, None, np.random.default_rng(0))
        observe(model, [seen], given_data, Quiet())
        assert (set(seen.judged.ravel()) == {4.0}) == (wanted is not None)
        assert seen.bases[0].maxima.max() == (3 if wanted else 4)


def test_a_quantised_model_loads_into_its_float_one():
    model, data, x = model_and_data()
    made = copy.deepcopy(model)
    made.blocks[1].fc2.train()
    quantize_linears(made, data[:3], pattern="blocks.*")
    assert made.blocks[1].fc2.training and not made.blocks[0].fc1.training
    fresh = Transformer().eval()
    load_quantized(fresh, made.state_dict())
    assert torch.equal(fresh(x), made(x)) and type(fresh.head) is nn.Linear


def test_what_stays_in_float_is_said():
    class Odd(nn.Module):
        def __init__(self):
            super().__init__()
            self.attention = nn.MultiheadAttention(16, 2, batch_first=True)
            self.shared = nn.Linear(16, 16)
            self.again = self.shared
            self.unused, self.once = nn.Linear(3, 3), nn.Linear(16, 2)

        def forward(self, x, scale):
            x = self.again(self.shared(input=self.attention(x, x, x)[0])) * scale
            return self.once(x.mean(1)[:1])

    model = Odd().eval()
    report = quantize_linears(model, [{"x": torch.randn(1, 6, 16), "scale": 2.0}, (torch.randn(1, 6, 16), 1.0)])
    assert [r.name for r in report.layers] == ["shared"] and report.layers[0].tokens == 24
    assert model.again is model.shared and isinstance(model.shared, QuantizedLinear)
    assert report.left == {
        "attention.out_proj": "it is a NonDynamicallyQuantizableLinear",
        "unused": "its forward was never called",
        "once": "2 tokens are too few to fit to and to judge by",
    }
    said = str(report)
    assert "shared" in said and "unused is left in float: its forward was never called" in said
    with pytest.raises(AttributeError, match="set_fastpath_enabled"):
        _ = model.shared.weight
    with pytest.raises(AttributeError, match="nonsense"):
        _ = model.shared.nonsense


def test_a_dead_layer_is_no_trouble():
    model = nn.Sequential(linear(16, 8))
    with torch.no_grad():
        model[0].weight[:, 3] = 0
        model[0].weight[2] = 0
    x = torch.randn(40, 16)
    x[:, 5] = 0
    quantize_linears(model, [x], rounding="best")
    assert torch.isfinite(model(x)).all()
    dead = nn.Sequential(linear(16, 8))
    (record,) = quantize_linears(dead, [torch.zeros(40, 16)], rounding="best").layers
    assert record.error_before == record.error_after == 0


def test_the_same_seed_gives_the_same_model():
    model, data, x = model_and_data()
    outputs = []
    for seed in (0, 0, 1):
        made = copy.deepcopy(model)
        quantize_linears(made, data[:4], seed=seed, gate=False)
        outputs.append(made(x))
    assert torch.equal(outputs[0], outputs[1]) and not torch.equal(outputs[0], outputs[2])


# Refusals ------------------------------------------------------------------------------------------------------------


def test_refused_layers():
    layer, make = linear(), QuantizedLinear.from_float
    with refused("[QuantizedLinear] linear must be a torch.nn.Linear itself", "Received a Conv2d."):
        make(nn.Conv2d(1, 1, 1))
    with refused("linear must be float32 on the CPU. Received torch.float16 on cpu."):
        make(linear().half())
    with refused("linear must be float32 on the CPU. Received torch.float32 on meta."):
        make(nn.Linear(4, 4, device="meta"))
    broken = linear()
    with torch.no_grad():
        broken.weight[0, 0] = torch.nan
    with refused("the weight of linear must be finite"):
        make(broken)
    with refused("weights must be a Scheme or a Grid. Received a int."):
        make(layer, 4)
    with refused("activations must be a Scheme (found at each call), a Grid or None. Received a str."):
        make(layer, activations="token")
    with refused(
        "a Scheme of activations must be per tensor, or per token (axis 0). Received granularity 'axis', axis 1."
    ):
        make(layer, activations=Scheme(8, granularity="axis", axis=1))
    with refused("a Grid of activations must be per tensor, or for each of the 48 channels (axis 1)", "(3,)"):
        make(layer, activations=Grid(np.ones(3), np.zeros(3), Scheme(8, granularity="axis", axis=1)))
    with refused("activations must have at most 16 bits. Received 32."):
        make(layer, activations=Scheme(32, signed=True))
    with refused("weights must have at most 16 bits. Received 32."):
        make(layer, Scheme(32, signed=True, symmetric=True))
    with refused("rotation must be a hadamard.Rotation. Received a ndarray."):
        make(layer, rotation=np.eye(48))
    with refused("rotation must have size 48. Received 32."):
        make(layer, rotation=hadamard.random_rotation(32))
    with refused("smooth must have shape (48,). Received (3,)."):
        make(layer, smooth=np.ones(3))
    with refused("smooth must be finite and positive. Received 0.0 to 0.0."):
        make(layer, smooth=np.zeros(48))
    with refused("clip must lie in (0, 1]. Received 0."):
        make(layer, clip=0)
    grid = Grid(1.0, 0, Scheme(4, signed=True, symmetric=True))
    with refused("codes must have shape (out, in). Received (3,)."):
        QuantizedLinear(np.zeros(3, np.int8), grid)
    with refused("codes must be int8 as its scheme says. Received float64."):
        QuantizedLinear(np.zeros((2, 3)), grid)
    with refused("bias must have shape (2,). Received (3,)."):
        QuantizedLinear(np.zeros((2, 3), np.int8), grid, torch.zeros(3))


def test_refused_inputs():
    made = QuantizedLinear.from_float(linear(), rotation=hadamard.random_rotation(48))
    with refused("[QuantizedLinear] input must be float32 on the CPU. Received torch.float64 on cpu."):
        made(torch.zeros(1, 48, dtype=torch.float64))
    with refused("input must be float32 on the CPU. Received torch.float32 on meta."):
        made(torch.zeros(1, 48, device="meta"))
    with refused("input must be float32 on the CPU. Received a ndarray."):
        made(np.zeros((1, 48), np.float32))
    with refused("input must have shape (..., 48). Received (2, 47)."):
        made(torch.zeros(2, 47))
    with refused("input must have shape (..., 48). Received ()."):
        made(torch.zeros(()))
    x = torch.zeros(2, 3, 48)
    x[1, 1, 7] = torch.inf
    with refused("input must be finite. Received NaN or infinity in token 4."):
        made(x)


def test_refused_calibrations():
    model, data, _ = model_and_data()

    def refusal(rule, received, *arguments, **options):
        with refused(f"[quantize_linears] {rule}", f"Received {received}."):
            quantize_linears(*(arguments or (model, data)), **options)

    refusal("module must be an nn.Module that holds linear layers", "a Linear", linear(), data)
    refusal("module must be an nn.Module that holds linear layers", "a str", "model", data)
    refusal("weight_bits must be an integer from 2 to 16", "1", weight_bits=1)
    refusal("weight_bits must be an integer from 2 to 16", "None", weight_bits=None)
    refusal("activation_bits must be an integer from 2 to 16", "4.0", activation_bits=4.0)
    refusal("smooth must lie in [0, 1]", "1.5", smooth=1.5)
    refusal("smooth must lie in [0, 1]", "(0.5, True)", smooth=(0.5, True))
    refusal(f"rounding must be one of {', '.join(METHODS)}", "'up'", rounding="up")
    refusal("momentum must lie in [0, 1)", "1.0", momentum=1.0)
    refusal("pattern must match an nn.Linear", "'encoder.*'", pattern="encoder.*")
    refusal("data must be an iterable of batches", "a Tensor", model, data[0])
    refusal("data must hold batches that reach the layers", "none", model, [])
    broken = data[0].clone()
    broken[0, 0] = torch.nan
    refusal("the input of blocks.0.qkv must be finite", "NaN or infinity, batch 1", model, [data[0], broken])
    refusal(
        "the input of 0 must be float32", "torch.float64 on cpu", nn.Sequential(linear()), [torch.zeros(2, 48).double()]
    )
    with refused("linear must be float32 on the CPU. Received torch.float64 on cpu."):
        quantize_linears(copy.deepcopy(model).double(), data)
    assert all(not isinstance(m, QuantizedLinear) and not m._forward_pre_hooks for m in model.modules())


def test_without_torch_it_says_what_to_type():
    program = "import sys; sys.modules['torch'] = None\ntry: import leadline.torch\nexcept ImportError as e: print(e)"
    done = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True, check=True, timeout=60)
    assert done.stdout.strip() == "leadline.torch needs PyTorch: pip install 'leadline[torch]'"
