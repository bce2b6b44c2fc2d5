"""The page in every state that a run can be in: it is drawn, sound, and says what the JSON says."""

from __future__ import annotations

import copy
import io
import json
from dataclasses import replace

import numpy as np
import pytest
from onnx import TensorProto
from rich.console import Console

from graph_models import FLOAT, model, node
from leadline import report
from leadline.comparison import Comparison, Run
from leadline.depth.scenes import Frame
from leadline.evaluation import Footage, judge
from leadline.files import to_json
from leadline.scores import TensorScore
from leadline.steps import Record
from leadline.sweep import page as sweep_page
from leadline.sweep.outcome import Results
from leadline.sweep.store import Row
from leadline.tail_scores import FinalScore
from leadline.targets.hexagon.emulator import Build
from leadline.targets.onnxruntime.device import Kernels
from leadline.verification import verify
from small_networks import SHAPE, conv_relu_conv, graph, quantized, samples
from test_report import Page

HOSTILE = [
    "<script>alert(1)</script>",
    "</script><!--",
    "'\"&<b>",
    "{{ 7 * 7 }}{% raw %}{# #}",
    "Größe/層.0",
    "blocks." * 900,
    "[/red][bold]",
    "not\udcffUTF-8",
    "%s %d {0}",
    " ",
]
NAN = np.float32(np.nan)


@pytest.fixture(scope="module")
def base(tmp_path_factory):
    """A plain run: its document, and what it was made of."""
    folder = tmp_path_factory.mktemp("base")
    q = quantized(conv_relu_conv(skew=False), "minmax-w8a8", samples(6))
    q.save(folder)
    verification = q.verify(threads=1)
    return q, verification, report.document("net.onnx", q, verification, folder, 1.5)


def page_of(folder, document, pictures=(), q=None):
    """Draw it, and read both files back."""
    assert report.write(document, pictures, folder, q)
    json.loads((folder / "report.json").read_text("utf-8"), parse_constant=pytest.fail)
    page = Page((folder / "report.html").read_text("utf-8"))
    assert "None" not in page.text.split() and "Undefined" not in page.text
    for chart in page.charts:
        to_json(chart)
    report.show(document, Console(width=120, file=io.StringIO()))
    return page


def twins(nodes, change=None, dtype=FLOAT, **weights):
    """A float network and what stands for its artefact: `change` is its last node."""
    both = [model(own, SHAPE, **weights) for own in (nodes, [*nodes[:-1], change or nodes[-1]])]
    for proto in both:
        proto.graph.output[0].type.tensor_type.elem_type = dtype
    return both


def shaped(*shape):
    return twins([node("Abs", "x", "a"), node("Reshape", "a s", "y")], s=np.array(shape))


ABS, RELU = node("Abs", "x", "a"), node("Relu", "x", "y")
OUTPUTS = {
    "rank 0": twins([ABS, node("ReduceMean", "a", "y", keepdims=0)]),
    "rank 1": shaped(432),
    "rank 2": shaped(1, 432),
    "rank 3": shaped(3, 12, 12),
    "rank 4": shaped(1, 3, 12, 12),
    "rank 5": shaped(1, 1, 3, 12, 12),
    "integers": twins([node("ArgMax", "x", "y", axis=1)], dtype=TensorProto.INT64),
    "bytes": twins([ABS, node("Cast", "a", "y", to=TensorProto.UINT8)], dtype=TensorProto.UINT8),
    "booleans": twins([ABS, node("Greater", "a o", "y")], dtype=TensorProto.BOOL, o=np.float32(0.5)),
    "NaN": twins([RELU], node("Sqrt", "x", "y")),
    "infinite": twins([node("Relu", "x", "a"), node("Relu", "a", "y")], node("Reciprocal", "a", "y")),
    "infinite in both": twins([node("Relu", "x", "a"), node("Log", "a", "y")]),
    "NaN in float": twins([ABS, node("Sqrt", "x", "y")], node("Sqrt", "a", "y")),
    "all NaN": twins([ABS, node("Neg", "a", "b"), node("Sub", "b o", "c"), node("Log", "c", "y")], o=np.float32(1)),
    "constant": twins([ABS, node("Clip", "a h h", "y")], h=np.float32(2)),
    "constant here": twins(
        [ABS, node("Clip", "a l", "y")], node("Clip", "a h h", "y"), l=np.float32(0), h=np.float32(2)
    ),
    "nearly nothing": twins([ABS, node("Mul", "a n", "y")], n=np.float32(1e-9)),
    "huge": twins([ABS, node("Mul", "a n", "y")], n=np.float32(3e37)),
}


