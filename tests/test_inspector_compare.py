"""Artefacts compared: across formats, across shifts of types, and between networks that have nothing in common."""

from __future__ import annotations

import json
from dataclasses import replace
from pathlib import Path

import numpy as np
import onnx
import pytest
from onnx import TensorProto, helper, numpy_helper

from graph_models import model, node
from leadline.export import qdq
from leadline.export.encodings import Encodings
from leadline.inspector import compare, inspect
from leadline.inspector.compare import Codes, compare_artefacts
from leadline.inspector.inspection import Artefact, Inspection
from leadline.types import Grid, InputError, Scheme
from test_cli import spawn
from test_inspector import F32, U8, grids, network

EMPTY = Inspection("f", "ONNX QDQ", 100)


def artefact(codes: dict[str, np.ndarray] | None = None, **some: Grid) -> Artefact:
    return Artefact(EMPTY, some, codes or {})


def per_axis(*scales: float) -> Grid:
    return Grid(np.array(scales, np.float32), np.zeros(len(scales)), Scheme(8, True, True, "axis", 0))


def test_a_file_equals_itself_and_its_encodings(tmp_path: Path) -> None:
    some = {name: grid for name, grid in grids().items() if name != "fc.w"}
    qdq.save(qdq.to_qdq(network(), some), tmp_path / "m.onnx")
    Encodings.from_grids(network(), some).write(tmp_path / "m.encodings", "2.0.0")
    itself = compare(tmp_path / "m.onnx", tmp_path / "m.onnx")
    assert itself.same and (itself.equal_grids, itself.equal_codes) == (8, 3)
    spelt = compare(tmp_path / "m.onnx", tmp_path / "m.encodings")
    assert spelt.same and (spelt.equal_grids, spelt.equal_codes) == (8, 0)
    Encodings.from_grids(network(), some).write(tmp_path / "old.encodings", "1.0.0")
    older = compare(tmp_path / "m.onnx", tmp_path / "old.encodings")
    assert older.only_first == {
        name: "int32 per channel, not in the other file" for name in ("conv.b", "fc.b")
    } and not older.same  # fmt: skip


def test_types_shifted_by_half_their_range_are_equal() -> None:
    signed = Grid(np.float32(0.05), np.int32(-8), Scheme(8, True))
    unsigned = Grid(np.float32(0.05), np.int32(120), Scheme(8))
    codes = np.arange(-100, 100, dtype=np.int8)
    found = compare_artefacts(
        artefact({"w": codes}, w=signed), artefact({"w": (codes.astype(int) + 128).astype(np.uint8)}, w=unsigned)
    )
    assert found.same and found.equal_codes == 1


@pytest.mark.parametrize(
    ("other", "text"),
    [
        (Grid(np.float32(0.1), np.int32(128), Scheme(8)), "scale 0.05 against 0.1"),
        (Grid(np.float32(0.05), np.int32(100), Scheme(8)), "zero point 128 against 100"),
        (Grid(np.float32(0.05), np.int32(1), Scheme(8, True)), "zero point 128 against 129"),
        (Grid(np.float32(0.05), np.int32(128), Scheme(16)), "8 bits against 16"),
        (per_axis(0.1, 0.2), "uint8 per tensor (1 scales) against int8 per channel (2)"),
    ],
)
def test_what_differs_between_grids_is_said(other: Grid, text: str) -> None:
    found = compare_artefacts(artefact(x=U8), artefact(x=other))
    assert found.grids == {"x": text} and found.equal_grids == 0


def test_the_worst_of_many_scales_is_named() -> None:
    found = compare_artefacts(artefact(w=per_axis(0.1, 0.2, 0.4)), artefact(w=per_axis(0.1, 0.21, 0.8)))
    assert found.grids == {"w": "2 of 3 scales, 0.4 against 0.8"}
    close = per_axis(*np.float32([0.1, 0.2, 0.4]) * np.float32(1 + 3e-7))
    assert compare_artefacts(artefact(w=per_axis(0.1, 0.2, 0.4)), artefact(w=close)).same


def test_codes_are_compared_in_the_order_of_axes_that_fits() -> None:
    """OIHW and OHWI, depthwise O1HW and 1HWO."""
    rng = np.random.default_rng(0)
    grid = Grid(np.float32(0.1), np.int32(0), Scheme(8, True, True))
    dense, depthwise = rng.integers(-9, 9, (6, 6, 3, 3)), rng.integers(-9, 9, (6, 1, 3, 3))
    theirs = {"d": dense.transpose(0, 2, 3, 1).copy(), "s": depthwise.transpose(1, 2, 3, 0)}
    first = artefact({"d": dense, "s": depthwise}, d=grid, s=grid)
    assert compare_artefacts(first, artefact(theirs, d=grid, s=grid)).same
    theirs["d"][1, 2, 0, 3] += 4
    theirs["d"][0, 0, 0, 0] -= 1
    assert compare_artefacts(first, artefact(theirs, d=grid, s=grid)).codes == {"d": Codes(2, 6 * 6 * 9, 4)}
    theirs["d"] = theirs["d"][:5]
    assert compare_artefacts(first, artefact(theirs, d=grid, s=grid)).codes == {"d": Codes(324, 324, 0)}


