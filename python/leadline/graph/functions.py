"""Operators that ONNX does not have, in the domain "leadline": each is a function of ONNX operators, and a model that
uses one carries its definition, so that any runtime can run it. No NPU's compiler fuses them: they are for simulation.
"""

from __future__ import annotations

from collections.abc import Iterable
from functools import cache

import onnx

from leadline.graph.ir import DOMAIN

_DEFINITIONS = {
    # x R: what `leadline.hadamard` does in n log n steps, as one product.
    "Rotate": "(x, matrix) => (y) { y = MatMul(x, matrix) }",
    # sign(x) log2(1 + |x| / omega), and x where omega is infinite. See `leadline.polishing`.
    "LogPolish": """(x, omega) => (y) {
        plain = IsInf(omega)
        one = Constant<value: tensor = float {1.0}>()
        unit = Constant<value: tensor = float {0.69314718055994531}>()
        bend = Where(plain, one, omega)
        size = Abs(x)
        ratio = Div(size, bend)
        beyond = Add(ratio, one)
        natural = Log(beyond)
        binary = Div(natural, unit)
        sign = Sign(x)
        bent = Mul(sign, binary)
        y = Where(plain, x, bent)
    }""",
    # sign(y) omega (2^|y| - 1), and y where omega is infinite.
    "LogUnpolish": """(y, omega) => (x) {
        plain = IsInf(omega)
        one = Constant<value: tensor = float {1.0}>()
        most = Constant<value: tensor = float {126.0}>()
        two = Constant<value: tensor = float {2.0}>()
        bend = Where(plain, one, omega)
        size = Abs(y)
        held = Min(size, most)
        power = Pow(two, held)
        less = Sub(power, one)
        scaled = Mul(less, bend)
        sign = Sign(y)
        bent = Mul(sign, scaled)
        x = Where(plain, y, bent)
    }""",
    # Quantise and dequantise, with scale and zero point from the extremes along the axes: granularity "token".
    "QuantizeTokens": """<axes, low, high> (x) => (y) {
        over = Constant<value_ints: ints = @axes>()
        qmin = Constant<value_float: float = @low>()
        qmax = Constant<value_float: float = @high>()
        one = Constant<value: tensor = float {1.0}>()
        zero = Constant<value: tensor = float {0.0}>()
        least = ReduceMin<keepdims = 1>(x, over)
        most = ReduceMax<keepdims = 1>(x, over)
        lo = Min(least, zero)
        hi = Max(most, zero)
        width = Sub(hi, lo)
        steps = Sub(qmax, qmin)
        given = Div(width, steps)
        empty = Equal(given, zero)
        scale = Where(empty, one, given)
        down = Div(lo, scale)
        exact = Sub(qmin, down)
        zero_point = Round(exact)
        ratio = Div(x, scale)
        rounded = Round(ratio)
        shifted = Add(rounded, zero_point)
        code = Clip(shifted, qmin, qmax)
        back = Sub(code, zero_point)
        y = Mul(back, scale)
    }""",
    "QuantizeTokensSymmetric": """<axes, low, high> (x) => (y) {
        over = Constant<value_ints: ints = @axes>()
        qmin = Constant<value_float: float = @low>()
        qmax = Constant<value_float: float = @high>()
        one = Constant<value: tensor = float {1.0}>()
        zero = Constant<value: tensor = float {0.0}>()
        size = Abs(x)
        most = ReduceMax<keepdims = 1>(size, over)
        given = Div(most, qmax)
        empty = Equal(given, zero)
        scale = Where(empty, one, given)
        ratio = Div(x, scale)
        rounded = Round(ratio)
        code = Clip(rounded, qmin, qmax)
        y = Mul(code, scale)
    }""",
}


def definitions(op_types: Iterable[str], opset: int) -> list[onnx.FunctionProto]:
    """The definitions of these operators of the domain, in alphabetical order."""
    return [_definition(name, opset) for name in sorted(set(op_types)) if name in _DEFINITIONS]


@cache
def _definition(name: str, opset: int) -> onnx.FunctionProto:
    return onnx.parser.parse_function(f'<domain: "{DOMAIN}", opset_import: ["" : {opset}]> {name} {_DEFINITIONS[name]}')
