"""SPZ, Niantic's packed format: reads versions 2, 3 (gzip) and 4 (zstd), writes 3 and 4.

Own code: the `spz` package is a C++ extension without wheels, and Blender's Python takes none; the layout follows
nianticlabs/spz (load-spz.cc, splat-types.h). Versions 2 and 3 need the standard library alone. Version 4 needs zstd:
`compression.zstd` of Python 3.14, or a codec that the caller hands over (the backend has one).

The values and their quantisation are in spz_values.py; here is the container. The stored frame is right, up, back:
the body's. A coordinate-system extension names another one, and the cloud is brought from it.
"""

from __future__ import annotations

import gzip
import importlib
import os
import struct
import zlib
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Final, Literal, Protocol

import numpy as np

from ..axes import rotate_cloud
from ..gaussians import SH_REST_COUNTS, GaussianCloud
from .common import FormatError, ReadResult, atomic_file, require_bytes, require_count
from .spz_values import MAX_FRACTIONAL_BITS, STREAM_NAMES, Packed, pack, stream_sizes, unpack

MAGIC: Final = b"NGSP"
GZIP_MAGIC: Final = b"\x1f\x8b"
EXPORT_AGAIN = "export it again as SPZ version 3, or convert it with another tool"

_GZIP_HEADER = struct.Struct("<4sIIBBBB")  # magic, version, count, degree, fractional bits, flags, reserved
_ZSTD_HEADER = struct.Struct("<4sIIBBBBI12s")  # the same with the number of streams, then the table's offset, reserved
_TABLE_ROW = struct.Struct("<QQ")  # packed and unpacked bytes of a stream
_EXTENSION = struct.Struct("<II")  # type and bytes of what follows
_ANTIALIASED, _HAS_EXTENSIONS = 0x1, 0x2
_MAX_EXTENSION_BYTES = 1 << 20
_ZSTD_LEVEL = 12

_COORDINATE_SYSTEM = 0xADBE0003
# Values 1 to 16 of that extension; each letter says where an axis points, seen by a viewer.
_SYSTEMS = "LDB RDB LUB RUB LDF RDF LUF RUF LFD RFD LFU RFU LBD RBD LBU RBU".split()
_DIRECTIONS = {"R": (1, 0, 0), "L": (-1, 0, 0), "U": (0, 1, 0), "D": (0, -1, 0), "B": (0, 0, 1), "F": (0, 0, -1)}

_FREE_BYTES = 160_000_000
_MAX_GROWTH = 48
"""Decoding may take this many times the file's size: a good file of degree 3 takes about 20 times, a bomb 1000."""


class Zstd(Protocol):
    """A zstd codec."""

    def decompress(self, data: bytes, limit: int) -> bytes:
        """The first `limit` bytes, at most, of one or more frames.

        Raises:
            ValueError: If the data are damaged or cut short.
        """
        ...

    def compress(self, data: bytes) -> bytes:
        """One frame."""
        ...


class StandardZstd:
    """The codec of Python 3.14's standard library."""

    def __init__(self, module: Any) -> None:  # noqa: D107 - `compression.zstd`, which older Pythons cannot name
        self._module = module

    def decompress(self, data: bytes, limit: int) -> bytes:
        """See `Zstd`."""
        parts: list[bytes] = []
        while data and limit > 0:
            decompressor = self._module.ZstdDecompressor()
            try:
                part: bytes = decompressor.decompress(data, max_length=limit)
            except self._module.ZstdError as error:
                raise ValueError(str(error)) from None
            if not decompressor.eof and len(part) < limit:
                raise ValueError("the frame is cut short")
            parts.append(part)
            limit -= len(part)
            data = decompressor.unused_data
        return b"".join(parts)

    def compress(self, data: bytes) -> bytes:
        """See `Zstd`."""
        packed: bytes = self._module.compress(data, _ZSTD_LEVEL)
        return packed


def standard_zstd() -> Zstd | None:
    """The standard library's codec; None before Python 3.14."""
    try:
        return StandardZstd(importlib.import_module("compression.zstd"))
    except ImportError:
        return None


@dataclass(frozen=True)
class _Header:
    version: int
    count: int
    degree: int
    fractional_bits: int
    flags: int
    streams: int = 0
    table_offset: int = 0

    def sizes(self) -> tuple[int, ...]:
        """Bytes of each unpacked stream."""
        return stream_sizes(self.count, self.degree, self.version)


