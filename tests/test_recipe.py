"""Recipes: what loads, what is refused and by which words, which override wins."""

from __future__ import annotations

import itertools
import math
import re
from dataclasses import fields
from typing import Any, Literal, get_args, get_origin, get_type_hints

import numpy as np
import pytest

import leadline.recipe
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
from leadline.rounding import METHODS
from leadline.steps import handler
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
        (Equalize(3, 4.0, False), Calibrate("percentile", "sqnr", 0.1, percentile=99.9, p=2.5), Round(), CorrectBias()),
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


@pytest.mark.parametrize("key", ["weights", "activations"])
@pytest.mark.parametrize("granularity", ["tensor", "axis", "block", "token"])
@pytest.mark.parametrize("axis", [None, 0, 1])
def test_every_scheme_that_a_recipe_takes_is_one_that_it_writes(key, granularity, axis, tmp_path):
    if granularity == {"weights": "token", "activations": "block"}[key]:
        pytest.skip("refused when it is made")
    scheme = Scheme(4, True, True, granularity, axis, 32 if granularity == "block" else None)
    recipe = Recipe("mine", (Calibrate(), Round()), **{key: scheme})
    recipe.save(tmp_path / "copy.toml")
    assert Recipe.load(tmp_path / "copy.toml") == recipe
    assert getattr(recipe, key).granularity == granularity


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
        ("name = 3\n" + MINIMAL, ["name must be of type str", "3"]),
        ("description = ['a']\n" + MINIMAL, ["description must be of type str", "['a']"]),
        ("data = 3\n" + MINIMAL, ["data must be of type Mapping", "3"]),
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
        (MINIMAL + "[[overrides]]\npattern = 3\n", ["overrides[0]", "pattern must be of type str", "3"]),
        (MINIMAL + "[[overrides]]\nweights = 8\n", ["overrides[0].weights must be a table", "8"]),
        (MINIMAL + "[[overrides]]\n[overrides.weights]\nbits = 40\n", ["bits must be 2 to 16", "40"]),
        ("[[steps]\nstep = 1\n", ["valid TOML", "line 1"]),
        (MINIMAL.encode() + b"# caf\xe9\n", ["UTF-8", "mine.toml"]),
    ],
)
def test_refusals_name_the_culprit(written, text, words):
    with refused(*words):
        Recipe.load(written(text))


def test_a_bool_is_no_number_of_bits(written):
    with refused("weights.bits must be of type int", "True"):
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
    for name, cls in STEPS.items():
        assert cls().step == cls.step == name and getattr(leadline.recipe, cls.__name__) is cls
        assert callable(handler(cls))
    with pytest.raises(TypeError, match="there is a step 'fold' already"):
        type("Other", (Fold,), {})


def test_recipes_are_frozen_and_change_by_copy():
    recipe = Recipe.load("w8a8")
    with pytest.raises(AttributeError):
        recipe.name = "other"
    assert recipe.changed(activations=None).activations is None
    assert recipe.activations is not None


@pytest.mark.parametrize(
    ("step", "message"),
    [
        (lambda: Rotate(seeds=0), "rotate: seeds must lie from 1 to 1000. Received 0."),
        (lambda: Smooth(alpha=1.5), "smooth: alpha must lie from 0 to 1. Received 1.5."),
        (lambda: Polish(percentile=0.0), "polish: percentile must lie from 1 to 100. Received 0.0."),
        (lambda: Calibrate(widen=-0.1), "calibrate: widen must lie from 0 to 1. Received -0.1."),
        (lambda: Round("foo"), f"round: method must be one of {', '.join(METHODS)}. Received 'foo'."),
    ],
)
def test_options_out_of_range_are_refused(step, message):
    with pytest.raises(InputError, match=re.escape(message)):
        step()


OPTIONS = [(cls, field) for cls in STEPS.values() for field in fields(cls)]
WRONG = [None, "foo", "", ("minmax",), ["minmax"], {}, object(), math.nan, math.inf, -math.inf, -1, -0.5, 10**9,
         np.int64(3), np.float32(1), np.array([1.0])]  # fmt: skip


def fits(value: Any, default: Any) -> bool:
    """The values of WRONG that a field of this type may have, whatever its bounds."""
    return type(value) is type(default) or (type(default) is float and type(value) is int)


