"""adaround and round_best beside aimet-onnx's AdaRound, layer by layer: total seconds and held-out error at 4 bits.

    python benchmarks/bench_rounding.py                                       # half an hour
    python benchmarks/bench_rounding.py --iterations 50 --layers 'query$'     # a quick try

Layers are those of the testbed's networks A, C and D, with their float inputs for 32 pictures. aimet-onnx runs in its
own environment (--aimet; `make test-full` makes one in .cache/aimet), on the layer alone, one picture a batch, with its
default 10000 iterations. leadline gets the same inputs and aimet-onnx's own scales, and is timed from the inputs to the
codes: the Gram and `adaround`; and for `round_best` a Gram of three quarters of the pictures, which it rounds on, and
one of the other quarter, on which it chooses. Errors are those of the layer's output on pictures that nobody saw, in
per cent of its power. With one thread the seconds are those of the processor, which leave out what other programs took
in between; with more they are those of the clock. The file of --json has both. Without aimet-onnx leadline runs alone.
"""

from __future__ import annotations

import argparse
import json
import os
import re
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

import accuracy
import testbed
from harness import table
from leadline import Grid, Scheme
from leadline.affine import choose_grid, quantize, range_of
from leadline.files import replacing
from leadline.graph import Graph, Layer, Session
from leadline.progress import Bars
from leadline.rounding import adaround, layer_error, round_best
from leadline.steps.path import moments_of, update

HERE = Path(__file__).resolve().parent
PEER = HERE.parent / ".cache" / "aimet" / "bin" / "python"
PICTURES = 32
LARGEST = 200e6
"""Bytes of one layer's inputs; of a larger layer there are fewer pictures."""

SCHEME = Scheme(4, signed=True, symmetric=True, granularity="axis", axis=0, fit="aimet")
LAYERS = r"A/.*\.6\.(attention\.attention\.query|attention\.output\.dense|mlp\.fc[12])$"
LAYERS += r"|C/conv2d_(150|407)$|D/_blocks\.6\._depthwise_conv$"
CLOCKS = ("wall", "processor")
SHORT = "backbone.encoder.layer."

Row = dict[str, Any]


@dataclass(frozen=True)
class Problem:
    """One layer: what it multiplies with, what it saw, and the Gram of what nobody saw."""

    name: str
    layer: Layer
    weight: NDArray[np.float32]
    bias: NDArray[np.float32] | None
    inputs: NDArray[np.float32]  # (pictures, rows, features) or NCHW
    held_out: NDArray[np.float64]

    def error(self, grid: Grid, codes: NDArray[Any]) -> float:
        """Held-out error over the power of the output."""
        grams = self.held_out.reshape(-1, *self.held_out.shape[-2:])
        rows = self.weight.reshape(len(grams), -1, grams.shape[-1]).astype(np.float64)
        power = (np.matmul(rows, grams) * rows).sum()
        return float(layer_error(self.weight, self.held_out, grid, codes).sum() / power)

    def gram(self, pictures: NDArray[np.float32], threads: int) -> NDArray[np.float64]:
        moments = moments_of(self.layer, self.weight.shape)
        update(moments, pictures, threads)
        return moments.matrix()


def main() -> int:
    parser = argparse.ArgumentParser(description=(__doc__ or "").split("\n")[0])
    parser.add_argument("--aimet", type=Path, help="interpreter that has aimet-onnx; default: .cache/aimet, if made")
    parser.add_argument("--iterations", type=int, help="of aimet-onnx; default: its own 10000")
    parser.add_argument("--layers", default=LAYERS, metavar="PATTERN", help="regular expression for NETWORK/LAYER")
    parser.add_argument("--threads", type=int, default=2, help="of everybody")
    parser.add_argument("--json", type=Path, help="also write the figures here, after each layer")
    options = parser.parse_args()
    python = options.aimet or (PEER if PEER.exists() else None)
    if python and not python.exists():
        parser.error(f"--aimet {python} does not exist")
    try:
        re.compile(options.layers)
    except re.error as error:
        parser.error(f"--layers {options.layers!r} is no regular expression: {error}")

    rows: list[Row] = []
    try:
        bars = Bars()
        problems = [p for network in "ACD" for p in collect(network, options.layers, bars)]
        if not problems:
            parser.error(f"--layers {options.layers!r} matches no layer of A, C, D, such as A/{SHORT}6.mlp.fc1")
        for problem in bars.over(problems, "rounding", len(problems)):
            rows.append(contest(problem, python, options.iterations, options.threads))
            bars.console.print(*cells(rows[-1], "wall"), soft_wrap=True, highlight=False)
            if options.json:
                with replacing(options.json) as file:
                    file.write_text(json.dumps({"threads": options.threads, "layers": rows}, indent=2))
    except subprocess.CalledProcessError as error:
        said = "\n".join(error.stderr.strip().splitlines()[-8:])
        print(f"{' '.join(error.cmd)} failed; `make test-full` makes .cache/full for it:\n{said}", file=sys.stderr)
        return 1
    except KeyboardInterrupt:
        return 130
    finally:
        show(rows, options.threads)
    if not python:
        print("leadline alone: `make test-full` makes .cache/aimet with aimet-onnx (2 GB), or name one with --aimet")
    return 0


