"""AIMET encodings: each version written to the letter, read strictly, and converted without loss."""

from __future__ import annotations

import json
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from leadline.export import encodings
from leadline.export.encodings import Encodings, Version
from leadline.graph import Graph, Node, Value
from leadline.types import Grid, InputError, Scheme

F32 = np.dtype(np.float32)
VERSIONS: tuple[Version, ...] = ("0.6.1", "1.0.0", "2.0.0")
RNG = np.random.default_rng(3)


def network() -> Graph:
    """x -> Conv -> c -> ConvTranspose -> t -> Reshape -> f -> Gemm -> g -> MatMul -> y; several weights are square."""
    weights = {
        "conv.w": np.zeros((4, 4, 3, 3), F32), "conv.b": np.zeros(4, F32), "up.w": np.zeros((4, 4, 1, 1), F32),
        "shape": np.array([2, 8]), "gemm.w": np.zeros((8, 8), F32), "gemm.b": np.zeros(8, F32),
        "matmul.w": np.zeros((8, 8), F32), "gamma": np.zeros(8, F32),
    }  # fmt: skip
    nodes = [
        Node("Conv", ["x", "conv.w", "conv.b"], ["c"], "conv", {"pads": [1, 1, 1, 1]}),
        Node("ConvTranspose", ["c", "up.w"], ["t"], "up"),
        Node("Reshape", ["t", "shape"], ["f"], "reshape"),
        Node("Gemm", ["f", "gemm.w", "gemm.b"], ["g"], "gemm", {"transB": 1}),
        Node("Mul", ["g", "gamma"], ["m"], "mul"),
        Node("MatMul", ["m", "matmul.w"], ["y"], "matmul"),
    ]
    shapes = {
        "x": (1, 4, 2, 2),
        "c": (1, 4, 2, 2),
        "t": (1, 4, 2, 2),
        "f": (2, 8),
        "g": (2, 8),
        "m": (2, 8),
        "y": (2, 8),
    }
    values = {name: Value(name, F32, shape) for name, shape in shapes.items()}
    return Graph(nodes, weights, [values["x"]], [values["y"]], values)


CHANNEL_AXIS = {"conv.w": 0, "up.w": 1, "gemm.w": 0, "matmul.w": 1, "gamma": 0}
ACTIVATIONS = ("x", "c", "t", "f", "g", "m", "y")


@st.composite
def grid(draw: st.DrawFn, shape: tuple[int, ...], granularity: str, axis: int | None, block: int | None) -> Grid:
    """Any grid that an encodings file can say: bits, sign, float32 scales and zero points are free."""
    bits, signed = draw(st.sampled_from([2, 3, 4, 7, 8, 12, 16])), draw(st.booleans())
    scale_shape: tuple[int, ...] = ()
    if granularity == "axis":
        scale_shape = (shape[axis],)
    elif granularity == "block":
        scale_shape = tuple(n // block if i == axis else n for i, n in enumerate(shape))
    count = int(np.prod(scale_shape, dtype=int))
    scale = draw(st.lists(st.floats(2.0**-60, 2.0**20, width=32), min_size=count, max_size=count))
    half = 2 ** (bits - 1)
    zeros = (
        st.just(0) if signed and draw(st.booleans()) else st.integers(0, 2 * half - 1).map(lambda z: z - half * signed)
    )
    zero_point = np.array(draw(st.lists(zeros, min_size=count, max_size=count)), np.int32).reshape(scale_shape)
    scheme = Scheme(bits, signed, signed and not zero_point.any(), granularity, axis, block)  # type: ignore[arg-type]
    return Grid(np.array(scale, np.float32).reshape(scale_shape), zero_point, scheme)


@st.composite
def some_grids(draw: st.DrawFn, blocks: bool = True, biases: bool = True) -> dict[str, Grid]:
    graph, grids = network(), {}
    for name in draw(st.lists(st.sampled_from(ACTIVATIONS), unique=True)):
        grids[name] = draw(grid(graph.shape(name), "tensor", None, None))
    for name in draw(st.lists(st.sampled_from(sorted(CHANNEL_AXIS)), unique=True)):
        shape, axis = graph.shape(name), CHANNEL_AXIS[name]
        kinds: list[tuple[str, int | None, int | None]] = [("tensor", None, None), ("axis", axis, None)]
        if blocks and name in ("gemm.w", "matmul.w"):
            kinds.append(("block", 1 - axis, 4))
        grids[name] = draw(grid(shape, *draw(st.sampled_from(kinds))))
    if biases and draw(st.booleans()):
        scheme = Scheme(32, True, True, "axis", 0)
        grids["gemm.b"] = Grid(RNG.random(8, np.float32) + 1e-3, np.zeros(8), scheme)
    return grids


def table(path: Path) -> dict[str, Any]:
    document = json.loads(path.read_text("utf-8"))
    assert isinstance(document, dict)
    return document


def in_any_order(path: Path) -> dict[str, Any]:
    """The document with its lists by name: 0.6.1 keeps no order."""
    document = table(path)
    for key, value in document.items():
        if key.endswith("encodings") and isinstance(value, list):
            document[key] = sorted(value, key=lambda entry: entry["name"])
    return document


# ---------------------------------------------------------------------------------------------- round trips

relaxed = settings(max_examples=40, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])


