"""AIMET ``.encodings``: the JSON that Qualcomm's converters take beside a float network. 0.6.1, 1.0.0 and 2.0.0.

What each version can hold:

==================  =======================  ==========================  ======================================
..                  0.6.1                    1.0.0                       2.0.0
==================  =======================  ==========================  ======================================
per channel         yes, axis not stored     yes, axis not stored        yes
blocks              no (refused)             matrices, axis not stored   yes
int32 biases        left out                 left out                    yes
params/activations  told apart               told apart                  not told apart
float16             yes                      yes                         left out, as no entry means float
excluded layers     left out                 yes                         left out
==================  =======================  ==========================  ======================================

What a version does not store is asked of the graph: pass it to `read` or `convert`. No version stores what a Scheme
says about *finding* a grid (narrow, fit), or the codes: AIMET rounds the float network's weights to nearest.
A per-axis grid of a single channel is indistinguishable from per tensor in 0.6.1, and is read as that.
"""

from __future__ import annotations

import json
import os
from collections import Counter
from collections.abc import Callable, Mapping
from dataclasses import dataclass, replace
from importlib.metadata import version as package_version
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal, get_args

import numpy as np

from leadline.export.encodings_entries import Reader, write_0_6_1, write_1_0_0, write_2_0_0
from leadline.export.qdq import scale_shape
from leadline.files import replacing
from leadline.graph.tables import tables
from leadline.types import Grid, InputError, Scheme, refuse

if TYPE_CHECKING:
    from leadline.graph import Graph

__all__ = ["Encodings", "Version", "convert", "read"]

Version = Literal["0.6.1", "1.0.0", "2.0.0"]
"""Of the encodings that are written."""
Complaint = Callable[[str, str, object], InputError]  # tensor, rule, received
_READABLE = (*get_args(Version), "2.1.0")  # 2.1.0 differs from 2.0.0 only in LPBQ, which is no affine grid


@dataclass(frozen=True)
class Encodings:
    """What an encodings file says, in no particular version.

    Attributes
    ----------
    grids : dict of tensor name to Grid
        Activations, weights and int32 biases. `narrow` and `fit` are unset; a signed grid with zero points 0 counts as
        symmetric, any other grid as asymmetric. From 0.6.1 or 1.0.0 without a graph the axis is None, and the scales
        of blocks are flat in the file's order.
    params : frozenset of str, or None
        Which names (of `grids` and `floats`) are parameters; None when nobody said: a 2.0.0 file without a graph.
    floats : frozenset of str
        Tensors kept in float16.
    excluded : tuple of str
        Layers that 1.0.0 lists as excluded from quantisation.
    """

    grids: dict[str, Grid]
    params: frozenset[str] | None = None
    floats: frozenset[str] = frozenset()
    excluded: tuple[str, ...] = ()

    @classmethod
    def from_grids(cls, graph: Graph, grids: Mapping[str, Grid]) -> Encodings:
        """The encodings of a network.

        Raises InputError for a grid whose tensor the graph does not have, whose shape does not fit it, or that is per
        token.
        """
        tokens = [name for name, grid in grids.items() if grid.scheme.granularity == "token"]
        if tokens:
            raise _wrong(tokens[0], "no file holds scales that are computed at run time", "granularity 'token'")
        encodings = cls({name: plain(grid) for name, grid in grids.items()})
        return encodings._placed(graph, _wrong)

    def write(self, path: str | os.PathLike[str], version: str = "1.0.0") -> None:
        """Write a file; nothing half-written is left at `path` if it fails. See the module's table for what is kept.

        Raises
        ------
        InputError
            The version cannot hold a tensor's grid, or needs what only the graph knows; the folder cannot be written.
        """
        document = self._document(version)
        with replacing(path) as temporary:
            temporary.write_text(json.dumps(document, indent=4, sort_keys=True, allow_nan=False) + "\n", "utf-8")

    def _document(self, version: str) -> dict[str, Any]:
        if version not in get_args(Version):
            raise refuse("encodings.write", f"version must be one of {', '.join(get_args(Version))}", repr(version))
        producer = {"package": "leadline", "version": package_version("leadline")}
        document: dict[str, Any] = {"producer": producer, "version": version}
        if version == "2.0.0":
            return document | {"encodings": [write_2_0_0(name, grid) for name, grid in self.grids.items()]}
        if self.params is None:
            rule = f"version {version} tells parameters from activations, which 2.0.0 does not: give the graph"
            raise refuse("encodings.write", rule, "encodings without that")
        sections: dict[str, dict[str, Any]] = {"activation_encodings": {}, "param_encodings": {}}
        for name, grid in self.grids.items():
            if grid.scheme.bits < 32:
                section = sections["param_encodings" if name in self.params else "activation_encodings"]
                section[name] = write_0_6_1(name, grid) if version == "0.6.1" else write_1_0_0(name, grid)
        for name in sorted(self.floats):
            section = sections["param_encodings" if name in self.params else "activation_encodings"]
            if version == "0.6.1":
                section[name] = [{"bitwidth": 16, "dtype": "float"}]
            else:
                section[name] = {"bw": 16, "dtype": "FLOAT", "enc_type": "PER_TENSOR", "name": name}
        document |= {"quantizer_args": self._quantizer_args(self.params)}
        if version == "0.6.1":
            return document | sections
        return document | {key: list(section.values()) for key, section in sections.items()} | {
            "excluded_layers": list(self.excluded)
        }  # fmt: skip

    def _quantizer_args(self, params: frozenset[str]) -> dict[str, Any]:
        """A summary that readers show and do not act on. Widths are the most frequent ones; 32 stands for float."""
        schemes = {name: grid.scheme for name, grid in self.grids.items() if grid.scheme.bits < 32}
        weights = [scheme for name, scheme in schemes.items() if name in params]
        activations = [scheme for name, scheme in schemes.items() if name not in params]
        return {
            "activation_bitwidth": _most_frequent_bits(activations),
            "dtype": "int",
            "is_symmetric": all(s.symmetric for s in weights),
            "param_bitwidth": _most_frequent_bits(weights),
            "per_channel_quantization": any(s.granularity != "tensor" for s in weights),
            "quant_scheme": "min_max",
        }

    def _placed(self, graph: Graph, wrong: Complaint) -> Encodings:
        """The same with every axis known, each grid checked against its tensor."""
        for name in sorted({*self.grids, *self.floats}):
            if name not in graph.weights and name not in graph.values:
                raise wrong(
                    name, "encodings must name tensors of the graph", f"a name that '{graph.name}' does not have"
                )
        axes = {table.weight: table.axis for table in tables(graph)}
        axes |= {layer.weight: layer.axis for layer in graph.layers()}
        grids = {
            name: _place(name, grid, graph.shape(name), axes.get(name), wrong) for name, grid in self.grids.items()
        }
        params = frozenset(name for name in (*grids, *self.floats) if name in graph.weights)
        return replace(self, grids=grids, params=params)


