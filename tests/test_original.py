"""The user's file judges: whatever a pass does to the network's function is found, and float noise is not."""

from __future__ import annotations

from collections.abc import Callable
from importlib import import_module
from pathlib import Path
from typing import Any

import numpy as np
import onnx
import pytest

from graph_models import model, node
from leadline import pipeline
from leadline.data import load_samples
from leadline.graph import Graph, Layer, Session
from leadline.original import Original, Proof
from leadline.recipe import Equalize, Fold
from leadline.types import InputError
from leadline.verification import verify
from small_networks import SHAPE, conv_relu_conv, draw, residual, samples
from small_transformer import transformer


@pytest.fixture
def file(tmp_path: Path) -> Path:
    onnx.save(residual(), tmp_path / "net.onnx")
    return tmp_path / "net.onnx"


def layer(graph: Graph, name: str) -> Layer:
    return next(layer for layer in graph.layers() if layer.name == name)


def scaled_bias(graph: Graph, by: float = 1.02) -> None:
    bias = layer(graph, "branch").bias
    assert bias is not None
    graph.weights[bias] = graph.weights[bias] * np.float32(by)


def one_channel(graph: Graph) -> None:
    name = layer(graph, "head").weight
    weight = graph.weights[name].copy()
    weight[3] = 0
    graph.weights[name] = weight


def other_operator(graph: Graph) -> None:
    next(n for n in graph.nodes if n.op_type == "Relu").op_type = "LeakyRelu"


def infinite(graph: Graph) -> None:
    bias = layer(graph, "fc").bias
    assert bias is not None
    graph.weights[bias] = np.full_like(graph.weights[bias], np.inf)


FAULTS: list[tuple[Callable[[Graph], None], str]] = [
    (scaled_bias, "branch"),
    (one_channel, "y"),
    (other_operator, "stem_relu"),
    (infinite, "fc"),
]


