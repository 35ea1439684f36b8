"""Gaussian PLY in the layout of the INRIA code base: logit opacity, log scales, channel-major higher coefficients.

Reads any degree from 0 to 4, any order of properties, extra properties and elements, ascii and both byte orders.
Writes binary little endian with normals, at a higher degree than the cloud's on request, because the strictest viewers
want 62 floats a Gaussian.

Axes: the layout has none of its own. Trainers and viewers take Y as down; our bundles are Y up and say so in a comment
of the header (`comment axes: y_up`), and nerfstudio's exporter says `Vertical Axis: z`. A file that says nothing counts
as Y down.

No library: plyfile 1.1 needs 880 ms to bring a million Gaussians into a table and is not inside Blender; gsply 0.4
needs 706 ms and numba. Here blocks that stay in the cache are read, activated and checked in one go by a few threads
(numpy lets go of the interpreter's lock), straight into the arrays of the cloud.
"""

from __future__ import annotations

import os
import re
from collections.abc import Iterator
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import BinaryIO

import numpy as np

from ..arrays import Array
from ..gaussians import SH_REST_COUNTS, GaussianCloud, is_finite
from ..limits import OPACITY_LOGIT_MAX
from .blocks import CloudArrays, in_runs, read_fully, write_fully
from .common import (
    LOG_SCALE_LIMIT,
    Axes,
    FormatError,
    ReadResult,
    atomic_file,
    dropped_notes,
    require_bytes,
    require_count,
    reserve,
)
from .ply_header import PlyElement, PlyHeader, read_ply_header

_ASCII_ROWS = 4096
_MAX_LINE_BYTES = 1 << 16
_LOGIT_MAX = float(np.log(OPACITY_LOGIT_MAX / (1.0 - OPACITY_LOGIT_MAX)))  # 13.86: written for an opacity of 1
_LOGIT_MIN = -64.0 * float(np.log(2.0))  # -44.36: written for an opacity of 0
_POSITION, _COLOUR = ("x", "y", "z"), ("f_dc_0", "f_dc_1", "f_dc_2")
_SCALE, _ROTATION = ("scale_0", "scale_1", "scale_2"), ("rot_0", "rot_1", "rot_2", "rot_3")
_NORMALS = ("nx", "ny", "nz")
_PLAIN_WIDTH = 17  # floats of a Gaussian without higher coefficients, normals included
_AXES_COMMENT = "axes: "


@dataclass(frozen=True)
class _Layout:
    """Columns of the vertex element that make a Gaussian; `rest` is in the cloud's order, (r, g, b) a coefficient."""

    position: Array
    scale: Array
    rotation: Array
    opacity: int
    colour: Array
    rest: Array
    notes: tuple[str, ...]


def is_ply(head: bytes) -> bool:
    """Whether a file that begins like this is a PLY of some kind."""
    return re.match(rb"ply\r?\n", head) is not None