def collect(network: str, pattern: str, bars: Bars) -> Iterator[Problem]:
    """The layers of a network that match, with their inputs. Mirror images make up for pictures that lack."""
    samples, scored = accuracy.pictures(network)
    graph = Graph.load(testbed.network(network), next(iter(samples)))
    graph.fold()
    layers = [a for a in graph.layers() if a.kind != "transpose" and re.search(pattern, f"{network}/{a.output}")]
    if not layers:
        return
    seen: dict[str, list[NDArray[np.float32]]] = {a.output: [] for a in layers}
    unseen = {a.output: moments_of(a, graph.weights[a.weight].shape) for a in layers}
    missing = samples.take(max(PICTURES - len(samples), 0))
    mirrored = [{n: np.ascontiguousarray(x[..., ::-1]) for n, x in feed.items()} for feed in missing]
    feeds = [(True, feed) for feed in (*samples, *mirrored)] + [(False, feed) for feed in scored]
    names = {a.input for a in layers} - {value.name for value in graph.inputs}
    with Session(graph, outputs=sorted(names), threads=1) as session:
        for rounding, feed in bars.over(feeds, f"inputs of {network}", len(feeds)):
            found = feed | session.run(feed)
            for a in layers:
                x = found[a.input][None] if a.kind == "linear" else found[a.input]
                if not rounding:
                    update(unseen[a.output], x, 1)
                elif (len(seen[a.output]) + 1) * x.nbytes <= LARGEST:
                    seen[a.output].append(x)
    for a in layers:
        weights = {role: graph.weights[name] for role, name in (("weight", a.weight), ("bias", a.bias)) if name}
        inputs, held_out = np.concatenate(seen.pop(a.output)), unseen[a.output].matrix()
        yield Problem(f"{network}/{a.output}", a, weights["weight"], weights.get("bias"), inputs, held_out)


def contest(problem: Problem, python: Path | None, iterations: int | None, threads: int) -> Row:
    """One layer, rounded by everybody."""
    weight, inputs = problem.weight, problem.inputs
    row: Row = {"layer": problem.name, "shape": list(weight.shape), "pictures": len(inputs)}
    if python:
        theirs = aimet(problem, python, iterations, threads)
        grid = Grid(theirs["scale"], np.zeros(len(weight), np.int32), SCHEME)
        row["aimet"] = {name: float(theirs[name]) for name in (*CLOCKS, "setup", "unsettled")}
        row["aimet"]["error"] = problem.error(grid, theirs["codes"])
    else:
        grid = choose_grid(*range_of(weight, SCHEME), SCHEME)

    def fast() -> tuple[NDArray[Any], float]:
        start = time.process_time()
        gram = problem.gram(inputs, threads)
        taken = time.process_time() - start
        return adaround(weight, gram, grid, threads=threads), taken

    def best() -> tuple[NDArray[Any], float]:
        start = time.process_time()
        quarter = np.arange(len(inputs)) % 4 == 3
        gram, judge = (problem.gram(inputs[part], threads) for part in (~quarter, quarter))
        taken = time.process_time() - start
        codes, row["method"] = round_best(weight, gram, grid, held_out=judge, threads=threads)
        return codes, taken

    row["nearest"] = {"error": problem.error(grid, quantize(weight, grid))}
    for name, function in (("adaround", fast), ("round_best", best)):
        row[name] = timed(problem, grid, function)
        if python:
            row[name]["faster"] = {clock: row["aimet"][clock] / row[name][clock] for clock in CLOCKS}
    return row


def timed(problem: Problem, grid: Grid, function: Callable[[], tuple[NDArray[Any], float]]) -> Row:
    """The median of 3 to 15 runs: what a busy machine does to one of them does not decide."""
    runs: list[tuple[float, float, float]] = []
    until = time.perf_counter() + 5
    while len(runs) < 3 or (len(runs) < 15 and time.perf_counter() < until):
        wall, processor = time.perf_counter(), time.process_time()
        codes, gram = function()
        runs.append((time.perf_counter() - wall, time.process_time() - processor, gram))
    wall, processor, gram = np.median(runs, axis=0).tolist()
    return {"error": problem.error(grid, codes), "wall": wall, "processor": processor, "gram": gram}


def aimet(problem: Problem, python: Path, iterations: int | None, threads: int) -> dict[str, Any]:
    """What rounding_aimet.py writes about the layer. Raises CalledProcessError."""
    with tempfile.TemporaryDirectory(prefix="leadline-rounding-") as temporary:
        folder = Path(temporary)
        arrays = {"inputs": problem.inputs, "weight": problem.weight, "bias": problem.bias}
        attrs = json.dumps(problem.layer.node.attrs)
        np.savez(folder / "layer.npz", attrs=attrs, **{name: a for name, a in arrays.items() if a is not None})
        command = [str(python), str(HERE / "rounding_aimet.py"), str(folder), "--threads", str(threads)]
        command += ["--iterations", str(iterations)] if iterations else []
        environment = os.environ | {"OMP_NUM_THREADS": str(threads), "MKL_NUM_THREADS": str(threads)}
        subprocess.run(command, check=True, capture_output=True, text=True, env=environment)
        with np.load(folder / "result.npz") as file:
            return dict(file)


def cells(row: Row, clock: str) -> list[str]:
    """A row of the table."""
    texts = [row["layer"].replace(SHORT, ""), "x".join(map(str, row["shape"])), f"{100 * row['nearest']['error']:.3g}"]
    for who in ("aimet", "adaround", "round_best"):
        found = row.get(who)
        texts += [f"{100 * found['error']:.3g}", f"{found[clock]:.3g}"] if found else ["-", "-"]
        if found and who != "aimet":
            texts.append(f"{found['faster'][clock]:.0f}x" if "faster" in found else "-")
    return texts


def show(rows: list[Row], threads: int) -> None:
    clock = "processor" if threads == 1 else "wall"
    columns = ["layer", "weight", "nearest", "aimet", "s", "adaround", "s", "faster", "round_best", "s", "faster"]
    title = f"4 bits: held-out error in %, {clock} seconds on {threads} thread{'s'[: threads - 1]}"
    if rows:
        table(title, columns, [cells(row, clock) for row in rows])


if __name__ == "__main__":
    raise SystemExit(main())