def is_spz(head: bytes) -> bool:
    """Whether a file's first bytes are those of a version 4, or of gzip, in which the other versions are packed."""
    return head.startswith((MAGIC, GZIP_MAGIC))


def read_spz(path: str | os.PathLike[str], *, drop_invalid: bool = False, zstd: Zstd | None = None) -> ReadResult:
    """Read SPZ of version 2, 3 or 4.

    Args:
        path: File to read.
        drop_invalid: Nothing to drop: every bit pattern that passes the checks is a Gaussian.
        zstd: Codec for version 4; None takes the standard library's where it has one.

    Raises:
        FormatError: If it is no SPZ, damaged, or of a version that is not read here.
        OSError: If the file cannot be opened.
    """
    del drop_invalid
    path = Path(path)
    data = path.read_bytes()
    if data.startswith(GZIP_MAGIC):
        header, streams, extensions, notes = _read_gzip(path, data)
    elif data.startswith(MAGIC):
        header, streams, extensions, notes = _read_zstd(path, data, zstd or standard_zstd())
    else:
        raise FormatError(path, "is no SPZ file (neither gzip nor NGSP at its start)")
    del data
    cloud = unpack(Packed(header.count, header.degree, header.version, header.fractional_bits, tuple(streams)))
    if header.flags & _ANTIALIASED:
        notes = [*notes, "was trained with antialiasing (mip splatting), which the record does not keep"]
    return _apply_extensions(path, ReadResult(cloud, "y_up", notes=tuple(notes)), extensions)


def write_spz(
    path: str | os.PathLike[str], cloud: GaussianCloud, *, version: Literal[3, 4] = 3, zstd: Zstd | None = None
) -> tuple[str, ...]:
    """Write a cloud of the body frame as SPZ.

    Args:
        path: File to write; it appears under its name only when it is whole.
        cloud: Any degree.
        version: 3 opens everywhere; 4 needs zstd.
        zstd: Codec for version 4; None takes the standard library's where it has one.

    Returns:
        What was lost beyond the quantisation, one line each.

    Raises:
        FormatError: If a position is too far away for the format, or there is no codec.
        OSError: If the file cannot be written.
    """
    path = Path(path)
    try:
        packed, notes = pack(cloud, version)
    except ValueError as error:
        raise FormatError(path, str(error), "move the cloud to the origin or choose .ply") from None
    if version == 3:
        head = _GZIP_HEADER.pack(MAGIC, 3, packed.count, packed.degree, packed.fractional_bits, 0, 0)
        content = gzip.compress(b"".join([head, *packed.streams]), 6, mtime=0)
    else:
        content = _zstd_container(packed, _need_zstd(path, zstd or standard_zstd(), "write version 3"))
    with atomic_file(path) as file:
        file.write(content)
    return notes


def _zstd_container(packed: Packed, zstd: Zstd) -> bytes:
    streams = [bytes(stream) for stream in packed.streams if len(stream)]
    frames = [zstd.compress(stream) for stream in streams]
    head = _ZSTD_HEADER.pack(
        MAGIC, 4, packed.count, packed.degree, packed.fractional_bits, 0, len(frames), _ZSTD_HEADER.size, bytes(12)
    )
    table = [_TABLE_ROW.pack(len(frame), len(stream)) for frame, stream in zip(frames, streams, strict=True)]
    return b"".join([head, *table, *frames])


def _need_zstd(path: Path, zstd: Zstd | None, next_step: str) -> Zstd:
    if zstd is None:
        raise FormatError(path, "SPZ version 4 is packed with zstd, which this Python lacks", next_step)
    return zstd


_Read = tuple[_Header, Sequence[bytes | memoryview], list[tuple[int, bytes]], list[str]]


