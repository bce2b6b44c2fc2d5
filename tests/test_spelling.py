"""Operators spelled in others for a target: the same function in float, and what the target's emulation makes of it."""

import os
import signal
import subprocess
import sys
import time
import warnings
from pathlib import Path

import numpy as np
import pytest

from graph_models import FLOAT_NOISE, distance, model, node
from leadline import pipeline
from leadline.graph import Graph, Session
from leadline.graph.spellings import SPELLINGS
from leadline.recipe import Recipe
from leadline.rules import ONNXRUNTIME
from leadline.steps.fitting import refusals, respell
from leadline.targets.hexagon.rules import HEXAGON
from operator_kinds import KINDS, network
from operator_networks import ints
from small_networks import draw, samples

NEW = ("Swish", "RMSNormalization")
"""Kinds of an opset that import may not know."""


def outputs(graph: Graph) -> dict[str, np.ndarray]:
    (value,) = graph.inputs
    with Session(graph) as session:
        return session.run({"x": draw(11, *value.shape, spread=1.0)})


def respelled(proto, recipe: str = "w8a16") -> tuple[Graph, Graph, list[str]]:
    before = Graph.from_model(proto)
    after = before.copy()
    return before, after, respell(after, Recipe.load(recipe), HEXAGON)


@pytest.mark.parametrize("recipe", ["w8a8", "w8a16"])
@pytest.mark.parametrize("kind", [kind for kind in KINDS if kind not in NEW])
def test_spelled_networks_compute_the_same(kind, recipe):
    before, after, lines = respelled(network(kind)[0], recipe)
    assert distance(outputs(before), outputs(after)) < FLOAT_NOISE
    names = [one.name for one in after.nodes]
    assert len({*names}) == len(names) and "" not in names
    known = {one.name for one in before.nodes}  # or what the first spelling of such a node wrote
    assert all(line.split(": ")[0].split(".")[0] in known for line in lines)


SINGLE = {
    "CumSum, exclusive": ([node("CumSum", "x ax", "y", exclusive=1)], {"ax": ints(1)}),
    "CumSum, reverse": ([node("CumSum", "x ax", "y", reverse=1)], {"ax": ints(-1)}),
    "CumSum, both": ([node("CumSum", "x ax", "y", reverse=1, exclusive=1)], {"ax": ints(-2)}),
    "Pad, on named axes": ([node("Pad", "x p c ax", "y")],
                           {"p": ints([1, 2, 0, 3]), "c": np.float32(-2), "ax": ints([-1, 1])}),
    "Pad, wrap": ([node("Pad", "x p", "y", mode="wrap")], {"p": ints([0, 1, 2, 3, 0, 2, 1, 0])}),
    "Max of five": ([node("Max", "x c x d c", "y")], {"c": draw(1, 4, 1, 1), "d": np.float32(0.2)}),
    "Sum of one": ([node("Abs", "x", "a"), node("Sum", "a", "y")], {}),
    "Mean of two": ([node("Mean", "x c", "y")], {"c": draw(1, 6, 6)}),
    "Elu's relatives": ([node("Celu", "x", "a", alpha=2.0), node("Selu", "a", "y", gamma=1.5, alpha=0.7)], {}),
    "LRN, wide": ([node("LRN", "x", "y", size=5, alpha=0.5, beta=0.6, bias=2.0)], {}),
    "LayerNormalization of all": ([node("LayerNormalization", "x g", "y", axis=1)], {"g": draw(1, 4, 6, 6)}),
    "ScatterElements, sums": ([node("ScatterElements", "x i u", "y", axis=3, reduction="add")],
                              {"i": ints(np.zeros((1, 4, 6, 2))), "u": draw(1, 1, 4, 6, 2)}),
    "GatherND, negative": ([node("GatherND", "x i", "y")], {"i": ints([[0, -1], [0, 2], [0, -4]])}),
    "Trilu, lower": ([node("Trilu", "x k", "y", upper=0)], {"k": ints(-1)}),
    "AveragePool, uneven": ([node("AveragePool", "x", "y", kernel_shape=[3, 4], strides=[2, 3], pads=[1, 0, 0, 1],
                                  ceil_mode=1)], {}),
    "AveragePool, with pads counted": ([node("AveragePool", "x", "y", kernel_shape=[4, 4], strides=[3, 3],
                                             pads=[1, 1, 1, 1], ceil_mode=1, count_include_pad=1)], {}),
    "ConvTranspose in groups": ([node("ConvTranspose", "x w b", "y", strides=[2, 1], pads=[1, 0, 0, 1], group=2)],
                                {"w": draw(1, 4, 3, 3, 2), "b": draw(2, 6)}),
    "Resize, cubic antialias": ([node("Resize", "x - - s", "y", mode="cubic", antialias=1)], {"s": ints([1, 4, 3, 5])}),
    "Resize, antialias on axes": ([node("Resize", "x - r", "y", mode="linear", antialias=1, axes=[2, 3])],
                                  {"r": np.array([0.5, 0.7], np.float32)}),
    "Cast of a comparison": ([node("Less", "x c", "t"), node("Cast", "t", "y", to=1)], {"c": np.float32(0.1)}),
}  # fmt: skip


