"""What targets take: refused by the recipe alone, before network and data are looked at."""

from __future__ import annotations

import itertools

import numpy as np
import pytest

import small_tflite
from data_samples import refused
from leadline import pipeline
from leadline.cli import main
from leadline.recipe import (
    ACTIVATIONS,
    WEIGHTS,
    Calibrate,
    CorrectBias,
    Fold,
    Heads,
    Override,
    Polish,
    Recipe,
    Rotate,
    Round,
)
from leadline.rules import ONNXRUNTIME, WIDTHS, Rules
from leadline.targets.executorch.rules import EXECUTORCH
from leadline.targets.hexagon.rules import HEXAGON
from leadline.targets.litert import calibrate as tflite
from leadline.targets.litert.rules import LITERT
from leadline.targets.openvino.rules import OPENVINO
from leadline.types import InputError, Scheme
from small_tflite import verified

TARGETS = (ONNXRUNTIME, HEXAGON, LITERT, EXECUTORCH, OPENVINO)
BLOCK = Scheme(4, True, True, "block", block_size=32)
TAKEN = {
    "onnxruntime": set(Recipe.names()),
    "hexagon": {"adaround-w8a8", "minmax-w8a8", "w4a8", "w8a16", "w8a8"},
    "LiteRT": {"adaround-w8a8", "int4-block128", "minmax-w8a8", "w4a8", "w8a8", "weight-only-int8"},
    "OpenVINO": {"adaround-w8a8", "int4-block128", "minmax-w8a8", "w4a4", "w4a8", "w8a8", "weight-only-int8"},
    "ExecuTorch": {"adaround-w8a8", "int4-block128", "minmax-w8a8", "w4a4", "w4a8", "w8a8"},
}


def plan(*steps, **fields) -> Recipe:
    return Recipe("mine", (Fold(), *steps, Calibrate("minmax", "minmax"), Round(), CorrectBias()), **fields)


def takes(rules: Rules, recipe: Recipe) -> bool:
    try:
        rules.check(recipe)
    except InputError:
        return False
    return True


@pytest.mark.parametrize("name", Recipe.names())
@pytest.mark.parametrize("rules", TARGETS, ids=lambda one: one.name)
def test_which_shipped_recipes_a_target_takes(rules, name):
    assert takes(rules, Recipe.load(name)) == (name in TAKEN[rules.name])


@pytest.mark.parametrize("bits", sorted(WIDTHS))
@pytest.mark.parametrize("granularity", ["tensor", "axis", "token"])
def test_widths_and_scales_of_activations(bits, granularity):
    recipe = plan(activations=Scheme(bits, granularity=granularity))
    whole = granularity == "tensor"
    assert takes(ONNXRUNTIME, recipe) == (bits in (4, 8, 16) or granularity != "axis")
    assert takes(HEXAGON, recipe) == (whole and bits in (8, 16))
    assert takes(LITERT, recipe) == (whole and bits == 8)
    assert takes(EXECUTORCH, recipe) == (whole and bits <= 8)
    by_override = plan(overrides=(Override("a", activations={"bits": bits, "granularity": granularity}),))
    assert [takes(one, by_override) for one in TARGETS] == [takes(one, recipe) for one in TARGETS]
    everything = Override(activations={"bits": 8, "granularity": "tensor"})
    assert all(takes(one, recipe.changed(overrides=(everything,))) for one in TARGETS)


@pytest.mark.parametrize("bits", sorted(WIDTHS))
@pytest.mark.parametrize("granularity", ["tensor", "axis", "block"])
def test_widths_and_scales_of_weights(bits, granularity):
    block = granularity == "block"
    weights = Scheme(bits, True, True, granularity, block_size=32 if block else None, narrow=not block)
    static, alone = plan(weights=weights), plan(weights=weights, activations=None)
    assert takes(ONNXRUNTIME, static) and takes(ONNXRUNTIME, alone)
    assert (takes(HEXAGON, static), takes(HEXAGON, alone)) == (bits <= 8 and not block, False)
    channels = granularity == "axis" and bits <= 8
    assert (takes(LITERT, static), takes(LITERT, alone)) == (channels, channels or (block and bits <= 4))
    assert (takes(EXECUTORCH, static), takes(EXECUTORCH, alone)) == (bits <= 8 and not block, bits <= 4 and block)


REFUSED = [
    (HEXAGON, plan(weights=BLOCK), "weights with scales per tensor or axis. Received weights per block."),
    (HEXAGON, plan(activations=None), "hexagon takes no float activations"),
    (HEXAGON, plan(Polish()), "no operators for logarithms and rotations at run time. Received polish."),
    (HEXAGON, plan(Rotate(online=True)), "no operators for logarithms and rotations at run time. Received rotate."),
    (HEXAGON, plan(weights=Scheme(8, False, False, "axis")), "signed symmetric weights"),
    (LITERT, plan(activations=Scheme(16)), "LiteRT takes activations of 8 bits. Received activations of 16 bits."),
    (LITERT, plan(weights=BLOCK), "in blocks beside float activations alone"),
    (LITERT, plan(weights=Scheme(4, True, True, "block", block_size=16), activations=None), "a multiple of 32"),
    (LITERT, plan(weights=Scheme(8, True, True, "axis")), "narrow (-127 to 127). Received weights with narrow=False."),
    (EXECUTORCH, plan(weights=WEIGHTS, activations=None), "float activations beside weights in blocks alone"),
    (EXECUTORCH, plan(activations=Scheme(granularity="axis")), "scales per tensor. Received activations per axis."),
    (EXECUTORCH, plan(overrides=(Override("head", activations={"bits": 16}),)), "overrides[0].activations ('head')"),
    *((one, Recipe("mine", (Fold(),)), "must calibrate. Received the steps fold.") for one in TARGETS),
    *((one, plan(weights=None, activations=None), "must quantise weights or activations") for one in TARGETS),
]  # fmt: skip


