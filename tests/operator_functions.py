"""Kinds of operators that compute: functions, sums and products, reductions and normalisations."""

import numpy as np

from graph_models import node
from operator_networks import HALF, POSITIVE, SIG, TOKENS, F, ints, kind, one
from small_networks import draw

# functions of one tensor
for _op in (
    "Abs Neg Exp Relu Sigmoid Tanh Softplus Softsign Mish Erf Elu Selu Celu HardSigmoid HardSwish LeakyRelu "
    "Sin Cos Floor Ceil Round Sign ThresholdedRelu Identity"
).split():
    kind(_op, one(_op))
kind("Gelu", one("Gelu"), opset=20)
kind("Gelu, tanh", one("Gelu", approximate="tanh"), opset=20)
kind("SiLU", [SIG, node("Mul", "a s", "b")])
kind("Swish", one("Swish"), opset=24)
kind("Sqrt", [*POSITIVE, node("Sqrt", "p", "b")], half=HALF)
kind("Log", [*POSITIVE, node("Log", "p", "b")], half=HALF)
kind("Reciprocal", [*POSITIVE, node("Reciprocal", "p", "b")], half=HALF)
kind("1 / Sqrt", [*POSITIVE, node("Sqrt", "p", "q"), node("Reciprocal", "q", "b")], half=HALF)
kind("Pow, 2", [node("Pow", "a two", "b")], two=F(2))
kind("Pow, 3", [node("Pow", "a three", "b")], three=F(3))
kind("Pow, 0.5", [*POSITIVE, node("Pow", "p half", "b")], half=HALF)
kind("Pow, -0.5", [*POSITIVE, node("Pow", "p power", "b")], half=HALF, power=F(-0.5))
kind("Pow, 1.7", [*POSITIVE, node("Pow", "p power", "b")], half=HALF, power=F(1.7))
kind("Pow of two tensors", [*POSITIVE, node("Pow", "p a", "b")], half=HALF)
kind("PRelu", [node("PRelu", "a slope", "b")], slope=np.abs(draw(7, 8, 1, 1)))
kind("PRelu, one slope", [node("PRelu", "a slope", "b")], slope=np.full((1,), 0.2, F))
kind("Clip, both bounds", [node("Clip", "a lo hi", "b")], lo=F(-0.7), hi=F(1.1))
kind("Clip, behind Sigmoid", [SIG, node("Clip", "s lo hi", "b")], lo=F(0.2), hi=F(0.7))
kind("Softmax, channels", one("Softmax", axis=1))
kind("Softmax, last axis", one("Softmax", axis=-1), shape=TOKENS)
kind("LogSoftmax, channels", one("LogSoftmax", axis=1))
kind("LogSoftmax, last axis", one("LogSoftmax", axis=-1), shape=TOKENS)
kind("Log of Softmax", [node("Softmax", "a", "s", axis=-1), node("Log", "s", "b")], shape=TOKENS)
kind("Hardmax", one("Hardmax", axis=1))

# sums, products and choices of several tensors
for _op in "Add Sub Mul Min Max".split():
    kind(f"{_op} of two", [SIG, node(_op, "a s", "b")])
for _op in "Sum Mean Max Min".split():
    kind(f"{_op} of three", [SIG, node("Tanh", "a", "t"), node(_op, "a s t", "b")])
kind("Div", [*POSITIVE, node("Div", "a p", "b")], half=HALF)
kind("Div of a constant", [*POSITIVE, node("Div", "half p", "b")], half=HALF)
for _op in "Add Sub Mul Div Max Min".split():
    kind(
        f"{_op} with a constant per channel",
        [node(_op, "a c", "b")],
        c=np.linspace(0.3, 1.2, 8, dtype=F).reshape(8, 1, 1),
    )
    kind(
        f"{_op} with a constant behind Tanh",
        [node("Tanh", "a", "t"), node(_op, "t c", "b")],
        c=np.linspace(0.3, 1.2, 96, dtype=F).reshape(8, 1, 12),
    )
