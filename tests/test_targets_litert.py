"""leadline.targets.litert: what the interpreter really computes, against numpy and known files; chains of networks."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest

pytest.importorskip("ai_edge_quantizer", reason="needs ai-edge-quantizer: pip install 'leadline[tflite]'")

import small_tflite
from leadline.affine import choose_grid, dequantize, fake_quantize
from leadline.targets.litert import calibrate as tflite
from leadline.targets.litert.chain import Stage, verify_chain
from leadline.targets.litert.expected import expected
from leadline.targets.litert.files import float_operators, size_of
from leadline.targets.litert.read import read
from leadline.targets.litert.run import Interpreter
from leadline.targets.litert.write import prepare, write
from leadline.types import Grid, InputError, Scheme
from small_tflite import verified


def pictures(count: int, seed: int = 0, channels: int = 3) -> np.ndarray:
    return np.random.default_rng(seed).standard_normal((count, 16, 16, channels), np.float32)


@pytest.fixture(scope="module")
def plan() -> tflite.Plan:
    return tflite.quantize(small_tflite.decoder(), "minmax-w8a8", pictures(12), threads=1)


def test_figures_are_those_of_the_two_networks(plan: tflite.Plan) -> None:
    artefact = write(plan, "npu")
    data = pictures(3, seed=2)
    done = verified(plan.content, artefact, data, plan=plan)
    exact, rough = Interpreter(plan.content, "plain", 1), Interpreter(artefact, "xnnpack", 1)
    wanted, got = (np.stack([r.run({"picture": x[None]})["depth"] for x in data]) for r in (exact, rough))
    (score,) = done.outputs
    assert done.samples == 3 and score.name == "depth"
    assert score.device == pytest.approx(10 * np.log10((wanted**2).sum() / ((wanted - got) ** 2).sum()), abs=1e-3)
    assert score.absolute == pytest.approx(np.abs(wanted - got).mean(), rel=1e-4)
    assert score.relative == pytest.approx(np.abs(wanted - got).mean() / np.abs(wanted).mean(), rel=1e-4)
    assert set(done.facts.milliseconds) == {"xnnpack", "reference"} and min(done.facts.milliseconds.values()) > 0
    assert done.facts.partitions == 1 and done.facts.differing == ()
    assert done.to_dict()["outputs"][0]["sqnr"] == score.sqnr
    assert done.to_dict()["facts"]["size"]["bytes"] == len(artefact) and done.facts.lines()


def test_integer_inputs_and_outputs_are_seen_in_real_values(plan: tflite.Plan) -> None:
    data = pictures(3, seed=2)
    floats, integers = (verified(plan.content, write(plan, "npu", io), data) for io in ("float", "int8"))
    assert integers.outputs[0].device == pytest.approx(floats.outputs[0].device, abs=1e-3)
    others = [one.facts.others["reference"]["depth"].sqnr for one in (floats, integers)]
    assert others[0] == pytest.approx(others[1], abs=1e-3)


def test_size_counts_tensors_and_bytes(plan: tflite.Plan) -> None:
    reference = read(plan.content)
    whole, weights = (size_of(read(write(plan, preset)), reference) for preset in ("npu", "weight-only"))
    # 8 activations, 5 weights and 5 biases; the float input and output stand in front of and behind their integers.
    assert (whole.quantized, whole.tensors) == (19, 21)
    assert weights.quantized == 5 and weights.float_operators["CONV_2D"] == 3
    assert whole.saved == pytest.approx(100 * (1 - whole.bytes / len(plan.content)))
    assert whole.float_operators == {} == float_operators(read(write(plan, "npu", "int8")).main)


def test_a_plan_that_was_not_carried_out_is_named(plan: tflite.Plan) -> None:
    moved = {name: Grid(grid.scale * 2, grid.zero_point, grid.scheme) for name, grid in plan.activations.items()}
    changed = replace(plan, activations=moved)
    done = verified(plan.content, write(plan, "npu", "int8"), pictures(1), plan=changed)
    assert set(done.facts.differing) == set(moved)


def test_an_output_that_is_lost_is_named(plan: tflite.Plan) -> None:
    data = pictures(3, seed=2)
    assert verified(plan.content, write(plan, "npu"), data).collapse == []
    wide = {name: Grid(grid.scale * 30, grid.zero_point, grid.scheme) for name, grid in plan.activations.items()}
    done = verified(plan.content, write(replace(plan, activations=wide), "npu"), data)
    (line,) = done.collapse
    assert line.startswith("depth: ") and done.to_dict()["collapse"] == [line]


def test_the_simulation_is_measured_in_steps_of_the_grid(plan: tflite.Plan) -> None:
    artefact, data = write(plan, "npu", "int8"), pictures(2)
    done = verified(plan.content, artefact, data, kernels=("xnnpack", "reference"))
    runner, simulated = Interpreter(artefact, "xnnpack", 1), Interpreter(expected(artefact), "plain", 1)
    step = runner.model.main.tensors[runner.output_indices[0]].scale
    pairs = [(runner.run_real({"picture": x[None]}), simulated.run_real({"picture": x[None]})) for x in data]
    apart = np.stack([np.abs(got["depth"] - said["depth"]) / step for got, said in pairs])
    (score,) = done.outputs
    assert score.agreement.mean == pytest.approx(apart.mean(), rel=1e-4, abs=1e-6)
    reference = done.facts.others["reference"]["depth"]
    assert reference.agreement.within_one > 0.98 and abs(score.sqnr - reference.sqnr) < 0.5


@pytest.mark.parametrize(("preset", "decibels"), [("cpu", 0.5), ("npu", 0.5), ("dynamic", 1.0), ("weight-only", 0.01)])
@pytest.mark.parametrize("network", [small_tflite.decoder, small_tflite.transformer])
def test_kernels_give_what_is_expected_of_them(network: Any, preset: Any, decibels: float) -> None:
    content = network()
    shape = read(content).main.tensors[read(content).main.inputs[0]].shape
    data = np.random.default_rng(5).standard_normal((12, *shape[1:]), np.float32)
    artefact = write(tflite.quantize(content, "minmax-w8a8", data, threads=1), preset)
    done = verified(content, artefact, data[:4], kernels=("xnnpack",))
    for score in done.outputs:
        assert abs(score.device - score.sqnr) < decibels


def test_expected_is_in_float_but_for_roundings(plan: tflite.Plan) -> None:
    graph = read(expected(write(plan, "npu"))).main
    for operator in graph.operators:
        if operator.type not in ("QUANTIZE", "DEQUANTIZE"):
            assert all(graph.tensors[i].dtype != "int8" for i in (*operator.inputs, *operator.outputs)), operator.type


def test_inputs_of_dynamic_layers_are_rounded_between_their_own_extremes() -> None:
    """Rows of a linear layer each by themselves: against numpy, and nothing else is changed."""
    builder = small_tflite.Builder()
    x = builder.tensor("x", (1, 3, 32))
    y = builder.op("FULLY_CONNECTED", [x, builder.weight("w", 8, 32)], "y", (1, 3, 8), family="FullyConnected",
                   keepNumDims=True)  # fmt: skip
    content = builder.finish([x], [y])
    rows = np.random.default_rng(1).standard_normal((1, 3, 32)).astype(np.float32) * [[[1.0], [100.0], [0.0]]]
    rows = rows.astype(np.float32)
    plan = tflite.quantize(content, "weight-only-int8", rows, threads=1)
    runner = Interpreter(expected(write(plan, "dynamic")), "plain", 1)
    (got,) = runner.run(dict.fromkeys(runner.inputs, rows)).values()
    scheme = Scheme(8)
    rounded = np.stack(
        [fake_quantize(row, choose_grid(min(row.min(), 0), max(row.max(), 0), scheme)) for row in rows[0]]
    )
    (weight,) = [dequantize(codes, grid) for grid, codes in plan.parameters.values()]
    assert np.abs(got[0] - rounded @ weight.T).max() < 1e-4 * np.abs(got).max()
    assert np.array_equal(got[0, 2], np.zeros(8))


@pytest.mark.parametrize("kind", ["linear", "conv", "transpose"])
def test_dynamic_layers_are_xnnpack_s(kind: str) -> None:
    """One pixel forty times as large as the others: whole pictures are rounded at once, rows of a linear layer not."""
    b = small_tflite.Builder()
    x = b.tensor("x", (1, 8, 8, 16))
    if kind == "linear":
        y = b.linear(x, "y", (1, 8, 8, 8), 16)
    elif kind == "conv":
        y = b.conv(x, "y", (1, 8, 8, 8), 3, 16)
    else:
        shape = b.tensor("shape", (4,), np.array([1, 16, 16, 4], np.int32))
        y = b.op("TRANSPOSE_CONV", [shape, b.weight("w", 4, 2, 2, 16), x, b.weight("bias", 4)], "y", (1, 16, 16, 4), 3,
                 family="TransposeConv", padding=small_tflite.VALID, strideH=2, strideW=2)  # fmt: skip
    data = np.random.default_rng(0).standard_normal((4, 8, 8, 16), np.float32)
    data[:, 0, 0] *= 40
    content = b.finish([x], [y])
    artefact = write(tflite.quantize(content, "weight-only-int8", data, threads=1), "dynamic")
    (score,) = verified(expected(artefact), artefact, data, kernels=("xnnpack",)).outputs
    assert score.device > 100


def test_moves_between_floats_stay_float() -> None:
    """What is float on both sides is not rounded for the sake of a move of data: TinyDepth's output lost 5 dB so."""
    builder = small_tflite.Builder()
    x = builder.tensor("x", (1, 4, 4, 8))
    features = builder.op("FULLY_CONNECTED", [x, builder.weight("w", 8, 8)], "f", (1, 4, 4, 8),
                          family="FullyConnected", keepNumDims=True)  # fmt: skip
    power = builder.op("EXP", [features], "e", (1, 4, 4, 8), family="Exp")
    y = builder.op(
        "RESHAPE",
        [power, builder.tensor("goal", (3,), np.array([1, 16, 8], np.int32))],
        "y",
        (1, 16, 8),
        family="Reshape",
    )
    content = builder.finish([x], [y])
    data = np.random.default_rng(2).standard_normal((8, 4, 4, 8), np.float32)
    graph = read(write(tflite.quantize(content, "minmax-w8a8", data, threads=1), "npu")).main
    kinds = {operator.type: graph.tensors[operator.outputs[0]].dtype for operator in graph.operators}
    assert kinds["RESHAPE"] == "float32" and kinds["FULLY_CONNECTED"] == "int8"


