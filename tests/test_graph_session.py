"""Session: inner tensors as outputs, every kind of model, and feeds that do not fit."""

import subprocess
import sys
from pathlib import Path

import numpy as np
import onnx
import pytest

from graph_models import FLOAT_NOISE, model, node, random
from leadline.graph import Graph, Session
from leadline.types import InputError


def network(shape=(2, 5, 8)):
    nodes = [node("MatMul", "x a.weight", "a"), node("Relu", "a", "b", name="act"), node("MatMul", "b c.weight", "y")]
    return model(nodes, shape, a__weight=random(8, 64), c__weight=random(64, 8))


FEED = {"x": random(2, 5, 8)}


def test_inner_tensors_are_outputs_in_the_order_asked():
    graph = Graph.from_model(network())
    names = graph.activations()[:0:-1]
    with Session(graph, names, optimize=False) as session:
        outputs = session.run(FEED)
    assert list(outputs) == names
    assert all(outputs[name].shape == graph.shape(name) for name in names)


@pytest.mark.parametrize("optimize", [False, True])
def test_graph_model_and_file_agree(tmp_path, optimize):
    graph = Graph.from_model(network())
    graph.save(tmp_path / "one.onnx")
    graph.save(tmp_path / "two.onnx", limit=100)
    names = [graph.nodes[1].outputs[0], "y"]
    want = Session(graph, names, optimize).run(FEED)
    for source in (graph.to_model(), tmp_path / "one.onnx", str(tmp_path / "two.onnx")):
        got = Session(source, names, optimize, threads=1).run(FEED)
        assert all(np.allclose(got[name], want[name], atol=FLOAT_NOISE) for name in names)
        assert list(Session(source, optimize=optimize).run(FEED)) == ["y"]


PEAK = """
import re
import numpy as np
from leadline.graph import Graph, Session
from leadline.graph.ir import Node, Value

def memory(what):
    return int(re.search(what + r":\\s+(\\d+) kB", open("/proc/self/status").read())[1]) * 1024

width, count = 2048, 8
value = lambda name: Value(name, np.dtype("float32"), (1, width))
weights = {f"w{i}": np.full((width, width), 1e-3, np.float32) for i in range(count)}
names = ["x", *(f"y{i}" for i in range(count))]
nodes = [Node("Gemm", [names[i], f"w{i}"], [names[i + 1]], f"n{i}", {"transB": 1}) for i in range(count)]
graph = Graph(nodes, weights, [value("x")], [value(names[-1])], {name: value(name) for name in names})
one = Graph([nodes[0]], {"w0": weights["w0"]}, [value("x")], [value("y0")], graph.values)
Session(one)  # the libraries' own memory
before = memory("VmRSS")
Session(graph, names[1:]).run({"x": np.ones((1, width), np.float32)})
print((memory("VmHWM") - before) / sum(array.nbytes for array in weights.values()))
"""


@pytest.mark.skipif(not Path("/proc/self/status").exists(), reason="needs /proc")
def test_a_session_adds_at_most_onnxruntimes_own_copies():
    """Its copy of the weights and the one it repacks for products; a serialised model would add two more."""
    added = float(subprocess.run([sys.executable, "-c", PEAK], check=True, capture_output=True, text=True).stdout)
    assert added < 2.25


def test_no_optimisation_means_every_tensor_is_as_written():
    graph = Graph.from_model(network())
    alone = Session(graph, optimize=False).run(FEED)["y"]
    watched = Session(graph, graph.activations()[1:], optimize=False).run(FEED)["y"]
    assert np.array_equal(alone, watched)


def test_free_shapes_take_any_size():
    session = Session(network(("batch", 5, 8)))
    assert session.inputs == [("x", np.dtype("float32"), ("batch", 5, 8))]
    assert session.run({"x": random(3, 5, 8)})["y"].shape == (3, 5, 8)


@pytest.mark.parametrize(
    ("feed", "message"),
    [
        ({}, "feed must hold exactly the inputs ['x']. Received []"),
        ({"z": random(2, 5, 8)}, "feed must hold exactly the inputs ['x']. Received ['z']"),
        ({"x": random(2, 5, 8).astype(np.float64)}, "input 'x' must be an array of float32. Received float64"),
        ({"x": [[1.0]]}, "input 'x' must be an array of float32. Received list"),
        ({"x": random(1, 5, 8)}, "input 'x' must have shape 2x5x8. Received 1x5x8"),
        ({"x": random(5, 8)}, "input 'x' must have shape 2x5x8. Received 5x8"),
    ],
)
def test_feed_that_does_not_fit(feed, message):
    with pytest.raises(InputError) as error:
        Session(Graph.from_model(network())).run(feed)
    assert str(error.value) == f"[Session.run] {message}."


def test_unknown_output():
    for source in (network(), Graph.from_model(network())):
        with pytest.raises(
            InputError,
            match=r"^\[Session\] outputs must be tensors that a node of the network writes. Received 'nothing'",
        ):
            Session(source, ["nothing"])


def test_model_that_onnxruntime_refuses(tmp_path):
    broken = network()
    broken.graph.node[0].op_type = "NoSuchOperator"
    with pytest.raises(InputError, match=r"^\[Session\] model must load in onnxruntime. Received .*NoSuchOperator"):
        Session(broken)
    (tmp_path / "text.onnx").write_text("not a network")
    with pytest.raises(InputError, match=r"path must be a whole ONNX file. Received '.*text.onnx'"):
        Session(tmp_path / "text.onnx")


def test_network_that_onnxruntime_gives_up_on():
    session = Session(model([node("LRN", "x", "y", size=3)], (1, 4, 5)), optimize=False)  # it has rank 4 only
    with pytest.raises(InputError, match=r"\[Session.run\] the model must run on its inputs. Received .*LRN"):
        session.run({"x": random(1, 4, 5)})


def test_quantised_model_runs():
    """verify and inspect open what Graph.load refuses."""
    nodes = [node("QuantizeLinear", "x s z", "q"), node("DequantizeLinear", "q s z", "y")]
    proto = model(nodes, (1, 4), s=np.float32(0.5), z=np.uint8(10))
    assert Session(proto).run({"x": np.array([[0.6, -9.0, 0, 3]], np.float32)})["y"].tolist() == [[0.5, -5.0, 0.0, 3.0]]


def test_model_in_memory_without_its_external_data(tmp_path):
    Graph.from_model(network()).save(tmp_path / "m.onnx", limit=100)
    with pytest.raises(InputError, match=r"pass the path instead\. Received 'a.weight'"):
        Session(onnx.load(tmp_path / "m.onnx", load_external_data=False))
