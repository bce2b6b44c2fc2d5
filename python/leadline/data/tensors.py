"""Arrays as samples: .npy and .npz files, arrays and tensors in memory, and iterables of them."""

from __future__ import annotations

import itertools
import shutil
import zipfile
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from leadline.data.inputs import Input, check_names, count_samples, cut_sample
from leadline.data.preprocess import Unreadable
from leadline.data.samples import Feed, Item, Spool
from leadline.types import InputError, refuse

SUFFIXES = (".npy", ".npz")


def from_file(path: Path, inputs: Sequence[Input], spool: Spool) -> list[Item]:
    """The samples of a .npy or .npz file, each read from disk when asked for. Raises Unreadable."""
    try:
        files = {_only_input(inputs, str(path)).name: path} if path.suffix.lower() == ".npy" else _unpack(path, spool)
        arrays = {name: spool.open(file) for name, file in files.items()}
    except InputError:
        raise
    except (OSError, ValueError, EOFError, zipfile.BadZipFile) as error:
        raise Unreadable(f"not a {path.suffix} file of plain numbers ({error})") from error
    check_names(inputs, files, str(path))
    count = _count(inputs, arrays, str(path))
    return [Item(label, _reader(inputs, files, i, label, spool)) for i, label in enumerate(_labels(str(path), count))]


def from_memory(arrays: Any, inputs: Sequence[Input]) -> list[Item]:
    """The samples of one array or tensor, or of a dict of them; first axis the sample. Nothing is copied until read."""
    held = _as_feed(arrays, inputs, "the data")
    count = _count(inputs, held, "the data")
    return [Item(f"sample {i}", _cutter(inputs, held, i, f"sample {i}")) for i in range(count)]


def from_sequence(source: Sequence[Any], inputs: Sequence[Input]) -> list[Item]:
    """Each entry holds one or more samples and is asked for again at each iteration."""
    items: list[Item] = []
    for position, entry in enumerate(source):
        count = _count(inputs, _as_feed(entry, inputs, f"item {position}"), f"item {position}")
        for index, label in enumerate(_labels(f"item {position}", count)):
            items.append(Item(label, _indexer(source, position, inputs, index, label)))
    return items


def from_iterable(source: Iterable[Any], inputs: Sequence[Input], limit: int | None, spool: Spool) -> list[Item]:
    """An iterable that may run only once, or not alike twice: its first `limit` samples, spooled to disk."""

    def items() -> Iterator[Item]:
        for position, entry in enumerate(source):
            held = _as_feed(entry, inputs, f"item {position}")
            count = _count(inputs, held, f"item {position}")
            for index, label in enumerate(_labels(f"item {position}", count)):
                yield spool.add(label, _cutter(inputs, held, index, label)())

    return list(itertools.islice(items(), limit))


def as_array(value: Any, where: str) -> NDArray[Any]:
    """An array of numbers from numpy, a CPU tensor (DLPack, `__array__`) or nested numbers; no copy where possible."""
    if not isinstance(value, np.ndarray):
        try:
            if hasattr(value, "detach"):  # a torch tensor that requires a gradient refuses DLPack
                value = value.detach()
            value = np.from_dlpack(value) if hasattr(value, "__dlpack__") else np.asarray(value)
        except Exception as error:  # each framework refuses in its own way: wrong device, unknown dtype, ragged lists
            rule = "each item must be an array or CPU tensor of numbers, or a dict of them by input name"
            raise refuse("load_samples", rule, f"{type(value).__name__} in {where} ({error})") from error
    array: NDArray[Any] = value
    if array.dtype.kind not in "fiub" and array.dtype.name != "bfloat16":
        rule = "each item must be an array or CPU tensor of numbers, or a dict of them by input name"
        raise refuse("load_samples", rule, f"an array of {array.dtype} in {where}")
    return array


def _as_feed(entry: Any, inputs: Sequence[Input], where: str) -> Feed:
    if isinstance(entry, Mapping):
        check_names(inputs, entry.keys(), where)
        return {item.name: as_array(entry[item.name], f"{where}, {item.name}") for item in inputs}
    if isinstance(entry, list | tuple) and any(hasattr(part, "__array__") for part in entry):
        rule = "each item must be an array or a dict by input name (from a loader of pairs: (x for x, _ in loader))"
        raise refuse("load_samples", rule, f"a {type(entry).__name__} of {len(entry)} in {where}")
    return {_only_input(inputs, where).name: as_array(entry, where)}


def _only_input(inputs: Sequence[Input], where: str) -> Input:
    if len(inputs) != 1:
        names = ", ".join(item.name for item in inputs)
        rule = f"a network with the inputs {names} takes a .npz or dicts by input name"
        raise refuse("load_samples", rule, f"one array in {where}")
    return inputs[0]


def _count(inputs: Sequence[Input], arrays: Mapping[str, NDArray[Any]], where: str) -> int:
    counts = {i.name: count_samples(i, arrays[i.name].shape, arrays[i.name].dtype, where) for i in inputs}
    if len(set(counts.values())) > 1:
        received = ", ".join(f"{count} of {name}" for name, count in counts.items())
        raise refuse("load_samples", "every input must have the same number of samples", f"{received} in {where}")
    return counts[inputs[0].name]


def _labels(where: str, count: int) -> list[str]:
    return [where] if count == 1 else [f"{where}[{i}]" for i in range(count)]


def _unpack(path: Path, spool: Spool) -> dict[str, Path]:
    """Each member of a .npz as a .npy on disk, so that any sample is read without the others."""
    files = {}
    with zipfile.ZipFile(path) as archive:
        for member in archive.namelist():
            files[member.removesuffix(".npy")] = spool.file()
            with archive.open(member) as source, files[member.removesuffix(".npy")].open("wb") as sink:
                shutil.copyfileobj(source, sink)
    return files


def _cutter(inputs: Sequence[Input], arrays: Mapping[str, NDArray[Any]], index: int, label: str) -> Callable[[], Feed]:
    return lambda: {item.name: cut_sample(item, arrays[item.name], index, label) for item in inputs}


def _reader(
    inputs: Sequence[Input], files: Mapping[str, Path], index: int, label: str, spool: Spool
) -> Callable[[], Feed]:
    return lambda: {item.name: cut_sample(item, spool.open(files[item.name]), index, label) for item in inputs}


def _indexer(
    source: Sequence[Any], position: int, inputs: Sequence[Input], index: int, label: str
) -> Callable[[], Feed]:
    return lambda: _cutter(inputs, _as_feed(source[position], inputs, label), index, label)()
