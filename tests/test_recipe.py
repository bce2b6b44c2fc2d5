"""Recipes: what loads, what is refused and by which words, which override wins."""

from __future__ import annotations

import re
from typing import Any

import pytest

from data_samples import refused
from leadline.recipe import (
    ACTIVATIONS,
    STEPS,
    WEIGHTS,
    Calibrate,
    CorrectBias,
    Equalize,
    Fold,
    Override,
    Polish,
    Recipe,
    Rotate,
    Round,
    Smooth,
)
from leadline.types import InputError, Scheme

MINIMAL = '[[steps]]\nstep = "calibrate"\n[[steps]]\nstep = "round"\n'


@pytest.fixture
def written(tmp_path):
    def write(text: str | bytes) -> Any:
        path = tmp_path / "mine.toml"
        path.write_bytes(text if isinstance(text, bytes) else text.encode())
        return path

    return write


def test_the_issue_s_recipes_are_shipped():
    assert {"w8a8", "w8a16", "weight-only-int8", "int4-block128", "minmax-w8a8"} <= set(Recipe.names())


@pytest.mark.parametrize("name", Recipe.names())
def test_shipped_recipes_survive_a_round_trip(name, tmp_path):
    recipe = Recipe.load(name)
    assert recipe.name == name and recipe.description and recipe.weights is not None
    recipe.save(tmp_path / "copy.toml")
    assert Recipe.load(tmp_path / "copy.toml") == recipe
    assert Recipe.load(str(tmp_path / "copy.toml")).to_toml() == recipe.to_toml()
    assert [p.name for p in tmp_path.iterdir()] == ["copy.toml"]
    assert Recipe.load(recipe) is recipe


def test_every_field_survives_a_round_trip(tmp_path):
    recipe = Recipe(
        "all",
        (Equalize(3, 4.0, False), Calibrate("percentile", "sqnr", 99.9, 2.5, 0.1), Round(), CorrectBias()),
        'with "quotes", ünïcode and a\nnew line',
        weights=Scheme(6, True, True, "block", block_size=32, fit="aimet"),
        activations=None,
        overrides=(
            Override("head*", ("linear", "depthwise"), "float", {"bits": 16}),
            Override("*", (), {"bits": 4, "narrow": False}, None),
        ),
        data={"resize": 256, "crop": [224, 224], "mean": [0.5, 0.25, 0.125], "layout": "NHWC"},
    )
    recipe.save(tmp_path / "all.toml")
    assert Recipe.load(tmp_path / "all.toml") == recipe


@pytest.mark.parametrize("scope", ["all", "layers"])
def test_scopes_and_the_steps_that_rewrite_survive_a_round_trip(scope, tmp_path):
    recipe = Recipe(
        "simulation",
        (Rotate(False, True, True, 3), Smooth(0.5, True, False), Polish("enc*", 90.0, False), Calibrate()),
        activations=Scheme(4, True, True, "token"),
        scope=scope,
        overrides=(Override("head*", (), None, {"granularity": "axis", "bits": 8}),),
    )
    recipe.save(tmp_path / "copy.toml")
    assert Recipe.load(tmp_path / "copy.toml") == recipe
    assert ("scope" in recipe.to_toml()) == (scope != "all")  # older readers know what they know


def test_without_a_scope_all_activations_count(written):
    assert Recipe.load(written(MINIMAL)).scope == "all"
    assert Recipe.load(written('scope = "layers"\n' + MINIMAL)).scope == "layers"


def test_w8a8_means_what_its_name_says():
    recipe = Recipe.load("w8a8")
    assert recipe.weights is not None and recipe.activations is not None
    assert (recipe.weights.bits, recipe.weights.signed, recipe.weights.granularity) == (8, True, "axis")
    assert (recipe.activations.bits, recipe.activations.granularity) == (8, "tensor")
    assert Recipe.load("w8a16").activations.bits == 16
    assert Recipe.load("weight-only-int8").activations is None
    block = Recipe.load("int4-block128").weights
    assert (block.bits, block.granularity, block.block_size) == (4, "block", 128)


def test_what_a_recipe_leaves_out_has_defaults(written):
    recipe = Recipe.load(written(MINIMAL))
    assert recipe.name == "mine"
    assert (recipe.weights, recipe.activations) == (WEIGHTS, ACTIVATIONS)
    assert recipe.steps == (Calibrate(), Round())
    assert recipe.overrides == () and recipe.data == {}


def test_whole_numbers_are_taken_for_real_ones(written):
    recipe = Recipe.load(written('[[steps]]\nstep = "calibrate"\npercentile = 99\n'))
    assert recipe.steps[0].percentile == 99


