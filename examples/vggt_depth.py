"""VGGT's depth of two views on a phone: the user's clone and checkpoint to FP32 and INT8 .tflite, compared.

    git clone https://github.com/facebookresearch/vggt        (or QuantVGGT, whose package vggt is the same)
    pip install 'leadline[torch,litert]' onnxscript
    python examples/vggt_depth.py --clone vggt --checkpoint model.pt --root BlendedMVS \\
        --scenes 5a3ca9cb270f0e3f14d0eddb --out out/
    python examples/vggt_depth.py --clone vggt --encoder vits --depth 6 --rendered 6 --out out/    # random weights

--w4a4 quantises the same module inside PyTorch as QuantVGGT does; --int4 writes an ExecuTorch program, too.
"""

from __future__ import annotations

import argparse
import copy
import resource
import tempfile
import time
from pathlib import Path
from typing import Any

import numpy as np

from leadline import verify
from leadline.audit import audit
from leadline.data import Pairs, load_blendedmvs_pairs
from leadline.depth.scenes import clip, write_blendedmvs
from leadline.systems import vggt
from leadline.systems.depth_pictures import compare_depth
from leadline.targets.litert import calibrate as tflite
from leadline.targets.litert.convert import convert


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--clone", type=Path, required=True, help="of VGGT or QuantVGGT")
    parser.add_argument("--checkpoint", type=Path, help="default: random weights")
    parser.add_argument("--encoder", default="vitl", help="vitl, or vits for trials")
    parser.add_argument("--depth", type=int, default=vggt.FULL_DEPTH, help="pairs of blocks")
    parser.add_argument("--size", type=int, default=518, help="pixels a side, a multiple of 14")
    parser.add_argument("--root", type=Path, help="of BlendedMVS")
    parser.add_argument("--scenes", nargs="+", help="folders under it")
    parser.add_argument("--rendered", type=int, metavar="N", help="N rendered views in place of BlendedMVS")
    parser.add_argument("--num-samples", type=int, default=16, help="pairs")
    parser.add_argument("--recipe", default="w8a8", help="a name (see `leadline recipe`) or a TOML file")
    parser.add_argument("--preset", default="npu", help="cpu or npu")
    parser.add_argument("--audit", help="hexagon or litert: ask the target about each operator first")
    parser.add_argument("--w4a4", action="store_true", help="QuantVGGT's four bits, in PyTorch")
    parser.add_argument("--int4", action="store_true", help="an ExecuTorch program, too (needs executorch)")
    parser.add_argument("--out", type=Path, required=True)
    parser.add_argument("--threads", type=int)
    options = parser.parse_args()
    if not options.rendered and not (options.root and options.scenes):
        parser.error("give --root and --scenes of BlendedMVS, or --rendered N")

    with tempfile.TemporaryDirectory() as folder:
        root, scenes = options.root, options.scenes
        if options.rendered:
            root, scenes = Path(folder), ["rendered"]
            write_blendedmvs(root / "rendered", clip(7, options.rendered, (options.size, options.size)))
        pairs = load_blendedmvs_pairs(scenes, root, options.num_samples, side=options.size)
        run(options, pairs)


def run(options: argparse.Namespace, pairs: Pairs) -> None:
    clock = Clock()
    system = vggt.load(
        options.clone, options.checkpoint, encoder=options.encoder, depth=options.depth, size=options.size
    )
    print(*system.notes, system.rewrites, sep="\n")
    clock("load, rewrite")
    if options.audit:
        import torch

        print(audit(system.network, options.audit, torch.from_numpy(system.inputs["images"])))
        clock("audit")
    graph = system.to_graph()
    clock("to a graph")
    options.out.mkdir(parents=True, exist_ok=True)
    reference = options.out / "model.fp32.tflite"
    reference.write_bytes(convert(graph))
    clock("FP32 .tflite")
    held_out = [pairs[i] for i in range(3, len(pairs), 4)] or [pairs[0]]
    plan = tflite.quantize(reference, options.recipe, list(pairs), threads=options.threads)
    tflite.save(plan, options.out / "model.int8.tflite", preset=options.preset, io="int8-float")
    clock("INT8 .tflite")
    print(compare_depth(reference, options.out / "model.int8.tflite", held_out, options.out / "comparison"))
    clock("comparison")
    if options.w4a4 or options.int4:
        four_bits(options, system.network, pairs, clock)


def four_bits(options: argparse.Namespace, network: Any, pairs: Pairs, clock: Clock) -> None:
    import torch

    from leadline.torch import quantize_linears

    batches = [torch.from_numpy(np.ascontiguousarray(pair)) for pair in pairs]
    if options.w4a4:
        module = copy.deepcopy(network)
        report = quantize_linears(module, batches, weight_bits=4, activation_bits=4)
        with torch.no_grad():
            both = torch.stack([network(batches[-1]).flatten(), module(batches[-1]).flatten()])
        print(f"W4A4: {len(report.layers)} layers, correlation {torch.corrcoef(both)[0, 1]:.4f}")
        clock("W4A4 in PyTorch")
    if options.int4:
        from leadline.targets.executorch import program as executorch

        program = executorch.export(network, batches, options.out / "model.int4.pte", weight_bits=4)
        print(f"ExecuTorch: {program.bytes / 1e6:.1f} MB, {program.layers} layers of INT4")
        print(verify(network, options.out / "model.int4.pte", batches[:2]).outputs)
        clock("INT4 .pte")


class Clock:
    """Prints seconds and peak memory of each step."""

    def __init__(self) -> None:
        self.start = time.perf_counter()

    def __call__(self, step: str) -> None:
        now, peak = time.perf_counter(), resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1024
        print(f"{step}: {now - self.start:.0f} s, peak {peak:.0f} MiB", flush=True)
        self.start = now


if __name__ == "__main__":
    main()
