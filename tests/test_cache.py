"""The cache: values known by content, computed once between processes, never wrong."""

from __future__ import annotations

import shutil
import subprocess
import sys
from dataclasses import replace
from types import SimpleNamespace

import numpy as np
import pytest

from data_samples import refused
from leadline import pipeline
from leadline.cache import Cache, digest, environment
from leadline.data import load_samples
from leadline.graph import Graph
from leadline.options import Equalize, Fold
from leadline.recipe import Recipe
from small_networks import SHAPE, conv_relu_conv, residual, samples
from small_transformer import transformer


def test_a_digest_tells_content_and_type_apart():
    zeros = np.zeros(4, np.float32)
    values = [
        1, 1.0, True, None, "1", b"\x01", [1], [[1]], [1, 1], {"a": 1}, {"a": 2}, {"b": 1}, zeros, zeros[:3],
        zeros.reshape(2, 2), zeros.astype(np.float64), np.float32(0), Fold(), Equalize(), Equalize(iterations=3), {},
    ]  # fmt: skip
    assert len({digest(value) for value in values}) == len(values)
    assert digest("ab", "c") != digest("a", "bc")
    assert digest({"a": 1, "b": 2}) == digest({"b": 2, "a": 1}) and digest((1, 2)) == digest([1, 2])
    assert digest(np.arange(6).reshape(2, 3).T) == digest(np.arange(6).reshape(2, 3).T.copy())
    with refused("[digest] values must be plain", "object"):
        digest(object())


def test_a_graph_and_samples_are_known_by_content():
    one, other = Graph.from_model(conv_relu_conv()), Graph.from_model(conv_relu_conv())
    assert digest(one) == digest(other) == digest(one.copy())
    other.weights["w1"] = other.weights["w1"] * np.float32(1.0001)
    assert digest(one) != digest(other)
    data = samples(4)
    assert load_samples(data, one.inputs).digest() == load_samples(data.copy(), one.inputs).digest()
    assert load_samples(data, one.inputs).digest() != load_samples(data[::-1].copy(), one.inputs).digest()
    assert load_samples(data, one.inputs).take(2).digest() == load_samples(data[:2], one.inputs).digest()


def test_the_environment_is_leadline_s_own_code_and_what_it_computes_with(tmp_path, monkeypatch):
    """Wherever it lies. Another line of Python, another compiled module or another library make another one."""
    package, modules = tmp_path / "one" / "leadline", ("_core_v2", "_core_v3")
    (package / "steps").mkdir(parents=True)
    for file in ("__init__.py", "steps/gate.py", *modules):
        (package / file).write_text(f"what {file} holds\n")
    where, said = [package], dict[str, str]()

    def spec(name):
        if name == "leadline":
            return SimpleNamespace(submodule_search_locations=[str(where[0])])
        file = where[0] / name.removeprefix("leadline.")
        return SimpleNamespace(origin=str(file)) if file.exists() else None

    monkeypatch.setattr("leadline.cache.find_spec", spec)
    monkeypatch.setattr("leadline.cache.version", lambda name: said.get(name, "1.0"))
    plain = environment.__wrapped__()
    seen = [plain]
    for library in ("numpy", "onnxruntime", "onnx", "leadline"):
        said[library] = "1.1"
        seen.append(environment.__wrapped__())
        del said[library]
    for file in ("__init__.py", "steps/gate.py", *modules):
        (package / file).write_text(f"what else {file} holds\n")
        seen.append(environment.__wrapped__())
        (package / file).write_text(f"what {file} holds\n")
    shutil.copytree(package, tmp_path / "two" / "leadline")
    (package / "steps" / "gate.py").rename(package / "steps" / "other.py")
    seen.append(environment.__wrapped__())
    assert len(set(seen)) == len(seen) == 10
    where[0] = tmp_path / "two" / "leadline"
    assert environment.__wrapped__() == plain


def test_what_other_code_has_computed_is_not_read(tmp_path, monkeypatch):
    assert Cache(tmp_path, least=0).recall("key", lambda: 1) == 1
    assert Cache(tmp_path, least=0).recall("key", lambda: 2) == 1
    monkeypatch.setattr("leadline.cache.environment", lambda: "another")
    assert Cache(tmp_path, least=0).recall("key", lambda: 3) == 3


