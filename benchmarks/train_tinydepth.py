"""Train the depth networks on rendered scenes, in the open, on a CPU.

    pip install torch onnxscript
    python benchmarks/train_tinydepth.py vit      # TinyDepth: three and a half hours
    python benchmarks/train_tinydepth.py conv     # its convolutional variant: an hour
    python benchmarks/train_tinydepth.py small    # SmallDepth's head on cached features of network A: three quarters

Hours of one core: OMP_NUM_THREADS=1 is best, since on a shared machine more threads wait for one another. Scenes are
rendered once into $LEADLINE_CACHE/scenes. Training can be interrupted: it goes on from the last epoch. At the end the
network is evaluated on places that it never saw and written as ONNX: the first two to
python/leadline/depth/networks/, the head to benchmarks/smalldepth_head.onnx.
"""

from __future__ import annotations

import argparse
import json
import multiprocessing
import os
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import onnx
import torch
from rich.progress import track
from torch import Tensor

import depth_networks
import smalldepth
from leadline.depth import networks, scenes, score

HERE = Path(__file__).parent
NETWORKS = HERE.parent / "python" / "leadline" / "depth" / "networks"
CACHE = Path(os.environ.get("LEADLINE_CACHE", "~/.cache/leadline")).expanduser() / "scenes"

TRAINING = range(0, 1200)
HELD_OUT = range(100_000, 100_060)
VIEWS = 10

# Inverse depth is learned through its logarithm, so that near and far count alike; far beyond 1 / FLOOR does not.
FLOOR = 0.02

Batch = tuple[tuple[Tensor, ...], Tensor]


@dataclass(frozen=True)
class Plan:
    """`cycles` of `epochs` each: the rate falls to nothing in a cycle, the next one starts lower ("SGDR", Loshchilov
    and Hutter, 2017)."""

    module: Callable[[], torch.nn.Module]
    file: Path
    epochs: int
    rate: float
    seed: int
    cycles: int = 1
    batch: int = 8


PLANS = {
    "vit": Plan(depth_networks.TinyDepth, NETWORKS / "tinydepth.onnx", 8, 2e-3, seed=1, cycles=2),
    "conv": Plan(depth_networks.TinyDepthConv, NETWORKS / "tinydepth_conv.onnx", 4, 3e-3, seed=2, cycles=2),
    "small": Plan(depth_networks.SmallDepthHead, HERE / "smalldepth_head.onnx", 5, 1e-3, seed=3),
}


def rendered(seeds: range, size: tuple[int, int] = scenes.SIZE, views: int = VIEWS) -> tuple[np.ndarray, np.ndarray]:
    """Pictures (N, H, W, 3) uint8 and inverse depth (N, H, W) float16 in 1/m of all views, from the cache."""
    name = f"{seeds.start}-{seeds.stop}-{views}-{size[0]}x{size[1]}"
    files = [CACHE / f"{name}-{part}.npy" for part in ("rgb", "inverse")]
    if not all(file.exists() for file in files):
        CACHE.mkdir(parents=True, exist_ok=True)
        with multiprocessing.Pool() as pool:
            jobs = pool.imap(_render, [(seed, views, size) for seed in seeds], chunksize=4)
            done = list(track(jobs, f"render {len(seeds)} places", total=len(seeds)))
        for file, arrays in zip(files, zip(*done, strict=True), strict=True):
            with open(partial := file.with_suffix(".part"), "wb") as stream:
                np.save(stream, np.concatenate(arrays))
            partial.rename(file)
    return np.load(files[0], mmap_mode="r"), np.load(files[1], mmap_mode="r")


def _render(job: tuple[int, int, tuple[int, int]]) -> tuple[np.ndarray, np.ndarray]:
    seed, views, size = job
    frames = scenes.views(seed, views, size)
    return np.stack([f.rgb for f in frames]), np.stack([1 / f.depth for f in frames]).astype(np.float16)


