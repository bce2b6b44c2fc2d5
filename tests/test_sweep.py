"""Sweeps: what the file may say, which cells there are, each computed once, failures recorded, results for papers."""

from __future__ import annotations

import json
import os
import subprocess
import sys

import numpy as np
import onnx
import pytest

import leadline
from data_samples import refused
from leadline.cache import Cache
from leadline.sweep import Sweep, page, run
from leadline.sweep import results as found
from leadline.sweep.cell import Cell, grid
from leadline.sweep.measure import quantize_cell
from leadline.sweep.outcome import Results, latex, markdown, tables, write
from leadline.sweep.store import Row, sqlite
from small_sweeps import VARY, Inline, figures, small


def cells(path):
    return list(grid(Sweep.load(path)))


@pytest.fixture(scope="module")
def finished(tmp_path_factory):
    """A sweep of four cells, its folder, and the engine that computed them."""
    folder = tmp_path_factory.mktemp("finished")
    pivot = {"rows": ["weights.bits"], "columns": ["steps.calibrate.activations"], "value": "sqnr"}
    sweep = small(folder, tables=[pivot])
    engine = Inline()
    return run(sweep, folder / "out", engine=engine), sweep, folder / "out", engine


# What the file may say


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"sampels": 3}, "small knows only the keys ... sampels"),
        ({"data": {"source": "seen.npy", "sample": 3}}, "small: data knows only the keys ... sample"),
        ({"evaluation": [{"source": "judged.npy", "choice": "random"}]}, "evaluation[0] knows only ... choice"),
        ({"search": {"method": "guess"}}, "search.method must be one of grid, random, bayesian ... guess"),
        ({"search": {"objectives": "sqnrr"}}, "a metric must be one of sqnr ... 'sqnrr'"),
        ({"metrics": ["psnr"]}, "a metric must be one of sqnr ... 'psnr'"),
        ({"search": {"method": "random", "objectives": ["sqnr"]}}, "a search needs ... budget.cells = 0"),
        ({"search": {"method": "grid", "objectives": ["sqnr"], "pruning": True}}, "pruning needs a search ... grid"),
        ({"budget": {"cells": 2.5}}, "small: budget.cells must be of type int ... 2.5"),
        ({"data": {"source": "none.npy"}}, "data.source must be a file or folder that exists ... none.npy"),
        ({"data": {"source": "seen.npy", "scenes": "rooms"}}, "data must name a source or scenes"),
        ({"data": {"scenes": "forests"}}, "data.scenes must be rooms, streets or both ... forests"),
        ({"networks": ["none.onnx"]}, "a network must be one of tinydepth ... none.onnx"),
        ({"extends": "rotations"}, "small: extends must be one of ... observers ... 'rotations'"),
        ({"networks": None}, "small must have the key networks"),
        ({"tables": [{"rows": ["weights.narrow"]}]}, "a table's keys must be among what varies ... weights.narrow"),
        ({"vary": [{"weights.bits": []}]}, "vary[0].weights.bits must have at least one value"),
        ({"vary": [{"weights.bits": {"low": 8, "high": 4}}]}, "low must not exceed high"),
        ({"vary": [{"weights.bits": {"low": 4, "high": 8, "steps": 1}}]}, "vary[0].weights.bits knows only ... steps"),
    ],
)
def test_a_mistake_in_the_file_is_named(tmp_path, changes, message):
    with refused("[Sweep.load]", *message.split(" ... ")):
        Sweep.load(small(tmp_path, **changes))


@pytest.mark.parametrize(
    ("vary", "message"),
    [
        ({"weights.bit": [4]}, "weights knows only the keys ... bit"),
        ({"steps.round.metod": ["gptq"]}, "(round) knows only the keys ... metod"),
        ({"steps.polish.percentile": [90.0]}, "recipe minmax-w8a8 must have one such entry; it has fold, calibrate"),
        ({"steps.round.method": ["magic"]}, "method must be one of nearest ... 'magic'"),
        ({"steps.calibrate": ["yes"]}, "steps.calibrate must be true or false ... 'yes'"),
        ({"data.sample": [4]}, "data knows only the keys ... 'data.sample'"),
        ({"data.num_samples": ["four"]}, "data.num_samples must be of type int ... 'four'"),
        ({"data.choice": ["best"]}, "data.choice must be one of random"),
        ({"wieghts.bits": [4]}, "knows only the keys ... 'wieghts'"),
        ({"weights.bits": {"low": 4, "high": 8}}, "a grid needs a step"),
    ],
)
def test_a_cell_that_cannot_be_is_named_before_anything_is_computed(tmp_path, vary, message):
    with refused(*message.split(" ... ")):
        run(small(tmp_path, vary=[vary]), tmp_path / "out", engine=Inline(most=0))


