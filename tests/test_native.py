"""The compiled modules: which one is chosen, that their stubs tell the truth, threads, and the lean import."""

import json
import os
import subprocess
import sys
import threading
import time
from importlib import import_module
from pathlib import Path

import numpy as np
import pytest

import leadline
from leadline import Scheme, affine
from natives import MODULES

PACKAGE = Path(leadline.__file__).parent


def python(code, **environment):
    return subprocess.run(
        [sys.executable, "-c", code], capture_output=True, text=True, env={**os.environ, **environment}, timeout=60
    )


@pytest.mark.skipif(len(MODULES) < 2, reason="one module on this processor")
@pytest.mark.parametrize("isa", ["v2", "v3"])
def test_the_environment_chooses_the_module(isa):
    done = python("import leadline; print(leadline.build_info()['isa'])", LEADLINE_ISA=isa)
    assert done.stdout.strip() == f"x86-64-{isa}", done.stderr


def test_an_unknown_instruction_set_is_refused():
    done = python("import leadline", LEADLINE_ISA="avx9")
    assert done.returncode == 1
    assert "[import leadline] the environment variable LEADLINE_ISA must be" in done.stderr
    assert "Received 'avx9'" in done.stderr


def test_a_missing_module_says_how_to_build_it():
    done = python("from leadline._native import _load; _load('_core_v9')")
    assert "install leadline with `pip install .`" in done.stderr


def test_build_info_serves_a_bug_report():
    info = leadline.build_info()
    assert {"version", "python", "isa", "module", "compiler", "build_type", "openmp", "eigen", "pybind11"} <= set(info)
    assert json.dumps(info) and info["version"] == leadline.__version__ and info["build_type"] == "Release"


@pytest.mark.parametrize("module", MODULES, ids=lambda m: m.__name__)
def test_the_stub_names_what_the_module_has(module):
    stub = (PACKAGE / "_core.pyi").read_text()
    words = {line.split("(")[0].split(" ")[-1].rstrip(":") for line in stub.splitlines()
             if line.startswith(("def ", "class "))}  # fmt: skip
    assert words == {name for name in vars(module) if not name.startswith("_")}
    assert all("import *" in path.read_text() for path in PACKAGE.glob("_core_*.pyi"))


def test_import_is_lean():
    heavy = "onnx", "onnxruntime", "torch", "PIL", "rich", "typer", "matplotlib"
    done = python(f"import leadline, sys; print([m for m in {heavy!r} if m in sys.modules])")
    assert done.stdout.strip() == "[]", done.stdout + done.stderr


def test_the_interpreter_runs_on_meanwhile():
    x = np.random.default_rng(0).standard_normal(4_000_000).astype(np.float32)
    turns, stop = 0, threading.Event()

    def count():
        nonlocal turns
        while not stop.is_set():
            turns += 1
            time.sleep(0)  # hands the lock back at once

    worker = threading.Thread(target=count)
    interval = sys.getswitchinterval()
    sys.setswitchinterval(10.0)  # the other thread only runs where the core gives up the lock by itself
    try:
        worker.start()
        before = turns
        for _ in range(1000):  # a busy machine may let it wait; a lock that is kept lets it wait for all of them
            affine.range_of(x, Scheme(), threads=1)
            if turns > before:
                break
        assert turns > before
    finally:
        stop.set()
        sys.setswitchinterval(interval)
        worker.join()


def test_calls_from_several_threads_do_not_mix():
    arrays = [np.full(100_003, i, np.float32) for i in range(1, 5)]
    found: dict[int, bool] = {}

    def work(i):
        ranges = [affine.range_of(arrays[i], Scheme(), threads=2) for _ in range(20)]
        histograms = [leadline.observers.Histogram().update(arrays[i], threads=2) for _ in range(20)]
        found[i] = all(r == (i + 1, i + 1) for r in ranges) and all(h.sum == 100_003 * (i + 1) for h in histograms)

    workers = [threading.Thread(target=work, args=(i,)) for i in range(4)]
    for w in workers:
        w.start()
    for w in workers:
        w.join()
    assert found == dict.fromkeys(range(4), True)


def test_the_modules_export_only_their_entry():
    for module in MODULES:
        assert import_module(module.__name__) is module
        nm = subprocess.run(["nm", "-D", "--defined-only", module.__file__], capture_output=True, text=True)
        if nm.returncode == 0:
            names = [line.split()[-1] for line in nm.stdout.splitlines()]
            assert not [n for n in names if "N8leadline" in n], names
