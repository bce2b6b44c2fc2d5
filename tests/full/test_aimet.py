"""aimet-onnx 2.42 reads our encodings and builds the network that we build ourselves; and we read what it writes."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import onnx
import pytest

from leadline.export import encodings, qdq
from leadline.export.encodings import Encodings, Version
from leadline.graph import Graph, Node, Session, Value
from leadline.types import Grid, Scheme

pytestmark = [
    pytest.mark.full,
    # torch, torchvision and aimet-onnx warn about themselves while they load and convert
    pytest.mark.filterwarnings("ignore"),
]

F32 = np.dtype(np.float32)
WEIGHTS = Scheme(8, True, True, "axis", 0)
U8 = Scheme(8)


@pytest.fixture(scope="module")
def aimet() -> Any:
    return pytest.importorskip("aimet_onnx", reason="aimet-onnx is not installed", exc_type=ImportError)


def network() -> Graph:
    """Conv -> Relu -> depthwise Conv -> Reshape -> Gemm -> Gelu -> Gemm"""
    rng = np.random.default_rng(5)
    shapes = {
        "image": (2, 3, 8, 8), "a": (2, 8, 8, 8), "b": (2, 8, 8, 8), "c": (2, 8, 8, 8), "d": (16, 64),
        "e": (16, 32), "f": (16, 32), "y": (16, 8),
    }  # fmt: skip
    sizes = {"w1": (8, 3, 3, 3), "b1": (8,), "w2": (8, 1, 3, 3), "w3": (32, 64), "b3": (32,), "w4": (8, 32)}
    weights: dict[str, Any] = {name: 0.3 * rng.standard_normal(size, np.float32) for name, size in sizes.items()}
    weights["shape"] = np.array([16, 64])
    nodes = [
        Node("Conv", ["image", "w1", "b1"], ["a"], "conv", {"pads": [1, 1, 1, 1]}),
        Node("Relu", ["a"], ["b"], "relu"),
        Node("Conv", ["b", "w2"], ["c"], "depthwise", {"pads": [1, 1, 1, 1], "group": 8}),
        Node("Reshape", ["c", "shape"], ["d"], "reshape"),
        Node("Gemm", ["d", "w3", "b3"], ["e"], "fc1", {"transB": 1}),
        Node("Gelu", ["e"], ["f"], "gelu"),
        Node("Gemm", ["f", "w4"], ["y"], "fc2", {"transB": 1}),
    ]
    values = {name: Value(name, F32, shape) for name, shape in shapes.items()}
    return Graph(nodes, weights, [values["image"]], [values["y"]], values)


def quantised(graph: Graph, weights: Scheme, activations: Scheme, block: int = 0) -> dict[str, Grid]:
    """Ranges as the network has them on one random picture; Reshape shares its input's grid; int32 biases."""
    from leadline.affine import choose_grid, range_of

    with Session(graph, graph.activations()[1:]) as session:
        seen = session.run(feed()) | feed()
    grids = {name: choose_grid(*range_of(array, activations), activations) for name, array in seen.items()}
    grids["d"] = grids["c"]
    for layer in graph.layers():
        array, scheme = graph.weights[layer.weight], weights
        if block and layer.kind == "linear":
            scheme = replace(weights, granularity="block", axis=1, block_size=block)
        grids[layer.weight] = choose_grid(*range_of(array, scheme), scheme)
        if layer.bias and scheme.granularity == "axis":
            scale = grids[layer.input].scale * grids[layer.weight].scale
            grids[layer.bias] = Grid(scale, np.zeros(scale.shape), Scheme(32, True, True, "axis", 0))
    return grids


def feed() -> dict[str, np.ndarray]:
    return {"image": np.random.default_rng(1).standard_normal((2, 3, 8, 8), np.float32)}


def run(model: onnx.ModelProto) -> np.ndarray:
    with Session(model, optimize=False, threads=1) as session:
        return session.run(feed())["y"]


@pytest.mark.parametrize(
    ("weights", "activations", "block"),
    [
        (WEIGHTS, U8, 0),
        (replace(WEIGHTS, fit="aimet"), U8, 0),
        (WEIGHTS, Scheme(16), 0),
        (replace(WEIGHTS, bits=4), U8, 0),
        (replace(WEIGHTS, bits=4), U8, 16),
    ],
    ids=["w8a8", "w8a8 aimet fit", "w8a16", "w4a8", "w4 block 16 a8"],
)
@pytest.mark.parametrize("version", ["2.0.0", "1.0.0", "0.6.1"])
def test_aimet_builds_our_network_from_our_encodings(
    version: Version, weights: Scheme, activations: Scheme, block: int, tmp_path: Path, aimet: Any
) -> None:
    graph = network()
    grids = quantised(graph, weights, activations, block)
    if version != "2.0.0":  # the older versions hold no int32 biases
        grids = {name: grid for name, grid in grids.items() if grid.scheme.bits < 32}
    if block and version != "2.0.0":
        pytest.skip("aimet-onnx exports blocks from 2.0.0 only")
    graph.save(tmp_path / "float.onnx")
    Encodings.from_grids(graph, grids).write(tmp_path / "e", version)
    theirs = aimet.encodings_to_onnx_qdq(str(tmp_path / "float.onnx"), str(tmp_path / "e"))
    np.testing.assert_array_equal(run(theirs), run(qdq.to_qdq(graph, grids)))


@pytest.mark.parametrize("version", ["2.0.0", "1.0.0", "0.6.1"])
def test_we_read_what_aimet_writes(version: Version, tmp_path: Path, aimet: Any) -> None:
    """Its grids, placed by us, give the network that it builds from them."""
    graph = network()
    graph.save(tmp_path / "float.onnx")
    sim = aimet.QuantizationSimModel(onnx.load(tmp_path / "float.onnx"), providers=["CPUExecutionProvider"])
    sim.compute_encodings([feed()])
    sim.export(str(tmp_path), "theirs", encoding_version=version)
    file = tmp_path / "theirs.encodings"
    found = encodings.read(file, graph)
    assert {"image", "w1", "w2", "w3", "w4", "y"} <= found.grids.keys()
    theirs = aimet.encodings_to_onnx_qdq(str(tmp_path / "float.onnx"), str(file))
    mine = {name: grid for name, grid in found.grids.items()}
    if version != "2.0.0":
        mine["d"] = mine["c"]  # it adds data movement itself when it builds the network
    np.testing.assert_array_equal(run(theirs), run(qdq.to_qdq(graph, mine)))
    found.write(tmp_path / "again", version)
    assert encodings.read(tmp_path / "again", graph) == found


def test_aimets_qdq_model_is_read(tmp_path: Path, aimet: Any) -> None:
    graph = network()
    grids = quantised(graph, WEIGHTS, U8)
    graph.save(tmp_path / "float.onnx")
    written = Encodings.from_grids(graph, grids)
    written.write(tmp_path / "e", "2.0.0")
    for stored in (False, True):
        model = aimet.encodings_to_onnx_qdq(
            str(tmp_path / "float.onnx"), str(tmp_path / "e"), prequantize_constants=stored
        )
        found = qdq.read(model)
        assert found.grids == written.grids
        ours = qdq.read(qdq.to_qdq(graph, grids)).codes
        assert found.codes.keys() == ours.keys()
        for name, codes in ours.items():
            np.testing.assert_array_equal(found.codes[name], codes, name)
