"""From whatever the user has to Samples."""

from __future__ import annotations

import os
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import KW_ONLY, dataclass, replace
from pathlib import Path
from typing import Any, Protocol

import numpy as np

from leadline.data import pictures, tensors, videos
from leadline.data.choice import check_choice, choose
from leadline.data.inputs import Declared, HasShape, Input, parse_inputs
from leadline.data.layouts import pictures_of
from leadline.data.preprocess import Preprocess, Unreadable
from leadline.data.samples import Feed, Item, Samples, Spool, check_seed
from leadline.progress import Progress
from leadline.types import refuse

KINDS = {"pictures": pictures.SUFFIXES, "videos": videos.SUFFIXES, "arrays": tensors.SUFFIXES}
NOT_FOR_ARRAYS = "preprocess applies to pictures and videos; arrays enter as they are"


@dataclass(frozen=True)
class Data:
    """What there is to calibrate on or to judge by, and how it is used: Samples that no network has taken yet.

    Whatever takes data takes a Data, or `source` alone where all else is as usual: ``quantize(network, "w8a8",
    "pictures/")``, ``quantize(network, "w8a8", Data("pictures/", num_samples=100))``.

    Parameters
    ----------
    source : path, list of paths, array, dict of arrays, iterable, or Samples
        A folder (searched recursively, in order of name, hidden files left out; where it is laid out like COCO, NYU,
        KITTI or BlendedMVS, its colour pictures alone) or files, of one kind: pictures, videos (evenly spread frames:
        `num_samples`, or 32 of each video), .npy, or .npz with the input names as keys. Or an array or CPU tensor
        (DLPack, `__array__`), a dict of them by input name, or an iterable of either. Along the first axis of every
        array lie the samples. A list is indexed again at each iteration; an iterator is run once and spooled to a
        temporary folder.
    preprocess : Preprocess, optional
        For pictures and videos only. Default: the recipe's [data] table where a recipe is given; else squeezed to the
        input's size, divided by 255, RGB, NCHW.
    num_samples : int, optional
        At most so many samples, chosen by `choice` and `seed`, in the source's order; of an iterator, at random, the
        first ones. Default: all.
    choice : str
        How: "random", "folder", "brightness", "farthest" or "diverse"; see ``leadline.data.choose``. All but the first
        need `num_samples` and look at the whole source (of a video: 32 frames, evenly spread; an iterator is run to
        its end).
    features : str or callable, optional
        What "farthest" and "diverse" compare: a tensor of the network by name (`graph.features`), or any function from
        a feed to a vector. Default: the pictures themselves.
    seed : int
        At least 0. For the choice of samples, and for `Samples.split`.
    strict : bool
        Refuse the first file that cannot be read, instead of leaving it out and naming it in `Samples.skipped`.

    Raises
    ------
    InputError
        For a number out of range, an unknown choice, and options that do not go together.
    """

    source: Any
    _: KW_ONLY
    preprocess: Preprocess | None = None
    num_samples: int | None = None
    choice: str = "random"
    features: str | Callable[[Feed], Any] | None = None
    seed: int = 0
    strict: bool = False

    def __post_init__(self) -> None:
        if self.num_samples is not None and (not isinstance(self.num_samples, int) or self.num_samples < 1):
            raise refuse("Data", "num_samples must be at least 1", repr(self.num_samples))
        check_choice("Data", self.choice, self.features)
        if self.choice != "random" and self.num_samples is None:
            raise refuse("Data", f"choice {self.choice!r} needs num_samples, at least 1", "num_samples=None")
        check_seed("Data", self.seed)

    @classmethod
    def of(cls, data: Any) -> Data:
        """A Data as it is, and anything else as the source of one."""
        return data if isinstance(data, Data) else cls(data)

    def defaulting(self, table: Mapping[str, Any]) -> Data:
        """With the preprocessing of a recipe's [data] table where none is stated."""
        if self.preprocess is not None or not table:
            return self
        return replace(self, preprocess=Preprocess.from_dict(table))

    @property
    def pool(self) -> Data:
        """What `choice` looks at: all that there is, but where the choice is random what it takes."""
        if self.choice == "random":
            return self
        return replace(self, num_samples=None, choice="random", features=None)

    def chosen(self, samples: Samples, progress: Progress | None = None) -> Samples:
        """Of what `pool` gave."""
        if self.num_samples is None or self.num_samples >= len(samples):
            return samples
        if isinstance(self.features, str):
            rule = "features must be a function where no Graph is at hand: leadline.graph.features.network_features"
            raise refuse("load_samples", rule, repr(self.features))
        return choose(samples, self.num_samples, self.choice, features=self.features, seed=self.seed, progress=progress)


