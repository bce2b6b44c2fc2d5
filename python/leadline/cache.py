"""Values that many runs need, computed once: kept in a folder under the digest of all that they depend on."""

from __future__ import annotations

import fcntl
import hashlib
import os
import pickle
import time
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager, suppress
from dataclasses import fields, is_dataclass
from functools import cache
from importlib.metadata import version
from importlib.util import find_spec
from pathlib import Path
from typing import Any, TypeVar

import numpy as np

from leadline.files import replacing
from leadline.types import InputError, refuse

T = TypeVar("T")

LEAST = 0.2
"""Seconds: what takes less is computed anew rather than written and read."""


def digest(*parts: Any) -> str:
    """SHA-256 of plain values, arrays, tables, sequences and dataclasses, by content; hexadecimal.

    The order of a table's keys does not count. An object with a ``digest()`` method is asked for its own. Raises
    InputError for anything else: what cannot be compared by content cannot be shared.
    """
    state = hashlib.sha256()
    for part in _pieces(parts):
        state.update(part)
    return state.hexdigest()


@cache
def environment() -> str:
    """The digest of what computes: leadline's own files, Python and compiled, and the versions of numpy, onnx and
    onnxruntime. Hexadecimal; part of everything that outlives a process."""
    package = find_spec("leadline")
    files: dict[str, Path] = {}
    for folder in map(Path, package.submodule_search_locations or () if package else ()):
        files |= {str(file.relative_to(folder)): file for file in folder.rglob("*.py")}
    for name in ("_core", "_core_v2", "_core_v3"):  # in an editable install they are elsewhere
        module = find_spec(f"leadline.{name}")
        if module is not None and module.origin:
            files[name] = Path(module.origin)
    versions = {name: version(name) for name in ("leadline", "numpy", "onnx", "onnxruntime")}
    return digest(versions, {name: file.read_bytes() for name, file in files.items()})


def _pieces(value: Any) -> Iterator[bytes]:
    """Each value as its type and content, so that no two values spell alike."""
    if isinstance(value, np.ndarray | np.generic):
        array = np.asarray(value)
        yield f"array {array.dtype} {array.shape};".encode()
        yield np.ascontiguousarray(array).tobytes()
    elif value is None or isinstance(value, bool | int | float | np.dtype):
        yield f"{type(value).__name__} {value!r};".encode()
    elif isinstance(value, str | bytes | os.PathLike):
        raw = value if isinstance(value, bytes) else os.fspath(value).encode()
        yield f"text {len(raw)};".encode()
        yield raw
    elif isinstance(value, Mapping):
        yield f"table {len(value)};".encode()
        for key in sorted(value, key=str):
            yield from _pieces(key)
            yield from _pieces(value[key])
    elif isinstance(value, list | tuple | set | frozenset):
        items = sorted(value) if isinstance(value, set | frozenset) else value
        yield f"list {len(items)};".encode()
        for item in items:
            yield from _pieces(item)
    elif hasattr(value, "digest") and not isinstance(value, type):
        yield f"digest {value.digest()};".encode()
    elif is_dataclass(value) and not isinstance(value, type):
        yield f"data {type(value).__qualname__};".encode()
        for field in fields(value):
            yield from _pieces(field.name)
            yield from _pieces(getattr(value, field.name))
    else:
        raise refuse("digest", "values must be plain, arrays, tables, sequences or dataclasses", type(value).__name__)


class Cache:
    """A folder of pickled values, safe between processes: one computes, the others wait for it and read.

    Pickles run code when they are read: share the folder only with those whose code you would run.

    Parameters
    ----------
    folder : path
        Made if need be; may be emptied at any time. What other code has computed (see `environment`) lies in folders
        of its own in it and is not read.
    least : float
        Values that took fewer seconds are not kept.

    Attributes
    ----------
    saved : float
        Seconds that the values read back had taken to compute.
    hits, misses : int
        Values read back, and computed.

    Raises
    ------
    InputError
        The folder cannot be made. A folder that is full only costs time: values are then not kept.
    """

    def __init__(self, folder: str | os.PathLike[str], least: float = LEAST) -> None:
        self.folder, self.least = Path(folder) / environment()[:16], least
        self.saved, self.hits, self.misses = 0.0, 0, 0
        try:
            self.folder.mkdir(parents=True, exist_ok=True)
        except OSError as error:
            raise refuse("Cache", "the folder must be writable", f"{folder}: {error.strerror}") from error

    def recall(self, key: str, compute: Callable[[], T]) -> T:
        """The value kept under `key` (see `digest`), or what `compute` gives, kept from now on."""
        file = self.folder / f"{key}.pickle"
        entry = self._read(file)
        if entry is None:
            with self._alone(key):
                entry = self._read(file)
                if entry is None:
                    self.misses += 1
                    start, saved = time.monotonic(), self.saved
                    value = compute()
                    # As if nothing had been shared: what was read back in between counts with its own price.
                    took = time.monotonic() - start + self.saved - saved
                    if took >= self.least:
                        self._write(file, took, value)
                    return value
        self.hits += 1
        self.saved += entry[0]
        return entry[1]  # type: ignore[no-any-return]

    def _read(self, file: Path) -> tuple[float, Any] | None:
        try:
            return pickle.loads(file.read_bytes())  # type: ignore[no-any-return]
        except FileNotFoundError:
            return None
        except Exception:  # damaged, or of another version: pickle raises whatever it stumbles over
            return None

    def _write(self, file: Path, took: float, value: Any) -> None:
        with suppress(OSError, InputError), replacing(file) as temporary:
            temporary.write_bytes(pickle.dumps((took, value), pickle.HIGHEST_PROTOCOL))

    @contextmanager
    def _alone(self, key: str) -> Iterator[None]:
        """Only one process at a time; the kernel gives the lock back if it dies."""
        path = self.folder / f"{key}.lock"
        try:
            lock = path.open("w")
        except OSError:  # a full disk: everybody computes for himself
            yield
            return
        with lock:
            fcntl.flock(lock, fcntl.LOCK_EX)
            try:
                yield
            finally:
                path.unlink(missing_ok=True)  # whoever waits for it looks for the value first