def test_a_file_that_is_no_toml(tmp_path):
    (tmp_path / "broken.toml").write_text("networks = [")
    with refused("[Sweep.load]", "broken must be valid TOML"):
        Sweep.load(tmp_path / "broken.toml")
    with refused("[Sweep.load]", "or a TOML file", "'nothing.toml'"):
        Sweep.load("nothing.toml")


# Which cells there are


def test_a_grid_is_the_product_of_what_varies(tmp_path):
    found = cells(small(tmp_path, networks=["conv.onnx", "residual.onnx"], recipes=["minmax-w8a8", "w8a8"]))
    assert len(found) == 2 * 2 * 2 * 2 and len({cell.key for cell in found}) == 16
    assert found[0].values == {
        "network": "conv", "recipe": "minmax-w8a8", "weights.bits": 4, "steps.calibrate.activations": "minmax"
    }  # fmt: skip


def test_several_tables_are_grids_of_their_own_and_show_what_the_others_vary(tmp_path):
    vary = [{"weights": {"bits": [4]}}, {"data.num_samples": [4, 6]}, {"steps.calibrate": {"percentile": 99.0}}]
    found = cells(small(tmp_path, vary=vary))
    keys = ("weights.bits", "data.num_samples", "steps.calibrate.percentile")
    shown = [tuple(cell.values[key] for key in keys) for cell in found]
    assert shown == [(4, 0, 99.999), (8, 4, 99.999), (8, 6, 99.999), (8, 0, 99.0)]


def test_steps_are_left_out_and_what_else_is_said_of_them_is_void(tmp_path):
    vary = [{"steps.equalize": [True, False], "steps.equalize.iterations": [1, 20], "recipe": "w8a8"}]
    found = cells(small(tmp_path, vary=vary))
    assert [any(step.step == "equalize" for step in cell.recipe.steps) for cell in found] == [True, True, False, False]
    assert [cell.values["steps.equalize.iterations"] for cell in found] == [1, 20, None, None]
    assert found[2].key == found[3].key and len({cell.key for cell in found}) == 3


def kept_apart(folder, network, places):
    """The network saved with each of its weights in the file that `places` gives it, or in the model."""
    model = onnx.load(network)
    for tensor in model.graph.initializer:
        if tensor.name in places:
            file = folder / places[tensor.name]
            start = file.stat().st_size if file.exists() else 0
            with file.open("ab") as stream:
                stream.write(tensor.raw_data)
            length = len(tensor.raw_data)
            tensor.ClearField("raw_data")
            tensor.data_location = onnx.TensorProto.EXTERNAL
            for key, value in (("location", places[tensor.name]), ("offset", start), ("length", length)):
                tensor.external_data.add(key=key, value=str(value))
    network.write_bytes(model.SerializeToString())


@pytest.mark.parametrize("named", ["conv.onnx.data", "weights.bin", "other name"])
def test_weights_count_whatever_file_holds_them(named, tmp_path):
    """Each of the files that the network names; what merely lies beside it does not."""
    sweep = small(tmp_path)
    file = tmp_path / "conv.onnx"
    weights = [tensor.name for tensor in onnx.load(file).graph.initializer if len(tensor.raw_data) > 64]
    assert len(weights) >= 2
    kept_apart(tmp_path, file, {weights[0]: named, weights[1]: "second"})
    seen = [(cells(sweep)[0].key, name(sweep))]
    for other in (named, "second"):
        values = bytearray((tmp_path / other).read_bytes())
        values[0] ^= 1
        (tmp_path / other).write_bytes(values)
        seen.append((cells(sweep)[0].key, name(sweep)))
    assert len(set(seen)) == len({key for key, _ in seen}) == len({study for _, study in seen}) == 3
    (tmp_path / "conv.onnx.old").write_bytes(b"not named")
    assert (cells(sweep)[0].key, name(sweep)) == seen[-1]


