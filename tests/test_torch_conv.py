"""Quantised convolutions: the product, rotation and smoothing leave alone, calibration, states, refusals."""

from __future__ import annotations

import copy
from typing import Any

import numpy as np
import pytest

from leadline import Scheme, hadamard
from leadline.types import InputError

torch = pytest.importorskip("torch", reason="torch is not installed")
pytestmark = pytest.mark.torch

from leadline.torch import QuantizedConv2d, load_quantized, quantize_linears  # noqa: E402
from torch_models import seeded  # noqa: E402, F401

nn = torch.nn
FINE = Scheme(16, signed=True, symmetric=True, granularity="axis", axis=0)


@pytest.mark.parametrize(
    "options",
    [
        {"kernel_size": 1},
        {"kernel_size": 1, "stride": 2, "padding": 1, "bias": False},
        {"kernel_size": 3, "padding": 1},
        {"kernel_size": (3, 2), "stride": (2, 1), "padding": (0, 1), "dilation": (1, 2)},
    ],
)
def test_rotation_and_smoothing_leave_the_convolution_alone(options: dict[str, Any]) -> None:
    conv, x = nn.Conv2d(6, 5, **options), torch.randn(2, 6, 9, 8)
    size = conv.weight[0].numel()
    rotation = hadamard.random_rotation(size, 3)
    smooth = np.exp(np.random.default_rng(0).standard_normal(size)).astype(np.float32)
    made = QuantizedConv2d.from_float(conv, FINE, None, rotation=rotation, smooth=smooth)
    torch.testing.assert_close(made(x), conv(x), rtol=1e-3, atol=2e-3)  # 16-bit weights
    assert torch.equal(made(x[0]), made(x)[0]) and made(x).shape == conv(x).shape


class Head(nn.Module):
    """A depth head: few wide channels between convolutions."""

    def __init__(self) -> None:
        super().__init__()
        self.inner = nn.Sequential(nn.Conv2d(16, 32, 1), nn.ReLU(), nn.Conv2d(32, 32, 3, padding=1), nn.ReLU())
        self.depthwise, self.last = nn.Conv2d(32, 32, 3, groups=32), nn.Linear(32, 4)

    def forward(self, x: Any) -> Any:
        return self.last(self.depthwise(self.inner(x)).flatten(2).transpose(1, 2))


def batches(count: int = 6) -> list[Any]:
    wide = torch.ones(16)
    wide[:2] = 40.0  # outliers
    return [torch.randn(2, 16, 8, 8) * wide[:, None, None] for _ in range(count)]


def test_calibration_reports_convolutions_beside_linear_layers() -> None:
    module, data = Head().eval(), batches()
    plain, other, asked = (copy.deepcopy(module) for _ in range(3))
    report = quantize_linears(module, data, convolutions=True, rounding="best")
    records = {record.name: record for record in report.layers}
    assert list(records) == ["inner.0", "inner.2", "last"]
    assert report.left == {"depthwise": "it has 32 groups"} and "inner.2" in str(report)
    assert records["inner.0"].inputs == 16 and records["inner.2"].inputs == 288
    assert all(record.error_after <= record.error_before for record in records.values())
    assert records["inner.0"].error_after < 0.5 * records["inner.0"].error_before
    bare = quantize_linears(other, data, convolutions=True, rotate=False, smooth=None, clip=False)
    assert [record.name for record in bare.layers] == list(records)
    as_asked = {record.name: record for record in quantize_linears(asked, data, convolutions=True, gate=False).layers}
    assert as_asked["inner.0"].rotated and not as_asked["inner.2"].rotated and as_asked["inner.2"].alpha == 0.5
    x = batches(1)[0]
    with torch.no_grad():
        wanted = plain(x)
        better, worse = ((one(x) - wanted).square().mean() for one in (module, other))
    assert better < 0.7 * worse
    assert isinstance(module.inner[0], QuantizedConv2d) and "kernel_size=(3, 3)" in repr(module)


def test_a_state_comes_back_and_gradients_pass() -> None:
    module, data = Head().eval(), batches(4)
    fresh = copy.deepcopy(module)
    quantize_linears(module, data, convolutions=True, pattern="inner*")
    load_quantized(fresh, module.state_dict())
    x = data[0].requires_grad_()
    assert torch.equal(fresh(x), module(x))
    module(x).square().mean().backward()
    assert x.grad is not None and bool(x.grad.abs().sum() > 0)


def test_refusals() -> None:
    for conv, received in (
        (nn.Conv2d(4, 4, 3, groups=2), r"2 groups"),
        (nn.Conv2d(4, 4, 3, padding="same"), r"padding 'same', zeros"),
        (nn.Conv2d(4, 4, 3, padding=1, padding_mode="reflect"), r"padding \(1, 1\), reflect"),
        (nn.Conv1d(4, 4, 3), r"a Conv1d"),
    ):
        with pytest.raises(InputError, match=rf"without groups, padded with zeros\. Received {received}\."):
            QuantizedConv2d.from_float(conv)
    made = QuantizedConv2d.from_float(nn.Conv2d(4, 4, 3))
    with pytest.raises(
        InputError, match=r"input must have shape \(\.\.\., 4, height, width\)\. Received \(1, 3, 8, 8\)"
    ):
        made(torch.zeros(1, 3, 8, 8))
    with pytest.raises(InputError, match=r"linear must have the features of conv, 36 to 4\. Received 36 to 5"):
        QuantizedConv2d(QuantizedConv2d.from_float(nn.Conv2d(4, 5, 3)).linear, nn.Conv2d(4, 4, 3))
    with pytest.raises(InputError, match=r"pattern must match an nn\.Linear or nn\.Conv2d inside the module"):
        quantize_linears(Head(), batches(), convolutions=True, pattern="x*")
