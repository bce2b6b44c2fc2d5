"""The report: what the JSON holds, and that the page stands alone."""

from __future__ import annotations

import base64
import io
import json
import re
from html.parser import HTMLParser

import numpy as np
import onnx
import pytest
from PIL import Image
from rich.console import Console

import leadline
from data_samples import picture
from leadline import report
from leadline.inspector import inspect
from leadline.report.pictures import coloured, triptych
from leadline.verification import Dense, verify
from small_networks import conv_relu_conv, gemm_relu_gemm, graph, quantized, residual, samples

VOID = {"meta", "link", "br", "img", "hr", "input", "col"}


class Page(HTMLParser):
    """Checks nesting and keeps what the tests ask for."""

    def __init__(self, text):
        super().__init__()
        self.open, self.links, self.images, self.words, self.headings, self.charts = [], [], [], [], [], []
        self.feed(text)
        self.close()
        assert self.open == []

    def handle_starttag(self, tag, attributes):
        if tag not in VOID:
            self.open.append(tag)
        given = dict(attributes)
        self.links += [given[key] for key in ("href", "src", "srcset", "action", "data") if given.get(key)]
        if tag == "img":
            assert given.get("alt")
            self.images.append(given["src"])
        if tag == "script":
            assert "src" not in given
            self.chart = given.get("type") == "application/json"

    def handle_endtag(self, tag):
        assert self.open.pop() == tag

    def handle_data(self, text):
        if self.open and self.open[-1] == "script":
            if self.chart:
                self.charts.append(json.loads(text))
            return
        self.words.append(text)
        if self.open and self.open[-1] in ("h1", "h2"):
            self.headings.append(text)

    @property
    def text(self):
        return " ".join(" ".join(self.words).split())


def made(q, folder, name="net.onnx"):
    q.save(folder)
    verification = q.verify(threads=1)
    document = report.document(name, q, verification, folder, 1.25)
    report.write(document, verification.pictures, folder, q)
    return document, verification


@pytest.fixture(scope="module")
def dense(tmp_path_factory):
    """A dense network calibrated with pictures, one of them unreadable."""
    folder = tmp_path_factory.mktemp("dense")
    for i in range(8):
        picture(folder / "pictures" / f"{i}.png", i)
    (folder / "pictures" / "broken.png").write_bytes(b"nothing")
    q = quantized(conv_relu_conv(), "w8a8", folder / "pictures")
    return q, folder / "out", *made(q, folder / "out", folder / "deep" / "net<b>.onnx")


def test_the_json_holds_everything_that_was_measured(dense):
    q, folder, document, verification = dense
    assert json.loads((folder / "report.json").read_text()) == json.loads(json.dumps(document))
    assert document["leadline"] == leadline.__version__
    assert document["network"]["inputs"] == {"x": [1, 3, 12, 12]}
    assert document["network"]["outputs"] == {"y": [1, 4, 12, 12]}
    assert document["network"]["parameters"] == 8 * 27 + 8 + 4 * 72 + 4
    (score,) = document["verification"]["outputs"]
    assert score["name"] == "y" and score["sqnr"] == verification.outputs[0].sqnr
    assert {"worst", "largest", "device", "agreement"} <= set(score)
    worst = [tensor["sqnr"] for tensor in document["verification"]["tensors"]]
    assert worst == sorted(worst) and len(worst) >= 2
    assert document["verification"]["samples"] == len(q.held_out) == 2
    assert document["data"]["calibration"] == 6
    ((skipped, reason),) = document["data"]["skipped"]
    assert skipped.endswith("broken.png") and reason
    assert document["files"]["model.qdq.onnx"] == (folder / "model.qdq.onnx").stat().st_size
    assert document["files"]["model.fp32.onnx"] == (folder / "model.fp32.onnx").stat().st_size
    coverage = inspect(folder / "model.qdq.onnx")
    for key in ("tensors", "quantized", "saving"):
        assert document["coverage"][key] == getattr(coverage, key)
    assert document["recipe"]["toml"] == q.recipe.to_toml()
    assert {step["step"] for step in document["steps"]} >= {"equalize", "correct-bias"}
    assert len(document["steps"]) == len(q.log)
    assert document["seconds"] == pytest.approx(1.25, abs=0.1)


def test_the_json_is_plain_and_has_no_nan(dense):
    json.dumps(dense[2], allow_nan=False)


def test_the_page_stands_alone(dense):
    text = (dense[1] / "report.html").read_text("utf-8")
    page = Page(text)
    assert all(link.startswith(("data:", "#")) for link in page.links)
    style = text[: text.index("<body>")]
    assert "@import" not in style and not re.search(r"url\((?!['\"]?data:)", style)