def test_external_files_are_found_wherever_an_onnx_file_names_them(tmp_path):
    from leadline.graph import external_files

    def tensor(location):
        made = onnx.TensorProto(name="t", dims=[1], data_type=onnx.TensorProto.FLOAT)
        made.data_location = onnx.TensorProto.EXTERNAL
        made.external_data.add(key="location", value=location)
        return made

    def constant(location):
        return onnx.helper.make_node("Constant", [], ["c"], value=tensor(location))

    body = onnx.helper.make_graph([constant("body")], "body", [], [], [tensor("of the body")])
    sparse = onnx.SparseTensorProto(values=tensor("values"), indices=tensor("indices"), dims=[2])
    branch = onnx.helper.make_node("If", ["x"], ["y"], then_branch=body, else_branch=body)
    graph = onnx.helper.make_graph([constant("constant"), branch], "g", [], [], [tensor("sub/w"), tensor("sub/w")])
    graph.sparse_initializer.append(sparse)
    opset = [onnx.helper.make_opsetid("", 21)]
    function = onnx.helper.make_function("own", "f", [], ["c"], [constant("function")], opset)
    model = onnx.helper.make_model(graph, functions=[function])
    (tmp_path / "net.onnx").write_bytes(model.SerializeToString())
    found = [str(file.relative_to(tmp_path)) for file in external_files(tmp_path / "net.onnx")]
    assert found == ["body", "constant", "function", "indices", "of the body", "sub/w", "values"]
    (tmp_path / "net.onnx").write_bytes(b"no network")
    assert external_files(tmp_path / "net.onnx") == []


def test_a_file_of_the_same_size_and_time_is_read_anew(tmp_path):
    from leadline.sweep.cell import content

    file = tmp_path / "seen.npy"
    file.write_bytes(b"before")
    state, one = file.stat(), content(file)
    file.write_bytes(b"behind")
    os.utime(file, ns=(state.st_atime_ns, state.st_mtime_ns))
    assert content(file) != one


@pytest.mark.parametrize("what", ["seen.npy", "judged.npy", "conv.onnx", "code"])
def test_nothing_old_is_resumed_where_data_network_or_code_have_changed(what, tmp_path, monkeypatch):
    sweep, out = small(tmp_path), tmp_path / "out"
    before = run(sweep, out, engine=Inline())
    if what == "code":
        for module in ("driver", "cell"):
            monkeypatch.setattr(f"leadline.sweep.{module}.environment", lambda: "another")
    elif what == "conv.onnx":
        model = onnx.load(tmp_path / what)
        weight = next(t for t in model.graph.initializer if len(t.raw_data) > 64)
        weight.raw_data = (np.frombuffer(weight.raw_data, np.float32) * np.float32(2)).tobytes()
        onnx.save(model, tmp_path / what)
    else:
        np.save(tmp_path / what, np.load(tmp_path / what)[::-1] * np.float32(1.5))
    engine = Inline()
    after = run(sweep, out, engine=engine, resume=True)
    assert len(engine.cells) == len(after.complete) == len(before.complete) == 4
    assert (figures(after) == figures(before)) == (what == "code")


def test_ranges_with_steps(tmp_path):
    vary = [
        {"weights.bits": {"low": 4, "high": 8, "step": 2}, "steps.calibrate.p": {"low": 1.5, "high": 2, "step": 0.5}}
    ]
    found = cells(small(tmp_path, vary=vary))
    values = [(cell.values["weights.bits"], cell.values["steps.calibrate.p"]) for cell in found]
    assert values == [(4, 1.5), (4, 2.0), (6, 1.5), (6, 2.0), (8, 1.5), (8, 2.0)]


