"""How time and memory grow with a network: Depth Anything's three sizes, stage by stage.

    python benchmarks/growth.py export small base large          # once, where torch and transformers are; 1.9 GB
    python benchmarks/growth.py run small base --samples 8 32 128 --threads 1 2 --recipes w8a8 w4a8 --json out.json

The networks have Depth Anything V2's widths and depths (25, 97 and 335 million parameters) at 252 pixels, and random
weights with what DINOv2's are known for: LayerScales far below one, and a few channels of the residual stream a
hundred times as large as the others, which LayerNorm's gains turn down again. Pictures are smooth noise in files.

Each run is a process of its own that does what ``leadline quantize`` does: artefacts, verification and report
included. Peaks are VmHWM (Linux), set back before each stage; a file that is mapped counts where it has been read.
Processor time is the whole process's.
"""

from __future__ import annotations

import argparse
import json
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

FOLDER = Path.home() / ".cache" / "leadline" / "growth"
SIDE = 252
MB = 1e6


@dataclass(frozen=True)
class Size:
    """Of a Vision Transformer, and the neck behind it."""

    width: int
    depth: int
    heads: int
    taps: tuple[int, ...]
    neck: tuple[int, ...]
    features: int


SIZES = {
    "small": Size(384, 12, 6, (3, 6, 9, 12), (48, 96, 192, 384), 64),
    "base": Size(768, 12, 12, (3, 6, 9, 12), (96, 192, 384, 768), 128),
    "large": Size(1024, 24, 16, (5, 12, 18, 24), (256, 512, 1024, 1024), 256),
}


def main() -> int:
    parser = argparse.ArgumentParser(description=(__doc__ or "").split("\n")[0])
    commands = parser.add_subparsers(dest="command", required=True)
    for name in ("export", "run"):
        command = commands.add_parser(name)
        command.add_argument("sizes", nargs="+", choices=list(SIZES))
        command.add_argument("--folder", type=Path, default=FOLDER, help="where the networks are")
    commands.choices["export"].add_argument(
        "--external", action="store_true", help="weights in a file of their own, as PyTorch writes them by default"
    )
    run = commands.choices["run"]
    run.add_argument("--recipes", nargs="+", default=["w8a8"])
    run.add_argument("--samples", nargs="+", type=int, default=[32])
    run.add_argument("--threads", nargs="+", type=int, default=[2])
    run.add_argument("--json", type=Path, help="also write the figures here")
    child = commands.add_parser("child")
    for name in ("network", "pictures", "recipe", "threads", "out"):
        child.add_argument(name)
    options = parser.parse_args()
    if options.command == "child":
        print(json.dumps(measured(options)))
    elif options.command == "export":
        options.folder.mkdir(parents=True, exist_ok=True)
        for size in options.sizes:
            export(size, options.folder / f"{size}.onnx", options.external)
    else:
        compare(options)
    return 0


def export(size: str, file: Path, external: bool) -> None:
    """The network in PyTorch, with its weights as training would leave them, as ONNX."""
    import torch

    from zoo_networks import hugging, lively

    shape = SIZES[size]

    def config(t: Any) -> Any:
        backbone = t.Dinov2Config(
            image_size=SIDE, patch_size=14, hidden_size=shape.width, num_attention_heads=shape.heads,
            num_hidden_layers=shape.depth, out_indices=list(shape.taps), reshape_hidden_states=False,
            apply_layernorm=True,
        )  # fmt: skip
        return t.DepthAnythingConfig(
            backbone_config=backbone, reassemble_hidden_size=shape.width, patch_size=14,
            neck_hidden_sizes=list(shape.neck), fusion_hidden_size=shape.features,
        )  # fmt: skip

    torch.manual_seed(0)
    module, _ = hugging("DepthAnythingForDepthEstimation", config, SIDE, "predicted_depth")()
    module.eval()
    lively(module)
    with torch.no_grad():
        stream(module.model.backbone, shape)
        torch.onnx.export(
            module, (torch.randn(1, 3, SIDE, SIDE),), str(file), input_names=["image"], output_names=["depth"],
            opset_version=20, dynamo=True, external_data=external,
        )  # fmt: skip
    count = sum(parameter.numel() for parameter in module.parameters())
    print(f"{file}: {count / 1e6:.0f} million parameters, {bytes_of(file) / MB:.0f} MB")