@pytest.mark.parametrize(("rules", "recipe", "words"), REFUSED, ids=lambda one: getattr(one, "name", str(one)[:30]))
def test_refusals_name_recipe_target_and_what_was_asked(rules, recipe, words):
    with refused("[somewhere] recipe mine: ", words):
        rules.check(recipe, "somewhere")


def test_heads_and_rotations_that_ask_for_nothing_pass():
    """Where a target mixes no widths, wide heads stay in float."""
    for rules in TARGETS:
        rules.check(plan(Heads(), Rotate()))


@pytest.mark.parametrize("target", ["hexagon", "onnxruntime"])
def test_quantize_refuses_before_it_looks_at_network_and_data(target):
    unfit = plan(activations=Scheme(6, granularity="axis"))
    with refused("[quantize] recipe mine: ", f"{target} takes activations"):
        pipeline.quantize("nowhere.onnx", unfit, "nowhere", target=target)


def test_a_tflite_is_not_read_for_a_recipe_that_litert_does_not_take():
    with refused("[quantize] recipe w8a16: LiteRT takes activations of 8 bits"):
        tflite.quantize("nowhere.tflite", "w8a16", "nowhere")
    with refused("nowhere.tflite"):  # where heads are wider than kernels, they stay in float
        tflite.quantize("nowhere.tflite", "w8a8", "nowhere")


@pytest.mark.parametrize(
    ("target", "more", "words"),
    [
        ("litert", ["--recipe=w8a16"], "recipe w8a16: LiteRT takes activations of 8 bits"),
        ("litert", ["--recipe=w4a4"], "recipe w4a4: LiteRT takes activations of 8 bits"),
        ("litert", ["--recipe=quantvggt-w4a4"], "LiteRT takes activations with scales per tensor"),
        ("litert", ["--recipe=int4-block128", "--preset=weight-only"], "need the preset dynamic"),
        ("litert", ["--soc=69"], "options must be the target's own: litert takes preset, io alone. Received soc"),
        ("executorch", ["--recipe=w8a16"], "recipe w8a16: ExecuTorch takes activations of 2 to 8 bits"),
        ("executorch", ["--recipe=weight-only-int8"], "float activations beside weights in blocks alone"),
        ("executorch", ["--io=int8"], "executorch takes none. Received io"),
        ("hexagon", ["--recipe=int4-block128"], "hexagon takes no float activations"),
        ("tpu", [], "target must be one of onnxruntime, hexagon, litert, executorch"),
    ],
)
def test_targets_refuse_before_the_work(target, more, words, tmp_path, capsys, monkeypatch):
    if "hexagon" in words:
        pytest.importorskip("onnxruntime_qnn", reason="the extra 'hexagon' is not installed")
    given = [
        "quantize",
        str(tmp_path / "nowhere.onnx"),
        "--target",
        target,
        "--data",
        str(tmp_path),
        "--out",
        str(tmp_path / "out"),
        *more,
    ]
    monkeypatch.setattr("sys.argv", ["leadline", *given])
    with pytest.raises(SystemExit) as ended:
        main()
    assert ended.value.code == 2
    said = " ".join(capsys.readouterr().err.split())
    assert words in said and not (tmp_path / "out").exists()


@pytest.mark.parametrize(
    ("bits", "granularity", "static"),
    [*itertools.product((2, 3, 4, 6, 8), ("axis",), (True, False)), (3, "block", False), (4, "block", False)],
)
def test_what_litert_is_said_to_take_it_takes(bits, granularity, static, tmp_path):
    pytest.importorskip("ai_edge_quantizer", reason="the extra 'tflite' is not installed")
    block = granularity == "block"
    weights = Scheme(bits, True, True, granularity, block_size=32 if block else None, narrow=not block)
    recipe = plan(weights=weights, activations=ACTIVATIONS if static else None)
    LITERT.check(recipe)
    network, shape = (small_tflite.transformer(), (4, 8, 128)) if block else (small_tflite.decoder(), (4, 16, 16, 3))
    done = tflite.quantize(network, recipe, np.random.default_rng(0).random(shape, np.float32), threads=1)
    tflite.save(done, tmp_path / "model.tflite")
    found = verified(done.content, tmp_path / "model.tflite", done.held_out, plan=done)
    assert found.facts.differing == ()
    for score in found.outputs:
        assert abs(score.device - score.sqnr) < 1.0  # for blocks the reference kernels are others
