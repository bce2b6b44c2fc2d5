"""leadline.targets.litert.convert on float .tflite networks: codes and scales are leadline's, all recipes run."""

from __future__ import annotations

import importlib.util
import json
import subprocess
import sys
from pathlib import Path
from typing import Any

import numpy as np
import pytest

pytest.importorskip("ai_edge_quantizer", reason="needs ai-edge-quantizer: pip install 'leadline[tflite]'")

import small_tflite
from leadline.affine import choose_grid, quantize, range_of
from leadline.recipe import Calibrate, Override, Recipe, Round
from leadline.sqnr import Sqnr
from leadline.targets.litert import calibrate as tflite
from leadline.targets.litert.files import compare, float_operators
from leadline.targets.litert.kernels import Plan, tie, to_int8
from leadline.targets.litert.match import sites
from leadline.targets.litert.read import read
from leadline.targets.litert.run import Interpreter
from leadline.targets.litert.write import prepare, write
from leadline.types import Grid, InputError, Scheme

NETWORKS = {
    "decoder": small_tflite.decoder,
    "transformer": small_tflite.transformer,
    "classifier": small_tflite.classifier,
}
PRESETS = ("cpu", "npu", "dynamic", "weight-only")
INT32 = Scheme(32, True, True, "axis", 0)


def samples(content: bytes, count: int = 12, seed: int = 0) -> np.ndarray:
    (value,) = Interpreter(content, "plain", 1).inputs.values()
    return np.random.default_rng(seed).standard_normal((count, *value.shape[1:]), np.float32)


def clipped_plan(content: bytes, bits: int = 8, factor: float = 0.9) -> Plan:
    """Weights on scales that their own extremes would not give: only a writer that takes them over keeps the codes."""
    runner = Interpreter(content, "plain", 1, inner=True)
    graph = runner.model.main
    runner.run({name: samples(content, 1) for name in runner.inputs})
    floats = [tensor for tensor in graph.activations() if tensor.dtype == "float32"]
    seen = runner.observe([tensor.index for tensor in floats])
    grids = {t.name: choose_grid(float(seen[t.index].min()), float(seen[t.index].max()), Scheme()) for t in floats}
    activations = tie(runner.model, grids)
    parameters: dict[str, Any] = {}
    for site in sites(runner.model):
        weight = graph.tensors[site.weight]
        scheme = Scheme(bits, True, True, "axis", site.axis, narrow=bits == 8)
        found = choose_grid(*range_of(weight.array, scheme), scheme)
        grid = Grid(found.scale * np.float32(factor), found.zero_point, scheme)
        parameters[weight.name] = (grid, quantize(weight.array, grid))
        if site.bias is not None:
            bias = graph.tensors[site.bias]
            scale = activations[graph.tensors[site.input].name].scale * grid.scale
            own = Grid(scale, np.zeros(bias.shape, np.int32), INT32)
            parameters[bias.name] = (own, quantize(bias.array, own))
    return Plan(content, activations, parameters)


def without(plan: Plan, name: str) -> Plan:
    """The plan, but for one tensor's range."""
    return Plan(plan.content, {own: grid for own, grid in plan.activations.items() if own != name}, plan.parameters)


def sqnr(content: bytes, artefact: bytes, kernels: str = "xnnpack") -> float:
    exact, rough, score = Interpreter(content, "plain", 1), Interpreter(artefact, kernels, 1), Sqnr()  # type: ignore[arg-type]
    for sample in samples(content, 6, seed=1):
        feed = {name: sample[None] for name in exact.inputs}
        for wanted, got in zip(exact.run(feed).values(), rough.run_real(feed).values(), strict=True):
            score.update(wanted, got)
    return score.db


@pytest.mark.parametrize("bits", [8, 4])
@pytest.mark.parametrize("network", NETWORKS)
def test_codes_scales_and_zero_points_are_the_plans(network: str, bits: int) -> None:
    plan = clipped_plan(prepare(NETWORKS[network]()), bits)
    weights = {name for name, (grid, _) in plan.parameters.items() if grid.scheme.bits <= 8}
    biases = set(plan.parameters) - weights
    for preset in PRESETS:
        model = read(write(plan, preset))
        assert compare(model, plan) == ()
        grids = {tensor.name for tensor in model.main.tensors if tensor.grid is not None}
        assert weights <= grids
        static = preset in ("cpu", "npu")
        assert (biases <= grids) is (static or not biases)
        integer = [tensor for tensor in model.main.tensors if tensor.grid is not None and not tensor.constant]
        assert bool(integer) is static


