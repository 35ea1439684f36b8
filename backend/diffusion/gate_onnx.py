"""The further files that an ONNX graph names, read from the protobuf itself: no ONNX library is needed for it.

A graph is data, but its tensors may lie in "external" files anywhere on the disk; `gate` holds those to the folder.
"""

from __future__ import annotations

import mmap
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Final

from backend.errors import MODEL_MISSING, UserError
from backend.files import shown

# Fields of onnx.proto that lead to tensors: message -> field number -> message.
_FIELDS: Final[Mapping[str, Mapping[int, str]]] = {
    "model": {7: "graph", 20: "training", 25: "function"},
    "training": {1: "graph", 2: "graph"},
    "function": {7: "node", 11: "attribute"},
    "graph": {1: "node", 5: "tensor", 15: "sparse"},
    "node": {5: "attribute"},
    "attribute": {5: "tensor", 6: "graph", 10: "tensor", 11: "graph", 22: "sparse", 23: "sparse"},
    "sparse": {1: "tensor", 2: "tensor"},
    "tensor": {13: "external"},
    "external": {},
}
_DEEPEST: Final = 64
_VARINT, _FIXED64, _BYTES, _FIXED32 = 0, 1, 2, 5


def external_files(path: Path) -> set[str]:
    """Names of the files beside an ONNX graph that hold its tensors.

    Raises:
        UserError: BAD_MODEL, if the file is no protobuf.
    """
    if not path.stat().st_size:
        raise UserError(f"{shown(path)} is empty; fetch the model again", MODEL_MISSING, "BAD_MODEL")
    try:
        with path.open("rb") as file, mmap.mmap(file.fileno(), 0, access=mmap.ACCESS_READ) as data:
            return set(_locations(data, 0, len(data), "model", 0))
    except ValueError as error:
        raise UserError(f"{shown(path)} is no ONNX graph ({error}); remove it", MODEL_MISSING, "BAD_MODEL") from error


def _locations(data: mmap.mmap, begin: int, end: int, message: str, depth: int) -> Iterator[str]:
    if depth > _DEEPEST:
        raise ValueError("nested too deep")
    inside = _FIELDS[message]
    for number, first, last in _fields(data, begin, end):
        if number not in inside:
            continue
        if inside[number] == "external":
            entry = {field: data[a:b] for field, a, b in _fields(data, first, last)}
            if entry.get(1) == b"location":
                yield entry.get(2, b"").decode("utf-8")
        else:
            yield from _locations(data, first, last, inside[number], depth + 1)


def _fields(data: mmap.mmap, at: int, end: int) -> Iterator[tuple[int, int, int]]:
    """Number and bounds of every length-delimited field of a message."""
    while at < end:
        tag, at = _varint(data, at, end)
        kind = tag & 7
        if kind == _BYTES:
            length, at = _varint(data, at, end)
            if length > end - at:
                raise ValueError("a field is longer than the file")
            yield tag >> 3, at, at + length
            at += length
        elif kind == _VARINT:
            _, at = _varint(data, at, end)
        elif kind in (_FIXED64, _FIXED32):
            at += 8 if kind == _FIXED64 else 4
        else:
            raise ValueError("unknown kind of field")
    if at != end:
        raise ValueError("a field is longer than the file")


def _varint(data: mmap.mmap, at: int, end: int) -> tuple[int, int]:
    value = 0
    for shift in range(0, 70, 7):
        if at >= end:
            break
        byte = data[at]
        at += 1
        value |= (byte & 127) << shift
        if byte < 128:
            return value, at
    raise ValueError("a number has no end")
