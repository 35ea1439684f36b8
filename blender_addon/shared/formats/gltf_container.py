"""Containers of glTF: .glb and .gltf, their buffers and accessors, every number checked before it is used.

Buffers come out of the file itself, out of data URIs, or out of files in the same folder; nothing is fetched. Sparse
accessors, and buffer views that another extension compresses, are refused in one line.
"""

from __future__ import annotations

import base64
import binascii
import json
import struct
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Final, cast
from urllib.parse import unquote

import numpy as np

from ..arrays import Array
from .common import FormatError

JsonObject = dict[str, Any]

MAGIC: Final = b"glTF"
_JSON_CHUNK, _BIN_CHUNK = 0x4E4F534A, 0x004E4942
_MAX_JSON_MARKS: Final = 2_000_000  # brackets and commas: parsed values take up to a hundred bytes each
_COMPONENTS: Final = {5120: "i1", 5121: "u1", 5122: "<i2", 5123: "<u2", 5125: "<u4", 5126: "<f4"}
_WIDTHS: Final = {"SCALAR": 1, "VEC2": 2, "VEC3": 3, "VEC4": 4}
_MAX_INTEGER: Final = 2**53  # what JSON numbers hold exactly


@dataclass(frozen=True)
class _Bytes:
    """Where a buffer lies: a part of a file, or bytes that were decoded already."""

    size: int
    path: Path | None = None
    offset: int = 0
    data: bytes = b""

    def read(self, start: int, count: int) -> Array:
        """Bytes [count] from `start`; the caller has checked that they are there."""
        if self.path is None:
            return np.frombuffer(self.data, np.uint8, count, start)
        return np.fromfile(self.path, np.uint8, count, offset=self.offset + start)


@dataclass(frozen=True)
class Accessor:
    """One checked accessor.

    Attributes:
        count: Elements.
        width: Components of an element.
        component: numpy type of a component.
        normalised: Whether integers stand for -1..1 or 0..1.
        stride: Bytes from one element to the next.
        source: The buffer.
        start: Byte of the buffer where the first element starts.
    """

    count: int
    width: int
    component: np.dtype[Any]
    normalised: bool
    stride: int
    source: _Bytes
    start: int

    def read(self, path: Path, start: int, stop: int) -> Array:
        """Values start..stop [stop - start, width], float32, normalised integers by glTF's rules.

        Raises:
            FormatError: If the file got shorter meanwhile.
        """
        element = self.width * self.component.itemsize
        span = (stop - start - 1) * self.stride + element
        raw = self.source.read(self.start + start * self.stride, span)
        if len(raw) < span:
            raise FormatError(path, "got shorter while it was read")
        rows = np.lib.stride_tricks.as_strided(raw, (stop - start, element), (self.stride, 1))
        values = np.ascontiguousarray(rows).view(self.component).astype(np.float32)
        if self.normalised and self.component.kind in "iu":
            values /= np.float32(np.iinfo(self.component).max)
            if self.component.kind == "i":
                np.maximum(values, -1, out=values)
        return values


