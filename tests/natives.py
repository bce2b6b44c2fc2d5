"""The compiled modules that this processor runs, and a fixture that repeats a test with each."""

from importlib import import_module

import pytest

from leadline import _native, affine, arrays, gram, hadamard, polishing, smoothing
from leadline.observers import statistics

NAMES = ["_core_v2", "_core_v3"] if hasattr(_native.core, "supports_v3") and _native.core.supports_v3() else []
MODULES = [import_module(f"leadline.{name}") for name in NAMES] or [_native.core]
ODD_SIZES = (1, 2, 3, 5, 7, 8, 9, 15, 16, 17, 31, 32, 33, 63, 65, 127, 1000, 1023, 4099)


def use(monkeypatch, module):
    for user in (arrays, affine, statistics, gram, hadamard, polishing, smoothing):
        monkeypatch.setattr(user, "core", module)


@pytest.fixture(params=MODULES, ids=lambda m: m.__name__.rpartition(".")[2])
def native(request, monkeypatch):
    use(monkeypatch, request.param)
    return request.param