def test_compare_finds_what_differs() -> None:
    plan = clipped_plan(prepare(small_tflite.decoder()))
    model = read(write(plan, "npu"))
    grid, codes = plan.parameters["stem/weight"]
    flipped = codes.copy()
    flipped.flat[3] += 1
    moved = to_int8("sum", plan.activations["sum"])
    changed = Plan(
        plan.content,
        dict(plan.activations) | {"sum": Grid(moved.scale * np.float32(1.01), moved.zero_point, moved.scheme)},
        dict(plan.parameters) | {"stem/weight": (grid, flipped)},
    )
    assert set(compare(model, changed)) == {"stem/weight", "sum"}


@pytest.mark.parametrize("network", NETWORKS)
def test_kernels_tie_what_the_plan_ties(network: str) -> None:
    """ai-edge-quantizer's own rules (moved data, resizes, Softmax) change nothing that `tie` has not changed before."""
    plan = clipped_plan(prepare(NETWORKS[network]()))
    model = read(write(plan, "npu", "int8"))
    found = {tensor.name: tensor for tensor in model.main.activations()}
    assert set(plan.activations) == set(found)
    for name, grid in plan.activations.items():
        assert found[name].scale == grid.scale and found[name].zero_point == grid.zero_point
    if network == "decoder":
        assert plan.activations["larger"] == plan.activations["pooled"] == plan.activations["sum"]
    if network == "classifier":
        assert plan.activations["scores"].scale == np.float32(1 / 256) and plan.activations["scores"].zero_point == -128


def test_what_only_a_clamp_reads_takes_its_grid() -> None:
    """In both presets; the file has the plan's grids, whatever ai-edge-quantizer's rule for MAXIMUM is."""
    b = small_tflite.Builder()
    shape = (1, 6, 6, 4)
    wide = b.conv(b.tensor("picture", (1, 6, 6, 3)), "wide", shape, 3, 3)
    limits = [b.tensor(name, (), np.array(value, np.float32)) for name, value in (("low", -0.2), ("high", 0.3))]
    cut = b.op("MAXIMUM", [wide, limits[0]], "cut", shape, family="MaximumMinimum")
    done = b.op("MINIMUM", [cut, limits[1]], "done", shape, family="MaximumMinimum")
    plan = clipped_plan(prepare(b.finish(["picture"], [b.conv(done, "map", (1, 6, 6, 1), 3, 4)])))
    grids = plan.activations
    assert grids["wide"] == grids["cut"] == grids["done"] and float(grids["done"].scale) <= 0.51 / 255
    for preset in ("cpu", "npu"):
        assert compare(read(write(plan, preset)), plan) == ()


def test_presets_choose_operators() -> None:
    plan = clipped_plan(prepare(small_tflite.transformer()))
    cpu, npu = (float_operators(read(write(plan, preset)).main) for preset in ("cpu", "npu"))
    assert npu == {}
    assert set(cpu) == {"MEAN", "SQUARED_DIFFERENCE", "RSQRT", "SUB", "MUL", "BATCH_MATMUL", "SOFTMAX"}
    # Between two convolutions data moves as integers, even on a CPU.
    assert float_operators(read(write(clipped_plan(prepare(small_tflite.decoder())), "cpu")).main) == {}


def test_an_operator_without_a_range_stays_in_float() -> None:
    plan = clipped_plan(prepare(small_tflite.decoder()))
    content = write(without(plan, "deep"), "npu")
    assert float_operators(read(content).main) == {"DEPTHWISE_CONV_2D": 1, "CONV_2D": 1}
    assert sqnr(plan.content, content) > sqnr(plan.content, write(plan, "npu")) - 0.5