@pytest.mark.parametrize("value", [*WRONG, True], ids=repr)
@pytest.mark.parametrize(("cls", "field"), OPTIONS, ids=lambda one: getattr(one, "step", getattr(one, "name", "")))
def test_every_option_of_every_step_is_of_its_type_and_within_bounds(cls, field, value, written):
    """In Python and in TOML alike, and in the same words."""
    if fits(value, field.default) and (type(value) is bool or field.name == "pattern"):
        assert getattr(cls(**{field.name: value}), field.name) == value
        return
    said = f"{cls.step}: {field.name} must "
    with pytest.raises(InputError, match=re.escape(said)):
        cls(**{field.name: value})
    spelled = repr(value).lower() if isinstance(value, bool | float) else repr(value)
    if isinstance(value, bool | int | float | str | list) and not isinstance(value, np.generic):
        with refused("mine.toml", "steps[0]", f"({cls.step}): {field.name} must "):
            Recipe.load(written(f'[[steps]]\nstep = "{cls.step}"\n{field.name} = {spelled}\n'))


@pytest.mark.parametrize(("cls", "field"), OPTIONS, ids=lambda one: getattr(one, "step", getattr(one, "name", "")))
def test_bounds_are_inside_and_defaults_fit(cls, field):
    hint = get_type_hints(cls, include_extras=True)[field.name]
    for bound in hint.__metadata__[0] if hasattr(hint, "__metadata__") else (field.default,):
        value = type(field.default)(bound)
        assert getattr(cls(**{field.name: value}), field.name) == value
    for choice in get_args(hint) if get_origin(hint) is Literal else ():
        assert getattr(cls(**{field.name: choice}), field.name) == choice


@pytest.mark.parametrize(
    ("fields", "words"),
    [
        ({"name": 3}, ["name must be of type str", "3"]),
        ({"description": None}, ["description must be of type str", "None"]),
        ({"scope": "some"}, ["scope must be one of all, layers", "'some'"]),
        ({"steps": [Calibrate()]}, ["steps must be a tuple of steps", "Calibrate"]),
        ({"steps": ("calibrate",)}, ["steps must be a tuple of steps", "'calibrate'"]),
        ({"overrides": [Override()]}, ["overrides must be a tuple of overrides", "Override"]),
        ({"overrides": ({"pattern": "*"},)}, ["overrides must be a tuple of overrides", "pattern"]),
        ({"data": 3}, ["data must be of type Mapping", "3"]),
        ({"weights": 8}, ["weights must be of type Scheme", "8"]),
        ({"activations": "float"}, ["activations must be of type Scheme", "'float'"]),
        ({"weights": Scheme(granularity="token")}, ["weights have no tokens", "'token'"]),
        ({"activations": Scheme(granularity="block", block_size=32)}, ["activations have no blocks", "'block'"]),
        ({"weights": Scheme(32)}, ["weights: bits must be at most 16", "32"]),
        ({"activations": Scheme(32)}, ["activations: bits must be at most 16", "32"]),
        ({"overrides": (Override("a", weights={"bits": 1}),)}, ["overrides[0].weights ('a')", "bits must be 2", "1"]),
        ({"overrides": (Override(), Override("a", activations={"narrow": True}))}, ["overrides[1]", "narrow"]),
        ({"overrides": (Override(activations={"granularity": "block", "block_size": 8}),)}, ["overrides[0]", "blocks"]),
    ],
    ids=lambda one: repr(one)[:40],
)  # fmt: skip
def test_what_no_recipe_has_is_refused_when_it_is_built(fields, words):
    with refused("recipe mine", *words) if "name" not in fields else refused(*words):
        Recipe(**{"name": "mine", "steps": (Calibrate(),)} | fields)


