"""Leadline's own operators: each definition is its core's counterpart in onnxruntime, and models carry them along."""

from __future__ import annotations

import numpy as np
import onnx
import pytest
from hypothesis import given
from hypothesis import strategies as st
from hypothesis.extra.numpy import arrays

from leadline import affine
from leadline.graph import Graph, Node, Session, Value
from leadline.graph.functions import DOMAIN, definitions
from leadline.graph.ir import OPSET
from leadline.hadamard import random_rotation
from leadline.polishing import polish, unpolish
from leadline.types import Grid, Scheme

NAMES = ["LogPolish", "LogUnpolish", "QuantizeTokens", "QuantizeTokensSymmetric", "Rotate"]
INFINITE = np.float32(np.inf)
# float32 in another order of operations: a few units in the last place of the largest intermediate value.
ROUNDING = 1e-6


def single(op_type: str, shape: tuple[int, ...], attrs=None, **weights) -> Graph:
    """One operator between x and y."""
    x, y = (Value(name, np.dtype(np.float32), shape) for name in "xy")
    one = Node(op_type, ["x", *weights], ["y"], "own", attrs or {}, DOMAIN)
    return Graph([one], dict(weights), [x], [y], {"x": x, "y": y})


def run(graph: Graph, x: np.ndarray, optimize: bool) -> np.ndarray:
    with Session(graph, optimize=optimize, threads=1) as session:
        return session.run({"x": x})["y"]


def drawn(*shape: int, seed: int = 0, spread: float = 3.0) -> np.ndarray:
    return (np.random.default_rng(seed).standard_normal(shape) * spread).astype(np.float32)


@pytest.mark.parametrize("optimize", [False, True])
@pytest.mark.parametrize("size", [16, 24])
def test_rotate_is_the_rotation_as_a_matrix(size, optimize):
    x, rotation = drawn(2, 5, size), random_rotation(size, 3)
    graph = single("Rotate", x.shape, matrix=rotation.matrix().astype(np.float32))
    np.testing.assert_allclose(run(graph, x, optimize), rotation(x), atol=ROUNDING * np.abs(x).max() * size**0.5)


# Shapes of omega against shapes of x: per tensor, the last axis of rows, the second of pictures.
BENDS = {
    "tensor": ((2, 6, 5), None, ()),
    "rows": ((7, 6), 1, (6,)),
    "tokens": ((2, 5, 6), 2, (6,)),
    "pictures": ((2, 6, 3, 4), 1, (6, 1, 1)),
}


def bends(shape: tuple[int, ...], which: str) -> np.ndarray:
    omega = np.exp(drawn(*shape, seed=5, spread=1.0))
    if which == "all":
        return np.full_like(omega, INFINITE)
    if which == "some" and omega.ndim:
        omega[::2] = INFINITE
    return omega


@pytest.mark.parametrize("optimize", [False, True])
@pytest.mark.parametrize("which", ["finite", "some", "all"])
@pytest.mark.parametrize("case", BENDS)
def test_polishing_is_the_core_s(case, which, optimize):
    shape, axis, wide = BENDS[case]
    x, omega = drawn(*shape, seed=1), bends(wide, which)
    x.flat[:3] = 0.0, -0.0, 1e-30
    bent = polish(x, omega.reshape(-1) if wide else omega, axis)
    got = run(single("LogPolish", shape, omega=omega), x, optimize)
    np.testing.assert_allclose(got, bent, rtol=ROUNDING, atol=ROUNDING)
    back = run(single("LogUnpolish", shape, omega=omega), bent, optimize)
    expected = unpolish(bent, omega.reshape(-1) if wide else omega, axis)
    np.testing.assert_allclose(back, expected, rtol=4 * ROUNDING, atol=4 * ROUNDING * np.abs(x).max())
    passes = np.broadcast_to(np.isinf(omega), shape)
    assert np.array_equal(got[passes], x[passes]) and np.array_equal(back[passes], x[passes])


@pytest.mark.parametrize("optimize", [False, True])
def test_unpolishing_holds_at_the_largest_power(optimize):
    """|y| beyond 126 counts as 126, and infinite omegas touch nothing, however large."""
    y = np.array([[126, 127, 1000, -1000, 3e38]], np.float32)
    omega = np.array([1e-3, 1e-3, 1e-3, 1e-3, INFINITE], np.float32)
    got = run(single("LogUnpolish", y.shape, omega=omega), y, optimize)
    np.testing.assert_allclose(got, unpolish(y, omega, 1), rtol=1e-5)
    assert got[0, 0] == got[0, 1] == got[0, 2] == -got[0, 3] and got[0, 4] == y[0, 4]


@given(
    arrays(np.float32, (3, 4), elements=st.floats(-1e4, 1e4, width=32)),
    st.lists(st.sampled_from([0.125, 1.0, 30.0, np.inf]), min_size=4, max_size=4),
)
def test_one_operator_undoes_the_other(x, omega):
    bend = np.array(omega, np.float32)
    first, second = (single(name, x.shape, omega=bend) for name in ("LogPolish", "LogUnpolish"))
    there_and_back = run(second, run(first, x, True), True)
    # A unit in the last place of y, up to 17, is 1e-6 of x, and 2^|y| - 1 loses what is far below omega.
    np.testing.assert_allclose(there_and_back, x, rtol=4e-5, atol=4e-6)


