"""A saved run comes back whole: networks, grids, codes, recipe, target and log; for every target that saves here."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import onnx
import pytest

import small_networks as small
import small_tflite
from leadline import Data, Graph, InputError, Quantized, quantize, verify
from leadline.quantized import files
from leadline.targets import TARGETS, target_for, target_of
from leadline.targets.hexagon.target import Hexagon
from leadline.targets.target import every_target
from test_graph_tail import feeds, network, nonzero

RECIPES = ["w8a8", "w4a8", "w8a16", "weight-only-int8", "int4-block128", "quantvggt-w4a4"]


def same_grids(one: Quantized, other: Quantized) -> None:
    assert one.grids.keys() == other.grids.keys() and one.codes.keys() == other.codes.keys()
    for name, grid in one.grids.items():
        assert grid.scheme == other.grids[name].scheme, name
        np.testing.assert_array_equal(grid.scale, other.grids[name].scale)
        np.testing.assert_array_equal(grid.zero_point, other.grids[name].zero_point)
    for name, codes in one.codes.items():
        np.testing.assert_array_equal(codes, other.codes[name])


@pytest.mark.parametrize("recipe", RECIPES)
def test_a_run_comes_back(recipe: str, tmp_path: Path) -> None:
    data = small.samples(8, small.SHAPE)
    run = quantize(Graph.from_model(small.residual()), recipe, data, threads=1)
    run.save(tmp_path)
    again = Quantized.load(tmp_path)
    same_grids(run, again)
    assert again.recipe == run.recipe and again.target == run.target and again.log == run.log
    assert again.calibrated == run.calibrated and not len(again.held_out)
    one, other = (q.verify(data, threads=1).outputs[0] for q in (run, again))
    assert one.sqnr == pytest.approx(other.sqnr, abs=1e-3)
    again.save(tmp_path / "again")
    assert (tmp_path / "again/model.qdq.onnx").read_bytes() == (tmp_path / "model.qdq.onnx").read_bytes()


def test_a_target_comes_back_with_its_options(tmp_path: Path) -> None:
    data, target = small.samples(8, small.SHAPE), Hexagon(arch=75)
    run = quantize(Graph.from_model(small.residual()), "w8a8", data, threads=1, target=_installed(target))
    run.save(tmp_path)
    again = Quantized.load(tmp_path)
    assert again.target == target and isinstance(again.target, Hexagon) and again.target.arch == 75
    same_grids(run, again)


def _installed(target: Hexagon) -> Hexagon:
    pytest.importorskip("onnxruntime_qnn", reason="the extra 'hexagon' is not installed")
    return target


def test_the_original_is_found_again_while_it_is_there(tmp_path: Path) -> None:
    source, data = tmp_path / "net.onnx", small.samples(8, small.SHAPE)
    onnx.save(small.residual(), str(source))
    quantize(source, "minmax-w8a8", data, threads=1).save(tmp_path / "run")
    assert Quantized.load(tmp_path / "run").verify(data, threads=1).judged_by == "'net.onnx'"
    source.unlink()
    assert Quantized.load(tmp_path / "run").verify(data, threads=1).outputs[0].sqnr > 15


def test_a_tail_comes_back(tmp_path: Path) -> None:
    samples = feeds(6)
    run = quantize(Graph.from_model(network(nonzero()), samples[0]), "minmax-w8a8", samples, threads=1)
    run.save(tmp_path)
    again = Quantized.load(tmp_path)
    same_grids(run, again)
    assert again.graph.tail is not None
    assert again.verify(samples, threads=1).final == run.verify(samples, threads=1).final


@pytest.mark.parametrize("damage", ["missing", "empty", "text", "list", "recipe", "target", "option", "log"])
def test_a_damaged_run_is_refused_in_one_sentence(damage: str, tmp_path: Path) -> None:
    quantize(Graph.from_model(small.residual()), "minmax-w8a8", small.samples(4, small.SHAPE), threads=1).save(tmp_path)
    file = tmp_path / "run.json"
    record = json.loads(file.read_text("utf-8"))
    match damage:
        case "missing":
            file.unlink()
        case "empty" | "text" | "list":
            file.write_text({"empty": "", "text": "{half", "list": "[1, 2]"}[damage], "utf-8")
        case _:
            changed = {"recipe": "weights = 3", "target": {"name": "tpu", "options": {}}, "log": [{"what": 1}]}
            changed["option"] = {"name": "hexagon", "options": {"io": "int8"}}
            record["target" if damage == "option" else damage] = changed[damage]
            file.write_text(json.dumps(record), "utf-8")
    with pytest.raises(InputError) as caught:
        Quantized.load(tmp_path)
    assert "\n" not in str(caught.value)


def test_a_run_of_a_tflite_has_no_other_form(tmp_path: Path) -> None:
    pytest.importorskip("ai_edge_quantizer", reason="the extra 'tflite' is not installed")
    source = tmp_path / "net.tflite"
    source.write_bytes(small_tflite.decoder())
    data = np.random.default_rng(0).random((8, 16, 16, 3), np.float32)
    run = quantize(source, "w8a8", data, threads=1, target="litert")
    run.save(tmp_path / "run")
    assert sorted(file.name for file in (tmp_path / "run").iterdir()) == ["model.tflite", "run.json"]
    found = run.verify(threads=1)
    assert found.judged_by == "'net.tflite'" and found.target == "litert" and found.outputs[0].device > 20
    alone = verify(source, tmp_path / "run/model.tflite", data[:2], threads=1)
    assert alone.target == "litert" and alone.facts.size.bytes == (tmp_path / "run/model.tflite").stat().st_size
    with pytest.raises(InputError, match=r"must hold model\.fp32\.onnx, which a network that came as \.tflite has not"):
        Quantized.load(tmp_path / "run")
    with pytest.raises(InputError, match=r"features must be a function where no Graph is at hand"):
        quantize(source, "w8a8", Data(data, features="depth", num_samples=2, choice="farthest"), target="litert")
    for name, value in {"exclude": "depth", "engine": "ray"}.items():
        with pytest.raises(InputError, match=f"{name} needs the network as ONNX"):
            quantize(source, "w8a8", data, target="litert", **{name: value})


def test_every_target_keeps_the_contract() -> None:
    kinds = list(every_target())
    assert [kind.name for kind in kinds] == list(TARGETS)
    names = [one.name for kind in kinds for one in kind.options()]
    assert len(names) == len(set(names)), "flags of the command line"
    for kind in kinds:
        target = kind()
        assert kind.__doc__ and target.rules.name and target.file in files() and str(target) == kind.name
        assert target_of(target) is target and target_of(kind.name) == target and target.chosen == {}
        assert target_for(f"a{Path(kind.file).suffix}", kind.name) == target
        assert not target.opens(Path("net.onnx")) and target.audit_file(Path("net.onnx")) is None


def test_artefacts_find_their_targets() -> None:
    assert [str(target_for(name, None)) for name in ("a.onnx", "a.tflite", "a.pte", "a.bin")] == [
        "onnxruntime", "litert", "executorch", "onnxruntime",
    ]  # fmt: skip
    with pytest.raises(InputError, match=r"\[verify\] an artefact for litert must be a \.tflite file. Received a\.pte"):
        target_for("a.pte", "litert")
