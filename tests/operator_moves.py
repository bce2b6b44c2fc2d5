"""Kinds of operators that move and pool data, and layers."""

import numpy as np

from graph_models import node
from operator_networks import LINE, SIG, SPACE, TOKENS, F, ints, kind, one
from small_networks import draw

# moving data
kind(
    "Reshape and Transpose",
    [node("Reshape", "a sh", "r"), node("Transpose", "r", "t", perm=[0, 2, 1, 3]), node("Reshape", "t back", "b")],
    sh=ints([1, 4, 2, 144]),
    back=ints([1, 8, 12, 12]),
)
kind(
    "Slice", [node("Slice", "a st en ax sp", "b")], st=ints([1, 0]), en=ints([11, 12]), ax=ints([2, 3]), sp=ints([2, 1])
)
kind(
    "Slice, backwards",
    [node("Slice", "a st en ax sp", "b")],
    st=ints([-1]),
    en=ints([-100]),
    ax=ints([3]),
    sp=ints([-1]),
)
kind("Split and Concat", [node("Split", "a", "p q", axis=1, num_outputs=2), node("Concat", "q p", "b", axis=1)])
kind("Concat with another", [SIG, node("Concat", "a s", "b", axis=1)], channels=16)
kind("Concat with a constant", [node("Concat", "a c", "b", axis=1)], c=draw(7, 1, 2, 12, 12), channels=10)
kind(
    "Expand",
    [node("ReduceMean", "a ax", "m", keepdims=1), node("Expand", "m sh", "b")],
    ax=ints([2, 3]),
    sh=ints([1, 8, 12, 12]),
)
kind("Tile", [node("Tile", "a r", "b")], r=ints([1, 1, 2, 1]))
for _mode in ("constant", "reflect", "edge", "wrap"):
    kind(f"Pad, {_mode}", [node("Pad", "a p", "b", mode=_mode)], p=ints([0, 0, 2, 1, 0, 0, 1, 2]), opset=19)
kind("Pad, constant 1", [node("Pad", "a p c", "b")], p=ints([0, 0, 2, 1, 0, 0, 1, 2]), c=F(1))
for _name, _how in {
    "nearest": {"mode": "nearest"},
    "nearest, asymmetric floor": {"mode": "nearest", "coordinate_transformation_mode": "asymmetric",
                                  "nearest_mode": "floor"},
    **{mode: {"mode": mode} for mode in ("linear", "cubic")},
    **{f"linear, {way}": {"mode": "linear", "coordinate_transformation_mode": way}
       for way in ("align_corners", "pytorch_half_pixel", "asymmetric")},
    "cubic, align_corners": {"mode": "cubic", "coordinate_transformation_mode": "align_corners"},
}.items():  # fmt: skip
    kind(f"Resize, {_name}", [node("Resize", "a - - sizes", "b", **_how)], sizes=ints([1, 8, 24, 18]))
