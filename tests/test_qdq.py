"""ONNX QDQ: placement, exact simulation, reading back, and what onnxruntime fuses."""

from __future__ import annotations

import collections
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import onnx
import onnxruntime as ort
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from onnx import helper, numpy_helper

from leadline.export import qdq
from leadline.graph import Graph, Node, Session, Value
from leadline.types import Grid, InputError, Scheme

U8 = Scheme(8)
S8 = Scheme(8, signed=True, symmetric=True)
PER_CHANNEL = Scheme(8, signed=True, symmetric=True, granularity="axis", axis=0, narrow=True)
BIAS = Scheme(32, signed=True, symmetric=True, granularity="axis", axis=0)
RNG = np.random.default_rng(7)
F32 = np.dtype(np.float32)


def network(nodes: list[Node], weights: dict[str, np.ndarray], shapes: dict[str, tuple[int, ...]]) -> Graph:
    """A graph of float tensors: the first shape is the input, the last the output."""
    values = {name: Value(name, F32, shape) for name, shape in shapes.items()}
    ends = list(values.values())
    return Graph(nodes, weights, [ends[0]], [ends[-1]], values)


def linear(rows: int = 4, features: int = 32, out: int = 8) -> Graph:
    """x -> Gemm -> h -> Relu -> r -> Gemm -> y"""
    weights = {
        "w": RNG.standard_normal((out, features), np.float32),
        "b": RNG.standard_normal(out, np.float32),
        "v": RNG.standard_normal((out, out), np.float32),
        "c": RNG.standard_normal(out, np.float32),
    }
    nodes = [
        Node("Gemm", ["x", "w", "b"], ["h"], "first", {"transB": 1}),
        Node("Relu", ["h"], ["r"], "relu"),
        Node("Gemm", ["r", "v", "c"], ["y"], "second", {"transB": 1}),
    ]
    return network(nodes, weights, {"x": (rows, features), "h": (rows, out), "r": (rows, out), "y": (rows, out)})


def conv() -> Graph:
    weights = {"w": RNG.standard_normal((8, 4, 3, 3), np.float32), "b": RNG.standard_normal(8, np.float32)}
    nodes = [Node("Conv", ["x", "w", "b"], ["y"], "conv", {"pads": [1, 1, 1, 1]})]
    return network(nodes, weights, {"x": (1, 4, 8, 8), "y": (1, 8, 8, 8)})


def weight_grid(w: np.ndarray, scheme: Scheme) -> Grid:
    """Symmetric, covering the largest magnitude; the zero point in the middle when unsigned."""
    if scheme.granularity == "tensor":
        peak = np.abs(w).max()
    elif scheme.granularity == "axis":
        peak = np.abs(w).max(tuple(i for i in range(w.ndim) if i != scheme.axis))
    else:
        shape = list(w.shape)
        shape[scheme.axis : scheme.axis + 1] = [-1, scheme.block_size]
        peak = np.abs(w.reshape(shape)).max(scheme.axis + 1)
    half = 2 ** (scheme.bits - 1)
    scale = np.asarray(peak / (half - 1), np.float32)
    return Grid(scale, np.full(scale.shape, 0 if scheme.signed else half), scheme)


def spread(values: np.ndarray, grid: Grid, shape: tuple[int, ...]) -> np.ndarray:
    """Scales or zero points, one per element of a tensor of this shape."""
    scheme = grid.scheme
    if scheme.granularity == "axis":
        return values.reshape([-1 if i == scheme.axis else 1 for i in range(len(shape))])
    return np.repeat(values, scheme.block_size, scheme.axis) if scheme.granularity == "block" else values


def quantize(x: np.ndarray, grid: Grid) -> np.ndarray:
    scale, zero = spread(grid.scale, grid, x.shape), spread(grid.zero_point, grid, x.shape)
    codes = np.rint(x / scale) + zero
    return np.clip(codes, grid.scheme.qmin, grid.scheme.qmax).astype(grid.scheme.dtype)