TOKENS = {
    "rows": ((9, 16), 1),
    "tokens": ((2, 7, 16), 2),
    "pictures": ((2, 16, 3, 4), 1),
}
SCHEMES = [
    Scheme(bits, signed=signed, symmetric=symmetric, granularity="token", narrow=narrow)
    for bits in (3, 4, 8)
    for signed, symmetric, narrow in (
        (False, False, False),
        (True, False, False),
        (True, True, False),
        (True, True, True),
    )
]


@pytest.mark.parametrize("optimize", [False, True])
@pytest.mark.parametrize("case", TOKENS)
@pytest.mark.parametrize("scheme", SCHEMES, ids=str)
def test_tokens_are_quantised_as_the_core_does(scheme, case, optimize):
    shape, axis = TOKENS[case]
    x = drawn(*shape, seed=2) + 1
    rows = np.moveaxis(x, axis, -1)  # a view: tokens that are zero, constant, of one sign, and tiny
    rows[..., 0, :], rows[..., 1, :] = 0, 2.5
    rows[..., 2, :] = np.abs(rows[..., 2, :]) + 1
    grid = Grid(np.ones(()), np.zeros(()), scheme.at(axis))
    kind = "QuantizeTokensSymmetric" if scheme.symmetric else "QuantizeTokens"
    attrs = {"axes": [axis], "low": float(scheme.qmin), "high": float(scheme.qmax)}
    got, wanted = run(single(kind, shape, attrs), x, optimize), affine.fake_quantize(x, grid)
    # The scale may differ in its last place, and a value in the middle between two codes may then go the other way.
    got, wanted, given = (np.moveaxis(array, axis, -1) for array in (got, wanted, x))
    off = np.abs(got - wanted)
    assert (off > 1e-5 * np.abs(wanted) + 1e-6).mean() < 0.01
    span = np.maximum(given.max(-1), 0) - np.minimum(given.min(-1), 0)
    assert (off <= 1.01 * (2 if scheme.symmetric else 1) * span[..., None] / (scheme.qmax - scheme.qmin)).all()
    assert not got[..., 0, :].any()


def test_definitions_are_the_known_ones_sorted():
    found = definitions(reversed([*NAMES, "Conv", "Rotate"]), OPSET)
    assert [function.name for function in found] == NAMES
    assert all(function.domain == DOMAIN for function in found)
    assert all([(o.domain, o.version) for o in function.opset_import] == [("", OPSET)] for function in found)
    assert definitions(["Conv"], OPSET) == []


def several() -> Graph:
    """Rotate, polish, quantise the tokens, unpolish; then an ordinary operator."""
    shape = (1, 6, 16)
    values = {name: Value(name, np.dtype(np.float32), shape) for name in ("x", "r", "p", "q", "u", "y")}
    attrs = {"axes": [2], "low": 0.0, "high": 255.0}
    nodes = [
        Node("Rotate", ["x", "m"], ["r"], "r", {}, DOMAIN),
        Node("LogPolish", ["r", "o"], ["p"], "p", {}, DOMAIN),
        Node("QuantizeTokens", ["p"], ["q"], "q", attrs, DOMAIN),
        Node("LogUnpolish", ["q", "o"], ["u"], "u", {}, DOMAIN),
        Node("Relu", ["u"], ["y"], "y"),
    ]
    weights = {"m": random_rotation(16).matrix().astype(np.float32), "o": bends((16,), "some")}
    return Graph(nodes, weights, [values["x"]], [values["y"]], values)


@pytest.mark.parametrize("limit", [2_000_000_000, 100])
def test_a_model_carries_the_definitions_that_it_uses(limit, tmp_path):
    graph = several()
    model = graph.to_model()
    assert [function.name for function in model.functions] == ["LogPolish", "LogUnpolish", "QuantizeTokens", "Rotate"]
    assert {(entry.domain, entry.version) for entry in model.opset_import} == {("", OPSET), (DOMAIN, 1)}
    onnx.checker.check_model(model, full_check=True)
    file = tmp_path / "model.onnx"
    graph.save(file, limit)
    x = drawn(1, 6, 16)
    wanted = run(graph, x, True)
    assert np.array_equal(Session(file, threads=1).run({"x": x})["y"], wanted)
    import onnxruntime

    plain = onnxruntime.InferenceSession(str(file), providers=["CPUExecutionProvider"])
    np.testing.assert_allclose(plain.run(None, {"x": x})[0], wanted, atol=1e-5)
    # Loading puts the operators in place of the functions; what they compute stays.
    again = Graph.load(file)
    assert not any(item.domain for item in again.nodes)
    assert {"Log", "Pow", "Round"} <= {item.op_type for item in again.nodes}
    np.testing.assert_allclose(run(again, x, True), wanted, atol=1e-5)


def test_a_model_without_own_operators_has_no_functions():
    graph = several()
    graph.nodes = [Node("Relu", ["x"], ["y"], "y")]
    graph.prune()
    model = graph.to_model()
    assert not model.functions and [entry.domain for entry in model.opset_import] == [""]