@pytest.mark.parametrize(("fault", "tensor"), FAULTS)
@pytest.mark.parametrize("kind", [Fold, Equalize])
def test_a_fault_in_a_step_is_refused_by_name(
    kind: Any, fault: Callable[[Graph], None], tensor: str, file: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    module = import_module(f"leadline.steps.{kind.step}")
    real = module.run

    def faulty(step: Any, state: Any) -> None:
        real(step, state)
        fault(state.graph)

    monkeypatch.setattr(module, "run", faulty)
    with pytest.raises(
        InputError, match=rf"after step {kind.step} .*'net.onnx'.*output 'y'.*from tensor '{tensor}' on"
    ):
        pipeline.quantize(file, "w8a8", samples(), threads=1)


def test_what_absorbs_a_bias_is_no_departure_and_a_wrong_bias_is_one(monkeypatch: pytest.MonkeyPatch) -> None:
    graph = Graph.from_model(conv_relu_conv())
    first, second = graph.layers()
    assert first.bias is not None and second.bias is not None
    with Session(graph, outputs=[first.output], threads=1) as session:
        least = min(float(session.run({"x": one[None]})[first.output].min()) for one in samples(4))
    graph.weights[first.bias] = graph.weights[first.bias] + np.float32(1 - least)  # nothing for the Relu to do
    proof = Proof(Original(graph), graph, load_samples(samples(4), graph.inputs), threads=1)
    proof.hold(graph, "loading")
    absorbed = graph.copy()
    shift = np.full_like(graph.weights[first.bias], 0.5)
    absorbed.weights[first.bias] = graph.weights[first.bias] - shift
    taken = graph.weights[second.weight].sum((1, 2, 3)) * np.float32(0.5)
    absorbed.weights[second.bias] = graph.weights[second.bias] + taken
    with Session(absorbed, threads=1) as session:
        name = graph.outputs[0].name
        inner = session.run({"x": samples(4)[:1]})[name][..., 1:-1, 1:-1]
    with Session(graph, threads=1) as session:
        np.testing.assert_allclose(inner, session.run({"x": samples(4)[:1]})[name][..., 1:-1, 1:-1], rtol=1e-5)
    absorbed.weights[second.weight] = graph.weights[second.weight] * np.float32(1.1)
    with pytest.raises(InputError, match=f"from tensor '{second.output}' on"):
        proof.hold(absorbed, "step equalize", 4, shifted=dict.fromkeys((first.output, second.input), shift))


def test_a_fault_in_loading_is_refused(file: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    real = Graph.load

    def faulty(*given: Any, **named: Any) -> Graph:
        graph = real(*given, **named)
        scaled_bias(graph)
        return graph

    monkeypatch.setattr(Graph, "load", faulty)
    with pytest.raises(InputError, match=r"after loading .*'net.onnx'.*output 'y'.*from tensor 'branch' on"):
        pipeline.quantize(file, "minmax-w8a8", samples(), threads=1)


@pytest.mark.parametrize("recipe", ["w8a8", "quartdepth-w4a8", "quantvggt-w4a4"])
def test_what_steps_do_is_no_fault(recipe: str) -> None:
    graph = transformer(fold=False)
    data = samples(6, graph.inputs[0].shape)
    quantised = pipeline.quantize(graph, recipe, data, threads=1)
    assert not any(record.step == "load" for record in quantised.log)


def test_a_network_that_amplifies_noise_is_allowed_its_noise() -> None:
    nodes = [node("Sub", "x shift", "a"), node("Mul", "a gain", "b"), node("Conv", "b w", "y", pads=[1, 1, 1, 1])]
    shift, gain = np.float32(1e4), np.float32(1e4)
    amplifier = Graph.from_model(model(nodes, SHAPE, shift=shift, gain=gain, w=draw(1, 4, 3, 3, 3)))
    data = load_samples(samples(4) + np.float32(1e4), amplifier.inputs)
    proof = Proof(Original(amplifier), amplifier, data)
    folded = amplifier.copy()
    folded.fold()
    proof.hold(folded, "step fold", 4)


@pytest.mark.parametrize("noise", [1e-6, 1e-2])
def test_picks_among_equal_scores_fall_either_way(noise: float) -> None:
    nodes = [node("Conv", "x w", "scores"), node("Flatten", "scores", "flat")]
    nodes += [node("TopK", "flat k", "values places"), node("Gather", "table places", "rows")]
    weight = draw(1, 1, 8, 1, 1)
    constants = {"w": weight, "k": np.array([20], np.int64), "table": draw(2, 100, 2)}
    proto = model(nodes, (1, 8, 10, 10), "rows values places", **constants)
    proto.graph.output[2].type.tensor_type.elem_type = onnx.TensorProto.INT64
    network = Graph.from_model(proto)
    pictures = samples(2, (1, 8, 10, 10))
    gaps = np.float32(1) - (weight * pictures).sum(1, keepdims=True)  # every place then scores 1, but for float noise
    gaps[0] = 0  # only of the second one
    data = load_samples(pictures + gaps * weight / np.square(weight).sum(), network.inputs)
    proof = Proof(Original(network), network, data)
    other = network.copy()
    (name,) = (name for name, array in other.weights.items() if array.ndim == 4)
    other.weights[name] = weight * (1 + np.float32(noise) * draw(3, *weight.shape, spread=1.0))
    if noise < 1e-4:
        proof.hold(other, "step fold", 2)
    else:
        with pytest.raises(InputError, match="must still compute"):
            proof.hold(other, "step fold", 2)


def test_shapes_that_a_file_only_pretends_are_taken_out(tmp_path: Path) -> None:
    proto = conv_relu_conv()
    for dim, size in zip(proto.graph.input[0].type.tensor_type.shape.dim, (7, 3, 5, 5), strict=True):
        dim.dim_value = size
    onnx.save(proto, tmp_path / "dummy.onnx", save_as_external_data=True, size_threshold=0, location="dummy.data")
    loaded, data = Graph.load(tmp_path / "dummy.onnx", {"x": SHAPE}), samples(3)
    with Original(tmp_path / "dummy.onnx").session(loaded) as original, Session(loaded) as session:
        feed = {"x": data[:1]}
        np.testing.assert_allclose(original.run(feed)["y"], session.run(feed)["y"], atol=1e-5)


def test_where_the_original_does_not_run_its_graph_is_the_judge(file: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def broken(*_: Any) -> Any:
        raise InputError("[Session] model must load in onnxruntime. Received no kernel.")

    monkeypatch.setattr("leadline.original.parse", broken)
    quantised = pipeline.quantize(file, "minmax-w8a8", samples(), threads=1)
    (said,) = [record.note for record in quantised.log if record.step == "load"]
    assert "'net.onnx' does not run in onnxruntime" in said and "no kernel" in said
    assert "does not run" in quantised.verify(threads=1).judged_by


def test_verification_judges_by_the_file_and_not_by_our_graph(file: Path) -> None:
    quantised = pipeline.quantize(file, "minmax-w8a8", samples(), threads=1)
    scaled_bias(quantised.graph, 5)  # both the Graph and the artefact that is made of it are wrong alike
    quantised.codes.pop(layer(quantised.graph, "branch").bias or "")
    wrong, alone = quantised.verify(threads=1), verify(quantised.graph, quantised.to_qdq(), quantised.held_out)
    assert wrong.judged_by == "'net.onnx'" and alone.judged_by == "the Graph given"
    assert wrong.outputs[0].sqnr < alone.outputs[0].sqnr - 10


def test_a_graph_that_came_of_a_file_may_be_judged_by_it(file: Path) -> None:
    done = pipeline.quantize(Graph.load(file), "minmax-w8a8", samples(4), threads=1, original=Original(file))
    assert done.verify(threads=1).judged_by == "'net.onnx'"


def test_biases_are_absorbed_only_as_far_as_held_out_samples_allow(monkeypatch: pytest.MonkeyPatch) -> None:
    nodes = [node("Conv", "x w1 b1", "c"), node("Relu", "c", "r"), node("Conv", "r w2 b2", "y")]
    constants = {"w1": draw(1, 6, 3, 1, 1), "b1": np.full(6, 8, np.float32), "w2": draw(2, 4, 6, 1, 1)}
    network = Graph.from_model(model(nodes, SHAPE, b2=draw(3, 4), **constants))
    held_out = samples(2, seed=5)
    held_out[0, :, 0, 0] = -20 * np.sign(constants["w1"][0, :, 0, 0])  # far below what calibration sees
    calls = iter(range(1, 100))  # whatever is tried is better: only exactness can hold it back
    monkeypatch.setattr(import_module("leadline.steps.equalize"), "trial_error", lambda *_: 1.0 / next(calls))
    data = load_samples(held_out, network.inputs)
    quantised = pipeline.quantize(network, "w8a8", samples(), held_out=data, threads=1)
    assert any(record.note == "high bias absorbed" and record.kept for record in quantised.log)