def test_the_page_says_what_the_json_says(dense):
    document, page = dense[2], Page((dense[1] / "report.html").read_text("utf-8"))
    assert "w8a8" in page.text and "y" in page.text and leadline.__version__ in page.text
    assert f"{document['verification']['outputs'][0]['sqnr']:.1f}" in page.text
    assert document["verification"]["tensors"][0]["name"] in page.text
    assert "broken.png" in page.text
    assert {"Outputs", "Worst tensors", "Coverage"} <= set(page.headings)


def test_every_tensor_range_and_weight_has_its_place_in_the_charts(dense):
    document, page = dense[2], Page((dense[1] / "report.html").read_text("utf-8"))
    layers, ranges, weights = page.charts
    names = {row["tensor"] for row in layers["data"]["values"]}
    assert names == {tensor["name"] for tensor in document["verification"]["tensors"]}
    (menu,) = ranges["params"]
    assert set(menu["bind"]["options"]) == {row["name"] for row in document["ranges"]}
    assert menu["value"] in menu["bind"]["options"]
    assert [row["weight"] for row in weights["data"]["values"]] == [row["name"] for row in document["rounding"]]


def test_ranges_say_what_was_seen_chosen_and_clipped(dense):
    q, document = dense[0], dense[2]
    assert {row["name"] for row in document["ranges"]} == set(q.histograms) & set(q.grids)
    for row in document["ranges"]:
        assert row["seen"] == [float(q.histograms[row["name"]].lo), float(q.histograms[row["name"]].hi)]
        assert row["chosen"] == [float(q.grids[row["name"]].lo), float(q.grids[row["name"]].hi)]
        covered = row["chosen"][0] <= row["seen"][0] and row["seen"][1] <= row["chosen"][1]
        assert row["clipped"] < 1e-3 if covered else 0 <= row["clipped"] < 0.2


def test_rounding_is_counted(dense):
    q, document = dense[0], dense[2]
    rows = {row["name"]: row for row in document["rounding"]}
    assert set(rows) == {name for name in q.codes if q.grids[name].scheme.bits <= 16} and rows
    for name, row in rows.items():
        codes, grid = q.codes[name], q.grids[name]
        scheme = grid.scheme
        assert row["used"] == len(np.unique(codes)) / (scheme.qmax - scheme.qmin + 1)
        assert row["not_nearest"] == 0 and 0 <= row["at_ends"] <= 1 and row["sqnr"] > 20


def test_without_the_extra_the_page_says_how_to_get_charts(dense, tmp_path, monkeypatch):
    monkeypatch.setattr(report.charts, "available", lambda: False)
    report.write(dense[2], dense[3].pictures, tmp_path, dense[0])
    page = Page((tmp_path / "report.html").read_text("utf-8"))
    assert page.charts == [] and "pip install 'leadline[report]'" in page.text


def test_names_are_escaped_in_the_page(dense):
    assert "net<b>.onnx" not in (dense[1] / "report.html").read_text("utf-8")
    assert "net<b>.onnx" in Page((dense[1] / "report.html").read_text("utf-8")).text


def test_no_path_of_this_machine_is_in_the_page(dense):
    assert str(dense[1].parent / "deep") not in (dense[1] / "report.html").read_text("utf-8")
    assert str(dense[1].parent / "deep") not in (dense[1] / "report.json").read_text("utf-8")


def test_dense_outputs_are_shown_as_three_pictures_each(dense):
    page = Page((dense[1] / "report.html").read_text("utf-8"))
    assert len(page.images) == 3 * len(dense[3].pictures) == 6
    for uri in page.images:
        kind, _, content = uri.partition(",")
        assert kind == "data:image/png;base64"
        image = Image.open(io.BytesIO(base64.b64decode(content)))
        assert image.size == (12, 12) and image.mode == "RGB"


def test_a_classifier_s_report_has_no_pictures(tmp_path):
    document, verification = made(quantized(gemm_relu_gemm(), "minmax-w8a8"), tmp_path)
    page = Page((tmp_path / "report.html").read_text("utf-8"))
    assert verification.pictures == [] and page.images == []
    assert document["verification"]["outputs"][0]["name"] == "y"


@pytest.mark.parametrize("recipe", ["w8a16", "weight-only-int8", "int4-block128", "minmax-w8a8"])
def test_every_recipe_has_a_report(recipe, tmp_path):
    document, _ = made(quantized(residual(), recipe), tmp_path)
    Page((tmp_path / "report.html").read_text("utf-8"))
    json.dumps(document, allow_nan=False)