def dequantize(codes: np.ndarray, grid: Grid) -> np.ndarray:
    scale, zero = spread(grid.scale, grid, codes.shape), spread(grid.zero_point, grid, codes.shape)
    return (codes.astype(np.int64) - zero).astype(np.float32) * scale


def fake(x: np.ndarray, grid: Grid) -> np.ndarray:
    return dequantize(quantize(x, grid), grid)


def activation(lo: float, hi: float, scheme: Scheme = U8) -> Grid:
    scale = np.float32((hi - lo) / (2**scheme.bits - 1))
    return Grid(scale, np.int32(scheme.qmin - round(lo / scale)), scheme)


def fully_quantised(graph: Graph, weights: Scheme = PER_CHANNEL, act: Scheme = U8) -> dict[str, Grid]:
    """Every activation, every weight, every bias with scale = input scale x weight scale."""
    grids = {name: activation(-6, 6, act) for name in graph.activations()}
    for layer in graph.layers():
        scheme = weights if weights.granularity == "tensor" else weights.at(layer.axis)
        grids[layer.weight] = weight_grid(graph.weights[layer.weight], scheme)
        if layer.bias:
            scale = np.asarray(grids[layer.input].scale * grids[layer.weight].scale, np.float32)
            bias = BIAS if scale.ndim else replace(BIAS, granularity="tensor", axis=None)
            grids[layer.bias] = Grid(scale, np.zeros(scale.shape), bias)
    return grids


def codes_of(graph: Graph, grids: dict[str, Grid]) -> dict[str, np.ndarray]:
    return {name: quantize(graph.weights[name], grid) for name, grid in grids.items() if name in graph.weights}


def write(graph: Graph, grids: dict[str, Grid]) -> onnx.ModelProto:
    model = qdq.to_qdq(graph, grids, codes_of(graph, grids))
    onnx.checker.check_model(model, full_check=True)
    return model


def unfused(model: onnx.ModelProto, x: np.ndarray) -> np.ndarray:
    with Session(model, optimize=False, threads=1) as session:
        return next(iter(session.run({"x": x}).values()))


def fused(model: onnx.ModelProto, x: np.ndarray, folder: Path, **config: str) -> tuple[np.ndarray, collections.Counter]:
    """Output with all optimisations, and the operators that really run."""
    options = ort.SessionOptions()
    options.intra_op_num_threads, options.log_severity_level = 1, 3
    options.optimized_model_filepath = str(folder / "optimised.onnx")
    for key, value in config.items():
        options.add_session_config_entry(f"session.{key}", value)
    session = ort.InferenceSession(model.SerializeToString(), options, providers=["CPUExecutionProvider"])
    kinds = collections.Counter(node.op_type for node in onnx.load(folder / "optimised.onnx").graph.node)
    return session.run(None, {"x": x})[0], kinds


def same(found: qdq.Qdq, grids: dict[str, Grid], codes: dict[str, np.ndarray]) -> None:
    assert found.grids.keys() == grids.keys()
    for name, grid in grids.items():
        assert found.grids[name] == grid, name
    assert found.codes.keys() == codes.keys()
    for name, array in codes.items():
        assert found.codes[name].dtype == grids[name].scheme.dtype
        np.testing.assert_array_equal(found.codes[name], array, name)


# ---------------------------------------------------------------------------------------------- placement


def test_every_reader_reads_the_dequantised_tensor_and_names_stay() -> None:
    graph = linear()
    graph.nodes.append(Node("Add", ["h", "y"], ["z"], "sum"))  # h has two readers
    graph.values["z"] = Value("z", F32, (4, 8))
    graph.outputs = [graph.values["y"], graph.values["z"]]
    grids = fully_quantised(graph)
    model = write(graph, grids)
    nodes = {node.name: node for node in model.graph.node}
    assert (model.opset_import[0].version, model.ir_version) == (21, 10)
    assert nodes["first"].input[0] == "x.dq" and list(nodes["first"].output) == ["h"]
    assert nodes["relu"].input[0] == nodes["sum"].input[0] == "h.dq"
    assert list(nodes["second"].output) == ["y.float"]
    assert list(nodes["y.dequantize"].output) == ["y"] and nodes["sum"].input[1] == "y"
    assert [value.name for value in model.graph.output] == ["y", "z"]
    assert list(nodes["w.dequantize"].output) == ["w"] and list(nodes["first"].input[1:]) == ["w", "b"]
    assert [node.name for node in graph.nodes] == ["first", "relu", "second", "sum"]  # the graph itself is untouched
    assert graph.nodes[0].inputs == ["x", "w", "b"]
    float_names = {name for node in graph.nodes for name in node.outputs}
    assert float_names <= {name for node in model.graph.node for name in node.output}


