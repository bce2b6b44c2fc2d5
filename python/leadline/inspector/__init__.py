"""What a file quantises and what it leaves in float, looked at only: ONNX (QDQ, float, context), encodings, .tflite."""

from __future__ import annotations

import os
from pathlib import Path

from leadline.inspector.compare import Difference, compare_artefacts
from leadline.inspector.inspection import Artefact, Inspection
from leadline.types import refuse

__all__ = ["Difference", "Inspection", "compare", "inspect"]


def inspect(path: str | os.PathLike[str], model: str | os.PathLike[str] | None = None) -> Inspection:
    """Look into a file; what it is is told by content, not by name.

    Parameters
    ----------
    path : path
        A QDQ or float ONNX file, an ONNX file around a context binary (EPContext), an AIMET encodings file, or a
        ``.tflite``.
    model : path, optional
        The ONNX network that encodings are for: tells what they do not cover and what the vendor's tool makes of it.

    Raises
    ------
    InputError
        The file is missing, is none of these, or is damaged; `model` is given for anything but encodings; a
        ``.tflite`` without the extra ``leadline[tflite]``.
    """
    return open_artefact(path, model).inspection


def compare(first: str | os.PathLike[str], second: str | os.PathLike[str]) -> Difference:
    """What differs between two files of any kinds that `inspect` reads: tensors, grids, codes, sizes.

    Tensors go by name; parameters that are called differently are paired where they hold the same codes, and no other
    two do. uint8 and int8 grids whose zero points are 128 apart count as equal, and scales within one millionth.
    """
    return compare_artefacts(open_artefact(first), open_artefact(second))


def open_artefact(path: str | os.PathLike[str], model: str | os.PathLike[str] | None = None) -> Artefact:
    """All that `inspect` and `compare` need of a file."""
    file = Path(path)
    try:
        with file.open("rb") as stream:
            start = stream.read(64)
    except OSError as error:
        raise refuse("inspect", "path must be a file that can be read", f"'{file}': {error.strerror}") from error
    is_json = start.lstrip()[:1] in (b"{", b"[")
    if model is not None and not is_json:
        raise refuse("inspect", "model goes with an encodings file", f"'{file.name}', which holds its own network")
    if is_json:
        from leadline.inspector.encodings_file import read_encodings

        return read_encodings(file, model)
    if start[4:8] == b"TFL3" or file.suffix == ".tflite":
        from leadline.inspector.tflite_file import read_tflite

        return read_tflite(file)
    from leadline.inspector.onnx_file import read_onnx

    return read_onnx(file)
