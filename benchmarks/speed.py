"""What quantising a network costs: the whole command beside float passes of the same network, in the same run.

    python benchmarks/speed.py                                           # a quarter of an hour on two cores
    python benchmarks/speed.py --networks A --recipes w8a8 --json out.json
    python benchmarks/speed.py --tree . --tree ../before --peers         # two checkouts in turn, no peers
    python benchmarks/speed.py --networks A --recipes w8a8 --profile out # which stages take it, and which functions

Measured is `python -m leadline.cli quantize` from import to report, in a process of its own: processor time (user and
system, of all its threads and children), time by the clock, and the most memory that one of its processes had. The
unit is one pass of the float network over each of the 32 calibration pictures, in onnxruntime with as many threads and
without its import: the mean of that before and that behind the command, so that a busy machine slows both. Networks: A,
a ViT-S at 224 pixels (24 M parameters), and D, EfficientNet-Lite0 (5 M).

Peers stand beside where they are: onnxruntime's quantize_static here; NNCF and aimet-onnx (nearest rounding) in
environments of their own: `make .cache/nncf/.peer .cache/aimet/.tests`. They get pictures as arrays that are ready.
"""

from __future__ import annotations

import argparse
import contextlib
import json
import os
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from statistics import fmean
from typing import IO, Any

from rich.console import Console
from rich.table import Table

sys.path.insert(0, str(Path(__file__).resolve().parents[1] / "tests"))
import testbed

HERE = Path(__file__).resolve().parent
# This process stays small: the peak of a child counts what it shared with its parent before it became a program.
RECIPES = ("w8a8", "adaround-w8a8", "w4a8", "w4a4")
CACHE = HERE.parent / ".cache"
PEERS = {
    "onnxruntime-MinMax": sys.executable,
    "onnxruntime-Entropy": sys.executable,
    "nncf": str(CACHE / "nncf" / "bin" / "python"),
    "nncf-transformer": str(CACHE / "nncf" / "bin" / "python"),
    "aimet-onnx": str(CACHE / "aimet" / "bin" / "python"),
}
COLLAPSED = 3
"""Exit code of a run that has done all its work."""


@dataclass(frozen=True)
class Cost:
    """Of one program: seconds of the processor and by the clock, and the peak of its largest process in MB (10^6)."""

    processor: float
    wall: float
    peak_mb: float


@dataclass(frozen=True)
class Row(Cost):
    """One contestant on one network. `passes`: its processor time in units of the float passes'."""

    network: str
    contestant: str
    passes: float


@dataclass(frozen=True)
class Installation:
    """A leadline to measure: an interpreter, and what goes before its own packages."""

    name: str
    python: str = sys.executable
    path: str | None = None

    def environment(self) -> dict[str, str]:
        """Threads are the command's business and the affinity's, not of variables."""
        dropped = ("OMP_NUM_THREADS", "OPENBLAS_NUM_THREADS", "MKL_NUM_THREADS", "PYTHONPATH")
        kept = {name: value for name, value in os.environ.items() if name not in dropped}
        return kept | ({"PYTHONPATH": self.path} if self.path else {})


def main() -> None:
    parser = argparse.ArgumentParser(description=(__doc__ or "").split("\n")[0])
    parser.add_argument("--networks", default="AD", help="some of ABCD")
    parser.add_argument("--recipes", nargs="*", default=RECIPES)
    parser.add_argument("--peers", nargs="*", default=list(PEERS), choices=list(PEERS))
    parser.add_argument("--samples", type=int, default=32)
    parser.add_argument("--threads", type=int, default=2)
    parser.add_argument("--tree", action="append", type=Path, help="a checkout, its modules compiled; may be repeated")
    parser.add_argument("--python", action="append", help="an interpreter that has leadline; may be repeated")
    parser.add_argument("--profile", type=Path, metavar="FOLDER", help="profile instead; .prof files go there")
    parser.add_argument("--json", type=Path, help="also write the figures here, after each of them")
    options = parser.parse_args()
    limit_cores(options.threads)
    contestants = installations(options.tree or [], options.python or [])
    document: dict[str, Any] = {
        "machine": machine(),
        "versions": {each.name: versions(each) for each in contestants},
        "threads": options.threads,
        "samples": options.samples,
        "rows": [],
    }
    if options.profile:
        for name in options.networks:
            profiles(name, options, contestants)
        return
    with contextlib.suppress(KeyboardInterrupt):
        for name in options.networks:
            for row in contest(name, options, contestants):
                print(f"{name} {row.contestant}: {row.passes:.1f} passes", file=sys.stderr, flush=True)
                document["rows"].append(asdict(row))
                if options.json:
                    options.json.write_text(json.dumps(document, indent=1))
    show(document)


