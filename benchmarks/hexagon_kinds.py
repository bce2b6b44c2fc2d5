"""Every kind of operator on Hexagon: what is promised, and what Qualcomm's emulation of the HTP makes of it.

    python benchmarks/hexagon_kinds.py                            # some twenty minutes; the table of docs/hexagon.md
    python benchmarks/hexagon_kinds.py --recipes w8a8 --kinds Reduce Resize

Each network is a layer, the operator and a layer (`tests/operator_kinds.py`), quantised for the target hexagon on four
samples of noise. Promised is the SQNR in dB that the simulation says on two others, measured what the emulation gives.
What it does not build, or not as a whole, is warned of before the work ("named"); so is what it takes with loss.
"""

from __future__ import annotations

import argparse
import json
import sys
import warnings
from pathlib import Path

from leadline.files import replacing
from leadline.graph import Graph
from leadline.pipeline import quantize
from leadline.types import InputError

sys.path.insert(0, str(Path(__file__).resolve().parents[1] / "tests"))
from operator_kinds import KINDS, network
from small_networks import samples

RECIPES = ("w8a8", "w8a16")
APART = 1.5
"""dB between promise and measurement that are worth a mark."""


def cell(kind: str, recipe: str) -> tuple[str, str]:
    """Promised and measured, as the table shows them."""
    proto, shape = network(kind)
    with warnings.catch_warnings(record=True) as said:
        warnings.simplefilter("always")
        try:
            made = quantize(Graph.from_model(proto), recipe, samples(4, shape), target="hexagon")
        except InputError as error:
            return "refused", str(error)
        found = made.verify(samples(2, shape, seed=5))
    (output,) = found.outputs
    named = "named" if any("hexagon" in str(one.message) for one in said) else ""
    if output.device is None:
        left = "none" if found.facts is None or not found.facts.left else str(len(found.facts.left))
        return f"{output.sqnr:.1f}", ", ".join(
            filter(None, (named, f"{left} on the CPU" if left != "none" else "not built"))
        )
    apart = abs(output.device - output.sqnr) > APART
    return f"{output.sqnr:.1f}", ", ".join(filter(None, (f"{output.device:.1f}", "apart" if apart else "", named)))


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--recipes", nargs="+", default=RECIPES)
    parser.add_argument("--kinds", nargs="+", default=[""], help="those whose names hold one of these")
    parser.add_argument("--json", type=Path, help="where results go; those that are there are not computed again")
    arguments = parser.parse_args()
    known = json.loads(arguments.json.read_text()) if arguments.json and arguments.json.exists() else {}
    print("| operator |" + "".join(f" {recipe} promised | measured |" for recipe in arguments.recipes))
    print("|---|" + "---|---|" * len(arguments.recipes))
    for kind in KINDS:
        if not any(part in kind for part in arguments.kinds):
            continue
        row = [kind]
        for recipe in arguments.recipes:
            if f"{kind}|{recipe}" not in known:
                known[f"{kind}|{recipe}"] = cell(kind, recipe)
            row += known[f"{kind}|{recipe}"]
        print(f"| {' | '.join(row)} |", flush=True)
        if arguments.json:
            with replacing(arguments.json) as temporary:
                temporary.write_text(json.dumps(known))


if __name__ == "__main__":
    main()