class HasInputs(Protocol):
    """A Graph."""

    @property
    def inputs(self) -> Sequence[HasShape]: ...


def load_samples(
    data: Any, network: HasInputs | Sequence[Declared | HasShape], *, progress: Progress | None = None
) -> Samples:
    """Samples for a network from pictures, videos, arrays, or a Python iterable.

    Parameters
    ----------
    data : Data, or what is the source of one
        ``load_samples(Data("pictures/", num_samples=100), graph)``.
    network : Graph, or sequence of (name, dtype, dims with None where dynamic), or of a graph's Values
        What has the inputs. The dims of a file may be placeholders: for pictures, a size that the preprocessing states
        wins over them. A Value's shape is settled, and all must agree with it.
        For an input of rank 5, (batch, frames, channels, height, width), a sample is a clip: consecutive frames of a
        video, evenly spread, or consecutive pictures of a folder.
    progress : Progress, optional
        ``leadline.progress.Bars()`` shows the pass of a choice over the samples. Default: silent.

    Raises
    ------
    InputError
        For a source that is missing, empty, mixed, or does not suit the inputs (name, rank, shape, dtype, channels);
        for NaN or infinity, when the sample is read, naming the input and the sample.
    """
    asked: Data = Data.of(data)
    inputs: Any = getattr(network, "inputs", network)
    return asked.chosen(_pool(asked.pool, inputs), progress)


def _pool(data: Data, inputs: Sequence[Declared | HasShape]) -> Samples:
    source, limit, seed, preprocess = data.source, data.num_samples, data.seed, data.preprocess
    if isinstance(source, Samples):
        samples: Samples = source if limit is None else choose(source, min(limit, len(source)), seed=seed)
        return samples
    parsed = parse_inputs(inputs)
    if isinstance(source, str | os.PathLike):
        return _load_files([Path(source)], parsed, preprocess, limit, seed, data.strict)
    if isinstance(source, list | tuple) and source and all(isinstance(s, str | os.PathLike) for s in source):
        return _load_files([Path(s) for s in source], parsed, preprocess, limit, seed, data.strict)

    if preprocess is not None:
        raise refuse("load_samples", NOT_FOR_ARRAYS, type(source).__name__)
    spool = Spool()
    if isinstance(source, Mapping) or hasattr(source, "__array__") or hasattr(source, "__dlpack__"):
        items = tensors.from_memory(source, parsed)
    elif isinstance(source, Sequence):
        items = tensors.from_sequence(source, parsed)
    elif isinstance(source, Iterable):
        items = tensors.from_iterable(source, parsed, limit, spool)
    else:
        raise refuse("load_samples", "data must be a path, an array, or an iterable of arrays", type(source).__name__)
    if not items:
        raise refuse("load_samples", "data must hold at least one sample", f"an empty {type(source).__name__}")
    return Samples(_limited(items, limit, seed), seed)