def read_ply(path: str | os.PathLike[str], *, drop_invalid: bool = False) -> ReadResult:
    """Read a Gaussian PLY, in the file's axes.

    Args:
        path: File to read.
        drop_invalid: Leave damaged Gaussians out and count them instead of refusing the file.

    Raises:
        FormatError: If it is no Gaussian PLY, is cut short, or holds values that no Gaussian has.
        OSError: If the file cannot be opened.
    """
    path = Path(path)
    header = read_ply_header(path)
    index = next((k for k, e in enumerate(header.elements) if e.name == "vertex"), None)
    if index is None:
        raise FormatError(path, "no vertex element, so no Gaussians", "choose a Gaussian splat PLY")
    vertex = header.elements[index]
    layout = _find_columns(path, vertex)
    require_count(path, vertex.count)
    size = path.stat().st_size
    dtype = header.dtype(path, vertex)
    if header.order:
        offset = header.offset_of(path, index)
        require_bytes(path, size - offset, vertex.count, dtype.itemsize)
        arrays = CloudArrays.empty(vertex.count, len(layout.rest) // 3)
        _read_binary(path, offset, dtype, layout, arrays)
    else:
        # A number takes a digit and a separator at least; the last line may lack its end.
        require_bytes(path, size - header.data_offset + 1, vertex.count, 2 * max(1, len(vertex.properties)))
        arrays = CloudArrays.empty(vertex.count, len(layout.rest) // 3)
        _read_ascii(path, header, index, layout, arrays)
    cloud, dropped = arrays.to_cloud(path, drop_invalid=drop_invalid)
    axes, axes_notes = _axes_of(header)
    notes = (*layout.notes, *_leftovers(path, header, index, size), *axes_notes, *dropped_notes(dropped))
    return ReadResult(cloud, axes, dropped=dropped, notes=notes)


def write_ply(
    path: str | os.PathLike[str], cloud: GaussianCloud, *, degree: int | None = None, axes: Axes = "y_up"
) -> tuple[str, ...]:
    """Write a cloud as binary INRIA PLY; the file appears under its name only when it is whole.

    Args:
        path: File to write.
        cloud: Any degree.
        degree: Degree of the file; higher coefficients that the cloud lacks are zero. None keeps the cloud's. Degree 3
            gives the 62 floats a Gaussian that the strictest viewers ask for.
        axes: Of the cloud; nothing is turned here, the header says it.

    Returns:
        What was lost: nothing.

    Raises:
        ValueError: If `degree` is below the cloud's.
        OSError: If the file cannot be written.
    """
    path = Path(path)
    degree = cloud.degree if degree is None else degree
    if degree < cloud.degree:
        raise ValueError(f"a cloud of degree {cloud.degree} does not fit a file of degree {degree}")
    rest_count = SH_REST_COUNTS[degree]
    names = (*_POSITION, *_NORMALS, *_COLOUR, *(f"f_rest_{k}" for k in range(3 * rest_count)))
    names += ("opacity", *_SCALE, *_ROTATION)
    header = ["ply", "format binary_little_endian 1.0", f"comment {_AXES_COMMENT}{axes}"]
    header += [f"element vertex {len(cloud)}", *(f"property float {name}" for name in names), "end_header", ""]
    head = "\n".join(header).encode("ascii")
    with atomic_file(path) as file:
        reserve(file, len(head) + 4 * len(names) * len(cloud))
        file.write(head)
        file.flush()
        part = Path(file.name)
        in_runs(len(cloud), 4 * len(names), partial(_write_run, part, len(head), cloud, rest_count))
    return ()


def write_ply_y_down(path: Path, cloud: GaussianCloud) -> tuple[str, ...]:
    """Write a cloud whose Y points down, at its own degree: the PLY that other tools expect."""
    return write_ply(path, cloud, axes="y_down")


def _find_columns(path: Path, vertex: PlyElement) -> _Layout:
    column = {name: k for k, name in enumerate(vertex.names)}
    if "packed_position" in column:
        raise FormatError(path, "is a compressed PLY", "give it the suffix .compressed.ply")
    groups = {"position": _POSITION, "colour": _COLOUR, "opacity": ("opacity",), "scale": _SCALE, "rotation": _ROTATION}
    for what, names in groups.items():
        missing = [name for name in names if name not in column]
        if missing:
            raise FormatError(
                path,
                f"has no {what} ({missing[0]}); this is a point cloud or mesh, not a Gaussian PLY",
                "choose a Gaussian splat PLY",
            )
    rest_names = [name for name in column if re.fullmatch(r"f_rest_\d{1,4}", name)]
    rest, rest_notes = _rest_columns(path, column, len(rest_names))
    known = {name for names in groups.values() for name in names} | set(rest_names) | set(_NORMALS)
    extra = [name for name in vertex.names if name not in known]
    if extra:
        rest_notes += (f"ignored properties: {', '.join(extra[:8])}{' ...' if len(extra) > 8 else ''}",)

    def columns(names: tuple[str, ...]) -> Array:
        return np.array([column[name] for name in names], np.intp)

    return _Layout(
        columns(_POSITION), columns(_SCALE), columns(_ROTATION), column["opacity"], columns(_COLOUR), rest, rest_notes
    )


def _rest_columns(path: Path, column: dict[str, int], count: int) -> tuple[Array, tuple[str, ...]]:
    """Columns of f_rest in the cloud's order, and notes; only whole bands count, as in Blender's importer."""
    none = np.empty(0, np.intp)
    per_channel = count // 3
    if count % 3 or per_channel > SH_REST_COUNTS[-1]:
        return none, (f"{count} f_rest properties are no spherical harmonics degree; only the base colour was read",)
    for k in range(count):
        if f"f_rest_{k}" not in column:
            raise FormatError(path, f"has {count} f_rest properties but no f_rest_{k}")
    kept = max(n for n in SH_REST_COUNTS if n <= per_channel)
    order = [column[f"f_rest_{c * per_channel + k}"] for k in range(kept) for c in range(3)]
    notes = () if kept == per_channel else (f"{count} f_rest properties hold an incomplete band, which was left out",)
    return np.array(order, np.intp), notes


def _axes_of(header: PlyHeader) -> tuple[Axes, tuple[str, ...]]:
    for comment in header.comments:
        for axes in ("y_up", "y_down", "z_up"):
            if comment == _AXES_COMMENT + axes:
                return axes, ()
        # nerfstudio writes it from its Z-up world; with "y" (Brush, always) it says nothing about up or down.
        if comment.lower() == "vertical axis: z":
            return "z_up", ()
    return "y_down", ("the file does not say which way is up; taken as Y down, as trainers write",)


def _leftovers(path: Path, header: PlyHeader, index: int, size: int) -> tuple[str, ...]:
    """Notes on other elements, and on bytes after the last one where that can be told."""
    others = [e.name[:40] for k, e in enumerate(header.elements) if k != index]
    notes = (f"ignored elements: {', '.join(others[:8])}",) if others else ()
    if header.order and not any(e.has_lists for e in header.elements):
        end = header.offset_of(path, len(header.elements))
        if size > end:
            notes += (f"ignored {size - end} bytes after the last element",)
    return notes


def _read_binary(path: Path, offset: int, dtype: np.dtype[np.void], layout: _Layout, arrays: CloudArrays) -> None:
    """Fill the arrays from a table of fixed rows, a few threads each with a run of rows and a handle of its own."""
    in_runs(len(arrays.good), dtype.itemsize, partial(_read_run, path, offset, dtype, layout, arrays))


def _read_run(
    path: Path,
    offset: int,
    dtype: np.dtype[np.void],
    layout: _Layout,
    arrays: CloudArrays,
    span: tuple[int, int],
    rows: int,
) -> None:
    names = dtype.names or ()
    plain = all(dtype[name] == np.dtype("<f4") for name in names) and np.dtype("<f4").isnative
    buffer = np.empty(min(rows, span[1] - span[0]), dtype)
    table = np.empty((len(buffer), len(names)), np.float32)
    with path.open("rb", buffering=0) as file:
        file.seek(offset + span[0] * dtype.itemsize)
        for start in range(span[0], span[1], len(buffer)):
            stop = min(start + len(buffer), span[1])
            part = buffer[: stop - start]
            read_fully(path, file, part)
            if plain:
                block = part.view(np.float32).reshape(len(part), -1)
            else:
                block = table[: len(part)]
                with np.errstate(all="ignore"):  # a double beyond float32 becomes inf, which counts as damage
                    for k, name in enumerate(names):
                        block[:, k] = part[name]
            _activate(block, layout, arrays, start, stop)


def _read_ascii(path: Path, header: PlyHeader, index: int, layout: _Layout, arrays: CloudArrays) -> None:
    """Fill the arrays from text; every row of every element is one line."""
    vertex = header.elements[index]
    skip = sum(e.count for e in header.elements[:index])
    width = len(vertex.properties)
    done = 0
    with path.open("rb") as file:
        file.seek(header.data_offset)
        lines = _lines(path, file)
        for _ in range(skip):
            if next(lines, None) is None:
                raise FormatError(path, "cut short before the first Gaussian")
        while done < vertex.count:
            batch = [line for _, line in zip(range(min(_ASCII_ROWS, vertex.count - done)), lines, strict=False)]
            if not batch:
                raise FormatError(path, f"cut short, {done} of {vertex.count} Gaussians are there")
            try:
                values = np.loadtxt(batch, np.float64, comments=None, ndmin=2)
            except ValueError:
                raise FormatError(path, f"has a line after Gaussian {done} that is not {width} numbers") from None
            if values.shape != (len(batch), width):
                raise FormatError(path, f"has {values.shape[1]} numbers a line, the header says {width}")
            with np.errstate(all="ignore"):
                block = values.astype(np.float32)
            _activate(block, layout, arrays, done, done + len(batch))
            done += len(batch)


def _lines(path: Path, file: BinaryIO) -> Iterator[str]:
    """Lines that hold something; a line that cannot be one of a Gaussian is refused before it is read whole."""
    while line := file.readline(_MAX_LINE_BYTES + 1):
        if len(line) > _MAX_LINE_BYTES:
            raise FormatError(path, f"has a line of more than {_MAX_LINE_BYTES // 1024} KiB")
        text = line.decode("ascii", "replace").strip()
        if text:
            yield text


def _activate(block: Array, layout: _Layout, arrays: CloudArrays, start: int, stop: int) -> None:
    """Turn rows [M, P] of the file into Gaussians start..stop, and judge which of them are good."""
    rest = arrays.sh_rest[start:stop].reshape(stop - start, -1)
    position, scale, rotation = arrays.positions[start:stop], arrays.scales[start:stop], arrays.rotations[start:stop]
    colour, opacity, good = arrays.sh_dc[start:stop], arrays.opacities[start:stop], arrays.good[start:stop]
    gathered = ((layout.position, position), (layout.scale, scale), (layout.rotation, rotation))
    for columns, out in (*gathered, (layout.colour, colour), (layout.rest, rest)):
        if len(columns):
            np.take(block, columns, axis=1, out=out, mode="clip")  # in "raise" mode numpy goes through a copy
    with np.errstate(all="ignore"):
        logit = block[:, layout.opacity]
        squares = np.einsum("ij,ij->i", rotation, rotation)
        # Only a block in which anything is wrong (or an opacity infinite) is looked at value by value.
        turns = squares.min() > 1e-24 and np.isfinite(squares.max())  # finite numbers may have an infinite square
        if is_finite(block) and np.abs(scale).max() <= LOG_SCALE_LIMIT and turns:
            good[:] = True
        else:
            good[:] = ~np.isnan(logit) & np.isfinite(squares) & (squares > 1e-24)
            good &= (np.abs(scale) <= LOG_SCALE_LIMIT).all(axis=1)
            for values in (position, colour, rest):
                good &= np.isfinite(values).all(axis=1)
        np.exp(scale, out=scale)
        factors = 1.0 / np.sqrt(squares)
        factors[np.abs(squares - 1.0) < 1e-6] = 1.0  # what is normalised stays bit for bit
        rotation *= factors[:, None]
        np.negative(logit, out=opacity)
        np.exp(opacity, out=opacity)
        opacity += 1.0
        np.reciprocal(opacity, out=opacity)
        opacity[logit >= _LOGIT_MAX - 1e-5] = 1.0
        opacity[logit <= _LOGIT_MIN + 1e-4] = 0.0


def _write_run(
    path: Path, offset: int, cloud: GaussianCloud, rest_count: int, span: tuple[int, int], rows: int
) -> None:
    """Write Gaussians span[0]..span[1] into their place of a file that exists."""
    width = _PLAIN_WIDTH + 3 * rest_count
    table = np.zeros((min(rows, span[1] - span[0]), width), "<f4")  # normals, and coefficients that there are none of
    with path.open("r+b", buffering=0) as file:
        file.seek(offset + 4 * width * span[0])
        for start in range(span[0], span[1], len(table)):
            block = table[: min(start + len(table), span[1]) - start]
            _encode(cloud, start, block)
            write_fully(file, block.data.cast("B"))


def _encode(cloud: GaussianCloud, start: int, rows: Array) -> None:
    """Fill rows [M, 17 + 3 K] of the file: position, normal (zero), colour, rest, opacity, scale, rotation."""
    part = slice(start, start + len(rows))
    rows[:, :3] = cloud.positions_m[part]
    rows[:, 6:9] = cloud.sh_dc[part]
    rest = cloud.sh_rest[part]
    rest_count = (rows.shape[1] - _PLAIN_WIDTH) // 3
    for channel in range(3):
        begin = 9 + channel * rest_count
        rows[:, begin : begin + rest.shape[1]] = rest[:, :, channel]
    with np.errstate(all="ignore"):
        opacity = cloud.opacities[part]
        rows[:, -8] = np.clip(np.log(opacity / (1 - opacity)), _LOGIT_MIN, _LOGIT_MAX)
        rows[:, -7:-4] = np.log(cloud.scales_m[part])
    rows[:, -4:] = cloud.rotations_wxyz[part]