def test_parameters_go_by_their_codes_where_names_differ() -> None:
    rng = np.random.default_rng(1)
    grid = Grid(np.float32(0.1), np.int32(0), Scheme(8, True, True))
    a, b, twin = (rng.integers(-99, 99, (4, 8)) for _ in range(3))
    first = artefact({"a": a, "b": b, "t1": twin, "t2": twin}, a=grid, b=grid, t1=grid, t2=grid)
    second = artefact({"A;1": a.T, "B;2": b + 1, "T": twin}, **{"A;1": grid, "B;2": grid, "T": grid})
    found = compare_artefacts(first, second)
    assert found.renamed == {"a": "A;1"} and found.equal_codes == 1  # two are like T: neither is paired
    assert set(found.only_first) == {"b", "t1", "t2"} and set(found.only_second) == {"B;2", "T"}


def test_activations_under_other_names_are_recognised_by_their_scales() -> None:
    ours = Grid(np.float32(0.05), np.int32(120), Scheme(8))
    theirs = Grid(np.float32(0.05 * (1 + 3e-7)), np.int32(-8), Scheme(8, True))
    found = compare_artefacts(artefact(relu=ours, lost=grid(3.0)), artefact(**{"t;7": theirs}))
    assert list(found.only_first.items()) == [
        ("lost", "uint8 per tensor, not in the other file"),
        ("relu", "uint8 per tensor, an equal scale under another name there"),
    ]
    assert found.only_second == {"t;7": "int8 per tensor, an equal scale under another name there"} and not found.same


def test_different_networks_have_nothing_in_common(tmp_path: Path) -> None:
    qdq.save(qdq.to_qdq(network(), grids()), tmp_path / "a.onnx")
    stored = [numpy_helper.from_array(np.float32(0.5), "s"), numpy_helper.from_array(np.uint8(0), "z")]
    nodes = [
        helper.make_node("QuantizeLinear", ["other", "s", "z"], ["i"]),
        helper.make_node("DequantizeLinear", ["i", "s", "z"], ["f"]),
        helper.make_node("Relu", ["f"], ["out"]),
    ]
    ports = [helper.make_tensor_value_info(name, TensorProto.FLOAT, [4]) for name in ("other", "out")]
    onnx.save(helper.make_model(helper.make_graph(nodes, "g", ports[:1], ports[1:], stored)), tmp_path / "b.onnx")
    done = spawn(
        "inspect", tmp_path / "a.onnx", "--against", tmp_path / "b.onnx", "--json", "--html", tmp_path / "p.html"
    )
    assert done.returncode == 0, done.stderr
    document = json.loads(done.stdout)
    assert (document["equal_grids"], document["same"]) == (0, False)
    assert len(document["only_first"]) == 9 and list(document["only_second"]) == ["other"]
    assert "only in the second" in spawn("inspect", tmp_path / "a.onnx", "--against", tmp_path / "b.onnx").stdout
    page = (tmp_path / "p.html").read_text()
    assert "a.onnx and b.onnx" in page and "The two files differ." in page and "http" not in page


def test_flags_that_cannot_go_together(tmp_path: Path) -> None:
    qdq.save(qdq.to_qdq(network(), grids()), tmp_path / "a.onnx")
    file = tmp_path / "a.onnx"
    done = spawn("inspect", file, "--against", file, "--model", file)
    assert done.returncode == 2 and "--model and --against cannot go together" in done.stderr
    with pytest.raises(InputError, match="model goes with an encodings file"):
        inspect(file, file)


def test_encodings_beside_their_network(tmp_path: Path) -> None:
    """2.0.0 tells no parameters; the network does, and names what has no entry."""
    some = {name: grid for name, grid in grids().items() if name not in ("fc.w", "g")}
    network().save(tmp_path / "net.onnx")
    Encodings.from_grids(network(), some).write(tmp_path / "m.encodings", "2.0.0")
    alone = inspect(tmp_path / "m.encodings")
    found = inspect(tmp_path / "m.encodings", tmp_path / "net.onnx")
    assert (alone.parameters, alone.uncovered) == (None, ())
    assert (found.parameters, found.parameters_quantized) == (5, 3)
    assert set(found.uncovered) == {"fc.w", "gain", "g", "e"} and found.inputs == {"x": "float32 1x4x8x8"}
    assert (found.tensors, found.quantized, found.absorbed) == (11, 7, 1)  # c never exists: the Relu clamps it
    assert found.gaps.keys() == {"fc.w", "gain", "g", "e"} and found.gaps["e"] == "float, left in float"
    assert found.facts == {"without entry, harmless": "clamp 1"}
    done = spawn("inspect", tmp_path / "m.encodings", "--model", tmp_path / "net.onnx")
    assert done.returncode == 0 and "without entry" in done.stdout and "float, left in float: g, e" in done.stdout