def test_the_same_arguments_give_the_same_bytes() -> None:
    graph = linear()
    grids = fully_quantised(graph)
    shuffled = dict(reversed(grids.items()))
    assert write(graph, grids).SerializeToString() == write(graph, shuffled).SerializeToString()


def test_names_that_are_taken_are_left_alone() -> None:
    graph = linear()
    for node in graph.nodes:  # the tensor between the layers is called what the writer would call it
        node.inputs = ["h.dq" if name == "r" else "x" if name == "x" else name for name in node.inputs]
        node.outputs = ["h.dq" if name == "r" else name for name in node.outputs]
    graph.nodes[1].name = "h.quantize"
    graph.values["h.dq"] = Value("h.dq", F32, (4, 8))
    del graph.values["r"]
    grids = fully_quantised(graph)
    model = write(graph, grids)
    written = [name for node in model.graph.node for name in node.output]
    assert len(written) == len(set(written)) and "h.dq_1" in written
    same(qdq.read(model), grids, codes_of(graph, grids))


def test_no_grids_give_the_float_network() -> None:
    graph = linear()
    x = RNG.standard_normal((4, 32), np.float32)
    model = write(graph, {})
    assert qdq.read(model) == qdq.Qdq(tensors={"h", "r", "y"})
    np.testing.assert_array_equal(unfused(model, x), unfused(graph.to_model(), x))


# ---------------------------------------------------------------------------------------------- exactness

ACTIVATIONS = [Scheme(bits, signed) for bits in (2, 3, 4, 5, 7, 8, 9, 12, 16) for signed in (False, True)]
ACTIVATIONS += [replace(S8, narrow=True), replace(S8, bits=6), replace(S8, bits=4, narrow=True)]


@pytest.mark.parametrize("scheme", ACTIVATIONS, ids=lambda s: f"{'s' if s.signed else 'u'}{s.bits}{'n' * s.narrow}")
def test_unfused_activation_equals_the_numpy_simulation(scheme: Scheme) -> None:
    graph = network([Node("Relu", ["x"], ["y"], "relu")], {}, {"x": (1000,), "y": (1000,)})
    span = 2**scheme.bits
    zero_point = 0 if scheme.symmetric else scheme.qmin + span // 3
    grids = {"x": Grid(np.float32(0.7 / span), np.int32(zero_point), scheme)}
    grids["y"] = Grid(np.float32(0.3 / span), np.int32(zero_point), scheme)
    x = np.linspace(-1, 1, 1000, dtype=np.float32)  # leaves the range at both ends
    expected = fake(np.maximum(fake(x, grids["x"]), 0), grids["y"])
    np.testing.assert_array_equal(unfused(write(graph, grids), x), expected)
    same(qdq.read(write(graph, grids)), grids, {})


WEIGHTS = [
    Scheme(
        bits,
        signed,
        True,
        granularity,
        None if granularity == "tensor" else axis,
        8 if granularity == "block" else None,
    )
    for bits in (2, 3, 4, 5, 8, 11, 16)
    for signed in (True, False)
    for granularity, axis in (("tensor", 0), ("axis", 0), ("axis", 1), ("block", 0), ("block", 1))
]