@relaxed
@given(grids=some_grids(blocks=False, biases=False), version=st.sampled_from(VERSIONS))
def test_every_version_returns_what_was_written(grids: dict[str, Grid], version: Version, tmp_path: Path) -> None:
    graph = network()
    written = Encodings.from_grids(graph, grids)
    assert written.grids == grids and written.params == {name for name in grids if name in graph.weights}
    written.write(tmp_path / "e", version)
    assert encodings.read(tmp_path / "e", graph) == written


@relaxed
@given(grids=some_grids())
def test_2_0_0_returns_blocks_and_biases_without_a_graph(grids: dict[str, Grid], tmp_path: Path) -> None:
    Encodings.from_grids(network(), grids).write(tmp_path / "e", "2.0.0")
    found = encodings.read(tmp_path / "e")
    assert found.grids == grids and found.params is None


@relaxed
@given(grids=some_grids(biases=False))
def test_1_0_0_returns_blocks(grids: dict[str, Grid], tmp_path: Path) -> None:
    written = Encodings.from_grids(network(), grids)
    written.write(tmp_path / "e", "1.0.0")
    assert encodings.read(tmp_path / "e", network()) == written


@relaxed
@given(grids=some_grids(blocks=False, biases=False), path=st.lists(st.sampled_from(VERSIONS), min_size=2, max_size=5))
def test_any_chain_of_conversions_keeps_every_grid(grids: dict[str, Grid], path: list[Version], tmp_path: Path) -> None:
    graph = network()
    written = Encodings.from_grids(graph, grids)
    written.write(tmp_path / "0", path[0])
    for i, version in enumerate(path[1:]):
        encodings.convert(tmp_path / str(i), tmp_path / str(i + 1), version, graph)
    assert encodings.read(tmp_path / str(len(path) - 1), graph) == written
    direct = tmp_path / "direct"
    written.write(direct, path[-1])
    assert in_any_order(direct) == in_any_order(tmp_path / str(len(path) - 1))


@relaxed
@given(grids=some_grids(blocks=False, biases=False))
def test_the_legacy_versions_turn_into_one_another_without_a_graph(grids: dict[str, Grid], tmp_path: Path) -> None:
    written = Encodings.from_grids(network(), grids)
    written.write(tmp_path / "a", "1.0.0")
    encodings.convert(tmp_path / "a", tmp_path / "b", "0.6.1")
    encodings.convert(tmp_path / "b", tmp_path / "c", "1.0.0")
    assert in_any_order(tmp_path / "a") == in_any_order(tmp_path / "c")


def test_what_a_scheme_says_about_finding_a_grid_is_dropped() -> None:
    scheme = Scheme(8, True, True, narrow=True, fit="aimet")
    found = Encodings.from_grids(network(), {"x": Grid(np.float32(1), np.int32(0), scheme)}).grids["x"]
    assert found.scheme == Scheme(8, True, True)
    leftover = Scheme(8, axis=0, block_size=128)
    x = Grid(np.float32(1), np.int32(0), leftover)
    assert Encodings.from_grids(network(), {"x": x}).grids["x"].scheme == Scheme(8)
    middle = Grid(np.float32(1), np.int32(128), Scheme(8, False, True))
    assert Encodings.from_grids(network(), {"x": middle}).grids["x"].scheme == Scheme(8)


# ---------------------------------------------------------------------------------------------- to the letter


