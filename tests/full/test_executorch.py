"""ExecuTorch programs, run in ExecuTorch's own runtime beside the float module and leadline's simulation."""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from PIL import Image

import small_networks as small
from graph_models import model, node
from head_networks import KINDS as HEADS
from head_networks import frames
from leadline import verify
from leadline.depth import networks, scenes
from leadline.recipe import Calibrate, Fold, Heads, Recipe, Round
from leadline.types import InputError
from small_transformer import transformer

pytestmark = [
    pytest.mark.full,
    pytest.mark.torch,
    # torch, torchao and executorch warn about themselves while they load and convert
    pytest.mark.filterwarnings("ignore"),
]


@pytest.fixture(scope="module")
def executorch() -> Any:
    pytest.importorskip("executorch.exir", reason="ExecuTorch is not installed", exc_type=ImportError)
    from leadline.targets.executorch import program as executorch

    return executorch


def clipped_end() -> Any:
    """A convolution whose output has no grid: a Clip behind it takes that."""
    clip, exp = node("Clip", "y0 lo hi", "y1"), node("Exp", "y1", "y")
    convolutions = [
        node("Conv", "x w1 b1", "a", pads=[1, 1, 1, 1]),
        node("Conv", "a w2 b2", "y0", pads=[1, 1, 1, 1]),
    ]
    weights = {"w1": small.draw(1, 8, 3, 3, 3), "b1": small.draw(2, 8), "w2": small.draw(3, 2, 8, 3, 3)}
    bounds = {"b2": small.draw(4, 2), "lo": np.float32(-0.5), "hi": np.float32(0.5)}
    return model([*convolutions, clip, exp], small.SHAPE, **weights, **bounds)


def class_token() -> Any:
    """A constant token, on a grid of its own, in front of the others."""
    nodes = [
        node("Conv", "x w1 b1", "a", pads=[1, 1, 1, 1]),
        node("Reshape", "a rows", "b"),
        node("Transpose", "b", "c", perm=[0, 2, 1]),
        node("Concat", "token c", "d", axis=1),
        node("MatMul", "d w2", "y"),
    ]
    tokens = {"rows": np.array([1, 8, -1]), "token": small.draw(4, 1, 1, 8)}
    weights = {"w1": small.draw(1, 8, 3, 3, 3), "b1": small.draw(2, 8), "w2": small.draw(3, 8, 6)}
    return model(nodes, small.SHAPE, **tokens, **weights)


def verified(path: Path, module: Any, calls: Any, simulation: Any = None) -> Any:
    from leadline.targets.executorch.device import Pte
    from leadline.targets.executorch.program import Program

    made = Pte(path.read_bytes(), Program(0, 0, {}, 0), simulation) if simulation is not None else path
    return verify(module, made, calls, target="executorch")


NETWORKS = [small.residual, small.conv_relu6_depthwise, small.gemm_relu_gemm, clipped_end, class_token]


@pytest.mark.parametrize("network", NETWORKS)
def test_a_run_s_integers_are_carried(network: Any, tmp_path: Path, executorch: Any) -> None:
    """Outputs of the program lie on leadline's grid, at leadline's codes but for ties."""
    import torch

    from leadline.torch import to_module

    q = small.quantized(network())
    program = executorch.export_grids(q.graph, q.grids, q.codes, tmp_path / "a.pte")
    assert program.bytes == (tmp_path / "a.pte").stat().st_size and program.delegates >= 1
    assert program.layers == len(q.graph.layers())
    x = [torch.from_numpy(x) for x in np.split(small.samples(4, q.graph.inputs[0].shape, seed=5), 4)]
    simulation = verified(tmp_path / "a.pte", to_module(q.graph, q.grids, q.codes), x)
    against = verified(tmp_path / "a.pte", to_module(q.graph), x)
    assert simulation.outputs[0].device > 45 and against.outputs[0].device > 15 and against.facts.milliseconds > 0


def test_weights_that_no_step_has_rounded_take_the_nearest_codes(tmp_path: Path, executorch: Any) -> None:
    q = small.quantized(small.residual(), small.steps(Fold(), Calibrate("minmax", "minmax")))
    rounded = small.quantized(small.residual(), "minmax-w8a8")
    assert not q.codes and rounded.codes
    written = [executorch.export_grids(own.graph, own.grids, own.codes, tmp_path / "a.pte") for own in (q, rounded)]
    assert written[0].layers == written[1].layers == len(q.graph.layers()) and written[0].bytes == written[1].bytes


def test_int4_blocks_of_a_run_are_carried(tmp_path: Path, executorch: Any) -> None:
    """Linear layers in blocks whose inputs are rounded at run time; the simulation rounds them, too."""
    import torch

    from leadline.torch import to_module

    network = transformer(width=128)
    q = small.quantized(network, "int4-block128", small.samples(8, network.inputs[0].shape))
    program = executorch.export_grids(q.graph, q.grids, q.codes, tmp_path / "a.pte")
    linear = [layer for layer in q.graph.layers() if layer.kind == "linear"]
    assert program.layers == len(linear) > 10
    assert program.bytes < 2.5 * sum(q.graph.weights[layer.weight].size for layer in linear) / 2
    x = [torch.from_numpy(x) for x in np.split(small.samples(4, network.inputs[0].shape, seed=5), 4)]
    simulation = executorch.simulation(q.graph, q.grids, q.codes)
    assert verified(tmp_path / "a.pte", simulation, x).outputs[0].device > 40
    found = verified(tmp_path / "a.pte", to_module(q.graph), x, simulation=simulation)
    assert abs(found.outputs[0].device - found.outputs[0].sqnr) < 0.1


