"""The report: what a run did and what its artefact is worth, as JSON, as a page, and as tables in the terminal."""

from __future__ import annotations

import os
from collections import Counter
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

from rich.filesize import decimal

import leadline
from leadline.export.encodings import read_with_version
from leadline.export.encodings_gaps import gaps
from leadline.files import replacing, to_json
from leadline.inspector import inspect
from leadline.quantized import files as run_files
from leadline.report import charts
from leadline.report.artefacts import (
    render,
    show_audit,
    show_difference,
    show_inspection,
    write_audit,
    write_difference,
    write_inspection,
    write_page,
)
from leadline.report.depth import PROFILES, figures, footage_pictures
from leadline.report.pictures import triptych
from leadline.report.statistics import densities, ranges, rounding

if TYPE_CHECKING:
    from rich.console import Console

    from leadline.comparison import Comparison
    from leadline.data import Samples
    from leadline.graph import Graph
    from leadline.pipeline import Quantized
    from leadline.scores import Dense
    from leadline.verification import Verification

__all__ = [
    "compared",
    "document",
    "show",
    "show_audit",
    "show_compared",
    "show_difference",
    "show_inspection",
    "verified",
    "write",
    "write_audit",
    "write_compared",
    "write_difference",
    "write_inspection",
]

COLUMNS = ("AbsRel", "delta1", "RMSE m", "edge F1", "corr.", "SSIM")
TEMPORAL = ("alignment error", "change along flow", "flicker")

WORST = 15
MOVED = "hold something else than the float network's, as rotated and scaled weights leave them, and are not compared."
"""Tensors that the terminal and the page list first."""


def document(
    model: str | os.PathLike[str], quantized: Quantized, verification: Verification, folder: Path, seconds: float
) -> dict[str, Any]:
    """Everything about a run of `quantize`, ready for JSON; `folder` holds the artefacts."""
    recipe = quantized.recipe
    return {
        "leadline": leadline.__version__,
        "network": _network(model, quantized.graph),
        "recipe": {"name": recipe.name, "description": recipe.description, "toml": recipe.to_toml()},
        "data": _data(quantized.held_out, quantized.skipped) | {"calibration": quantized.calibrated},
        "files": _files(Path(model), folder),
        "target": {"name": quantized.target.name, "options": quantized.target.chosen},
        "artefact": quantized.target.file,
        "limits": quantized.limits,
        "encodings": _encodings(quantized.graph, folder / "model.encodings"),
        "coverage": _coverage_of(folder / quantized.target.file),
        "verification": verification.to_dict(),
        "ranges": ranges(quantized),
        "rounding": rounding(quantized),
        "steps": [record.to_dict() for record in quantized.log],
        "seconds": round(seconds, 1),
    }


def _encodings(graph: Graph, file: Path) -> dict[str, Any] | None:
    """What the encodings leave to the vendor's tool, with counts of what could differ; None where there are none."""
    if not file.is_file():
        return None
    missing = gaps(graph, file)
    left = Counter(gap.reason for gap in missing if not gap.harmless)
    version = read_with_version(file)[1]
    return {"version": version, "left": dict(left), "gaps": [vars(gap) for gap in missing]}


def compared(comparison: Comparison) -> dict[str, Any]:
    """Everything about a comparison of recipes, ready for JSON: what is common, and `runs` as `document` has them."""
    runs = []
    for run in comparison.runs:
        entry = document(comparison.file, run.quantized, run.verification, run.folder, run.seconds)
        for common in ("leadline", "network"):
            del entry[common]
        judged = {"depth": [judgement.to_dict() for judgement in run.judgements], "collapse": run.collapse}
        runs.append(entry | judged)
    return {
        "leadline": leadline.__version__,
        "network": _network(comparison.file, comparison.graph),
        "calibration": comparison.calibration,
        "depth": figures(comparison),
        "runs": runs,
    }


def verified(fp32: Path, graph: Graph, artefact: Path, samples: Samples, verification: Verification) -> dict[str, Any]:
    """Everything about a run of `verify`, ready for JSON."""
    return {
        "leadline": leadline.__version__,
        "network": _network(fp32, graph),
        "data": _data(samples, samples.skipped),
        "files": {name: file.stat().st_size for name, file in _told_apart(fp32, artefact)},
        "artefact": _told_apart(fp32, artefact)[-1][0],
        "coverage": _coverage_of(artefact),
        "verification": verification.to_dict(),
    }