def example() -> Encodings:
    channels = np.array([0.5, 0.25, 0.125, 1], np.float32)
    blocks = np.arange(1, 17, dtype=np.float32).reshape(2, 8)
    grids = {
        "x": Grid(np.float32(0.5), np.int32(130), Scheme(8)),
        "c": Grid(np.float32(0.5), np.int32(0), Scheme(8)),
        "t": Grid(np.float32(0.5), np.int32(2), Scheme(8, True)),
        "conv.w": Grid(channels, np.zeros(4), Scheme(8, True, True, "axis", 0, narrow=True)),
        "conv.b": Grid(channels / 2, np.zeros(4), Scheme(32, True, True, "axis", 0)),
        "matmul.w": Grid(blocks, np.zeros((2, 8)), Scheme(4, True, True, "block", 0, 4)),
    }
    return replace(Encodings.from_grids(network(), grids), floats=frozenset({"g"}), excluded=("up",))


def test_0_6_1_to_the_letter(tmp_path: Path) -> None:
    some = example()
    del some.grids["matmul.w"]
    some.write(tmp_path / "e", "0.6.1")
    found = table(tmp_path / "e")
    assert list(found) == ["activation_encodings", "param_encodings", "producer", "quantizer_args", "version"]
    assert found["version"] == "0.6.1" and found["producer"]["package"] == "leadline"
    entry = {
        "bitwidth": 8,
        "dtype": "int",
        "is_symmetric": "False",
        "max": 62.5,
        "min": -65.0,
        "offset": -130.0,
        "scale": 0.5,
    }
    assert found["activation_encodings"] == {
        "x": [entry],
        "c": [entry | {"max": 127.5, "min": 0.0, "offset": 0.0}],
        "t": [entry | {"max": 62.5, "min": -65.0, "offset": -130.0, "is_symmetric": "True"}],
        "g": [{"bitwidth": 16, "dtype": "float"}],
    }
    assert list(found["param_encodings"]) == ["conv.w"]
    assert [item["scale"] for item in found["param_encodings"]["conv.w"]] == [0.5, 0.25, 0.125, 1.0]
    first = {"is_symmetric": "True", "offset": -128.0, "min": -64.0, "max": 63.5}
    assert found["param_encodings"]["conv.w"][0] == entry | first
    assert isinstance(found["activation_encodings"]["x"][0]["offset"], float)
    assert found["quantizer_args"] == {
        "activation_bitwidth": 8, "dtype": "int", "is_symmetric": True, "param_bitwidth": 8,
        "per_channel_quantization": True, "quant_scheme": "min_max",
    }  # fmt: skip


def test_1_0_0_to_the_letter(tmp_path: Path) -> None:
    example().write(tmp_path / "e", "1.0.0")
    found = table(tmp_path / "e")
    keys = ["activation_encodings", "excluded_layers", "param_encodings", "producer", "quantizer_args", "version"]
    assert list(found) == keys and found["version"] == "1.0.0" and found["excluded_layers"] == ["up"]
    per_tensor = {"bw": 8, "dtype": "INT", "enc_type": "PER_TENSOR", "is_sym": False, "scale": [0.5]}
    assert found["activation_encodings"] == [
        per_tensor | {"name": "x", "offset": [-130.0]},
        per_tensor | {"name": "c", "offset": [0.0]},
        per_tensor | {"name": "t", "offset": [-130.0], "is_sym": True},
        {"bw": 16, "dtype": "FLOAT", "enc_type": "PER_TENSOR", "name": "g"},
    ]
    assert found["param_encodings"] == [
        {
            "bw": 8, "dtype": "INT", "enc_type": "PER_CHANNEL", "is_sym": True, "name": "conv.w",
            "offset": [-128.0] * 4, "scale": [0.5, 0.25, 0.125, 1.0],
        },
        {
            "block_size": 4, "bw": 4, "dtype": "INT", "enc_type": "PER_BLOCK", "is_sym": True, "name": "matmul.w",
            "offset": [-8.0] * 16, "scale": [float(k) for i in range(8) for k in (i + 1, i + 9)],
        },
    ]  # fmt: skip