kind("Resize, with axes", [node("Resize", "a - - sizes", "b", mode="linear", axes=[2, 3])], sizes=ints([24, 18]))
kind("Resize, scales", [node("Resize", "a - scales", "b", mode="linear")], scales=np.array([1, 1, 2, 2], F))
kind(
    "Resize, down, antialias",
    [node("Resize", "a - - sizes", "b", mode="linear", antialias=1)],
    sizes=ints([1, 8, 6, 6]),
)
kind("Resize, of a line", [node("Resize", "a - - sizes", "b", mode="linear")], shape=LINE, sizes=ints([1, 8, 64]))
kind(
    "Resize, of space",
    [node("Resize", "a - - sizes", "b", mode="nearest")],
    shape=SPACE,
    sizes=ints([1, 8, 12, 16, 16]),
)
kind("DepthToSpace, DCR", one("DepthToSpace", blocksize=2), channels=2)
kind("DepthToSpace, CRD", one("DepthToSpace", blocksize=2, mode="CRD"), channels=2)
kind("SpaceToDepth", one("SpaceToDepth", blocksize=2), channels=32)
kind("Gather", [node("Gather", "a i", "b", axis=2)], i=ints([3, 1, 7, 7, 0]))
kind("GatherElements", [node("GatherElements", "a i", "b", axis=2)], i=np.arange(8 * 60).reshape(1, 8, 5, 12) % 12)
kind("GatherND", [node("GatherND", "a i", "b", batch_dims=1)], i=np.array([[[0], [3], [5], [6]]], np.int64), channels=4)
kind(
    "ScatterND",
    [node("Slice", "a st en ax", "u"), node("Reshape", "u sh", "v"), node("ScatterND", "a i v", "b")],
    st=ints([0]),
    en=ints([2]),
    ax=ints([1]),
    sh=ints([2, 12, 12]),
    i=np.array([[0, 3], [0, 6]], np.int64),
)
kind(
    "ScatterElements",
    [SIG, node("ScatterElements", "a i s", "b", axis=2)],
    i=np.argsort(np.random.default_rng(7).random((1, 8, 12, 12)), axis=2),
)
kind(
    "GridSample",
    [
        node("Slice", "a st en ax", "u"),
        node("Tanh", "u", "v"),
        node("Transpose", "v", "g", perm=[0, 2, 3, 1]),
        node("GridSample", "a g", "b", mode="bilinear"),
    ],
    st=ints([0]),
    en=ints([2]),
    ax=ints([1]),
    opset=16,
)
kind(
    "GridSample, constant grid",
    [node("GridSample", "a g", "b", mode="bilinear")],
    g=np.tanh(draw(7, 1, 12, 12, 2, spread=1.0)),
    opset=16,
)
kind(
    "GridSample, nearest",
    [node("GridSample", "a g", "b", mode="nearest")],
    g=np.tanh(draw(7, 1, 12, 12, 2, spread=1.0)),
    opset=16,
)
kind("ReverseSequence", [node("ReverseSequence", "a len", "b", batch_axis=0, time_axis=1)], len=ints([6]))
kind("Trilu", one("Trilu"))
kind(
    "Roll, by Slice and Concat",
    [node("Slice", "a s1 e1 ax", "u"), node("Slice", "a s2 e2 ax", "v"), node("Concat", "u v", "b", axis=2)],
    s1=ints([4]),
    e1=ints([12]),
    s2=ints([0]),
    e2=ints([4]),
    ax=ints([2]),
)

# pooling
for _op in ("MaxPool", "AveragePool"):
    kind(f"{_op}", one(_op, kernel_shape=[2, 2], strides=[2, 2]))
    kind(f"{_op}, padded", one(_op, kernel_shape=[3, 3], strides=[2, 2], pads=[1, 1, 1, 1]))
    kind(f"{_op}, ceil_mode", one(_op, kernel_shape=[3, 3], strides=[2, 2], ceil_mode=1))
    kind(f"{_op} of a line", one(_op, kernel_shape=[2], strides=[2]), shape=LINE)
    kind(f"{_op} of space", one(_op, kernel_shape=[2, 2, 2], strides=[2, 2, 2]), shape=SPACE)
kind(
    "AveragePool, count_include_pad",
    one("AveragePool", kernel_shape=[3, 3], strides=[1, 1], pads=[1, 1, 1, 1], count_include_pad=1),
)
kind("MaxPool, dilated", one("MaxPool", kernel_shape=[3, 3], dilations=[2, 2]))
kind("GlobalAveragePool", [node("GlobalAveragePool", "a", "m"), node("Mul", "a m", "b")])
kind("GlobalMaxPool", [node("GlobalMaxPool", "a", "m"), node("Mul", "a m", "b")])
kind("LpPool", one("LpPool", kernel_shape=[2, 2], strides=[2, 2]))

