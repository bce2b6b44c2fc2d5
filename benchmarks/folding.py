"""What folding rotations and scales into a transformer does to its activations, and to its output.

    python benchmarks/folding.py                                          # a few minutes on two cores
    python benchmarks/folding.py --networks tinydepth --png out.png --json out.json

For the input of every layer that stands behind a LayerNormalization or an attention: the peak over the root mean
square, which is what a grid per tensor pays for, and the disparity of its channels, the largest channel's peak over the
median one's. Rotations and scales are folded without any gate, so this is what the transforms do, not what a recipe
keeps. Twelve samples; the output difference is the largest over the largest output.
"""

from __future__ import annotations

import argparse
import json
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
from rich.console import Console
from rich.table import Table

import accuracy
import smalldepth
from leadline.data import Preprocess, Samples, load_samples
from leadline.data.samples import HELD_OUT
from leadline.depth import networks, scenes
from leadline.evaluation import feeds
from leadline.files import replacing
from leadline.graph import Graph, Session
from leadline.preparation import simulate
from leadline.progress import Quiet
from leadline.recipe import Recipe, Smooth
from leadline.steps import Setup, State
from leadline.steps.places import find_attention, find_norms
from leadline.steps.rotate import rotate_heads, rotate_residual
from leadline.steps.smooth import fold_scales

sys.path.insert(0, str(Path(__file__).resolve().parents[1] / "tests"))
import testbed

NETWORKS = ("A", "smalldepth", "tinydepth")
SAMPLES = 12


def network(name: str) -> tuple[Graph, Samples]:
    if name == "A":
        samples, _ = accuracy.pictures("A")
        return Graph.load(testbed.network("A"), next(iter(samples))), samples.take(SAMPLES)
    graph = Graph.from_model(smalldepth.assemble()) if name == "smalldepth" else Graph.load(networks.path(name))
    size = (224, 224) if name == "smalldepth" else scenes.SIZE
    frames = [scenes.views(seed, size=size)[0] for seed in range(200_000, 200_000 + SAMPLES)]
    return graph, load_samples(feeds(frames, Preprocess(**networks.PREPROCESS)), graph.inputs)


def rotated(graph: Graph, samples: Samples) -> None:
    rotate_residual(graph, samples.take(4), seeds=8)
    rotate_heads(graph)


def smoothed(graph: Graph, samples: Samples) -> None:
    state = State(Setup(Recipe.load("w8a8"), *samples.split(HELD_OUT), Quiet(), simulate), graph)
    fold_scales(Smooth(), state)


def both(graph: Graph, samples: Samples) -> None:
    rotated(graph, samples)
    smoothed(graph, samples)


VARIANTS: dict[str, Callable[[Graph, Samples], None]] = {
    "as trained": lambda graph, samples: None,
    "rotated": rotated,
    "smoothed": smoothed,
    "rotated, smoothed": both,
}


def statistics(graph: Graph, samples: Samples, layers: list[str]) -> dict[str, tuple[float, float]]:
    """Of each layer's input: peak to rms, and channel disparity."""
    inputs = {layer.name: (layer.input, 1 if layer.kind != "linear" else -1) for layer in graph.layers()}
    watched = sorted({inputs[name][0] for name in layers})
    peaks: dict[str, Any] = {}
    powers: dict[str, float] = {}
    with Session(graph, outputs=watched) as session:
        for feed in samples:
            seen = session.run(feed)
            for name in layers:
                tensor, axis = inputs[name]
                rows = np.moveaxis(seen[tensor], axis, 0).reshape(seen[tensor].shape[axis], -1)
                peaks[name] = np.maximum(peaks.get(name, 0), np.abs(rows).max(1))
                powers[name] = powers.get(name, 0) + float(np.square(rows, dtype=np.float64).mean()) / len(samples)
    return {
        name: (float(peaks[name].max() / np.sqrt(powers[name])), float(peaks[name].max() / np.median(peaks[name])))
        for name in layers
    }


def contest(name: str) -> dict[str, Any]:
    graph, samples = network(name)
    graph.fold()
    places = find_norms(graph)[0] + find_attention(graph)[0]
    layers = list(dict.fromkeys(layer.name for place in places for layer, _ in place.readers))
    with Session(graph) as session:
        wanted = [session.run(feed) for feed in samples]
    found: dict[str, Any] = {}
    for variant, transform in VARIANTS.items():
        changed = graph.copy()
        transform(changed, samples)
        difference = 0.0
        with Session(changed) as session:
            for feed, want in zip(samples, wanted, strict=True):
                for tensor, got in session.run(feed).items():
                    difference = max(difference, float(np.abs(got - want[tensor]).max() / np.abs(want[tensor]).max()))
        found[variant] = {"difference": difference, "layers": statistics(changed, samples, layers)}
    return found


def show(found: dict[str, dict[str, Any]]) -> None:
    table = Table(title="Inputs of the layers behind normalisation and attention")
    for column in ("network", "folded in", "output differs by", "peak / rms", "worst", "disparity", "worst"):
        table.add_column(column, justify="left" if column in ("network", "folded in") else "right", no_wrap=True)
    for name, variants in found.items():
        for i, (variant, one) in enumerate(variants.items()):
            peak, disparity = np.array(list(one["layers"].values())).T
            cells = [f"{v:.3g}" for v in (np.exp(np.log(peak).mean()), peak.max())]
            cells += [f"{v:.3g}" for v in (np.exp(np.log(disparity).mean()), disparity.max())]
            end = i + 1 == len(variants)
            table.add_row(name, variant, f"{one['difference']:.1e}", *cells, end_section=end)
    Console(width=None if sys.stdout.isatty() else 120).print(table)


def draw(found: dict[str, dict[str, Any]], path: Path) -> None:
    """Peak to rms of each layer's input, as trained and with each transform, one panel a network."""
    import altair as alt
    import vl_convert

    rows = [
        {"network": name, "folded in": variant, "layer": i, "peak / rms": figures[0]}
        for name, variants in found.items()
        for variant, one in variants.items()
        for i, figures in enumerate(one["layers"].values())
    ]
    chart = (
        alt.Chart(alt.Data(values=rows), width=300, height=220)
        .mark_line(point={"size": 18}, strokeWidth=1.2)
        .encode(
            x=alt.X("layer:Q", title="layer: behind norms, then behind attention"),
            y=alt.Y("peak / rms:Q", scale=alt.Scale(type="log")),
            color=alt.Color("folded in:N", sort=list(VARIANTS), legend=alt.Legend(orient="bottom")),
        )
        .facet(alt.Facet("network:N", sort=list(found), title=None), columns=3)
        .resolve_scale(x="independent")
    )
    with replacing(path) as temporary:
        temporary.write_bytes(vl_convert.vegalite_to_png(chart.to_json(), scale=1.5))


def main() -> None:
    parser = argparse.ArgumentParser(description=(__doc__ or "").split("\n")[0])
    parser.add_argument("--networks", nargs="*", default=NETWORKS, choices=NETWORKS)
    parser.add_argument("--png", type=Path, help="draw the peaks here")
    parser.add_argument("--json", type=Path, help="also write the figures here")
    options = parser.parse_args()
    found = {name: contest(name) for name in options.networks}
    show(found)
    if options.png:
        draw(found, options.png)
    if options.json:
        with replacing(options.json) as temporary:
            temporary.write_text(json.dumps(found, indent=1))


if __name__ == "__main__":
    main()