def test_2_0_0_to_the_letter(tmp_path: Path) -> None:
    example().write(tmp_path / "e", "2.0.0")
    found = table(tmp_path / "e")
    assert list(found) == ["encodings", "producer", "version"] and found["version"] == "2.0.0"
    blocks = [[float(k) for k in range(1, 9)], [float(k) for k in range(9, 17)]]
    assert found["encodings"] == [
        {"name": "x", "output_dtype": "uint8", "y_scale": 0.5, "y_zero_point": 130},
        {"name": "c", "output_dtype": "uint8", "y_scale": 0.5},
        {"name": "t", "output_dtype": "int8", "y_scale": 0.5, "y_zero_point": 2},
        {"axis": 0, "name": "conv.w", "output_dtype": "int8", "y_scale": [0.5, 0.25, 0.125, 1.0]},
        {"axis": 0, "name": "conv.b", "output_dtype": "int32", "y_scale": [0.25, 0.125, 0.0625, 0.5]},
        {"axis": 0, "block_size": 4, "name": "matmul.w", "output_dtype": "int4", "y_scale": blocks},
    ]


def test_float16_and_excluded_layers_survive_where_the_version_has_them(tmp_path: Path) -> None:
    some = example()
    some.write(tmp_path / "e", "1.0.0")
    found = encodings.read(tmp_path / "e", network())
    assert found.floats == {"g"} and found.excluded == ("up",)
    assert found.grids == {name: grid for name, grid in some.grids.items() if name != "conv.b"}


def test_a_2_1_0_file_is_read(tmp_path: Path) -> None:
    entries = [{"name": "x", "output_dtype": "uint8", "y_scale": 0.5, "y_zero_point": 3}]
    (tmp_path / "e").write_text(json.dumps({"version": "2.1.0", "encodings": entries}))
    assert encodings.read(tmp_path / "e").grids == {"x": Grid(np.float32(0.5), np.int32(3), Scheme(8))}


# ---------------------------------------------------------------------------------------------- refusals


def write_raw(tmp_path: Path, version: str, entry: Any, section: str = "param_encodings", name: str = "gemm.w") -> Path:
    """A file that holds one entry."""
    document: dict[str, Any] = {"version": version}
    if version == "2.0.0":
        document["encodings"] = [entry]
    else:
        empty: Any = {} if version == "0.6.1" else []
        document |= {"activation_encodings": empty, "param_encodings": empty}
        document[section] = {name: entry} if version == "0.6.1" else [entry]
    file = tmp_path / "some.encodings"
    file.write_text(json.dumps(document))
    return file


def refused(file: Path, *parts: str, graph: Graph | None = None) -> None:
    with pytest.raises(InputError) as error:
        encodings.read(file, graph)
    for part in (f"'{file}'", *parts):
        assert part in str(error.value), str(error.value)