@pytest.mark.parametrize("kind", OUTPUTS)
def test_every_kind_of_output(base, kind, tmp_path):
    reference, artefact = OUTPUTS[kind]
    verification = verify(graph(reference), artefact, samples(3), threads=1)
    document = base[2] | {"verification": verification.to_dict()}
    page = page_of(tmp_path, document, verification.pictures)
    assert verification.to_dict()["collapse"] == verification.collapse
    assert ("Collapsed:" in page.text) == bool(verification.collapse) == (kind in ("NaN", "infinite", "constant here"))
    assert bool(page.images) == bool(verification.pictures) == (kind not in ("rank 0", "rank 1", "rank 2"))
    assert verification.origin == ("y" if verification.collapse else None)
    page_of(tmp_path, base[2] | {"verification": verification.to_dict()}, [])


STATES = (
    "as it is", "moved tensors", "no tensors", "broken", "collapsed", "no outputs with grids", "many outputs",
    "kernels saturate", "hexagon took it", "hexagon refused it", "hexagon left some", "no encodings", "limits",
    "skipped files", "no steps", "steps without notes", "infinite ranges", "other files", "a tail in float",
    "hostile names",
)  # fmt: skip


def states(verification):
    """Changes to the plain run's document: (of the document, of the verification)."""
    score = verification.outputs[0]
    refused = Build(0, (), "the graph <b>cannot</b> be built")
    left = Build(3, (("Erf_<1>", "Erf"),), "")
    lost = replace(score, collapse=["constant, 0", "SQNR -3.4 dB"], sqnr=-3.4)
    endless = {"name": "x", "bits": 8, "seen": [-np.inf, np.inf], "chosen": [0, np.nan], "clipped": 0.0}
    tail = [FinalScore("boxes", 3, 2, 17.5), FinalScore("<n>", 3, 0, None)]
    weight = {"bits": 8, "size": 1, "sqnr": 9.0, "used": 0.5, "at_ends": 0.0, "not_nearest": 0.0}
    network = {"file": "".join(HOSTILE[:3]), "inputs": {n: [1] for n in HOSTILE}, "outputs": {}, "parameters": 0}
    hostile = [replace(score, name=name, collapse=[name]) for name in HOSTILE]
    records = [Record("round", name, name, 0.1, float("nan"), False).to_dict() for name in HOSTILE]
    return {
        "as it is": ({}, {}),
        "moved tensors": ({}, {"moved": ["a", "b"]}),
        "no tensors": ({}, {"tensors": []}),
        "broken": ({}, {"origin": "relu", "tensors": [TensorScore("t", "Conv", float("-inf"), float("nan"))]}),
        "collapsed": ({}, {"outputs": [lost], "origin": "first"}),
        "no outputs with grids": ({}, {"outputs": [replace(score, device=None)], "facts": Kernels(True, False)}),
        "many outputs": ({}, {"outputs": [replace(score, name=f"y{i}") for i in range(20)]}),
        "kernels saturate": ({}, {"facts": Kernels(True, True), "outputs": [replace(score, device=-10.0)]}),
        "hexagon took it": ({}, {"target": "hexagon", "facts": Build(4, (), "", 1.5)}),
        "hexagon refused it": ({}, {"target": "hexagon", "facts": refused, "outputs": [replace(score, device=None)]}),
        "hexagon left some": ({}, {"target": "hexagon", "facts": left, "outputs": [replace(score, device=None)]}),
        "no encodings": ({"encodings": None}, {}),
        "limits": ({"limits": ["a <grid> per token"] * 3}, {}),
        "skipped files": ({"data": {"held_out": [], "calibration": 0, "skipped": [["a.png", "broken"]]}}, {}),
        "no steps": ({"steps": [], "ranges": [], "rounding": []}, {}),
        "steps without notes": ({"steps": [Record("a", "b", kept=kept).to_dict() for kept in (True, False)]}, {}),
        "infinite ranges": ({"ranges": [endless]}, {}),
        "a tail in float": ({}, {"final": tail, "judged_by": "<net>"}),
        "other files": ({"files": {"a/net.onnx": 10, "b/net.onnx": 5}, "artefact": "b/net.onnx"}, {}),
        "hostile names": (
            {
                "network": network,
                "recipe": {"name": HOSTILE[0], "description": HOSTILE[3], "toml": HOSTILE[1]},
                "limits": HOSTILE, "steps": records,
                "data": {"held_out": HOSTILE, "calibration": 1, "skipped": [[n, n] for n in HOSTILE]},
                "rounding": [weight | {"name": name} for name in HOSTILE],
            },
            {
                "outputs": hostile, "moved": HOSTILE, "origin": HOSTILE[0], "facts": None,
                "tensors": [TensorScore(name, name, 1.0, 1.0) for name in HOSTILE],
            },
        ),
    }  # fmt: skip


