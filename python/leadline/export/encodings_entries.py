"""One entry of an AIMET encodings file and the Grid it spells, for the three layouts.

Source: qualcomm/aimet, Docs/techniques/encoding_spec.rst, and aimet-onnx 2.42.0, ``AffineEncoding``.
0.6.1 and 1.0.0 count every grid from code 0: real = scale * (code + offset), so offset = -zero_point for an unsigned
grid and -(zero_point + 2**(bits-1)) for a signed one; their "symmetric" flag says that the grid is signed. 2.x spells
ONNX QuantizeLinear: real = scale * (code - y_zero_point), the sign in ``output_dtype``, a zero point of 0 left out.
"""

from __future__ import annotations

import re
from typing import Any

import numpy as np
from numpy.typing import NDArray

from leadline.types import Grid, InputError, Scheme, refuse

Entry = dict[str, Any]

_FIELDS_0_6_1 = ("bitwidth", "dtype", "is_symmetric", "max", "min", "offset", "scale")
_FIELDS_1_0_0 = ("bw", "dtype", "enc_type", "is_sym", "name", "offset", "scale")
_FIELDS_2_0_0 = ("name", "output_dtype", "y_scale")
_KINDS = {"tensor": "PER_TENSOR", "axis": "PER_CHANNEL", "block": "PER_BLOCK"}


def _shift(scheme: Scheme) -> int:
    """From a grid's codes to codes counted from 0."""
    return 2 ** (scheme.bits - 1) if scheme.signed else 0


# ---------------------------------------------------------------------------------------------- writing


def write_0_6_1(name: str, grid: Grid) -> list[Entry]:
    scheme = grid.scheme
    if scheme.granularity == "block":
        rule = f"version 0.6.1 has no blocks: write tensor '{name}' as 1.0.0 or 2.0.0"
        raise refuse("encodings.write", rule, f"blocks of {scheme.block_size}")
    scale, offset = _legacy(grid)
    steps = 2**scheme.bits - 1
    return [
        {
            "bitwidth": scheme.bits,
            "dtype": "int",
            "is_symmetric": str(scheme.signed),
            "max": s * (o + steps),
            "min": s * o,
            "offset": o,
            "scale": s,
        }
        for s, o in zip(scale, offset, strict=True)
    ]


def write_1_0_0(name: str, grid: Grid) -> Entry:
    scheme = grid.scheme
    scale, offset = _legacy(_output_channels_first(name, grid))
    entry = {
        "bw": scheme.bits,
        "dtype": "INT",
        "enc_type": _KINDS[scheme.granularity],
        "is_sym": scheme.signed,
        "name": name,
        "offset": offset,
        "scale": scale,
    }
    return entry | ({"block_size": scheme.block_size} if scheme.granularity == "block" else {})


def write_2_0_0(name: str, grid: Grid) -> Entry:
    scheme = grid.scheme
    entry: Entry = {
        "name": name,
        "output_dtype": f"{'' if scheme.signed else 'u'}int{scheme.bits}",
        "y_scale": grid.scale.astype(np.float64).tolist(),
    }
    if grid.zero_point.any():
        entry["y_zero_point"] = grid.zero_point.tolist()
    if scheme.granularity != "tensor":
        if scheme.axis is None:
            rule = f"version 2.0.0 needs the axis of '{name}', which 0.6.1 and 1.0.0 do not store: give the graph"
            raise refuse("encodings.write", rule, "a grid without axis")
        entry["axis"] = scheme.axis
    if scheme.granularity == "block":
        entry["block_size"] = scheme.block_size
    return entry


def _legacy(grid: Grid) -> tuple[list[float], list[float]]:
    """Flat scales (each float32 exactly) and offsets, as floats."""
    offset = -(grid.zero_point.astype(np.int64) + _shift(grid.scheme))
    return grid.scale.astype(np.float64).ravel().tolist(), offset.astype(np.float64).ravel().tolist()


def _output_channels_first(name: str, grid: Grid) -> Grid:
    """1.0.0 lists the blocks of a matrix output channel by output channel, however the weight lies."""
    if grid.scheme.granularity != "block" or grid.scheme.axis is None:
        return grid
    if grid.scale.ndim != 2:
        rule = f"version 1.0.0 holds blocks of matrices only: write tensor '{name}' as 2.0.0"
        raise refuse("encodings.write", rule, f"{grid.scale.ndim} axes")
    return Grid(grid.scale.T, grid.zero_point.T, grid.scheme) if grid.scheme.axis == 0 else grid


