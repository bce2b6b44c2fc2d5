"""ONNX operators as torch functions: where there is one, the function that torch.export and litert-torch keep whole.

`OPERATORS` maps an operator type to its builder.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from typing import Any

import numpy as np
import torch
from torch import Tensor
from torch.nn import functional

from leadline.torch.movement import MOVES, Builder, Function, Site


def _pads(site: Site, spatial: int, value: float = 0.0) -> tuple[Function, Any]:
    """Padding that a torch function takes itself, and what must be done before it: zero or one of both."""
    pads = [int(p) for p in site.attr("pads", [0] * (2 * spatial))]
    if site.attr("auto_pad", "NOTSET") not in ("NOTSET", "VALID"):
        raise site.refused("pads must be explicit", site.attr("auto_pad"))
    begin, end = pads[:spatial], pads[spatial:]
    if begin == end:
        return (lambda x: x), tuple(begin)
    flat = [p for pair in zip(reversed(begin), reversed(end), strict=True) for p in pair]
    return (lambda x: functional.pad(x, flat, value=value)), (0,) * spatial


def _conv(site: Site) -> Function:
    spatial = site.rank - 2
    run = _of_rank(site, {1: functional.conv1d, 2: functional.conv2d, 3: functional.conv3d}, spatial)
    pad, inside = _pads(site, spatial)
    strides = tuple(site.attr("strides", [1] * spatial))
    dilations, groups = tuple(site.attr("dilations", [1] * spatial)), int(site.attr("group", 1))
    return lambda x, w, b=None: run(pad(x), w, b, strides, inside, dilations, groups)


def _of_rank(site: Site, table: dict[int, Function], spatial: int) -> Function:
    if spatial not in table:
        raise site.refused(f"the input must have {' or '.join(map(str, table))} spatial axes", spatial)
    return table[spatial]


def _conv_transpose(site: Site) -> Function:
    spatial = site.rank - 2
    table = {1: functional.conv_transpose1d, 2: functional.conv_transpose2d, 3: functional.conv_transpose3d}
    run = _of_rank(site, table, spatial)
    pads = [int(p) for p in site.attr("pads", [0] * (2 * spatial))]
    strides, dilations = (tuple(site.attr(key, [1] * spatial)) for key in ("strides", "dilations"))
    extra = tuple(site.attr("output_padding", [0] * spatial))
    begin, groups = tuple(pads[:spatial]), int(site.attr("group", 1))
    want = site.graph.shape(site.node.outputs[0])[2:]

    def function(x: Tensor, w: Tensor, b: Tensor | None = None) -> Tensor:
        if pads[:spatial] == pads[spatial:]:
            y: Tensor = run(x, w, b, strides, begin, extra, groups, dilations)
            return y
        y = run(x, w, b, strides, 0, extra, groups, dilations)
        for axis in range(spatial):
            y = y.narrow(2 + axis, begin[axis], want[axis])
        return y

    return function


def _gemm(site: Site) -> Function:
    alpha, beta = float(site.attr("alpha", 1.0)), float(site.attr("beta", 1.0))
    trans_a, trans_b = bool(site.attr("transA")), bool(site.attr("transB"))

    def function(x: Tensor, w: Tensor, b: Tensor | None = None) -> Tensor:
        rows = x.t() if trans_a else x
        columns = w if trans_b else w.t()
        if alpha == 1.0 and (b is None or (beta == 1.0 and b.dim() == 1)):
            return functional.linear(rows, columns, b)
        y = alpha * functional.linear(rows, columns)
        return y if b is None else y + beta * b

    return function


def _layer_norm(site: Site) -> Function:
    axis, epsilon = int(site.attr("axis", -1)) % site.rank, float(site.attr("epsilon", 1e-5))
    shape = site.shape[axis:]

    def function(x: Tensor, gain: Tensor, offset: Tensor | None = None) -> Tensor:
        whole = offset if offset is None else offset.expand(shape)
        return functional.layer_norm(x, shape, gain.expand(shape), whole, epsilon)

    return function


def _batch_norm(site: Site) -> Function:
    epsilon = float(site.attr("epsilon", 1e-5))
    return lambda x, gain, offset, mean, var: functional.batch_norm(x, mean, var, gain, offset, False, 0.0, epsilon)


def _instance_norm(site: Site) -> Function:
    epsilon = float(site.attr("epsilon", 1e-5))
    return lambda x, gain, offset: functional.instance_norm(x, None, None, gain, offset, True, 0.0, epsilon)


def _group_norm(site: Site) -> Function:
    groups, epsilon = int(site.attr("num_groups")), float(site.attr("epsilon", 1e-5))
    return lambda x, gain, offset: functional.group_norm(x, groups, gain, offset, epsilon)


def _gelu(site: Site) -> Function:
    kind = site.attr("approximate", "none")
    return lambda x: functional.gelu(x, approximate=kind)


def _clip(site: Site) -> Function:
    bounds = [site.setting(i, site.attr(key)) for i, key in ((1, "min"), (2, "max"))]
    low, high = (None if bound is None else float(np.reshape(bound, ())) for bound in bounds)
    if low == 0 and high == 6:
        return lambda x: functional.relu6(x)  # a clamp that LiteRT fuses
    if low is None and high is None:
        return _identity
    return lambda x: torch.clamp(x, low, high)


def _identity(x: Tensor, *_: Any) -> Tensor:
    return x


def _hard_sigmoid(site: Site) -> Function:
    alpha, beta = float(site.attr("alpha", 0.2)), float(site.attr("beta", 0.5))
    return lambda x: torch.clamp(x * alpha + beta, 0.0, 1.0)


def _prelu(site: Site) -> Function:
    return lambda x, slope: torch.clamp(x, min=0.0) + slope * torch.clamp(x, max=0.0)


def _average_pool(site: Site) -> Function:
    spatial = site.rank - 2
    table = {1: functional.avg_pool1d, 2: functional.avg_pool2d, 3: functional.avg_pool3d}
    run = _of_rank(site, table, spatial)
    counted = bool(site.attr("count_include_pad", 0))
    pads = list(site.attr("pads", [0] * (2 * spatial)))
    if pads[:spatial] != pads[spatial:] and not counted:
        raise site.refused("pads that differ between sides must count (count_include_pad=1)", pads)
    if any(d != 1 for d in site.attr("dilations", [1])):
        raise site.refused("dilations must be 1", site.attr("dilations"))
    pad, inside = _pads(site, spatial)
    kernel, strides = tuple(site.attr("kernel_shape")), tuple(site.attr("strides", [1] * spatial))
    ceil = bool(site.attr("ceil_mode", 0))
    return lambda x: run(pad(x), kernel, strides, inside, ceil, counted)


def _max_pool(site: Site) -> Function:
    spatial = site.rank - 2
    table = {1: functional.max_pool1d, 2: functional.max_pool2d, 3: functional.max_pool3d}
    run = _of_rank(site, table, spatial)
    pad, inside = _pads(site, spatial, -math.inf)
    kernel, strides = tuple(site.attr("kernel_shape")), tuple(site.attr("strides", [1] * spatial))
    dilations, ceil = tuple(site.attr("dilations", [1] * spatial)), bool(site.attr("ceil_mode", 0))
    return lambda x: run(pad(x), kernel, strides, inside, dilations, ceil)


def _reduce(run: Callable[[Tensor, tuple[int, ...], bool], Tensor]) -> Builder:
    def build(site: Site) -> Function:
        stated = site.integers(1, "axes")
        if not stated and site.attr("noop_with_empty_axes"):
            return _identity
        axes = tuple(range(site.rank)) if not stated else tuple(axis % site.rank for axis in stated)
        keep = bool(site.attr("keepdims", 1))
        return lambda x: run(x, axes, keep)

    return build


def _softmax(run: Function) -> Builder:
    def build(site: Site) -> Function:
        axis = int(site.attr("axis", -1))
        return lambda x: run(x, dim=axis)

    return build


def _plain(function: Function) -> Builder:
    return lambda site: function


def _chain(function: Function) -> Builder:
    """A binary function over any number of inputs."""

    def fold(first: Tensor, *others: Tensor) -> Tensor:
        for other in others:
            first = function(first, other)
        return first

    return lambda site: fold


def _pow(site: Site) -> Function:
    """Squares, cubes and roots as converters take them over any number of axes; LiteRT's power takes four."""
    name = site.node.inputs[1]
    constant = site.graph.weights.get(name)
    if (
        constant is None
        or constant.size != 1
        or constant.ndim > site.rank
        or float(constant.reshape(())) not in _POWERS
    ):
        return lambda x, y: torch.pow(x, y)
    return _POWERS[float(site.setting(1).reshape(()))]


