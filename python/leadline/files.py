"""Writing files so that nothing half-written is ever left behind."""

from __future__ import annotations

import json
import math
import os
import tempfile
from collections.abc import Callable, Iterable, Iterator, Mapping
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import Any

from leadline.types import InputError, refuse

REPORT = ("report.json", "report.html", "report-error.txt")
"""What a run says of its artefacts. It goes when the artefacts are replaced."""


@contextmanager
def replacing(path: str | os.PathLike[str]) -> Iterator[Path]:
    """Yield a temporary path beside `path`; moved over `path` when the block succeeds, removed when it does not.

    Raises InputError when the folder cannot be written.
    """
    target = Path(path)
    try:
        target.parent.mkdir(parents=True, exist_ok=True)
        handle, name = tempfile.mkstemp(prefix=f".{target.name}.", dir=target.parent)
    except OSError as error:
        raise refuse("write", "the output folder must be writable", f"{target.parent}: {error.strerror}") from error
    os.close(handle)
    temporary = Path(name)
    try:
        yield temporary
        # mkstemp makes private files; outputs get what the user's umask would give.
        umask = os.umask(0)
        os.umask(umask)
        temporary.chmod(0o666 & ~umask)
        os.replace(temporary, target)
    finally:
        temporary.unlink(missing_ok=True)


def kept(name: str, make: Callable[[], str]) -> str:
    """A text from the user's cache folder (XDG_CACHE_HOME, by default ~/.cache), made where it is not there yet; `name`
    says all that it depends on. Without such a folder it is made each time."""
    file = Path(os.environ.get("XDG_CACHE_HOME") or os.path.expanduser("~/.cache")) / "leadline" / name
    if not file.is_absolute():
        return make()
    with suppress(OSError, UnicodeDecodeError):
        return file.read_text("utf-8")
    text = make()
    with suppress(OSError, InputError), replacing(file) as temporary:
        temporary.write_text(text, "utf-8")
    return text


@contextmanager
def filling(folder: str | os.PathLike[str], outdated: Iterable[str] = ()) -> Iterator[Path]:
    """Yield a temporary folder inside `folder`; its files are moved up together when the block succeeds, and those of
    an earlier run that are `outdated` by them go.

    An interrupt or an error inside the block leaves `folder` as it was. Raises InputError when it cannot be written.
    """
    target = Path(folder)
    new = [path for path in (target, *target.parents) if not path.exists()]
    try:
        target.mkdir(parents=True, exist_ok=True)
        temporary = tempfile.TemporaryDirectory(prefix=".leadline-", dir=target)
    except OSError as error:
        raise refuse("write", "the output folder must be writable", f"{target}: {error.strerror}") from error
    try:
        with temporary:
            yield Path(temporary.name)
            files = sorted(Path(temporary.name).iterdir())
            for file in files:
                if (target / file.name).is_dir():
                    raise refuse("write", "no folder may be in the way of an output file", target / file.name)
            discard(target, set(outdated) - {file.name for file in files})
            for file in files:
                os.replace(file, target / file.name)
    except BaseException:
        for path in new:
            with suppress(OSError):  # somebody else may have put something there meanwhile
                path.rmdir()
        raise


def discard(folder: str | os.PathLike[str], names: Iterable[str]) -> None:
    """Remove those of the files that are there. Folders of such names are somebody else's and stay."""
    for name in names:
        path = Path(folder) / name
        if path.is_file() or path.is_symlink():
            path.unlink()


def to_json(document: Any, indent: int | None = 2) -> str:
    """JSON. Numbers that it has no word for, NaN and infinities, are null."""
    return json.dumps(_plain(document), indent=indent, allow_nan=False)


def _plain(value: Any) -> Any:
    if isinstance(value, Mapping):
        return {key: _plain(item) for key, item in value.items()}
    if isinstance(value, list | tuple):
        return [_plain(item) for item in value]
    return None if isinstance(value, float) and not math.isfinite(value) else value