def stream(backbone: Any, shape: Size) -> None:
    """LayerScales as DINOv2's, and three channels of the residual stream that are far larger than the others."""
    import torch

    generator = torch.Generator().manual_seed(2)
    large = [shape.width // 7, shape.width // 3, shape.width - 5]
    layers = backbone.encoder.layer if hasattr(backbone, "encoder") else backbone.layers
    for place, layer in enumerate(layers):
        for scale in (layer.layer_scale1.lambda1, layer.layer_scale2.lambda1):
            scale.copy_(0.1 * torch.exp(0.8 * torch.randn(scale.shape, generator=generator)))
        for norm in (layer.norm1, layer.norm2):
            norm.weight[large] *= 0.05
        if place == shape.depth // 3:
            layer.layer_scale2.lambda1[large] = torch.tensor([20.0, -40.0, 10.0])


def compare(options: argparse.Namespace) -> None:
    entries = []
    with tempfile.TemporaryDirectory(prefix="leadline-growth-") as temporary:
        pictures = noise(Path(temporary) / "pictures", max(options.samples))
        for size in options.sizes:
            network = options.folder / f"{size}.onnx"
            if not network.is_file():
                raise SystemExit(f"{network} is missing: python benchmarks/growth.py export {size}")
            for recipe in options.recipes:
                for threads in options.threads:
                    for count in options.samples:
                        few = Path(temporary) / f"{count}.txt"
                        few.write_text("\n".join(map(str, pictures[:count])))
                        out = Path(temporary) / "out"
                        entry = {"size": size, "recipe": recipe, "threads": threads, "samples": count}
                        entry |= in_fresh_process(network, few, recipe, threads, out)
                        entries.append(entry)
                        show(entry)
                        if options.json:
                            options.json.write_text(json.dumps(entries, indent=1))


def in_fresh_process(network: Path, pictures: Path, recipe: str, threads: int, out: Path) -> dict[str, Any]:
    command = [sys.executable, __file__, "child", *map(str, (network, pictures, recipe, threads, out))]
    done = subprocess.run(command, check=True, stdout=subprocess.PIPE, text=True)
    return dict(json.loads(done.stdout.splitlines()[-1]))


def noise(folder: Path, count: int) -> list[Path]:
    """Pictures with structure of every size."""
    import numpy as np
    from PIL import Image

    folder.mkdir()
    files = []
    for i in range(count):
        generator, picture = np.random.default_rng(i), np.zeros((SIDE, SIDE, 3))
        for cells in (2, 5, 12, 30, 80):
            coarse = generator.integers(0, 256, (cells, cells, 3), np.uint8)
            fine = Image.fromarray(coarse).resize((SIDE, SIDE), Image.Resampling.BICUBIC)
            picture += (np.asarray(fine, np.float64) - 128) / cells**0.5
        files.append(folder / f"{i:03}.png")
        Image.fromarray(np.clip(128 + picture, 0, 255).astype(np.uint8)).save(files[-1])
    return files


@dataclass
class Stage:
    name: str
    wall: float = 0.0
    processor: float = 0.0
    peak: int = 0


@dataclass
class Stages:
    """Seconds and peak memory between marks; stages of one name are one."""

    begun: float = field(default_factory=time.monotonic)
    known: dict[str, Stage] = field(default_factory=dict)
    current: list[str] = field(default_factory=list)

    @contextmanager
    def __call__(self, name: str) -> Iterator[None]:
        self.current.append(name)
        wall, processor = time.monotonic(), time.process_time()
        Path("/proc/self/clear_refs").write_text("5")
        try:
            yield
        finally:
            stage = self.known.setdefault(name, Stage(name))
            stage.wall += time.monotonic() - wall
            stage.processor += time.process_time() - processor
            stage.peak = max(stage.peak, status("VmHWM"))
            self.current.pop()


def status(key: str) -> int:
    """Bytes, of this process."""
    line = next(line for line in Path("/proc/self/status").read_text().splitlines() if line.startswith(f"{key}:"))
    return int(line.split()[1]) * 1024


def measured(options: argparse.Namespace) -> dict[str, Any]:
    """What `leadline quantize` does, stage by stage."""
    stage = Stages()
    with stage("import"):
        import leadline.steps
        from leadline import pipeline, preparation, report
        from leadline.data import Data, Preprocess
        from leadline.original import Proof

    def staged(owner: Any, name: str, label: Any) -> None:
        plain = getattr(owner, name)

        def run(*given: Any, **named: Any) -> Any:
            with stage(label(*given)):
                return plain(*given, **named)

        setattr(owner, name, run)

    staged(pipeline, "prepare", lambda *_: "load")
    staged(pipeline, "apply", lambda step, _: step.step)
    staged(pipeline, "recentre", lambda *_: "recentre")
    staged(pipeline, "Proof", lambda *_: "proof")
    staged(Proof, "hold", lambda *_: "proof")
    del preparation, leadline.steps
    out, network = Path(options.out), Path(options.network)
    files = Path(options.pictures).read_text().splitlines()
    data = Data(files, preprocess=Preprocess(), strict=True)
    threads = int(options.threads)
    run = pipeline.quantize(network, options.recipe, data, threads=threads)
    with stage("write"):
        run.save(out)
    with stage("verify"):
        verification = run.verify(artefact=out / run.target.file, threads=threads)
    with stage("report"):
        document = report.document(network, run, verification, out, 0.0)
        report.write(document, verification.pictures, out, run)
    stages = list(stage.known.values())
    return {
        "file": bytes_of(network),
        "peak": max(each.peak for each in stages),
        "wall": time.monotonic() - stage.begun,
        "processor": time.process_time(),
        "sqnr": verification.outputs[0].sqnr,
        "stages": [asdict(each) for each in stages],
    }


def bytes_of(network: Path) -> int:
    """With its external data."""
    return sum(file.stat().st_size for file in network.parent.glob(f"{network.name}*"))


def show(entry: dict[str, Any]) -> None:
    from rich.console import Console
    from rich.table import Table

    what = f"{entry['size']}, {entry['recipe']}, {entry['samples']} samples, {entry['threads']} threads"
    file = entry["file"]
    title = f"{what}: peak {entry['peak'] / file:.2f} x the file of {file / MB:.0f} MB, {entry['sqnr']:.1f} dB"
    table = Table(title=title)
    for column in ("stage", "seconds", "processor", "peak MB", "x file"):
        table.add_column(column, justify="left" if column == "stage" else "right")
    whole = {"name": "all", **{key: entry[key] for key in ("wall", "processor", "peak")}}
    for row in (*entry["stages"], whole):
        peak = row["peak"]
        figures = (f"{row['wall']:.1f}", f"{row['processor']:.1f}", f"{peak / MB:.0f}", f"{peak / file:.2f}")
        table.add_row(row["name"], *figures)
    Console(width=None if sys.stdout.isatty() else 120).print(table)


if __name__ == "__main__":
    raise SystemExit(main())