@pytest.mark.parametrize("name", SINGLE)
def test_single_operators_compute_the_same(name):
    nodes, constants = SINGLE[name]
    before, after, _ = respelled(model(nodes, (1, 4, 6, 6), opset=19, **constants), "w8a8")
    assert distance(outputs(before), outputs(after)) < FLOAT_NOISE


REDUCTIONS = "ReduceL1 ReduceL2 ReduceSumSquare ReduceLogSum ReduceLogSumExp".split()


@pytest.mark.parametrize("keepdims", [0, 1])
@pytest.mark.parametrize("axes", [None, [0], [-1], [1, -2], [0, 1, 2]])
@pytest.mark.parametrize("op", REDUCTIONS)
def test_reductions_over_any_axes(op, axes, keepdims):
    nodes = [node("Abs", "x", "a"), node(op, "a ax" if axes else "a", "m", keepdims=keepdims), node("Exp", "m", "y")]
    proto = model(nodes, (2, 3, 4), opset=18, **({"ax": ints(axes)} if axes else {}))
    before, after, lines = respelled(proto)
    assert lines and op not in {one.op_type for one in after.nodes}
    (wanted,), (found,) = outputs(before).values(), outputs(after).values()
    np.testing.assert_allclose(found, wanted, rtol=1e-4)


@pytest.mark.parametrize("rounding", ["round_prefer_floor", "round_prefer_ceil", "floor", "ceil"])
@pytest.mark.parametrize("way", ["half_pixel", "asymmetric", "align_corners", "pytorch_half_pixel"])
@pytest.mark.parametrize("size", [(12, 12), (9, 7), (3, 5), (6, 1)])
def test_nearest_neighbours_are_the_same_and_in_a_form_that_is_agreed_on(size, way, rounding):
    attrs = {"mode": "nearest", "coordinate_transformation_mode": way, "nearest_mode": rounding}
    proto = model([node("Resize", "x - - s", "y", **attrs)], (1, 2, 6, 6), opset=19, s=ints([1, 2, *size]))
    before, after, _ = respelled(proto)
    assert distance(outputs(before), outputs(after)) == 0
    for one in after.nodes:
        if one.op_type == "Resize":
            form = one.attrs["coordinate_transformation_mode"], one.attrs["nearest_mode"]
            assert form in (("asymmetric", "floor"), ("half_pixel", "round_prefer_ceil"))


def test_every_spelling_is_used_and_known():
    assert SPELLINGS.keys() == HEXAGON.spelled | HEXAGON.spelled_wide
    assert not ONNXRUNTIME.spelled and not ONNXRUNTIME.refused
    assert not SPELLINGS.keys() & HEXAGON.refused.keys()