@pytest.mark.parametrize("io", ["float", "int8", "int8-float"])
def test_inputs_and_outputs(io: Any) -> None:
    content = write(clipped_plan(prepare(small_tflite.decoder())), "npu", io)
    runner = Interpreter(content, "xnnpack", 1)
    taken, _, given = io.partition("-")
    wanted = {"float": np.dtype(np.float32), "int8": np.dtype(np.int8)}
    assert {v.dtype for v in runner.inputs.values()} == {wanted[taken]}
    assert {v.dtype for v in runner.outputs.values()} == {wanted[given or taken]}


RECIPES = ("minmax-w8a8", "w8a8", "adaround-w8a8", "w4a8", "weight-only-int8", "int4-block128")


@pytest.mark.parametrize("network", NETWORKS)
def test_every_recipe_runs_on_xnnpack_and_reference_kernels(network: str, tmp_path: Path) -> None:
    source = NETWORKS[network]()
    for name in RECIPES:
        plan = tflite.quantize(source, name, samples(source), threads=1)
        least = 12 if "4" in name else 25
        for preset in ("cpu", "npu") if plan.activations else ("dynamic",):
            tflite.save(plan, tmp_path / "out.tflite", preset=preset)  # type: ignore[arg-type]
            content = (tmp_path / "out.tflite").read_bytes()
            assert compare(read(content), plan) == ()
            assert sqnr(source, content) > least, (name, preset)
            if (
                "block" not in name
            ):  # LiteRT 2.3's reference kernel for blocks gives 3 dB, of its own tool's files as well
                assert sqnr(source, content, "reference") > least, (name, preset)


def test_fp16_needs_no_plan(tmp_path: Path) -> None:
    source = tmp_path / "float.tflite"
    source.write_bytes(small_tflite.transformer())
    tflite.save(source, tmp_path / "half.tflite", preset="fp16")
    half = (tmp_path / "half.tflite").read_bytes()
    assert len(half) < 0.55 * source.stat().st_size
    assert sqnr(source.read_bytes(), half) > 60
    with pytest.raises(
        InputError, match=r"^\[save\] a float \.tflite must be quantised first, or saved with the preset fp16"
    ):
        tflite.save(source, tmp_path / "x.tflite", preset="dynamic")
    assert not (tmp_path / "x.tflite").exists()


def test_rounding_from_moments_beats_nearest() -> None:
    """AdaRound's and the portfolio's codes at 4 bits leave less error than nearest ones, on other samples."""
    source = small_tflite.transformer(features=32, tokens=16)
    mixed = np.random.default_rng(5).standard_normal((32, 32), np.float32) / 4
    given = samples(source, 40) @ mixed
    held = samples(source, 16, seed=7) @ mixed

    def error(method: Any) -> float:
        weights = Scheme(4, True, True, "axis")
        recipe = Recipe("t", (Calibrate(), Round(method=method)), weights=weights, activations=None)
        content = write(tflite.quantize(source, recipe, given, threads=1), "weight-only")
        exact, rough, total = Interpreter(source, "plain", 1), Interpreter(content, "plain", 1), Sqnr()
        for sample in held:
            total.update(
                exact.run({"tokens": sample[None]})["features"], rough.run({"tokens": sample[None]})["features"]
            )
        return total.noise

    nearest = error("nearest")
    assert error("adaround") < 0.9 * nearest
    assert error("best") < 0.9 * nearest


def test_corrected_biases_take_the_mean_error_away() -> None:
    source = small_tflite.classifier()
    given = np.abs(samples(source, 24))  # a mean that matters
    weights = Scheme(4, True, True, "axis")

    def bias(recipe: str) -> np.ndarray:
        own = Recipe.load(recipe).changed(weights=weights, overrides=())
        grid, codes = tflite.quantize(source, own, given, threads=1).parameters["seen/bias"]
        return codes * grid.scale

    original = next(t for t in read(source).main.tensors if t.name == "seen/bias").array
    assert np.abs(bias("minmax-w8a8") - original).max() < 1e-3
    assert np.abs(bias("w8a8") - original).max() > 1e-2