def _read_gzip(path: Path, data: bytes) -> _Read:
    inflate = zlib.decompressobj(16 + zlib.MAX_WBITS)
    head = _inflate(path, inflate, data, _GZIP_HEADER.size)
    if len(head) < _GZIP_HEADER.size or not head.startswith(MAGIC):
        raise FormatError(path, "is gzip, but no SPZ is packed in it")
    _, version, count, degree, bits, flags, reserved = _GZIP_HEADER.unpack(head)
    if version not in (2, 3):
        raise FormatError(path, f"is SPZ version {version} in gzip; versions 2 and 3 are read", EXPORT_AGAIN)
    if reserved:
        raise FormatError(path, f"the reserved byte of the SPZ header is {reserved}, not 0")
    header = _Header(version, count, degree, bits, flags)
    _check_header(path, header, len(data))
    sizes = header.sizes()
    expected = sum(sizes)
    payload = _inflate(path, inflate, inflate.unconsumed_tail, expected + _MAX_EXTENSION_BYTES + 1)
    require_bytes(path, len(payload), count, expected // count)
    rest = payload[expected:]
    if len(rest) > _MAX_EXTENSION_BYTES:
        raise FormatError(path, f"more is packed in it than the {count} Gaussians that it announces")
    if not inflate.eof:
        raise FormatError(path, "the gzip stream is cut short before its checksum")
    notes: list[str] = []
    has_extensions = bool(flags & _HAS_EXTENSIONS)
    if rest and not has_extensions:
        notes.append(f"{len(rest)} bytes after the last Gaussian were ignored")
    if inflate.unused_data:
        notes.append(f"{len(inflate.unused_data)} bytes after the packed stream were ignored")
    ends = np.cumsum((0, *sizes))
    view = memoryview(payload)
    streams = [view[start:end] for start, end in zip(ends[:-1], ends[1:], strict=True)]
    return header, streams, _split_extensions(path, rest) if has_extensions else [], notes


def _inflate(path: Path, inflate: Any, data: bytes, limit: int) -> bytes:
    try:
        unpacked: bytes = inflate.decompress(data, limit)
    except zlib.error as error:
        raise FormatError(path, f"the gzip stream is damaged ({_short(error)})") from None
    return unpacked


def _read_zstd(path: Path, data: bytes, zstd: Zstd | None) -> _Read:
    require_bytes(path, len(data), 1, _ZSTD_HEADER.size, "headers of SPZ version 4")
    _, version, count, degree, bits, flags, streams, offset, reserved = _ZSTD_HEADER.unpack_from(data)
    if version != 4:
        raise FormatError(path, f"is SPZ version {version} without gzip; version 4 is read", EXPORT_AGAIN)
    if any(reserved):
        raise FormatError(path, "the reserved bytes of the SPZ header are not 0")
    header = _Header(version, count, degree, bits, flags, streams, offset)
    _check_header(path, header, len(data))
    expected = [size for size in header.sizes() if size]
    if streams != len(expected):
        raise FormatError(path, f"has {streams} streams, {len(expected)} belong to degree {degree}")
    start = offset + streams * _TABLE_ROW.size
    if offset < _ZSTD_HEADER.size or start > len(data):
        raise FormatError(path, f"the table of streams at byte {offset} lies outside the file of {len(data)} bytes")
    rows = [_TABLE_ROW.unpack_from(data, offset + k * _TABLE_ROW.size) for k in range(streams)]
    for name, (_, size), right in zip(STREAM_NAMES, rows, expected, strict=False):
        if size != right:
            raise FormatError(path, f"the stream of {name} says it holds {size} bytes, {count} Gaussians take {right}")
    end = start + sum(length for length, _ in rows)
    if end > len(data):
        raise FormatError(path, f"cut short, the streams end at byte {end} of {len(data)}")
    codec = _need_zstd(path, zstd, "turn it into version 3 with `python -m backend convert`")
    unpacked: list[bytes] = []
    for name, (length, size) in zip(STREAM_NAMES, rows, strict=False):
        unpacked.append(_unpack_stream(path, codec, data[start : start + length], size, name))
        start += length
    unpacked += [b""] * (len(STREAM_NAMES) - len(unpacked))
    notes = [f"{len(data) - end} bytes after the last stream were ignored"] if end < len(data) else []
    zone = data[_ZSTD_HEADER.size : offset] if flags & _HAS_EXTENSIONS else b""
    return header, unpacked, _split_extensions(path, zone), notes


def _unpack_stream(path: Path, zstd: Zstd, frame: bytes, size: int, name: str) -> bytes:
    try:
        stream = zstd.decompress(frame, size + 1)
    except ValueError as error:
        raise FormatError(path, f"the stream of {name} is damaged ({_short(error)})") from None
    if len(stream) != size:
        amount = f"more than {size}" if len(stream) > size else f"{len(stream)} of {size}"
        raise FormatError(path, f"the stream of {name} holds {amount} bytes")
    return stream


def _check_header(path: Path, header: _Header, file_bytes: int) -> None:
    """Everything that can be said before any value is unpacked."""
    require_count(path, header.count)
    if header.degree >= len(SH_REST_COUNTS):
        raise FormatError(path, f"says spherical harmonics of degree {header.degree}; 0 to 4 are known")
    if header.fractional_bits > MAX_FRACTIONAL_BITS:
        raise FormatError(path, f"says {header.fractional_bits} fractional bits of a position, of 24 bits in all")
    unknown = header.flags & ~(_ANTIALIASED | _HAS_EXTENSIONS)
    if unknown:
        raise FormatError(path, f"has reserved flags set (0x{unknown:02x}), so its layout is not known", EXPORT_AGAIN)
    floats = 14 + 3 * SH_REST_COUNTS[header.degree]
    needed = sum(header.sizes()) + 5 * header.count * floats
    if needed > max(_FREE_BYTES, _MAX_GROWTH * file_bytes):
        raise FormatError(path, f"announces {header.count} Gaussians, more than {file_bytes} packed bytes can hold")


def _split_extensions(path: Path, zone: bytes) -> list[tuple[int, bytes]]:
    """Type and content of each extension record."""
    if len(zone) > _MAX_EXTENSION_BYTES:
        raise FormatError(path, f"has {len(zone)} bytes of extensions, more than {_MAX_EXTENSION_BYTES} are not read")
    records: list[tuple[int, bytes]] = []
    at = 0
    while at < len(zone):
        if len(zone) - at < _EXTENSION.size:
            raise FormatError(path, "an extension record is cut short")
        kind, size = _EXTENSION.unpack_from(zone, at)
        at += _EXTENSION.size
        if size > len(zone) - at:
            raise FormatError(path, f"extension 0x{kind:08x} says it holds {size} bytes, {len(zone) - at} are left")
        records.append((kind, zone[at : at + size]))
        at += size
    return records


def _apply_extensions(path: Path, result: ReadResult, extensions: Sequence[tuple[int, bytes]]) -> ReadResult:
    unknown = [kind for kind, _ in extensions if kind != _COORDINATE_SYSTEM]
    if unknown:
        kinds = ", ".join(f"0x{kind:08x}" for kind in unknown[:4])
        result = result.noting(f"{len(unknown)} extensions were ignored ({kinds})")
    for kind, content in extensions:
        if kind != _COORDINATE_SYSTEM:
            continue
        value = int.from_bytes(content, "little") if len(content) == 4 else -1
        if not 0 <= value <= len(_SYSTEMS):
            raise FormatError(path, "names a coordinate system that is not known")
        system = _SYSTEMS[value - 1] if value else "RUB"
        if system != "RUB":
            cloud = _from_system(result.cloud, system)
            return ReadResult(cloud, "y_up", notes=(*result.notes, f"turned from {system} to right, up, back"))
    return result


def _from_system(cloud: GaussianCloud, system: str) -> GaussianCloud:
    """A cloud in the frame whose axes point as the letters say, in right, up, back.

    The letters decide, as they do where the reference library writes. Its reader (0.2.3) differs in two points: it
    undoes its own quarter turn wrongly for values 9, 10, 15 and 16, and it flips the last coefficient of degree 4,
    which is even in y, with y.
    """
    matrix = np.array([_DIRECTIONS[letter] for letter in system], np.float64).T
    if np.linalg.det(matrix) < 0:
        # Left-handed: invert at the origin, which a Gaussian's shape does not feel, and turn by the rest.
        matrix = -matrix
        odd = np.array([band % 2 for band in range(1, 5) for _ in range(2 * band + 1)], bool)
        signs = np.where(odd[: cloud.sh_rest.shape[1]], -1, 1).astype(np.float32)
        cloud = GaussianCloud(
            -cloud.positions_m,
            cloud.scales_m,
            cloud.rotations_wxyz,
            cloud.opacities,
            cloud.sh_dc,
            cloud.sh_rest * signs[:, None],
        )
    return rotate_cloud(cloud, matrix)


def _short(error: Exception) -> str:
    return " ".join(str(error).split())[:80]