def test_a_cell_is_known_by_content(tmp_path):
    """By what the files hold, not by where they lie or what the recipe is called."""
    one, other = cells(small(tmp_path / "a"))[0], cells(small(tmp_path / "b"))[0]
    assert one.network != other.network and one.key == other.key
    np.save(tmp_path / "b" / "seen.npy", np.load(tmp_path / "b" / "seen.npy") * np.float32(1.5))
    assert one.key != cells(tmp_path / "b" / "small.toml")[0].key


# What is computed


def test_every_cell_has_its_figures(finished):
    results, *_ = finished
    assert results.count() == {"complete": 4, "running": 0, "waiting": 0, "pruned": 0, "fail": 0}
    for row in results.rows:
        assert set(row.figures) == {"sqnr", "collapsed", "size", "seconds"}
    by_bits = {bits: [r.figures for r in results.rows if r.values["weights.bits"] == bits] for bits in (4, 8)}
    assert max(f["sqnr"] for f in by_bits[4]) < min(f["sqnr"] for f in by_bits[8])
    assert max(f["size"] for f in by_bits[4]) < min(f["size"] for f in by_bits[8])


def test_a_cell_is_what_quantize_gives(finished):
    from leadline.pipeline import quantize

    results, sweep, *_ = finished
    row = next(r for r in results.rows if r.values == {"weights.bits": 8, "steps.calibrate.activations": "minmax"})
    made = quantize(sweep.parent / "conv.onnx", "minmax-w8a8", sweep.parent / "seen.npy")
    assert row.figures["sqnr"] == pytest.approx(made.verify(sweep.parent / "judged.npy").outputs[0].sqnr, abs=1e-3)


def test_what_has_begun_goes_on_only_when_told_to(finished):
    _, sweep, out, _ = finished
    with refused("[sweep] a sweep that has begun goes on with --resume", "4 cells finished"):
        run(sweep, out, engine=Inline())


def test_finished_cells_are_never_computed_again(finished):
    results, sweep, out, _ = finished
    engine = Inline()
    assert figures(run(sweep, out, engine=engine, resume=True)) == figures(results)
    assert engine.cells == []


def test_a_larger_grid_computes_what_is_new(finished):
    """Another grid is another study of the same storage; cells are known by their content."""
    _, sweep, out, _ = finished
    text = sweep.read_text()
    larger = sweep.with_name("larger.toml")
    larger.write_text(text.replace('"mse"', '"mse",\n"sqnr"'))
    engine = Inline()
    results = run(larger, out, engine=engine)
    assert len(results.complete) == 6 and len(engine.cells) == 2


def test_identical_cells_are_computed_once(tmp_path):
    vary = [VARY, {"weights.bits": [8]}, {"weights.bits": [4, 8], "steps.calibrate.momentum": [0.01, 0.5]}]
    engine = Inline(slots=3)
    results = run(small(tmp_path, vary=vary), tmp_path / "out", engine=engine)
    keys = [cell.key for cell in engine.cells]
    assert len(keys) == len(set(keys)) == 6
    assert len(results.complete) == 4 + 2 and results.failed == []


def test_a_failing_cell_is_recorded_and_the_rest_go_on(tmp_path):
    sweep = small(
        tmp_path, vary=[{"overrides": [[], [{"pattern": "nothing*", "weights": "float"}]], "weights.bits": [4, 8]}]
    )
    results = run(sweep, tmp_path / "out", engine=Inline())
    assert len(results.complete) == 2 and len(results.failed) == 2
    for row in results.failed:
        assert "Traceback" in row.error and "override pattern must match" in row.error
    engine = Inline()
    run(sweep, tmp_path / "out", engine=engine, resume=True)
    assert engine.cells == []
    run(sweep, tmp_path / "out", engine=engine, resume=True, retry=True)
    assert len(engine.cells) == 2


def test_interrupted_and_resumed(tmp_path):
    sweep = small(tmp_path)
    for most, done in ((1, 1), (2, 3)):
        with pytest.raises(KeyboardInterrupt):
            run(sweep, tmp_path / "out", engine=Inline(most=most), resume=True)
        states = [row.state for row in found(sqlite(tmp_path / "out"), name(sweep)).rows]
        assert (states.count("complete"), states.count("waiting")) == (done, 4 - done)
    whole = run(sweep, tmp_path / "whole", engine=Inline())
    assert figures(run(sweep, tmp_path / "out", engine=Inline(), resume=True)) == figures(whole)