def _files(source: Path, folder: Path) -> dict[str, int]:
    """Bytes of what a run wrote; of the float network as it came, where it has no other form."""
    sizes = {name: (folder / name).stat().st_size for name in run_files() if (folder / name).is_file()}
    return sizes if "model.fp32.onnx" in sizes else {source.name: source.stat().st_size} | sizes


def _coverage_of(artefact: Path) -> dict[str, Any] | None:
    """What a file quantises; None of a program, which nothing looks into."""
    return None if artefact.suffix == ".pte" else inspect(artefact).to_dict()


def _told_apart(*files: Path) -> list[tuple[str, Path]]:
    """With their names, or those of their folders in front where they have the same."""
    alike = len({file.name for file in files}) < len(files)
    return [(f"{file.resolve().parent.name}/{file.name}" if alike else file.name, file) for file in files]


def _network(file: str | os.PathLike[str], graph: Graph) -> dict[str, Any]:
    return {
        "file": Path(file).name,
        "inputs": {value.name: list(value.shape) for value in graph.inputs},
        "outputs": {value.name: list(value.shape) for value in graph.outputs},
        "parameters": sum(w.size for w in graph.weights.values() if w.dtype.kind == "f"),
        "nodes": len(graph.nodes),
    }


def _data(held_out: Samples, skipped: Sequence[tuple[str, str]]) -> dict[str, Any]:
    return {"held_out": [Path(label).name for label in held_out.labels], "skipped": [list(entry) for entry in skipped]}


def write(
    document: dict[str, Any], pictures: Sequence[Dense], folder: Path, quantized: Quantized | None = None
) -> bool:
    """``report.json`` and the self-contained ``report.html`` into `folder`; `quantized` adds the histograms.

    The page is drawn last. Where that fails there is a warning, and ``report-error.txt`` in its place; whether there is
    a page is returned.
    """

    def draw() -> str:
        run = {"recipe": None, "steps": [], "ranges": [], "rounding": [], "limits": []} | document
        return _page(document, [run | _drawn(run, pictures, quantized)], [])

    return _write(document, draw, folder)


def write_compared(document: dict[str, Any], comparison: Comparison, folder: Path) -> bool:
    """The same of a comparison."""

    def draw() -> str:
        runs = [
            entry | _drawn(entry, run.verification.pictures, run.quantized)
            for entry, run in zip(document["runs"], comparison.runs, strict=True)
        ]
        return _page(document, runs, footage_pictures(comparison))

    return _write(document, draw, folder)


def _drawn(run: dict[str, Any], pictures: Sequence[Dense], quantized: Quantized | None) -> dict[str, Any]:
    """A run's pictures and charts; no charts without the report extra."""
    drawn: dict[str, Any] = {"shots": [triptych(picture) for picture in pictures], "charts": None}
    if charts.available():
        drawn["charts"] = {}
        if run["verification"]["tensors"]:
            drawn["charts"]["layers"] = charts.layers(run["verification"]["tensors"])
        shares = densities(quantized, run["ranges"]) if quantized is not None else {}
        if shares:
            worst = next((t["name"] for t in run["verification"]["tensors"] if t["name"] in shares), "")
            drawn["charts"]["histograms"] = charts.histograms(run["ranges"], shares, worst)
        if run["rounding"]:
            drawn["charts"]["rounding"] = charts.rounding(run["rounding"])
        if learned := charts.learned(run["steps"]):
            drawn["charts"]["learned"] = learned
    return drawn


def _write(document: dict[str, Any], draw: Callable[[], str], folder: Path) -> bool:
    with replacing(folder / "report.json") as temporary:
        temporary.write_text(to_json(document) + "\n", "utf-8")
    return write_page(folder / "report.html", draw)


def _page(document: dict[str, Any], runs: list[dict[str, Any]], footage: list[dict[str, Any]]) -> str:
    return render(
        "page.html",
        network=document["network"],
        depth=document.get("depth"),
        runs=runs,
        footage=footage,
        worst=WORST,
        moved=MOVED,
        script=charts.script() if charts.available() else None,
    )