def test_blocks_fall_back() -> None:
    plan = tflite.quantize(
        small_tflite.transformer(features=96),
        "int4-block128",
        samples(small_tflite.transformer(features=96)),
        threads=1,
    )
    schemes = {name: grid.scheme for name, (grid, _) in plan.parameters.items()}
    assert schemes["query/weight"].block_size == 32
    assert schemes["narrow/weight"].block_size == 64
    assert any("96 features, blocks of 32" in note for note in plan.notes)
    classifier = small_tflite.classifier()
    plan = tflite.quantize(classifier, "int4-block128", samples(classifier), threads=1)
    assert plan.parameters["logits/weight"][0].scheme == Scheme(8, True, True, "axis", 0, narrow=True)
    assert plan.notes == ("logits: 16 features take no blocks, 8 bits per channel",)


def test_overrides_by_name_and_kind() -> None:
    source = small_tflite.decoder()
    overrides = (Override("point", weights="float"), Override(kinds=("depthwise",), weights={"bits": 4}))
    recipe = Recipe.load("minmax-w8a8").changed(overrides=overrides)
    plan = tflite.quantize(source, recipe, samples(source), threads=1)
    assert "point/weight" not in plan.parameters
    assert plan.parameters["deep/weight"][0].scheme.bits == 4
    model = read(write(plan, "npu"))
    kinds = {tensor.name: tensor.dtype for tensor in model.main.tensors}
    assert kinds["point/weight"] == "float32" and kinds["deep/weight"] == "int8"  # 4 bits travel in 8
    assert float_operators(model.main) == {"CONV_2D": 1}


def test_equal_constants_get_grids_of_their_own() -> None:
    builder = small_tflite.Builder()
    x = builder.tensor("x", (1, 4))
    weight, bias = builder.weight("w", 4, 4), builder.weight("b", 4)
    first = builder.op("FULLY_CONNECTED", [x, weight, bias], "first", (1, 4), family="FullyConnected")
    active = builder.op("TANH", [first], "active", (1, 4))
    builder.op("FULLY_CONNECTED", [active, weight, bias], "last", (1, 4), family="FullyConnected")
    source = builder.finish([x], ["last"])
    plan = tflite.quantize(source, "minmax-w8a8", samples(source, 400), threads=1)
    assert set(plan.parameters) == {"w", "b", "w#2", "b#2"}
    assert plan.parameters["b"][0] != plan.parameters["b#2"][0]
    content = write(plan, "npu")
    assert compare(read(content), plan) == () and sqnr(source, content) > 30


def test_named_recipes() -> None:
    def named(*what: str, **io: str) -> tuple[str, str, str]:
        recipe, preset, kind = tflite.named(*what, **io)
        return recipe.name, preset, kind

    assert named("dynamic-int8") == ("weight-only-int8", "dynamic", "float")
    assert named("weight-only-int8") == ("weight-only-int8", "weight-only", "float")
    assert named("int4-block128") == ("int4-block128", "dynamic", "float")
    assert named("w8a8", io="int8") == ("w8a8", "cpu", "int8")
    assert named("w8a8", "npu", io="int8-float") == ("w8a8", "npu", "int8-float")
    assert named("w8a8", "npu") == ("w8a8", "npu", "float")
    with pytest.raises(InputError, match=r"^\[to_tflite\] preset must be one of cpu, npu, dynamic, weight-only, fp16"):
        tflite.named("w8a8", "gpu")
    with pytest.raises(InputError, match=r"preset npu needs a recipe with activations. Received 'weight-only-int8'"):
        tflite.named("dynamic-int8", "npu")
    with pytest.raises(InputError, match=r"io int8 needs the preset cpu or npu. Received 'dynamic'"):
        tflite.named("dynamic-int8", io="int8")