def test_encodings_of_another_network_are_refused(tmp_path: Path) -> None:
    Encodings.from_grids(network(), grids()).write(tmp_path / "m.encodings", "2.0.0")
    other = model([node("Relu", "x", "y", name="r")], shape=(1, 4, 8, 8))
    onnx.save(other, tmp_path / "other.onnx")
    done = spawn("inspect", tmp_path / "m.encodings", "--model", tmp_path / "other.onnx")
    assert (
        done.returncode == 2
        and "encodings must name tensors of the graph" in done.stderr
        and "Traceback" not in done.stderr
    )


def joined(scores: Grid, boxes: Grid, both: Grid, *, sigmoid: bool) -> onnx.ModelProto:
    """Concat(boxes, scores), each behind its own pair, and a pair behind it."""
    stored, nodes = [], []

    def pair(name: str, grid: Grid) -> str:
        kind = np.uint8 if grid.scheme.bits == 8 else np.uint16
        stored.append(numpy_helper.from_array(grid.scale, f"{name}.s"))
        stored.append(numpy_helper.from_array(grid.zero_point.astype(kind), f"{name}.z"))
        nodes.append(helper.make_node("QuantizeLinear", [name, f"{name}.s", f"{name}.z"], [f"{name}.i"]))
        nodes.append(helper.make_node("DequantizeLinear", [f"{name}.i", f"{name}.s", f"{name}.z"], [f"{name}.f"]))
        return f"{name}.f"

    nodes.append(helper.make_node("Sigmoid" if sigmoid else "Relu", ["x"], ["scores"], name="act"))
    nodes.append(helper.make_node("Reshape", [pair("scores", scores), "shape"], ["turned"], name="turn"))
    nodes.append(helper.make_node("Concat", [pair("boxes", boxes), "turned"], ["both"], axis=0, name="join"))
    pair("both", both)
    stored.append(numpy_helper.from_array(np.array([4]), "shape"))
    ports = [helper.make_tensor_value_info(name, TensorProto.FLOAT, [4]) for name in ("x", "boxes")]
    out = [helper.make_tensor_value_info("both.f", TensorProto.FLOAT, [8])]
    graph = helper.make_graph(nodes, "g", ports, out, stored)
    return helper.make_model(graph, opset_imports=[helper.make_opsetid("", 21)])


def grid(high: float, bits: int = 8) -> Grid:
    return Grid(np.float32(high / (2**bits - 1)), np.int32(0), Scheme(bits))


@pytest.mark.parametrize(
    ("scores", "sigmoid", "bits", "left"),
    [
        (1.0, False, 8, 1),  # its own grid says that it is narrow
        (20.0, False, 8, 9),
        (640.0, True, 8, 1),  # its grid is as wide as the boxes', but a Sigmoid's values are not
        (60.0, False, 8, None),  # 25 codes are some
        (1.0, True, 16, None),  # at 16 bits the narrow one keeps enough
    ],
)
def test_a_concat_may_starve_its_narrow_input(
    scores: float, sigmoid: bool, bits: int, left: int | None, tmp_path: Path
) -> None:
    proto = joined(grid(scores, bits), grid(640.0, bits), grid(640.0, bits), sigmoid=sigmoid)
    onnx.save(proto, tmp_path / "m.onnx")
    found = inspect(tmp_path / "m.onnx").suspicious
    if left is None:
        assert found == {}
    else:
        assert (
            f"'turned' (0 to {min(scores, 1.0 if sigmoid else scores):.4g}) keeps {left} of 256 codes" in found["join"]
        )


def test_inspections_go_into_a_page(tmp_path: Path) -> None:
    qdq.save(qdq.to_qdq(network(), replace_one(grids())), tmp_path / "a.onnx")
    done = spawn("inspect", tmp_path / "a.onnx", "--html", tmp_path / "p.html")
    assert done.returncode == 0 and "suspicious" in done.stdout
    page = (tmp_path / "p.html").read_text()
    assert "Suspicious grids: 1" in page and "dead: 1 of 1 scales" in page and "Operators in float" in page


def replace_one(some: dict[str, Grid]) -> dict[str, Grid]:
    return some | {"g": replace(some["g"], scale=F32.type(1e-12))}
