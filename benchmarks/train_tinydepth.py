"""Train the depth networks on rendered scenes, in the open, on a CPU.

    pip install torch onnxscript
    python benchmarks/train_tinydepth.py vit     # TinyDepth: two cores, about an hour
    python benchmarks/train_tinydepth.py conv    # its convolutional variant: half an hour

Scenes are rendered once into $LEADLINE_CACHE/scenes. Training can be interrupted: it goes on from the last epoch. At
the end the network is evaluated on places that it never saw and written as ONNX to python/leadline/depth/networks/.
"""

from __future__ import annotations

import argparse
import json
import multiprocessing
import os
import time
from pathlib import Path

import numpy as np
import torch
from rich.progress import track
from torch import Tensor

import depth_networks
from leadline.depth import scenes

HERE = Path(__file__).parent
NETWORKS = HERE.parent / "python" / "leadline" / "depth" / "networks"
CACHE = Path(os.environ.get("LEADLINE_CACHE", "~/.cache/leadline")).expanduser() / "scenes"

TRAINING = range(0, 1200)
HELD_OUT = range(100_000, 100_060)
VIEWS = 10

# Inverse depth is learned through its logarithm, so that near and far count alike; far beyond 1 / FLOOR does not.
FLOOR = 0.02
PLANS = {
    "vit": {
        "module": depth_networks.TinyDepth,
        "epochs": 8,
        "rate": 1.2e-3,
        "batch": 16,
        "seed": 1,
        "file": "tinydepth",
    },
    "conv": {
        "module": depth_networks.TinyDepthConv,
        "epochs": 9,
        "rate": 3e-3,
        "batch": 16,
        "seed": 2,
        "file": "tinydepth_conv",
    },
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
    return np.load(files[0]), np.load(files[1])


def _render(job: tuple[int, int, tuple[int, int]]) -> tuple[np.ndarray, np.ndarray]:
    seed, views, size = job
    frames = scenes.views(seed, views, size)
    return np.stack([f.rgb for f in frames]), np.stack([1 / f.depth for f in frames]).astype(np.float16)


def batches(rgb: np.ndarray, inverse: np.ndarray, batch: int, rng: np.random.Generator):
    """Batches of one epoch: mirrored, other light and colours, blur and noise. Never zoomed: scale is learned."""
    order = rng.permutation(len(rgb))
    for start in range(0, len(order) - batch + 1, batch):
        pick = np.sort(order[start : start + batch])
        x = torch.from_numpy(rgb[pick]).permute(0, 3, 1, 2).float() / 255  # channels last, as the networks
        d = torch.from_numpy(inverse[pick].astype(np.float32))[:, None]
        n = len(x)

        def draw(low: float, high: float, channels: int = 1, n: int = n) -> Tensor:
            return torch.from_numpy(rng.uniform(low, high, (n, channels, 1, 1)).astype(np.float32))

        x = x ** draw(0.7, 1.4) * draw(0.7, 1.3) * draw(0.88, 1.12, 3)
        grey = x.mean(1, keepdim=True)
        x = grey + (x - grey) * draw(0.2, 1.4)
        x = (x - 0.5) * draw(0.8, 1.2) + 0.5
        soft = torch.nn.functional.avg_pool2d(x, 3, 1, 1, count_include_pad=False)
        x = torch.lerp(x, soft, draw(0, 1) * (draw(0, 1) < 0.5))
        x = x + torch.from_numpy(rng.standard_normal(x.shape, np.float32)) * draw(0, 0.03)
        mirrored = draw(0, 1) < 0.5
        x, d = (torch.where(mirrored, v.flip(3), v) for v in (x, d))
        yield normalised(x.clamp(0, 1)), d


def normalised(x: Tensor) -> Tensor:
    mean, std = (torch.tensor(v).view(1, 3, 1, 1) for v in (depth_networks.MEAN, depth_networks.STD))
    return (x - mean) / std


def loss(predicted: Tensor, truth: Tensor) -> Tensor:
    """L1 of log inverse depth, plus its gradients at four scales (Li and Snavely, MegaDepth, 2018)."""
    error = torch.log(predicted + FLOOR) - torch.log(truth + FLOOR)
    total = error.abs().mean()
    for scale in range(4):
        part = error[:, :, :: 2**scale, :: 2**scale]
        total = total + 0.5 * (
            (part[..., 1:] - part[..., :-1]).abs().mean() + (part[..., 1:, :] - part[..., :-1, :]).abs().mean()
        )
    return total


def train(
    name: str,
    module: torch.nn.Module,
    data: tuple[np.ndarray, np.ndarray],
    epochs: int,
    rate: float,
    batch: int,
    seed: int,
) -> torch.nn.Module:
    """AdamW with warm-up and cosine decay; returns the exponential average of the weights."""
    rgb, inverse = data
    steps = epochs * (len(rgb) // batch)
    decay = [p for p in module.parameters() if p.ndim > 1]
    plain = [p for p in module.parameters() if p.ndim <= 1]
    optimiser = torch.optim.AdamW(
        [{"params": decay, "weight_decay": 0.05}, {"params": plain, "weight_decay": 0}], lr=rate
    )
    schedule = torch.optim.lr_scheduler.OneCycleLR(
        optimiser, rate, steps, pct_start=0.06, div_factor=20, final_div_factor=100
    )
    average = torch.optim.swa_utils.AveragedModel(
        module, multi_avg_fn=torch.optim.swa_utils.get_ema_multi_avg_fn(0.998), use_buffers=True
    )
    checkpoint, first = CACHE / f"{name}.checkpoint", 0
    parts = {"module": module, "optimiser": optimiser, "schedule": schedule, "average": average}
    if checkpoint.exists():
        state = torch.load(checkpoint, weights_only=True)
        first = state["epoch"]
        for key, part in parts.items():
            part.load_state_dict(state[key])
    for epoch in range(first, epochs):
        module.train()
        start, total, count = time.monotonic(), 0.0, 0
        for x, d in batches(rgb, inverse, batch, np.random.default_rng([seed, epoch])):
            optimiser.zero_grad(set_to_none=True)
            value = loss(module(x), d)
            value.backward()
            torch.nn.utils.clip_grad_norm_(module.parameters(), 1.0)
            optimiser.step()
            schedule.step()
            average.update_parameters(module)
            total, count = total + value.item(), count + 1
            if count % 50 == 0:
                pace = count * batch / (time.monotonic() - start)
                print(f"{name} {epoch + 1}/{epochs} step {count} loss {total / count:.4f} {pace:.1f}/s", flush=True)
        torch.save({"epoch": epoch + 1} | {key: part.state_dict() for key, part in parts.items()}, checkpoint)
        print(f"{name} epoch {epoch + 1}/{epochs} loss {total / count:.4f} {evaluate(average.module)}", flush=True)
    return average.module.eval()


def evaluate(module: torch.nn.Module) -> dict[str, float]:
    rgb, inverse = rendered(HELD_OUT)
    module.eval()
    scores = []
    with torch.inference_mode():
        for start in range(0, len(rgb), 20):
            x = torch.from_numpy(rgb[start : start + 20]).permute(0, 3, 1, 2).float() / 255
            d = inverse[start : start + 20].astype(np.float32)
            y = module(normalised(x))[:, 0].numpy()
            for truth, guess in zip(d, y, strict=True):
                valid = truth > 1 / 80
                t, g = 1 / truth[valid], 1 / np.maximum(guess[valid], 1 / 80)
                scores.append([np.mean(np.maximum(t / g, g / t) < 1.25), np.mean(np.abs(t - g) / t)])
    delta, absrel = np.mean(scores, 0)
    return {"delta1": round(float(delta), 4), "AbsRel": round(float(absrel), 4)}


def export(module: torch.nn.Module, file: Path) -> None:
    torch.onnx.export(
        module,
        (torch.zeros(1, 3, *module.size),),
        str(file),
        input_names=["image"],
        output_names=["inverse_depth"],
        dynamo=True,
        opset_version=21,
        external_data=False,
    )


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("network", choices=PLANS)
    plan = PLANS[parser.parse_args().network]
    torch.manual_seed(plan["seed"])
    module = plan["module"]().to(memory_format=torch.channels_last)
    print(sum(p.numel() for p in module.parameters()), "parameters")
    module = train(plan["file"], module, rendered(TRAINING), plan["epochs"], plan["rate"], plan["batch"], plan["seed"])
    NETWORKS.mkdir(exist_ok=True)
    export(module, NETWORKS / f"{plan['file']}.onnx")
    print(json.dumps(evaluate(module)))


if __name__ == "__main__":
    main()