@pytest.mark.parametrize("kind", ["yolov5, split", "yolov8"])
def test_heads_of_more_bits_stay_in_float(kind: str, tmp_path: Path, executorch: Any) -> None:
    import torch

    from leadline.torch import to_module

    recipe = Recipe.load("minmax-w8a8").changed(
        steps=(Fold(), Heads(widen=0.0), Calibrate("minmax", "minmax"), Round("nearest"))
    )
    q = small.quantized(HEADS[kind](), recipe, np.concatenate(frames(8)))
    assert 16 in {grid.scheme.bits for grid in q.grids.values()}
    program = executorch.export_grids(q.graph, q.grids, q.codes, tmp_path / "a.pte")
    assert program.layers > 0
    x = [torch.from_numpy(next(iter(feed.values()))) for feed in q.held_out]
    simulation = executorch.simulation(q.graph, q.grids, q.codes)
    found = verified(tmp_path / "a.pte", to_module(q.graph), x, simulation=simulation)
    assert found.collapse == []
    for output in found.outputs:
        assert output.sqnr > 20 and abs(output.device - output.sqnr) < 1.0


@pytest.mark.slow
def test_tinydepth_within_a_decibel_of_the_simulation_through_the_command(tmp_path: Path, executorch: Any) -> None:
    (tmp_path / "pictures").mkdir()
    for seed in range(8):
        Image.fromarray(scenes.views(seed)[0].rgb).save(tmp_path / "pictures" / f"{seed}.png")
    means = [f"--{name}={','.join(map(str, networks.PREPROCESS[name]))}" for name in ("mean", "std")]
    given = [str(networks.path()), f"--data={tmp_path / 'pictures'}", f"--out={tmp_path / 'out'}", *means]
    command = [
        sys.executable,
        "-m",
        "leadline.cli",
        "quantize",
        "--target=executorch",
        *given,
        "--recipe=minmax-w8a8",
        "--json",
    ]
    done = subprocess.run([*command, "--threads=1"], check=False, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    report = json.loads((tmp_path / "out" / "report.json").read_text("utf-8"))
    (output,) = report["verification"]["outputs"]
    assert output["sqnr"] > 15 and abs(output["device"] - output["sqnr"]) < 1.0
    assert report["verification"]["facts"]["program"]["bytes"] == (tmp_path / "out" / "model.pte").stat().st_size


@pytest.mark.parametrize("bits", [4, 8])
def test_a_module_becomes_a_small_program(bits: int, tmp_path: Path, executorch: Any) -> None:
    from small_vit import batches, small_vit

    module = small_vit()
    program = executorch.export(module, batches(4), tmp_path / "a.pte", weight_bits=bits)
    plain = sum(parameter.numel() for parameter in module.parameters()) * 4
    assert program.bytes < 0.6 * plain and program.delegates >= 1
    assert program.layers == (8 if bits == 4 else 0)
    assert verified(tmp_path / "a.pte", module, batches(6)[4:]).outputs[0].device > 15
    assert module.blocks[0].qkv.weight.dtype.is_floating_point


def test_int4_blocks_hold_leadline_s_codes(executorch: Any) -> None:
    """Every scale is a bfloat16 value, as XNNPACK stores it, and rounding is no worse than nearest on what is seen."""
    import ml_dtypes
    import torch

    module = torch.nn.Sequential(torch.nn.Linear(64, 16)).eval().requires_grad_(False)
    weight = module[0].weight.numpy().copy()
    mixing = torch.randn(64, 64, generator=torch.Generator().manual_seed(2))
    x = torch.randn(256, 64, generator=torch.Generator().manual_seed(1)) @ mixing
    assert executorch._int4(module, [(x,)], 32) == 1
    carried = module[0].weight
    scale = carried.scale.numpy()
    np.testing.assert_array_equal(scale, scale.astype(ml_dtypes.bfloat16).astype(np.float32))
    steps = np.repeat(scale, 32, 1)
    codes = carried.qdata.numpy()
    nearest = np.clip(np.rint(weight / steps), -8, 7)
    assert codes.min() >= -8 and codes.max() <= 7 and (codes != nearest).any()

    def error(found: np.ndarray) -> float:
        return float(np.square(x.numpy() @ (found * steps - weight).T).mean())

    assert error(codes) < 0.9 * error(nearest)


def test_users_mistakes(tmp_path: Path, executorch: Any) -> None:
    import torch

    from small_vit import batches, small_vit

    def refused(message: str, *given: Any, call: Any = executorch.export, **options: Any) -> None:
        with pytest.raises(InputError) as caught:
            call(*given, **options)
        assert message in str(caught.value) and "\n" not in str(caught.value)
        assert not (tmp_path / "a.pte").exists()

    vit, file = small_vit(), tmp_path / "a.pte"
    refused("[export] weight_bits must be 4 or 8. Received 3", vit, batches(1), file, weight_bits=3)
    refused("[export] block_size must be a multiple of 32. Received 24", vit, batches(1), file, block_size=24)
    refused("[export] samples must hold at least one. Received none", vit, [], file)
    convolution = torch.nn.Conv2d(3, 4, 3)
    refused("must have a linear layer whose inputs are a multiple of 32", convolution, batches(1), file, weight_bits=4)
    refused("which does not exist", vit, file, batches(1), call=verify)
    (tmp_path / "text.pte").write_bytes(b"no program" * 20)
    refused("must be a whole ExecuTorch program", vit, tmp_path / "text.pte", batches(1), call=verify)
    q = small.quantized(small.residual(), "w8a16")
    refused("must have at most 8 bits. Received 16", q.graph, q.grids, q.codes, file, call=executorch.export_grids)
