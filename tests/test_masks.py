"""Masks: judged by the original network in onnxruntime, against the same network without a mask."""

from __future__ import annotations

import functools

import numpy as np
import onnx
import onnxruntime as ort
import pytest
from onnx import helper

from leadline.graph import Graph, Session
from leadline.graph.masks import Masks
from leadline.pipeline import Quantized, quantize
from leadline.recipe import Calibrate, Recipe, Round
from leadline.types import InputError
from masked_networks import CONSTANT, INPUT, TOKENS, Make, Net, attention, feeds

LOWEST = float(np.finfo(np.float32).min)


def recipe(bits: int = 8, wide: int = 8, observer: str = "minmax") -> Recipe:
    base = Recipe.load("minmax-w8a8")
    own = {"weights": base.weights.__class__(**vars(base.weights) | {"bits": bits})} if bits != 8 else {}
    wider = {"activations": base.activations.__class__(**vars(base.activations) | {"bits": wide})} if wide != 8 else {}
    return base.changed(steps=(Calibrate(observer, "mse"), Round()), **own, **wider)


def run(model: onnx.ModelProto, data: list) -> list:
    session = ort.InferenceSession(model.SerializeToString(), providers=["CPUExecutionProvider"])
    return [session.run(None, feed)[0] for feed in data]


def score(
    network: tuple[onnx.ModelProto, Make], chosen: Recipe, target: str = "onnxruntime"
) -> tuple[float, Quantized]:
    """SQNR in dB on other samples, where the original is finite; there the artefact has to be finite, too."""
    model, make = network
    data = feeds(make, 100, 8)
    q = quantize(Graph.from_model(model, data[0]), chosen, data, target=target)
    test = feeds(make, 900, 6)
    wanted, got = (np.stack(run(proto, test)).astype(np.float64) for proto in (model, q.to_qdq()))
    finite = np.isfinite(wanted)
    wanted, got = wanted[finite], got[finite]
    assert np.isfinite(got).all()
    return 10 * np.log10(np.square(wanted).sum() / np.square(wanted - got).sum()), q


@functools.cache
def unmasked(bits: int, wide: int) -> float:
    return score(attention(), recipe(bits, wide))[0]


@pytest.mark.parametrize("value", [-np.inf, LOWEST, -1e9, -65504.0, -1e4, -100.0])
@pytest.mark.parametrize("kind", CONSTANT + INPUT)
def test_a_mask_costs_nothing(kind: str, value: float) -> None:
    if value == -np.inf and kind in ("ones", "keys", "trilu"):
        pytest.skip("0 * inf is NaN")
    assert score(attention(kind, value), recipe())[0] > unmasked(8, 8) - 1


@pytest.mark.parametrize(("bits", "wide"), [(4, 8), (8, 16)])
@pytest.mark.parametrize("kind", ["add", "where", "causal", "input", "ones"])
def test_at_other_widths(kind: str, bits: int, wide: int) -> None:
    assert score(attention(kind, -1e4), recipe(bits, wide))[0] > unmasked(bits, wide) - 1


@pytest.mark.parametrize("kind", ["add", "where", "where_zero", "input", "bool"])
def test_rows_masked_as_a_whole_are_guarded(kind: str) -> None:
    assert score(attention(kind, -np.inf, rows=True, guard=True), recipe())[0] > unmasked(8, 8) - 1