def read(path: str | os.PathLike[str], graph: Graph | None = None) -> Encodings:
    """Read an encodings file of version 0.6.1, 1.0.0, 2.0.0 or 2.1.0, as strictly as aimet-onnx does.

    Parameters
    ----------
    path : path
    graph : Graph, optional
        The network that the file belongs to. It supplies the axes that 0.6.1 and 1.0.0 leave out (the output channels
        of the layer that reads the weight, else the only axis of that length), and what is a parameter for 2.x;
        and every name and shape is checked against it.

    Raises
    ------
    InputError
        The file is missing, no JSON, of an unknown version or mixed from several; a field is missing, unknown, or has
        an impossible value; a tensor is not in the graph. The message names file, tensor and field.
    """
    return read_with_version(path, graph)[0]


def read_with_version(path: str | os.PathLike[str], graph: Graph | None = None) -> tuple[Encodings, str]:
    """`read`, and the version that the file is in."""
    file = Path(path)
    document = _json(file)
    version = document.get("version") if isinstance(document, dict) else None
    if not isinstance(version, str) or version not in _READABLE:
        raise refuse("encodings.read", f"'{file}': version must be one of {', '.join(_READABLE)}", repr(version))
    reader = Reader(f"'{file}'")
    legacy = version in ("0.6.1", "1.0.0")
    sections = ("activation_encodings", "param_encodings") if legacy else ("encodings",)
    for section in ("activation_encodings", "param_encodings", "encodings"):
        if (section in document) != (section in sections):
            rule = (
                f"'{file}': a file of version {version} must have the sections {' and '.join(sections)}, and no other"
            )
            raise refuse("encodings.read", rule, f"keys {', '.join(sorted(document))}")
    grids: dict[str, Grid] = {}
    floats: set[str] = set()
    params: set[str] = set()
    for section in sections:
        for name, entry in _entries(file, section, document[section], version):
            if name in grids or name in floats:
                raise reader.wrong(name, "a tensor must have one encoding", f"a second one in {section}")
            grid = {"0.6.1": reader.read_0_6_1, "1.0.0": reader.read_1_0_0}.get(version, reader.read_2_0_0)(name, entry)
            if grid is None:
                floats.add(name)
            else:
                grids[name] = grid
            if section == "param_encodings":
                params.add(name)
    excluded = document.get("excluded_layers", [])
    if not isinstance(excluded, list) or not all(isinstance(name, str) for name in excluded):
        raise refuse("encodings.read", f"'{file}': excluded_layers must be a list of names", repr(excluded)[:80])
    encodings = Encodings(grids, frozenset(params) if legacy else None, frozenset(floats), tuple(excluded))
    return (encodings if graph is None else encodings._placed(graph, reader.wrong)), version