@pytest.mark.parametrize(
    ("fields", "words"),
    [
        ({"pattern": 3}, ["pattern must be of type str", "3"]),
        ({"kinds": ("dense",)}, ["kinds must be a tuple of some of linear, conv", "dense"]),
        ({"kinds": "conv"}, ["kinds must be a tuple of some of linear, conv", "'conv'"]),
        ({"kinds": ["conv"]}, ["kinds must be a tuple of some of linear, conv", "['conv']"]),
        ({"weights": 8}, ["weights must be a table", "8"]),
        ({"activations": "none"}, ["activations must be a table", "'none'"]),
        ({"weights": {"bitz": 4}}, ["weights knows only the keys", "bitz"]),
        ({"weights": {"axis": 0}}, ["weights knows only the keys", "axis"]),
        ({"weights": {"bits": True}}, ["weights.bits must be of type int", "True"]),
        ({"activations": {"bits": 8.0}}, ["activations.bits must be of type int", "8.0"]),
        ({"activations": {"signed": 1}}, ["activations.signed must be of type bool", "1"]),
    ],
    ids=repr,
)
def test_what_no_override_has_is_refused_when_it_is_built(fields, words):
    with refused("overrides", *words):
        Override(**{"pattern": "a*"} | fields)


REWRITES = ("fold", "heads", "equalize", "rotate", "smooth", "polish")
LATE = [(late, rewrite) for late in ("calibrate", "round", "correct-bias") for rewrite in REWRITES]
OTHERS = [
    *(("polish", rewrite) for rewrite in REWRITES[:-1]),
    ("heads", "fold"), ("smooth", "rotate"), ("round", "calibrate"), ("correct-bias", "calibrate"),
    ("correct-bias", "round"), ("fold", "fold"), ("heads", "heads"), ("equalize", "equalize"),
    ("calibrate", "calibrate"), ("round", "round"), ("correct-bias", "correct-bias"),
]  # fmt: skip


@pytest.mark.parametrize(("first", "second"), [*itertools.product(STEPS, STEPS)], ids=str)
def test_steps_come_in_an_order_in_which_they_can_follow_one_another(first, second, written):
    """Each pair, in TOML and in Python, among what else they need."""
    wrong = (first, second) in LATE + OTHERS
    rank = {"calibrate": 1, "round": 2, "correct-bias": 3}
    before = [name for name in rank if rank[name] < rank.get(first, 0)]
    between = [name for name in rank if rank.get(first, 0) < rank[name] < rank.get(second, 0)]
    order = [*before, first, *between, second]
    text = "".join(f'[[steps]]\nstep = "{name}"\n' for name in order)
    if not wrong:
        assert [step.step for step in Recipe.load(written(text)).steps] == order
        return
    words = [f"mine.toml: {second} must come"]
    if not before:
        words += [f"before {first}" if first != second else f"once, since a second {first} makes no sense"]
    with refused(*words, f"Received the order {', '.join(order)}."):
        Recipe.load(written(text))
    with refused("recipe mine: ", second, first):
        Recipe("mine", tuple(STEPS[name]() for name in order))


@pytest.mark.parametrize(
    ("order", "words"),
    [
        ("round", "round must come behind calibrate"),
        ("round calibrate", "round must come behind calibrate"),
        ("correct-bias", "correct-bias must come behind calibrate"),
        ("calibrate correct-bias round", "correct-bias must come behind round"),
        ("fold calibrate correct-bias", "correct-bias must come behind round"),
    ],
)
def test_steps_come_behind_what_they_need(order, words, written):
    with refused(f"mine.toml: {words}, whose work it needs"):
        Recipe.load(written("".join(f'[[steps]]\nstep = "{name}"\n' for name in order.split())))


def test_the_order_that_a_recipe_keeps_is_of_steps_that_exist():
    for cls in STEPS.values():
        assert set(cls.needs) | set(cls.spoils) <= STEPS.keys()
        assert cls.__doc__ and cls.step not in cls.needs


def test_schemes_are_those_that_something_may_get():
    plain = Recipe("o", (Calibrate(),))
    assert plain.schemes("weights") == {"weights": WEIGHTS}
    some = plain.changed(overrides=(Override("a", weights={"bits": 4}), Override(kinds=("conv",), weights="float")))
    assert [scheme and scheme.bits for scheme in some.schemes("weights").values()] == [4, None, 8]
    assert some.schemes("activations") == {"activations": ACTIVATIONS}
    every = plain.changed(overrides=(*some.overrides, Override(weights={"bits": 6})))
    assert [scheme and scheme.bits for scheme in every.schemes("weights").values()] == [4, None, 6]
