"""What sharing saves: the same sweep with and without, one worker, one thread.

    python benchmarks/sweep_sharing.py                # ten minutes on one core
    python benchmarks/sweep_sharing.py --json out.json

Eight cells of W4A8 on TinyDepth that differ in how they calibrate and round: folding, equalisation and rotation are
theirs in common, and for some of them calibration. The figures must be the same.
"""

from __future__ import annotations

import argparse
import json
import tempfile
import time
from pathlib import Path
from typing import Any

from leadline.files import replacing
from leadline.sweep import Results, run

SWEEP = """
networks = ["tinydepth"]
recipes = ["w4a8"]
metrics = ["sqnr", "delta1", "size", "seconds"]
[data]
scenes = "both"
first = 200000
count = 12
[[evaluation]]
scenes = "both"
first = 310000
count = 8
[[vary]]
steps.round.method = ["nearest", "gptq", "descent"]
[[vary]]
steps.round.method = "descent"
steps.round.compensate = [false, true]
[[vary]]
steps.calibrate.activations = ["minmax", "mse", "sqnr", "percentile"]
steps.round.method = "nearest"
"""


def main() -> None:
    parser = argparse.ArgumentParser(description=(__doc__ or "").split("\n")[0])
    parser.add_argument("--json", type=Path, help="also write the figures here")
    options = parser.parse_args()
    found: dict[str, Any] = {}
    done: dict[str, Results] = {}
    with tempfile.TemporaryDirectory(prefix="leadline-sharing-") as name:
        file = Path(name, "sharing.toml")
        file.write_text(SWEEP)
        for share in (False, True):
            start = time.monotonic()
            done[str(share)] = run(file, Path(name, str(share)), workers=1, threads=1, share=share)
            found["shared" if share else "alone"] = round(time.monotonic() - start, 1)
        found["megabytes"] = round(
            sum(f.stat().st_size for f in Path(name, "True", "shared").rglob("*.pickle")) / 1e6, 1
        )
    found["cells"] = len({row.key for row in done["True"].complete})
    found["equal"] = figures(done["False"]) == figures(done["True"])
    print(found)
    if options.json:
        with replacing(options.json) as temporary:
            temporary.write_text(json.dumps(found, indent=1))


def figures(results: Results) -> dict[str, dict[str, float]]:
    """But for the time that cells took."""
    return {row.key: {key: f for key, f in row.figures.items() if key != "seconds"} for row in results.complete}


if __name__ == "__main__":
    main()