@pytest.mark.parametrize("scheme", WEIGHTS, ids=lambda s: f"{'s' if s.signed else 'u'}{s.bits}-{s.granularity}{s.axis}")
def test_weights_on_any_grid_are_exact_and_read_back(scheme: Scheme) -> None:
    w = RNG.standard_normal((16, 24), np.float32)
    graph = network([Node("Add", ["x", "w"], ["y"], "add")], {"w": w}, {"x": (16, 24), "y": (16, 24)})
    grids = {"w": weight_grid(w, scheme)}
    model = write(graph, grids)
    np.testing.assert_array_equal(unfused(model, np.zeros_like(w)), fake(w, grids["w"]))
    same(qdq.read(model), grids, codes_of(graph, grids))
    stored = next(tensor for tensor in model.graph.initializer if tensor.name == "w.q")
    bits = next(width for width in (4, 8, 16) if scheme.bits <= width)
    assert len(stored.raw_data) == w.size * bits // 8  # four-bit codes are packed


@pytest.mark.parametrize("make", [linear, conv])
@pytest.mark.parametrize("scheme", [PER_CHANNEL, S8], ids=["axis", "tensor"])
def test_a_fully_quantised_layer_equals_integer_arithmetic(make: Any, scheme: Scheme, tmp_path: Path) -> None:
    """Scales are powers of two, so that float sums are exact and any order of summation agrees."""
    graph = make()
    grids = {
        name: Grid(2.0 ** np.round(np.log2(grid.scale)), grid.zero_point, grid.scheme)
        for name, grid in fully_quantised(graph, scheme).items()
    }
    for layer in graph.layers():
        scale = grids[layer.input].scale * grids[layer.weight].scale
        grids[layer.bias] = Grid(scale, np.zeros(scale.shape), grids[layer.bias].scheme)
    x = RNG.standard_normal(graph.inputs[0].shape, np.float32)
    tensors = {"x": fake(x, grids["x"])}
    w = {name: fake(array, grids[name]).astype(np.float64) for name, array in graph.weights.items()}
    for node in graph.nodes:
        data = tensors[node.inputs[0]].astype(np.float64)
        if node.op_type == "Gemm":
            result = data @ w[node.inputs[1]].T + w[node.inputs[2]]
        elif node.op_type == "Conv":
            padded = np.pad(data, ((0, 0), (0, 0), (1, 1), (1, 1)))
            windows = np.lib.stride_tricks.sliding_window_view(padded, (3, 3), axis=(2, 3))
            result = np.einsum("nchwij,ocij->nohw", windows, w["w"]) + w["b"].reshape(1, -1, 1, 1)
        else:
            result = np.maximum(data, 0)
        tensors[node.outputs[0]] = fake(result.astype(np.float32), grids[node.outputs[0]])
    model = write(graph, grids)
    np.testing.assert_array_equal(unfused(model, x), tensors["y"])
    # On CPUs without VNNI the default 8-bit kernels saturate sums of two products; this option makes them exact.
    np.testing.assert_array_equal(fused(model, x, tmp_path, x64quantprecision="1")[0], tensors["y"])


def test_weights_without_codes_are_rounded_to_nearest() -> None:
    pytest.importorskip("leadline.affine")
    graph = linear()
    grids = fully_quantised(graph)
    same(qdq.read(qdq.to_qdq(graph, grids)), grids, codes_of(graph, grids))


@settings(max_examples=60, deadline=None)
@given(data=st.data())
def test_reading_back_returns_what_was_written(data: st.DataObject) -> None:
    graph = linear()
    scheme = data.draw(st.sampled_from(WEIGHTS))
    grids = {"w": weight_grid(graph.weights["w"], scheme)}
    for name in data.draw(st.sets(st.sampled_from(["x", "h", "r", "y"]))):
        wanted = data.draw(st.sampled_from(ACTIVATIONS))
        wanted = replace(wanted, fit=data.draw(st.sampled_from(["absmax", "aimet"])))
        zero_point = 0 if wanted.symmetric else data.draw(st.integers(wanted.qmin, wanted.qmax))
        scale = data.draw(st.floats(2.0**-30, 2.0**10, width=32))
        grids[name] = Grid(np.float32(scale), np.int32(zero_point), wanted)
    lo, hi = scheme.qmin, scheme.qmax
    codes = {"w": RNG.integers(lo, hi + 1, graph.weights["w"].shape).astype(scheme.dtype)}
    model = onnx.ModelProto.FromString(qdq.to_qdq(graph, grids, codes).SerializeToString())
    same(qdq.read(model), grids, codes)


