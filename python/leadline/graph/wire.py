"""ONNX files without their weights in memory: large tensors are known by their place in a file, and written in turn.

A message of protocol buffers is a row of fields, each a key (number * 8 + kind) and, by kind, a varint, eight bytes, a
length and so many bytes, or four bytes. Weights are the field "raw_data" of the fields "initializer" of "graph".
"""

from __future__ import annotations

import mmap
from collections.abc import Callable, Iterator, Mapping
from pathlib import Path
from typing import BinaryIO, cast

import numpy as np
import onnx
from onnx import TensorProto

from leadline.graph.ir import Array
from leadline.graph.spool import rest

LARGE = 1 << 16
"""Bytes from which a tensor is left where it is."""

_GRAPH, _INITIALIZER, _RAW_DATA = 7, 5, 9
_VARINT, _EIGHT, _SIZED, _FOUR = 0, 1, 2, 5


def skeleton(file: Path) -> bytes:
    """The model in a file; large tensors become external data, in this very file.

    Raises ValueError or IndexError where the file is no model.
    """
    with file.open("rb") as stream, mmap.mmap(stream.fileno(), 0, access=mmap.ACCESS_READ) as data:
        parts = []
        for number, begin, value, end in _fields(data, 0, len(data)):
            if number == _GRAPH:
                graph = b"".join(_graph(data, value, end, file.name))
                parts += [_head(_GRAPH, len(graph)), graph]
            else:
                parts.append(data[begin:end])
        return b"".join(parts)


def _graph(data: mmap.mmap, start: int, stop: int, location: str) -> Iterator[bytes]:
    for number, begin, value, end in _fields(data, start, stop):
        if number == _INITIALIZER and end - value > LARGE:
            tensor = _tensor(data, value, end, location)
            yield _head(_INITIALIZER, len(tensor)) + tensor
        else:
            yield data[begin:end]


def _tensor(data: mmap.mmap, start: int, stop: int, location: str) -> bytes:
    raw, others = (0, 0), []
    for number, begin, value, end in _fields(data, start, stop):
        if number == _RAW_DATA:
            raw = (value, end)
        else:
            others.append(data[begin:end])
    if raw[1] - raw[0] <= LARGE:
        return data[start:stop]
    tensor = TensorProto.FromString(b"".join(others))
    place(tensor, location, raw[0], raw[1] - raw[0])
    return cast(bytes, tensor.SerializeToString())


def place(tensor: TensorProto, location: str, offset: int, length: int) -> None:
    """Say of a tensor that its bytes are in a file, beside the model's or that itself."""
    tensor.data_location = TensorProto.EXTERNAL
    for key, value in (("location", location), ("offset", str(offset)), ("length", str(length))):
        tensor.external_data.add(key=key, value=value)


def _fields(data: mmap.mmap, start: int, stop: int) -> Iterator[tuple[int, int, int, int]]:
    """Of each field: its number, where it begins, where its value begins, and where it ends."""
    at = start
    while at < stop:
        begin = at
        key, at = _varint(data, at)
        value, kind = at, key & 7
        if kind == _SIZED:
            length, value = _varint(data, at)
            at = value + length
        elif kind == _VARINT:
            at = _varint(data, at)[1]
        elif kind in (_EIGHT, _FOUR):
            at += 8 if kind == _EIGHT else 4
        else:
            raise ValueError(f"a field of kind {kind}")
        if at > stop:
            raise ValueError("a field that ends behind its message")
        yield key >> 3, begin, value, at


def _varint(data: mmap.mmap, at: int) -> tuple[int, int]:
    """A number, and where it ends: seven bits in each byte, the lowest first, until one has its highest bit clear."""
    number = shift = 0
    while True:
        byte = data[at]
        at += 1
        number |= (byte & 127) << shift
        shift += 7
        if byte < 128:
            return number, at
        if shift > 63:
            raise ValueError("a number of more than ten bytes")


def _head(number: int, length: int) -> bytes:
    """The key of a field with a length, and the length."""
    encoded = bytearray()
    for left in (number << 3 | _SIZED, length):
        while left > 127:
            encoded.append(left & 127 | 128)
            left >>= 7
        encoded.append(left)
    return bytes(encoded)


def write(
    model: onnx.ModelProto,
    stream: BinaryIO,
    arrays: Mapping[str, Array] | None = None,
    change: Callable[[str, Array], Array] = lambda name, array: array,
) -> None:
    """``model.SerializeToString()`` into a stream, one tensor at a time; of those in `arrays` the model holds no more
    than name, type and shape, and what is written is what `change` makes of them."""
    arrays = arrays or {}
    front, back = _around(model.graph, _INITIALIZER)
    before, behind = _around(model, _GRAPH)
    tensors = [(tensor, *_sizes(tensor, arrays.get(tensor.name))) for tensor in model.graph.initializer]
    whole = sum(len(_head(_INITIALIZER, size)) + size for _, _, size in tensors)
    stream.write(before + _head(_GRAPH, len(front) + whole + len(back)) + front)
    for tensor, head, size in tensors:
        stream.write(_head(_INITIALIZER, size))
        if head is None:
            stream.write(tensor.SerializeToString())
        else:
            stream.write(head)
            values = change(tensor.name, arrays[tensor.name])
            stream.write(np.ascontiguousarray(values).reshape(-1).view(np.uint8).data)
            rest(arrays[tensor.name])
    stream.write(back + behind)


def _sizes(tensor: TensorProto, array: Array | None) -> tuple[bytes | None, int]:
    """What stands before the bytes of an array, None for a tensor that holds its own, and the size of the whole."""
    if array is None:
        return None, tensor.ByteSize()
    plain = TensorProto(dims=tensor.dims, data_type=tensor.data_type, name=tensor.name)
    head = plain.SerializeToString() + _head(_RAW_DATA, array.nbytes)
    return head, len(head) + array.nbytes


def _around(message: onnx.ModelProto | onnx.GraphProto, number: int) -> tuple[bytes, bytes]:
    """The fields of a message before one, and those behind it."""
    sides = type(message)(), type(message)()
    for field, value in message.ListFields():
        if field.number != number:
            side = sides[field.number > number]
            side.MergeFrom(type(message)(**{field.name: value}))
    return sides[0].SerializeToString(), sides[1].SerializeToString()