@pytest.mark.parametrize(
    "text, words",
    [
        (MINIMAL + "[wieghts]\nbits = 8\n", ["wieghts"]),
        ("[weights]\nbit = 8\n" + MINIMAL, ["weights", "bit"]),
        ("[activations]\naxis = 0\n" + MINIMAL, ["activations", "axis"]),
        ('[[steps]]\nstep = "calibrate"\nobserver = "mse"\n', ["steps[0]", "calibrate", "observer"]),
        (MINIMAL + '[[overrides]]\nlayer = "head"\n', ["overrides[0]", "pattern", "layer"]),
        (MINIMAL + "[[overrides]]\n[overrides.weights]\nbitz = 4\n", ["overrides[0].weights", "bitz"]),
        ("[weights]\nbits = 'eight'\n" + MINIMAL, ["weights.bits", "int", "'eight'"]),
        ("[weights]\nsigned = 'yes'\n" + MINIMAL, ["weights.signed", "bool", "'yes'"]),
        ("[weights]\nbits = 1\n" + MINIMAL, ["bits must be 2 to 16", "1"]),
        ("[weights]\ngranularity = 'row'\n" + MINIMAL, ["granularity", "'row'"]),
        ("[weights]\ngranularity = 'block'\n" + MINIMAL, ["block_size", "None"]),
        ("[weights]\nfit = 'best'\n" + MINIMAL, ["fit", "'best'"]),
        ("[weights]\ngranularity = 'token'\n" + MINIMAL, ["mine.toml", "weights have no tokens", "'token'"]),
        (
            MINIMAL + "[[overrides]]\n[overrides.weights]\ngranularity = 'token'\n",
            ["overrides[0]", "weights have no tokens", "'token'"],
        ),
        ("scope = 'some'\n" + MINIMAL, ["scope must be one of all, layers", "'some'"]),
        ("scope = 3\n" + MINIMAL, ["scope must be one of all, layers", "3"]),
        ("scope = ['all']\n" + MINIMAL, ["scope must be one of all, layers", "['all']"]),
        ("[activations]\nsymmetric = true\ngranularity = 'token'\n" + MINIMAL, ["per token must be signed"]),
        ('[[steps]]\nstep = "rotate"\nseeds = 1.5\n', ["steps[0]", "seeds must be of type int", "1.5"]),
        ('[[steps]]\nstep = "rotate"\nonline = 1\n', ["steps[0]", "online must be of type bool", "1"]),
        ('[[steps]]\nstep = "polish"\npattern = 1\n', ["steps[0]", "pattern must be of type str", "1"]),
        ('[[steps]]\nstep = "polish"\nbend = 1\n', ["steps[0]", "polish", "bend"]),
        ("weights = 8\n" + MINIMAL, ["weights must be a table", "8"]),
        ("activations = 'none'\n" + MINIMAL, ["activations must be a table", "'none'"]),
        ("name = 3\n" + MINIMAL, ["name must be text", "3"]),
        ("description = ['a']\n" + MINIMAL, ["description must be text", "['a']"]),
        ("data = 3\n" + MINIMAL, ["data must be a table", "3"]),
        ("", ["steps"]),
        ("steps = 'all'\n", ["steps", "'all'"]),
        ("steps = ['calibrate']\n", ["steps", "['calibrate']"]),
        ('[[steps]]\nstep = "prune"\n', ["steps[0]", "step must be one of", "'prune'"]),
        ("[[steps]]\niterations = 3\n", ["steps[0]", "step must be one of", "None"]),
        ('[[steps]]\nstep = ["fold"]\n', ["steps[0]", "step must be one of", "['fold']"]),
        ('[[steps]]\nstep = "calibrate"\nactivations = "median"\n', ["activations must be one of", "'median'"]),
        ('[[steps]]\nstep = "calibrate"\nweights = "median"\n', ["weights must be one of", "'median'"]),
        ('[[steps]]\nstep = "round"\nmethod = "stochastic"\n', ["method must be one of", "'stochastic'"]),
        ('[[steps]]\nstep = "equalize"\niterations = "many"\n', ["iterations must be of type int", "'many'"]),
        ('[[steps]]\nstep = "equalize"\niterations = true\n', ["iterations must be of type int", "True"]),
        ('[[steps]]\nstep = "equalize"\nabsorb_bias = 1\n', ["absorb_bias must be of type bool", "1"]),
        (MINIMAL + "[[overrides]]\nkinds = ['dense']\n", ["overrides[0]", "kinds", "dense"]),
        (MINIMAL + "[[overrides]]\nkinds = 3\n", ["overrides[0]", "kinds", "3"]),
        (MINIMAL + "[[overrides]]\npattern = 3\n", ["overrides[0]", "pattern must be text", "3"]),
        (MINIMAL + "[[overrides]]\nweights = 8\n", ["overrides[0]", "weights must be a table", "8"]),
        (MINIMAL + "[[overrides]]\n[overrides.weights]\nbits = 40\n", ["bits must be 2 to 16", "40"]),
        ("[[steps]\nstep = 1\n", ["valid TOML", "line 1"]),
        (MINIMAL.encode() + b"# caf\xe9\n", ["UTF-8", "mine.toml"]),
    ],
)
def test_refusals_name_the_culprit(written, text, words):
    with refused(*words):
        Recipe.load(written(text))