def other(kind: str, value: float) -> tuple[onnx.ModelProto, Make]:
    """Masks in front of something else than the Softmax of attention. `value` 0: the same network without one."""
    net, random = Net(), np.random.default_rng(5)
    hidden = net("MatMul", net.input("x", [1, 12, 16]), net.weight(16, 16))
    mask = np.where(random.random((12, 16)) < 0.3, value, 0).astype(np.float32)
    mask[:, 3] = 0
    added = net("Add", hidden, net.constant(mask))
    chosen = net("Where", net.constant(mask == 0), hidden, net.constant(np.float32(value)))
    away = net("Where", net.constant(mask == 0), hidden, net.constant(np.float32(-value)))
    low, one, scalar = np.full(16, value, np.float32), net.constant(np.array([1])), net.constant(np.float32(value))
    shape, matrix, wide = [1, 12, 16], net.weight(16, 4), net.weight(16, 16)
    match kind:
        case "LogSoftmax":
            out = net("LogSoftmax", added, axis=-1)
        case "Sigmoid" | "Relu":
            out = net("MatMul", net(kind, added), wide)
        case "TopK":
            net.nodes.append(
                helper.make_node("TopK", [chosen, net.constant(np.array([4]))], ["top", "places"], axis=-1)
            )
            out, shape = net("MatMul", "top", net.weight(4, 4)), [1, 12, 4]
        case "ReduceMax" | "ReduceMin":
            read = chosen if kind == "ReduceMax" else away
            out, shape = net("MatMul", net(kind, read, one, keepdims=0), matrix), [1, 4]
        case "ReduceLogSumExp":
            out, shape = net(kind, added, net.constant(np.array([2])), keepdims=0), [1, 12]
        case "Max" | "Min":
            out = net("MatMul", net(kind, net.constant(low if kind == "Max" else -low), hidden), wide)
        case "MaxPool":
            picture = net("Reshape", hidden, net.constant(np.array([1, 3, 8, 8])))
            padded = net("Pad", picture, net.constant(np.array([0, 0, 1, 1, 0, 0, 1, 1])), scalar)
            pooled = net("MaxPool", padded, kernel_shape=[3, 3], strides=[2, 2])
            kernel = net.constant(random.standard_normal((3, 3, 1, 1)).astype(np.float32))
            out, shape = net("Conv", pooled, kernel), [1, 3, 4, 4]
        case "Concat":
            joined = net("Concat", hidden, net.constant(np.full((1, 12, 4), value, np.float32)), axis=2)
            out = net("MatMul", net("Softmax", joined, axis=-1), net.weight(20, 16))
        case "Less":
            small = net("Less", hidden, net.constant(np.float32(-0.5)))
            out = net("MatMul", net("Softmax", net("Where", small, scalar, hidden), axis=-1), wide)
        case "pieces":
            last = net.constant(np.array([2]))
            powers = net("Exp", net("Sub", added, net("ReduceMax", added, last)))
            out = net("MatMul", net("Div", powers, net("ReduceSum", powers, last)), wide)
    return net.model(out, shape, opset=18), lambda r: {"x": r.standard_normal((1, 12, 16)).astype(np.float32)}


OTHERS = "LogSoftmax Sigmoid Relu TopK ReduceMax ReduceMin ReduceLogSumExp Max Min MaxPool Concat Less pieces".split()


@pytest.mark.parametrize("value", [-np.inf, LOWEST, -1e9, -1e4])
@pytest.mark.parametrize("kind", OTHERS)
def test_in_front_of_other_readers(kind: str, value: float) -> None:
    """The same networks with a small value in the mask's place are as good."""
    assert score(other(kind, value), recipe())[0] > min(score(other(kind, -3.0), recipe())[0] - 4, 30)


@pytest.mark.parametrize("value", [-np.inf, -1e9])
def test_a_mask_that_everybody_sees_stays(value: float) -> None:
    """At the network's end masks are values like others: they are not quantised, and the log says so."""
    net = Net()
    hidden = net("MatMul", net.input("x", [1, 4, 8]), net.weight(8, 8))
    mask = np.where(np.eye(4, 8) > 0, value, 0).astype(np.float32)
    network = (
        net.model(net("Add", hidden, net.constant(mask)), [1, 4, 8]),
        lambda r: {"x": r.standard_normal((1, 4, 8)).astype(np.float32)},
    )
    _, q = score(network, recipe())
    assert "y" not in q.grids and any(r.target == "y" and "masks" in r.note for r in q.log)
    got = run(q.to_qdq(), feeds(network[1], 5, 1))[0]
    assert (got[0][mask < 0] == np.float32(value)).all()


