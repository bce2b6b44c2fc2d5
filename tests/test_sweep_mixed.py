"""Sensitivity and mixed precision: what is measured is what happens, budgets are kept, the recipe is ordinary."""

from __future__ import annotations

import itertools
import math

import numpy as np
import pytest

from data_samples import refused
from leadline import pipeline
from leadline.cache import Cache
from leadline.graph import Graph
from leadline.preparation import prepare
from leadline.recipe import Override, Recipe
from leadline.steps.gate import output_error
from leadline.sweep import Sensitivity, mixed, mixed_precision, sensitivity
from leadline.sweep.mixed import Cost
from small_networks import residual, samples

WIDTHS = {"weights": (2, 4, 8), "activations": (4, 8, 16)}


@pytest.fixture(scope="module")
def graph():
    return Graph.from_model(residual())


@pytest.fixture(scope="module")
def found(graph):
    return sensitivity(graph, samples(8), WIDTHS, recipe="minmax-w8a8", threads=1)


def test_every_tensor_is_measured_at_every_width(graph, found):
    layers = found.of("weights")
    assert set(layers) == {layer.name for layer in graph.layers()}
    for costs in layers.values():
        assert [cost.bits for cost in costs] == [2, 4, 8]
        assert costs[0].error > costs[1].error > costs[2].error > 0
        assert costs[2].size == 2 * costs[1].size == 4 * costs[0].size
    for costs in found.of("activations").values():
        assert [cost.bits for cost in costs] == [4, 8, 16] and costs[0].error > costs[2].error


def test_an_error_is_that_of_the_tensor_alone(graph, found):
    """Everything else in float, by overrides."""
    overrides = (Override("fc", weights={"bits": 4}), Override("*", weights="float", activations="float"))
    plan = Recipe.load("minmax-w8a8").changed(overrides=overrides)
    state, _ = prepare(graph, plan, samples(8), threads=1)
    from leadline.steps import apply

    for step in plan.steps:
        apply(step, state)
    assert list(state.grids) == [layer.weight for layer in graph.layers() if layer.name == "fc"]
    (own,) = [cost for cost in found.costs if (cost.kind, cost.name, cost.bits) == ("weights", "fc", 4)]
    assert own.error == pytest.approx(output_error(state, 4), rel=1e-6)


@pytest.mark.parametrize("share", [0.3, 0.5, 0.8, 1.0])
def test_a_size_is_kept_and_well_spent(graph, found, share):
    recipe = mixed_precision(found, size=share, traffic=1.0)
    made = pipeline.quantize(graph, recipe, samples(8), threads=1)
    widths = {layer.name: made.grids[layer.weight].scheme.bits for layer in made.graph.layers()}
    table = found.of("weights")
    spent = sum(cost.size for name, costs in table.items() for cost in costs if cost.bits == widths[name])
    limit = share * sum(costs[-1].size for costs in table.values())
    assert spent <= limit
    chosen = sum(cost.error for name, costs in table.items() for cost in costs if cost.bits == widths[name])
    every = itertools.product(*table.values())
    best = min(sum(c.error for c in one) for one in every if sum(c.size for c in one) <= limit)
    # One step from the optimum: these layers are few and of very different sizes.
    assert chosen <= best + max(costs[0].error - costs[1].error for costs in table.values())


def test_widths_are_those_of_the_recipe(graph, found):
    recipe = mixed_precision(found, size=0.6, traffic=0.6)
    made = pipeline.quantize(graph, recipe, samples(8), threads=1)
    bits = {scheme.bits for name, scheme in ((n, g.scheme) for n, g in made.grids.items()) if name not in made.codes}
    assert len(bits) > 1 and bits <= {4, 8, 16}


def test_an_error_budget_is_met(graph, found):
    spent = []
    for wanted in (12.0, 20.0, 30.0):
        recipe = mixed_precision(found, sqnr=wanted)
        made = pipeline.quantize(graph, recipe, samples(8), threads=1)
        assert made.verify(threads=1).outputs[0].sqnr > wanted - 3  # errors add up only to first order
        weights = {name: recipe.weight_scheme(name).bits for name in found.of("weights")}
        activations = {name: recipe.activation_scheme(name).bits for name in found.of("activations")}
        chosen = [c for c in found.costs if c.bits == (weights if c.kind == "weights" else activations)[c.name]]
        assert sum(cost.error for cost in chosen) <= 10 ** (-wanted / 10)
        spent.append(sum(cost.size for cost in chosen))
    assert spent == sorted(spent) and spent[0] < spent[-1]


