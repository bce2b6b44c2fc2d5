"""A sample of ONNX's own node tests; `python tests/conformance.py` runs all of them."""

from __future__ import annotations

import pytest

import conformance

SAMPLE = (
    "Add Attention AveragePool BatchNormalization CastLike Celu Clip Conv ConvTranspose CumProd Dropout Einsum "
    "GRU Gelu GroupNormalization HardSwish Identity If InstanceNormalization LSTM LayerNormalization "
    "LinearAttention Mish Mod NonMaxSuppression Pad RMSNormalization ReduceMean Reshape Resize RotaryEmbedding "
    "Scan SequenceMap Slice Softmax Split Squeeze Swish TensorScatter TopK Transpose Unique Where"
).split()


def judged(cases):
    """Fails where a Graph computes something else, or the reason of a refusal is none that tables list."""
    outcomes = [conformance.outcome(*case) for case in cases]
    bad = [one for one in outcomes if one.kind in ("wrong", "traceback")]
    assert not bad, bad
    strange = [one for one in outcomes if one.kind == "refused" and conformance.reason(one.reason) == "something else"]
    assert not strange, strange
    return outcomes


@pytest.mark.parametrize("op_type", SAMPLE)
def test_node_tests_of_an_operator(op_type):
    """Every third of its cases, at most eight."""
    found = list(conformance.cases(op_type))
    assert judged(found[:: max(3, len(found) // 8)])


@pytest.mark.full
@pytest.mark.slow
def test_all_node_tests():
    outcomes = judged(conformance.cases())
    equal = sum(one.kind == "equal" for one in outcomes)
    assert equal >= 0.9 * sum(one.kind != "unable" for one in outcomes)