def test_other_targets_keep_the_network_as_it_is():
    graph = Graph.from_model(network("ReduceL2, channels")[0])
    assert respell(graph, Recipe.load("w8a8"), ONNXRUNTIME) == []
    assert "ReduceL2" in {one.op_type for one in graph.nodes}


def test_the_log_names_what_was_spelled():
    proto, shape = network("Mean of three")
    made = pipeline.quantize(Graph.from_model(proto), "w8a8", samples(4, shape), target="hexagon")
    notes = [record for record in made.log if record.step == "adapt"]
    assert [(record.target, record.note) for record in notes] == [("b", "Mean as Add, Mul, for hexagon")]


REFUSED = {"LSTM": "LSTM", "Erf": "Erf", "MaxPool, dilated": "MaxPool with dilations",
           "Conv, of two tensors": "Conv of two tensors"}  # fmt: skip


@pytest.mark.parametrize("kind, name", REFUSED.items())
def test_what_a_target_does_not_take_is_said_before_the_work(kind, name):
    proto, shape = network(kind)
    (line,) = refusals(Graph.from_model(proto), HEXAGON)
    assert line.startswith(f"hexagon does not take {name} (") and HEXAGON.refused[name] in line
    with pytest.warns(UserWarning, match=f"hexagon does not take {name}"):
        pipeline.prepare(Graph.from_model(proto), "w8a8", samples(4, shape), target="hexagon")
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        pipeline.prepare(Graph.from_model(proto), "w8a8", samples(4, shape))


EMULATED = {
    "ReduceL2, channels": "w8a8", "ReduceL1, channels": "w8a8", "Max of three": "w8a8", "CumSum": "w8a8",
    "InstanceNormalization": "w8a8", "ConvTranspose, depthwise": "w8a8", "ScatterND": "w8a8",
    "AveragePool, ceil_mode": "w8a8", "Resize, nearest": "w8a8", "Reciprocal": "w8a8", "SiLU": "w8a16",
    "Softplus": "w8a16", "Log": "w8a16", "Pad, constant 1": "w8a16", "PRelu": "w8a16",
    "Where, computed mask and scalar": "w8a16", "x / max(ReduceL2, eps)": "w8a16",
}  # fmt: skip


@pytest.mark.parametrize("kind, recipe", EMULATED.items())
def test_the_emulation_keeps_what_is_promised(kind, recipe):
    pytest.importorskip("onnxruntime_qnn", reason="the extra 'hexagon' is not installed")
    proto, shape = network(kind)
    made = pipeline.quantize(Graph.from_model(proto), recipe, samples(8, shape), target="hexagon")
    found = made.verify(samples(1, shape, seed=5))
    assert found.facts.accepted, str(found.facts)
    (output,) = found.outputs
    assert abs(output.device - output.sqnr) < 1.5 and output.sqnr > 15


def test_the_worker_ends_with_whoever_asks(tmp_path):
    """Also while the library is at work: here, waiting for a file."""
    pytest.importorskip("onnxruntime_qnn", reason="the extra 'hexagon' is not installed")
    endless = tmp_path / "model.onnx"
    os.mkfifo(endless)
    script = (
        "from leadline.targets.hexagon.emulator import Emulator\n"
        "npu = Emulator()\nnpu._start()\nprint(npu._process.pid, flush=True)\n"
        f"npu.build({str(endless)!r})\n"
    )
    with subprocess.Popen([sys.executable, "-c", script], stdout=subprocess.PIPE, text=True) as asking:
        worker = int(asking.stdout.readline())
        opened = os.open(endless, os.O_WRONLY)  # returns once the library reads
        asking.send_signal(signal.SIGKILL)
        asking.wait()
    try:
        limit = time.monotonic() + 60
        while _runs(worker) and time.monotonic() < limit:
            time.sleep(0.05)
        assert not _runs(worker)
    finally:
        os.close(opened)


def _runs(process: int) -> bool:
    try:
        state = Path(f"/proc/{process}/stat").read_text().rsplit(")", 1)[1].split()[0]
    except FileNotFoundError:
        return False
    return state != "Z"