@pytest.mark.parametrize("charts", [True, False], ids=["charts", "no extra"])
@pytest.mark.parametrize("state", STATES)
def test_every_state_of_a_run(base, state, charts, tmp_path, monkeypatch):
    q, verification, document = base
    known = states(verification)
    assert set(known) == set(STATES)
    of_document, of_verification = known[state]
    changed = replace(verification, **of_verification)
    document = copy.deepcopy(document) | of_document | {"verification": changed.to_dict()}
    if not charts:
        monkeypatch.setattr(report.charts, "available", lambda: False)
    page = page_of(tmp_path, document, verification.pictures, q if state == "as it is" else None)
    assert bool(page.charts) == charts
    said = {
        "moved tensors": "2 tensors hold something else",
        "collapsed": "Collapsed: y: constant, 0; SQNR -3.4 dB",
        "hexagon refused it": "does not build it: the graph <b>cannot</b> be built",
        "hexagon left some": "Erf_<1> (Erf)",
        "limits": "no device runs this: a <grid> per token",
        "skipped files": "a.png: broken",
        "a tail in float": "boxes 2 of 3 samples 17.50 <n> 0 of 3 samples",
    }
    assert said.get(state, "") in page.text
    if state == "hostile names":
        for name in HOSTILE:
            shown = name.replace("\udcff", "?").strip()
            assert page.text.count(" ".join(shown.split())) >= 5
        assert "49" not in page.text.split()


class _Quantized:
    """What the report reads of a run without histograms."""

    def __init__(self, q, name):
        self.__dict__ |= vars(q)
        self.recipe = replace(q.recipe, name=name)
        self.histograms, self.limits = {}, q.limits


@pytest.mark.parametrize("broken", [None, NAN, np.float32(np.inf), np.float32(0)], ids=str)
@pytest.mark.parametrize("name", ["w8a8", "".join(HOSTILE[:4])], ids=["plain", "hostile"])
def test_comparisons(base, broken, name, tmp_path):
    q, verification, _ = base
    rng = np.random.default_rng(0)
    camera = None
    frames = [Frame(rng.integers(0, 255, (24, 32, 3), np.uint8), rng.uniform(1, 9, (24, 32)).astype(np.float32), camera)
              for _ in range(2)]  # fmt: skip
    footage = Footage(frames, inverse=False)
    own = judge(footage.truth * np.float32(1.1), footage)
    output = footage.truth + np.float32(0.1)
    if broken is not None:
        output = np.full_like(output, broken)
    judged = judge(output, footage, own)
    assert bool(judged.collapse) == (broken is not None)
    q.save(tmp_path / "run")
    run = Run(_Quantized(q, name), verification, tmp_path / "run", 1.0, [judged])
    done = Comparison(tmp_path / "net.onnx", q.graph, [footage], [own], [run, run], 4)
    document = report.compared(done)
    assert report.write_compared(document, done, tmp_path)
    json.loads((tmp_path / "report.json").read_text(), parse_constant=pytest.fail)
    page = Page((tmp_path / "report.html").read_text("utf-8"))
    assert name in page.text and ("collapsed" in page.text) == (broken is not None)
    report.show_compared(document, Console(width=120, file=io.StringIO()))
    assert done._repr_html_()


def results(rows, **about):
    known = {
        "name": "net", "description": "", "varied": ["network", "bits"], "columns": ["sqnr", "size"],
        "objectives": ["sqnr", "size"], "directions": ["maximize", "minimize"], "tables": [], "planned": len(rows),
    }  # fmt: skip
    return Results("study", known | about, rows)


def rows(count, name="net", state="complete", error="", figure=20.0):
    values = [{"network": f"{name}{i % 2}", "bits": 4 + i // 2} for i in range(count)]
    return [
        Row(
            i,
            state,
            f"k{i}",
            value,
            {"sqnr": figure + 3.0 * i, "size": 1e4 * (i + 1)} if state == "complete" else {},
            error,
        )
        for i, value in enumerate(values)
    ]


SWEEPS = {
    "nothing": results([]),
    "one cell": results(rows(1)),
    "a grid": results(rows(6)),
    "all failed": results(rows(3, state="fail", error="Traceback\n</script><b>boom</b>\n")),
    "NaN": results(rows(4, figure=np.nan)),
    "infinite": results(rows(4, figure=np.inf)),
    "hostile": results(rows(6, HOSTILE[0]), name=HOSTILE[1], description="".join(HOSTILE)),
    "a parameter's path": results(rows(6), varied=["network", "bits"], columns=["sqnr"], objectives=["sqnr"]),
}


@pytest.mark.parametrize("charts", [True, False], ids=["charts", "no extra"])
@pytest.mark.parametrize("kind", SWEEPS)
def test_sweeps(kind, charts, tmp_path, monkeypatch):
    if not charts:
        monkeypatch.setattr(sweep_page, "available", lambda: False)
    assert sweep_page.write(SWEEPS[kind], tmp_path)
    page = Page((tmp_path / "report.html").read_text("utf-8"))
    assert not (tmp_path / "report-error.txt").exists()
    assert (
        bool(page.charts) == (charts and kind not in ("nothing", "one cell", "all failed", "NaN", "infinite")) or kind
    )
    if kind == "all failed":
        assert "</script><b>boom</b>" in page.text
    if kind == "hostile":
        assert page.text.count(HOSTILE[0]) >= 3
