"""Computing one cell: quantise, then judge."""

from __future__ import annotations

import time
from collections.abc import Callable, Sequence
from dataclasses import asdict
from typing import Any, TypeVar

import numpy as np

from leadline import data as feeds
from leadline import pipeline
from leadline.cache import Cache, digest
from leadline.data import Preprocess, Samples, load_samples
from leadline.data.samples import Item
from leadline.depth import Frame, networks, scenes
from leadline.evaluation import Footage, Judgement, judge, predict
from leadline.graph import Graph, Session, inspect_inputs
from leadline.pipeline import Quantized
from leadline.progress import Progress, Quiet
from leadline.scores import Run
from leadline.sqnr import Sqnr
from leadline.sweep.cell import Cell, content
from leadline.sweep.spec import Data
from leadline.types import refuse

T = TypeVar("T")


def measure(
    cell: Cell, *, cache: Cache | None = None, threads: int | None = None, progress: Progress | None = None
) -> dict[str, float]:
    """A cell's figures: ``size`` of the artefact in bytes, ``seconds`` that it took (as if nothing had been shared),
    and for each evaluation its metrics, beside the float network's own where there is a truth (``float.delta1``).

    Raises InputError for whatever is wrong with the network, the recipe or the data.
    """
    start, saved = time.monotonic(), cache.saved if cache else 0.0
    graph, quantized = quantize_cell(cell, cache=cache, threads=threads, progress=progress)
    size = _size(graph.inputs[0].shape)
    seconds = time.monotonic() - start + (cache.saved - saved if cache else 0.0)
    artefact = quantized.to_qdq()
    figures = {"size": float(artefact.ByteSize()), "seconds": round(seconds, 3)}
    if not cell.evaluation:
        return figures | _judged(graph, artefact, quantized.held_out, threads)
    for data in cell.evaluation:
        prefix = f"{data.name}." if len(cell.evaluation) > 1 else ""
        if data.source:
            preprocess = preprocessing(cell, data)
            samples = load_samples(_given(data, data.source, preprocess), graph)
            judged = _judged(graph, artefact, samples, threads)
            figures |= {prefix + name: value for name, value in judged.items()}
            continue
        pictures = preprocessing(cell, data) or Preprocess()
        footage = Footage([frame for _, frame in frames(data, size, cache)], video=data.video)

        def float_network(footage: Footage = footage, pictures: Preprocess = pictures) -> Judgement:
            return judge(predict(graph, footage.frames, pictures, threads=threads), footage)

        asked = digest("float network", content(cell.file), asdict(data) | {"name": ""}, pictures)
        reference = _shared(cache, asked, float_network)
        output = predict(artefact, footage.frames, pictures, threads=threads, progress=progress)
        depth = judge(output, footage, reference)
        figures |= {prefix + name: value for name, value in _figures(depth).items()}
        figures |= {f"float.{prefix}{name}": value for name, value in _figures(reference).items()}
        figures[f"{prefix}sqnr"] = Sqnr().update(reference.output, depth.output).db
        figures[f"{prefix}collapsed"] = float(bool(depth.collapse))
    return figures


def quantize_cell(
    cell: Cell, *, cache: Cache | None = None, threads: int | None = None, progress: Progress | None = None
) -> tuple[Graph, Quantized]:
    """The float network, and what the cell's recipe makes of it."""
    data, inputs = cell.data, inspect_inputs(cell.file)
    preprocess = preprocessing(cell, data)
    if data.source:
        pool = load_samples(_given(data, data.source, preprocess).pool, inputs)
    else:
        pool = _samples(data, inputs, preprocess or Preprocess(), cache)
    first = next(iter(pool))
    asked = digest("network", content(cell.file), {name: array.shape for name, array in first.items()})
    graph = _shared(cache, asked, lambda: Graph.load(cell.file, first))
    quantized = pipeline.quantize(
        graph,
        cell.recipe,
        _given(data, pool),
        target=cell.target,
        threads=threads,
        progress=progress,
        cache=cache,
    )
    return graph, quantized


def _given(data: Data, source: Any, preprocess: Preprocess | None = None) -> feeds.Data:
    """What a table says of samples, of this source."""
    few: dict[str, Any] = {"num_samples": data.num_samples, "choice": data.choice, "features": data.features or None}
    return feeds.Data(source, preprocess=preprocess, seed=data.seed, **(few if data.num_samples else {}))