_POWERS: dict[float, Function] = {
    0.5: torch.sqrt, 1.0: _identity, 2.0: lambda x: x * x, 3.0: lambda x: x * x * x, -1.0: torch.reciprocal,
}  # fmt: skip


def _leaky(site: Site) -> Function:
    slope = float(site.attr("alpha", 0.01))
    return lambda x: functional.leaky_relu(x, slope)


def _elu(site: Site) -> Function:
    alpha = float(site.attr("alpha", 1.0))
    return lambda x: functional.elu(x, alpha)


def _log_polish(x: Tensor, omega: Tensor) -> Tensor:
    plain = torch.isinf(omega)
    bend = torch.where(plain, torch.ones_like(omega), omega)
    return torch.where(plain, x, torch.sign(x) * (torch.log(x.abs() / bend + 1.0) / _LN2))


def _log_unpolish(y: Tensor, omega: Tensor) -> Tensor:
    plain = torch.isinf(omega)
    bend = torch.where(plain, torch.ones_like(omega), omega)
    return torch.where(plain, y, torch.sign(y) * ((torch.pow(2.0, y.abs().clamp(max=126.0)) - 1.0) * bend))


_LN2 = float(np.float32(0.69314718055994531))
OWN: dict[str, Builder] = {
    "Rotate": _plain(torch.matmul), "LogPolish": _plain(_log_polish), "LogUnpolish": _plain(_log_unpolish),
}  # fmt: skip
"""leadline's own operators; `leadline.graph.functions` defines them."""