def pictures(rgb: np.ndarray, inverse: np.ndarray, batch: int, rng: np.random.Generator) -> Iterator[Batch]:
    """Batches of one epoch: mirrored, slightly other light and colours, blur and noise. Never zoomed: scale is learned.

    Held-out scores follow those of training closely, so that more of it only slows learning.
    """
    for pick in _shuffled(len(rgb), batch, rng):
        # A view of channels-last memory, as the networks are.
        x = torch.from_numpy(rgb[pick]).permute(0, 3, 1, 2).float() / 255
        d = torch.from_numpy(inverse[pick].astype(np.float32))[:, None]
        n = len(x)

        def draw(low: float, high: float, channels: int = 1, n: int = n) -> Tensor:
            return torch.from_numpy(rng.uniform(low, high, (n, channels, 1, 1)).astype(np.float32))

        x = x ** draw(0.85, 1.2) * draw(0.85, 1.15) * draw(0.94, 1.06, 3)
        grey = x.mean(1, keepdim=True)
        x = grey + (x - grey) * draw(0.6, 1.2)
        soft = torch.nn.functional.avg_pool2d(x, 3, 1, 1, count_include_pad=False)
        x = torch.lerp(x, soft, draw(0, 1) * (draw(0, 1) < 0.2))
        x = x + torch.from_numpy(rng.standard_normal(x.shape, np.float32)) * draw(0, 0.015)
        mirrored = draw(0, 1) < 0.5
        x, d = (torch.where(mirrored, v.flip(3), v) for v in (x, d))
        yield (normalised(x.clamp(0, 1)),), d


def tokens(features: np.ndarray, inverse: np.ndarray, batch: int, rng: np.random.Generator) -> Iterator[Batch]:
    """Batches of one epoch of cached (N, 4, 257, 384) features."""
    for pick in _shuffled(len(features), batch, rng):
        x = torch.from_numpy(features[pick].astype(np.float32))
        yield tuple(x.unbind(1)), torch.from_numpy(inverse[pick].astype(np.float32))[:, None]


def _shuffled(count: int, batch: int, rng: np.random.Generator) -> Iterator[np.ndarray]:
    order = rng.permutation(count)
    for start in range(0, count - batch + 1, batch):
        yield np.sort(order[start : start + batch])


def normalised(x: Tensor) -> Tensor:
    mean, std = (torch.tensor(networks.PREPROCESS[key]).view(1, 3, 1, 1) for key in ("mean", "std"))
    return (x - mean) / std


def loss(predicted: Tensor, truth: Tensor) -> Tensor:
    """L1 of log inverse depth, plus its gradients at four scales (Li and Snavely, MegaDepth, 2018)."""
    error = torch.log(predicted + FLOOR) - torch.log(truth + FLOOR)
    total = error.abs().mean()
    for scale in range(4):
        part = error[:, :, :: 2**scale, :: 2**scale]
        across, down = part[..., 1:] - part[..., :-1], part[..., 1:, :] - part[..., :-1, :]
        total = total + 0.5 * (across.abs().mean() + down.abs().mean())
    return total