# ---------------------------------------------------------------------------------------------- fusion


def test_a_quantised_gemm_with_int32_bias_fuses_to_qgemm(tmp_path: Path) -> None:
    graph = linear()
    model = write(graph, fully_quantised(graph))
    x = RNG.standard_normal((4, 32), np.float32)
    _, kinds = fused(model, x, tmp_path)
    assert kinds["QGemm"] == 2 and not kinds["Gemm"]


@pytest.mark.parametrize("groups", [1, 4])
def test_a_quantised_convolution_fuses(groups: int, tmp_path: Path) -> None:
    graph = conv()
    if groups > 1:
        graph.weights["w"] = graph.weights["w"][:, :1]
        graph.nodes[0].attrs["group"] = 4
    x = RNG.standard_normal((1, 4, 8, 8), np.float32)
    _, kinds = fused(write(graph, fully_quantised(graph)), x, tmp_path)
    assert kinds["QLinearConv"] == 1 and not kinds["Conv"]


def test_two_activations_fuse_to_qlinearmatmul_and_qlinearadd(tmp_path: Path) -> None:
    nodes = [
        Node("MatMul", ["x", "x"], ["m"], "matmul"),
        Node("Add", ["m", "x"], ["a"], "add"),
        Node("Softmax", ["a"], ["y"], "softmax"),
    ]
    graph = network(nodes, {}, {name: (8, 8) for name in "xmay"})
    x = RNG.standard_normal((8, 8), np.float32)
    _, kinds = fused(write(graph, fully_quantised(graph)), x, tmp_path)
    assert kinds["QLinearMatMul"] == kinds["QLinearAdd"] == kinds["QLinearSoftmax"] == 1


BLOCK = Scheme(4, True, True, "block", 1, 128)


@pytest.mark.parametrize(
    "scheme",
    [PER_CHANNEL, replace(PER_CHANNEL, bits=4), BLOCK, replace(BLOCK, bits=8), replace(BLOCK, bits=3),
     replace(BLOCK, signed=False, symmetric=False)],
    ids=["w8", "w4", "w4-block", "w8-block", "w3-block", "u4-block"],
)  # fmt: skip
def test_a_weight_only_linear_layer_fuses_to_matmulnbits(scheme: Scheme, tmp_path: Path) -> None:
    graph = linear(features=256)
    graph.nodes[1].op_type = "Gelu"  # a Relu right behind the Gemm would fuse first
    grids = {"w": weight_grid(graph.weights["w"], scheme)}
    codes = codes_of(graph, grids)
    model = write(graph, grids)
    same(qdq.read(model), grids, codes)
    x = RNG.standard_normal((4, 256), np.float32)
    y, kinds = fused(model, x, tmp_path, qdq_matmulnbits_accuracy_level="1")
    assert kinds["MatMulNBits"] == 1 and not kinds["DequantizeLinear"]
    graph.weights["w"] = dequantize(codes["w"], grids["w"])
    expected = unfused(graph.to_model(), x)
    np.testing.assert_allclose(unfused(model, x), expected, rtol=0, atol=256 * 2**-22 * np.abs(expected).max())
    np.testing.assert_allclose(y, expected, rtol=0, atol=256 * 2**-22 * np.abs(expected).max())


def test_a_weight_read_by_a_quantised_layer_too_stays_in_place() -> None:
    graph = linear(features=8)
    graph.nodes[2].inputs[1] = "w"  # one weight, two layers: x is float, r is quantised
    grids = {"w": weight_grid(graph.weights["w"], PER_CHANNEL), "r": activation(0, 6)}
    model = write(graph, grids)
    gemms = [node for node in model.graph.node if node.op_type == "Gemm"]
    assert [(node.input[1], node.attribute[0].i) for node in gemms] == [("w", 1), ("w.again", 1)]
    same(qdq.read(model), grids, codes_of(graph, grids))