def show(document: dict[str, Any], console: Console) -> None:
    """The outputs, the worst tensors and the coverage as tables."""
    from rich.table import Column, Table

    verification, coverage = document["verification"], document["coverage"]
    target = verification["title"]
    heads = ("SQNR dB", "about mean", "worst sample", f"{target} dB", f"{target} within 1 step", "largest steps")
    outputs = Table(Column("output", overflow="fold", min_width=14), *heads, box=None)
    for row in verification["outputs"]:
        agreement = row["agreement"]
        outputs.add_row(
            row["name"], f"{row['sqnr']:.1f}", f"{row['centred']:.1f}", f"{row['worst']:.1f}",
            *(() if row["device"] is None else (f"{row['device']:.1f}", f"{agreement['within_one']:.1%}",
            f"{agreement['largest']:.0f}")),
        )  # fmt: skip
        for part in row["parts"]:
            outputs.add_row(part["name"], f"{part['sqnr']:.1f}", f"{part['centred']:.1f}")
    console.print(outputs, markup=False)
    for row in verification["outputs"]:
        if row["order"]:
            console.print(f"{row['name']}: {row['order']}", markup=False, highlight=False, soft_wrap=True)
    for row in verification["final"]:
        score = "" if row["sqnr"] is None else f", {row['sqnr']:.1f} dB over those"
        shapes = f"{row['alike']} of {row['samples']} samples in the float network's shape"
        text = f"{row['name']}, in float behind the quantised part: {shapes}{score}"
        console.print(text, markup=False, highlight=False, soft_wrap=True)
    for line in verification["collapse"]:
        console.print(f"collapsed: {line}", markup=False, highlight=False, soft_wrap=True)
    if verification["collapse"] and verification["origin"]:
        text = f"the first broken tensor is {verification['origin']}"
        console.print(text, markup=False, highlight=False, soft_wrap=True)
    for line in (verification["facts"] or {}).get("lines", ()):
        console.print(line, markup=False, highlight=False, soft_wrap=True)
    worst = Table("worst tensors", "operator", "SQNR dB", box=None)
    for row in verification["tensors"][:WORST]:
        worst.add_row(row["name"], row["op"], f"{row['sqnr']:.1f}" + (" (rescaled)" if row["rescaled"] else ""))
    if worst.row_count:
        console.print(worst, markup=False)
    if verification["moved"]:
        console.print(f"{len(verification['moved'])} tensors {MOVED}", highlight=False)
    files = document["files"]
    sizes = ", ".join(f"{name} {decimal(size)}" for name, size in files.items())
    console.print(sizes, markup=False, highlight=False)
    if coverage is not None:
        console.print(_coverage(coverage), markup=False, highlight=False)
    encodings = document.get("encodings")
    if encodings and encodings["left"]:
        left = ", ".join(f"{count} {reason}" for reason, count in encodings["left"].items())
        text = f"encodings {encodings['version']} leave to Qualcomm's tool: {left}"
        console.print(text, markup=False, highlight=False)
    for limit in document.get("limits", ()):
        console.print(f"simulation, no device runs this: {limit}", markup=False, highlight=False, soft_wrap=True)
    for path, reason in document["data"]["skipped"]:
        console.print(f"skipped {path}: {reason}", markup=False, highlight=False)


def show_compared(document: dict[str, Any], console: Console) -> None:
    """Size and metrics of each recipe beside the float network, as tables."""
    from rich.table import Table

    runs = [("float", None, document["depth"]["float"])]
    runs += [(run["recipe"]["name"], run["files"]["model.qdq.onnx"], run["depth"]) for run in document["runs"]]
    for i, footage in enumerate(document["depth"]["footage"]):
        kind = "frames of video" if footage["video"] else "pictures"
        table = Table(f"{footage['frames']} {kind}", "size", *COLUMNS, box=None)
        for name, size, judged in runs:
            scores, agreement = judged[i]["scores"], judged[i]["agreement"]
            table.add_row(
                name, decimal(size) if size else "",
                f"{scores['abs_rel']:.4f}", f"{scores['delta1']:.4f}", f"{scores['rmse']:.3f}",
                f"{judged[i]['sharpness']:.3f}",
                f"{agreement['pearson']:.5f}" if agreement else "", f"{agreement['ssim']:.4f}" if agreement else "",
            )  # fmt: skip
        console.print(table, markup=False)
        if footage["video"]:
            table = Table("over time, %", *TEMPORAL, box=None)
            for name, _, judged in runs:
                table.add_row(name, *(_mean(judged[i]["temporal"].get(key)) for key in PROFILES))
            console.print(table, markup=False)
    for run in document["runs"]:
        for reason in run["collapse"]:
            console.print(f"{run['recipe']['name']} collapsed: {reason}", markup=False, highlight=False)


def _mean(values: Sequence[float] | None) -> str:
    return f"{sum(values) / len(values):.3f}" if values else ""


def _coverage(coverage: dict[str, Any]) -> str:
    counts = [f"{coverage[f'{kind}_quantized']} of {coverage[kind]} {kind}" for kind in ("parameters", "activations")]
    sizes = f"weights {decimal(coverage['weight_bytes'])}, in float32 {decimal(coverage['weight_bytes_float'])}"
    return f"quantised: {', '.join(counts)}; {sizes}"