def convert(
    source: str | os.PathLike[str],
    target: str | os.PathLike[str],
    version: str,
    graph: Graph | None = None,
) -> None:
    """Rewrite an encodings file in another version.

    0.6.1 and 1.0.0 turn into one another alone; to and from 2.0.0 the graph is needed (see `read`) unless every grid
    of the source is per tensor and the target is 2.0.0.

    Raises InputError as `read` and `Encodings.write` do.
    """
    read(source, graph).write(target, version)


def _most_frequent_bits(schemes: list[Scheme]) -> int:
    counts = Counter(scheme.bits for scheme in schemes)
    return max(counts, key=lambda bits: (counts[bits], bits), default=32)


def plain(grid: Grid) -> Grid:
    """The grid without what no encodings file can say."""
    scheme = grid.scheme
    return Grid(
        grid.scale,
        grid.zero_point,
        Scheme(
            scheme.bits,
            scheme.signed,
            symmetric=scheme.signed and not grid.zero_point.any(),
            granularity=scheme.granularity,
            axis=None if scheme.granularity == "tensor" else scheme.axis,
            block_size=scheme.block_size if scheme.granularity == "block" else None,
        ),
    )


def _wrong(name: str, rule: str, received: object) -> InputError:
    return refuse("Encodings.from_grids", f"tensor '{name}': {rule}", received)


def _place(name: str, grid: Grid, shape: tuple[int, ...], channel: int | None, wrong: Complaint) -> Grid:
    """`channel`: the output-channel axis of the layer that reads the tensor, if there is one."""
    scheme = grid.scheme
    if scheme.granularity == "tensor":
        return grid
    if scheme.axis is not None:
        if not -len(shape) <= scheme.axis < len(shape):
            raise wrong(name, f"axis must be one of the {len(shape)} axes of the tensor", scheme.axis)
        grid = Grid(grid.scale, grid.zero_point, scheme.at(scheme.axis % len(shape)))
    elif scheme.granularity == "axis":
        if channel is None or shape[channel] != grid.scale.size:
            fitting = [axis for axis, length in enumerate(shape) if length == grid.scale.size]
            if len(fitting) != 1:
                rule = f"{grid.scale.size} scales must fit one axis of its shape {shape}"
                raise wrong(name, rule, f"{len(fitting)} axes of that length")
            channel = fitting[0]
        grid = Grid(grid.scale, grid.zero_point, scheme.at(channel))
    else:
        grid = _place_blocks(name, grid, shape, 0 if channel is None else channel, wrong)
    expected = scale_shape(name, shape, grid.scheme)
    if grid.scale.shape != expected:
        raise wrong(name, f"scales must have shape {expected}", grid.scale.shape)
    return grid


def _place_blocks(name: str, grid: Grid, shape: tuple[int, ...], channel: int, wrong: Complaint) -> Grid:
    """Flat blocks in 1.0.0's order, output channel by output channel, in the weight's own layout."""
    size = grid.scheme.block_size or 1
    if len(shape) != 2 or grid.scale.size != shape[channel] * -(-shape[1 - channel] // size):
        raise wrong(
            name, f"scales of blocks of {size} must cover a matrix; its shape is {shape}", f"{grid.scale.size} scales"
        )
    scale, zero_point = (values.reshape(shape[channel], -1) for values in (grid.scale, grid.zero_point))
    if channel == 1:
        scale, zero_point = scale.T, zero_point.T
    return Grid(np.ascontiguousarray(scale), np.ascontiguousarray(zero_point), grid.scheme.at(1 - channel))


def _json(file: Path) -> Any:
    try:
        return json.loads(file.read_text("utf-8"), object_pairs_hook=lambda pairs: _unique(file, pairs))
    except OSError as error:
        raise refuse("encodings.read", "path must be a file that can be read", f"'{file}': {error.strerror}") from error
    except (json.JSONDecodeError, UnicodeDecodeError) as error:
        raise refuse("encodings.read", f"'{file}' must be JSON", error) from error


def _unique(file: Path, pairs: list[tuple[str, Any]]) -> dict[str, Any]:
    table = dict(pairs)
    if len(table) < len(pairs):
        key = next(key for key, count in Counter(key for key, _ in pairs).items() if count > 1)
        raise refuse("encodings.read", f"'{file}' must hold each key once", repr(key))
    return table


def _entries(file: Path, section: str, entries: Any, version: str) -> list[tuple[str, Any]]:
    if version == "0.6.1":
        if not isinstance(entries, dict):
            raise refuse("encodings.read", f"'{file}': {section} must be an object", type(entries).__name__)
        return list(entries.items())
    if not isinstance(entries, list):
        raise refuse("encodings.read", f"'{file}': {section} must be a list", type(entries).__name__)
    for i, entry in enumerate(entries):
        if not isinstance(entry, dict) or not isinstance(entry.get("name"), str):
            raise refuse("encodings.read", f"'{file}': {section}[{i}] must be an object with a name", repr(entry)[:80])
    return [(entry["name"], entry) for entry in entries]