class GltfFile:
    """A parsed file: its JSON, and accessors on demand."""

    def __init__(self, path: Path) -> None:
        """Open and parse.

        Raises:
            FormatError: If the container or the JSON is damaged.
            OSError: If the file cannot be opened.
        """
        self.path = path
        self._binary: _Bytes | None = None
        self._buffers: dict[int, _Bytes] = {}
        self.size = path.stat().st_size
        with path.open("rb") as file:
            head = file.read(12)
        self.json = self._parse(self._glb_json(head) if head[:4] == MAGIC else path.read_bytes())
        version = self.object_of(self.json, "asset").get("version")
        if not (isinstance(version, str) and version.startswith("2.")):
            raise FormatError(path, f"has glTF version {str(version)[:20]!r}; only 2.x is read")

    def _glb_json(self, head: bytes) -> bytes:
        if len(head) < 12:
            raise FormatError(self.path, "cut short within the GLB header")
        version, total = struct.unpack("<II", head[4:])
        if version != 2:
            raise FormatError(self.path, f"is GLB version {version}; only 2 is read")
        if total > self.size:
            raise FormatError(self.path, f"cut short, {self.size} of {total} bytes are there")
        text = b""
        position = 12
        with self.path.open("rb") as file:
            while position + 8 <= total:
                file.seek(position)
                length, kind = struct.unpack("<II", file.read(8))
                if position + 8 + length > total:
                    raise FormatError(self.path, "a chunk of the GLB ends beyond the file")
                if position == 12:
                    if kind != _JSON_CHUNK:
                        raise FormatError(self.path, "the first chunk of the GLB is not JSON")
                    text = file.read(length)
                elif kind == _BIN_CHUNK and self._binary is None:
                    self._binary = _Bytes(length, self.path, position + 8)
                position += 8 + length + (-length) % 4
        return text

    def _parse(self, text: bytes) -> JsonObject:
        if text.count(b"{") + text.count(b"[") + text.count(b",") > _MAX_JSON_MARKS:
            raise FormatError(self.path, "its JSON is too large", "take the scene apart, or export the splats alone")
        try:
            parsed: object = json.loads(text, parse_constant=_refuse_constant)
        except (ValueError, RecursionError):  # UnicodeDecodeError and JSONDecodeError are ValueErrors
            raise FormatError(self.path, "its JSON cannot be parsed") from None
        if not isinstance(parsed, dict):
            raise FormatError(self.path, "its JSON is no object")
        return cast(JsonObject, parsed)

    def fail(self, defect: str) -> FormatError:
        """The error to raise about this file."""
        return FormatError(self.path, defect)

    def object_of(self, parent: JsonObject, key: str) -> JsonObject:
        """A member that is an object; an empty one where it is absent.

        Raises:
            FormatError: If it is anything else.
        """
        value = parent.get(key, {})
        if not isinstance(value, dict):
            raise self.fail(f"{key} in its JSON is no object")
        return cast(JsonObject, value)

    def list_of(self, parent: JsonObject, key: str) -> list[Any]:
        """A member that is a list; an empty one where it is absent.

        Raises:
            FormatError: If it is anything else.
        """
        value = parent.get(key, [])
        if not isinstance(value, list):
            raise self.fail(f"{key} in its JSON is no list")
        return cast(list[Any], value)

    def integer_of(self, parent: JsonObject, key: str, default: int | None = None) -> int:
        """A member that is a whole number from 0.

        Raises:
            FormatError: If it is anything else, or absent without a default.
        """
        value = parent.get(key, default)
        if not isinstance(value, int) or isinstance(value, bool) or not 0 <= value <= _MAX_INTEGER:
            raise self.fail(f"{key} in its JSON is {str(value)[:30]}, not a whole number")
        return value

    def item(self, table: str, index: object) -> JsonObject:
        """Entry `index` of one of the file's tables (nodes, meshes, accessors, ...).

        Raises:
            FormatError: If there is no such entry.
        """
        rows = self.list_of(self.json, table)
        if not isinstance(index, int) or isinstance(index, bool) or not 0 <= index < len(rows):
            raise self.fail(f"refers to {table}[{str(index)[:30]}], and there are {len(rows)}")
        row: object = rows[index]
        if not isinstance(row, dict):
            raise self.fail(f"{table}[{index}] in its JSON is no object")
        return cast(JsonObject, row)

    def accessor(self, index: object, kind: str, components: tuple[int, ...]) -> Accessor:
        """A checked accessor of a given type.

        Args:
            index: Of the accessor.
            kind: SCALAR, VEC3 or VEC4.
            components: Component types that are allowed.

        Raises:
            FormatError: If it has another type, or reaches beyond its buffer.
        """
        row = self.item("accessors", index)
        name = f"accessor {index}"
        if row.get("type") != kind or row.get("componentType") not in components:
            found = f"{str(row.get('type'))[:10]} of {str(row.get('componentType'))[:10]}"
            raise self.fail(f"{name} is {found}, not {kind} of {' or '.join(map(str, components))}")
        if "sparse" in row:
            raise FormatError(self.path, f"{name} is sparse, which is not read", "export it without sparse accessors")
        if "bufferView" not in row:
            raise self.fail(f"{name} has no buffer view")
        view = self.item("bufferViews", row["bufferView"])
        if self.object_of(view, "extensions"):
            raise FormatError(
                self.path, f"{name} is compressed by an extension, which is not read", "export it without compression"
            )
        source = self._buffer(self.integer_of(view, "buffer"))
        view_start, view_size = self.integer_of(view, "byteOffset", 0), self.integer_of(view, "byteLength")
        if view_start + view_size > source.size:
            raise self.fail(f"{name} lies in a buffer view that ends beyond its buffer")
        component = np.dtype(_COMPONENTS[cast(int, row["componentType"])])
        count, offset = self.integer_of(row, "count"), self.integer_of(row, "byteOffset", 0)
        element = _WIDTHS[kind] * component.itemsize
        stride = self.integer_of(view, "byteStride", element)
        if stride < element or stride > max(252, element):
            raise self.fail(f"{name} has a stride of {stride} bytes for elements of {element}")
        if count < 1 or offset + (count - 1) * stride + element > view_size:
            raise self.fail(f"{name} announces {count} elements, more than its buffer view holds")
        normalised = row.get("normalized", False)
        if not isinstance(normalised, bool):
            raise self.fail(f"{name} has a 'normalized' that is neither true nor false")
        return Accessor(count, _WIDTHS[kind], component, normalised, stride, source, view_start + offset)

    def _buffer(self, index: int) -> _Bytes:
        if index not in self._buffers:
            row = self.item("buffers", index)
            found = self._locate(index, row)
            if found.size < self.integer_of(row, "byteLength"):
                raise self.fail(f"buffer {index} has {found.size} of {self.integer_of(row, 'byteLength')} bytes")
            self._buffers[index] = found
        return self._buffers[index]

    def _locate(self, index: int, row: JsonObject) -> _Bytes:
        uri: object = row.get("uri")
        if uri is None:
            if index != 0 or self._binary is None:
                raise self.fail(f"buffer {index} has no data")
            return self._binary
        if not isinstance(uri, str):
            raise self.fail(f"buffer {index} has a uri that is no text")
        if uri.startswith("data:"):
            kind, _, text = uri.partition(",")
            if not kind.endswith(";base64"):
                raise self.fail(f"buffer {index} is a data URI that is not base64")
            try:
                data = base64.b64decode(text, validate=True)
            except (binascii.Error, ValueError):
                raise self.fail(f"buffer {index} is damaged base64") from None
            return _Bytes(len(data), data=data)
        name = unquote(uri)
        if name != Path(name).name or name in ("", ".", "..") or any(c in name for c in '\\/:\0"'):
            raise FormatError(
                self.path,
                f"buffer {index} is not in the same folder ({name[:60]})",
                "put the .bin file beside the .gltf file, or export a .glb",
            )
        beside = self.path.parent / name
        if beside.is_symlink() or not beside.is_file():
            raise FormatError(self.path, f"buffer {index} is missing ({name[:60]})", "put it beside the .gltf file")
        return _Bytes(beside.stat().st_size, beside)


def _refuse_constant(name: str) -> object:
    raise ValueError(f"{name} is no JSON")


def write_glb(path: Path, document: JsonObject, arrays: list[Array]) -> list[bytes | memoryview]:
    """The parts of a .glb in order: header, JSON, and the arrays, each padded to 4 bytes.

    Args:
        path: For the message.
        document: The JSON.
        arrays: Contiguous, little endian; their views in the document are the caller's.

    Raises:
        FormatError: If it would have more than the 4 GiB that the header can say.
    """
    text = json.dumps(document, separators=(",", ":")).encode("ascii")
    text += b" " * (-len(text) % 4)
    body: list[bytes | memoryview] = []
    for array in arrays:
        body += [array.reshape(-1).view(np.uint8).data, bytes(-array.nbytes % 4)]
    size = sum(len(part) for part in body)
    total = 12 + 8 + len(text) + 8 + size
    if total >= 2**32:
        raise FormatError(path, f"would have {total} bytes, and a GLB has at most 4 GiB", "write a PLY instead")
    head = MAGIC + struct.pack("<IIII", 2, total, len(text), _JSON_CHUNK)
    return [head, text, struct.pack("<II", size, _BIN_CHUNK), *body]