# ---------------------------------------------------------------------------------------------- files


@pytest.mark.parametrize("limit", [2_000_000_000, 0], ids=["one file", "external data"])
def test_saved_models_read_back_and_run(limit: int, tmp_path: Path) -> None:
    graph = linear(features=256, out=64)
    grids = fully_quantised(graph) | {"w": weight_grid(graph.weights["w"], replace(PER_CHANNEL, bits=4))}
    model = write(graph, grids)
    qdq.save(model, tmp_path / "m.onnx", limit)
    assert sorted(path.name for path in tmp_path.iterdir()) == (["m.onnx"] if limit else ["m.onnx", "m.onnx.data"])
    same(qdq.read(tmp_path / "m.onnx"), grids, codes_of(graph, grids))
    x = RNG.standard_normal((4, 256), np.float32)
    session = ort.InferenceSession(tmp_path / "m.onnx", providers=["CPUExecutionProvider"])
    assert session.run(None, {"x": x})[0].shape == (4, 64)


def test_a_failing_save_leaves_nothing_behind(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    graph = linear()
    (tmp_path / "m.onnx").write_bytes(b"old")

    def interrupted(*args: object) -> None:
        raise KeyboardInterrupt

    monkeypatch.setattr("os.replace", interrupted)
    with pytest.raises(KeyboardInterrupt):
        qdq.save(write(graph, fully_quantised(graph)), tmp_path / "m.onnx")
    assert [path.name for path in tmp_path.iterdir()] == ["m.onnx"]
    assert (tmp_path / "m.onnx").read_bytes() == b"old"


# ---------------------------------------------------------------------------------------------- models of others


def test_onnxruntimes_own_quantised_model_is_read(tmp_path: Path) -> None:
    quantization = pytest.importorskip("onnxruntime.quantization")
    graph = conv()
    graph.save(tmp_path / "float.onnx")

    class Reader(quantization.CalibrationDataReader):  # type: ignore[name-defined,misc]
        def __init__(self) -> None:
            self.feeds = iter([{"x": RNG.standard_normal((1, 4, 8, 8), np.float32)}])

        def get_next(self) -> Any:
            return next(self.feeds, None)

    quantization.quantize_static(
        tmp_path / "float.onnx", tmp_path / "q.onnx", Reader(), per_channel=True,
        activation_type=quantization.QuantType.QUInt8, weight_type=quantization.QuantType.QInt8,
    )  # fmt: skip
    found = qdq.read(tmp_path / "q.onnx")
    assert found.grids.keys() == {"x", "y", "w", "b"} and found.codes.keys() == {"w", "b"}
    assert found.grids["x"].scheme == U8
    assert found.grids["w"].scheme == replace(PER_CHANNEL, narrow=False)
    assert found.grids["b"].scheme == BIAS
    real = dequantize(found.codes["w"], found.grids["w"])
    assert np.abs(real - graph.weights["w"]).max() <= found.grids["w"].scale.max() / 2 * (1 + 1e-6)


def test_a_parameter_quantised_in_the_graph_and_a_default_zero_point_are_read() -> None:
    pytest.importorskip("leadline.affine")
    w = RNG.standard_normal((3, 4), np.float32)
    nodes = [
        helper.make_node("QuantizeLinear", ["w", "s"], ["w.i"]),
        helper.make_node("DequantizeLinear", ["w.i", "s"], ["w.f"]),
        helper.make_node("Add", ["x", "w.f"], ["y"]),
    ]
    info = [helper.make_tensor_value_info(name, onnx.TensorProto.FLOAT, [3, 4]) for name in "xy"]
    tensors = [numpy_helper.from_array(w, "w"), numpy_helper.from_array(np.float32(0.1), "s")]
    model = helper.make_model(helper.make_graph(nodes, "g", info[:1], info[1:], tensors))
    grid = Grid(np.float32(0.1), np.int32(0), U8)
    same(qdq.read(model), {"w": grid}, {"w": quantize(w, grid)})


def test_a_note_broken_by_hand_is_read_by_structure() -> None:
    graph = linear()
    grids = {"w": weight_grid(graph.weights["w"], S8), "h": activation(-1, 1)}
    grids["x"] = activation(-1, 1)
    model = write(graph, grids)
    for node in model.graph.node:
        node.doc_string = '{"leadline": broken' if node.doc_string else ""
    same(qdq.read(model), grids, codes_of(graph, grids))


# ---------------------------------------------------------------------------------------------- refusals


def refused(message: str, grids: dict[str, Grid], codes: dict[str, np.ndarray] | None = None) -> None:
    graph = linear()
    graph.weights["shape"] = np.array([4, 8])
    with pytest.raises(InputError) as error:
        qdq.to_qdq(graph, grids, codes)
    assert message in str(error.value), str(error.value)


def test_refusals_name_the_tensor() -> None:
    w = weight_grid(linear().weights["w"], PER_CHANNEL)
    zeros = np.zeros((8, 32), np.int8)
    refused("[to_qdq] grids must name tensors of the graph. Received 'nowhere'.", {"nowhere": activation(-1, 1)})
    refused("a tensor with a grid must be float32: 'shape'. Received int64.", {"shape": activation(-1, 1)})
    refused("the grid of 'h' must have scales of shape (4,). Received (8,).", {"h": w})
    axis = Grid(w.scale, w.zero_point, w.scheme.at(2))
    refused("the axis of the grid of 'w' must be 0 to 1. Received 2.", {"w": axis})
    wide, h = Grid(np.float32(1), np.int32(0), Scheme(32, True)), {"h": activation(-1, 1)}
    refused("activation 'h' must have at most 16 bits. Received 32.", {"h": wide})
    five = Grid(np.ones(4, np.float32), np.zeros(4, np.int32), Scheme(5, granularity="axis", axis=0))
    refused("activation 'h' must be per tensor unless it fills 4, 8 or 16 bits. Received 5 bits per axis.", {"h": five})
    refused("codes must belong to weights of the graph that have a grid. Received 'w'.", {}, {"w": zeros})
    refused("codes must belong to weights of the graph that have a grid. Received 'h'.", h, {"h": zeros})
    refused("codes of 'w' must be integers of shape (8, 32). Received int8 of shape (32, 8).", {"w": w}, {"w": zeros.T})
    refused("codes of 'w' must be integers of shape (8, 32). Received float32", {"w": w}, {"w": np.ones((8, 32), "f")})
    refused("codes of 'w' must lie in -127..127. Received -128 to -128.", {"w": w}, {"w": np.full((8, 32), -128)})


def test_a_weight_that_nobody_reads_is_refused() -> None:
    graph = linear()
    graph.weights["idle"] = graph.weights["w"]
    grids = {"idle": weight_grid(graph.weights["w"], S8)}
    with pytest.raises(InputError, match=r"a weight with a grid must be read by a node\. Received 'idle'"):
        qdq.to_qdq(graph, grids, codes_of(graph, grids))


def test_reading_refuses_what_is_no_model(tmp_path: Path) -> None:
    with pytest.raises(InputError, match="does not exist"):
        qdq.read(tmp_path / "none.onnx")
    graph = linear(features=256, out=64)
    model = write(graph, fully_quantised(graph))
    qdq.save(model, tmp_path / "m.onnx", limit=0)
    (tmp_path / "m.onnx.data").unlink()
    with pytest.raises(InputError, match=r"tensor 'w\.q' must be complete, its external data beside the file"):
        qdq.read(tmp_path / "m.onnx")
    next(t for t in model.graph.initializer if t.name == "h.scale").CopyFrom(
        numpy_helper.from_array(np.float32(0), "h.scale")
    )
    with pytest.raises(InputError, match="the grid of tensor 'h' must be valid"):
        qdq.read(model)