# layers
kind("Conv", [node("Conv", "a w", "b", pads=[1] * 4)], w=draw(7, 8, 8, 3, 3))
kind("Conv, depthwise", [node("Conv", "a w", "b", pads=[1] * 4, group=8)], w=draw(7, 8, 1, 3, 3))
kind("Conv, grouped", [node("Conv", "a w", "b", pads=[1] * 4, group=2)], w=draw(7, 8, 4, 3, 3))
kind("Conv, dilated", [node("Conv", "a w", "b", pads=[2] * 4, dilations=[2, 2])], w=draw(7, 8, 8, 3, 3))
kind(
    "Conv, of two tensors",
    [SIG, node("ReduceMean", "s ax", "k", keepdims=1), node("Reshape", "k sh", "w"), node("Conv", "a w", "b", group=8)],
    ax=ints([2, 3]),
    sh=ints([8, 1, 1, 1]),
)
kind("Conv of a line", [node("Conv", "a w", "b", pads=[1, 1])], shape=LINE, w=draw(7, 8, 8, 3))
kind("Conv of a line, depthwise", [node("Conv", "a w", "b", pads=[1, 1], group=8)], shape=LINE, w=draw(7, 8, 1, 3))
kind("Conv of space", [node("Conv", "a w", "b", pads=[1] * 6)], shape=SPACE, w=draw(7, 8, 8, 3, 3, 3))
kind("ConvTranspose", [node("ConvTranspose", "a w", "b", strides=[2, 2])], w=draw(7, 8, 8, 2, 2))
kind(
    "ConvTranspose, output_padding",
    [node("ConvTranspose", "a w", "b", strides=[2, 2], pads=[1] * 4, output_padding=[1, 1])],
    w=draw(7, 8, 8, 3, 3),
)
kind("ConvTranspose, depthwise", [node("ConvTranspose", "a w", "b", strides=[2, 2], group=8)], w=draw(7, 8, 1, 2, 2))
kind("ConvTranspose of a line", [node("ConvTranspose", "a w", "b", strides=[2])], shape=LINE, w=draw(7, 8, 8, 2))
kind(
    "ConvTranspose of space",
    [node("ConvTranspose", "a w", "b", strides=[2] * 3)],
    shape=SPACE,
    w=draw(7, 8, 8, 2, 2, 2),
)
kind(
    "MatMul of two tensors",
    [
        node("Transpose", "a", "t", perm=[0, 2, 1]),
        node("MatMul", "a t", "s"),
        node("Softmax", "s", "p"),
        node("MatMul", "p a", "b"),
    ],
    shape=TOKENS,
)
kind(
    "MatMul, batches of weights",
    [node("Reshape", "a sh", "h"), node("MatMul", "h w", "k"), node("Reshape", "k back", "b")],
    shape=TOKENS,
    sh=ints([1, 4, 4, 16]),
    back=ints([1, 16, 16]),
    w=draw(7, 4, 16, 16),
)
kind("MatMul, constant on the left", [node("MatMul", "w a", "b")], shape=TOKENS, w=draw(7, 16, 16))
kind("Einsum, with a constant", [node("Einsum", "a w", "b", equation="btc,cd->btd")], shape=TOKENS, w=draw(7, 16, 16))
kind(
    "Einsum, of two tensors",
    [node("Einsum", "a a", "s", equation="btc,bsc->bts"), node("Softmax", "s", "b")],
    shape=TOKENS,
)
kind(
    "Gemm",
    [node("Reshape", "a rows", "r"), node("Gemm", "r w c", "g", transB=1), node("Reshape", "g back", "b")],
    shape=TOKENS,
    rows=ints([16, 16]),
    back=ints([1, 16, 16]),
    w=draw(7, 16, 16),
    c=draw(8, 16),
)
kind(
    "LSTM",
    [
        node("Transpose", "a", "t", perm=[1, 0, 2]),
        node("LSTM", "t w r", "h", hidden_size=6),
        node("Squeeze", "h ax", "q"),
        node("Transpose", "q", "b", perm=[1, 0, 2]),
    ],
    shape=TOKENS,
    channels=6,
    w=draw(7, 1, 24, 16),
    r=draw(8, 1, 24, 6),
    ax=ints([1]),
)
kind(
    "GRU",
    [
        node("Transpose", "a", "t", perm=[1, 0, 2]),
        node("GRU", "t w r", "h", hidden_size=6, linear_before_reset=1),
        node("Squeeze", "h ax", "q"),
        node("Transpose", "q", "b", perm=[1, 0, 2]),
    ],
    shape=TOKENS,
    channels=6,
    w=draw(7, 1, 18, 16),
    r=draw(8, 1, 18, 6),
    ax=ints([1]),
)