LEGACY = {
    "bitwidth": 8,
    "dtype": "int",
    "is_symmetric": "True",
    "max": 1.0,
    "min": -1.0,
    "offset": -128.0,
    "scale": 0.5,
}
ONE = {
    "bw": 8,
    "dtype": "INT",
    "enc_type": "PER_TENSOR",
    "is_sym": True,
    "name": "gemm.w",
    "offset": [-128],
    "scale": [0.5],
}
TWO = {"name": "gemm.w", "output_dtype": "int8", "y_scale": 0.5}


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"scale": ...}, "scale must be there"),
        ({"is_symmetric": True}, "is_symmetric must be the text 'True' or 'False'. Received True"),
        ({"scale": float("nan")}, "scale must be finite. Received [nan]"),
        ({"scale": "0.5"}, "scale must be a list of numbers"),
        ({"scale": 0.0}, "scale must be a positive float32"),
        ({"offset": 0.5}, "offset must hold whole numbers"),
        ({"offset": 1.0}, "zero point must lie on the grid -128..127. Received -129 to -129"),
        ({"max": None}, "max must be a number. Received None"),
        ({"bitwidth": 24}, "bits must be 2 to 16, or 32"),
        ({"bitwidth": True}, "bitwidth must be an integer. Received True"),
        ({"dtype": "INT"}, "dtype must be 'int' or 'float'. Received 'INT'"),
        ({"dtype": "float"}, "has only the fields bitwidth, dtype. Received is_symmetric"),
        ({"bw": 8}, "an entry of version 0.6.1 has only the fields bitwidth, dtype, is_symmetric"),
    ],
)
def test_0_6_1_refuses(change: dict[str, Any], message: str, tmp_path: Path) -> None:
    entry = {key: value for key, value in (LEGACY | change).items() if value is not ...}
    refused(write_raw(tmp_path, "0.6.1", [entry]), "tensor 'gemm.w'", message)


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"is_sym": ...}, "is_sym must be there. Received fields bw, dtype"),
        ({"is_sym": "True"}, "is_sym must be true or false. Received 'True'"),
        ({"scale": [0.5, float("inf")], "offset": [0, 0]}, "scale must be finite"),
        ({"scale": [0.5, 0.5]}, "scale and offset must be lists of one length, not empty. Received (2,) and (1,)"),
        (
            {"scale": [0.5] * 2, "offset": [-128] * 2},
            "scale of a PER_TENSOR encoding must be one number. Received 2 numbers",
        ),
        ({"scale": 0.5}, "scale must be a list of numbers. Received 0.5"),
        ({"scale": [], "offset": []}, "must be lists of one length, not empty"),
        ({"enc_type": "LPBQ"}, "enc_type must be PER_TENSOR, PER_CHANNEL, PER_BLOCK. Received 'LPBQ'"),
        ({"enc_type": "PER_BLOCK"}, "block_size must be there"),
        ({"enc_type": "PER_BLOCK", "block_size": 0}, "needs a positive block_size"),
        ({"y_scale": 0.5}, "an entry of version 1.0.0 has only the fields"),
        ({"zero_point_shift": [0.5]}, "Received zero_point_shift"),
        ({"bw": "8"}, "bits must be of type int"),
        ({"dtype": "FLOAT"}, "has only the fields bw, dtype, enc_type, name"),
    ],
)
def test_1_0_0_refuses(change: dict[str, Any], message: str, tmp_path: Path) -> None:
    entry = {key: value for key, value in (ONE | change).items() if value is not ...}
    refused(write_raw(tmp_path, "1.0.0", entry), "tensor 'gemm.w'", message)


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"output_dtype": ...}, "output_dtype must be there"),
        ({"output_dtype": "float8e4m3fn"}, "output_dtype must be an integer type. Received 'float8e4m3fn'"),
        ({"output_dtype": "int64"}, "output_dtype and block_size must be possible"),
        ({"bw": 8}, "an entry of version 2.0.0 has only the fields axis, block_size, name, output_dtype, y_scale"),
        ({"per_block_int_scale": [1]}, "Received per_block_int_scale"),
        ({"y_scale": -0.5}, "scale must be a positive float32"),
        ({"y_scale": 1e-60}, "scale must be a positive float32"),
        ({"y_scale": [[0.5], [0.5, 0.5]], "axis": 0}, "y_scale must be numbers in lists of one length"),
        ({"y_scale": [0.5, 0.5]}, "axis must be an integer where y_scale is a list, and only there. Received None"),
        ({"axis": 0}, "axis must be an integer where y_scale is a list, and only there. Received 0"),
        ({"y_scale": [[0.5]], "axis": 0}, "nested y_scale needs block_size"),
        ({"y_zero_point": [1, 2]}, "y_zero_point must have the shape of y_scale, (). Received (2,)"),
        ({"y_zero_point": 200}, "zero point must lie on the grid -128..127. Received 200 to 200"),
        ({"y_scale": {"x": 1}}, "y_scale must be numbers"),
        ({"y_scale": [0.5], "axis": 0, "block_size": True}, "block_size must be an integer"),
    ],
)
def test_2_0_0_refuses(change: dict[str, Any], message: str, tmp_path: Path) -> None:
    entry = {key: value for key, value in (TWO | change).items() if value is not ...}
    refused(write_raw(tmp_path, "2.0.0", entry), "tensor 'gemm.w'", message)


def test_files_are_refused(tmp_path: Path) -> None:
    file = tmp_path / "f.encodings"
    refused(file, "path must be a file that can be read", "No such file")
    for text, message in (
        ('{"version": "1.0.0", ', "must be JSON"),
        ("[]", "version must be one of 0.6.1, 1.0.0, 2.0.0, 2.1.0. Received None"),
        ('{"version": "3.0.0"}', "Received '3.0.0'"),
        ('{"version": 2.0}', "Received 2.0"),
        ('{"version": "2.0.0"}', "must have the sections encodings, and no other. Received keys version"),
        ('{"version": "1.0.0", "encodings": []}', "must have the sections activation_encodings and param_encodings"),
        ('{"version": "2.0.0", "encodings": [], "param_encodings": []}', "and no other"),
        ('{"version": "2.0.0", "encodings": {}}', "encodings must be a list. Received dict"),
        ('{"version": "2.0.0", "encodings": [{"y_scale": 1}]}', "encodings[0] must be an object with a name"),
        ('{"version": "0.6.1", "activation_encodings": [], "param_encodings": {}}', "must be an object. Received list"),
        ('{"version": "0.6.1", "activation_encodings": {"x": {}}, "param_encodings": {}}', "must be a list of objects"),
        ('{"version": "0.6.1", "activation_encodings": {"x": 1, "x": 2}}', "must hold each key once. Received 'x'"),
        (
            '{"version": "1.0.0", "activation_encodings": [], "param_encodings": [], "excluded_layers": 1}',
            "list of names",
        ),
    ):
        file.write_text(text)
        refused(file, message)
    file.write_bytes(b"\xff\xfe")
    refused(file, "must be JSON")
    entry = json.dumps(TWO)
    file.write_text(f'{{"version": "2.0.0", "encodings": [{entry}, {entry}]}}')
    refused(file, "tensor 'gemm.w'", "a tensor must have one encoding. Received a second one in encodings")


