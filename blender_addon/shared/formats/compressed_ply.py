"""Compressed PLY of PlayCanvas and SuperSplat: chunks of 256 Gaussians, 16 bytes each between the chunk's bounds.

An element `chunk` has the bounds of position, log scale and, in newer files, colour. An element `vertex` has packed
integers: position and scale of 11, 10 and 11 bits between the bounds, the quaternion (w first) without its largest
component in 2 + 3 x 10 bits, colour and opacity of 8 bits each. An optional element `sh` has the higher coefficients
as bytes from -4 to 4, channel-major. The layout follows splat-transform (MIT). Axes are a PLY's: Y down.

The writer sorts along a Morton curve, so that a chunk's bounds are narrow, and always writes colour bounds.

No library: gsply 0.4 reads it, and writes it in 746 ms a million, but needs numba, which Blender does not have.
"""

from __future__ import annotations

import os
import re
from functools import partial
from pathlib import Path
from typing import Final

import numpy as np

from ..arrays import Array
from ..gaussians import SH_C0, SH_REST_COUNTS, GaussianCloud
from .blocks import CloudArrays, in_runs, read_fully
from .common import (
    FormatError,
    ReadResult,
    atomic_file,
    dropped_notes,
    limit_degree,
    normalised,
    require_bytes,
    require_count,
    reserve,
    valid_rows,
)
from .ply_header import PlyElement, PlyHeader, read_ply_header

CHUNK: Final = 256
"""Gaussians that share bounds."""

_AXES: Final = ("x", "y", "z")
_POSITION_BOUNDS: Final = tuple(f"{side}_{axis}" for side in ("min", "max") for axis in _AXES)
_SCALE_BOUNDS: Final = tuple(f"{side}_scale_{axis}" for side in ("min", "max") for axis in _AXES)
_COLOUR_BOUNDS: Final = tuple(f"{side}_{channel}" for side in ("min", "max") for channel in "rgb")
_PACKED: Final = ("packed_position", "packed_rotation", "packed_scale", "packed_color")
_LOG_SCALE_BOUND: Final = 20.0  # as splat-transform clamps
_SH_BOUND: Final = 4.0
_SQRT2: Final = 2.0**0.5


def is_compressed_ply(head: bytes) -> bool:
    """Whether a file that begins like this is a compressed PLY."""
    return bool(re.match(rb"ply\r?\n", head) and re.search(rb"\nproperty\s+\w+\s+packed_position\b", head))


