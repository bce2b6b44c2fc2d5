"""Sweeps on rendered scenes, the shipped ones, and the commands that look at cells and mix precisions."""

from __future__ import annotations

import csv
import subprocess
import sys
from dataclasses import replace

import numpy as np
import onnx
import pytest
import tomli_w

from data_samples import refused
from leadline.cache import Cache
from leadline.depth import scenes
from leadline.graph import Graph
from leadline.recipe import Recipe
from leadline.sweep import Sweep, run
from leadline.sweep.cell import grid
from leadline.sweep.measure import frames, preprocessing, quantize_cell
from leadline.sweep.spec import Data
from small_networks import SHAPE, conv_relu_conv, residual
from small_sweeps import Inline, small


@pytest.mark.parametrize("name", Sweep.names())
def test_shipped_sweeps_consist_of_cells_that_can_be(name):
    sweep = Sweep.load(name)
    cells = list(grid(sweep))
    assert sweep.name == name and sweep.description
    assert len({cell.key for cell in cells}) > 3
    assert all(cell.values[key] is not None for cell in cells for key in sweep.varied if key.startswith("data."))


def test_scenes_are_rooms_streets_or_both():
    seeds = {
        kind: [label.removeprefix("place-")[:-3] for label, _ in frames(Data(scenes=kind, first=11, count=2))]
        for kind in ("rooms", "streets", "both")
    }
    assert seeds == {"rooms": ["12", "14"], "streets": ["11", "13"], "both": ["11", "12"]}
    plain = frames(Data(scenes="rooms", first=12, count=1, views=2))
    assert [label for label, _ in plain] == ["place-12[0]", "place-12[1]"]
    assert np.array_equal(plain[1][1].rgb, scenes.views(12, 2)[1].rgb)
    video = frames(Data(scenes="streets", first=12, count=2, video=True))
    assert np.array_equal(video[1][1].depth, scenes.clip(13, 2)[1].depth)


def test_scenes_have_the_size_that_a_network_wants(tmp_path):
    """A shipped sweep on another network, whose input is not as large as the shipped ones'."""
    onnx.save(conv_relu_conv(), tmp_path / "net.onnx")
    (tmp_path / "sweep.toml").write_text("""
        extends = "rotation"
        networks = ["net.onnx"]
        recipes = ["minmax-w8a8"]
        vary = [{"activations.bits" = [8]}]
        metrics = ["sqnr", "seconds"]
        tables = []
        evaluation = [{ scenes = "both", count = 2 }]
        data.count = 2
        data.preprocess = { mean = 0.5 }
    """)
    sweep = Sweep.load(tmp_path / "sweep.toml")
    assert (sweep.name, sweep.data.scenes, sweep.data.first) == ("sweep", "both", 200000)
    (cell,) = grid(sweep)
    assert preprocessing(cell, sweep.data).mean == 0.5
    assert [frame.rgb.shape for _, frame in frames(sweep.data, (12, 16))] == [(12, 16, 3)] * 2
    graph, quantized = quantize_cell(cell)
    assert graph.inputs[0].shape == SHAPE and quantized.grids


def test_disturbed_pictures():
    frame = scenes.views(12)[0]
    dark, noisy, blurred = (
        scenes.disturbed(frame, **{key: v}) for key, v in (("darkness", 0.75), ("noise", 0.1), ("blur", 2))
    )
    assert np.abs(dark.rgb - np.rint(frame.rgb * 0.25)).max() == 0
    middle = (frame.rgb > 100) & (frame.rgb < 150)
    assert np.std(noisy.rgb[middle].astype(float) - frame.rgb[middle]) == pytest.approx(25.5, rel=0.1)
    assert (
        np.abs(np.diff(blurred.rgb.astype(float), axis=1)).mean()
        < np.abs(np.diff(frame.rgb.astype(float), axis=1)).mean()
    )
    assert all(one.depth is frame.depth for one in (dark, noisy, blurred))
    assert np.array_equal(scenes.disturbed(frame).rgb, frame.rgb)
    assert np.array_equal(scenes.disturbed(frame, noise=0.1).rgb, noisy.rgb)
    with refused("[disturbed] darkness must lie from 0 to 1", "1.5"):
        scenes.disturbed(frame, darkness=1.5)


