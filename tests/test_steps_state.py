"""What a run is given and what it finds: trials share the first and fork the second."""

from __future__ import annotations

from dataclasses import FrozenInstanceError, fields, replace

import pytest

from leadline.pipeline import quantize
from leadline.preparation import prepare
from leadline.recipe import Calibrate, Override, Recipe
from leadline.steps import Record, Setup, State, apply, trial
from leadline.steps.shared import FOUND, KEPT
from leadline.steps.trial import trial_error
from small_networks import graph, residual, samples


@pytest.fixture
def state() -> State:
    return prepare(graph(residual()), "w8a8", samples(8), threads=1)[0]


def test_what_a_run_is_given_stays(state):
    for field in fields(Setup):
        with pytest.raises(FrozenInstanceError):
            setattr(state.setup, field.name, None)


def test_a_state_is_its_setup_what_steps_change_and_what_they_say():
    assert {field.name for field in fields(State)} == {"setup", "log", *KEPT, *FOUND}


def test_a_trial_leaves_the_state_as_it_was(state):
    before = {name: getattr(state, name) for name in FOUND}
    log = [*state.log]
    assert trial_error(state, state.graph) > 0
    assert state.log == log and all(getattr(state, name) is value for name, value in before.items())
    fork = state.fork(grids={"x": 1})
    fork.log.append(Record("try", "x"))
    assert fork.setup is state.setup and fork.graph is state.graph and state.log == log and state.grids == {}


def test_what_the_float_network_gives_is_computed_once_for_all_trials(state):
    trial_error(state, state.graph)
    reference = [*state.reference]
    assert reference
    trial_error(state, state.graph)
    assert all(now is then for now, then in zip(state.reference, reference, strict=True))


def override(pattern: str, bits: int) -> Override:
    return Override(pattern, activations={"bits": bits})


@pytest.mark.parametrize("stated", [(), ("a",), ("*",), ("a", "*"), ("a", "*", "b")])
def test_what_steps_decide_goes_behind_names_and_before_kinds(state, stated):
    recipe = Recipe("mine", (Calibrate(),), overrides=tuple(override(pattern, 8) for pattern in stated))
    state = state.fork(setup=replace(state.setup, recipe=recipe))
    assert state.recipe is recipe
    for pattern in ("c", "d"):
        state.overrides += (override(pattern, 16),)
    everything = [one.pattern for one in state.recipe.overrides]
    kinds = stated.index("*") if "*" in stated else len(stated)
    assert everything == [*stated[:kinds], "c", "d", *stated[kinds:]]
    assert state.recipe.activation_scheme("d").bits == 16 and state.setup.recipe is recipe


def test_a_step_may_be_applied_by_itself(state):
    apply(Calibrate(activations="minmax"), state)
    assert state.grids and not state.codes


def test_what_a_target_rounds_down_is_in_the_log():
    network, data, said = graph(residual()), samples(8), {}
    for target in ("hexagon", "onnxruntime"):
        log = quantize(network, "minmax-w8a8", data, threads=1, target=target).log
        said[target] = [line for line in log if line.step == "recentre"]
    assert said["onnxruntime"] == []
    (line,) = said["hexagon"]
    assert line.target == network.name and int(line.note.split()[0]) >= 1
    assert "biases take back what hexagon's sums lose on average by rounding down" in line.note


def test_a_network_that_others_are_tried_against_is_tried_once(state, monkeypatch):
    asked, compute = [], trial._tried
    monkeypatch.setattr(trial, "_tried", lambda state, graph: asked.append(graph.name) or compute(state, graph))
    names = ["first", "second", "third"]
    for name in names:
        other = state.graph.copy()
        other.name = name
        other.weights = {key: array.copy() for key, array in other.weights.items()}
        before, after = trial_error(state, state.graph), trial_error(state, other)
        assert after == before  # the same values
    assert asked == [state.graph.name, *names]