def installations(trees: Sequence[Path], pythons: Sequence[str]) -> list[Installation]:
    """What was asked for; the leadline of this process, found as it was, where nothing was."""
    found = [Installation(tree.resolve().name, path=str(tree.resolve() / "python")) for tree in trees]
    found += [Installation(python, python=python) for python in pythons]
    return found or [Installation("leadline", path=os.environ.get("PYTHONPATH"))]


def limit_cores(threads: int) -> None:
    """So many cores for this process and its children, whatever they make of a number of threads."""
    if hasattr(os, "sched_setaffinity"):
        os.sched_setaffinity(0, sorted(os.sched_getaffinity(0))[:threads])


def contest(name: str, options: argparse.Namespace, contestants: Sequence[Installation]) -> Iterator[Row]:
    """Costs on one network, the float passes last."""
    with tempfile.TemporaryDirectory(prefix="leadline-speed-") as temporary:
        folder = Path(temporary)
        prepare(name, folder, options.samples)
        commands = {
            f"{one.name} {recipe}": ([one.python, *quantize(name, recipe, folder, options.threads)], one.environment())
            for recipe in options.recipes
            for one in contestants
        } | {
            peer: ([PEERS[peer], *peer_command(peer, folder, options.threads)], plain())
            for peer in options.peers
            if Path(PEERS[peer]).exists()
        }
        units = [float_passes(folder, options.threads)]
        for contestant, (command, environment) in commands.items():
            cost = measured(command, environment, folder)
            units.append(float_passes(folder, options.threads))
            passes = cost.processor / fmean(unit.processor for unit in units[-2:])
            yield Row(**asdict(cost), network=name, contestant=contestant, passes=passes)
        middle = sorted(units, key=lambda unit: unit.processor)[len(units) // 2]
        yield Row(**asdict(middle), network=name, contestant=f"{options.samples} float passes", passes=1.0)


def measured(command: Sequence[str], environment: dict[str, str], folder: Path) -> Cost:
    """Run a program to its end in `folder`; refuses one that fails, with the end of what it said."""
    with tempfile.TemporaryFile("w+") as said:
        start = time.perf_counter()
        process = subprocess.Popen(command, stdout=said, stderr=subprocess.STDOUT, env=environment, cwd=folder)
        _, status, usage = os.wait4(process.pid, 0)
        wall = time.perf_counter() - start
        process.returncode = os.waitstatus_to_exitcode(status)
        if process.returncode not in (0, COLLAPSED):
            raise SystemExit(f"{' '.join(command)}\nended with {process.returncode}:\n{tail(said)}")
    unit = 1 if sys.platform == "darwin" else 1024
    return Cost(usage.ru_utime + usage.ru_stime, wall, usage.ru_maxrss * unit / 1e6)


def tail(said: IO[str]) -> str:
    said.seek(0)
    return "".join(said.readlines()[-20:])


def float_passes(folder: Path, threads: int) -> Cost:
    """The unit, from a process of its own, of which only the passes count."""
    command = [sys.executable, str(HERE / "peers.py"), "float", str(folder), "--threads", str(threads)]
    done = subprocess.run(command, check=True, stdout=subprocess.PIPE, text=True, env=plain())
    return Cost(**json.loads(done.stdout))


def plain() -> dict[str, str]:
    return Installation("").environment()


def prepare(name: str, folder: Path, samples: int) -> None:
    """Pictures for the command line; for others fixed.onnx and calibration.npz, made by a process of its own."""
    (folder / "pictures").mkdir()
    listed = testbed.pictures()
    for i in range(samples):
        source = listed[i % len(listed)]
        (folder / "pictures" / f"{i:04}{source.suffix}").symlink_to(source)
    subprocess.run([sys.executable, str(HERE / "speed_inputs.py"), name, str(folder)], check=True)


def quantize(name: str, recipe: str, folder: Path, threads: int) -> list[str]:
    """The command line that a user would type, behind the interpreter."""
    preprocess = testbed.preprocess(name)
    flags = {"data": folder / "pictures", "out": folder / "out", "recipe": recipe, "threads": threads}
    for flag, value in preprocess.items():
        between = "x" if flag in ("resize", "crop") else ","
        flags[flag] = between.join(map(str, value)) if isinstance(value, list) else value
    stated = [str(part) for flag, value in flags.items() for part in (f"--{flag}", value)]
    return ["-m", "leadline.cli", "quantize", str(testbed.network(name)), *stated]


def peer_command(peer: str, folder: Path, threads: int) -> list[str]:
    if peer != "aimet-onnx":
        return [str(HERE / "peers.py"), peer, str(folder)]
    bits = ["--bits", "8", "--iterations", "0", "--threads", str(threads)]
    return [str(HERE / "accuracy_aimet.py"), str(folder), *bits]


def profiles(name: str, options: argparse.Namespace, contestants: Sequence[Installation]) -> None:
    """Each recipe profiled once by each leadline: FOLDER/network-recipe-leadline.prof, and the tables."""
    options.profile.mkdir(parents=True, exist_ok=True)
    with tempfile.TemporaryDirectory(prefix="leadline-speed-") as temporary:
        folder = Path(temporary)
        prepare(name, folder, options.samples)
        for recipe in options.recipes:
            for one in contestants:
                file = options.profile.resolve() / f"{name}-{Path(recipe).stem}-{Path(one.name).name}.prof"
                command = [one.python, str(HERE / "speed_profile.py"), str(file)]
                measured([*command, *quantize(name, recipe, folder, options.threads)[1:]], one.environment(), folder)
                print(f"== {name} {one.name} {recipe}: {file}", flush=True)
                subprocess.run([sys.executable, str(HERE / "speed_profile.py"), str(file)], check=True, env=plain())


def machine() -> dict[str, Any]:
    import platform

    lines = Path("/proc/cpuinfo").read_text().splitlines() if Path("/proc/cpuinfo").exists() else []
    said = {key.strip(): value.strip() for key, _, value in (line.partition(":") for line in lines)}
    return {
        "processor": said.get("model name", platform.processor()),
        "vnni": "avx512_vnni" in said.get("flags", "") or "avx_vnni" in said.get("flags", ""),
        "cores": os.cpu_count(),
        "memory_gb": os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES") / 1e9,
        "system": platform.platform(),
        "busy_before": os.getloadavg()[0],
    }


def versions(one: Installation) -> dict[str, str]:
    """Of leadline and what it stands on; the first import, so that none that is measured reads a cold disk."""
    program = (
        "import json, platform, leadline.cli, onnx, onnxruntime, numpy; from importlib.metadata import version;"
        "named = {m.__name__: m.__version__ for m in (onnx, onnxruntime, numpy)};"
        "print(json.dumps({'leadline': version('leadline'), 'python': platform.python_version(), **named}))"
    )
    done = subprocess.run([one.python, "-c", program], check=True, stdout=subprocess.PIPE, env=one.environment())
    found = dict(json.loads(done.stdout))
    if one.path:
        commit = subprocess.run(["git", "rev-parse", "--short", "HEAD"], cwd=one.path, capture_output=True, text=True)
        found["commit"] = commit.stdout.strip()
    return found


def show(document: dict[str, Any]) -> None:
    title = f"Quantising by {document['samples']} pictures, {document['threads']} threads"
    table = Table(title=title, caption=f"{document['machine']['processor']}; passes: processor time over the float's")
    for column in ("network", "by", "processor, s", "passes", "wall, s", "peak, MB"):
        table.add_column(column, justify="left" if column in ("network", "by") else "right")
    rows = document["rows"]
    for i, one in enumerate(rows):
        cells = [f"{one[key]:.1f}" for key in ("processor", "passes", "wall")]
        last = i + 1 == len(rows) or rows[i + 1]["network"] != one["network"]
        table.add_row(one["network"], one["contestant"], *cells, f"{one['peak_mb']:.0f}", end_section=last)
    Console(width=None if sys.stdout.isatty() else 110).print(table)


if __name__ == "__main__":
    main()