def _load_files(
    paths: list[Path], inputs: list[Input], preprocess: Preprocess | None, limit: int | None, seed: int, strict: bool
) -> Samples:
    where = str(paths[0]) if len(paths) == 1 else f"{paths[0]} and {len(paths) - 1} more"
    files, ignored = _find(paths)
    kinds = {kind: found for kind, found in files.items() if found}
    if not kinds:
        known = "; ".join(f"{kind} ({' '.join(suffixes)})" for kind, suffixes in KINDS.items())
        raise refuse("load_samples", f"data must hold {known}", f"{where}, with {ignored} files, none of them such")
    if len(kinds) > 1:
        counts = ", ".join(f"{len(found)} {kind}" for kind, found in kinds.items())
        raise refuse("load_samples", "data must be of one kind: pictures, videos or arrays", f"{counts} in {where}")
    ((kind, found),) = kinds.items()

    spool, skipped = Spool(), dict[int, tuple[str, str]]()

    def attempt(index: int, read: Callable[[Path], list[Item]]) -> list[Item]:
        try:
            return read(found[index])
        except Unreadable as error:
            if strict:
                rule = "every file must be readable when strict"
                raise refuse("load_samples", rule, f"{found[index]}: {error}") from error
            skipped[index] = (str(found[index]), str(error))
            return []

    items: list[Item] = []
    if kind == "arrays":
        if preprocess is not None:
            raise refuse("load_samples", NOT_FOR_ARRAYS, where)
        for index in range(len(found)):
            items += attempt(index, lambda path: tensors.from_file(path, inputs, spool))
        items = _limited(items, limit, seed)
    else:
        item, fitted, clip = pictures.fit(preprocess or Preprocess(), inputs)
        if kind == "videos":
            share = videos.FRAMES if limit is None else -(-limit // len(found))
            for index in range(len(found)):
                items += attempt(index, lambda path: videos.samples(path, share, item, fitted, spool, clip))
            items = _limited(items, limit, seed)
        elif clip is not None:
            folders: dict[Path, list[Path]] = {}
            for index, file in enumerate(found):
                if attempt(index, lambda path: _checked(path, item, fitted)):
                    folders.setdefault(file.parent, []).append(file)
            items = [pictures.clip(part, item, fitted) for paths in folders.values() for part in _parts(paths, clip)]
            items = _limited(items, limit, seed)
        else:
            order = range(len(found)) if limit is None else np.random.default_rng(seed).permutation(len(found)).tolist()
            good: dict[int, Item] = {}
            for index in order:
                good.update((index, ready) for ready in attempt(index, lambda path: _checked(path, item, fitted)))
                if len(good) == limit:
                    break
            items = [good[index] for index in sorted(good)]
    if not items and not skipped:
        raise refuse("load_samples", f"a folder must hold the {clip} pictures of a clip", f"{len(found)} in {where}")
    if not items:
        path, reason = skipped[min(skipped)]
        received = f"{len(skipped)} that are not: {path}: {reason}"
        raise refuse("load_samples", f"at least one file must be readable in {where}", received)
    return Samples(items, seed, [skipped[index] for index in sorted(skipped)], ignored)


def _checked(path: Path, item: Input, preprocess: Preprocess) -> list[Item]:
    """A picture decoded once now, so that the count is right from the start."""
    pictures.read(path, item, preprocess)
    return [pictures.sample(path, item, preprocess)]


def _parts(paths: list[Path], length: int) -> list[list[Path]]:
    """Whole clips; what is left at the end belongs to none."""
    return [paths[i : i + length] for i in range(0, len(paths) - length + 1, length)]


def _find(paths: list[Path]) -> tuple[dict[str, list[Path]], int]:
    """Files by kind in the order given (within folders: of name), and how many files of folders are of no kind."""
    by_kind: dict[str, list[Path]] = {kind: [] for kind in KINDS}
    ignored = 0
    for path in paths:
        if path.is_dir():
            own = pictures_of(path)
            if own is not None:
                by_kind["pictures"] += own
                ignored += len(_walk(path)) - len(own)
                continue
            for file in _walk(path):
                kind = _kind(file)
                if kind is None or file.name.startswith("."):
                    ignored += 1
                else:
                    by_kind[kind].append(file)
        elif path.is_file():
            kind = _kind(path)
            if kind is None:
                known = " ".join(suffix for suffixes in KINDS.values() for suffix in suffixes)
                raise refuse("load_samples", f"a data file must end in one of {known}", path)
            by_kind[kind].append(path)
        else:
            raise refuse("load_samples", "data must be a file or folder that exists", path)
    return by_kind, ignored


def _walk(folder: Path) -> list[Path]:
    files = []
    for parent, folders, names in os.walk(folder):
        folders[:] = [name for name in folders if not name.startswith(".")]
        files += [Path(parent, name) for name in names]
    return sorted(files, key=lambda file: file.relative_to(folder).as_posix())


def _kind(file: Path) -> str | None:
    return next((kind for kind, suffixes in KINDS.items() if file.suffix.lower() in suffixes), None)


def _limited(items: list[Item], limit: int | None, seed: int) -> list[Item]:
    """At most `limit` items, at random, in their order."""
    if limit is None or limit >= len(items):
        return items
    return [items[i] for i in sorted(np.random.default_rng(seed).permutation(len(items))[:limit].tolist())]
