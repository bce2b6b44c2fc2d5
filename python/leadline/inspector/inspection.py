"""What every kind of file is reduced to: an Inspection to show, and an Artefact to compare."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterable, Mapping
from dataclasses import asdict, dataclass, field
from typing import Any

from numpy.typing import NDArray
from rich.filesize import decimal

from leadline.types import Grid, few

_DEAD_RANGE = 1e-6


@dataclass(frozen=True)
class Inspection:
    """What a file holds. Counts are None where the file does not say, as encodings of version 2.0.0 often do not.

    Attributes
    ----------
    file : str
        Name of the file.
    kind : str
        "ONNX QDQ", "ONNX", "ONNX context", "TFLite", or "encodings" with the version.
    bytes : int
        Size on disk, external data and context binaries included.
    tensors, quantized : int or None
        Float tensors of the network (for encodings: named in the file), and how many of them have a grid. None for
        a context, whose binary only the vendor's software reads.
    parameters, parameters_quantized, activations, activations_quantized : int or None
        The same, apart.
    absorbed : int
        Activations that only a quantised Relu or Clip reads: kernels fuse it, they never exist. Of encodings, also
        those that take a neighbour's grid. Not in `tensors`.
    listed : int or None
        Every tensor of a ``.tflite``, shapes and indices too: what an interpreter counts.
    grids : dict of str to int
        How many grids of each type and granularity; parameters in half precision as well.
    weight_bytes, weight_bytes_float : int or None
        Parameters as stored, scales and zero points included, and what they take as float32.
    saving : float or None
        Percent that `weight_bytes` is below `weight_bytes_float`.
    uncovered : tuple of str
        Float tensors without a grid.
    suspicious : dict of str to str
        Tensor or operator name to what is wrong with its grid: dead, saturated, or shared by a Concat whose inputs
        have ranges so different that the narrowest keeps a few codes only.
    float_operators : dict of str to tuple of str
        Operator type to the names of those that compute in float: some float input or output has no grid.
    dynamic_operators : dict of str to tuple of str
        Those of a ``.tflite`` that read integer weights and float activations, which the kernel quantises as they come.
    gaps : dict of str to str
        With the network beside encodings: tensor name to why it has no entry, and what the vendor's tool will do.
    inputs, outputs : dict of str to str
        Type and shape of each, as "float32 1x3x224x224"; "?" for a free axis. Empty for encodings.
    facts : dict of str to str
        What else the file says of itself, by label.
    """

    file: str
    kind: str
    bytes: int
    tensors: int | None = None
    quantized: int | None = None
    parameters: int | None = None
    parameters_quantized: int | None = None
    activations: int | None = None
    activations_quantized: int | None = None
    absorbed: int = 0
    listed: int | None = None
    weight_bytes: int | None = None
    weight_bytes_float: int | None = None
    grids: dict[str, int] = field(default_factory=dict)
    uncovered: tuple[str, ...] = ()
    suspicious: dict[str, str] = field(default_factory=dict)
    float_operators: dict[str, tuple[str, ...]] = field(default_factory=dict)
    dynamic_operators: dict[str, tuple[str, ...]] = field(default_factory=dict)
    gaps: dict[str, str] = field(default_factory=dict)
    inputs: dict[str, str] = field(default_factory=dict)
    outputs: dict[str, str] = field(default_factory=dict)
    facts: dict[str, str] = field(default_factory=dict)

    @property
    def saving(self) -> float | None:
        if self.weight_bytes is None or self.weight_bytes_float is None:
            return None
        full = self.weight_bytes_float
        return round(100 * (1 - self.weight_bytes / full), 2) if full else 0.0

    def to_dict(self) -> dict[str, Any]:
        """Plain values, ready for JSON."""
        table = asdict(self) | {"saving": self.saving, "uncovered": list(self.uncovered)}
        for key in ("float_operators", "dynamic_operators"):
            table[key] = {kind: list(names) for kind, names in getattr(self, key).items()}
        return table

    def rows(self, longest: int = 8) -> list[tuple[str, str]]:
        """Label and text of each line of a table; lists of names are cut after `longest`."""
        rows = [("file", f"{self.file}, {self.kind}, {decimal(self.bytes)}"), *self.facts.items()]
        rows += [("input", f"{name}, {what}") for name, what in self.inputs.items()]
        rows += [("output", f"{name}, {what}") for name, what in self.outputs.items()]
        if self.tensors is not None:
            listed = f" ({self.listed} in the file)" if self.listed is not None else ""
            rows.append(("quantised", f"{self.quantized} of {self.tensors} tensors{listed}"))
        for label, have, of in (
            ("parameters", self.parameters_quantized, self.parameters),
            ("activations", self.activations_quantized, self.activations),
        ):
            if of is not None:
                rows.append((f"  {label}", f"{have} of {of}"))
        if self.absorbed:
            rows.append(("  absorbed", f"{self.absorbed} activations, by a neighbour"))
        rows += [(f"  {kind}", str(count)) for kind, count in self.grids.items()]
        if self.weight_bytes is not None and self.weight_bytes_float is not None:
            sizes = f"{decimal(self.weight_bytes)}, in float32 {decimal(self.weight_bytes_float)}"
            rows.append(("weights", f"{sizes}, {self.saving:.1f} % saved"))
        if self.uncovered:
            label = "without entry" if self.kind.startswith("encodings") else "left in float"
            rows.append((label, few(self.uncovered, longest)))
        rows += [("suspicious", f"{name}: {what}") for name, what in list(self.suspicious.items())[:longest]]
        if len(self.suspicious) > longest:
            rows.append(("suspicious", f"and {len(self.suspicious) - longest} more"))
        missing = list(grouped((what, name) for name, what in self.gaps.items()).items())
        rows += [(f"  {len(names)}", f"{what}: {few(names, 3)}") for what, names in missing[:longest]]
        if len(missing) > longest:
            rows.append(("", f"and {len(missing) - longest} more reasons"))
        left = "outside the binary" if self.tensors is None else "float operators"
        for label, operators in (("dynamic operators", self.dynamic_operators), (left, self.float_operators)):
            rows += [(label, f"{kind} {len(names)}: {few(names, longest)}") for kind, names in operators.items()]
        return rows


@dataclass(frozen=True, eq=False)
class Artefact:
    """An inspection with the grids and integer codes behind it, by tensor name."""

    inspection: Inspection
    grids: dict[str, Grid] = field(default_factory=dict)
    codes: dict[str, NDArray[Any]] = field(default_factory=dict)


def described(grid: Grid) -> str:
    """Type and granularity: "int8 per channel"."""
    scheme = grid.scheme
    size = {"tensor": "per tensor", "axis": "per channel", "block": f"in blocks of {scheme.block_size}"}
    size["token"] = "per token"
    return f"{'' if scheme.signed else 'u'}int{scheme.bits} {size[scheme.granularity]}"


def count(grids: Mapping[str, Grid], kinds: Mapping[str, str]) -> dict[str, int]:
    """How many grids there are of each kind of tensor, type and granularity."""
    return dict(sorted(Counter(f"{kinds[name]} {described(grid)}" for name, grid in grids.items()).items()))


def suspicious(grids: Mapping[str, Grid], codes: Mapping[str, NDArray[Any]]) -> dict[str, str]:
    """Dead: a range below 1e-6, or one code everywhere. Saturated: beside the one element that sets each scale, more
    than four times as many codes on the rails as an even spread would put there. Biases are neither.
    """
    table = {}
    for name, grid in grids.items():
        scheme = grid.scheme
        if scheme.bits == 32:
            continue
        dead = int(((grid.hi - grid.lo) < _DEAD_RANGE).sum())
        if dead:
            table[name] = f"dead: {dead} of {grid.scale.size} scales cover a range below {_DEAD_RANGE:g}"
            continue
        array = codes.get(name)
        if array is None or array.size < 2:
            continue
        if array.min() == array.max():
            table[name] = f"dead: every code is {array.flat[0]}"
            continue
        rails = int((array == scheme.qmin).sum() + (array == scheme.qmax).sum())
        if (rails - grid.scale.size) / array.size > min(0.5, 8 / 2**scheme.bits):
            table[name] = f"saturated: {rails / array.size:.1%} of the codes are the lowest or the highest"
    return table


def grouped(pairs: Iterable[tuple[str, str]]) -> dict[str, tuple[str, ...]]:
    """(operator type, name) to the names of each type, the most frequent type first."""
    table: dict[str, list[str]] = {}
    for kind, name in pairs:
        table.setdefault(kind, []).append(name)
    return {kind: tuple(names) for kind, names in sorted(table.items(), key=lambda item: (-len(item[1]), item[0]))}


def typed(dtype: object, shape: Iterable[int | None]) -> str:
    """Type and shape of an input or output: "float32 1x3x224x224"."""
    return f"{dtype} {'x'.join('?' if dim is None or dim < 0 else str(dim) for dim in shape)}".rstrip()