def test_the_recipe_is_an_ordinary_one(tmp_path, found):
    recipe = mixed_precision(found, size=0.5, name="half")
    recipe.save(tmp_path / "half.toml")
    again = Recipe.load(tmp_path / "half.toml")
    assert again.overrides == recipe.overrides and again.name == "half" and "dB predicted" in again.description


def test_names_are_taken_literally():
    costs = [Cost("weights", name, bits, 1 / bits**4, 100 * bits) for name in ("a[0]", "b*", "c") for bits in (4, 8)]
    recipe = mixed_precision(Sensitivity(Recipe.load("w8a8"), tuple(costs)), size=2000)
    assert sum(cost in (4, 8) for cost in [recipe.weight_scheme(n).bits for n in ("a[0]", "b*", "c")]) == 3
    assert sorted(recipe.weight_scheme(n).bits for n in ("a[0]", "b*", "c")) == [4, 8, 8]


@pytest.mark.parametrize("seed", range(5))
def test_greedy_is_within_a_step_of_the_best(seed):
    rng = np.random.default_rng(seed)
    costs = []
    for i in range(7):
        size, error = rng.integers(10, 100), rng.uniform(0.1, 1)
        costs += [
            Cost("weights", f"l{i}", b, error * 2.0 ** (-2 * b) * rng.uniform(0.5, 2), size * b) for b in (2, 4, 8)
        ]
    found = Sensitivity(Recipe.load("w8a8"), tuple(costs))
    table = list(found.of("weights").values())
    limit = 0.5 * sum(own[-1].size for own in table)
    recipe = mixed_precision(found, size=limit)
    chosen = [next(c for c in own if c.bits == recipe.weight_scheme(own[0].name).bits) for own in table]
    assert sum(c.size for c in chosen) <= limit
    best = min(sum(c.error for c in one) for one in itertools.product(*table) if sum(c.size for c in one) <= limit)
    assert sum(c.error for c in chosen) <= best + max(own[0].error - own[-1].error for own in table)


def test_an_interrupted_analysis_goes_on(tmp_path, graph, found, monkeypatch):
    cache, calls = Cache(tmp_path, least=0), []

    def error(state, count):
        calls.append(1)
        if len(calls) == 5:
            raise KeyboardInterrupt
        return output_error(state, count)

    monkeypatch.setattr(mixed, "output_error", error)
    with pytest.raises(KeyboardInterrupt):
        sensitivity(graph, samples(8), WIDTHS, recipe="minmax-w8a8", threads=1, cache=cache)
    calls.extend([1] * 5)
    again = sensitivity(graph, samples(8), WIDTHS, recipe="minmax-w8a8", threads=1, cache=cache)
    assert again == found
    assert len(calls) - 10 == len(found.costs) - 4


def test_as_csv(tmp_path, found):
    found.to_csv(tmp_path / "sensitivity.csv")
    lines = (tmp_path / "sensitivity.csv").read_text().splitlines()
    assert lines[0] == "kind,name,bits,error,size" and len(lines) == len(found.costs) + 1
    assert "<table>" in found._repr_html_()


def test_mistakes_are_named(graph, found):
    with refused("[sensitivity] candidates must be for weights and activations", "'biases'"):
        sensitivity(graph, samples(4), {"biases": (8,)})
    with refused("[sensitivity] weights must have widths from 2 to 16", "(1, 8)"):
        sensitivity(graph, samples(4), {"weights": (1, 8)})
    with refused("[mixed_precision] there must be a budget"):
        mixed_precision(found)
    with refused("[mixed_precision] there must be a budget"):
        mixed_precision(found, sqnr=20, size=0.5)
    with refused("[mixed_precision] the budget for weights must hold their narrowest widths", "100 bytes"):
        mixed_precision(found, size=100)
    with refused("[mixed_precision] the widest choice must reach the error", "200 dB"):
        mixed_precision(found, sqnr=200)
    only = Sensitivity(found.recipe, tuple(cost for cost in found.costs if cost.kind == "weights"))
    with refused("[mixed_precision] a budget for activations needs candidates"):
        mixed_precision(only, traffic=0.5)
    assert math.isfinite(len(mixed_precision(only, size=0.5).overrides))