@pytest.mark.slow
def test_a_depth_network_on_two_kinds_of_places(tmp_path):
    judged = [{"name": n, "scenes": n, "first": 310_000, "count": 2} for n in ("rooms", "streets")]
    document = {
        "networks": ["tinydepth-conv"], "recipes": ["minmax-w8a8"], "metrics": ["delta1", "pearson", "sqnr", "size"],
        "data": {"scenes": "rooms", "first": 200_000, "count": 4}, "evaluation": judged,
        "vary": {"data.scenes": ["rooms", "streets"]},
        "search": {"objectives": ["rooms.sqnr", "streets.sqnr"]},
    }  # fmt: skip
    file = tmp_path / "places.toml"
    file.write_text(tomli_w.dumps(document))
    results = run(file, tmp_path / "out", engine=Inline(Cache(tmp_path / "shared")))
    names, rows = results.table()
    assert names == [
        "data.scenes",
        *(f"{n}.{m}" for m in ("delta1", "pearson", "sqnr") for n in ("rooms", "streets")),
        "size",
    ]
    assert [row[0] for row in rows] == ["float", "rooms", "streets"] and rows[0][1] and not rows[0][-1]
    for row in results.complete:
        assert row.figures["rooms.sqnr"] > 20 and 0.9 < row.figures["rooms.pearson"] <= 1
        assert abs(row.figures["rooms.delta1"] - row.figures["float.rooms.delta1"]) < 0.1
    assert results.complete[0].figures["float.rooms.delta1"] == results.complete[1].figures["float.rooms.delta1"]
    from leadline.sweep import versus

    versus.write(results, 0, 1, tmp_path, threads=1, cache=Cache(tmp_path / "shared"))
    text = (tmp_path / "compare-0-1.html").read_text("utf-8")
    assert "data.scenes" in text and "tensors that differ most" in text and "vegaEmbed" in text
    with refused("[sweep] a cell must be one of the finished ones, 0, 1", "7"):
        versus.write(results, 0, 7, tmp_path)


def test_calibration_data_is_chosen_as_quantize_does(tmp_path):
    sweep = small(tmp_path, data={"source": "seen.npy", "num_samples": 5, "choice": "brightness", "seed": 2}, vary=None)
    (cell,) = grid(Sweep.load(sweep))
    _, quantized = quantize_cell(cell, threads=1)
    assert quantized.calibrated + len(quantized.held_out) == 5
    more = replace(cell, data=replace(cell.data, num_samples=0, choice="random"))
    assert quantize_cell(more, threads=1)[1].calibrated == 6


def test_a_damping_of_ones_own():
    from small_networks import quantized

    plan = Recipe.load("w4a8")
    steps = tuple(replace(s, method="descent", damping=0.25) if s.step == "round" else s for s in plan.steps)
    log = quantized(residual(), plan.changed(steps=steps)).log
    notes = [record.note for record in log if "damped" in record.note]
    assert notes and all("damped 0.25" in note for note in notes)
    with refused("[Recipe] round: damping must lie from 0 to 100", "-1"):
        replace(steps[0] if steps[0].step == "round" else next(s for s in steps if s.step == "round"), damping=-1)


def spawn(*arguments):
    command = [sys.executable, "-m", "leadline.cli", "sweep", *map(str, arguments)]
    return subprocess.run(command, capture_output=True, text=True, timeout=180)


def test_mixing_from_the_command_line(tmp_path):
    small(tmp_path)
    given = [
        "mix",
        tmp_path / "residual.onnx",
        "--data",
        tmp_path / "seen.npy",
        "--out",
        tmp_path / "out",
        "--threads",
        1,
    ]
    done = spawn(*given, "--size", 0.6)
    assert done.returncode == 0, done.stderr
    assert "dB predicted" in done.stdout
    recipe = Recipe.load(tmp_path / "out" / "mixed.toml")
    widths = {recipe.weight_scheme(layer.name).bits for layer in Graph.load(tmp_path / "residual.onnx").layers()}
    assert widths == {4, 8}
    with (tmp_path / "out" / "sensitivity.csv").open() as file:
        assert {row["kind"] for row in csv.DictReader(file)} == {"weights", "activations"}
    for flags, message in ((["--size", 0.5, "--sqnr", 20], "there must be a budget"), ([], "there must be a budget"),
                           (["--size", 0.5, "--weights", "4,x"], "--weights must be whole numbers")):  # fmt: skip
        wrong = spawn(*given, *flags)
        assert wrong.returncode == 2 and message in wrong.stderr and "Traceback" not in wrong.stderr


def test_the_list_of_shipped_sweeps():
    done = spawn("list")
    assert done.returncode == 0 and all(name in done.stdout for name in Sweep.names())