def test_a_value_is_computed_once(tmp_path):
    calls = []

    def compute():
        calls.append(1)
        return {"a": np.arange(3)}

    for _ in range(3):
        found = Cache(tmp_path, least=0).recall("key", compute)
        assert found["a"].tolist() == [0, 1, 2]
    assert len(calls) == 1 and [f.suffix for f in Cache(tmp_path).folder.iterdir()] == [".pickle"]


def test_what_is_cheap_is_not_kept(tmp_path):
    cache = Cache(tmp_path, least=10.0)
    assert [cache.recall("key", lambda: 3) for _ in range(2)] == [3, 3]
    assert (cache.hits, cache.misses) == (0, 2) and list(cache.folder.iterdir()) == []


def test_a_damaged_file_is_computed_anew(tmp_path):
    cache = Cache(tmp_path, least=0)
    cache.recall("key", lambda: 3)
    (file,) = cache.folder.iterdir()
    for content in (b"", file.read_bytes()[:-1], b"nonsense"):
        file.write_bytes(content)
        assert cache.recall("key", lambda: 4) == 4


def test_an_error_is_passed_on_and_nothing_is_kept(tmp_path):
    cache = Cache(tmp_path, least=0)
    with pytest.raises(ZeroDivisionError):
        cache.recall("key", lambda: 1 // 0)
    assert list(cache.folder.iterdir()) == [] and cache.recall("key", lambda: 5) == 5


PROCESS = """
import sys, time
from pathlib import Path
from leadline.cache import Cache

def compute():
    time.sleep(0.3)
    with Path(sys.argv[1], "calls").open("a") as file:
        file.write("x")
    return 7

assert Cache(sys.argv[1], least=0).recall("key", compute) == 7
"""


def test_processes_wait_for_one_another(tmp_path):
    command = [sys.executable, "-c", PROCESS, str(tmp_path)]
    running = [subprocess.Popen(command) for _ in range(4)]
    assert [process.wait(60) for process in running] == [0] * 4
    assert (tmp_path / "calls").read_text() == "x"


def test_a_folder_that_cannot_be_made(tmp_path):
    (tmp_path / "file").write_text("")
    with refused("[Cache] the folder must be writable", "file"):
        Cache(tmp_path / "file")


@pytest.mark.parametrize("recipe", ["w8a8", "w4a8", "quartdepth-w4a8"])
@pytest.mark.parametrize(
    "network", [lambda: Graph.from_model(residual()), transformer], ids=["residual", "transformer"]
)
def test_quantising_with_a_cache_is_the_same(tmp_path, recipe, network):
    """Computed, kept and read back: graph, grids, codes and log are those of a run without."""
    graph = network()
    data = samples(6, graph.inputs[0].shape)
    plan = Recipe.load(recipe)
    plan = plan.changed(steps=tuple(replace(s, kfac=False) if s.step == "round" else s for s in plan.steps))
    plain = pipeline.quantize(graph, plan, data, threads=1)
    cache = Cache(tmp_path, least=0)
    for hits in (False, True):
        found = pipeline.quantize(graph, plan, data, threads=1, cache=cache)
        assert found.log == plain.log and found.grids == plain.grids
        assert found.codes.keys() == plain.codes.keys()
        assert all(np.array_equal(found.codes[name], plain.codes[name]) for name in plain.codes)
        assert digest(found.graph) == digest(plain.graph)
        assert found.histograms.keys() == plain.histograms.keys()
        assert hits <= (cache.hits >= len(plan.steps))


def test_another_calibration_shares_what_lies_before_it(tmp_path):
    graph, data = Graph.from_model(residual()), samples(6, SHAPE)
    cache = Cache(tmp_path, least=0)
    pipeline.quantize(graph, "w8a8", data, threads=1, cache=cache)
    plan = Recipe.load("w8a8")
    changed = tuple(replace(s, activations="minmax") if s.step == "calibrate" else s for s in plan.steps)
    before = cache.hits
    pipeline.quantize(graph, plan.changed(steps=changed), data, threads=1, cache=cache)
    assert cache.hits - before >= 4  # fold, equalize, rotate, and the histograms