def preprocessing(cell: Cell, data: Data) -> Preprocess | None:
    """As the data's table says, or the calibration's, the recipe's, or the network's own; None where nobody says."""
    shipped = networks.PREPROCESS if cell.network in networks.NAMES else {}
    table = data.preprocess or cell.data.preprocess or cell.recipe.data or shipped
    return Preprocess.from_dict(table) if table else None


def frames(data: Data, size: tuple[int, int] = scenes.SIZE, cache: Cache | None = None) -> list[tuple[str, Frame]]:
    """Rendered frames with their labels, `size` (height, width), disturbed as the table says."""
    if not data.scenes:
        raise refuse("sweep", "frames must come from scenes", f"source {data.source!r}")

    def render() -> list[tuple[str, Frame]]:
        if data.video:
            seed = data.first + (data.first % 2 != (data.scenes == "streets") and data.scenes != "both")
            found = [(f"clip-{seed}[{i}]", frame) for i, frame in enumerate(scenes.clip(seed, data.count, size))]
        else:
            found = [
                (f"place-{seed}[{i}]", frame)
                for seed in _places(data)
                for i, frame in enumerate(scenes.views(seed, data.views, size))
            ]
        changes = {"noise": data.noise, "darkness": data.darkness, "blur": data.blur}
        return [(name, scenes.disturbed(frame, **changes, seed=i)) for i, (name, frame) in enumerate(found)]

    rendered = (data.scenes, data.first, data.count, data.views, data.video, data.noise, data.darkness, data.blur)
    return _shared(cache, digest("frames", rendered, size), render)


def _places(data: Data) -> Sequence[int]:
    """Even seeds are rooms, odd ones streets."""
    if data.scenes == "both":
        return range(data.first, data.first + data.count)
    start = data.first + (data.first % 2 != (data.scenes == "streets"))
    return range(start, start + 2 * data.count, 2)


def _size(dims: Sequence[int | None]) -> tuple[int, int]:
    """Of the pictures that a network wants; the scenes' own where it takes any."""
    sides = [side for side in dims[1:] if side not in (1, 3)]
    fixed = [side for side in sides if isinstance(side, int)]
    return (fixed[0], fixed[1]) if len(sides) == len(fixed) == 2 else scenes.SIZE


def _samples(data: Data, inputs: Any, preprocess: Preprocess, cache: Cache | None) -> Samples:
    from PIL import Image

    if len(inputs) != 1:
        raise refuse("sweep", "a network calibrated on scenes must have one input", len(inputs))
    name = inputs[0][0]

    def item(label: str, frame: Frame) -> Item:
        return Item(label, lambda: {name: preprocess(Image.fromarray(frame.rgb))})

    return Samples([item(label, frame) for label, frame in frames(data, _size(inputs[0][2]), cache)], data.seed)


def _figures(judged: Judgement) -> dict[str, float]:
    scores, agreement = judged.scores, judged.agreement
    found = {"abs_rel": scores.abs_rel, "rmse": scores.rmse, "delta1": scores.delta1, "edge_f1": judged.sharpness}
    if agreement is not None:
        found |= {"pearson": agreement.pearson, "ssim": agreement.ssim}
    return found | {name: float(np.mean(profile)) for name, profile in judged.temporal.items()}


def _judged(graph: Graph, artefact: Any, samples: Samples, threads: int | None) -> dict[str, float]:
    """The SQNR in dB, the mean over the outputs, and whether one of them, or a part of it, has collapsed: 1 or 0."""
    run = Run(graph, [value.name for value in graph.outputs], [])
    with Session(graph, threads=threads) as exact, Session(artefact, optimize=False, threads=threads) as simulated:
        for feed in Quiet().over(samples, "judge", len(samples)):
            run.update("", exact.run(feed), simulated.run(feed), {}, {})
    scores = run.scores()
    lost = any(score.collapsed for score in scores)
    return {"sqnr": float(np.mean([score.sqnr for score in scores])), "collapsed": float(lost)}


def _shared(cache: Cache | None, key: str, compute: Callable[[], T]) -> T:
    return compute() if cache is None else cache.recall(key, compute)
