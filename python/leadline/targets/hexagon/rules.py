"""What Qualcomm's HTP takes."""

from __future__ import annotations

from leadline.rules import Rules

HEXAGON = Rules(
    "hexagon",
    activation_bits=frozenset({8, 16}),
    activation_scales=("tensor",),
    float_activations=False,
    weight_bits=frozenset(range(2, 9)),
    weight_scales=("tensor", "axis"),
    weight_signs=True,
    own_operators=False,
    one_type=True,
    second_operand_bits=8,
    resize_keeps_grid=True,
    single_scale_bits=8,
    multiplier_bits=10,
    dropped_bits=8,
    fraction_bits=4,
    integers_only=True,
    single_bias_scale=True,
    operators=frozenset(
        ("Abs Exp Reciprocal Sin Cos Floor Ceil Round Sign LogSoftmax LpNormalization GlobalMaxPool "
         "GridSample ReduceSum ReduceMax ReduceMin Greater GreaterOrEqual Less LessOrEqual Equal").split()
    ),
    constants={"Max": 0, "Min": 0, "Pow": 0, "Greater": 0, "GreaterOrEqual": 0, "Less": 0, "LessOrEqual": 0, "Equal": 0,
               "GridSample": 0, "PRelu": 8, "InstanceNormalization": 8},
    spelled=frozenset(
        ("Max", "Min", "Sum", "Mean", "Pow", "Neg", "Softsign", "Selu", "Celu", "ThresholdedRelu",
         "Cast of truth values", "ReduceL1", "ReduceL2", "ReduceSumSquare", "ReduceLogSum", "ReduceLogSumExp", "LRN",
         "LayerNormalization", "CumSum", "ConvTranspose in groups", "GatherElements", "GatherND", "ScatterND",
         "ScatterElements", "ReverseSequence", "Trilu", "Pad", "Resize, nearest", "Resize with antialias",
         "AveragePool with ceil_mode", "Clip above zero", "Reciprocal of Sqrt", "Sigmoid in pieces",
         "Softmax in pieces")
    ),
    spelled_wide=frozenset(("Log", "Softplus", "SiLU of 9 to 12 rows")),
    refused={
        "Erf": "Gelu is taken, Erf is not: export GELU as one operator, or in a form that import recognises",
        "Einsum": "write it as Transpose, Reshape and MatMul",
        "Hardmax": "ArgMax is taken", "Mod": "compute it behind the network",
        "ReduceProd": "write it as products", "MeanVarianceNormalization": "InstanceNormalization is taken",
        **dict.fromkeys(("LSTM", "GRU", "RNN"), "keep it out of the network, or export it unrolled"),
        "MaxPool with dilations": "take the largest of shifted slices",
        "MaxPool over three axes": "pool two axes at a time", "NonZero": "keep it behind the network",
        "Conv of two tensors": "weights that are computed lose most of their precision on the way",
        "ConvTranspose of two tensors": "weights have to be constant",
    },
)  # fmt: skip
"""Qualcomm's HTP, as its emulation in onnxruntime-qnn 2.7 answers when asked operator by operator
(`benchmarks/hexagon_operators.py`, `benchmarks/hexagon_kinds.py`). A product of two 16-bit activations has its second
one cut to 8 bits on the way; done in the artefact instead, on a grid from calibration, the simulation sees it.

Operators between float tensors run in float16 there. Where one stands between integers, `Log` of 16 bits gives the
lowest code and `Softplus` strays by a hundred steps, so that a pair of Neg, which nothing quantises, keeps their
results in float16; and 8-bit convolutions times what was reduced in float16 come out as noise, so that at 8 bits the
arithmetic around them is quantised. Sigmoid times its input, fused, is torn at 9 to 12 rows of 16 bits. A clamp that a
kernel performs on its way out forgets a lower bound above zero, and Reciprocal of Sqrt of small values saturates."""
