"""Pages of inspections, comparisons and audits, as readers see them: sound, self-contained, no wider than a phone."""

from __future__ import annotations

import re
import subprocess
from pathlib import Path

import pytest

from leadline import report
from leadline.audit import Audit, Finding, Rewrite
from leadline.audit.findings import ordered
from leadline.export import qdq
from leadline.export.encodings import Encodings
from leadline.inspector import compare, inspect
from leadline.report.artefacts import render, write_page
from test_inspector import grids, network
from test_report import Page
from test_report_page import CHROMIUM

LONG = "backbone/encoder/" + "layer.0/attention/" * 6 + "query<b>weight</b>"
PROBE = """<script>
document.querySelectorAll("details").forEach((one) => { one.open = true; });
document.body.setAttribute("data-wide", document.documentElement.scrollWidth - window.innerWidth);
</script></body>"""


def pages(folder: Path) -> list[Path]:
    """One of each kind, with names that are long and names that look like markup."""
    some = grids()
    qdq.save(qdq.to_qdq(network(), some), folder / "a.onnx")
    Encodings.from_grids(network(), {name: some[name] for name in ("x", "conv.w")}).write(
        folder / "b.encodings", "1.0.0"
    )
    report.write_inspection(inspect(folder / "a.onnx"), folder / "inspection.html")
    report.write_difference(compare(folder / "a.onnx", folder / "b.encodings"), folder / "difference.html")
    findings = [
        Finding("Erf", "unsupported", (LONG,) * 20, 1, "Operators of type `Erf` are <i>not</i> supported"),
        Finding("GlobalAveragePool", "float", ("g",), 1, "no static int8", asked=False),
        Finding("Conv", "rewrite", ("c",), 1, "8-bit weights"),
        Finding("Relu", "supported", ("r",), 1),
    ]
    rewrites = (
        Rewrite({"Erf": 12, "Mul": 24, "Constant": 430, "Unsqueeze": 109}, {"Gelu": 12}, "recognised by value"),
    )
    found = Audit(LONG, "hexagon", "asked", 99, 23, rewrites, ordered(findings))
    report.write_audit(found, folder / "audit.html")
    return [folder / f"{name}.html" for name in ("inspection", "difference", "audit")]


def test_pages_need_nothing_else_and_hold_what_was_found(tmp_path: Path) -> None:
    inspection, difference, audited = (Page(page.read_text("utf-8")) for page in pages(tmp_path))
    for page in (inspection, difference, audited):
        assert page.links == [] and page.images == []
    assert {"Grids", "Operators in float", "Tensors in float: 2", "The file"} <= set(inspection.headings)
    for word in ("a.onnx", "9 / 11", "activation uint8 per tensor", "float32 1x4x8x8", "gain"):
        assert word in inspection.text
    assert "With a grid in a.onnx only: 7" in difference.headings and "int32 per channel" in difference.text
    for word in ("not all taken", "unsupported", LONG, "(from a list)", "become Gelu 12", "are <i>not</i> supported"):
        assert word in audited.text


@pytest.mark.skipif(CHROMIUM is None, reason="needs Chromium")
@pytest.mark.parametrize("width", [390, 1100])
def test_nothing_is_wider_than_the_window(tmp_path: Path, width: int) -> None:
    for page in pages(tmp_path):
        page.write_text(page.read_text("utf-8").replace("</body>", PROBE), "utf-8")
        command = [
            CHROMIUM, "--headless", "--no-sandbox", "--disable-gpu", f"--user-data-dir={tmp_path / 'profile'}",
            f"--window-size={width},900", "--dump-dom", page.as_uri(),
        ]  # fmt: skip
        dump = subprocess.run(command, capture_output=True, text=True, timeout=120).stdout
        found = re.search(r'<body data-wide="(-?\d+)"', dump)
        assert found, dump[:300]
        assert int(found[1]) <= 0, page.name


def test_a_page_that_cannot_be_drawn_leaves_a_warning_and_its_traceback(tmp_path: Path) -> None:
    """What a template does not get is an error, and no page of an earlier run stands for this one's."""
    folder = tmp_path / "new"
    incomplete = {"file": "a", "target": "b"}
    for before in (False, True):
        if before:
            (folder / "page.html").write_text("before")
        with pytest.warns(UserWarning, match=r"page.html' could not be drawn \(UndefinedError.*report-error.txt"):
            assert not write_page(folder / "page.html", lambda: render("audit.html", words={}, audit=incomplete))
        assert [file.name for file in folder.iterdir()] == ["report-error.txt"]
        assert "Traceback" in (folder / "report-error.txt").read_text("utf-8")
    assert write_page(folder / "page.html", lambda: "whole")
    assert [file.name for file in folder.iterdir()] == ["page.html"]