OPERATORS: dict[str, Builder] = MOVES | {
    "Add": _plain(torch.add), "Sub": _plain(torch.sub), "Mul": _plain(torch.mul), "Div": _plain(torch.div),
    "Pow": _pow, "Max": _chain(torch.maximum), "Min": _chain(torch.minimum),
    "Sum": _chain(torch.add), "MatMul": _plain(torch.matmul), "Where": _plain(torch.where),
    "Relu": _plain(functional.relu), "Sigmoid": _plain(torch.sigmoid), "Tanh": _plain(torch.tanh),
    "HardSwish": _plain(functional.hardswish), "Softplus": _plain(functional.softplus), "Mish": _plain(functional.mish),
    "Exp": _plain(torch.exp), "Log": _plain(torch.log), "Sqrt": _plain(torch.sqrt), "Abs": _plain(torch.abs),
    "Neg": _plain(torch.neg), "Erf": _plain(torch.erf), "Floor": _plain(torch.floor), "Ceil": _plain(torch.ceil),
    "Round": _plain(torch.round), "Reciprocal": _plain(torch.reciprocal), "Sin": _plain(torch.sin),
    "Cos": _plain(torch.cos), "Identity": _plain(_identity), "Not": _plain(torch.logical_not),
    "Equal": _plain(torch.eq), "Greater": _plain(torch.gt), "Less": _plain(torch.lt),
    "GreaterOrEqual": _plain(torch.ge), "LessOrEqual": _plain(torch.le), "And": _plain(torch.logical_and),
    "Or": _plain(torch.logical_or), "Conv": _conv, "ConvTranspose": _conv_transpose, "Gemm": _gemm,
    "LayerNormalization": _layer_norm, "BatchNormalization": _batch_norm, "InstanceNormalization": _instance_norm,
    "GroupNormalization": _group_norm, "Gelu": _gelu, "Clip": _clip, "HardSigmoid": _hard_sigmoid, "PRelu": _prelu,
    "LeakyRelu": _leaky, "Elu": _elu, "AveragePool": _average_pool, "MaxPool": _max_pool,
    "GlobalAveragePool": _plain(lambda x: x.mean(tuple(range(2, x.dim())), keepdim=True)),
    "GlobalMaxPool": _plain(lambda x: x.amax(tuple(range(2, x.dim())), keepdim=True)),
    "ReduceMean": _reduce(lambda x, axes, keep: x.mean(axes, keepdim=keep)),
    "ReduceSum": _reduce(lambda x, axes, keep: x.sum(axes, keepdim=keep)),
    "ReduceMax": _reduce(lambda x, axes, keep: x.amax(axes, keepdim=keep)),
    "ReduceMin": _reduce(lambda x, axes, keep: x.amin(axes, keepdim=keep)),
    "Softmax": _softmax(torch.softmax), "LogSoftmax": _softmax(torch.log_softmax),
}  # fmt: skip