kind("Constant minus", [node("Sub", "one a", "b")], one=F(1))
kind("Add, broadcast", [node("ReduceMean", "a ax", "m", keepdims=1), node("Add", "a m", "b")], ax=ints([2, 3]))
kind("Where, constant mask and scalar", [node("Where", "mask a c", "b")],
      mask=np.arange(144).reshape(1, 1, 12, 12) % 5 > 0, c=F(-0.5))  # fmt: skip
kind("Where, constant mask, two tensors", [SIG, node("Where", "mask a s", "b")],
      mask=np.arange(144).reshape(1, 1, 12, 12) % 3 > 0)  # fmt: skip
kind("Where, computed mask", [node("Greater", "a zero", "mask"), SIG, node("Where", "mask a s", "b")], zero=F(0))
kind(
    "Where, computed mask and scalar",
    [node("Less", "a zero", "mask"), node("Where", "mask c a", "b")],
    zero=F(0),
    c=F(-0.1),
)
kind(
    "Compare, as a factor",
    [node("Greater", "a zero", "mask"), node("Cast", "mask", "f", to=1), node("Mul", "a f", "b")],
    zero=F(0),
)
kind("Mod", [*POSITIVE, node("Mod", "p c", "b", fmod=1)], half=HALF, c=F(0.7))

# reductions
for _op in (
    "ReduceMean ReduceSum ReduceMax ReduceMin ReduceL1 ReduceL2 ReduceSumSquare ReduceLogSumExp ReduceLogSum ReduceProd"
).split():
    _before, _x = (POSITIVE, "p") if _op in ("ReduceLogSum", "ReduceProd") else ([], "a")
    for _name, _axes in {"channels": [1], "picture": [2, 3]}.items():
        if (_op, _name) != ("ReduceProd", "picture"):  # which is 0
            _nodes = [*_before, node(_op, f"{_x} ax", "m", keepdims=1), node("Mul", "a m", "b")]
            kind(f"{_op}, {_name}", _nodes, ax=ints(_axes), half=HALF)
for _op in "ReduceMean ReduceSum ReduceMax ReduceL2".split():
    kind(
        f"{_op}, last axis of tokens",
        [node(_op, "a ax", "m", keepdims=1), node("Mul", "a m", "b")],
        shape=TOKENS,
        ax=ints([-1]),
    )
