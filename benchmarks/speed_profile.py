"""Where a command of leadline spends the processor's time.

    python benchmarks/speed_profile.py FILE.prof leadline.cli quantize ...     # run it, write the profile
    python benchmarks/speed_profile.py FILE.prof                               # show it

The profile's clock is the processor time of all threads, so that a core that works on two counts twice; what other
threads do is put down to whatever Python waits for it. snakeviz and pstats read the file, too.
"""

from __future__ import annotations

import cProfile
import pstats
import runpy
import sys
import time
from pathlib import Path
from typing import Any

STAGES = ("cli/networks.py", "quantize"), ("pipeline.py", "quantize")
"""What these call are stages, and so is the function `run` of each step."""


def main() -> None:
    file, *command = sys.argv[1:]
    if command:
        run(file, command)
    else:
        show(file)


def run(file: str, command: list[str]) -> None:
    sys.argv = command
    profile = cProfile.Profile(time.process_time)
    try:
        profile.runcall(runpy.run_module, command[0], run_name="__main__", alter_sys=True)
    finally:
        profile.dump_stats(file)


def show(file: str) -> None:
    stats = pstats.Stats(file).stats  # type: ignore[attr-defined]
    total = sum(own for _, _, own, _, _ in stats.values())
    stages = {key: value[3] for key, value in stats.items() if is_stage(key, value[4])}
    print(f"{total:.1f} s of the processor, the profile's own time included. Stages, one inside the other:")
    table(stages, total, 30)
    print("Functions by what they take themselves:")
    table({key: value[2] for key, value in stats.items()}, total, 25, stats)


def is_stage(key: Any, callers: dict[Any, Any]) -> bool:
    file, _, name = key
    if "leadline/steps/" in file and name == "run":
        return True
    return "leadline" in file and any(end(caller) in STAGES for caller in callers)


def end(key: Any) -> tuple[str, str]:
    file, _, name = key
    return file.rpartition("leadline/")[2], name


def table(seconds: dict[Any, float], total: float, most: int, stats: dict[Any, Any] | None = None) -> None:
    for key in sorted(seconds, key=seconds.__getitem__, reverse=True)[:most]:
        if seconds[key] >= 0.002 * total:
            file, line, name = key
            where = file.rpartition("leadline/")[2] if "leadline/" in file else Path(file).name
            calls = f"{stats[key][1]:9d} calls" if stats else ""
            print(f"  {seconds[key]:8.2f} s {seconds[key] / total:6.1%} {calls}  {where}:{line} {name}")


if __name__ == "__main__":
    main()
