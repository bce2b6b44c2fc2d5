"""What rounding and compensation bring to whole networks: W8A8 and W4A8 on the testbed, each method alone.

    python benchmarks/rounding_accuracy.py                               # everything; about an hour on two cores
    python benchmarks/rounding_accuracy.py --networks D --bits 4 --json out.json
    python benchmarks/rounding_accuracy.py --networks D --variants --aimet PYTHON    # aimet-onnx alone; hours

The contestants share folding, equalisation and every grid (those of the recipe w4a8, with 4 or 8 bits), and differ in
how weights become integers: the method, with or without compensation or K-FAC. Biases are corrected in all. Pictures
and scores are those of accuracy.py: SQNR of each raw output in dB, of the artefact as written, and what the network is
for.
--aimet names an interpreter that has aimet-onnx; its AdaRound and its nearest rounding then take part, as its defaults
are: no equalisation, every layer at the same bits, min-max ranges.
"""

from __future__ import annotations

import argparse
import json
import os
import sys
import tempfile
import time
from collections.abc import Iterator
from dataclasses import asdict, dataclass, replace
from pathlib import Path

from rich.console import Console
from rich.table import Table

import accuracy
from leadline.data.samples import HELD_OUT
from leadline.export import qdq
from leadline.files import replacing
from leadline.graph import Graph, Session
from leadline.preparation import simulate
from leadline.progress import Quiet
from leadline.recipe import Calibrate, Recipe, Round
from leadline.steps import Setup, State, apply

VARIANTS = {
    "nearest": Round("nearest"),
    "AdaRound": Round("adaround"),
    "GPTQ": Round("gptq"),
    "descent": Round("descent"),
    "best": Round("best"),
    "best, compensated": Round("best", compensate=True),
    "best, K-FAC": Round("best", kfac=True),
}
AIMET = {"aimet-onnx nearest": 0, "aimet-onnx AdaRound": None}


@dataclass(frozen=True)
class Score:
    """`seconds`: of rounding and bias correction alone; `passes`: in those seconds, how often the float network could
    have run over the calibration samples."""

    network: str
    bits: int
    variant: str
    seconds: float
    passes: float
    sqnr: list[float]
    task: str
    task_value: float


def contest(
    name: str, bits: int, variants: list[str], threads: int | None, aimet: Path | None, iterations: int | None
) -> Iterator[Score]:
    recipe = Recipe.load("w4a8")
    assert recipe.weights is not None
    recipe = replace(recipe, weights=replace(recipe.weights, bits=bits))
    calibration, scored = accuracy.pictures(name)
    graph = Graph.load(accuracy.testbed.network(name), next(iter(calibration)))
    seen, held_out = calibration.split(HELD_OUT)
    with tempfile.TemporaryDirectory(prefix="leadline-rounding-") as temporary:
        fixed = accuracy.fix_shapes(accuracy.testbed.network(name), next(iter(scored)), Path(temporary) / "fixed.onnx")
        reference = list(accuracy.results(fixed, scored, "written"))
        start = time.monotonic()
        with Session(graph, threads=threads) as session:
            for feed in calibration:
                session.run(feed)
        forward = time.monotonic() - start

        def judged(variant: str, artefact: Path, seconds: float) -> Score:
            task = accuracy.Task(name)
            decibels = accuracy.sqnr(artefact, reference, scored, "written", task)
            return Score(name, bits, variant, seconds, seconds / forward, decibels, task.text, task.value)

        base = State(Setup(recipe, seen, held_out, Quiet(), simulate, threads), graph.copy())
        place = [type(step) for step in recipe.steps].index(Calibrate) + 1
        for step in recipe.steps[:place]:
            apply(step, base)
        for variant in variants:
            state = base.fork(grids=dict(base.grids), codes=dict(base.codes))
            start = time.monotonic()
            for step in (VARIANTS[variant], *recipe.steps[place + 1 :]):
                apply(step, state)
            seconds = time.monotonic() - start
            artefact = Path(temporary) / "leadline.onnx"
            qdq.save(qdq.to_qdq(state.graph, state.grids, state.codes), artefact)
            yield judged(variant, artefact, seconds)
        if aimet is None:
            return
        folder = Path(temporary)
        for contestant, default in AIMET.items():
            chosen = iterations if default is None else default
            took = accuracy.aimet(
                aimet, fixed, folder, calibration, bits=bits, threads=threads or os.cpu_count() or 1, iterations=chosen
            )
            yield judged(contestant, folder / "artefact.onnx", took["rounding"])


def show(scores: list[Score]) -> None:
    table = Table(title="Rounding, SQNR of the raw outputs in dB, as written")
    for column in ("network", "weights", "rounding", "SQNR", "task", "seconds", "float passes"):
        table.add_column(column, justify="left" if column in ("network", "rounding") else "right", no_wrap=True)
    for i, row in enumerate(scores):
        last = i + 1 == len(scores) or (scores[i + 1].network, scores[i + 1].bits) != (row.network, row.bits)
        cells = (accuracy.text(row.sqnr), row.task, f"{row.seconds:.1f}", f"{row.passes:.1f}")
        table.add_row(row.network, f"{row.bits} bits", row.variant, *cells, end_section=last)
    Console(width=None if sys.stdout.isatty() else 132).print(table)


def main() -> int:
    parser = argparse.ArgumentParser(description=(__doc__ or "").split("\n")[0])
    parser.add_argument("--networks", default="ABCD", help="some of ABCD")
    parser.add_argument("--bits", nargs="*", type=int, default=[8, 4])
    parser.add_argument("--variants", nargs="*", default=list(VARIANTS), choices=VARIANTS)
    parser.add_argument("--aimet", type=Path, help="interpreter that has aimet-onnx")
    parser.add_argument("--iterations", type=int, help="of aimet-onnx's AdaRound; default: its own 10000")
    parser.add_argument("--threads", type=int, help="for the cores and onnxruntime; default: all")
    parser.add_argument("--json", type=Path, help="also write the scores here, after each of them")
    options = parser.parse_args()
    rest = options.variants, options.threads, options.aimet, options.iterations
    scores: list[Score] = []
    interrupted = False
    try:
        for name in options.networks:
            for bits in options.bits:
                for score in contest(name, bits, *rest):
                    scores.append(score)
                    line = f"{name} {bits} bits, {score.variant}: {accuracy.text(score.sqnr)} dB, {score.task}"
                    print(f"{line}, {score.seconds:.1f} s", file=sys.stderr, flush=True)
                    if options.json:
                        with replacing(options.json) as temporary:
                            temporary.write_text(json.dumps([asdict(row) for row in scores], indent=2))
    except KeyboardInterrupt:
        interrupted = True
    show(scores)
    return 130 if interrupted else 0


if __name__ == "__main__":
    raise SystemExit(main())