def name(sweep):
    from leadline.sweep.driver import study_name

    return study_name(Sweep.load(sweep))


def test_the_budget_is_kept(tmp_path):
    engine = Inline()
    results = run(small(tmp_path, budget={"cells": 3}), tmp_path / "out", engine=engine)
    assert len(engine.cells) == len(results.complete) == 3


def test_what_cells_share_is_computed_once_and_changes_nothing(tmp_path, monkeypatch):
    """Counted are passes of the float network over the calibration samples."""
    from leadline.steps import observe

    sweep = small(tmp_path, networks=["residual.onnx"])
    passes = []
    monkeypatch.setattr(observe, "observe", counting(observe.observe, passes))
    alone = run(sweep, tmp_path / "alone", engine=Inline())
    assert len(passes) == 4
    passes.clear()
    cache = Cache(tmp_path / "shared", least=0)
    shared = run(sweep, tmp_path / "together", engine=Inline(cache))
    assert len(passes) == 1
    assert figures(shared) == figures(alone) and len(figures(alone)) == 4
    assert cache.hits > 0


def counting(function, calls):
    def counted(*arguments):
        calls.append(arguments[1:])
        return function(*arguments)

    return counted


# Searches


@pytest.mark.parametrize("method", ["random", "bayesian"])
def test_searches_use_their_budget_and_no_cell_twice(tmp_path, method):
    vary = [{"weights.bits": {"low": 2, "high": 8}, "steps.calibrate.activations": ["minmax", "mse", "sqnr"]}]
    search = {"method": method, "objectives": ["sqnr", "size"], "seed": 3}
    sweep = small(tmp_path, vary=vary, search=search, budget={"cells": 7})
    engine = Inline(slots=2)
    results = run(sweep, tmp_path / "out", engine=engine)
    assert len({row.key for row in results.complete}) == 7 == len(engine.cells)
    assert all(2 <= row.values["weights.bits"] <= 8 for row in results.complete)
    again = Inline()
    run(sweep, tmp_path / "out", engine=again, resume=True)
    assert again.cells == []


def test_a_search_ends_when_nothing_is_left(tmp_path):
    search = {"method": "random", "objectives": ["sqnr"]}
    engine = Inline()
    results = run(small(tmp_path, search=search, budget={"cells": 50}), tmp_path / "out", engine=engine)
    assert len(engine.cells) == 4 and {row.key for row in results.complete} == {cell.key for cell in engine.cells}


def test_pruning_tries_fewer_samples_first(tmp_path):
    vary = [{"weights.bits": {"low": 2, "high": 8}, "steps.calibrate.p": {"low": 1.0, "high": 4.0}}]
    search = {"method": "random", "objectives": ["sqnr"], "pruning": True}
    data = {"source": "seen.npy", "num_samples": 8}
    engine = Inline()
    sweep = small(tmp_path, vary=vary, search=search, data=data, budget={"cells": 16})
    results = run(sweep, tmp_path / "out", engine=engine)
    counts = results.count()
    assert counts["pruned"] > 0 and counts["complete"] >= 4 and counts["pruned"] + counts["complete"] == 16
    assert {cell.data.num_samples for cell in engine.cells} == {2, 4, 8}
    assert len([cell for cell in engine.cells if cell.data.num_samples == 8]) == counts["complete"]


def test_inherited_tables_are_of_what_varies(tmp_path):
    (tmp_path / "mine.toml").write_text('extends = "observers"\nnetworks = ["tinydepth"]\n')
    sweep = Sweep.load(tmp_path / "mine.toml")
    assert [table.rows for table in sweep.tables] == [("steps.calibrate.activations",)] * 2


# Results


def test_tables(finished):
    results, *_ = finished
    (_, whole), (title, pivot) = tables(results)
    assert whole[0] == ["weights.bits", "calibrate.activations", "sqnr", "size", "seconds"] and len(whole[1]) == 4
    assert (title, pivot[0]) == ("sqnr", ["weights.bits", "activations minmax", "activations mse"])
    assert [row[0] for row in pivot[1]] == ["4", "8"]
    lines = markdown(pivot).splitlines()
    assert (
        lines[0] == "| weights.bits | activations minmax | activations mse |" and lines[1] == "| ---: | ---: | ---: |"
    )
    text = latex(pivot, "50% of_it")
    assert r"\begin{tabular}{rrr}" in text and r"\caption{50\% of\_it}" in text and r"\midrule" in text


