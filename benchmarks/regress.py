"""Whether this leadline is slower, larger or less accurate than an earlier one, on the same machine in the same run.

    python benchmarks/regress.py                      # beside the last release: the newest tag v*
    python benchmarks/regress.py main~20 --networks D --recipes w8a8
    python benchmarks/regress.py --wheel leadline-0.1.0-cp311-cp311-linux_x86_64.whl

The earlier one is a wheel, given or built once from a git ref and kept in .cache/regress. It runs in this interpreter
with these dependencies, so that leadline alone differs. Both quantise the same networks by the same recipes through the
command line, in turn; of several rounds the cheapest counts. Compared are processor time, peak memory, and the SQNR of
each raw output on pictures that neither saw, the artefacts as written (accuracy.py). Exit code 1: something became
slower or larger by more than a factor, or lost more decibels than it may.
"""

from __future__ import annotations

import argparse
import hashlib
import json
import os
import subprocess
import sys
import tempfile
from collections.abc import Iterator
from dataclasses import asdict, dataclass
from pathlib import Path

from rich.console import Console
from rich.table import Table

import speed

ROOT = Path(__file__).resolve().parents[1]
KEPT = speed.CACHE / "regress"


@dataclass(frozen=True)
class Run:
    """One network by one recipe: what it cost, and the SQNR of each output of the artefact in dB."""

    cost: speed.Cost
    decibels: dict[str, float]


@dataclass(frozen=True)
class Limits:
    """What counts as a regression: factors of processor time and memory, and decibels lost by any output."""

    slower: float = 1.2
    larger: float = 1.2
    lost: float = 0.1


def main() -> int:
    parser = argparse.ArgumentParser(description=(__doc__ or "").split("\n")[0])
    parser.add_argument("ref", nargs="?", help="git ref of the earlier one; default: the newest tag v*")
    parser.add_argument("--wheel", type=Path, help="the earlier one as a wheel")
    parser.add_argument("--networks", default="ABD", help="some of ABCD")
    parser.add_argument("--recipes", nargs="*", default=["w8a8", "w4a8"])
    parser.add_argument("--samples", type=int, default=16)
    parser.add_argument("--threads", type=int, default=2)
    parser.add_argument("--rounds", type=int, default=1)
    parser.add_argument("--slower", type=float, default=Limits.slower, help="factor of processor time, default 1.2")
    parser.add_argument("--larger", type=float, default=Limits.larger, help="factor of peak memory, default 1.2")
    parser.add_argument("--lost", type=float, default=Limits.lost, help="decibels of any output, default 0.1")
    parser.add_argument("--json", type=Path, help="also write the figures here, after each of them")
    parser.add_argument("--score", nargs=3, metavar=("NETWORK", "FIXED", "ARTEFACT"), help=argparse.SUPPRESS)
    options = parser.parse_args()
    if options.score:
        print(json.dumps(score(*options.score)))
        return 0
    speed.limit_cores(options.threads)
    now = speed.Installation("now", path=os.environ.get("PYTHONPATH"))
    before = speed.Installation("before", path=str(installed(options.wheel or wheel(options.ref or release()))))
    limits = Limits(options.slower, options.larger, options.lost)
    rows = []
    for network, recipe, earlier, later in pairs(options, before, now):
        worse = regressions(earlier, later, limits)
        print(f"{network} {recipe}: {'; '.join(worse) or 'no worse'}", file=sys.stderr, flush=True)
        rows.append((network, recipe, earlier, later, worse))
        if options.json:
            named = ("network", "recipe", "before", "now", "worse")
            plain = [(network, recipe, asdict(a), asdict(b), worse) for network, recipe, a, b, worse in rows]
            document = {"machine": speed.machine(), "rows": [dict(zip(named, row, strict=True)) for row in plain]}
            options.json.write_text(json.dumps(document, indent=1))
    show(rows)
    return int(any(worse for *_, worse in rows))


def regressions(before: Run, now: Run, limits: Limits) -> list[str]:
    """What became worse by more than it may, in words; NaN is worse than any figure."""
    worse = []
    for what, factor, allowed in (
        ("processor time", now.cost.processor / before.cost.processor, limits.slower),
        ("memory", now.cost.peak_mb / before.cost.peak_mb, limits.larger),
    ):
        if not factor <= allowed:
            worse.append(f"{factor:.2f} times the {what}")
    for output, earlier in before.decibels.items():
        later = now.decibels.get(output, float("nan"))
        if not (later >= earlier - limits.lost or earlier != earlier):
            worse.append(f"{output}: {later:.2f} dB, not {earlier:.2f}")
    return worse