def test_refusals() -> None:
    source = small_tflite.decoder()
    with pytest.raises(
        InputError, match=r"^\[quantize\] the \.tflite must be a float network\. Received \d+ quantised"
    ):
        tflite.quantize(write(clipped_plan(prepare(source)), "npu"), "w8a8", samples(source), threads=1)
    with pytest.raises(
        InputError, match=r"recipe w8a16: LiteRT takes activations of 8 bits\. Received activations of 16 bits"
    ):
        tflite.quantize(source, "w8a16", samples(source), threads=1)
    tokens = small_tflite.transformer()
    blocks = tflite.quantize(tokens, "int4-block128", samples(tokens, 4), threads=1)
    with pytest.raises(InputError, match="weights in blocks need the preset dynamic: LiteRT has no float kernels"):
        write(blocks, "weight-only")
    plan = clipped_plan(prepare(source))
    grid, codes = plan.parameters["stem/weight"]
    low = Plan(plan.content, plan.activations, {"stem/weight": (grid, np.full_like(codes, -128))})
    with pytest.raises(
        InputError, match=r"8-bit codes of weight 'stem/weight' must lie in -127\.\.127 \(narrow\)\. Received -128"
    ):
        write(low, "npu")
    with pytest.raises(InputError, match="preset dynamic must find something to quantise"):
        write(Plan(plan.content, {}, {}), "dynamic")
    with pytest.raises(InputError, match=r"int8 inputs and outputs must have grids\. Received 'depth'"):
        write(without(plan, "depth"), "cpu", "int8")


def test_damaged_files_do_not_reach_the_interpreter() -> None:
    whole = small_tflite.decoder()
    for length in (100, 2000, len(whole) - 8):
        with pytest.raises(InputError, match=r"must be a whole \.tflite file"):
            tflite.quantize(whole[:length], "w8a8", np.zeros((2, 16, 16, 3), np.float32))


def command(*arguments: object) -> subprocess.CompletedProcess[str]:
    full = [sys.executable, "-m", "leadline.cli", "quantize", "--target=litert", *map(str, arguments), "--threads", "1"]
    return subprocess.run(full, capture_output=True, text=True, timeout=120, check=False)


def test_an_onnx_network_needs_litert_torch(tmp_path: Path) -> None:
    """Said at once, not when the network has been quantised."""
    if importlib.util.find_spec("litert_torch") is not None:
        pytest.skip("litert-torch is installed")
    done = command(tmp_path / "net.onnx", "--data", tmp_path, "--out", tmp_path / "out")
    assert done.returncode == 2
    assert (
        "[to_tflite] converting a network to .tflite needs litert-torch: pip install 'leadline[litert]'" in done.stderr
    )
    assert not (tmp_path / "out").exists()


def test_command_line(tmp_path: Path) -> None:
    source, data, out = tmp_path / "net.tflite", tmp_path / "data.npy", tmp_path / "out"
    source.write_bytes(small_tflite.decoder())
    np.save(data, samples(source.read_bytes()))
    done = command(source, "--data", data, "--out", out, "--preset", "npu", "--io", "int8", "--json")
    assert done.returncode == 0, done.stderr
    document = json.loads(done.stdout)
    assert document == json.loads((out / "report.json").read_text())
    facts = document["verification"]["facts"]
    assert facts["size"]["quantized"] == facts["size"]["tensors"] and facts["differing"] == []
    assert document["verification"]["outputs"][0]["device"] > 25 and (out / "report.html").is_file()
    assert document["target"] == {"name": "litert", "options": {"preset": "npu", "io": "int8"}}
    assert Interpreter((out / "model.tflite").read_bytes(), "xnnpack", 1).inputs["picture"].dtype == np.int8
    shown = command(source, "--data", data, "--out", out, "--recipe", "dynamic-int8")
    assert shown.returncode == 0 and "in float: ADD 1, MAX_POOL_2D 1, RESIZE_BILINEAR 1" in shown.stdout
    rough = Recipe.load("minmax-w8a8").changed(name="rough", weights=Scheme(2, True, True, "axis"))
    rough.save(tmp_path / "rough.toml")
    lost = command(source, "--data", data, "--out", out, "--recipe", tmp_path / "rough.toml")
    assert lost.returncode == 3 and "collapsed: depth: SQNR" in lost.stdout, lost.stderr
    assert "SQNR" in json.loads((out / "report.json").read_text())["verification"]["collapse"][0]
    source.write_bytes(source.read_bytes()[:900])
    damaged = command(source, "--data", data, "--out", tmp_path / "none")
    assert damaged.returncode == 2 and damaged.stderr.count("\n") == 1
    assert "net.tflite' must be a whole .tflite file. Received 900 bytes, damaged" in damaged.stderr
    assert not (tmp_path / "none").exists()