def read_compressed_ply(path: str | os.PathLike[str], *, drop_invalid: bool = False) -> ReadResult:
    """Read a compressed PLY, in the file's axes.

    Args:
        path: File to read.
        drop_invalid: Leave damaged Gaussians out and count them instead of refusing the file.

    Raises:
        FormatError: If it is none, is cut short, or holds values that no Gaussian has.
        OSError: If the file cannot be opened.
    """
    path = Path(path)
    header = read_ply_header(path)
    if header.order == "":
        raise FormatError(path, "is a compressed PLY in ascii, which no tool writes", "export it as binary")
    index = {element.name: k for k, element in enumerate(header.elements)}
    chunk = _element(path, header, index, "chunk", (*_POSITION_BOUNDS, *_SCALE_BOUNDS))
    vertex = _element(path, header, index, "vertex", _PACKED)
    count = vertex.count
    require_count(path, count)
    if chunk.count != -(-count // CHUNK):
        raise FormatError(path, f"has {chunk.count} chunks for {count} Gaussians, not one for every {CHUNK}")
    sh_columns, notes = _sh_columns(path, header, index, count)
    size = path.stat().st_size
    for element in header.elements:
        if element.name in ("chunk", "vertex", "sh"):
            start = header.offset_of(path, index[element.name])
            rows = f"rows of {element.name}"
            require_bytes(path, size - start, element.count, header.dtype(path, element).itemsize, rows)
    bounds = _read_table(path, header, index["chunk"])
    coloured = _COLOUR_BOUNDS[0] in chunk.names
    if coloured:
        _element(path, header, index, "chunk", _COLOUR_BOUNDS)
    arrays = CloudArrays.empty(count, len(sh_columns) // 3)
    work = partial(_read_run, path, header, index, bounds, coloured, sh_columns, arrays)
    in_runs(count, 4 * len(_PACKED) + 4 * len(sh_columns), work)
    cloud, dropped = arrays.to_cloud(path, drop_invalid=drop_invalid)
    return ReadResult(cloud, "y_down", dropped=dropped, notes=(*notes, *dropped_notes(dropped)))


def write_compressed_ply(path: str | os.PathLike[str], cloud: GaussianCloud, *, sort: bool = True) -> tuple[str, ...]:
    """Write a compressed PLY; Y of the cloud points down, by the format's custom.

    Args:
        path: File to write.
        cloud: Degree 4 is cut to 3, which is what the format has.
        sort: Order the Gaussians along a Morton curve; without it the chunks, and so the steps, are coarser.

    Returns:
        What was lost beyond quantisation, one line each.

    Raises:
        OSError: If the file cannot be written.
    """
    path = Path(path)
    cloud, notes = limit_degree(cloud, 3)
    if sort and len(cloud) > CHUNK:
        cloud = cloud.select(_morton_order(cloud.positions_m))
        notes += ("the order of the Gaussians was changed",)
    log_scales = np.clip(np.log(cloud.scales_m), -_LOG_SCALE_BOUND, _LOG_SCALE_BOUND)
    colours = cloud.sh_dc * np.float32(SH_C0) + np.float32(0.5)
    packed = np.empty((len(cloud), 4), "<u4")
    bounds = np.empty((-(-len(cloud) // CHUNK), 18), "<f4")
    fractions: list[Array] = []
    for k, values in enumerate((cloud.positions_m, log_scales, colours)):
        low, high = _chunk_bounds(values)
        bounds[:, 6 * k : 6 * k + 3], bounds[:, 6 * k + 3 : 6 * k + 6] = low, high
        fractions.append(_between(values, low, high))
    packed[:, 0] = _pack(fractions[0], (11, 10, 11))
    packed[:, 1] = _pack_rotations(cloud.rotations_wxyz)
    packed[:, 2] = _pack(fractions[1], (11, 10, 11))
    packed[:, 3] = _pack(np.concatenate([fractions[2], cloud.opacities[:, None]], axis=1), (8, 8, 8, 8))
    rest = np.trunc((cloud.sh_rest.transpose(0, 2, 1).reshape(len(cloud), -1) / (2 * _SH_BOUND) + 0.5) * 256)
    clipped = int(np.count_nonzero((rest < 0) | (rest > 256)))
    if clipped:
        notes += (f"{clipped} higher coefficients beyond {_SH_BOUND:g} were clipped",)
    header = ["ply", "format binary_little_endian 1.0", f"element chunk {len(bounds)}"]
    header += [f"property float {name}" for name in (*_POSITION_BOUNDS, *_SCALE_BOUNDS, *_COLOUR_BOUNDS)]
    header += [f"element vertex {len(cloud)}", *(f"property uint {name}" for name in _PACKED)]
    if rest.shape[1]:
        header += [f"element sh {len(cloud)}", *(f"property uchar f_rest_{k}" for k in range(rest.shape[1]))]
    head = "\n".join([*header, "end_header", ""]).encode("ascii")
    with atomic_file(path) as file:
        reserve(file, len(head) + bounds.nbytes + packed.nbytes + rest.size)
        for part in (head, bounds, packed, np.clip(rest, 0, 255).astype(np.uint8)):
            file.write(part if isinstance(part, bytes) else part.tobytes())
    return notes


def _element(
    path: Path, header: PlyHeader, index: dict[str, int], name: str, properties: tuple[str, ...]
) -> PlyElement:
    """An element that has these properties, with the types that hold them.

    Raises:
        FormatError: Naming what is missing.
    """
    if name not in index:
        raise FormatError(path, f"has no element {name}, so it is no compressed PLY", "choose another file")
    element = header.elements[index[name]]
    types = dict(element.properties)
    for wanted in properties:
        if wanted not in types:
            raise FormatError(path, f"has no {wanted} in its element {name}")
        right = ("u4", "i4") if wanted.startswith("packed_") else ("f4", "f8")
        if types[wanted] not in right:
            raise FormatError(path, f"stores {wanted} as {types[wanted]}, not as {right[0]}")
    return element


def _sh_columns(
    path: Path, header: PlyHeader, index: dict[str, int], count: int
) -> tuple[tuple[str, ...], tuple[str, ...]]:
    """Names of the element sh's columns in the cloud's order, (r, g, b) a coefficient; and notes."""
    others = [name[:40] for name in index if name not in ("chunk", "vertex", "sh")]
    notes = (f"ignored elements: {', '.join(others[:8])}",) if others else ()
    if "sh" not in index:
        return (), notes
    sh = header.elements[index["sh"]]
    if sh.count != count:
        raise FormatError(path, f"has {sh.count} rows of sh for {count} Gaussians")
    kept = len(sh.properties) // 3
    if len(sh.properties) % 3 or kept not in SH_REST_COUNTS:
        return (), (*notes, f"{len(sh.properties)} properties of sh are no degree; only the base colour was read")
    names = tuple(f"f_rest_{c * kept + k}" for k in range(kept) for c in range(3))
    types = dict(sh.properties)
    for name in names:
        if types.get(name) != "u1":
            raise FormatError(path, f"has no {name} of one byte in its element sh")
    return names, notes


def _read_table(path: Path, header: PlyHeader, index: int) -> Array:
    element = header.elements[index]
    table = np.empty(element.count, header.dtype(path, element))
    with path.open("rb", buffering=0) as file:
        file.seek(header.offset_of(path, index))
        read_fully(path, file, table)
    return table


def _read_run(
    path: Path,
    header: PlyHeader,
    index: dict[str, int],
    bounds: Array,
    coloured: bool,
    sh_columns: tuple[str, ...],
    arrays: CloudArrays,
    span: tuple[int, int],
    rows: int,
) -> None:
    vertex_type = header.dtype(path, header.elements[index["vertex"]])
    vertex = np.empty(min(rows, span[1] - span[0]), vertex_type)
    with path.open("rb", buffering=0) as file:
        for start in range(span[0], span[1], len(vertex)):
            part = vertex[: min(start + len(vertex), span[1]) - start]
            file.seek(header.offset_of(path, index["vertex"]) + start * vertex_type.itemsize)
            read_fully(path, file, part)
            out = arrays.rows(start, start + len(part))
            chunk = bounds[np.arange(start, start + len(part)) // CHUNK]
            _unpack_rows(part, chunk, coloured, out)
            if sh_columns:
                sh_type = header.dtype(path, header.elements[index["sh"]])
                table = np.empty(len(part), sh_type)
                file.seek(header.offset_of(path, index["sh"]) + start * sh_type.itemsize)
                read_fully(path, file, table)
                _unpack_sh(table, sh_columns, out.sh_rest.reshape(len(part), -1))


def _unpack_rows(part: Array, chunk: Array, coloured: bool, out: CloudArrays) -> None:
    with np.errstate(all="ignore"):
        out.positions[:] = _lerp(chunk, _POSITION_BOUNDS, _unpack(part["packed_position"], (11, 10, 11)))
        out.scales[:] = np.exp(_lerp(chunk, _SCALE_BOUNDS, _unpack(part["packed_scale"], (11, 10, 11))))
        colour = _unpack(part["packed_color"], (8, 8, 8, 8))
        out.opacities[:] = colour[:, 3]
        rgb = _lerp(chunk, _COLOUR_BOUNDS, colour[:, :3]) if coloured else colour[:, :3]
        out.sh_dc[:] = (rgb - 0.5) / SH_C0
        out.rotations[:] = normalised(_unpack_rotations(part["packed_rotation"]))
        out.good[:] = valid_rows(out.positions, out.scales, out.rotations, out.opacities, out.sh_dc)


def _unpack_sh(table: Array, columns: tuple[str, ...], out: Array) -> None:
    """Bytes to coefficients [M, 3 K]: the ends of the range are exact, the rest is the middle of its step."""
    steps = np.arange(256, dtype=np.float32)
    steps = (steps + 0.5) / 256
    steps[0], steps[255] = 0, 1
    values = (steps - 0.5) * (2 * _SH_BOUND)
    for k, name in enumerate(columns):
        out[:, k] = values[table[name]]


def _lerp(chunk: Array, names: tuple[str, ...], fractions: Array) -> Array:
    """Values [M, 3] between the chunk's lower (names 0..2) and upper (3..5) bounds."""
    low = np.stack([chunk[name] for name in names[:3]], axis=1)
    high = np.stack([chunk[name] for name in names[3:]], axis=1)
    return low * (1 - fractions) + high * fractions


def _unpack(packed: Array, bits: tuple[int, ...]) -> Array:
    """Fractions 0..1 [M, len(bits)] of unsigned fields, the first in the highest bits."""
    packed = packed.astype(np.uint32)
    out = np.empty((len(packed), len(bits)), np.float32)
    shift = sum(bits)
    for k, width in enumerate(bits):
        shift -= width
        out[:, k] = ((packed >> np.uint32(shift)) & np.uint32((1 << width) - 1)) / np.float32((1 << width) - 1)
    return out


def _pack(fractions: Array, bits: tuple[int, ...]) -> Array:
    packed = np.zeros(len(fractions), np.uint32)
    for k, width in enumerate(bits):
        top = (1 << width) - 1
        field = np.clip(np.floor(fractions[:, k].astype(np.float64) * top + 0.5), 0, top).astype(np.uint32)
        packed = (packed << np.uint32(width)) | field
    return packed


def _unpack_rotations(packed: Array) -> Array:
    """Quaternions [M, 4], w first, from the place of the largest component and the other three."""
    packed = packed.astype(np.uint32)
    others = (_unpack(packed & np.uint32((1 << 30) - 1), (10, 10, 10)) - 0.5) * np.float32(_SQRT2)
    largest = np.sqrt(np.maximum(0, 1 - np.einsum("ij,ij->i", others, others)))
    place = (packed >> np.uint32(30)).astype(np.intp)
    result = np.empty((len(packed), 4), np.float32)
    for k in range(4):
        rows = place == k
        result[rows] = np.insert(others[rows], k, largest[rows], axis=1)
    return result


def _pack_rotations(rotations: Array) -> Array:
    place = np.abs(rotations).argmax(axis=1)
    signs = np.where(np.take_along_axis(rotations, place[:, None], axis=1) < 0, -1, 1)
    others = np.empty((len(rotations), 3), np.float64)
    for k in range(4):
        rows = place == k
        others[rows] = np.delete(rotations[rows] * signs[rows], k, axis=1)
    return (place.astype(np.uint32) << np.uint32(30)) | _pack(others * (_SQRT2 / 2) + 0.5, (10, 10, 10))


def _chunk_bounds(values: Array) -> tuple[Array, Array]:
    starts = np.arange(0, len(values), CHUNK)
    return np.minimum.reduceat(values, starts, axis=0), np.maximum.reduceat(values, starts, axis=0)


def _between(values: Array, low: Array, high: Array) -> Array:
    """Where values lie between their chunk's bounds, 0..1; 0 where these are equal."""
    chunk = np.arange(len(values)) // CHUNK
    width = (high - low).astype(np.float64)
    return (values - low[chunk]) / np.where(width > 0, width, 1)[chunk]


def _morton_order(positions: Array) -> Array:
    """Indices that sort points along a Morton curve of 2^21 steps an axis."""
    low, high = positions.min(axis=0), positions.max(axis=0)
    width = np.maximum((high - low).astype(np.float64), 1e-30)
    cells = ((positions - low) / width * ((1 << 21) - 1)).astype(np.uint64)
    code = np.zeros(len(positions), np.uint64)
    for axis in range(3):
        spread = cells[:, axis]
        for shift, mask in (
            (32, 0x1F00000000FFFF),
            (16, 0x1F0000FF0000FF),
            (8, 0x100F00F00F00F00F),
            (4, 0x10C30C30C30C30C3),
            (2, 0x1249249249249249),
        ):
            spread = (spread | (spread << np.uint64(shift))) & np.uint64(mask)
        code |= spread << np.uint64(axis)
    return np.argsort(code, kind="stable")