def test_a_pivot_takes_the_mean_and_says_of_how_many(finished):
    results, *_ = finished
    _, rows = results.pivot(["weights.bits"], [], "sqnr")
    own = [row.figures["sqnr"] for row in results.complete if row.values["weights.bits"] == 4]
    assert rows[0] == ["4", f"{sum(own) / 2:.2f}"]
    with refused("[pivot]", "keys must be among", "'network'"):
        results.pivot(["network"], [], "sqnr")
    with refused("[pivot]", "a metric must be one that the cells have", "'ssim'"):
        results.pivot(["weights.bits"], [], "ssim")


def test_the_front_is_what_nothing_beats(finished):
    results, *_ = finished
    front = results.front()
    for row in results.complete:
        beaten = any(
            o.figures["sqnr"] >= row.figures["sqnr"]
            and o.figures["size"] <= row.figures["size"]
            and o.figures != row.figures
            and (o.figures["sqnr"], o.figures["size"]) != (row.figures["sqnr"], row.figures["size"])
            for o in results.complete
        )
        assert (row in front) != beaten
    assert results.best() in front


def test_cells_as_csv_and_parquet(finished, tmp_path):
    import csv

    import pyarrow.parquet as pq

    results, *_ = finished
    write(results, tmp_path)
    with (tmp_path / "cells.csv").open(encoding="utf-8") as file:
        rows = list(csv.DictReader(file))
    assert [float(row["sqnr"]) for row in rows] == [row.figures["sqnr"] for row in results.rows]
    table = pq.read_table(tmp_path / "cells.parquet")
    assert table.column("weights.bits").to_pylist() == [int(row["weights.bits"]) for row in rows]
    assert (tmp_path / "tables.md").read_text().startswith("## all cells\n\n| weights.bits |")


def test_the_page_and_its_charts(finished, tmp_path):
    results, *_ = finished
    page.write(results, tmp_path)
    text = (tmp_path / "report.html").read_text("utf-8")
    assert "vegaEmbed" in text and "activations minmax" in text and "4 complete" in text
    pictures = sorted(file.name for file in tmp_path.glob("*.png"))
    assert "front-size-sqnr.png" in pictures and "effect-sqnr.png" in pictures
    assert any(picture.startswith("interaction-sqnr-") for picture in pictures)
    shares = page.importances(results, "size")
    assert sum(shares.values()) == pytest.approx(1) and next(iter(shares)) == "weights.bits"


def ablation(*cells):
    """Results of cells given by the values of polish, percentile and damping, and an SQNR."""
    keys = ["polish", "polish.percentile", "damping"]
    about = {"name": "a", "description": "", "varied": keys, "columns": ["sqnr"], "objectives": ["sqnr"], "tables": []}
    rows = [
        Row(i, "complete", str(i), dict(zip(keys, values, strict=True)), {"sqnr": sqnr})
        for i, (*values, sqnr) in enumerate(cells)
    ]
    return Results("a", about, rows)


def test_effects_are_told_apart_in_an_ablation():
    """Damping varied only where the rest is good: its cells have the highest figures and it moves them least."""
    results = ablation(
        (False, None, 0.0, 10.0), (True, 90.0, 0.0, 16.0), (True, 99.0, 0.0, 18.0), (True, 95.0, 0.0, 20.0),
        (True, 95.0, 0.1, 20.5), (True, 95.0, 1.0, 19.5),
    )  # fmt: skip
    assert results.effects("sqnr") == {"polish": 8.0, "polish.percentile": 4.0, "damping": 1.0}
    drawn = page._parameters(results, "sqnr")
    assert [name for name in drawn if name.startswith("effect")] == ["effect-sqnr"]
    assert not any(name.startswith("interaction-sqnr-polish.percentile-damping") for name in drawn)