def test_a_verification_s_report(tmp_path):
    q = quantized(conv_relu_conv(), "minmax-w8a8")
    q.save(tmp_path)
    fp32, artefact = tmp_path / "model.fp32.onnx", tmp_path / "model.qdq.onnx"
    verification = verify(q.graph, artefact, q.held_out, threads=1)
    document = report.verified(fp32, q.graph, artefact, q.held_out, verification)
    report.write(document, verification.pictures, tmp_path)
    page = Page((tmp_path / "report.html").read_text("utf-8"))
    assert "model.fp32.onnx" in page.text and len(page.images) == 9
    assert json.loads((tmp_path / "report.json").read_text())["verification"]["samples"] == 3


def shown(draw):
    console = Console(width=200, record=True, file=io.StringIO())
    draw(console)
    return console.export_text()


def test_the_terminal_shows_outputs_worst_tensors_sizes_and_coverage(dense):
    text = shown(lambda console: report.show(dense[2], console))
    for word in ("SQNR", "worst", "y", "model.qdq.onnx", "broken.png", f"{dense[3].outputs[0].sqnr:.1f}"):
        assert word in text
    lines = [line.split() for line in text.splitlines()]
    assert ["y"] in [line[:1] for line in lines]
    coverage = dense[2]["coverage"]
    assert f"quantised: {coverage['parameters_quantized']} of {coverage['parameters']} parameters" in text


def test_the_terminal_shows_inspections(dense, tmp_path):
    onnx.save(conv_relu_conv(), str(tmp_path / "float.onnx"))
    for file in (dense[1] / "model.qdq.onnx", dense[1] / "model.encodings", tmp_path / "float.onnx"):
        assert file.name in shown(lambda console, file=file: report.show_inspection(inspect(file), console))


def test_names_in_brackets_are_no_markup(dense):
    """Tensor and file names may hold what rich takes for markup; they are shown as they are."""
    document = json.loads(json.dumps(dense[2]))
    document["verification"]["outputs"][0]["name"] = "head[bold]0[/bold]"
    document["verification"]["tensors"][0]["name"] = "layer[/red]"
    document["data"]["skipped"] = [["a[/b].png", "not [i] readable"]]
    text = shown(lambda console: report.show(document, console))
    for name in ("head[bold]0[/bold]", "layer[/red]", "a[/b].png", "not [i] readable"):
        assert name in text


def test_colours_run_from_low_to_high():
    plane = np.array([[0.0, 0.5, 1.0, -5.0, 5.0]])
    pixels = coloured(plane, 0, 1)
    assert pixels.shape == (1, 5, 3) and pixels.dtype == np.uint8
    light = pixels.astype(int).sum(2)[0]
    assert light[0] < light[1] < light[2]
    assert (pixels[0, 3] == pixels[0, 0]).all() and (pixels[0, 4] == pixels[0, 2]).all()


@pytest.mark.parametrize("shape", [(8, 8), (9, 700), (1000, 8)])
def test_constant_and_large_planes_have_pictures(shape):
    flat = np.full(shape, 3, np.float32)
    shot = triptych(Dense("y", "some/where/a.png", flat, flat))
    assert shot["sample"] == "a.png" and (shot["lo"], shot["hi"]) == (3, 3)
    for key in ("float", "artefact", "difference"):
        image = Image.open(io.BytesIO(base64.b64decode(shot[key].partition(",")[2])))
        assert max(image.size) <= 400 and len(image.getcolors()) == 1


def test_the_difference_is_signed():
    x = np.zeros((8, 8), np.float32)
    y = x.copy()
    y[0, 0], y[7, 7] = -1, 2
    shot = triptych(Dense("y", "s", x, y))
    assert shot["bound"] == 2
    pixels = np.asarray(Image.open(io.BytesIO(base64.b64decode(shot["difference"].partition(",")[2])))).astype(int)
    assert pixels[0, 0, 2] > pixels[0, 0, 0] and pixels[7, 7, 0] > pixels[7, 7, 2]  # blue below, red above
    assert np.ptp(pixels[3, 3]) < 10  # no difference is grey


def test_reports_of_graphs_without_names_of_files(tmp_path):
    network = graph(gemm_relu_gemm())
    q = quantized(network, "minmax-w8a8", samples(8, network.inputs[0].shape))
    document, _ = made(q, tmp_path, network.name)
    assert document["network"]["file"] == network.name
    assert all(re.fullmatch(r"sample \d+", label) for label in document["data"]["held_out"])
