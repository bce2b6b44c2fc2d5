# make demo        a small depth network on rendered scenes: recipes compared, with a report in demo/; no download
# make test        the tests                      make check     ruff, mypy, import-linter
# make test-cpp    the C++ tests and library      make notebooks  execute them on small data
# make test-full   the tests with aimet-onnx, PyTorch, litert-torch, ExecuTorch and Ray (environments of their own, 8 GB)
# make bench       every benchmark                make clean
# make regress REF=v0.1.0    time, memory and accuracy beside an earlier leadline (default: the newest tag v*)
#
# Needs Python 3.11 or newer, a C++20 compiler, make. Everything else goes into .venv; networks and pictures go into
# $LEADLINE_CACHE (default ~/.cache/leadline).

PYTHON ?= python3
VENV := .venv
BIN := $(VENV)/bin
QUIET_PIP := -m pip --disable-pip-version-check --quiet
PIP := $(BIN)/python $(QUIET_PIP)
WHEEL := .cache/dist
RIVALS := aimet litert executorch ray torch
PACKAGES_aimet := torch==2.13.0 aimet-onnx==2.42.0 onnxscript
PACKAGES_litert := torch==2.13.0 'litert-torch==0.10.*' onnxscript
PACKAGES_executorch := torch==2.13.0 executorch==1.5.1
PACKAGES_ray := 'ray>=2.30'
PACKAGES_torch := torch==2.13.0 onnxscript transformers timm scipy einops easydict opencv-python-headless tqdm
TESTS_aimet := -m full tests/full/test_aimet.py tests/full/test_aimet_networks.py
TESTS_litert := -p no:anyio tests/full/test_litert.py tests/test_torch_module.py tests/test_audit.py
TESTS_executorch := tests/full/test_executorch.py
TESTS_ray := tests/full/test_sweep_ray.py tests/full/test_quantize_ray.py
TESTS_torch := -p no:anyio -m "torch or full" tests/test_graph_torch.py tests/test_torch_*.py tests/test_systems*.py
SOURCES := pyproject.toml CMakeLists.txt $(shell find cpp python -type f -not -name '*.pyc' -not -name '*.so')

.DEFAULT_GOAL := help
.PHONY: help demo test check test-cpp notebooks test-full bench regress clean
.DELETE_ON_ERROR:
.PRECIOUS: .cache/%/.tests

help:
	@sed -n '/^#/!q; s/^# \{0,1\}//p' Makefile

$(BIN)/python:
	@echo "making $(VENV) with $$($(PYTHON) --version)"
	@$(PYTHON) -m venv $(VENV)

# Built once, and installed wherever leadline is needed. Not editable, so that what is tested is what ships.
$(WHEEL)/.built: $(BIN)/python $(SOURCES)
	@echo "building leadline"
	@rm -rf $(WHEEL) && mkdir -p $(WHEEL)
	@$(PIP) wheel --no-deps --wheel-dir $(WHEEL) .
	@touch $@

# A wheel of the version that is there already counts only when it is forced.
define install
	@$(1) $(QUIET_PIP) install "$$(ls $(WHEEL)/leadline-*.whl)[$(2)]"
	@$(1) $(QUIET_PIP) install --force-reinstall --no-deps $(WHEEL)/leadline-*.whl
endef

# The stamps: leadline as a user has it, and with what the tests need.
$(VENV)/.installed: $(WHEEL)/.built
	@echo "installing leadline"
	$(call install,$(BIN)/python,report)
	@touch $@

$(VENV)/.tests: $(WHEEL)/.built
	@echo "installing leadline with its test tools"
	$(call install,$(BIN)/python,test)
	@touch $@ $(VENV)/.installed

$(VENV)/.cpp: $(BIN)/python
	@$(PIP) install cmake ninja 'cmeel-eigen>=3.4'
	@touch $@

# One after another: torch first, so that nothing else chooses which one, and all at once takes pip's resolver an hour.
.cache/%/.tests: $(WHEEL)/.built
	@echo "making .cache/$*: $(PACKAGES_$*)"
	@$(PYTHON) -m venv .cache/$*
	@.cache/$*/bin/python $(QUIET_PIP) install $(firstword $(PACKAGES_$*))
	@.cache/$*/bin/python $(QUIET_PIP) install $(PACKAGES_$*)
	$(call install,.cache/$*/bin/python,test)
	@touch $@

# Peers that are measured only need no leadline beside them.
.cache/nncf/.peer: $(BIN)/python
	@echo "making .cache/nncf"
	@$(PYTHON) -m venv .cache/nncf
	@.cache/nncf/bin/python $(QUIET_PIP) install nncf==3.4.0 onnx onnxruntime
	@touch $@

demo: $(VENV)/.installed
	$(BIN)/leadline demo --out demo
	@echo "open demo/report.html"

test: $(VENV)/.tests
	@$(BIN)/python tests/testbed.py fetch || echo "tests that need what is missing will be skipped"
	@$(BIN)/python -m pytest $(PYTEST)

check: $(VENV)/.tests
	@$(BIN)/ruff check .
	@$(BIN)/mypy
	@$(BIN)/lint-imports

CMAKE = $(BIN)/cmake -G Ninja -DCMAKE_MAKE_PROGRAM=$(abspath $(BIN)/ninja)

test-cpp: $(VENV)/.cpp
	@$(CMAKE) -S . -B build/cpp -DLEADLINE_TESTS=ON -DCMAKE_INSTALL_MESSAGE=NEVER \
		-DPython_EXECUTABLE=$(abspath $(BIN)/python)
	@$(BIN)/cmake --build build/cpp
	@$(BIN)/ctest --test-dir build/cpp --output-on-failure --parallel 2
	@rm -rf build/prefix
	@$(BIN)/cmake --install build/cpp --prefix build/prefix
	@$(CMAKE) -S examples/cpp -B build/example -DCMAKE_PREFIX_PATH=$(abspath build/prefix)
	@$(BIN)/cmake --build build/example
	@build/example/round_layer

notebooks: $(VENV)/.tests
	@LEADLINE_FAST=1 $(BIN)/python -m pytest --nbmake --nbmake-timeout=300 notebooks

test-full: $(RIVALS:%=test-full-%) $(VENV)/.tests
	@$(BIN)/python -m pytest -m full tests/test_conformance.py $(PYTEST)

test-full-%: .cache/%/.tests
	@.cache/$*/bin/python tests/testbed.py fetch || echo "tests that need what is missing will be skipped"
	@.cache/$*/bin/python -m pytest $(TESTS_$*) $(PYTEST)

bench: $(VENV)/.installed
	@for script in benchmarks/bench_*.py benchmarks/accuracy.py benchmarks/depth_recipes.py benchmarks/memory.py \
			benchmarks/speed.py; do \
		echo "== $$script"; $(BIN)/python $$script || exit 1; done

regress: $(VENV)/.installed
	@$(BIN)/python benchmarks/regress.py $(REF)

clean:
	rm -rf $(VENV) $(WHEEL) $(RIVALS:%=.cache/%) .cache/nncf .cache/regress build dist demo benchmarks/out
	find . -name __pycache__ -prune -exec rm -rf {} +
