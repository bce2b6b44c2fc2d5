"""Two depth networks side by side: figures as ``results.json``, and a PNG with pictures, depths and their error."""

from __future__ import annotations

import json
import os
from collections.abc import Iterable
from dataclasses import asdict, astuple, dataclass
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from leadline.depth import metrics
from leadline.files import filling
from leadline.report.pictures import ERROR, INFERNO, coloured, depth_map, depth_scale
from leadline.targets.litert.files import Source, content_of, size_of
from leadline.targets.litert.run import Interpreter
from leadline.types import refuse

FAR = 1e9
"""Depth has no unit here: any is near enough."""

SHOWN = 3
"""Samples in the PNG."""

GAP = 6


@dataclass(frozen=True)
class DepthComparison:
    """INT8 against FP32, over all views of all samples.

    Attributes
    ----------
    samples, views : int
    correlation, rank_correlation, mse, ssim : float
        See `leadline.depth.metrics.DepthSimilarity`.
    relative : float
        Mean of |y - r| / r.
    worst : float
        Lowest correlation of a view.
    bytes_float, bytes : int
        Of the two files.
    quantized, tensors : int
        Of real values: how many are integers, of all.
    float_operators : dict of str to int
    """

    samples: int
    views: int
    correlation: float
    rank_correlation: float
    mse: float
    ssim: float
    relative: float
    worst: float
    bytes_float: int
    bytes: int
    quantized: int
    tensors: int
    float_operators: dict[str, int]

    def __str__(self) -> str:
        return (
            f"{self.views} views: correlation {self.correlation:.4f} (lowest {self.worst:.4f}), relative error"
            f" {self.relative:.2%}, SSIM {self.ssim:.4f}; {self.bytes_float / 1e6:.1f} MB to {self.bytes / 1e6:.1f} MB"
        )


def compare_depth(
    reference: Source,
    artefact: Source,
    samples: Iterable[NDArray[np.float32]],
    folder: str | os.PathLike[str],
    *,
    threads: int | None = None,
) -> DepthComparison:
    """Run a float ``.tflite`` and a quantised one on the same pictures, and write results.json and comparison.png.

    Parameters
    ----------
    reference, artefact : path or bytes
        Networks from pictures to depth maps of the same size.
    samples : iterable of float32 arrays
        The networks' input, (1, views, 3, height, width) or (1, 3, height, width), of 0 to 1 for the PNG.
    folder : path
        Made, with both files; not there before, or empty.
    threads : int, optional

    Raises
    ------
    InputError
        LiteRT does not run a file, an output is no depth map, or there are no samples.
    """
    runners = [Interpreter(content_of(source), "xnnpack", threads) for source in (reference, artefact)]
    agreements, relative, rows = [], [], []
    count = 0
    for sample in samples:
        count += 1
        float_depth, depth = (_depth(runner, sample) for runner in runners)
        for r, y in zip(float_depth, depth, strict=True):
            agreements.append(metrics.similarity(y[None], r[None]))
            relative.append(float(np.mean(np.abs(y - r) / np.maximum(np.abs(r), 1e-6))))
        if count <= SHOWN:
            rows += [
                _row(*views) for views in zip(sample.reshape(-1, *sample.shape[-3:]), float_depth, depth, strict=True)
            ]
    if not agreements:
        raise refuse("compare_depth", "samples must hold at least one", "none")
    size = size_of(runners[1].model, runners[0].model)
    pearson, spearman, mse, ssim = np.mean([astuple(agreement) for agreement in agreements], 0).tolist()
    result = DepthComparison(
        count,
        len(agreements),
        pearson,
        spearman,
        mse,
        ssim,
        float(np.mean(relative)),
        min(a.pearson for a in agreements),
        size.bytes_float,
        size.bytes,
        size.quantized,
        size.tensors,
        dict(size.float_operators),
    )
    with filling(folder) as out:
        (out / "results.json").write_text(json.dumps(asdict(result), indent=2), "utf-8")
        _write(rows, out / "comparison.png")
    return result


def _depth(runner: Interpreter, sample: NDArray[np.float32]) -> NDArray[np.float32]:
    """(views, height, width)."""
    (name,) = list(runner.inputs)[:1]
    first = next(iter(runner.run_real({name: sample}).values()))
    height, width = sample.shape[-2:]
    if first.size % (height * width):
        raise refuse("compare_depth", f"outputs must be depth maps of {height}x{width}", first.shape)
    return first.reshape(-1, height, width)


def _row(picture: NDArray[np.float32], reference: NDArray[Any], depth: NDArray[Any]) -> list[NDArray[np.uint8]]:
    photograph = np.rint(np.clip(picture.transpose(1, 2, 0), 0, 1) * 255).astype(np.uint8)
    scale = depth_scale(reference, FAR)
    error = np.abs(depth - reference) / np.maximum(np.abs(reference), 1e-6)
    return [photograph, depth_map(reference, scale), depth_map(depth, scale), coloured(error, 0, ERROR, INFERNO)]


def _write(rows: list[list[NDArray[np.uint8]]], path: Path) -> None:
    """Rows of pictures under four captions."""
    from PIL import Image, ImageDraw

    height, width = rows[0][0].shape[:2]
    head = 18
    sheet = Image.new("RGB", (4 * width + 3 * GAP, head + len(rows) * (height + GAP) - GAP), "white")
    pen = ImageDraw.Draw(sheet)
    captions = ("picture", "FP32 depth", "INT8 depth", f"relative error, 0 to {ERROR:.0%}")
    for column, caption in enumerate(captions):
        pen.text((column * (width + GAP) + 2, 3), caption, fill="black")
    for line, row in enumerate(rows):
        for column, pixels in enumerate(row):
            sheet.paste(Image.fromarray(pixels), (column * (width + GAP), head + line * (height + GAP)))
    sheet.save(path)