def test_infinity_that_is_no_mask_is_refused() -> None:
    net = Net()
    out = net("MatMul", net.input("x", [1, 4, 8]), net.weight(8, 8))
    graph = Graph.from_model(net.model(out, [1, 4, 8]))
    data = [{"x": np.full((1, 4, 8), -np.inf, np.float32)}] * 2
    with pytest.raises(InputError, match="must be finite in tensor 'x', sample"):
        quantize(graph, recipe(), data)


def test_bounds_reach_as_far_as_readers_see() -> None:
    """exp(lo - highest) of a whole row is below half a step."""
    model, make = attention("input", -1e4)
    data = feeds(make, 0, 1)
    graph = Graph.from_model(model, data[0])
    for bits in (4, 8, 16):
        masks = Masks(graph, bits)
        assert "mask" in masks.bounded and not masks.extreme
        with Session(graph, outputs=[name for name in masks.needed if name != "mask"]) as session:
            seen = session.run(data[0]) | data[0]
        bounds = masks.bounds(seen)
        added = next(node for node in graph.nodes if "mask" in node.inputs).outputs[0]
        highest = seen[added].max(-1)
        assert TOKENS * np.exp(bounds[added].lo - highest.min()) <= 0.5 / 2**bits * 1.001
        assert bounds["mask"].lo + seen[added].max() <= bounds[added].lo + 1e-4
        assert masks.clipped(seen, ["mask"])["mask"].min() >= bounds["mask"].lo - 1e-4


@pytest.mark.parametrize("value", [LOWEST, -1e9, -1e4, -100.0])
@pytest.mark.parametrize("kind", ["add", "where", "where_zero", "input", "bool"])
def test_rows_masked_as_a_whole_at_a_finite_distance(kind: str, value: float) -> None:
    """-1e4 leaves the scores beside it in the sum, -1e9 does not; the artefact does as the original."""
    decibels, q = score(attention(kind, value, rows=True), recipe())
    assert decibels > unmasked(8, 8) - 1
    levelled = [r for r in q.log if "masks whole rows" in r.note]
    assert len(levelled) == (value > -1e5 and kind in ("add", "where_zero", "input"))


@pytest.mark.parametrize("value", [-np.inf, -1e9])
@pytest.mark.parametrize("kind", ["add", "where", "input"])
def test_verification_looks_at_no_mask(kind: str, value: float) -> None:
    """How far a mask lies below is no error of the artefact's: no tensor is broken, and none is called moved."""
    _, q = score(attention(kind, value, rows=True, guard=value == -np.inf), recipe())
    found = q.verify()
    assert found.origin is None and not found.moved
    masked = next(node for node in q.graph.nodes if node.op_type == "Softmax").inputs[0]
    assert {one.name: one.sqnr for one in found.tensors}[masked] > 20


@pytest.mark.parametrize("kind", ["add", "add_left", "sub", "causal", "where", "where_zero"])
@pytest.mark.parametrize("target", ["onnxruntime", "hexagon"])
def test_the_network_of_encodings_holds_no_infinity(kind: str, target: str) -> None:
    """And computes what the artefact does: whatever is masked stays so."""
    model, make = attention(kind, -np.inf)
    data = feeds(make, 100, 8)
    q = quantize(Graph.from_model(model, data[0]), recipe(), data, target=target)
    encoded = q.encoded_graph()
    assert any(not np.isfinite(array).all() for array in q.graph.weights.values())
    assert all(np.isfinite(array).all() for name, array in encoded.weights.items() if name in q.grids)
    for wanted, got in zip(run(q.graph.to_model(), data[:2]), run(encoded.to_model(), data[:2]), strict=True):
        assert 10 * np.log10(np.square(wanted).sum() / np.square(wanted - got).sum()) > 30
