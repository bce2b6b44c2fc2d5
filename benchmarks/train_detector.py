"""Trains the small detector of the tests (tests/yolov8_weights.npz) on pictures of coloured blocks.

    python benchmarks/train_detector.py --seconds 1300 --out tests/yolov8_weights.npz

Needs torch; about half an hour of a busy core, 2500 steps. Each convolution is first scaled until its channels have
mean 0 and deviation 1 on a few pictures, which BatchNorm would do. Loss: focal cross-entropy of the classes,
cross-entropy of the two bins next to each side's distance, and smooth L1 of its expectation.
"""

from __future__ import annotations

import argparse
import re
import sys
import time
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch.nn import functional

sys.path.insert(0, str(Path(__file__).parents[1] / "tests"))

from leadline.graph import Graph, Layer, Session
from leadline.torch import to_module
from yolov8_onnx import BINS, COLOURS, STRIDES, picture, yolov8

SIZE, BASE, BATCH, RATE = 160, 6, 6, 2e-3
LEVELS = (36, 64)
"""Pixels of an object's longer side from which the next stride is to find it."""


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--seconds", type=float, default=1300)
    parser.add_argument("--out", type=Path, default=Path("yolov8_weights.npz"))
    given = parser.parse_args()
    torch.manual_seed(0)
    graph = Graph.from_model(yolov8(SIZE, BASE, len(COLOURS)))
    heads = sorted(
        (layer for layer in graph.layers() if re.fullmatch(r"model\.22\.cv[23]\.[0-2]\.2\.weight", layer.weight)),
        key=lambda layer: layer.weight,
    )
    _normalise(graph, heads)
    graph.outputs = [graph.values[layer.output] for layer in heads]
    graph.prune()
    module = to_module(graph).train()
    for layer in heads[3:]:
        getattr(module, module.names[layer.bias or ""]).data.fill_(-4.0)  # nearly everything is ground
    optimiser = torch.optim.AdamW(module.parameters(), lr=RATE, weight_decay=1e-4)
    rng, start, step = np.random.default_rng(0), time.monotonic(), 0
    while (share := (time.monotonic() - start) / given.seconds) < 1:
        for group in optimiser.param_groups:
            group["lr"] = RATE * min(1.0, step / 50) * (0.5 * (1 + np.cos(np.pi * share)) + 0.01)
        drawn = [picture(int(seed), SIZE, SIZE) for seed in rng.integers(100_000, 10_000_000, BATCH)]
        pixels = np.stack([rgb.transpose(2, 0, 1) for rgb, _ in drawn]).astype(np.float32) / 255
        loss = _loss(module(torch.from_numpy(pixels)), [boxes for _, boxes in drawn])
        optimiser.zero_grad()
        loss.backward()
        torch.nn.utils.clip_grad_norm_(module.parameters(), 5.0)
        optimiser.step()
        step += 1
        if step % 200 == 0:
            print(f"{step}: {float(loss.detach()):.3f}", flush=True)
    kept = {name: array for name, array in module.to_graph().weights.items() if name.startswith("model.")}
    floats = {name: array.astype(np.float16) for name, array in kept.items() if array.dtype == np.float32}
    np.savez_compressed(given.out, **floats)


def _normalise(graph: Graph, heads: list[Layer]) -> None:
    pictures = [picture(77 + i)[0].transpose(2, 0, 1)[None].astype(np.float32) / 255 for i in range(4)]
    for layer in graph.layers():
        if layer.bias is None:
            continue
        with Session(graph, outputs=[layer.output]) as session:
            seen = np.concatenate([session.run({"images": one})[layer.output] for one in pictures])
        mean, deviation = seen.mean((0, 2, 3)), seen.std((0, 2, 3)) + 1e-3
        deviation *= 10 if layer in heads else 1
        graph.weights[layer.weight] = np.float32(graph.weights[layer.weight] / deviation[:, None, None, None])
        graph.weights[layer.bias] = np.float32((graph.weights[layer.bias] - mean) / deviation)


def _targets(boxes: np.ndarray, level: int) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """Cells that are to find something, which class, and the distances to its sides in cells."""
    stride, side = STRIDES[level], SIZE // STRIDES[level]
    v, u = (np.mgrid[:side, :side] + 0.5) * stride
    inside, kinds = np.zeros((side, side), bool), np.zeros((side, side), int)
    distances = np.zeros((4, side, side), np.float32)
    for kind, x, y, w, h in boxes * [1, SIZE, SIZE, SIZE, SIZE]:
        if sum(max(w, h) >= limit for limit in LEVELS) != level:
            continue
        reach = [min(max(extent * 0.3, stride * 0.6), extent / 2) for extent in (w, h)]
        near = (abs(u - x) < reach[0]) & (abs(v - y) < reach[1])
        inside |= near
        kinds[near] = int(kind)
        distances[:, near] = np.stack([u - x + w / 2, v - y + h / 2, x + w / 2 - u, y + h / 2 - v])[:, near] / stride
    return inside, kinds, distances.clip(0, BINS - 1.01)


def _loss(outputs: Any, boxes: list[np.ndarray]) -> torch.Tensor:
    total, found = torch.zeros(()), 0
    for level in range(3):
        inside, kinds, sides = (
            torch.from_numpy(np.stack(part)) for part in zip(*(_targets(own, level) for own in boxes), strict=True)
        )
        logits = outputs[3 + level]
        wanted = torch.zeros_like(logits)
        picture_, v, u = inside.nonzero(as_tuple=True)
        wanted[picture_, kinds[inside], v, u] = 1
        entropy = functional.binary_cross_entropy_with_logits(logits, wanted, reduction="none")
        total = total + 2 * (entropy * (wanted - torch.sigmoid(logits)).abs() ** 1.5).sum()
        if len(v):
            bins = outputs[level].reshape(len(boxes), 4, BINS, *logits.shape[2:]).permute(0, 3, 4, 1, 2)[inside]
            distance = sides.permute(0, 2, 3, 1)[inside]
            low = distance.floor().long()
            share, odds = distance - low, torch.log_softmax(bins, -1)
            picked = [odds.gather(-1, (low + i)[..., None])[..., 0] for i in range(2)]
            expected = (bins.softmax(-1) * torch.arange(float(BINS))).sum(-1)
            total = total - 0.5 * (picked[0] * (1 - share) + picked[1] * share).sum()
            total = total + functional.smooth_l1_loss(expected, distance, reduction="sum")
            found += len(v)
    return total / max(found, 1)


if __name__ == "__main__":
    main()