def test_drawn_cells_share_the_variance():
    rng = np.random.default_rng(0)
    draws = rng.uniform(0, 1, (24, 2))
    results = ablation(*((True, 90 + 9 * p, d, 3 * p + 0.1 * d) for p, d in draws))
    drawn = page._parameters(results, "sqnr")
    assert "importance-sqnr" in drawn and any(name.startswith("interaction") for name in drawn)


# As a user has it


def spawn(*arguments, **options):
    command = [sys.executable, "-m", "leadline.cli", "sweep", *map(str, arguments)]
    return subprocess.run(command, capture_output=True, text=True, timeout=180, **options)


def test_the_command_line(tmp_path):
    sweep, out = small(tmp_path), tmp_path / "out"
    done = spawn(sweep, "--out", out, "--workers", 2, "--json")
    assert done.returncode == 0, done.stderr
    document = json.loads(done.stdout)
    assert document["count"]["complete"] == 4 and document["planned"] == 4
    assert sorted(f.name for f in out.iterdir() if f.suffix in (".csv", ".parquet", ".md", ".tex", ".html")) == [
        "cells.csv", "cells.parquet", "report.html", "tables.md", "tables.tex"
    ]  # fmt: skip
    again = spawn(sweep, "--out", out)
    assert again.returncode == 2 and "error: [sweep] a sweep that has begun" in again.stderr
    assert "Traceback" not in again.stderr
    status = spawn("status", out)
    assert status.returncode == 0 and "4 complete, of 4" in status.stdout and "best" in status.stdout
    assert spawn("status", f"sqlite:///{out / 'sweep.db'}").stdout == status.stdout
    nowhere = spawn("status", tmp_path)
    assert nowhere.returncode == 2 and "a folder with sweep.db" in nowhere.stderr
    assert spawn("report", out, "--out", tmp_path / "again").returncode == 0
    assert (tmp_path / "again" / "cells.csv").read_text() == (out / "cells.csv").read_text()


def test_called_from_the_package(tmp_path):
    results = leadline.sweep.run(small(tmp_path, budget={"cells": 1}), tmp_path / "out", engine=Inline())
    assert len(results.complete) == 1 and "<table>" in results._repr_html_()


def test_one_sweep_at_a_time_in_a_folder(tmp_path):
    from leadline.sweep.driver import alone

    with alone(tmp_path / "out"), refused("[sweep] a folder has room for one sweep", "where one is running"):
        run(small(tmp_path), tmp_path / "out", engine=Inline())


def test_storages_that_cannot_be_opened(tmp_path):
    for url, message in (("nonsense", "SQLAlchemy opens"), ("sqlite:////nowhere/at/all/sweep.db", "SQLAlchemy opens")):
        with refused("[sweep] the storage must be one that", message.split()[0]):
            run(small(tmp_path), tmp_path / "out", storage=url, engine=Inline())
    with refused("[sweep] engine must be local or ray", "'dask'"):
        run(small(tmp_path), tmp_path / "out", engine="dask")


def test_targets_vary_as_recipes_do(tmp_path):
    """Grids are fitted to each target, and a recipe that one does not take is refused before any cell."""
    file = small(tmp_path, targets=["onnxruntime", "hexagon"], vary=None)
    cells = list(grid(Sweep.load(file)))
    assert [cell.target for cell in cells] == ["onnxruntime", "hexagon"] and len({cell.key for cell in cells}) == 2
    assert [cell.values["target"] for cell in cells] == ["onnxruntime", "hexagon"]
    assert [Cell.from_dict(cell.to_dict(), cell.values).target for cell in cells] == ["onnxruntime", "hexagon"]
    varied = small(tmp_path / "varied", vary=[{"target": ["onnxruntime", "litert"]}])
    assert [cell.target for cell in grid(Sweep.load(varied))] == ["onnxruntime", "litert"]
    assert len({quantize_cell(cell, threads=1)[1].target.name for cell in cells}) == 2
    with refused("Sweep.load", "'tpu'"):
        Sweep.load(small(tmp_path / "unknown", targets=["tpu"]))
    with refused("hexagon takes no float activations"):
        list(grid(Sweep.load(small(tmp_path / "unfit", targets=["hexagon"], recipes=["weight-only-int8"], vary=None))))