kind("x / ReduceL2", [node("ReduceL2", "a ax", "m", keepdims=1), node("Div", "a m", "b")], ax=ints([1]))
kind(
    "x / max(ReduceL2, eps)",
    [
        node("ReduceL2", "a ax", "n", keepdims=1),
        node("Clip", "n eps", "c"),
        node("Expand", "c sh", "m"),
        node("Div", "a m", "b"),
    ],
    shape=TOKENS,
    ax=ints([-1]),
    eps=F(1e-12),
    sh=ints([1, 16, 16]),
)
kind("LpNormalization", one("LpNormalization", axis=1, p=2))
kind("LpNormalization, tokens", one("LpNormalization", axis=-1, p=2), shape=TOKENS)
kind(
    "Global response normalisation",
    [
        node("ReduceL2", "a ax", "n", keepdims=1),
        node("ReduceMean", "n ch", "m", keepdims=1),
        node("Add", "m eps", "e"),
        node("Div", "n e", "r"),
        node("Mul", "a r", "g"),
        node("Mul", "g gamma", "h"),
        node("Add", "h beta", "i"),
        node("Add", "a i", "b"),
    ],
    ax=ints([2, 3]),
    ch=ints([1]),
    eps=F(1e-6),
    gamma=draw(7, 1, 8, 1, 1, spread=1.0),
    beta=draw(8, 1, 8, 1, 1),
)
kind(
    "RMS normalisation",
    [
        node("Mul", "a a", "q"),
        node("ReduceMean", "q ax", "v", keepdims=1),
        node("Add", "v eps", "e"),
        node("Sqrt", "e", "r"),
        node("Div", "a r", "n"),
        node("Mul", "n gamma", "b"),
    ],
    shape=TOKENS,
    ax=ints([-1]),
    eps=F(1e-6),
    gamma=1 + draw(7, 16),
)
kind("RMSNormalization", [node("RMSNormalization", "a gamma", "b")], shape=TOKENS, opset=23, gamma=1 + draw(7, 16))
kind("MeanVarianceNormalization", one("MeanVarianceNormalization", axes=[2, 3]))
kind(
    "Standard deviation",
    [
        node("ReduceMean", "a ax", "m", keepdims=1),
        node("Sub", "a m", "d"),
        node("Mul", "d d", "q"),
        node("ReduceMean", "q ax", "v", keepdims=1),
        node("Sqrt", "v", "r"),
        node("Add", "r eps", "e"),
        node("Div", "d e", "b"),
    ],
    ax=ints([2, 3]),
    eps=F(1e-3),
)
kind(
    "LayerNormalization",
    [node("LayerNormalization", "a g c", "b", axis=-1)],
    shape=TOKENS,
    g=1 + draw(7, 16),
    c=draw(8, 16),
)
kind(
    "LayerNormalization, no offset", [node("LayerNormalization", "a g", "b", axis=-1)], shape=TOKENS, g=1 + draw(7, 16)
)
kind(
    "LayerNormalization, two axes",
    [node("LayerNormalization", "a g c", "b", axis=-2)],
    g=1 + draw(7, 12, 12),
    c=draw(8, 12, 12),
)
kind(
    "LayerNormalization, channels first",
    [
        node("Transpose", "a", "l", perm=[0, 2, 3, 1]),
        node("LayerNormalization", "l g c", "n", axis=-1),
        node("Transpose", "n", "b", perm=[0, 3, 1, 2]),
    ],
    g=1 + draw(7, 8),
    c=draw(8, 8),
)
kind("InstanceNormalization", [node("InstanceNormalization", "a g c", "b")], g=1 + draw(7, 8), c=draw(8, 8))
kind(
    "GroupNormalization",
    [node("GroupNormalization", "a g c", "b", num_groups=4)],
    opset=21,
    g=1 + draw(7, 8),
    c=draw(8, 8),
)
kind(
    "Group normalisation, as torch writes it",
    [
        node("Reshape", "a groups", "r"),
        node("InstanceNormalization", "r one zero", "n"),
        node("Reshape", "n back", "k"),
        node("Mul", "k g", "l"),
        node("Add", "l c", "b"),
    ],
    groups=ints([0, 4, -1]),
    one=np.ones(4, F),
    zero=np.zeros(4, F),
    back=ints([1, 8, 12, 12]),
    g=1 + draw(7, 8, 1, 1),
    c=draw(8, 8, 1, 1),
)
kind(
    "BatchNormalization behind Relu",
    [node("Relu", "a", "r"), node("BatchNormalization", "r g c m v", "b")],
    g=1 + draw(7, 8),
    c=draw(8, 8),
    m=draw(5, 8),
    v=np.abs(draw(6, 8)) + F(0.5),
)
kind("LRN", one("LRN", size=3))
kind("CumSum", [node("CumSum", "a ax", "b")], ax=ints(2))
kind("CumSum, tokens", [node("CumSum", "a ax", "b")], shape=TOKENS, ax=ints(1))
kind("ArgMax", [node("ArgMax", "a", "i", axis=1, keepdims=1), node("Cast", "i", "f", to=1), node("Mul", "a f", "b")])
kind("TopK", [node("TopK", "a k", "b i", axis=1, largest=1)], k=ints([4]), channels=4)
kind("TopK, tokens", [node("TopK", "a k", "b i", axis=-1, largest=1)], shape=TOKENS, k=ints([5]), channels=5)