def test_a_file_of_another_network_is_refused(tmp_path: Path) -> None:
    graph = network()
    refused(
        write_raw(tmp_path, "2.0.0", TWO | {"name": "no"}), "tensor 'no'", "must name tensors of the graph", graph=graph
    )
    wrong = TWO | {"y_scale": [0.5, 0.5], "axis": 0}
    refused(
        write_raw(tmp_path, "2.0.0", wrong),
        "tensor 'gemm.w'",
        "scales must have shape (8,). Received (2,)",
        graph=graph,
    )
    wrong |= {"axis": 2}
    refused(
        write_raw(tmp_path, "2.0.0", wrong), "axis must be one of the 2 axes of the tensor. Received 2", graph=graph
    )
    three = ONE | {"enc_type": "PER_CHANNEL", "scale": [0.5] * 3, "offset": [-128] * 3}
    refused(write_raw(tmp_path, "1.0.0", three), "3 scales must fit one axis of its shape (8, 8)", graph=graph)
    blocks = three | {"enc_type": "PER_BLOCK", "block_size": 4}
    refused(
        write_raw(tmp_path, "1.0.0", blocks),
        "scales of blocks of 4 must cover a matrix",
        "Received 3 scales",
        graph=graph,
    )


def test_a_version_that_cannot_hold_a_grid_is_refused(tmp_path: Path) -> None:
    some, file = example(), tmp_path / "e"
    with pytest.raises(
        InputError, match=r"version 0\.6\.1 has no blocks: write tensor 'matmul\.w' as 1\.0\.0 or 2\.0\.0"
    ):
        some.write(file, "0.6.1")
    four = Grid(np.ones((4, 2, 3, 3), F32), np.zeros((4, 2, 3, 3)), Scheme(4, True, True, "block", 1, 2))
    with pytest.raises(InputError, match=r"version 1\.0\.0 holds blocks of matrices only: write tensor 'conv\.w'"):
        Encodings.from_grids(network(), {"conv.w": four}).write(file, "1.0.0")
    with pytest.raises(InputError, match=r"version must be one of 0\.6\.1, 1\.0\.0, 2\.0\.0\. Received '2\.1\.0'"):
        some.write(file, "2.1.0")  # type: ignore[arg-type]
    assert not list(tmp_path.iterdir())
    some.write(file, "1.0.0")
    with pytest.raises(InputError, match=r"version 2\.0\.0 needs the axis of 'conv\.w'.*give the graph"):
        encodings.convert(file, tmp_path / "f", "2.0.0")
    some.write(file, "2.0.0")
    with pytest.raises(InputError, match=r"version 1\.0\.0 tells parameters from activations.*give the graph"):
        encodings.convert(file, tmp_path / "f", "1.0.0")
    assert [path.name for path in tmp_path.iterdir()] == ["e"]


def test_grids_of_another_network_are_refused() -> None:
    x = Grid(np.float32(0.5), np.int32(130), Scheme(8))
    with pytest.raises(InputError, match=r"\[Encodings\.from_grids\] tensor 'no': encodings must name tensors"):
        Encodings.from_grids(network(), {"no": x})
    bad = Grid(np.ones(3, F32), np.zeros(3), Scheme(8, True, True, "axis", 0))
    with pytest.raises(InputError, match=r"tensor 'gemm\.w': scales must have shape \(8,\)\. Received \(3,\)"):
        Encodings.from_grids(network(), {"gemm.w": bad})