def pairs(
    options: argparse.Namespace, before: speed.Installation, now: speed.Installation
) -> Iterator[tuple[str, str, Run, Run]]:
    """Both on each network and recipe, in turn; of several rounds the cheapest."""
    for network in options.networks:
        with tempfile.TemporaryDirectory(prefix="leadline-regress-") as temporary:
            folder = Path(temporary)
            speed.prepare(network, folder, options.samples)
            for recipe in options.recipes:
                runs: dict[str, list[Run]] = {"before": [], "now": []}
                for _ in range(options.rounds):
                    for one in (before, now):
                        runs[one.name].append(quantised(one, network, recipe, folder, options.threads))
                cheapest = {name: min(made, key=lambda run: run.cost.processor) for name, made in runs.items()}
                yield network, recipe, cheapest["before"], cheapest["now"]


def quantised(one: speed.Installation, network: str, recipe: str, folder: Path, threads: int) -> Run:
    command = [one.python, *speed.quantize(network, recipe, folder, threads)]
    cost = speed.measured(command, one.environment(), folder)
    artefact = folder / "out" / "model.qdq.onnx"
    scored = [sys.executable, __file__, "--score", network, str(folder / "fixed.onnx"), str(artefact)]
    done = subprocess.run(scored, check=True, stdout=subprocess.PIPE)
    artefact.unlink()  # so that none is ever scored twice
    return Run(cost, json.loads(done.stdout))


def score(network: str, fixed: str, artefact: str) -> dict[str, float]:
    """SQNR of each output of an artefact as written, in dB, on the evaluation pictures."""
    import accuracy

    _, scored = accuracy.pictures(network)
    reference = list(accuracy.results(Path(fixed), scored, "written"))
    return dict(zip(reference[0], accuracy.sqnr(Path(artefact), reference, scored, "written"), strict=True))


def release() -> str:
    done = git("tag", "--list", "v*", "--sort=-version:refname")
    if not done:
        raise SystemExit("there is no tag v* yet: name a git ref, or a --wheel")
    return done.splitlines()[0]


def wheel(ref: str) -> Path:
    """The wheel of a git ref, built once for each commit and Python."""
    commit = git("rev-parse", "--verify", f"{ref}^{{commit}}")
    folder = KEPT / f"{commit[:12]}-{sys.implementation.cache_tag}"
    if not list(folder.glob("*.whl")):
        print(f"building leadline of {ref} ({commit[:12]})", file=sys.stderr, flush=True)
        with tempfile.TemporaryDirectory(prefix="leadline-regress-") as sources:
            archive = subprocess.Popen(["git", "-C", str(ROOT), "archive", commit], stdout=subprocess.PIPE)
            subprocess.run(["tar", "-x", "-C", sources], check=True, stdin=archive.stdout)
            pip("wheel", "--no-deps", "--wheel-dir", str(folder), sources)
    return next(folder.glob("*.whl"))


def installed(file: Path) -> Path:
    """A folder that holds what a wheel does, to go before this interpreter's packages."""
    folder = KEPT / hashlib.sha256(file.read_bytes()).hexdigest()[:12]
    if not folder.exists():
        pip("install", "--no-deps", "--target", str(folder), str(file))
    return folder


def pip(*arguments: str) -> None:
    subprocess.run([sys.executable, "-m", "pip", "--disable-pip-version-check", "--quiet", *arguments], check=True)


def git(*arguments: str) -> str:
    done = subprocess.run(["git", "-C", str(ROOT), *arguments], stdout=subprocess.PIPE, text=True)
    if done.returncode:
        raise SystemExit(f"git {' '.join(arguments)} failed")
    return done.stdout.strip()


def show(rows: list[tuple[str, str, Run, Run, list[str]]]) -> None:
    table = Table(title="Before and now; processor time in seconds, peak memory in MB, SQNR in dB")
    for column in ("network", "recipe", "processor", "memory", "SQNR", "worse"):
        table.add_column(column, justify="left" if column in ("network", "recipe", "worse") else "right")
    for network, recipe, before, now, worse in rows:
        nothing = float("nan")
        cells = [
            f"{before.cost.processor:.1f} → {now.cost.processor:.1f}",
            f"{before.cost.peak_mb:.0f} → {now.cost.peak_mb:.0f}",
            " / ".join(f"{a:.2f} → {now.decibels.get(output, nothing):.2f}" for output, a in before.decibels.items()),
        ]
        table.add_row(network, recipe, *cells, "; ".join(worse) or "-")
    Console(width=None if sys.stdout.isatty() else 132).print(table)


if __name__ == "__main__":
    raise SystemExit(main())
