"""A comparison's report as its reader sees it: the page in a real browser, wide and on a phone."""

from __future__ import annotations

import io
import json
import re
import shutil
import subprocess
from dataclasses import replace

import numpy as np
import pytest
from PIL import Image
from rich.console import Console

from leadline import report
from leadline.comparison import compare_recipes
from leadline.data import Preprocess
from leadline.depth import networks, scenes
from leadline.evaluation import Footage
from leadline.recipe import WEIGHTS, Recipe, Round
from test_report import Page

CHROMIUM = next(filter(None, map(shutil.which, ("chromium", "chromium-browser", "google-chrome", "chrome"))), None)
MINMAX = Recipe.load("minmax-w8a8")
STEPS = tuple(Round("descent") if isinstance(step, Round) else step for step in MINMAX.steps)
CHOSEN = replace(MINMAX, name="descent-w4a8", weights=replace(WEIGHTS, bits=4), steps=STEPS)
RECIPES = ["minmax-w8a8", "weight-only-int8", CHOSEN.name]
# Charts answer to clicks on their details; the page is measured after all of them are open.
PROBE = """<script>
window.onerror = (message) => document.body.setAttribute("data-error", message);
document.querySelectorAll("details").forEach((one) => { one.open = true; });
setTimeout(() => {
  document.body.setAttribute("data-charts", document.querySelectorAll(".chart svg").length);
  document.body.setAttribute("data-wide", document.documentElement.scrollWidth - window.innerWidth);
}, 4000);
</script></body>"""


@pytest.fixture(scope="module")
def made(tmp_path_factory):
    folder = tmp_path_factory.mktemp("compared")
    frames = [scenes.views(seed)[0] for seed in range(600_000, 600_008)]
    footage = [Footage(frames[:3]), Footage(scenes.clip(600_001, 4), video=True)]
    preprocess = Preprocess(**networks.PREPROCESS)
    done = compare_recipes(
        networks.path("tinydepth-conv"), [*RECIPES[:2], CHOSEN], frames[3:], footage, folder, preprocess=preprocess
    )
    document = report.compared(done)
    report.write_compared(document, done, folder)
    return folder, document, done


def test_the_json_holds_each_recipe_on_each_footage(made):
    folder, document, done = made
    assert json.loads((folder / "report.json").read_text()) == json.loads(json.dumps(document, allow_nan=False))
    assert [run["recipe"]["name"] for run in document["runs"]] == RECIPES
    assert [f["video"] for f in document["depth"]["footage"]] == [False, True]
    for run, own in zip(document["runs"], done.runs, strict=True):
        assert run["depth"][0]["scores"]["abs_rel"] == own.judgements[0].scores.abs_rel
        assert len(run["depth"][1]["temporal"]["flicker"]) == 3
        assert run["files"]["model.qdq.onnx"] == (folder / own.name / "model.qdq.onnx").stat().st_size
        assert run["collapse"] == []


def test_the_page_shows_maps_errors_and_film(made):
    page = Page((made[0] / "report.html").read_text("utf-8"))
    assert all(link.startswith("data:") for link in page.links)
    assert {"Recipes", "Depth maps", "Video"} <= set(page.headings)
    stills, networks_shown = 3, 1 + len(RECIPES)
    maps = stills * (2 + 2 * networks_shown) + 2 * (2 + networks_shown)
    dense = sum(3 * len(run.verification.pictures) for run in made[2].runs)
    assert len(page.images) == maps + dense
    # weight-only-int8 has no ranges to draw; descent-w4a8 shows what its codes gained
    assert len(page.charts) == 3 + 3 + 2 + 4
    (gained,) = [chart for chart in page.charts if "error left, %" in json.dumps(chart)]
    left = [row["error left, %"] for row in gained["data"]["values"]]
    assert len(left) > 20 and max(left) <= 100 and np.mean(left) < 90
    for recipe in RECIPES:
        assert recipe in page.text


def test_the_terminal_compares_recipes(made):
    console = Console(width=160, record=True, file=io.StringIO())
    report.show_compared(made[1], console)
    text = console.export_text()
    for word in ("3 pictures", "4 frames of video", "float", *RECIPES, "AbsRel", "flicker"):
        assert word in text


def test_a_collapsed_recipe_is_marked(made, tmp_path):
    document = json.loads(json.dumps(made[1]))
    document["runs"][0]["collapse"] = ["AbsRel 0.61 is above 0.4", "the first broken tensor is head1"]
    report.write_compared(document, made[2], tmp_path)
    assert "the first broken tensor is head1" in Page((tmp_path / "report.html").read_text("utf-8")).text


@pytest.mark.skipif(CHROMIUM is None, reason="needs Chromium")
@pytest.mark.parametrize(("width", "height"), [(1200, 900), (390, 844)])
def test_the_page_works_in_a_browser(made, tmp_path, width, height):
    """All charts are drawn, no script fails, and nothing is wider than the window."""
    page = tmp_path / "page.html"
    # The last of them: the charts' script holds the tag, too.
    page.write_text(PROBE.join((made[0] / "report.html").read_text("utf-8").rsplit("</body>", 1)), "utf-8")
    command = [
        CHROMIUM, "--headless", "--no-sandbox", "--disable-gpu", f"--user-data-dir={tmp_path / 'profile'}",
        f"--window-size={width},{height}", "--virtual-time-budget=12000",
    ]  # fmt: skip
    dump = subprocess.run([*command, "--dump-dom", page.as_uri()], capture_output=True, text=True, timeout=120).stdout
    body = re.search(r"<body([^>]*)>", dump)
    assert body, dump[:300]
    found = dict(re.findall(r'data-(\w+)="([^"]*)"', body[1]))
    assert "error" not in found
    assert int(found["charts"]) == len(Page((made[0] / "report.html").read_text("utf-8")).charts)
    assert int(found["wide"]) <= 0
    shot = tmp_path / "shot.png"
    subprocess.run([*command, f"--screenshot={shot}", page.as_uri()], capture_output=True, check=True, timeout=120)
    assert np.asarray(Image.open(shot).convert("L")).std() > 20