# ---------------------------------------------------------------------------------------------- reading


class Reader:
    """Turns entries into grids. Messages name the file, the tensor and the field.

    A grid from 0.6.1 or 1.0.0 has axis None, and flat scales in the file's order: the file does not store more.
    """

    def __init__(self, label: str) -> None:
        self.label = label

    def wrong(self, name: str, rule: str, received: object) -> InputError:
        return refuse("encodings.read", f"{self.label}: tensor '{name}': {rule}", received)

    def read_0_6_1(self, name: str, entry: Any) -> Grid | None:
        """None for float16."""
        if not isinstance(entry, list) or not entry or not all(isinstance(item, dict) for item in entry):
            raise self.wrong(
                name, "an encoding of version 0.6.1 must be a list of objects, one per channel", _short(entry)
            )
        kind = self._field(name, entry[0], "dtype")
        if kind == "float":
            self._fields(name, entry[0], ("bitwidth", "dtype"), "0.6.1")
            self._float16(name, entry[0], "bitwidth")
            return None
        if kind != "int":
            raise self.wrong(name, "dtype must be 'int' or 'float'", _short(kind))
        for item in entry:
            self._fields(name, item, _FIELDS_0_6_1, "0.6.1")
            for field in ("bitwidth", "dtype", "is_symmetric"):
                if item[field] != entry[0][field]:
                    raise self.wrong(name, f"{field} must be the same for every channel", _short(item[field]))
            for field in ("min", "max"):
                self._numbers(name, field, item[field], 0)
        if entry[0]["is_symmetric"] not in ("True", "False"):
            raise self.wrong(name, "is_symmetric must be the text 'True' or 'False'", _short(entry[0]["is_symmetric"]))
        scale, offset = ([item[field] for item in entry] for field in ("scale", "offset"))
        kind = "PER_CHANNEL" if len(entry) > 1 else "PER_TENSOR"
        signed = entry[0]["is_symmetric"] == "True"
        return self._legacy_grid(name, entry[0]["bitwidth"], "bitwidth", signed, kind, scale, offset, None)

    def read_1_0_0(self, name: str, entry: Entry) -> Grid | None:
        """None for float16."""
        kind = self._field(name, entry, "dtype")
        if kind == "FLOAT":
            self._fields(name, entry, ("bw", "dtype", "enc_type", "name"), "1.0.0")
            self._float16(name, entry, "bw")
            return None
        if kind != "INT":
            raise self.wrong(name, "dtype must be 'INT' or 'FLOAT'", _short(kind))
        kind = self._field(name, entry, "enc_type")
        if kind not in _KINDS.values():
            raise self.wrong(name, f"enc_type must be {', '.join(_KINDS.values())}", _short(kind))
        self._fields(name, entry, _FIELDS_1_0_0 + ("block_size",) * (kind == "PER_BLOCK"), "1.0.0")
        if not isinstance(entry["is_sym"], bool):
            raise self.wrong(name, "is_sym must be true or false", _short(entry["is_sym"]))
        block = entry.get("block_size")
        return self._legacy_grid(
            name, entry["bw"], "bw", entry["is_sym"], kind, entry["scale"], entry["offset"], block
        )  # fmt: skip

    def read_2_0_0(self, name: str, entry: Entry) -> Grid:
        self._fields(name, entry, _FIELDS_2_0_0, "2.0.0", ("y_zero_point", "axis", "block_size"))
        match = re.fullmatch(r"(u?)int(\d+)", entry["output_dtype"]) if isinstance(entry["output_dtype"], str) else None
        if match is None:
            raise self.wrong(name, "output_dtype must be an integer type", _short(entry["output_dtype"]))
        scale = self._numbers(name, "y_scale", entry["y_scale"])
        zero_point = self._integers(name, "y_zero_point", entry.get("y_zero_point", np.zeros(scale.shape).tolist()))
        if zero_point.shape != scale.shape:
            raise self.wrong(name, f"y_zero_point must have the shape of y_scale, {scale.shape}", zero_point.shape)
        axis, block = entry.get("axis"), entry.get("block_size")
        if (axis is None) != (scale.ndim == 0) or isinstance(axis, bool) or not isinstance(axis, int | None):
            raise self.wrong(name, "axis must be an integer where y_scale is a list, and only there", _short(axis))
        if scale.ndim > 1 and block is None:
            raise self.wrong(name, "nested y_scale needs block_size", f"y_scale of shape {scale.shape}")
        kind = "PER_TENSOR" if axis is None else "PER_CHANNEL" if block is None else "PER_BLOCK"
        return self._grid(name, int(match[2]), "output_dtype", not match[1], kind, scale, zero_point, block, axis)

    def _legacy_grid(
        self, name: str, bits: Any, field: str, signed: bool, kind: str, scale: Any, offset: Any, block: Any
    ) -> Grid:
        scales = self._numbers(name, "scale", scale, 1)
        offsets = self._integers(name, "offset", offset)
        if scales.shape != offsets.shape or not scales.size:
            raise self.wrong(
                name, "scale and offset must be lists of one length, not empty", f"{scales.shape} and {offsets.shape}"
            )
        if kind == "PER_TENSOR":
            if scales.size != 1:
                raise self.wrong(name, "scale of a PER_TENSOR encoding must be one number", f"{scales.size} numbers")
            scales, offsets = scales.reshape(()), offsets.reshape(())
        shift = 2 ** (bits - 1) if signed and isinstance(bits, int) and 0 < bits <= 32 else 0
        return self._grid(name, bits, field, signed, kind, scales, -offsets - shift, block, None)

    def _grid(
        self, name: str, bits: Any, field: str, signed: bool, kind: str, scale: NDArray[np.float64],
        zero_point: NDArray[np.int64], block: Any, axis: int | None,
    ) -> Grid:  # fmt: skip
        granularity = {text: key for key, text in _KINDS.items()}[kind]
        symmetric = signed and not zero_point.any()
        if isinstance(bits, bool):
            raise self.wrong(name, f"{field} must be an integer", _short(bits))
        if isinstance(block, bool):
            raise self.wrong(name, "block_size must be an integer", _short(block))
        try:
            scheme = Scheme(bits, signed, symmetric, granularity, axis, block)  # type: ignore[arg-type]
        except InputError as error:
            raise self.wrong(name, f"{field} and block_size must be possible", error) from error
        if (zero_point < scheme.qmin).any() or (zero_point > min(scheme.qmax, 2**31 - 1)).any():
            rule = f"zero point must lie on the grid {scheme.qmin}..{scheme.qmax}"
            raise self.wrong(name, rule, f"{zero_point.min()} to {zero_point.max()}")
        try:
            return Grid(scale.astype(np.float32), zero_point.astype(np.int32), scheme)
        except InputError as error:
            raise self.wrong(name, "scale must be a positive float32", error) from error

    def _float16(self, name: str, entry: Entry, field: str) -> None:
        if entry[field] != 16:
            raise self.wrong(name, f"{field} of a float encoding must be 16", _short(entry[field]))

    def _field(self, name: str, entry: Entry, field: str) -> Any:
        if field not in entry:
            raise self.wrong(name, f"{field} must be there", f"fields {', '.join(sorted(entry)) or 'none'}")
        return entry[field]

    def _fields(
        self, name: str, entry: Entry, needed: tuple[str, ...], version: str, optional: tuple[str, ...] = ()
    ) -> None:
        for field in needed:
            self._field(name, entry, field)
        foreign = sorted(set(entry) - {*needed, *optional})
        if foreign:
            known = ", ".join(sorted({*needed, *optional}))
            raise self.wrong(name, f"an entry of version {version} has only the fields {known}", ", ".join(foreign))

    def _numbers(self, name: str, field: str, value: Any, ndim: int | None = None) -> NDArray[np.float64]:
        try:
            array = np.asarray(value)
        except ValueError:  # lists of unequal length
            array = np.asarray(None)
        if array.dtype.kind not in "iuf" or (ndim is not None and array.ndim != ndim):
            wanted = {None: "numbers in lists of one length", 0: "a number", 1: "a list of numbers"}[ndim]
            raise self.wrong(name, f"{field} must be {wanted}", _short(value))
        if not np.isfinite(array).all():
            raise self.wrong(name, f"{field} must be finite", _short(value))
        return array.astype(np.float64)

    def _integers(self, name: str, field: str, value: Any) -> NDArray[np.int64]:
        array = self._numbers(name, field, value)
        if (array % 1).any() or (np.abs(array) > 2**40).any():
            raise self.wrong(name, f"{field} must hold whole numbers", _short(value))
        return array.astype(np.int64)


def _short(value: object) -> str:
    text = repr(value)
    return text if len(text) <= 80 else f"{text[:77]}..."