def test_refusals(plan: tflite.Plan, tmp_path: Path) -> None:
    artefact = write(plan, "npu")
    with pytest.raises(InputError, match=r"^\[verify\] the artefact must have inputs of the shapes \[\(1, 8, 128\)\]"):
        verified(small_tflite.transformer(), artefact, np.zeros((1, 8, 128), np.float32))
    short = tmp_path / "short.tflite"
    short.write_bytes(artefact[: len(artefact) // 2])
    with pytest.raises(InputError, match=r"short\.tflite' must be a whole \.tflite file"):
        verified(plan.content, short, pictures(1))
    with pytest.raises(InputError, match=r"^\[verify\] kernels must name at least one"):
        verified(plan.content, artefact, pictures(1), kernels=())
    runner = Interpreter(plan.content, "plain", 1)
    with pytest.raises(
        InputError, match=r"^\[Interpreter.run\] input 'picture' must be float32 of shape \(1, 16, 16, 3\)"
    ):
        runner.run({"picture": np.zeros((1, 8, 8, 3), np.float32)})
    with pytest.raises(InputError, match=r"feed must hold exactly the inputs \['picture'\]\. Received \['image'\]"):
        runner.run({"image": np.zeros((1, 16, 16, 3), np.float32)})


def test_a_network_that_litert_cannot_run_is_refused() -> None:
    builder = small_tflite.Builder()
    x = builder.tensor("x", (1, 4))
    wrong = builder.op("ADD", [x, builder.weight("w", 1, 3)], "y", (1, 4), family="Add")
    with pytest.raises(InputError, match=r"^\[Interpreter\] LiteRT must be able to run the network\. Received "):
        Interpreter(builder.finish([x], [wrong]), "plain", 1)


def aggregation(features: int, seed: int = 3) -> bytes:
    """ "content" and "distortion" (1, 5) to one "quality"."""
    b = small_tflite.Builder(seed)
    content, distortion = b.tensor("content", (1, features)), b.tensor("distortion", (1, features))
    joined = b.op("CONCATENATION", [content, distortion], "joined", (1, 2 * features), family="Concatenation", axis=1)
    hidden = b.linear(joined, "hidden", (1, 8), 2 * features)
    active = b.op("LOGISTIC", [hidden], "active", (1, 8))
    return b.finish([content, distortion], [b.linear(active, "quality", (1, 1), 8)])


def test_a_chain_of_three_networks() -> None:
    """Two networks look at a picture, a third one makes a score of what they give: float and quantised end to end."""
    views = [small_tflite.classifier(seed) for seed in (1, 2)]
    last = aggregation(5)
    seen = [pictures(16, seed=4, channels=1)]
    runners = [Interpreter(view, "plain", 1) for view in views]
    scores = [np.concatenate([r.run({"picture": x[None]})["scores"] for x in seen[0]]) for r in runners]
    given = {"content": scores[0], "distortion": scores[1]}
    made = [write(tflite.quantize(view, "minmax-w8a8", seen[0], threads=1), "npu") for view in views]
    end = write(tflite.quantize(last, "minmax-w8a8", given, threads=1), "npu")
    stages = [
        Stage("content", views[0], made[0]),
        Stage("distortion", views[1], made[1]),
        Stage("aggregation", last, end, {"content": "content.scores", "distortion": "distortion.scores"}),
    ]
    data = [{"picture": x[None]} for x in pictures(4, seed=5, channels=1)]
    done = verify_chain(stages, data, threads=1)
    assert done.samples == 4 and list(done.stages) == ["content", "distortion", "aggregation"]
    assert set(done.differences) == {"content.scores", "distortion.scores", "aggregation.quality"}

    def quality(networks: list[bytes], feed: dict[str, np.ndarray]) -> float:
        content, distortion = (Interpreter(n, "xnnpack", 1).run_real(feed)["scores"] for n in networks[:2])
        joined = {"content": content, "distortion": distortion}
        return float(Interpreter(networks[2], "xnnpack", 1).run_real(joined)["quality"].mean())

    exact = np.array([quality([*views, last], feed) for feed in data])
    rough = np.array([quality([*made, end], feed) for feed in data])
    assert done.score["quality"] == pytest.approx(np.mean(np.abs(rough - exact) / np.abs(exact)), rel=1e-5)
    assert 0 < done.score["quality"] < 0.1
    assert done.to_dict()["stages"]["aggregation"]["quantized"] == done.stages["aggregation"].quantized
    with pytest.raises(
        InputError, match=r"input 'distortion' of 'aggregation' must come from one of .* Received 'nowhere'"
    ):
        broken = replace(stages[2], sources={"content": "content.scores", "distortion": "nowhere"})
        verify_chain([*stages[:2], broken], data, threads=1)
    with pytest.raises(InputError, match="stages must hold at least one network"):
        verify_chain([], data)


def test_a_guard_changes_nothing_and_is_taken_out() -> None:
    from leadline.targets.litert.write import GUARD

    b = small_tflite.Builder()
    x = b.tensor("x", (1, 4))
    first = b.linear(x, "first", (1, 4), 4)
    low = b.tensor("guard", (), np.array(GUARD, np.float32))
    held = b.op("MAXIMUM", [first, low], "held", (1, 4), family="MaximumMinimum")
    source = b.finish([x], [b.linear(held, "last", (1, 4), 4)])
    freed = prepare(source)
    assert [operator.type for operator in read(freed).main.operators] == ["FULLY_CONNECTED", "FULLY_CONNECTED"]
    assert {tensor.name for tensor in read(freed).main.tensors}.isdisjoint({"guard", "held"})
    feed = {"x": np.random.default_rng(0).standard_normal((1, 4), np.float32)}
    wanted, got = (Interpreter(content, "plain", 1).run(feed)["last"] for content in (source, freed))
    assert np.array_equal(wanted, got)