def train(
    plan: Plan,
    epoch_batches: Callable[[int, np.random.Generator], Iterator[Batch]],
    count: int,
    evaluate: Callable[[torch.nn.Module], dict[str, float]],
) -> torch.nn.Module:
    """AdamW with warm-up and cosine decay; returns the exponential average of the weights."""
    name = plan.file.stem
    torch.manual_seed(plan.seed)
    module = plan.module().to(memory_format=torch.channels_last)
    print(name, sum(p.numel() for p in module.parameters()), "parameters")
    average = torch.optim.swa_utils.AveragedModel(module, multi_avg_fn=_towards, use_buffers=True)
    checkpoint, first = CACHE / f"{name}.checkpoint", 0
    state = torch.load(checkpoint, weights_only=True) if checkpoint.exists() else None
    if state is not None:
        first = state["epoch"]
        module.load_state_dict(state["module"])
        average.load_state_dict(state["average"])
    optimiser, schedule = _optimiser(module, plan, 0, count)
    for epoch in range(first, plan.epochs * plan.cycles):
        if epoch % plan.epochs == 0:
            optimiser, schedule = _optimiser(module, plan, epoch // plan.epochs, count)
        elif epoch == first and state is not None:
            optimiser, schedule = _optimiser(module, plan, epoch // plan.epochs, count)
            optimiser.load_state_dict(state["optimiser"])
            schedule.load_state_dict(state["schedule"])
        module.train()
        start, total, done = time.monotonic(), 0.0, 0
        for inputs, d in epoch_batches(plan.batch, np.random.default_rng([plan.seed, epoch])):
            optimiser.zero_grad(set_to_none=True)
            value = loss(module(*inputs), d)
            value.backward()
            torch.nn.utils.clip_grad_norm_(module.parameters(), 1.0)
            optimiser.step()
            schedule.step()
            average.update_parameters(module)
            total, done = total + value.item(), done + 1
            if done % 50 == 0:
                pace = done * plan.batch / (time.monotonic() - start)
                print(f"{name} epoch {epoch + 1} step {done} loss {total / done:.4f} {pace:.1f}/s", flush=True)
        parts = {"module": module, "optimiser": optimiser, "schedule": schedule, "average": average}
        partial = checkpoint.with_suffix(".part")
        torch.save({"epoch": epoch + 1} | {key: part.state_dict() for key, part in parts.items()}, partial)
        partial.rename(checkpoint)
        print(f"{name} epoch {epoch + 1} loss {total / done:.4f} {evaluate(average.module)}", flush=True)
    return average.module.eval()


@torch.no_grad()
def _towards(average: list[Tensor], now: list[Tensor], count: Tensor | int) -> None:
    """An exponential average over the last thousand steps; while there are fewer, over those."""
    share = max(1e-3, 9 / (10 + int(count)))
    for mean, value in zip(average, now, strict=True):
        if mean.is_floating_point():
            mean.lerp_(value, share)
        else:
            mean.copy_(value)


def _optimiser(
    module: torch.nn.Module, plan: Plan, cycle: int, count: int
) -> tuple[torch.optim.Optimizer, torch.optim.lr_scheduler.LRScheduler]:
    rate = plan.rate * 0.6**cycle
    groups = [
        {"params": [p for p in module.parameters() if p.ndim > 1], "weight_decay": 0.05},
        {"params": [p for p in module.parameters() if p.ndim <= 1], "weight_decay": 0},
    ]
    optimiser = torch.optim.AdamW(groups, lr=rate, fused=True)
    schedule = torch.optim.lr_scheduler.OneCycleLR(
        optimiser, rate, plan.epochs * (count // plan.batch), pct_start=0.06, div_factor=20, final_div_factor=100
    )
    return optimiser, schedule


def scores(outputs: np.ndarray, inverse: np.ndarray) -> dict[str, float]:
    """Held-out figures: rooms and streets apart, in metres as they come and after scale-shift alignment."""
    with np.errstate(divide="ignore"):
        truth = 1 / np.asarray(inverse, np.float32)
    place = np.arange(len(truth)) // VIEWS % 2
    found = {}
    for kind, which in (("all", place >= 0), ("rooms", place == 0), ("streets", place == 1)):
        for alignment in ("none", "scale-shift"):
            one = score(outputs[which], truth[which], alignment, inverse=True)
            found[f"{kind} {alignment}"] = {"delta1": round(one.delta1, 4), "AbsRel": round(one.abs_rel, 4)}
    return found


def outputs(module: torch.nn.Module, batches: Iterator[tuple[Tensor, ...]]) -> np.ndarray:
    module.eval()
    with torch.inference_mode():
        return np.concatenate([module(*inputs)[:, 0].numpy() for inputs in batches])


def export(module: torch.nn.Module, examples: tuple[Tensor, ...], names: list[str], file: Path) -> None:
    file.parent.mkdir(exist_ok=True)
    torch.onnx.export(
        module, examples, str(file), input_names=names, output_names=["inverse_depth"],
        dynamo=True, opset_version=21, external_data=False, verbose=False,
    )  # fmt: skip
    model = onnx.load(str(file))
    for node in model.graph.node:  # which lines of which machine's files it came from
        kept = [entry for entry in node.metadata_props if entry.key != "pkg.torch.onnx.stack_trace"]
        del node.metadata_props[:]
        node.metadata_props.extend(kept)
    onnx.save(model, str(file))


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("network", choices=PLANS)
    name = parser.parse_args().network
    plan = PLANS[name]
    if name == "small":
        x, d = smalldepth.features(rendered(range(0, 300), (224, 224), 4), CACHE / "features-0-300-4.npy")
        held_x, held_d = smalldepth.features(rendered(HELD_OUT, (224, 224)), CACHE / "features-held-out.npy")
        batches = tokens
        examples, names = tuple(torch.zeros(1, 257, 384) for _ in range(4)), list(smalldepth.INPUTS)

        def held_out() -> Iterator[tuple[Tensor, ...]]:
            for start in range(0, len(held_x), 10):
                yield tuple(torch.from_numpy(held_x[start : start + 10].astype(np.float32)).unbind(1))
    else:
        (x, d), (held_x, held_d) = rendered(TRAINING), rendered(HELD_OUT)
        batches = pictures
        examples, names = (torch.zeros(1, 3, *scenes.SIZE),), ["image"]

        def held_out() -> Iterator[tuple[Tensor, ...]]:
            for start in range(0, len(held_x), 20):
                yield (normalised(torch.from_numpy(held_x[start : start + 20]).permute(0, 3, 1, 2).float() / 255),)

    def evaluate(module: torch.nn.Module) -> dict[str, float]:
        return scores(outputs(module, held_out()), held_d)

    module = train(plan, lambda batch, rng: batches(x, d, batch, rng), len(x), evaluate)
    export(module, examples, names, plan.file)
    print(json.dumps(evaluate(module), indent=1))


if __name__ == "__main__":
    main()