def test_a_bool_is_no_number_of_bits(written):
    with refused("weights.bits", "int", "True"):
        Recipe.load(written("[weights]\nbits = true\n" + MINIMAL))


def test_refusals_name_the_file_or_the_recipe(written, tmp_path):
    with refused("mine.toml", "colour"):
        Recipe.load(written("colour = 1\n" + MINIMAL))
    with refused("recipe must be one of", "w8a8", "'w8a7'"):
        Recipe.load("w8a7")
    with refused("recipe must be one of", "w8a8", str(tmp_path)):
        Recipe.load(tmp_path)


def test_the_first_override_that_matches_wins():
    recipe = Recipe(
        "o",
        (Calibrate(),),
        overrides=(
            Override("blocks.1.*", weights="float"),
            Override("blocks.*", weights={"bits": 4}),
            Override("*", weights={"bits": 16}),
        ),
    )
    assert recipe.weight_scheme("blocks.1.fc", "linear") is None
    assert recipe.weight_scheme("blocks.10.fc", "linear").bits == 4
    assert recipe.weight_scheme("head", "linear").bits == 16


def test_an_override_that_says_nothing_of_a_thing_leaves_it_to_the_next():
    recipe = Recipe(
        "o", (Calibrate(),), overrides=(Override("a", activations="float"), Override("*", weights={"bits": 4}))
    )
    assert recipe.weight_scheme("a", "conv").bits == 4
    assert recipe.activation_scheme("a") is None
    assert recipe.activation_scheme("b") == ACTIVATIONS


def test_an_override_changes_only_what_it_names():
    scheme = Scheme(8, True, True, "axis", narrow=True, fit="aimet")
    recipe = Recipe("o", (Calibrate(),), weights=scheme, overrides=(Override("a", weights={"bits": 4}),))
    assert recipe.weight_scheme("a", "conv") == Scheme(4, True, True, "axis", narrow=True, fit="aimet")


def test_an_override_can_quantise_what_the_default_leaves_float():
    recipe = Recipe("o", (Calibrate(),), weights=None, activations=None, overrides=(
        Override("a", weights={"bits": 4}, activations={"bits": 16}),))  # fmt: skip
    assert recipe.weight_scheme("b", "conv") is None and recipe.activation_scheme("b") is None
    assert recipe.weight_scheme("a", "conv").bits == 4
    assert recipe.activation_scheme("tensor", "a").bits == 16


def test_kinds_restrict_an_override():
    recipe = Recipe("o", (Calibrate(),), overrides=(Override(kinds=("depthwise", "conv"), weights={"bits": 16}),))
    wanted = {"conv": 16, "depthwise": 16, "linear": 8, "transpose": 8}
    assert {kind: recipe.weight_scheme("a", kind).bits for kind in wanted} == wanted


def test_patterns_are_shell_patterns_and_see_every_name():
    recipe = Recipe("o", (Calibrate(),), overrides=(Override("conv[12]?", activations="float"),))
    assert recipe.activation_scheme("conv1x") is None
    assert recipe.activation_scheme("tensor", "conv2y") is None
    assert recipe.activation_scheme("conv3x", "CONV1x") == ACTIVATIONS


def test_every_step_is_named_once_and_buildable():
    assert len({cls.step for cls in STEPS.values()}) == len(STEPS)
    for name, cls in STEPS.items():
        assert cls().step == name


def test_recipes_are_frozen_and_change_by_copy():
    recipe = Recipe.load("w8a8")
    with pytest.raises(AttributeError):
        recipe.name = "other"
    assert recipe.changed(activations=None).activations is None
    assert recipe.activations is not None


def test_the_programmer_s_mistake_in_an_override_is_refused_too():
    recipe = Recipe("o", (Calibrate(),), overrides=(Override("a", weights={"bitz": 4}),))
    with pytest.raises(InputError, match="bitz"):
        recipe.weight_scheme("a", "conv")


@pytest.mark.parametrize(
    ("step", "message"),
    [
        (lambda: Rotate(seeds=0), "rotate: seeds must lie from 1 to 1000. Received 0."),
        (lambda: Smooth(alpha=1.5), "smooth: alpha must lie from 0 to 1. Received 1.5."),
        (lambda: Polish(percentile=0.0), "polish: percentile must lie from 1 to 100. Received 0.0."),
        (lambda: Calibrate(widen=-0.1), "calibrate: widen must lie from 0 to 1. Received -0.1."),
    ],
)
def test_options_out_of_range_are_refused(step, message):
    with pytest.raises(InputError, match=re.escape(message)):
        step()


def test_polish_comes_behind_what_rewrites_the_network():
    with pytest.raises(InputError, match="polish must come behind fold, equalize, rotate and smooth"):
        Recipe("mine", (Fold(), Polish(), Smooth(), Calibrate()))


def test_activations_have_no_blocks():
    with pytest.raises(InputError, match="activations have no blocks"):
        Recipe("mine", (Calibrate(),), activations=Scheme(granularity="block", block_size=32))
